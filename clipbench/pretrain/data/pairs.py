"""Training pairs: images with texts, drawn and augmented in batches.

Up to 2 GiB of decoded images are held on the training device, as one uint8 tensor; larger sets are read and decoded
while the model trains. The batches are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from clipbench.cards.model import Preprocess
from clipbench.cards.pairs import Augmentation
from clipbench.data.decode import normalise
from clipbench.data.pairs.shards import RemoteShards
from clipbench.errors import DataError
from clipbench.pretrain.data import loader, text_augmentation
from clipbench.pretrain.data.batch import Batch, distinct
from clipbench.pretrain.data.frozen_features import FrozenFeatures
from clipbench.pretrain.data.image_augmentation import augment
from clipbench.pretrain.data.source import Source, decode, reader, texts_of
from clipbench.pretrain.objectives.base import Wants
from clipbench.utils.row_rng import Draws

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
#: decoded images (bytes) up to which a set is held in memory
HELD_BYTES = 2**31


class PairsState(TypedDict):
    """Where a stream of batches stands: the generator, the place in the order, and the images that were skipped."""

    generator: Tensor
    place: loader.Place
    skipped: tuple[int, dict[str, str]]


class DrawnPairs:
    """Endless shuffled batches of (image, one of its texts) from all sources together.

    Every epoch is a new permutation of all images, which the seed alone decides; its last, incomplete batch is left
    out (shards that are streamed: see `loader.StreamLoader`). All other draws (texts, augmentation) come from one CPU
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
        features: FrozenFeatures | None = None,
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
        how = loader.Decoding(
            preprocess, [source.wanted.on_bad_image for source in sources], slice(rank * share, (rank + 1) * share),
            batch_size, seed, device, workers,
        )  # fmt: skip
        self._loader = self._make_loader(sources, how)
        self._ahead: tuple[PairsState, Batch] | None = None

    def _make_loader(self, sources: Sequence[Source], how: loader.Decoding) -> loader.Loader:
        first = sources[0].split
        if isinstance(first, RemoteShards):  # which is alone, as the recipe's card checks
            return loader.StreamLoader(first, how)
        counts = [len(source.split) for source in sources]
        _fill_a_batch(sum(counts), how.batch_size, sources)
        preprocess = how.preprocess
        if self._features is not None:
            return self._held([texts_of(source) for source in sources], self._features.take, how)
        if sum(counts) * preprocess.channels * preprocess.side**2 > HELD_BYTES:
            return loader.FileLoader([reader(source) for source in sources], counts, how)
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

    def _held(
        self, texts: list[list[loader.Texts]], images: Callable[[Tensor], Tensor], how: loader.Decoding
    ) -> loader.MemoryLoader:
        """Texts of each source's images, tokenised at once, and `images` by their numbers."""
        kept = [own for part in texts for own in part]
        for text in (text for own in kept for kind in own for text in kind):
            self._number.setdefault(text, len(self._number))
        self._tokens, self._lengths = self._tokenize(list(self._number))
        of = torch.repeat_interleave(torch.tensor([len(part) for part in texts]))
        return loader.MemoryLoader(images, kept, of, how.own, how.batch_size, how.seed)

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
        fed = self._loader.next()
        draws = torch.rand(2, len(fed.texts), generator=self._generator, dtype=torch.float64)
        kinds = [own[int(draw * len(own))] for own, draw in zip(fed.texts, draws[0].tolist(), strict=True)]
        texts = [own[int(draw * len(own))] for own, draw in zip(kinds, draws[1].tolist(), strict=True)]
        if self._alter.any():
            chance = torch.rand(len(texts), generator=self._generator, dtype=torch.float64)
            changed = text_augmentation.alter(texts, Draws(self._generator, len(texts)))
            often = (chance < self._alter[fed.source]).tolist()
            texts = [new if yes else old for new, old, yes in zip(changed, texts, often, strict=True)]
        first, *further = self._seen(fed)
        own = Draws(self._generator, len(texts), fed.kept)
        # Of the whole batch, so that all processes cut them at the same length, and make as many draws for tokens.
        tokens, rows = self._tokens_of(texts)
        tokens, rows = distinct(tokens, rows[fed.kept])
        altered = self._tokens_of(text_augmentation.alter(texts, own)) if self._wants.altered else None
        return Batch(
            images=first,
            tokens=self._sent(tokens),
            rows=self._sent(rows),
            draws=own,
            views=tuple(further),
            altered=(self._sent(altered[0]), self._sent(altered[1])) if altered else None,
        )

    def _seen(self, fed: loader.LoadedBatch) -> list[Tensor]:
        """The images, and their further views; or their features."""
        if self._features is not None:
            return [self._sent(fed.images)]
        return [self._view(fed, how) for how in (None, *self._wants.views)]

    def _view(self, fed: loader.LoadedBatch, how: Augmentation | None) -> Tensor:
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
        return self._loader.skipped

    def state(self) -> PairsState:
        """What `restore` needs to go on exactly here: with the batch that `next_batch` gives next."""
        if self._ahead is not None:
            return self._ahead[0]
        return {
            "generator": self._generator.get_state(),
            "place": self._loader.place,
            "skipped": self._loader.skipped,
        }

    def restore(self, state: PairsState) -> None:
        """Go on where `state` was taken."""
        self._ahead = None
        self._generator.set_state(state["generator"])
        self._loader.go_on(state["place"])
        self._loader.skipped = state["skipped"]


def _fill_a_batch(count: int, batch_size: int, sources: Sequence[Source]) -> None:
    if count < batch_size:
        where = ", ".join(f"{s.split.dataset} {s.split.role}" for s in sources)
        raise DataError(
            f"{where}: {count} images, fewer than one batch of {batch_size}",
            hint="lower schedule.batch_size in the recipe",
        )
