"""The built-in digits: the split never changes under its users."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipbench.catalog import Catalog
from clipbench.data.builtin import BUILTINS, ArraySplit, digits, digits_scenes
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.errors import DataError
from clipbench.evaluation import limited

NAMES = tuple("0123456789")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FINGERPRINTS = {
    "train": "4f5766911e0e9a030ce4d4d8a55534af828478bb4c789319b6e6cfd61ed18552",
    "test": "76e695e522937b9955607fbcef3dab4e1e237c934c2507fc569adb4909100132",
}


@pytest.mark.parametrize("role", ["train", "test"])
def test_split_stays_what_it_is(role: str) -> None:
    assert digits(role, NAMES).fingerprint == FINGERPRINTS[role]


SCENES = {
    "train": "842d47549f5770f007df030ee36b360bc8df6eec82351fe81731a8e20bbc0c58",
    "test": "a54aca193801085fdfb247adb5c79028353037fe4c33ce95e40c74848dec15b2",
}


def test_split_is_stratified_disjoint_and_whole() -> None:
    train, test = digits("train", NAMES), digits("test", NAMES)
    assert (len(train), len(test)) == (1437, 360)
    assert not set(train.ids) & set(test.ids)
    assert len(set(train.ids) | set(test.ids)) == 1797
    assert train.ids == sorted(train.ids)
    assert np.bincount(test.labels, minlength=10).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_samples_are_the_original_pixels() -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    test = digits("test", NAMES)
    rows = np.array([0, 7, 359])
    for row, sample in zip(rows, test.samples(rows), strict=True):
        index = int(sample.id.removeprefix("digits/"))
        assert sample.id == test.ids[row]
        image = np.asarray(Image.open(io.BytesIO(sample.image)))
        assert image.dtype == np.uint8
        assert np.abs(image * (16 / 255) - original.images[index]).max() < 0.04
        assert test.labels[row] == original.target[index]


def test_found_by_the_name_of_a_card() -> None:
    assert BUILTINS["digits"]("test", NAMES).classes == NAMES


def test_unknown_role() -> None:
    with pytest.raises(DataError, match='did you mean "train"'):
        digits("trian", NAMES)


def test_wrong_number_of_classes() -> None:
    with pytest.raises(DataError, match="10 classes, the card names 9"):
        digits("train", NAMES[:9])


# ------------------------------------------------------------------------ scenes


@pytest.fixture(scope="module", params=["train", "test"])
def scenes(request: pytest.FixtureRequest) -> ArraySplit:
    return digits_scenes(request.param, WORDS)


def quarters(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """The quarters of a scene that hold a digit, by their names, in reading order."""
    found = {
        f"{vertical} {horizontal}": image[y : y + 16, x : x + 16]
        for vertical, y in (("top", 0), ("bottom", 16))
        for horizontal, x in (("left", 0), ("right", 16))
    }
    return {place: part for place, part in found.items() if part.any()}


def test_scenes_stay_what_they_are(scenes: ArraySplit) -> None:
    assert scenes.fingerprint == SCENES[scenes.role]
    assert len(scenes) == {"train": 3000, "test": 500}[scenes.role] == len(set(scenes.ids))
    assert scenes.pixels.shape[1:] == (32, 32)


def test_captions_say_what_a_scene_shows_and_no_other_does(scenes: ArraySplit) -> None:
    assert scenes.captions is not None
    assert scenes.captions.image.tolist() == list(range(len(scenes)))
    assert len(set(scenes.captions.texts)) == len(scenes)
    # What a quarter shows is known from the digits themselves, by their pixels.
    source = digits(scenes.role, NAMES)
    known = {trimmed(image): int(label) for image, label in zip(source.pixels, source.labels, strict=True)}
    counts = np.zeros(5, dtype=int)
    for image, caption, label in zip(scenes.pixels, scenes.captions.texts, scenes.labels, strict=True):
        shown = {place: known[trimmed(part)] for place, part in quarters(image).items()}
        said = [
            f"{'an' if digit == 8 else 'a'} {WORDS[digit]} at the {place}" for place, digit in shown.items()
        ]
        assert caption == ", ".join(said)
        assert np.flatnonzero(label).tolist() == sorted(set(shown.values()))
        counts[len(shown)] += 1
    assert counts[:2].tolist() == [0, 0]
    assert (counts[2:] > len(scenes) / 6).all()


def trimmed(image: NDArray[np.uint8]) -> bytes:
    """The part of an image that is not black, as a key."""
    y, x = np.nonzero(image)
    part = image[y.min() : y.max() + 1, x.min() : x.max() + 1]
    return repr(part.shape).encode() + part.tobytes()


def test_no_digit_is_in_scenes_of_both_splits() -> None:
    train, test = ({trimmed(image) for image in digits(role, NAMES).pixels} for role in ("train", "test"))
    parts = [part for image in digits_scenes("test", WORDS).pixels for part in quarters(image).values()]
    assert all(trimmed(part) in test for part in parts)
    assert not train & test


def test_expressions_name_what_is_there_once_and_boxes_hold_all_of_it(scenes: ArraySplit) -> None:
    found = scenes.expressions
    assert found is not None
    assert scenes.captions is not None
    assert len(set(found.ids)) == len(found.ids)
    assert (np.diff(found.image) >= 0).all()
    expected = [
        f"the {word}"
        for caption in scenes.captions.texts
        for word in [part.split()[1] for part in caption.split(", ")]
        if caption.count(f" {word} ") == 1
    ]
    assert list(found.texts) == expected
    for text, image, box in zip(found.texts, found.image, found.boxes.astype(int), strict=True):
        caption = next(c for c in scenes.captions.texts[image].split(", ") if c.split()[1] == text[4:])
        part = quarters(scenes.pixels[image])[caption.partition(" at the ")[2]]
        x0, y0, x1, y1 = box
        inside = scenes.pixels[image, y0:y1, x0:x1]
        assert inside.astype(int).sum() == part.astype(int).sum()
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.any()


def test_the_card_of_scenes_has_labels_captions_and_expressions() -> None:
    dataset = Catalog().dataset("digits-scenes")
    assert (dataset.card.kind, dataset.card.also) == ("multi-label", ("captions", "expressions"))
    split = open_split(dataset, "test", DataPaths({}, ()))
    assert split.classes == tuple(WORDS)
    assert [task.id for task in Catalog().tasks(["digits-scenes-map"])] == ["digits-scenes-zs"]
    few = limited(split, 7, seed=0)
    assert few.captions is not None
    assert split.captions is not None
    assert few.captions.texts == tuple(split.captions.texts[split.ids.index(i)] for i in few.ids)


def test_the_test_split_of_the_digits_is_scikit_learns_stratified_one() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    _, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    assert digits("test", NAMES).ids == [f"digits/{row:04d}" for row in sorted(test)]
