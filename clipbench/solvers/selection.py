"""Chosen rows of feature matrices, read when asked for: a hold-out or a union never copies a file."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Stored(Protocol):
    """float32 [n, D] on disk, such as `encoding.feature_store.Matrix`: rows are copied out when they are asked for."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[np.float32]: ...
    def __len__(self) -> int: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]: ...
    def __getitem__(
        self, place: int | slice | Sequence[int] | NDArray[np.integer[Any]], /
    ) -> NDArray[np.float32]: ...


Matrix = NDArray[np.float32] | Stored
Part = tuple[Matrix, NDArray[np.int64]]


class Selection:
    """Rows of one matrix or several, one behind the other; slices of rows are copied out.

    Attributes:
        shape: (rows, columns).
        dtype: float32.
    """

    def __init__(self, parts: Sequence[Part], *, unit: bool = False) -> None:
        """
        Args:
            parts: matrices float32 [n, D] and, for each, the rows that are taken, in order.
            unit: give rows of unit length (L2).
        """
        self._unit = unit
        self._parts = [(matrix, rows) for matrix, rows in parts if len(rows)]
        self._ends = np.cumsum([len(rows) for _, rows in self._parts])
        self.dtype = np.dtype(np.float32)
        total = int(self._ends[-1]) if self._parts else 0
        self.shape = (total, int(parts[0][0].shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: slice) -> NDArray[np.float32]:
        """A copy of the rows at `place` (step 1)."""
        start, stop, _ = place.indices(len(self))
        found = np.empty((max(0, stop - start), self.shape[1]), dtype=np.float32)
        begin = 0
        for (matrix, rows), end in zip(self._parts, self._ends.tolist(), strict=True):
            low, high = max(start, begin), min(stop, end)
            if low < high:
                found[low - start : high - start] = matrix[rows[low - begin : high - begin]]
                forget(matrix)
            begin = end
        if self._unit:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found

    def part(self, rows: NDArray[np.int64]) -> Selection:
        """The rows at `rows` (ascending) of this selection."""
        begin, parts = 0, []
        for (matrix, own), end in zip(self._parts, self._ends.tolist(), strict=True):
            inside = rows[(rows >= begin) & (rows < end)] - begin
            parts.append((matrix, own[inside]))
            begin = end
        return Selection(parts, unit=self._unit)

    def joined(self, other: Selection) -> Selection:
        """These rows, then those of `other`."""
        return Selection([*self._parts, *other._parts], unit=self._unit)


def forget(matrix: object) -> None:
    """Let go of the pages of a memory map that were read: they count as this process's memory until it does."""
    mapped = getattr(matrix, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
