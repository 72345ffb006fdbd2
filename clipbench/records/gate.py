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
from xml.etree import ElementTree

from clipbench.errors import DataError, unknown
from clipbench.protocols.registry import metric as spec_of
from clipbench.records import comparison as compare
from clipbench.records import store
from clipbench.records.comparison import Comparison
from clipbench.records.eligibility import Judge
from clipbench.records.record import Record
from clipbench.records.store import Stored
from clipbench.report import numbers
from clipbench.report.comparison_table import p_value
from clipbench.report.table import DASH, markdown_table
from clipbench.utils.escape import visible

MAX_DROP: Final = 0.5
#: what a mean over tasks may fall by: so little on every task passes a task's own allowance
MAX_MEAN_DROP: Final = 0.1
#: what stands in the JUnit XML of every gate
JUNIT_MARK: Final = b'name="clipbench gate"'
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
    judge: Judge,
    *,
    max_drop: float = MAX_DROP,
    max_mean_drop: float = MAX_MEAN_DROP,
    alpha: float = compare.ALPHA,
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
    found = []
    for model in chosen:
        have = [task for owner, task in old if owner == model]
        tasks = have if require is None else require
        found += [_looked_at(model, task, old, new, (baseline, candidate), judge) for task in tasks]
    for model, task in new:
        if (model, task) not in old and (models is None or model in models) and require is None:
            found.append(Check(model, task, "new", "not in the baseline"))
    return decided(found, max_drop, max_mean_drop, alpha)


def decided(found: Sequence[Check], max_drop: float, max_mean_drop: float, alpha: float) -> list[Check]:
    """The same and a check of each model's mean over tasks, with the drops judged of those that were compared."""
    means = compare.means([check.comparison for check in found if check.comparison is not None])
    every = [*found, *(Check(mean.model, compare.MEAN, "pass", comparison=mean) for mean in means)]
    told = [(p, check.task == compare.MEAN) for check in every if (p := _p_worse(check)) is not None]
    adjusted = iter(compare.adjusted([p for p, _ in told], [mean for _, mean in told]))
    return [
        check
        if _p_worse(check) is None
        else _decided(check, next(adjusted), max_mean_drop if check.task == compare.MEAN else max_drop, alpha)
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


def change(comparison: Comparison) -> float:
    """How much better the candidate is, in percentage points (of ranks: places)."""
    assert comparison.difference is not None
    scale = 1 if numbers.is_rank(comparison.metric) else 100
    return scale * comparison.difference * (-1 if spec_of(comparison.metric).less_is_better else 1)


_Records = dict[tuple[str, str], Stored]


def _by_name(folder: Path, option: str) -> _Records:
    if not folder.is_dir():
        raise DataError(
            f"no results folder at {folder}",
            hint=f"name the folder of records with {option}; clipbench eval --results DIR makes one",
        )
    return {(stored.record.model, stored.record.task): stored for stored in store.read_all(folder)}


def _looked_at(
    model: str, task: str, old: _Records, new: _Records, folders: tuple[Path, Path], judge: Judge
) -> Check:
    sides = old.get((model, task)), new.get((model, task))
    for stored, folder, kinds in zip(sides, folders, (_OF_BASELINE, _OF_CANDIDATE), strict=True):
        if stored is None:
            return Check(model, task, "fail", f"missing: {folder} has no record")
        reasons = [reason.text for reason in judge.reasons(stored) if reason.kind in kinds]
        if reasons:
            return Check(model, task, "fail", f"{folder}: {'; '.join(reasons)}")
    one, other = sides
    assert one is not None
    assert other is not None
    try:
        comparison = compare.of(one, other, top=3)
    except DataError as error:  # a per-sample file that is missing or another
        return Check(model, task, "fail", f"not comparable: {error.message}")
    if comparison.reason is not None:
        return Check(model, task, "fail", f"not comparable: {comparison.reason}")
    seen = "; ".join(found.text for found in judge.seen(other.record))
    if seen and not _seen_before(one.record, other.record):
        return Check(
            model, task, "fail", f"{folders[1]}: trained on {seen}, of which {folders[0]} says nothing"
        )
    return Check(model, task, "pass", f"trained on {seen}" if seen else "", comparison)


def _seen_before(baseline: Record, candidate: Record) -> bool:
    """Whether the baseline's model saw such images too: it says so, or is the same model."""
    weights = [record.fingerprints.get("weights") for record in (baseline, candidate)]
    return bool(baseline.seen) or weights[0] == weights[1]


# --------------------------------------------------------------------- reports


def summary(found: Sequence[Check], max_drop: float, max_mean_drop: float, alpha: float) -> str:
    """What a person reads beside a merge, as GitHub markdown."""
    failed = [check for check in found if check.outcome == "fail"]
    verdict = f"{len(failed)} of {len(found)} checks failed" if failed else f"all {len(found)} checks passed"
    marks = {"pass": "✅", "fail": "❌", "new": "🆕"}
    rows = [
        [marks[c.outcome], c.model, c.task, *_numbers(c), c.why]
        for c in sorted(found, key=lambda c: c.outcome != "fail")
    ]
    headings = ["", "model", "task", "metric", "baseline", "candidate", "change (95 %)", "p of a drop", "why"]
    return (
        f"### clipbench gate: {verdict}\n\n"
        + markdown_table(headings, "llllrrrrl", rows)
        + f"\nA drop of more than {max_drop:g} points, of a mean over tasks {max_mean_drop:g}, fails where its p, "
        f"adjusted for the number of checks, is below {alpha:g}.\n"
    )


def _numbers(check: Check) -> list[str]:
    c = check.comparison
    if c is None or c.first is None or c.second is None or c.ci95 is None or c.difference is None:
        return [DASH] * 5
    return [
        c.metric,
        numbers.number(c.first, c.metric),
        numbers.number(c.second, c.metric),
        f"{numbers.number(c.difference, c.metric, '+')} ({numbers.ends(*c.ci95, c.metric, '+')})",
        DASH if check.p is None else p_value(check.p),
    ]


def junit(found: Sequence[Check]) -> bytes:
    """The same as JUnit XML, which CI systems show as tests: a suite of one case a task."""
    failed = sum(check.outcome == "fail" for check in found)
    skipped = sum(check.outcome == "new" for check in found)
    counts = {"tests": str(len(found)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}
    top = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(top, "testsuite", {"name": "clipbench gate"} | counts)
    for check in found:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": visible(check.model), "name": visible(check.task)}
        )
        if check.outcome != "pass":
            kind = "failure" if check.outcome == "fail" else "skipped"
            ElementTree.SubElement(case, kind, {"message": visible(check.why)})
    ElementTree.indent(top)
    text: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
