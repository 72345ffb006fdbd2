"""Digests of files: unchanged files are not read again, changed ones always are, and what is remembered is checked."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import small

from clipbench.catalog import Catalog
from clipbench.data import digests as module
from clipbench.data import huggingface
from clipbench.data.digests import digests
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import DataError, StorageError, WeightsError
from clipbench.models.weights.resolve import verify


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read; files count as old enough to be remembered at once."""
    names: list[str] = []
    original = module.sha256_file

    def counting(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(module, "sha256_file", counting)
    monkeypatch.setattr(module, "RACY_NS", 0)
    return names


def of(folder: Path, *, again: bool = False) -> list[tuple[str, str]]:
    return digests(folder, sorted(folder.iterdir()), again=again).files


def swapped(path: Path, data: bytes) -> None:
    """Other bytes of the same size, under the time that the file had."""
    before = path.stat()
    assert len(data) == before.st_size
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    for name in "abc":
        (made / name).write_bytes(name.encode() * 3)
        os.utime(made / name, (1_000_000, 1_000_000))
    return made


def test_unchanged_files_are_read_once(folder: Path, read: list[str]) -> None:
    wanted = [(name, sha256(name.encode() * 3)) for name in "abc"]
    assert of(folder) == wanted
    assert sorted(read) == ["a", "b", "c"]
    read.clear()
    assert of(folder) == wanted
    assert read == []


def test_a_file_swapped_under_its_size_and_time_is_read_again(folder: Path, read: list[str]) -> None:
    of(folder)
    read.clear()
    swapped(folder / "b", b"xyz")
    assert of(folder)[1] == ("b", sha256(b"xyz"))
    assert read == ["b"]


def test_another_file_moved_into_the_place_is_read(folder: Path, read: list[str]) -> None:
    of(folder)
    read.clear()
    (folder / "b").replace(folder / "c")
    assert of(folder) == [("a", sha256(b"aaa")), ("c", sha256(b"bbb"))]
    assert read == ["c"]


def test_a_link_that_leads_elsewhere_is_followed(folder: Path, tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "one").write_bytes(b"111"), (tmp_path / "two").write_bytes(b"222")
    link = folder / "link"
    link.symlink_to(tmp_path / "one")
    assert of(folder)[-1] == ("link", sha256(b"111"))
    link.unlink()
    link.symlink_to(tmp_path / "two")
    assert of(folder)[-1] == ("link", sha256(b"222"))


def test_a_file_that_has_just_changed_is_not_remembered(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RACY_NS", 3_600_000_000_000)  # an hour: slower than any test
    of(folder)
    read.clear()
    of(folder)
    assert sorted(read) == ["a", "b", "c"]


def test_reading_again_finds_a_digest_that_was_wrong(
    folder: Path, read: list[str], isolated_cache: Path
) -> None:
    of(folder)
    rewritten(isolated_cache, folder / "b", sha256(b"other"), sealed=True)
    assert of(folder)[1] == ("b", sha256(b"other"))  # what is remembered is believed
    found = digests(folder, sorted(folder.iterdir()), again=True)
    assert found.files[1] == ("b", sha256(b"bbb"))
    assert found.wrong == ("b",)
    assert str(found.notes[0]) == (
        "1 files hold other bytes than were remembered of them, although their times say otherwise; corrected (b)"
    )
    assert of(folder)[1] == ("b", sha256(b"bbb"))
    assert digests(folder, sorted(folder.iterdir()), again=True).notes == ()


def rewritten(cache: Path, path: Path, digest: str, *, sealed: bool = False) -> None:
    """Another digest in the database, as a fault of its disk would leave it, or (`sealed`) as if it had been so."""
    key = os.fsencode(path)
    with closing(sqlite3.connect(cache / "files.sqlite")) as connection, connection:
        (state,) = connection.execute("select state from digests where path = ?", (key,)).fetchone()
        connection.execute("update digests set sha256 = ? where path = ?", (digest, key))
        if sealed:
            seal = module._seal(key, state, digest)
            connection.execute("update digests set seal = ? where path = ?", (seal, key))


def test_a_bit_that_turns_in_the_database_is_noticed(
    folder: Path, read: list[str], isolated_cache: Path
) -> None:
    of(folder)
    read.clear()
    rewritten(isolated_cache, folder / "b", sha256(b"other"))
    assert of(folder)[1] == ("b", sha256(b"bbb"))
    assert read == ["b"]


@pytest.mark.parametrize("end", ["start", "middle"])
def test_a_damaged_database_is_started_anew(
    end: str, folder: Path, read: list[str], isolated_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of(folder)
    read.clear()
    database = isolated_cache / "files.sqlite"
    data = bytearray(database.read_bytes())
    data[slice(0, 100) if end == "start" else slice(4096, len(data))] = b"\xff" * (
        100 if end == "start" else len(data) - 4096
    )
    database.write_bytes(data)
    assert of(folder) == [(name, sha256(name.encode() * 3)) for name in "abc"]
    assert "files.sqlite is damaged" in capsys.readouterr().err
    read.clear()
    of(folder)
    assert read == []


def test_a_database_that_cannot_be_locked_is_an_error(
    folder: Path, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("locking protocol")

    monkeypatch.setattr("clipbench.data.digests.sqlite3.connect", connect)
    with pytest.raises(StorageError, match=r"locking protocol.*\n.*on a disk of this machine"):
        of(folder)


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone cannot be read: No such file"):
        digests(folder, [folder / "gone"])
    with pytest.raises(WeightsError, match=r"gone cannot be read"):
        verify(folder / "gone", None, kept=True)


def test_names_that_are_no_utf8(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(b"x")
    for _ in range(2):
        assert digests(tmp_path, [path]).files == [(path.name, sha256(b"x"))]
    assert read == [path.name]


def test_weights_swapped_under_their_size_and_time_are_read_again(folder: Path, read: list[str]) -> None:
    assert verify(folder / "a", None, kept=True) == sha256(b"aaa")
    swapped(folder / "a", b"new")
    assert verify(folder / "a", None, kept=True) == sha256(b"new")


def test_a_file_that_never_stands_still_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def growing(path: Path) -> str:
        with path.open("ab") as file:
            file.write(b"more")
        return "0" * 64

    monkeypatch.setattr(module, "sha256_file", growing)
    with pytest.raises(DataError, match="changes while it is read"):
        digests(folder, [folder / "a"])


def test_verified_data_says_which_digest_was_wrong(
    tmp_path: Path, read: list[str], isolated_cache: Path
) -> None:
    table = small.write_parquet(tmp_path / "data" / "test.parquet", 5)
    card = Catalog([small.write_task(tmp_path / "cards")]).dataset("animals")

    def split(*, verify: bool) -> Split:
        return open_split(card, "test", DataPaths({"animals": table.parent}, (), verify))

    right = split(verify=False).fingerprint
    rewritten(isolated_cache, table, "0" * 64, sealed=True)
    assert split(verify=False).fingerprint != right
    verified = split(verify=True)
    assert verified.fingerprint == right
    assert [
        (note.kind, note.count, note.examples) for note in verified.notes if note.kind == "wrong-digests"
    ] == [("wrong-digests", 1, ("test.parquet",))]
    assert split(verify=False).fingerprint == right


def test_verified_files_of_the_hub_are_what_was_fetched(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "c"
    blobs.mkdir()
    folder.mkdir(parents=True)
    git = hashlib.sha1(b"blob 5\0small", usedforsecurity=False).hexdigest()
    for name, data in ((sha256(b"large"), b"large"), (git, b"small"), ("etag", b"other")):
        (blobs / name).write_bytes(data)
    links = [folder / name for name in ("large", "small", "bare")]
    for link, blob in zip(links, (sha256(b"large"), git, "etag"), strict=True):
        link.symlink_to(blobs / blob)
    assert huggingface._verified(links[:2]) == ()
    assert [(note.kind, note.examples) for note in huggingface._verified(links)] == [
        ("unverified", ("bare",))
    ]
    for link in links[:2]:
        link.resolve().write_bytes(b"wrong")
        with pytest.raises(DataError, match=f"{link.name} is not what was fetched"):
            huggingface._verified([link])
