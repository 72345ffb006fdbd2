"""Objectives: pure functions of embeddings. Every term of a loss has its name.

Embeddings need not be unit rows; cosines are taken here, in float32 at least, whatever precision made them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

#: products of tokens that are held at once
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Loss(ABC):
    """A loss by its terms, each a scalar."""

    @property
    @abstractmethod
    def total(self) -> Tensor:
        """What is minimised."""

    def terms(self) -> dict[str, Tensor]:
        """The terms by name, as logged."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class ClipLoss(Loss):
    """InfoNCE in its two directions."""

    image_to_text: Tensor
    text_to_image: Tensor

    @property
    def total(self) -> Tensor:
        """Mean of the two directions."""
        return (self.image_to_text + self.text_to_image) / 2


@dataclass(frozen=True)
class PairwiseLoss(Loss):
    """A loss that judges pairs one by one: what right ones add, and what wrong ones do."""

    positive: Tensor
    negative: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of the two terms."""
        return self.positive + self.negative


@dataclass(frozen=True)
class WeightedLoss(Loss):
    """A weighted sum of terms."""

    parts: dict[str, Tensor]
    weights: dict[str, float]

    @property
    def total(self) -> Tensor:
        """Sum of the terms, each times its weight."""
        weighted = [self.weights[name] * part for name, part in self.parts.items()]
        return torch.stack(weighted).sum()

    def terms(self) -> dict[str, Tensor]:
        """The terms by name, without their weights."""
        return self.parts


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> ClipLoss:
    """Symmetric InfoNCE over the batch (CLIP, figure 3).

    Args:
        image, text: float [B, D]; row i of one belongs to row i of the other.
        logit_scale: scalar, the factor on cosines (not its logarithm).

    Chance value: ln B.
    """
    logits = logit_scale * _unit(image) @ _unit(text).T
    target = torch.arange(len(logits), device=logits.device)
    return ClipLoss(F.cross_entropy(logits, target), F.cross_entropy(logits.T, target))


def filip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, *, kept: int | None = None) -> ClipLoss:
    """Symmetric InfoNCE of late interaction over the batch (Yao et al. 2022, FILIP, section 3.1).

    An image's logit of a text is logit_scale times the mean over the image's tokens of the largest cosine with any of
    the text's; a text's logit of an image is the same with the sides changed. Tokens of zeros behind a text's own are
    padding and take no part.

    Args:
        image: float [B, S, D], tokens; row i belongs to row i of `text`.
        text: float [B, T, D], tokens.
        logit_scale: scalar, the factor on cosines (not its logarithm).
        kept: of each pair, only so many tokens of either side can be found: those of the largest sums of cosines with
            the tokens of the other side (as in DeCLIP's repository, which keeps 16). None: all.

    Chance value: ln B.
    """
    image, text = _unit(image), _unit(text)
    text = text[:, : int((text != 0).any(dim=2).sum(dim=1).max())]
    found_in_image, found_in_text = image, text
    if kept is not None:
        own = image @ text.transpose(1, 2)
        found_in_image = _largest(image, own.sum(dim=2), kept)
        found_in_text = _largest(text, own.sum(dim=1), kept)
    target = torch.arange(len(image), device=image.device)
    return ClipLoss(
        F.cross_entropy(logit_scale * late_interaction(image, found_in_text), target),
        F.cross_entropy(logit_scale * late_interaction(text, found_in_image), target),
    )


def late_interaction(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean over a query's tokens of the best product with any of a key's tokens: float [n, m]; zeros are padding.

    Args:
        queries: float [n, S, D].
        keys: float [m, T, D].

    Products are taken in blocks of queries. Where there are several, each block is computed again for its gradient, so
    that no more than one is ever held.
    """
    real, asked = (keys != 0).any(dim=2), (queries != 0).any(dim=2).to(queries.dtype)
    weights = asked / asked.sum(dim=1, keepdim=True)

    def block(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
        products = torch.einsum("nsd,mtd->nsmt", queries, keys).masked_fill(~real, -math.inf)
        return torch.einsum("nsm,ns->nm", products.max(dim=3).values, weights)

    rows = max(1, _BLOCK // (queries.shape[1] * real.numel()))
    if rows >= len(queries):
        return block(queries, keys, weights)
    parts = zip(torch.split(queries, rows), torch.split(weights, rows), strict=True)
    scores = [
        checkpoint(block, part, keys, weight, use_reentrant=False, preserve_rng_state=False)
        for part, weight in parts
    ]
    return torch.cat(scores)


def _largest(tokens: Tensor, sums: Tensor, kept: int) -> Tensor:
    """The `kept` tokens [B, T, D] of the largest sums [B, T], padding (zeros) last: [B, kept, D]."""
    sums = sums.detach().masked_fill((tokens == 0).all(dim=2), -math.inf)
    places = sums.topk(min(kept, tokens.shape[1]), dim=1).indices
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))


def clip_lite_loss(image: Tensor, text: Tensor, logit_scale: Tensor, *, negatives: int = 1) -> PairwiseLoss:
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
    if not 1 <= negatives < len(image):
        raise ValueError(
            f"negatives must lie in 1 … {len(image) - 1} for a batch of {len(image)}, not {negatives}"
        )
    image, text = _unit(image), _unit(text)
    matched = logit_scale * (image * text).sum(dim=1)
    rolled = [logit_scale * (image * text.roll(-k, dims=0)).sum(dim=1) for k in range(1, negatives + 1)]
    return PairwiseLoss(F.softplus(-matched).mean(), F.softplus(torch.stack(rolled)).mean())


def hard_negative_loss(image: Tensor, text: Tensor, logit_scale: Tensor, partners: Tensor) -> Tensor:
    """mean softplus(T(xᵢ, yⱼ)), j = partners[i]: `clip_lite_loss`'s second term with given wrong texts.

    Args:
        image, text: float [B, D].
        logit_scale: scalar, the factor on cosines (not its logarithm).
        partners: int64 [B].

    Chance value: ln 2.
    """
    return F.softplus(logit_scale * (_unit(image) * _unit(text)[partners]).sum(dim=1)).mean()


@torch.no_grad()
def cluster_partners(text: Tensor, captions: Tensor, clusters: int) -> Tensor:
    """For each row one with another caption of the same cluster: int64 [B].

    The distinct captions are clustered (see `k_means`); each one's partner is the next of its cluster in the batch's
    order, the last one's the first. A caption that is alone in its cluster has the batch's next other caption.

    Args:
        text: float [B, D], the captions' features; the order of a shuffled batch decides where clusters start.
        captions: [B, L], rows that are equal where captions are.
    """
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


@torch.no_grad()
def k_means(rows: Tensor, clusters: int, *, rounds: int = 10) -> Tensor:
    """The cluster of each row by k-means of directions (Dhillon and Modha 2001), from the first rows on: int64 [n].

    Args:
        rows: float [n, D], in random order.
        clusters: how many; one a row where there are fewer rows.
    """
    points = _unit(rows)
    centres = points[:clusters]
    labels = (points @ centres.T).argmax(dim=1)
    for _ in range(rounds):
        member = F.one_hot(labels, len(centres)).to(points.dtype)
        centres = _unit(member.T @ points).where(member.any(dim=0)[:, None], centres)
        labels = (points @ centres.T).argmax(dim=1)
    return labels


def siglip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> PairwiseLoss:
    """Pairwise sigmoid loss over all pairs of the batch (Zhai et al. 2023, algorithm 1).

    −1/B Σᵢⱼ ln σ(±(logit_scale · cosine of image i and text j + logit_bias)), + for i = j and − for all others.

    Args:
        image, text: float [B, D]; row i of one belongs to row i of the other.
        logit_scale, logit_bias: scalars, the factor on cosines (not its logarithm) and what is added to them.

    Chance value, at the best bias: ln B + (B − 1) ln(B / (B − 1)).
    """
    logits = logit_scale * _unit(image) @ _unit(text).T + logit_bias
    # ln σ(−z) = −softplus(z), which is 0 at −∞: so the right pairs are left out.
    right = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    negative = F.softplus(logits.masked_fill(right, -math.inf)).sum() / len(logits)
    return PairwiseLoss(F.softplus(-logits.diagonal()).mean(), negative)


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views (Chen et al. 2020, SimCLR, equation 1): each finds the other among all other views.

    Args:
        first, second: float [B, D]; row i of both shows the same image.
        temperature: what cosines are divided by.

    Returns:
        The mean cross-entropy of 2 B views.

    Chance value: ln(2 B − 1).
    """
    views = _unit(torch.cat([first, second]))
    count = len(views)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device=logits.device), -math.inf)
    target = torch.arange(count, device=logits.device).roll(count // 2)
    return F.cross_entropy(logits, target)


def simsiam_loss(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], /) -> Tensor:
    """SimSiam (Chen and He 2021, algorithm 1): each view predicts the other's projection.

    No gradient flows through what is predicted.

    Args:
        first, second: of each view its prediction and its projection, float [B, D] all.

    Returns:
        Minus the mean cosine: −1 … 1.

    Chance value: 0.
    """
    cosines = [
        (_unit(predicted) * _unit(projected.detach())).sum(dim=1).mean()
        for predicted, projected in ((first[0], second[1]), (second[0], first[1]))
    ]
    return -(cosines[0] + cosines[1]) / 2


def masked_language_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of guesses at masked tokens; 0 where none is masked.

    Args:
        logits: float [M, vocabulary].
        target: int64 [M], the right tokens.

    Chance value: ln vocabulary.
    """
    return F.cross_entropy(_wide(logits), target, reduction="sum") / max(len(target), 1)


def nearest(queue: Tensor, rows: Tensor) -> Tensor:
    """The row of `queue` of the highest cosine with each of `rows`, without a gradient.

    Args:
        queue: float [N, D], unit rows.
        rows: float [B, D].

    Returns:
        float [B, D].
    """
    with torch.no_grad():
        return queue[(_unit(rows) @ queue.T).argmax(dim=1)]


def prior_loss(noise: Tensor, features: Tensor) -> Tensor:
    """What a discriminator loses that shall say yes to a prior's draws and no to features: mean cross-entropies.

    Args:
        noise, features: float [B, 1], its logits.

    Chance value: 2 ln 2.
    """
    return F.softplus(-_wide(noise)).mean() + F.softplus(_wide(features)).mean()


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(_wide(rows), dim=-1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
