"""Two models on the same samples: paired tests and intervals of the difference, exact where that can be.

All of it is about which samples the test set happened to hold, of few-shot probes also which shots were drawn; it says
nothing of training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics import intervals
from clipbench.metrics.average_precision import APKind, Difficult
from clipbench.metrics.average_precision_intervals import mean_average_precision_draws
from clipbench.metrics.clustered import Spread
from clipbench.metrics.intervals import Interval, Score
from clipbench.metrics.joint import Contributions, summed

_NORMAL: Final = NormalDist()
_Z: Final = _NORMAL.inv_cdf(0.975)
#: up to this many differences that are not 0, every assignment of signs is looked at
EXACT: Final = 14
#: otherwise so many random ones
FLIPS: Final = 20_000
_BLOCK: Final = 4_000_000  # signs drawn at a time
#: by which a sum of random signs may pass a normal tail
_RADEMACHER: Final = 1 / (4 * _NORMAL.cdf(-math.sqrt(2)))
_FAR: Final = 1e-9


@dataclass(frozen=True)
class Difference:
    """How much more the second has than the first.

    Attributes:
        value: second minus first, in the metric's unit.
        ci95: its 95 % interval, for this one comparison.
        p: two-sided probability of a difference as large where there is none.
        p_less, p_more: one-sided, of one as far below or above 0.
        method: how p was found.
        n: independent samples that were paired.
    """

    value: float
    ci95: Interval
    p: float
    p_less: float
    p_more: float
    method: str
    n: int


def of_means(first: NDArray[np.float64], second: NDArray[np.float64], seed: int) -> Difference:
    """The difference of two means over the same independent samples (float64 [N], N ≥ 1).

    Under no difference, either model could have been either: each sample's difference is as likely with the other
    sign. Where all that differ do so by the same amount, as right and wrong do, that is the exact McNemar test
    (McNemar 1947, Psychometrika 12:153); for few samples all signs are enumerated, otherwise drawn (Phipson & Smyth
    2010, for the p value of draws). The interval is Bonett & Price's for paired proportions (2012, Journal of
    Educational and Behavioral Statistics 37:479) where outcomes are right or wrong, otherwise the bootstrap's.

    >>> found = of_means(np.array([1.0, 1, 1, 1, 0]), np.array([0.0, 0, 0, 1, 0]), seed=0)
    >>> round(found.value, 3), found.p, found.p_less, found.method
    (-0.6, 0.25, 0.125, 'McNemar, exact')
    """
    d = second - first
    less, more, method = sign_flip(d, seed)
    binary = bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all())
    if binary:
        ci95 = _bonett_price(int((d > 0).sum()), int((d < 0).sum()), d.size)
    else:
        ci95 = intervals.bootstrap_mean(d, seed)
        method = method.replace("McNemar", "sign test")
    value = float(d.mean())
    ci95 = min(ci95[0], value), max(ci95[1], value)
    return Difference(value, ci95, min(1.0, 2 * min(less, more)), less, more, method, d.size)


def of_clusters(values: NDArray[np.float64], spread: Spread, seed: int) -> Difference:
    """The difference of two means over samples that belong together in clusters.

    Under no difference, either model could have been either on each cluster as a whole: the test is that of `of_means`
    on what clusters add. The interval is Student's t, from `clustered.spread`.

    Args:
        values: what each cluster adds to the difference, float64 [G].
        spread: of the difference.

    >>> from clipbench.metrics import clustered
    >>> found = of_clusters(np.array([0.25, 0.25]), clustered.spread(np.full(4, 0.5), np.array([0, 0, 1, 1])), seed=0)
    >>> found.value, found.p, found.method, found.n
    (0.5, 0.5, 'sign test, exact, of clusters', 2)
    """
    less, more, method = sign_flip(values, seed)
    method = f"{method.replace('McNemar', 'sign test')}, of clusters"
    value = float(values.sum())
    ci95 = value - spread.half, value + spread.half
    return Difference(value, ci95, min(1.0, 2 * min(less, more)), less, more, method, values.size)


def sign_flip(d: NDArray[np.float64], seed: int) -> tuple[float, float, str]:
    """One-sided p values of a mean of differences (float64 [N]) below and above 0, and how they were found.

    >>> sign_flip(np.array([0.5, 0.25, 0.0]), seed=0)
    (1.0, 0.25, 'all signs')
    """
    sizes, counts = np.unique(np.round(np.abs(d[d != 0]), 12), return_counts=True)
    if not sizes.size or sizes.max() == 0:
        return 1.0, 1.0, "no difference"
    if sizes.size == 1:
        from scipy.special import bdtr

        k, of = int((d > 0).sum()), int(counts[0])
        return float(bdtr(k, of, 0.5)), float(bdtr(of - k, of, 0.5)), "McNemar, exact"
    total = float(d.sum())
    m = int(counts.sum())
    slack = 1e-9 * float(np.abs(d).sum())  # sums of equal terms in another order are equal
    if m <= EXACT:
        magnitudes = np.repeat(sizes, counts)
        signs = 2 * ((np.arange(2**m)[:, None] >> np.arange(m)) & 1) - 1
        sums = signs @ magnitudes
        return float((sums <= total + slack).mean()), float((sums >= total - slack).mean()), "all signs"
    rng = np.random.default_rng(seed)
    below = above = 0
    single = m < 8 * sizes.size  # then a bit a sample is quicker than a binomial a size
    magnitudes = np.repeat(sizes, counts) if single else sizes
    step = max(1, _BLOCK // magnitudes.size)
    for start in range(0, FLIPS, step):
        draws = min(step, FLIPS - start)
        if single:
            bits = np.frombuffer(rng.bytes(draws * -(-m // 8)), dtype=np.uint8).reshape(draws, -1)
            sums = 2 * (np.unpackbits(bits, axis=1, count=m) @ magnitudes) - magnitudes.sum()
        else:
            sums = (2 * rng.binomial(counts, 0.5, size=(draws, sizes.size)) - counts) @ magnitudes
        below += int((sums <= total + slack).sum())
        above += int((sums >= total - slack).sum())
    return (1 + below) / (1 + FLIPS), (1 + above) / (1 + FLIPS), f"{FLIPS:,} random signs"


def all_signs(d: NDArray[np.float64]) -> float:
    """Two-sided p value of a mean of differences (float64 [N]) as `sign_flip`, where it draws by a formula.

    The p value of draws is never below one in their number, which hardly any pair of many models could do with. The
    formula is the saddlepoint approximation of the tail of the same sum of random signs (Lugannani & Rice 1980,
    Advances in Applied Probability 12:475; Robinson 1982, JRSS B 44:91, for such tests) with the second continuity
    correction of Daniels 1987 (International Statistical Review 55:37) for steps of the smallest difference, which
    is right where all are multiples of it and else somewhat too careful. Far out it is a bound of that tail (Bentkus &
    Dzindzalieta 2015, Bernoulli 21:1231), which is quicker.

    >>> all_signs(np.array([0.5, 0.25, 0.0])), round(all_signs(np.linspace(-0.5, 1, 20)), 3)
    (0.5, 0.029)
    """
    sizes = np.abs(d)
    largest = float(sizes.max(initial=0.0))
    if largest == 0:
        return 1.0
    sizes = sizes[sizes > 1e-9 * largest] / largest
    total, spread = abs(float(d.sum())) / largest, math.sqrt(float((sizes**2).sum()))
    bound = _RADEMACHER * 2 * normal_tail(total / spread)
    if bound < _FAR:
        return bound
    smallest = float(sizes.min())
    if smallest > 1 - 1e-9 or sizes.size <= EXACT:
        less, more, _ = sign_flip(d / largest, seed=0)
        return min(1.0, 2 * min(less, more))
    return min(1.0, 2 * _tail(sizes, total, smallest))


def _tail(sizes: NDArray[np.float64], total: float, half: float) -> float:
    """P(S ≥ total) of the sum S of `sizes` with random signs; `half` of the step between its values."""
    at = total - half
    if at <= 0.01 * math.sqrt(float((sizes**2).sum())):
        return 0.5  # where the formula is 0/0
    if at >= (1 - 1e-9) * float(sizes.sum()):
        return float(0.5**sizes.size)
    t = 0.0
    for _ in range(100):  # Newton's method, from below: the slope falls
        curvature = float(sizes @ (sizes / np.cosh(np.minimum(sizes * t, 300)) ** 2))
        step = (at - float(sizes @ np.tanh(sizes * t))) / curvature
        t += step
        if step < 1e-9 * t:
            break
    log_cosh = float((sizes * t + np.log1p(np.exp(-2 * sizes * t)) - math.log(2)).sum())
    w = math.sqrt(2 * (t * at - log_cosh))
    u = math.sinh(t * half) / half * math.sqrt(curvature)
    return normal_tail(w) - _NORMAL.pdf(w) * (1 / w - 1 / u)


def normal_tail(z: float) -> float:
    """P(Z ≥ z) of a standard normal variable, however far out.

    >>> normal_tail(0), round(normal_tail(1.96), 4), normal_tail(20) > 0
    (0.5, 0.025, True)
    """
    return math.erfc(z / math.sqrt(2)) / 2


def _bonett_price(second_only: int, first_only: int, n: int) -> Interval:
    """95 % interval of a difference of paired proportions."""
    up, down = (second_only + 1) / (n + 2), (first_only + 1) / (n + 2)
    half = _Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def of_average_precision(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    labels: NDArray[np.uint8],
    kind: APKind,
    difficult: Difficult,
    seed: int,
    count: int = intervals.RESAMPLES,
    cluster: NDArray[np.int64] | None = None,
) -> Difference:
    """The difference of two mean average precisions over the same images; the same draws of images for both.

    As of one score (`stats.mean_average_precision_scores`), the interval is about all images there are; its standard
    error is that of the paired bootstrap, p is normal; with clusters it is their jackknife's, and p is Student's.

    Args:
        first, second: scores, float32 [N, C].
        labels: uint8 [N, C], as `metrics.mean_average_precision`.
        count: of resamples.
        cluster: int64 [N], from 0 on, which images belong together.
    """
    one, other = (
        mean_average_precision_draws(scores, labels, seed, difficult, [kind], count, cluster)[kind]
        for scores in (first, second)
    )
    found = replace(
        one, value=other.value - one.value, about=other.about - one.about, draws=other.draws - one.draws
    )
    error, value, centre = found.error, found.value, found.centre
    half = intervals.quantile(found.freedom) * error
    ci95 = min(centre - half, value), max(centre + half, value)
    method, n = "paired bootstrap", len(labels)
    if cluster is not None:
        method, n = "jackknife of clusters", int(cluster.max()) + 1
    return _about(centre, value, ci95, error, method, n, found.freedom)


def of_scores(first: Score, second: Score) -> Difference:
    """The difference of two scores of which only the intervals are known, as if of different samples.

    That is too careful for models that were measured on the same samples, which tend to fail on the same ones.

    >>> found = of_scores(Score(0.5, (0.4, 0.6), 100, None), Score(0.8, (0.7, 0.9), 100, None))
    >>> round(found.value, 3), round(found.p, 6), found.method
    (0.3, 3.2e-05, 'intervals, not paired')
    """
    error = math.hypot(*(high - low for low, high in (first.ci95, second.ci95))) / (2 * _Z)
    value = second.value - first.value
    ci95 = value - _Z * error, value + _Z * error
    return _about(value, value, ci95, error, "intervals, not paired", min(first.n, second.n))


def _about(
    centre: float, value: float, ci95: Interval, error: float, method: str, n: int, freedom: float = math.inf
) -> Difference:
    """A difference whose p is that of Student's t about `centre`, or of a normal variable."""
    from scipy.stats import t

    if error == 0:
        less, more = float(value >= 0), float(value <= 0)
    elif math.isinf(freedom):
        less, more = _NORMAL.cdf(centre / error), _NORMAL.cdf(-centre / error)
    else:
        less, more = float(t.cdf(centre / error, freedom)), float(t.sf(centre / error, freedom))
    return Difference(value, ci95, min(1.0, 2 * min(less, more)), less, more, method, n)


def of_draws(
    first: NDArray[np.float64], second: NDArray[np.float64], *, same: bool, spread: Spread | None = None
) -> tuple[Difference, float]:
    """The difference of two means over draws (of shots) and samples, and the variance that comes from the draws.

    Both which shots were drawn and which samples there are may have been others: t, as `stats.of_draws`.

    Args:
        first, second: what each sample adds in each draw, float64 [R, N] and [S, N].
        same: both had the same shots in each draw (then R = S), so that draws are paired.
        spread: of the difference, where samples belong together in clusters.

    >>> found, _ = of_draws(np.zeros((3, 4)), np.full((3, 4), 0.5) + np.array([[-0.1], [0.0], [0.1]]), same=True)
    >>> round(found.value, 3), round(found.p, 3), found.method
    (0.5, 0.013, 't over draws and samples')
    """
    gains = second.mean(axis=0) - first.mean(axis=0)
    one, other = first.mean(axis=1), second.mean(axis=1)
    value, n = float(gains.mean()), gains.size if spread is None else spread.effects.size
    error, between, freedom = over_draws(gains, one, other, same=same, spread=spread)
    if error == 0:
        return _about(value, value, (value, value), 0.0, "no spread", n), 0.0
    half = intervals.quantile(freedom) * error
    method = f"t over draws and {'samples' if spread is None else 'clusters'}"
    return _about(value, value, (value - half, value + half), error, method, n, freedom), between


def over_draws(
    gains: NDArray[np.float64],
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    *,
    same: bool,
    spread: Spread | None = None,
) -> tuple[float, float, float]:
    """Standard error of a difference over draws and samples, the variance from the draws in it, degrees of freedom.

    Args:
        gains: how much more the second has of each sample, over its draws: float64 [N].
        one, other: the score in each draw, float64 [R] and [S].
        same, spread: as of `of_draws`.
    """
    error, own = float(gains.std()) / math.sqrt(max(gains.size - 1, 1)), float(max(gains.size - 1, 1))
    if spread is not None:
        error, own = spread.error, spread.freedom
    parts = [other - one] if same else [one, other]
    told = [part for part in parts if part.size > 1]
    between = sum(float(np.var(part, ddof=1)) / part.size for part in told)
    total = between + error**2
    square = sum((float(np.var(part, ddof=1)) / part.size) ** 2 / (part.size - 1) for part in told)
    square += error**4 / own
    return math.sqrt(total), between, total**2 / square if square else math.inf


def of_contributions(parts: Sequence[Contributions], seed: int) -> Difference:
    """The mean of the differences of several tasks; images that tasks share count once, with all that they add.

    Under no difference either model could have been either on each image, in all of its tasks at once, so the test is
    that of `of_means` on what each image adds. The interval is normal, or Student's t where images come in clusters.

    >>> part = Contributions("a", ["x", "y", "z"], np.array([0.1, 0.1, 0.1]))
    >>> found = of_contributions([part, part], seed=0)  # two tasks of the same three images
    >>> round(found.value, 3), found.p_more, found.n
    (0.3, 0.125, 3)
    """
    values, error = summed(parts)
    values, error = values / len(parts), error / len(parts)
    less, more, method = sign_flip(values * values.size, seed)
    value = float(values.sum())
    freedom = min(part.freedom for part in parts)
    if any(part.more for part in parts):  # what does not come from images has no signs to flip
        method = "normal"
        less, more = (
            _NORMAL.cdf(side * value / error) if error else float(side * value >= 0) for side in (1, -1)
        )
    half = intervals.quantile(freedom) * error
    ci95 = value - half, value + half
    method = method.replace("McNemar", "sign test")
    return Difference(value, ci95, min(1.0, 2 * min(less, more)), less, more, method, values.size)


def holm(p: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """P values adjusted for how many there are (Holm 1979, Scandinavian Journal of Statistics 6:65–70).

    Calling all those below alpha different is wrong anywhere at most alpha of the time.

    Args:
        weights: how much of alpha each may use up, as shares of their sum (Holm's section 4); None: equal ones.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    >>> holm([0.02, 0.04, 0.03], weights=[2, 1, 1])
    [0.04, 0.06, 0.06]
    """
    weights = [1.0] * len(p) if weights is None else weights
    order = sorted(range(len(p)), key=lambda i: p[i] / weights[i])
    lefts = reversed(list(accumulate(weights[i] for i in reversed(order))))
    adjusted, largest = [0.0] * len(p), 0.0
    for i, left in zip(order, lefts, strict=True):
        largest = max(largest, min(1.0, left * p[i] / weights[i]))
        adjusted[i] = largest
    return adjusted
