"""Items to choose among: what is left of them when only some images are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from choice_copies import FORMS, open_copy

from clipbench.data.choices import Choice, kept, rows_of_some
from clipbench.evaluation import limited


def items(*images: tuple[int, ...], parts: str = "") -> list[Choice]:
    names = parts or "a" * len(images)
    return [Choice(str(n), of, ("x", "y"), ((0, 0),), names[n]) for n, of in enumerate(images)]


def some(choices: list[Choice], limit: int, seed: int = 0) -> list[int]:
    found: list[int] = rows_of_some(choices, limit, np.random.default_rng(seed)).tolist()
    return found


def test_an_item_is_kept_whole_or_not_at_all() -> None:
    found = kept(items((0, 1), (1, 2), (3,)), np.array([1, 2, 3]))
    assert [(item.id, item.images) for item in found] == [("1", (0, 1)), ("2", (2,))]


@pytest.mark.parametrize("seed", range(5))
def test_a_limit_takes_whole_items(seed: int) -> None:
    pairs = items(*((2 * n, 2 * n + 1) for n in range(50)))
    rows = some(pairs, 21, seed)
    assert len(rows) == 20
    assert len(kept(pairs, np.array(rows))) == 10
    assert some(pairs, 21, seed) == rows
    assert some(pairs, 21, seed + 1) != rows


def test_items_that_share_images_cost_none_more() -> None:
    shared = items(*((0, n % 3 + 1) for n in range(30)))
    assert some(shared, 4) == [0, 1, 2, 3]


def test_parts_take_turns() -> None:
    many = items(*((n,) for n in range(100)), parts="a" * 90 + "b" * 9 + "c")
    parts = [item.part for item in kept(many, np.array(some(many, 9)))]
    assert {part: parts.count(part) for part in "abc"} == {"a": 4, "b": 4, "c": 1}


def test_items_that_are_too_large_are_passed_over() -> None:
    assert some(items((0, 1, 2), (3,)), 2) == [3]
    assert some(items((0, 1)), 1) == []


def test_a_limited_split_has_its_items(tmp_path: Path) -> None:
    split = open_copy("sugarcrepe", FORMS["sugarcrepe"].write(tmp_path))
    few = limited(split, 3, seed=0)
    assert len(few) == 3
    assert few.choices
    assert {few.ids[row] for item in few.choices for row in item.images} <= set(few.ids)
