"""Ranks, hits and average precision of retrieval, expected when keys of equal score are put in random order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics.arrays import Floats, Ints


def expected_rank(better: Ints, tied: Ints, best: Ints) -> NDArray[np.float64]:
    """Rank of the best target, from 1 on, expected when equal scores are put in random order: float64 [Q].

    The first of `best` targets among `best + tied` keys in random order stands behind tied / (best + 1) others.

    Args:
        better: int64 [Q], keys that score more than the best target.
        tied: int64 [Q], keys with the same score that are no targets.
        best: int64 [Q], targets that have this score.

    >>> expected_rank(np.array([0, 2, 0]), np.array([0, 1, 8]), np.array([1, 1, 2])).tolist()
    [1.0, 3.5, 3.6666666666666665]
    """
    return 1 + better + tied / (best + 1)


def expected_hit(better: Ints, tied: Ints, best: Ints, k: int) -> NDArray[np.float64]:
    """Chance that a target is among the first k keys when equal scores are put in random order: float64 [Q].

    Of the tied group, of n = tied + best keys, the first f = k − better are in: 1 − C(n − best, f) / C(n, f). So
    where all keys score alike, it is what guessing gets: k / keys for a single target.

    Args: as `expected_rank`.

    >>> expected_hit(np.array([0, 2, 0]), np.array([0, 1, 8]), np.array([1, 1, 2]), 1).round(4).tolist()
    [1.0, 0.0, 0.2]
    >>> expected_hit(np.array([0, 2, 0]), np.array([0, 1, 8]), np.array([1, 1, 2]), 3).round(4).tolist()
    [1.0, 0.5, 0.5333]
    """
    room = np.clip(k - better, 0, tied + best)
    miss = np.ones(len(better))
    for i in range(int(best.max(initial=0))):  # the i-th of the best targets is outside too
        left = tied + best - i
        miss *= np.where(i < best, np.maximum(left - room, 0) / np.maximum(left, 1), 1)
    return 1 - miss


def ties(ordered: Floats) -> tuple[Ints, Ints]:
    """The places that share a value with each place of sorted rows [Q, K]: [first, end), int64 [Q, K] both.

    >>> first, end = ties(np.array([[0.9, 0.5, 0.5, 0.1]]))
    >>> first.tolist(), end.tolist()
    ([[0, 1, 1, 3]], [[1, 3, 3, 4]])
    """
    width = ordered.shape[1]
    place = np.arange(width)
    change = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(ordered), 1), dtype=np.bool_)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, change], axis=1), place, 0), axis=1)
    ends = np.where(np.concatenate([change, edge], axis=1), place + 1, width)
    return first, np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]


def expected_average_precision(own: Floats, scores: Floats, more: Ints) -> NDArray[np.float64]:
    """Average precision over the first R keys, R being how many targets a query has (MAP@R is its mean): float64 [Q].

    (1 / R) · Σ over ranks p ≤ R that hold a target of the precision at p (Musgrave et al. 2020, arXiv 2003.08505),
    expected when equal scores are put in random order (McSherry & Najork 2008).

    Args:
        own: float [Q, most targets], scores of a query's targets, padded with NaN.
        scores: float [Q, K], the K highest scores of any keys, descending; K is at least R, or all keys.
        more: int64 [Q], how many further keys have the last of these scores.

    >>> own = np.array([[0.9, 0.5, 0.1], [0.5, 0.5, np.nan]])
    >>> scores = np.array([[0.9, 0.7, 0.5, 0.4], [0.5, 0.5, 0.5, 0.5]])
    >>> expected_average_precision(own, scores, np.array([0, 0])).round(4).tolist()
    [0.5556, 0.4167]
    """
    wanted = (~np.isnan(own)).sum(axis=1)
    width = scores.shape[1]
    place = np.arange(width)
    first, end = ties(scores)
    size = end - first + np.where(end == width, more[:, None], 0)
    before, among = np.zeros(scores.shape), np.zeros(scores.shape)
    for target in own.T:
        before += target[:, None] > scores
        among += target[:, None] == scores
    # If a target is at this place of its group, the group's others are evenly spread over the places before it.
    ahead = before + (place - first) * (among - 1) / np.maximum(size - 1, 1)
    gain = among / size * (ahead + 1) / (place + 1)
    mean: NDArray[np.float64] = (gain * (place < wanted[:, None])).sum(axis=1) / wanted
    return mean


def expected_ndcg(own: Floats, scores: Floats, more: Ints, k: int) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain over the first k keys, a target's gain being 1 (nDCG@k is its mean).

    float64 [Q], expected when equal scores are put in random order (McSherry & Najork 2008).

    Σ over ranks p ≤ k that hold a target of 1 / log2(p + 1), over what the best order would give (Järvelin & Kekäläinen
    2002, ACM TOIS 20:422).

    Args: as `expected_average_precision`; K is at least k, or all keys.

    >>> own = np.array([[0.9, 0.5], [0.5, np.nan]])
    >>> scores = np.array([[0.9, 0.7, 0.5, 0.4], [0.5, 0.5, 0.5, 0.5]])
    >>> expected_ndcg(own, scores, np.array([0, 0]), k=3).round(4).tolist()
    [0.9197, 0.5327]
    """
    wanted = (~np.isnan(own)).sum(axis=1)
    width = scores.shape[1]
    place = np.arange(width)
    first, end = ties(scores)
    size = end - first + np.where(end == width, more[:, None], 0)
    among = np.zeros(scores.shape)
    for target in own.T:
        among += target[:, None] == scores
    discount = 1 / np.log2(place + 2)
    best = np.cumsum(1 / np.log2(np.arange(k) + 2))
    gain = (among / size * discount)[:, :k].sum(axis=1)
    found: NDArray[np.float64] = gain / best[np.minimum(wanted, k) - 1]
    return found
