"""CLIP-Lite (Shrivastava et al. 2023): a bound on mutual information that one wrong text an image is enough for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from clipbench.cards.base import Misplaced
from clipbench.cards.recipe import Objective, Recipe
from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import unit, wide

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipbench.models.towers.dual import DualTowers
    from clipbench.pretrain.data.batch import Batch


class Settings(Objective):
    """The JSD bound of CLIP-Lite, with `negatives` wrong texts an image, drawn by rolling the batch.

    `prior_weight` w adds the released code's prior terms: (1 − w) times the bound + w times what two discriminators
    lose that tell the towers' features from uniform noise. There is no gradient reversal, as in that code, whose
    weight is 0.1: the towers are rewarded for being easy to tell apart. 0: no such terms.

    `clusters` adds a hard negative an image: at every step the batch's captions are parted into so many clusters of
    their joint features (k-means), and the next other caption of its own one's cluster is wrong for the image;
    `hard_share` is its weight among wrong texts. (The released code, where this is off, clusters all captions by a
    sentence encoder's features and draws pairs of neighbours into a batch.)
    """

    kind: Literal["clip-lite"]
    negatives: int = Field(1, ge=1)
    prior_weight: float = Field(0.0, ge=0, lt=1)
    clusters: int | None = Field(None, gt=1)
    hard_share: float = Field(0.5, gt=0, le=1)

    def check(self, recipe: Recipe) -> None:
        batch_size = recipe.schedule.batch_size
        below = f"must be below schedule.batch_size ({batch_size})"
        if self.negatives >= batch_size:
            why = "a batch rolled once around meets itself"
            raise Misplaced(
                f"objective.negatives ({self.negatives}) {below}: {why}", "objective", "negatives"
            )
        if (self.clusters or 0) >= batch_size:
            why = "captions that are alone have no hard negative"
            raise Misplaced(f"objective.clusters ({self.clusters}) {below}: {why}", "objective", "clusters")


class Learner(base.Learner):
    """The JSD bound, and where the recipe wants them hard negatives, and prior terms on the towers' own features."""

    def __init__(self, settings: Settings, towers: DualTowers) -> None:
        super().__init__()
        self._negatives = settings.negatives
        self._clusters, self._hard_share = settings.clusters, settings.hard_share
        self._prior_weight = settings.prior_weight
        if self._prior_weight:
            self.image_prior = discriminator(towers.image.features)
            self.text_prior = discriminator(towers.text.features)

    def forward(self, towers: DualTowers, batch: Batch) -> base.Features:
        """See `Learner`; with hard negatives also `caption`, the tokens of each pair's, [B, context_length]; with prior
        terms the discriminators' logits of noise and of features."""
        image, text = towers.backbones(batch.images, batch.tokens, batch.rows)
        features = {"image": towers.image_projection(image), "text": towers.text_projection(text)}
        if self._clusters:
            from torch.nn.functional import pad

            beyond = towers.text.context_length - batch.tokens.shape[1]
            tokens = pad(batch.tokens, (0, beyond), value=towers.text.padding)
            features["caption"] = tokens.index_select(0, batch.rows)
        if self._prior_weight:
            for name, judge, seen in (("image", self.image_prior, image), ("text", self.text_prior, text)):
                noise = batch.draws.rand(seen.shape[1]).to(seen, non_blocking=True)
                features |= {f"{name}_noise": judge(noise), f"{name}_prior": judge(seen)}
        return features

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        bound = clip_lite_loss(features["image"], features["text"], logit_scale, negatives=self._negatives)
        parts, weights = dict(bound.terms), dict.fromkeys(bound.terms, 1 - self._prior_weight)
        if self._clusters:
            partners = cluster_partners(features["text"], features["caption"], self._clusters)
            parts["hard_negative"] = hard_negative_loss(
                features["image"], features["text"], logit_scale, partners
            )
            weights["hard_negative"] = self._hard_share * weights["negative"]
            weights["negative"] *= 1 - self._hard_share
        if self._prior_weight:
            for name in ("image", "text"):
                noise, seen = features[f"{name}_noise"], features[f"{name}_prior"]
                parts[f"{name}_prior"] = prior_loss(noise, seen)
                weights[f"{name}_prior"] = self._prior_weight
        return base.Loss(parts, weights)

    def chance(self, batch_size: int) -> float:
        """See `Learner`; discriminators that cannot tell say 1/2."""
        return 2 * math.log(2) * (1 + self._prior_weight)


def discriminator(features: int) -> nn.Module:
    """CLIP-Lite's judge of its priors: float [B, features] to logits [B, 1]."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(features, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 1)
    )


def clip_lite_loss(image: Tensor, text: Tensor, logit_scale: Tensor, *, negatives: int = 1) -> base.Loss:
    """Negated Jensen–Shannon bound on the mutual information of image and text, as in CLIP-Lite.

    mean softplus(−T(xᵢ, yᵢ)) + mean softplus(T(xᵢ, yᵢ₊ₖ)), T = logit_scale · cosine, averaged over the rolls
    k = 1 … `negatives` of the local batch. `negatives=1` is the paper's single negative; since it pairs every
    text with a wrong image too, the bound is symmetric. Each projection block sees the batch once; the
    released code runs it again on the rolled batch, which only moves BatchNorm's averages a second time.

    The bound's second term is an expectation over independent pairs. With class names as captions an
    independent pair shares its class with probability 1/C, so such negatives are no mistake to be filtered
    out: they belong to the bound, whose optimum is then T = ln C for the right class and −∞ for all others.

    Args:
        image, text: float [B, D]; row i of one belongs to row i of the other; B > `negatives`.
        logit_scale: scalar, the factor on cosines (not its logarithm).

    Raises:
        ValueError: a batch that a roll would bring back onto itself.

    Chance value: 2 ln 2.
    """
    import torch
    from torch.nn import functional as F

    if not 1 <= negatives < len(image):
        raise ValueError(
            f"negatives must lie in 1 … {len(image) - 1} for a batch of {len(image)}, not {negatives}"
        )
    image, text = unit(image), unit(text)
    matched = logit_scale * (image * text).sum(dim=1)
    rolled = [logit_scale * (image * text.roll(-k, dims=0)).sum(dim=1) for k in range(1, negatives + 1)]
    positive, negative = F.softplus(-matched).mean(), F.softplus(torch.stack(rolled)).mean()
    return base.Loss.of(1, positive=positive, negative=negative)


def hard_negative_loss(image: Tensor, text: Tensor, logit_scale: Tensor, partners: Tensor) -> Tensor:
    """mean softplus(T(xᵢ, yⱼ)), j = partners[i]: `clip_lite_loss`'s second term with given wrong texts.

    Args:
        image, text: float [B, D].
        logit_scale: scalar, the factor on cosines (not its logarithm).
        partners: int64 [B].

    Chance value: ln 2.
    """
    from torch.nn import functional as F

    return F.softplus(logit_scale * (unit(image) * unit(text)[partners]).sum(dim=1)).mean()


def cluster_partners(text: Tensor, captions: Tensor, clusters: int) -> Tensor:
    """For each row one with another caption of the same cluster: int64 [B].

    The distinct captions are clustered (see `k_means`); each one's partner is the next of its cluster in the batch's
    order, the last one's the first. A caption that is alone in its cluster has the batch's next other caption.

    Args:
        text: float [B, D], the captions' features; the order of a shuffled batch decides where clusters start.
        captions: [B, L], rows that are equal where captions are.
    """
    import torch

    count = len(text)
    _, which = torch.unique(captions, dim=0, return_inverse=True)
    places = torch.arange(count, device=text.device)
    first = places.new_full((int(which.max()) + 1,), count).scatter_reduce(0, which, places, "amin")
    order = first.argsort()
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=text.device)
    shown = first[order]  # where the distinct captions stand first, in the batch's order

    labels = k_means(text[shown], clusters)
    grouped = labels.argsort(stable=True)
    own = labels[grouped]
    begin = torch.searchsorted(own, own)
    end = torch.searchsorted(own, own, right=True)
    at = torch.arange(len(own), device=text.device)
    following = (at + 1).where(at + 1 < end, begin)
    partner = torch.empty_like(grouped)
    partner[grouped] = grouped[following]
    alone = partner == at
    partner = partner.where(~alone, (at + 1) % len(at))
    return shown[partner[number[which]]]


def k_means(rows: Tensor, clusters: int, *, rounds: int = 10) -> Tensor:
    """The cluster of each row by k-means of directions (Dhillon and Modha 2001), from the first rows on: int64 [n].

    Args:
        rows: float [n, D], in random order.
        clusters: how many; one a row where there are fewer rows.
    """
    from torch.nn import functional as F

    points = unit(rows.detach())
    centres = points[:clusters]
    labels = (points @ centres.T).argmax(dim=1)
    for _ in range(rounds):
        member = F.one_hot(labels, len(centres)).to(points.dtype)
        centres = unit(member.T @ points).where(member.any(dim=0)[:, None], centres)
        labels = (points @ centres.T).argmax(dim=1)
    return labels


def prior_loss(noise: Tensor, features: Tensor) -> Tensor:
    """What a discriminator loses that shall say yes to a prior's draws and no to features: mean cross-entropies.

    Args:
        noise, features: float [B, 1], its logits.

    Chance value: 2 ln 2.
    """
    from torch.nn import functional as F

    return F.softplus(-wide(noise)).mean() + F.softplus(wide(features)).mean()
