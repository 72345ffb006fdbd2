"""COCO's instance annotations as a multi-label set: a class is present in an image that has a box of it.

A copy is a folder with `annotations/instances_<split>.json` and the images in `<split>/`, `images/<split>/` or
`images/`. Source: the data format on cocodataset.org (lists `images`, `annotations`, `categories`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from clipbench.cards import TaskCard
from clipbench.catalog import Entry
from clipbench.data import Note
from clipbench.data.hub import split_names
from clipbench.data.layout import FileLayout
from clipbench.errors import DataError
from clipbench.parsing import exists

#: lists of a file → keys of their entries → types
Lists = Mapping[str, Mapping[str, tuple[type, ...]]]
#: some files have their ids as texts; a number and the text of it are one id
ID: tuple[type, ...] = (int, str)
_READ: Lists = {
    "images": {"id": ID, "file_name": (str,)},
    "categories": {"id": ID, "name": (str,)},
    "annotations": {"image_id": ID, "category_id": ID},
}


def layout(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in the COCO folder `root`; None where that has no instances*.json.

    The samples are the images that the JSON lists, in its order; one without a box shows none of the classes, since
    COCO's annotators looked for every category in every listed image. A crowd (`iscrowd`) counts as present: nothing
    is difficult. `annotations/instances.json`, without a split's name, is one split, for a card that has one.

    Raises:
        DataError: no such split, a JSON file that is not COCO's, or an image that is missing.
    """
    annotations = root / "annotations"
    there = sorted(p.name for p in annotations.glob("instances*.json"))
    if not there:
        return None
    names = split_names(dataset.card.splits[role], role)
    wanted = [f"instances_{name}.json" for name in names]
    if dataset.card.alone:
        wanted.append("instances.json")
    file = next((annotations / name for name in wanted if name in there), None)
    if file is None:
        raise DataError(
            f"{dataset.id}: no {role} split in {annotations}: no {' or '.join(wanted)} (there is {', '.join(there)})",
            hint=f"fetch that file, or set splits.{role}.name in {dataset.path} to the name that follows instances_",
        )
    return _Instances(
        file, root, [*(root / n for n in names), *(root / "images" / n for n in names), root / "images", root]
    )


class _Instances(FileLayout):
    """One annotation file; its images lie in the first of `folders` that holds the first of them."""

    name_in_fingerprint = "_Instances"

    def __init__(self, file: Path, root: Path, folders: list[Path]) -> None:
        found = read_lists(file, _READ, "COCO instances")
        self._ids = [image["file_name"] for image in found["images"]]
        row = numbered(file, "images", [str(image["id"]) for image in found["images"]])
        column = numbered(file, "categories", [str(category["id"]) for category in found["categories"]])
        numbered(file, "file_name", self._ids)
        self.names = [category["name"] for category in found["categories"]]
        self._rows = np.zeros((len(row), len(column)), dtype=np.uint8)
        for number, box in enumerate(found["annotations"]):
            for key, known in (("image_id", row), ("category_id", column)):
                if str(box[key]) not in known:
                    raise DataError(
                        f"{file}: annotations[{number}] has the {key} {box[key]}, which the file does not list"
                    )
            self._rows[row[str(box["image_id"])], column[str(box["category_id"])]] = 1
        images, self.notes = listed_images(self._ids, file, folders)
        super().__init__(root, images, [file])

    def index(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        yield from zip(self._ids, self._rows, strict=True)


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
    last = [_last_part(name) for name in names]
    holding = next((folder for folder in folders if last[0] and exists(folder / last[0])), None)
    if holding is None:
        raise DataError(
            f"no image {names[0]}, which {file} lists, in {', '.join(map(str, folders))}",
            hint="unpack the images into one of these folders",
        )
    numbered(file, "the file_name's last part, which is looked for,", last)
    elsewhere = [name for name, part in zip(names, last, strict=True) if name != part]
    note = Note.of(
        "file-names-cut", "file names are addresses or paths: their last part is looked for", elsewhere
    )
    return [holding / part for part in last], (note,)


def _last_part(name: str) -> str:
    """What follows the last slash of an address, without a query, or of a path."""
    path = unquote(urlsplit(name).path) if "://" in name else name
    return re.split(r"[/\\]", path)[-1]


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
    try:
        found = json.loads(
            file.read_bytes(), object_hook=lambda entry: {k: v for k, v in entry.items() if k in known}
        )
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}", hint="fetch the file again") from None
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
