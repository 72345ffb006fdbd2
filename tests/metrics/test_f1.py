"""Macro F1 against scikit-learn, by hand, and its interval against simulated truths."""

from __future__ import annotations

import covering
import numpy as np
import pytest
from sklearn.metrics import f1_score as theirs

from clipbench.metrics.f1 import _bias, f1_per_class, f1_score, f1_shares, macro_f1


@pytest.mark.parametrize("seed", range(20))
def test_it_is_scikit_learns_over_the_labels_that_occur(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(2, 12)), int(rng.integers(1, 40))
    target, prediction = rng.integers(0, classes, (2, n))
    prediction = np.where(rng.random(n) < 0.5, target, prediction)
    labels = np.unique(target)
    found = macro_f1(target, prediction, classes)
    assert found == pytest.approx(theirs(target, prediction, average="macro", labels=labels, zero_division=0))
    each = theirs(target, prediction, average=None, labels=labels, zero_division=0)
    assert f1_per_class(target, prediction, classes)[labels] == pytest.approx(each)
    shares = f1_shares(target, prediction, classes)
    assert shares.mean() == pytest.approx(found)
    score = f1_score(target, prediction, classes)
    assert score.value == pytest.approx(found)
    assert score.n == n
    assert score.ci95[0] <= score.value <= score.ci95[1]


def test_a_class_that_is_only_predicted_does_not_count() -> None:
    # class 0: TP 2, FN 1; class 1: TP 1, FP 0, FN 1; class 2 is predicted twice and has no sample
    target, prediction = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2, 1, 2])
    assert macro_f1(target, prediction, 3) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert macro_f1(target, prediction, 3) != pytest.approx(theirs(target, prediction, average="macro"))


def test_a_share_is_how_far_a_sample_pulls() -> None:
    rng = np.random.default_rng(3)
    target = rng.integers(0, 4, 4_000)
    prediction = np.where(rng.random(4_000) < 0.6, target, rng.integers(0, 4, 4_000))
    shares, value = f1_shares(target, prediction, 4), macro_f1(target, prediction, 4)
    for row in range(0, 4_000, 501):  # once more of a sample moves the score by its pull, in n
        more = macro_f1(np.append(target, target[row]), np.append(prediction, prediction[row]), 4)
        assert (more - value) * 4_000 == pytest.approx(shares[row] - value, abs=0.01)


def test_the_bias_is_the_jackknifes() -> None:
    rng = np.random.default_rng(4)
    target = rng.integers(0, 4, 60)
    prediction = np.where(rng.random(60) < 0.6, target, rng.integers(0, 4, 60))
    value = macro_f1(target, prediction, 4)
    without = [macro_f1(np.delete(target, i), np.delete(prediction, i), 4) for i in range(60)]
    assert _bias(target, prediction, 4) == pytest.approx(59 * (np.mean(without) - value))


def test_chance_is_that_of_answers_drawn_evenly() -> None:
    rng = np.random.default_rng(5)
    target = np.repeat([0, 1, 2], [600, 300, 100])
    drawn = [macro_f1(target, rng.integers(0, 5, 1_000), 5) for _ in range(300)]
    assert f1_score(target, target, 5).chance == pytest.approx(np.mean(drawn), abs=0.003)


@pytest.mark.parametrize("name", covering.CONFUSED)
def test_its_interval_holds_the_truth(name: str) -> None:
    assert covering.macro_f1(covering.CONFUSED[name], trials=400, seed=1) >= 0.92


def test_its_interval_over_clusters_holds_the_truth() -> None:
    few = covering.Confused(6, 0, 1.0, 0.6)
    assert covering.clustered_macro_f1(covering.Clusters(30), few, trials=300, seed=1) >= 0.91
    alone = covering.clustered_macro_f1(covering.Clusters(30), few, trials=300, seed=1, samples_alone=True)
    assert alone < 0.8
