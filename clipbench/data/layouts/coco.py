"""COCO's instance annotations: as a multi-label set, a class being present in an image that has a box of it; and as
objects that their class names alone tell apart.

A copy is a folder with `annotations/instances_<split>.json` and the images in `<split>/`, `images/<split>/` or
`images/`. Source: the data format on cocodataset.org (lists `images`, `annotations`, `categories`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import numpy as np

from clipbench.cards.entry import Entry
from clipbench.cards.task import LABELLED, TaskCard
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.paths import split_names
from clipbench.data.split import Note, notes_of
from clipbench.data.text import json_of
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

#: lists of a file → keys of their entries → types
Lists = Mapping[str, Mapping[str, tuple[type, ...]]]
#: some files have their ids as texts; a number and the text of it are one id
ID: tuple[type, ...] = (int, str)
_READ: Lists = {
    "images": {"id": ID, "file_name": (str,)},
    "categories": {"id": ID, "name": (str,)},
    "annotations": {"image_id": ID, "category_id": ID},
}
_WITH_BOXES: Lists = {**_READ, "annotations": {**_READ["annotations"], "id": ID, "bbox": (list,)}}


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in the COCO folder `root`; None where that has no instances*.json.

    The samples are the images that the JSON lists, in its order; one without a box shows none of the classes, since
    COCO's annotators looked for every category in every listed image. A crowd (`iscrowd`) counts as present: nothing
    is difficult. `annotations/instances.json`, without a split's name, is one split, for a card that has one.

    Raises:
        DataError: no such split, a JSON file that is not COCO's, or an image that is missing.
    """
    file = instances_file(dataset, role, root)
    if file is None:
        return None
    names = split_names(dataset.card.splits[role], role)
    return _Instances(
        file, root, [*(root / n for n in names), *(root / "images" / n for n in names), root / "images", root]
    )


LAYOUT: Final = LayoutSpec(LABELLED, "COCO's annotations/instances_*.json (kind: multi-label)", probe)


def instances_file(dataset: Entry[TaskCard], role: str, root: Path) -> Path | None:
    """The annotation file of the split that plays `role`, in the COCO folder `root`; None where it has no such files.

    Raises:
        DataError: there are files of other splits alone.
    """
    there = sorted((root / "annotations").glob("instances*.json"))
    if not there:
        return None
    names = split_names(dataset.card.splits[role], role)
    wanted = [f"instances_{name}.json" for name in names]
    if dataset.card.alone:
        wanted.append("instances.json")
    return chosen(dataset, role, there, wanted, "instances_")


def chosen(dataset: Entry[TaskCard], role: str, there: list[Path], wanted: list[str], begins: str) -> Path:
    """The first of the `wanted` files of a split that is `there`, whose names begin so.

    Raises:
        DataError: there are files of other splits alone.
    """
    file = next((path for name in wanted for path in there if path.name == name), None)
    if file is None:
        raise DataError(
            f"{dataset.id}: no {role} split in {there[0].parent}: no {' or '.join(wanted)} "
            f"(there is {', '.join(path.name for path in there)})",
            hint=f"fetch that file, or set splits.{role}.name in {dataset.path} to the name that follows {begins}",
        )
    return file


class _Instances(FileLayout):
    """One annotation file; its images lie in the first of `folders` that holds the first of them."""

    name_in_fingerprint = "_Instances"

    def __init__(self, file: Path, root: Path, folders: list[Path]) -> None:
        self._ids, self.names, listed = _read(file, _READ)
        self._labels = np.zeros((len(self._ids), len(self.names)), dtype=np.uint8)
        for row, column, _ in listed:
            self._labels[row, column] = 1
        images, self.notes = listed_images(self._ids, file, folders)
        super().__init__(root, images, [file])


def _read(file: Path, lists: Lists) -> tuple[list[str], list[str], list[tuple[int, int, dict[str, Any]]]]:
    """File names of images, names of categories, and of each annotation the places of its image and its category.

    DataError where the file is not COCO's, or lists what is not there, or something twice.
    """
    found = read_lists(file, lists, "COCO instances", ("iscrowd",))
    images = [image["file_name"] for image in found["images"]]
    row = numbered(file, "images", [str(image["id"]) for image in found["images"]])
    column = numbered(file, "categories", [str(category["id"]) for category in found["categories"]])
    numbered(file, "file_name", images)
    listed = []
    for number, box in enumerate(found["annotations"]):
        for key, known in (("image_id", row), ("category_id", column)):
            if str(box[key]) not in known:
                raise DataError(
                    f"{file}: annotations[{number}] has the {key} {box[key]}, which the file does not list"
                )
        listed.append((row[str(box["image_id"])], column[str(box["category_id"])], box))
    return images, [category["name"] for category in found["categories"]], listed


def sole_objects(file: Path) -> tuple[dict[str, list[tuple[str, str, Any]]], tuple[Note, ...]]:
    """Objects of which their image shows no other of that class: file name → (id, class name, bbox as in the file).

    Crowds (`iscrowd`) and boxes without an area keep others from being the only one, and are themselves left out.
    Notes say what was left out.

    Raises: as `_read`.
    """
    images, classes, listed = _read(file, _WITH_BOXES)
    count = Counter((row, classes[column]) for row, column, _ in listed)
    found: dict[str, list[tuple[str, str, Any]]] = {}
    several, crowds, flat = [], [], []
    for row, column, box in listed:
        name, known = f"{box['id']} ({classes[column]}, {images[row]})", classes[column]
        if count[row, known] > 1:
            several.append(name)
        elif box.get("iscrowd"):
            crowds.append(name)
        elif len(box["bbox"]) == 4 and any(isinstance(s, int | float) and s <= 0 for s in box["bbox"][2:]):
            flat.append(name)
        else:
            found.setdefault(images[row], []).append((str(box["id"]), known, box["bbox"]))
    left = [image for image in images if image not in found]
    notes = (
        *notes_of("objects-of-a-kind", "objects left out: their image shows others of their class", several),
        *notes_of("crowds", "objects left out: they are crowds (iscrowd)", crowds),
        *notes_of("boxes-without-area", "objects left out: their box has no area", flat),
        *notes_of("images-left-out", "images left out: no object in them is the only one of its class", left),
    )
    return {image: found[image] for image in images if image in found}, notes


def listed_images(names: list[str], file: Path, folders: list[Path]) -> tuple[list[Path], tuple[Note, ...]]:
    """The images that `file` lists, in the first of `folders` that holds the first of them.

    Where none does, and names are addresses or paths in other folders, the last part of each is looked for; a note
    says so.

    Raises:
        DataError: none does, or a name leads elsewhere.
    """
    for name in names:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{file}: the file_name {name!r} leads out of the folder of images")
    holding = next((folder for folder in folders if names and exists(folder / names[0])), None)
    if holding is not None or not names:
        return [holding / name for name in names] if holding else [], ()
    # What follows the last slash: of an address, without a query, or of a path.
    paths = [unquote(urlsplit(name).path) if "://" in name else name for name in names]
    last = [re.split(r"[/\\]", path)[-1] for path in paths]
    holding = next((folder for folder in folders if last[0] and exists(folder / last[0])), None)
    if holding is None:
        raise DataError(
            f"no image {names[0]}, which {file} lists, in {', '.join(map(str, folders))}",
            hint="unpack the images into one of these folders",
        )
    numbered(file, "the file_name's last part, which is looked for,", last)
    elsewhere = [name for name, part in zip(names, last, strict=True) if name != part]
    text = "file names are addresses or paths: their last part is looked for"
    return [holding / part for part in last], notes_of("file-names-cut", text, elsewhere)


def numbered(file: Path, what: str, keys: list[Any]) -> dict[Any, int]:
    """Key → place in the list.

    Raises:
        DataError: a key is there twice.
    """
    if len(set(keys)) != len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise DataError(
            f"{file}: {what}: {twice} is there twice",
            hint="take the second one out, or what is the same together",
        )
    return {key: place for place, key in enumerate(keys)}


def read_lists(
    file: Path, lists: Lists, what: str, extra: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """The lists of an annotation file, checked. Other keys, such as polygons, are dropped while it is parsed.

    Args:
        lists: what is read.
        what: the file is, for messages.
        extra: keys that are read where they are there.

    Raises:
        DataError: no JSON, or no such lists.
    """
    known = {*lists, *(key for keys in lists.values() for key in keys), *extra}
    found = json_of(file, known)
    for name, keys in lists.items():
        entries = found.get(name) if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise DataError(
                f'{file} has no list "{name}", so it is no file of {what}',
                hint=f"expected the lists {', '.join(lists)}",
            )
        for number, entry in enumerate(entries):
            for key, kind in keys.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    wanted = " or ".join(one.__name__ for one in kind)
                    raise DataError(f"{file}: {name}[{number}] has no {key} ({wanted})")
    checked: dict[str, list[dict[str, Any]]] = found
    return checked
