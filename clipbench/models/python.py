"""Family `python`: code of the user's own (`clipbench.models.own`); it has no cards, for none may have code run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from clipbench.cards.base import Strict
from clipbench.errors import CardError, WeightsError
from clipbench.models.adapter import Adapter, Family, ModelEntry


class Config(Strict):
    """The class of the object, and what its features follow from, on the user's word."""

    object: str
    identity: str | None = None


def load(model: ModelEntry) -> Adapter:
    """The adapter of the object, which is there already.

    Raises:
        CardError: a card names this family.
    """
    if model.adapter is None:
        raise CardError(
            f"model {model.id}: the family python has no cards, since a card runs no code",
            hint="name the code itself: --model python:<module>:<factory>",
        )
    return model.adapter


def _no_weights(model: ModelEntry) -> tuple[Path, str]:
    raise WeightsError(
        f"{model.id} is code of your own, which gets its weights itself: none is fetched for it"
    )


FAMILY: Final = Family(version=1, config=Config, load=load, weights_file=_no_weights)
