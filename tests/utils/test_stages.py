"""Stages of a process: each moment in one of them, and all of them together the whole time."""

from __future__ import annotations

import time

import pytest

from clipbench.utils import stages
from clipbench.utils.stages import Stages


class Clock:
    """A clock that moves when it is told to."""

    now = 10.0

    def __call__(self) -> float:
        return self.now


def test_each_moment_belongs_to_the_innermost_stage() -> None:
    clock = Clock()
    counted = Stages(8.0, clock)  # which began two seconds ago
    clock.now += 1
    counted.rest()
    with counted.stage("open"):
        clock.now += 2
        with counted.stage("hash"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert counted.taken() == {"start": 3, "open": 10, "hash": 4, "rest": 16}
    assert counted.taken() == {"rest": 0}


def test_a_stage_ends_by_an_error_and_what_is_taken_within_one_is_not_lost() -> None:
    clock = Clock()
    counted = Stages(clock.now, clock)
    counted.rest()

    @counted.stage("load")
    def fails() -> None:
        clock.now += 1
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    with counted.stage("write"):
        clock.now += 2
        assert counted.taken() == {"start": 0, "rest": 0, "load": 1, "write": 2}
        clock.now += 4
    clock.now += 8
    assert counted.taken() == {"write": 4, "rest": 8}


def test_this_process_began_before_now() -> None:
    assert time.perf_counter() - 24 * 3600 < stages._began() <= time.perf_counter()
