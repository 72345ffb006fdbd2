"""`clipbench list` and `clipbench show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from clipbench.cli import output
from clipbench.cli.inputs import open_catalog
from clipbench.cli.options import Cards, Force, Json, Plugins, argument, option
from clipbench.errors import ClipbenchError, unknown
from clipbench.records import store
from clipbench.report import listing
from clipbench.report.plots import validation_curve
from clipbench.utils.escape import json_text
from clipbench.utils.outputs import PNG_MARK, write_own


def list_command(
    kind: Annotated[str, argument("models, tasks, suites or recipes.", "KIND")],
    suite: Annotated[
        str | None,
        option(
            "--suite", "List the tasks of this suite only, and where the data of each comes from.", "SUITE"
        ),
    ] = None,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """List the models, tasks, suites or recipes."""
    if kind not in listing.KINDS:
        raise ClipbenchError(unknown("kind", kind, listing.KINDS))
    if suite is not None and kind != "tasks":
        raise ClipbenchError("--suite goes with list tasks")
    catalog = open_catalog(cards, plugins)
    rows = listing.tasks(catalog, suite) if suite is not None else listing.KINDS[kind](catalog)
    if as_json:
        print(json_text(rows))
    elif suite is not None:
        output.show(listing.table([{key: row[key] for key in ("id", "metric", "data")} for row in rows]))
    else:
        output.show(listing.table(listing.with_variants(rows) if kind == "tasks" else rows))


def show_command(
    name: Annotated[
        str, argument("The id of a model, task, data set, suite or recipe, or a record file.", "NAME")
    ],
    plot: Annotated[
        Path | None, option("--plot", "Draw the record's validation curve into this file.", "PNG")
    ] = None,
    force: Force = False,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show one card with all its defaults, or one record."""
    if plot is not None:
        write_own(plot, validation_curve(store.read(Path(name)).record), PNG_MARK, force=force)
        output.note(f"wrote {plot}")
    value, view = listing.show(name, open_catalog(cards, plugins))
    if as_json:
        print(json_text(value))
    else:
        output.show(view)
