"""`clipbench list` and `clipbench show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from clipbench.cli import output
from clipbench.cli.inputs import data_paths, open_catalog
from clipbench.cli.options import Cards, Data, Force, Json, Plugins, argument, option
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
    of_kind: Annotated[
        str | None,
        option(
            "--kind",
            "List the tasks of sets of this kind only: single-label, captions, choices, and so on.",
            "KIND",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        option("--protocol", "List the tasks of this protocol only: zs, lp, ret, and so on.", "ID"),
    ] = None,
    runnable: Annotated[
        bool, option("--runnable", "List only tasks whose data is on this machine; nothing is fetched.")
    ] = False,
    data: Data = None,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """List the models, tasks, suites or recipes."""
    if kind not in listing.KINDS:
        raise ClipbenchError(unknown("kind", kind, listing.KINDS))
    for flag, given in (("--suite", suite), ("--kind", of_kind), ("--protocol", protocol)):
        if given is not None and kind != "tasks":
            raise ClipbenchError(f"{flag} goes with list tasks")
    if runnable and kind != "tasks":
        raise ClipbenchError("--runnable goes with list tasks; list suites counts what is here")
    catalog = open_catalog(cards, plugins)
    paths = data_paths(data, catalog)
    if kind == "tasks":
        rows = listing.tasks(catalog, suite, of_kind, protocol, paths if runnable else None)
    elif kind == "suites":
        rows = listing.suites(catalog, paths)
    else:
        rows = listing.KINDS[kind](catalog)
    if as_json:
        print(json_text(rows))
    elif kind == "suites":
        output.show(listing.suites_table(rows))
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
