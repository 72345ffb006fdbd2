"""COCO-gender: COCO images with the gender that their captions give the person shown, and the objects beside.

A copy is a folder with `annotations/gender_<split>.json` and COCO's images, of 2014 or of 2017, in `val2014/`,
`train2017/`, … or `images/`. The JSON is one object:

    objects     names of objects, whichever an image may show
    images      list of {file_name: "COCO_val2014_000000532003.jpg", gender: "woman", objects: ["bowl", "cup"]}

The annotations come from Wang et al., "Balanced Datasets Are Not Enough" (ICCV 2019, arXiv 1811.08489), whose
repository has them as pickles; `convert` turns these into such files once. No pickle is read in an evaluation.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.paths import split_names
from clipbench.data.split import Objects
from clipbench.errors import ClipbenchError, DataError
from clipbench.utils.cache import write_atomic
from clipbench.utils.parsing import json_value

_MAP = "object_id.map"
_GENDERS = ("man", "woman")  # the places of the pickles' gender vectors
_FOLDERS = ("train2014", "val2014", "train2017", "val2017")
_CONVERT = "clipbench data convert-coco-gender"


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout:
    """The split of `dataset` that plays `role`, in the folder `root`.

    Raises:
        DataError: no such split, a JSON file in another form, an image that is annotated twice or missing.
    """
    names = split_names(dataset.card.splits[role], role)
    files = [root / "annotations" / f"gender_{name}.json" for name in names]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        there = ", ".join(sorted(p.name for p in (root / "annotations").glob("gender_*.json"))) or "none"
        raise DataError(
            f"{dataset.id}: no {role} split in {root}: no {' or '.join(f.name for f in files)} in annotations/ "
            f"(of that kind there is {there})",
            hint="from the original annotations (test.data, test_ratio_1.ids, object_id.map) such files are made by: "
            f"{_CONVERT} <their folder> {root / 'annotations'}",
        )
    return _Annotated(file, root)


LAYOUT: Final = LayoutSpec(("objects",), "annotations/gender_{split}.json", probe)


class _Annotated(FileLayout):
    """One annotation file, and its images wherever in `root` they lie, with names of 2014 or of 2017."""

    name_in_fingerprint = "_Annotated"

    def __init__(self, file: Path, root: Path) -> None:
        names, images = _read(file)
        self._ids, self._labels = [name for name, _, _ in images], [gender for _, gender, _ in images]
        column = {name: i for i, name in enumerate(names)}
        present = np.zeros((len(images), len(names)), dtype=np.uint8)
        for row, (_, _, shown) in enumerate(images):
            present[row, [column[name] for name in shown]] = 1
        self.objects = Objects(tuple(names), present)
        super().__init__(root, _images(self._ids, file, root), [file])


def _plain(file_name: str) -> str:
    """The name of an image in COCO's folders of 2017: COCO_val2014_000000532003.jpg is 000000532003.jpg there."""
    return re.sub(r"^COCO_(train|val)2014_", "", file_name)


def _images(names: list[str], file: Path, root: Path) -> list[Path]:
    """Where the images lie; the images of one split of 2014 are in both folders of 2017."""
    folders = [root / p / f for p in ("", "images") for f in _FOLDERS if (root / p / f).is_dir()]
    folders.append(root / "images")
    places = [(folder, f"COCO_{folder.name}_" if folder.name.endswith("2014") else "") for folder in folders]
    found: list[Path] = []
    for name in names:
        paths = [folder / f"{prefix}{name}" for folder, prefix in places]
        path = next((p for p in paths if p.is_file()), None)
        if path is None and not found:
            raise DataError(
                f"no image {name}, which {file} lists, in {', '.join(map(str, folders))}",
                hint=f"unpack COCO's images so that {root} holds {', '.join(_FOLDERS)} or images (2014 or 2017: "
                "both have them)",
            )
        found.append(path or paths[-1])
    return found


def _read(file: Path) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Names of the objects, and of each image: its plain name, its gender, its objects."""
    try:
        found = json_value(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}", hint="write the file again") from None
    lists = [found.get(key) if isinstance(found, dict) else None for key in ("objects", "images")]
    if not all(isinstance(found, list) and found for found in lists):
        raise DataError(
            f"{file} has no lists objects and images, so it is no file of COCO-gender",
            hint=f"{_CONVERT} writes such files from the original annotations",
        )
    names, entries = found["objects"], found["images"]
    known = {name for name in names if isinstance(name, str)}
    if len(known) != len(names):
        raise DataError(f"{file}: objects must be names, each once")
    images: dict[str, tuple[str, str, list[str]]] = {}
    for number, entry in enumerate(entries):
        where = f"{file}: images[{number}]"
        for key, kind in (("file_name", str), ("gender", str), ("objects", list)):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise DataError(f"{where} has no {key} ({kind.__name__})")
        name, lost = _plain(entry["file_name"]), [o for o in entry["objects"] if o not in known]
        if not name or PurePosixPath(name).name != name:
            raise DataError(f"{where}: the file_name {entry['file_name']!r} is no name of a file alone")
        if lost:
            raise DataError(f"{where}: {lost[0]!r} is not among the file's objects")
        if name in images:
            raise DataError(f"{where}: {name} is there twice", hint="keep one of its annotations")
        images[name] = (name, entry["gender"], entry["objects"])
    return names, list(images.values())


# ------------------------------------------------------------------ the original


def convert(source: Path, out: Path, *, force: bool = False) -> list[tuple[Path, int]]:
    """Write the original annotations in the folder `source` as JSON files to the folder `out`.

    `<split>.data` becomes `gender_<split>.json`, and `<split>_ratio_<r>.ids` (places in that list, an unordered set)
    `gender_<split>_ratio_<r>.json`, in ascending order. They are pickles of lists, dicts, sets, numbers and texts;
    one that names anything else is refused, and nothing in it is run.

    Returns:
        Each file that was written, and its number of images.

    Raises:
        DataError: nothing to convert, a file that is missing or not of that form, an image that has no gender or two.
        ClipbenchError: a file exists, and `force` is not given.
    """
    data = sorted(source.glob("*.data"))
    if not data:
        raise DataError(
            f"no .data file in {source}",
            hint="fetch object_multilabel/data of github.com/uvavision/Balanced-Datasets-Are-Not-Enough",
        )
    found = _unpickled(source / _MAP)
    with _form(source / _MAP):
        names = [str(found["id2object"][i]).replace("_", " ") for i in range(len(found["id2object"]))]
    made: dict[Path, list[dict[str, Any]]] = {}
    for file in data:
        images = _entries(file, names)
        made[out / f"gender_{file.stem}.json"] = images
        for ids in sorted(source.glob(f"{file.stem}_ratio_*.ids")):
            places = _unpickled(ids)
            with _form(ids):
                made[out / f"gender_{ids.stem}.json"] = [images[_place(i)] for i in sorted(places)]
    for path in made:
        if path.exists() and not force:
            raise ClipbenchError(f"{path} exists", hint="choose another folder, or add --force to replace it")
    for path, images in made.items():
        write_atomic(path, json.dumps({"objects": names, "images": images}).encode())
    return [(path, len(images)) for path, images in made.items()]


def _place(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no place in a list")
    return value


def _entries(file: Path, names: list[str]) -> list[dict[str, Any]]:
    entries = _unpickled(file)
    images = []
    with _form(file):
        for number, entry in enumerate(entries):
            name, objects, gender = str(entry["file_name"]), list(entry["objects"]), list(entry["gender"])
            if len(objects) != len(names) or not {0, 1}.issuperset(objects):
                raise ValueError(f"number {number}: objects are not {len(names)} zeros and ones")
            if sorted(gender) != [0, 1]:
                raise DataError(
                    f"{file}: number {number} ({name}) has the gender {gender}; "
                    "expected [1, 0] (man) or [0, 1] (woman)",
                    hint="take the image out, or fetch the file again",
                )
            shown = [o for o, there in zip(names, objects, strict=True) if there]
            images.append({"file_name": name, "gender": _GENDERS[gender.index(1)], "objects": shown})
    return images


@contextlib.contextmanager
def _form(file: Path) -> Iterator[None]:
    """Turns what goes wrong in a file of another form into an error that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file} does not hold what the original annotations hold ({type(error).__name__}: {error})",
            hint="fetch the file again",
        ) from None


class _Plain(pickle.Unpickler):
    """Reads pickles of plain values: all that they can name is `set`."""

    def find_class(self, module: str, name: str) -> type[set[Any]]:
        if module in ("__builtin__", "builtins") and name == "set":
            return set
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain value")


def _unpickled(file: Path) -> Any:
    """What a pickle of plain values holds; nothing of it is run."""
    try:
        with file.open("rb") as opened:
            return _Plain(opened, encoding="utf-8").load()
    except FileNotFoundError:
        raise DataError(
            f"there is no {file}", hint="the original annotations have it beside the .data files"
        ) from None
    except Exception as error:  # a file made to do harm may raise anything while it is read
        reason = f"{type(error).__name__}: {error}".encode("unicode_escape").decode("ascii")
        raise DataError(
            f"{file} cannot be read as a pickle of plain values ({reason[:200]})", hint="fetch the file again"
        ) from None
