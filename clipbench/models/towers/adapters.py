"""Two towers, or one alone, behind the Adapter interface; their weights, read from files and made into one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from clipbench.cards.base import fingerprint
from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.errors import WeightsError
from clipbench.models.adapter import Adapter, Lengths, ModelEntry
from clipbench.models.towers.base import ImageTower, LibraryTower, TextTower
from clipbench.models.towers.configs import parse_config, sources
from clipbench.models.towers.dual import DualTowers, image_tower
from clipbench.models.towers.heads import PatchTokens, TextTokens
from clipbench.models.weights.reading import load_strict, read_state_dict, without_values
from clipbench.models.weights.resolve import resolve, resolve_source

if TYPE_CHECKING:
    from clipbench.models.weights.reading import State


class DualAdapter(Adapter):
    """Two towers behind the Adapter interface. `towers` must be in evaluation mode."""

    def __init__(
        self, towers: DualTowers, card: ModelCard, weights_sha256: str, files: Sequence[Path] | None = None
    ) -> None:
        """`files`: what the weights come from, where they were read from files."""
        self.card = card
        self.weights_sha256 = weights_sha256
        of_text = towers.text.files
        if files is not None and of_text is not None:
            self.files = (*files, *of_text)
        self.logit_scale = towers.logit_scale().item()
        self.context_length = towers.text.context_length
        self._towers = towers
        joint = ("joint",) if towers.joint else ()
        if towers.tokens is not None:
            self.compared = towers.tokens.compared
            self.token_width = towers.tokens.dim
            self.image_spaces = (*joint, "tokens", "backbone")
            self.text_spaces = (*joint, "tokens")

    @property
    def text_fingerprint(self) -> str:
        return self._towers.text.fingerprint

    def image_tower(self, space: str) -> nn.Module:
        """See `Adapter`. `backbone` is the image tower's pooled output, `joint` its projection.

        Without a joint space nothing trained that output: `backbone` is then the mean of the places' states.
        """
        self.require_space(space)
        towers = self._towers
        if space == "tokens":
            return PatchTokens(towers.patch_tower, towers.image_mapping).eval()
        if space == "backbone":
            return towers.image if towers.joint else PatchTokens(towers.patch_tower, None).eval()
        return nn.Sequential(towers.image, towers.image_projection).eval()

    def headed(self, space: str) -> tuple[Adapter, nn.Module] | None:
        towers = self._towers
        self.require_space(space)
        if "image" not in towers.elsewhere or not towers.joint or space == "tokens":
            return None
        head = towers.image_projection if space == "joint" else nn.Identity()
        source = sources(parse_config(self.card.config, self.card.title))["image"]
        return alone("image", towers, self.card.config, self.card.preprocess, source), head.eval()

    def text_tower(self, space: str = "joint") -> nn.Module:
        """See `Adapter`. `tokens`: all `context_length` positions; those that do not count are zeros."""
        self.require_text(space)
        towers = self._towers
        if space == "tokens":
            assert towers.tokens is not None
            return TextTokens(towers.token_tower, towers.text_mapping, padding=towers.tokens.padding).eval()
        return nn.Sequential(towers.text, towers.text_projection).eval()

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return self._towers.text.tokenize(texts)

    def lengths(self, texts: Sequence[str]) -> Lengths | None:
        return self._towers.text.lengths(texts)


def alone(
    side: str, towers: DualTowers, config: dict[str, Any], preprocess: Preprocess, source: Weights
) -> Adapter:
    """The tower of `towers` on `side` (`image` or `text`), whose file lies elsewhere, as a model of its own.

    Its config is as short as that of a shipped card of the same tower, so that all share their features.
    """
    typed = getattr(parse_config(config, f"{side} tower"), side)
    own = typed.model_dump(mode="json", exclude_defaults=True, exclude={"weights"})
    card = ModelCard(
        title=f"{side} tower", family="dual", config={side: own}, preprocess=preprocess, weights=source
    )
    return TowerAdapter(getattr(towers, side), card, towers.elsewhere[side])


class TowerAdapter(Adapter):
    """One tower alone behind the Adapter interface: `backbone`, its pooled output, is its one space."""

    def __init__(self, tower: ImageTower | TextTower, card: ModelCard, weights_sha256: str) -> None:
        self.card = card
        self.weights_sha256 = weights_sha256
        self.logit_scale = math.nan
        self._tower = tower
        self._text = tower if isinstance(tower, TextTower) else None
        self.context_length = self._text.context_length if self._text else 0
        self.image_spaces = () if self._text else ("backbone",)
        self.text_spaces = ("backbone",) if self._text else ()

    @property
    def text_fingerprint(self) -> str:
        return self._text.fingerprint if self._text else ""

    def image_tower(self, space: str) -> nn.Module:
        self.require_space(space)
        return self._tower

    def text_tower(self, space: str = "joint") -> nn.Module:
        self.require_text(space)
        return self._tower

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.require_text("backbone")
        assert self._text is not None
        return self._text.tokenize(texts)

    def lengths(self, texts: Sequence[str]) -> Lengths | None:
        return None if self._text is None else self._text.lengths(texts)


def load(model: ModelEntry) -> Adapter:
    """The adapter of `model`, weights loaded strictly.

    Raises:
        CardError: the card's config describes no towers that can be built.
        WeightsError: a file is missing, corrupt, another one than the card's, or does not fit.
    """
    config = parse_config(model.card.config, model.id)
    if config.text is None:
        tower = image_tower(config.image, model.card.preprocess)
        assert isinstance(tower, LibraryTower)
        path, digest = load_tower(tower, model.card.weights, model.id, model.folder)
        alone = TowerAdapter(tower.eval(), model.card, digest)
        alone.files = (path,)
        return alone

    path, sha256 = resolve(model)
    files = [path]
    state = read_state_dict(path)
    with without_values():
        towers = DualTowers(config, model.card.preprocess, model.folder)
    if isinstance(towers.image, LibraryTower) and "image" not in sources(config):
        state = towers.image.fitted(state, path, "image.net.")
    for side, source in sources(config).items():
        module = getattr(towers, side)
        assert isinstance(module, LibraryTower)
        _refuse_second_copy(state, f"{side}.", path)
        of_tower, digest = load_tower(module, source, f"{model.id} (config.{side})", model.folder)
        files.append(of_tower)
        towers.elsewhere[side] = digest
        state |= {f"{side}.net.{name}": tensor for name, tensor in module.net.state_dict().items()}
    load_strict(towers, state, path)
    return DualAdapter(towers, model.card, identity(towers, sha256), files)


def load_tower(tower: LibraryTower, source: Weights, owner: str, folder: Path) -> tuple[Path, str]:
    """Load a tower's weights from a file of its own, strictly; the file and its sha256.

    Raises:
        WeightsError: the file is missing, corrupt, another one than the source says, or does not fit.
    """
    path, sha256 = resolve_source(source, owner=owner, folder=folder)
    load_strict(tower.net, tower.fitted(tower.published(read_state_dict(path)), path), path)
    return path, sha256


def _refuse_second_copy(state: State, prefix: str, path: Path) -> None:
    held = [name for name in state if name.startswith(prefix)]
    if held:
        raise WeightsError(
            f"{path} holds {len(held)} tensors of a tower whose weights the card takes from elsewhere ({held[0]}, …)",
            hint=f"leave out config.{prefix}weights, or leave these tensors out of the file",
        )


def serialise(towers: DualTowers) -> tuple[bytes, str]:
    """The towers' weights as the bytes of a safetensors file, and their sha256 (hex).

    Without those of towers whose weights lie elsewhere. The same weights give the same bytes, so that a model in
    memory has the hash of the file it becomes.
    """
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in towers.state_dict().items()
        if name.partition(".")[0] not in towers.elsewhere
    }
    data = save(state)
    return data, hashlib.sha256(data).hexdigest()


def identity(towers: DualTowers, sha256: str) -> str:
    """sha256 (hex) of all that the features come from: of the model's own file, and of towers' files elsewhere."""
    return fingerprint([sha256, *towers.elsewhere.values()]) if towers.elsewhere else sha256
