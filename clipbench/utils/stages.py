"""Where the time of this process goes: each moment belongs to one stage, so that stages add up to all of it.

A stage within another is taken out of it. What is in none is `start` (of the interpreter and of what it imports first)
until `rest` is called, and `rest` from then on. One thread alone, the one that calls, has stages.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class Stages:
    """The stages of a process that `began` at a time of `clock`, in seconds."""

    def __init__(self, began: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._since, self._clock = began, clock
        self._spent: dict[str, float] = {}
        self._open = ["start"]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens meanwhile belongs to the stage `name`."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def rest(self) -> None:
        """The process has started."""
        self._turn()
        self._open[0] = "rest"

    def taken(self) -> dict[str, float]:
        """Stage → seconds since the last call, in the order in which they came."""
        self._turn()
        spent, self._spent = self._spent, {}
        return spent

    def _turn(self) -> None:
        now = self._clock()
        name = self._open[-1]
        self._spent[name] = self._spent.get(name, 0.0) + now - self._since
        self._since = now


def _began() -> float:
    """When this process began, by `time.perf_counter`; where the system does not say, now."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = 0.0
    return time.perf_counter() - max(age, 0.0)


_OF_THIS_PROCESS = Stages(_began())
stage, rest, taken = _OF_THIS_PROCESS.stage, _OF_THIS_PROCESS.rest, _OF_THIS_PROCESS.taken
