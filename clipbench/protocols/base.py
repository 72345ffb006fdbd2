"""The contract of protocols. A protocol is one module that holds a `PROTOCOL`; `registry` finds it by the folder.

A protocol sees splits and `Inputs`; never a checkpoint, a path or a command-line flag. What it measures of a metric
that others must know (how it is written, which way is better, how two models are paired on it) its `MetricSpec` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar
from typing import Protocol as Structure

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import Strict
from clipbench.cards.task import TaskCard
from clipbench.errors import unknown

if TYPE_CHECKING:
    from clipbench.data.split import Split
    from clipbench.encoding.cuts import Cut
    from clipbench.encoding.feature_store import Features
    from clipbench.metrics.average_precision import APKind
    from clipbench.metrics.intervals import Score
    from clipbench.models.adapter import Compared
    from clipbench.models.saliency import SaliencyMaps


#: columns of a per-sample file
Columns = Mapping[str, Sequence[Any]]
#: the parameters that stand in a record, of its time
Recorded = Mapping[str, Any]


class Params(Strict):
    """What a task card may set of a protocol, under `protocols: {<id>: …}`; `primary` is the metric for the task."""

    primary: str


P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class MetricSpec:
    """What a metric is, for all who meet its numbers later.

    Attributes:
        name: as records have it; `*` stands for a number (`maxskew@*_before`).
        unit: "share" of 1, written in per cent; "rank", counted from 1.
        chance: what a model gets that tells nothing apart, in words.
        less_is_better: whether the smaller number is the better one.
        shares: what each sample adds to the metric, which is their mean, from the per-sample file: float64 [n], or None
            where the file has not what it needs. None: the metric is no such mean.
        precision: of a mean of average precisions over classes, their kind; it is paired from scores and labels.
        lowest_of: the column of the per-sample file that says the group of each sample, where the metric is the lowest
            mean of `shares` over a group (see `clipbench.metrics.worst_group`). Samples of no group do not count.
        highest: whether it is the highest such mean instead.
        elsewhere: program → its name of the metric.
    """

    name: str
    chance: str
    unit: Literal["share", "rank"] = "share"
    less_is_better: bool = False
    shares: Callable[[str, Columns, Recorded], NDArray[np.float64] | None] | None = None
    precision: APKind | None = None
    lowest_of: str | None = None
    highest: bool = False
    elsewhere: Mapping[str, str] = field(default_factory=dict)


class Elsewhere(NamedTuple):
    """What another program calls a protocol, and what it puts before the names of its metrics."""

    task: str
    prefix: str = ""


@dataclass(frozen=True)
class Protocol(Generic[P]):
    """A way of measuring.

    Attributes:
        id: the last part of a task's id.
        version: raised whenever a number moves.
        kinds: the kinds of cards that it can measure on.
        params: what a task card may set.
        metrics: all that it may report.
        check: what is wrong with parameters for a card whose splits are those that it needs, or None.
        needs: what it reads of a model, whose images and texts are compared in the space that is given.
        run: measures: (card, splits by role, inputs, params, seed).
        texts: the texts whose features it reads, in any order: (card, splits by role, params); None: it reads none.
        variants: name → what it changes in `params`; on every card that allows it.
        of_card: further variants, which follow from what a card says of its data.
        languages: those of the card in which it reads captions, where a card has several: (card, params).
        pictures: file name → PNG of as many samples as are asked for, where there is something to see.
        elsewhere: program → what it is called there.
    """

    id: str
    version: int
    kinds: tuple[str, ...]
    params: type[P]
    metrics: tuple[MetricSpec, ...]
    check: Callable[[TaskCard, P], str | None]
    needs: Callable[[P, Compared], Needs]
    run: Callable[[TaskCard, dict[str, Split], Any, P, int], Outcome]
    texts: Callable[[TaskCard, dict[str, Split], P], list[str]] | None = None
    variants: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    of_card: Callable[[TaskCard], Mapping[str, dict[str, Any]]] = lambda card: {}
    languages: Callable[[TaskCard, P], tuple[str, ...]] = lambda card, params: card.languages
    pictures: Callable[[TaskCard, dict[str, Split], Any, P, int, int], dict[str, bytes]] | None = None
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)

    def misfit(self, card: TaskCard, params: P) -> str | None:
        """What keeps it from measuring on `card` with `params`, or None."""
        kinds = (card.kind, *card.also)
        if not set(kinds) & set(self.kinds):
            wanted, found = " or ".join(self.kinds), " and ".join(kinds)
            return f"{self.id} is for sets of kind {wanted}, this one is of kind {found}"
        lacking = [role for role in self.needs(params, "joint").roles if role not in card.splits]
        return unknown("split", lacking[0], card.splits) if lacking else self.check(card, params)


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
    samples: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)


class Inputs(Structure):
    """A model as a protocol sees it: float32 rows, which are there already or are made when they are asked for."""

    @property
    def logit_scale(self) -> float:
        """Factor on cosines."""

    @property
    def device(self) -> str:
        """Where tensors are computed: cpu, cuda or cuda:N."""

    @property
    def compared(self) -> Compared:
        """The space in which images are compared with text: `joint`, or `tokens` (late interaction)."""

    @property
    def token_width(self) -> int | None:
        """Length of one token's feature in `tokens`; None without that space."""

    def images(self, split: Split, space: str = "joint") -> Features:
        """Features [n, D] of a split; memory-mapped; `joint` rows have unit length.

        A row of `tokens` is T unit tokens, one behind the other: D = T × token_width. `<space>@<size>`: the short
        side of the images is first scaled to `size` px, whatever the model's own evaluation does.
        """

    def crops(self, split: Split, space: str, seed: int, epoch: int) -> Features:
        """Features [n, D] of new random crops and flips of the images; valid until the next call."""

    def tracked(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar of `total` steps; what it gives is called with the steps that were done."""

    def texts(self, texts: list[str], space: str = "joint") -> Features:
        """Features [len(texts), D] in the order given, as of images (duplicates are encoded once)."""


class CutInputs(Inputs, Structure):
    """Inputs that can also say how much of the texts the model reads."""

    @property
    def cuts(self) -> Mapping[str, Sequence[Cut]]:
        """Space → what the model left out of the texts of each call of `texts`, in turn."""


class HeatInputs(Inputs, Structure):
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
