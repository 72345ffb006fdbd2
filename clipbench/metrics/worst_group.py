"""The accuracy on the group of samples that a model does worst on, with bounds that hold whichever group that is.

The lowest of several measured accuracies is below the lowest true one, the more so the more groups there are and the
fewer samples they have; a bootstrap repeats that, and its intervals miss. The lowest true accuracy is at least the
lowest of lower bounds that hold one by one, and at most the lowest of upper bounds that hold all together (Berger 1982,
Technometrics 24:295; Chernozhukov, Lee & Rosen 2013, Econometrica 81:667): no more is assumed of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics import clustered, intervals
from clipbench.metrics.arrays import Ints
from clipbench.metrics.clustered import Doubles
from clipbench.metrics.intervals import Interval, Score
from clipbench.metrics.paired_tests import Difference

_TAIL: Final = 0.025


def codes(names: Sequence[str] | NDArray[np.object_]) -> Ints:
    """The group of each sample as a number from 0 on, in the order of the names: int64 [n].

    >>> codes(["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    return np.unique(np.asarray(names, dtype=object), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class _Group:
    """What is known of one group's accuracy: as much as `size` independent samples would tell of it.

    Where samples come in clusters, or probes in draws, that is from their spread (Korn & Graubard 1998, Survey
    Methodology 24:193), at `freedom` degrees of freedom.
    """

    value: float
    n: int
    size: float
    freedom: float

    def ends(self, tail: float) -> Interval:
        """Bounds that are missed with a probability of `tail` each, at most."""
        known = self.size * (intervals.quantile(tail=tail) / intervals.quantile(self.freedom, tail)) ** 2
        return intervals.exact(self.value * known, known, tail)


def _groups(hits: Doubles, group: Ints, cluster: Ints | None) -> list[_Group]:
    """Each group, from 0 on; args as of `worst_group`."""
    found = []
    for one in range(int(group.max()) + 1):
        own, rows = hits[:, group == one], np.flatnonzero(group == one)
        mean, draws = own.mean(axis=0), own.mean(axis=1)
        value, size, freedom = float(np.clip(mean.mean(), 0, 1)), float(rows.size), math.inf
        error = 0.0 if len(draws) == 1 else float(mean.std()) / math.sqrt(max(rows.size - 1, 1))
        if cluster is not None:
            spread = clustered.spread(mean, np.unique(cluster[rows], return_inverse=True)[1])
            error, size, freedom = spread.error, spread.clusters, max(1.0, spread.clusters - 1)
        if len(draws) > 1:
            half, freedom = intervals.of_draws(draws.tolist(), error, min(freedom, rows.size - 1) + 1)
            error = half / intervals.quantile(freedom) if half else 0.0
        if error > 0 and 0 < value < 1:
            size = min(value * (1 - value) / error**2, float(rows.size))
        else:  # all agree: each sample, or cluster, counts as one
            freedom = math.inf
        found.append(_Group(value, rows.size, size, freedom))
    return found


def _ends(groups: Sequence[_Group]) -> tuple[Interval, list[int]]:
    """Bounds of the lowest true accuracy, and the groups that may have it.

    The bounds from above must hold together for as many groups as can be the lowest: those that are below all such
    bounds. That a group is wrongly not among them moves the level of the others by little.
    """
    lows = [one.ends(_TAIL)[0] for one in groups]
    together = min(one.ends(_TAIL / len(groups))[1] for one in groups)
    lowest = [place for place, low in enumerate(lows) if low <= together]
    return (min(lows), min(groups[place].ends(_TAIL / len(lowest))[1] for place in lowest)), lowest


def worst_group(
    hits: Doubles, group: Ints, cluster: Ints | None, chance: float | None
) -> tuple[Score, list[Score]]:
    """The lowest accuracy of a group, its n being that group's, and the accuracy of each group by itself.

    Args:
        hits: float64 [R, n], which samples each of R draws (of shots; else 1) has right.
        group: int64 [n], from 0 on, none empty.
        cluster: int64 [n], which samples belong together; None: each is by itself.

    >>> hits, group = np.array([[1.0, 1, 1, 0, 1, 0]]), np.array([0, 0, 0, 0, 1, 1])
    >>> lowest, (one, other) = worst_group(hits, group, None, chance=None)
    >>> lowest.value, lowest.n, one.value, other.value
    (0.5, 2, 0.75, 0.5)
    """
    groups = _groups(hits, group, cluster)
    worst = min(groups, key=lambda one: one.value)
    low, high = _ends(groups)[0]
    every = [Score(one.value, one.ends(_TAIL), one.n, chance) for one in groups]
    return Score(worst.value, (min(low, worst.value), max(high, worst.value)), worst.n, chance), every


def difference(
    first: Doubles, second: Doubles, group: Ints, cluster: Ints | None, *, same: bool
) -> Difference:
    """How much higher the second's accuracy is on its worst group than the first's is on its own.

    The second is worse where one of its groups is below every group of the first; so each that may be its worst is
    tested against every group of the first, the least clear of those counts, and p is that of the clearest, times how
    many there are (Berger 1982; Bonferroni). Whichever groups are the lowest, and however many, that is never too sure.
    The standard error of a difference of two groups is from what samples, or clusters, do to both; two more samples a
    group, on which either model alone is right, keep it from 0 (of one group so is Bonett & Price's interval, of two
    groups Agresti & Caffo's, The American Statistician 2000, 54:280).

    Args:
        first, second, group, cluster: as of `worst_group`.
        same: both had the same shots in each draw.

    >>> hits, group = np.array([[1.0] * 30]), np.arange(30) % 2
    >>> found = difference(hits, hits * (group == 0), group, None, same=False)
    >>> found.value, found.p < 1e-6, found.p_more
    (-1.0, True, 1.0)
    """
    sides = [_groups(one, group, cluster) for one in (first, second)]
    lowest = [_ends(groups)[1] for groups in sides]
    off, error, freedom = _contrasts(first, second, group, cluster, same=same)
    off, error, freedom = off.T, error.T, freedom.T  # [of the first, of the second]
    from scipy.stats import t

    below, above = t.cdf(off / error, freedom), t.sf(off / error, freedom)
    less = float(below[:, lowest[1]].max(axis=0).min()) * len(lowest[1])
    more = float(above[lowest[0]].max(axis=1).min()) * len(lowest[0])
    up, down = (t.isf(_TAIL / len(of), freedom) * error for of in (lowest[1], lowest[0]))
    low = float((off - down)[lowest[0]].min(axis=1).max())
    high = float((off + up)[:, lowest[1]].max(axis=0).min())
    one, other = (min(single.value for single in groups) for groups in sides)
    value, less, more = other - one, min(1.0, less), min(1.0, more)
    n = group.size if cluster is None else int(cluster.max()) + 1
    method = f"worst groups, all pairs{'' if cluster is None else ', of clusters'}"
    ci95 = max(-1.0, min(low, value)), min(1.0, max(high, value))
    return Difference(value, ci95, min(1.0, 2 * min(less, more)), less, more, method, n)


def _contrasts(
    first: Doubles, second: Doubles, group: Ints, cluster: Ints | None, *, same: bool
) -> tuple[Doubles, Doubles, Doubles]:
    """The second's accuracy on a group (row) less the first's on another (column): float64 [G, G], its standard error
    and degrees of freedom."""
    from scipy.sparse import csr_array

    count = int(group.max()) + 1
    of = np.arange(group.size) if cluster is None else cluster
    # Two more samples a group, each by itself and right for one model alone.
    rows = np.concatenate([of, int(of.max()) + 1 + np.arange(2 * count)])
    places = np.concatenate([group, np.repeat(np.arange(count), 2)])
    total = np.bincount(places)
    values, effects = [], []
    for hits, added in ((first, [0.0, 1.0]), (second, [1.0, 0.0])):
        each = np.concatenate([hits.mean(axis=0), np.tile(added, count)])
        value = np.bincount(places, weights=each) / total
        values.append(value)
        effects.append(csr_array(((each - value[places]) / total[places], (rows, places))))
    one, other = effects
    square = (
        (other.T @ other).diagonal()[:, None] + (one.T @ one).diagonal()[None] - 2 * (other.T @ one).toarray()
    )
    freedom = np.full((count, count), np.inf)
    if cluster is not None:
        held = np.array(
            [intervals.alike(np.unique(of[group == g], return_counts=True)[1]) for g in range(count)]
        )
        fewer = np.maximum(2.0, np.minimum(held[:, None], held[None]))
        square, freedom = square * fewer / (fewer - 1), fewer - 1
    between, fewest = _between(first, second, group, same=same)
    return values[1][:, None] - values[0][None], np.sqrt(square + between), np.minimum(freedom, fewest)


def _between(first: Doubles, second: Doubles, group: Ints, *, same: bool) -> tuple[Doubles, float]:
    """The variance of each contrast that comes from draws, and the degrees of freedom that these leave."""
    one, other = (
        np.stack([clustered.sums(group, draw) for draw in hits]) / np.bincount(group)
        for hits in (first, second)
    )
    if same and len(one) > 1:
        return np.var(other[:, :, None] - one[:, None], axis=0, ddof=1) / len(one), len(one) - 1.0
    parts = [
        np.var(side, axis=0, ddof=1) / len(side) if len(side) > 1 else np.zeros(side.shape[1])
        for side in (one, other)
    ]
    fewest = min([len(side) - 1.0 for side in (one, other) if len(side) > 1], default=math.inf)
    return parts[1][:, None] + parts[0][None], fewest
