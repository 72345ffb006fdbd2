"""Boxes and heat: every edge counts, wherever in the image the box lies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from clipbench.metrics import boxes

Pixels = NDArray[np.bool_]
EVEN = np.ones((8, 8), dtype=np.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_the_best_box_has_the_most_heat_for_the_root_of_its_own_area(turned: bool) -> None:
    # 4 pixels / √4 = 2 in the corner, 8 / √8 = 2.83 far from it, 6 / √6 = 2.45 between
    found = np.array([[0.0, 0, 2, 2], [4, 6, 8, 8], [2, 2, 5, 4]])
    assert boxes.best(EVEN, found[:, [1, 0, 3, 2]] if turned else found) == 1


def test_the_root_of_the_area_is_neither_the_area_nor_nothing() -> None:
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[1, 1], heat[:2, :2] = 4, 4
    heat[3, 3] = 5
    # 5 / 1 on one pixel, 16 / 2 on four, 21 / 4 on all: the mean would take the first, the sum the last
    assert boxes.best(heat, np.array([[3.0, 3, 4, 4], [0, 0, 2, 2], [0, 0, 4, 4]])) == 1


def test_edges_are_cut_to_whole_pixels_for_the_heat_but_not_for_the_area() -> None:
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[1:3, 1:3] = 1
    # [1.9, 3.9) holds the pixels 1 and 2: 4 / 2 against 4 / 3
    assert boxes.best(heat, np.array([[0.0, 0, 3, 3], [1.9, 1.9, 3.9, 3.9]])) == 1
    # [1, 2.9) holds pixel 1 alone: 1 / 1.9 against 4 / 3
    assert boxes.best(heat, np.array([[1, 1, 2.9, 2.9], [0.0, 0, 3, 3]])) == 1


def test_what_lies_outside_the_image_has_no_heat_but_counts_as_area() -> None:
    # 4 / √16 = 1 of a box that the image cuts, 1 / √1 = 1 of a whole one: the first on ties
    beyond = np.array([[-2.0, -2, 2, 2], [4, 4, 5, 5]])
    assert boxes.best(EVEN, beyond) == 0
    assert boxes.best(EVEN, beyond[::-1]) == 0
    assert boxes.best(EVEN, np.array([[-4.0, -4, -1, -1], [4, 4, 5, 5]])) == 1


def test_shares_energies_and_overlaps_of_boxes_far_from_the_corner() -> None:
    assert boxes.share((3, 5, 7, 8), 12, 10) == 0.1
    assert boxes.energy(EVEN, (3, 5, 7, 8)) == 12 / 64
    assert boxes.energy(np.zeros_like(EVEN), (3, 5, 7, 8)) == 0
    # 3 × 3 of 16 and of 12 in common: 9 / 19; touching edges and boxes apart share nothing
    others = np.array([[4.0, 4, 8, 8], [7, 5, 9, 8], [0, 0, 2, 3], [3, 5, 7, 8]])
    found = boxes.overlaps(others, (3, 5, 7, 8))
    assert found == pytest.approx([9 / 19, 0, 0, 1])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, np.rot90),
    ],
)
def test_boxes_turn_as_pixels_do(orientation: int, turned: Callable[[Pixels], Pixels]) -> None:
    for x0, y0, x1, y1 in ((1, 0, 4, 2), (5, 3, 6, 5)):
        pixels = np.zeros((5, 7), dtype=bool)
        pixels[y0:y1, x0:x1] = True
        rows, columns = np.nonzero(turned(pixels))
        box = np.array([[x0, y0, x1, y1]], dtype=float)
        found = boxes.turn(box, (7, 5), orientation)
        assert found.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
        assert boxes.turn_back(found, (7, 5), orientation).tolist() == box.tolist()


def test_a_box_beyond_the_left_or_upper_edge_has_no_energy() -> None:
    for box in ((-3, 1, -1, 4), (1, -3, 4, -1), (-3, -3, -1, -1)):
        assert boxes.energy(EVEN, box) == 0
    assert boxes.energy(EVEN, (-3, -3, 1, 2)) == 2 / 64
