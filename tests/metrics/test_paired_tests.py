"""Paired tests: equal to an exact enumeration where samples are few, and right as often as they say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from clipbench.metrics import average_precision, paired_tests
from clipbench.metrics.average_precision_intervals import mean_average_precision_scores
from clipbench.metrics.intervals import Score
from clipbench.metrics.joint import Contributions

Doubles = NDArray[np.float64]


def _enumerated(first: Doubles, second: Doubles) -> tuple[float, float]:
    """Every way of swapping the two models on each sample: shares with a mean difference at most / at least ours."""
    ours = (second - first).mean()
    means = []
    for swapped in itertools.product((False, True), repeat=len(first)):
        one, other = np.where(swapped, second, first), np.where(swapped, first, second)
        means.append((other - one).mean())
    found = np.array(means)
    return float((found <= ours + 1e-12).mean()), float((found >= ours - 1e-12).mean())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["right or wrong", "thirds", "any"])
def test_the_paired_test_equals_an_exact_enumeration(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 11))
    draws = rng.random((2, n))
    steps = {"right or wrong": 1, "thirds": 3, "any": 0}[kind]
    first, second = np.floor(draws * (steps + 1)) / steps if steps else draws
    found = paired_tests.of_means(first, second, seed=0)
    less, more = _enumerated(first, second)
    assert (found.p_less, found.p_more) == pytest.approx((less, more), abs=1e-12)
    assert found.p == pytest.approx(min(1, 2 * min(less, more)), abs=1e-12)
    assert found.value == pytest.approx((second - first).mean())
    assert found.ci95[0] <= found.value <= found.ci95[1]


@pytest.mark.parametrize(("b", "c"), [(0, 5), (3, 9), (40, 25), (1, 0), (7, 7), (400, 300)])
def test_accuracy_is_mcnemars_exact_test(b: int, c: int) -> None:
    first = np.repeat([1.0, 0.0, 1.0, 0.0], [b, c, 50, 10])
    second = np.repeat([0.0, 1.0, 1.0, 0.0], [b, c, 50, 10])
    found = paired_tests.of_means(first, second, seed=0)
    assert found.method == "McNemar, exact"
    assert found.p == pytest.approx(binomtest(c, b + c).pvalue, rel=1e-9)
    assert found.p_less == pytest.approx(binomtest(c, b + c, alternative="less").pvalue, rel=1e-9)


def test_random_signs_come_near_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    d = rng.normal(0.2, 1, 12)
    exact = paired_tests.sign_flip(d, 0)[:2]
    monkeypatch.setattr(paired_tests, "EXACT", 0)
    drawn = paired_tests.sign_flip(d, 0)
    assert drawn[2] == "20,000 random signs"
    assert drawn[:2] == pytest.approx(exact, abs=0.01)
    assert paired_tests.sign_flip(d, 0) == drawn
    thirds = np.repeat(np.array([1, -1, 2, -2, 3]) / 3, [40, 25, 30, 28, 6])  # few sizes: binomials
    below, above, _ = paired_tests.sign_flip(thirds, 0)
    z = thirds.sum() / np.sqrt((thirds**2).sum())
    assert (below, above) == pytest.approx((norm.cdf(z), norm.sf(z)), abs=0.02)


@pytest.mark.parametrize("repeat", [1, 40], ids=["a bit a sample", "a binomial a size"])
@pytest.mark.parametrize("at_once", [1, 7, 499, 1_000])
def test_as_many_signs_are_drawn_as_p_counts(
    repeat: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signs give more than a gain on every sample: p of that or less is 1, however few are drawn at a time."""
    d = np.repeat(np.arange(1.0, 21.0) / 64, repeat)
    monkeypatch.setattr(paired_tests, "FLIPS", 499)
    monkeypatch.setattr(paired_tests, "_BLOCK", at_once * 20)
    assert paired_tests.sign_flip(d, 0) == (1.0, 1 / 500, "499 random signs")
    assert paired_tests.sign_flip(-d, 0) == (1 / 500, 1.0, "499 random signs")


def test_equal_models_do_not_differ() -> None:
    same = np.array([1.0, 0.0, 1.0])
    found = paired_tests.of_means(same, same, seed=0)
    assert (found.value, found.p, found.p_less, found.p_more) == (0, 1, 1, 1)
    assert found.ci95[0] < 0 < found.ci95[1]


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 4, 50), (0, 3, 20), (0, 0, 7)])
def test_the_interval_of_accuracy_is_that_with_one_more_gained_and_one_more_lost(
    gained: int, lost: int, n: int
) -> None:
    """Bonett & Price 2012: the usual interval of a mean of differences, of samples with one more of either kind."""
    first, second = np.repeat([[0, 1, 1], [1, 0, 1]], [gained, lost, n - gained - lost], axis=1).astype(float)
    more = np.concatenate([second - first, [1.0, -1.0]])
    half = norm.ppf(0.975) * more.std() / np.sqrt(n + 2)
    expected = more.mean() - half, more.mean() + half
    assert paired_tests.of_means(first, second, seed=0).ci95 == pytest.approx(expected)


def test_the_interval_of_accuracy_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered, rounds, gained = 0, 1_000, 0.15
    for _ in range(rounds):
        first = rng.random(80) < 0.7
        second = first | (rng.random(80) < gained)
        low, high = paired_tests.of_means(first.astype(float), second.astype(float), seed=0).ci95
        covered += low <= 0.3 * gained <= high
    assert 0.93 <= covered / rounds <= 0.99


def _multilabel(
    n: int, lift: float, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < 0.3).astype(np.uint8)
    base = rng.normal(size=labels.shape) + labels
    return labels, base.astype(np.float32), (base + lift * labels).astype(np.float32)


def test_average_precision_is_told_apart_by_the_same_resamples() -> None:
    labels, first, second = _multilabel(200, 0.8, 0)
    found = paired_tests.of_average_precision(first, second, labels, "area", "ignore", seed=0)
    ours = [average_precision.mean_average_precision(s, labels, "area") for s in (first, second)]
    assert found.value == pytest.approx(ours[1] - ours[0])
    assert found.p < 0.001
    separate = [mean_average_precision_scores(s, labels, 0)["map_area"].ci95 for s in (first, second)]
    assert found.ci95[1] - found.ci95[0] < sum(high - low for low, high in separate)
    for cluster in (None, np.arange(200) // 10):
        same = paired_tests.of_average_precision(
            first, first, labels, "area", "ignore", seed=0, cluster=cluster
        )
        assert (same.value, same.p, same.ci95) == (0, 1, (0, 0))


def test_scores_alone_are_held_apart_by_their_intervals() -> None:
    near = paired_tests.of_scores(Score(0.5, (0.4, 0.6), 100, None), Score(0.55, (0.45, 0.65), 100, None))
    assert near.p > 0.4
    assert near.method == "intervals, not paired"
    exact = paired_tests.of_scores(Score(0.5, (0.5, 0.5), 1, None), Score(0.4, (0.4, 0.4), 1, None))
    assert (exact.p, exact.p_less, exact.p_more) == (0, 0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_never_above_bonferroni_nor_below_the_plain_p(seed: int) -> None:
    p = np.random.default_rng(seed).random(7) ** 3
    found = np.array(paired_tests.holm(p.tolist()))
    assert (found >= p).all()
    assert (found <= np.minimum(1, 7 * p) + 1e-12).all()
    assert (found[np.argsort(p)] == np.sort(found)).all()
    for alpha in (0.01, 0.05, 0.2):  # step down by hand
        rejected = 0
        for k, value in enumerate(np.sort(p)):
            if value >= alpha / (7 - k):
                break
            rejected += 1
        assert (found < alpha).sum() == rejected
    assert paired_tests.holm([]) == []


def test_unequal_magnitudes_are_weighted() -> None:
    first: Any = np.zeros(3)
    found = paired_tests.of_means(first, np.array([0.5, -0.25, 0.125]), seed=0)
    assert found.method == "all signs"
    assert (found.p_less, found.p_more) == (0.75, 0.375)


def test_a_mean_over_tasks_that_varies_by_more_than_its_images_is_tested_as_normal() -> None:
    # Four images that add the same, so only the shots vary: 0.4 with a standard error of √0.04.
    part = Contributions("a", list("wxyz"), np.full(4, 0.1), more=0.04)
    found = paired_tests.of_contributions([part], seed=0)
    assert found.method == "normal"
    assert found.value == pytest.approx(0.4)
    assert (found.p_less, found.p_more) == pytest.approx((norm.cdf(2), norm.cdf(-2)))
    assert found.p == pytest.approx(2 * norm.cdf(-2))
    assert found.ci95 == pytest.approx((0.4 - 0.2 * norm.ppf(0.975), 0.4 + 0.2 * norm.ppf(0.975)))
