"""Top means and skew of groups against brute force, with repeated images and with ties."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from clipbench.metrics.group_ranking import Rankings, membership


def repeated(values: NDArray[np.float64], counts: NDArray[np.int64]) -> list[tuple[float, int]]:
    """(similarity, group) of every image as often as it counts."""
    return [
        (float(value), group)
        for group, own in enumerate(counts)
        for value, count in zip(values, own, strict=True)
        for _ in range(count)
    ]


def brute_skew(values: NDArray[np.float64], counts: NDArray[np.int64], k: int) -> float:
    """MaxSkew@k without ties."""
    every = repeated(values, counts)
    best = [group for _, group in sorted(every, key=lambda found: -found[0])[:k]]
    skews = []
    for group in range(len(counts)):
        share, wanted = best.count(group) / k, sum(g == group for _, g in every) / len(every)
        skews.append(math.log(share / wanted) if share else -math.inf)
    return max(skews)


@pytest.mark.parametrize("seed", range(10))
def test_as_brute_force_does_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, queries, k = 40, 5, int(rng.integers(1, 9))
    similarities = rng.standard_normal((n, queries))
    counts = membership(rng.permutation(np.arange(n) % 3), 3) * rng.integers(1, 4, n)
    counts[:, rng.integers(n, size=3)] = 0
    ranked = Rankings(similarities)
    top, skew = ranked.top_means(k, counts), ranked.max_skew(k, counts)
    assert top.shape == (queries, 3)
    for q in range(queries):
        every = repeated(similarities[:, q], counts)
        for group in range(3):
            own = sorted((value for value, g in every if g == group), reverse=True)
            assert top[q, group] == pytest.approx(np.mean(own[:k]), abs=1e-12)
        # An image that counts twice ties with itself, for one group: who comes first changes nothing.
        assert skew[q] == pytest.approx(brute_skew(similarities[:, q], counts, k), abs=1e-12)


def test_images_that_do_not_count_are_passed_over() -> None:
    """The 30 most similar images count for nobody: the best two are of group 0."""
    counts = membership(np.repeat([0, 0, 1], [30, 2, 8]), 2)
    counts[:, :30] = 0
    ranked = Rankings(np.arange(40.0)[::-1, None])
    assert ranked.max_skew(2, counts) == pytest.approx([math.log(5)])
    assert ranked.top_means(2, counts).tolist() == [[8.5, 6.5]]
    counts[:, 35:] = 0
    assert ranked.max_skew(5, counts).tolist() == [0]  # all that count are the best


def test_ties_are_shared_as_all_orders_would_on_average() -> None:
    values = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    groups = np.array([0, 0, 1, 1, 1, 0])
    shares = []
    for order in permutations(range(1, 5)):
        best = [0, *order][:3]
        shares.append([np.mean(groups[best] == g) for g in (0, 1)])
    expected = np.log(np.mean(shares, axis=0) / [0.5, 0.5]).max()
    found = Rankings(values[:, None]).max_skew(3, membership(groups, 2))
    assert found == pytest.approx([expected])


@pytest.mark.parametrize("k", [1, 7, 30])
def test_a_constant_model_has_no_gap_and_no_skew(k: int) -> None:
    counts = membership((np.arange(90) < 30).astype(np.int64), 2)
    ranked = Rankings(np.full((90, 2), 0.25))
    assert ranked.max_skew(k, counts) == pytest.approx([0, 0], abs=1e-12)
    assert ranked.top_means(k, counts) == pytest.approx(np.full((2, 2), 0.25))


def test_skew_is_largest_where_the_best_are_of_one_group() -> None:
    counts = membership(np.repeat([0, 1], [10, 30]), 2)
    ranked = Rankings(np.arange(40.0)[::-1, None])
    assert ranked.max_skew(10, counts) == pytest.approx([math.log(4)])
    assert ranked.max_skew(40, counts) == pytest.approx([0])
