"""How similarity with queries treats groups of images: the best of each group, and who is among the best.

Both are computed from `counts`, int64 [G, n]: how often each image counts for each group. Whole numbers other than
0 and 1 are what a bootstrap draws; where an image counts for no group it is not there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics.ranks import ties

Counts = NDArray[np.int64]


def membership(groups: NDArray[np.int64], number: int) -> Counts:
    """Each image counts once, for its own group: int64 [number, n], for groups int64 [n].

    >>> membership(np.array([0, 1, 1]), 2).tolist()
    [[1, 0, 0], [0, 1, 1]]
    """
    counts: Counts = (groups == np.arange(number)[:, None]).astype(np.int64)
    return counts


class Rankings:
    """Images ranked by their similarity with each query; sorted once, counted as often as wanted.

    >>> ranked = Rankings(np.array([[0.9], [0.7], [0.5], [0.1]]))
    >>> counts = membership(np.array([0, 0, 0, 1]), 2)
    >>> ranked.top_means(1, counts).round(6).tolist()
    [[0.9, 0.1]]
    >>> ranked.max_skew(2, counts).round(4).tolist()  # all of the best two, three quarters of all: ln(1 / 0.75)
    [0.2877]
    """

    def __init__(self, similarities: NDArray[np.floating]) -> None:
        """`similarities`: float [n, Q], finite."""
        across = similarities.T.astype(np.float64)
        self._order = np.argsort(-across, axis=1, kind="stable")
        self._sorted = np.take_along_axis(across, self._order, axis=1)
        self._first, self._end = ties(self._sorted)

    def top_means(self, k: int, counts: Counts) -> NDArray[np.float64]:
        """Mean of each group's `k` highest similarities with each query: float64 [Q, G].

        Every group must count at least `k` images.
        """
        found = np.empty((len(self._order), len(counts)))
        for group, own in enumerate(counts):
            for width in self._widths(4 * k):
                here = own[self._order[:, :width]]
                upto = np.cumsum(here, axis=1)
                if (upto[:, -1] >= k).all():
                    break
            taken = np.clip(k - (upto - here), 0, here)
            found[:, group] = (taken * self._sorted[:, :width]).sum(axis=1) / k
        return found

    def max_skew(self, k: int, counts: Counts) -> NDArray[np.float64]:
        """MaxSkew@k of each query, natural logarithm: float64 [Q]; 0 where the best `k` are as all are.

        The largest, over groups, of ln(share of the best k / share of all) (Geyik et al., KDD 2019, arXiv 1905.01989;
        for images and texts Berg et al. 2022, arXiv 2203.11933). Of images that tie for the last places, each group has
        its expected number, so that a model which gives all images one similarity has no skew. At least `k` images
        must count.
        """
        rows = np.arange(len(self._order))
        for width in self._widths(2 * k):
            within = np.zeros((len(counts), len(rows), width + 1), dtype=np.int64)
            np.cumsum(counts[:, self._order[:, :width]], axis=2, out=within[:, :, 1:])
            every = within.sum(axis=0)
            last = np.minimum((every[:, 1:] < k).sum(axis=1), width - 1)  # the place of the k-th
            first, end = self._first[rows, last], self._end[rows, last]
            if (every[:, -1] >= k).all() and (end <= width).all():
                break
        part = (k - every[rows, first]) / (every[rows, end] - every[rows, first])
        sure, tied = within[:, rows, first], within[:, rows, end] - within[:, rows, first]
        share = (sure + tied * part) / k
        wanted = counts.sum(axis=1) / counts.sum()
        with np.errstate(divide="ignore"):  # a group that is not among them
            skew: NDArray[np.float64] = np.log(share / wanted[:, None]).max(axis=0)
        return skew

    def _widths(self, start: int) -> Iterator[int]:
        """How many places to look at: few at first, since the best are among them, and all in the end."""
        n = self._order.shape[1]
        while start < n:
            yield start
            start *= 4
        yield n
