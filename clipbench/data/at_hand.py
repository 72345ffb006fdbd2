"""What is on this machine: which data sets can be read without the network. Nothing is asked of it."""

from __future__ import annotations

from collections.abc import Collection

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.paths import DataPaths
from clipbench.utils.cache import cache_root, recall
from clipbench.utils.parsing import exists, expanded


def at_hand(dataset: Entry[TaskCard], roles: Collection[str], paths: DataPaths) -> bool:
    """Whether a copy of these splits is here: given with `--data`, shipped, or fetched before.

    Of a copy that is given only its folder is looked at; whether it is whole is seen when it is read.
    """
    card = dataset.card
    source = card.source
    if source.builtin is not None or paths.find(dataset.id, card) is not None:
        return True
    if source.path is not None:
        return exists(dataset.path.parent / expanded(source.path), folder=True)
    if source.torchvision is not None:
        return exists(cache_root() / "torchvision" / source.torchvision, folder=True)
    if source.hub is None or not source.lacks.keys().isdisjoint(roles):
        return False
    from clipbench.data.huggingface import (
        fetched,  # the hub's client with all the layouts that copies may have
    )

    name = f"{source.hub}@{source.revision}" if source.revision else source.hub
    commit = source.revision or recall("data", name)
    names = {card.splits[role].name for role in roles}
    return commit is not None and all(fetched(source.hub, source.config, split, commit) for split in names)
