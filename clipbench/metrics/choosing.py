"""Choosing among a few images and captions that belong together: Winoground's scores, and a set's Jaccard index.

An item has `scores`, float [I, T], of its I images with its T texts, and `right`, bool [I, T], which pairs belong
together. All functions take N items of one shape at once: [N, I, T].

What equal scores count for is `ties`:

    random   what is expected if the order of all equal scores of an item were drawn at random, once for the item: a
             model that tells nothing apart scores what a guesser does
    strict   a tie is lost
    first    of equal scores that of the lower number wins, as arg-max has it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ties = Literal["random", "strict", "first"]
#: scores of one item whose order may be open at once: 2^n sets of them are counted
_MOST_OPEN: Final = 20


def texts_win(scores: NDArray[Any], right: Bools, ties: Ties) -> Doubles:
    """Whether for every image each of its texts beats each that is not its own: float64 [N], in 0 to 1.

    Winoground's text score (arXiv 2204.03162, section 4.1), SugarCrepe's accuracy where there is one image. An image to
    which no text belongs, or every one, has nothing to choose, and always wins.

    >>> hit = np.array([[[0.5, 0.5]], [[0.6, 0.5]], [[0.4, 0.5]]])
    >>> right = np.array([[[True, False]]] * 3)
    >>> [texts_win(hit, right, ties).tolist() for ties in ("random", "strict", "first")]
    [[0.5, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    """
    above = np.where(right, scores, np.inf).min(axis=2)
    below = np.where(right, -np.inf, scores).max(axis=2)
    wins = above > below
    if ties == "first":
        last = np.where(right & (scores == above[:, :, None]), np.arange(right.shape[2]), -1).max(axis=2)
        first = np.where(~right & (scores == below[:, :, None]), np.arange(right.shape[2]), right.shape[2])
        wins |= (above == below) & (last < first.min(axis=2))
    if ties != "random":
        decided: Doubles = wins.all(axis=1).astype(np.float64)
        return decided
    level = scores == above[:, :, None]
    ours, theirs = (level & right).sum(axis=2), (level & ~right).sum(axis=2)
    # all of `ours` come before all of `theirs` in one of so many orders
    orders = np.array(
        [[math.comb(a + b, a) for b in range(right.shape[2] + 1)] for a in range(right.shape[2] + 1)],
        dtype=np.float64,
    )
    odds = np.where(wins, 1.0, np.where(above == below, 1 / orders[ours, theirs], 0.0))
    found: Doubles = odds.prod(axis=1)
    return found


def images_win(scores: NDArray[Any], right: Bools, ties: Ties) -> Doubles:
    """Whether for every text each of its images beats each that is not its own; args as of `texts_win`."""
    return texts_win(scores.transpose(0, 2, 1), right.transpose(0, 2, 1), ties)


def both_win(scores: NDArray[Any], right: Bools, ties: Ties) -> Doubles:
    """Whether `texts_win` and `images_win` at once: Winoground's group score.

    Raises:
        DataError: too many scores of an item are equal to count their orders.

    >>> same, right = np.zeros((1, 2, 2)), np.eye(2, dtype=bool)[None]
    >>> [round(float(f(same, right, "random")[0]), 4) for f in (texts_win, images_win, both_win)]
    [0.25, 0.25, 0.1667]
    """
    by = [f(scores, right, "strict" if ties == "random" else ties) for f in (texts_win, images_win)]
    found: Doubles = by[0] * by[1]
    if ties != "random":
        return found
    possible = (texts_win(scores, right, "random") > 0) & (images_win(scores, right, "random") > 0)
    for item in np.flatnonzero(possible & (found == 0)).tolist():
        found[item] = _odds(scores[item], right[item])
    return found


def _odds(scores: NDArray[Any], right: Bools) -> float:
    """The share of the orders of equal scores in which every text and every image of one item wins."""
    count = scores.shape[1]
    pairs = [
        (i * count + t, j * count + u)
        for i, t in np.argwhere(right).tolist()
        for j, u in np.argwhere(~right & (scores == scores[i, t])).tolist()
        if i == j or t == u
    ]
    total = 1.0
    for part in _connected(pairs):
        cells = sorted({cell for pair in part for cell in pair})
        if len(cells) > _MOST_OPEN:
            raise DataError(
                f"{len(cells)} scores of one item are equal: too many to count the orders in which its texts and "
                "images all win",
                hint="measure with ties: strict",
            )
        number = {cell: place for place, cell in enumerate(cells)}
        total *= _extensions(len(cells), [(number[a], number[b]) for a, b in part]) / math.factorial(
            len(cells)
        )
    return total


def _connected(pairs: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The pairs in groups that share no number."""
    groups: list[tuple[set[int], list[tuple[int, int]]]] = []
    for pair in pairs:
        touched = [group for group in groups if group[0] & set(pair)]
        merged = (set(pair).union(*(g[0] for g in touched)), [pair, *(p for g in touched for p in g[1])])
        groups = [group for group in groups if group not in touched] + [merged]
    return [part for _, part in groups]


def _extensions(count: int, pairs: Sequence[tuple[int, int]]) -> int:
    """In how many orders of 0 … count - 1 the first of every pair comes before the second.

    >>> _extensions(4, [(0, 1), (0, 2), (3, 1), (3, 2)])
    4
    """
    before = [0] * count
    for first, second in pairs:
        before[second] |= 1 << first
    ways = {0: 1}
    for _ in range(count):
        longer: dict[int, int] = {}
        for taken, number in ways.items():
            for nxt in range(count):
                if not taken >> nxt & 1 and before[nxt] & ~taken == 0:
                    longer[taken | 1 << nxt] = longer.get(taken | 1 << nxt, 0) + number
        ways = longer
    return ways[(1 << count) - 1]


def right_texts_alike(products: NDArray[Any], right: Bools, ties: Ties) -> Doubles:
    """Whether all texts of an item's image are more alike to each other than to any that is not its own.

    SugarCrepe++'s text-only task (arXiv 2406.11171). Args:
        products: cosines of an item's texts with each other, [N, T, T].
        right: which texts are the image's, [N, T], at least two.
        ties: of `first`, pairs among the right texts come first.
    """
    places = list(combinations(range(right.shape[1]), 2))
    scores = np.stack([products[:, a, b] for a, b in places], axis=1)
    own = np.stack([right[:, a] & right[:, b] for a, b in places], axis=1)
    counted = np.stack([right[:, a] | right[:, b] for a, b in places], axis=1)
    scores = np.where(counted, scores, -np.inf)  # two wrong texts are compared with nothing
    order = np.argsort(~own, axis=1, kind="stable")
    scores, own = np.take_along_axis(scores, order, axis=1), np.take_along_axis(own, order, axis=1)
    return texts_win(scores[:, None], own[:, None], ties)


def jaccard(scores: NDArray[Any], right: Bools, ties: Ties) -> Doubles:
    """Jaccard index of an item's K right images and the K best for its one text: float64 [N], in 0 to 1.

    WinoGAViL (arXiv 2207.12576), as DataComp's evaluation computes it. Of `strict`, wrong images win ties.

    Args:
        scores, right: [N, I].

    >>> jaccard(np.array([[0.9, 0.8, 0.1, 0.0]]), np.array([[True, False, True, False]]), "random").round(4).tolist()
    [0.3333]
    >>> jaccard(np.zeros((1, 4)), np.array([[True, False, True, False]]), "random").round(4).tolist()
    [0.3889]
    """
    wanted = right.sum(axis=1)
    found = np.empty(len(scores))
    for k in np.unique(wanted).tolist():
        rows = np.flatnonzero(wanted == k)
        part, own = scores[rows], right[rows]
        if ties == "first":
            best = np.argsort(-part, axis=1, kind="stable")[:, :k]
            hits = np.take_along_axis(own, best, axis=1).sum(axis=1)
            found[rows] = hits / (2 * k - hits)
            continue
        last = -np.sort(-part, axis=1)[:, k - 1 : k]
        sure, level = part > last, part == last
        taken = (sure & own).sum(axis=1)
        left, ours, all_level = k - sure.sum(axis=1), (level & own).sum(axis=1), level.sum(axis=1)
        found[rows] = [
            _expected_jaccard(k, *one, ties)
            for one in zip(taken.tolist(), left.tolist(), ours.tolist(), all_level.tolist(), strict=True)
        ]
    return found


def _expected_jaccard(k: int, taken: int, left: int, ours: int, level: int, ties: Ties) -> float:
    """The index with `taken` hits for sure and `left` of `level` equal images drawn, of which `ours` are right."""
    fewest = max(0, left - (level - ours))
    most = fewest if ties == "strict" else min(left, ours)
    ways = [math.comb(ours, h) * math.comb(level - ours, left - h) for h in range(fewest, most + 1)]
    hits = [taken + h for h in range(fewest, most + 1)]
    return sum(way * h / (2 * k - h) for way, h in zip(ways, hits, strict=True)) / sum(ways)
