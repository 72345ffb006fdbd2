"""Towers and projection heads of the `dual` family, shared by training and evaluation."""

from __future__ import annotations

import math
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.cards.cards import Preprocess
from clipbench.data.caption_cleaning import clean_caption
from clipbench.errors import CardError, unknown
from clipbench.models.dual import (
    BertTower,
    BytesTower,
    ClipTextTower,
    ClipVitTower,
    Config,
    ConvNetTower,
    Image,
    NgramsTower,
    Text,
    TimmTower,
    TorchvisionTower,
)
from clipbench.models.towers.tokenizer import PADDING, Tokenizer
from clipbench.models.weights import key_maps
from clipbench.utils.row_rng import Draws

# Token ids of the byte tokenizer: three special tokens, then the 256 bytes.
_PAD, _START, _END, _FIRST_BYTE = 0, 1, 2, 3
# The byte 255 is in no UTF-8 text, so it can stand for a masked one.
_MASKED = _FIRST_BYTE + 255


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

    def __init__(self, config: Config, preprocess: Preprocess, folder: Path = Path()) -> None:
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
            words = word_features(self.token_tower, self.text_mapping, states, tokens, padding=padding)
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


class Patches(nn.Module):
    """Images to their places' tokens through `mapping`, flattened [B, S × dim]; without it to the mean state [B, D]."""

    def __init__(self, image: PatchTower, mapping: nn.Module | None) -> None:
        super().__init__()
        self.image, self.mapping = image, mapping

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side]."""
        tokens = self.image.tokens(self.image.states(images))
        return tokens.mean(dim=1) if self.mapping is None else self.mapping(tokens).flatten(1)


class Words(nn.Module):
    """Token ids to the tokens of texts, flattened [B, context_length × dim]; see `word_features`."""

    def __init__(self, text: TokenTower, mapping: nn.Module, *, padding: bool) -> None:
        super().__init__()
        self.text, self.mapping, self._padding = text, mapping, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L]."""
        if self._padding:
            tokens = fill(self.text, tokens)
        states = self.text.states(tokens)
        return word_features(self.text, self.mapping, states, tokens, padding=self._padding).flatten(1)


def word_features(
    text: TokenTower, mapping: nn.Module, states: Tensor, tokens: Tensor, *, padding: bool
) -> Tensor:
    """The states [B, L, features] of tokens [B, L] through `mapping`: float [B, context_length, dim].

    Positions behind the text are zeros unless `padding` says that they count; then L must be `context_length`.
    """
    mapped: Tensor = mapping(states)
    if padding:
        return mapped
    mapped = mapped * text.real(tokens).unsqueeze(2)
    return F.pad(mapped, (0, 0, 0, text.context_length - tokens.shape[1]))


def fill(text: TokenTower, tokens: Tensor) -> Tensor:
    """Tokens [B, L] padded up to [B, context_length]."""
    return F.pad(tokens, (0, text.context_length - tokens.shape[1]), value=text.padding)


def projection(kind: str, inputs: int, outputs: int) -> nn.Module:
    """The projection head `kind` (`linear` or `clip-lite`): float [B, inputs] to [B, outputs]."""
    if kind == "linear":
        return nn.Linear(inputs, outputs, bias=False)
    return ClipLiteBlock(inputs, outputs)


class ClipLiteBlock(nn.Module):
    """CLIP-Lite's projection block: LayerNorm(nonlinear(x) + shortcut(x)); names as in its released code.

    The shortcut starts as a noisy copy: weights uniform in ±0.01, then ones on the diagonal. In a joint space that is
    narrower than the tower's output, where the reference has no block, it starts as a random orthogonal projection,
    which keeps something of every feature.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.feature_nonlinear = nn.Sequential(
            nn.Linear(inputs, outputs, bias=False),
            nn.BatchNorm1d(outputs),
            nn.ReLU(),
            nn.Linear(outputs, outputs),
        )
        self.feature_shortcut = nn.Linear(inputs, outputs)
        self.feature_block_ln = nn.LayerNorm(outputs)
        if inputs > outputs:
            nn.init.orthogonal_(self.feature_shortcut.weight)
            return
        with torch.no_grad():
            self.feature_shortcut.weight.uniform_(-0.01, 0.01)
            self.feature_shortcut.weight.diagonal().fill_(1.0)

    def forward(self, features: Tensor) -> Tensor:
        """float [B, inputs] to float [B, outputs]."""
        projected: Tensor = self.feature_block_ln(
            self.feature_nonlinear(features) + self.feature_shortcut(features)
        )
        return projected


# --------------------------------------------------------------------- towers


class ImageTower(nn.Module):
    """Images (float [B, channels, side, side], normalised) to pooled features (float [B, features]).

    Attributes:
        projects: whether it ends in a matrix into the joint space, so that a linear head would be a second one.
    """

    features: int
    projects = False


class PatchTower(ImageTower, ABC):
    """An image tower with a state for each place of the image; the pooled feature is made of these."""

    @abstractmethod
    def states(self, images: Tensor) -> Tensor:
        """What the last layer makes of images, before pooling, in a form of the tower's own."""

    @abstractmethod
    def pool(self, states: Tensor) -> Tensor:
        """The feature of each image: float [B, features]."""

    @abstractmethod
    def tokens(self, states: Tensor) -> Tensor:
        """The states of the places of a square grid, row by row: float [B, S, D]."""

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side] to float [B, features]."""
        return self.pool(self.states(images))


class TextTower(nn.Module, ABC):
    """Token ids (int64 [B, L], L at most `context_length`) to pooled features (float [B, features]).

    Attributes:
        padding: the id behind the end of a text.
    """

    features: int
    context_length: int
    padding: int = _PAD

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what the tokenizer is, where that is not this module's own code; else empty."""
        return ""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64 [N, context_length], padded) and each row's count of real tokens (int64 [N])."""


@dataclass(frozen=True)
class Masking:
    """How tokens of a text tower are hidden.

    Attributes:
        token: the id that stands for a hidden one.
        first, count: what may replace a hidden token instead: the `count` ids from `first` on, but for `token`.
        special: ids that are never hidden.
    """

    token: int
    first: int
    count: int
    special: tuple[int, ...]


class TokenTower(TextTower):
    """A text tower with a state for every token; the pooled feature is made of these.

    Attributes:
        vocabulary: how many ids there are.
    """

    vocabulary: int

    @abstractmethod
    def masking(self) -> Masking:
        """How tokens are hidden.

        Raises:
            CardError: the tokenizer has nothing that can stand for a hidden token.
        """

    @abstractmethod
    def states(self, tokens: Tensor) -> Tensor:
        """What the last layer makes of each token: int64 [B, L], as to `forward`, to float [B, L, features]."""

    @abstractmethod
    def pool(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The feature of each text from the states of its tokens: float [B, features]."""

    @abstractmethod
    def real(self, tokens: Tensor) -> Tensor:
        """Which tokens belong to the text, its start and end included: bool [B, L]."""

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] (L at most `context_length`, padded as `tokenize` does) to float [B, features]."""
        return self.pool(self.states(tokens), tokens)

    def mask(self, tokens: Tensor, share: float, draws: Draws) -> tuple[Tensor, Tensor]:
        """Hide a share of the tokens, as BERT does: of ten, eight are masked, one is another token, one stays.

        Args:
            tokens: int64 [B, L].
            share: probability of each token to be among them; special tokens never are.
            draws: for these B rows.

        Returns:
            The changed tokens, and which positions were chosen (bool [B, L]).
        """
        how = self.masking()
        which, way, what = draws.rand(3, tokens.shape[1]).to(tokens.device, non_blocking=True).unbind(dim=1)
        special = torch.tensor(how.special).to(tokens.device, non_blocking=True)
        chosen = self.real(tokens) & ~torch.isin(tokens, special) & (which < share)
        among = how.first <= how.token < how.first + how.count
        other = how.first + (what * (how.count - among)).long()
        other = other + (other >= how.token) * among
        changed = tokens.where(way >= 0.9, other).where(way >= 0.8, how.token)
        return changed.where(chosen, tokens), chosen


class LibraryTower(nn.Module, ABC):
    """A tower that another library builds, as `net`, with that library's names."""

    net: nn.Module

    @abstractmethod
    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict as it is published, in `net`'s names and without what `net` does not have by intention."""


def image_tower(config: Image, preprocess: Preprocess, embed_dim: int | None = None) -> ImageTower:
    """The image tower of `config` with random weights, for images of `preprocess` and a joint space of `embed_dim`.

    Raises:
        CardError: there is no such architecture, or it cannot take such images.
    """
    if isinstance(config, TorchvisionTower):
        return Torchvision(config, preprocess)
    if isinstance(config, TimmTower):
        return Timm(config, preprocess)
    if isinstance(config, ConvNetTower):
        return ConvNet(config, preprocess.channels, preprocess.side)
    from clipbench.models.towers import clip  # here, since it builds on the classes above

    if isinstance(config, ClipVitTower):
        return clip.ClipVit(config, preprocess)
    return clip.ClipResNet(config, preprocess, embed_dim)


def text_tower(config: Text, folder: Path) -> TextTower:
    """The text tower of `config` with random weights; `folder` is where a tokenizer's relative path starts from."""
    if isinstance(config, BertTower):
        return Bert(config, folder)
    if isinstance(config, ClipTextTower):
        from clipbench.models.towers import clip

        return clip.ClipText(config)
    return NgramBag(config) if isinstance(config, NgramsTower) else ByteTransformer(config)


class ConvNet(PatchTower):
    """Small residual network (basic blocks, BatchNorm) with global average pooling."""

    def __init__(self, config: ConvNetTower, channels: int, side: int) -> None:
        super().__init__()
        if side < config.stride * 2 ** (config.stages - 1):
            at_first = f"divides the side by {config.stride}, and " if config.stride > 1 else ""
            raise CardError(
                f"an image tower of {config.stages} stages {at_first}halves the side {config.stages - 1} times: "
                f"{side} px is too small",
                hint="lower config.image.stages, or raise preprocess.size",
            )
        self.features = config.features
        self.stem = nn.Sequential(
            nn.Conv2d(channels, config.width, 3, stride=config.stride, padding=1, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        width = config.width
        for stage in range(config.stages):
            for block in range(config.blocks):
                first = stage > 0 and block == 0
                outputs = config.width * 2**stage
                blocks.append(_ResidualBlock(width, outputs, stride=2 if first else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)

    def states(self, images: Tensor) -> Tensor:
        """See `PatchTower`: the last map, [B, features, height, width]."""
        maps: Tensor = self.blocks(self.stem(images))
        return maps

    def pool(self, states: Tensor) -> Tensor:
        """See `PatchTower`."""
        return states.mean(dim=(2, 3))

    def tokens(self, states: Tensor) -> Tensor:
        """See `PatchTower`."""
        return states.flatten(2).transpose(1, 2)


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.residual(maps) + self.shortcut(maps))


class Torchvision(ImageTower, LibraryTower):
    """A classifier of torchvision, its last linear layer replaced by the identity."""

    def __init__(self, config: TorchvisionTower, preprocess: Preprocess) -> None:
        import torchvision

        super().__init__()
        known = torchvision.models.list_models(module=torchvision.models)
        if config.arch not in known:
            listing = "torchvision.models.list_models()"
            raise CardError(unknown("torchvision architecture", config.arch, known, listing=listing))
        # Some architectures compute while they are built, which the meta device cannot.
        with torch.device("cpu"):
            net: nn.Module = torchvision.models.get_model(config.arch, weights=None)
            linear = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)]
            if not linear:
                raise CardError(f"{config.arch} of torchvision has no linear classifier to be left out")
            net.set_submodule(linear[-1], nn.Identity())
            self.features = _pooled_width(net, preprocess, config.arch)
        self.net = net
        self._classifier = f"{linear[-1]}."

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side] to float [B, features]."""
        features: Tensor = self.net(images)
        return features

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LibraryTower`: without the classifier."""
        return {name: tensor for name, tensor in state.items() if not name.startswith(self._classifier)}


class Timm(PatchTower, LibraryTower):
    """A model of timm without its classifier."""

    def __init__(self, config: TimmTower, preprocess: Preprocess) -> None:
        import timm

        super().__init__()
        if not timm.is_model(config.arch):
            listing = "timm.list_models()"
            raise CardError(unknown("timm architecture", config.arch, timm.list_models(), listing=listing))
        # On the CPU: many have buffers that no file holds, and the meta device would lose them.
        with torch.device("cpu"):
            net: nn.Module = timm.create_model(
                config.arch, pretrained=False, num_classes=0, in_chans=preprocess.channels
            )
            self.features = _pooled_width(net, preprocess, config.arch)
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side] to float [B, features]."""
        features: Tensor = self.net(images)
        return features

    @property
    def _net(self) -> Any:
        return self.net

    def states(self, images: Tensor) -> Tensor:
        """See `PatchTower`: a map, channels first or (as timm says of the model) last; or tokens [B, L, D]."""
        states: Tensor = self._net.forward_features(images)
        return states

    def pool(self, states: Tensor) -> Tensor:
        """See `PatchTower`."""
        pooled: Tensor = self._net.forward_head(states)
        return pooled

    def tokens(self, states: Tensor) -> Tensor:
        """See `PatchTower`: without the class token and its like."""
        if states.ndim == 3:
            return states[:, getattr(self.net, "num_prefix_tokens", 0) :]
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return states.flatten(1, 2) if last else states.flatten(2).transpose(1, 2)

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LibraryTower`: EfficientNet-PyTorch's names become timm's; without the classifier."""
        if key_maps.is_efficientnet_pytorch(state):
            blocks = getattr(self.net, "blocks", nn.Sequential())
            state = key_maps.efficientnet_pytorch(state, [len(list(s.children())) for s in blocks])
        described: dict[str, Any] = getattr(self.net, "pretrained_cfg", {})
        found = described.get("classifier") or ()  # a name, or several
        names = (found,) if isinstance(found, str) else found
        dropped = tuple(f"{name}." for name in names)
        return {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}


def _pooled_width(net: nn.Module, preprocess: Preprocess, arch: str) -> int:
    """Length of the feature that `net` gives for an image of `preprocess`."""
    side = preprocess.side
    image = torch.zeros(1, preprocess.channels, side, side)
    try:
        with torch.no_grad():
            features = net.eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise CardError(
            f"{arch} cannot take images of {preprocess.channels} channels and {side} × {side} px: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}",
            hint="correct preprocess, or choose another architecture",
        ) from None
    net.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise CardError(f"{arch} gives no pooled feature of an image", hint="choose another architecture")
    return features.shape[1]


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


class ByteTransformer(TokenTower):
    """Pre-norm transformer over UTF-8 bytes, with learned positions, mean-pooled over the real tokens.

    Padding is masked everywhere, so a batch cut at its longest real token gives the same features.
    """

    def __init__(self, config: BytesTower) -> None:
        super().__init__()
        self.features = config.features
        self.context_length = config.context_length
        self.vocabulary = _FIRST_BYTE + 256
        self.bytes = nn.Embedding(self.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        # As large as the layers' normalised inputs: from small ones, long texts take long to be told apart.
        nn.init.normal_(self.bytes.weight, std=1.0)
        nn.init.normal_(self.positions, std=0.3)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64 [N, context_length], zero-padded) and each row's count of real tokens (int64 [N]).

        A text that is too long loses its last bytes, never the end token.
        """
        data = [text.encode("utf-8")[: self.context_length - 2] for text in texts]
        return _padded([[_START, *(b + _FIRST_BYTE for b in own), _END] for own in data], self.context_length)

    def masking(self) -> Masking:
        """See `TokenTower`."""
        return Masking(token=_MASKED, first=_FIRST_BYTE, count=256, special=(_PAD, _START, _END))

    def real(self, tokens: Tensor) -> Tensor:
        """See `TokenTower`."""
        return tokens != _PAD

    def states(self, tokens: Tensor) -> Tensor:
        """See `TokenTower`."""
        real = self.real(tokens)
        hidden = self.bytes(tokens) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, real)
        states: Tensor = self.norm(hidden)
        return states

    def pool(self, states: Tensor, tokens: Tensor) -> Tensor:
        """See `TokenTower`: the mean over real tokens."""
        return _mean_of_real(states, self.real(tokens))


class NgramBag(TextTower):
    """The mean of the vectors of hashed word n-grams, normalised: it learns in a few steps."""

    def __init__(self, config: NgramsTower) -> None:
        super().__init__()
        self.features = config.features
        self.context_length = config.context_length
        self._longest, self._buckets = config.longest, config.buckets
        self.ngrams = nn.Embedding(1 + config.buckets, config.width)
        self.norm = nn.LayerNorm(config.width)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids of n-grams (int64 [N, context_length], zero-padded) and each row's count of them (int64 [N]).

        Words are lower-cased, and punctuation marks are words; a text without any has one, empty, n-gram.
        """
        return _padded([self._ids(text)[: self.context_length] for text in texts], self.context_length)

    def _ids(self, text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text.lower()) or [""]
        grams = [
            " ".join(words[start : start + length])
            for length in range(1, self._longest + 1)
            for start in range(len(words) - length + 1)
        ]
        return [1 + zlib.crc32(gram.encode("utf-8")) % self._buckets for gram in grams]

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] (L at most `context_length`, zero-padded) to float [B, width]."""
        found: Tensor = self.norm(_mean_of_real(self.ngrams(tokens), tokens != _PAD))
        return found


def _padded(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as int64 [N, length], zero-padded, and how long each is, int64 [N]."""
    tokens = torch.full((len(rows), length), _PAD, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens, torch.tensor([len(ids) for ids in rows])


def _mean_of_real(hidden: Tensor, real: Tensor) -> Tensor:
    """Mean of hidden [B, L, width] over the tokens that are real [B, L]: [B, width]."""
    weight = real.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


class _Layer(nn.Module):
    """One pre-norm transformer layer: masked self-attention, then a 4× wide MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor, real: Tensor) -> Tensor:
        """hidden float [B, L, width], real bool [B, L] (False: padding)."""
        batch, length, width = hidden.shape
        projected = self.queries_keys_values(self.attention_norm(hidden))
        queries, keys, values = projected.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=real[:, None, None, :])
        hidden = hidden + self.attention_output(mixed.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = hidden + self.mlp(hidden)
        return out


class Bert(TokenTower, LibraryTower):
    """A BERT, RoBERTa or MPNet encoder of transformers, pooled.

    Which tokens are real follows from the rows' lengths, never from an id: a text may hold a literal "[PAD]", and
    CLIP-Lite's own code attends to MPNet's padding. So a batch cut at its longest text gives the same features.
    """

    #: what files of these architectures hold beside the encoder: heads for language modelling, and a buffer of
    #: old versions
    _EXTRA = ("cls.", "lm_head.", "embeddings.position_ids")

    def __init__(self, config: BertTower, folder: Path) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        self.features = config.features
        self.context_length = config.context_length
        self.vocabulary, self.padding = config.vocabulary, PADDING
        self._architecture, self._pool, self._clean = config.architecture, config.pool, config.clean
        self._tokenizer = Tokenizer(
            config.tokenizer, folder, context_length=config.context_length, vocabulary=config.vocabulary
        )
        settings = AutoConfig.for_model(
            config.architecture,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.feedforward,
            vocab_size=config.vocabulary,
            max_position_embeddings=config.positions,
            type_vocab_size=config.token_types,
            layer_norm_eps=config.layer_norm_eps,
        )
        build: Callable[..., nn.Module] = AutoModel.from_config
        self.net = build(settings, add_pooling_layer=config.pool == "pooler")
        # No file holds these buffers, so they are made here even where the rest stands on the meta device.
        embeddings = self.net.get_submodule("embeddings")
        embeddings.position_ids = torch.arange(config.positions, device="cpu").expand(1, -1)
        if hasattr(embeddings, "token_type_ids"):
            embeddings.token_type_ids = torch.zeros(1, config.positions, dtype=torch.int64, device="cpu")
        self._pad_token = int(settings.pad_token_id)

    @property
    def fingerprint(self) -> str:
        """See `TextTower`."""
        return self._tokenizer.fingerprint

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64 [N, context_length], padded with -1) and each row's count of real tokens (int64 [N]).

        A text that is too long loses its last tokens, never the end token.
        """
        return self._tokenizer([clean_caption(text) for text in texts] if self._clean else texts)

    def masking(self) -> Masking:
        """See `TokenTower`."""
        token, special = self._tokenizer.mask, self._tokenizer.special
        return Masking(token=token, first=0, count=self.vocabulary, special=special)

    def real(self, tokens: Tensor) -> Tensor:
        """See `TokenTower`."""
        return tokens >= 0

    def states(self, tokens: Tensor) -> Tensor:
        """See `TokenTower`."""
        real = self.real(tokens)
        ids = tokens.where(real, self._pad_token)
        states: Tensor = self.net(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return states

    def pool(self, states: Tensor, tokens: Tensor) -> Tensor:
        """See `TokenTower`."""
        if self._pool == "pooler":
            pooled: Tensor = self.net.get_submodule("pooler")(states)
            return pooled
        return states[:, 0] if self._pool == "cls" else _mean_of_real(states, self.real(tokens))

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LibraryTower`: without heads, and without the pooler unless it is what pools."""
        dropped = self._EXTRA if self._pool == "pooler" else (*self._EXTRA, "pooler.")
        renamed = key_maps.bert(state, self._architecture)
        return {name: tensor for name, tensor in renamed.items() if not name.startswith(dropped)}
