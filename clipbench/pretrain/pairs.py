"""Training pairs: images with texts, decoded once and augmented in batches.

For sets that fit in memory: the decoded images are one uint8 tensor on the training device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from clipbench.cards import Augmentation, Pairs, Preprocess, TaskCard
from clipbench.data import Split
from clipbench.data.decode import decode_stream, normalise
from clipbench.errors import CardError, DataError, unknown
from clipbench.pretrain import words
from clipbench.pretrain.draws import Draws
from clipbench.pretrain.frozen import Kept
from clipbench.pretrain.views import augment

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
_DECODE_BATCH = 256


@dataclass(frozen=True)
class Wants:
    """What an objective needs of a batch beside the images and texts of its pairs.

    Attributes:
        views: further views of every image, and how each is made (None: as its source augments).
        altered: a changed text for every pair (see `words`).
    """

    views: tuple[Augmentation | None, ...] = ()
    altered: bool = False


@dataclass(frozen=True)
class Batch:
    """One training batch, or one process's share of it, or a piece of that.

    Attributes:
        images: float32 [B, channels, side, side], normalised; or [B, D], features that a frozen tower made of them.
        tokens: int64 [U, L], the distinct captions, cut at the longest one of the whole batch (frozen text tower: their
            features).
        rows: int64 [B]; the caption of image i is `tokens[rows[i]]`.
        draws: numbers for these B rows, for what an objective draws itself.
        views: as `Wants` says, each like `images`.
        altered: int64 [U, L] and [B], where `Wants` says so: the distinct altered texts, like `tokens`, and their rows.
    """

    images: Tensor
    tokens: Tensor
    rows: Tensor
    draws: Draws
    views: tuple[Tensor, ...]
    altered: tuple[Tensor, Tensor] | None

    def pieces(self, size: int) -> list[Batch]:
        """The batch in pieces of `size` pairs, the last one perhaps smaller."""
        return [self._piece(rows) for rows in torch.split(torch.arange(len(self.rows)), size)]

    def _piece(self, rows: Tensor) -> Batch:
        """The pairs at `rows` (int64, on the CPU, ascending without gaps)."""
        own = slice(int(rows[0]), int(rows[-1]) + 1)
        tokens, places = _distinct(self.tokens, self.rows[own])
        return Batch(
            images=self.images[own],
            tokens=tokens,
            rows=places,
            draws=self.draws.of(rows),
            views=tuple(view[own] for view in self.views),
            altered=_distinct(self.altered[0], self.altered[1][own]) if self.altered else None,
        )


class PairsState(TypedDict):
    """Where a stream of batches stands: the generator, the epoch's order, and the place in it."""

    generator: Tensor
    order: Tensor
    cursor: int


@dataclass(frozen=True)
class Source:
    """A split to draw pairs from, the card it belongs to, and what the recipe wants of it."""

    split: Split
    card: TaskCard
    wanted: Pairs


class DrawnPairs:
    """Endless shuffled batches of (image, one of its texts) from all sources together.

    Every epoch is a new permutation of all images; its last, incomplete batch is left out. All draws (order,
    texts, augmentation) come from one CPU generator, so that they do not depend on the device. Of processes that
    share a batch each makes all draws, and prepares the pairs of its own part.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        preprocess: Preprocess,
        tokenize: Tokenize,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        wants: Wants,
        features: Kept | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Decode and tokenise everything. With `features`, batches have those in the place of images.

        `next_batch` gives part number `rank` of `world` equal parts of a batch.

        Raises:
            CardError: a source has not the texts, or its card not the templates, that the recipe wants.
            DataError: fewer images than a batch, an image without a text, or one that cannot be decoded.
        """
        texts = [own for source in sources for own in texts_of(source)]
        if len(texts) < batch_size:
            where = ", ".join(f"{s.split.dataset} {s.split.role}" for s in sources)
            raise DataError(
                f"{where}: {len(texts)} images, fewer than one batch of {batch_size}",
                hint="lower schedule.batch_size in the recipe",
            )
        self._preprocess = preprocess
        self._batch_size = batch_size
        share = batch_size // world
        self._own = slice(rank * share, (rank + 1) * share)
        self._device = device
        self._wants = wants
        self._features = features
        if features is None:
            decoded = [decode_all(source.split, preprocess) for source in sources]
            self._images = torch.cat(decoded).to(device)
        self._augment = [source.wanted.augment for source in sources]
        self._source = torch.repeat_interleave(torch.tensor([len(source.split) for source in sources]))
        number: dict[str, int] = {}
        drawn = [number.setdefault(t, len(number)) for own in texts for kind in own for t in kind]
        self._drawn = torch.tensor(drawn)
        self._texts = list(number)
        self._tokenize = tokenize
        self._tokens, self._lengths = tokenize(self._texts)
        # Image i has the kinds [_first[i], _first[i] + _kinds[i]); kind k the texts [_start[k], _start[k] + _count[k]).
        self._kinds = torch.tensor([len(own) for own in texts])
        self._first = self._kinds.cumsum(0) - self._kinds
        self._count = torch.tensor([len(kind) for own in texts for kind in own])
        self._start = self._count.cumsum(0) - self._count
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(texts), generator=self._generator)
        self._cursor = 0

    def next_batch(self) -> Batch:
        """The next batch, on the training device."""
        if self._cursor + self._batch_size > len(self._order):
            self._order = torch.randperm(len(self._order), generator=self._generator)
            self._cursor = 0
        chosen = self._order[self._cursor : self._cursor + self._batch_size]
        self._cursor += self._batch_size
        draws = torch.rand(2, len(chosen), generator=self._generator, dtype=torch.float64)
        kind = self._first[chosen] + (draws[0] * self._kinds[chosen]).long()
        drawn = self._drawn[self._start[kind] + (draws[1] * self._count[kind]).long()]
        distinct, rows = torch.unique(drawn[self._own], return_inverse=True)
        tokens = self._tokens[distinct, : int(self._lengths[drawn].max())]
        first, *further = self._seen(chosen)
        altered = self._altered(drawn) if self._wants.altered else None
        return Batch(
            images=first,
            tokens=tokens.to(self._device),
            rows=rows.to(self._device),
            draws=self._draws(),
            views=tuple(further),
            altered=altered,
        )

    def _draws(self) -> Draws:
        """For the own part of a batch."""
        return Draws(self._generator, self._batch_size, torch.arange(self._batch_size)[self._own])

    def _seen(self, chosen: Tensor) -> list[Tensor]:
        """Of the images of these numbers (of all parts) the own ones, and their further views; or their features."""
        if self._features is not None:
            return [self._features.take(chosen[self._own]).to(self._device)]
        images = self._images[chosen[self._own].to(self._device)]
        return [self._view(images, chosen, how) for how in (None, *self._wants.views)]

    def _view(self, images: Tensor, chosen: Tensor, how: Augmentation | None) -> Tensor:
        """The own images augmented (None: as their sources say) and normalised; `chosen` numbers those of all parts."""
        if how:
            return normalise(augment(images, how, self._draws()), self._preprocess)
        view = images.clone()
        for number, own_way in enumerate(self._augment):
            of_source = torch.nonzero(self._source[chosen] == number)[:, 0]
            if own_way and len(of_source):
                own = torch.nonzero((of_source >= self._own.start) & (of_source < self._own.stop))[:, 0]
                at = (of_source[own] - self._own.start).to(self._device)
                view[at] = augment(images[at], own_way, Draws(self._generator, len(of_source), own))
        return normalise(view, self._preprocess)

    def _altered(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The own ones of these texts, altered: tokens of the distinct ones, and each one's row."""
        number: dict[str, int] = {}
        texts = words.alter([self._texts[i] for i in drawn.tolist()], self._draws())
        rows = torch.tensor([number.setdefault(text, len(number)) for text in texts])
        tokens, lengths = self._tokenize(list(number))
        return tokens[:, : int(lengths.max())].to(self._device), rows.to(self._device)

    def state(self) -> PairsState:
        """What `restore` needs to go on exactly here."""
        return {"generator": self._generator.get_state(), "order": self._order, "cursor": self._cursor}

    def restore(self, state: PairsState) -> None:
        """Go on where `state` was taken."""
        self._generator.set_state(state["generator"])
        self._order = state["order"]
        self._cursor = state["cursor"]


def _distinct(tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `tokens` that `rows` name, and where each row's stands among them."""
    named, places = torch.unique(rows, return_inverse=True)
    return tokens[named], places


def texts_of(source: Source) -> list[list[list[str]]]:
    """The texts of each image: a list for each kind that the recipe wants and the image has any of.

    Raises:
        CardError: the split has no texts of a kind that the recipe wants, or the card no such templates.
        DataError: an image without any text.
    """
    split = source.split
    found: list[list[list[str]]] = [[] for _ in range(len(split))]
    for kind in source.wanted.texts:
        for own, texts in zip(found, _of_kind(kind, source), strict=True):
            if texts:
                own.append(texts)
    bare = [i for i, own in enumerate(found) if not own]
    if bare:
        raise DataError(
            f"{split.dataset} {split.role}: {len(bare)} of {len(split)} images have no text to be paired with, "
            f"the first is {split.ids[bare[0]]}",
            hint=f"add another kind of text to `texts` of {split.dataset} in the recipe",
        )
    return found


def _of_kind(kind: str, source: Source) -> list[list[str]]:
    """The texts of one kind of each image."""
    split = source.split
    if kind == "labels" and split.classes:
        of_class = captions(source.card, split.classes, source.wanted.templates)
        if split.labels.ndim == 1:
            return [of_class[label] for label in split.labels.tolist()]
        return [[t for c in np.flatnonzero(row == 1) for t in of_class[c]] for row in split.labels]
    belonging = {"captions": split.captions, "expressions": split.expressions}.get(kind)
    if belonging is None:
        raise CardError(
            f"{split.dataset} {split.role} has no {kind} to be paired with its images",
            hint=f"correct `texts` of {split.dataset} in the recipe",
        )
    found: list[list[str]] = [[] for _ in range(len(split))]
    for text, image in zip(belonging.texts, belonging.image.tolist(), strict=True):
        found[image].append(text)
    return found


def captions(task: TaskCard, classes: Sequence[str], sets: Sequence[str]) -> list[list[str]]:
    """The captions of each class, in the order of `classes`, from the named template sets of `task`.

    Raises:
        CardError: the card has no such set.
    """
    texts: list[list[str]] = [[] for _ in classes]
    for name in sets:
        if name not in task.templates:
            raise CardError(f"{task.title}: {unknown('template set', name, task.templates)}")
        templates = task.templates[name]
        for own, label in zip(texts, classes, strict=True):
            if isinstance(templates, dict):
                own.extend(templates[label])
            else:
                own.extend(template.replace("{c}", label) for template in templates)
    return texts


def decode_all(split: Split, preprocess: Preprocess) -> Tensor:
    """All images of `split`: uint8 [n, channels, side, side].

    Raises:
        DataError: an image that cannot be decoded.
    """
    images = torch.empty(len(split), preprocess.channels, preprocess.side, preprocess.side, dtype=torch.uint8)
    sizes = [min(_DECODE_BATCH, len(split) - start) for start in range(0, len(split), _DECODE_BATCH)]
    samples = split.samples(np.arange(len(split)))
    start = 0
    for batch in decode_stream(samples, preprocess, sizes=sizes, workers=0, overlap=False):
        images[start : start + len(batch.images)] = torch.from_numpy(batch.images)
        start += len(batch.images)
    return images
