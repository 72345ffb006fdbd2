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
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="cyan")

    console = Console(stderr=True)
    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), Rate())
    columns = (TextColumn("{task.description}"), BarColumn(20), *amount, TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not show or not sys.stderr.isatty()
    ) as bar:
        yield bar, bar.add_task(label, total=total)
