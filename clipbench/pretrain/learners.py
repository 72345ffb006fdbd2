"""Objectives at work: what each learns beside the towers, and which features of a batch its loss compares.

A `Learner` is all that the loop knows of an objective. Its weights are trained and kept in the checkpoint with the
towers'; the model that a run becomes has the towers alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from clipbench.cards import ClipLiteObjective, ClipObjective, Objective, SiglipObjective
from clipbench.pretrain import objectives
from clipbench.pretrain.objectives import Loss
from clipbench.pretrain.pairs import Batch
from clipbench.pretrain.towers import DualTowers

#: what `Learner.forward` makes and `Learner.loss` compares, by name
Features = dict[str, Tensor]


class Learner(nn.Module, ABC):
    """One objective: `forward` runs the networks, in whatever precision, and `loss` compares in float32.

    Attributes:
        max_logit_scale: bound on the towers' logit scale, or None.
    """

    max_logit_scale: float | None = None

    def forward(self, towers: DualTowers, batch: Batch) -> Features:
        """The features of a batch: here `image` and `text`, each [B, embed_dim]."""
        image, text = towers(batch.images, batch.tokens, batch.rows)
        return {"image": image, "text": text}

    @abstractmethod
    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """The loss of the features of one batch, `logit_scale` being the factor on cosines."""

    @abstractmethod
    def chance(self, batch_size: int) -> float:
        """The loss of features that say nothing: every cosine 0."""


def make(objective: Objective, towers: DualTowers) -> Learner:
    """The learner of a recipe's objective, with random weights, for `towers`, whose logit scale it may set."""
    match objective:
        case ClipObjective():
            return Clip(objective)
        case ClipLiteObjective():
            return ClipLite(objective, towers)
        case SiglipObjective():
            return Siglip(objective, towers)


class Clip(Learner):
    """InfoNCE."""

    def __init__(self, objective: ClipObjective) -> None:
        super().__init__()
        self.max_logit_scale = objective.max_logit_scale

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`."""
        return objectives.clip_loss(features["image"], features["text"], logit_scale)

    def chance(self, batch_size: int) -> float:
        """See `Learner`."""
        return math.log(batch_size)


class ClipLite(Learner):
    """The JSD bound, and where the recipe wants them CLIP-Lite's prior terms on the towers' own features."""

    def __init__(self, objective: ClipLiteObjective, towers: DualTowers) -> None:
        super().__init__()
        self._negatives = objective.negatives
        self._prior_weight = objective.prior_weight
        if self._prior_weight:
            self.image_prior = discriminator(towers.image.features)
            self.text_prior = discriminator(towers.text.features)

    def forward(self, towers: DualTowers, batch: Batch) -> Features:
        """See `Learner`; with prior terms also the discriminators' logits of noise and of features."""
        image, text = towers.backbones(batch.images, batch.tokens, batch.rows)
        features = {"image": towers.image_projection(image), "text": towers.text_projection(text)}
        if self._prior_weight:
            for name, judge, seen in (("image", self.image_prior, image), ("text", self.text_prior, text)):
                noise = torch.rand(seen.shape, generator=batch.generator).to(seen.device)
                features |= {f"{name}_noise": judge(noise), f"{name}_prior": judge(seen)}
        return features

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`."""
        bound = objectives.clip_lite_loss(
            features["image"], features["text"], logit_scale, negatives=self._negatives
        )
        if not self._prior_weight:
            return bound
        prior = {
            f"{name}_prior": objectives.prior_loss(features[f"{name}_noise"], features[f"{name}_prior"])
            for name in ("image", "text")
        }
        weights = dict.fromkeys(bound.terms(), 1 - self._prior_weight)
        return objectives.WeightedLoss(
            bound.terms() | prior, weights | dict.fromkeys(prior, self._prior_weight)
        )

    def chance(self, batch_size: int) -> float:
        """See `Learner`; discriminators that cannot tell say 1/2."""
        return 2 * math.log(2) * (1 + self._prior_weight)


def discriminator(features: int) -> nn.Module:
    """CLIP-Lite's judge of its priors: float [B, features] to logits [B, 1]."""
    return nn.Sequential(
        nn.Linear(features, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 1)
    )


class Siglip(Learner):
    """The pairwise sigmoid loss; the bias belongs to it alone, since it moves no ranking."""

    def __init__(self, objective: SiglipObjective, towers: DualTowers) -> None:
        super().__init__()
        self.logit_bias = nn.Parameter(torch.tensor(objective.initial_logit_bias))
        nn.init.constant_(towers.log_scale, math.log(objective.initial_logit_scale))

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`."""
        return objectives.siglip_loss(features["image"], features["text"], logit_scale, self.logit_bias)

    def chance(self, batch_size: int) -> float:
        """See `Learner`; at the bias that is best then."""
        wrong = batch_size - 1
        return math.log(batch_size) + wrong * math.log(batch_size / wrong)
