"""How much of the texts a model reads, where they are longer than its context: kept beside their features.

features-2/<key>/tokens.json    tokens of each text, as it is and as the model reads it; null where nobody says it
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import JsonValue

from clipbench.errors import ClipbenchError, StorageError
from clipbench.models.adapter import Adapter, Lengths
from clipbench.utils.cache import read_checked, write_checked

_KIND: Final = "clipbench tokens of texts 1"


@dataclass(frozen=True)
class Cut:
    """What a model leaves out of texts.

    Attributes:
        texts: how many there are, repeats too.
        cut: how many of them it cuts; None where it does not say.
        tokens: of all of them together.
        lost: those of them that it does not read.
    """

    texts: int
    cut: int | None = None
    tokens: int = 0
    lost: int = 0

    def __add__(self, other: Cut) -> Cut:
        texts = self.texts + other.texts
        if self.cut is None or other.cut is None:
            return Cut(texts)
        return Cut(texts, self.cut + other.cut, self.tokens + other.tokens, self.lost + other.lost)

    @property
    def told(self) -> dict[str, JsonValue]:
        """For a record."""
        if self.cut is None:
            return {"texts": self.texts, "cut": "not stated"}
        return {"texts": self.texts, "cut": self.cut, "tokens": self.tokens, "tokens_lost": self.lost}


def added(cuts: Sequence[Cut]) -> Cut:
    """What a model leaves out of texts that were read in turn."""
    whole = cuts[0]
    for cut in cuts[1:]:
        whole += cut
    return whole


def of(lengths: Lengths | None, rows: Sequence[int]) -> Cut:
    """Of the texts at `rows` of those that `lengths` are of, as often as they stand there.

    >>> of(Lengths.within([3, 90, 100], 77), [0, 1, 1])
    Cut(texts=3, cut=2, tokens=183, lost=26)
    """
    if lengths is None:
        return Cut(len(rows))
    whole, read = (np.array(one, dtype=np.int64)[list(rows)] for one in (lengths.whole, lengths.read))
    return Cut(len(rows), int((read < whole).sum()), int(whole.sum()), int((whole - read).sum()))


def lengths(adapter: Adapter, texts: Sequence[str], folder: Path) -> Lengths | None:
    """How long `texts` are, whose features lie in `folder`; told by the model once, and kept there."""
    path = folder / "tokens.json"
    kept = read_checked(path, _KIND)
    if kept is not None:
        held = json.loads(kept)
        return None if held is None else Lengths(**held)
    try:
        found = adapter.lengths(texts)
    except ClipbenchError:  # features are there, and a tokenizer is not any more: nobody says it then
        return None
    with contextlib.suppress(StorageError):
        told = None if found is None else {"whole": found.whole, "read": found.read}
        write_checked(path, json.dumps(told).encode(), _KIND)
    return found
