"""The contract that a model meets, `Adapter`, and what a module says of a family of models, `Family`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard, Preprocess, Texts
from clipbench.errors import NotApplicable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipbench.data.embeddings import Embeddings
    from clipbench.models.saliency import SaliencyMethod

Compared = Literal["joint", "tokens"]
#: the factor on cosines that is taken where a model does not say its own: what CLIP's models were trained up to
ASSUMED_SCALE: Final = 100.0


@dataclass(frozen=True)
class ModelEntry:
    """A model as the catalog knows it: its id, its card, and the folder that the card's relative paths start from.

    `detected` says that the card was made here, for weights that do not say all of it; its notes say why so.
    `adapter` is there where the model is loaded already.
    """

    id: str
    card: ModelCard
    folder: Path
    detected: bool = False
    adapter: Adapter | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Lengths:
    """How many tokens texts have, special tokens included.

    Attributes:
        whole: as they are, one number a text.
        read: as the model reads them: fewer where it cuts them.
    """

    whole: list[int]
    read: list[int]

    @classmethod
    def within(cls, whole: list[int], longest: int) -> Lengths:
        """Of texts that are cut at `longest`."""
        return cls(whole, [min(length, longest) for length in whole])


class Adapter(ABC):
    """Everything that belongs to the model: images or token ids in, float32 rows out.

    The towers are handed out as plain modules, so that the encoder can choose layout, precision and
    compilation without knowing the family.

    Attributes:
        card: the model's card.
        weights_sha256: sha256 (hex) of the weights file's bytes (of every tensor where there is no file).
        logit_scale: the factor on cosines (exp of the learned temperature).
        scale_stated: whether the model says it; where it does not, ASSUMED_SCALE was taken.
        logit_bias: what training added to scaled cosines (SigLIP's loss), the same for all pairs; None: nothing.
        context_length: longest token sequence, special tokens included.
        image_spaces, text_spaces: the feature spaces that this checkpoint has; no text spaces without a text tower.
        compared: the space in which images are compared with text: `joint` by the cosine, `tokens` by late
            interaction.
        token_width: length of one token's feature in `tokens`; None without that space.
        left_out: what its file holds that it does not use, as `load_strict` says it.
        files: the files that all of it comes from beside the card, and folders all of whose files do; None where that
            is not known. Of a model whose files are known, it is remembered what it is (`clipbench.models.remembered`).
        given: features that are there already, instead of towers; None of models that encode.
    """

    card: ModelCard
    weights_sha256: str
    logit_scale: float
    scale_stated: bool = True
    logit_bias: float | None = None
    context_length: int
    image_spaces: tuple[str, ...] = ("joint", "backbone")
    text_spaces: tuple[str, ...] = ("joint",)
    compared: Compared = "joint"
    token_width: int | None = None
    left_out: tuple[str, ...] = ()
    files: tuple[Path, ...] | None = None
    given: Embeddings | None = None

    @property
    def preprocess(self) -> Preprocess:
        return self.card.preprocess

    @property
    def text_fingerprint(self) -> str:
        """sha256 (hex) of what the tokenizer is, where that is not the family's own code; else empty."""
        return ""

    @abstractmethod
    def image_tower(self, space: str) -> nn.Module:
        """Module from images (float [B, channels, side, side], normalised) to features [B, D] in `space`.

        `joint` features are not yet unit rows; `tokens` are flattened, [B, T × token_width], not yet unit tokens.

        Raises:
            NotApplicable: this checkpoint has no such space.
        """

    @abstractmethod
    def text_tower(self, space: str = "joint") -> nn.Module:
        """Module from token ids (int64 [B, L], L at most `context_length`) to features [B, D] in `space`.

        A shorter L than `context_length` must give the same features as padding up to it.

        Raises:
            NotApplicable: this checkpoint has no text tower, or no such space.
        """

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (int64 [N, context_length], padded) and each row's count of real tokens (int64 [N])."""

    def lengths(self, texts: Sequence[str]) -> Lengths | None:
        """How long the texts are before and after they are cut; None where nobody says it."""
        return None

    def headed(self, space: str) -> tuple[Adapter, nn.Module] | None:
        """How image features of `space` follow from a tower that is a model of its own, its file lying elsewhere.

        Returns:
            The tower alone, of which the `backbone` features are meant, and the head: float [B, D] to float [B, D'];
            None where there is no such tower, or the features do not follow from its own.
        """
        return None

    def saliency_method(self, block: int | None = None) -> SaliencyMethod:
        """Maps of where in an image its score with a text comes from (see `clipbench.models.saliency`).

        Args:
            block: of a ViT, the block whose attention is looked at, counted from 0; None: at two thirds of the depth.

        Raises:
            NotApplicable: this checkpoint has no text tower, or an image tower of which no maps are known.
        """
        from clipbench.models import saliency

        if "tokens" in self.image_spaces and self.token_width is not None:
            self.require_text("tokens")
            return saliency.TokenCosine(self.image_tower("tokens"), self.token_width)
        self.require_text("joint")
        return saliency.of_tower(self.image_tower("joint"), self.preprocess, self.card.title, block)

    def require_space(self, space: str) -> None:
        """Raise NotApplicable unless images have `space`."""
        if space not in self.image_spaces:
            raise NotApplicable(
                f'{self.card.title}: no image feature space "{space}" (has: {", ".join(self.image_spaces)})'
            )

    def require_text(self, space: str = "joint") -> None:
        """Raise NotApplicable unless texts have `space`."""
        if not self.text_spaces:
            raise NotApplicable(f"{self.card.title}: images only, no text tower")
        if space not in self.text_spaces:
            raise NotApplicable(
                f'{self.card.title}: no text feature space "{space}" (has: {", ".join(self.text_spaces)})'
            )


@dataclass(frozen=True)
class Family:
    """What a module says of a family of models, as its `FAMILY`; the module's name is that of the family on cards.

    Such modules import torch inside functions, so that cards can be validated without it.

    Attributes:
        version: raised whenever the family's features change.
        config: what a card's `config:` may hold.
        load: makes the adapter of a card, strictly: every weight used, none missing.
        weights_file: finds a card's own weights file, downloaded where it is missing, and its sha256 (hex); None:
            as any card says where its weights lie.
        detect: makes the card of a checkpoint file from its path and its state dict; or None, where their keys are
            not the family's.
        stated_weights: makes `Adapter.weights_sha256` of a card from the sha256 of its own weights file, as far as the
            card states enough; None where it does not.
        backbone_is: says of a card what its model's `backbone` features are, in a few words; None where it cannot.
        texts: says of a card what its architecture does to texts, where the card itself does not; None: cards of the
            family have no `text`.
        named: prefix → what makes the card of a model whose name begins with it (`--model <prefix>…`).
        named_files: finds the files that the card of such a name is made from beside installed packages, and imports
            nothing that towers are built with for it; None: they are not known, or not here yet. A card whose files
            are known is remembered (`clipbench.models.remembered`).
        given: whether its features are there already: nothing is encoded then, and no torch is needed.
    """

    version: int
    config: type[Strict]
    load: Callable[[ModelEntry], Adapter]
    weights_file: Callable[[ModelEntry], tuple[Path, str]] | None = None
    detect: Callable[[Path, Mapping[str, torch.Tensor]], ModelCard | None] | None = None
    stated_weights: Callable[[ModelEntry, str], str | None] = lambda model, sha256: sha256
    backbone_is: Callable[[ModelCard], str | None] = lambda card: None
    texts: Callable[[ModelCard], Texts | None] | None = None
    named: Mapping[str, Callable[[str], ModelCard]] = field(default_factory=dict)
    named_files: Callable[[str], Sequence[Path] | None] = lambda name: None
    given: bool = False
