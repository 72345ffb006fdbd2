"""Two towers, their heads and the temperature of family `dual`, shared by training and evaluation."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from clipbench.cards.model import Preprocess
from clipbench.errors import CardError
from clipbench.models.towers.base import ImageTower, PatchTower, TextTower, TokenTower
from clipbench.models.towers.configs import (
    BertConfig,
    ClipTextConfig,
    ClipVitConfig,
    ConvNetConfig,
    DualConfig,
    ImageConfig,
    NgramsConfig,
    TextConfig,
    TimmConfig,
    TorchvisionConfig,
)
from clipbench.models.towers.heads import fill, projection, text_token_features
from clipbench.models.towers.image import ConvNet, Timm, Torchvision
from clipbench.models.towers.text import Bert, ByteTransformer, NgramBag


class DualTowers(nn.Module):
    """Two towers, their heads and the learned temperature.

    The temperature is kept as its logarithm, initially ln(1 / 0.07), as in CLIP (section 2.5) and CLIP-Lite. It is that
    of the space in which images and texts are compared.

    Attributes:
        joint: whether there are heads into a joint space.
        tokens: what the heads for single tokens are, or None.
        elsewhere: `image`, `text` → sha256 (hex) of the tower's own file, where its weights are not in the model's.
        resting: parts that stay in evaluation mode while the rest is trained.
    """

    elsewhere: dict[str, str]
    resting: tuple[nn.Module, ...]

    def __init__(self, config: DualConfig, preprocess: Preprocess, folder: Path = Path()) -> None:
        """Towers with random weights. `folder` is where a relative path of a tokenizer starts from.

        Raises:
            CardError: an image tower alone, no such architecture, or one that does not fit images or heads.
        """
        super().__init__()
        if config.text is None:
            raise CardError("two towers are needed: give config.text, config.embed_dim and config.projection")
        self.joint = config.embed_dim is not None
        self.embed_dim = config.embed_dim or 0
        self.tokens = config.tokens
        self.image = image_tower(config.image, preprocess, config.embed_dim)
        self.text = text_tower(config.text, folder)
        self.image_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if config.projection is not None:
            if config.projection != "linear" or not self.image.projects:
                self.image_projection = projection(config.projection, self.image.features, self.embed_dim)
            self.text_projection = projection(config.projection, self.text.features, self.embed_dim)
        if config.tokens is not None:
            width = _patch_width(self.patch_tower, preprocess)
            self.image_mapping = nn.Linear(width, config.tokens.dim)
            self.text_mapping = nn.Linear(self.token_tower.features, config.tokens.dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.elsewhere = {}
        self.resting = ()

    def train(self, mode: bool = True) -> DualTowers:
        """Training or evaluation mode, but for what is resting."""
        super().train(mode)
        for part in self.resting:
            part.eval()
        return self

    def logit_scale(self) -> Tensor:
        """The factor on cosines: float32 scalar."""
        return self.log_scale.exp()

    def forward(self, images: Tensor, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Joint features of B pairs.

        Args:
            images: float [B, channels, side, side], normalised.
            tokens: int64 [U, L], the batch's distinct captions. Each goes through the text tower once.
            rows: int64 [B], image i's caption is `tokens[rows[i]]`.

        Returns:
            image and text features, each [B, embed_dim], not normalised.
        """
        image, text = self.backbones(images, tokens, rows)
        return self.image_projection(image), self.text_projection(text)

    def backbones(self, images: Tensor, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the towers alone make of B pairs, given as to `forward`: [B, image.features], [B, text.features]."""
        # index_select: its backward adds in a fixed order on the CPU, so that a resumed run is bit-identical.
        return self.image(images), self.text(tokens).index_select(0, rows)

    def image_features(self, images: Tensor) -> dict[str, Tensor]:
        """What the heads make of images: `image` [B, embed_dim] and `image_tokens` [B, S, tokens.dim], as far as
        there are such heads."""
        if self.tokens is None:
            return {"image": self.image_projection(self.image(images))}
        states = self.patch_tower.states(images)
        features = {"image_tokens": self.image_mapping(self.patch_tower.tokens(states))}
        if self.joint:
            features["image"] = self.image_projection(self.patch_tower.pool(states))
        return features

    def text_features(self, states: Tensor, tokens: Tensor, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What the heads make of texts, as far as there are such heads.

        Args:
            states: float [U, L, text.features], of the tokens.
            tokens: int64 [U, L], as `filled` returns them.
            rows: int64 [B], as to `forward`; None: every text once.

        Returns:
            `text` [B, embed_dim] and `text_tokens` [B, context_length, tokens.dim], zeros at positions that do not
            count.
        """

        def chosen(features: Tensor) -> Tensor:
            return features if rows is None else features.index_select(0, rows)

        features = {}
        if self.joint:
            # Projected after the choice, as in `forward`: a head with BatchNorm sees every pair.
            features["text"] = self.text_projection(chosen(self.token_tower.pool(states, tokens)))
        if self.tokens is not None:
            padding = self.tokens.padding
            words = text_token_features(self.token_tower, self.text_mapping, states, tokens, padding=padding)
            features["text_tokens"] = chosen(words)
        return features

    def filled(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L] padded up to `context_length` where padding counts, or else as they are."""
        if self.tokens is None or not self.tokens.padding:
            return tokens
        return fill(self.token_tower, tokens)

    @property
    def patch_tower(self) -> PatchTower:
        """The image tower, which must have a state for each place of the image.

        Raises:
            CardError: it has none.
        """
        if not isinstance(self.image, PatchTower):
            raise CardError(
                "the image tower (of kind torchvision, or wholly frozen) has no state for each place of the image, "
                "which objectives that compare tokens need",
                hint="set config.image.kind to convnet, clip-resnet, clip-vit or timm, freeze only parts of it "
                "(model.frozen.image), or leave out config.tokens",
            )
        return self.image

    @property
    def token_tower(self) -> TokenTower:
        """The text tower, which must have a state for every token.

        Raises:
            CardError: it has none.
        """
        if not isinstance(self.text, TokenTower):
            raise CardError(
                "the text tower (of kind ngrams, or wholly frozen) has no state for every token, which objectives "
                "that mask or compare tokens need",
                hint="set config.text.kind to bytes, bert or clip-text, freeze only parts of it (model.frozen.text), "
                "or choose objective clip, clip-lite, siglip or slip",
            )
        return self.text


def image_tower(config: ImageConfig, preprocess: Preprocess, embed_dim: int | None = None) -> ImageTower:
    """The image tower of `config` with random weights, for images of `preprocess` and a joint space of `embed_dim`.

    Raises:
        CardError: there is no such architecture, or it cannot take such images.
    """
    if isinstance(config, TorchvisionConfig):
        return Torchvision(config, preprocess)
    if isinstance(config, TimmConfig):
        return Timm(config, preprocess)
    if isinstance(config, ConvNetConfig):
        return ConvNet(config, preprocess.channels, preprocess.side)
    from clipbench.models.towers import clip  # here, since it builds on the classes above

    if isinstance(config, ClipVitConfig):
        return clip.ClipVit(config, preprocess)
    return clip.ClipResNet(config, preprocess, embed_dim)


def text_tower(config: TextConfig, folder: Path) -> TextTower:
    """The text tower of `config` with random weights; `folder` is where a tokenizer's relative path starts from."""
    if isinstance(config, BertConfig):
        return Bert(config, folder)
    if isinstance(config, ClipTextConfig):
        from clipbench.models.towers import clip

        return clip.ClipText(config)
    return NgramBag(config) if isinstance(config, NgramsConfig) else ByteTransformer(config)


def _patch_width(image: PatchTower, preprocess: Preprocess) -> int:
    """Length of the tokens that `image` makes of images of `preprocess`.

    Raises:
        CardError: they are not those of a square grid.
    """
    side = preprocess.side
    device = next(image.parameters()).device
    with torch.no_grad():
        image.eval()
        tokens = image.tokens(image.states(torch.zeros(1, preprocess.channels, side, side, device=device)))
        image.train()
    if tokens.ndim != 3 or math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1] or tokens.shape[1] < 2:
        raise CardError(
            f"config.tokens needs an image tower that ends in a square grid of places (found {list(tokens.shape)})",
            hint="choose another image tower, enlarge preprocess.size, or leave out config.tokens",
        )
    return tokens.shape[2]
