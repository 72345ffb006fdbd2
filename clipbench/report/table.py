"""Tables of records, and five ways to print them.

`terminal`, `markdown` and `latex` show the sections of `clipbench.report.sections`: the primary metric of each
model × task, in percent. `csv_text` and `json_text` have every row of `clipbench.report.dataframe`, as a fraction of 1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

from clipbench.records.comparison import ALPHA, MEAN
from clipbench.records.record import Record
from clipbench.records.store import Stored
from clipbench.report import dataframe, numbers
from clipbench.report.dataframe import Row
from clipbench.report.ranks import POWER, Ranks
from clipbench.report.remarks import remarks
from clipbench.report.sections import Mean, Section
from clipbench.utils import escape
from clipbench.utils.escape import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

DASH: Final = "–"
#: marks a score of images that the model was trained on
SEEN: Final = "T"
_SECONDARY: Final = "†"
_MEMORY: Final = "‡"
_VERDICTS: Final = {"reproduced": "=", "within interval": "≈", "off": "≠"}
_VERDICT_LEGEND: Final = {
    "reproduced": f"reproduced: at most {dataframe.REPRODUCED} points from the reported number",
    "within interval": "within interval: the reported number lies in our 95 % interval",
    "off": "off: the reported number lies outside our 95 % interval",
}
_MEANS: Final = "mean: plain mean of k of the n tasks; only means of all n compare, and only they are ranked"
_RANKS: Final = (
    f"rank: 1 + how many models are better beyond noise (paired tests, p below {ALPHA:g} after Holm over all pairs); "
    "those that cannot be told apart share it"
)
_NAMED: Final = 3  # models without a rank, by name
_WIDTH: Final = 80  # of a terminal
_METRIC_WIDTH: Final = 14  # a long metric reads well over two lines
_LEGEND: Final = {
    _SECONDARY: "reported number from a secondary source",
    _MEMORY: "reported number from memory, not verified",
    "L": "limited: a sample of the split, not all of it",
    "P": "partial: this copy of the data has fewer images than the split has",
    "D": "dirty: made with uncommitted changes to clipbench",
    SEEN: "trained on: the model has seen images of this split",
    "S": "some images could not be read and were skipped",
    "E": "edited by hand: what is written is not what was measured",
    "U": "unsealed: without a digest nothing tells an edit from a measurement",
    "F": "foreign: read from another program's file, without interval or provenance",
    "O": "out of date: card, weights or protocol have changed since",
    "W": "weights unstated: the user's own code, which states no identity",
}


def _value(row: Row) -> str:
    """The value and its interval (`numbers.interval`), with a blank between."""
    if row.value is None:
        return DASH
    shown = numbers.number(row.value, row.metric)
    if row.low is None or row.high is None:
        return shown
    return f"{shown} {numbers.interval(row.value, row.low, row.high, row.metric)}"


def _mean_value(mean: Mean) -> str:
    return f"{numbers.number(mean.value, None)} {numbers.interval(mean.value, mean.low, mean.high, None)}"


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
    if row.difference_points is None:
        return DASH
    return f"{row.difference_points:+.2f} {_VERDICTS[row.verdict or 'off']}"


def _marks(row: Row) -> str:
    kept_off = row.kept_off
    held = {
        "L": row.limit is not None,
        "P": row.partial,
        "D": bool(row.dirty),
        SEEN: bool(row.seen),
        "S": row.skipped > 0,
        "E": "edited" in kept_off,
        "U": "unsealed" in kept_off,
        "F": "foreign" in kept_off,
        "O": "stale" in kept_off,
        "W": "unstated" in kept_off,
    }
    return "".join(mark for mark, holds in held.items() if holds)


def _legend(sections: Sequence[Section], *, signs: bool = False) -> list[str]:
    """What marks and verdicts mean that occur in these sections; with `signs`, verdicts by their signs."""
    shown = [row for section in sections for row in section.rows]
    marks = {mark for row in shown for mark in (_source_mark(row), *_marks(row))}
    verdicts = {row.verdict for row in shown}
    means = any(mean is not None for section in sections for _, mean in section.ranked)
    ranks = any(own.ranks for section in sections for own in section.ranks.values())
    return [
        *(f"{mark} {meaning}" for mark, meaning in _LEGEND.items() if mark in marks),
        *(
            f"{_VERDICTS[word]} {meaning}" if signs else meaning
            for word, meaning in _VERDICT_LEGEND.items()
            if word in verdicts
        ),
        *([_MEANS] if means else []),
        *([_RANKS] if ranks else []),
        *_refused(sections),
    ]


def _refused(sections: Sequence[Section]) -> list[str]:
    """Whose mean is refused, and for which tasks."""
    told = []
    for section in sections:
        for model in section.cells:
            if missing := section.lacking(model):
                shown = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
                count = f"{len(missing)} of {len(section.tasks)} tasks"
                told.append(f"no mean of {model}: {section.suite} lacks {count} ({shown})")
    return told


def rank_notes(ranks: Mapping[str, Ranks]) -> list[str]:
    """The smallest difference that would have been seen, and who has no rank and why; `found` is by task, or `MEAN`."""
    notes, seen, by_reason = [], [], dict[str, list[str]]()
    for task, own in ranks.items():
        of_task = "" if task == MEAN else f"{task} "
        if own.detectable is not None:
            low, high = (f"{100 * end:.2f}" for end in own.detectable)
            seen.append(f"{of_task}{low if low == high else f'{low} to {high}, by pair'}")
        for model, reason in own.left_out.items():
            by_reason.setdefault(reason, []).append(model if task == MEAN else f"{model} on {task}")
    if seen:
        notes.append(
            f"smallest difference that would have been seen {100 * POWER:.0f} % of the time, in points: "
            + "; ".join(seen)
        )
    for reason, names in by_reason.items():
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        notes.append(f"no rank for {', '.join(names[:_NAMED])}{more}: {reason}")
    return notes


def _rank_cell(section: Section, model: str, task: str = MEAN) -> str:
    """The rank in the mean, or on a task; nothing where none is given to any model."""
    own = section.ranks.get(task)
    return "" if own is None or not own.ranks else str(own.ranks.get(model, DASH))


def _seen_mark(section: Section, model: str) -> str:
    """The mark of a mean of which the model has seen images."""
    return SEEN if section.seen(model) else ""


def terminal(sections: Sequence[Section]) -> str:
    """The primary metric of each model × task, in percent, a table a section; fits 80 columns.

    Tasks stand indented under their model, which leaves both names the room to stay whole.
    """
    text = ""
    for section in sections:
        if len(sections) > 1:
            text += ("\n" if text else "") + f"{visible(_heading(section))}\n\n"
        text += _listing(section)
        notes = rank_notes(section.ranks)
        text += ("\n" if notes else "") + folded(notes)
    legend = _legend(sections, signs=True)
    return text + ("\n" if legend else "") + folded(legend)


def folded(lines: Sequence[str]) -> str:
    """Lines of text that fit a terminal; names stay whole."""
    return "".join(
        f"{part}\n" for line in lines for part in wrap(visible(line), _WIDTH, break_on_hyphens=False)
    )


def _heading(section: Section) -> str:
    return f"{section.title} ({section.suite})" if section.suite else section.title


def _listing(section: Section) -> str:
    """One section: models, and below each its tasks and their mean.

    Where a line would be too long, the ends of intervals stand below the values.
    """
    wide = _listed(section, below=False)
    return wide if max(map(len, wide.splitlines())) <= _WIDTH else _listed(section, below=True)


def _listed(section: Section, *, below: bool) -> str:
    reported = any(row.reported_percent is not None for row in section.rows)
    marked = any(_marks(row) for row in section.rows)
    ranked = any(own.ranks for own in section.ranks.values())
    headings = ["model / task", "metric", "value %", *(["reported", "Δ"] if reported else []), "n"]
    headings += ["rank"] if ranked else []
    lines: list[list[str]] = []
    for model, mean in section.ranked:
        lines.append([model])
        for task in section.tasks:
            row = section.cells[model].get(task)
            if row is None and not section.dashes:
                continue
            row = row or Row(model=model, task=task)
            beside = [_reported_cell(row), _difference(row)] if reported else []
            n = DASH if row.n is None else f"{row.n:,}"
            metric, *more = _wrapped(row.metric or DASH)
            value, *ends = _parted(_value(row), below)
            place = [_rank_cell(section, model, task)] if ranked else []
            lines.append([f"  {task}", metric, value, *beside, n, *place, _marks(row)])
            lines += [["", *pair] for pair in zip_longest(more, ends, fillvalue="")]
        if mean is not None:
            covered = f"  mean of {mean.covers}" + ("" if mean.whole else f" of {mean.of}")
            value, *ends = _parted(_mean_value(mean), below)
            blank = [""] * (len(headings) - 4)
            place = [*blank, _rank_cell(section, model), _seen_mark(section, model)] if ranked else []
            lines += [[covered, "", value, *place], *(["", "", part] for part in ends)]
    columns = [*headings, ""] if marked else headings
    return aligned(columns, [line[: len(columns)] for line in lines], left={0, 1, len(headings)})


def _parted(value: str, below: bool) -> list[str]:
    """A value, and what goes below it."""
    return value.split(" ", 1) if below and "(" in value else [value]


def aligned(headings: Sequence[str], lines: Sequence[Sequence[str]], left: set[int]) -> str:
    """Columns of plain text under a rule; those in `left` are text, the others numbers.

    The last cell of a line that is shorter than the others may reach over the columns after it.

    >>> print(aligned(["a", "n"], [["one", "10"], ["a long heading"], ["x", "5"]], left={0}), end="")
    a     n
    ──────────────
    one  10
    a long heading
    x     5
    """
    rows = [[visible(cell) for cell in row] for row in (headings, *lines)]
    widths = [max(len(row[i]) for row in rows if len(row) > max(i, 1)) for i in range(len(headings))]
    written = [_line(row, widths, left) for row in rows]
    rule = "─" * max(len(line) for line in written)
    return "\n".join([written[0], rule, *written[1:]]) + "\n"


@cache
def _wrapped(metric: str) -> list[str]:
    return wrap(metric.replace("_", " "), _METRIC_WIDTH)


def _line(cells: Sequence[str], widths: Sequence[int], left: set[int]) -> str:
    places = enumerate(zip(cells, widths, strict=False))
    return "  ".join(c.ljust(width) if i in left else c.rjust(width) for i, (c, width) in places).rstrip()


def markdown(sections: Sequence[Section]) -> str:
    """GitHub markdown: for each section a model × task table, and one of what papers report beside it."""
    text = ""
    for section in sections:
        text += f"\n## {escape.markdown(_heading(section))}\n\n"
        headings, rows = _matrix(section)
        text += markdown_table(headings, "l" + "r" * (len(headings) - 1), rows)
        text += "".join(f"\n{escape.markdown(note)}\n" for note in rank_notes(section.ranks))
        beside = [row for row in section.rows if row.reported_percent is not None]
        if beside:
            text += "\nBeside published numbers:\n\n"
            text += markdown_table(_BESIDE, "lllrrrll", (_beside(row) for row in beside))
    legend = _legend(sections)
    return text + ("\n" + "".join(f"- {line}\n" for line in legend) if legend else "")


_BESIDE: Final = ("model", "task", "metric", "value %", "reported", "Δ", "verdict", "source")


def _beside(row: Row) -> list[str]:
    points = row.difference_points
    cells = [row.model, row.task, row.metric or DASH, _value(row), _reported_cell(row)]
    difference = DASH if points is None else f"{points:+.2f}"
    return [*cells, difference, row.judgement or DASH, row.reported_source or ""]


def _matrix(section: Section) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the model × task table."""
    metrics: dict[str, str] = {row.task: row.metric or "" for row in section.rows if row.metric is not None}
    headings = ["model", *(f"{task} {metrics.get(task, '')}".strip() for task in section.tasks)]
    means = any(mean is not None for _, mean in section.ranked)
    ranked = means and any(own.ranks for own in section.ranks.values())
    rows = []
    for model, mean in section.ranked:
        own = section.cells[model]
        cells = [
            _marked(own[task], _rank_cell(section, model, task)) if task in own else DASH
            for task in section.tasks
        ]
        if means:
            cells.append(f"{_mean_value(mean)} ({mean.covers} of {mean.of})" if mean else DASH)
        rank = f"{_rank_cell(section, model)} {_seen_mark(section, model)}".strip()
        rows.append([model, *cells, *([rank] if ranked else [])])
    return [*headings, *(["mean"] if means else []), *(["rank"] if ranked else [])], rows


def _marked(row: Row, rank: str) -> str:
    """A value with its marks and, in tables without means, its rank."""
    marks = _marks(row)
    return f"{_value(row)}{f' {marks}' if marks else ''}{f', rank {rank}' if rank not in ('', DASH) else ''}"


def markdown_table(headings: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub markdown. `align` has a letter a column: l or r.

    >>> print(markdown_table(["a", "n"], "lr", [["x|y", "1"]]), end="")
    | a | n |
    | :-- | --: |
    | x\\|y | 1 |
    """
    marks = [":--" if letter == "l" else "--:" for letter in align]
    lines = [list(map(escape.markdown, headings)), marks, *(list(map(escape.markdown, row)) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(sections: Sequence[Section]) -> str:
    """A `tabular` a section, models in rows, for LaTeX with the package booktabs."""
    text = "% needs \\usepackage{booktabs}\n"
    for section in sections:
        headings, rows = _matrix(section)
        text += f"% {visible(_heading(section))}\n"
        text += f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}\n\\toprule\n"
        text += " & ".join(map(_tex, headings)) + " \\\\\n\\midrule\n"
        text += "".join(" & ".join(map(_tex, row)) + " \\\\\n" for row in rows)
        text += "\\bottomrule\n\\end{tabular}\n"
        text += "".join(f"% {visible(note)}\n" for note in rank_notes(section.ranks))
    return text + "".join(f"% {line}\n" for line in _legend(sections))


_TEX: Final = str.maketrans({"±": r"\,$\pm$\,", "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$"})


def _tex(cell: str) -> str:
    """A cell of LaTeX: what it holds as it is, and our own signs as LaTeX says them."""
    return escape.latex(cell.replace(" ±", "±")).translate(_TEX)


def csv_text(every: Sequence[Row], ranks: Mapping[str, Ranks]) -> str:
    """Every score, one line each, under the field names of `_ranked`; empty cells for what is missing."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*Row._fields, "rank", "suite_rank"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(escape.csv_row(_ranked(row, ranks)) for row in every)
    return buffer.getvalue()


def json_text(every: Sequence[Row], ranks: Mapping[str, Ranks]) -> str:
    """Every score as a list of objects with the fields of `_ranked`; null for what is missing."""
    return escape.json_text([_ranked(row, ranks) for row in every]) + "\n"


def _ranked(row: Row, ranks: Mapping[str, Ranks]) -> dict[str, Any]:
    """The fields of `Row`, and of primary scores `rank`, on the task, and `suite_rank`, in the mean over a suite.

    `ranks` are by task, or `MEAN`.
    """
    known = ranks if row.primary else {}
    rank, mean = (known[of].ranks.get(row.model) if of in known else None for of in (row.task, MEAN))
    return row._asdict() | {"rank": rank, "suite_rank": mean}


#: formats of sections, and of every row, by their name on the command line
SECTION_FORMATS: Final = {"terminal": terminal, "markdown": markdown, "latex": latex}
ROW_FORMATS: Final = {"csv": csv_text, "json": json_text}


def _rich_table(text: str, *numbers: str) -> Table:
    """An empty table: a column of text, and others of numbers, which never break."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(text, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", overflow="fold", no_wrap=True)
    return table


def record_table(record: Record) -> RenderableType:
    """All scores of one record: value, 95 % interval and chance in percent (ranks as they are), n; primary first."""
    from rich.console import Group
    from rich.text import Text

    shown_as = dataframe.rows([Stored(Path(), record, "whole")])[0]
    table = _rich_table("metric", "value %", "95 % interval", "chance", "n")
    for metric in dataframe.metrics_of(record):
        score = record.scores[metric]
        table.add_row(
            Text(metric, style="bold" if metric == record.primary else ""),
            numbers.number(score.value, metric),
            numbers.ends(*score.ci95, metric),
            DASH if score.chance is None else numbers.number(score.chance, metric),
            f"{score.n:,}",
        )
    title = Text(f"{record.model} on {record.task}", style="bold")
    notes = [*(f"{mark} {_LEGEND[mark]}" for mark in _marks(shown_as)), *remarks(record)]
    return Group(title, table, *(Text(line, style="dim") for line in (["", *notes] if notes else ())))


def stages_table(record: Record) -> RenderableType:
    """Where the time of the record's process went, most of it first; nothing for a record that does not say."""
    timing = record.timing
    if not timing.stages:
        return ""
    table = _rich_table("stage", "s", "%")
    longest = sorted(timing.stages.items(), key=lambda stage: -stage[1])
    for name, seconds in (*longest, ("total", timing.total_s)):
        table.add_row(name, f"{seconds:,.2f}", f"{100 * seconds / (timing.total_s or 1):.1f}")
    return table
