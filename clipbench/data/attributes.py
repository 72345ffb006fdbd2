"""Sets of attributes: what a copy itself says of the names that are asked, held against the card."""

from __future__ import annotations

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts.base import Layout
from clipbench.errors import DataError


def check_names(dataset: Entry[TaskCard], source: Layout) -> None:
    """Hold the names in a copy's classnames.txt, one `objective:name` a line, against the card's objectives.

    Codes in the data are places in these lists, so another order would mean other answers. Lists of objectives that
    the card does not have say nothing here.

    Raises:
        DataError: a list differs.
    """
    told: dict[str, list[str]] = {}
    for line in source.names or ():
        objective, colon, name = line.partition(":")
        if colon:
            told.setdefault(objective, []).append(name)
    for objective, names in told.items():
        card = dataset.card.objectives.get(objective)
        if card is None or names == list(card.classes):
            continue
        pairs = enumerate(zip(names, card.classes, strict=False))
        place = next((place for place, (one, other) in pairs if one != other), None)
        what = (
            f"{len(names)} names, the card {len(card.classes)}"
            if place is None
            else f"{names[place]!r} as number {place}, the card {card.classes[place]!r}"
        )
        raise DataError(
            f"{dataset.id}: classnames.txt of {source.where} has for the objective {objective} {what}",
            hint=f"correct objectives.{objective}.classes in {dataset.path}, and the names of the codes in its column",
        )
