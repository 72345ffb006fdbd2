"""Intervals: formulas, determinism, coverage by simulation, and agreement with the plain metrics."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, t

from clipbench.errors import DataError
from clipbench.metrics import average_precision, classification, intervals
from clipbench.metrics.average_precision import DIFFICULT, APKind, Difficult
from clipbench.metrics.average_precision_intervals import (
    APDraws,
    mean_average_precision_draws,
    mean_average_precision_scores,
)
from clipbench.metrics.intervals import Score


def _multilabel(n: int, classes: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < rng.uniform(0.02, 0.3, classes)).astype(np.uint8)
    scores = (rng.normal(size=labels.shape) + 1.5 * labels).astype(np.float32)
    labels[rng.random(labels.shape) < 0.02] = DIFFICULT
    return scores, labels


# ---------------------------------------------------------------- proportions


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (9_512, 10_000), (1, 1)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    theirs = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9, 360, 49_999])  # of 2 and 9, ends round to beyond 0 and 1
def test_wilson_holds_the_proportion_and_stays_within_0_and_1(n: int) -> None:
    for k in {0, 1, n // 2, n - 1, n}:
        low, high = intervals.wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1


def test_wilson_refuses_impossible_counts() -> None:
    for k, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="trials"):
            intervals.wilson(k, n)


def test_accuracy_score() -> None:
    score = intervals.accuracy_score(np.array([True] * 80 + [False] * 20), chance=0.1)
    assert score == Score(0.8, intervals.wilson(80, 100), 100, 0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Score(bad, (0.0, 1.0), 3, None)
    with pytest.raises(ValueError, match="finite"):
        Score(0.5, (0.0, bad), 3, None)
    with pytest.raises(ValueError, match="finite"):
        Score(0.5, (-bad, 1.0), 3, None)
    with pytest.raises(ValueError, match="finite"):
        Score(0.5, (0.0, 1.0), 3, bad)
    with pytest.raises(ValueError, match="ordered"):
        Score(0.5, (1.0, 0.0), 3, None)
    with pytest.raises(ValueError, match="one sample"):
        Score(0.5, (0.0, 1.0), 0, None)


def test_hits_in_groups_count_as_many_samples_as_their_sums_show() -> None:
    hits, group = np.array([1.0, 1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 1, 1, 2])
    # About the mean of 0.6 the groups' sums are 0.8, -1.2 and 0.4: their squares 2.24, × 3/2 / 5² = 0.1344.
    effective = 0.6 * 0.4 / 0.1344
    score = intervals.grouped_share_score(hits, group, chance=0.2)
    assert (score.value, score.n, score.chance) == (0.6, 5, 0.2)
    assert score.ci95 == pytest.approx(intervals.wilson(0.6 * effective, effective))
    # All groups alike: each counts as one.
    alike = intervals.grouped_share_score(np.array([1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 1, 1]), chance=0.2)
    assert (alike.value, alike.ci95) == (0.5, intervals.wilson(1, 2))


def test_two_runs_say_how_far_others_may_be() -> None:
    mean, (low, high) = intervals.of_seeds([1.0, 3.0])
    assert (mean, low, high) == pytest.approx((2, 2 - t.ppf(0.975, 1), 2 + t.ppf(0.975, 1)))
    with pytest.raises(ValueError, match="two runs"):
        intervals.of_seeds([1.0])


def test_draws_and_images_are_uncertain_together() -> None:
    # 0.4 and 0.6: variance 0.02, of their mean 0.01; of the images another 0.01.
    # Degrees of freedom: 0.02² / (0.01² / 1 + 0.01² / 4).
    half, freedom = intervals.of_draws([0.4, 0.6], error=0.1, n=5)
    assert freedom == pytest.approx(3.2)
    assert half == pytest.approx(t.ppf(0.975, 3.2) * math.sqrt(0.02))
    half, freedom = intervals.of_draws([0.5], error=0.1, n=5)  # of one draw, the images alone
    assert freedom == pytest.approx(4)
    assert half == pytest.approx(t.ppf(0.975, 4) * 0.1)
    assert intervals.of_draws([0.5, 0.5], error=0.0, n=5) == (0.0, math.inf)


# ------------------------------------------------------------------ bootstrap


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(200)
    target, prediction = rng.integers(5, size=200), rng.integers(5, size=200)
    scores, labels = _multilabel(200, 4, 0)

    def several(seed: int) -> list[tuple[float, float]]:
        maps = mean_average_precision_scores(scores, labels, seed)
        return [
            intervals.bootstrap_mean(values, seed),
            intervals.mean_per_class_recall_score(target, prediction, 5, seed).ci95,
            maps["map_area"].ci95,
            maps["map_11pt"].ci95,
            intervals.ece_score(values, target == prediction, seed).ci95,
        ]

    assert several(3) == several(3)
    assert all(a != b for a, b in zip(several(3), several(4), strict=True))


def test_bootstrap_mean_has_the_width_of_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(size=2_000)
    low, high = intervals.bootstrap_mean(values, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(2_000), rel=0.1)
    assert low < values.mean() < high


# ------------------------------------------------------- mean per-class recall


def _recall_coverage(sizes: list[int], trials: int) -> float:
    rng = np.random.default_rng(7)
    counts = np.array(sizes)
    truth = rng.uniform(0.4, 0.95, counts.size)
    target = np.repeat(np.arange(counts.size), counts)
    covered = 0
    for trial in range(trials):
        right = rng.random(target.size) < truth[target]
        prediction = np.where(right, target, (target + 1) % counts.size)
        low, high = intervals.mean_per_class_recall_score(target, prediction, counts.size, seed=trial).ci95
        covered += low <= truth.mean() <= high
    return covered / trials


@pytest.mark.parametrize(
    "sizes",
    [[30] * 10, [5, 200, 60, 17, 90], [2] * 40, [1] * 60, [1] + [8] * 12],
    ids=["balanced", "uneven", "pairs", "singles", "one-single"],
)
def test_recall_intervals_cover_the_truth(sizes: list[int]) -> None:
    assert 0.90 <= _recall_coverage(sizes, trials=200) <= 1.0


def test_recall_score_is_the_metric_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(2)
    target = rng.integers(8, size=300)
    prediction = np.where(rng.random(300) < 0.7, target, rng.integers(8, size=300))
    score = intervals.mean_per_class_recall_score(target, prediction, 9, seed=0)
    assert score.value == pytest.approx(classification.mean_per_class_recall(target, prediction, 9))
    assert score.ci95[0] < score.value < score.ci95[1]
    assert score.n == 300
    assert score.chance == pytest.approx(1 / 9)


def test_an_interval_never_shrinks_to_nothing() -> None:
    target = np.repeat(np.arange(4), 10)
    perfect = intervals.mean_per_class_recall_score(target, target, 4, seed=0)
    assert perfect.ci95 == pytest.approx(intervals.wilson(40, 40))
    one = np.array([0])
    assert intervals.mean_per_class_recall_score(one, one, 3, seed=0).ci95 == intervals.wilson(1, 1)
    # one class all right, one all wrong: no resample within a class differs
    split = intervals.mean_per_class_recall_score(
        np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64), 2, seed=0
    )
    assert split.ci95 == pytest.approx(intervals.wilson(2, 4))


def test_no_samples_are_refused() -> None:
    none = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="no samples"):
        intervals.mean_per_class_recall_score(none, none, 3, seed=0)


# ------------------------------------------------------ mean average precision


@pytest.mark.parametrize("difficult", ["ignore", "positive", "negative"])
def test_map_scores_are_the_metrics_values(difficult: Difficult) -> None:
    scores, labels = _multilabel(150, 6, 1)
    scores = np.round(scores, 1)  # ties
    found = mean_average_precision_scores(scores, labels, seed=0, difficult=difficult)
    kinds: tuple[APKind, ...] = ("area", "11pt")
    for kind in kinds:
        score = found[f"map_{kind}"]
        assert score.value == pytest.approx(
            average_precision.mean_average_precision(scores, labels, kind, difficult)
        )
        assert score.ci95[0] < score.value < score.ci95[1]
        assert score.n == 150


def test_map_draws_equal_recomputing_the_metric_on_resampled_rows() -> None:
    scores, labels = _multilabel(60, 3, 2)
    found = mean_average_precision_draws(scores, labels, 5, "ignore", ["11pt"], count=50)["11pt"]
    plain = intervals.bootstrap(
        60,
        lambda drawn: average_precision.mean_average_precision(scores[drawn], labels[drawn], "11pt"),
        seed=5,
        count=50,
    )
    assert found.draws == pytest.approx(plain)
    assert (found.centre, found.about) == (found.value, found.value)
    # The spread of the draws is short by 1 / P, P being the harmonic mean of the classes' positives.
    share = np.mean(1 / (labels == 1).sum(axis=0))
    assert found.error == pytest.approx(math.sqrt(np.mean((plain - found.value) ** 2) / (1 - share)))


@pytest.mark.parametrize(("positives", "scale"), [(3, 3 / 2), (2, 2), (1.5, 2), (1, 2)])
def test_few_positives_widen_the_error_of_map_up_to_twice(positives: float, scale: float) -> None:
    draws = APDraws(0.9, 0.5, np.array([0.4, 0.6, np.nan]), population=True, positives=positives)
    assert draws.error == pytest.approx(0.1 * math.sqrt(scale))
    assert draws.centre == pytest.approx(0.5)


def test_map_intervals_are_centred_below_the_value_and_hold_it() -> None:
    scores, labels = _multilabel(100, 20, 3)
    found = mean_average_precision_draws(scores, labels, 0, "ignore", ["area"])["area"]
    assert found.value > found.about > found.centre
    low, high = mean_average_precision_scores(scores, labels, 0)["map_area"].ci95
    assert low < found.centre < found.value < high
    assert (low + high) / 2 < found.value


def test_the_interval_of_a_perfect_ranking_is_wilsons_of_the_images_that_show_something() -> None:
    labels = np.zeros((50, 2), dtype=np.uint8)
    labels[:10, 0] = labels[5:20, 1] = 1
    for score in mean_average_precision_scores(labels.astype(float), labels, seed=0).values():
        assert (score.value, score.ci95) == (1.0, intervals.wilson(20, 20))


def test_map_chance_is_what_equal_scores_get() -> None:
    _, labels = _multilabel(120, 5, 3)
    found = mean_average_precision_scores(np.zeros(labels.shape), labels, seed=0)
    for score in found.values():
        assert score.value == pytest.approx(score.chance)


def test_a_rare_class_may_drop_out_of_a_resample() -> None:
    labels = np.zeros((20, 2), dtype=np.uint8)
    labels[0, 0] = labels[:10, 1] = 1
    scores = np.random.default_rng(4).random((20, 2))
    for score in mean_average_precision_scores(scores, labels, seed=0).values():
        assert all(math.isfinite(end) for end in score.ci95)


def test_no_positive_at_all_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="--limit"):
        mean_average_precision_scores(np.zeros((4, 2)), np.zeros((4, 2), dtype=np.uint8), seed=0)


def test_map_intervals_of_voc07_size_take_seconds() -> None:
    scores, labels = _multilabel(4_952, 20, 5)
    start = time.process_time()
    mean_average_precision_scores(scores, labels, seed=0)
    assert time.process_time() - start < 5


# ------------------------------------------------------------------ calibration


def _calibration_coverage(power: float, n: int, trials: int) -> float:
    """Share of intervals that hold the true error, where the truth is confidence ** power."""
    rng = np.random.default_rng(8)
    population = rng.beta(5, 2, 200_000)
    place = classification.confidence_bin(population, 15)
    gaps = np.bincount(place, weights=population - population**power)
    truth = float(np.abs(gaps).sum() / population.size)
    covered = 0
    for trial in range(trials):
        confidence = rng.beta(5, 2, n)
        correct = rng.random(n) < confidence**power
        low, high = intervals.ece_score(confidence, correct, seed=trial).ci95
        covered += low <= truth <= high
    return covered / trials


def test_ece_intervals_cover_the_truth_of_a_miscalibrated_model() -> None:
    assert _calibration_coverage(1.5, 2_000, trials=60) >= 0.87


def test_ece_intervals_of_a_nearly_calibrated_model_are_not_shut_out_by_bias() -> None:
    # Plain percentiles cover about a quarter here.
    assert _calibration_coverage(1.1, 2_000, trials=60) >= 0.70


def test_ece_score_is_the_metric_without_a_chance_level() -> None:
    rng = np.random.default_rng(9)
    confidence, correct = rng.random(400), rng.random(400) < 0.5
    score = intervals.ece_score(confidence, correct, seed=0)
    assert (score.value, score.n, score.chance) == (classification.ece(confidence, correct), 400, None)
    assert 0 <= score.ci95[0] <= score.value <= score.ci95[1]


def test_clusters_are_resampled_whole() -> None:
    rng = np.random.default_rng(0)
    values, cluster = rng.random(60), rng.integers(0, 12, 60)
    score = intervals.clustered_mean_score(values, cluster * 7, 0.5, seed=3)
    groups = [values[cluster == c] for c in np.unique(cluster)]
    draws = [
        np.concatenate([groups[g] for g in drawn]).mean()
        for drawn in intervals.resamples(len(groups), seed=3)
    ]
    assert score.value == pytest.approx(values.mean())
    assert score.ci95 == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))))
    assert (score.n, score.chance) == (60, 0.5)


def test_clusters_that_all_agree_leave_wilsons_interval_of_their_count() -> None:
    score = intervals.clustered_mean_score(np.ones(50), np.repeat(np.arange(5), 10), None, seed=0)
    assert score.ci95 == intervals.wilson(5, 5)


def test_small_classes_vary_as_much_as_their_samples_say() -> None:
    """Two classes of three samples, two right in each: Σ p(1 − p)/(n − 1) / C² = 2 · (2/9)/2 / 4."""
    rng = np.random.default_rng(0)
    hits, counts = np.array([2, 2]), np.array([3, 3])
    draws = np.concatenate([intervals._stratified_deviations(hits, counts, 2 / 3, rng) for _ in range(20)])
    assert draws.mean() == pytest.approx(0, abs=0.01)
    assert draws.var() == pytest.approx(1 / 18, rel=0.03)
