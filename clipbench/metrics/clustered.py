"""Scores of samples that belong together: slides, patients, camera sequences. What varies is which clusters there are.

Samples of a cluster are right and wrong together, so a test set of 1,000 samples from 20 slides says little more than
20 samples would. Wilson's interval over samples then holds the truth about half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError
from clipbench.metrics import classification, intervals
from clipbench.metrics.arrays import Bools, Ints
from clipbench.metrics.intervals import Interval, Score

Doubles = NDArray[np.float64]


def codes(names: Sequence[str] | NDArray[np.object_]) -> Ints:
    """The cluster of each sample as a number from 0 on, in the order of the names: int64 [n].

    Raises:
        DataError: there is but one, which shows nothing of how clusters vary.

    >>> codes(["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    every, found = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    if every.size < 2:
        raise DataError(
            f"all {found.size:,} samples are of one cluster ({every[0]!r}), so nothing shows how scores vary from "
            "cluster to cluster, and no interval can be given",
            hint="take more samples (raise --limit), or take columns.cluster off the task card",
        )
    return found.astype(np.int64)


def sums(place: Ints, values: Doubles) -> Doubles:
    """The sum of the values at each place from 0 on: float64 [places].

    >>> sums(np.array([0, 2, 0]), np.array([1.0, 2.0, 3.0])).tolist()
    [4.0, 0.0, 2.0]
    """
    return np.bincount(place, weights=values).astype(np.float64)


@dataclass(frozen=True)
class Spread:
    """How a mean varies with which clusters there are.

    Attributes:
        value: the mean.
        error: its standard error; 0 where all clusters agree.
        freedom: of Student's t, 1 at least.
        clusters: how many of equal size would weigh as these do (`stats.alike`).
        effects: float64 [G], how far each cluster pulls the mean; the sum of their squares is the error's.
    """

    value: float
    error: float
    freedom: float
    clusters: float
    effects: Doubles

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval on the mean's own scale."""
        return intervals.quantile(self.freedom) * self.error


def spread(values: Doubles, cluster: Ints, stratum: Ints | None = None) -> Spread:
    """The mean of `values` and its spread; with `stratum`, the mean over strata of the mean within each.

    The variance is the cluster-robust one of the linearised mean, corrected for how much each cluster weighs (CR2;
    Bell & McCaffrey 2002, Survey Methodology 28:169). Its degrees of freedom are the smallest of what clusters of such
    sizes have, of what they have within each stratum, and of what their effects show (Satterthwaite 1946): strata in
    few clusters, and few clusters that pull far, leave few. A stratum that lies in one cluster shows no spread of its
    own, and counts by its distance from the mean.

    Args:
        values: float64 [n], n ≥ 1.
        cluster: int64 [n], from 0 on, none empty.
        stratum: int64 [n], such as the class; from 0 on.

    >>> found = spread(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    >>> found.value, round(found.error, 3), round(found.freedom, 3)
    (0.5, 0.5, 1.0)
    """
    labels = np.zeros_like(cluster) if stratum is None else np.unique(stratum, return_inverse=True)[1]
    strata, count = int(labels.max()) + 1, int(cluster.max()) + 1  # none is empty
    sizes = np.bincount(labels)
    means = sums(labels, values) / sizes
    value = float(means.mean())
    cells, place = np.unique(cluster * strata + labels, return_inverse=True)
    of, within = cells // strata, cells % strata
    number = np.bincount(place)
    share = number / sizes[within]
    alone = number == sizes[within]
    centre = np.where(alone, value, means[within])
    pulled = sums(place, values) - number * centre
    # What centring takes of each cell: all that it has of its own stratum, or, alone, of the mean over strata.
    taken = np.where(alone, 1 / strata, share)
    pulled = pulled / np.sqrt(np.where(taken < 1, 1 - taken, 1.0))
    effects = sums(of, pulled / (strata * sizes[within]))
    weight = sums(of, share / strata)
    clusters = intervals.alike(weight)
    square = float((effects**2).sum())
    if count == 1 or square < 1e-24:
        return Spread(value, 0.0, 1.0, clusters, np.zeros(count))
    lost = float((sums(of, share * taken / strata) / weight).sum())
    freedom = min(clusters - lost, _within(sums(within, share**2)), _shown(effects))
    return Spread(value, math.sqrt(square), max(1.0, freedom), clusters, effects)


def _within(parts: Doubles) -> float:
    """Degrees of freedom of a mean over strata, by Satterthwaite, each stratum's clusters being alike.

    Args:
        parts: Σ s² of the clusters' shares in each stratum; 1 of strata in one cluster, which vary about the mean of
            all of them, as one stratum.
    """
    several = parts[parts < 1]
    lone = float(parts.size - several.size)
    square = float((several**2 / np.maximum(1 / several - 1, 1)).sum()) + lone**2 / max(lone - 1, 1)
    return (float(several.sum()) + lone) ** 2 / square


def _shown(effects: Doubles) -> float:
    """Degrees of freedom of the sum of squares of `effects`, by their fourth moment."""
    kurtosis = effects.size * float((effects**4).sum()) / float((effects**2).sum()) ** 2
    return 2 * effects.size / (kurtosis - 1) if kurtosis > 1 else math.inf


def jackknife(value: float, without: Doubles, weight: Doubles) -> Spread:
    """The spread of any statistic, from what it is without each cluster.

    The jackknife errs to the wide side (Efron & Stein 1981, Annals of Statistics 9:586–596).

    Args:
        without: float64 [G], G ≥ 1; NaN where nothing is left, which shows no spread.
        weight: of the clusters, float64 [G].

    >>> found = jackknife(0.5, np.array([0.4, 0.5, 0.6]), np.ones(3))
    >>> round(found.error, 4), found.freedom  # as of the mean of three samples
    (0.1155, 2.0)
    """
    count, clusters = without.size, intervals.alike(weight)
    known = ~np.isnan(without)
    off = np.where(known, float(without[known].mean()) - without if known.any() else 0.0, 0.0)
    effects = off * math.sqrt(1 - 1 / count)
    square = float((effects**2).sum())
    if square < 1e-24:
        return Spread(value, 0.0, 1.0, clusters, np.zeros(count))
    return Spread(value, math.sqrt(square), max(1.0, min(clusters - 1, _shown(effects))), clusters, effects)


def interval(found: Spread) -> Interval:
    """95 % interval of a mean within 0 and 1, symmetric on the logit scale, which keeps it there.

    A mean near an end tends to show too small an error, for want of the rare clusters that would move it. The error is
    therefore scaled to the mean that half a right and half a wrong sample more would give (Jeffreys' prior), of the
    sample size at which independent samples have this error. Where all clusters agree, the interval is Wilson's, a
    cluster counting as one sample.
    """
    value = min(found.value, 1.0)
    if found.error == 0 or not 0 < value < 1:
        return intervals.wilson(value * found.clusters, found.clusters)
    alone = value * (1 - value)
    samples = alone / found.error**2
    moved = (value * samples + 0.5) / (samples + 1)
    error = found.error * math.sqrt(moved * (1 - moved) / alone)
    low, high = intervals.on_logit_scale(value, error, intervals.quantile(found.freedom))
    return min(low, value), max(high, value)


def mean_score(values: Doubles, cluster: Ints, chance: float | None, stratum: Ints | None = None) -> Score:
    """Mean of `values` in 0 to 1, such as hits, over clusters; args as of `spread`.

    >>> hits, cluster = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0]), np.array([0, 0, 1, 1, 2, 2])
    >>> score = mean_score(hits, cluster, chance=0.1)
    >>> round(score.value, 3), score.n, tuple(round(end, 3) for end in score.ci95)
    (0.667, 6, (0.071, 0.981))
    """
    found = spread(values, cluster, stratum)
    value = min(found.value, 1.0)
    return Score(value, interval(found), values.size, chance)


def rank_score(values: Doubles, cluster: Ints, chance: float | None, stratum: Ints | None = None) -> Score:
    """Mean of ranks, which count from 1; args as of `spread`."""
    found = spread(values, cluster, stratum)
    ends = (max(1.0, found.value - found.half), found.value + found.half)
    return Score(found.value, (min(ends[0], found.value), ends[1]), values.size, chance)


def recall_score(target: Ints, prediction: Ints, n_classes: int, cluster: Ints) -> Score:
    """Mean per-class recall over clusters; args as of `stats.mean_per_class_recall_score`.

    >>> target = np.array([0, 0, 1, 1])
    >>> recall_score(target, np.array([0, 1, 1, 1]), 2, np.array([0, 1, 0, 1])).value
    0.75
    """
    hits = (target == prediction).astype(np.float64)
    return mean_score(hits, cluster, 1 / n_classes, target)


def ece_score(
    confidence: Doubles,
    correct: Bools,
    cluster: Ints,
    seed: int,
    bins: int = 15,
    count: int = intervals.RESAMPLES,
) -> Score:
    """Expected calibration error over clusters.

    A cluster moves the gaps of all bins at once, so that the error, a sum of absolute gaps, is folded where they are
    small, and no bootstrap of the sum itself covers the truth. No error can be further from the truth than the absolute
    errors of all gaps together are, so the interval goes as far to both sides as these do in 95 % of resamples of
    whole clusters.

    Args: as `stats.ece_score`; cluster: int64 [n], from 0 on; count: of resamples.

    >>> ece_score(np.array([0.9, 0.9, 0.9]), np.array([True, True, False]), np.array([0, 1, 2]), seed=0).n
    3
    """
    value = classification.ece(confidence, correct, bins)
    gap, place = confidence - correct, classification.confidence_bin(confidence, bins)
    cells = np.bincount(cluster * bins + place, weights=gap, minlength=(int(cluster.max()) + 1) * bins)
    gaps, sizes = cells.reshape(-1, bins), np.bincount(cluster)
    measured = gaps.sum(axis=0) / gap.size

    def off(drawn: Ints) -> float:
        return float(np.abs(gaps[drawn].sum(axis=0) / sizes[drawn].sum() - measured).sum())

    clusters = intervals.alike(sizes)
    if clusters < 2:
        return Score(value, (0.0, 1.0), gap.size, None)
    wider = intervals.quantile(clusters - 1) / intervals.quantile() * math.sqrt(clusters / (clusters - 1))
    half = wider * float(np.quantile(intervals.bootstrap(sizes.size, off, seed, count), 0.95))
    return Score(value, (max(0.0, value - half), min(1.0, value + half)), gap.size, None)
