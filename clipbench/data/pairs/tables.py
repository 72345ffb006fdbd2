"""Pairs that a text file lists, an image file's path and its caption a row: CSV, TSV, JSON lines.

CSV and TSV are read as open_clip reads them (with a heading, fields perhaps in double quotes). JSON lines are those of
DeCLIP's YFCC15M: keys `caption` and `filename`.
"""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from clipbench.cards.base import fingerprint
from clipbench.cards.pairs import TablePairs, YfccPairs
from clipbench.data.digests import Digests, digests
from clipbench.data.pairs.lazy import Built, LazySplit, LeftOut, kept_index, mapped, plain_caption
from clipbench.data.paths import listing
from clipbench.errors import DataError, unknown
from clipbench.utils.parsing import exists, json_value

_BLOCK = 65_536  # rows of the index that are gathered as Python objects
_LOOKED_FOR = 10_000  # image files whose presence is checked, spread over all rows
_CHINESE = re.compile("[\u4e00-\u9fff]")
_DELIMITERS = {"csv": ",", "tsv": "\t"}


class RowSplit(LazySplit):
    """The pairs of one text file.

    The fingerprint is that of the file's bytes, and of the sizes of up to 10,000 images, spread over all rows.
    """

    def __init__(self, wanted: TablePairs | YfccPairs, root: Path, *, verify: bool = False) -> None:
        """Find the rows of `wanted.file` below `root`; with `verify`, files are hashed whatever is remembered of them.

        Raises:
            DataError: no such file or folder, a row that cannot be read, no row with a caption, or images that are
                not there (of at most 10,000 that are looked for, spread over all rows).
        """
        file = one_file(root, wanted.file, wanted.name)
        self._images = root / wanted.images
        if not self._images.is_dir():
            raise DataError(
                f"{wanted.name}: no folder of images {self._images}",
                hint="correct `images` of the source in the recipe, a folder below the one that --data gives",
            )
        self._bytes = mapped(file)
        self._format = _Table(file, wanted) if isinstance(wanted, TablePairs) else _JsonLines(file)
        self._wanted = wanted
        # The folder of images and what broken ones mean decide no row.
        key = wanted.canonical() | dict.fromkeys(("images", "augment", "alter", "on_bad_image", "name"))
        found = digests(file.parent, [file], again=verify)
        key = {"source": key, "files": found.files}
        self._places, self.left_out = kept_index(key, self._index, str(file))
        self._verify, self.notes = verify, found.notes
        super().__init__(wanted.name, len(self._places))
        self.fingerprint = fingerprint(key | {"sizes": self._look_for_images(file)})

    def name(self, row: int) -> str:
        return self._row(row)[0]

    def image(self, row: int) -> bytes:
        try:
            return (self._images / self._row(row)[0]).read_bytes()
        except OSError:
            return b""  # is counted and named as an image that cannot be decoded

    def texts(self, row: int) -> list[str]:
        return [plain_caption(self._row(row)[1], self._wanted)]

    def content(self) -> Digests:
        names = dict.fromkeys(map(self.name, range(len(self))))
        there = [path for name in names if exists(path := self._images / name)]
        return digests(self._images, there, again=self._verify)

    def _row(self, row: int) -> tuple[str, str]:
        place, size = self._places[row].tolist()
        return self._format.parse(bytes(self._bytes[place : place + size]))

    def _index(self) -> Built:
        empty = LeftOut("rows without a caption")
        chinese = LeftOut("rows with Chinese characters")
        dropped = isinstance(self._wanted, YfccPairs) and self._wanted.without_chinese

        def blocks() -> Iterator[list[tuple[int, ...]]]:
            block: list[tuple[int, ...]] = []
            for place, size, image, caption in self._format.rows():
                if not plain_caption(caption, self._wanted):
                    empty.add(image)
                elif dropped and _CHINESE.search(caption):
                    chinese.add(image)
                else:
                    block.append((place, size))
                if len(block) == _BLOCK:
                    yield block
                    block = []
            yield block

        return blocks(), (empty, chinese)

    def _look_for_images(self, file: Path) -> list[int | None]:
        """The sizes (bytes) of images that are looked for; None for one that is not there."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), _LOOKED_FOR)).astype(np.int64))
        names = list(map(self.name, rows.tolist()))
        sizes = [path.stat().st_size if exists(path := self._images / name) else None for name in names]
        lost = [name for name, size in zip(names, sizes, strict=True) if size is None]
        if len(lost) == len(rows) or (lost and self._wanted.on_bad_image == "stop"):
            skip = (
                "; on_bad_image: skip goes on without those that are missing" if len(lost) < len(rows) else ""
            )
            raise DataError(
                f"{self._wanted.name}: no image {lost[0]}, which {file} lists, in {self._images}; {len(lost):,} of the "
                f"{len(rows):,} looked for are missing",
                hint=f"correct `images` of the source in the recipe, or fetch the images{skip}",
            )
        return sizes


def one_file(root: Path, pattern: str, name: str) -> Path:
    """The one file below `root` that `pattern` names, in which `*` stands for any text.

    Raises:
        DataError: there is none, or several.
    """
    found = sorted(path for path in root.glob(pattern) if path.is_file())
    if len(found) != 1:
        there = ", ".join(path.name for path in found[:4]) or f"it holds {listing(root)}"
        raise DataError(
            f"{name}: {len(found) or 'no'} files {pattern} in {root} ({there})",
            hint="correct `file` of the source in the recipe, or the folder that --data gives",
        )
    return found[0]


class _Rows(ABC):
    """How a row is found, and what it says."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, int, str, str]]:
        """Place and size (bytes) of every row, its image and its caption."""

    @abstractmethod
    def parse(self, row: bytes) -> tuple[str, str]:
        """Image and caption of a row that `rows` has found."""

    def inside(self, image: object, number: int) -> str:
        """The image's path, which must lead nowhere but below the folder of images."""
        path = PurePosixPath(str(image))
        if not image or not isinstance(image, str) or path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{self.file}:{number}: the image {str(image)[:60]!r} is no path below the folder of images"
            )
        return image


class _Table(_Rows):
    def __init__(self, file: Path, wanted: TablePairs) -> None:
        super().__init__(file)
        self._delimiter = _DELIMITERS[wanted.kind]
        self._columns: list[int] = []
        heading = next((fields for _, _, _, fields in self._records()), [])
        for column, field in ((wanted.image, "image"), (wanted.caption, "caption")):
            if column not in heading:
                raise DataError(
                    f"{file}: {unknown('column', column, heading)}",
                    hint=f"set `{field}` of {wanted.name} in the recipe",
                )
            self._columns.append(heading.index(column))
        self._width = len(heading)

    def rows(self) -> Iterator[tuple[int, int, str, str]]:
        records = self._records()
        next(records)
        for place, size, number, fields in records:
            if len(fields) != self._width:
                raise DataError(
                    f"{self.file}:{number}: {len(fields)} fields, the heading has {self._width}",
                    hint="a field with the delimiter in it stands in double quotes",
                )
            image, caption = (fields[column] for column in self._columns)
            yield place, size, self.inside(image, number), caption

    def parse(self, row: bytes) -> tuple[str, str]:
        fields = next(csv.reader([row.decode()], delimiter=self._delimiter))
        image, caption = (fields[column] for column in self._columns)
        return image, caption

    def _records(self) -> Iterator[tuple[int, int, int, list[str]]]:
        """Place, size, last line's number and fields of every record that is not blank."""
        place = start = number = 0
        try:
            with self.file.open("rb") as file:

                def lines() -> Iterator[str]:
                    nonlocal place, number
                    for line in file:
                        number += 1
                        place += len(line)
                        yield line.decode("utf-8-sig" if number == 1 else "utf-8")

                for fields in csv.reader(lines(), delimiter=self._delimiter, strict=True):
                    if fields:
                        yield start, place - start, number, fields
                    start = place
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.file}:{number}: cannot be read as a table: {error}") from None


class _JsonLines(_Rows):
    def rows(self) -> Iterator[tuple[int, int, str, str]]:
        place = 0
        with self.file.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        found = json_value(line)
                    except ValueError as error:
                        raise DataError(f"{self.file}:{number}: cannot be read as JSON: {error}") from None
                    caption = found.get("caption") if isinstance(found, dict) else None
                    if not isinstance(caption, str):
                        raise DataError(
                            f'{self.file}:{number}: expected an object with "filename" and "caption", '
                            f"found {line[:60]!r}"
                        )
                    yield place, len(line), self.inside(found.get("filename"), number), caption
                place += len(line)

    def parse(self, row: bytes) -> tuple[str, str]:
        found = json_value(row)
        return found["filename"], found["caption"]
