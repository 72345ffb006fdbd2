"""What stands on the page, from records and cards: an index that is read at once, and blocks that are read when asked.

    index          models, tasks, suites, primary scores, and what papers report, for the leaderboard and its chart
    model/<i>      card and provenance of a model, every score of its records
    published      numbers of other people's tables, where they have some of these tasks (`published.py`)
    task/<j>       card, protocol text and parameters of a task
    curves/<i>     how a model's probes were chosen: penalty against validation score
    classes/<j>    per-class values of a task, all models
    picture/<k>    heat maps beside records, training curves of runs

Curves, classes and pictures are extras, which may be left out where the page would grow too large. Numbers are per
cent with two decimals (ranks: one); per-class values are whole thousandths.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from clipbench.catalog import Catalog
from clipbench.protocols import registry
from clipbench.records.comparison import MEAN
from clipbench.records.record import Record
from clipbench.report import numbers, ranks
from clipbench.report.dataframe import Row
from clipbench.report.sections import sections
from clipbench.report.site import pictures, published
from clipbench.report.site.blocks import packed
from clipbench.report.site.leaderboard import SiteRecord, group_of
from clipbench.report.table import rank_notes

_SHOWN_PROMPTS: Final = 100
#: keys of a task card that the page tells in another form, or not at all
_ELSEWHERE: Final = ("classes", "label_names", "templates", "protocols")
_HASH: Final = 12  # hex digits of a fingerprint that are shown

Json = dict[str, Any]


@dataclass(frozen=True)
class Content:
    """The index, the blocks that every page has, and the extras."""

    index: Json
    required: dict[str, str]
    extras: dict[str, str]


def gather(records: Sequence[SiteRecord], catalog: Catalog) -> Content:
    """Everything of `records` (by model, then task) that a page tells."""
    of_model: dict[str, list[SiteRecord]] = {}
    of_task: dict[str, list[SiteRecord]] = {task: [] for task in sorted({j.record.task for j in records})}
    for one in records:
        of_model.setdefault(one.record.model, []).append(one)
        of_task[one.record.task].append(one)
    place = {model: i for i, model in enumerate(of_model)}
    number = {task: j for j, task in enumerate(of_task)}
    required: dict[str, str] = {}
    extras: dict[str, str] = {}
    for model, own in of_model.items():
        i = place[model]
        shown: dict[str, str] = {}
        for one in own:
            _add_picture(extras, shown, one.record.task, pictures.contact_sheet(one.path))
        curves = {number[one.record.task]: _curves(one.record) for one in own}
        curves = {task: found for task, found in curves.items() if found}
        if curves:
            extras[f"curves/{i}"] = packed(curves)
        _add_picture(extras, shown, "", pictures.training_curves(model))
        required[f"model/{i}"] = packed(_model(own, number, shown, set(curves)))
    for task, own in of_task.items():
        j = number[task]
        required[f"task/{j}"] = packed(_task(own[0].record) | _ranks(own, place))
        classes = _classes(own, place)
        if classes:
            extras[f"classes/{j}"] = packed(classes)
    standing = [one.primary for one in records if one.stands]
    suites = _suites(catalog, number, standing)
    told = published.told(records, catalog, number, place, suites)
    if told is not None:
        required["published"] = packed(told)
    index = {
        "models": [_headline(own[0].record) for own in of_model.values()],
        "tasks": [_task_headline(own) for own in of_task.values()],
        "suites": suites,
        "scores": [[place[row.model], number[row.task], *_numbers(row)] for row in standing],
        "reported": _reported(catalog, records),
    }
    return Content(index, required, extras)


def _headline(record: Record) -> Json:
    card: Json = record.cards.model
    return {
        "id": record.model,
        "title": card.get("title", record.model),
        "group": group_of(card),
        "pairs": card.get("training_pairs_m"),
    }


def _task_headline(own: Sequence[SiteRecord]) -> Json:
    record = own[0].record
    dataset = record.task.partition("@")[0].rpartition("-")[0]
    return {
        "id": record.task,
        "title": record.cards.task.get("title", dataset),
        "metric": record.primary,
        "less": registry.metric(record.primary).less_is_better,
        "protocol": record.protocol.name,
        "versions": sorted({j.record.protocol.version for j in own}),
    }


def _suites(catalog: Catalog, number: dict[str, int], standing: Sequence[Row]) -> list[Json]:
    """The suites of which a task has a record: all its tasks, by number, None for those without; and by model the
    interval of the mean over all of them, and the rank in it."""
    found = []
    for name, suite in sorted(catalog.suites.items()):
        tasks = [number.get(task.id) for task in catalog.tasks([name])]
        if any(task is not None for task in tasks):
            (section,) = sections(standing, catalog, name)
            means = {
                model: numbers.interval(mean.value, mean.low, mean.high, None)
                for model, mean in section.ranked
                if mean is not None and mean.whole
            }
            own = {task: one for task, one in section.ranks.items() if task == MEAN}
            places = own[MEAN].ranks if own else {}
            told = {"means": means, "ranks": places, "rank_notes": rank_notes(own)}
            found.append({"id": name, "title": suite.title, "tasks": tasks, **told})
    return found


def _numbers(row: Row) -> list[float | None]:
    """Value, ends of the interval, n, chance, and what is reported."""
    return [
        *(_shown(v, row) for v in (row.value, row.low, row.high)),
        row.n,
        _shown(row.chance, row),
        row.reported_percent,
    ]


def _shown(value: float | None, row: Row) -> float | None:
    if value is None:
        return None
    return round(value, 1) if numbers.is_rank(row.metric) else round(100 * value, 2)


def _reported(catalog: Catalog, records: Sequence[SiteRecord]) -> list[list[Any]]:
    """Model, group, training pairs, task, metric, per cent and source of published primary scores that have no record.

    A task that nobody measured here counts by the metric that its card names as the main one.
    """
    measured = {(j.record.model, j.record.task) for j in records if j.stands}
    metric = {j.record.task: j.record.primary for j in records}
    known = set(catalog.task_ids())
    found: dict[tuple[str, str], list[Any]] = {}
    for name in catalog.readable(catalog.model_files, catalog.model):
        card = catalog.model(name).card
        if card.training_pairs_m is None:
            continue
        group = group_of(card.canonical())
        for r in card.reported:
            if r.task not in metric and r.task in known:
                metric[r.task] = str(getattr(catalog.task(r.task).params, "primary", ""))
            if metric.get(r.task) == r.metric and (name, r.task) not in measured:
                row = [name, group, card.training_pairs_m, r.task, r.metric, r.percent, r.source]
                if r.confidence == "primary" or (name, r.task) not in found:
                    found[name, r.task] = row
    return list(found.values())


def _model(
    own: Sequence[SiteRecord], number: dict[str, int], shown: dict[str, str], curves: set[int]
) -> Json:
    environments: list[Json] = []
    told = [_record(one, number[one.record.task], environments, shown) for one in own]
    for one in told:
        one["curve"] = one["task"] in curves
    card: Json = dict(own[0].record.cards.model)
    card.pop("reported", None)
    return {"card": card, "records": told, "environments": environments, "training": shown.get("")}


def _record(one: SiteRecord, task: int, environments: list[Json], shown: dict[str, str]) -> Json:
    record = one.record
    where: Json = {
        "python": record.env.python,
        "platform": record.env.platform,
        "device": record.device,
        "packages": record.env.packages,
    }
    if where not in environments:
        environments.append(where)
    return {
        "task": task,
        "path": f"{one.path.parent.name}/{one.path.name}",
        "off": one.primary.why,
        "scores": [_score(row) for row in one.rows],
        "version": record.protocol.version,
        "created": record.created,
        "commit": record.env.commit,
        "dirty": record.env.dirty,
        "seed": record.seed,
        "limit": record.limit,
        "partial": one.primary.partial,
        "skipped": len(record.skipped),
        "precision": record.precision,
        "seconds": round(record.timing.total_s, 1),
        "environment": environments.index(where),
        "fingerprints": {name: text[:_HASH] for name, text in record.fingerprints.items()},
        "picture": shown.get(record.task),
    }


def _score(row: Row) -> list[Any]:
    """Metric, numbers, and of what is reported the confidence, the source and the verdict."""
    return [row.metric, *_numbers(row), row.reported_confidence, row.reported_source, row.judgement]


def _task(record: Record) -> Json:
    card: Json = record.cards.task
    prompts = card.get("templates", {}).get(str(record.protocol.params.get("templates")))
    about, parameters = _protocol_text(record.protocol.name)
    return {
        "card": {k: v for k, v in card.items() if k not in _ELSEWHERE},
        "classes": len(card.get("classes", [])),
        "prompts": prompts[:_SHOWN_PROMPTS] if isinstance(prompts, list) else None,
        "about": about,
        "parameters": parameters,
        "params": record.protocol.params,
    }


def _ranks(own: Sequence[SiteRecord], models: dict[str, int]) -> Json:
    """Ranks on a task by model, and what to know of them; of the records that stand, where there are two."""
    standing = {one.record.model: [one.primary] for one in own if one.stands}
    if len(standing) < 2:
        return {"ranks": {}, "rank_notes": []}
    found = ranks.of(standing)
    notes = rank_notes({MEAN: found})
    return {"ranks": {models[model]: rank for model, rank in found.ranks.items()}, "rank_notes": notes}


def _protocol_text(name: str) -> tuple[str, str]:
    """What the protocol's module and its parameters say of themselves; empty where this clipbench has it not."""
    if name not in registry.protocol_ids():
        return "", ""
    params = registry.protocol(name).params
    return inspect.getdoc(inspect.getmodule(params)) or "", inspect.getdoc(params) or ""


def _curves(record: Record) -> list[Json]:
    """λ, validation score and whether it converged, of each curve of a probe, and the λ that it chose."""
    evidence: Any = record.evidence
    draws = evidence.get("draws", [evidence] if "curve" in evidence else [])
    found = []
    for draw in draws:
        chosen = draw["chosen"]
        kept = [chosen] if "lambda" in chosen else list(chosen.values())
        points = [[_at(p), round(100 * p["score"], 2), int(p["converged"])] for p in draw["curve"]]
        found.append({"points": points, "chosen": sorted(set(map(_at, kept)))})
    return found


def _at(point: Json) -> float:
    return float(f"{point['lambda']:.3g}")


def _classes(own: Sequence[SiteRecord], models: dict[str, int]) -> Json:
    """metric → {classes, values: model → one value a class} of the records that stand, in thousandths."""
    found: Json = {}
    for one in own:
        if not one.stands:
            continue
        for metric, values in one.record.per_class.items():
            table = found.setdefault(metric, {"classes": list(values), "values": {}})
            if list(values) == table["classes"]:
                rounded = [None if value is None else round(1000 * value) for value in values.values()]
                table["values"][models[one.record.model]] = rounded
    return found


def _add_picture(extras: dict[str, str], shown: dict[str, str], name: str, picture: Json | None) -> None:
    if picture is not None:
        key = f"picture/{len(extras)}"
        extras[key] = packed(picture)
        shown[name] = key
