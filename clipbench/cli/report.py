"""`clipbench report` and `clipbench site`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Annotated

from clipbench.catalog import Catalog
from clipbench.cli.inputs import open_catalog
from clipbench.cli.options import Cards, Force, Json, Plugins, Results, option
from clipbench.cli.output import note
from clipbench.errors import ClipbenchError, unknown
from clipbench.records import store
from clipbench.report import dataframe, export, hollow, leaderboard, robustness, site, table
from clipbench.report.sections import ranks_of, sections
from clipbench.utils.escape import json_text, visible
from clipbench.utils.outputs import PNG_MARK, write_own

FORMATS = (*table.SECTION_FORMATS, *table.ROW_FORMATS)


def report_command(
    results: Results = Path("results"),
    suite: Annotated[
        str | None,
        option("--suite", "Show only this suite's tasks; those without a record are shown as –.", "SUITE"),
    ] = None,
    format_: Annotated[str, option("--format -f", "Format of the output.", "|".join(FORMATS))] = "terminal",
    write: Annotated[bool, option("--write", "Write LEADERBOARD.md into the folder of the records.")] = False,
    check: Annotated[bool, option("--check", "Fail unless LEADERBOARD.md is current.")] = False,
    published: Annotated[
        bool,
        option(
            "--published", "Also list what others published of the suite for models not measured here (○)."
        ),
    ] = False,
    beside: Annotated[
        list[Path] | None,
        option(
            "--beside",
            "Also show scores that CLIP_benchmark or mteb wrote: a .json or .csv, or a folder of them; repeatable.",
            "PATH",
        ),
    ] = None,
    force: Force = False,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show records as model × task tables beside the papers' numbers."""
    format_ = "json" if as_json else format_
    if format_ not in FORMATS:
        raise ClipbenchError(unknown("format", format_, FORMATS))
    if (write or check) and (suite is not None or beside):
        raise ClipbenchError(
            "LEADERBOARD.md has every suite and our records alone",
            hint="leave --suite and --beside out, or --write and --check",
        )
    if published and (suite is None or format_ == "latex"):
        raise ClipbenchError(
            "--published lists a suite's numbers, in any format but latex",
            hint="clipbench report --suite datacomp-38 --published",
        )
    catalog = open_catalog(cards, plugins)
    if suite is not None:
        catalog.suite(suite)
    rows = dataframe.read(results, catalog, primary=format_ in table.SECTION_FORMATS or write or check)
    theirs, notes = export.beside(beside or (), catalog)
    rows += theirs
    for text in notes:
        note("\n".join(wrap(text, 80, subsequent_indent="  ", break_on_hyphens=False)))
    if write:
        text = leaderboard.leaderboard(rows, catalog)
        write_own(results / leaderboard.LEADERBOARD, text.encode(), leaderboard.MARK, force=force)
        note(f"wrote {results / leaderboard.LEADERBOARD}")
    elif check:
        leaderboard.check(results, leaderboard.leaderboard(rows, catalog))
        note(f"{results / leaderboard.LEADERBOARD} is current")
    elif format_ in table.SECTION_FORMATS:
        sys.stdout.write(table.SECTION_FORMATS[format_](sections(rows, catalog, suite)))
        if published and suite is not None:
            sys.stdout.write(hollow.FORMATS[format_](_published(results, catalog, suite)))
    else:
        if suite is not None:
            rows = dataframe.of_tasks(rows, [task.id for task in catalog.tasks([suite])])
        found = ranks_of(rows, catalog, suite)
        if published and suite is not None:
            rows += hollow.rows(_published(results, catalog, suite))
        sys.stdout.write(table.ROW_FORMATS[format_](rows, found))


def _published(results: Path, catalog: Catalog, suite: str) -> hollow.Table:
    """What others published of a suite, without the models that have a record of it here."""
    tasks = {task.id for task in catalog.tasks([suite])}
    records = (one.record for one in store.read_all(results))
    return hollow.table(catalog, suite, [one.cards.model for one in records if one.task in tasks])


def robustness_command(
    results: Results = Path("results"),
    line: Annotated[
        str,
        option(
            "--line",
            "Hold models against those trained on ImageNet alone, or against a line through the models measured here.",
            "standard|measured",
        ),
    ] = "standard",
    plot: Annotated[Path | None, option("--plot", "Also draw it into this file.", "PNG")] = None,
    force: Force = False,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show how far models lie above the line on ImageNet's shifts."""
    lines: tuple[robustness.Line, ...] = ("standard", "measured")
    chosen = next((one for one in lines if one == line), None)
    if chosen is None:
        raise ClipbenchError(unknown("line", line, lines))
    rows = dataframe.read(results, open_catalog(cards, plugins))
    found = robustness.measured([row for row in rows if not row.kept_off or row.kept_off == "dirty"], chosen)
    if plot is not None:
        write_own(plot, robustness.plot(found, chosen), PNG_MARK, force=force)
        note(f"wrote {plot}")
    if as_json:
        print(json_text([asdict(one) for one in found]))
    else:
        sys.stdout.write(robustness.text(found, chosen))


def site_command(
    results: Results = Path("results"),
    out: Annotated[Path, option("--out -o", "Folder to write the page into.", "DIR")] = Path("site"),
    force: Force = False,
    cards: Cards = None,
    plugins: Plugins = None,
) -> None:
    """Write all records as one HTML page that opens from a file.

    It has the leaderboard, charts, and a page for each model and task.
    """
    text = site.build(results, open_catalog(cards, plugins))
    path = visible(str(site.write(text, out, force=force)))
    print(f"{path}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser, no server is needed")
