"""Two models, or two folders of records, task by task: which is better, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from clipbench.errors import DataError, unknown
from clipbench.metrics import paired_tests
from clipbench.metrics.intervals import Interval
from clipbench.metrics.joint import Contributions
from clipbench.protocols import registry
from clipbench.records import alignment, store
from clipbench.records.eligibility import Eligibility
from clipbench.records.store import Stored

Verdict = Literal["better", "worse", "not distinguishable", "not comparable"]
ALPHA: Final = 0.05
#: what stands for the task where means over tasks are compared
MEAN: Final = "mean"


@dataclass(frozen=True)
class Comparison:
    """Two records of one task, the second held against the first.

    Attributes:
        model: the first's; `other` is the second's.
        first, second: values of the primary metric, as in the records.
        difference: second minus first, over the samples that both have; with its own 95 % interval.
        p: two-sided. `p_adjusted`: for how many tasks were compared (Holm).
        p_worse: one-sided, of the second being worse.
        verdict: on the second: better or worse where `p_adjusted` is below alpha.
        reason: why they are not comparable.
        left_out: samples that only one of them has.
        seen: of each, which images of the split it was trained on, in words; empty where none is known. Of means the
            tasks that have such images.
        classes: (class, first, second), where they differ most first.
        only_first, only_second: ids of samples that one gets right, or more of, and the other does not.
        contributions: what each image adds to the difference, for means over tasks.
    """

    task: str
    model: str
    other: str
    metric: str
    verdict: Verdict
    first: float | None = None
    second: float | None = None
    difference: float | None = None
    ci95: Interval | None = None
    p: float | None = None
    p_adjusted: float | None = None
    p_worse: float | None = None
    method: str | None = None
    n: int | None = None
    left_out: int = 0
    reason: str | None = None
    classes: tuple[tuple[str, float, float], ...] = ()
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()
    contributions: Contributions | None = field(default=None, repr=False)
    seen: tuple[str, str] = ("", "")

    @property
    def is_mean(self) -> bool:
        """Whether it is of means over tasks."""
        return self.task == MEAN

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types, by field name."""
        fields = {name: value for name, value in vars(self).items() if name != "contributions"}
        return fields | {"classes": [list(c) for c in self.classes], "seen": list(self.seen)}


def compare(
    first: str,
    second: str,
    results: Path,
    tasks: Sequence[str] | None,
    alpha: float,
    top: int,
    eligibility: Eligibility | None = None,
) -> list[Comparison]:
    """Compare two models of `results`, or two folders model by model, on the tasks that both have.

    Args:
        first, second: ids of models that have records below `results`, files of records, or folders of them.
        tasks: these only; None: all.
        top: how many classes and samples to name.
        eligibility: knows what today's cards say that models have seen; None: what the records say.

    Raises:
        DataError: there is no such model or folder, or they have no task in common.
    """
    sides = [_records(name, results) for name in (first, second)]
    a, b = sides
    pairs: list[tuple[Stored, Stored]] = []
    if isinstance(a, Path) and isinstance(b, Path):
        pairs = matched(store.read_all(a), store.read_all(b))
    elif not isinstance(a, Path) and not isinstance(b, Path):
        pairs = [(a[task], b[task]) for task in a if task in b]
    else:
        model, folder = (first, second) if isinstance(b, Path) else (second, first)
        raise DataError(
            f"{model} is a model and {folder} a folder of records",
            hint="name two models (clipbench report lists them), or two folders",
        )
    if tasks is not None:
        pairs = [pair for pair in pairs if pair[0].record.task in tasks]
        pairs.sort(key=lambda pair: tasks.index(pair[0].record.task))
    if not pairs:
        raise DataError(
            f"{first} and {second} have no task in common" + (" in this suite" if tasks is not None else ""),
            hint="evaluate both on one: clipbench eval --model … --task …",
        )
    said = [_seen(eligibility, *pair) for pair in pairs]
    comparisons = [replace(of(*pair, top=top), seen=seen) for pair, seen in zip(pairs, said, strict=True)]
    return with_verdicts(comparisons, alpha)


def _seen(eligibility: Eligibility | None, *pair: Stored) -> tuple[str, str]:
    one, other = (eligibility.seen(stored.record) if eligibility else stored.record.seen for stored in pair)
    return "; ".join(seen.text for seen in one), "; ".join(seen.text for seen in other)


def matched(first: Iterable[Stored], second: Iterable[Stored]) -> list[tuple[Stored, Stored]]:
    """Records of the same model and task, by model and task."""
    by_name = {(s.record.model, s.record.task): s for s in second}
    found = [(s, by_name.get((s.record.model, s.record.task))) for s in first]
    return [(one, other) for one, other in found if other is not None]


def of(first: Stored, second: Stored, *, top: int) -> Comparison:
    """Two records of one task, before it is known how many comparisons there are."""
    one, other = first.record, second.record
    bare = Comparison(one.task, one.model, other.model, one.primary, "not distinguishable")
    edited = next((stored.path for stored in (first, second) if stored.seal == "broken"), None)
    reason = f"{edited} was edited by hand, or damaged" if edited else alignment.mismatch(one, other)
    if reason is not None:
        return replace(bare, verdict="not comparable", reason=reason)
    pair = alignment.pair(first, second)
    difference = pair.difference
    gains = () if pair.gains is None else sorted(zip(pair.gains.tolist(), pair.ids, strict=True))
    classes = sorted(
        ((c, *v) for c, v in pair.classes.items()), key=lambda c: (-round(abs(c[2] - c[1]), 12), c[0])
    )
    return replace(
        bare,
        first=one.scores[one.primary].value,
        second=other.scores[one.primary].value,
        difference=difference.value,
        ci95=_possible(one.primary, difference.ci95),
        p=difference.p,
        p_worse=difference.p_more if registry.metric(one.primary).less_is_better else difference.p_less,
        method=difference.method,
        n=difference.n,
        left_out=pair.left_out,
        classes=tuple(c for c in classes if c[1] != c[2])[:top],
        only_first=tuple(name for gain, name in gains if gain < 0)[:top],
        only_second=tuple(name for gain, name in reversed(gains) if gain > 0)[:top],
        contributions=pair.contributions,
    )


def _possible(metric: str, interval: tuple[float, float]) -> tuple[float, float]:
    """The part of an interval of a difference that can be: shares of 1 differ by 1 at most."""
    if registry.metric(metric).unit != "share":
        return interval
    return max(-1.0, interval[0]), min(1.0, interval[1])


def means(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The mean difference over the tasks of each pair of models, where there are two tasks or more.

    Over tasks whose metric is a share of 1 that more of is better, and that could be compared sample by sample; tasks
    that share images are taken together (`paired.of_contributions`).
    """
    made = []
    for pair in dict.fromkeys((one.model, one.other) for one in comparisons):
        parts, first, second, seen = [], [], [], list[tuple[str, str]]()
        for one in comparisons:
            fits = (
                (one.model, one.other) == pair
                and not one.is_mean
                and not registry.metric(one.metric).less_is_better
            )
            if fits and one.contributions is not None and one.first is not None and one.second is not None:
                parts.append(one.contributions)
                first.append(one.first)
                second.append(one.second)
                seen.append((one.task if one.seen[0] else "", one.task if one.seen[1] else ""))
        if len(parts) < 2:
            continue
        mean = paired_tests.of_contributions(parts, seed=0)
        made.append(
            Comparison(
                MEAN,
                *pair,
                f"mean of {len(parts)} tasks",
                "not distinguishable",
                first=math.fsum(first) / len(first),
                second=math.fsum(second) / len(second),
                difference=mean.value,
                ci95=mean.ci95,
                p=mean.p,
                p_worse=mean.p_less,
                method=mean.method,
                n=mean.n,
                seen=(_joined(a for a, _ in seen), _joined(b for _, b in seen)),
            )
        )
    return made


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(filter(None, texts))


def adjusted(p: Sequence[float], means: Sequence[bool]) -> list[float]:
    """P values adjusted for their number (`paired.holm`); those of means may use up half of alpha together."""
    count = sum(means)
    return paired_tests.holm(p, [max(1.0, (len(p) - count) / count) if mean else 1.0 for mean in means])


def with_verdicts(comparisons: Sequence[Comparison], alpha: float) -> list[Comparison]:
    """The same, and means over tasks (`means`), with p values adjusted for their number, and verdicts."""
    every = [*comparisons, *means(comparisons)]
    told = [c for c in every if c.p is not None]
    p = iter(adjusted([c.p for c in told if c.p is not None], [c.is_mean for c in told]))
    return [c if c.p is None else _with_verdict(c, next(p), alpha) for c in every]


def _with_verdict(one: Comparison, adjusted: float, alpha: float) -> Comparison:
    assert one.difference is not None
    better = (one.difference < 0) == registry.metric(one.metric).less_is_better
    distinct = adjusted < alpha and one.difference != 0
    verdict: Verdict = "not distinguishable" if not distinct else "better" if better else "worse"
    return replace(one, p_adjusted=adjusted, verdict=verdict)


def p_value(p: float) -> str:
    """Three decimals, or that it is smaller.

    >>> p_value(0.04), p_value(0.0002)
    ('0.040', '<0.001')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _records(name: str, results: Path) -> Path | Mapping[str, Stored]:
    """A folder of records, or a model's records by task."""
    if name.endswith(".json") and Path(name).is_file():
        stored = store.read(Path(name))
        return {stored.record.task: stored}
    own = results / store.file_name(name)
    if own.is_dir():
        return {s.record.task: s for s in store.read_all(results) if s.record.model == name}
    if Path(name).is_dir():
        return Path(name)
    models = {one.record.model for one in store.read_all(results)} if results.is_dir() else set()
    raise DataError(
        f"{unknown('model', name, models)} (records of {results}); nor is it a record or a folder of such"
    )
