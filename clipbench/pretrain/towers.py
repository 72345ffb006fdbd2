"""Towers and projection heads of the `dual` family, shared by training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.cards import Preprocess
from clipbench.errors import CardError
from clipbench.models.dual import BytesTower, Config, ConvNetTower

# Token ids of the byte tokenizer: three special tokens, then the 256 bytes.
_PAD, _START, _END, _FIRST_BYTE = 0, 1, 2, 3
_VOCABULARY = _FIRST_BYTE + 256


class DualTowers(nn.Module):
    """Two towers, two projection heads and the learned temperature.

    The temperature is kept as its logarithm, initially ln(1 / 0.07), as in CLIP (section 2.5) and CLIP-Lite.
    """

    def __init__(self, config: Config, preprocess: Preprocess) -> None:
        super().__init__()
        self.image = ConvNet(config.image, preprocess.channels, preprocess.side)
        self.text = ByteTransformer(config.text)
        self.image_projection = projection(config.projection, config.image.features, config.embed_dim)
        self.text_projection = projection(config.projection, config.text.features, config.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

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
        image = self.image_projection(self.image(images))
        # index_select: its backward adds in a fixed order on the CPU, so that a resumed run is bit-identical.
        text = self.text_projection(self.text(tokens).index_select(0, rows))
        return image, text


def projection(kind: str, inputs: int, outputs: int) -> nn.Module:
    """The projection head `kind` (`linear` or `clip-lite`): float [B, inputs] to [B, outputs]."""
    return ClipLiteBlock(inputs, outputs) if kind == "clip-lite" else nn.Linear(inputs, outputs, bias=False)


class ClipLiteBlock(nn.Module):
    """CLIP-Lite's projection block: LayerNorm(nonlinear(x) + shortcut(x)); names as in its released code.

    The shortcut starts as a noisy copy: weights uniform in ±0.01, then ones on the diagonal.
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
        with torch.no_grad():
            self.feature_shortcut.weight.uniform_(-0.01, 0.01)
            self.feature_shortcut.weight.diagonal().fill_(1.0)

    def forward(self, features: Tensor) -> Tensor:
        """float [B, inputs] to float [B, outputs]."""
        projected: Tensor = self.feature_block_ln(
            self.feature_nonlinear(features) + self.feature_shortcut(features)
        )
        return projected


class ConvNet(nn.Module):
    """Small residual network (basic blocks, BatchNorm) with global average pooling."""

    def __init__(self, config: ConvNetTower, channels: int, side: int) -> None:
        super().__init__()
        if side < 2 ** (config.stages - 1):
            raise CardError(
                f"an image tower of {config.stages} stages halves the side {config.stages - 1} times: "
                f"{side} px is too small",
                hint="lower config.image.stages, or raise preprocess.size",
            )
        self.stem = nn.Sequential(
            nn.Conv2d(channels, config.width, 3, padding=1, bias=False),
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

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side] to float [B, features]."""
        maps: Tensor = self.blocks(self.stem(images))
        return maps.mean(dim=(2, 3))


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


class ByteTransformer(nn.Module):
    """Pre-norm transformer over UTF-8 bytes, with learned positions, mean-pooled over the real tokens.

    Padding is masked everywhere, so a batch cut at its longest real token gives the same features.
    """

    def __init__(self, config: BytesTower) -> None:
        super().__init__()
        self.context_length = config.context_length
        self.bytes = nn.Embedding(_VOCABULARY, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.bytes.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64 [N, context_length], zero-padded) and each row's count of real tokens (int64 [N]).

        A text that is too long loses its last bytes, never the end token.
        """
        tokens = torch.full((len(texts), self.context_length), _PAD, dtype=torch.int64)
        lengths = torch.empty(len(texts), dtype=torch.int64)
        for row, text in enumerate(texts):
            data = text.encode("utf-8")[: self.context_length - 2]
            ids = [_START, *(byte + _FIRST_BYTE for byte in data), _END]
            tokens[row, : len(ids)] = torch.tensor(ids)
            lengths[row] = len(ids)
        return tokens, lengths

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] (L at most `context_length`, zero-padded) to float [B, width]."""
        real = tokens != _PAD
        hidden = self.bytes(tokens) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, real)
        weight = real.unsqueeze(-1).to(hidden.dtype)
        pooled: Tensor = (self.norm(hidden) * weight).sum(1) / weight.sum(1)
        return pooled


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
