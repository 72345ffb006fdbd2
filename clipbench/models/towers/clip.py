"""CLIP's own towers for training: its modified ResNet, its ViT and its text transformer, of open_clip's classes.

Random weights are those of open_clip's initialisation, names are open_clip's behind `net.`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from open_clip import SimpleTokenizer
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import default_bpe
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer
from torch import Tensor, nn

from clipbench.cards.model import Preprocess
from clipbench.errors import CardError
from clipbench.models.adapter import Lengths
from clipbench.models.towers.base import Masking, PatchTower, TokenTower
from clipbench.models.towers.configs import ClipResNetConfig, ClipTextConfig, ClipVitConfig

#: the tokenizer's ids: byte pairs, then start and end. Padding has the id of "!".
_PAIRS, _START, _END = 49406, 49406, 49407
# The byte 255 is in no UTF-8 text, so its token can stand for a masked one: the vocabulary stays OpenAI's.
_MASKED = 187


class ClipResNet(PatchTower):
    """See `ClipResNetConfig`. Without a joint space (FILIP) the feature is the mean over places, and nothing pools."""

    def __init__(self, config: ClipResNetConfig, preprocess: Preprocess, embed_dim: int | None) -> None:
        """Raises CardError: images of a size that five halvings do not divide."""
        super().__init__()
        _require_multiple(preprocess, 32, "clip-resnet")
        self.features = embed_dim or config.channels
        self.projects = embed_dim is not None
        net = ModifiedResNet(
            list(config.layers), self.features, config.pool_heads, preprocess.side, config.width
        )
        net.conv1 = _first(net.conv1, preprocess)
        if embed_dim is None:
            net.attnpool = nn.Identity()
        self.net: Any = net

    def states(self, images: Tensor) -> Tensor:
        """See `PatchTower`: the last map, [B, channels, height, width]."""
        maps = self.net.stem(images)
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            maps = stage(maps)
        last: Tensor = maps
        return last

    def pool(self, states: Tensor) -> Tensor:
        pooled: Tensor = self.net.attnpool(states) if self.projects else states.mean(dim=(2, 3))
        return pooled


class ClipVit(PatchTower):
    """See `ClipVitConfig`. Tokens are those before the last LayerNorm, as DeCLIP's repository compares them."""

    def __init__(self, config: ClipVitConfig, preprocess: Preprocess) -> None:
        """Raises CardError: images of a size that patches do not cover."""
        super().__init__()
        _require_multiple(preprocess, config.patch, "clip-vit")
        self.features = config.width
        net = VisionTransformer(
            preprocess.side,
            config.patch,
            config.width,
            config.layers,
            config.heads,
            mlp_ratio=4.0,
            act_layer=_activation(config.quick_gelu),
        )
        net.conv1 = _first(net.conv1, preprocess)
        net.proj = None
        self.net: Any = net

    def states(self, images: Tensor) -> Tensor:
        """See `PatchTower`: the class token and the patches, [B, 1 + S, width]."""
        states: Tensor = self.net.transformer(self.net._embeds(images))
        return states

    def pool(self, states: Tensor) -> Tensor:
        pooled: Tensor = self.net.ln_post(states[:, 0])
        return pooled

    def tokens(self, states: Tensor) -> Tensor:
        return states[:, 1:]


class ClipText(TokenTower):
    """See `ClipTextConfig`. A batch cut at its longest text gives the same features: no token sees a later one."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.features = config.width
        self.context_length = config.context_length
        self.vocabulary = _tokenizer().vocab_size
        net = TextTransformer(
            config.context_length,
            self.vocabulary,
            config.width,
            config.heads,
            config.layers,
            output_dim=None,
            act_layer=_activation(config.quick_gelu),
        )
        # No file holds this buffer, so it is made here even where the rest stands on the meta device.
        net.attn_mask = torch.full((config.context_length,) * 2, float("-inf"), device="cpu").triu_(1)
        self.net: Any = net

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(Path(default_bpe()).read_bytes()).hexdigest()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextTower`, zero-padded. A text that is too long loses its last tokens, never the end token."""
        tokens: Tensor = _tokenizer()(list(texts), self.context_length)
        return tokens, _ends(tokens) + 1

    def lengths(self, texts: Sequence[str]) -> Lengths:
        return Lengths.within([len(_tokenizer().encode(text)) + 2 for text in texts], self.context_length)

    def masking(self) -> Masking:
        return Masking(token=_MASKED, first=0, count=_PAIRS, special=(_START, _END))

    def real(self, tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device) <= _ends(tokens)[:, None]

    def states(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        hidden = self.net.token_embedding(tokens) + self.net.positional_embedding[:length]
        hidden = self.net.transformer(hidden, attn_mask=self.net.attn_mask[:length, :length])
        states: Tensor = self.net.ln_final(hidden)
        return states

    def pool(self, states: Tensor, tokens: Tensor) -> Tensor:
        return states[torch.arange(len(states), device=states.device), _ends(tokens)]


def _ends(tokens: Tensor) -> Tensor:
    """Where the end token stands, whose id is the largest: int64 [B]."""
    return tokens.argmax(dim=1)


class _Tokenizer(SimpleTokenizer):  # type: ignore[misc]
    """CLIP's tokenizer; of plain text it remembers each word's tokens, and its cleaning changes nothing but case.

    No token reaches over a space, and what `clean_fn` mends (mojibake, entities, control characters) is in no
    printable ASCII text without "&".
    """

    def __init__(self) -> None:
        super().__init__()
        self._word = lru_cache(2**16)(super().encode)

    def encode(self, text: str) -> list[int]:
        if not text.isascii() or not text.isprintable() or "&" in text:
            found: list[int] = super().encode(text)
            return found
        return [token for word in text.split() for token in self._word(word)]


@cache
def _tokenizer() -> Any:
    return _Tokenizer()


def _activation(quick: bool) -> type[nn.Module]:
    return QuickGELU if quick else nn.GELU


def _first(conv: Any, preprocess: Preprocess) -> Any:
    """The convolution `conv` for images of the channels that `preprocess` gives."""
    channels = preprocess.channels
    if channels == conv.in_channels:
        return conv
    size, stride, padding = conv.kernel_size, conv.stride, conv.padding
    return nn.Conv2d(channels, conv.out_channels, size, stride, padding, bias=False)


def _require_multiple(preprocess: Preprocess, step: int, kind: str) -> None:
    if preprocess.side % step:
        raise CardError(
            f"an image tower of kind {kind} takes images whose side is a multiple of {step} px "
            f"(found {preprocess.side} px)",
            hint="correct preprocess.size, or choose another image tower",
        )
