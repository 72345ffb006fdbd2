"""DeFILIP (Cui et al. 2022): DeCLIP and FILIP at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from clipbench.pretrain.objectives import base, declip
from clipbench.pretrain.objectives._helpers import initial_log_scale
from clipbench.pretrain.objectives.filip import filip_loss

if TYPE_CHECKING:
    from torch import Tensor

    from clipbench.models.towers.dual import DualTowers


class Settings(declip.Terms):
    """DeFILIP (Cui et al. 2022): DeCLIP, and FILIP's loss of the first view and the caption.

    `token_weight` is that loss's weight, beside which the others keep theirs; `kept` as in `filip`. The model needs
    `config.tokens` with `compared: joint`. The tokens' logit scale belongs to the loss alone and has no bound.
    """

    tokens: ClassVar[str | None] = "joint"

    kind: Literal["defilip"]
    token_weight: float = Field(0.2, gt=0)
    kept: int | None = Field(None, gt=0)


class Learner(declip.Learner):
    """DeFILIP: DeCLIP, and late interaction of the first view and the caption, with a logit scale of its own."""

    def __init__(self, settings: Settings, towers: DualTowers) -> None:
        super().__init__(settings, towers)
        self._kept, self._token_weight = settings.kept, settings.token_weight
        self.token_log_scale = initial_log_scale()

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        """See `Learner`; `image_tokens` and `text_tokens` are those of the pairs."""
        rest = super().loss(features, logit_scale)
        scale = self.token_log_scale.exp()
        late = filip_loss(features["image_tokens"], features["text_tokens"], scale, kept=self._kept)
        return base.Loss(rest.terms | {"tokens": late.total}, rest.weights | {"tokens": self._token_weight})

    def chance(self, batch_size: int) -> float:
        return super().chance(batch_size) + self._token_weight * math.log(batch_size)
