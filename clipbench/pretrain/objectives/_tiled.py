"""Losses of all pairs of a batch, one tile of the matrix of pairs at a time: the same value and gradients, less memory.

A tile is a square block of the matrix. Each is computed again for its gradient, so that of N² pairs no more than one
tile is ever held, and of each tile the sums of its rows and columns: O(tile² + N² / tile).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import unit

if TYPE_CHECKING:
    from torch import Tensor


def tiled_clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, tile: int) -> base.Loss:
    """`clip_loss`, in tiles of `tile` × `tile` pairs.

    Args:
        image, text: float [B, D]; row i of one belongs to row i of the other.
        logit_scale: scalar, the factor on cosines (not its logarithm).

    Chance value: ln B.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    image, text = unit(image), unit(text)
    images, texts = torch.split(image, tile), torch.split(text, tile)
    right = torch.split((image * text).sum(dim=1), tile)

    def block(
        rows: Tensor, columns: Tensor, scale: Tensor, of_row: Tensor, of_column: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By how much the logits of a tile are above the right ones, log-summed along rows and along columns."""
        cosines = rows @ columns.T
        above_row, above_column = scale * (cosines - of_row[:, None]), scale * (cosines - of_column)
        return above_row.logsumexp(dim=1), above_column.logsumexp(dim=0)

    along_rows: list[list[Tensor]] = [[] for _ in images]
    along_columns: list[list[Tensor]] = [[] for _ in texts]
    for i, rows in enumerate(images):
        for j, columns in enumerate(texts):
            given = (rows, columns, logit_scale, right[i], right[j])
            of_row, of_column = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            along_rows[i].append(of_row)
            along_columns[j].append(of_column)
    found, back = (
        torch.cat([torch.stack(part).logsumexp(dim=0) for part in parts]).mean()
        for parts in (along_rows, along_columns)
    )
    return base.Loss.of(0.5, image_to_text=found, text_to_image=back)


def tiled_siglip_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, tile: int
) -> base.Loss:
    """`siglip_loss`, in tiles of `tile` × `tile` pairs (Zhai et al. 2023, section 3.3, on one device).

    Args:
        image, text: float [B, D]; row i of one belongs to row i of the other.
        logit_scale, logit_bias: scalars, the factor on cosines (not its logarithm) and what is added to them.

    Chance value, at the best bias: ln B + (B − 1) ln(B / (B − 1)).
    """
    import torch
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    images, texts = torch.split(unit(image), tile), torch.split(unit(text), tile)

    def block(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, own: bool) -> tuple[Tensor, Tensor]:
        """Sums over the right and the wrong pairs of a tile; only one on the diagonal (`own`) has right ones."""
        logits = scale * rows @ columns.T + bias
        if not own:
            return logits.new_zeros(()), F.softplus(logits).sum()
        right = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        wrong = F.softplus(logits.masked_fill(right, -math.inf)).sum()
        return F.softplus(-logits.diagonal()).sum(), wrong

    sums = [
        checkpoint(
            block, rows, columns, logit_scale, logit_bias, i == j, use_reentrant=False, preserve_rng_state=False
        )
        for i, rows in enumerate(images)
        for j, columns in enumerate(texts)
    ]  # fmt: skip
    positive, negative = (torch.stack(part).sum() / len(image) for part in zip(*sums, strict=True))
    return base.Loss.of(1, positive=positive, negative=negative)
