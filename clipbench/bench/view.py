"""How measurements are laid out for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Cells under their headings."""
    drawn = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def ratios(found: Mapping[str, float], spec: str) -> Table:
    """Ratios by name, each written by the format `spec`."""
    return table(("ratio", "value"), ([name, f"{value:{spec}}"] for name, value in found.items()))
