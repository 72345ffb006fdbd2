"""Progress bars on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextlib.contextmanager
def progress_bar(
    label: str, total: int | None, show: bool = True, *, in_bytes: bool = False
) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr with rate and time left, where that is a terminal."""
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class Rate(rich.ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="cyan")

    counted = (rich.MofNCompleteColumn(), Rate())
    amount = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if in_bytes else counted
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(20), *amount, rich.TimeRemainingColumn())
    hidden = not show or not sys.stderr.isatty()
    with rich.Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        yield bar, bar.add_task(label, total=total)
