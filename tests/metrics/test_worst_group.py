"""The accuracy on the worst group, and two models on theirs, against bounds done by hand."""

from __future__ import annotations

import math

import covering
import numpy as np
import pytest
from covering import GROUPS, Groups
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, norm, t

from clipbench.metrics import clustered, intervals, paired_tests
from clipbench.metrics.worst_group import _contrasts, difference, worst_group


def hits_of(*groups: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Hits [1, n] and groups, each of so many right of so many."""
    hits = np.concatenate([np.arange(n) < right for right, n in groups]).astype(np.float64)
    return hits[None], np.repeat(np.arange(len(groups)), [n for _, n in groups])


@pytest.mark.parametrize(("right", "n"), [(0, 10), (1, 10), (8, 10), (10, 10), (60, 200)])
@pytest.mark.parametrize("tail", [0.025, 0.001])
def test_exact_bounds_are_clopper_and_pearsons(right: int, n: int, tail: float) -> None:
    expected = binomtest(right, n).proportion_ci(1 - 2 * tail, method="exact")
    assert intervals.exact(right, n, tail) == pytest.approx((expected.low, expected.high))


def test_one_group_has_the_exact_interval() -> None:
    score, (own,) = worst_group(*hits_of((8, 10)), None, 0.1)
    assert (score.value, score.n, score.chance) == (0.8, 10, 0.1)
    assert score.ci95 == own.ci95 == pytest.approx((0.4439, 0.9748), abs=1e-4)


def test_bounds_from_above_hold_together_for_the_groups_that_may_be_the_worst() -> None:
    score, every = worst_group(*hits_of((12, 40), (14, 40), (398, 400)), None, None)
    assert (score.value, score.n, len(every)) == (0.3, 40, 3)
    low = beta.ppf(0.025, 12, 29)
    high = beta.ppf(1 - 0.025 / 2, 13, 28)  # two of the three
    assert score.ci95 == pytest.approx((low, high))


def test_a_small_group_that_may_be_the_worst_reaches_down() -> None:
    score, every = worst_group(*hits_of((3, 3), (70, 100)), None, None)
    assert (score.value, score.n) == (0.7, 100)
    assert (
        score.ci95[0]
        == pytest.approx(beta.ppf(0.025, 3, 1))
        == every[0].ci95[0]
        == pytest.approx(0.292, abs=1e-3)
    )


def test_of_tied_groups_the_first_is_named() -> None:
    assert worst_group(*hits_of((5, 10), (10, 20)), None, None)[0].n == 10


def test_clusters_count_as_much_as_they_differ() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(12), 10)
    group = (np.arange(120) % 3 == 0).astype(np.int64)  # each group is in all clusters
    hits = (rng.random(120) < rng.random(12)[cluster]).astype(np.float64)
    score, every = worst_group(hits[None], group, cluster, None)
    for g, one in enumerate(every):
        own = clustered.spread(hits[group == g], cluster[group == g])
        size = (
            own.value
            * (1 - own.value)
            / own.error**2
            * (norm.isf(0.025) / t.isf(0.025, own.clusters - 1)) ** 2
        )
        right = size * own.value
        assert one.ci95 == pytest.approx(
            (beta.ppf(0.025, right, size - right + 1), beta.ppf(0.975, right + 1, size - right))
        )
    assert score.ci95[0] == min(one.ci95[0] for one in every)
    alone = worst_group(hits[None], group, None, None)[0]
    assert score.ci95[1] - score.ci95[0] > 1.3 * (alone.ci95[1] - alone.ci95[0])


def test_clusters_that_agree_count_as_one_sample_each() -> None:
    hits, group = hits_of((40, 40))
    score = worst_group(hits, group, np.repeat(np.arange(4), 10), None)[0]
    assert score.ci95 == intervals.exact(4, 4)


def test_draws_widen_what_samples_say() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 200)
    hits = (rng.random((5, 400)) < np.array([0.2, 0.6, 0.5, 0.4, 0.8])[:, None]).astype(np.float64)
    score, every = worst_group(hits, group, None, None)
    mean = hits[:, group == 0].mean()
    assert every[0].value == pytest.approx(mean)
    half, freedom = intervals.of_draws(
        hits[:, group == 0].mean(axis=1).tolist(),
        hits[:, group == 0].mean(axis=0).std() / math.sqrt(199),
        200,
    )
    size = mean * (1 - mean) * (norm.isf(0.025) / half) ** 2  # whose normal half width is that of the draws
    assert freedom < 5
    assert every[0].ci95 == pytest.approx(intervals.exact(size * mean, size))
    assert score.ci95[1] - score.ci95[0] > 0.4


@pytest.mark.parametrize("clusters", [False, True])
def test_draws_of_few_samples_have_the_degrees_of_freedom_of_both(clusters: bool) -> None:
    hits = np.array([[1.0, 0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0, 1, 0]])
    cluster = np.repeat(np.arange(4), 2)
    mean, draws = hits.mean(axis=0), hits.mean(axis=1)
    square = mean.var(ddof=1) / 8
    if clusters:
        sums = np.bincount(cluster, mean - mean.mean())
        square = (sums**2).sum() / 64 / (1 - 1 / 4)
    between = draws.var(ddof=1) / 3
    freedom = (between + square) ** 2 / (between**2 / 2 + square**2 / (3 if clusters else 7))
    half = t.isf(0.025, freedom) * math.sqrt(between + square)
    value = mean.mean()
    size = min(value * (1 - value) * (t.isf(0.025, freedom) / half) ** 2, 8.0)
    size *= (norm.isf(0.025) / t.isf(0.025, freedom)) ** 2
    score, _ = worst_group(hits, np.zeros(8, dtype=np.int64), cluster if clusters else None, None)
    assert score.ci95 == pytest.approx(intervals.exact(size * value, size))


# -------------------------------------------------------------------- coverage


@pytest.mark.parametrize("clusters", ["none", "nested", "crossing"])
@pytest.mark.parametrize("name", GROUPS)
def test_the_lowest_accuracy_is_covered(name: str, clusters: str) -> None:
    (groups,) = (of for of in GROUPS[name] if of.clusters == clusters)
    trials = 100 if clusters != "none" and len(groups.sizes) == 20 else 500  # make coverage tries more
    covered, width = covering.lowest_accuracy_and_width(groups, trials, seed=1)
    assert covered >= 0.92
    assert width < 1.6  # of the interval of who knows the worst group


def test_the_basic_bootstrap_of_the_minimum_is_not_enough() -> None:
    for name in ("5 groups, the worst of 40", "20 tied groups of 40"):
        plain, nested, _ = GROUPS[name]
        assert covering.lowest_accuracy(plain, 150, 1, basic=True) < 0.85
        assert covering.lowest_accuracy(nested, 150, 1, basic=True) < 0.85


# ------------------------------------------------------------------ two models


def test_of_one_group_the_interval_is_bonett_and_prices() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.random((1, 80)) < share for share in (0.8, 0.6))
    first, second = one.astype(np.float64), other.astype(np.float64)
    found = difference(first, second, np.zeros(80, np.int64), None, same=False)
    up, down = int((other & ~one).sum()), int((one & ~other).sum())
    assert found.value == pytest.approx((up - down) / 80)
    assert found.ci95 == pytest.approx(paired_tests._bonett_price(up, down, 80))
    rate = (up + 1 - down - 1) / 82
    error = math.sqrt(((up + down + 2) / 82 - rate**2) / 82)
    assert found.p_less == pytest.approx(norm.cdf(rate / error))
    assert found.p == pytest.approx(2 * found.p_less)
    assert (found.n, found.method) == (80, "worst groups, all pairs")


@pytest.mark.parametrize("clusters", [False, True])
def test_contrasts_are_those_of_a_table_written_out(clusters: bool) -> None:
    rng = np.random.default_rng(1)
    group = rng.integers(0, 3, 90)
    cluster = np.repeat(np.arange(15), 6) if clusters else None
    first, second = (rng.random((1, 90)) < share for share in (0.5, 0.7))
    off, error, freedom = _contrasts(first.astype(float), second.astype(float), group, cluster, same=False)
    for g in range(3):
        for h in range(3):
            pulls: dict[tuple[str, int, int], float] = {}
            means = []
            for hits, of, extra, side in ((second, g, 1.0, 1), (first, h, 0.0, -1)):
                own = np.flatnonzero(group == of)
                total = own.size + 2
                mean = (hits[0, own].sum() + 1) / total
                means.append(side * mean)
                for row in own.tolist():
                    key = ("cluster", int(cluster[row]), 0) if cluster is not None else ("sample", row, 0)
                    pulls[key] = pulls.get(key, 0.0) + side * (float(hits[0, row]) - mean) / total
                for key, value in ((("extra", of, 0), extra), (("extra", of, 1), 1 - extra)):
                    pulls[key] = pulls.get(key, 0.0) + side * (value - mean) / total
            square = sum(pull**2 for pull in pulls.values())
            if cluster is not None:
                held = min(intervals.alike(np.bincount(cluster[group == one])) for one in (g, h))
                square *= held / (held - 1)
                assert freedom[g, h] == pytest.approx(held - 1)
            assert off[g, h] == pytest.approx(sum(means))
            assert error[g, h] == pytest.approx(math.sqrt(square))
            if cluster is None and g != h:  # Agresti and Caffo's
                shares = [abs(mean) for mean in means]
                sizes = [int((group == one).sum()) + 2 for one in (g, h)]
                assert error[g, h] ** 2 == pytest.approx(
                    sum(p * (1 - p) / n for p, n in zip(shares, sizes, strict=True))
                )


def test_draws_that_differ_make_a_difference_less_certain() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(200) % 2
    shared = np.linspace(-0.3, 0.3, 5)[:, None]
    first, second = ((rng.random((5, 200)) < share + shared).astype(np.float64) for share in (0.5, 0.6))
    same, other = (difference(first, second, group, None, same=same) for same in (True, False))
    assert other.ci95[1] - other.ci95[0] > same.ci95[1] - same.ci95[0]
    _, error, freedom = _contrasts(first, second, group, None, same=True)
    assert (freedom == 4).all()
    each = np.array(
        [[s[group == 1].mean() - f[group == 0].mean()] for f, s in zip(first, second, strict=True)]
    )
    none = _contrasts(first.mean(axis=0)[None], second.mean(axis=0)[None], group, None, same=True)[1]
    assert error[1, 0] ** 2 == pytest.approx(none[1, 0] ** 2 + each.var(ddof=1) / 5)


def test_the_order_of_two_models_turns_everything_round() -> None:
    rng = np.random.default_rng(2)
    group, cluster = rng.integers(0, 4, 200), rng.integers(0, 30, 200)
    one, other = ((rng.random((1, 200)) < share).astype(np.float64) for share in (0.5, 0.7))
    there = difference(one, other, group, cluster, same=False)
    back = difference(other, one, group, cluster, same=False)
    assert there.value == -back.value
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    assert (there.p, there.p_less, there.p_more) == pytest.approx((back.p, back.p_more, back.p_less))
    assert (there.n, there.method) == (30, "worst groups, all pairs, of clusters")
    same = difference(one, one, group, cluster, same=False)
    assert (same.value, same.p) == (0.0, 1.0)


_OTHER_ORDER = Groups((0.85, 0.85, 0.6), (60, 60, 60))
_TIED = Groups((0.6,) * 3, (60, 60, 60))
_CLEAR = Groups((0.6, 0.85, 0.85), (60, 60, 60))


@pytest.mark.parametrize("second", [_CLEAR, _TIED, _OTHER_ORDER], ids=["same", "tied", "another"])
@pytest.mark.parametrize("first", [_CLEAR, _TIED], ids=["clear", "tied"])
def test_equal_models_are_told_apart_at_most_alpha(first: Groups, second: Groups) -> None:
    covered, told = covering.lowest_accuracies_of_two(first, second, trials=500, seed=1)
    assert covered >= 0.92
    assert told <= 0.07  # alpha, give or take what 500 trials show


def test_a_model_that_is_worse_on_its_worst_group_is_told() -> None:
    worse = Groups((0.4, 0.85, 0.85), (60, 60, 60))
    covered, told = covering.lowest_accuracies_of_two(_CLEAR, worse, trials=300, seed=1)
    assert covered >= 0.92
    assert told > 0.4
