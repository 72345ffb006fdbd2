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
from torch.nn import functional as F

from clipbench.cards.cards import (
    ClipLiteObjective,
    ClipObjective,
    DeclipObjective,
    DeclipTerms,
    DefilipObjective,
    FilipObjective,
    Objective,
    SiglipObjective,
    SlipObjective,
)
from clipbench.errors import CardError
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.data.pairs import Batch, Wants
from clipbench.pretrain.objectives import losses
from clipbench.pretrain.objectives.losses import Loss

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

    def remember(self, features: Features) -> None:
        """Keep what later steps need of this one's features; called once the step is taken. Here: nothing."""

    @abstractmethod
    def chance(self, batch_size: int) -> float:
        """The loss of features that say nothing: every cosine 0."""


def make(objective: Objective, towers: DualTowers) -> Learner:
    """The learner of a recipe's objective, with random weights, for `towers`, whose logit scale it may set.

    Raises:
        CardError: the objective cannot train these towers.
    """
    _heads_fit(objective, towers)
    match objective:
        case ClipObjective():
            return Clip(objective)
        case ClipLiteObjective():
            return ClipLite(objective, towers)
        case SiglipObjective():
            return Siglip(objective, towers)
        case SlipObjective():
            return Slip(objective, towers)
        case DeclipObjective():
            return Declip(objective, towers)
        case DefilipObjective():
            return Defilip(objective, towers)
        case FilipObjective():
            return Filip(objective, towers)


def _heads_fit(objective: Objective, towers: DualTowers) -> None:
    """Raise CardError unless the objective trains all heads that the towers have, and needs no others."""
    kind = objective.kind
    late = isinstance(objective, FilipObjective | DefilipObjective)
    compared = "tokens" if kind == "filip" else "joint"
    if late and (towers.tokens is None or towers.tokens.compared != compared):
        raise CardError(
            f"objective {kind} needs heads for single tokens, and a model that compares by {compared}",
            hint="give config.tokens, for example " + f"{{dim: 256, compared: {compared}}}",
        )
    if late:
        towers.patch_tower  # noqa: B018 - raises where there are no tokens, as of a wholly frozen tower
    if not late and towers.tokens is not None:
        raise CardError(
            f"objective {kind} does not train the heads of config.tokens",
            hint="leave out config.tokens, or choose the objective filip or defilip",
        )
    joint = not isinstance(objective, FilipObjective) or objective.global_weight > 0
    if joint and not towers.joint:
        raise CardError(
            f"objective {kind} compares in a joint space, which the model has not",
            hint="give config.embed_dim and config.projection",
        )
    if towers.joint and not joint:
        raise CardError(
            f"objective {kind} with global_weight 0 does not train the heads into a joint space",
            hint="leave out config.embed_dim and config.projection, or set objective.global_weight above 0",
        )


class Clip(Learner):
    """InfoNCE."""

    def __init__(self, objective: ClipObjective) -> None:
        super().__init__()
        self.max_logit_scale = objective.max_logit_scale

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`."""
        return losses.clip_loss(features["image"], features["text"], logit_scale)

    def chance(self, batch_size: int) -> float:
        """See `Learner`."""
        return math.log(batch_size)


class ClipLite(Learner):
    """The JSD bound, and where the recipe wants them hard negatives, and prior terms on the towers' own features."""

    def __init__(self, objective: ClipLiteObjective, towers: DualTowers) -> None:
        super().__init__()
        self._negatives = objective.negatives
        self._clusters, self._hard_share = objective.clusters, objective.hard_share
        self._prior_weight = objective.prior_weight
        if self._prior_weight:
            self.image_prior = discriminator(towers.image.features)
            self.text_prior = discriminator(towers.text.features)

    def forward(self, towers: DualTowers, batch: Batch) -> Features:
        """See `Learner`; with hard negatives also `caption`, the tokens of each pair's, [B, context_length]; with prior
        terms the discriminators' logits of noise and of features."""
        image, text = towers.backbones(batch.images, batch.tokens, batch.rows)
        features = {"image": towers.image_projection(image), "text": towers.text_projection(text)}
        if self._clusters:
            beyond = towers.text.context_length - batch.tokens.shape[1]
            tokens = F.pad(batch.tokens, (0, beyond), value=towers.text.padding)
            features["caption"] = tokens.index_select(0, batch.rows)
        if self._prior_weight:
            for name, judge, seen in (("image", self.image_prior, image), ("text", self.text_prior, text)):
                noise = batch.draws.rand(seen.shape[1]).to(seen, non_blocking=True)
                features |= {f"{name}_noise": judge(noise), f"{name}_prior": judge(seen)}
        return features

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`."""
        bound = losses.clip_lite_loss(
            features["image"], features["text"], logit_scale, negatives=self._negatives
        )
        parts, weights = bound.terms(), dict.fromkeys(bound.terms(), 1 - self._prior_weight)
        if self._clusters:
            partners = losses.cluster_partners(features["text"], features["caption"], self._clusters)
            parts["hard_negative"] = losses.hard_negative_loss(
                features["image"], features["text"], logit_scale, partners
            )
            weights["hard_negative"] = self._hard_share * weights["negative"]
            weights["negative"] *= 1 - self._hard_share
        if self._prior_weight:
            for name in ("image", "text"):
                noise, seen = features[f"{name}_noise"], features[f"{name}_prior"]
                parts[f"{name}_prior"] = losses.prior_loss(noise, seen)
                weights[f"{name}_prior"] = self._prior_weight
        return losses.WeightedLoss(parts, weights)

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
        return losses.siglip_loss(features["image"], features["text"], logit_scale, self.logit_bias)

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
        pairs = losses.clip_loss(features["image"], features["text"], logit_scale)
        views = losses.nt_xent_loss(features["first"], features["second"], self._temperature)
        return losses.WeightedLoss(pairs.terms() | {"views": views}, self._weights)

    def chance(self, batch_size: int) -> float:
        """See `Learner`."""
        return math.log(batch_size) + self._weights["views"] * math.log(2 * batch_size - 1)


class Declip(Learner):
    """DeCLIP: four pairs of views and texts, SimSiam, masked tokens, and the nearest texts of a queue.

    The queue starts as random directions and stands in the checkpoint. Nearest texts are asked for before the step's
    own enter, so that no text finds itself.
    """

    queue: Tensor
    cursor: Tensor

    def __init__(self, objective: DeclipTerms, towers: DualTowers) -> None:
        super().__init__()
        text = towers.token_tower
        text.masking()  # raises where tokens cannot be hidden
        self.wants = Wants(views=(None,), altered=True)
        self.max_logit_scale = objective.max_logit_scale
        self._objective = objective
        terms = ("clip", "multi_view", "image_self", "text_self", "nearest")
        self.weights = {name: float(getattr(objective, f"{name}_weight")) for name in terms}
        dim, width = towers.embed_dim, objective.projector_width
        self.projector = nn.Sequential(*mlp(dim, width, width, width), nn.BatchNorm1d(width))
        self.predictor = mlp(width, objective.predictor_width, width)
        self.guesser = nn.Linear(text.features, text.vocabulary)
        self.register_buffer("queue", F.normalize(torch.randn(objective.queue, dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def forward(self, towers: DualTowers, batch: Batch) -> Features:
        """See `Learner`.

        `image`, `text`: the pairs; `second`, `altered`: another view, another text; `projected_1`, `predicted_1` and
        those of `_2`: of the two views; `guesses`, `hidden`: at masked tokens, and what they are.
        """
        assert batch.altered is not None
        altered, rows = batch.altered
        masked = self._objective.contrastive_text == "masked"
        features = {
            **captions(towers, batch, self._objective.masked, compare_masked=masked, guesser=self.guesser),
            **towers.image_features(batch.images),
            "second": towers.image_projection(towers.image(batch.views[0])),
            "altered": towers.text_projection(towers.text(altered).index_select(0, rows)),
        }
        for number, view in ((1, "image"), (2, "second")):
            features[f"projected_{number}"] = projected = self.projector(features[view])
            features[f"predicted_{number}"] = self.predictor(projected)
        return features

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`."""
        wanted = self._objective
        views, texts = (features["image"], features["second"]), (features["text"], features["altered"])
        pairs = [losses.clip_loss(view, text, logit_scale).total for text in texts for view in views]
        found = [losses.nearest(self.queue, text) for text in texts[: wanted.queued]]
        near = [losses.clip_loss(view, text, logit_scale) for text in found for view in views]
        one_way = wanted.nearest_directions == "image-to-text"
        first, second = ((features[f"predicted_{i}"], features[f"projected_{i}"]) for i in (1, 2))
        parts = {
            "clip": pairs[0],
            "multi_view": torch.stack(pairs[1:]).mean(),
            "image_self": losses.simsiam_loss(first, second),
            "text_self": losses.masked_language_loss(features["guesses"], features["hidden"]),
            "nearest": torch.stack([loss.image_to_text if one_way else loss.total for loss in near]).mean(),
        }
        return losses.WeightedLoss(parts, self.weights)

    def remember(self, features: Features) -> None:
        """The step's texts take the oldest places of the queue: the altered ones, where they count, then the others."""
        entering = [features["text"], features["altered"]][: self._objective.queued]
        rows = F.normalize(torch.cat(entering[::-1]).detach().to(self.queue.dtype), dim=1)
        places = (self.cursor + torch.arange(len(rows), device=rows.device)) % len(self.queue)
        self.queue[places] = rows
        self.cursor.add_(len(rows)).remainder_(len(self.queue))

    def chance(self, batch_size: int) -> float:
        """See `Learner`."""
        wanted = self._objective
        compared = wanted.clip_weight + wanted.multi_view_weight + wanted.nearest_weight
        return compared * math.log(batch_size) + wanted.text_self_weight * math.log(self.guesser.out_features)


class Defilip(Declip):
    """DeFILIP: DeCLIP, and late interaction of the first view and the caption, with a logit scale of its own."""

    def __init__(self, objective: DefilipObjective, towers: DualTowers) -> None:
        super().__init__(objective, towers)
        self._kept, self._token_weight = objective.kept, objective.token_weight
        self.token_log_scale = initial_log_scale()

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`; `image_tokens` and `text_tokens` are those of the pairs."""
        rest = super().loss(features, logit_scale)
        late = losses.filip_loss(
            features["image_tokens"], features["text_tokens"], self.token_log_scale.exp(), kept=self._kept
        )
        return losses.WeightedLoss(
            rest.terms() | {"tokens": late.total}, self.weights | {"tokens": self._token_weight}
        )

    def chance(self, batch_size: int) -> float:
        """See `Learner`."""
        return super().chance(batch_size) + self._token_weight * math.log(batch_size)


class Filip(Learner):
    """FILIP: late interaction of image and text; with it, where the recipe wants them, InfoNCE of the joint space,
    which has a logit scale of its own, and masked tokens."""

    def __init__(self, objective: FilipObjective, towers: DualTowers) -> None:
        super().__init__()
        self.max_logit_scale = objective.max_logit_scale
        self._objective = objective
        self._weights = {"image_to_text": 0.5, "text_to_image": 0.5}
        self._masks = objective.contrastive_text == "masked" or objective.text_self_weight > 0
        text = towers.token_tower
        if self._masks:
            text.masking()  # raises where tokens cannot be hidden
        self.guesser: nn.Linear | None = None
        if objective.text_self_weight:
            self.guesser = nn.Linear(text.features, text.vocabulary)
            self._weights["text_self"] = objective.text_self_weight
        if objective.global_weight:
            self.joint_log_scale = initial_log_scale()
            self._weights["global"] = objective.global_weight

    def forward(self, towers: DualTowers, batch: Batch) -> Features:
        """See `Learner`: `image_tokens`, `text_tokens`; `image`, `text` and `guesses`, `hidden` where they count."""
        masked = self._objective.contrastive_text == "masked"
        share = self._objective.masked if self._masks else None
        texts = captions(towers, batch, share, compare_masked=masked, guesser=self.guesser)
        return towers.image_features(batch.images) | texts

    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """See `Learner`; `logit_scale` is that of tokens."""
        kept = self._objective.kept
        parts = losses.filip_loss(
            features["image_tokens"], features["text_tokens"], logit_scale, kept=kept
        ).terms()
        if "text_self" in self._weights:
            parts["text_self"] = losses.masked_language_loss(features["guesses"], features["hidden"])
        if "global" in self._weights:
            joint = losses.clip_loss(features["image"], features["text"], self.joint_log_scale.exp())
            parts["global"] = joint.total
        return losses.WeightedLoss(parts, self._weights)

    def chance(self, batch_size: int) -> float:
        """See `Learner`."""
        guessed = math.log(self.guesser.out_features) if self.guesser is not None else 0.0
        wanted = self._objective
        return (1 + wanted.global_weight) * math.log(batch_size) + wanted.text_self_weight * guessed


def captions(
    towers: DualTowers,
    batch: Batch,
    share: float | None,
    *,
    compare_masked: bool,
    guesser: nn.Module | None,
) -> Features:
    """What the heads make of a batch's captions, and what `guesser` says of tokens that are masked.

    Args:
        share: of the tokens to be masked, in every pair's caption anew; None: none.
        compare_masked: it is the masked captions that the heads see.
        guesser: float [M, features] to logits [M, vocabulary], or None.

    Returns:
        As `DualTowers.text_features`, one row a pair; `guesses` and `hidden` (int64 [M]) with a guesser.
    """
    text = towers.token_tower
    tokens = towers.filled(batch.tokens)
    features: Features = {}
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
    return nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them: float [B, widths[0]] to [B, widths[-1]]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])
