"""Scores with their uncertainty: 95 % intervals for every metric, the same for the same seed.

Wilson's interval for proportions; a bootstrap of 1,000 seeded resamples for the rest. The interval is about
which samples the test set happened to hold, of few-shot probes also which shots were drawn; it says nothing of
training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics import classification
from clipbench.metrics.arrays import Bools, Ints

RESAMPLES: Final = 1_000
_Z: Final = NormalDist().inv_cdf(0.975)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """One number that can be judged.

    Attributes:
        value: a fraction of 1, but for ranks (metrics whose name ends in `_rank`), which count from 1.
        ci95: lower and upper end of the 95 % interval.
        n: samples that the value is over.
        chance: what a model that cannot tell the samples apart gets; None where that is not defined.

    Raises:
        ValueError: a number is not finite (leave an unscored metric out), or n is not positive.
    """

    value: float
    ci95: Interval
    n: int
    chance: float | None

    def __post_init__(self) -> None:
        low, high = self.ci95
        if not (
            math.isfinite(self.value)
            and math.isfinite(low)
            and math.isfinite(high)
            and (self.chance is None or math.isfinite(self.chance))
        ):
            raise ValueError(f"a score must be finite (found {self}); leave an unscored metric out")
        if self.n < 1 or low > high:
            raise ValueError(f"a score needs at least one sample and an ordered interval (found {self})")


def wilson(successes: float, n: float) -> Interval:
    """95 % score interval of a proportion (Wilson, JASA 1927, 22:209–212).

    Fractional counts are allowed: an effective sample size serves as well as a real one (`scipy.stats.binomtest` takes
    whole ones alone, and differs in the last digit).

    Raises:
        ValueError: no trials, or more successes than trials.

    >>> tuple(round(end, 4) for end in wilson(8, 10))
    (0.4902, 0.9433)
    """
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"{successes} successes in {n} trials")
    p, z2 = successes / n, _Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and 1 an end meets the value; rounding must not leave the value outside its own interval.
    return min(max(0.0, centre - half), p), max(min(1.0, centre + half), p)


def exact(successes: float, n: float, tail: float = 0.025) -> Interval:
    """Bounds of a proportion that are each missed with a probability of `tail` at most (Clopper & Pearson, Biometrika
    1934, 26:404); fractional counts are allowed, as of `wilson`.

    >>> tuple(round(end, 4) for end in exact(8, 10))
    (0.4439, 0.9748)
    """
    from scipy.special import betaincinv

    low = 0.0 if successes <= 0 else float(betaincinv(successes, n - successes + 1, tail))
    return low, 1.0 if successes >= n else float(betaincinv(successes + 1, n - successes, 1 - tail))


def quantile(freedom: float = math.inf, tail: float = 0.025) -> float:
    """How many standard errors from the mean `tail` lies beyond, of Student's t or of the normal distribution: by
    default, how many 95 % lie within.

    >>> round(quantile(4), 3), round(quantile(), 3)
    (2.776, 1.96)
    """
    if math.isinf(freedom):
        return NormalDist().inv_cdf(1 - tail)
    # What `scipy.stats.t.ppf` asks: importing all of `scipy.stats` takes several times as long.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - tail))


def alike(sizes: NDArray[Any]) -> float:
    """How many clusters of equal size would weigh as those of `sizes` do: (Σ s)² / Σ s² (Kish 1965, section 8.2).

    >>> alike(np.array([10, 10, 10])), alike(np.array([98, 1, 1])) < 1.1
    (3.0, True)
    """
    return float(sizes.sum()) ** 2 / float((sizes.astype(np.float64) ** 2).sum())


def percentile(draws: NDArray[np.float64]) -> Interval:
    """Middle 95 % of bootstrap `draws` (float64 [B]); NaN draws, where nothing could be scored, drop out.

    >>> percentile(np.arange(101.0))
    (2.5, 97.5)
    """
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return float(low), float(high)


def basic(value: float, draws: NDArray[np.float64], floor: float = -math.inf) -> Interval:
    """The percentiles of `draws` reflected about `value` (the basic bootstrap; Davison & Hinkley 1997, chapter 5).

    For statistics that noise makes larger, such as means of absolute values: resamples then lie above the measured
    value by about as much as that lies above the truth, and plain percentiles may not hold the truth, nor the value.

    >>> basic(1.0, np.arange(1.0, 102.0), floor=0.0)
    (0.0, 1.0)
    """
    low, high = percentile(draws)
    return max(floor, min(value, 2 * value - high)), max(value, 2 * value - low)


def resamples(n: int, seed: int, count: int = RESAMPLES) -> Iterator[Ints]:
    """`count` draws of n sample indices with replacement, each int64 [n].

    >>> [draw.tolist() for draw in resamples(3, seed=0, count=2)]
    [[2, 1, 1], [0, 0, 0]]
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.integers(n, size=n)


def stratified(strata: Ints, seed: int, count: int = RESAMPLES) -> Iterator[Ints]:
    """`count` draws with replacement within each stratum: how often each sample is drawn, int64 [n].

    Args:
        strata: int64 [n], the stratum of each sample.

    >>> [draw.tolist() for draw in stratified(np.array([0, 0, 1, 0]), seed=0, count=2)]
    [[0, 2, 1, 1], [3, 0, 1, 0]]
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    for _ in range(count):
        drawn = [rows[rng.integers(len(rows), size=len(rows))] for rows in members]
        yield np.bincount(np.concatenate(drawn), minlength=strata.size)


def bootstrap(
    n: int, statistic: Callable[[Ints], float], seed: int, count: int = RESAMPLES
) -> NDArray[np.float64]:
    """`statistic` of each of `resamples`: float64 [count]. It is given the drawn indices.

    >>> bootstrap(2, lambda drawn: float(drawn.mean()), seed=0, count=3).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.array([statistic(drawn) for drawn in resamples(n, seed, count)])


def bootstrap_mean(values: NDArray[np.float64], seed: int, count: int = RESAMPLES) -> Interval:
    """95 % interval of the mean of per-sample `values` (float64 [N], N ≥ 1).

    >>> bootstrap_mean(np.full(5, 0.25), seed=0)
    (0.25, 0.25)
    """
    return percentile(bootstrap(values.size, lambda drawn: float(values[drawn].mean()), seed, count))


def of_seeds(values: Sequence[float]) -> tuple[float, Interval]:
    """Mean of runs that differ in their seed alone, and the 95 % interval of that mean by Student's t.

    Raises:
        ValueError: fewer than two runs.

    >>> mean, (low, high) = of_seeds([1.0, 2.0, 3.0])
    >>> mean, round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    if len(values) < 2:
        raise ValueError("an interval over seeds needs two runs at least")
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = quantile(len(values) - 1) * spread / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def of_draws(values: Sequence[float], error: float, n: float) -> tuple[float, float]:
    """How uncertain the mean of `values` is, of draws (of shots) that are all measured on the same images.

    Returns half the width of its 95 % interval, and the degrees of freedom: Student's t at Welch's degrees for the sum
    of two variances, of which draws and of which images there are (Satterthwaite 1946, Biometrics Bulletin 2:110). A
    single draw says nothing of others, so that only the images count.

    Args:
        values: R ≥ 1 of them, one a draw.
        error: standard error of their mean where the images alone vary.
        n: images; where they belong together in clusters, one more than the degrees of freedom of `error`.

    >>> half, freedom = of_draws([0.5, 0.6, 0.7], 0.0, 100)
    >>> round(half, 3), freedom  # as `of_seeds`
    (0.248, 2.0)
    """
    count = len(values)
    between = float(np.var(values, ddof=1)) / count if count > 1 else 0.0
    total = between + error**2
    if total == 0:
        return 0.0, math.inf
    parts = between**2 / max(count - 1, 1) + error**4 / max(n - 1, 1)
    freedom = total**2 / parts
    return quantile(freedom) * math.sqrt(total), freedom


def accuracy_score(correct: Bools, chance: float | None) -> Score:
    """Share of samples that are right (bool [N], N ≥ 1), with Wilson's interval.

    >>> accuracy_score(np.array([True, False, True, True]), chance=0.1).value
    0.75
    """
    right = int(np.count_nonzero(correct))
    return Score(right / correct.size, wilson(right, correct.size), correct.size, chance)


def grouped_share_score(hits: NDArray[np.float64], group: Ints, chance: float | None) -> Score:
    """Mean of `hits` that come in groups, such as the captions of an image, with Wilson's interval.

    Its sample size is what would give independent hits the spread that the groups' sums show (the variance of a ratio;
    Cochran 1977, chapter 6), at most all hits; where they show none, the number of groups.

    Args:
        hits: float64 [Q], 0 to 1; between them where ties are counted as expected.
        group: int64 [Q], from 0 on, none empty.

    >>> score = grouped_share_score(np.array([1.0, 1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 1, 1, 2]), chance=0.2)
    >>> score.value, score.n, tuple(round(end, 3) for end in score.ci95)
    (0.6, 5, (0.121, 0.942))
    """
    value = float(hits.mean())
    groups = int(group.max()) + 1
    off = np.bincount(group, weights=hits - value)
    spread = float((off**2).sum()) * groups / max(groups - 1, 1) / hits.size**2
    alike = value * (1 - value)
    effective = min(alike / spread, hits.size) if spread > 0 and alike > 0 else groups
    value = min(max(value, 0.0), 1.0)
    return Score(value, wilson(value * effective, effective), hits.size, chance)


def clustered_draws(values: NDArray[np.float64], cluster: Ints, seed: int) -> NDArray[np.float64]:
    """Bootstrap draws of the mean of `values` (float64 [N]), whole clusters (int64 [N]) being resampled.

    The cluster bootstrap; Davison & Hinkley 1997, section 3.8.

    >>> clustered_draws(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 7]), seed=0).max()
    np.float64(1.0)
    """
    _, place = np.unique(cluster, return_inverse=True)
    sums, counts = np.bincount(place, weights=values), np.bincount(place)
    return bootstrap(counts.size, lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), seed)


def median_of_weighted(ordered: NDArray[np.float64], weights: Ints) -> float:
    """The median of ascending values that count as often as `weights` (int64) says; the middle of the middle two.

    >>> median_of_weighted(np.array([1.0, 2.0, 4.0]), np.array([1, 0, 1]))
    2.5
    """
    upto = np.cumsum(weights)
    low, high = np.searchsorted(upto, [(upto[-1] - 1) // 2, upto[-1] // 2], side="right")
    return float(ordered[low] + ordered[high]) / 2


def clustered_mean_score(
    values: NDArray[np.float64], cluster: Ints, chance: float | None, seed: int
) -> Score:
    """Mean of `values` in 0 to 1 (float64 [N], N ≥ 1) that belong together in clusters (int64 [N]).

    Expressions of one image share its difficulty, so whole clusters are resampled (`clustered_draws`). Where no draw
    differs, the interval is Wilson's, a cluster counting as one sample.

    >>> score = clustered_mean_score(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 7]), None, seed=0)
    >>> round(score.value, 4), score.ci95, score.n
    (0.6667, (0.0, 1.0), 3)
    """
    draws = clustered_draws(values, cluster, seed)
    value, clusters = float(values.mean()), np.unique(cluster).size
    interval = percentile(draws) if np.ptp(draws) > 1e-12 else wilson(value * clusters, clusters)
    return Score(value, interval, values.size, chance)


def mean_per_class_recall_score(target: Ints, prediction: Ints, n_classes: int, seed: int) -> Score:
    """Mean per-class recall with a bootstrap interval, resampled within each class.

    Drawing n samples with replacement from a class of which k are right is a draw from Binomial(n, k/n).
    That understates the spread by (n − 1)/n, much in small classes, and is scaled back (Rao & Wu, JASA 1988).
    Classes of a single sample show no spread of their own and are resampled together. Where no draw differs,
    as when every sample is right, the interval is Wilson's at the effective sample size C² / Σ 1/n.

    Args:
        target, prediction: int64 [N], class indices below `n_classes`.

    Raises:
        ValueError: shapes disagree, an index is not a class, or there are no samples.

    >>> score = mean_per_class_recall_score(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2, seed=0)
    >>> score.value, score.chance
    (0.75, 0.5)
    """
    hits, counts = classification.class_hits(target, prediction, n_classes)
    hits, counts = hits[counts > 0], counts[counts > 0]
    if not counts.size:
        raise ValueError("no samples to score")
    value = float((hits / counts).mean())
    draws = value + _stratified_deviations(hits, counts, value, np.random.default_rng(seed))
    if np.ptp(draws) > 0:
        low, high = percentile(np.clip(draws, 0, 1))
    else:
        effective = counts.size**2 / float((1 / counts).sum())
        low, high = wilson(value * effective, effective)
    return Score(value, (low, high), target.size, 1 / n_classes)


def _stratified_deviations(
    hits: Ints, counts: Ints, value: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Deviations of the mean recall from `value` under resampling within strata: float64 [RESAMPLES]."""
    alone = counts == 1
    n, share = counts[~alone], hits[~alone] / counts[~alone]
    classes = np.ones(n.size)
    singles = int(alone.sum())
    if singles:
        # All single-sample classes are one stratum. If there is but one, the best guess at its spread is the
        # Bernoulli spread at the overall recall, which n = 2 gives once it is scaled.
        n = np.append(n, max(singles, 2))
        share = np.append(share, hits[alone].mean() if singles > 1 else value)
        classes = np.append(classes, singles)
    drawn = rng.binomial(n, share, size=(RESAMPLES, n.size)) / n - share
    deviation: NDArray[np.float64] = drawn @ (np.sqrt(n / (n - 1)) * classes) / counts.size
    return deviation


def on_logit_scale(value: float, error: float, quantile: float = _Z) -> Interval:
    """95 % interval of a share, 0 < value < 1, with this standard error: symmetric in ln(p / (1 − p)).

    >>> [round(end, 4) for end in on_logit_scale(0.9, 0.05)]
    [0.7518, 0.9639]
    """
    at, half = math.log(value / (1 - value)), quantile * error / (value * (1 - value))
    return 1 / (1 + math.exp(min(half - at, 700.0))), 1 / (1 + math.exp(-at - half))


def ece_score(confidence: NDArray[np.float64], correct: Bools, seed: int, bins: int = 15) -> Score:
    """Expected calibration error with a bootstrap interval over samples; it has no chance level.

    Noise makes every bin's gap look larger, so the interval is `basic`: plain percentiles never cover the truth of a
    well-calibrated model.

    Args: as `metrics.ece`, N ≥ 1.

    >>> score = ece_score(np.array([0.95, 0.95, 0.55]), np.array([True, False, True]), seed=0)
    >>> round(score.value, 4)
    0.45
    """
    value = classification.ece(confidence, correct, bins)
    gap, place = confidence - correct, classification.confidence_bin(confidence, bins)

    def resampled(drawn: Ints) -> float:
        return float(np.abs(np.bincount(place[drawn], weights=gap[drawn])).sum() / gap.size)

    return Score(value, basic(value, bootstrap(gap.size, resampled, seed), 0.0), gap.size, None)
