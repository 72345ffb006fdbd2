"""Training pairs: labelled images with class-name captions, decoded once and augmented in batches.

For sets that fit in memory: the decoded split is one uint8 tensor on the training device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipbench.cards import Affine, Preprocess, TaskCard
from clipbench.data import Split
from clipbench.data.decode import decode_stream, normalise
from clipbench.errors import CardError, DataError, unknown

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
_DECODE_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: float32 [B, channels, side, side], normalised.
        tokens: int64 [U, L], the distinct captions, cut at the longest one.
        rows: int64 [B]; the caption of image i is `tokens[rows[i]]`.
    """

    images: Tensor
    tokens: Tensor
    rows: Tensor


class PairsState(TypedDict):
    """Where a stream of batches stands: the generator, the epoch's order, and the place in it."""

    generator: Tensor
    order: Tensor
    cursor: int


class ClassCaptions:
    """Endless shuffled batches of (image, one of its class's captions).

    Every epoch is a new permutation of the split; its last, incomplete batch is left out. All draws (order,
    captions, augmentation) come from one CPU generator, so that they do not depend on the device.
    """

    def __init__(
        self,
        split: Split,
        texts: Sequence[Sequence[str]],
        preprocess: Preprocess,
        tokenize: Tokenize,
        *,
        batch_size: int,
        augment: Affine | None,
        seed: int,
        device: torch.device,
    ) -> None:
        """Decode and tokenise everything. `texts` holds the captions of each class (see `captions`).

        Raises:
            DataError: a multi-label split, fewer images than a batch, or an image that cannot be decoded.
        """
        if split.labels.ndim != 1:
            raise DataError(
                f"{split.dataset}: class captions need one label an image, this set is multi-label"
            )
        if len(split) < batch_size:
            raise DataError(
                f"{split.dataset} {split.role} has {len(split)} images, fewer than one batch of {batch_size}",
                hint="lower schedule.batch_size in the recipe",
            )
        self._preprocess = preprocess
        self._batch_size = batch_size
        self._augment = augment
        self._device = device
        self._images = decode_all(split, preprocess).to(device)
        self._labels = torch.from_numpy(split.labels.astype(np.int64))
        self._tokens, self._lengths = tokenize([text for own in texts for text in own])
        self._counts = torch.tensor([len(own) for own in texts])
        self._first = self._counts.cumsum(0) - self._counts
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(split), generator=self._generator)
        self._cursor = 0

    def next_batch(self) -> Batch:
        """The next batch, on the training device."""
        if self._cursor + self._batch_size > len(self._order):
            self._order = torch.randperm(len(self._order), generator=self._generator)
            self._cursor = 0
        chosen = self._order[self._cursor : self._cursor + self._batch_size]
        self._cursor += self._batch_size
        labels = self._labels[chosen]
        draws = torch.rand(len(chosen), generator=self._generator, dtype=torch.float64)
        drawn = self._first[labels] + (draws * self._counts[labels]).long()
        distinct, rows = torch.unique(drawn, return_inverse=True)
        tokens = self._tokens[distinct, : int(self._lengths[distinct].max())]
        images = self._images[chosen.to(self._device)]
        if self._augment:
            images = affine(images, self._augment, self._generator)
        return Batch(
            images=normalise(images, self._preprocess),
            tokens=tokens.to(self._device),
            rows=rows.to(self._device),
        )

    def state(self) -> PairsState:
        """What `restore` needs to go on exactly here."""
        return {"generator": self._generator.get_state(), "order": self._order, "cursor": self._cursor}

    def restore(self, state: PairsState) -> None:
        """Go on where `state` was taken."""
        self._generator.set_state(state["generator"])
        self._order = state["order"]
        self._cursor = state["cursor"]


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


def affine(images: Tensor, bounds: Affine, generator: torch.Generator) -> Tensor:
    """Each image rotated, shifted and scaled by draws of its own; bilinear, black outside.

    Args:
        images: uint8 [B, channels, side, side], on any device.
        generator: a CPU generator; four numbers an image are drawn.

    Returns:
        uint8 [B, channels, side, side].
    """
    draws = torch.rand(len(images), 4, generator=generator) * 2 - 1
    angle = draws[:, 0] * math.radians(bounds.rotate)
    zoom = 1 / (1 + draws[:, 1] * bounds.scale)
    # Output coordinates run over [-1, 1], so a shift by a fraction of the side is twice that number.
    shift = draws[:, 2:] * (2 * bounds.shift)
    rows = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift[:, 0]], dim=1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]], dim=1),
        ],
        dim=1,
    ).to(images.device)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8)
