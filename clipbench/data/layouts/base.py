"""What a layout of files is: one split, as an index of its samples and a pass over their images.

A layout is one module, `clipbench/data/layouts/NAME.py` or a plugin's (see `clipbench.utils.plugins`), with a `LAYOUT`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.choices import Choice
from clipbench.data.split import Note, Objects
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

#: the code of a number that is none
NOT_A_NUMBER: Final = "nan"


class Layout(ABC):
    """One split in one layout: an index pass (ids and raw labels) and an image pass.

    A raw label is a class's number or name, an array of 0, 1 or 255 for each class (see `Split.labels`), captions (see
    `clipbench.data.captions.gather`; of a card with languages a mapping of language to captions), or a list of
    `clipbench.data.expressions.Expression`.
    """

    #: what messages call it
    where: str
    #: the folder from which fingerprints count the paths of `files`
    root: Path
    #: all files that decide the split: those that its labels are read from, and its images
    files: list[Path]
    #: what fingerprints call it, whatever becomes of the class's own name
    name_in_fingerprint: str
    #: whether it may hold a part of the split: nothing in it lists what belongs there
    in_part: bool = False
    #: the data's own label names by label number, where it has them
    names: list[str] | None = None
    #: what the images show beside what their labels say, where the data has it
    objects: Objects | None = None
    #: the items of a set of kind choices, whose images are rows of the split
    choices: tuple[Choice, ...] | None = None
    #: what a reader of the split's numbers must know; complete when the index has been read
    notes: tuple[Note, ...] = ()
    #: whether images at scattered rows are read as quickly as those in order
    scattered: bool = False
    #: a file with a detector's boxes, where one belongs to the images
    detections: Path | None = None
    #: of captions in several languages: those that the copy has, also such as nobody asks for
    languages: Sequence[str] = ()
    #: those of `files` that decide the images and their order, where captions in other languages leave both as they are
    images_alone: Sequence[Path] = ()

    @abstractmethod
    def index(self) -> Iterator[tuple[str, Any]]:
        """(id, raw label) of every sample, in order."""

    @abstractmethod
    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """(row, encoded image), ascending, of at least `rows`."""

    def beside(self, key: str, name: str) -> list[str]:
        """What the column `name`, which `columns.<key>` of the card names, says of every sample, in order.

        Raises:
            DataError: the layout has no such columns, or there is nothing plain in it.
        """
        raise no_columns(self.where, key, name)

    def also_in_fingerprint(self) -> dict[str, Any]:
        """What decides the split beside the bytes of `files`."""
        return {}

    def table(self, content: str) -> tuple[list[str], list[Any]]:
        """Ids and raw labels of all samples. What takes long to read may be kept under `content`, the fingerprint."""
        pairs = list(self.index())
        return [name for name, _ in pairs], [label for _, label in pairs]


@dataclass(frozen=True)
class LayoutSpec:
    """What the module of a layout says of itself, as its `LAYOUT`.

    Attributes:
        kinds: of cards for which it is asked; objects of those that have objects, too.
        expected: what a copy looks like, for errors; `{split}` stands for the card's name of the split.
        probe: asked with a data set, a role and the folder of a copy; the split, or None where it is not there in this
            layout. It raises DataError where the folder is of this layout and something is wrong with it.
        only_other: whether it is asked only where no other layout holds the split.
        forms: names of splits on cards for which alone it is asked, where a set has a form of its own; none: for all.
    """

    kinds: tuple[str, ...]
    expected: str
    probe: Callable[[Entry[TaskCard], str, Path], Layout | None]
    only_other: bool = False
    forms: tuple[str, ...] = ()


class FileLayout(Layout):
    """Samples that are one image file each, below `root`.

    `hint` says what to do where an image is missing. A layout that has `_ids` and their raw labels has an index.

    Raises:
        DataError: an image is not there, or listed twice.
    """

    scattered = True
    _ids: Sequence[str]
    _labels: Sequence[Any] | NDArray[np.uint8]

    def __init__(
        self,
        root: Path,
        images: list[Path],
        annotations: Sequence[Path] = (),
        *,
        hint: str = "images and annotations often come in archives of their own: unpack both into the same folder",
    ) -> None:
        self.root, self.where = root, str(root)
        self.files = [*annotations, *images]
        self._images = images
        if len(set(images)) < len(images):
            path, times = Counter(images).most_common(1)[0]
            raise DataError(
                f"{path} is listed {times} times among the split's {len(images):,} images",
                hint="list every image once",
            )
        lost = [path for path in images if not exists(path)]
        if lost:
            raise DataError(
                f"{lost[0]} is not there; {len(lost):,} of the {len(images):,} images that the split lists are missing",
                hint=hint,
            )

    def index(self) -> Iterator[tuple[str, Any]]:
        yield from zip(self._ids, self._labels, strict=True)

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        for row in rows.tolist():
            path = self._images[row]
            try:
                yield row, path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from None


def no_columns(where: str, key: str, name: str) -> DataError:
    """The error for a column that the card names, where samples have nothing but an image and a label."""
    return DataError(
        f"{where}: columns.{key} on the task card is {name!r}, but samples here have no columns",
        hint="it is read from parquet tables (a column) and WebDataset tars (a field of each sample's .json, or a "
        f"value of its .npy): give such a copy with --data, or take columns.{key} off the card",
    )


def plain_text(value: Any, key: str = "") -> str | None:
    """A text that says something, or a whole number, as text; None for anything else.

    The number that is none is "nan" in a column of groups (`key`, of `columns` on the card), which may name it.

    >>> [plain_text(value, "group") for value in ("a", 3, 3.0, float("nan"), 0.5, True)]
    ['a', '3', '3', 'nan', None, None]
    """
    if isinstance(value, float):
        if math.isnan(value):
            return NOT_A_NUMBER if key.startswith("group") else None
        return str(int(value)) if value.is_integer() else None
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole or (isinstance(value, str) and value.strip()) else None


def called(
    ids: Sequence[str], codes: Sequence[str], names: Mapping[str, str] | None, where: str, key: str
) -> list[str]:
    """The groups of samples by their names: what `columns.<key>.names` of the card calls their codes.

    Raises:
        DataError: a code that has no name, or is no number.
    """
    known = {NOT_A_NUMBER: None} if names is None else dict.fromkeys({*codes} - names.keys())
    lost = next((place for place, code in enumerate(codes) if code in known), None)
    if lost is None:
        return list(codes) if names is None else [names[code] for code in codes]
    count = sum(code == codes[lost] for code in codes)
    such = f"{count:,} such sample{'s' if count > 1 else ''} in all"
    if codes[lost] == NOT_A_NUMBER:
        raise DataError(
            f"{where}: sample {ids[lost]} has no number (NaN) in the column of columns.{key}; {such}",
            hint=f'name it, for example columns.{key}: {{names: {{"nan": unknown}}}} on the task card; a group can be '
            "skipped by its name",
        )
    told = ", ".join(f"{code} {name}" for code, name in list((names or {}).items())[:8])
    raise DataError(
        f"{where}: sample {ids[lost]} has the code {codes[lost]!r}, which columns.{key}.names does not name (it names "
        f"{told}); {such}",
        hint="add the code and its name on the task card, or correct the data",
    )
