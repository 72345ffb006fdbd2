"""`clipbench check`."""

from __future__ import annotations

from pathlib import Path

import typer

from clipbench.catalog import Catalog
from clipbench.cli.options import Cards, Json, Plugins, Results
from clipbench.cli.output import note, show
from clipbench.records.check import check
from clipbench.utils.escape import json_text
from clipbench.utils.plugins import add_all


def check_command(
    results: Results = Path("results"), cards: Cards = None, plugins: Plugins = None, as_json: Json = False
) -> None:
    """Check every card, shipped weights file and record.

    Every problem is named. The exit code is 2 if there is one.
    """
    add_all(plugins or ())
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
