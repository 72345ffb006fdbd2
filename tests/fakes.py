"""Stand-ins for what is slow or large: splits without images, and models that give features as they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import small
from numpy.typing import NDArray

from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.data.split import Sample, Split
from clipbench.models.adapter import Compared

Array = NDArray[np.float32]


def unit(rows: Array) -> Array:
    """Rows of unit length."""
    found: Array = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def card(folder: Path, classes: int = 10, **changes: Any) -> TaskCard:
    """A task card of `classes` classes with a linear probe, read from a file in `folder`."""
    fields: dict[str, Any] = {
        "classes": [f"c{i}" for i in range(classes)],
        "templates": {"default": ["{c}"]},
        "splits": {role: {"name": role} for role in ("train", "val", "test")},
        "protocols": {"lp": {}},
    }
    return parse(TaskCard, Document(small.write_task(folder, "fake", **fields | changes) / "fake.yaml"))


class FakeSplit(Split):
    """Labels without images; with `features`, what `FakeEncoder` gives of them."""

    def __init__(
        self,
        labels: NDArray[Any],
        classes: tuple[str, ...],
        *,
        dataset: str = "fake",
        role: str = "test",
        features: Array | None = None,
    ) -> None:
        self.dataset, self.role, self.fingerprint = dataset, role, role
        self.ids = [f"{role}{i}" for i in range(len(labels))]
        self.labels, self.classes, self.features = labels, classes, features

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        raise AssertionError("a protocol reads features, never images")


def given(role: str, features: Array, labels: NDArray[Any], classes: int) -> FakeSplit:
    """A split whose features are known."""
    names = tuple(f"c{i}" for i in range(classes))
    return FakeSplit(labels, names, dataset="digits", role=role, features=features)


class FakeEncoder:
    """Image features that are given, or those of the split; text features by a table; and what was asked for."""

    compared: Compared = "joint"
    token_width = None
    device = "cpu"

    def __init__(
        self, images: Array | None = None, texts: Mapping[str, Array] | None = None, logit_scale: float = 20.0
    ) -> None:
        self._images, self._texts, self.logit_scale = images, texts, logit_scale
        self.asked: list[str] = []
        self.spaces: set[str] = set()
        self.epochs: list[int] = []

    def images(self, split: Split, space: str = "joint") -> Array:
        self.spaces.add(space)
        if self._images is not None:
            assert space == "joint"
            return self._images
        assert isinstance(split, FakeSplit)
        assert split.features is not None
        return split.features

    def crops(self, split: Split, space: str, seed: int, epoch: int) -> Array:
        self.epochs.append(epoch)
        return self.images(split, space) + np.float32(epoch)

    def tracked(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda _: None)

    def texts(self, texts: list[str], space: str = "joint") -> Array:
        assert self._texts is not None, "this protocol reads no text"
        assert space == "joint"
        self.asked += texts
        return np.stack([self._texts[text] for text in texts])
