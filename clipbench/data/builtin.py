"""Data sets that come with an installed package, so that a first run needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipbench.data.split import Captions, Expressions, Sample, Split
from clipbench.errors import DataError, unknown

#: which of the 1,797 digits are for the test, a bit each: what scikit-learn's
#: `train_test_split(…, test_size=360, stratify=labels, random_state=0)` chose
_TEST: Final = (
    "AAAEiDUkEEAABkEAk0IFABoACAEAJAAoBiwSABAAlAoAkBkSBCD4oAKBEKAACAqIIEQVJElCQKAKAAAAQATYAACBgCAASAXEABBA"
    "CKAQAAVASAAwEAACDsQJAAIkhACDqAE8IKaYCgAAAAsIQAgEoBhIAgJAQcEAgARARoQ3aoECFgBEgABAQqCkGApQAIQLhWHGCBCA"
    "CABMgMAgBAaOAAEIggCBADgIA8AIGQAAEA4BAIQQoCEAMygpBMBEwIBoDgECgwCCAIgipkAsJAQhCKhggJCBoAwCggJCEgE4pBUA"
)
_ROLES = ("train", "test")

_SCENES: Final = {"train": 3_000, "test": 500}
_SIDE: Final = 32  # px of a scene
_CELL: Final = 16  # px of one of its four places
_MARGIN: Final = 1  # px, at least, from a digit's 8 × 8 pixels to the edge of its place
_PLACES: Final = ("top left", "top right", "bottom left", "bottom right")  # reading order
_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(eq=False)
class ArraySplit(Split):
    """A small split held in memory: `pixels`, uint8 [n, height, width] grey images, handed out as PNG bytes."""

    dataset: str
    role: str
    ids: list[str]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | NDArray[np.uint8]
    classes: tuple[str, ...]
    captions: Captions | None = None
    expressions: Expressions | None = None
    scattered = True

    def __post_init__(self) -> None:
        # Of the pixels, not of the PNG bytes, which change with the compression library.
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(repr(self.pixels.shape).encode())
        digest.update(self.pixels.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        if self.captions is not None:
            digest.update(json.dumps([self.captions.texts, self.captions.image.tolist()]).encode())
        if (of := self.expressions) is not None:
            digest.update(json.dumps([of.ids, of.texts, of.image.tolist(), of.boxes.tolist()]).encode())
        self.fingerprint = digest.hexdigest()

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        """The samples at `rows` (ascending indices), each a lossless 8-bit grey PNG."""
        for row in rows:
            yield Sample(self.ids[row], _png(self.pixels[row]))


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
    if role not in _ROLES:
        raise DataError(unknown("split of the built-in digits", role, _ROLES))
    if len(classes) != 10:
        raise DataError(
            f"the built-in digits have 10 classes, the card names {len(classes)}",
            hint="list the names of the digits 0 to 9 under classes, in that order",
        )
    table = np.loadtxt(_digits_file(), delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1], table[:, -1]
    chosen = np.unpackbits(np.frombuffer(base64.b64decode(_TEST), np.uint8), count=len(labels))
    rows = np.flatnonzero(chosen == (role == "test"))
    pixels = np.rint(images[rows].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    ids = [f"digits/{row:04d}" for row in rows]
    return ArraySplit("digits", role, ids, pixels, labels[rows], tuple(classes))


def _digits_file() -> Path:
    """Where scikit-learn keeps them: importing all of it, and SciPy with it, would take longer than to measure."""
    found = find_spec("sklearn")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")


def digits_scenes(role: str, classes: Sequence[str]) -> ArraySplit:
    """Scenes composed of two to four of the built-in digits, with exact captions, boxes and labels.

    A scene is 32×32 px, black, with a digit in two, three or four of its quarters: each one's 8×8 px as they are,
    at a random place at least 1 px from the quarter's edges, so that no two touch. `train` has 3,000 scenes of
    training digits, `test` 500 of test digits: no image of a digit is in both. How many, where, which images and
    the exact places are drawn from a generator of the split's own, all uniformly.

    The caption names digits and quarters in reading order: "a three at the top left, an eight at the bottom right".
    A scene whose caption the split already has is drawn again, so that a caption is true of one scene of its split
    alone. There is an expression ("the eight") for each digit that a scene shows once; its box is the smallest that
    holds all pixels of that digit that are not black. A label says whether the digit is there at all.

    Args, Raises: as `digits`.
    """
    source = digits(role, classes)
    count = _SCENES[role]
    rng = np.random.default_rng(_ROLES.index(role))
    pixels = np.zeros((count, _SIDE, _SIDE), dtype=np.uint8)
    labels = np.zeros((count, len(classes)), dtype=np.uint8)
    ids = [f"scenes/{role}/{scene:04d}" for scene in range(count)]
    captions: dict[str, None] = {}
    names, texts, owners, boxes = [], [], [], []
    while len(captions) < count:
        scene = len(captions)
        places = np.sort(rng.permutation(len(_PLACES))[: rng.integers(2, len(_PLACES) + 1)])
        rows = rng.integers(len(source), size=len(places))
        shown = source.labels[rows]
        caption = ", ".join(
            f"{'an' if _WORDS[digit] == 'eight' else 'a'} {_WORDS[digit]} at the {_PLACES[place]}"
            for digit, place in zip(shown, places, strict=True)
        )
        corners = _CELL * np.stack([places % 2, places // 2], axis=1)
        corners += rng.integers(_MARGIN, _CELL - 8 - _MARGIN + 1, size=corners.shape)
        if caption in captions:
            continue
        captions[caption] = None
        labels[scene, shown] = 1
        for digit, row, (x, y) in zip(shown, rows, corners, strict=True):
            image = source.pixels[row]
            pixels[scene, y : y + 8, x : x + 8] = image
            if np.count_nonzero(shown == digit) == 1:
                names.append(f"{ids[scene]}/{_WORDS[digit]}")
                texts.append(f"the {_WORDS[digit]}")
                owners.append(scene)
                boxes.append(np.array([x, y, x, y]) + _ink(image))
    return ArraySplit(
        "digits-scenes",
        role,
        ids,
        pixels,
        labels,
        tuple(classes),
        Captions(tuple(captions), np.arange(count)),
        Expressions(tuple(names), tuple(texts), np.array(owners), np.array(boxes, dtype=np.float64)),
    )


def _ink(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The smallest box, x0, y0, x1, y1, that holds all pixels that are not black."""
    y, x = np.nonzero(image)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


#: name (a task card's `source: {builtin: …}`) → loader of one split
BUILTINS: dict[str, Callable[[str, Sequence[str]], Split]] = {
    "digits": digits,
    "digits-scenes": digits_scenes,
}


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
