"""Features as row blocks on a device: centred, cached where small, streamed from disk where large.

Also what all problems on the same features share: the eigenbasis of their Gram matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipbench.errors import DataError
from clipbench.solvers.selection import Selection, forget

Features = NDArray[np.floating] | Tensor | Selection

CACHE_BYTES: Final = 384 * 2**20  # of a copy of all features, and again of a copy of some rows
_BLOCK_VALUES: Final = {"cpu": 2_500_000, "cuda": 2**28}  # a block and its logits fit the last cache
_PARALLEL_WORK: Final = 2**24  # multiplications of one product with the features
_RANK: Final = 1e-12  # eigenvalues below this share of the largest are rounding


class Rows:
    """Rows of features, read block by block, less their mean.

    Attributes:
        n, d: rows and columns; the constant column counts.
        mean: float64 [d], what is taken off every row; zero without `centre`.
        device, dtype: of the blocks.
    """

    def __init__(
        self,
        features: Features,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        block_rows: int | None = None,
        centre: bool = True,
        constant: bool = False,
    ) -> None:
        """
        Args:
            features: float16, float32 or float64 [n, D]: an array, a memory map or a tensor.
            block_rows: rows handled at a time; by default as many as suit the device's cache.
            centre: take the mean off.
            constant: append a column of ones.

        Raises:
            DataError: no rows, or values that are not finite.
            ValueError: not a matrix of floats.
        """
        check(features)
        self.n, self.d = int(features.shape[0]), int(features.shape[1]) + constant
        self.device, self.dtype = torch.device(device), dtype
        self._features, self._constant = features, constant
        self.block_rows = block_rows or max(256, _BLOCK_VALUES[self.device.type] // self.d)
        self.mean = torch.zeros(self.d, dtype=torch.float64, device=self.device)
        self._cache: Tensor | None = None
        mean = self._mean()
        if centre:
            self.mean = mean
        self._shift = self.mean.to(dtype)
        if self.n * self.d * dtype.itemsize <= CACHE_BYTES:
            self._cache = torch.cat([block for _, block in self.blocks()])

    @classmethod
    def of(cls, matrix: Tensor, block_rows: int) -> Rows:
        """Rows that are in memory and need no centring."""
        rows = cls.__new__(cls)
        rows.n, rows.d = matrix.shape
        rows.device, rows.dtype, rows.block_rows = matrix.device, matrix.dtype, block_rows
        rows.mean = torch.zeros(rows.d, dtype=torch.float64, device=matrix.device)
        rows._cache = matrix
        return rows

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row slices and their block [b, d]."""
        for start in range(0, self.n, self.block_rows):
            rows = slice(start, min(start + self.block_rows, self.n))
            yield rows, self._block(rows)

    def some(self, index: Tensor) -> _Some:
        """The rows of a sorted int64 `index`, copied if there is room and gathered block by block if not."""
        if self._cache is not None or index.numel() * self.d * self.dtype.itemsize <= CACHE_BYTES:
            starts = torch.arange(0, self.n + self.block_rows, self.block_rows, device=index.device)
            cuts = torch.searchsorted(index, starts).tolist()
            kept = torch.empty(index.numel(), self.d, dtype=self.dtype, device=self.device)
            for i, (rows, block) in enumerate(self.blocks()):
                inside = slice(cuts[i], cuts[i + 1])
                torch.index_select(block, 0, index[inside] - rows.start, out=kept[inside])
            return _Some(Rows.of(kept, self.block_rows), index, None)
        return _Some(self, index, index)

    @property
    def in_memory(self) -> bool:
        """Whether a copy of all of them is held."""
        return self._cache is not None

    def gram(self) -> Tensor:
        """Xᵀ X, float64 [d, d]."""
        total = torch.zeros(self.d, self.d, dtype=torch.float64, device=self.device)
        for _, block in self.blocks():
            total += block.T @ block
        return total

    def _block(self, rows: slice) -> Tensor:
        if self._cache is not None:
            return self._cache[rows]
        return self._fetch(rows).sub_(self._shift)

    def _fetch(self, rows: slice) -> Tensor:
        block = torch.empty(rows.stop - rows.start, self.d, dtype=self.dtype, device=self.device)
        block[:, : self.d - self._constant] = fetch(self._features, rows)
        if self._constant:
            block[:, -1] = 1
        return block

    def _mean(self) -> Tensor:
        total = torch.zeros(self.d, dtype=torch.float64, device=self.device)
        for start in range(0, self.n, self.block_rows):
            rows = slice(start, min(start + self.block_rows, self.n))
            total += self._fetch(rows).sum(dim=0, dtype=torch.float64)
        if not bool(torch.isfinite(total).all()):
            raise DataError(
                "some features are not finite (an image that could not be decoded is a row of NaN)",
                hint="leave such rows out, or encode again with: --precision fp32",
            )
        return total / self.n


class _Some:
    """Some rows, in the order of the whole."""

    def __init__(self, rows: Rows, index: Tensor, gathered: Tensor | None) -> None:
        self._rows, self._index, self._gathered = rows, index, gathered

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Positions among these rows, their row numbers, and their block [b, d]."""
        if self._gathered is None:
            for place, block in self._rows.blocks():
                yield place, self._index[place], block
            return
        end = 0
        for rows, block in self._rows.blocks():
            start, end = end, int(torch.searchsorted(self._index, rows.stop))
            if end > start:
                index = self._index[start:end]
                yield slice(start, end), index, block[index - rows.start]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the centred Gram matrix, and its eigenvectors as columns (None: the features are in them)."""

    values: Tensor
    vectors: Tensor | None

    def gram(self) -> Tensor:
        """The Gram matrix [d, d] again."""
        if self.vectors is None:
            return torch.diag(self.values)
        return (self.vectors * self.values) @ self.vectors.T

    @classmethod
    def of(cls, rows: Rows) -> Spectrum:
        values, vectors = torch.linalg.eigh(rows.gram().to(rows.dtype))
        return cls(values.clamp(min=0), vectors)


@dataclass(frozen=True)
class Reduced:
    """The same problem in the eigenbasis of the Gram matrix; with fewer rows than columns, within the rows' span.

    A penalty on ‖w‖² keeps every solution in the span of the rows, so that at most n coordinates are enough.

    Attributes:
        rows: [n, r] coordinates of the rows in an orthonormal basis, r ≤ n where n < D, else r = D.
        spectrum: of these.
        factors: float64 matrices whose product is the basis, [D, r]: made only where few vectors ask for it.
    """

    rows: Rows
    spectrum: Spectrum
    factors: tuple[Tensor, ...]

    def outward(self, inside: Tensor) -> Tensor:
        """Vectors [P, r] of these coordinates in those of the features, float64 [P, D]."""
        inside = inside.double()
        for factor in reversed(self.factors):
            inside = inside @ factor.T
        return inside

    def inward(self, vectors: Tensor) -> Tensor:
        """Vectors [P, D] in these coordinates, float64 [P, r]; what lies outside the rows' span is lost."""
        vectors = vectors.double()
        for factor in self.factors:
            vectors = vectors @ factor
        return vectors

    @classmethod
    def of(cls, rows: Rows) -> Reduced:
        """`rows` are in memory, or fewer than columns."""
        if rows.n >= rows.d:
            values, vectors = torch.linalg.eigh(rows.gram())
            turn = vectors.to(rows.dtype)
            turned = Rows.of(torch.cat([block @ turn for _, block in rows.blocks()]), rows.block_rows)
            return cls(turned, Spectrum(values.clamp(min=0).to(rows.dtype), None), (vectors,))
        whole = torch.cat([block for _, block in rows.blocks()]).double()
        values, vectors = torch.linalg.eigh(whole @ whole.T)
        kept = values > _RANK * values[-1].clamp(min=torch.finfo(torch.float64).tiny)
        values, vectors = values[kept], vectors[:, kept]
        inside = Rows.of((vectors * values.sqrt()).to(rows.dtype), rows.block_rows)
        return cls(inside, Spectrum(values.to(rows.dtype), None), (whole.T, vectors / values.sqrt()))


def fetch(features: Features, rows: slice) -> Tensor:
    """Rows as a tensor, float32 at least; a memory map is copied, so that none of it stays in memory."""
    part = features[rows]
    if isinstance(part, Tensor):
        return part if part.dtype.itemsize >= 4 else part.float()
    copied = np.array(part, dtype=np.float64 if part.dtype.itemsize > 4 else np.float32)
    forget(features)
    return torch.from_numpy(copied)


def check(features: Features) -> None:
    """Raise unless `features` are floats [n, D] with at least one row and column.

    Raises:
        DataError: no rows.
        ValueError: not a matrix of floats.
    """
    if isinstance(features, Tensor):
        is_float = features.is_floating_point()
    else:
        is_float = bool(np.issubdtype(features.dtype, np.floating))
    if len(features.shape) != 2 or not is_float:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and type {features.dtype}, expected floats [n, D]"
        )
    if not features.shape[0] or not features.shape[1]:
        raise DataError("there are no features to fit on or to score", hint="check the split and its limit")


@contextlib.contextmanager
def one_thread_if_small(device: torch.device, work: int) -> Iterator[None]:
    """One thread for small products: waiting for each other would cost more than the work."""
    before = torch.get_num_threads()
    if device.type != "cpu" or work >= _PARALLEL_WORK or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
