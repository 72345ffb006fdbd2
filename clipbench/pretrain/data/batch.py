"""One training batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipbench.utils.row_rng import Draws


@dataclass(frozen=True)
class Batch:
    """One training batch, or one process's share of it, or a piece of that.

    Attributes:
        images: float32 [B, channels, side, side], normalised.
        tokens: int64 [U, L], the distinct captions, cut at the longest one of the whole batch.
        rows: int64 [B]; the caption of image i is `tokens[rows[i]]`.
        draws: numbers for these B rows, for what an objective draws itself.
        views: as the objective wants (`Wants`), each like `images`.
        altered: int64 [U, L] and [B], where it wants them: the distinct altered texts, like `tokens`, and their rows.
    """

    images: Tensor
    tokens: Tensor
    rows: Tensor
    draws: Draws
    views: tuple[Tensor, ...]
    altered: tuple[Tensor, Tensor] | None

    def pieces(self, size: int) -> list[Batch]:
        """The batch in pieces of at most `size` pairs, as equal as they can be."""
        rows = torch.arange(len(self.rows))
        return [self._piece(part) for part in rows.tensor_split(-(-len(rows) // size))]

    def _piece(self, rows: Tensor) -> Batch:
        """The pairs at `rows` (int64, on the CPU, ascending without gaps)."""
        own = slice(int(rows[0]), int(rows[-1]) + 1)
        tokens, places = distinct(self.tokens, self.rows[own])
        return Batch(
            images=self.images[own],
            tokens=tokens,
            rows=places,
            draws=self.draws.of(rows),
            views=tuple(view[own] for view in self.views),
            altered=distinct(self.altered[0], self.altered[1][own]) if self.altered else None,
        )


def distinct(tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `tokens` that `rows` name, and where each row's stands among them."""
    named, places = torch.unique(rows, return_inverse=True)
    return tokens[named], places
