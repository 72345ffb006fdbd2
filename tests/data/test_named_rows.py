"""Arrays with names: every form gives the same rows, and every wrong one its own message."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from embedded import npy, parquet
from numpy.typing import NDArray

from clipbench.data.named_rows import IMAGES, TEXTS, NamedRows, named_rows
from clipbench.errors import DataError

ROWS = np.random.default_rng(0).normal(size=(250, 5)).astype(np.float32)
NAMES = [f"image {n}" for n in range(250)]


def found(folder: Path) -> NamedRows:
    rows = named_rows(folder, "test", IMAGES, folder)
    assert rows is not None
    return rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("form", ["npy", "fortran", "json", "parquet", "list", "large", "dictionary"])
def test_rows_are_those_that_were_written(
    tmp_path: Path, form: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("clipbench.data.named_rows.BLOCK", 64)
    rows = ROWS.astype(dtype)
    if form in ("npy", "fortran"):
        npy(tmp_path / "test.npy", np.asfortranarray(rows) if form == "fortran" else rows, NAMES)
    elif form == "json":
        npy(tmp_path / "test.npy", rows)
        (tmp_path / "test.ids.json").write_text(json.dumps(NAMES))
    elif form == "parquet":
        parquet(tmp_path / "test.parquet", rows.astype(rows.dtype.newbyteorder("=")), NAMES)
    else:
        of = pa.from_numpy_dtype(rows.dtype.newbyteorder("="))
        values = [list(row) for row in rows.astype(rows.dtype.newbyteorder("="))]
        of = pa.large_list(of) if form == "large" else pa.list_(of)
        names = pa.array(NAMES).dictionary_encode() if form == "dictionary" else NAMES
        table = pa.table({"id": names, "embedding": pa.array(values, of)})
        pq.write_table(table, tmp_path / "test.parquet", row_group_size=70)
    table = found(tmp_path)
    assert (len(table), table.width, table.names) == (250, 5, NAMES)
    assert table.dtype == rows.dtype.name
    order = np.random.default_rng(1).permutation(250)[:90]
    assert np.array_equal(table.read(order), rows[order].astype(np.float32))
    assert table.read(order).dtype == np.float32
    assert f"{table.dtype} [250, 5]" in table.described


def test_what_is_described_hangs_on_rows_and_names(tmp_path: Path) -> None:
    def described(rows: NDArray[Any], names: list[str]) -> str:
        npy(tmp_path / "test.npy", rows, names)
        return found(tmp_path).described

    first = described(ROWS, NAMES)
    assert described(ROWS, NAMES) == first
    assert len({first, described(ROWS + 1, NAMES), described(ROWS, NAMES[::-1])}) == 3
    assert str(tmp_path) not in first


def test_a_copy_of_parquet_rows_goes_with_them(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", ROWS, NAMES)
    table = found(tmp_path)
    table.read(np.arange(3))
    cache = Path(os.environ["CLIPBENCH_CACHE"])
    assert list(cache.glob("embeddings-*"))
    del table
    assert not list(cache.glob("embeddings-*"))


def test_lists_of_names(tmp_path: Path) -> None:
    np.save(tmp_path / "texts.npy", ROWS[:2])
    (tmp_path / "texts.txt").write_bytes("ein Wort\r\nzwei\u2028Wörter\r\n".encode())
    rows = named_rows(tmp_path, "texts", TEXTS, tmp_path)
    assert rows is not None
    assert rows.names == ["ein Wort", "zwei\u2028Wörter"]
    assert named_rows(tmp_path, "other", TEXTS, tmp_path) is None


# ------------------------------------------------------------------ wrong ones

Write = Callable[[Path], object]


def _bytes(name: str, data: bytes) -> Write:
    return lambda folder: (folder / name).write_bytes(data)


def _saved(rows: Any, names: list[str] | None = None) -> Write:
    return lambda folder: npy(folder / "test.npy", rows, names)


def _header(text: str, data: bytes = b"") -> Write:
    """A .npy file with this header."""
    head = text.encode() + b"\n"
    return _bytes("test.npy", b"\x93NUMPY\x02\x00" + len(head).to_bytes(4, "little") + head + data)


def _table(**columns: Any) -> Write:
    def write(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), folder / "test.parquet")

    return write


def _appended(folder: Path) -> None:
    npy(folder / "test.npy", ROWS)
    with (folder / "test.npy").open("ab") as file:
        file.write(b"1234")


def _cut(folder: Path) -> None:
    path = npy(folder / "test.npy", ROWS)
    path.write_bytes(path.read_bytes()[:-1])


def _both(folder: Path) -> None:
    npy(folder / "test.npy", ROWS)
    parquet(folder / "test.parquet", ROWS, NAMES)


def _two_lists(folder: Path) -> None:
    npy(folder / "test.npy", ROWS, NAMES)
    (folder / "test.ids.json").write_text(json.dumps(NAMES))


def _list_beside_parquet(folder: Path) -> None:
    parquet(folder / "test.parquet", ROWS, NAMES)
    (folder / "test.ids.txt").write_text("\n".join(NAMES))


def _json(text: str) -> Write:
    def write(folder: Path) -> None:
        npy(folder / "test.npy", ROWS)
        (folder / "test.ids.json").write_text(text)

    return write


SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
WRONG: dict[str, tuple[Write, str]] = {
    "text": (_bytes("test.npy", b"1.0 2.0\n"), "cannot be read as .npy"),
    "nothing": (_bytes("test.npy", b""), "cannot be read as .npy"),
    "zip": (_bytes("test.npy", b"PK\x03\x04" + b"\0" * 60), "cannot be read as .npy"),
    "huge header": (_header("{'descr': " + "[" * 200_000), "cannot be read as .npy"),
    "header that calls": (_header(SHAPE % "__import__('os').getpid()"), "cannot be read as .npy"),
    "more rows than bytes": (_header(SHAPE % "(1000000000000, 5)", b"1" * 40), "cannot be read as .npy"),
    "negative": (_header(SHAPE % "(-1, 5)", b"1" * 40), "cannot be read as .npy"),
    "cut off": (_cut, "cannot be read as .npy"),
    "more behind": (_appended, "has 4 bytes behind its 250 rows"),
    "whole numbers": (_saved(np.ones((3, 2), np.int64)), "holds int64, no float16"),
    "truths": (_saved(np.ones((3, 2), bool)), "holds bool, no float16"),
    "long": (_saved(np.ones((3, 2), np.longdouble)), "no float16, float32 or float64"),
    "complex": (_saved(np.ones((3, 2), complex)), "holds complex128, no float16"),
    "fields": (_saved(np.ones((3, 2), [("a", "f4")])), "no float16, float32 or float64"),
    "one row": (_saved(np.ones(3, np.float32)), r"has the shape [3], expected [rows, width]"),
    "deeper": (_saved(np.ones((3, 2, 1), np.float32)), r"has the shape [3, 2, 1], expected"),
    "empty": (_saved(np.ones((0, 5), np.float32)), "is empty"),
    "without width": (_saved(np.ones((5, 0), np.float32)), "is empty"),
    "fewer ids": (_saved(ROWS, NAMES[:-1]), "has 250 rows, {folder}/test.ids.txt has 249 ids"),
    "more ids": (_saved(ROWS, [*NAMES, "x"]), "has 250 rows, {folder}/test.ids.txt has 251 ids"),
    "ids twice": (
        _saved(ROWS, [*NAMES[:-2], *NAMES[:2]]),
        'test.ids.txt: 2 ids stand there more than once ("image 0", "image 1")',
    ),
    "both forms": (_both, "test.npy and {folder}/test.parquet could both hold the rows"),
    "two lists": (_two_lists, "test.ids.txt and {folder}/test.ids.json could both hold the ids"),
    "list beside parquet": (_list_beside_parquet, "could both hold the ids (a parquet file has them"),
    "no json": (_json("[1"), "cannot be read as JSON"),
    "deep json": (_json("[" * 100_000), "cannot be read as JSON"),
    "json of numbers": (_json(json.dumps(list(range(250)))), "is no list of texts"),
    "json of no list": (_json('{"a": "b"}'), "is no list of texts"),
    "no parquet": (_bytes("test.parquet", b"PAR1 and more"), "cannot be read as parquet"),
    "no ids column": (_table(embedding=[[1.0]]), "has 0 columns 'id'; its columns are 'embedding'"),
    "no rows column": (_table(id=["a"]), "has 0 columns 'embedding'"),
    "ids of numbers": (_table(id=[1], embedding=[[1.0]]), "'id' holds int64, expected texts"),
    "rows of numbers": (_table(id=["a"], embedding=[1.0]), "holds double, expected lists of floats"),
    "rows of whole numbers": (_table(id=["a"], embedding=[[1]]), "expected lists of floats"),
    "rows of lists": (_table(id=["a"], embedding=[[[1.0]]]), "expected lists of floats"),
    "no id": (_table(id=["a", None], embedding=[[1.0], [2.0]]), "'id' has cells without a value"),
    "no row": (_table(id=["a", "b"], embedding=[[1.0], None]), "has rows without a value"),
    "no number": (_table(id=["a", "b"], embedding=[[1.0], [None]]), "has numbers without a value"),
    "ragged": (_table(id=["a", "b"], embedding=[[1.0], [1.0, 2.0]]), "not equally long (1 and 2 numbers)"),
    "rows of nothing": (_table(id=["a"], embedding=[np.ones(0)]), "rows hold no numbers"),
    "same id": (_table(id=["a", "a"], embedding=[[1.0], [2.0]]), "1 ids stand there more than once"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_named_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    write, message = WRONG[name]
    write(tmp_path)
    with pytest.raises(DataError) as caught:
        found(tmp_path).read(np.arange(1))
    assert message.replace("{folder}", str(tmp_path)) in caught.value.message, caught.value
    assert str(tmp_path) in caught.value.message
    assert len(caught.value.message) < 2 * len(str(tmp_path)) + 400


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    """Neither as an array of objects, nor as a file that is one."""
    witness = tmp_path / "witness"
    rows = np.empty((1, 1), object)
    rows[0, 0] = small.Caller(witness)
    np.save(tmp_path / "test.npy", rows, allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects, which are never loaded"):
        found(tmp_path)
    (tmp_path / "test.npy").write_bytes(pickle.dumps(small.Caller(witness)))
    with pytest.raises(DataError, match=r"cannot be read as \.npy"):
        found(tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["test.npy", "test.parquet", "test.ids.txt", "test.ids.json"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    if "ids" in name:
        npy(tmp_path / "test.npy", ROWS)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name} is no file"):
        found(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{name} is no file"):
        found(tmp_path)


def test_a_link_to_rows_is_read(tmp_path: Path) -> None:
    path = npy(tmp_path / "elsewhere" / "a.npy", ROWS)
    (tmp_path / "test.npy").symlink_to(path)
    assert np.array_equal(found(tmp_path).read(np.arange(250)), ROWS)


@pytest.mark.parametrize("lacking", [3, 1])
def test_a_parquet_file_that_has_fewer_rows_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    """As pyarrow reads one whose pages are damaged, without a complaint."""
    parquet(tmp_path / "test.parquet", ROWS[:3], NAMES[:3])
    there = [ROWS[:1]] * (3 - lacking)
    monkeypatch.setattr("clipbench.data.named_rows._blocks", lambda path, rows: iter(there))
    with pytest.raises(DataError, match=r"test\.parquet has not the rows that it says it has"):
        found(tmp_path).read(np.arange(1))


def test_numbers_that_signal_are_nan(tmp_path: Path) -> None:
    rows = ROWS[:2].astype(np.float64)
    rows.view(np.uint64)[0, 0] = 0x7FF0_0000_0000_0001  # a NaN that signals
    npy(tmp_path / "test.npy", rows)
    assert np.isnan(found(tmp_path).read(np.arange(2))[0, 0])
