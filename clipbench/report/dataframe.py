"""Records as rows, one a score: what report, site, compare and gate all read; `results` makes them a pandas frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from clipbench.cards.model import Confidence, Reported
from clipbench.catalog import Catalog
from clipbench.metrics.intervals import Score
from clipbench.records import alignment, store
from clipbench.records.eligibility import Eligibility, Reason, lacking
from clipbench.records.published import of as published_of
from clipbench.records.record import Record
from clipbench.records.store import Stored

if TYPE_CHECKING:
    import pandas as pd

_TRUST: Final[tuple[str, ...]] = get_args(Confidence)  # most trusted first
#: percentage points within which a published number counts as reproduced; half precision alone moves as much
REPRODUCED: Final = 0.1


class Row(NamedTuple):
    """One score of one record, or (`metric` None) a task of the suite that the model has no record of.

    `value`, the interval and `chance` are fractions of 1, or ranks; `centre_baseline` is what the pointing game gives
    to always pointing at the image's middle; `reported_percent` is as printed by its source and
    `difference_points` is ours minus theirs in percentage points; `verdict` on it is "reproduced" (at most
    `REPRODUCED` points apart), "within interval" (theirs lies in our 95 % interval) or "off". `version` is clipbench's,
    `commit` that of its checkout. `kept_off` has the kinds of reasons why the record may not stand on the leaderboard
    ("limited, dirty"), empty where it may, and `why` says them whole (`clipbench.records.eligibility`). `seen` says
    which images of the split the model was trained on. Tasks with the same `images` were measured on the same ones.
    `digest` is the record's seal, None where it is broken or missing.
    """

    model: str
    task: str
    family: str | None = None
    training_pairs_m: float | None = None
    dataset: str | None = None
    protocol: str | None = None
    protocol_version: int | None = None
    metric: str | None = None
    primary: bool = True
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    chance: float | None = None
    centre_baseline: float | None = None
    reported_percent: float | None = None
    reported_confidence: str | None = None
    reported_source: str | None = None
    difference_points: float | None = None
    verdict: str | None = None
    limit: int | None = None
    partial: bool = False
    skipped: int = 0
    seen: str = ""
    dirty: bool | None = None
    commit: str | None = None
    version: str | None = None
    precision: str | None = None
    device: str | None = None
    seed: int | None = None
    created: str | None = None
    path: str | None = None
    images: str | None = None
    digest: str | None = None
    kept_off: str = ""
    why: str = ""

    @property
    def judgement(self) -> str | None:
        """The verdict on the published number, and by how much it is off."""
        return f"off by {self.difference_points:+.2f}" if self.verdict == "off" else self.verdict


def results(folder: str | Path = "results", *, cards: Sequence[Path] = ()) -> pd.DataFrame:
    """Every score of every record below `folder`, a row each, as a pandas frame with the columns of `Row`.

    Args:
        cards: folders of your own cards, which records are held against beside the shipped ones.

    Raises:
        DataError: there is no such folder, or a file in it is not a record, or not at its own place.
        CardError: a card is wrong.

    For example the primary scores that may stand on the leaderboard, model × task:

        frame = clipbench.results()
        frame[frame.primary & (frame.kept_off == "")].pivot(index="model", columns="task", values="value")
    """
    import pandas as pd

    found = read(Path(folder), Catalog(cards))
    return pd.DataFrame(found, columns=list(Row._fields))


def read(folder: Path, catalog: Catalog, *, primary: bool = False) -> list[Row]:
    """Every score of every record below `folder`, by model, then task, the primary metric first.

    Args:
        primary: the primary scores alone.

    Raises: as `results`.
    """
    return rows(store.read_all(folder), Eligibility(catalog).reasons, primary=primary)


def rows(
    stored: Iterable[Stored],
    reasons: Callable[[Stored], Sequence[Reason]] = lambda _: (),
    *,
    primary: bool = False,
) -> list[Row]:
    """Every score of these records, by model, then task, the primary metric first.

    Args:
        reasons: why a record may not stand on the leaderboard (`Eligibility.reasons`).
        primary: the primary scores alone.
    """
    groups = [_rows(one, reasons(one), primary) for one in stored]
    groups.sort(key=lambda group: (group[0].model, group[0].task))
    return [row for group in groups for row in group]


def of_tasks(every: Iterable[Row], tasks: Sequence[str]) -> list[Row]:
    """The rows of these tasks, in this order; each model that has any gets one for each, so that what is missing shows.

    >>> of_tasks([Row("a", "digits-zs", metric="acc1", value=0.5)], ["digits-lp", "digits-zs"])[0].value is None
    True
    """
    found: list[Row] = []
    wanted = set(tasks)
    kept = [row for row in every if row.task in wanted]
    for model, group in groupby(sorted(kept, key=lambda row: row.model), key=lambda row: row.model):
        by_task: dict[str, list[Row]] = {}
        for row in group:
            by_task.setdefault(row.task, []).append(row)
        for task in tasks:
            found += by_task.get(task) or [Row(model=model, task=task)]
    return found


def metrics_of(record: Record) -> list[str]:
    """The primary one, then the others by name, recall@5 before recall@10."""

    def place(metric: str) -> tuple[bool, str, int]:
        name, _, k = metric.partition("@")
        return metric != record.primary, name, int(k) if k.isdecimal() else 0

    return sorted(record.scores, key=place)


def centre_baseline(record: Record) -> tuple[float, float, tuple[float, float] | None] | None:
    """Of a record of grounding: what the image's middle scores, how far above it the model is, and that one's interval.

    None for other records, those made before it was measured, and evidence that is not as we write it.
    """
    match record.evidence.get("centre_baseline"):
        case {"value": float(value), "above": float(above), "above_ci95": [float(low), float(high)]}:
            return value, above, (low, high)
        case {"value": float(value), "above": float(above), "above_ci95": None}:
            return value, above, None
    return None


def _rows(stored: Stored, against: Sequence[Reason], primary: bool) -> list[Row]:
    """One for each score of a record, the primary one first, or that one alone."""
    record = stored.record
    model = record.cards.model
    family, pairs = model.get("family"), model.get("training_pairs_m")
    stated = record.cards.reported if model.get("reported") else ()
    published = (*stated, *published_of(model))  # of equal trust the card's own come first
    metrics = [record.primary] if primary else metrics_of(record)
    whole: dict[str, Any] = {
        "model": record.model,
        "task": record.task,
        "family": family if isinstance(family, str) else None,
        "training_pairs_m": float(pairs) if isinstance(pairs, int | float) else None,
        "dataset": record.task.partition("@")[0].rpartition("-")[0],
        "protocol": record.protocol.name,
        "protocol_version": record.protocol.version,
        "limit": record.limit,
        "partial": lacking(record) is not None,
        "skipped": len(record.skipped),
        "seen": _seen(record, against),
        "dirty": record.env.dirty,
        "commit": record.env.commit,
        "version": record.env.packages.get("clipbench"),
        "precision": record.precision,
        "device": record.device,
        "seed": record.seed,
        "created": record.created,
        "path": stored.path.as_posix(),
        "images": alignment.images_of(record),
        "digest": record.digest if stored.seal == "whole" else None,
        "kept_off": ", ".join(reason.kind for reason in against),
        "why": "; ".join(reason.text for reason in against),
    }
    return [Row(**whole, **_scored(record, metric, published)) for metric in metrics]


def _seen(record: Record, against: Sequence[Reason]) -> str:
    """What today's cards say; without them, what the record says."""
    judged = [reason.text for reason in against if reason.kind == "seen"]
    return "; ".join(judged or [one.text for one in record.seen]).removeprefix("trained on ")


def _scored(record: Record, metric: str, published: Sequence[Reported]) -> dict[str, Any]:
    """The fields of one score, with the most trusted number that the model's card gives for it."""
    score = record.scores[metric]
    found = {
        "metric": metric,
        "primary": metric == record.primary,
        "value": score.value,
        "low": score.ci95[0],
        "high": score.ci95[1],
        "n": score.n,
        "chance": score.chance,
        "centre_baseline": centre[0]
        if metric == "pointing_game" and (centre := centre_baseline(record))
        else None,
    }
    fitting = [r for r in published if (r.task, r.metric) == (record.task, metric)]
    if fitting:
        reported = min(fitting, key=lambda r: _TRUST.index(r.confidence))
        found |= {
            "reported_percent": reported.percent,
            "reported_confidence": reported.confidence,
            "reported_source": reported.source,
            "difference_points": 100 * score.value - reported.percent,
            "verdict": _verdict(score, reported.percent),
        }
    return found


def _verdict(score: Score, percent: float) -> str:
    if abs(100 * score.value - percent) <= REPRODUCED + 1e-9:
        return "reproduced"
    low, high = score.ci95
    return "within interval" if 100 * low <= percent <= 100 * high else "off"
