"""`clipbench compare` and `clipbench gate`: one set of records against another."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clipbench.cli.inputs import names, open_catalog
from clipbench.cli.options import Cards, Force, Json, Plugins, Results, argument, number, option
from clipbench.cli.output import note
from clipbench.records import gate
from clipbench.records.comparison import compare
from clipbench.records.eligibility import Eligibility
from clipbench.report import comparison_table, gate_report
from clipbench.utils.escape import json_text
from clipbench.utils.outputs import write_own


def compare_command(
    first: Annotated[str, argument("A model that has records, a record file, or a folder of records.", "A")],
    second: Annotated[str, argument("The one that is held against it.", "B")],
    results: Results = Path("results"),
    suite: Annotated[str | None, option("--suite", "Compare on this suite's tasks only.", "SUITE")] = None,
    alpha: Annotated[
        float, number("--alpha", "How often chance may pass for a difference.", min=0, max=1, metavar="P")
    ] = 0.05,
    top: Annotated[int, number("--top", "How many classes and samples to name for each task.", min=0)] = 5,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Compare two models on the same samples.

    For each task: is B better than A, worse, or not distinguishable from it, and where do they disagree?
    """
    tasks = None
    catalog = open_catalog(cards, plugins)
    if suite is not None:
        catalog.suite(suite)
        tasks = [task.id for task in catalog.tasks([suite])]
    comparisons = compare(first, second, results, tasks, alpha, top, Eligibility(catalog))
    if as_json:
        print(json_text([one.as_json() for one in comparisons]))
    else:
        sys.stdout.write(comparison_table.text(comparisons, first, second, alpha))


def gate_command(
    candidate: Annotated[Path, option("--candidate", "Folder of the new records.", "DIR")],
    baseline: Annotated[
        Path, option("--baseline", "Folder of the records that they are held against.", "DIR")
    ] = Path("results"),
    max_drop: Annotated[
        float, number("--max-drop", "Percentage points that a score may fall.", min=0, metavar="POINTS")
    ] = 0.5,
    max_mean_drop: Annotated[
        float,
        number(
            "--max-mean-drop",
            "Percentage points that a model's mean over its tasks may fall.",
            min=0,
            metavar="POINTS",
        ),
    ] = 0.1,
    alpha: Annotated[
        float,
        number(
            "--alpha", "How often equal models may fail, over all tasks together.", min=0, max=1, metavar="P"
        ),
    ] = 0.05,
    require: Annotated[
        list[str] | None,
        option(
            "--require",
            "Suite or task that must have a record; repeatable, or separated by commas. "
            "[default: the baseline's tasks]",
            "TASK",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        option(
            "--model -m",
            "Judge only this model; repeatable, or separated by commas. [default: the baseline's models]",
            "MODEL",
        ),
    ] = None,
    junit: Annotated[
        Path | None, option("--junit", "Also write the verdict as JUnit XML into this file.", "XML")
    ] = None,
    force: Force = False,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Fail if a score dropped by more than is allowed: for CI.

    The exit code is 1 if a score dropped by more than is allowed and by more than noise explains, or if a record
    cannot be judged.
    """
    catalog = open_catalog(cards, plugins)
    checks = gate.gate(
        baseline,
        candidate,
        Eligibility(catalog),
        max_drop=max_drop,
        max_mean_drop=max_mean_drop,
        alpha=alpha,
        require=[task.id for task in catalog.tasks(names("--require", require))] if require else None,
        models=names("--model", model) if model else None,
    )
    text = gate_report.summary(checks, max_drop, max_mean_drop, alpha)
    if junit is not None:
        write_own(junit, gate_report.junit(checks), gate_report.JUNIT_MARK, force=force)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:  # the verdict counts, not where else it is told
            note(f"the summary cannot be written to {summary}: {error.strerror}")
    if as_json:
        print(json_text([check.as_json() for check in checks]))
    else:
        sys.stdout.write(text)
    if any(check.outcome == "fail" for check in checks):
        raise typer.Exit(1)
