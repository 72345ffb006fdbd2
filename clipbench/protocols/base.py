"""Ways of measuring, one module each, found by its `ID` (the last part of a task id).

    ID, VERSION                                   "zs", 1
    KINDS                                         the kinds of cards that it can measure on
    class Params(Strict)                          what a task card may set; `primary` names the main metric
    def check(card, params) -> str | None         what is wrong with `params` for this card, if anything
    TEXT                                          whether it reads text features
    VARIANTS                                      name → what it changes in `Params`; on every card that allows it
    def needs(params, compared) -> Needs          what it reads of the model
    def run(task, splits, encoder, params, seed)  -> Outcome
    def pictures(task, splits, encoder, params, seed, count) -> {file name: PNG}, where there is something to see

`compared` is the space in which the model compares images with text. A protocol sees splits and Inputs;
never a checkpoint, a path or a command-line flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clipbench.data.split import Split
    from clipbench.encoding.feature_store import Features
    from clipbench.metrics.intervals import Score
    from clipbench.models.adapter import Compared
    from clipbench.models.saliency import SaliencyMaps


@dataclass(frozen=True)
class Needs:
    """What a protocol reads of a model.

    Attributes:
        images: features of images: (split role, feature space).
        heat: the role of the split whose heat maps it reads, if any.
    """

    images: tuple[tuple[str, str], ...] = ()
    heat: str | None = None

    @property
    def roles(self) -> list[str]:
        """The splits, by role."""
        return sorted({role for role, _ in self.images} | ({self.heat} if self.heat else set()))


@dataclass(frozen=True)
class Outcome:
    """What a protocol measured.

    Attributes:
        scores: metric → score.
        per_class: metric → value a class, in the card's order (NaN where a class has no sample).
        samples: column → one value a sample, in the split's order.
        evidence: what a person wants to see of how the numbers came about (plain JSON), for example a curve.
    """

    scores: dict[str, Score]
    per_class: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    samples: dict[str, NDArray[Any] | list[NDArray[Any]]] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)


class Inputs(Protocol):
    """A model as a protocol sees it: float32 rows, which are there already or are made when they are asked for."""

    @property
    def logit_scale(self) -> float:
        """Factor on cosines."""
        ...

    @property
    def device(self) -> str:
        """Where tensors are computed: cpu, cuda or cuda:N."""
        ...

    @property
    def compared(self) -> Compared:
        """The space in which images are compared with text: `joint`, or `tokens` (late interaction)."""
        ...

    @property
    def token_width(self) -> int | None:
        """Length of one token's feature in `tokens`; None without that space."""
        ...

    def images(self, split: Split, space: str = "joint") -> Features:
        """Features [n, D] of a split; memory-mapped; `joint` rows have unit length.

        A row of `tokens` is T unit tokens, one behind the other: D = T × token_width. `<space>@<size>`: the short
        side of the images is first scaled to `size` px, whatever the model's own evaluation does.
        """
        ...

    def crops(self, split: Split, space: str, seed: int, epoch: int) -> Features:
        """Features [n, D] of new random crops and flips of the images; valid until the next call."""
        ...

    def tracked(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar of `total` steps; what it gives is called with the steps that were done."""
        ...

    def texts(self, texts: list[str], space: str = "joint") -> Features:
        """Features [len(texts), D] in the order given, as of images (duplicates are encoded once)."""
        ...


class HeatInputs(Inputs, Protocol):
    """Inputs that can also say where in an image a score comes from."""

    def heat(
        self,
        split: Split,
        texts: Sequence[str],
        image: NDArray[np.int64],
        *,
        whole: bool = True,
        block: int | None = None,
    ) -> Iterator[SaliencyMaps]:
        """Heat maps of every text on its image (`image`: int64 [M], ascending), image by image as they are decoded.

        Images that could not be decoded are left out. They are in fp32 whatever precision encodes features.

        Args:
            whole: the whole image is squashed to what the model sees, whatever its own evaluation does.
            block: see `clipbench.models.adapter.Adapter.saliency_method`.
        """
        ...
