"""Referring expressions of images that are files: texts that each mean one thing in them, and the box of that thing.

What a copy may be, of which the first that is there is read:

    referring_expressions_<split>.json    a list of {file_name, expression, bbox_xyxy}, and `id` if there is one; in
                                          the folder or its annotations/ (a card with one split: without _<split>)
    refs(unc).json, instances.json        the `refer` layout (lichengunc/refer) with its pickle turned into JSON
    *.parquet with raw_anns, image_path   one row an object, images as files (jxu124/refcoco)

For a card that says `expressions: classes` none of these is read but COCO's annotations/instances_<split>.json (a card
with one split: instances.json): each object that is the only one of its class in the image is called by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.expressions import Expression, detections_of, from_xywh
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.layouts.coco import instances_file, listed_images, sole_objects
from clipbench.data.layouts.parquet import opened
from clipbench.data.paths import split_names
from clipbench.data.split import Note
from clipbench.data.text import json_of
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

#: partitions in which no image is in two splits; Google's divides the objects of an image
_PARTITIONS = ("unc", "umd")
#: of instances.json; its polygons are dropped
_KEYS = frozenset({"images", "annotations", "id", "file_name", "image_id", "bbox"})


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in a folder of image files; None where `root` has none of the forms.

    Raises:
        DataError: no such split, a pickle, a file that is not what its name says, or an image that is missing.
    """
    if dataset.card.expressions == "classes":
        return _of_classes(dataset, role, root)
    names = split_names(dataset.card.splits[role], role)
    files = [f"referring_expressions_{name}.json" for name in names]
    files += ["referring_expressions.json"] if dataset.card.alone else []
    places = [folder / file for folder in (root, root / "annotations") for file in files]
    plain = next((path for path in places if exists(path)), None)
    if plain is not None:
        return _Listed(root, [plain], _plain(plain), names)
    matches = ((re.match(r"refs\((\w+)\)", path.name), path) for path in root.glob("refs(*).*"))
    refs = {match[1]: path for match, path in matches if match}
    if refs:
        return _refer(dataset, role, root, refs)
    tables = sorted([*root.glob("*.parquet"), *(root / "data").glob("*.parquet")])
    tables = [path for path in tables if "image_path" in columns_of(path)]
    if tables:
        return _Listed(root, tables, _paths(dataset, role, tables), ["train2014"])
    return None


LAYOUT: Final = LayoutSpec(
    ("expressions",),
    "refs(unc).json and instances.json (the refer layout), referring_expressions_{split}.json with file_name, "
    "expression and bbox_xyxy",
    probe,
)


class _Listed(FileLayout):
    """Image files, and what was read of them: file name → expressions."""

    name_in_fingerprint = "_Listed"

    def __init__(
        self,
        root: Path,
        annotations: list[Path],
        found: dict[str, list[Expression]],
        folders: Sequence[str],
        notes: tuple[Note, ...] = (),
    ) -> None:
        self._ids, self._labels = list(found), list(found.values())
        places = [
            base / middle / name
            for base in (root, root.parent)  # `refer` keeps the images of its data sets beside their folders
            for name in folders
            for middle in ("", "images", "images/mscoco/images", "images/mscoco")
        ]
        images, cut = listed_images(list(found), annotations[0], [*places, root / "images", root])
        self.notes = (*notes, *cut)
        below = all(path.is_relative_to(root) for path in images)
        self.detections = detections_of(root)
        more = [] if self.detections is None else [self.detections]
        super().__init__(root if below else root.parent, images, [*annotations, *more])


def _of_classes(dataset: Entry[TaskCard], role: str, root: Path) -> _Listed:
    file = instances_file(dataset, role, root)
    if file is None:
        name = dataset.card.splits[role].name
        raise DataError(
            f"{dataset.id}: no annotations/instances*.json in {root}, of which the card makes its expressions",
            hint=f"expected COCO's annotations/instances_{name}.json, and its images",
        )
    objects, notes = sole_objects(file)
    found = {
        image: [(name, text, from_xywh(box)) for name, text, box in of_image]
        for image, of_image in objects.items()
    }
    return _Listed(root, [file], found, split_names(dataset.card.splits[role], role), notes)


def _plain(file: Path) -> dict[str, list[Expression]]:
    found: dict[str, list[Expression]] = {}
    entries = json_of(file)
    if not isinstance(entries, list):
        raise DataError(
            f"{file} is no list of expressions", hint="expected [{file_name, expression, bbox_xyxy}, …]"
        )
    for number, entry in enumerate(entries):
        for key in ("file_name", "expression", "bbox_xyxy"):
            if not isinstance(entry, dict) or key not in entry:
                raise DataError(f"{file}: entry {number} has no {key}")
        name = str(entry["file_name"])
        of_image = found.setdefault(name, [])
        own = str(entry["id"]) if "id" in entry else f"{name}/{len(of_image)}"
        of_image.append((own, entry["expression"], entry["bbox_xyxy"]))
    return found


def _refer(dataset: Entry[TaskCard], role: str, root: Path, refs: dict[str, Path]) -> _Listed:
    partition = next((p for p in _PARTITIONS if p in refs), None)
    if partition is None:
        raise DataError(
            f"{dataset.id}: {root} has {', '.join(sorted(p.name for p in refs.values()))}; read are the partitions "
            f"{' and '.join(_PARTITIONS)}, since Google's has images in several splits",
            hint="fetch refs(unc).p (RefCOCO, RefCOCO+) or refs(umd).p (RefCOCOg) of lichengunc/refer",
        )
    file = root / f"refs({partition}).json"
    if not file.is_file():
        raise DataError(
            f"{dataset.id}: {refs[partition]} is a pickle, which can run any program when it is read, and is not read",
            hint='if you trust it, turn it into JSON once, in that folder: python -c "import json, pickle; '
            f"json.dump(pickle.load(open('refs({partition}).p', 'rb')), open('refs({partition}).json', 'w'))\"",
        )
    instances = root / "instances.json"
    boxes = json_of(instances, _KEYS)
    try:
        images = {entry["id"]: str(entry["file_name"]) for entry in boxes["images"]}
        annotations = {entry["id"]: (entry["image_id"], entry["bbox"]) for entry in boxes["annotations"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{instances} has no images and annotations as COCO's instances do ({error})"
        ) from None
    names = split_names(dataset.card.splits[role], role)
    found: dict[str, list[Expression]] = {}
    there: set[str] = set()
    for number, ref in enumerate(json_of(file)):
        try:
            there.add(ref["split"])
            if ref["split"] not in names:
                continue
            image, box = annotations[ref["ann_id"]]
            found.setdefault(images[image], []).extend(sentences(ref, from_xywh(box)))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{file}: entry {number} does not go with {instances.name} ({type(error).__name__}: {error})",
                hint="take both files from the same archive",
            ) from None
    if not found:
        raise DataError(
            f"{dataset.id}: no {role} split in {file} (it has {', '.join(sorted(there)) or 'nothing'})",
            hint=f"correct splits.{role}.name in {dataset.path}",
        )
    return _Listed(root, [file, instances], found, ["train2014"])


def sentences(ref: dict[str, Any], box: Any) -> list[Expression]:
    """The expressions of one object: `sent` is the cleaned text, which papers score."""
    return [(f"{ref['ref_id']}/{s['sent_id']}", s["sent"], box) for s in ref["sentences"]]


def _paths(dataset: Entry[TaskCard], role: str, tables: list[Path]) -> dict[str, list[Expression]]:
    """Rows of one object each. `bbox` has had several forms over time; COCO's own in `raw_anns` has one."""
    import pyarrow.parquet as pq

    names = split_names(dataset.card.splits[role], role)
    found: dict[str, list[Expression]] = {}
    there: set[str] = set()
    for path in tables:
        wanted = ["ref_id", "split", "sentences", "raw_anns", "image_path"]
        try:
            rows = pq.read_table(path, columns=wanted).to_pylist()
            for row in rows:
                there.add(row["split"])
                if row["split"] in names:
                    box = from_xywh(json.loads(row["raw_anns"])["bbox"])
                    found.setdefault(Path(row["image_path"]).name, []).extend(sentences(row, box))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: expected the columns {', '.join(wanted)} ({error})") from None
    if not found:
        raise DataError(
            f"{dataset.id}: no {role} split in {tables[0].parent} (the column split has {', '.join(sorted(there))})",
            hint=f"correct splits.{role}.name in {dataset.path}",
        )
    return found


def columns_of(path: Path) -> list[str]:
    with opened(path) as file:
        return list(file.schema_arrow.names)
