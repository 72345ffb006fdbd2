"""Ways of measuring, one module each, found by its `ID` (the last part of a task id).

    ID, VERSION                                   "zs", 1
    class Params(Strict)                          what a task card may set; `primary` names the main metric
    def check(card, params) -> str | None         what is wrong with `params` for this card, if anything
    def needs(params) -> [(split role, space)]    the image features that it reads
    def run(task, splits, encoder, params, seed)  -> Outcome

A protocol sees splits and an Encoder; never a checkpoint, a path or a command-line flag.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clipbench.data import Split
    from clipbench.stats import Score


@dataclass(frozen=True)
class Outcome:
    """What a protocol measured.

    Attributes:
        scores: metric → score.
        per_class: metric → value a class, in the card's order (NaN where a class has no sample).
        samples: column → one value a sample, in the split's order.
    """

    scores: dict[str, Score]
    per_class: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    samples: dict[str, NDArray[Any] | list[NDArray[Any]]] = field(default_factory=dict)


class Encoder(Protocol):
    """A model as a protocol sees it: float32 rows, cached."""

    @property
    def logit_scale(self) -> float:
        """Factor on cosines."""
        ...

    def images(self, split: Split, space: str = "joint") -> NDArray[np.float32]:
        """Features [n, D] of a split; memory-mapped; `joint` rows have unit length."""
        ...

    def texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Joint features [len(texts), D], unit rows, in the order given (duplicates are encoded once)."""
        ...
