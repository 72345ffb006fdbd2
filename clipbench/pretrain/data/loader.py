"""Where batches of images with their texts come from: from memory, or read and decoded while the model trains.

The order is decided by the seed and a place in it alone, never by which image was ready first: a run that goes on from
a place sees what it would have seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipbench.cards.model import Preprocess
from clipbench.data.decode_stream import Bad, OnBadImage, decode_stream, undecodable
from clipbench.data.pairs.shards import RemoteShards
from clipbench.data.split import Sample
from clipbench.errors import DataError

#: the texts of one image: a list for each kind of text that it has
Texts = list[list[str]]
#: where a feed stands, as a checkpoint keeps it
Place = list[int]

_READERS = 8  # threads, which wait for the disk
_NAMED = 1000  # images that are named of those that were left out


class LoadedBatch(NamedTuple):
    """A batch, of which this process has a part of the images.

    Attributes:
        images: uint8 [n, channels, side, side], on the training device; or features, float32 [n, D].
        kept: int64 [n] on the CPU, which pairs of the batch these are: the own ones that could be decoded.
        source: int64 [B] on the CPU, the source of every pair.
        texts: of every pair.
    """

    images: Tensor
    kept: Tensor
    source: Tensor
    texts: list[Texts]


@dataclass(frozen=True)
class Reader:
    """One source, pair by pair; called from several threads."""

    sample: Callable[[int], Sample]
    texts: Callable[[int], Texts]


class Loader(ABC):
    """An endless sequence of batches.

    Attributes:
        place: where the sequence stands; what `go_on` needs.
        skipped: images that could not be decoded, so far: how many, and the names and reasons of the first thousand.
    """

    def __init__(self, start: Place) -> None:
        self.skipped: tuple[int, dict[str, str]] = (0, {})
        self.go_on(start)

    @abstractmethod
    def next(self) -> LoadedBatch:
        """The next batch."""

    def go_on(self, place: Place) -> None:
        """Continue there."""
        self.place = place

    def skip(self, bad: Sequence[Bad]) -> None:
        """Count and name images that could not be decoded."""
        count, names = self.skipped
        for image in bad[: max(0, _NAMED - len(names))]:
            names.setdefault(image.id, image.reason)
        self.skipped = (count + len(bad), names)


class Order:
    """Every epoch a permutation of its own of `count` pairs; its last, incomplete batch is left out."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed = count, batch_size, seed

    def batches(self, place: Place) -> Iterator[tuple[Place, Tensor]]:
        """From epoch and pair `place` on: the place after each batch, and its pairs (int64 [B])."""
        epoch, cursor = place
        while True:
            order = permutation(self._count, self._seed, epoch)
            while cursor + self._batch_size <= self._count:
                cursor += self._batch_size
                yield [epoch, cursor], order[cursor - self._batch_size : cursor]
            epoch, cursor = epoch + 1, 0


def permutation(count: int, *seed: int) -> Tensor:
    """int64 [count], drawn by a generator that `seed` alone decides."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return torch.randperm(count, generator=torch.Generator().manual_seed(state >> 1))


# ----------------------------------------------------------------- from memory


class MemoryLoader(Loader):
    """From images that are decoded already, or from their features."""

    def __init__(
        self,
        images: Callable[[Tensor], Tensor],
        texts: list[Texts],
        source: Tensor,
        own: slice,
        batch_size: int,
        seed: int,
    ) -> None:
        """`images` gives those of some numbers (int64 [n]); `source`: int64 [N], that of each image; on the CPU."""
        self._images, self._texts, self._source, self._own = images, texts, source, own
        self._order = Order(len(texts), batch_size, seed)
        self._kept = torch.arange(batch_size)[own]
        super().__init__([0, 0])

    def next(self) -> LoadedBatch:
        self.place, chosen = next(self._batches)
        texts = [self._texts[i] for i in chosen.tolist()]
        return LoadedBatch(self._images(chosen[self._own]), self._kept, self._source[chosen], texts)

    def go_on(self, place: Place) -> None:
        """See `Loader`; a place is an epoch, and pairs of it that are done."""
        super().go_on(place)
        self._batches = self._order.batches(place)


# ------------------------------------------------------- decoded while training


@dataclass(frozen=True)
class _Read:
    """A batch as read: the samples are the own ones."""

    place: Place
    source: Tensor
    texts: list[Texts]
    samples: list[Sample]


@dataclass(frozen=True)
class Decoding:
    """How images of batches are decoded.

    Attributes:
        on_bad_image: of each source.
        own: this process's part of a batch.
        workers: decoding processes; 0: in this one, whenever a batch is asked for.
    """

    preprocess: Preprocess
    on_bad_image: Sequence[OnBadImage]
    own: slice
    batch_size: int
    seed: int
    device: torch.device
    workers: int


class DecodingLoader(Loader):
    """From files: the next batches are read and decoded while the model trains on this one.

    At most three batches of images are held decoded, and two as files.
    """

    def __init__(self, how: Decoding, start: Place) -> None:
        self._how = how
        self._kept = torch.arange(how.batch_size)[how.own]
        super().__init__(start)

    @abstractmethod
    def read(self, place: Place) -> Iterator[_Read]:
        """The batches from `place` on."""

    def go_on(self, place: Place) -> None:
        super().go_on(place)
        coming: deque[_Read] = deque()

        def samples() -> Iterator[Sample]:
            for read in self.read(place):
                coming.append(read)
                yield from read.samples

        self._coming = coming
        self._decoded = decode_stream(
            samples(),
            self._how.preprocess,
            sizes=len(self._kept),
            workers=self._how.workers,
            overlap=self._how.workers > 0,
            on_bad_image="skip",
        )

    def next(self) -> LoadedBatch:
        """See `Loader`.

        Raises:
            DataError: an image that cannot be decoded and may not be skipped, or a batch without two that can.
        """
        batch = next(self._decoded)
        read = self._coming.popleft()
        bad = iter(batch.bad)
        for at in self._kept[torch.from_numpy(~batch.good)].tolist():
            image = next(bad)
            if self._how.on_bad_image[int(read.source[at])] == "stop":
                raise undecodable([image], "set on_bad_image: skip for its source in the recipe")
        self.skip(batch.bad)
        if batch.bad and batch.good.sum() < 2:
            raise undecodable(batch.bad, "fewer than two images of a batch are left: look at the data")
        self.place = read.place
        good = torch.from_numpy(batch.good)
        # A copy, since the decoder writes the next batch to the same place.
        images = torch.from_numpy(batch.images)[good]
        if self._how.device.type == "cuda":
            images = images.pin_memory()  # only so does the copy not wait for what the GPU is at work on
        images = images.to(self._how.device, non_blocking=True)
        return LoadedBatch(images, self._kept[good], read.source, read.texts)


class FileLoader(DecodingLoader):
    """Pairs of several sources that are found at once wherever they lie, in one permutation of all."""

    def __init__(self, readers: Sequence[Reader], counts: Sequence[int], how: Decoding) -> None:
        """`counts`: pairs of each source."""
        self._readers = readers
        self._ends = np.cumsum(counts)
        self._order = Order(int(self._ends[-1]), how.batch_size, how.seed)
        super().__init__(how, [0, 0])

    def read(self, place: Place) -> Iterator[_Read]:
        with ThreadPoolExecutor(_READERS, thread_name_prefix="pairs") as threads:
            for after, chosen in self._order.batches(place):
                rows = chosen.numpy()
                source = np.searchsorted(self._ends, rows, side="right")
                local = rows - np.append(0, self._ends)[source]
                at = list(zip(source.tolist(), local.tolist(), strict=True))
                texts = threads.map(lambda pair: self._readers[pair[0]].texts(pair[1]), at)
                own = threads.map(lambda pair: self._readers[pair[0]].sample(pair[1]), at[self._how.own])
                samples = list(own)
                yield _Read(after, torch.from_numpy(source), list(texts), samples)


class StreamLoader(DecodingLoader):
    """Pairs that are streamed shard by shard: the shards in an order of the epoch's own, a window of them shuffled.

    Of processes that share a batch each reads all shards and decodes its part. An epoch's last pairs and the next
    one's first share a batch.
    """

    def __init__(self, shards: RemoteShards, how: Decoding) -> None:
        self._shards = shards
        super().__init__(how, [0, 0, 0])

    def read(self, place: Place) -> Iterator[_Read]:
        """See `DecodingLoader`; a place is an epoch, a window of it, and pairs of that which are done."""
        source = torch.zeros(self._how.batch_size, dtype=torch.int64)
        held: list[tuple[Sample, list[str]]] = []
        for after, pair in self._pairs(place):
            held.append(pair)
            if len(held) == self._how.batch_size:
                samples = [sample for sample, _ in held[self._how.own]]
                yield _Read(after, source, [[texts] for _, texts in held], samples)
                held = []

    def _pairs(self, place: Place) -> Iterator[tuple[Place, tuple[Sample, list[str]]]]:
        epoch, first, done = place
        while True:
            order = permutation(len(self._shards.addresses), self._how.seed, epoch).tolist()
            found = False
            for number, window in enumerate(self._shards.windows(order, first), first):
                found = found or bool(window)
                shuffled = permutation(len(window), self._how.seed, epoch, number).tolist()
                for count, row in enumerate(shuffled[done:], done + 1):
                    yield [epoch, number, count], window[row]
                done = 0
            if not found and not first:
                raise DataError(f"{self._shards.dataset}: no pair of an image and a caption in any shard")
            epoch, first = epoch + 1, 0
