"""Splits of which a task measures some classes: which samples stay, in which order, and what is said of the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from clipbench.data.split import Note, Sample, Split, Subset, of_classes
from clipbench.errors import DataError


class Letters(Split):
    """Six samples of four classes, of which one has none."""

    dataset, role, fingerprint = "letters", "test", "f" * 64
    ids = tuple("abcdef")
    classes = ("cat", "dog", "cow", "hen")
    notes = (Note("other", "things", 1),)

    def __init__(self) -> None:
        self.labels = np.array([2, 0, 1, 0, 2, 1])
        self.groups = np.array(list("xyxyxy"), dtype=object)

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        for row in rows.tolist():
            yield Sample(self.ids[row], self.ids[row].encode())


def test_samples_of_other_classes_are_left_out_and_labels_are_places_in_the_set() -> None:
    whole = Letters()
    found = of_classes(whole, [(1,), (0,)], ("Hund", "Katze"))
    assert list(found.ids) == ["b", "c", "d", "f"]
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.classes == ("Hund", "Katze")
    assert [sample.image for sample in found.samples(np.array([0, 3]))] == [b"b", b"f"]
    assert found.groups is not None
    assert found.groups.tolist() == ["y", "x", "y", "y"]
    (note,) = [note for note in found.notes if note.kind == "other-classes"]
    assert (note.count, note.examples) == (2, ("cow",))
    assert str(note).startswith("2 samples left out, of 1 classes")
    assert whole.notes == (Note("other", "things", 1),)
    assert whole.labels.tolist() == [2, 0, 1, 0, 2, 1]
    assert found.fingerprint == Subset(whole, np.array([1, 2, 3, 5])).fingerprint
    assert isinstance(found, Subset)
    assert found.limited is False


def test_folded_classes_keep_their_samples() -> None:
    found = of_classes(Letters(), [(2, 1), (0,)], ("other", "cat"))
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 0]


def test_a_set_of_all_classes_is_the_same_split_by_other_names() -> None:
    """So its features are those of the whole, whichever was first."""
    whole = Letters()
    found = of_classes(whole, [(3,), (2,), (1,), (0,)], ("hen", "cow", "dog", "cat"))
    assert found.fingerprint == whole.fingerprint
    assert found.labels.tolist() == [1, 3, 2, 3, 1, 2]
    assert found.notes == whole.notes
    assert (whole.classes, whole.labels.tolist()) == (("cat", "dog", "cow", "hen"), [2, 0, 1, 0, 2, 1])


def test_a_set_without_samples_is_an_error() -> None:
    class Few(Letters):
        def __init__(self) -> None:
            super().__init__()
            self.labels = np.zeros(6, np.int64)

    with pytest.raises(
        DataError, match="letters: none of the 6 samples of the test split is of the 2 classes"
    ):
        of_classes(Few(), [(1,), (3,)], ("a", "b"))
