"""Tables of records: every score as a row, and four ways to print the rows.

`terminal`, `markdown`, `csv_text` and `json_text` render the rows of `clipbench.report.frame`. The first two show the
primary metric of each model × task in percent; the last two every score as a fraction of 1.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipbench.records import Record, Stored
from clipbench.report import frame
from clipbench.report.frame import Row

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

DASH: Final = "–"
_SECONDARY: Final = "†"
_MEMORY: Final = "‡"
_LEGEND: Final = {
    _SECONDARY: "reported number from a secondary source",
    _MEMORY: "reported number from memory, not verified",
    "L": "limited: a sample of the split, not all of it",
    "P": "partial: this copy of the data has fewer images than the split has",
    "D": "dirty: made with uncommitted changes to clipbench",
    "S": "some images could not be read and were skipped",
    "E": "edited by hand: what is written is not what was measured",
    "U": "unsealed: without a digest nothing tells an edit from a measurement",
    "O": "out of date: card, weights or protocol have changed since",
}


# ---------------------------------------------------------------------- cells


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _rank(rank: float) -> str:
    return f"{rank:,.1f}"


def _value(row: Row) -> str:
    if row.value is None or row.low is None or row.high is None:
        return DASH
    return f"{_percent(row.value)} ±{_percent((row.high - row.low) / 2)}"


def _source_mark(row: Row) -> str:
    if row.reported_confidence in (None, "primary"):
        return ""
    return _SECONDARY if row.reported_confidence == "secondary" else _MEMORY


def _reported_cell(row: Row) -> str:
    if row.reported_percent is None:
        return DASH
    return as_printed(row.reported_percent) + _source_mark(row)


def as_printed(percent: float) -> str:
    """A published percentage with the decimals of its source: papers print one, some two.

    >>> as_printed(74.0), as_printed(63.334)
    ('74.0', '63.33')
    """
    short = f"{percent:.1f}"
    return short if float(short) == percent else f"{percent:.2f}"


def _difference(row: Row) -> str:
    return DASH if row.difference_points is None else f"{row.difference_points:+.2f}"


def _marks(row: Row) -> str:
    held = {
        "L": row.limit is not None,
        "P": row.partial,
        "D": bool(row.dirty),
        "S": row.skipped > 0,
        "E": "edited" in row.kept_off,
        "U": "unsealed" in row.kept_off,
        "O": "stale" in row.kept_off,
    }
    return "".join(mark for mark, holds in held.items() if holds)


def _legend(shown: Sequence[Row]) -> list[str]:
    used = {mark for row in shown for mark in (_source_mark(row), *_marks(row))}
    return [f"{mark} {meaning}" for mark, meaning in _LEGEND.items() if mark in used]


_Column = tuple[str, Callable[[Row], str]]


def _columns(shown: Sequence[Row]) -> list[_Column]:
    """Heading and cell of the columns that have something to say about these rows."""
    columns: list[_Column] = [
        ("model", lambda row: row.model),
        ("task", lambda row: row.task),
        ("metric", lambda row: row.metric or DASH),
        ("value %", _value),
    ]
    if any(row.reported_percent is not None for row in shown):
        columns += [("reported", _reported_cell), ("Δ", _difference)]
    columns += [("n", lambda row: DASH if row.n is None else f"{row.n:,}")]
    if any(_marks(row) for row in shown):
        columns += [("", _marks)]
    return columns


# ------------------------------------------------------------------ renderers


def terminal(every: Sequence[Row]) -> RenderableType:
    """The primary metric of each model × task, in percent, for `rich` to print; fits 80 columns.

    Tasks stand indented under their model, which leaves both names the room to stay whole.
    """
    from rich.console import Group
    from rich.text import Text

    shown = [row for row in every if row.primary]
    numbers = _columns(shown)[2:]
    table = _rich_table(["model / task", *(heading for heading, _ in numbers)], left=("metric", ""))
    # rich would break the names first; a long metric reads well over two lines, an id does not.
    table.columns[1].max_width = 14
    for model, of_model in groupby(shown, key=lambda row: row.model):
        table.add_row(Text(model, style="bold"))
        for row in of_model:
            cells = [Text(cell(row)) for _, cell in numbers]
            # Spaces let a long metric name break between words.
            cells[0] = Text((row.metric or DASH).replace("_", " "))
            table.add_row(Text(f"  {row.task}"), *cells)
    return Group(table, *_notes(_legend(shown)))


def _rich_table(headings: Sequence[str], left: Sequence[str]) -> Table:
    """An empty table: the first column and those in `left` are text, the others numbers that never break."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        text = heading in (headings[0], *left)
        table.add_column(heading, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


def markdown(every: Sequence[Row]) -> str:
    """The table of `terminal` as GitHub markdown, its legend below."""
    shown = [row for row in every if row.primary]
    columns = _columns(shown)
    text = ("model", "task", "metric", "")
    lines = [
        [heading for heading, _ in columns],
        [":--" if heading in text else "--:" for heading, _ in columns],
        *([cell(row).replace("|", "\\|") for _, cell in columns] for row in shown),
    ]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    legend = "".join(f"- {line}\n" for line in _legend(shown))
    return f"{table}\n{legend}" if legend else table


def csv_text(every: Sequence[Row]) -> str:
    """Every score, one line each, under the field names of `Row`; empty cells for what is missing."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in every)
    return buffer.getvalue()


def json_text(every: Sequence[Row]) -> str:
    """Every score as a list of objects with the fields of `Row`; null for what is missing."""
    return json.dumps([asdict(row) for row in every], indent=2, ensure_ascii=False, allow_nan=False) + "\n"


#: the formats that are plain text, by their name on the command line
TEXT_FORMATS: Final[dict[str, Callable[[Sequence[Row]], str]]] = {
    "markdown": markdown,
    "csv": csv_text,
    "json": json_text,
}


def record_table(record: Record) -> RenderableType:
    """All scores of one record: value, 95 % interval and chance in percent (ranks as they are), n; primary first."""
    from rich.console import Group
    from rich.text import Text

    shown_as = frame.rows([Stored(Path(), record, "whole")])[0]
    table = _rich_table(["metric", "value %", "95 % interval", "chance", "n"], left=())
    for metric in frame.metrics_of(record):
        score = record.scores[metric]
        shown = _rank if metric.endswith("_rank") else _percent
        table.add_row(
            Text(metric, style="bold" if metric == record.primary else ""),
            shown(score.value),
            f"{shown(score.ci95[0])} … {shown(score.ci95[1])}",
            DASH if score.chance is None else shown(score.chance),
            f"{score.n:,}",
        )
    title = Text(f"{record.model} on {record.task}", style="bold")
    legend = [f"{mark} {_LEGEND[mark]}" for mark in _marks(shown_as)]
    return Group(title, table, *_notes([*legend, *_remarks(record)]))


def _remarks(record: Record) -> list[str]:
    """What a reader of a probe's number must know: its λ, an edge, and what did not converge."""
    evidence: Any = record.evidence
    said = []
    if "lambda" in evidence.get("chosen", {}):
        chosen, validation = evidence["chosen"], evidence["validation"]
        said.append(
            f"λ = {chosen['lambda']:.4g} (C = {chosen['C']:.4g}), the best of {len(evidence['curve'])} by "
            f"{validation['metric']} on {validation['n']:,} validation samples ({validation['source']})"
        )
        if chosen["edge"]:
            said.append(f"careful: {chosen['edge']}")
    if "std" in evidence:
        spread = evidence["std"][record.primary]
        draws = len(evidence["per_draw"][record.primary])
        said.append(f"mean of {draws} draws" + (f", standard deviation {100 * spread:.2f}" if spread else ""))
    if evidence.get("not_converged"):
        said.append(f"not converged: {'; '.join(map(_fit, evidence['not_converged']))}")
    return said


def _fit(which: Any) -> str:
    """A fit that did not converge: a probe's λ, or an SVM's class, cost and fold."""
    if not isinstance(which, dict):
        return f"λ = {which:.3g}"
    fold = "all folds" if which["fold"] is None else f"fold {which['fold']}"
    return f"{which['class']} at C = {which['C']:g}, {fold}"


def _notes(legend: Sequence[str]) -> list[Text]:
    from rich.text import Text

    return [Text(line, style="dim") for line in ("", *legend)] if legend else []
