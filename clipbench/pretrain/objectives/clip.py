"""CLIP (Radford et al. 2021): InfoNCE of images and texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from clipbench.cards.recipe import Objective
from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import clip_loss
from clipbench.pretrain.objectives._tiled import tiled_clip_loss

if TYPE_CHECKING:
    from torch import Tensor

    from clipbench.models.towers.dual import DualTowers


class Settings(Objective):
    """InfoNCE over the batch. The logit scale never exceeds `max_logit_scale` (100 in CLIP, section 2.5).

    `tile`: of the matrix of all pairs only so many rows and columns are held at once; the loss stays the same.
    """

    later: ClassVar = ("tile",)

    kind: Literal["clip"]
    max_logit_scale: float = Field(100.0, gt=0)
    tile: int | None = Field(None, gt=0)


class Learner(base.Learner):
    """InfoNCE."""

    def __init__(self, settings: Settings, towers: DualTowers) -> None:
        super().__init__()
        self.max_logit_scale = settings.max_logit_scale
        self._tile = settings.tile

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        image, text = features["image"], features["text"]
        if self._tile is not None:
            return tiled_clip_loss(image, text, logit_scale, self._tile)
        return clip_loss(image, text, logit_scale)

    def chance(self, batch_size: int) -> float:
        return math.log(batch_size)
