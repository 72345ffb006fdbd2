"""One source of training pairs: the texts of its images, and the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipbench.cards.model import Preprocess
from clipbench.cards.pairs import AnyPairs, Pairs
from clipbench.cards.task import TaskCard
from clipbench.data.decode_stream import Bad, OnBadImage, decode_stream, undecodable
from clipbench.data.pairs.lazy import LazySplit, plain_caption
from clipbench.data.pairs.shards import RemoteShards
from clipbench.data.pairs.sources import Packed
from clipbench.data.split import Sample, Split
from clipbench.errors import CardError, DataError, unknown
from clipbench.pretrain.data.loader import Reader, Texts

_DECODE_BATCH = 256


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


def reader(source: Source) -> Reader:
    """The images and texts of a source one by one. Raises as `texts_of`."""
    split = source.rows
    texts = (lambda row: [split.texts(row)]) if isinstance(split, LazySplit) else texts_of(source).__getitem__
    if split.scattered:
        return Reader(lambda row: next(split.samples(np.array([row]))), texts)
    packed = Packed(split)
    return Reader(lambda row: Sample(split.ids[row], packed.image(row)), texts)


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
            plain = [p for t in texts if (p := plain_caption(t, wanted))] if wanted.clean else texts
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
            skip = f"set on_bad_image: skip for {split.dataset} in the recipe to count and name such images"
            raise undecodable(batch.bad, skip)
        end = start + len(batch.images)
        images[start:end], good[start:end] = torch.from_numpy(batch.images), torch.from_numpy(batch.good)
        bad += batch.bad
        start = end
    return images, torch.nonzero(good)[:, 0], bad
