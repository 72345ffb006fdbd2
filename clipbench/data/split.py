"""Splits: an ordered list of samples with labels, captions or expressions, read as a stream.

One loader a source; every one gives a `Split`. Images stay encoded bytes until the decoder needs them,
so a split of any size costs no memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import fingerprint
from clipbench.data.choices import Choice, kept
from clipbench.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One image as stored: `image` is the bytes of an encoded file (JPEG, PNG, WebP, …)."""

    id: str
    image: bytes


@dataclass(frozen=True)
class Note:
    """Something about a split that a reader of its numbers must know: what was ignored, folded, scaled or left out.

    Attributes:
        kind: a word for programs, as "ignored-files".
        text: a clause for people that follows the count, as "files ignored: their names end as no image's does".
        count: how many of them.
        examples: a few of them by name, of at most 60 characters each.
    """

    kind: str
    text: str
    count: int
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: str, text: str, names: Sequence[str]) -> Note:
        """That `text` holds for all of `names`; the first three become its examples."""
        return cls(kind, text, len(names), tuple(str(name)[:60] for name in names[:3]))

    def __str__(self) -> str:
        """For people: "2 files ignored (a.txt, b.md)"."""
        more = ", …" if self.count > len(self.examples) else ""
        named = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count:,} {self.text}{named}"


def notes_of(kind: str, text: str, names: Sequence[str]) -> tuple[Note, ...]:
    """The note that `text` holds for all of `names`; none where there are no names."""
    return (Note.of(kind, text, names),) if names else ()


@dataclass(frozen=True)
class Captions:
    """The texts that belong to a split's images.

    Attributes:
        texts: one caption each, grouped by image.
        image: int64 [M], the sample that each belongs to, ascending.
        languages: those that they are in, where a set has them in several; an image may lack captions in some then.
        language: int64 [M], the place in `languages` of each.
    """

    texts: tuple[str, ...]
    image: NDArray[np.int64]
    languages: tuple[str, ...] = ()
    language: NDArray[np.int64] | None = None

    def part(self, rows: NDArray[np.int64]) -> Captions:
        """Those of the samples at `rows` (ascending), renumbered."""
        kept, image = _renumbered(self.image, rows)
        return self._at(kept, image)

    def of(self, language: str) -> Captions:
        """Those in one of `languages`."""
        kept = np.flatnonzero(self.language == self.languages.index(language))
        return Captions(tuple(self.texts[i] for i in kept.tolist()), self.image[kept])

    def _at(self, kept: NDArray[np.int64], image: NDArray[np.int64]) -> Captions:
        language = None if self.language is None else self.language[kept]
        return Captions(tuple(self.texts[i] for i in kept.tolist()), image, self.languages, language)


@dataclass(frozen=True)
class Expressions:
    """Referring expressions, each with the box of what it means.

    Attributes:
        ids: one stable name each.
        texts: the expressions, grouped by image.
        image: int64 [M], the sample that each belongs to, ascending.
        boxes: float64 [M, 4], x0, y0, x1, y1 in pixels of the image as stored.
        candidates: where a detector's boxes come with the set, those of each sample, float64 [J, 4] as `boxes`.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    candidates: tuple[NDArray[np.float64], ...] | None = None

    def part(self, rows: NDArray[np.int64]) -> Expressions:
        """Those of the samples at `rows` (ascending), renumbered."""
        kept, image = _renumbered(self.image, rows)
        of_kept = kept.tolist()
        return Expressions(
            tuple(self.ids[i] for i in of_kept),
            tuple(self.texts[i] for i in of_kept),
            image,
            self.boxes[kept],
            None if self.candidates is None else tuple(self.candidates[row] for row in rows.tolist()),
        )


@dataclass(frozen=True)
class Objects:
    """What each image shows beside what its label says.

    Attributes:
        names: of the objects.
        present: uint8 [n, len(names)], 1 where the image shows the object, else 0.
    """

    names: tuple[str, ...]
    present: NDArray[np.uint8]

    def part(self, rows: NDArray[np.int64]) -> Objects:
        """Those of the samples at `rows`."""
        return Objects(self.names, self.present[rows])


def _renumbered(
    image: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in `image` whose value is one of `rows` (ascending), and that value's place in `rows`."""
    kept = np.flatnonzero(np.isin(image, rows))
    return kept, np.searchsorted(rows, image[kept])


class Split(ABC):
    """An ordered set of samples with labels, captions or expressions.

    Attributes:
        dataset, role: for example "cifar10", "test".
        fingerprint: sha256 (hex) of everything that decides the samples, their order and their labels.
        images_fingerprint: of what decides the images and their order alone, where a split says that apart.
        ids: one stable name a sample, in order.
        labels: int64 [n] class indices into the card's `classes`, or uint8 [n, C] for multi-label sets
            (0 absent, 1 present, 255 difficult); all 0 where samples have captions or expressions instead.
        classes: the names that go with the labels.
        clusters: text [n], which samples belong together, where the card names a column that says it.
        groups: text [n], the group of each sample, where the card names a column that says it.
        groupings: column → text [n], the same by every column of groups that the card names; `groups` is the first.
        captions, expressions, objects, choices: what a set of that kind has, else None.
        scattered: whether samples at scattered rows are read as quickly as those in order.
        notes: what a reader of its numbers must know of it; they stand in the record.
    """

    dataset: str
    role: str
    fingerprint: str
    ids: Sequence[str]
    labels: NDArray[np.int64] | NDArray[np.uint8]
    classes: tuple[str, ...]
    clusters: NDArray[np.object_] | None = None
    groups: NDArray[np.object_] | None = None
    groupings: Mapping[str, NDArray[np.object_]] = MappingProxyType({})
    captions: Captions | None = None
    expressions: Expressions | None = None
    objects: Objects | None = None
    choices: tuple[Choice, ...] | None = None
    scattered: bool = False
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counted(self) -> tuple[int, str]:
        """How many samples it has, or items to choose among where it has those; and what they are called."""
        return (len(self), "samples") if self.choices is None else (len(self.choices), "items")

    @property
    def images_fingerprint(self) -> str:
        return self.fingerprint

    def beside_notes(self) -> tuple[Note, ...]:
        """How many clusters and groups samples belong to, where the card names them; classes of one cluster."""
        notes: tuple[Note, ...] = ()
        if self.groups is not None:
            names, sizes = np.unique(self.groups, return_counts=True)
            text = f"groups of samples, the smallest of {sizes.min():,}"
            if names.size == 1:
                text = f"group alone, of all {sizes[0]:,} samples: the worst one is the whole"
            notes = (Note.of("groups", text, names[np.argsort(sizes, kind="stable")].tolist()),)
        if self.clusters is None:
            return notes
        names, sizes = np.unique(self.clusters, return_counts=True)
        text = f"clusters of samples, the largest of {sizes.max():,}; intervals and tests are over clusters"
        notes = (Note.of("clusters", text, names.tolist()), *notes)
        lone = [
            name
            for c, name in enumerate(self.classes)
            if len(set(self.clusters[self.labels == c if self.labels.ndim == 1 else self.labels[:, c] == 1]))
            == 1
        ]
        text = "classes of one cluster each: intervals over classes take them to vary as classes do, for want of more"
        return (*notes, Note.of("lone-classes", text, lone)) if lone else notes

    @abstractmethod
    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        """The samples at `rows` (ascending indices), read in one pass."""


class Subset(Split):
    """The samples of a split at `rows` (ascending): for `--limit`, or with a `role` of its own a part on the card."""

    def __init__(self, whole: Split, rows: NDArray[np.int64], role: str | None = None) -> None:
        self.whole, self.rows = whole, rows
        self.limited = role is None
        self.dataset, self.role, self.classes = whole.dataset, role or whole.role, whole.classes
        self.fingerprint = fingerprint([whole.fingerprint, rows.tolist()])
        self.ids = [whole.ids[r] for r in rows.tolist()]
        self.labels = whole.labels[rows]
        self.clusters = None if whole.clusters is None else whole.clusters[rows]
        self.groups = None if whole.groups is None else whole.groups[rows]
        self.groupings = {name: groups[rows] for name, groups in whole.groupings.items()}
        self.captions = None if whole.captions is None else whole.captions.part(rows)
        self.expressions = None if whole.expressions is None else whole.expressions.part(rows)
        self.objects = None if whole.objects is None else whole.objects.part(rows)
        self.choices = None if whole.choices is None else kept(whole.choices, rows)
        self.notes = whole.notes

    @property
    def images_fingerprint(self) -> str:
        apart = self.whole.images_fingerprint != self.whole.fingerprint
        return fingerprint([self.whole.images_fingerprint, self.rows.tolist()]) if apart else self.fingerprint

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        return self.whole.samples(self.rows[rows])


def of_classes(whole: Split, members: Sequence[Sequence[int]], classes: tuple[str, ...]) -> Split:
    """The samples of a single-label split whose class is in a set of its classes; a note counts the others.

    Args:
        members: for each class of the set, the places among `whole.classes` that it is made of.
        classes: the names of the set's classes.

    Raises:
        DataError: no sample is left.
    """
    place = np.full(len(whole.classes), -1)
    for new, group in enumerate(members):
        place[list(group)] = new
    labels = place[whole.labels]
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise DataError(
            f"{whole.dataset}: none of the {len(whole):,} samples of the {whole.role} split is of the "
            f"{len(members):,} classes of the set"
        )
    found = copy(whole) if len(rows) == len(whole) else Subset(whole, rows, whole.role)
    found.labels, found.classes = labels[rows], classes
    lost = np.unique(whole.labels[labels < 0]).tolist()
    text = f"samples left out, of {len(lost):,} classes that are not in the task's class set"
    others = Note(
        "other-classes", text, len(whole) - len(rows), tuple(whole.classes[c][:60] for c in lost[:3])
    )
    found.notes += (others,) if lost else ()
    return found
