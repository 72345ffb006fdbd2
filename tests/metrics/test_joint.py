"""Sums of scores that share images, by worked values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipbench.metrics.joint import Contributions, summed

PART = Contributions("a", ["x", "y", "z"], np.array([1.0, 2.0, 6.0]))


def test_the_error_of_a_sum_is_that_of_independent_images() -> None:
    """Three images add 1, 2, 6: their variance is 7, that of a sum of three is 21; shots that were drawn add 4."""
    values, error = summed([PART])
    assert values.tolist() == [1, 2, 6]
    assert error == pytest.approx(math.sqrt(21))
    assert error == pytest.approx(math.sqrt(3 * np.var([1, 2, 6], ddof=1)))
    assert summed([Contributions("a", PART.ids, PART.values, more=4.0)])[1] == pytest.approx(5)


def test_effects_of_uneven_clusters_are_taken_as_they_are() -> None:
    """Their squares sum to the variance, with nothing on top for how few they are: 9 + 1 + 4."""
    part = Contributions("a", PART.ids, PART.values, effects=np.array([3.0, -1.0, 2.0]))
    values, error = summed([part])
    assert values.tolist() == [1, 2, 6]
    assert error == pytest.approx(math.sqrt(14))


def test_images_that_parts_share_are_drawn_together() -> None:
    """In another order; of two parts one has an image more: 1 + 2, 2 − 1, 6, and 5 of its own, each centred."""
    other = Contributions("a", ["y", "x", "w"], np.array([-1.0, 2.0, 5.0]))
    values, error = summed([PART, other])
    assert sorted(values.tolist()) == [1, 3, 5, 6]
    off = np.array([1 - 3 + 2 - 2, 2 - 3 - 1 - 2, 6 - 3, 5 - 2])
    assert error == pytest.approx(math.sqrt(float((off**2).sum()) * 4 / 3))
    apart = Contributions("b", other.ids, other.values, more=2.0)
    error = summed([PART, apart])[1]
    assert error == pytest.approx(math.sqrt(21 + 3 * np.var([-1, 2, 5], ddof=1) + 2))


def test_one_image_says_nothing_of_others() -> None:
    assert summed([Contributions("a", ["x"], np.array([0.5]))])[1] == 0
