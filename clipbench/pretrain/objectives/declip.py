"""DeCLIP (Li et al. 2022): InfoNCE of two views and two texts, and three kinds of self-supervision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from clipbench.cards.base import Misplaced
from clipbench.cards.recipe import Objective, Recipe
from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import captions, clip_loss, masked_language_loss, mlp, unit

if TYPE_CHECKING:
    from torch import Tensor

    from clipbench.models.towers.dual import DualTowers
    from clipbench.pretrain.data.batch import Batch


#: what tells the two presets of DeCLIP apart. The released code takes the mean of all four pairs of views and texts
#: with weight 0.4: a quarter of it is the first pair's.
_PRESETS = {
    "paper": {
        "clip_weight": 0.4,
        "multi_view_weight": 0.2,
        "contrastive_text": "clean",
        "nearest_texts": "text",
    },
    "repo": {
        "clip_weight": 0.1,
        "multi_view_weight": 0.3,
        "contrastive_text": "masked",
        "nearest_texts": "both",
    },
}


class Terms(Objective):
    """InfoNCE of two views and two texts, and three kinds of self-supervision (Li et al. 2022).

    The views are two draws of the source's augmentation, the second text is an altered caption. The terms: InfoNCE
    of the first view and the caption (`clip`); the mean of the other three pairs (`multi_view`); SimSiam on the
    views (`image_self`); guessing masked tokens of the caption (`text_self`); InfoNCE of views with the nearest
    text of a queue in place of their own (`nearest`).

    `preset` says which of the two published forms fills the keys that are left out: the paper's, or the released
    code's (`repo`), where the masked caption is also what is compared with the image, and the altered caption's
    nearest text counts too. With `nearest_texts: both` a step puts both texts of each pair into the queue.
    """

    preset: Literal["paper", "repo"] = "paper"
    max_logit_scale: float = Field(100.0, gt=0)
    clip_weight: float = Field(ge=0)
    multi_view_weight: float = Field(ge=0)
    image_self_weight: float = Field(0.2, ge=0)
    text_self_weight: float = Field(0.2, ge=0)
    nearest_weight: float = Field(0.2, ge=0)
    contrastive_text: Literal["clean", "masked"]
    nearest_texts: Literal["text", "both"]
    nearest_directions: Literal["image-to-text", "both"] = "image-to-text"
    queue: int = Field(2**16, gt=0, description="texts that are kept")
    masked: float = Field(0.15, gt=0, lt=1, description="of the tokens, to be guessed")
    projector_width: int = Field(1024, gt=0)
    predictor_width: int = Field(512, gt=0)

    @property
    def queued(self) -> int:
        """Entries of the queue that a pair fills."""
        return 2 if self.nearest_texts == "both" else 1

    def check(self, recipe: Recipe) -> None:
        for i, data in enumerate(recipe.data):
            if data.augment is None:
                why = f"objective {self.kind} compares two views of an image, which differ by augmentation"
                give = f"give {data.name} an augment, for example {{kind: moco-v2}}"
                raise Misplaced(f"{why}: {give}", "data", i)
        entering = self.queued * recipe.schedule.batch_size
        if self.queue < entering:
            held = f"must hold the {entering} texts that enter it at every step"
            each = f"({self.queued} for each of {recipe.schedule.batch_size} pairs)"
            raise Misplaced(f"objective.queue ({self.queue}) {held} {each}", "objective", "queue")

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return _PRESETS["repo" if value.get("preset") == "repo" else "paper"] | value


class Settings(Terms):
    """DeCLIP."""

    kind: Literal["declip"]


class Learner(base.Learner):
    """DeCLIP: four pairs of views and texts, SimSiam, masked tokens, and the nearest texts of a queue.

    The queue starts as random directions and stands in the checkpoint. Nearest texts are asked for before the step's
    own enter, so that no text finds itself.
    """

    queue: Tensor
    cursor: Tensor

    def __init__(self, settings: Terms, towers: DualTowers) -> None:
        import torch
        from torch import nn
        from torch.nn.functional import normalize

        super().__init__()
        text = towers.token_tower
        text.masking()  # raises where tokens cannot be hidden
        self.wants = base.Wants(views=(None,), altered=True)
        self.max_logit_scale = settings.max_logit_scale
        self._settings = settings
        terms = ("clip", "multi_view", "image_self", "text_self", "nearest")
        self.weights = {name: float(getattr(settings, f"{name}_weight")) for name in terms}
        dim, width = towers.embed_dim, settings.projector_width
        self.projector = nn.Sequential(*mlp(dim, width, width, width), nn.BatchNorm1d(width))
        self.predictor = mlp(width, settings.predictor_width, width)
        self.guesser = nn.Linear(text.features, text.vocabulary)
        self.register_buffer("queue", normalize(torch.randn(settings.queue, dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def forward(self, towers: DualTowers, batch: Batch) -> base.Features:
        """See `Learner`.

        `image`, `text`: the pairs; `second`, `altered`: another view, another text; `projected_1`, `predicted_1` and
        those of `_2`: of the two views; `guesses`, `hidden`: at masked tokens, and what they are.
        """
        assert batch.altered is not None
        altered, rows = batch.altered
        masked = self._settings.contrastive_text == "masked"
        features = {
            **captions(towers, batch, self._settings.masked, compare_masked=masked, guesser=self.guesser),
            **towers.image_features(batch.images),
            "second": towers.image_projection(towers.image(batch.views[0])),
            "altered": towers.text_projection(towers.text(altered).index_select(0, rows)),
        }
        for number, view in ((1, "image"), (2, "second")):
            features[f"projected_{number}"] = projected = self.projector(features[view])
            features[f"predicted_{number}"] = self.predictor(projected)
        return features

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        import torch

        wanted = self._settings
        views, texts = (features["image"], features["second"]), (features["text"], features["altered"])
        pairs = [clip_loss(view, text, logit_scale).total for text in texts for view in views]
        found = [nearest(self.queue, text) for text in texts[: wanted.queued]]
        near = [clip_loss(view, text, logit_scale) for text in found for view in views]
        one_way = wanted.nearest_directions == "image-to-text"
        first, second = ((features[f"predicted_{i}"], features[f"projected_{i}"]) for i in (1, 2))
        parts = {
            "clip": pairs[0],
            "multi_view": torch.stack(pairs[1:]).mean(),
            "image_self": simsiam_loss(first, second),
            "text_self": masked_language_loss(features["guesses"], features["hidden"]),
            "nearest": torch.stack(
                [loss.terms["image_to_text"] if one_way else loss.total for loss in near]
            ).mean(),
        }
        return base.Loss(parts, self.weights)

    def remember(self, features: base.Features) -> None:
        """The step's texts take the oldest places of the queue: the altered ones, where they count, then the others."""
        import torch
        from torch.nn.functional import normalize

        entering = [features["text"], features["altered"]][: self._settings.queued]
        rows = normalize(torch.cat(entering[::-1]).detach().to(self.queue.dtype), dim=1)
        places = (self.cursor + torch.arange(len(rows), device=rows.device)) % len(self.queue)
        self.queue[places] = rows
        self.cursor.add_(len(rows)).remainder_(len(self.queue))

    def chance(self, batch_size: int) -> float:
        wanted = self._settings
        compared = wanted.clip_weight + wanted.multi_view_weight + wanted.nearest_weight
        return compared * math.log(batch_size) + wanted.text_self_weight * math.log(self.guesser.out_features)


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
        (unit(predicted) * unit(projected.detach())).sum(dim=1).mean()
        for predicted, projected in ((first[0], second[1]), (second[0], first[1]))
    ]
    return -(cosines[0] + cosines[1]) / 2


def nearest(queue: Tensor, rows: Tensor) -> Tensor:
    """The row of `queue` of the highest cosine with each of `rows`, without a gradient.

    Args:
        queue: float [N, D], unit rows.
        rows: float [B, D].

    Returns:
        float [B, D].
    """
    import torch

    with torch.no_grad():
        return queue[(unit(rows) @ queue.T).argmax(dim=1)]
