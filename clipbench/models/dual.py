"""Family `dual`: an image tower and a text tower, each with a projection head into one joint space.

What `clipbench pretrain` trains. The towers are those of `clipbench.pretrain.towers`; a further kind of tower
is a config class here, joined to the union of its modality, and a module there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from clipbench.cards import ModelCard, Strict
from clipbench.errors import CardError
from clipbench.models import Adapter, LoadedModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipbench.pretrain.towers import DualTowers

VERSION = 1


class ConvNetTower(Strict):
    """A small residual network for images of 8 to 64 px, globally average-pooled.

    `stages` stages of `blocks` residual blocks; the first has `width` channels at full resolution, each
    further one twice the channels at half the side.
    """

    kind: Literal["convnet"]
    width: int = Field(gt=0)
    stages: int = Field(gt=0)
    blocks: int = Field(1, gt=0)

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.width << (self.stages - 1)


class BytesTower(Strict):
    """A transformer over the UTF-8 bytes of the text, mean-pooled over the real tokens.

    `context_length` counts the start and end tokens; longer texts are cut.
    """

    kind: Literal["bytes"]
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    context_length: int = Field(64, gt=2)

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.width

    @model_validator(mode="after")
    def _whole_heads(self) -> BytesTower:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class Config(Strict):
    """Two towers and their projection heads.

    `projection` is `linear` (one matrix a modality, as in CLIP) or `clip-lite` (CLIP-Lite's block: nonlinear
    path + shortcut, LayerNorm), which needs an `embed_dim` no smaller than either tower's output.
    """

    image: ConvNetTower
    text: BytesTower
    embed_dim: int = Field(gt=0)
    projection: Literal["linear", "clip-lite"]

    @model_validator(mode="after")
    def _shortcut_fits(self) -> Config:
        widest = max(self.image.features, self.text.features)
        if self.projection == "clip-lite" and widest > self.embed_dim:
            raise ValueError(
                f"projection clip-lite needs embed_dim of at least {widest}, the wider tower's output "
                f"(found {self.embed_dim})"
            )
        return self


def parse_config(config: dict[str, Any], where: str) -> Config:
    """`config` as a typed `Config`; `where` names the card or recipe in errors.

    Raises:
        CardError: naming every wrong key.
    """
    try:
        return Config.model_validate(config)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(["config", *map(str, problem["loc"])])
            lines.append(f"{where}: {key}: {problem['msg'].removeprefix('Value error, ')}")
        raise CardError("\n".join(lines)) from None


class DualAdapter(Adapter):
    """Two towers behind the Adapter interface. `towers` must be in evaluation mode."""

    def __init__(self, towers: DualTowers, card: ModelCard, weights_sha256: str) -> None:
        self.card = card
        self.weights_sha256 = weights_sha256
        self.logit_scale = towers.logit_scale().item()
        self.context_length = towers.text.context_length
        self._towers = towers

    def image_tower(self, space: str) -> nn.Module:
        """See `Adapter`. `backbone` is the image tower's pooled output, `joint` its projection."""
        from torch import nn

        self.require_space(space)
        towers = self._towers
        if space == "backbone":
            return towers.image
        return nn.Sequential(towers.image, towers.image_projection).eval()

    def text_tower(self) -> nn.Module:
        """See `Adapter`."""
        from torch import nn

        return nn.Sequential(self._towers.text, self._towers.text_projection).eval()

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Adapter`."""
        return self._towers.text.tokenize(texts)


def load(model: LoadedModel) -> DualAdapter:
    """The adapter of `model`, weights loaded strictly.

    Raises:
        CardError: the card's config does not describe two towers.
        WeightsError: the file is missing, corrupt, another one than the card's, or does not fit.
    """
    import torch

    from clipbench.models import weights
    from clipbench.pretrain.towers import DualTowers

    config = parse_config(model.card.config, model.id)
    path, sha256 = weights.resolve(model)
    state = weights.read_state_dict(path)
    with torch.device("meta"):
        towers = DualTowers(config, model.card.preprocess)
    weights.load_strict(towers, state, path)
    return DualAdapter(towers, model.card, sha256)


def serialise(towers: DualTowers) -> tuple[bytes, str]:
    """The towers' weights as the bytes of a safetensors file, and their sha256 (hex).

    The same weights give the same bytes, so that a model in memory has the hash of the file it becomes.
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in towers.state_dict().items()}
    data = save(state)
    return data, hashlib.sha256(data).hexdigest()
