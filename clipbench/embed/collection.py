"""A collection to be embedded: which files it is, and the parts in which it is read and written.

A part is one tar file; of a parquet file, as many row groups as hold at most `--rows` rows together, at least one; of
images, lists and texts, `--rows` of them. What a part is never depends on what was done already.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Literal, get_args

from clipbench.cards.base import fingerprint
from clipbench.data.decode import IMAGE_SUFFIXES
from clipbench.data.pairs.shards import expand
from clipbench.data.paths import is_junk, natural
from clipbench.data.tars import TAR_SUFFIXES
from clipbench.embed.lists import ListRows, beside, list_rows
from clipbench.errors import DataError, first_line, unknown
from clipbench.utils.storage import Found, Place

Kind = Literal["tars", "parquet", "images", "list", "texts"]
#: how the names of lists end
LISTS: Final = (".txt", ".csv", ".tsv", ".jsonl", ".json")
#: columns that are taken for what they are called, in this order, in small letters
IMAGE_COLUMNS: Final = ("image", "img", "jpg", "png", "webp", "image_bytes", "bytes", "file_name", "image_path", "filepath", "path")  # fmt: skip  # noqa: E501
CAPTION_COLUMNS: Final = ("caption", "text", "txt", "title", "alt_text", "alt", "description", "captions")
KEY_COLUMNS: Final = ("key", "id", "image_id", "uid", "sample_id", "__key__")
URL_COLUMNS: Final = ("url", "image_url", "img_url")
_ROWS: Final = 10_000


@dataclass(frozen=True)
class Wanted:
    """Which columns are the image, the caption and the key; None: by their usual names."""

    image: str | None = None
    caption: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a table: those that are read as image, caption, key and address (None: it has none).

    `own` are the others, which are kept; `left_out` those that hold bytes, which are not.
    """

    image: str | None
    caption: str | None
    key: str | None
    url: str | None
    own: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A stretch of a collection that is read, and written, as one.

    Attributes:
        name: of the part, for messages.
        file: the file that it is in, or is; of `images`, the folder.
        first, last: of its rows, or row groups of parquet: from `first` up to `last`, which is not among them.
        start: the number of its first row in the file.
    """

    name: str
    file: Place
    first: int = 0
    last: int = 0
    start: int = 0


@dataclass(frozen=True)
class Collection:
    """What is to be embedded.

    Attributes:
        kind: of source.
        source: as the user named it.
        parts: in order.
        wanted: columns that the user named.
        names: of `images`: all files of images, below the folder; of `list` and `texts`: the rows (see `lists`).
        captions: of `images`: files of captions that lie beside images.
        columns: of `parquet` and lists with columns: those that are read.
        ignored: files of a folder that are not read: kind → how many.
        contents: fingerprint of the names and sizes of its files.
    """

    kind: Kind
    source: str
    parts: Sequence[Part]
    wanted: Wanted
    names: Sequence[Any] = ()
    captions: frozenset[str] = frozenset()
    columns: Columns | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)
    contents: str = ""

    @property
    def described(self) -> dict[str, Any]:
        """What the manifest says of it; the collection is the same while this is."""
        return {
            "kind": self.kind,
            "parts": len(self.parts),
            "contents": self.contents,
            "columns": None if self.columns is None else vars(self.columns),
            "ignored": dict(self.ignored),
        }


def collection(source: str, wanted: Wanted | None = None, rows: int | None = None) -> Collection:
    """The collection that `source` names: a file, a folder, a pattern (`{00000..00099}`, `*`), or one of these behind
    the kind of what is there: `tars:`, `parquet:`, `images:`, `list:`, `texts:`.

    Args:
        rows: samples a part, where parts are not files; None: 10,000.

    Raises:
        DataError: nothing is there, or it is not clear what it is.
        StorageError: it cannot be read.
    """
    wanted, rows = wanted or Wanted(), rows or _ROWS
    kind, text = _kind_of(source)
    if any(mark in text for mark in "{*?"):
        files = _matching(text)
        return _of_files(source, kind or _by_names(files, text), files, wanted, rows)
    place = Place.parse(text)
    if place.is_file():
        kind = kind or _by_names([(place, 0)], text)
        if kind == "images":
            raise DataError(
                f"{text} is one image", hint="name the folder that it lies in, or a list of files"
            )
        return _of_files(source, kind, [(place, place.size())], wanted, rows)
    if not place.is_folder():
        raise DataError(f"there is no file or folder {text}", hint="correct --data")
    return _of_folder(source, kind, place, wanted, rows)


def _kind_of(source: str) -> tuple[Kind | None, str]:
    """The kind in front of a source, and the rest of it."""
    front, colon, rest = source.partition(":")
    for kind in get_args(Kind):
        if colon and front == kind:
            if not rest:
                raise DataError(f"--data {source} names nothing", hint=f"write a place behind {kind}:")
            return kind, rest
    return None, source


def _matching(pattern: str) -> list[tuple[Place, int]]:
    """The files that a pattern names, in order, with their sizes.

    Raises:
        DataError: one of a range is missing, or none is there.
    """
    found: list[tuple[Place, int]] = []
    listed: dict[str, list[Found]] = {}
    for one in expand(pattern):
        place = Place.parse(one)
        if not any(mark in one for mark in "*?["):
            if not place.is_file():
                raise DataError(f"there is no file {place}, which {pattern} names", hint="correct --data")
            found.append((place, place.size()))
            continue
        folder, name = place.parent, place.name
        if any(mark in str(folder) for mark in "*?["):
            raise DataError(
                f"{pattern}: * stands in the name of a folder",
                hint="name the folder, and use * in file names",
            )
        if str(folder) not in listed:
            listed[str(folder)] = folder.files()
        files = sorted(
            (f for f in listed[str(folder)] if "/" not in f.name and fnmatch.fnmatchcase(f.name, name)),
            key=lambda f: natural(f.name),
        )
        if not files:
            raise DataError(f"no file in {folder} is called {name}", hint="correct --data")
        found += [(folder / file.name, file.size) for file in files]
    return found


def _by_names(files: Sequence[tuple[Place, int]], text: str) -> Kind:
    """What files of these names are."""
    kinds = {_kind_by_name(place.name) for place, _ in files}
    if len(kinds) > 1 or None in kinds:
        ends = ", ".join((*TAR_SUFFIXES[:2], ".parquet", *LISTS))
        raise DataError(
            f"{text}: what it is does not follow from the name (read are {ends}, and folders of images)",
            hint="write the kind in front: tars:, parquet:, images:, list: or texts:",
        )
    [kind] = kinds
    assert kind is not None
    return kind


def _kind_by_name(name: str) -> Kind | None:
    low = name.lower()
    if low.endswith(TAR_SUFFIXES):
        return "tars"
    if low.endswith(".parquet"):
        return "parquet"
    if low.endswith(LISTS):
        return "list"
    return "images" if low.endswith(tuple(IMAGE_SUFFIXES)) else None


def _of_folder(source: str, kind: Kind | None, folder: Place, wanted: Wanted, rows: int) -> Collection:
    files = folder.files()
    by_kind: dict[Kind | None, list[Found]] = {}
    for file in files:
        by_kind.setdefault(None if is_junk(file.name) else _kind_by_name(file.name), []).append(file)
    if kind is None:
        tars, tables, images = (by_kind.get(of, []) for of in ("tars", "parquet", "images"))
        stems = {stem_of(file.name) for file in tars}
        loose = [
            file for file in tables if stem_of(file.name) not in stems
        ]  # img2dataset has one beside each tar
        there = {"tars": tars, "parquet": loose, "images": images}
        kinds = [name for name, found in there.items() if found]
        if len(kinds) > 1:
            told = " and ".join(f"{len(there[name]):,} of {name}" for name in kinds)
            raise DataError(
                f"{folder} holds files of more than one kind: {told}",
                hint=f"say which are meant: --data {kinds[0]}:{source}",
            )
        if not kinds:
            some = ", ".join(file.name for file in files[:5]) or "nothing"
            raise DataError(
                f"{folder} holds no tar files, parquet files or images (it holds {some})",
                hint="correct --data; a list of files, or of texts, is named itself",
            )
        kind = kinds[0]  # type: ignore[assignment]
    assert kind is not None
    if kind in ("list", "texts"):
        raise DataError(f"{folder} is a folder", hint=f"name the file behind {kind}:")
    own = sorted(by_kind.get(kind, []), key=lambda file: natural(file.name))
    if not own:
        raise DataError(f"{folder} holds no {kind}", hint="correct --data")
    if kind != "images":
        others = Counter(_suffix(f.name) for of, found in by_kind.items() if of != kind for f in found)
        made = _of_files(source, kind, [(folder / f.name, f.size) for f in own], wanted, rows)
        return _with_ignored(made, others)
    names = [file.name for file in own]
    stems = {stem_of(name) for name in names}
    texts = [
        f for f in by_kind.get("list", []) if f.name.lower().endswith(".txt") and stem_of(f.name) in stems
    ]
    captions = frozenset(file.name for file in texts)
    others = Counter(
        _suffix(f.name)
        for of, found in by_kind.items()
        if of != kind
        for f in found
        if f.name not in captions
    )
    parts = [
        Part(f"{names[i]} to {names[min(i + rows, len(names)) - 1]}", folder, i, min(i + rows, len(names)), i)
        for i in range(0, len(names), rows)
    ]
    contents = fingerprint([[f.name, f.size] for f in (*own, *texts)])
    return Collection(kind, source, parts, wanted, names, captions, None, dict(others), contents)


def _with_ignored(made: Collection, others: Counter[str]) -> Collection:
    return Collection(**{**vars(made), "ignored": dict(others)})


def _of_files(
    source: str, kind: Kind, files: Sequence[tuple[Place, int]], wanted: Wanted, rows: int
) -> Collection:
    contents = fingerprint([[place.name, size] for place, size in files])
    columns: Columns | None = None
    names: Sequence[Any] = ()
    parts: list[Part]
    match kind:
        case "tars":
            parts = [Part(place.name, place) for place, _ in files]
            again = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
            if again:
                raise DataError(f"{source} names {again[0]} twice", hint="keep one of them")
        case "parquet":
            parts, columns = _tables([place for place, _ in files], wanted, rows)
        case "list" | "texts":
            if len(files) > 1:
                raise DataError(f"{source} names {len(files)} lists", hint="name one")
            place = files[0][0]
            found = list_rows(place)
            columns = _list_columns(found, place, kind, wanted)
            if kind == "list" and columns is None and found.rows[0].lower().endswith(TAR_SUFFIXES):
                tars = [beside(place, str(name)) for name in found.rows]
                return _of_files(source, "tars", [(tar, tar.size()) for tar in tars], wanted, rows)
            names, count = found.rows, len(found)
            parts = [
                Part(
                    f"{place.name} rows {i:,} to {min(i + rows, count) - 1:,}",
                    place,
                    i,
                    min(i + rows, count),
                    i,
                )
                for i in range(0, count, rows)
            ]
        case "images":
            raise DataError(
                f"{source} names images one by one", hint="name their folder, or write a list of files"
            )
    if not parts:
        raise DataError(f"{source} is empty: it has no rows", hint="correct --data")
    return Collection(kind, source, parts, wanted, names, columns=columns, contents=contents)


def _tables(files: Sequence[Place], wanted: Wanted, rows: int) -> tuple[list[Part], Columns]:
    """The parts of parquet files, and their columns, which all files must have alike."""
    parts: list[Part] = []
    columns: Columns | None = None
    start = 0
    for place in files:
        with opened_table(place) as file:
            schema, groups = file.schema_arrow, file.metadata.num_row_groups
            own = columns_of(list(schema.names), wanted, str(place), images=True, heavy=_heavy(schema))
            if columns is not None and own != columns:
                raise DataError(
                    f"{place} has other columns than {files[0]}: {own} against {columns}",
                    hint="embed them apart, or name the columns: --image-column, --caption-column, --key-column",
                )
            columns = own
            first = count = 0
            for group in range(groups):
                more = file.metadata.row_group(group).num_rows
                if count and count + more > rows:
                    parts.append(_table_part(place, first, group, start, count))
                    first, start, count = group, start + count, 0
                count += more
            if count:
                parts.append(_table_part(place, first, groups, start, count))
            start += count
    assert columns is not None
    return parts, columns


def _table_part(place: Place, first: int, last: int, start: int, count: int) -> Part:
    return Part(f"{place.name} rows {start:,} to {start + count - 1:,}", place, first, last, start)


def _heavy(schema: Any) -> list[str]:
    """The columns of a table that hold bytes."""
    from pyarrow import types

    def bytes_in(of: Any) -> bool:
        if types.is_struct(of):
            return any(bytes_in(of.field(i).type) for i in range(of.num_fields))
        if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
            return bytes_in(of.value_type)
        return bool(types.is_binary(of) or types.is_large_binary(of) or types.is_fixed_size_binary(of))

    return [field.name for field in schema if bytes_in(field.type)]


@contextlib.contextmanager
def opened_table(place: Place) -> Iterator[Any]:
    """A parquet file (`pyarrow.parquet.ParquetFile`).

    Raises:
        DataError: it is none.
    """
    import pyarrow.parquet as pq

    with place.open() as file:
        try:
            table = pq.ParquetFile(file, pre_buffer=False)
        except Exception as error:  # pyarrow raises what it likes for bytes that are no parquet
            raise DataError(
                f"{place} cannot be read as parquet: {first_line(error)}", hint="fetch it again"
            ) from None
        yield table


def columns_of(
    names: Sequence[str], wanted: Wanted, where: str, *, images: bool, heavy: Sequence[str] = ()
) -> Columns:
    """Which columns of a table are read, by what the user says, and else by their usual names.

    Args:
        images: it must have a column of images.
        heavy: columns that hold bytes, which are not kept.

    Raises:
        DataError: the table has no column of images, or not one that the user named, or a name twice.
    """
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        raise DataError(f"{where} has the column {again[0]!r} twice", hint="give each its own name")
    low: dict[str, str] = {}
    for name in names:
        low.setdefault(name.lower(), name)

    def find(own: str | None, usual: Sequence[str], flag: str) -> str | None:
        if own is None:
            return next((low[name] for name in usual if name in low), None)
        if own not in names:
            raise DataError(f"{where}: {unknown('column', own, names)}", hint=f"correct {flag}")
        return own

    image = find(wanted.image, IMAGE_COLUMNS, "--image-column")
    if image is None and images:
        only = " (addresses alone are not fetched: use a downloader such as img2dataset, then embed its tar files)"
        raise DataError(
            f"{where} has no column of images; its columns are {', '.join(map(repr, names[:20]))}"
            + (only if any(name in low for name in URL_COLUMNS) else ""),
            hint="name it: --image-column COLUMN",
        )
    caption = find(wanted.caption, CAPTION_COLUMNS, "--caption-column")
    key = find(wanted.key, KEY_COLUMNS, "--key-column")
    url = find(None, URL_COLUMNS, "")
    others = [name for name in names if name not in (image, caption, key, url)]
    own, left_out = ([n for n in others if (n in heavy) is bad] for bad in (False, True))
    return Columns(image, caption, key, url, tuple(own), tuple(left_out))


def _list_columns(found: ListRows, place: Place, kind: Kind, wanted: Wanted) -> Columns | None:
    """The columns of a list, where it is a table."""
    if found.names:
        return columns_of(found.names, wanted, str(place), images=kind == "list")
    if wanted != Wanted():
        raise DataError(f"{place} has no columns: it is a list, one a line", hint="leave --…-column out")
    return None


def stem_of(name: str) -> str:
    low = name.lower()
    end = next((end for end in TAR_SUFFIXES if low.endswith(end)), PurePosixPath(name).suffix)
    return name[: len(name) - len(end)]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "without a suffix"
