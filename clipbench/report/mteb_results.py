"""Results of mteb as rows beside ours, where one of its tasks measures what one of ours does (`mteb_tasks.yaml`).

A file of mteb's (`results/<model>/<revision>/<task>.json`, mteb 1.11 and later) holds values of one task by split and
subset. Its model stands in `model_meta.json` beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from clipbench.cards.base import Strict, Tuple
from clipbench.cards.strict_yaml import Document, parse
from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.report.dataframe import Row
from clipbench.utils.parsing import MOST_JSON, Unreadable, file_bytes, json_value

META: Final = "model_meta.json"
_SPLIT, _SUBSET = "test", "default"
_MEAN: Final = "mean_recall"


class Same(Strict):
    """A task of mteb that measures what `task` does; `metrics`: ours → names of theirs."""

    task: str
    metrics: dict[str, Tuple[str]]
    differs: str


class Tasks(Strict):
    """mteb's tasks on data sets that have a card here: those that measure the same, and why others do not."""

    same: dict[str, Same]
    other: dict[str, str]


class Found(NamedTuple):
    """What one file says. `scores`: split → values by metric, one mapping a subset."""

    path: Path
    model: str
    revision: str
    task: str
    scores: dict[str, list[dict[str, Any]]]


@cache
def tasks() -> Tasks:
    """The table of correspondences."""
    return parse(Tasks, Document(Path(__file__).with_name("mteb_tasks.yaml")))


def read(path: Path) -> Found | None:
    """What a file says; None where it is none of mteb's.

    Raises:
        DataError: it is one of mteb's, but not whole.
    """
    value = _json(path)
    if not isinstance(value, dict) or not isinstance(value.get("task_name"), str):
        return None
    scores = value.get("scores")
    whole = isinstance(scores, dict) and all(
        isinstance(subsets, list) and all(isinstance(one, dict) for one in subsets)
        for subsets in scores.values()
    )
    if not isinstance(scores, dict) or not whole:
        raise DataError(
            f"{path} is no result of mteb: its scores are no lists by split",
            hint="mteb 1.11 and later write such files",
        )
    experiment = path.parent.name if path.parent.parent.name == "experiments" else ""
    revision = path.parents[2] if experiment else path.parent
    meta = _json(path.with_name(META)) if path.with_name(META).is_file() else None
    name = meta.get("name") if isinstance(meta, dict) else None
    name = name if isinstance(name, str) else revision.parent.name.replace("__", "/")
    place = f"{revision.name}/{experiment}" if experiment else revision.name
    return Found(path, name, place, value["task_name"], scores)


def _json(path: Path) -> Any:
    """The value of a JSON file; None of one that is no JSON, which others name."""
    try:
        return json_value(file_bytes(path, MOST_JSON), nan=True)
    except (Unreadable, ValueError):
        return None


def rows(results: Sequence[Found], catalog: Catalog) -> tuple[list[Row], list[str]]:
    """Rows for tables beside ours, kept off the leaderboard, and what else there was, counted and named.

    A row is primary where its metric is our task's. The mean of recalls is taken here where a model has all of them, of
    captions and of images, for mteb keeps no such mean.

    Raises:
        DataError: two files have the same number, or one has something else than shares of 1.
    """
    known, labels = tasks(), _labels(results)
    found: dict[tuple[str, str], dict[str, tuple[float, Found]]] = {}
    aside: dict[str, list[str]] = {}
    for one in results:
        match = known.same.get(one.task)
        if match is None:
            why = known.other.get(one.task)
            reason = f"measure something else: {why}" if why else "have no counterpart here"
            aside.setdefault(reason, []).append(one.task)
            continue
        values, parts = _values(one, match)
        for part in parts:
            aside.setdefault("are of other splits or subsets", []).append(f"{one.task} {part}")
        if not values:
            lacking = ", ".join(names[0] for names in match.metrics.values())
            aside.setdefault(f"have no {lacking} of {_SPLIT}, {_SUBSET}", []).append(one.task)
            continue
        held = found.setdefault((labels[one.model, one.revision], match.task), {})
        for metric, value in values.items():
            if metric in held:
                raise DataError(
                    f"{one.path} and {held[metric][1].path} have the same: {metric} of {one.model} on {match.task}",
                    hint="name the folder of one of them",
                )
            held[metric] = value, one
    rows, shown, differs = [], 0, dict[str, list[str]]()
    for (label, task), held in found.items():
        own = _rows(label, task, held, catalog)
        files = {one.path: one.task for _, one in held.values()}
        if any(row.primary for row in own):
            shown += len(files)
            for name in files.values():
                differs.setdefault(known.same[name].differs, []).append(name)
        else:
            main = catalog.task(task).params.primary
            reason = f"are in --format csv and json alone, for they make no {main}, the metric of {task}"
            aside.setdefault(reason, []).extend(files.values())
        rows += own
    said = [f"mteb: {shown:,} result{'' if shown == 1 else 's'} shown beside ours, marked F"]
    said += [f"mteb: of {_named(names)}: {what}" for what, names in sorted(differs.items())]
    said += [
        f"mteb: {len(names):,} not shown, which {reason} ({_named(names)})"
        for reason, names in sorted(aside.items())
    ]
    return rows, said


def _named(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _labels(results: Iterable[Found]) -> dict[tuple[str, str], str]:
    """Model and revision → what tables call them: with the revision where there are several."""
    revisions: dict[str, set[str]] = {}
    for one in results:
        revisions.setdefault(one.model, set()).add(one.revision)
    labels = {}
    for model, own in revisions.items():
        for revision in own:
            commit, slash, experiment = revision.partition("/")
            place = f"@{commit[:8]}{slash}{experiment}" if len(own) > 1 else ""
            labels[model, revision] = f"{model}{place} (mteb)"
    return labels


def _values(one: Found, match: Same) -> tuple[dict[str, float], list[str]]:
    """Our metrics, and the splits and subsets that are not our task's."""
    values: dict[str, float] = {}
    parts = []
    for split, subsets in one.scores.items():
        for scores in subsets:
            if (split, scores.get("hf_subset", _SUBSET)) != (_SPLIT, _SUBSET):
                parts.append(f"[{split}, {scores.get('hf_subset')}]")
                continue
            for ours, theirs in match.metrics.items():
                name = next((name for name in theirs if scores.get(name) is not None), None)
                if name is not None:
                    values[ours] = _share(scores[name], f"{one.path}: {name}")
    return values, parts


def _share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{where} is {value!r}, no share of 1", hint="mteb writes fractions of 1")
    return float(value)


def _rows(label: str, task: str, held: dict[str, tuple[float, Found]], catalog: Catalog) -> list[Row]:
    """The rows of a model on a task, the primary metric first."""
    params = catalog.task(task).params
    dataset, protocol = catalog.task(task).dataset.id, catalog.task(task).protocol.id
    values = {metric: (value, f"its file of {one.task}", one) for metric, (value, one) in held.items()}
    recalls = [f"{way}_retrieval_recall@{k}" for way in ("text", "image") for k in getattr(params, "ks", ())]
    if params.primary == _MEAN and set(recalls) <= set(held):
        mean = sum(held[name][0] for name in recalls) / len(recalls)
        values = {_MEAN: (mean, f"the mean of {len(recalls)} recalls", held[recalls[0]][1]), **values}
    return [
        Row(
            model=label,
            task=task,
            dataset=dataset,
            protocol=protocol,
            metric=metric,
            primary=metric == params.primary,
            value=value,
            kept_off="foreign",
            why=f"foreign: mteb, {source}; {tasks().same[one.task].differs}",
        )
        for metric, (value, source, one) in values.items()
    ]
