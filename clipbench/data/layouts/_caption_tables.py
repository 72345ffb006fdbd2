"""Tables of images and captions in text files: comma-, tab- and semicolon-separated, and Flickr30k's with bars.

The heading tells columns and delimiter. Fields are those of CSV (RFC 4180): in double quotes they may hold delimiters
and line breaks, and a quote as two; the quotes are no part of the caption. Where the caption is the last column, one
without quotes may hold delimiters too, as published tables do; quotes inside it are text. Without a heading (the
first line begins with an image) each line is an image and its caption. Flickr8k's and Flickr30k's `<image>#<number>`,
a tab and the caption have no quoting: a quote is text there, and so it is in tables with bars.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clipbench.cards.task import Columns
from clipbench.data.captions import plain_caption
from clipbench.data.decode import IMAGE_SUFFIXES
from clipbench.data.labels import fold
from clipbench.data.split import Note, notes_of
from clipbench.data.text import decoded
from clipbench.errors import DataError

#: what columns may be called where the card does not say it, folded (see `clipbench.data.labels.fold`)
HEADINGS: Final[dict[str, frozenset[str]]] = {
    "image": frozenset(
        ("image", "image name", "image path", "image file", "img", "img name", "img path", "filename", "file name",
         "filepath", "file path", "file", "path")
    ),
    "caption": frozenset(("caption", "captions", "comment", "text", "sentence", "raw", "title", "description")),
    "split": frozenset(("split", "set", "partition", "subset")),
}  # fmt: skip
_DELIMITERS: Final = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
#: a line of Flickr30k's results.csv; one of its lines lacks the second bar
_BARS: Final = re.compile(
    r"(?P<image>[^|]+?)\s*\|\s*(?P<number>\d+)\s*(?P<bar>\|?)\s*(?P<caption>.*)", re.ASCII
)
_NUMBER: Final = re.compile(r"#\d+$")  # of a caption, behind the image's name


@dataclass(frozen=True)
class Table:
    """What a table says.

    Attributes:
        captions: image → captions, in the order of the file.
        others: images that rows of other splits name.
        notes: what was left out or read in a way that a reader must know.
    """

    captions: dict[str, list[str]]
    others: frozenset[str]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class _Form:
    """How a table is written. `columns` maps image, caption and perhaps split to places in `heading`."""

    delimiter: str
    heading: list[str] | None
    columns: dict[str, int]
    numbered: bool = False  # <image>#<number>

    @property
    def quoted(self) -> bool:
        """Whether quotes are those of CSV; else they are text."""
        return self.delimiter != "|" and not self.numbered

    @property
    def width(self) -> int:
        return len(self.heading) if self.heading else 2

    @property
    def wanted(self) -> str:
        return self.delimiter.join(self.heading or ("image", "caption"))

    @property
    def bars(self) -> bool:
        """Whether it is Flickr30k's: image| number| caption."""
        places = (self.columns["image"], self.columns["caption"], self.width)
        return self.delimiter == "|" and places == (0, 2, 3)


def read(
    file: Path, columns: Columns, names: Collection[str], is_image: Callable[[str], bool] = lambda name: False
) -> Table:
    """The rows of a table that belong to a split.

    Args:
        columns: of the task card; those that it does not set are looked for by `HEADINGS`.
        names: of the split, for a table with a column that says what a row belongs to.
        is_image: whether there is an image of this name; tells a first line that is no heading.

    Raises:
        DataError: no text, a first line that is neither heading nor image and caption, or a row that is odd.
    """
    text = decoded(file)
    form = _form(file, text, columns, is_image)
    captions: dict[str, list[str]] = {}
    left_out: Counter[str] = Counter()
    others: set[str] = set()
    joined: list[str] = []
    mended: list[str] = []
    rows = _records(file, text, form)
    if form.heading:
        next(rows)
    for number, raw, fields in rows:
        row = _fields(file, number, raw, fields, form, joined, mended)
        image = row[form.columns["image"]].strip()
        if form.numbered:
            image = _NUMBER.sub("", image)
        if not image:
            raise _odd(file, number, raw, form)
        split = row[form.columns["split"]].strip() if "split" in form.columns else None
        if split is not None and fold(split) not in set(map(fold, names)):
            left_out[split] += 1
            others.add(image)
            continue
        captions.setdefault(image, []).append(row[form.columns["caption"]])
    if left_out and not captions:
        there = ", ".join(repr(name) for name, _ in left_out.most_common(6))
        raise DataError(
            f"{file}: no row of the split {' or '.join(names)} (its column "
            f"{form.heading and form.heading[form.columns['split']]!r} holds {there})",
            hint="set the split's name on the task card to one of these",
        )
    return Table(
        captions, frozenset(others - {*captions}), tuple(_notes(form, captions, left_out, joined, mended))
    )


def tells_splits(file: Path, columns: Columns) -> bool:
    """Whether the table has a column that says which split a row belongs to."""
    return "split" in _form(file, decoded(file), columns, lambda name: False).columns


def _notes(
    form: _Form, captions: dict[str, list[str]], left_out: Counter[str], joined: list[str], mended: list[str]
) -> Iterator[Note]:
    if form.heading is None:
        count = sum(map(len, captions.values()))
        text = f"rows read as image and caption, separated by {_DELIMITERS[form.delimiter]}: the table has no heading"
        yield Note("no-heading", text, count)
    else:
        read = form.columns.values()
        unread = [name or "(no name)" for i, name in enumerate(form.heading) if i not in read]
        yield from notes_of("unread-columns", "columns of the table are not read", unread)
    if left_out:
        of_each = ", ".join(f"{count:,} to {name!r}" for name, count in left_out.most_common(6))
        text = f"rows of the table belong to other splits ({of_each})"
        yield Note("rows-of-other-splits", text, left_out.total())
    text = f"captions hold {_DELIMITERS[form.delimiter]} without quotes around them, and go to the end of the line"
    yield from notes_of("unquoted-captions", text, joined)
    yield from notes_of("missing-bars", "rows lack the bar before the caption", mended)


# ------------------------------------------------------------------- the form


def _form(file: Path, text: str, columns: Columns, is_image: Callable[[str], bool]) -> _Form:
    """How the table is written, by its first line."""
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "").rstrip("\r\n")
    delimiters = ["\t"] if file.suffix.lower() == ".tsv" else list(_DELIMITERS)
    read = {d: next(csv.reader([first], delimiter=d), []) or [""] for d in delimiters}
    split = {delimiter: [field.strip() for field in fields] for delimiter, fields in read.items()}
    for delimiter, fields in split.items():
        found = _columns(file, fields, columns)
        if {"image", "caption"} <= found.keys():
            return _Form(delimiter, fields, found)
    given = sorted({"image", "caption"} & columns.model_fields_set)
    for delimiter, fields in split.items():
        image = _NUMBER.sub("", fields[0])
        shown = is_image(image) or Path(image).suffix.lower() in IMAGE_SUFFIXES
        if len(fields) > 1 and not given and shown:
            numbered = delimiter == "\t" and image != fields[0]
            return _Form(delimiter, None, {"image": 0, "caption": 1}, numbered)
    says = "a heading, or an image and a caption"
    if given:
        says = f"columns.{' and columns.'.join(given)} of the task card"
    raise DataError(
        f"{file}: its first line is {first[:60]!r}; expected {says}",
        hint="write a first line that names the columns, for example image,caption, or set columns.image and "
        "columns.caption on the task card to the names that it has",
    )


def _columns(file: Path, heading: list[str], columns: Columns) -> dict[str, int]:
    """Places of the columns that a heading has."""
    found: dict[str, list[int]] = {}
    fields = [fold(field) for field in heading]
    for role, known in HEADINGS.items():
        own = getattr(columns, role, role)
        places = [i for i, field in enumerate(heading) if field == own]
        places = places or [i for i, field in enumerate(fields) if field == fold(own)]
        if not places and role not in columns.model_fields_set:
            places = [i for i, field in enumerate(fields) if field in known]
        if places:
            found[role] = places
    several = next((role for role, places in found.items() if len(places) > 1), None)
    if several and {"image", "caption"} <= found.keys():
        raise DataError(
            f"{file}: the columns {' and '.join(repr(heading[i]) for i in found[several])} may all be the {several}",
            hint="rename or take out those that are not meant"
            + (f", or set columns.{several} on the task card" if several != "split" else ""),
        )
    return {role: places[0] for role, places in found.items()}


# ------------------------------------------------------------------- the rows


def _records(file: Path, text: str, form: _Form) -> Iterator[tuple[int, str, list[str]]]:
    """Number of the first line, text and fields of every record that is not blank."""
    taken: list[str] = []

    def source() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            taken.append(line)
            yield line

    way: Final = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    reader = csv.reader(source(), delimiter=form.delimiter, strict=form.quoted, quoting=way)
    while True:
        start = reader.line_num + 1
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{file}:{start}: a quote opens here that does not end where its field does ({error}): "
                f"{taken[0].strip()[:60]!r}",
                hint="a field in double quotes holds each of its own quotes twice; take a quote that is alone out",
            ) from None
        raw = "".join(taken)
        if raw.strip():
            yield start, raw.rstrip("\r\n"), fields


def _fields(
    file: Path, number: int, raw: str, fields: list[str], form: _Form, joined: list[str], mended: list[str]
) -> list[str]:
    """As many fields as the heading has. What is put together again goes to `joined`, a bar that lacks to `mended`."""
    width = form.width
    if form.bars:
        found = _BARS.fullmatch(plain_caption(raw))
        if found is None:
            raise DataError(f"{file}:{number}: expected image| number| caption, found {raw.strip()[:60]!r}")
        if not found["bar"]:
            mended.append(found["image"])
        return [found["image"], found["number"], found["caption"]]
    if len(fields) < width:
        raise _odd(file, number, raw, form)
    if len(fields) == width:
        return fields
    last = form.delimiter.join(fields[width - 1 :])
    if form.heading is None:
        raise DataError(
            f"{file}:{number}: {len(fields)} fields, and no heading says what they are: {raw.strip()[:60]!r}",
            hint="write a first line that names the columns, for example image,caption (captions may then hold "
            "commas) or image,number,caption",
        )
    if form.columns["caption"] != width - 1 or not raw.endswith(last):
        raise DataError(
            f"{file}:{number}: {len(fields)} fields, the heading has {width}: {raw.strip()[:60]!r}",
            hint="a caption that holds the delimiter stands in double quotes as a whole",
        )
    joined.append(fields[form.columns["image"]])
    return [*fields[: width - 1], last]


def _odd(file: Path, number: int, raw: str, form: _Form) -> DataError:
    return DataError(f"{file}:{number}: expected {form.wanted}, found {raw.strip()[:60]!r}")
