"""Training pairs: images with texts, drawn and augmented in batches.

Up to 2 GiB of decoded images are held on the training device, as one uint8 tensor; larger sets are read and decoded
while the model trains. The batches are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from clipbench.cards.cards import AnyPairs, Augmentation, Pairs, Preprocess, TaskCard
from clipbench.data.decode import Bad, OnBadImage, decode_stream, normalise, undecodable
from clipbench.data.pairs.lazy import LazySplit, plain_caption
from clipbench.data.pairs.shards import RemoteShards
from clipbench.data.pairs.sources import Packed
from clipbench.data.split import Split
from clipbench.errors import CardError, DataError, unknown
from clipbench.pretrain.data import text_augmentation
from clipbench.pretrain.data.frozen_features import Kept
from clipbench.pretrain.data.image_augmentation import augment
from clipbench.pretrain.data.loader import (
    Decoding,
    Fed,
    Feed,
    Held,
    Place,
    Reader,
    Scattered,
    Streamed,
    Texts,
)
from clipbench.utils.row_rng import Draws

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
#: decoded images (bytes) up to which a set is held in memory
HELD_BYTES = 2**31
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
        images: float32 [B, channels, side, side], normalised.
        tokens: int64 [U, L], the distinct captions, cut at the longest one of the whole batch.
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
        """The batch in pieces of at most `size` pairs, as equal as they can be."""
        rows = torch.arange(len(self.rows))
        return [self._piece(part) for part in rows.tensor_split(-(-len(rows) // size))]

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
    """Where a stream of batches stands: the generator, the place in the order, and the images that were skipped."""

    generator: Tensor
    place: Place
    skipped: tuple[int, dict[str, str]]


@dataclass(frozen=True)
class Source:
    """A split or stream to draw pairs from, the card it belongs to, and what the recipe wants of it."""

    split: Split | RemoteShards
    card: TaskCard
    wanted: AnyPairs

    @property
    def rows(self) -> Split:
        """The split; not of a stream, which has no rows."""
        assert isinstance(self.split, Split)
        return self.split


class DrawnPairs:
    """Endless shuffled batches of (image, one of its texts) from all sources together.

    Every epoch is a new permutation of all images, which the seed alone decides; its last, incomplete batch is left
    out (shards that are streamed: see `feeds.Streamed`). All other draws (texts, augmentation) come from one CPU
    generator, so that they do not depend on the device. An image that is skipped leaves its batch smaller. Of
    processes that share a batch each makes all draws, and prepares the pairs of its own part.
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
        workers: int = 0,
    ) -> None:
        """Decode and tokenise everything, or get ready to: `workers` processes then decode ahead (0: none).

        `next_batch` gives part number `rank` of `world` equal parts of a batch. With `features`, batches have those
        in the place of images.

        Raises:
            CardError: a source has not the texts, or its card not the templates, that the recipe wants.
            DataError: fewer images than a batch, an image without a text, or one that cannot be decoded.
        """
        self._preprocess = preprocess
        self._device = device
        self._wants = wants
        self._features = features
        self._augment = [source.wanted.augment for source in sources]
        self._alter = torch.tensor([source.wanted.alter for source in sources], dtype=torch.float64)
        self._tokenize = tokenize
        self._number: dict[str, int] = {}
        self._generator = torch.Generator().manual_seed(seed)
        share = batch_size // world
        how = Decoding(
            preprocess, [source.wanted.on_bad_image for source in sources], slice(rank * share, (rank + 1) * share),
            batch_size, seed, device, workers,
        )  # fmt: skip
        self._feed = self._make_feed(sources, how)
        self._ahead: tuple[PairsState, Batch] | None = None

    def _make_feed(self, sources: Sequence[Source], how: Decoding) -> Feed:
        first = sources[0].split
        if isinstance(first, RemoteShards):  # which is alone, as the recipe's card checks
            return Streamed(first, how)
        counts = [len(source.split) for source in sources]
        _fill_a_batch(sum(counts), how.batch_size, sources)
        preprocess = how.preprocess
        if self._features is not None:
            return self._held([texts_of(source) for source in sources], self._features.take, how)
        if sum(counts) * preprocess.channels * preprocess.side**2 > HELD_BYTES:
            return Scattered([reader(source) for source in sources], counts, how)
        images, texts, bad = [], [], []
        for source in sources:
            own = texts_of(source)
            decoded, good, broken = decode(source.rows, preprocess, source.wanted.on_bad_image, how.workers)
            images.append(decoded[good])
            texts.append([own[row] for row in good.tolist()])
            bad += broken
        _fill_a_batch(sum(map(len, texts)), how.batch_size, sources)
        decoded = torch.cat(images).to(how.device)
        feed = self._held(texts, lambda chosen: decoded[chosen.to(decoded.device, non_blocking=True)], how)
        feed.skip(bad)
        return feed

    def _held(self, texts: list[list[Texts]], images: Callable[[Tensor], Tensor], how: Decoding) -> Held:
        """Texts of each source's images, tokenised at once, and `images` by their numbers."""
        kept = [own for part in texts for own in part]
        for text in (text for own in kept for kind in own for text in kind):
            self._number.setdefault(text, len(self._number))
        self._tokens, self._lengths = self._tokenize(list(self._number))
        of = torch.repeat_interleave(torch.tensor([len(part) for part in texts]))
        return Held(images, kept, of, how.own, how.batch_size, how.seed)

    def next_batch(self) -> Batch:
        """The next batch, on the training device.

        Raises:
            DataError: an image that cannot be decoded, or a shard that cannot be read.
        """
        self.prepare()
        assert self._ahead is not None
        (_, batch), self._ahead = self._ahead, None
        return batch

    def prepare(self) -> None:
        """Make the next batch already, while a GPU is still at work on this one. Raises as `next_batch`."""
        if self._ahead is None:
            self._ahead = (self.state(), self._make())

    def _make(self) -> Batch:
        fed = self._feed.next()
        draws = torch.rand(2, len(fed.texts), generator=self._generator, dtype=torch.float64)
        texts = [_choose(own, *at) for own, at in zip(fed.texts, draws.T.tolist(), strict=True)]
        if self._alter.any():
            chance = torch.rand(len(texts), generator=self._generator, dtype=torch.float64)
            changed = text_augmentation.alter(texts, Draws(self._generator, len(texts)))
            often = (chance < self._alter[fed.source]).tolist()
            texts = [new if yes else old for new, old, yes in zip(changed, texts, often, strict=True)]
        first, *further = self._seen(fed)
        own = Draws(self._generator, len(texts), fed.kept)
        # Of the whole batch, so that all processes cut them at the same length, and make as many draws for tokens.
        tokens, rows = self._tokens_of(texts)
        tokens, rows = _distinct(tokens, rows[fed.kept])
        altered = self._tokens_of(text_augmentation.alter(texts, own)) if self._wants.altered else None
        return Batch(
            images=first,
            tokens=self._sent(tokens),
            rows=self._sent(rows),
            draws=own,
            views=tuple(further),
            altered=(self._sent(altered[0]), self._sent(altered[1])) if altered else None,
        )

    def _seen(self, fed: Fed) -> list[Tensor]:
        """The images, and their further views; or their features."""
        if self._features is not None:
            return [self._sent(fed.images)]
        return [self._view(fed, how) for how in (None, *self._wants.views)]

    def _view(self, fed: Fed, how: Augmentation | None) -> Tensor:
        """The images augmented (None: as their sources say) and normalised."""
        if how:
            draws = Draws(self._generator, len(fed.texts), fed.kept)
            return normalise(augment(fed.images, how, draws), self._preprocess)
        view = fed.images.clone()
        for number, own_way in enumerate(self._augment):
            of_source = torch.nonzero(fed.source == number)[:, 0]
            if own_way and len(of_source):
                own = torch.nonzero(fed.source[fed.kept] == number)[:, 0]
                draws = Draws(self._generator, len(of_source), torch.searchsorted(of_source, fed.kept[own]))
                at = self._sent(own)
                view[at] = augment(fed.images[at], own_way, draws)
        return normalise(view, self._preprocess)

    def _sent(self, tensor: Tensor) -> Tensor:
        """`tensor` on the training device; nobody waits for what a GPU is at work on."""
        return tensor.to(self._device, non_blocking=True)

    def _tokens_of(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of the distinct ones of `texts`, cut at the longest, and each one's row."""
        number: dict[str, int] = {}
        rows = torch.tensor([number.setdefault(text, len(number)) for text in texts])
        known = [self._number.get(text, -1) for text in number]
        if -1 in known:
            tokens, lengths = self._tokenize(list(number))
        else:
            tokens, lengths = self._tokens[known], self._lengths[known]
        return tokens[:, : int(lengths.max())], rows

    @property
    def skipped(self) -> tuple[int, dict[str, str]]:
        """Images that could not be decoded, so far: how many, and the names and reasons of the first thousand."""
        return self._feed.skipped

    def state(self) -> PairsState:
        """What `restore` needs to go on exactly here: with the batch that `next_batch` gives next."""
        if self._ahead is not None:
            return self._ahead[0]
        return {
            "generator": self._generator.get_state(),
            "place": self._feed.place(),
            "skipped": self._feed.skipped,
        }

    def restore(self, state: PairsState) -> None:
        """Go on where `state` was taken."""
        self._ahead = None
        self._generator.set_state(state["generator"])
        self._feed.go_on(state["place"])
        self._feed.skipped = state["skipped"]


def _distinct(tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `tokens` that `rows` name, and where each row's stands among them."""
    named, places = torch.unique(rows, return_inverse=True)
    return tokens[named], places


def _choose(own: Texts, kind: float, text: float) -> str:
    """One of an image's texts, by two draws in [0, 1)."""
    texts = own[int(kind * len(own))]
    return texts[int(text * len(texts))]


def _fill_a_batch(count: int, batch_size: int, sources: Sequence[Source]) -> None:
    if count < batch_size:
        where = ", ".join(f"{s.split.dataset} {s.split.role}" for s in sources)
        raise DataError(
            f"{where}: {count} images, fewer than one batch of {batch_size}",
            hint="lower schedule.batch_size in the recipe",
        )


def reader(source: Source) -> Reader:
    """The images and texts of a source one by one. Raises as `texts_of`."""
    split = source.rows
    if isinstance(split, LazySplit):
        return Reader(split.name, split.image, lambda row: [split.texts(row)])
    texts = texts_of(source)
    image = _image_of(split) if split.scattered else Packed(split).image
    return Reader(split.ids.__getitem__, image, texts.__getitem__)


def _image_of(split: Split) -> Callable[[int], bytes]:
    return lambda row: next(iter(split.samples(np.array([row])))).image


def texts_of(source: Source) -> list[Texts]:
    """The texts of each image: a list for each kind that the recipe wants and the image has any of; none is empty.

    Raises:
        CardError: the split has no texts of a kind that the recipe wants, or the card no such templates.
        DataError: an image without any text.
    """
    split, wanted = source.rows, source.wanted
    if isinstance(split, LazySplit):
        return [[split.texts(row)] for row in range(len(split))]
    found: list[Texts] = [[] for _ in range(len(split))]
    for kind in wanted.texts if isinstance(wanted, Pairs) else ("captions",):
        for own, texts in zip(found, _of_kind(kind, source), strict=True):
            plain = (
                [text for text in (plain_caption(t, wanted) for t in texts) if text]
                if wanted.clean
                else texts
            )
            if plain:
                own.append(plain)
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
    split = source.rows
    if kind == "labels" and split.classes and isinstance(source.wanted, Pairs):
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
    return decode(split, preprocess, "stop", workers=0)[0]


def decode(
    split: Split, preprocess: Preprocess, on_bad_image: OnBadImage, workers: int
) -> tuple[Tensor, Tensor, list[Bad]]:
    """All images of `split` (uint8 [n, channels, side, side]), the rows of those that could be decoded, and the others.

    Raises:
        DataError: an image that cannot be decoded, and `on_bad_image` is "stop".
    """
    images = torch.empty(len(split), preprocess.channels, preprocess.side, preprocess.side, dtype=torch.uint8)
    good = torch.ones(len(split), dtype=torch.bool)
    bad: list[Bad] = []
    samples = split.samples(np.arange(len(split)))
    start = 0
    for batch in decode_stream(
        samples, preprocess, sizes=_DECODE_BATCH, workers=workers, overlap=workers > 0, on_bad_image="skip"
    ):
        if batch.bad and on_bad_image == "stop":
            raise undecodable(
                batch.bad,
                f"set on_bad_image: skip for {split.dataset} in the recipe to count and name such images",
            )
        images[start : start + len(batch.images)] = torch.from_numpy(batch.images)
        good[start : start + len(batch.images)] = torch.from_numpy(batch.good)
        bad += batch.bad
        start += len(batch.images)
    return images, torch.nonzero(good)[:, 0], bad
