"""What a tower is: images or token ids in, pooled features out, and what more some towers offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.models.adapter import Lengths
from clipbench.utils.row_rng import Draws


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

    def tokens(self, states: Tensor) -> Tensor:
        """The states of the places of a square grid, row by row: float [B, S, D]; here of a map [B, D, h, w]."""
        return states.flatten(2).transpose(1, 2)

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
    padding: int = 0

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what the tokenizer is, where that is not this module's own code; else empty."""
        return ""

    @property
    def files(self) -> tuple[Path, ...] | None:
        """The files that the tokenizer comes from, and folders all of whose files do; None where that is not known."""
        return ()

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64 [N, context_length], padded) and each row's count of real tokens (int64 [N])."""

    def lengths(self, texts: Sequence[str]) -> Lengths | None:
        """How long the texts are before and after they are cut; None where nobody says it."""
        return None


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

    net: Any

    def fitted(self, state: dict[str, Tensor], path: Path, prefix: str = "") -> dict[str, Tensor]:
        """A state dict, read from `path`, whose tensors behind `prefix` fit `net` as far as the card asks for that.

        Raises:
            WeightsError: they can be made to fit, but that is not asked for; or they cannot.
        """
        return state

    @abstractmethod
    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict as it is published, in `net`'s names and without what `net` does not have by intention."""
