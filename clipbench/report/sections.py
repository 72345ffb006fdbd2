"""Rows as model × task tables, one a suite, with means that say what they cover, and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Final, Literal

from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.metrics.joint import summed
from clipbench.protocols import registry
from clipbench.records import alignment, store
from clipbench.records.comparison import MEAN
from clipbench.report import ranks
from clipbench.report.dataframe import Row
from clipbench.report.ranks import Ranks

_Z: Final = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Mean:
    """The mean of a model's primary scores in a suite.

    `value` is a fraction of 1; `low` and `high` are the ends of its 95 % interval, in which tasks of the same images
    are taken together; `covers` of the `of` tasks are in it.
    """

    value: float
    low: float
    high: float
    covers: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether every task is in it, without which it compares with no other model's."""
        return self.covers == self.of


@dataclass(frozen=True)
class Section:
    """Primary scores of some tasks.

    Attributes:
        suite: its id, or None for tasks that are in no suite.
        tasks: in the suite's order.
        rows: of primary scores, some for each task.
        dashes: whether a task that a model has no score of shows in lists.
        means: whether means over some of the tasks are given, over all of them only, or none.
    """

    suite: str | None
    title: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    dashes: bool = True
    means: Literal["any", "whole", "none"] = "any"

    @cached_property
    def cells(self) -> dict[str, dict[str, Row]]:
        """Model → task → row, by model."""
        found: dict[str, dict[str, Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.model):
            if row.value is not None:
                found.setdefault(row.model, {})[row.task] = row
        return found

    @cached_property
    def _no_share(self) -> set[str]:
        """Tasks whose primary metric is no share of 1 that more of is better."""
        return {
            row.task
            for row in self.rows
            if row.metric is not None and registry.metric(row.metric).less_is_better
        }

    def mean(self, model: str) -> Mean | None:
        """The mean of a model's scores; None where tasks share no suite or none has a share of 1 to average."""
        rows = [row for task, row in self.cells[model].items() if task not in self._no_share]
        values, by_images = [], dict[str, list[Row]]()
        for row in rows:
            if row.value is not None and row.low is not None and row.high is not None:
                values.append(row.value)
                by_images.setdefault(row.images or row.task, []).append(row)
        of = len([task for task in self.tasks if task not in self._no_share])
        k = len(values)
        if self.suite is None or not values or of < 2 or self.means == "none":
            return None
        if self.means == "whole" and k < of:
            return None
        value, half = math.fsum(values) / k, math.hypot(*map(_half_of_sum, by_images.values())) / k
        return Mean(value, max(0.0, value - half), min(1.0, value + half), k, of)

    def lacking(self, model: str) -> list[str]:
        """Tasks without a score of a model, where for that reason it has no mean."""
        if self.means != "whole":
            return []
        return [task for task in self.tasks if task not in self.cells[model] and task not in self._no_share]

    @cached_property
    def ranked(self) -> list[tuple[str, Mean | None]]:
        """Models with their means: those whose mean is whole first, the best on top, then the others by name."""
        found = [(model, self.mean(model)) for model in self.cells]

        def place(item: tuple[str, Mean | None]) -> tuple[bool, float, str]:
            model, mean = item
            whole = mean is not None and mean.whole
            return not whole, -mean.value if mean is not None and whole else 0.0, model

        return sorted(found, key=place)

    @cached_property
    def ranks(self) -> dict[str, Ranks]:
        """Ranks in the mean of models whose mean is whole, as `MEAN`; where there are no means, on each task.

        Only of what two models have.
        """
        if any(mean is not None for _, mean in self.ranked):
            tasks = [task for task in self.tasks if task not in self._no_share]
            whole = sorted(model for model, mean in self.ranked if mean is not None and mean.whole)
            entries = {MEAN: {model: [self.cells[model][task] for task in tasks] for model in whole}}
        else:
            entries = {
                task: {model: [own[task]] for model, own in self.cells.items() if task in own}
                for task in self.tasks
            }
        return {name: ranks.of(own) for name, own in entries.items() if len(own) > 1}

    def seen(self, model: str) -> bool:
        """Whether the model was trained on images of one of its tasks."""
        return any(row.seen for row in self.cells[model].values())


def _half_of_sum(rows: Sequence[Row]) -> float:
    """Half the width of the 95 % interval of the sum of scores on the same images.

    From what each image adds to all of them. Where that cannot be had (no per-sample file, or one that is not the
    record's, or a metric that is no sum over images), the scores count as if they rose and fell together wholly, which
    is too careful.
    """
    halves = [(row.high - row.low) / 2 for row in rows if row.low is not None and row.high is not None]
    if len(rows) == 1:
        return halves[0]
    parts = []
    for path in (Path(row.path or "") for row in rows):
        part = None
        if store.samples_path(path).is_file():
            with suppress(DataError):
                part = alignment.contributions(store.read(path))
        if part is None:
            return math.fsum(halves)
        parts.append(part)
    # No narrower than the intervals of the scores, which know more: of captions, of classes, of draws.
    alone = _Z * math.hypot(*(summed([part])[1] for part in parts))
    scale = max(1.0, math.hypot(*halves) / (alone or math.inf))
    return scale * _Z * summed(parts)[1]


def sections(every: Iterable[Row], catalog: Catalog, suite: str | None = None) -> list[Section]:
    """A section for each suite that lists tasks of its own and has two of them scored, or all for one model where the
    suite asks for that; last what is in none.

    Args:
        suite: this suite only, however little of it is scored.

    Raises:
        CardError: no suite has this name.
    """
    primary = [row for row in every if row.primary]
    if suite is not None:
        listed = catalog.suite(suite)
        tasks = [task.id for task in catalog.tasks([suite])]
        return [replace(_section(suite, listed.title, tasks, primary), means=listed.mean)]
    scored = {row.task for row in primary}
    found, left = [], set(scored)
    for name, listed in catalog.suites.items():
        if not set(listed.tasks) - set(catalog.suites):
            continue  # only suites of suites
        tasks = [task.id for task in catalog.tasks([name])]
        if listed.section == "whole" and not _whole(primary, tasks):
            continue
        if len(scored.intersection(tasks)) >= 2:
            found.append(replace(_section(name, listed.title, tasks, primary), means=listed.mean))
            left -= set(tasks)
    if left:
        title = "Other tasks" if found else "Tasks"
        found.append(replace(_section(None, title, sorted(left), primary), dashes=False))
    return found


def _whole(primary: Sequence[Row], tasks: Sequence[str]) -> bool:
    """Whether a model has a score on each of `tasks`."""
    of: dict[str, set[str]] = {}
    for row in primary:
        if row.value is not None:
            of.setdefault(row.model, set()).add(row.task)
    return any(own.issuperset(tasks) for own in of.values())


def ranks_of(every: Iterable[Row], catalog: Catalog, suite: str | None = None) -> dict[str, Ranks]:
    """Ranks on each task of which two models have a primary score, and as `MEAN` those in the mean over `suite`."""
    primary = [row for row in every if row.primary]
    found = _section(None, "", sorted({row.task for row in primary}), primary).ranks
    if suite is not None:
        (own,) = sections(primary, catalog, suite)
        found = found | {task: one for task, one in own.ranks.items() if task == MEAN}
    return found


def _section(suite: str | None, title: str, tasks: Sequence[str], primary: Sequence[Row]) -> Section:
    wanted = set(tasks)
    return Section(suite, title, tuple(tasks), tuple(row for row in primary if row.task in wanted))
