"""Samples of splits: which could be decoded, parts of them, and two sets as one."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import FakeEncoder, given

from clipbench.errors import DataError
from clipbench.protocols._samples import Samples

NAN = float("nan")


def samples(role: str, clusters: list[str] | None = None) -> Samples:
    """Two samples of three, since the second image could not be decoded."""
    split = given(
        role, np.array([[1, 2], [NAN, NAN], [3, 4]], dtype=np.float32), np.array([0, 1, 1]), classes=2
    )
    split.clusters = None if clusters is None else np.array(clusters, dtype=object)
    return Samples.of(split, FakeEncoder(), "joint")


def test_samples_are_those_that_could_be_decoded_with_their_clusters() -> None:
    found = samples("test", ["x", "y", "z"])
    assert (found.ids.tolist(), found.rows.tolist(), found.labels.tolist()) == (
        ["test0", "test2"],
        [0, 2],
        [0, 1],
    )
    assert np.asarray(found.features[:]).tolist() == [[1, 2], [3, 4]]
    assert found.clusters is not None
    assert found.clusters.tolist() == ["x", "z"]
    last = found.part(np.array([1]))
    assert (last.ids.tolist(), last.clusters is not None and last.clusters.tolist()) == (["test2"], ["z"])
    assert samples("test").part(np.array([1])).clusters is None


def test_no_sample_at_all_is_an_error() -> None:
    split = given("test", np.full((2, 3), NAN, dtype=np.float32), np.array([0, 1]), classes=2)
    with pytest.raises(DataError, match="none of the 2 images"):
        Samples.of(split, FakeEncoder(), "joint")


def test_two_sets_have_clusters_where_both_do() -> None:
    some, others, bare = samples("train", list("xyz")), samples("val", list("xuv")), samples("val")
    both = some.joined(others)
    assert both.ids.tolist() == ["train0", "train2", "val0", "val2"]
    assert np.asarray(both.features[:]).tolist() == [[1, 2], [3, 4]] * 2
    assert both.clusters is not None
    assert both.clusters.tolist() == ["x", "z", "x", "v"]
    assert some.joined(bare).clusters is bare.joined(some).clusters is bare.joined(bare).clusters is None
