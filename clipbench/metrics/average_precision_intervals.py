"""Intervals of mean average precision, centred on what all images there are would give.

They are from a bootstrap over images, or, where images belong together, from a jackknife over clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError
from clipbench.metrics import average_precision, clustered
from clipbench.metrics.arrays import Floats, Ints
from clipbench.metrics.average_precision import APKind, Difficult
from clipbench.metrics.intervals import (
    RESAMPLES,
    Interval,
    Score,
    alike,
    on_logit_scale,
    quantile,
    resamples,
    wilson,
)

_CHUNK: Final = 100  # resamples handled at a time


def mean_average_precision_scores(
    scores: Floats,
    labels: NDArray[np.uint8],
    seed: int,
    difficult: Difficult = "ignore",
    kinds: Sequence[APKind] = ("area", "11pt"),
    count: int = RESAMPLES,
    cluster: Ints | None = None,
) -> dict[str, Score]:
    """`map_area`, `map_11pt` and `map_envelope`, as asked for, with intervals from the same resamples of images.

    Classes are sorted once; a resample is a weight for each image. A class without positives in a resample
    drops out of that resample's mean. Chance is what equal scores for all images get: the mean share of
    positives.

    The interval is about the mean average precision of all images that the test set was drawn from, over the classes
    that have a positive here. That is smaller than what a test set shows, by much where classes have few positives, so
    the interval is centred lower, at `APDraws.centre`, and as wide as `APDraws.error` on the logit scale, which
    keeps it within 0 and 1; it always holds the value. Of `11pt` it is about the mean over test sets of this size:
    the last of its 11 precisions is the one at the very last positive, which falls with the number of images and has
    no value of its own. Where no draw differs, as when every ranking is perfect, it is Wilson's, each image (or
    cluster) with a positive counting as one sample.

    With clusters, each draw leaves out one of them (resamples of few clusters would leave classes without positives),
    and Student's t stands for the normal distribution.

    Args: as `metrics.mean_average_precision`; count: of resamples; cluster: int64 [N], from 0 on, which images
        belong together.

    Raises:
        DataError: a score is not finite, or no class has a positive.
        ValueError: shapes disagree, or another label value.

    >>> labels = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8)
    >>> found = mean_average_precision_scores(np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0]]), labels, seed=0)
    >>> found["map_area"].value, round(found["map_area"].chance, 4)
    (1.0, 0.6667)
    """
    n = scores.shape[0]
    draws = mean_average_precision_draws(scores, labels, seed, difficult, kinds, count, cluster)
    if any(math.isnan(found.value) for found in draws.values()):
        raise DataError(
            f"no class has a positive among these {n:,} images, so mean average precision is not defined",
            hint="score more images: raise --limit, or leave it out",
        )
    chance = _mean_prevalence(labels, difficult)
    shows = average_precision.positives(labels, difficult)[0].any(axis=1)
    shown = float(shows.sum()) if cluster is None else alike(np.bincount(cluster, weights=shows))
    return {
        f"map_{kind}": Score(found.value, _map_interval(found, n, shown), n, chance)
        for kind, found in draws.items()
    }


def _map_interval(found: APDraws, n: int, shown: float) -> Interval:
    """The interval of a mean average precision over `n` images; as many as `shown`, or clusters, have a positive."""
    if found.error < 1e-12 or np.nanmax(found.draws) - np.nanmin(found.draws) < 1e-12:
        return wilson(found.value * shown, shown)
    most = 1 - 1 / (2 * n)
    centre = min(max(found.centre, 1 / (2 * n)), most if found.weight is None else max(most, found.about))
    low, high = on_logit_scale(centre, found.error, quantile(found.freedom))
    return min(low, found.value), max(high, found.value)


@dataclass(frozen=True)
class APDraws:
    """A mean average precision and how it varies between resamples of images, or without each cluster.

    Attributes:
        value: as measured on these images.
        about: what the draws are draws of: of `area` and `envelope` the average precision expected of all images
            there are (`metrics.curve_average_precision`), of `11pt` the value.
        draws: float64 [count], NaN where nothing is positive.
        population: whether the interval is about all images there are, not about test sets of this size.
        positives: of a class, the harmonic mean over classes.
        weight: images of each cluster, float64 [count]; None: draws are resamples.
    """

    value: float
    about: float
    draws: NDArray[np.float64]
    population: bool
    positives: float
    weight: NDArray[np.float64] | None = None

    @property
    def centre(self) -> float:
        """`about`, less what it is estimated to be too high by: what resampling adds once more, or the jackknife's."""
        if not self.population or np.isnan(self.draws).all():
            return self.about
        drawn = float(np.nanmean(self.draws))
        if self.weight is None:
            return 2 * self.about - drawn
        return self.about - (self.draws.size - 1) * (drawn - self.about)

    @property
    def error(self) -> float:
        """Root of the spread and of what is not known of the bias: the mean square of the draws about `about`.

        Resampling P positives understates the variance by (P − 1) / P, which is scaled back.
        """
        if self.weight is not None:
            error = clustered.jackknife(self.about, self.draws, self.weight).error
            return math.hypot(error, self.about - self.centre)
        scale = self.positives / (self.positives - 1) if self.positives > 2 else 2.0
        return math.sqrt(scale * float(np.nanmean((self.draws - self.about) ** 2)))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `error`."""
        if self.weight is None:
            return math.inf
        return clustered.jackknife(self.about, self.draws, self.weight).freedom


def mean_average_precision_draws(
    scores: Floats,
    labels: NDArray[np.uint8],
    seed: int,
    difficult: Difficult,
    kinds: Sequence[APKind],
    count: int = RESAMPLES,
    cluster: Ints | None = None,
) -> dict[APKind, APDraws]:
    """Mean average precisions and their draws; equal seeds draw equal images.

    Of more than `count` clusters, seeded groups of them are left out.

    Args: as `mean_average_precision_scores`.

    >>> labels = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8)
    >>> scores = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    >>> mean_average_precision_draws(scores, labels, 0, "ignore", ["area"])["area"].value
    1.0
    """
    n = len(scores)
    ranked = list(average_precision.rankings(scores, labels, difficult))
    counts = [one.hits.size for one in ranked if one.hits.size]
    if cluster is not None and (groups := int(cluster.max()) + 1) > count:
        cluster = (np.random.default_rng(seed).permutation(groups) % count)[cluster]
    positives = len(counts) / sum(1 / found for found in counts) if counts else 0.0
    whole = np.ones((n, 1), dtype=np.int32)
    value = _map_of_weightings(ranked, whole, kinds, expected=False)
    about = _map_of_weightings(ranked, whole, kinds)
    chunks = _weight_chunks(n, seed, count) if cluster is None else _without(cluster)
    parts = [_map_of_weightings(ranked, weights, kinds) for weights in chunks]
    return {
        kind: APDraws(
            float(value[kind][0]),
            float(about[kind][0]),
            np.concatenate([part[kind] for part in parts]),
            kind != "11pt",
            positives,
            None if cluster is None else np.bincount(cluster).astype(np.float64),
        )
        for kind in kinds
    }


def _map_of_weightings(
    ranked: list[average_precision.Ranking],
    weights: NDArray[np.int32],
    kinds: Sequence[APKind],
    *,
    expected: bool = True,
) -> dict[APKind, NDArray[np.float64]]:
    """mAP of these kinds for weightings int32 [N, B]: float64 [B], NaN where nothing is positive.

    With `expected`, of all images there are, but for `11pt`.
    """
    found: dict[APKind, list[NDArray[np.float64]]] = {kind: [] for kind in kinds}
    for one in ranked:
        true, seen = average_precision.curve(one, weights)
        for kind in kinds:
            more = expected and kind != "11pt"
            found[kind].append(average_precision.curve_average_precision(true, seen, kind, expected=more))
    return {kind: _mean_known(np.array(classes)) for kind, classes in found.items()}


def _mean_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    mean = np.full(values.shape[1], np.nan)
    np.divide(np.where(known, values, 0).sum(axis=0), known.sum(axis=0), out=mean, where=known.any(axis=0))
    return mean


def _weight_chunks(n: int, seed: int, count: int) -> Iterator[NDArray[np.int32]]:
    """`resamples` as counts of each sample, int32 [n, up to _CHUNK]."""
    counts = (np.bincount(drawn, minlength=n) for drawn in resamples(n, seed, count))
    while chunk := list(islice(counts, _CHUNK)):
        yield np.stack(chunk, axis=1).astype(np.int32)


def _without(cluster: Ints) -> Iterator[NDArray[np.int32]]:
    """All samples but those of each cluster, as counts, int32 [n, up to _CHUNK]."""
    for start in range(0, groups := int(cluster.max()) + 1, _CHUNK):
        yield (cluster[:, None] != np.arange(groups)[start : start + _CHUNK]).astype(np.int32)


def _mean_prevalence(labels: NDArray[np.uint8], difficult: Difficult) -> float:
    positive, ignore = average_precision.positives(labels, difficult)
    kept = labels.shape[0] - (0 if ignore is None else ignore.sum(axis=0))
    count = positive.sum(axis=0)
    return float((count / np.maximum(kept, 1))[count > 0].mean())
