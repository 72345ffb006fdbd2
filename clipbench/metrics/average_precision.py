"""Average precision of single classes and their mean over classes, and how it changes with each image.

What cannot be scored (a class without a positive) is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics.arrays import Bools, Floats, Ints, check_finite

#: `area` is the step-wise area under precision–recall, `11pt` VOC2007's interpolation at 11 recalls, `envelope`
#: the area under the curve made monotone.
APKind = Literal["area", "11pt", "envelope"]
#: What a difficult object (label 255) counts as in a test split.
Difficult = Literal["ignore", "positive", "negative"]
DIFFICULT: Final = 255  # the label value of an object that VOC marks difficult


@dataclass(frozen=True)
class Ranking:
    """One class's samples sorted by score once, so that any weighting of them can be scored cheaply.

    The precision–recall curve is read where it matters: at the end of each group of equal scores that
    holds a positive. In between, recall stands still and precision only falls, so neither kind of average
    precision looks there.

    Attributes:
        order: int64 [M], samples by falling score, less the ignored and those after the last positive.
        starts: int64 [G], where in `order` each curve point's share of samples begins.
        hits: int64 [P], the positives among `order`.
        hit_starts: int64 [G], the same for `hits`.
    """

    order: Ints
    starts: Ints
    hits: Ints
    hit_starts: Ints


def ranking(score: Floats, positive: Bools, ignore: Bools | None = None) -> Ranking:
    """Sort one class's samples for `curve`.

    Args:
        score: float [N]; only its order matters.
        positive: bool [N].
        ignore: bool [N], samples left out altogether (VOC's difficult objects).

    Raises:
        DataError: a score is not finite.

    >>> ranking(np.array([0.9, 0.9, 0.1, 0.5]), np.array([True, False, False, True])).starts.tolist()
    [0, 2]
    """
    check_finite(score)
    order = np.argsort(-score, kind="stable")
    if ignore is not None:
        order = order[~ignore[order]]
    positive, score = positive[order], score[order]
    group = np.cumsum(np.diff(score, prepend=score[:1]) != 0)
    scored = np.unique(group[positive])
    ends = np.searchsorted(group, scored, side="right")
    order = order[: ends[-1]] if ends.size else order[:0]
    hit_ends = np.searchsorted(group[positive], scored, side="right")
    return Ranking(
        order=order,
        starts=(ends - np.diff(ends, prepend=0)).astype(np.int64),
        hits=order[positive[: order.size]],
        hit_starts=(hit_ends - np.diff(hit_ends, prepend=0)).astype(np.int64),
    )


def curve(ranked: Ranking, weights: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """True positives and samples retrieved at each curve point, under each weighting.

    Args:
        weights: int32 [N, B], how often each sample counts in each of B weightings (all ones: as measured).

    Returns:
        int32 [G, B] twice, cumulative.

    >>> ranked = ranking(np.array([0.9, 0.9, 0.1, 0.5]), np.array([True, False, False, True]))
    >>> [part[:, 0].tolist() for part in curve(ranked, np.ones((4, 1), dtype=np.int32))]
    [[1, 2], [2, 3]]
    """
    if not ranked.starts.size:
        empty = np.zeros((0, weights.shape[1]), dtype=np.int32)
        return empty, empty
    true = np.add.reduceat(weights[ranked.hits], ranked.hit_starts, axis=0)
    seen = np.add.reduceat(weights[ranked.order], ranked.starts, axis=0)
    return np.cumsum(true, axis=0, dtype=np.int32), np.cumsum(seen, axis=0, dtype=np.int32)


def curve_average_precision(
    true: NDArray[np.int32], seen: NDArray[np.int32], kind: APKind, *, expected: bool = False
) -> NDArray[np.float64]:
    """Average precision of each weighting: float64 [B], NaN where it holds no positive.

    Args:
        true, seen: int32 [G, B] as of `curve`.
        kind: `area` is Σ (R_g − R_{g−1}) · P_g (scikit-learn's definition). `11pt` is the mean over the
            recalls 0, 0.1, …, 1 of the best precision at that recall or above (VOC2007, Everingham et al.,
            IJCV 2010). `envelope` is the area with each precision raised to the best at that recall or above
            (VOC since 2010, and VISSL's SVM evaluation).
        expected: estimate the average precision of all images there are instead of measuring these. The i-th best of
            P positives then marks the recall i / (P + 1), as it does on average, not i / P: precision among these
            images is too high, since every positive counts itself.

    >>> true, seen = np.array([[1], [2]], dtype=np.int32), np.array([[2], [3]], dtype=np.int32)
    >>> curve_average_precision(true, seen, "area").round(4).tolist()
    [0.5833]
    >>> curve_average_precision(true, seen, "area", expected=True).round(4).tolist()  # (2/5 + 4/7) / 2
    [0.4857]
    """
    if not true.size:
        return np.full(true.shape[1], np.nan)
    precision = np.zeros(true.shape)
    positives = true[-1]
    if expected:
        marked = true * (positives / (positives + 1.0))
        np.divide(marked, marked + (seen - true), out=precision, where=seen > 0)
    else:
        np.divide(true, seen, out=precision, where=seen > 0)
    average = np.full(positives.shape, np.nan)
    if kind == "envelope":
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    if kind != "11pt":
        total = (np.diff(true, axis=0, prepend=0) * precision).sum(axis=0)
        np.divide(total, positives, out=average, where=positives > 0)
        return average
    # Recall ≥ t/10 in integers: 3/10 ≥ 0.3 must not hang on how 0.3 is rounded.
    reached = [np.where(10 * true >= t * positives, precision, 0).max(axis=0) for t in range(11)]
    np.copyto(average, np.mean(reached, axis=0), where=positives > 0)
    return average


def average_precisions_area(scores: Floats, positive: Bools, ignore: Bools) -> NDArray[np.float64]:
    """The step-wise area (kind `area`) of every column at once: float64 [B] of scores, positives and left out, [N, B].

    >>> scores = np.array([[0.9, 1.0], [0.8, 1.0], [0.7, 0.0], [0.6, 2.0]])
    >>> positive = np.array([[True, True], [False, False], [True, False], [False, False]])
    >>> average_precisions_area(scores, positive, np.zeros((4, 2), dtype=bool)).round(4).tolist()
    [0.8333, 0.3333]
    """
    check_finite(scores)
    order = np.argsort(-scores, axis=0)
    scores = np.take_along_axis(scores, order, axis=0)
    positive = np.take_along_axis(positive & ~ignore, order, axis=0)
    kept = np.take_along_axis(~ignore, order, axis=0)
    true, seen = np.cumsum(positive, axis=0), np.cumsum(kept, axis=0)
    # Precision is read where a run of equal scores ends.
    ends = np.full(scores.shape, len(scores) - 1)
    ends[:-1][scores[:-1] != scores[1:]] = np.nonzero(scores[:-1] != scores[1:])[0]
    ends = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
    precision = np.take_along_axis(true, ends, axis=0) / np.maximum(np.take_along_axis(seen, ends, axis=0), 1)
    average = np.full(scores.shape[1], np.nan)
    np.divide((positive * precision).sum(axis=0), true[-1], out=average, where=true[-1] > 0)
    return average


def positives(labels: NDArray[np.uint8], difficult: Difficult = "ignore") -> tuple[Bools, Bools | None]:
    """Which labels count as positive, and which are left out (None: none), both bool like `labels`.

    Args:
        labels: uint8, 0 absent, 1 present, 255 difficult.

    Raises:
        ValueError: another label value.

    >>> positive, ignore = positives(np.array([0, 1, 255], dtype=np.uint8))
    >>> positive.tolist(), ignore.tolist()
    ([False, True, False], [False, False, True])
    """
    hard = labels == DIFFICULT
    if np.any((labels > 1) & ~hard):
        raise ValueError("multi-label labels must be 0 (absent), 1 (present) or 255 (difficult)")
    positive = labels == 1
    if difficult == "positive":
        positive |= hard
    return positive, hard if difficult == "ignore" else None


def rankings(scores: Floats, labels: NDArray[np.uint8], difficult: Difficult = "ignore") -> Iterator[Ranking]:
    """`ranking` of every class in turn; arguments as `per_class_average_precision`."""
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be equal matrices")
    positive, ignore = positives(labels, difficult)
    for c in range(scores.shape[1]):
        yield ranking(scores[:, c], positive[:, c], None if ignore is None else ignore[:, c])


def per_class_average_precision(
    scores: Floats, labels: NDArray[np.uint8], kind: APKind, difficult: Difficult = "ignore"
) -> NDArray[np.float64]:
    """Average precision of every class, over images: float64 [C], NaN for classes without a positive.

    Samples of equal score are retrieved together: the order of the files, which decides in the VOC development kit,
    moves nothing here.

    Args:
        scores: float [N, C]; compared within a class only, never through a softmax over classes.
        labels: uint8 [N, C], 0 absent, 1 present, 255 difficult.
        difficult: leave such objects out of their class, or count them as positive or negative.

    Raises:
        DataError: a score is not finite.
        ValueError: shapes disagree, or another label value.

    >>> labels = np.array([[1, 0], [255, 0], [1, 0]], dtype=np.uint8)
    >>> per_class_average_precision(np.array([[0.3, 1.0], [0.2, 1.0], [0.1, 1.0]]), labels, "area").tolist()
    [1.0, nan]
    """
    ones = np.ones((scores.shape[0], 1), dtype=np.int32)
    found = [
        curve_average_precision(*curve(ranked, ones), kind)[0]
        for ranked in rankings(scores, labels, difficult)
    ]
    return np.array(found, dtype=np.float64)


def mean_average_precision(
    scores: Floats, labels: NDArray[np.uint8], kind: APKind, difficult: Difficult = "ignore"
) -> float:
    """Mean of `per_class_average_precision` over the classes that have positives; NaN if none has.

    >>> labels = np.array([[1, 0], [255, 0], [1, 0]], dtype=np.uint8)
    >>> mean_average_precision(np.array([[0.3, 1.0], [0.2, 1.0], [0.1, 1.0]]), labels, "11pt")
    1.0
    """
    found = per_class_average_precision(scores, labels, kind, difficult)
    scored = ~np.isnan(found)
    return float(found[scored].mean()) if scored.any() else float("nan")


def mean_average_precision_influence(
    scores: Floats, labels: NDArray[np.uint8], kind: APKind, difficult: Difficult = "ignore"
) -> NDArray[np.float64]:
    """How `mean_average_precision` changes with how often each image counts: float64 [N], which sum to 0.

    The derivative by each image's weight at equal weights of 1, so that the squares of the values sum to the variance
    (the infinitesimal jackknife; Efron 1982, chapter 6). Images that count in two measures are thus added up.

    Args: as `per_class_average_precision`; a class without positives is left out.

    >>> labels = np.array([[1], [0], [1]], dtype=np.uint8)
    >>> mean_average_precision_influence(np.array([[0.9], [0.8], [0.7]]), labels, "area").round(4).tolist()
    [0.1389, -0.1111, -0.0278]
    """
    found = [
        _influence(one, scores.shape[0], kind) for one in rankings(scores, labels, difficult) if one.hits.size
    ]
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    return mean


def _influence(ranked: Ranking, n: int, kind: APKind) -> NDArray[np.float64]:
    """The same of one class with a positive."""
    true, seen = (part[:, 0].astype(np.float64) for part in curve(ranked, np.ones((n, 1), dtype=np.int32)))
    precision, positives, points = true / seen, true[-1], len(true)
    places = np.arange(points)
    if kind == "11pt":  # each precision is read at the best point of this recall or above
        first = np.searchsorted(10 * true, np.arange(11) * positives)
        read = np.array([start + int(precision[start:].argmax()) for start in first])
        share = np.full(11, 1 / 11)
    else:
        read, share = places, np.diff(true, prepend=0) / positives
        if kind == "envelope":
            read = np.array([place + int(precision[place:].argmax()) for place in places])
    weight = np.bincount(read, weights=share / seen[read], minlength=points)
    after = np.cumsum(weight[::-1])[::-1]
    less = np.cumsum((weight * precision)[::-1])[::-1]
    group = np.zeros(ranked.order.size, dtype=np.int64)
    group[ranked.starts[1:]] = 1
    group = np.cumsum(group)
    positive = np.isin(ranked.order, ranked.hits)
    found = np.zeros(n)
    change = np.where(positive, after[group], 0) - less[group]
    if kind != "11pt":
        value = float(share @ precision[read])
        change += np.where(positive, (precision[read][group] - value) / positives, 0)
    found[ranked.order] = change
    return found
