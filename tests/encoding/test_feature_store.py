"""The feature store: what is damaged is named and made anew, whoever writes; rows come out as they went in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from damage import layout
from numpy.typing import NDArray

from clipbench.data.decode_stream import Bad
from clipbench.encoding import feature_store
from clipbench.encoding.feature_store import SHARD_ROWS, FeatureFile, Matrix
from clipbench.encoding.image_digests import among, digest, repeated
from clipbench.errors import StorageError

KEY = {"model": "a"}
ROWS = 2 * SHARD_ROWS + 10
WIDTH = 3
Rows = NDArray[np.float32]


@pytest.fixture
def rows() -> Rows:
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def images(count: int) -> NDArray[np.void]:
    """Digests of so many images."""
    return np.frombuffer(b"".join(digest(b"%d" % i) for i in range(count)), "V16")


def written(root: Path, rows: Rows, key: dict[str, Any] = KEY, plan: str = "plain") -> FeatureFile:
    """All of `rows` in a file."""
    file = FeatureFile(key, len(rows), root)
    file.begin(plan)
    for shard in file.missing():
        own = file.shard_rows(shard)
        file.write(shard, rows[own], device="here", digests=images(len(rows))[own])
    return file


def again(root: Path, key: dict[str, Any] = KEY) -> FeatureFile:
    """The file as another process finds it."""
    return FeatureFile(key, ROWS, root)


def test_rows_come_out_as_they_went_in(tmp_path: Path, rows: Rows) -> None:
    written(tmp_path, rows)
    file = again(tmp_path)
    assert file.complete()
    matrix = file.read()
    assert (matrix.shape, matrix.dtype, len(matrix)) == (rows.shape, rows.dtype, ROWS)
    places: list[Any] = [
        slice(None), slice(500, 520), slice(-3, None), slice(5, 5), slice(0, ROWS, 7), slice(None, None, -200),
        np.arange(ROWS), np.array([0]), [ROWS - 1, 0, 511, 512, 512, -1], np.array([], dtype=np.int64),
        np.random.default_rng(1).permutation(ROWS)[:700],
    ]  # fmt: skip
    for place in places:
        np.testing.assert_array_equal(matrix[place], rows[place])
    np.testing.assert_array_equal(np.asarray(matrix), rows)
    assert np.asarray(matrix, dtype=np.float64).dtype == np.float64
    for i, row in zip(range(3), matrix, strict=False):  # type: ignore[call-overload]
        np.testing.assert_array_equal(row, rows[i])
    for wrong in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError):
            matrix[[wrong]]
    assert (file.plan(), file.devices(), file.bad(), file.remarks()) == ("plain", ["here"], {}, [])
    np.testing.assert_array_equal(file.digests(), images(ROWS))


def test_scattered_rows_are_read_one_by_one_where_that_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    matrix = written(tmp_path, rows).read()
    monkeypatch.setattr(feature_store, "_RUN_BYTES", 0)
    chosen = [3, 1, 700, 701, 705, 1030]
    np.testing.assert_array_equal(matrix[chosen], rows[chosen])


# ------------------------------------------------------------------- what is damaged


@pytest.mark.parametrize(
    "at",
    [
        lambda header, rows, end: 0,  # the mark
        lambda header, rows, end: 8,  # a length
        lambda header, rows, end: 11,
        lambda header, rows, end: 15,
        lambda header, rows, end: 40,  # the header
        lambda header, rows, end: header - 5,  # a digest of an image
        lambda header, rows, end: header + 3,  # the checksum
        lambda header, rows, end: rows,
        lambda header, rows, end: (rows + end) // 2,
        lambda header, rows, end: end - 1,
    ],
)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_anywhere_is_found(
    tmp_path: Path,
    rows: Rows,
    at: Callable[[int, int, int], int],
    bit: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written(tmp_path, rows).path(1)
    content = bytearray(path.read_bytes())
    content[at(*layout(content), len(content))] ^= 1 << bit
    path.write_bytes(content)
    file = again(tmp_path)
    assert file.missing() == [1]
    assert (file.dropped, path.exists()) == ({1}, False)
    said = capsys.readouterr().err
    assert f"{path} is damaged" in said
    assert "encoded again" in said
    written(tmp_path, rows)
    np.testing.assert_array_equal(again(tmp_path).read()[:], rows)


def zeroed(content: bytes) -> bytes:
    start = layout(content)[1]
    return content[:start] + bytes(12) + content[start + 12 :]


def swapped(content: bytes) -> bytes:
    start = layout(content)[1]
    return (
        content[:start]
        + content[start + 12 : start + 24]
        + content[start : start + 12]
        + content[start + 24 :]
    )


@pytest.mark.parametrize(
    "change",
    [zeroed, swapped, lambda c: b"", lambda c: c[:10], lambda c: c[:-1], lambda c: c[: len(c) // 2],
     lambda c: c + b"\0", lambda c: bytes(len(c)), lambda c: b"clipfeat" + b"\xff" * 100],
)  # fmt: skip
def test_rows_zeroed_or_swapped_and_files_cut_off_are_found(
    tmp_path: Path, rows: Rows, change: Callable[[bytes], bytes]
) -> None:
    path = written(tmp_path, rows).path(0)
    path.write_bytes(change(path.read_bytes()))
    assert again(tmp_path).missing() == [0]


def test_shards_at_each_others_places_are_found(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, rows)
    one, other = (file.path(shard).read_bytes() for shard in (0, 1))
    file.path(0).write_bytes(other)
    file.path(1).write_bytes(one)
    assert again(tmp_path).missing() == [0, 1]
    assert "it is another one (shard 1)" in capsys.readouterr().err


def test_a_shard_of_another_key_is_found(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = written(tmp_path, rows, {"model": "b"})
    file = written(tmp_path, rows)
    file.path(2).write_bytes(stranger.path(2).read_bytes())
    assert again(tmp_path).missing() == [2]
    assert f"it is another one (key {stranger.folder.name})" in capsys.readouterr().err


def test_a_shard_under_another_plan_is_found(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = written(tmp_path / "other", rows, plan="packed")
    file = written(tmp_path, rows)
    file.path(1).write_bytes(stranger.path(1).read_bytes())
    assert again(tmp_path).missing() == [1]
    assert "its plan is packed, that of the others plain" in capsys.readouterr().err


def test_what_is_damaged_after_it_was_checked_is_found(tmp_path: Path, rows: Rows) -> None:
    file = written(tmp_path, rows)
    matrix = file.read()
    matrix[:]
    content = bytearray(file.path(1).read_bytes())
    content[-1] ^= 1
    file.path(1).write_bytes(content)
    np.testing.assert_array_equal(matrix[:5], rows[:5])
    with pytest.raises(StorageError, match=r"00001\.shard is gone or damaged"):
        matrix[600:610]


def forged(path: Path, change: Callable[[Rows], None]) -> None:
    """Change a shard's rows, its checksums with them."""
    content = path.read_bytes()
    header, start = layout(content)
    rows = np.frombuffer(content[start:], np.float32).copy()
    change(rows)
    old = xxhash.xxh3_128_hexdigest(content[start:]).encode()
    head = content[:header].replace(old, xxhash.xxh3_128_hexdigest(rows.tobytes()).encode())
    path.write_bytes(head + xxhash.xxh3_128_digest(head) + rows.tobytes())


def test_rows_that_are_not_finite_are_those_of_bad_images_and_no_others(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FeatureFile(KEY, ROWS, tmp_path)
    file.begin("plain")
    with pytest.raises(ValueError, match="not finite"):
        file.write(0, rows[:512], device="here", bad={3: Bad("d", "cut off")})
    rows[3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        file.write(0, rows[:512], device="here")
    file.write(0, rows[:512], device="here", bad={3: Bad("d", "cut off")}, remarks=[("e", "turned")])
    assert (file.bad(), file.remarks()) == ({"d": "cut off"}, [("e", "turned")])
    for shard in (1, 2):
        file.write(shard, rows[file.shard_rows(shard)], device="here")
    matrix = again(tmp_path).read()
    assert np.flatnonzero(~matrix.finite()).tolist() == [3]
    np.testing.assert_array_equal(matrix[:], rows)

    def nan(own: Rows) -> None:
        own[4] = np.inf

    forged(file.path(1), nan)
    assert again(tmp_path).missing() == [1]
    assert "rows that are not finite, though their images could be decoded" in capsys.readouterr().err


# ---------------------------------------------------------------------------- the plan


def test_the_first_writer_fixes_the_plan(tmp_path: Path) -> None:
    assert again(tmp_path).plan() is None
    assert again(tmp_path).begin("packed") == "packed"
    assert again(tmp_path).begin("plain") == "packed"
    assert again(tmp_path).plan() == "packed"


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b'{"plan": "plain"}\nclipbench-sha256:' + b"0" * 64 + b"\n"]
)
def test_a_damaged_plan_is_that_of_the_shards(tmp_path: Path, rows: Rows, content: bytes | None) -> None:
    file = written(tmp_path, rows, plan="packed")
    path = file.folder / "plan.json"
    whole = json.loads(path.read_bytes().partition(b"\n")[0])
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert again(tmp_path).begin("plain") == "packed"
    assert again(tmp_path).complete()
    assert json.loads(path.read_bytes().partition(b"\n")[0]) == whole


def test_a_damaged_plan_of_no_shards_is_begun_anew(tmp_path: Path) -> None:
    file = again(tmp_path)
    file.begin("packed")
    (file.folder / "plan.json").write_bytes(b"\0\0")
    assert again(tmp_path).begin("plain") == "plain"


_WRITER = """
import sys, os, signal
from pathlib import Path
import numpy as np
from clipbench.encoding.feature_store import FeatureFile
root, plan, kill = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "kill"
rows = np.random.default_rng(0).normal(size=(1034, 3)).astype(np.float32)
for turn in range(30):
    file = FeatureFile({"model": "a"}, 1034, root)
    print(file.begin(plan))
    for shard in range(3):
        if kill and turn == 3:
            replace = os.replace
            os.replace = Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        file.write(shard, rows[file.shard_rows(shard)], device="here")
    assert file.complete()
    np.testing.assert_array_equal(file.read()[:], rows)
"""


def test_two_who_write_at_once_without_a_lock_follow_one_plan(tmp_path: Path, rows: Rows) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), plan, ""], stdout=subprocess.PIPE, text=True
        )
        for plan in ("plain", "packed")
    ]
    said = [writer.communicate(timeout=120)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(set("".join(said).split())) == 1
    file = again(tmp_path)
    np.testing.assert_array_equal(file.read()[:], rows)
    assert {path.name for path in file.folder.iterdir()} == {f"0000{i}.shard" for i in range(3)} | {
        "plan.json"
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of Unix")
def test_what_a_killed_writer_leaves_is_no_shard_and_goes(tmp_path: Path, rows: Rows) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _WRITER, str(tmp_path), "plain", "kill"], capture_output=True
    )
    assert killed.returncode == -9
    file = again(tmp_path)
    assert [p.name for p in file.folder.iterdir() if p.name.endswith(".part")]
    file.path(0).unlink()
    written(tmp_path, rows)
    assert not [p.name for p in file.folder.iterdir() if p.name.endswith(".part")]
    np.testing.assert_array_equal(again(tmp_path).read()[:], rows)


def test_a_file_that_is_put_in_a_shards_place_while_it_is_read_is_read_too(
    tmp_path: Path, rows: Rows
) -> None:
    file = written(tmp_path, rows)
    matrix = file.read()
    file.path(0).unlink()
    other = again(tmp_path)
    other.begin("plain")
    other.write(0, rows[:512], device="a device of a longer name")
    np.testing.assert_array_equal(matrix[:], rows)


def test_rows_that_are_missing_are_no_matrix(tmp_path: Path, rows: Rows) -> None:
    file = written(tmp_path, rows)
    file.path(1).unlink()
    with pytest.raises(StorageError, match="missing"):
        Matrix(again(tmp_path))


# ----------------------------------------------------------------------------- digests


def test_images_that_are_there_twice() -> None:
    def of(*names: bytes) -> NDArray[np.void]:
        return np.frombuffer(b"".join(map(digest, names)), "V16")

    assert repeated(of(b"a", b"b", b"a", b"", b"", b"a")).tolist() == [False, False, True, False, True, True]
    assert among(of(b"a", b"b", b"c"), of(b"c", b"d", b"a", b"a")).tolist() == [True, False, True]
    assert among(of(), of(b"a")).tolist() == among(of(b"a"), of()).tolist()[:0] == []


def test_digests_that_agree_by_half_are_not_the_same() -> None:
    one, other = b"12345678abcdefgh", b"12345678ABCDEFGH"
    both = np.frombuffer(one + other, "V16")
    assert not repeated(both).any()
    assert not among(both[:1], both[1:]).any()
