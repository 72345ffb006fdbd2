"""What benchmarks measure on: real features of a model, or random ones of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipbench.data.open import open_split
from clipbench.errors import DataError
from clipbench.models import clip
from clipbench.models.adapter import ModelEntry
from clipbench.models.towers.open_clip import random_model
from clipbench.models.weights.open_clip import known_arch
from clipbench.solvers.selection import forget

if TYPE_CHECKING:
    from clipbench.cards.entry import Entry
    from clipbench.cards.task import TaskCard
    from clipbench.data.paths import DataPaths
    from clipbench.data.split import Split
    from clipbench.encoding.encoder import ModelEncoder

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

_ROWS = 16_384  # written at once
_DECAY = 0.5  # the i-th axis of random features has a standard deviation of i to the minus this
_APART = 4.0  # distance of class centres from the origin, in standard deviations of the samples around them


class Labelled(NamedTuple):
    """Training and test rows of one data set: features float [n, D], targets int64 [n] below `classes`."""

    train: NDArray[np.floating]
    train_targets: Ints
    test: NDArray[np.floating]
    test_targets: Ints
    classes: int


def random_clip(arch: str, folder: Path) -> ModelEntry:
    """open_clip's `arch` as a checkpoint file of random weights in `folder`. Raises CardError: no such architecture."""
    import torch

    known_arch(arch)
    checkpoint = folder / "random.pt"
    torch.manual_seed(0)
    torch.save(random_model(arch).state_dict(), checkpoint)
    return ModelEntry(arch, clip.of_file(arch, checkpoint, {}), folder)


def labelled(encoder: ModelEncoder, entry: Entry[TaskCard], paths: DataPaths) -> Labelled:
    """Backbone features of the splits train and test.

    Raises:
        ClipbenchError: as `open_split`, or an image that cannot be decoded.
    """
    train, test = (open_split(entry, role, paths) for role in ("train", "test"))
    return Labelled(
        np.asarray(encoder.images(train, "backbone")),
        train.labels.astype(np.int64),
        np.asarray(encoder.images(test, "backbone")),
        test.labels.astype(np.int64),
        len(entry.card.classes),
    )


def multi_label(
    encoder: ModelEncoder, entries: Sequence[Entry[TaskCard]], paths: DataPaths, rows: int | None = None
) -> tuple[Floats, NDArray[np.uint8]]:
    """Unit backbone features of the first splits of data sets, one behind the other, and their labels.

    Args:
        rows: so many of them, evenly spaced; None: all.

    Returns:
        Float32 [n, D] and uint8 [n, C]; difficult objects are absent, and of single-label sets each class is told
        from all others.

    Raises:
        DataError: the data sets have different classes.
        ClipbenchError: as `open_split`, or an image that cannot be decoded.
    """
    splits = [open_split(entry, next(iter(entry.card.splits)), paths) for entry in entries]
    labels = np.concatenate(_labels(splits)).astype(np.uint8)
    features = np.concatenate([np.asarray(encoder.images(split, "backbone")) for split in splits])
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    taken = np.linspace(0, len(labels) - 1, min(rows or len(labels), len(labels))).astype(np.int64)
    return features[taken], labels[taken]


def _labels(splits: Sequence[Split]) -> list[NDArray[np.bool_]]:
    first, *others = splits
    for other in others:
        if other.classes != first.classes:
            raise DataError(f"{first.dataset} and {other.dataset} have different classes")
    numbers = np.arange(len(first.classes))
    return [s.labels == 1 if s.labels.ndim == 2 else s.labels[:, None] == numbers for s in splits]


def random_labelled(folder: Path, rows: int, columns: int, classes: int) -> Labelled:
    """Random features, memory-mapped in `folder`: `rows` for training and a tenth as many for testing.

    Samples scatter round the centre of their class, and both round the origin, with a variance that falls with the
    number of the axis, much as those of a network's features do.
    """
    rng = np.random.default_rng(0)
    scale = np.arange(1, columns + 1, dtype=np.float32) ** -_DECAY
    centres = _APART / columns**0.5 * rng.standard_normal((classes, columns), dtype=np.float32)

    def write(name: str, count: int) -> tuple[Floats, Ints]:
        targets = rng.integers(0, classes, count)

        def samples(part: slice, noise: Floats) -> Floats:
            own: Floats = (centres[targets[part]] + noise) * scale
            return own

        return random_rows(folder / f"{name}.npy", (count, columns), rng, samples), targets

    return Labelled(*write("train", rows), *write("test", max(1, rows // 10)), classes)


def random_rows(
    path: Path, shape: tuple[int, int], rng: np.random.Generator, make: Callable[[slice, Floats], Floats]
) -> Floats:
    """Rows in a file, memory-mapped; `make` makes each block of them, by its place, of standard normal numbers."""
    count, width = shape
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, count, _ROWS):
        part = slice(start, min(start + _ROWS, count))
        written[part] = make(part, rng.standard_normal((part.stop - start, width), dtype=np.float32))
        forget(written)
    written.flush()
    found: Floats = np.load(path, mmap_mode="r")
    return found
