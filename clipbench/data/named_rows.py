"""Arrays of rows with a name each: `.npy` with a list of names beside it, or parquet. Nothing in them is ever run."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.data.digests import digests
from clipbench.data.layouts.parquet import opened
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError, first_line
from clipbench.utils.cache import cache_root, folder_for_now
from clipbench.utils.parsing import MOST_JSON, Unreadable, file_bytes, json_value

#: the column of a parquet file that holds rows
COLUMN: Final = "embedding"
#: rows read at once
BLOCK: Final = 4096
_AGAIN: Final = "write the file again: float16, float32 or float64 [rows, width]"


@dataclass(frozen=True)
class Kind:
    """What rows are of: what a name is called, the column of a parquet file that holds it, and the ends of lists."""

    word: str
    column: str
    lists: tuple[str, ...]


IMAGES: Final = Kind("id", "id", (".ids.txt", ".ids.json"))
TEXTS: Final = Kind("text", "text", (".txt", ".json"))


class NamedRows:
    """Rows of floats and their names, in a file or two below `root`.

    Attributes:
        path: the file of the rows.
        names: one a row; None where there is no list of them.
        width: columns.
        dtype: of the file: float16, float32 or float64.
        described: files, type, shape and sha256: other rows or names have another text.
    """

    def __init__(self, path: Path, names: Path | None, kind: Kind, root: Path) -> None:
        """Look at the files; rows are read later.

        Raises:
            DataError: one cannot be read, or holds no rows of floats, or another number of names than of rows, or a
                name twice.
        """
        self.path = path
        if path.suffix == ".npy":
            self._array: NDArray[Any] | None = _mapped(path)
            (count, self.width), self.dtype = self._array.shape, self._array.dtype.name
            self.names = None if names is None else _listed(names)
        else:
            self._array = None
            self.names, self.width, self.dtype = _columns(path, kind)
            count = len(self.names)
        self._count: int = count
        if self.names is not None and len(self.names) != count:
            raise DataError(
                f"{path} has {count:,} rows, {names} has {len(self.names):,} {kind.word}s",
                hint=f"write one {kind.word} a line, in the order of the rows"
                + (" (texts with line breaks: as a list in a .json file)" if kind is TEXTS else ""),
            )
        self._refuse_twice(names or path, kind)
        files = [path, *([names] if names else [])]
        told = [f"{name} (sha256 {digest})" for name, digest in digests(root, files).files]
        self.described = f"{', '.join(told)}: {self.dtype} [{count}, {self.width}]"

    def __len__(self) -> int:
        return self._count

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """A copy of the rows at `rows`, in any order: float32 [n, D]; numbers too large for that are infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            found: NDArray[np.float32] = self._rows[rows].astype(np.float32)
        return found

    def name(self, row: int) -> str:
        """What a message calls a row."""
        return f"row {row}" if self.names is None else self.names[row]

    @cached_property
    def _rows(self) -> NDArray[Any]:
        """Mapped into memory; those of a parquet file from a copy, since it is read from its beginning only."""
        if self._array is not None:
            return self._array
        folder = folder_for_now(cache_root(), "embeddings")
        weakref.finalize(self, rmtree, folder, ignore_errors=True)
        rows: NDArray[Any] = np.lib.format.open_memmap(
            folder / "rows.npy", mode="w+", dtype=self.dtype, shape=(len(self), self.width)
        )
        start = 0
        for block in _blocks(self.path, BLOCK):
            if block.shape[1] != self.width or start + len(block) > len(self):
                raise DataError(
                    f"{self.path}: its rows are not equally long ({self.width} and {block.shape[1]} numbers)",
                    hint=_AGAIN,
                )
            rows[start : start + len(block)] = block
            start += len(block)
        if start != len(self):
            raise _damaged(self.path)
        return rows

    def _refuse_twice(self, where: Path, kind: Kind) -> None:
        names = self.names or []
        place = {name: row for row, name in enumerate(names)}
        if len(place) == len(names):
            return
        again = [name for row, name in enumerate(names) if place[name] != row]
        raise DataError(
            f"{where}: {len(again):,} {kind.word}s stand there more than once ({quoted(again)})",
            hint="keep one row of each",
        )


def named_rows(folder: Path, name: str, kind: Kind, root: Path) -> NamedRows | None:
    """The rows called `name` in `folder`; None where there are none.

    Raises:
        DataError: more than one file could be meant, or see `NamedRows`.
    """
    found = _only([folder / f"{name}{end}" for end in (".npy", ".parquet")], "the rows")
    if found is None:
        return None
    beside = [folder / f"{name}{end}" for end in kind.lists]
    if found.suffix == ".parquet":
        _only([found, *beside], f"the {kind.word}s (a parquet file has them in its column {kind.column!r})")
        return NamedRows(found, None, kind, root)
    return NamedRows(found, _only(beside, f"the {kind.word}s"), kind, root)


def quoted(names: Sequence[str]) -> str:
    """The first three of `names`, each of at most 60 characters.

    >>> quoted(["a", "b", "c", "d"])
    '"a", "b", "c", …'
    """
    shown = [f'"{name if len(name) <= 60 else f"{name[:57]}..."}"' for name in names[:3]]
    return ", ".join(shown + (["…"] if len(names) > 3 else []))


def _only(paths: Sequence[Path], what: str) -> Path | None:
    """The one of `paths` that is there, an ordinary file; None where none is."""
    there = [path for path in paths if os.path.lexists(path)]
    if len(there) > 1:
        raise DataError(
            f"{' and '.join(map(str, there))} could both hold {what}",
            hint="keep one of them, and move the other away",
        )
    if there and not there[0].is_file():  # a pipe would be waited for
        raise DataError(f"{there[0]} is no file", hint="put a file there, or a link to one")
    return there[0] if there else None


def _mapped(path: Path) -> NDArray[Any]:
    """The array of a .npy file.

    Raises:
        DataError: it is none, or no rows of floats.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how a header is written
            found: Any = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a file made to do harm may raise anything while its header is read
        if "Python objects" in str(error):
            raise DataError(
                f"{path} holds Python objects, which are never loaded: loading could run code", hint=_AGAIN
            ) from None
        raise DataError(f"{path} cannot be read as .npy: {first_line(error)}", hint=_AGAIN) from None
    if found.dtype.kind != "f" or found.dtype.itemsize > 8 or found.dtype.fields:
        raise DataError(f"{path} holds {found.dtype}, no float16, float32 or float64", hint=_AGAIN)
    if found.ndim != 2:
        raise DataError(f"{path} has the shape {list(found.shape)}, expected [rows, width]", hint=_AGAIN)
    if not found.size:
        raise DataError(f"{path} is empty: its shape is {list(found.shape)}", hint=_AGAIN)
    more = path.stat().st_size - found.offset - found.nbytes
    if more:
        raise DataError(f"{path} has {more:,} bytes behind its {len(found):,} rows", hint=_AGAIN)
    return found  # type: ignore[no-any-return]


def _listed(path: Path) -> list[str]:
    """The names of a list: one a line, or a list of texts in JSON.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    if path.suffix == ".txt":
        return lines(decoded(path))
    try:
        names = json_value(file_bytes(path, MOST_JSON))
    except (Unreadable, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {first_line(error)}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} is no list of texts", hint='write it as ["first", "second", …]')
    return names


def _columns(path: Path, kind: Kind) -> tuple[list[str], int, str]:
    """Names, width and type of the rows of a parquet file."""
    from pyarrow import types

    with opened(path) as file:
        schema = file.schema_arrow
        for column in (kind.column, COLUMN):
            if schema.names.count(column) != 1:
                raise DataError(
                    f"{path} has {schema.names.count(column)} columns {column!r}; its columns are "
                    f"{', '.join(map(repr, schema.names[:20]))}",
                    hint=f"write the columns {kind.column!r} (texts) and {COLUMN!r} (lists of floats)",
                )
        of = schema.field(COLUMN).type
        lists = types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of)
        if not lists or not types.is_floating(of.value_type):
            raise DataError(
                f"{path}: the column {COLUMN!r} holds {of}, expected lists of floats", hint=_AGAIN
            )
        named = schema.field(kind.column).type
        named = named.value_type if types.is_dictionary(named) else named
        if not (types.is_string(named) or types.is_large_string(named)):
            raise DataError(f"{path}: the column {kind.column!r} holds {named}, expected texts")
        if not file.metadata.num_rows:
            raise DataError(f"{path} is empty: it has no rows", hint=_AGAIN)
        names: list[str] = []
        for batch in file.iter_batches(BLOCK, columns=[kind.column]):
            if batch.column(0).null_count:
                raise DataError(f"{path}: the column {kind.column!r} has cells without a value")
            names += batch.column(0).to_pylist()
        first = next(_blocks(path, 1), None)
        if first is None or len(names) != file.metadata.num_rows:
            raise _damaged(path)
        width = first.shape[1]
        if width < 1:
            raise DataError(f"{path}: its rows hold no numbers", hint=_AGAIN)
        return names, width, np.dtype(of.value_type.to_pandas_dtype()).name


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} has not the rows that it says it has: the file is damaged", hint=_AGAIN)


def _blocks(path: Path, rows: int) -> Iterator[NDArray[Any]]:
    """The rows of a parquet file, `rows` at once."""
    import pyarrow.compute as pc

    with opened(path) as file:
        for batch in file.iter_batches(rows, columns=[COLUMN]):
            column = batch.column(0)
            lacking = "rows" if column.null_count else "numbers" if column.flatten().null_count else None
            if lacking:
                raise DataError(f"{path}: the column {COLUMN!r} has {lacking} without a value", hint=_AGAIN)
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
            if len(lengths) > 1:
                raise DataError(
                    f"{path}: its rows are not equally long ({lengths[0]} and {lengths[1]} numbers)",
                    hint=_AGAIN,
                )
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), lengths[0])
