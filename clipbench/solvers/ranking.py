"""Retrieval in both directions at once: where each query's targets stand among all keys, and its best keys.

Images and texts are compared block by block. One product of a block serves both directions: it is compared with the
scores of the rows' and of the columns' targets, and with the worst of the best keys so far, which most blocks do
not reach. Memory grows with the number of images and of texts, never with their product.

A tie is an equal float32 score. A target's own score is therefore the very number that its block holds: the blocks
with targets, a band along the diagonal, come first, and wait until the scores of all targets in their rows and
columns are known. All blocks have one shape (the last ones are padded), so that equal rows get equal scores.

On a CPU, products of up to `_EXACT` terms are NumPy's, of rows rounded to 26 bits behind the point, in float64: of unit
rows every sum of such terms is a float64 number, so that in whatever order they are added up, none is rounded before
the score becomes a float32. More are torch's in float32: twice as fast, once torch has been imported.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics.similarity import late_interactions
from clipbench.solvers.selection import Matrix, forget

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
#: queries, keys and scores of what may be among the best, as places in a block
Found = tuple[Ints, Ints, Floats]

_GROUP = 16  # neighbours in a block whose maximum is looked at first
_ROUND = 64  # block sides are multiples of this; rows of a strip
_CPU_BLOCK = (1024, 8192)  # images × texts: 32 MiB of scores, which caches of servers hold
_GPU_BLOCK = (8192, 16384)
_TOKEN_BLOCK = (256, 512)
_EXACT = 2e11  # terms of all products beyond which NumPy takes longer than torch and its import
_STEPS = 2.0**26  # a row's numbers are whole multiples of 1 / _STEPS


@dataclass(frozen=True)
class Ranks:
    """One direction: how the targets of every query stand among its keys.

    Attributes:
        better: int64 [Q], keys with a higher score than the query's best target has.
        tied: int64 [Q], keys with the same score that are no targets.
        best: int64 [Q], targets that have this score; at least 1.
        own: float32 [Q, most targets of a query], the scores of its targets, padded with NaN.
        top: int64 [Q, K], the best keys, the best first and the lowest of equal ones.
        scores: float32 [Q, K], theirs.
        more: int64 [Q], keys that have the score of the last of them and found no room.
    """

    better: Ints
    tied: Ints
    best: Ints
    own: Floats
    top: Ints
    scores: Floats
    more: Ints


def rank(
    images: Matrix,
    texts: Matrix,
    owner: Ints,
    *,
    top: int = 10,
    token_width: int | None = None,
    device: str = "cpu",
    block: tuple[int, int] | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[Ranks, Ranks]:
    """Both directions: images as queries among texts, then texts as queries among images.

    Args:
        images: float32 [N, D], unit rows.
        texts: float32 [M, D], unit rows.
        owner: int64 [M], the image that each text belongs to, ascending; every image has one at least.
        top: K, how many of the best keys are wanted, at most as many as there are.
        token_width: rows hold tokens of this length, one behind the other, compared by late interaction: an
            image's score of a text is the mean over the image's tokens, a text's of an image that over the text's
            (FILIP, arXiv 2111.07783, section 3.1).
        device: cpu, cuda or cuda:N.
        block: images and texts compared at once.
        advance: called with the number of blocks done, `blocks` in all.

    Raises:
        ValueError: shapes disagree, or `owner` does not ascend from 0 to N − 1 without a gap.
    """
    count = len(images)
    if owner.shape != (len(texts),) or images.ndim != 2 or texts.ndim != 2:
        raise ValueError(
            f"{images.shape} images, {texts.shape} texts and owners {owner.shape} do not go together"
        )
    if not np.array_equal(np.unique(owner), np.arange(count)) or (np.diff(owner) < 0).any():
        raise ValueError("owners must ascend, and every image must have a text")
    sides = _sides(count, len(texts), block, token_width, device)
    engine = _engine(images, texts, sides, token_width, device)
    of_image, of_text = _Side(count, min(top, len(texts))), _Side(len(texts), min(top, count))
    own = np.empty(len(texts), np.float32)

    def take(i: int, j: int, scores: tuple[Any, Any]) -> None:
        rows, columns = engine.rows(0, i), engine.rows(1, j)
        other = beside.submit(of_image.take, engine, scores[0], rows, columns, 1)
        of_text.take(engine, scores[1], columns, rows, 0)
        other.result()
        if advance is not None:
            advance(1)

    with ThreadPoolExecutor(1) as beside:  # the directions share a block's scores and nothing else
        band = _band(owner, sides)
        waiting: deque[tuple[int, int, tuple[Any, Any]]] = deque()
        for (i, j), pairs in band.items():
            by_image, by_text = engine.scores(i, j)
            places = owner[pairs] - i * sides[0], pairs - j * sides[1]
            own[pairs] = engine.at(by_image, *places)
            np.maximum.at(of_image.target, owner[pairs], own[pairs])
            of_text.target[pairs] = engine.at(by_text, *places)
            waiting.append((i, j, engine.kept(by_image, by_text)))
            while waiting[0][0] < i and waiting[0][1] < j:  # the band has left its rows and its columns
                take(*waiting.popleft())
        while waiting:
            take(*waiting.popleft())
        for j in range(engine.count(1)):
            for i in range(engine.count(0)):
                if (i, j) not in band:
                    take(i, j, engine.scores(i, j))
    return of_image.ranks(_by_image(own, owner)), of_text.ranks(of_text.target[:, None])


def blocks(
    images: int,
    texts: int,
    block: tuple[int, int] | None = None,
    token_width: int | None = None,
    device: str = "cpu",
) -> int:
    """How often `rank` calls `advance`."""
    sides = _sides(images, texts, block, token_width, device)
    return math.ceil(images / sides[0]) * math.ceil(texts / sides[1])


def _sides(
    images: int, texts: int, block: tuple[int, int] | None, token_width: int | None, device: str
) -> tuple[int, int]:
    usual = _CPU_BLOCK if device == "cpu" else _GPU_BLOCK
    most = block or (_TOKEN_BLOCK if token_width else usual)
    # Blocks of equal size: the last one is padded by less than _ROUND.
    rows, columns = (
        _ROUND * math.ceil(size / math.ceil(size / limit) / _ROUND)
        for limit, size in zip(most, (images, texts), strict=True)
    )
    return rows, columns


# -------------------------------------------------------------------- the state


class _Side:
    """What is known so far of one direction's queries; `target` is the score of the best target of each."""

    def __init__(self, count: int, top: int) -> None:
        self.target = np.full(count, -np.inf, np.float32)
        self._above, self._equal = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._scores = np.full((count, top), -np.inf, np.float32)
        self._keys = np.full((count, top), -1, np.int64)
        self._more = np.zeros(count, np.int64)

    def take(self, engine: _Engine, scores: Any, queries: slice, keys: slice, axis: int) -> None:
        """Take in a block; its keys are along `axis`."""
        target, floor, top = self.target[queries], self._scores[queries, -1], self._scores.shape[1]
        above, equal, (query, key, score) = engine.look(scores, target, floor, top, axis)
        self._above[queries] += above
        self._equal[queries] += equal
        self._merge(query + queries.start, key + keys.start, score)

    def ranks(self, own: Floats) -> Ranks:
        """The outcome; `own` are the scores of each query's targets."""
        best = (own == self.target[:, None]).sum(axis=1)
        return Ranks(self._above, self._equal - best, best, own, self._keys, self._scores, self._more)

    def _merge(self, query: Ints, key: Ints, score: Floats) -> None:
        """Put keys among the best of their queries."""
        width = self._scores.shape[1]
        here, place = np.unique(query, return_inverse=True)
        places = np.concatenate([np.repeat(np.arange(len(here)), width), place])
        scores = np.concatenate([self._scores[here].ravel(), score])
        keys = np.concatenate([self._keys[here].ravel(), key])
        order = _best_first(places, scores, keys)
        scores, keys, places = scores[order], keys[order], places[order]
        first = np.searchsorted(places, np.arange(len(here)))
        kept = first[:, None] + np.arange(width)
        worst, before = scores[kept[:, -1]], self._scores[here, -1]
        outside = np.arange(len(places)) - first[places] >= width
        crowded = np.bincount(places[outside & (scores == worst[places])], minlength=len(here))
        self._more[here] = crowded + np.where(worst == before, self._more[here], 0)
        self._scores[here], self._keys[here] = scores[kept], keys[kept]


def _best_first(places: Ints, scores: Floats, keys: Ints) -> Ints:
    """The order by place, then by score (the highest first), then by key."""
    bits = (0 - scores).view(np.int32)  # from 0, so that there is no −0
    ascending = np.where(bits < 0, ~bits, bits | np.int32(-(2**31))).view(np.uint32)
    joined = places.astype(np.uint64) << np.uint64(32) | ascending
    order = np.argsort(joined, kind="stable")  # eight times as fast as a sort by three keys
    found = joined[order]
    return np.lexsort((keys, joined)) if (found[1:] == found[:-1]).any() else order


def _band(owner: Ints, sides: tuple[int, int]) -> dict[tuple[int, int], Ints]:
    """Blocks that hold pairs, in an order that goes back neither in rows nor in columns → their pairs."""
    blocks = np.stack([owner // sides[0], np.arange(len(owner)) // sides[1]], axis=1)
    starts = np.flatnonzero(np.r_[True, (np.diff(blocks, axis=0) != 0).any(axis=1)])
    parts = np.split(np.arange(len(owner)), starts[1:])
    return {(int(i), int(j)): part for (i, j), part in zip(blocks[starts], parts, strict=True)}


def _by_image(scores: Floats, owner: Ints) -> Floats:
    """Scores of pairs, one row an image, padded with NaN."""
    counts = np.bincount(owner)
    own = np.full((len(counts), int(counts.max())), np.nan, np.float32)
    own[owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]] = scores
    return own


# ------------------------------------------------------------------ the engines


def _engine(
    images: Matrix, texts: Matrix, sides: tuple[int, int], token_width: int | None, device: str
) -> _Engine:
    if device != "cpu":
        return _OnGpu(images, texts, sides, token_width, device)
    if token_width is None and len(images) * len(texts) * images.shape[1] <= _EXACT:
        return _Exact(images, texts, sides)
    return _OnCpu(images, texts, sides, token_width, device)


class _Engine(ABC):
    """Scores of blocks, and the few questions that are asked of them. What lies beyond the data is −∞."""

    def __init__(self, images: Matrix, texts: Matrix, sides: tuple[int, int]) -> None:
        self._features, self._sides = (images, texts), sides
        self._held: list[int | None] = [None, None]

    def count(self, axis: int) -> int:
        """Blocks along an axis."""
        return math.ceil(len(self._features[axis]) / self._sides[axis])

    def rows(self, axis: int, number: int) -> slice:
        """Images (axis 0) or texts of a block."""
        start = number * self._sides[axis]
        return slice(start, min(start + self._sides[axis], len(self._features[axis])))

    def hold(self, i: int, j: int) -> tuple[int, int]:
        """Make the features of block i, j ready; how many images and texts it has."""
        counts = []
        for axis, number in enumerate((i, j)):
            place = self.rows(axis, number)
            if self._held[axis] != number:
                self.put(axis, np.asarray(self._features[axis][place]))
                forget(self._features[axis])
                self._held[axis] = number
            counts.append(place.stop - place.start)
        return counts[0], counts[1]

    @abstractmethod
    def put(self, axis: int, rows: Floats) -> None:
        """Make rows ready, and zeros behind them."""

    @abstractmethod
    def scores(self, i: int, j: int) -> tuple[Any, Any]:
        """Of block i, j, as the other methods take them: as the images', and as the texts'; the next call overwrites
        them."""

    @abstractmethod
    def kept(self, by_image: Any, by_text: Any) -> tuple[Any, Any]:
        """A copy of `scores` that the next call leaves alone."""

    @abstractmethod
    def at(self, scores: Any, rows: Ints, columns: Ints) -> Floats:
        """Single scores."""

    @abstractmethod
    def look(
        self, scores: Any, target: Floats, floor: Floats, top: int, axis: int
    ) -> tuple[Ints, Ints, Found]:
        """What a block says of its queries, whose keys are along `axis`.

        Returns:
            int64 [queries]: keys that score more than `target`; as much; and all keys that may be among the `top`
            best of their query and score as much as its `floor` at least.
        """


class _ByTorch(_Engine):
    """Products that torch makes, on a device."""

    def __init__(
        self, images: Matrix, texts: Matrix, sides: tuple[int, int], token_width: int | None, device: str
    ) -> None:
        import torch

        super().__init__(images, texts, sides)
        self._width = token_width
        self._padded = tuple(
            torch.zeros((side, features.shape[1]), device=device)
            for side, features in zip(sides, self._features, strict=True)
        )
        self._product = torch.empty(sides, device=device)

    def put(self, axis: int, rows: Floats) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # memory-mapped, and only read here
            self._padded[axis][: len(rows)] = torch.from_numpy(rows)
        self._padded[axis][len(rows) :] = 0

    def product(self, i: int, j: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of block i, j: as the images', and as the texts'; the next call overwrites them."""
        import torch

        counts = self.hold(i, j)
        a, b = self._padded
        if self._width is None:
            torch.matmul(a, b.T, out=self._product)
            found = self._product, self._product
        else:
            found = late_interactions(a.view(len(a), -1, self._width), b.view(len(b), -1, self._width))
        for scores in found:
            scores[counts[0] :] = -torch.inf
            scores[:, counts[1] :] = -torch.inf
        return found


class _InNumpy(_Engine):
    """Scores in memory: NumPy's comparisons of small blocks are several times faster than torch's."""

    def kept(self, by_image: Any, by_text: Any) -> tuple[Any, Any]:
        copy = by_image.copy()
        return copy, copy if by_text is by_image else by_text.copy()

    def at(self, scores: Any, rows: Ints, columns: Ints) -> Floats:
        found: Floats = scores[rows, columns]
        return found

    def look(
        self, scores: Any, target: Floats, floor: Floats, top: int, axis: int
    ) -> tuple[Ints, Ints, Found]:
        side = scores.shape[1 - axis]
        above, equal, best = (_scan_rows if axis else _scan_columns)(scores, _line(target, side))
        line = _line(floor, side)
        if np.isneginf(floor).any() and best.shape[axis] > top:
            # The top-th best of the groups' maxima: so many keys score as much at least.
            line = np.maximum(line, np.partition(best, -top, axis=axis).take(-top, axis=axis))
        rows, columns = scores.shape
        if axis:
            query, group = np.nonzero(best >= line[:, None])
            found = scores.reshape(rows, _GROUP, -1)[query, :, group]
        else:
            group, query = np.nonzero(best >= line)
            found = scores.reshape(-1, _GROUP, columns)[group, :, query]
        hit, member = np.nonzero((found >= line[query][:, None]) & (found > -np.inf))
        query, group = query[hit], group[hit]
        key = member * (columns // _GROUP) + group if axis else group * _GROUP + member
        return above[: len(target)], equal[: len(target)], (query, key, found[hit, member])


class _Exact(_InNumpy):
    """Products that NumPy makes, each the same wherever its rows stand (OpenBLAS's in float32 are not)."""

    def __init__(self, images: Matrix, texts: Matrix, sides: tuple[int, int]) -> None:
        super().__init__(images, texts, sides)
        self._padded = tuple(
            np.zeros((side, features.shape[1])) for side, features in zip(sides, self._features, strict=True)
        )
        self._product, self._scores = np.empty(sides), np.empty(sides, np.float32)

    def put(self, axis: int, rows: Floats) -> None:
        padded = self._padded[axis]
        np.multiply(rows, _STEPS, out=padded[: len(rows)])
        np.rint(padded, out=padded)
        padded /= _STEPS
        padded[len(rows) :] = 0

    def scores(self, i: int, j: int) -> tuple[Any, Any]:
        counts = self.hold(i, j)
        a, b = self._padded
        np.matmul(a, b.T, out=self._product)
        self._scores[...] = self._product
        self._scores[counts[0] :] = -np.inf
        self._scores[:, counts[1] :] = -np.inf
        return self._scores, self._scores


class _OnCpu(_ByTorch, _InNumpy):
    def scores(self, i: int, j: int) -> tuple[Any, Any]:
        by_image, by_text = self.product(i, j)
        shared = by_image.numpy()
        return shared, shared if by_text is by_image else by_text.numpy()


def _line(values: Floats, side: int) -> Floats:
    """`values`, and beyond them what nothing reaches."""
    line = np.full(side, np.inf, np.float32)
    line[: len(values)] = values
    return line


def _scan_columns(scores: Floats, target: Floats) -> tuple[Ints, Ints, Floats]:
    """For the queries along the columns: keys above the target, equal to it, and the maxima of groups of rows.

    Strips of a block go through all comparisons at once, so that they are read from memory only once.
    """
    rows, columns = scores.shape
    counts = np.zeros((2, columns), np.int64)
    best = np.empty((rows // _GROUP, columns), np.float32)
    mask = np.empty((_ROUND, columns), np.bool_)
    for start in range(0, rows, _ROUND):
        strip = scores[start : start + _ROUND]
        for count, test in zip(counts, (np.greater, np.equal), strict=True):
            test(strip, target, out=mask)
            count += np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8)  # at most _ROUND
        groups = best[start // _GROUP : (start + _ROUND) // _GROUP]
        strip.reshape(-1, _GROUP, columns).max(axis=1, out=groups)
    return counts[0], counts[1], best


def _scan_rows(scores: Floats, target: Floats) -> tuple[Ints, Ints, Floats]:
    """The same for the queries along the rows; a group is every (columns / _GROUP)-th key: maxima of lines are fast."""
    rows, columns = scores.shape
    counts = np.zeros((2, rows), np.int64)
    best = np.empty((rows, columns // _GROUP), np.float32)
    mask = np.empty((_ROUND, columns), np.bool_)
    # Eight keys in one word, whose bytes are added up apart, at most 128 words at once.
    words = mask.view(np.uint64).reshape(_ROUND, -1, math.gcd(columns // 8, 128))
    for start in range(0, rows, _ROUND):
        here = slice(start, start + _ROUND)
        for count, test in zip(counts, (np.greater, np.equal), strict=True):
            test(scores[here], target[here, None], out=mask)
            count[here] = np.add.reduce(words, axis=2).view(np.uint8).sum(axis=1, dtype=np.int64)
        scores[here].reshape(_ROUND, _GROUP, -1).max(axis=1, out=best[here])
    return counts[0], counts[1], best


class _OnGpu(_ByTorch):
    def scores(self, i: int, j: int) -> tuple[Any, Any]:
        return self.product(i, j)

    def kept(self, by_image: Any, by_text: Any) -> tuple[Any, Any]:
        copy = by_image.clone()
        return copy, copy if self._width is None else by_text.clone()

    def at(self, scores: Any, rows: Ints, columns: Ints) -> Floats:
        found: Floats = scores[_tensor(rows, scores), _tensor(columns, scores)].cpu().numpy()
        return found

    def look(
        self, scores: Any, target: Floats, floor: Floats, top: int, axis: int
    ) -> tuple[Ints, Ints, Found]:
        import torch

        used = scores[: len(floor)] if axis else scores[:, : len(floor)]
        wall = _tensor(target, scores).unsqueeze(axis)
        above, equal = (test.sum(dim=axis).cpu().numpy() for test in (used > wall, used == wall))
        line = _tensor(floor, scores)
        if np.isneginf(floor).any() and used.shape[axis] > top:
            line = torch.maximum(line, used.topk(top, dim=axis).values.select(axis, -1))
        hits = ((used >= line.unsqueeze(axis)) & (used > -torch.inf)).nonzero(as_tuple=True)
        query, key = (hits[side].cpu().numpy() for side in (1 - axis, axis))
        return above, equal, (query, key, used[hits].cpu().numpy())


def _tensor(array: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
