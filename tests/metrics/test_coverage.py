"""Intervals hold what they are about as often as they say, in simulations whose truth is known."""

from __future__ import annotations

import covering
import pytest
from covering import EASY, FEW_CLASSES, HARD, RARE, Clusters, Sets

from clipbench.metrics.average_precision import APKind


@pytest.mark.parametrize("sets", [FEW_CLASSES, EASY, HARD, RARE], ids=["few", "easy", "hard", "rare"])
def test_intervals_of_average_precision_cover_that_of_all_images(sets: Sets) -> None:
    assert covering.average_precision(sets, "area", trials=500, seed=1, count=60) >= 0.92


@pytest.mark.parametrize("kind", ["11pt", "envelope"])
def test_intervals_of_interpolated_precision_cover_what_they_are_about(kind: APKind) -> None:
    assert covering.average_precision(FEW_CLASSES, kind, trials=500, seed=1, count=60) >= 0.92


def test_a_difference_of_average_precisions_is_covered_and_equal_models_are_told_apart_at_most_alpha() -> (
    None
):
    covered, told = covering.paired_average_precision(FEW_CLASSES, 0.5, trials=800, seed=1)
    assert covered >= 0.92
    assert told > 0.5
    covered, told = covering.paired_average_precision(FEW_CLASSES, 0.0, trials=500, seed=2)
    assert covered >= 0.92
    assert 0.01 <= told <= 0.07  # alpha, give or take what 500 trials show


def test_a_mean_over_tasks_that_share_images_is_covered() -> None:
    assert 0.92 <= covering.suite_mean(5, trials=1_000, seed=1) <= 0.98  # as if independent: about 0.65


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("count", [20, 50])
def test_accuracy_over_clusters_is_covered(count: int, share: float) -> None:
    clusters = Clusters(count)
    assert covering.clustered_accuracy(clusters, share, trials=1_500, seed=1) >= 0.92
    assert covering.clustered_accuracy(clusters, share, trials=300, seed=1, samples_alone=True) < 0.6


@pytest.mark.parametrize(("count", "share"), [(20, 0.6), (20, 0.9), (50, 0.9)])
@pytest.mark.parametrize("of_one_class", [False, True], ids=["of several classes", "of one class each"])
def test_mean_recall_over_clusters_is_covered(count: int, share: float, of_one_class: bool) -> None:
    clusters = Clusters(count)
    assert covering.clustered_recall(clusters, share, trials=800, seed=1, of_one_class=of_one_class) >= 0.92


@pytest.mark.parametrize("power", [1.0, 1.5], ids=["calibrated", "too confident"])
def test_calibration_over_clusters_is_covered(power: float) -> None:
    assert covering.clustered_ece(Clusters(20), power, trials=500, seed=1, count=100) >= 0.92


@pytest.mark.parametrize(("count", "sets"), [(20, FEW_CLASSES), (20, EASY), (50, FEW_CLASSES), (20, RARE)])
def test_average_precision_over_clusters_is_covered(count: int, sets: Sets) -> None:
    assert covering.clustered_precision(Clusters(count), sets, trials=500, seed=1) >= 0.92


def test_differences_of_average_precisions_over_clusters_are_covered() -> None:
    covered, told = covering.clustered_precision_of_two(Clusters(20), FEW_CLASSES, trials=500, seed=1)
    assert covered >= 0.92
    assert told <= 0.08


@pytest.mark.parametrize("draws", [3, 5])
def test_few_shot_intervals_say_which_shots_were_drawn_too(draws: int) -> None:
    assert covering.few_shots(draws, trials=1_000, seed=1) >= 0.92
    assert covering.few_shots(draws, trials=1_000, seed=1, images_alone=True) < 0.9


@pytest.mark.parametrize("same", [True, False], ids=["the same shots", "other shots"])
def test_differences_of_few_shot_probes_are_covered(same: bool) -> None:
    covered, told = covering.few_shots_of_two(5, trials=1_000, seed=1, same=same)
    assert covered >= 0.92
    assert told <= 0.08
