"""Objectives at work: what each learns beside the towers, and which features of a batch its loss compares.

A `Learner` is all that the loop knows of an objective. Its weights are trained and kept in the checkpoint with the
towers'; the model that a run becomes has the towers alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from clipbench.cards import ClipLiteObjective, ClipObjective, Objective, SiglipObjective, SlipObjective
from clipbench.pretrain import objectives
from clipbench.pretrain.objectives import Loss
from clipbench.pretrain.pairs import Batch, Wants
from clipbench.pretrain.towers import DualTowers

#: what `Learner.forward` makes and `Learner.loss` compares, by name
Features = dict[str, Tensor]


class Learner(nn.Module, ABC):
    """One objective: `forward` runs the networks, in whatever precision, and `loss` compares in float32.

    Attributes:
        wants: what a batch must hold beside images and texts.
        max_logit_scale: bound on the towers' logit scale, or None.
    """

    wants = Wants()
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
        case SlipObjective():
            return Slip(objective, towers)


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


class Slip(Learner):
    """InfoNCE, and NT-Xent of two views of the image through an MLP of their own."""

    def __init__(self, objective: SlipObjective, towers: DualTowers) -> None:
        super().__init__()
        self.wants = Wants(views=(objective.views, objective.views))
        self.max_logit_scale = objective.max_logit_scale
        self._temperature = objective.temperature
        self._weights = {"image_to_text": 0.5, "text_to_image": 0.5, "views": objective.view_weight}
        width = objective.projector_width
        self.projector = mlp(towers.image.features, width, width, objective.projector_dim)

    def forward(self, towers: DualTowers, batch: Batch) -> Features:
        """See `Learner`; with the projected views `first` and `second`."""
        first, second = (self.projector(towers.image(view)) for view in batch.views)
        return super().forward(towers, batch) | {"first": first, "second": second}

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`."""
        pairs = objectives.clip_loss(features["image"], features["text"], logit_scale)
        views = objectives.nt_xent_loss(features["first"], features["second"], self._temperature)
        return objectives.WeightedLoss(pairs.terms() | {"views": views}, self._weights)

    def chance(self, batch_size: int) -> float:
        """See `Learner`."""
        return math.log(batch_size) + self._weights["views"] * math.log(2 * batch_size - 1)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them: float [B, widths[0]] to [B, widths[-1]]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])
