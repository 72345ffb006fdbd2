"""Macro F1: the mean over classes of 2 TP / (2 TP + FP + FN), over the classes that have a sample and no others.

That is scikit-learn's `f1_score(target, prediction, average="macro", labels=np.unique(target))`, as WILDS has it of
iWildCam: what is predicted as a class without samples is a miss of its own class, and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics import classification, clustered, intervals
from clipbench.metrics.arrays import Ints
from clipbench.metrics.clustered import Doubles
from clipbench.metrics.intervals import Interval, Score


def f1_per_class(target: Ints, prediction: Ints, n_classes: int) -> Doubles:
    """F1 of every class: float64 [C], NaN for classes absent from `target`.

    Args:
        target, prediction: int64 [N], class indices below `n_classes`.

    >>> f1_per_class(np.array([0, 0, 1]), np.array([0, 2, 1]), 3).round(3).tolist()
    [0.667, 1.0, nan]
    """
    hits, counts = classification.class_hits(target, prediction, n_classes)
    found = np.full(n_classes, np.nan)
    named = counts + np.bincount(prediction, minlength=n_classes)
    np.divide(2 * hits, named, out=found, where=counts > 0)
    return found


def macro_f1(target: Ints, prediction: Ints, n_classes: int) -> float:
    """The mean of `f1_per_class` over the classes that have a sample.

    >>> round(macro_f1(np.array([0, 0, 1]), np.array([0, 2, 1]), 3), 3)
    0.833
    """
    return float(np.nanmean(f1_per_class(target, prediction, n_classes)))


def f1_shares(target: Ints, prediction: Ints, n_classes: int) -> Doubles:
    """What each sample adds to the macro F1, which is their mean: float64 [N].

    It is the score, and how far one more such sample would pull it, for so many samples as there are (the derivative
    of the ratios; Särndal, Swensson & Wretman 1992, section 5.5). A single share may lie below 0 or above 1.

    >>> shares = f1_shares(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)
    >>> shares.round(3).tolist(), round(float(shares.mean()), 3)
    ([1.167, 0.5, 0.833], 0.833)
    """
    per_class = f1_per_class(target, prediction, n_classes)
    labels = np.count_nonzero(~np.isnan(per_class))
    named = np.bincount(target, minlength=n_classes) + np.bincount(prediction, minlength=n_classes)
    each = np.nan_to_num(per_class) / np.maximum(named, 1)
    pull = np.where(target == prediction, 2 / named[target], 0.0) - each[target] - each[prediction]
    found: Doubles = float(np.nanmean(per_class)) + len(target) / labels * pull
    return found


def f1_score(target: Ints, prediction: Ints, n_classes: int, cluster: Ints | None = None) -> Score:
    """The macro F1 with its interval: of the classes that have a sample here, over samples, or over clusters.

    The variance is that of `f1_shares`. A class of few samples that are all right, or all wrong, shows too little of
    it: a class has at least the variance that it has with two more samples, right as often as those of all classes
    are. F1 of few samples is too low, being a ratio, and the interval reaches as much further (`_bias`). Its chance is
    what answers drawn evenly from all classes would get of so many samples a class.

    Args:
        target, prediction: int64 [N], class indices below `n_classes`.
        cluster: int64 [N], from 0 on, none empty; None: samples are independent.

    >>> score = f1_score(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
    >>> round(score.value, 3), score.n, round(score.chance, 3)
    (0.733, 4, 0.5)
    """
    value = min(macro_f1(target, prediction, n_classes), 1.0)
    shares = f1_shares(target, prediction, n_classes)
    spread = clustered.spread(shares, np.arange(target.size) if cluster is None else cluster)
    error = math.sqrt(spread.error**2 + _unseen(target, prediction, n_classes))
    size, freedom = (target.size, math.inf) if cluster is None else (spread.clusters, spread.freedom)
    low, high = _interval(value, error, size, freedom)
    bias = _bias(target, prediction, n_classes)
    low, high = max(0.0, min(low, low - bias)), min(1.0, max(high, high - bias))
    share = np.bincount(target, minlength=n_classes) / target.size
    share = share[share > 0]
    chance = float((2 * share / (1 + share * n_classes)).mean())
    return Score(value, (low, high), target.size, chance)


def _interval(value: float, error: float, size: float, freedom: float) -> Interval:
    """95 % interval of a macro F1, symmetric on the logit scale, where the error is scaled to the value that half a
    right and half a wrong sample more would give, as of `clustered.interval`; nearer to an end than one sample, it is
    about that value."""
    if error == 0 or not 0 < value < 1:
        return intervals.wilson(value * size, size)
    moved = (value * size + 0.5) / (size + 1)
    error *= math.sqrt(moved * (1 - moved) / (value * (1 - value)))
    at = value if 1 < value * size < size - 1 else moved
    low, high = intervals.on_logit_scale(at, error, intervals.quantile(freedom))
    return min(low, value), max(high, value)


def _bias(target: Ints, prediction: Ints, n_classes: int) -> float:
    """How much higher than the truth the macro F1 of so few samples is, by the jackknife (Quenouille 1956); the labels
    stay as they are, and a class of one sample that is right shows none."""
    hits, counts = classification.class_hits(target, prediction, n_classes)
    named = (counts + np.bincount(prediction, minlength=n_classes))[counts > 0]
    hits = hits[counts > 0]
    each = 2 * hits / named
    without_hit = np.where(named > 2, 2 * (hits - 1) / np.maximum(named - 2, 1), each)
    without_miss = 2 * hits / np.maximum(named - 1, 1)
    off = hits * (without_hit - each) + (named - 2 * hits) * (without_miss - each)
    return float(off.sum()) / hits.size * (target.size - 1) / target.size


def _unseen(target: Ints, prediction: Ints, n_classes: int) -> float:
    """The variance of the macro F1 that classes of few samples do not show.

    F1 is 2 J / (1 + J) of the share J that hits are of all samples which have the class, or are said to.
    """
    hits, counts = classification.class_hits(target, prediction, n_classes)
    either = (counts + np.bincount(prediction, minlength=n_classes) - hits)[counts > 0]
    hits = hits[counts > 0]
    common = hits.sum() / either.sum()
    lacking = _variance((hits + 2 * common) / (either + 2), either) - _variance(hits / either, either)
    return float(np.maximum(0.0, lacking).sum()) / hits.size**2


def _variance(share: NDArray[Any], count: NDArray[Any]) -> Doubles:
    found: Doubles = 4 / (1 + share) ** 4 * share * (1 - share) / count
    return found
