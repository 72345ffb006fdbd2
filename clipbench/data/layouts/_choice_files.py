"""Items to choose among, in the files of their authors: what the layouts of such sets share.

A file of theirs names images and texts of each item. An image is looked for by its name in several folders, and may be
a part of a file (a box). Items share images: each image is one row of the split, and is read once.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipbench.data.choices import Choice
from clipbench.data.decode import BAD_IMAGE, max_pixels, open_image
from clipbench.data.layouts.base import FileLayout, plain_text
from clipbench.data.split import Note
from clipbench.data.text import decoded, json_of
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

#: left, top, right, bottom (px)
Box = tuple[int, int, int, int]
#: where people keep COCO's images of 2017 below the folder of a data set
COCO_2017: Final = ("val2017", "images/val2017", "coco/val2017", "coco/images/val2017", "images", ".")
#: and the two archives of Visual Genome's
VISUAL_GENOME: Final = (
    *(f"{above}{name}" for above in ("", "images/", "vg/") for name in ("VG_100K", "VG_100K_2")),
    *("vg_images", "vg_gqa_images", "images", "."),
)
_MOST_CROPPED: Final = 4  # times as large as its image a box may be


class Shown(NamedTuple):
    """An image by the name that a file has for it, or the part of it in `box`."""

    name: str
    box: Box | None = None


@dataclass(frozen=True)
class Item:
    """Images and texts to choose among.

    Attributes:
        id: stable, one an item.
        images, texts: those to choose among.
        right: places of an image and a text that belong together.
        part: of the set that it is from; empty for a set without parts.
    """

    id: str
    images: tuple[Shown, ...]
    texts: tuple[str, ...]
    right: tuple[tuple[int, int], ...]
    part: str = ""


def one_image(id_: str, image: Shown, right: str, wrong: Sequence[str], part: str = "") -> Item:
    """An item of one image and several texts, of which the first is right."""
    return Item(id_, (image,), (right, *wrong), ((0, 0),), part)


def two_pairs(id_: str, images: Sequence[str], texts: Sequence[str], part: str = "") -> Item:
    """An item of two images and two texts, which belong together in the order given."""
    return Item(id_, tuple(map(Shown, images)), tuple(texts), ((0, 0), (1, 1)), part)


class ChoiceFiles(FileLayout):
    """Images that are files, and items of them. `folders` are those below `root` in which an image is looked for.

    Raises:
        DataError: no items, an id that is there twice, a name that leads elsewhere, an image that is missing.
    """

    name_in_fingerprint = "ChoiceFiles"
    #: whether a box ends where its image does; else there is black beyond it
    clipped = False

    def __init__(
        self,
        root: Path,
        annotations: Sequence[Path],
        items: Sequence[Item],
        folders: Sequence[str],
        *,
        form: str,
        notes: tuple[Note, ...] = (),
    ) -> None:
        self.form, self.notes = form, notes
        twice = [id_ for id_, times in Counter(item.id for item in items).items() if times > 1]
        if twice:
            raise DataError(
                f"{annotations[0].parent}: the item {twice[0]} is there twice", hint="take the second one out"
            )
        there = [root / folder for folder in folders if exists(root / folder, folder=True)]
        found: dict[str, Path] = {}
        for shown in (shown for item in items for shown in item.images):
            if shown.name not in found:
                found[shown.name] = _placed(shown.name, root, there, annotations[0])
        # The crops of a file follow one another, so that it is decoded once.
        crops: dict[Path, dict[Box | None, None]] = {}
        for shown in (shown for item in items for shown in item.images):
            crops.setdefault(found[shown.name], {})[shown.box] = None
        self._shown = [(path, box) for path, boxes in crops.items() for box in boxes]
        looked = ", ".join(folders)
        super().__init__(
            root, list(crops), annotations, hint=f"images are looked for in these folders of {root}: {looked}"
        )
        self._ids = [_row_id(path, root, box) for path, box in self._shown]
        self._labels = np.zeros(len(self._ids), np.uint8)
        row = {shown: number for number, shown in enumerate(self._shown)}
        self.choices = tuple(
            Choice(
                item.id,
                tuple(row[found[shown.name], shown.box] for shown in item.images),
                item.texts,
                item.right,
                item.part,
            )
            for item in items
        )

    def also_in_fingerprint(self) -> dict[str, Any]:
        return {"form": self.form}

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        last: Path | None = None
        data, image = b"", None
        for row in rows.tolist():
            path, box = self._shown[row]
            if path != last:
                last, image, data = path, None, self.read(path)
            if box is None:
                yield row, data
                continue
            try:
                image = image or open_image(data).convert("RGB")
            except BAD_IMAGE:
                yield row, b""  # no image, as the whole is none
                continue
            yield row, cropped(image, self._seen(box, image), path)

    def _seen(self, box: Box, image: Image.Image) -> Box:
        if not self.clipped:
            return box
        left, top, right, bottom = box
        return max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)

    def read(self, path: Path) -> bytes:
        """The encoded image that the file at `path` holds."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _placed(name: str, root: Path, folders: Sequence[Path], file: Path) -> Path:
    """The image of this name in the first of `folders` that has it; where none does, where it would be."""
    path = PurePosixPath(name)
    if not name.strip() or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError(f"{file}: the image {name[:60]!r} leads out of the folder of images")
    places = [folder / name for folder in folders] or [root / name]
    return next((place for place in places if exists(place)), places[0])


def _row_id(path: Path, root: Path, box: Box | None) -> str:
    name = path.relative_to(root).as_posix()
    return name if box is None else f"{name}#{','.join(map(str, box))}"


def cropped(image: Image.Image, box: Box, path: Path) -> bytes:
    """The part of `image`, the one at `path`, in `box`, as PNG.

    Raises:
        DataError: the box is no part of it.
    """
    area = (box[2] - box[0]) * (box[3] - box[1])
    outside = box[0] >= min(box[2], image.width) or box[1] >= min(box[3], image.height) or min(box[2:]) <= 0
    if outside or area > min(_MOST_CROPPED * image.width * image.height, max_pixels()):
        raise DataError(
            f"{path} has {image.width} × {image.height} pixels, of which the box {', '.join(map(str, box))} (left, "
            "top, right, bottom) is no part",
            hint="take images and boxes of the same release",
        )
    buffer = io.BytesIO()
    image.crop(box).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# -------------------------------------------------------------- what a file says


def list_of(file: Path, what: str) -> list[Any]:
    """The list that a JSON file of `what` holds.

    Raises:
        DataError: it cannot be read, or holds no list or nothing.
    """
    found = json_of(file, once=True)
    if not isinstance(found, list) or not found:
        raise DataError(
            f"{file} is no list of items, so it is no file of {what}", hint="fetch the file again"
        )
    return found


def table_of(file: Path) -> list[tuple[int, list[str]]]:
    """Number of its last line, and fields, of every row of a CSV file that is not blank, the heading among them.

    Raises:
        DataError: it cannot be read, or a quote does not end where its field does.
    """
    reader = csv.reader(io.StringIO(decoded(file), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if any(field.strip() for field in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}", hint="fetch the file again") from None
    return rows


def records_of(file: Path, columns: Sequence[str]) -> list[Fields]:
    """The rows of a CSV file whose heading has `columns`, among others; texts by the heading's names.

    Raises:
        DataError: as `table_of`; a column that is not there, or a row of another width.
    """
    rows = table_of(file)
    heading = [field.strip() for field in rows[0][1]] if rows else []
    lacking = [column for column in columns if heading.count(column) != 1]
    if lacking:
        raise DataError(
            f"{file} has no column {lacking[0]!r}, or has it twice (its first line is {','.join(heading)[:80]!r})",
            hint="fetch the file again",
        )
    for line, row in rows:
        if len(row) != len(heading):
            raise DataError(
                f"{file}:{line}: {len(row)} fields, the heading has {len(heading)}",
                hint="fetch the file again",
            )
    return [Fields(file, f"line {line}", dict(zip(heading, row, strict=True))) for line, row in rows[1:]]


class Fields:
    """One entry of a file, of which fields are asked for by name (or place) and kind.

    Raises, each of its methods:
        DataError: there is no such field, or it is of another kind.
    """

    def __init__(self, file: Path, where: str, entry: Any, keys: Sequence[str] = ()) -> None:
        """`keys` names the fields of an entry that is a list of as many."""
        self.file, self.where = file, where
        if keys and isinstance(entry, list) and len(entry) == len(keys):
            entry = dict(zip(keys, entry, strict=True))
        if not isinstance(entry, Mapping):
            wanted = f"a list of {', '.join(keys)}" if keys else "a mapping of keys to values"
            self.refuse(f"is {_short(entry)}, expected {wanted}")
        self.entry: Mapping[str, Any] = entry

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that says `why` of this entry."""
        raise DataError(f"{self.file}: {self.where} {why}", hint="fetch the file again")

    def _of(self, key: str, kind: str) -> Any:
        if key not in self.entry:
            self.refuse(f"has no {key} ({kind})")
        return self.entry[key]

    def text(self, key: str) -> str:
        """A text that is not empty, as it stands."""
        value = self._of(key, "text")
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"has the {key} {_short(value)}, expected a text")
        return value

    def texts(self, key: str, least: int = 1) -> list[str]:
        """A list of `least` texts or more, none of them empty."""
        value = self._of(key, "list of texts")
        good = isinstance(value, list) and all(isinstance(t, str) and t.strip() for t in value)
        if not good or len(value) < least:
            self.refuse(f"has the {key} {_short(value)}, expected a list of {least} or more texts")
        return list(value)

    def whole(self, key: str) -> int:
        """A whole number."""
        value = self._of(key, "whole number")
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(f"has the {key} {_short(value)}, expected a whole number")
        return value

    def number_or_text(self, key: str) -> str:
        """A whole number or a text, as text."""
        value = plain_text(self._of(key, "whole number or text"))
        if value is None:
            self.refuse(f"has the {key} {_short(self.entry[key])}, expected a whole number or a text")
        return value

    def part(self, key: str) -> Fields:
        """A mapping."""
        return Fields(self.file, f"{self.where}, {key}", self._of(key, "mapping"))

    def number(self, key: str) -> float:
        """A number, or the text of one."""
        value = _number(self._of(key, "number"))
        if not math.isfinite(value):
            self.refuse(f"has the {key} {_short(self.entry[key])}, expected a number")
        return value

    def box(self, left: str, top: str, width: str, height: str) -> Box:
        """Left, top, right and bottom of a box that four fields give, rounded as Pillow rounds them."""
        sides = [self.number(key) for key in (left, top, width, height)]
        found = box_of(sides)
        if found is None:
            self.refuse(f"has the box {_short(sides)}, expected left, top, width and height in pixels")
        return found


def box_of(sides: Sequence[Any]) -> Box | None:
    """A box of left, top, width and height, rounded as Pillow rounds them; None where these make none."""
    numbers = [_number(side) for side in sides]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        return None
    x, y, w, h = numbers
    if max(map(abs, numbers)) > 1e9 or min(w, h) <= 0:
        return None
    return round(x), round(y), round(x + w), round(y + h)


def _number(value: Any) -> float:
    """A number, or a text of one as tables have it; NaN for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
