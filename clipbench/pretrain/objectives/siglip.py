"""SigLIP (Zhai et al. 2023): a loss that judges pairs one by one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from clipbench.cards.recipe import Objective
from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import unit
from clipbench.pretrain.objectives._tiled import tiled_siglip_loss

if TYPE_CHECKING:
    from torch import Tensor

    from clipbench.models.towers.dual import DualTowers


class Settings(Objective):
    """The pairwise sigmoid loss over all pairs of the batch, with a learned scale and bias (Zhai et al. 2023).

    The initial values are the paper's (section 3.2).

    `tile`: of the matrix of all pairs only so many rows and columns are held at once; the loss stays the same.
    """

    later: ClassVar = ("tile",)

    kind: Literal["siglip"]
    initial_logit_scale: float = Field(10.0, gt=0)
    initial_logit_bias: float = -10.0
    tile: int | None = Field(None, gt=0)


class Learner(base.Learner):
    """The pairwise sigmoid loss; the bias belongs to it alone, since it moves no ranking."""

    def __init__(self, settings: Settings, towers: DualTowers) -> None:
        import torch
        from torch import nn

        super().__init__()
        self.logit_bias = nn.Parameter(torch.tensor(settings.initial_logit_bias))
        nn.init.constant_(towers.log_scale, math.log(settings.initial_logit_scale))
        self._tile = settings.tile

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        image, text = features["image"], features["text"]
        if self._tile is not None:
            return tiled_siglip_loss(image, text, logit_scale, self.logit_bias, self._tile)
        return siglip_loss(image, text, logit_scale, self.logit_bias)

    def chance(self, batch_size: int) -> float:
        """See `Learner`; at the bias that is best then."""
        wrong = batch_size - 1
        return math.log(batch_size) + wrong * math.log(batch_size / wrong)


def siglip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> base.Loss:
    """Pairwise sigmoid loss over all pairs of the batch (Zhai et al. 2023, algorithm 1).

    −1/B Σᵢⱼ ln σ(±(logit_scale · cosine of image i and text j + logit_bias)), + for i = j and − for all others.

    Args:
        image, text: float [B, D]; row i of one belongs to row i of the other.
        logit_scale, logit_bias: scalars, the factor on cosines (not its logarithm) and what is added to them.

    Chance value, at the best bias: ln B + (B − 1) ln(B / (B − 1)).
    """
    import torch
    from torch.nn import functional as F

    logits = logit_scale * unit(image) @ unit(text).T + logit_bias
    # ln σ(−z) = −softplus(z), which is 0 at −∞: so the right pairs are left out.
    right = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    negative = F.softplus(logits.masked_fill(right, -math.inf)).sum() / len(logits)
    return base.Loss.of(1, positive=F.softplus(-logits.diagonal()).mean(), negative=negative)
