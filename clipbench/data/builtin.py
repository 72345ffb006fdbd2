"""Data sets that come with an installed package, so that a first run needs no network."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipbench.data import Sample, Split
from clipbench.errors import DataError, unknown

_TEST_IMAGES = 360
_ROLES = ("train", "test")


class ArraySplit(Split):
    """A small split held in memory: uint8 [n, height, width] grey images, handed out as PNG bytes."""

    def __init__(
        self,
        dataset: str,
        role: str,
        ids: list[str],
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: tuple[str, ...],
    ) -> None:
        self.dataset = dataset
        self.role = role
        self.ids = ids
        self.labels = labels
        self.classes = classes
        self._pixels = pixels
        self.fingerprint = _fingerprint(ids, pixels, labels)

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        """The samples at `rows` (ascending indices), each a lossless 8-bit grey PNG."""
        for row in rows:
            yield Sample(self.ids[row], _png(self._pixels[row]))


def digits(role: str, classes: Sequence[str]) -> ArraySplit:
    """scikit-learn's 1,797 handwritten digits (8×8 px, from the UCI optical-recognition test set).

    A fixed stratified split: `train` has 1,437 images and `test` 360, in ascending original order, and the
    id "digits/0007" is the image's original index. The 17 grey levels 0..16 are spread over 0..255.

    Args:
        role: "train" or "test".
        classes: the task card's names of the digits 0 to 9, in that order.

    Raises:
        DataError: another role, or not ten classes.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if role not in _ROLES:
        raise DataError(unknown("split of the built-in digits", role, _ROLES))
    if len(classes) != 10:
        raise DataError(
            f"the built-in digits have 10 classes, the card names {len(classes)}",
            hint="list the names of the digits 0 to 9 under classes, in that order",
        )
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_IMAGES, stratify=labels, random_state=0
    )
    rows = np.sort(train if role == "train" else test)
    pixels = np.rint(images[rows].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    ids = [f"digits/{row:04d}" for row in rows]
    return ArraySplit("digits", role, ids, pixels, labels[rows].astype(np.int64), tuple(classes))


#: name (a task card's `source: {builtin: …}`) → loader of one split
BUILTINS: dict[str, Callable[[str, Sequence[str]], Split]] = {"digits": digits}


def _fingerprint(ids: list[str], pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    # Of the pixels, not of the PNG bytes, which change with the compression library.
    digest = hashlib.sha256("\n".join(ids).encode())
    digest.update(repr(pixels.shape).encode())
    digest.update(pixels.tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
