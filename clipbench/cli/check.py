"""`clipbench check`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from clipbench.catalog import Catalog
from clipbench.cli.options import Cards, Json, Plugins, Results, option
from clipbench.cli.output import note, show
from clipbench.data.pins import pins
from clipbench.records.check import check
from clipbench.utils.escape import json_text, visible
from clipbench.utils.plugins import add_all


def check_command(
    results: Results = Path("results"),
    hub: Annotated[
        bool,
        option(
            "--hub",
            "Ask the hub instead which data sets of cards are unpinned, have moved, or are gone (needs a network).",
        ),
    ] = False,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Check every card, shipped weights file and record.

    Every problem is named. The exit code is 2 if there is one.
    """
    add_all(plugins or ())
    if hub:
        _check_hub(Catalog(cards or ()), as_json=as_json)
        return
    found = check(Catalog(cards or ()), results)  # problems of cards are named among the others
    if as_json:
        print(json_text(found.counts | {"problems": found.problems}))
    else:
        for problem in found.problems:
            note(problem, "[bold red]✗[/]")
        counted = ", ".join(f"{count} {what}" for what, count in found.counts.items())
        verdict = f"{len(found.problems)} problems" if found.problems else "all well"
        show(f"checked {counted}: {verdict}")
    if found.problems:
        raise typer.Exit(2)


def _check_hub(catalog: Catalog, *, as_json: bool) -> None:
    """Print where each data set of the hub stands; exit code 2 where one is gone, or cannot be asked for."""
    names = catalog.readable(catalog.dataset_files, catalog.dataset)
    found = pins([catalog.dataset(name) for name in names])
    if as_json:
        print(json_text([asdict(one) for one in found]))
    else:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("data set", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for name in ("held", "hub has"):
            table.add_column(name, no_wrap=True)
        table.add_column("")
        order = ("gone", "failed", "gated", "moved", "unpinned", "recorded", "pinned")
        for one in sorted(found, key=lambda one: (order.index(one.state), one.dataset)):
            commits = [commit[:8] if commit else "–" for commit in (one.held, one.head)]
            table.add_row(one.dataset, one.state, *commits, visible(one.told))
        show(table)
        counts = Counter[str](one.state for one in found)
        show(
            ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
            or "no data set is from the hub"
        )
    if any(one.state in ("gone", "failed") for one in found):
        raise typer.Exit(2)
