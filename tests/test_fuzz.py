"""A little of the fuzzing that `make fuzz` does at length."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import TARGETS, bounded_memory, run


@pytest.mark.parametrize("name", TARGETS)
def test_no_changed_file_does_harm(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    for good in target.good:
        target.read(good)  # what is changed was read well before
    with bounded_memory():
        found = run(target, inputs=200, seed=1)
    assert found.faults == []
    assert 0 < found.refused < 200
