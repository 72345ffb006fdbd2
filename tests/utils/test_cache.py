"""Files with a checksum, what killed writers leave behind, and the ledger."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import flip

from clipbench.errors import ClipbenchError, Damaged
from clipbench.utils import cache
from clipbench.utils.cache import (
    is_whole,
    open_checked,
    read_checked,
    recall,
    remember,
    write_atomic,
    write_checked,
)

DATA = bytes(range(256)) * 3


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    path = tmp_path / "index.bin"
    write_checked(path, DATA, "index 1")
    return path


@pytest.mark.parametrize("data", [DATA, b""])
def test_what_is_written_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    write_checked(path, data, "index 1")
    assert open_checked(path, "index 1") == data == read_checked(path, "index 1")
    assert is_whole(path, "index 1")
    assert path.read_bytes().startswith(data)  # so that it can be memory-mapped


def test_every_flipped_bit_is_seen(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = checked.read_bytes()
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        checked.write_bytes(flipped)
        with pytest.raises(Damaged, match=r"index\.bin is damaged"):
            open_checked(checked, "index 1")
        assert not is_whole(checked, "index 1")
        assert f"clipbench: {checked} is damaged" in capsys.readouterr().err
    assert read_checked(checked, "index 1") is None
    assert capsys.readouterr().err.rstrip().endswith("; it is made anew")


@pytest.mark.parametrize("size", [0, 1, 50, 700, len(DATA), len(DATA) + 60])
def test_a_file_cut_off_is_seen(checked: Path, size: int) -> None:
    checked.write_bytes(checked.read_bytes()[:size])
    with pytest.raises(Damaged, match="does not end in a checksum"):
        open_checked(checked, "index 1")
    assert not is_whole(checked, "index 1")


def test_a_file_of_another_kind_is_seen(checked: Path) -> None:
    with pytest.raises(Damaged):
        open_checked(checked, "index 2")
    assert not is_whole(checked, "index 2")


def test_a_missing_file_needs_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_checked(tmp_path / "a", "index 1") is None
    assert not is_whole(tmp_path / "a", "index 1")
    assert not capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        open_checked(tmp_path / "a", "index 1")


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="cannot be read: Is a directory"):
        open_checked(tmp_path, "index 1")


# -------------------------------------------------------------- killed writers


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process that is writing `path`, and its part."""
    code = (
        "import sys, time; from pathlib import Path; from clipbench.utils.cache import part_of;"
        "p = part_of(Path(sys.argv[1])); p.write_bytes(b'half'); print(p, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield Path(process.stdout.readline().strip()), process
        finally:
            process.kill()


def test_what_a_killed_writer_left_goes_at_the_next_write(tmp_path: Path) -> None:
    with _writer(tmp_path / "a.json") as (part, process):
        write_atomic(tmp_path / "b.json", b"{}")
        assert part.read_bytes() == b"half"
        process.kill()
        process.wait()
        write_atomic(tmp_path / "b.json", b"{}")
        assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_parts_of_other_machines_go_after_an_hour(tmp_path: Path) -> None:
    names = [".a.json.0123abcd.4242.part", ".a.json.4242.part"]  # of another machine; of an earlier version
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    download = tmp_path / "weights.bin.part"  # which goes on where it stopped
    download.write_bytes(b"half")
    write_atomic(tmp_path / "b.json", b"{}")
    assert all((tmp_path / name).exists() for name in names)
    long_ago = time.time() - 3700
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    write_atomic(tmp_path / "b.json", b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "weights.bin.part"]


def test_a_part_of_ones_own_stays(tmp_path: Path) -> None:
    part = cache.part_of(tmp_path / "a")
    part.write_bytes(b"half")
    cache.part_of(tmp_path / "b")
    assert part.exists()


# ---------------------------------------------------------------------- ledger


@pytest.fixture
def ledger(isolated_cache: Path) -> Path:
    remember("weights", "https://there/a.pt", "0123abcd", what="sha256 of the weights")
    remember("data", "org/set", "4567cdef", what="the commit")
    return isolated_cache / "ledger.json"


def test_the_ledger_holds_what_was_first_seen(ledger: Path) -> None:
    assert recall("weights", "https://there/a.pt") == "0123abcd"
    assert recall("weights", "elsewhere") is recall("files", "x") is None
    with pytest.raises(ClipbenchError, match="has changed: 4567cdef at first use, 89abcdef now"):
        remember("data", "org/set", "89abcdef", what="the commit")
    # an entry can be taken out by hand, as the hint says
    value = json.loads(ledger.read_text())
    del value["data"]["org/set"]
    ledger.write_text(json.dumps(value))
    remember("data", "org/set", "89abcdef", what="the commit")
    assert recall("data", "org/set") == "89abcdef"
    assert recall("weights", "https://there/a.pt") == "0123abcd"


def test_every_flipped_bit_of_the_ledger_is_an_error_or_changes_nothing(ledger: Path) -> None:
    whole = ledger.read_bytes()
    unseen, said = 0, set()
    for place in range(8 * len(whole)):
        ledger.write_bytes(whole)
        flip(ledger, place)
        try:
            assert recall("data", "org/set") == "4567cdef"
            assert recall("weights", "https://there/a.pt") == "0123abcd"
            unseen += 1
        except Damaged as damage:
            said.add(damage.message.split(", the ledger")[0])
    assert unseen < len(whole)  # spaces that became others
    assert said == {str(ledger)}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"data": []}', '{"data": {"a": 1}}', "\udcff"])
def test_a_ledger_that_is_none(isolated_cache: Path, text: str) -> None:
    isolated_cache.mkdir(parents=True)
    (isolated_cache / "ledger.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Damaged, match=r"ledger\.json, the ledger of what was first seen"):
        remember("data", "org/set", "4567cdef", what="the commit")


def test_a_ledger_without_checksums_is_taken_and_said_once(
    isolated_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    isolated_cache.mkdir(parents=True)
    (isolated_cache / "ledger.json").write_text('{"data": {"org/set": "4567cdef", "org/other": "a"}}')
    assert recall("data", "org/set") == "4567cdef"
    assert (
        "2 entries of an earlier version have no checksum; they are taken as they are"
        in capsys.readouterr().err
    )
    with pytest.raises(ClipbenchError, match="has changed: 4567cdef"):
        remember("data", "org/set", "b", what="the commit")
    remember("data", "org/set", "4567cdef", what="the commit")
    capsys.readouterr()
    assert recall("data", "org/other") == "a"
    assert not capsys.readouterr().err
