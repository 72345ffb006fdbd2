"""Published numbers on the page: rows of models that were not measured here, and what stands beside those that were.

One block, which is read when the reader asks for it. A number names its source by its place in `sources`, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipbench.catalog import Catalog
from clipbench.records import published
from clipbench.report.hollow import averaged
from clipbench.report.site.leaderboard import SiteRecord

Json = dict[str, Any]


def told(
    records: Sequence[SiteRecord],
    catalog: Catalog,
    number: Mapping[str, int],
    place: Mapping[str, int],
    suites: Sequence[Json],
) -> Json | None:
    """What is published of the page's tasks; None where that is nothing.

        sources  [source, how its numbers differ, or ""]
        models   [name, [task, per cent, source, task, …]] of models that were not measured here
        means    suite → place in `models` → [mean over all of it, how many of its numbers differ]
        beside   [model, task, per cent, source] of models that were

    Args:
        number, place: of tasks and models in the index.
        suites: of the index.
    """
    primary = {one.record.task: one.record.primary for one in records}
    of_mean = {suite["id"]: averaged(catalog, suite["id"]) for suite in suites}
    wanted = {task: metric for own in of_mean.values() for task, metric in own.items()}
    known = published.shown(wanted | primary)
    sources: dict[tuple[str, str], int] = {}

    def source(text: str, differs: str = "") -> int:
        return sources.setdefault((text, differs), len(sources))

    measured = set[tuple[str, str]]()
    beside: list[list[Any]] = []
    for one in records:
        key = published.named(one.record.cards.model)
        own = known.get(published.ident(*key), {}) if key else {}
        if key:
            measured.add(published.ident(*key))
        if not one.stands:
            continue
        row, where = one.primary, [place[one.record.model], number[one.record.task]]
        if row.reported_percent is not None:
            beside.append([*where, row.reported_percent, source(row.reported_source or "")])
        elif row.task in own:
            number_ = own[row.task]
            beside.append(
                [*where, number_.percent, source(published.SOURCES[number_.source], number_.differs)]
            )
    models: list[list[Any]] = []
    means: dict[str, dict[int, list[Any]]] = {}
    for key, own in known.items():
        if key in measured:
            continue
        cells = [
            part
            for task, one in own.items()
            if task in number
            for part in (number[task], one.percent, source(published.SOURCES[one.source], one.differs))
        ]
        whole = {name: published.mean(own, list(tasks)) for name, tasks in of_mean.items()}
        for name, value in whole.items():
            if value is not None:
                differ = sum(bool(own[task].differs) for task in of_mean[name])
                means.setdefault(name, {})[len(models)] = [round(value, 2), differ]
        if cells or any(value is not None for value in whole.values()):
            models.append(["@".join(key), cells])
    if not models and not beside:
        return None
    return {"sources": list(sources), "models": models, "means": means, "beside": beside}
