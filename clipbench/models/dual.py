"""Family `dual`: an image tower and a text tower, each with a projection head into one joint space.

What `clipbench pretrain` trains, and what is put together from towers that others trained; an image tower alone
is a model too. What a card may say of them stands in `clipbench.models.towers.configs`, the modules beside it.
"""

from __future__ import annotations

from typing import Final

from clipbench.cards.model import ModelCard
from clipbench.models.adapter import Adapter, Family, ModelEntry
from clipbench.models.towers.configs import DualConfig, backbone_is, parse_config, stated


def load(model: ModelEntry) -> Adapter:
    """The adapter of a `family: dual` card; see `clipbench.models.towers.adapters.load`."""
    from clipbench.models.towers import adapters

    return adapters.load(model)


def stated_weights(model: ModelEntry, sha256: str) -> str | None:
    """See `Family`: towers may have files of their own."""
    return stated(parse_config(model.card.config, model.id), sha256)


def backbone(card: ModelCard) -> str:
    """See `Family`."""
    return backbone_is(parse_config(card.config, card.title))


FAMILY: Final = Family(
    version=1, config=DualConfig, load=load, stated_weights=stated_weights, backbone_is=backbone
)
