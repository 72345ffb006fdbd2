"""A gate for merges: new records against a baseline, failing on a real drop and on what cannot be judged.

A drop is real when it is larger than allowed and distinguishable from noise: the one-sided paired test of each task
and of the mean over a model's tasks, which sees small drops on all of them, adjusted for how many there are (Holm; the
means may use up half of alpha), so that equal models fail at most `alpha` of the time, all together.
A record that is missing, limited, partial, stale, edited or unsealed, or measured otherwise than the baseline's, fails
too, since it says nothing. The baseline need not be current: its model may be the one that is being replaced. Where a
model was trained on images that it is measured on, that is said, and fails only where the baseline's was not: then
a gain says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from clipbench.errors import DataError, unknown
from clipbench.protocols import registry
from clipbench.records import comparison, store
from clipbench.records.comparison import Comparison, p_value
from clipbench.records.eligibility import Eligibility
from clipbench.records.store import Stored

MAX_DROP: Final = 0.5
#: what a mean over tasks may fall by: so little on every task passes a task's own allowance
MAX_MEAN_DROP: Final = 0.1
#: reasons of `clipbench.records.eligibility` that fail a baseline's record, and a candidate's
_OF_BASELINE: Final = frozenset({"edited", "unsealed", "limited", "partial"})
_OF_CANDIDATE: Final = _OF_BASELINE | {"stale"}


Outcome = Literal["pass", "fail", "new"]


@dataclass(frozen=True)
class Check:
    """One task of one model.

    Attributes:
        outcome: `new` has nothing to be held against, which is no failure.
        why: what to know of it.
        comparison: where both records could be compared; its `p_worse` is that of this task alone.
        p: one-sided, adjusted for the number of tasks.
    """

    model: str
    task: str
    outcome: Outcome
    why: str = ""
    comparison: Comparison | None = None
    p: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types, by field name."""
        return vars(self) | {"comparison": self.comparison and self.comparison.as_json()}


def gate(
    baseline: Path,
    candidate: Path,
    eligibility: Eligibility,
    *,
    max_drop: float = MAX_DROP,
    max_mean_drop: float = MAX_MEAN_DROP,
    alpha: float = comparison.ALPHA,
    require: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> list[Check]:
    """Hold the records of `candidate` against those of `baseline`, by model and task.

    Args:
        max_drop: percentage points (of ranks: places) that a score may fall.
        max_mean_drop: percentage points that the mean over a model's tasks may fall.
        alpha: how often equal models may fail, all tasks together.
        require: the tasks that every model must have in both folders; None: those that the baseline has.
        models: these only; None: all that the baseline has.

    Raises:
        DataError: a folder is missing or the baseline is empty, or a model is in neither.
    """
    old, new = _by_name(baseline, "--baseline"), _by_name(candidate, "--candidate")
    if not old:
        raise DataError(
            f"the baseline {baseline} has no records",
            hint="evaluate the models that others shall be held against",
        )
    known = {model for model, _ in (*old, *new)}
    for model in models or ():
        if model not in known:
            raise DataError(unknown("model", model, known))
    chosen = sorted(models or {model for model, _ in old})
    checks = []
    for model in chosen:
        have = [task for owner, task in old if owner == model]
        tasks = have if require is None else require
        checks += [_looked_at(model, task, old, new, (baseline, candidate), eligibility) for task in tasks]
    for model, task in new:
        if (model, task) not in old and (models is None or model in models) and require is None:
            checks.append(Check(model, task, "new", "not in the baseline"))
    return decided(checks, max_drop, max_mean_drop, alpha)


def decided(checks: Sequence[Check], max_drop: float, max_mean_drop: float, alpha: float) -> list[Check]:
    """The same and a check of each model's mean over tasks, with the drops judged of those that were compared."""
    means = comparison.means([check.comparison for check in checks if check.comparison is not None])
    every = [*checks, *(Check(mean.model, comparison.MEAN, "pass", comparison=mean) for mean in means)]
    told = [(p, check.task == comparison.MEAN) for check in every if (p := _p_worse(check)) is not None]
    adjusted = iter(comparison.adjusted([p for p, _ in told], [mean for _, mean in told]))
    allowed = {comparison.MEAN: max_mean_drop}
    return [
        check
        if _p_worse(check) is None
        else _decided(check, next(adjusted), allowed.get(check.task, max_drop), alpha)
        for check in every
    ]


def _p_worse(check: Check) -> float | None:
    return None if check.comparison is None else check.comparison.p_worse


def _decided(check: Check, p: float, max_drop: float, alpha: float) -> Check:
    assert check.comparison is not None
    drop = -change(check.comparison)
    if drop <= max_drop:
        return replace(check, p=p)
    if p < alpha:
        why = f"dropped by {drop:.2f}, more than {max_drop:g} allowed and more than noise (p {_below(p)})"
    else:
        why = f"dropped by {drop:.2f}, which noise may explain (p {_below(p)})"
    outcome: Outcome = "fail" if p < alpha else check.outcome
    return replace(check, outcome=outcome, why="; ".join(part for part in (why, check.why) if part), p=p)


def _below(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def change(one: Comparison) -> float:
    """How much better the candidate is, in percentage points (of ranks: places)."""
    assert one.difference is not None
    metric = registry.metric(one.metric)
    scale = 1 if metric.unit == "rank" else 100
    return scale * one.difference * (-1 if metric.less_is_better else 1)


_Records = dict[tuple[str, str], Stored]


def _by_name(folder: Path, option: str) -> _Records:
    if not folder.is_dir():
        raise DataError(
            f"no results folder at {folder}",
            hint=f"name the folder of records with {option}; clipbench eval --results DIR makes one",
        )
    return {(stored.record.model, stored.record.task): stored for stored in store.read_all(folder)}


def _looked_at(
    model: str, task: str, old: _Records, new: _Records, folders: tuple[Path, Path], eligibility: Eligibility
) -> Check:
    sides = old.get((model, task)), new.get((model, task))
    for stored, folder, kinds in zip(sides, folders, (_OF_BASELINE, _OF_CANDIDATE), strict=True):
        if stored is None:
            return Check(model, task, "fail", f"missing: {folder} has no record")
        reasons = [reason.text for reason in eligibility.reasons(stored) if reason.kind in kinds]
        if reasons:
            return Check(model, task, "fail", f"{folder}: {'; '.join(reasons)}")
    one, other = sides
    assert one is not None
    assert other is not None
    try:
        found = comparison.of(one, other, top=3)
    except DataError as error:  # a per-sample file that is missing or another
        return Check(model, task, "fail", f"not comparable: {error.message}")
    if found.reason is not None:
        return Check(model, task, "fail", f"not comparable: {found.reason}")
    seen = "; ".join(one.text for one in eligibility.seen(other.record))
    weights = [stored.record.fingerprints.get("weights") for stored in (one, other)]
    if seen and not one.record.seen and weights[0] != weights[1]:  # of the same model they say the same
        why = f"{folders[1]}: trained on {seen}, of which {folders[0]} says nothing"
        return Check(model, task, "fail", why)
    return Check(model, task, "pass", f"trained on {seen}" if seen else "", found)
