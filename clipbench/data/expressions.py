"""Referring expressions of a split, from what a layout has of each image, and a detector's boxes beside them.

Such boxes are in `detections.json`, {file name: [[x0, y0, x1, y1], …]}, or `dets.json` as ALBEF has it, {image id:
[[x, y, w, h, …], …]}, or as `refer` describes it, a list of {image_id, box: [x, y, w, h]}.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.decode import BAD_IMAGE, open_image
from clipbench.data.images import frames
from clipbench.data.layouts.base import Layout
from clipbench.data.split import Expressions
from clipbench.data.text import json_of
from clipbench.errors import DataError
from clipbench.metrics.boxes import turn_back
from clipbench.utils.parsing import exists

#: (id, text, box as x0, y0, x1, y1)
Expression = tuple[str, Any, Any]
Boxes = dict[str, NDArray[np.float64]]
#: width and height (px) of an image as stored, and its EXIF orientation
Size = tuple[tuple[int, int], int]

_OVERRUN = 2.0  # px that rounding may carry an edge beyond the image


def of(dataset: Entry[TaskCard], source: Layout, ids: list[str], raw: list[Any]) -> Expressions:
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
    owners = np.repeat(np.arange(len(ids)), [len(found) for found in raw])
    made = Expressions(tuple(names), tuple(texts), owners, np.array(boxes, dtype=np.float64).reshape(-1, 4))
    if source.detections is None:
        return made
    detected = _detected(source.detections)
    own = zip((_of_image(detected, image) for image in ids), sizes, strict=True)
    return replace(made, candidates=tuple(_stored(found, size, follows) for found, size in own))


def from_xywh(box: Any) -> Any:
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


def detections_of(root: Path) -> Path | None:
    """The file with a detector's boxes in the folder of a copy, if there is one."""
    names = ("detections.json", "dets.json")
    places = [folder / name for name in names for folder in (root, root / "annotations")]
    return next((path for path in places if exists(path)), None)


def _detected(file: Path) -> Boxes:
    """A detector's boxes by file name or image number, x0, y0, x1, y1."""
    found = json_of(file)
    try:
        if file.name == "detections.json":
            return {name: _boxes(boxes) for name, boxes in found.items()}
        if isinstance(found, dict) and "dets" not in found:
            return {str(key): _boxes([from_xywh(box[:4]) for box in boxes]) for key, boxes in found.items()}
        grouped: dict[str, list[Any]] = {}
        for entry in found["dets"] if isinstance(found, dict) else found:
            grouped.setdefault(str(entry["image_id"]), []).append(from_xywh(entry["box"]))
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


def _of_image(detected: Boxes, image: str) -> NDArray[np.float64]:
    """By the image's name, else by the number at its end (COCO_train2014_000000581857.jpg: 581857)."""
    none = np.zeros((0, 4))
    digits = re.search(r"(\d+)\D*$", Path(image).stem)
    return detected.get(image, detected.get(str(int(digits[1])), none) if digits else none)
