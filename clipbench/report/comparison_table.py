"""What `clipbench compare` prints."""

from __future__ import annotations

from collections.abc import Sequence

from clipbench.records.comparison import Comparison, p_value
from clipbench.report import numbers
from clipbench.report.table import DASH, SEEN, aligned
from clipbench.utils.escape import visible


def text(comparisons: Sequence[Comparison], first: str, second: str, alpha: float) -> str:
    """A line a task: values, difference with its interval, p, verdict on the second; then where they differ most.

    Values and differences are in percent, ranks as they are; T marks a value of images that the model was trained on.
    """
    means = any(c.is_mean for c in comparisons)
    pairs = {(c.model, c.other) for c in comparisons}
    models = len(pairs) > 1 or comparisons[0].model == comparisons[0].other
    headings = ["task", "metric", first, second, "difference", "95 % interval", "p", f"{second} is"]
    rows = [[f"{c.model} {c.task}" if models else c.task, *_cells(c)] for c in comparisons]
    told = [
        line for c in comparisons for line in _disagreement(c, first, second, c.model if models else None)
    ]
    notes = [
        f"difference: {second} − {first}, in points; p: two-sided, adjusted for {_count(comparisons)} (Holm)",
        f"better or worse: p below {alpha:g}; the interval is of one comparison alone",
        *(["mean: images that tasks share count once; it may use up half of what p allows"] if means else []),
        *sorted({f"{c.task}: {c.method}" for c in comparisons if c.method}),
        *(
            f"{c.task}: {c.left_out:,} samples that only one of them has were left out"
            for c in comparisons
            if c.left_out
        ),
        *(
            f"{SEEN} {f'{c.model} {c.task}' if models else c.task}: {side} was trained on {seen}"
            for c in comparisons
            if not c.is_mean
            for side, seen in zip((first, second), c.seen, strict=True)
            if seen
        ),
    ]
    return (
        aligned(headings, rows, left={0, 1, 7})
        + "".join(f"\n{visible(line)}" for line in told)
        + ("\n" if told else "")
        + "\n"
        + "".join(f"{visible(line)}\n" for line in notes)
    )


def _count(comparisons: Sequence[Comparison]) -> str:
    tested = sum(c.p is not None for c in comparisons)
    return "1 comparison" if tested == 1 else f"{tested} comparisons"


def _cells(one: Comparison) -> list[str]:
    metric = one.metric.replace("_", " ")
    if one.first is None or one.second is None or one.difference is None or one.ci95 is None:
        return [metric, DASH, DASH, DASH, DASH, DASH, f"not comparable: {one.reason}"]
    return [
        metric,
        *(
            f"{numbers.number(value, one.metric)}{f' {SEEN}' if seen else ''}"
            for value, seen in zip((one.first, one.second), one.seen, strict=True)
        ),
        numbers.number(one.difference, one.metric, "+"),
        numbers.ends(*one.ci95, one.metric, "+"),
        DASH if one.p_adjusted is None else p_value(one.p_adjusted),
        one.verdict,
    ]


def _disagreement(one: Comparison, first: str, second: str, model: str | None) -> list[str]:
    """Where two models disagree most: classes, and samples that one alone gets right."""
    parts = []
    if one.classes:
        moved = ", ".join(f"{name} {100 * (b - a):+.1f}" for name, a, b in one.classes)
        parts.append(f"  classes: {moved}")
    for side, ids in ((first, one.only_first), (second, one.only_second)):
        if ids:
            parts.append(f"  {side} alone or more: {', '.join(ids)}")
    return [f"{model} {one.task}" if model else one.task, *parts] if parts else []
