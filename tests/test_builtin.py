"""The built-in digits: the split never changes under its users."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from clipbench.data.builtin import BUILTINS, digits
from clipbench.errors import DataError

NAMES = tuple("0123456789")
FINGERPRINTS = {
    "train": "4f5766911e0e9a030ce4d4d8a55534af828478bb4c789319b6e6cfd61ed18552",
    "test": "76e695e522937b9955607fbcef3dab4e1e237c934c2507fc569adb4909100132",
}


@pytest.mark.parametrize("role", ["train", "test"])
def test_split_stays_what_it_is(role: str) -> None:
    assert digits(role, NAMES).fingerprint == FINGERPRINTS[role]


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
