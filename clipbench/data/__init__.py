"""Splits: an ordered list of samples with labels, read as a stream.

One loader a source; every one gives a `Split`. Images stay encoded bytes until the decoder needs them,
so a split of any size costs no memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One image as stored: `image` is the bytes of an encoded file (JPEG, PNG, WebP, …)."""

    id: str
    image: bytes


class Split(ABC):
    """An ordered set of samples with labels.

    Attributes:
        dataset, role: for example "cifar10", "test".
        fingerprint: sha256 (hex) of everything that decides the samples, their order and their labels.
        ids: one stable name a sample, in order.
        labels: int64 [n] class indices into the card's `classes`, or uint8 [n, C] for multi-label sets
            (0 absent, 1 present, 255 difficult).
        classes, templates: the names and prompts that go with the labels.
    """

    dataset: str
    role: str
    fingerprint: str
    ids: list[str]
    labels: NDArray[np.int64] | NDArray[np.uint8]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        """The samples at `rows` (ascending indices), read in one pass."""
