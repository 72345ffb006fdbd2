"""What follows a tower: projections into the joint space, and heads for single tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.models.towers.base import PatchTower, TokenTower


class PatchTokens(nn.Module):
    """Images to their places' tokens through `mapping`, flattened [B, S × dim]; without it to the mean state [B, D]."""

    def __init__(self, image: PatchTower, mapping: nn.Module | None) -> None:
        super().__init__()
        self.image, self.mapping = image, mapping

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side]."""
        tokens = self.image.tokens(self.image.states(images))
        return tokens.mean(dim=1) if self.mapping is None else self.mapping(tokens).flatten(1)


class TextTokens(nn.Module):
    """Token ids to the tokens of texts, flattened [B, context_length × dim]; see `text_token_features`."""

    def __init__(self, text: TokenTower, mapping: nn.Module, *, padding: bool) -> None:
        super().__init__()
        self.text, self.mapping, self._padding = text, mapping, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L]."""
        if self._padding:
            tokens = fill(self.text, tokens)
        states = self.text.states(tokens)
        return text_token_features(self.text, self.mapping, states, tokens, padding=self._padding).flatten(1)


def text_token_features(
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
