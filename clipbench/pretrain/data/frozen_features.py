"""Towers that others trained: where training starts from, and what it leaves as it was.

A wholly frozen tower gives an image, or a text, the same feature at every step. It is computed once, through the
feature store, and while heads train a stand-in takes the tower's place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clipbench.cards.model import Weights
from clipbench.cards.recipe import RecipeModel
from clipbench.data.pairs.lazy import LazySplit
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import Features
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, did_you_mean
from clipbench.models.adapter import ModelEntry
from clipbench.models.towers.adapters import alone, load_tower
from clipbench.models.towers.base import ImageTower, LibraryTower, TextTower
from clipbench.models.towers.configs import DualConfig, sources
from clipbench.models.towers.dual import DualTowers
from clipbench.models.weights import fetch
from clipbench.pretrain.data.source import Source

_SPACE = "backbone"
_HELD_BYTES = 2**30  # of frozen features: larger ones are read from the store at every step


class PrecomputedImages(ImageTower):
    """Stands for a frozen image tower: what comes in are its features, float [B, features]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """The features as they come."""
        return images


class PrecomputedTexts(TextTower):
    """Stands for a frozen text tower: a text's tokens are its feature, float [B, features]."""

    def __init__(self, features: int, encode: Callable[[list[str]], Features]) -> None:
        super().__init__()
        self.features = self.context_length = features
        self._encode = encode

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The texts' features (float32 [N, features]), and how long each is (int64 [N])."""
        rows = torch.from_numpy(np.array(self._encode(list(texts))))
        return rows, torch.full((len(rows),), self.features)

    def forward(self, tokens: Tensor) -> Tensor:
        """The features as they come."""
        return tokens


class FrozenFeatures:
    """Features of the images of several splits, one after the other: in memory where there is room for all of them."""

    def __init__(self, parts: Sequence[Features]) -> None:
        held = sum(len(part) * part.shape[1] * 4 for part in parts) <= _HELD_BYTES
        self._parts = [np.asarray(part) for part in parts] if held else parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def take(self, chosen: Tensor) -> Tensor:
        """The features of images `chosen` (int64 [B], counted over all splits): float32 [B, D]."""
        numbers = chosen.numpy()
        rows = np.empty((len(numbers), self._parts[0].shape[1]), np.float32)
        for part, start in zip(self._parts, self._starts, strict=False):
            own = (numbers >= start) & (numbers < start + len(part))
            rows[own] = part[numbers[own] - start]
        return torch.from_numpy(rows)


class Start:
    """The towers of a recipe with the weights that they start from.

    Attributes:
        towers: what is trained: heads, and towers or their stand-ins.
        digests: `image`, `text` → sha256 (hex) of the file that the tower starts from.
        config: as it stands on the model card: a wholly frozen tower that can be had again elsewhere is named with
            its sha256, and the tensors of all others lie in the model's own file.
    """

    def __init__(self, model: RecipeModel, config: DualConfig, recipe_id: str, runtime: Runtime) -> None:
        """Build the towers, load what they start from, and put stand-ins in the place of frozen ones.

        Raises:
            CardError: the towers cannot be built, or what is frozen has no weights, or no such part.
            WeightsError: weights are missing, corrupt, others than the recipe says, or do not fit.
        """
        self._frozen, self._named = model.frozen, sources(config)
        for side in ("image", "text"):
            if getattr(self._frozen, side) is not False and side not in self._named:
                raise CardError(
                    f"recipe {recipe_id}: model.frozen.{side}: the {side} tower starts from random weights, which "
                    "nobody wants to keep",
                    hint=f"give model.config.{side}.weights, or leave out model.frozen.{side}",
                )
        if config.tokens is not None and True in (model.frozen.image, model.frozen.text):
            raise CardError(
                f"recipe {recipe_id}: of a frozen tower the pooled features are kept, not those of single tokens",
                hint="leave out model.config.tokens, or freeze only parts of the towers (model.frozen)",
            )
        self.towers = DualTowers(config, model.preprocess)
        self.digests: dict[str, str] = {}
        self._encoders: dict[str, ModelEncoder] = {}
        self._whole: dict[str, nn.Module] = {}
        self.config = config
        for side, source in self._named.items():
            tower = getattr(self.towers, side)
            owner = f"recipe {recipe_id} (config.{side})"
            _, self.digests[side] = load_tower(tower, source, owner, Path())
            tower.requires_grad_(True).train()
            pinned = source.model_copy(update={"sha256": self.digests[side]})
            frozen = getattr(model.frozen, side)
            if frozen is True:
                self._stand_in(side, pinned, model, runtime)
            elif frozen is not False:
                self.towers.resting += _rest(tower, frozen, f"recipe {recipe_id}: model.frozen.{side}")
            if frozen is not True or source.file is not None:  # a file of one's own may be gone tomorrow
                self.towers.elsewhere.pop(side, None)
                self.config = _with_weights(self.config, side, None)
            else:
                self.config = _with_weights(self.config, side, pinned)

    def image_features(self, sources: Sequence[Source]) -> FrozenFeatures | None:
        """The image features of `sources`, computed where the feature store lacks them; None: the tower is trained.

        Raises:
            DataError: an image that cannot be decoded.
            StorageError: no room for the features.
        """
        if "image" not in self._encoders:
            return None
        splits = (source.rows for source in sources)
        hashed = (split.hashed() if isinstance(split, LazySplit) else split for split in splits)
        return FrozenFeatures([self._encoders["image"].images(split, _SPACE) for split in hashed])

    def refuse_changes(self, *, views: bool, altered: bool) -> None:
        """Raise CardError where the objective wants other views of images, or altered texts, than those computed."""
        for side, wanted in (("image", views), ("text", altered)):
            if wanted and side in self._encoders:
                what = "further views of every image" if side == "image" else "altered texts"
                raise CardError(
                    f"the objective wants {what}, but the {side} tower is frozen, so that its features are "
                    "computed once",
                    hint=f"choose objective clip, clip-lite or siglip, or freeze only parts (model.frozen.{side})",
                )

    def whole(self, towers: DualTowers) -> DualTowers:
        """A copy of `towers` (the trained ones, or their moving average) as they are now, without stand-ins."""
        made = copy.deepcopy(towers)
        for side, tower in self._whole.items():
            setattr(made, side, copy.deepcopy(tower))
        return made

    def described(self) -> str:
        """A sentence for each tower that did not start from random weights; empty without any."""
        found = []
        for side, source in self._named.items():
            frozen = getattr(self._frozen, side)
            kept = "" if frozen is False else ", frozen" if frozen is True else f", {' '.join(frozen)} frozen"
            place = "a file" if source.file is not None else fetch.source_name(source)
            found.append(f"The {side} tower starts from {place} (sha256 {self.digests[side]}{kept}). ")
        return "".join(found)

    def _stand_in(self, side: str, source: Weights, model: RecipeModel, runtime: Runtime) -> None:
        tower = getattr(self.towers, side).requires_grad_(False).eval()
        self.towers.elsewhere[side] = self.digests[side]
        adapter = alone(side, self.towers, model.config, model.preprocess, source)
        encoder = ModelEncoder(ModelEntry(adapter.card.title, adapter.card, Path()), runtime)
        encoder.adapter = adapter
        self._encoders[side], self._whole[side] = encoder, tower
        if side == "image":
            self.towers.image = PrecomputedImages(tower.features)
        else:
            self.towers.text = PrecomputedTexts(tower.features, lambda texts: encoder.texts(texts, _SPACE))


def _rest(tower: LibraryTower, names: Sequence[str], where: str) -> tuple[nn.Module, ...]:
    """The parts of `tower` of these names, frozen from now on; CardError for no such part, or with nothing left."""
    known = dict(tower.net.named_modules())
    for name in names:
        if not name or name not in known:
            parts = ", ".join(own for own, _ in tower.net.named_children())
            below = next((own for own in known if "." in own), next(iter(known)))
            raise CardError(
                f'{where}: the tower has no part "{name}"{did_you_mean(name, known)}',
                hint=f"its parts are {parts}, and what these have below them (for example {below})",
            )
        known[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        raise CardError(
            f"{where}: nothing is left to be trained", hint="write true to freeze the whole tower"
        )
    return tuple(known[name] for name in names)


def _with_weights(config: DualConfig, side: str, source: Weights | None) -> DualConfig:
    tower = getattr(config, side).model_copy(update={"weights": source})
    return config.model_copy(update={side: tower})
