"""Metrics against scikit-learn, brute force and hand-worked cases, ties included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from clipbench.errors import DataError
from clipbench.metrics import average_precision, classification
from clipbench.metrics.average_precision import APKind

Matrix = NDArray[np.float64]


def _of_class(
    kind: APKind, score: Matrix, positive: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
) -> float:
    """Average precision of one class, less the ignored."""
    labels = positive.astype(np.uint8)
    if ignore is not None:
        labels[ignore] = average_precision.DIFFICULT
    return float(average_precision.per_class_average_precision(score[:, None], labels[:, None], kind)[0])


_area, _voc, _envelope = (partial(_of_class, kind) for kind in get_args(APKind))

# Few distinct values, so that most rows hold ties.
tied = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
)


def _order(row: Matrix) -> list[int]:
    """Classes best first, equals by lowest index: the tie rule, spelled out."""
    return sorted(range(len(row)), key=lambda c: (-row[c], c))


@given(tied, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_tie_rule_is_one_for_rank_and_prediction(logits: Matrix, random: object) -> None:
    n, classes = logits.shape
    orders = [_order(row) for row in logits]
    assert classification.predict(logits).tolist() == [order[0] for order in orders]
    for c in range(classes):
        ranks = classification.rank_of_target(logits, np.full(n, c))
        assert ranks.tolist() == [order.index(c) for order in orders]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.integers(4, size=(23, 7)).astype(np.float32), rng.integers(7, size=23)
    whole = (
        classification.rank_of_target(logits, target),
        classification.winning_confidence(logits),
    )
    monkeypatch.setattr(classification, "_BLOCK", 10)
    parts = (
        classification.rank_of_target(logits, target),
        classification.winning_confidence(logits),
    )
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_constant_model_gets_chance_on_balanced_classes() -> None:
    target = np.arange(100) % 10
    ranks = classification.rank_of_target(np.zeros((100, 10)), target)
    assert (ranks < 1).mean() == pytest.approx(0.1)
    assert (ranks < 5).mean() == pytest.approx(0.5)


def test_acc1_agrees_with_mean_per_class_recall_on_balanced_ties() -> None:
    rng = np.random.default_rng(1)
    logits, target = rng.integers(3, size=(200, 4)).astype(np.float32), np.arange(200) % 4
    acc1 = (classification.rank_of_target(logits, target) == 0).mean()
    assert classification.mean_per_class_recall(target, classification.predict(logits), 4) == pytest.approx(
        acc1
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_never_ranked(bad: float) -> None:
    logits = np.zeros((3, 4))
    logits[1, 2] = bad
    target = np.zeros(3, dtype=np.int64)
    for call in (
        lambda: classification.rank_of_target(logits, target),
        lambda: classification.predict(logits),
        lambda: classification.winning_confidence(logits),
        lambda: _area(logits[:, 2], target == 0),
    ):
        with pytest.raises(DataError, match=r"1 of .* not finite(.|\n)*--precision fp32"):
            call()


def test_targets_out_of_range_are_refused() -> None:
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match="expected 0 … 2"):
        classification.rank_of_target(logits, np.array([0, 3]))
    with pytest.raises(ValueError, match="expected 0 … 2"):
        classification.rank_of_target(logits, np.array([-1, 0]))
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
        classification.rank_of_target(logits, np.array([0]))


# ----------------------------------------------------------------- per class


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_mean_per_class_recall_equals_scikit_learn(data: st.DataObject) -> None:
    target = data.draw(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 4)))
    # scikit-learn warns of predictions of a class that no target has: draw from those that are there.
    prediction = data.draw(
        hnp.arrays(np.int64, target.size, elements=st.sampled_from(sorted(set(target.tolist()))))
    )
    if len(set(target.tolist())) == 1:
        return  # scikit-learn warns of a single label
    ours = classification.mean_per_class_recall(target, prediction, 5)
    assert ours == pytest.approx(balanced_accuracy_score(target, prediction))


def test_absent_classes_are_nan_and_drop_out_even_when_predicted() -> None:
    target, prediction = np.array([0, 0, 2]), np.array([1, 0, 2])
    recall = classification.per_class_recall(target, prediction, 4)
    np.testing.assert_array_equal(recall, [0.5, np.nan, 1.0, np.nan])
    assert classification.mean_per_class_recall(target, prediction, 4) == 0.75


def test_nothing_to_score_is_nan_never_zero() -> None:
    none = np.array([], dtype=np.int64)
    assert np.isnan(classification.mean_per_class_recall(none, none, 3))
    assert np.isnan(classification.ece(np.array([]), np.array([], dtype=bool)))
    assert np.isnan(_area(np.array([1.0]), np.array([False])))
    assert np.isnan(_voc(np.array([]), np.array([], dtype=bool)))


# --------------------------------------------------------- average precision


def _voc_11pt(score: Matrix, positive: NDArray[np.bool_]) -> float:
    """VOC2007's interpolation from its definition: thresholds at every distinct score, exact recalls."""
    points = []
    for threshold in np.unique(score):
        retrieved = score >= threshold
        hits = int((retrieved & positive).sum())
        points.append((hits, hits / int(retrieved.sum())))
    total = int(positive.sum())
    levels = [[p for hits, p in points if 10 * hits >= t * total] for t in range(11)]
    return sum(max(level) for level in levels) / 11


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_average_precision_equals_scikit_learn_and_the_literal_11_points(
    n: int, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(levels, size=n) / levels if levels < 6 else rng.normal(size=n)
    positive = rng.random(n) < 0.3
    positive[rng.integers(n)] = True
    area = _area(score, positive)
    assert area == pytest.approx(average_precision_score(positive, score), abs=1e-12)
    assert _voc(score, positive) == pytest.approx(_voc_11pt(score, positive))
    shuffled = rng.permutation(n)
    assert _area(score[shuffled], positive[shuffled]) == pytest.approx(area)


def test_average_precision_of_many_columns_is_that_of_each() -> None:
    rng = np.random.default_rng(3)
    for levels in (2, 5, 1000):
        scores = rng.integers(0, levels, (40, 30)) / levels
        positive, ignore = rng.random((40, 30)) < 0.2, rng.random((40, 30)) < 0.3
        positive[:, 0] = False
        found = average_precision.average_precisions_area(scores, positive, ignore)
        own = [_area(scores[:, j], positive[:, j], ignore[:, j]) for j in range(30)]
        np.testing.assert_allclose(found, own, rtol=1e-12)


def test_average_precision_worked_by_hand() -> None:
    score = np.array([0.9, 0.8, 0.8, 0.7, 0.1])
    positive = np.array([True, True, False, False, True])
    # curve: recall 1/3 at precision 1; the pair of 0.8 together: 2/3 at 2/3; all: 1 at 3/5
    assert _area(score, positive) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # recalls 0 … 0.3 see 1, 0.4 … 0.6 see 2/3, 0.7 … 1 see 3/5
    assert _voc(score, positive) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def _literal_envelope(score: Matrix, positive: NDArray[np.bool_]) -> float:
    """The literal development-kit code of VOC2010 on (1 + thresholds) points: raise, then sum recall steps."""
    recall, precision = [0.0], [0.0]
    for threshold in np.unique(score)[::-1]:
        retrieved = score >= threshold
        hits = int((retrieved & positive).sum())
        recall.append(hits / int(positive.sum()))
        precision.append(hits / int(retrieved.sum()))
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_the_envelope_is_the_literal_one_and_never_below_the_area(n: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(levels, size=n) / levels if levels < 6 else rng.normal(size=n)
    positive = rng.random(n) < 0.3
    positive[rng.integers(n)] = True
    envelope = _envelope(score, positive)
    assert envelope == pytest.approx(_literal_envelope(score, positive))
    assert envelope >= _area(score, positive) - 1e-12


def test_the_three_average_precisions_worked_by_hand() -> None:
    score, positive = np.arange(6, 0, -1.0), np.array([True, False, False, True, True, False])
    # precision at the hits: 1, 2/4, 3/5; the envelope raises 2/4 to 3/5
    assert _area(score, positive) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert _envelope(score, positive) == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)
    assert _voc(score, positive) == pytest.approx((4 * 1 + 7 * 3 / 5) / 11)


def test_recall_levels_are_met_exactly() -> None:
    # 3 of 10 positives first: recall 0.3 is reached at precision 1, although 0.1 * 3 > 0.3 in floats.
    positive = np.array([True] * 3 + [False] * 7 + [True] * 7)
    score = np.arange(17, 0, -1.0)
    rest = 10 / 17
    assert _voc(score, positive) == pytest.approx((4 * 1 + 7 * rest) / 11)


def test_a_constant_score_gives_the_share_of_positives() -> None:
    positive = np.arange(10) < 3
    assert _area(np.zeros(10), positive) == pytest.approx(0.3)
    assert _voc(np.zeros(10), positive) == pytest.approx(0.3)


def test_ignored_samples_are_as_if_they_were_not_there() -> None:
    rng = np.random.default_rng(3)
    score, positive, ignore = rng.integers(5, size=80) / 5, rng.random(80) < 0.3, rng.random(80) < 0.2
    for metric in (
        _area,
        _voc,
        _envelope,
    ):
        assert metric(score, positive, ignore) == metric(score[~ignore], positive[~ignore])
        assert metric(score, positive, ignore) != metric(score, positive)


def test_integer_weights_equal_repeated_samples() -> None:
    rng = np.random.default_rng(4)
    score, positive = rng.integers(9, size=40) / 9, rng.random(40) < 0.4
    weights = rng.integers(4, size=(40, 1)).astype(np.int32)
    ranked = average_precision.ranking(score, positive)
    index = np.repeat(np.arange(40), weights[:, 0])
    cases: list[tuple[APKind, Callable[..., float]]] = [
        ("area", _area),
        ("11pt", _voc),
        ("envelope", _envelope),
    ]
    for kind, metric in cases:
        weighted = average_precision.curve_average_precision(*average_precision.curve(ranked, weights), kind)[
            0
        ]
        assert weighted == pytest.approx(metric(score[index], positive[index]))


@pytest.mark.parametrize("kind", ["area", "11pt", "envelope"])
@pytest.mark.parametrize("steps", [9, 10_000], ids=["with ties", "without"])
def test_the_influence_of_an_image_is_the_slope_of_the_metric_by_its_weight(kind: APKind, steps: int) -> None:
    """An image counts 10,001 and 9,999 times instead of 10,000; one class has no positive, some are difficult."""
    rng = np.random.default_rng(
        3
    )  # of which no two best precisions are equal, where the slope would have a kink
    scores = np.floor(rng.random((30, 3)) * steps)
    labels = np.zeros(scores.shape, dtype=np.uint8)
    labels[:7, 0] = labels[7:18, 1] = (
        1  # of 7 and 11 no tenth is a whole number, so that no recall is on an edge
    )
    labels[20:23, 1] = 255

    def mean(weights: NDArray[np.int32]) -> float:
        curves = [average_precision.curve(one, weights) for one in average_precision.rankings(scores, labels)]
        return float(np.nanmean([average_precision.curve_average_precision(*one, kind)[0] for one in curves]))

    expected = []
    for image in range(30):
        more, less = np.full((2, 30, 1), 10_000, dtype=np.int32)
        more[image], less[image] = 10_001, 9_999
        expected.append((mean(more) - mean(less)) / 2 * 10_000)
    found = average_precision.mean_average_precision_influence(scores, labels, kind)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.sum() == pytest.approx(0, abs=1e-12)


def test_map_over_classes_with_positives_and_the_three_readings_of_difficult() -> None:
    labels = np.array([[1, 0, 0], [255, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=np.uint8)
    scores = np.array([[0.9, 0.1, 0.1], [0.8, 0.1, 0.2], [0.7, 0.1, 0.3], [0.6, 0.1, 0.4]])
    by_class = {
        how: average_precision.per_class_average_precision(scores, labels, "area", how)
        for how in ("ignore", "positive", "negative")
    }
    # class 0 by rank: 1, difficult, 0, 1
    assert by_class["ignore"][0] == pytest.approx((1 + 2 / 3) / 2)
    assert by_class["positive"][0] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert by_class["negative"][0] == pytest.approx((1 + 2 / 4) / 2)
    assert np.isnan(by_class["ignore"][1])
    assert by_class["ignore"][2] == pytest.approx(1 / 2)
    mean = average_precision.mean_average_precision(scores, labels, "area")
    assert mean == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_unknown_label_values_are_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        average_precision.mean_average_precision(np.zeros((1, 2)), np.array([[2, 1]], dtype=np.uint8), "area")


# --------------------------------------------------------------- calibration


def test_ece_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(5)
    confidence, correct = rng.integers(0, 31, size=500) / 30, rng.random(500) < 0.6
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        inside |= (m == 1) & (confidence == 0)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert classification.ece(confidence, correct) == pytest.approx(expected)


def test_confidences_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="0 … 1"):
        classification.ece(np.array([1.2]), np.array([True]))
    with pytest.raises(ValueError, match="0 … 1"):
        classification.ece(np.array([np.nan]), np.array([True]))


def test_confidence_of_the_winner_is_the_largest_softmax_entry() -> None:
    logits = np.random.default_rng(6).normal(size=(40, 7)).astype(np.float32) * 20
    wide = logits.astype(np.longdouble)
    softmax = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        classification.winning_confidence(logits), softmax.max(axis=1).astype(float), rtol=1e-12
    )
    assert classification.winning_confidence(np.array([[1e30, 0.0]])).tolist() == [1.0]
