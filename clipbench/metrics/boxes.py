"""Boxes and heat maps of one image: pure functions.

A box is x0, y0, x1, y1 in pixels of the image, with pixel (x, y) covering [x, x + 1) × [y, y + 1). A pixel is in a
box when its centre is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = Sequence[float] | NDArray[np.float64]
Map = NDArray[np.float32]


def peak(heat: Map) -> tuple[int, int]:
    """Pixel (x, y) of the largest value of a map [H, W]; the first in reading order on ties.

    >>> peak(np.array([[0, 1], [1, 1]], dtype=np.float32))
    (1, 0)
    """
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    return int(x), int(y)


def contains(box: Box, pixel: tuple[int, int]) -> bool:
    """Whether the centre of `pixel` (x, y) is in `box`.

    >>> contains((1, 1, 3.4, 2), (2, 1)), contains((1, 1, 3.4, 2), (3, 1))
    (True, False)
    """
    x, y = pixel[0] + 0.5, pixel[1] + 0.5
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def centre(heat: Map) -> tuple[int, int]:
    """Pixel (x, y) that holds the middle of a map [H, W]; where the middle is an edge, the one right of it or below.

    >>> centre(np.zeros((4, 5), dtype=np.float32))
    (2, 2)
    """
    return heat.shape[1] // 2, heat.shape[0] // 2


def energy(heat: Map, box: Box) -> float:
    """Share of a map's sum (map [H, W], at least 0) that lies on the pixels of `box`; 0 for a map of zeros.

    >>> energy(np.array([[1, 2], [1, 0]], dtype=np.float32), (1, 0, 2, 2))
    0.5
    """
    total = float(heat.sum(dtype=np.float64))
    x0, y0 = (max(0, math.ceil(edge - 0.5)) for edge in box[:2])
    x1, y1 = (max(0, math.floor(edge - 0.5) + 1) for edge in box[2:])
    inside = float(heat[y0:y1, x0:x1].sum(dtype=np.float64))
    return min(1.0, inside / total) if total > 0 else 0.0


def share(box: Box, width: int, height: int) -> float:
    """Area of `box`, which lies in the image, as a share of the image's.

    >>> share((0, 0, 5, 4), 10, 8)
    0.25
    """
    return float((box[2] - box[0]) * (box[3] - box[1]) / (width * height))


def turn(boxes: NDArray[np.float64], size: tuple[int, int], orientation: int) -> NDArray[np.float64]:
    """`boxes` [J, 4] in an image of `size` (width, height), as they lie after the turn of an EXIF orientation (1 to 8).

    >>> turn(np.array([[1.0, 0, 3, 2]]), (10, 5), 6).tolist()
    [[3.0, 1.0, 5.0, 3.0]]
    """
    width, height = size
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    back, up = width - x[:, ::-1], height - y[:, ::-1]
    ways = {
        1: (x, y),
        2: (back, y),
        3: (back, up),
        4: (x, up),
        5: (y, x),
        6: (up, x),
        7: (up, back),
        8: (y, back),
    }
    return np.stack(ways[orientation], axis=2).reshape(-1, 4)


def turn_back(boxes: NDArray[np.float64], size: tuple[int, int], orientation: int) -> NDArray[np.float64]:
    """What `turn` was given, from what it returned; `size` is that of the image before the turn."""
    after = size[::-1] if orientation >= 5 else size
    return turn(boxes, after, {6: 8, 8: 6}.get(orientation, orientation))


def overlaps(boxes: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """Intersection over union of each of `boxes` [J, 4] with `box`: float64 [J].

    By hand, since `torchvision.ops.box_iou` needs torch, which this module shall not import.

    >>> overlaps(np.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]), (0, 0, 2, 2)).round(3).tolist()
    [1.0, 0.333, 0.0]
    """
    x0, y0, x1, y1 = (float(edge) for edge in box)
    width = np.minimum(boxes[:, 2], x1) - np.maximum(boxes[:, 0], x0)
    height = np.minimum(boxes[:, 3], y1) - np.maximum(boxes[:, 1], y0)
    common = np.clip(width, 0, None) * np.clip(height, 0, None)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    shared: NDArray[np.float64] = common / (areas + (x1 - x0) * (y1 - y0) - common)
    return shared


def best(heat: Map, boxes: NDArray[np.float64]) -> int:
    """Which of `boxes` [J, 4], J ≥ 1, has the most heat for its size, Σ heat / area^0.5; the first on ties.

    As ALBEF ranks detections (`grounding_eval` in its `dataset/utils.py`), with its pixels too: edges are cut to
    whole numbers.

    >>> heat = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=np.float32)
    >>> best(heat, np.array([[0.0, 0, 4, 2], [2, 0, 4, 2], [3, 0, 4, 1]]))
    1
    """
    scores = []
    for x0, y0, x1, y1 in boxes:
        inside = heat[max(0, int(y0)) : max(0, int(y1)), max(0, int(x0)) : max(0, int(x1))]
        scores.append(float(inside.sum(dtype=np.float64)) / math.sqrt((x1 - x0) * (y1 - y0)))
    return int(np.argmax(scores))
