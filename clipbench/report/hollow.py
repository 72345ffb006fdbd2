"""Models of other people's tables below the measured ones: hollow, without interval or rank (`report --published`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from clipbench.catalog import Catalog
from clipbench.protocols import registry
from clipbench.records import published
from clipbench.records.published import SOURCES, Published
from clipbench.report.dataframe import Row
from clipbench.report.table import DASH, aligned, as_printed, folded, markdown_table

HOLLOW: Final = "○"
_DIFFERS: Final = "*"
_ALL: Final = "every number: --format markdown, csv or json"


class Hollow(NamedTuple):
    """A published model: its numbers by task, and their mean over all of the suite, where it has that, in per cent."""

    name: str
    numbers: dict[str, Published]
    mean: float | None

    @property
    def differing(self) -> int:
        """How many of its numbers are of other prompts or another copy of the data."""
        return sum(bool(one.differs) for one in self.numbers.values())


class Table(NamedTuple):
    """The published models of a suite that were not measured here, those with a mean first, the best on top."""

    tasks: tuple[str, ...]
    models: tuple[Hollow, ...]


def averaged(catalog: Catalog, suite: str) -> dict[str, str]:
    """Task → main metric of a suite that has a mean, of shares of 1 that more of is better; empty for others."""
    if catalog.suite(suite).mean == "none":
        return {}
    metrics = _metrics(catalog, suite)
    return {} if any(registry.metric(one).less_is_better for one in metrics.values()) else metrics


def table(catalog: Catalog, suite: str, measured: Iterable[Mapping[str, Any]]) -> Table:
    """What is published of a suite's tasks, by their main metrics.

    Args:
        measured: cards of the models that were measured on it, as records have them: they are left out.
    """
    keys = {published.ident(*key) for key in map(published.named, measured) if key}
    metrics, of_mean = _metrics(catalog, suite), list(averaged(catalog, suite))
    found = [
        Hollow("@".join(key), numbers, published.mean(numbers, of_mean))
        for key, numbers in published.shown(metrics).items()
        if key not in keys
    ]
    first = next(iter(metrics))

    def place(one: Hollow) -> tuple[bool, float, float, str]:
        value = one.numbers[first].percent if first in one.numbers else -1.0
        return one.mean is None, -(one.mean or 0.0), -value, one.name

    return Table(tuple(metrics), tuple(sorted(found, key=place)))


def rows(of: Table) -> list[Row]:
    """One a number: `reported_percent` without a value; `kept_off` is "published", `why` says how it differs."""
    return [
        Row(
            model=f"published:{one.name}",
            task=task,
            metric=number.metric,
            reported_percent=number.percent,
            reported_confidence="primary",
            reported_source=SOURCES[number.source],
            kept_off="published",
            why=number.differs,
        )
        for one in of.models
        for task, number in one.numbers.items()
    ]


def terminal(of: Table) -> str:
    """One line a model: how many of the tasks it has, its number on the first of them, its mean."""
    if not of.models:
        return f"\n{HOLLOW} nothing is published of other models on these tasks\n"
    first = of.tasks[0]
    lines = [
        [f"{HOLLOW} {one.name}", f"{len(one.numbers)}/{len(of.tasks)}", _cell(one, first), _mean(one)]
        for one in of.models
    ]
    text = aligned(["model", "tasks", "first", "mean"], lines, left={0})
    return f"\n{text}\n" + folded([*_legend(of), f"first: {first}", _ALL])


def markdown(of: Table) -> str:
    """The model × task table."""
    if not of.models:
        return ""
    cells = [
        [f"{HOLLOW} {one.name}", *(_cell(one, task) for task in of.tasks), _mean(one)] for one in of.models
    ]
    text = "\nPublished, not measured here:\n\n"
    text += markdown_table(["model", *of.tasks, "mean"], "l" + "r" * (len(of.tasks) + 1), cells)
    return text + "\n" + "".join(f"- {line}\n" for line in _legend(of))


def _metrics(catalog: Catalog, suite: str) -> dict[str, str]:
    return {task.id: str(getattr(task.params, "primary", "")) for task in catalog.tasks([suite])}


def _cell(one: Hollow, task: str) -> str:
    number = one.numbers.get(task)
    return DASH if number is None else as_printed(number.percent) + (_DIFFERS if number.differs else "")


def _mean(one: Hollow) -> str:
    return DASH if one.mean is None else f"{one.mean:.2f}" + (_DIFFERS if one.differing else "")


def _legend(of: Table) -> Sequence[str]:
    numbers = [number for one in of.models for number in one.numbers.values()]
    sources = dict.fromkeys(SOURCES[number.source] for number in numbers)
    differ: dict[str, list[str]] = {}
    for number in numbers:
        if number.differs and number.task not in differ.setdefault(number.differs, []):
            differ[number.differs].append(number.task)
    return [
        f"{HOLLOW} published, not measured here, in per cent: {'; '.join(sources)}; no interval, no rank",
        *(
            f"{_DIFFERS} {what}: {', '.join(tasks)}, and means that have them"
            for what, tasks in differ.items()
        ),
    ]


#: beside those of sections, by the format's name; LaTeX has none
FORMATS: Final = {"terminal": terminal, "markdown": markdown}
