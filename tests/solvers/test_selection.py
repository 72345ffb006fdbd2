"""Chosen rows of matrices: the same as copying them, without copying them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from clipbench.solvers.selection import Selection

A = np.arange(40, dtype=np.float32).reshape(10, 4)
B = 100 + np.arange(24, dtype=np.float32).reshape(6, 4)
ROWS = st.lists(st.integers(0, 9), unique=True).map(lambda r: np.array(sorted(r), dtype=np.int64))


@given(ROWS, st.lists(st.integers(0, 5), unique=True), st.integers(0, 20), st.integers(0, 20))
@example(np.arange(6), [0, 1, 2], 2, 8)  # from the middle of one matrix to that of the next
def test_slices_are_those_of_the_copied_rows(
    first: np.ndarray, second: list[int], start: int, stop: int
) -> None:
    other = np.array(second, dtype=np.int64)
    selection = Selection([(A, first), (B, other)])
    copied = np.concatenate([A[first], B[other]])
    assert selection.shape == copied.shape
    np.testing.assert_array_equal(selection[start:stop], copied[start:stop])


@given(st.lists(st.integers(0, 13), unique=True))
def test_part_of_a_selection_and_selections_joined(rows: list[int]) -> None:
    whole = Selection([(A, np.arange(1, 10))]).joined(Selection([(B, np.array([5, 0, 2, 3, 1]))]))
    copied = whole[0 : len(whole)]
    taken = np.array(sorted(rows), dtype=np.int64)
    part = whole.part(taken)
    np.testing.assert_array_equal(part[0 : len(part)], copied[taken])


def test_rows_of_a_memory_map_are_read(tmp_path: Path) -> None:
    A.tofile(tmp_path / "a.f32")
    mapped = np.memmap(tmp_path / "a.f32", np.float32, "r", shape=A.shape)
    np.testing.assert_array_equal(Selection([(mapped, np.array([2, 7]))])[0:2], A[[2, 7]])
