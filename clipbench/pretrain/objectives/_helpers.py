"""What several objectives share: losses of embeddings, heads, and masked captions.

Embeddings need not be unit rows; cosines are taken here, in float32 at least, whatever precision made them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from clipbench.pretrain.objectives import base

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipbench.models.towers.dual import DualTowers
    from clipbench.pretrain.data.batch import Batch


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> base.Loss:
    """Symmetric InfoNCE over the batch (CLIP, figure 3).

    Args:
        image, text: float [B, D]; row i of one belongs to row i of the other.
        logit_scale: scalar, the factor on cosines (not its logarithm).

    Chance value: ln B.
    """
    import torch
    from torch.nn import functional as F

    logits = logit_scale * unit(image) @ unit(text).T
    target = torch.arange(len(logits), device=logits.device)
    found, back = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    return base.Loss.of(0.5, image_to_text=found, text_to_image=back)


def masked_language_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of guesses at masked tokens; 0 where none is masked.

    Args:
        logits: float [M, vocabulary].
        target: int64 [M], the right tokens.

    Chance value: ln vocabulary.
    """
    from torch.nn import functional as F

    return F.cross_entropy(wide(logits), target, reduction="sum") / max(len(target), 1)


def captions(
    towers: DualTowers,
    batch: Batch,
    share: float | None,
    *,
    compare_masked: bool,
    guesser: nn.Module | None,
) -> base.Features:
    """What the heads make of a batch's captions, and what `guesser` says of tokens that are masked.

    Args:
        share: of the tokens to be masked, in every pair's caption anew; None: none.
        compare_masked: it is the masked captions that the heads see.
        guesser: float [M, features] to logits [M, vocabulary], or None.

    Returns:
        As `DualTowers.text_features`, one row a pair; `guesses` and `hidden` (int64 [M]) with a guesser.
    """
    import torch

    text = towers.token_tower
    tokens = towers.filled(batch.tokens)
    features: base.Features = {}
    if share is not None:
        own = tokens.index_select(0, batch.rows)
        masked, chosen = text.mask(own, share, batch.draws)
        states = text.states(masked)
        if guesser is not None:
            # by number, so that a GPU's backward pass does not have to stop and count them
            at = torch.nonzero(chosen.flatten())[:, 0]
            hidden = states.flatten(0, 1).index_select(0, at)
            features |= {"guesses": guesser(hidden), "hidden": own.flatten().index_select(0, at)}
        if compare_masked:
            return features | towers.text_features(states, masked)
    return features | towers.text_features(text.states(tokens), tokens, batch.rows)


def initial_log_scale() -> nn.Parameter:
    """The logarithm of a logit scale, at CLIP's initial value."""
    import torch
    from torch import nn

    return nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them: float [B, widths[0]] to [B, widths[-1]]."""
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


def unit(rows: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.normalize(wide(rows), dim=-1)


def wide(values: Tensor) -> Tensor:
    import torch

    return values if values.dtype == torch.float64 else values.float()
