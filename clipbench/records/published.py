"""What other people's tables say of models that open_clip has: `model_cards/published.csv`, one number a line.

A line is keyed by open_clip's architecture and tag. `differs` says why a number there is none of the task's own: other
prompts, another copy of the data. Such numbers are shown, and nothing is judged by them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from clipbench.cards.model import Reported
from clipbench.utils.package import shipped as shipped_cards

#: source in the file → what it is, where it stands, at which commit, and when the file there last changed
SOURCES: Final = {
    "openclip": "open_clip, docs/openclip_results.csv (DataComp's evaluation; 89fb801, 2023-11-22)",
    "openclip-retrieval": "open_clip, docs/openclip_retrieval_results.csv (89fb801, 2023-11-22)",
    "clip_benchmark": "LAION CLIP_benchmark, benchmark.csv (half precision; 48de38c, 2022-12-21)",
}
_QUICK: Final = "-quickgelu"


class Published(NamedTuple):
    """One number of somebody's table, in per cent; `differs` says why it is none of the task's own, or is empty."""

    source: str
    architecture: str
    tag: str
    task: str
    metric: str
    percent: float
    differs: str


@cache
def every() -> tuple[Published, ...]:
    """All published numbers, in the file's order."""
    with (shipped_cards("model_cards") / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return tuple(
            Published(source, architecture, tag, task, metric, float(percent), differs)
            for source, architecture, tag, task, metric, percent, differs in rows
        )


@cache
def _by_model() -> Mapping[tuple[str, str], tuple[Published, ...]]:
    found: dict[tuple[str, str], list[Published]] = {}
    for one in every():
        found.setdefault((one.architecture, one.tag), []).append(one)
    return {key: tuple(rows) for key, rows in found.items()}


def named(model: Mapping[str, Any]) -> tuple[str, str] | None:
    """open_clip's architecture and tag of a model, from its card as records have it; None for others."""
    config, weights = model.get("config"), model.get("weights")
    if not isinstance(config, dict) or not isinstance(weights, dict):
        return None
    architecture, tag = config.get("arch"), weights.get("open_clip")
    if not isinstance(architecture, str) or not isinstance(tag, str):
        return None
    bare = architecture.removesuffix(_QUICK)
    quick = config.get("quick_gelu") is True or architecture.endswith(_QUICK)
    known = _by_model()
    # OpenAI's weights are built with QuickGELU under either name
    names = (f"{bare}{_QUICK}", bare) if quick else (bare,)
    return next(((name, tag) for name in names if (name, tag) in known), None)


def ident(architecture: str, tag: str) -> tuple[str, str]:
    """What a model is shown under: OpenAI's weights, which tables list under two names, under one.

    >>> ident("ViT-B-32-quickgelu", "openai"), ident("ViT-B-32-quickgelu", "laion400m_e32")
    (('ViT-B-32', 'openai'), ('ViT-B-32-quickgelu', 'laion400m_e32'))
    """
    return (architecture.removesuffix(_QUICK) if tag == "openai" else architecture), tag


def shown(metrics: Mapping[str, str]) -> dict[tuple[str, str], dict[str, Published]]:
    """Model (`ident`) → task → its number, in the file's order; of several the first that differs in nothing.

    Args:
        metrics: the metric by which each task is shown; others are left out.
    """
    found: dict[tuple[str, str], dict[str, Published]] = {}
    for one in every():
        if metrics.get(one.task) == one.metric:
            own = found.setdefault(ident(one.architecture, one.tag), {})
            if one.task not in own or (own[one.task].differs and not one.differs):
                own[one.task] = one
    return found


def mean(numbers: Mapping[str, Published], tasks: Sequence[str]) -> float | None:
    """The plain mean over all of `tasks`, in per cent; None where a number is missing, or there are not two tasks."""
    if len(tasks) < 2 or not all(task in numbers for task in tasks):
        return None
    return math.fsum(numbers[task].percent for task in tasks) / len(tasks)


def of(model: Mapping[str, Any]) -> tuple[Reported, ...]:
    """The published numbers by which a model's scores are judged: those that differ in nothing that is known.

    Args:
        model: its card, as records have it.
    """
    key = named(model)
    return tuple(
        Reported(
            task=one.task,
            metric=one.metric,
            percent=one.percent,
            source=SOURCES[one.source],
            confidence="primary",
        )
        for one in (_by_model()[key] if key else ())
        if not one.differs
    )
