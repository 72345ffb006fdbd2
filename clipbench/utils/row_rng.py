"""Random numbers for the rows of a batch, the same however the batch is shared out or cut in pieces."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Numbers for some rows of a batch, out of those that a CPU generator draws for the whole batch.

    So one process that computes the batch at once, several that share it, and one that computes it piece by piece
    (each piece from the same state of the generator) give a row the same numbers, and leave the generator alike.

    Attributes:
        generator: what draws; its state moves with every call of `rand`.
        rows: int64 [n] on the CPU, which rows of the batch are wanted.
    """

    def __init__(self, generator: torch.Generator, count: int, rows: Tensor | None = None) -> None:
        """Numbers for `rows` (all, if None) of a batch of `count`."""
        self.generator = generator
        self.rows = torch.arange(count) if rows is None else rows
        self._count = count

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform in [0, 1): float [n, *shape] on the CPU."""
        return torch.rand(self._count, *shape, generator=self.generator, dtype=dtype)[self.rows]

    def of(self, rows: Tensor) -> Draws:
        """The same draws for some of these rows: int64 [m], each below n."""
        return Draws(self.generator, self._count, self.rows[rows])
