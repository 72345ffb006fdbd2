"""Family `embeddings`: no model but what one gave, in a folder of arrays (`clipbench.data.embeddings`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.data.embeddings import Embeddings
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models.adapter import ASSUMED_SCALE, Adapter, Family, ModelEntry
from clipbench.utils.parsing import expanded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipbench.models.saliency import SaliencyMethod

PREFIX: Final = "embeddings:"
_NOTE: Final = "Its features were given: no image is decoded, and nothing is encoded."


class Config(Strict):
    """The folder; `logit_scale` is the one that it states."""

    folder: str
    logit_scale: float | None = None


class EmbeddingsCard(ModelCard):
    """A card without `preprocess` and `weights`, of which nothing is known here: neither is written anywhere."""

    later: ClassVar = (*ModelCard.later, "preprocess", "weights")

    preprocess: Preprocess = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3)
    weights: Weights = Weights(file=".")


def card_of(name: str) -> ModelCard:
    """The card of `--model embeddings:<folder>`.

    Raises:
        DataError: there is no such folder.
        CardError: its embeddings.yaml is wrong, or no folder is named.
    """
    folder = name.removeprefix(PREFIX)
    if not folder:
        raise CardError(
            f"{name} names no folder", hint="--model embeddings:<folder>, or embeddings:. for this one"
        )
    path = expanded(folder)
    about = Embeddings(path).about
    said = about.model_dump(include={"licence", "training_data", "trained_on", "paper", "links"})
    return EmbeddingsCard.model_validate(
        said
        | {
            "title": about.title or path.resolve().name,
            "family": "embeddings",
            "config": {"folder": folder, "logit_scale": about.logit_scale},
            "notes": f"{_NOTE} {about.notes}" if about.notes else _NOTE,
        }
    )


def load(model: ModelEntry) -> Adapter:
    """The adapter of a folder.

    Raises:
        CardError: a card of the user's that names this family; a folder has none.
        DataError: the folder is gone.
    """
    if not isinstance(model.card, EmbeddingsCard):
        raise CardError(
            f"model {model.id}: the family embeddings has no cards",
            hint="name the folder itself: --model embeddings:<folder>",
        )
    config = Config.model_validate(model.card.config)
    return EmbeddingsAdapter(model.card, Embeddings(model.folder / expanded(config.folder)))


class EmbeddingsAdapter(Adapter):
    """Says what a folder has; it has no towers. `weights_sha256` is empty: each array has its own."""

    weights_sha256 = ""
    context_length = 0

    def __init__(self, card: ModelCard, folder: Embeddings) -> None:
        self.card, self.given = card, folder
        self.scale_stated = folder.about.logit_scale is not None
        self.logit_scale = folder.about.logit_scale or ASSUMED_SCALE
        self.text_spaces = ("joint",) if folder.has_texts else ()

    def require_text(self, space: str = "joint") -> None:
        if not self.text_spaces:
            raise NotApplicable(
                f"{self.card.title}: no embeddings of texts (there is no texts.npy or texts.parquet in the folder)"
            )
        super().require_text(space)

    def image_tower(self, space: str) -> nn.Module:
        self._refuse("new crops of images")

    def text_tower(self, space: str = "joint") -> nn.Module:
        self._refuse("other texts")

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self._refuse("other texts")

    def saliency_method(self, block: int | None = None) -> SaliencyMethod:
        self._refuse("heat maps")

    def _refuse(self, what: str) -> NoReturn:
        raise NotApplicable(
            f"{self.card.title}: {what} need the model itself, of which embeddings alone are here"
        )


def _no_weights(model: ModelEntry) -> tuple[Path, str]:
    raise WeightsError(f"{model.id} has no weights: it is a folder of embeddings")


FAMILY: Final = Family(
    version=1,
    config=Config,
    load=load,
    weights_file=_no_weights,
    named={PREFIX: card_of},
    given=True,
)
