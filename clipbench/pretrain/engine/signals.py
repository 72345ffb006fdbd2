"""Signals that ask a run to end: it finishes its step, saves, and goes on another day."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_ASKING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """A context in which SIGTERM and SIGINT are noted; a second one does what it does outside.

    Attributes:
        asked: number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        """Signals are noted from here on, if this is the main thread: no other one may set handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
