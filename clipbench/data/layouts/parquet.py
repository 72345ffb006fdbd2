"""Parquet files: a row a sample, with columns of images and of labels or captions.

A cell of the column of images holds the bytes of an encoded image, the path of an image file, or both in a struct
(`datasets` writes `{bytes, path}`; the path says nothing where there are bytes). A path starts from the folder of its
table, or from the folder of the data set, and leads nowhere else; see `Parquet.files`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import LABELLED, TaskCard
from clipbench.data.layouts.base import Layout, LayoutSpec, plain_text
from clipbench.data.paths import split_files
from clipbench.data.split import notes_of
from clipbench.data.text import lines
from clipbench.errors import DataError, first_line
from clipbench.utils.parsing import exists

_READ_ROWS = 256  # rows of a parquet file held at once
_READ_BYTES = 1 << 20  # and what is read ahead of them
_NUMBERS = ("whole numbers", "truth values", "fractions")
#: what names of columns that say which image a row shows are, in small letters and digits alone
_IDENTITIES = (
    *("imageid", "imgid", "cocoid", "cocoimageid", "flickrid", "imagekey", "imagename", "imgname"),
    *("imagefilename", "imagefile", "imgfile", "filename", "imagepath", "imgpath", "filepath", "path"),
    *("imageurl", "imgurl", "cocourl", "flickrurl", "url"),
)  # fmt: skip


class Parquet(Layout):
    """Parquet files as `datasets` writes them, read with pyarrow.

    `datasets` would hold whole row groups, which in data sets of small images are the whole file.

    `files` are the tables, and the image files that they name, each once. Each of `groups` of rows (ascending, and by
    their first rows) is one sample, with all their captions; None: each row is one.
    """

    name_in_fingerprint = "_Parquet"
    in_part = True

    def __init__(self, files: list[Path], card: TaskCard, root: Path, where: str | None = None) -> None:
        """Read the columns of `files`, below the data set's folder `root`; `where` is what messages call them.

        Raises:
            DataError: a file that is no parquet, lacks a column, or has another type in it than the first; an image
                file that is missing, or lies outside of `root`.
        """
        key = "caption" if card.kind == "captions" else "label"
        self._labelled = card.kind != "attributes"
        self._label = getattr(card.columns, key)
        self._captioned = card.kind == "captions"
        columns = {"image": card.columns.image} | ({key: self._label} if self._labelled else {})
        self._start(files, card, root, where, columns)
        if card.kind in LABELLED:
            self._read_names()

    def _start(
        self, files: list[Path], card: TaskCard, root: Path, where: str | None, columns: dict[str, str]
    ) -> None:
        """Check `columns` (field of the card → name) in all files, and find the images that are files."""
        self._open(files, root, where)
        self._image = card.columns.image
        self._check(columns)
        self._find_images([self._image])

    def _open(self, files: list[Path], root: Path, where: str | None) -> None:
        """Read the schemas of all files."""
        self._files, self.root = files, root
        self.where = str(root) if where is None else where
        self.groups: list[list[int]] | None = None
        self._own: dict[Path, list[str]] = {}
        self._schemas: dict[Path, Any] = {}
        for path in files:
            with opened(path) as file:
                self._schemas[path] = file.schema_arrow

    def _find_images(self, columns: Sequence[str]) -> None:
        """Find the image files that the tables name in `columns`; with these, `files` are all that decide the split."""
        self._linked: dict[tuple[Path, str], Path] = {}
        for path in self._files:
            for column in columns:
                self._link(path, column)
        self.files = [*self._files, *dict.fromkeys(self._linked.values())]

    def index(self) -> Iterator[tuple[str, Any]]:
        if self.groups is None:
            for row, label in enumerate(self._labels()):
                one = self._captioned and isinstance(
                    label, Mapping
                )  # with a text: as a list of them would be
                yield f"{row:07d}", captions_of(label) if one else label
            return
        cells = list(self._labels())
        for rows in self.groups:
            yield f"{rows[0]:07d}", [caption for row in rows for caption in captions_of(cells[row])]

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        firsts = None if self.groups is None else {group[0]: n for n, group in enumerate(self.groups)}
        row = 0
        for path in self._files:
            for cell in self._of(path, self._image):
                if firsts is None or row in firsts:
                    yield row if firsts is None else firsts[row], self._bytes(path, cell)
                row += 1

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        return list(self._schemas[self._files[0]].names)

    def identities(self, named: str | None) -> Iterator[tuple[str, list[Any]]]:
        """Columns that may say which image a row shows, and what stands in each row: `named`, else by their names.

        Raises:
            DataError: there is no column `named`, or it holds neither texts nor whole numbers.
        """
        if named is not None:
            yield named, self._named("image_id", named)
            return
        plain = {"".join(c for c in name.casefold() if c.isalnum()): name for name in self.columns}
        for known in _IDENTITIES:
            name = plain.get(known)
            if name is not None and name not in (self._image, self._label) and self._plain(name):
                yield name, list(self._values(name))
        yield (
            f"{self._image} (its path)",
            [
                str(self._linked.get((path, text), text)) if (text := _path_of(cell, beside=True)) else None
                for path in self._files
                for cell in self._of(path, self._image)
            ],
        )

    def beside(self, key: str, name: str) -> list[str]:
        values = self._named(key, name)
        texts = [plain_text(value, key) for value in values]
        if None in texts:
            row = texts.index(None)
            said = (
                "nothing" if values[row] is None else f"{str(values[row])[:60]!r}, no text or whole number,"
            )
            raise DataError(
                f"{self.where}: row {row} has {said} in the column {name!r}, which columns.{key} on the task card "
                "names",
                hint="fill it in every row, or name another column",
            )
        if self.groups is None:
            return [str(text) for text in texts]
        for rows in self.groups:
            other = next((row for row in rows if texts[row] != texts[rows[0]]), None)
            if other is not None:
                raise DataError(
                    f"{self.where}: rows {rows[0]} and {other} show one image, but have {texts[rows[0]]!r} and "
                    f"{texts[other]!r} in the column {name!r}",
                    hint=f"correct the column, or name another one as columns.{key} on the task card",
                )
        return [str(texts[rows[0]]) for rows in self.groups]

    def _named(self, key: str, column: str) -> list[Any]:
        """The values of a column that `columns.<key>` of the card names; DataError unless they are texts or numbers."""
        self._check({key: column})
        if not self._plain(column, *(("fractions",) if key.startswith("group") else ())):
            kind = _said(_kind(self._schemas[self._files[0]].field(column).type))
            raise DataError(
                f"{self.where}: the column {column!r} holds {kind}, expected texts or whole numbers",
                hint=_set(key),
            )
        if self._plain(column):
            return list(self._values(column))
        return [math.nan if value is None else float(value) for value in self._values(column)]

    def _plain(self, column: str, *more: str) -> bool:
        """Whether every file has the column, of texts or whole numbers, or of `more`."""
        return all(
            column in schema.names and _kind(schema.field(column).type) in ("texts", "whole numbers", *more)
            for schema in self._schemas.values()
        )

    # ------------------------------------------------------------ columns

    def _check(self, columns: dict[str, str]) -> None:
        first = self._files[0]
        for key, column in columns.items():
            for path, schema in self._schemas.items():
                names = schema.names
                if column not in names and path == first:
                    there = ", ".join(map(repr, names))
                    raise DataError(f"{self.where}: no column {column!r}; it has {there}", hint=_set(key))
                if column not in names:
                    raise DataError(
                        f"{path} has no column {column!r}, other files of the split have (it has "
                        f"{', '.join(map(repr, names))})",
                        hint="take the file out of the folder if it is none of the split's, or write it again",
                    )
                if names.count(column) > 1:
                    raise DataError(f"{path} has the column {column!r} more than once", hint=_set(key))
                kind, wanted = (_kind(of.field(column).type) for of in (schema, self._schemas[first]))
                lists = key == "items.images" and isinstance(kind, list)
                if key in ("image", "items.images") and not _holds_images(kind[0] if lists else kind):
                    raise DataError(
                        f"{path}: the column {column!r} holds {_said(kind)}, expected encoded images (bytes), paths of "
                        "image files (texts), or structs of bytes and path",
                        hint=_set(key),
                    )
                if key not in ("image", "items.images") and not _agree(kind, wanted):
                    raise DataError(
                        f"{path}: the column {column!r} holds {_said(kind)}; in {first.name} it holds {_said(wanted)}",
                        hint="write the files of a split with the same types",
                    )

    def _read_names(self) -> None:
        """Each file's own label names (`ClassLabel` of `datasets`); `names` where all files have the same."""
        odd: list[str] = []
        found: dict[Path, list[str] | None] = {}
        for path, schema in self._schemas.items():
            try:
                found[path] = _class_label_names(schema, self._label)
            except ValueError:
                odd.append(path.name)
                found[path] = None
        text = "parquet files whose `huggingface` metadata cannot be read: label numbers go by position"
        self.notes += notes_of("unread-metadata", text, odd)
        if _kind(self._schemas[self._files[0]].field(self._label).type) not in _NUMBERS:
            self.names = found[self._files[0]]
            return
        named = {path: names for path, names in found.items() if names is not None}
        if named and len(named) < len(found):
            bare = next(path for path in found if path not in named)
            raise DataError(
                f"{bare} does not name its labels, {next(iter(named)).name} of the same split does",
                hint="write all files of a split with the same label names, or none with any",
            )
        first = next(iter(found.values()))
        if all(names == first for names in found.values()):
            self.names = first
            return
        for path, names in named.items():
            if len(set(names)) < len(names):
                raise DataError(
                    f"{path} names two labels alike, and the files of the split name their labels in different orders",
                    hint="write all files of a split with the same label names in one order",
                )
        self._own = named

    def _labels(self) -> Iterator[Any]:
        """What the label column holds, row by row; names where the files number their labels differently; None of a set
        that has none."""
        for path in self._files:
            if not self._labelled:
                with opened(path) as file:
                    yield from [None] * file.metadata.num_rows
                continue
            names = self._own.get(path)
            for place, label in enumerate(self._of(path, self._label)):
                if names is None or label is None:
                    yield label
                elif isinstance(label, int) and 0 <= label < len(names):
                    yield names[label]
                else:
                    raise DataError(
                        f"{path}: row {place} has the label {label}, but the file names {len(names)} labels "
                        f"(0 to {len(names) - 1})",
                        hint="correct the label, or take the row out",
                    )

    def _values(self, column: str) -> Iterator[Any]:
        """The values of `column` in all files, in order."""
        for path in self._files:
            if column not in self._schemas[path].names:
                raise DataError(f"{path} has no column {column!r}, other files of the split have")
            yield from self._of(path, column)

    def _of(self, path: Path, column: str) -> Iterator[Any]:
        """The values of `column` in one file."""
        with opened(path) as file:
            for batch in file.iter_batches(_READ_ROWS, columns=[column], use_threads=False):
                yield from batch.column(0).to_pylist()

    # ------------------------------------------------------------- images

    def _bytes(self, path: Path, cell: Any) -> bytes:
        """The encoded image of a cell; nothing where there is none, which is counted as an image that is bad."""
        inside = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(inside, bytes):
            return inside
        text = _path_of(cell)
        if not text:
            return b""
        image = self._linked[path, text]
        try:
            return image.read_bytes()
        except OSError as error:
            raise DataError(f"{image} cannot be read: {error.strerror}") from None

    def _link(self, path: Path, column: str) -> None:
        """Find the image files that a column of the table `path` names."""
        kind = _kind(self._schemas[path].field(column).type)
        kind = kind[0] if isinstance(kind, list) else kind
        if kind in ("bytes", "nothing") or (isinstance(kind, dict) and _all_inside(path, column)):
            return
        cells = (
            each for cell in self._of(path, column) for each in (cell if isinstance(cell, list) else [cell])
        )
        texts = dict.fromkeys(text for cell in cells if (text := _path_of(cell)))
        folders = list(dict.fromkeys((path.parent, self.root)))
        found = {text: self._absolute(path, column, text, folders) for text in texts}
        relative = next((text for text, place in found.items() if place is None), None)
        # All lie in one folder: the first that holds the first of them.
        holding = [folder for folder in folders if relative and exists(folder / relative)]
        places = {text: place or (holding or folders)[0] / text for text, place in found.items()}
        lost = [text for text, place in places.items() if not exists(place)]
        if lost:
            raise DataError(
                f"{path}: the column {column!r} names {len(texts):,} image files, of which {len(lost):,} are not "
                f"there, first {lost[0][:80]!r}; looked in {' and '.join(map(str, holding[:1] or folders))}",
                hint="put the files there (paths start from the table's folder, or from the folder that --data gives), "
                "or write the images into the table",
            )
        self._linked |= {(path, text): place for text, place in places.items()}

    def _absolute(self, path: Path, column: str, text: str, folders: Sequence[Path]) -> Path | None:
        """Where an absolute path leads, which must be below one of `folders`; None for a relative one."""
        given = PurePosixPath(text)
        if "://" not in text and ".." not in given.parts:
            if not given.is_absolute():
                return None
            for folder in folders:
                for base in (folder.absolute(), folder.resolve()):
                    if given.is_relative_to(base):
                        return folder / given.relative_to(base)
        what = "is an address" if "://" in text else f"leads out of {self.root}"
        raise DataError(
            f"{path}: {text[:80]!r} in the column {column!r} {what}",
            hint="images lie in the table, or as files in its folder or below, named by paths that start there",
        )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A parquet file of pyarrow's.

    Raises:
        DataError: it cannot be read, also while it is open.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A buffered, sequential read: memory does not grow with the row group.
        with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = f"{path} cannot be read as parquet: {first_line(error)}"
        raise DataError(reason, hint="fetch or write the file again") from error


def _all_inside(path: Path, column: str) -> bool:
    """Whether the file's own statistics say that no image's bytes are missing, so that nobody need read them."""
    with opened(path) as file:
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
            leaves = map(group.column, range(group.num_columns))
            known = next((leaf.statistics for leaf in leaves if _of_bytes(leaf.path_in_schema, column)), None)
            if known is None or not known.has_null_count or known.null_count:
                return False
    return True


def _of_bytes(leaf: str, column: str) -> bool:
    """Whether a leaf of the schema is the bytes of a column of structs, or of lists of them."""
    return (
        leaf.startswith(f"{column}.")
        and leaf.endswith(".bytes")
        and leaf.count(".") - column.count(".") in (1, 3)
    )


def _kind(of: Any) -> Any:
    """What values of an arrow type are, whatever width and encoding: a word, a list of one kind, or a dict of kinds."""
    from pyarrow import types

    if types.is_dictionary(of):
        return _kind(of.value_type)
    if types.is_struct(of):
        return {of.field(i).name: _kind(of.field(i).type) for i in range(of.num_fields)}
    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        return [_kind(of.value_type)]
    tests = (
        ("texts", (types.is_string, types.is_large_string, types.is_string_view)),
        ("bytes", (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)),
        ("truth values", (types.is_boolean,)),
        ("whole numbers", (types.is_integer,)),
        ("fractions", (types.is_floating, types.is_decimal)),
        ("nothing", (types.is_null,)),
    )
    return next((kind for kind, known in tests if any(test(of) for test in known)), str(of))


def _said(kind: Any) -> str:
    if isinstance(kind, list):
        return f"lists of {_said(kind[0])}"
    if isinstance(kind, dict):
        return f"structs of {', '.join(f'{name} ({_said(own)})' for name, own in kind.items()) or 'nothing'}"
    return str(kind)


def _agree(one: Any, other: Any) -> bool:
    """Whether two files hold the same; a column that is null throughout, or lacks a member, agrees with any."""
    if "nothing" in (one, other):
        return True
    if isinstance(one, list) and isinstance(other, list):
        return _agree(one[0], other[0])
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[name], other[name]) for name in one.keys() & other.keys())
    return bool(one == other)


def _holds_images(kind: Any) -> bool:
    if isinstance(kind, dict):
        inside, path = kind.get("bytes"), kind.get("path")
        known = inside in (None, "bytes", "nothing") and path in (None, "texts", "nothing")
        return known and {inside, path} != {None}
    return kind in ("bytes", "texts", "nothing")


def _path_of(cell: Any, *, beside: bool = False) -> str | None:
    """The path in a cell that holds no bytes; with `beside`, also where it does."""
    if isinstance(cell, dict):
        cell = cell.get("path") if beside or cell.get("bytes") is None else None
    return cell if isinstance(cell, str) else None


def captions_of(cell: Any) -> list[Any]:
    """The captions of a cell one by one: of a text its lines, of a mapping what `raw` says, else as they are."""
    if isinstance(cell, Mapping):
        cell = cell.get("raw", cell)
    if isinstance(cell, str):
        return [line for line in lines(cell) if line.strip()] or [cell]
    return cell if isinstance(cell, list) else [cell]


def _class_label_names(schema: Any, column: str) -> list[str] | None:
    """Label names that `datasets` (its `ClassLabel`) keeps in a file's schema, if any; ValueError where it is odd."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    for key in ("info", "features", column, "names"):
        if not isinstance(names, dict):
            raise ValueError(f"{key} is in no mapping")
        names = names.get(key)
        if names is None:
            return None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError("names are no texts")
    return names


def _set(key: str) -> str:
    return f"set columns.{key} on the task card"


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> Parquet | None:
    """The split that parquet files in `root` hold, whose names begin as the split's, or that lie in its folder."""
    if dataset.card.languages:
        return None  # see `parquet_languages`
    files = split_files(root, dataset.card.splits[role], role, ".parquet")
    return Parquet(files, dataset.card, root) if files else None


LAYOUT: Final = LayoutSpec((*LABELLED, "captions", "attributes"), "{split}*.parquet", probe)
