"""Zero-shot classification of the same images under several conditions: corruptions, backgrounds, edits.

A condition is what the first column of groups says of a sample, as `fog/3`: a corruption and its severity. Every number
is a weighted sum of the accuracies of conditions, each of which counts as one whatever its number of images:

- `mean_acc1`: the mean over conditions;
- `mce` (Hendrycks & Dietterich, arXiv 1903.12261, section 4.1): the mean over corruptions of the error summed over
  severities, divided by that of a reference model;
- `gap`: the accuracy on one condition less that on another (the BG-gap of arXiv 2006.09994);
- `drop`: the accuracy on the unchanged images less the mean of that on the others.

Intervals are over clusters where the card names them: an image under all conditions is one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.base import Tuple
from clipbench.cards.task import TaskCard
from clipbench.data.split import Split
from clipbench.errors import DataError, unknown
from clipbench.metrics import clustered, intervals
from clipbench.metrics.intervals import Score
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols import zero_shot
from clipbench.protocols._samples import clusters_of, decoded
from clipbench.protocols.base import Columns, Inputs, MetricSpec, Needs, Outcome, Protocol, Recorded
from clipbench.protocols.base import Params as ParamsBase

Doubles = NDArray[np.float64]
#: metric → (condition → its weight, what is added)
Sums = dict[str, tuple[dict[str, float], float]]


class Params(ParamsBase):
    """What a task card may set under `protocols: {conditions: …}`.

    Attributes:
        primary: the metric that stands for the task.
        only: the conditions that count; none: all that the data has.
        severities: how many severities, 1 and up, each corruption of `reference` has.
        reference: corruption → the error of the reference model, the mean over its severities; `mce` is against these,
            and other corruptions do not count.
        gap: two conditions: the accuracy on the first less that on the second.
        original: the condition of the unchanged images, which `drop` is from.
        templates: which of the card's template sets.
        split: which of the card's splits.
    """

    primary: Literal["mean_acc1", "mce", "gap", "drop"] = "mean_acc1"
    only: Tuple[str] = ()
    severities: int = Field(5, ge=1)
    reference: dict[str, float] = Field({})
    gap: Tuple[str] = ()
    original: str | None = None
    templates: str = "default"
    split: str = "test"

    @property
    def expected(self) -> tuple[str, ...]:
        """The conditions that must be there."""
        if self.reference:
            return tuple(f"{name}/{s}" for name in self.reference for s in range(1, self.severities + 1))
        named = [*self.gap, *([self.original] if self.original else [])]
        return self.only or tuple(dict.fromkeys(named))


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if not card.columns.groups:
        return "conditions needs columns.group on the task card"
    if params.templates not in card.templates:
        return unknown("template set", params.templates, card.templates)
    if params.gap and len(set(params.gap)) != 2:
        return f"gap names two conditions, found {', '.join(params.gap)}"
    if any(not 0 < error <= 1 for error in params.reference.values()):
        return "reference holds errors, above 0 and at most 1"
    if params.reference and params.only:
        return "give only or reference, not both"
    needed = {"mce": "reference", "gap": "gap", "drop": "original"}.get(params.primary)
    if needed is not None and not getattr(params, needed):
        return f"primary {params.primary} needs {needed}"
    return None


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    return Needs(((params.split, compared),))


def texts(card: TaskCard, splits: dict[str, Split], params: Params) -> list[str]:
    """Every finished prompt, once."""
    return zero_shot.texts(card, splits, zero_shot.Params(templates=params.templates))


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Score every image against every class as `zero_shot.run` does, and tell the accuracy by condition.

    Raises:
        DataError: a condition that the numbers are over has no image.
    """
    split = splits[params.split]
    images = encoder.images(split, encoder.compared)
    rows = decoded(split, images)
    assert split.groups is not None
    there, of = np.unique(split.groups[rows], return_inverse=True)
    named = [_condition(name) for name in there]
    counted = params.expected if params.only or params.reference else tuple(dict.fromkeys(named))
    _refuse_lacking(split, named, (*counted, *params.expected))
    number = {name: place for place, name in enumerate(counted)}
    place = np.array([number.get(name, -1) for name in named])[of]
    kept = place >= 0
    rows, place = rows[kept], place[kept]
    weights = zero_shot.classifier(card, params.templates, encoder)
    scale, wider = np.float32(encoder.logit_scale), max(len(weights), images.shape[1])
    logits = zero_shot.scored(images, rows, weights * scale, wider)
    ids, clusters = np.array(split.ids, dtype=object)[rows], clusters_of(split, rows)
    labels = split.labels[rows].astype(np.int64)
    found = outcomes.single_label(logits, labels, ids, len(weights), seed)
    hits = (np.asarray(found.samples["rank"]) == 0).astype(np.float64)
    cluster = clustered.codes(ids if clusters is None else clusters)
    scores, samples = {}, found.samples | outcomes.column_of(clusters)
    samples["condition"] = np.array(counted, dtype=object)[place]
    for metric, (weight, added) in _sums(counted, params).items():
        each = np.array([weight.get(name, 0.0) for name in counted])
        values = shares_of(hits, place, each, added)
        chance = float(each.sum()) / len(weights) + added
        if metric == "mean_acc1":
            mean = clustered.spread(values, cluster)
            scores[metric] = Score(min(mean.value, 1.0), clustered.interval(mean), len(rows), chance)
        else:
            scores[metric] = _score(values, cluster, each, chance)
        samples[f"{metric}_share"] = values
    sizes = np.bincount(place)
    told = [
        {"condition": name, "acc1": float(right / n), "n": int(n)}
        for name, right, n in zip(counted, clustered.sums(place, hits), sizes, strict=True)
    ]
    evidence: dict[str, Any] = {"conditions": told}
    if not kept.all():
        evidence["left_out"] = int((~kept).sum())
    same = zero_shot.named_alike(card, params.templates)
    evidence |= {"same_prompts": same} if same else {}
    return replace(found, scores=scores, samples=samples, evidence=evidence)


def _condition(group: str) -> str:
    """The condition that a group is: a corruption and its severity, whatever kind the corruption is filed under.

    >>> _condition("noise/shot_noise/5"), _condition("fog/1"), _condition("only_fg")
    ('shot_noise/5', 'fog/1', 'only_fg')
    """
    return "/".join(group.split("/")[-2:])


def shares_of(hits: Doubles, place: NDArray[np.int64], weight: Doubles, added: float) -> Doubles:
    """What each sample adds to a weighted sum of accuracies, of which it is the mean: float64 [n].

    Args:
        hits: float64 [n], which samples are right.
        place: int64 [n], the condition of each.
        weight: float64 [conditions].

    >>> float(shares_of(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1]), np.array([0.5, 0.5]), 0.0).mean())
    0.75
    """
    found: Doubles = len(hits) * hits * (weight / np.bincount(place))[place] + added
    return found


def _sums(counted: tuple[str, ...], params: Params) -> Sums:
    """The weights of conditions in every metric."""
    found: Sums = {"mean_acc1": (dict.fromkeys(counted, 1 / len(counted)), 0.0)}
    if params.reference:
        of, each = len(params.reference), params.severities
        weight = {
            f"{name}/{s}": -1 / (of * each * error)
            for name, error in params.reference.items()
            for s in range(1, each + 1)
        }
        found["mce"] = (weight, -sum(weight.values()))
    if params.gap:
        first, second = params.gap
        found["gap"] = ({first: 1.0, second: -1.0}, 0.0)
    if params.original is not None:
        others = [name for name in counted if name != params.original]
        found["drop"] = ({params.original: 1.0} | dict.fromkeys(others, -1 / max(1, len(others))), 0.0)
    return found


def _score(values: Doubles, cluster: NDArray[np.int64], weight: Doubles, chance: float) -> Score:
    """The mean of shares, which may be of either sign, with its interval over clusters.

    Where all clusters agree, as where every image is wrong, each condition's accuracy may still lie as far from what
    was seen as Wilson's interval of so many clusters says.
    """
    found = clustered.spread(values, cluster)
    half = found.half
    if half < 1e-12:
        low, high = intervals.wilson(0, int(cluster.max()) + 1)
        half = (high - low) * max(float(weight[weight > 0].sum()), -float(weight[weight < 0].sum()))
    return Score(found.value, (found.value - half, found.value + half), values.size, chance)


def _refuse_lacking(split: Split, named: list[str], wanted: tuple[str, ...]) -> None:
    """Raise DataError where a condition that the numbers are over has no image."""
    there = set(named)
    lost = [name for name in dict.fromkeys(wanted) if name not in there]
    if lost:
        some = ", ".join(sorted(there)[:5])
        raise DataError(
            f"{split.dataset}: no image of {len(lost)} of {len(dict.fromkeys(wanted))} conditions, first {lost[0]} "
            f"(there are {len(there)}: {some}{', …' if len(there) > 5 else ''})",
            hint="give a copy with all of them; --limit may have left none of one",
        )


def _shares(metric: str, table: Columns, params: Recorded) -> Doubles | None:
    name = f"{metric}_share"
    return np.array(table[name], dtype=np.float64) if name in table else None


PROTOCOL: Final = Protocol(
    id="conditions",
    version=1,
    kinds=("single-label",),
    params=Params,
    metrics=(
        MetricSpec("mean_acc1", "1 / classes", shares=_shares),
        MetricSpec("mce", "all wrong but 1 / classes", less_is_better=True, shares=_shares),
        MetricSpec("gap", "0", less_is_better=True, shares=_shares),
        MetricSpec("drop", "0", less_is_better=True, shares=_shares),
    ),
    check=check,
    needs=needs,
    run=run,
    texts=texts,
)
