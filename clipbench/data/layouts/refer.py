"""Referring expressions: images, texts that each mean one thing in them, and the box of that thing.

What a copy may be:

    referring_expressions_<split>.json    a list of {file_name, expression, bbox_xyxy}, and `id` if there is one; in
                                          the folder or its annotations/ (a card with one split: without _<split>)
    refs(unc).json, instances.json        the `refer` layout (lichengunc/refer) with its pickle turned into JSON
    *.parquet with ref_list, image_info   one row an image (jxu124/refcoco-benchmark)
    *.parquet with answer, bbox, image    one row an object (lmms-lab/RefCOCO)
    *.parquet with raw_anns, image_path   one row an object, images as files (jxu124/refcoco)

For a card that says `expressions: classes` none of these is read but COCO's annotations/instances_<split>.json (a card
with one split: instances.json): each object that is the only one of its class in the image is called by its name.

Beside them may lie a detector's boxes: `detections.json`, {file name: [[x0, y0, x1, y1], …]}, or `dets.json` as ALBEF
has it, {image id: [[x, y, w, h, …], …]}, or as `refer` describes it, a list of {image_id, box: [x, y, w, h]}.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.cards import TaskCard
from clipbench.cards.entry import Entry
from clipbench.data.decode import BAD_IMAGE, open_image
from clipbench.data.hub import split_names
from clipbench.data.images import frames
from clipbench.data.layouts.base import FileLayout, Layout
from clipbench.data.layouts.coco import instances_file, listed_images, sole_objects
from clipbench.data.layouts.parquet import Parquet
from clipbench.data.split import Expressions, Note
from clipbench.errors import DataError
from clipbench.metrics.boxes import turn_back
from clipbench.utils.parsing import exists

#: (id, text, box as x0, y0, x1, y1)
Expression = tuple[str, Any, Any]
Boxes = dict[str, NDArray[np.float64]]
#: width and height (px) of an image as stored, and its EXIF orientation
Size = tuple[tuple[int, int], int]

_OVERRUN = 2.0  # px that rounding may carry an edge beyond the image
#: partitions in which no image is in two splits; Google's divides the objects of an image
_PARTITIONS = ("unc", "umd")
_KEYS = frozenset(
    {"images", "annotations", "id", "file_name", "image_id", "bbox"}
)  # of instances.json; its polygons are dropped


def layout(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in a folder of image files; None where `root` has none of the forms.

    Raises:
        DataError: no such split, a pickle, a file that is not what its name says, or an image that is missing.
    """
    if dataset.card.expressions == "classes":
        return _of_classes(dataset, role, root)
    plain = _plain_file(dataset, role, root)
    if plain is not None:
        return _Listed(root, [plain], _plain(plain), split_names(dataset.card.splits[role], role))
    refs = {
        match[1]: path for path in root.glob("refs(*).*") if (match := re.match(r"refs\((\w+)\)", path.name))
    }
    if refs:
        return _refer(dataset, role, root, refs)
    tables = [path for path in _tables(root) if "image_path" in _columns(path)]
    if tables:
        return _Listed(root, tables, _paths(dataset, role, tables), ["train2014"])
    return None


def expressions(dataset: Entry[TaskCard], source: Layout, ids: list[str], raw: list[Any]) -> Expressions:
    """The expressions of a split, checked against its images: `raw` is a list of `Expression` for each of `ids`.

    Edges that rounding carried beyond the image are put back onto it. Boxes that the card says to be in the frame after
    the turn of EXIF are brought into that of the image as stored.

    Raises:
        DataError: an empty expression, an id that is there twice, a box that is none or not in its image, or images
            that EXIF turns where the card does not say in which frame the boxes are.
    """
    sizes = _sizes(source, len(ids))
    turned = [i for i, size in zip(ids, sizes, strict=True) if size is not None and size[1] != 1]
    if turned and dataset.card.boxes is None:
        raise DataError(
            f"{dataset.id}: {len(turned)} of {len(ids)} images in {source.where} have an EXIF tag that turns them (the "
            f"first is {turned[0]}), so that their boxes may be in the frame of the stored pixels or in the turned one",
            hint=f"say which in {dataset.path}: boxes: as-stored (pixels as Pillow and most programs count them), or "
            "boxes: exif (as viewers and web browsers show the image)",
        )
    follows = dataset.card.boxes == "exif"
    names: list[str] = []
    texts: list[str] = []
    boxes: list[list[float]] = []
    for image, size, found in zip(ids, sizes, raw, strict=True):
        for name, text, box in found:
            where = f"{dataset.id}: expression {name} (image {image}) in {source.where}"
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"{where} is empty", hint="correct or leave out this entry of the annotations"
                )
            names.append(name)
            texts.append(text.strip())
            boxes.append(_inside(box, size, follows, where))
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{dataset.id}: the expression id {twice} is there twice in {source.where}")
    detected = _detections(getattr(source, "annotated", None))
    none = np.zeros((0, 4))
    return Expressions(
        tuple(names),
        tuple(texts),
        np.repeat(np.arange(len(ids)), [len(found) for found in raw]),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        None
        if detected is None
        else tuple(
            _stored(_of_image(detected, image, none), size, follows)
            for image, size in zip(ids, sizes, strict=True)
        ),
    )


def nothing_there(dataset: Entry[TaskCard], role: str, root: Path) -> DataError:
    """That `root` holds none of the forms."""
    there = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
    name = dataset.card.splits[role].name
    return DataError(
        f"{dataset.id}: no referring expressions of the {role} split in {root} (it holds {there})",
        hint=f"expected {name}*.parquet, or refs(unc).json and instances.json (the refer layout), or "
        f"referring_expressions_{name}.json with file_name, expression and bbox_xyxy",
    )


# ---------------------------------------------------------------- image files


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
        self._found = found
        places = [
            base / middle / name
            for base in (root, root.parent)  # `refer` keeps the images of its data sets beside their folders
            for name in folders
            for middle in ("", "images", "images/mscoco/images", "images/mscoco")
        ]
        images, cut = listed_images(list(found), annotations[0], [*places, root / "images", root])
        self.notes = (*notes, *cut)
        below = all(path.is_relative_to(root) for path in images)
        self.annotated = root
        super().__init__(root if below else root.parent, images, [*annotations, *_detection_files(root)])

    def index(self) -> Iterator[tuple[str, list[Expression]]]:
        yield from self._found.items()


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
        image: [(name, text, _from_xywh(box)) for name, text, box in of_image]
        for image, of_image in objects.items()
    }
    return _Listed(root, [file], found, split_names(dataset.card.splits[role], role), notes)


def _plain_file(dataset: Entry[TaskCard], role: str, root: Path) -> Path | None:
    names = [f"referring_expressions_{name}.json" for name in split_names(dataset.card.splits[role], role)]
    if dataset.card.alone:
        names.append("referring_expressions.json")
    places = [folder / name for folder in (root, root / "annotations") for name in names]
    return next((path for path in places if exists(path)), None)


def _plain(file: Path) -> dict[str, list[Expression]]:
    found: dict[str, list[Expression]] = {}
    entries = _json(file)
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
    boxes = _json(instances, _KEYS)
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
    for number, ref in enumerate(_json(file)):
        try:
            there.add(ref["split"])
            if ref["split"] not in names:
                continue
            image, box = annotations[ref["ann_id"]]
            found.setdefault(images[image], []).extend(_sentences(ref, _from_xywh(box)))
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


def _sentences(ref: dict[str, Any], box: Any) -> list[Expression]:
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
                    box = _from_xywh(json.loads(row["raw_anns"])["bbox"])
                    found.setdefault(Path(row["image_path"]).name, []).extend(_sentences(row, box))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: expected the columns {', '.join(wanted)} ({error})") from None
    if not found:
        raise DataError(
            f"{dataset.id}: no {role} split in {tables[0].parent} (the column split has {', '.join(sorted(there))})",
            hint=f"correct splits.{role}.name in {dataset.path}",
        )
    return found


# -------------------------------------------------------- images in the table


class Rows(Parquet):
    """Parquet files with the images in them: one row an image (`ref_list`), or one an object (`answer`, `bbox`)."""

    name_in_fingerprint = "Rows"

    def __init__(self, files: list[Path], card: TaskCard, root: Path, where: str | None = None) -> None:
        self.annotated = root if where is None else None  # of the hub's files none lies beside another
        columns = _columns(files[0])
        forms = (("ref_list", "image_info"), ("answer", "bbox", "file_name", "question_id"))
        form = next((f for f in forms if set(f) <= set(columns)), None)
        if form is None or card.columns.image not in columns:
            raise DataError(
                f"{where or root}: the columns {', '.join(map(repr, columns))} are none of the known forms of "
                f"referring expressions: {card.columns.image!r} with {' or with '.join(', '.join(f) for f in forms)}",
                hint="set columns.image on the task card if that is what differs; else write "
                "referring_expressions_<split>.json and the images as files",
            )
        self._start(files, card, root, where, {"image": card.columns.image})
        if self.annotated is not None:
            self.files += _detection_files(self.annotated)
        self._found: dict[str, list[Expression]] = {}
        self._first: dict[int, int] = {}  # row that an image is taken from → sample
        rows_of: dict[str, list[int]] = {}
        try:
            for row, values in enumerate(zip(*(self._values(c) for c in form), strict=True)):
                name, added = _of_list(*values) if form[0] == "ref_list" else _of_object(*values)
                if name not in self._found:
                    self._first[row] = len(self._found)
                self._found.setdefault(name, []).extend(added)
                rows_of.setdefault(name, []).append(row)
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.where}: {' and '.join(form)} are not as expected ({error})") from None
        self._rows = list(rows_of.values())

    def index(self) -> Iterator[tuple[str, Any]]:
        yield from self._found.items()

    def _members(self) -> list[list[int]]:
        return self._rows

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        for row, image in super().images(rows):
            if row in self._first:
                yield self._first[row], image


def _of_list(refs: list[dict[str, Any]], image: dict[str, Any]) -> tuple[str, list[Expression]]:
    found = [e for ref in refs for e in _sentences(ref["ref_info"], _from_xywh(ref["ann_info"]["bbox"]))]
    return str(image["file_name"]), found


def _of_object(answers: list[str], box: Any, file: str, question: Any) -> tuple[str, list[Expression]]:
    # The name of an object: that of its image, and the object's number.
    name = re.sub(r"^(COCO_\w+_\d{12})_\d+(\.\w+)$", r"\1\2", file)
    return name, [(f"{question}/{number}", text, _from_xywh(box)) for number, text in enumerate(answers)]


# -------------------------------------------------------------------- details


def _from_xywh(box: Any) -> Any:
    """x, y, width, height as x0, y0, x1, y1; anything else as it is, to be named later."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        return box
    return [x, y, x + width, y + height]


def _stored(boxes: NDArray[np.float64], size: Size | None, follows: bool) -> NDArray[np.float64]:
    """`boxes` [J, 4] in the frame of the image as stored; with `follows`, given in the one after its turn."""
    return turn_back(boxes, *size) if follows and size is not None else boxes


def _inside(box: Any, size: Size | None, follows: bool, where: str) -> list[float]:
    """`box` clipped to the image, if its size is known, in the frame of the image as stored (see `_stored`)."""
    numbers = (
        isinstance(box, Sequence)
        and len(box) == 4
        and all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box)
    )
    if not numbers:
        raise DataError(f"{where} has the box {str(box)[:60]}, expected four numbers")
    x0, y0, x1, y1 = (float(edge) for edge in box)
    shown = f"{x0:g}, {y0:g}, {x1:g}, {y1:g} (x0, y0, x1, y1)"
    if x1 <= x0 or y1 <= y0:
        raise DataError(
            f"{where} has the box {shown}, which has no area",
            hint="correct the entry; bbox_xyxy are two corners, not a corner and a size",
        )
    if size is None:
        return [x0, y0, x1, y1]
    (width, height), tag = size
    if follows and tag >= 5:
        width, height = height, width
    if min(x0, y0, width - x1, height - y1) < -_OVERRUN or x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise DataError(
            f"{where} has the box {shown}, outside the image of {width} × {height} px",
            hint="the boxes belong to images of another size, or are of another form than expected",
        )
    clipped = [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    edges: list[float] = _stored(np.array([clipped]), size, follows)[0].tolist()
    return edges


def _sizes(source: Layout, count: int) -> list[Size | None]:
    """`Size` of every image; None for one that cannot be read, which decoding will name."""
    sizes: list[Size | None] = [None] * count
    for row, data in source.images(np.arange(count)):
        try:
            with open_image(data) as image:
                sizes[row] = frames(image, "as-stored")[:2]
        except BAD_IMAGE:
            continue
    return sizes


def _detection_files(root: Path) -> list[Path]:
    names = ("detections.json", "dets.json")
    places = [folder / name for name in names for folder in (root, root / "annotations")]
    return [path for path in places if exists(path)][:1]


def _detections(root: Path | None) -> Boxes | None:
    """A detector's boxes by file name or image number, x0, y0, x1, y1; None where there are none."""
    files = [] if root is None else _detection_files(root)
    if not files:
        return None
    file, found = files[0], _json(files[0])
    try:
        if file.name == "detections.json":
            return {name: _boxes(boxes) for name, boxes in found.items()}
        if isinstance(found, dict) and "dets" not in found:
            return {str(key): _boxes([_from_xywh(box[:4]) for box in boxes]) for key, boxes in found.items()}
        grouped: dict[str, list[Any]] = {}
        for entry in found["dets"] if isinstance(found, dict) else found:
            grouped.setdefault(str(entry["image_id"]), []).append(_from_xywh(entry["box"]))
        return {key: _boxes(boxes) for key, boxes in grouped.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is no file of detections ({type(error).__name__}: {error})",
            hint="detections.json: {file name: [[x0, y0, x1, y1], …]}; dets.json: {image id: [[x, y, w, h], …]}",
        ) from None


def _boxes(found: Any) -> NDArray[np.float64]:
    boxes = np.array(found, dtype=np.float64).reshape(-1, 4)
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError("a box without an area")
    return boxes


def _of_image(detected: Boxes, image: str, none: NDArray[np.float64]) -> NDArray[np.float64]:
    """By the image's name, else by the number at its end (COCO_train2014_000000581857.jpg: 581857)."""
    digits = re.search(r"(\d+)\D*$", Path(image).stem)
    return detected.get(image, detected.get(str(int(digits[1])), none) if digits else none)


def _tables(root: Path) -> list[Path]:
    return sorted([*root.glob("*.parquet"), *(root / "data").glob("*.parquet")])


def _columns(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as parquet: {str(error).splitlines()[0][:200]}",
            hint="fetch or write the file again",
        ) from None


def _json(file: Path, keys: frozenset[str] | None = None) -> Any:
    """The content of a JSON file; with `keys`, of its objects these only."""
    keep = None if keys is None else (lambda entry: {k: v for k, v in entry.items() if k in keys})
    try:
        return json.loads(file.read_bytes(), object_hook=keep)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}", hint="fetch the file again") from None
