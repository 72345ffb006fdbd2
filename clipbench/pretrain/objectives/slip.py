"""SLIP (Mu et al. 2021): InfoNCE of images and texts, and SimCLR on the images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from clipbench.cards.pairs import Augmentation, MocoV2
from clipbench.cards.recipe import Objective
from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import clip_loss, mlp, unit

if TYPE_CHECKING:
    from torch import Tensor

    from clipbench.models.towers.dual import DualTowers
    from clipbench.pretrain.data.batch import Batch


class Settings(Objective):
    """SLIP: InfoNCE of image and text, and NT-Xent of two further views of the image (Mu et al. 2021).

    `views` makes those two; the image of the pair is augmented as its source says (in the paper by a crop alone:
    `{kind: moco-v2, scale: [0.5, 1], jitter: 0, grayscale: 0, blur: 0, flip: 0}`). `projector_width` and
    `projector_dim` are those of the MLP through which the image tower's own features of the views go.
    """

    kind: Literal["slip"]
    max_logit_scale: float = Field(100.0, gt=0)
    views: Augmentation = MocoV2(kind="moco-v2")
    view_weight: float = Field(1.0, gt=0)
    temperature: float = Field(0.1, gt=0)
    projector_width: int = Field(4096, gt=0)
    projector_dim: int = Field(256, gt=0)


class Learner(base.Learner):
    """InfoNCE, and NT-Xent of two views of the image through an MLP of their own."""

    def __init__(self, settings: Settings, towers: DualTowers) -> None:
        super().__init__()
        self.wants = base.Wants(views=(settings.views, settings.views))
        self.max_logit_scale = settings.max_logit_scale
        self._temperature = settings.temperature
        self._weights = {"image_to_text": 0.5, "text_to_image": 0.5, "views": settings.view_weight}
        width = settings.projector_width
        self.projector = mlp(towers.image.features, width, width, settings.projector_dim)

    def forward(self, towers: DualTowers, batch: Batch) -> base.Features:
        """See `Learner`; with the projected views `first` and `second`."""
        first, second = (self.projector(towers.image(view)) for view in batch.views)
        return super().forward(towers, batch) | {"first": first, "second": second}

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        pairs = clip_loss(features["image"], features["text"], logit_scale)
        views = nt_xent_loss(features["first"], features["second"], self._temperature)
        return base.Loss(pairs.terms | {"views": views}, self._weights)

    def chance(self, batch_size: int) -> float:
        return math.log(batch_size) + self._weights["views"] * math.log(2 * batch_size - 1)


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views (Chen et al. 2020, SimCLR, equation 1): each finds the other among all other views.

    Args:
        first, second: float [B, D]; row i of both shows the same image.
        temperature: what cosines are divided by.

    Returns:
        The mean cross-entropy of 2 B views.

    Chance value: ln(2 B − 1).
    """
    import torch
    from torch.nn import functional as F

    views = unit(torch.cat([first, second]))
    count = len(views)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device=logits.device), -math.inf)
    target = torch.arange(count, device=logits.device).roll(count // 2)
    return F.cross_entropy(logits, target)
