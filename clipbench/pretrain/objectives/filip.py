"""FILIP (Yao et al. 2022): InfoNCE of late interaction, in which single tokens meet."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from clipbench.cards.recipe import Objective
from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import (
    captions,
    clip_loss,
    initial_log_scale,
    masked_language_loss,
    unit,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipbench.models.towers.dual import DualTowers
    from clipbench.pretrain.data.batch import Batch


#: products of tokens that are held at once
_BLOCK = 1 << 24


class Settings(Objective):
    """FILIP (Yao et al. 2022): InfoNCE of late interaction, in which single tokens meet.

    An image's logit of a text is the mean over the image's places of the best cosine with any of the text's tokens; a
    text's logit of an image likewise. The model needs `config.tokens`, which says whether padding counts.

    `kept`: of each pair, only so many places and tokens, those of the largest summed cosines with the other side of
    their own pair, are there to be found by others. `global_weight` adds InfoNCE of the joint space, which the model
    then needs too; `text_self_weight` adds guessing masked tokens, a share `masked` of them. `contrastive_text: masked`
    compares the masked caption. As released with DeCLIP: `kept: 16`, `contrastive_text: masked`, both weights 0, and
    `config.tokens.padding: true`.
    """

    tokens: ClassVar[str | None] = "tokens"

    kind: Literal["filip"]
    max_logit_scale: float = Field(100.0, gt=0)
    kept: int | None = Field(None, gt=0)
    contrastive_text: Literal["clean", "masked"] = "clean"
    global_weight: float = Field(0.0, ge=0)
    text_self_weight: float = Field(0.0, ge=0)
    masked: float = Field(0.15, gt=0, lt=1, description="of the tokens, to be guessed or left out")

    @property
    def joint(self) -> bool:
        return self.global_weight > 0


class Learner(base.Learner):
    """FILIP: late interaction of image and text; with it, where the recipe wants them, InfoNCE of the joint space,
    which has a logit scale of its own, and masked tokens."""

    def __init__(self, settings: Settings, towers: DualTowers) -> None:
        from torch import nn

        super().__init__()
        self.max_logit_scale = settings.max_logit_scale
        self._settings = settings
        self._weights = {"image_to_text": 0.5, "text_to_image": 0.5}
        self._masks = settings.contrastive_text == "masked" or settings.text_self_weight > 0
        text = towers.token_tower
        if self._masks:
            text.masking()  # raises where tokens cannot be hidden
        self.guesser: nn.Linear | None = None
        if settings.text_self_weight:
            self.guesser = nn.Linear(text.features, text.vocabulary)
            self._weights["text_self"] = settings.text_self_weight
        if settings.global_weight:
            self.joint_log_scale = initial_log_scale()
            self._weights["global"] = settings.global_weight

    def forward(self, towers: DualTowers, batch: Batch) -> base.Features:
        """See `Learner`: `image_tokens`, `text_tokens`; `image`, `text` and `guesses`, `hidden` where they count."""
        masked = self._settings.contrastive_text == "masked"
        share = self._settings.masked if self._masks else None
        texts = captions(towers, batch, share, compare_masked=masked, guesser=self.guesser)
        return towers.image_features(batch.images) | texts

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        """See `Learner`; `logit_scale` is that of tokens."""
        kept = self._settings.kept
        late = filip_loss(features["image_tokens"], features["text_tokens"], logit_scale, kept=kept)
        parts = dict(late.terms)
        if "text_self" in self._weights:
            parts["text_self"] = masked_language_loss(features["guesses"], features["hidden"])
        if "global" in self._weights:
            joint = clip_loss(features["image"], features["text"], self.joint_log_scale.exp())
            parts["global"] = joint.total
        return base.Loss(parts, self._weights)

    def chance(self, batch_size: int) -> float:
        guessed = math.log(self.guesser.out_features) if self.guesser is not None else 0.0
        wanted = self._settings
        return (1 + wanted.global_weight) * math.log(batch_size) + wanted.text_self_weight * guessed


def filip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, *, kept: int | None = None) -> base.Loss:
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
    import torch
    from torch.nn import functional as F

    image, text = unit(image), unit(text)
    text = text[:, : int((text != 0).any(dim=2).sum(dim=1).max())]
    found_in_image, found_in_text = image, text
    if kept is not None:
        own = image @ text.transpose(1, 2)
        found_in_image = _largest(image, own.sum(dim=2), kept)
        found_in_text = _largest(text, own.sum(dim=1), kept)
    target = torch.arange(len(image), device=image.device)
    return base.Loss.of(
        0.5,
        image_to_text=F.cross_entropy(logit_scale * late_interaction(image, found_in_text), target),
        text_to_image=F.cross_entropy(logit_scale * late_interaction(text, found_in_image), target),
    )


def late_interaction(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean over a query's tokens of the best product with any of a key's tokens: float [n, m]; zeros are padding.

    Args:
        queries: float [n, S, D].
        keys: float [m, T, D].

    Products are taken in blocks of queries. Where there are several, each block is computed again for its gradient, so
    that no more than one is ever held.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

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
