"""The live lines of a run: where it is, how fast, and every term of the loss."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_KEEP = 0.9  # of the smoothed rates, a step


class Live(Progress):
    """Two lines that fit 80 columns: the run, and below it the terms of the loss."""

    def __init__(self, console: Console, title: str, total: int, step: int, *, shown: bool) -> None:
        self._terms = ""  # read while the parent starts
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not shown,
        )
        name = title if len(title) <= 16 else f"{title[:15]}…"
        self._row = self.add_task(name, total=total, completed=step, said="")
        self._seconds = self._waited = self._weight = 0.0

    def report(
        self, step: int, terms: dict[str, float], scale: float, *, images: int, seconds: float, waited: float
    ) -> None:
        """What step `step` was like: its loss by terms, the logit scale, and of its seconds those waited for data."""
        self._weight = _KEEP * self._weight + 1 - _KEEP
        self._seconds = _KEEP * self._seconds + (1 - _KEEP) * seconds
        self._waited = _KEEP * self._waited + (1 - _KEEP) * waited
        rate = images * self._weight / self._seconds
        wait = 100 * self._waited / self._seconds
        said = f"{_short(rate)} img/s, wait {wait:.0f}%, {memory_gib():.1f} GiB"
        parts = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in terms.items()]
        self._terms = "  ".join([*parts, f"scale {scale:.1f}"])
        self.update(self._row, completed=step, said=said)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self._terms:
            yield Text(f"  {self._terms}", style="dim", overflow="ellipsis", no_wrap=True)


def memory_gib() -> float:
    """The most memory that the run has held: on its GPU, or else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return torch.cuda.max_memory_reserved() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}" if value < 10_000 else f"{value / 1000:.1f}k"
