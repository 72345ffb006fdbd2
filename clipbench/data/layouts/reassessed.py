"""ImageNet's validation images with the labels of google-research/reassessed-imagenet (arXiv 2006.07159): real.json.

The file holds, for each image in the order of their numbers, a list of all classes that people accept for it. Images
for which they accept none are left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import numpy as np

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.paths import printable, split_names
from clipbench.data.split import notes_of
from clipbench.errors import DataError
from clipbench.utils.parsing import Unreadable, file_bytes, json_value

_FILE: Final = "real.json"
_IMAGE: Final = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_FOLDERS: Final = ("val", "ILSVRC2012_img_val", "ILSVRC2012/val", "imagenet/val", "ILSVRC/Data/CLS-LOC/val")
_LARGEST: Final = 1 << 24


class Reassessed(FileLayout):
    """The images that some class is accepted for, below `root`.

    Args:
        images: number of an image, from 1 → its file.
        accepted: the classes that are accepted for each image, those of number 1 first.
    """

    name_in_fingerprint = "Reassessed"
    in_part = True

    def __init__(
        self, root: Path, file: Path, images: dict[int, Path], accepted: list[list[int]], classes: int
    ) -> None:
        kept = [number for number in sorted(images) if accepted[number - 1]]
        lost = [images[number].name for number in sorted(images) if not accepted[number - 1]]
        super().__init__(root, [images[number] for number in kept], [file])
        self.root = Path(os.path.commonpath([root, file.parent]))
        self._ids = [printable(images[number].relative_to(root).as_posix()) for number in kept]
        labels = np.zeros((len(kept), classes), np.uint8)
        for row, number in enumerate(kept):
            labels[row, accepted[number - 1]] = 1
        self._labels = labels
        text = "images left out, for which people accept none of the classes"
        self.notes = notes_of("without-label", text, lost)


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> Reassessed | None:
    """The split whose images lie in `root` or a folder of it, flat or a folder a wnid, and real.json by them."""
    folders = [root / name for name in (*split_names(dataset.card.splits[role], role), *_FOLDERS)] + [root]
    places = [*folders, root.parent]
    file = next((place / _FILE for place in places if (place / _FILE).is_file()), None)
    if file is None:
        return None
    folder = next((one for one in folders if _images(one)), None)
    if folder is None:
        raise DataError(
            f"{dataset.id}: {file} says what images show, but no ILSVRC2012_val_….JPEG lies in {root}",
            hint="unpack ILSVRC2012_img_val.tar into val/ beside real.json; folders by wnid are read too",
        )
    images, classes = _images(folder), len(dataset.card.classes)
    accepted = _accepted(file, classes)
    if max(images) > len(accepted):
        raise DataError(
            f"{images[max(images)]} is image {max(images):,}, and {file} tells of {len(accepted):,}",
            hint="fetch real.json of google-research/reassessed-imagenet again",
        )
    return Reassessed(folder, file, images, accepted, classes)


def _images(folder: Path) -> dict[int, Path]:
    """Number → file of the images in a folder and the folders in it."""
    found: dict[int, Path] = {}
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())) if folder.is_dir() else ():
        for path in place.iterdir():
            if (match := _IMAGE.fullmatch(path.name)) is None:
                continue
            number = int(match[1])
            if number in found or number == 0:
                raise DataError(f"{path}: this number is there twice, or 0", hint="keep each image once")
            found[number] = path
    return found


def _accepted(file: Path, classes: int) -> list[list[int]]:
    """The lists of real.json.

    Raises:
        DataError: it is of another form.
    """
    try:
        found = json_value(file_bytes(file, _LARGEST))
    except (Unreadable, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error})", hint="fetch it again") from None
    if not isinstance(found, list):
        raise DataError(f"{file} holds no list, of which each entry is the list of an image's classes")
    for number, one in enumerate(found, 1):
        whole = isinstance(one, list) and all(type(c) is int and 0 <= c < classes for c in one)
        if not whole:
            raise DataError(
                f"{file}: entry {number:,} is {str(one)[:40]}, expected a list of class numbers, 0 to {classes - 1}"
            )
    return found


LAYOUT: Final = LayoutSpec(
    ("multi-label",), "real.json and {split}/…/ILSVRC2012_val_<number>.JPEG (ImageNet ReaL)", probe
)
