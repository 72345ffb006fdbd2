"""Items to choose among: images and texts, of which some belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Choice:
    """One item.

    Attributes:
        id: stable, one an item.
        images: rows of the split, those to choose among.
        texts: those to choose among.
        right: places in `images` and in `texts` that belong together.
        part: of the set that the item is from; empty for a set without parts.
    """

    id: str
    images: tuple[int, ...]
    texts: tuple[str, ...]
    right: tuple[tuple[int, int], ...]
    part: str = ""


def kept(choices: Sequence[Choice], rows: NDArray[np.int64]) -> tuple[Choice, ...]:
    """The items of which all images are at `rows` (ascending), with these renumbered."""
    place = {row: number for number, row in enumerate(rows.tolist())}
    return tuple(
        replace(item, images=tuple(place[row] for row in item.images))
        for item in choices
        if all(row in place for row in item.images)
    )


def rows_of_some(choices: Sequence[Choice], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `limit` rows, ascending, that are all images of some items: parts take turns, in a seeded order.

    An item whose images are too many beside those before it is passed over.
    """
    order = rng.permutation(len(choices)).tolist()
    turn: Counter[str] = Counter()
    turns = []
    for place in order:
        turns.append(turn[choices[place].part])
        turn[choices[place].part] += 1
    rows: set[int] = set()
    for _, place in sorted(zip(turns, order, strict=True), key=lambda pair: pair[0]):  # stable
        more = set(choices[place].images) - rows
        if len(rows) + len(more) <= limit:
            rows |= more
    return np.array(sorted(rows), dtype=np.int64)
