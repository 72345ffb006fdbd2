"""Parquet tables of items to choose among: what the layouts of such tables share.

A row of a table has several images, in cells of several columns or in lists, and items share images. Images of the
same bytes (and the same box) are one row of the split, so that each is encoded once; one that is missing is a row of
its own.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipbench.data.choices import Choice
from clipbench.data.decode import BAD_IMAGE, open_image
from clipbench.data.layouts._choice_files import Box, box_of, cropped
from clipbench.data.layouts.parquet import Parquet, opened
from clipbench.data.split import notes_of
from clipbench.errors import DataError
from clipbench.utils.cache import cache_root, read_checked, write_checked

_READ: Final = 8  # rows of a table with their images held at once, which may be a dozen each
_READ_TEXTS: Final = 1024  # and of texts alone
_KIND: Final = "clipbench digests of the images of items, version 1"


class ItemTables(Parquet):
    """Tables whose column or columns of images are those of items.

    A class of it says what the items are (`_items`), once the rows of the split are known.
    """

    name_in_fingerprint = "ItemTables"

    def _start_items(
        self,
        files: list[Path],
        root: Path,
        where: str | None,
        images: Sequence[str],
        texts: Mapping[str, Sequence[str]],
        box: str | None = None,
    ) -> None:
        """Check the columns of images and all others (field of the card → names), and find images that are files."""
        self._open(files, root, where)
        for key, names in {"items.images": images, **texts}.items():
            for name in names:
                self._check({key: name})
        if box is not None:
            self._check({"items.box": box})
        self._columns, self._box = list(images), box
        self._find_images(images)

    @abstractmethod
    def _items(self, shown: Sequence[tuple[int, ...]]) -> Iterator[Choice]:
        """The items, from the split's rows that the images of each row of the tables are."""

    def index(self) -> Iterator[tuple[str, Any]]:
        yield from ((name, 0) for name in self._names)

    def table(self, content: str) -> tuple[list[str], list[Any]]:
        counts, digests = self._digests(content)
        boxes = list(self._values(self._box)) if self._box else []
        places = [(row, place) for row, count in enumerate(counts) for place in range(count)]
        found: dict[Any, int] = {}
        self._names: list[str] = []
        self._row: list[int] = []  # of each image in the tables
        alone = all(count <= 1 for count in counts)
        for number, ((row, place), digest) in enumerate(zip(places, digests, strict=True)):
            key = (digest, self._box_of(row, boxes[row]) if boxes else None) if digest else number
            if key not in found:
                found[key] = len(self._names)
                self._names.append(f"{row:07d}" if alone else f"{row:07d}/{place}")
            self._row.append(found[key])
        ends = np.cumsum([0, *counts]).tolist()
        shown = [tuple(self._row[start:end]) for start, end in pairwise(ends)]
        self.choices = tuple(self._items(shown))
        lost = [f"row {row}" for (row, _), digest in zip(places, digests, strict=True) if not digest]
        self.notes += notes_of("no-image", "images of items are missing in the table", lost)
        return self._names, [0] * len(self._names)

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        following, last, image = 0, b"", None
        for number, (path, row, data, box) in enumerate(self._all()):
            if self._row[number] != following:
                continue  # an image that was there before
            if box is not None and data:
                image = image if data == last else _opened(data)
                last = data
                data = b"" if image is None else cropped(image, self._box_of(row, box), path)
            yield following, data
            following += 1

    def _box_of(self, row: int, cell: Any) -> Box:
        sides = [cell.get(side) for side in "xywh"] if isinstance(cell, Mapping) else []
        box = box_of(sides)
        if box is None:
            raise DataError(
                f"{self.where}: row {row} has {str(cell)[:60]!r} in the column {self._box!r}, expected x, y, w and h "
                "of a box in pixels",
                hint="set columns.items.box on the task card",
            )
        return box

    def _all(self) -> Iterator[tuple[Path, int, bytes, Any]]:
        """Table, number of its row, encoded image and box, for every image in the tables, in order."""
        for row, (path, cells) in enumerate(
            self._read([*self._columns, *([self._box] if self._box else [])])
        ):
            box = cells.pop() if self._box else None
            for cell in _flat(cells):
                yield path, row, self._bytes(path, cell), box

    def _read(self, columns: Sequence[str]) -> Iterator[tuple[Path, list[Any]]]:
        """The file, and the values of `columns`, of every row."""
        at_once = _READ_TEXTS if set(columns).isdisjoint(self._columns) else _READ
        for path in self._files:
            with opened(path) as file:
                for batch in file.iter_batches(at_once, columns=list(columns), use_threads=False):
                    values = [
                        batch.column(batch.schema.get_field_index(name)).to_pylist() for name in columns
                    ]
                    yield from ((path, list(cells)) for cells in zip(*values, strict=True))

    def _digests(self, content: str) -> tuple[list[int], list[str]]:
        """How many images each row has, and the sha256 of each; empty where there is none. Kept in the cache."""
        path = cache_root() / "splits" / f"{content}.items"
        kept = read_checked(path, _KIND)
        if kept is None:
            counts, digests = [], []
            for file, cells in self._read(self._columns):
                images = [self._bytes(file, cell) for cell in _flat(cells)]
                counts.append(len(images))
                digests += [hashlib.sha256(image).hexdigest() if image else "" for image in images]
            kept = json.dumps([counts, digests]).encode()
            write_checked(path, kept, _KIND)
        found: tuple[list[int], list[str]] = json.loads(kept)
        return found


def _flat(cells: Sequence[Any]) -> list[Any]:
    """The cells of images of a row, those in lists one by one."""
    return [each for cell in cells for each in (cell if isinstance(cell, list) else [cell])]


def _opened(data: bytes) -> Image.Image | None:
    """The image, or None where it cannot be decoded."""
    try:
        return open_image(data).convert("RGB")
    except BAD_IMAGE:
        return None
