"""The leaderboard of a page: one row a model, one column a task, the primary metric in per cent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbench.catalog import Catalog
from clipbench.records.eligibility import Eligibility
from clipbench.records.record import Record
from clipbench.records.store import Stored
from clipbench.report import numbers
from clipbench.report.dataframe import Row, rows


@dataclass(frozen=True)
class SiteRecord:
    """A record with its scores, the primary one first."""

    path: Path
    record: Record
    rows: list[Row]

    @property
    def primary(self) -> Row:
        return self.rows[0]

    @property
    def stands(self) -> bool:
        """Whether it may stand on the leaderboard; `primary.why` says why not."""
        return not self.primary.kept_off


def site_records(stored: Sequence[Stored], catalog: Catalog) -> list[SiteRecord]:
    """The records of a folder, by model, then task, held against the cards of today."""
    reasons = Eligibility(catalog).reasons
    ordered = sorted(stored, key=lambda one: (one.record.model, one.record.task))
    return [SiteRecord(one.path, one.record, rows([one], reasons)) for one in ordered]


@dataclass(frozen=True)
class Cell:
    """One score as it is printed, and its interval."""

    value: str
    interval: str


@dataclass(frozen=True)
class Line:
    """One model's row: a cell a column, None where there is no record."""

    model: str
    title: str
    group: str
    pairs: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class Column:
    """One task, with the metric that stands for it."""

    task: str
    metric: str


def group_of(card: dict[str, Any]) -> str:
    """What a model is counted and coloured as: the method where its card tells several apart, else the family.

    >>> group_of({"family": "declip", "config": {"variant": "slip"}}), group_of({"family": "clip"})
    ('slip', 'clip')
    """
    config = card.get("config")
    variant = config.get("variant") if isinstance(config, dict) else None
    return str(variant or card.get("family") or "unknown")


def pairs_text(millions: float | None) -> str:
    """Training pairs as people write them.

    >>> pairs_text(400), pairs_text(15.388848), pairs_text(0.004437), pairs_text(2300), pairs_text(None)
    ('400 M', '15.4 M', '4.44 k', '2.3 B', '–')
    """
    if millions is None:
        return "–"
    for factor, unit in ((1e3, "B"), (1.0, "M"), (1e-3, "k")):
        if millions >= factor:
            return f"{millions / factor:.3g} {unit}"
    return f"{millions * 1e6:.0f}"


def columns(standing: Sequence[SiteRecord]) -> list[Column]:
    """The tasks that have a record, by name."""
    metric = {j.record.task: j.record.primary for j in standing}
    return [Column(task, metric[task]) for task in sorted(metric)]


def lines(standing: Sequence[SiteRecord], of: Sequence[Column]) -> list[Line]:
    """One row a model, by name."""
    by_model: dict[str, dict[str, SiteRecord]] = {}
    for one in standing:
        by_model.setdefault(one.record.model, {})[one.record.task] = one
    made = []
    for model, by_task in sorted(by_model.items()):
        card: dict[str, Any] = next(iter(by_task.values())).record.cards.model
        cells = [_cell(by_task[column.task].primary) if column.task in by_task else None for column in of]
        title, pairs = str(card.get("title", model)), pairs_text(card.get("training_pairs_m"))
        made.append(Line(model, title, group_of(card), pairs, cells))
    return made


def _cell(row: Row) -> Cell:
    assert row.value is not None
    assert row.low is not None
    assert row.high is not None
    interval = numbers.interval(row.value, row.low, row.high, row.metric)
    return Cell(numbers.number(row.value, row.metric), interval)
