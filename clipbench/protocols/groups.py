"""Zero-shot classification by groups of samples: the worst group, each by itself, and the macro F1.

A group is what a column of the data says of a sample (the region, the income), or several together (gender × race). As
in WILDS (arXiv 2012.07421) and DataComp, a group that no sample is of does not count, and the accuracy over all
samples is no mean over groups. Groups that are skipped count in that accuracy, and never as the worst one. Where groups
are clusters of samples themselves (the worst slide), their intervals are over samples: these groups are looked at, and
no others.

Sets of attributes, as faces with age, gender and race, have no single label: an objective of the card is asked of
each image, and is right as a column says, or is none that may be right, whose share is measured (toxic names).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import Tuple
from clipbench.cards.columns import Objective
from clipbench.cards.task import TaskCard
from clipbench.data.split import Split
from clipbench.errors import DataError, unknown
from clipbench.metrics import classification, clustered, f1, intervals
from clipbench.metrics.intervals import Score
from clipbench.protocols import _grouping as grouping
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols import zero_shot
from clipbench.protocols._samples import clusters_of, decoded
from clipbench.protocols.base import Columns, Inputs, MetricSpec, Needs, Outcome, Protocol, Recorded
from clipbench.protocols.base import Params as ParamsBase

Names = NDArray[np.object_]
Doubles = NDArray[np.float64]
Blocks = Iterable[tuple[slice, NDArray[np.float32]]]
_COUNTED: Final = ("share", "lowest_group_share", "highest_group_share")
_TOP5: Final = ("acc5", "worst_group_acc5")


class Params(ParamsBase):
    """What a task card may set under `protocols: {groups: …}`.

    Attributes:
        primary: the metric that stands for the task.
        group: the column of groups by which they are told, or several, whose combinations are the groups; None: the
            first of the card.
        skip: names of groups that are never the worst one.
        objective: which of the card's objectives, in sets of kind attributes.
        templates: which of the card's template sets.
        split: which of the card's splits.
    """

    primary: Literal[
        "acc1", "acc5", "mean_per_class_recall", "worst_group_acc1", "worst_group_acc5", "f1_macro",
        "share", "lowest_group_share", "highest_group_share",
    ] = "worst_group_acc1"  # fmt: skip
    group: grouping.OneOrSeveral | None = None
    skip: Tuple[str] = ()
    objective: str | None = None
    templates: str = "default"
    split: str = "test"


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if problem := grouping.misfit(card, params.group, params.skip, params.primary):
        return problem
    if card.kind == "attributes":
        return _check_objective(card, params)
    if params.objective is not None:
        return "objective belongs to sets of kind attributes"
    if params.templates not in card.templates:
        return unknown("template set", params.templates, card.templates)
    if params.primary in _COUNTED:
        return f"primary {params.primary} belongs to objectives that count"
    return _check_top5(params.primary, len(card.classes))


def _check_objective(card: TaskCard, params: Params) -> str | None:
    if params.objective not in card.objectives:
        word = "none" if params.objective is None else params.objective
        return unknown("objective", word, card.objectives)
    objective = card.objectives[params.objective]
    if bool(objective.counts) != (params.primary in _COUNTED):
        kind = f"counts {objective.counts[0]}, …" if objective.counts else "has a label"
        return f"primary {params.primary} is nothing for the objective {params.objective}, which {kind}"
    return _check_top5(params.primary, len(set(objective.meanings)), folded=bool(objective.means))


def _check_top5(primary: str, classes: int, *, folded: bool = False) -> str | None:
    if primary in _TOP5 and (classes < 5 or folded):
        return f"{primary} needs at least 5 classes{', each with a meaning of its own' if folded else ''}"
    return None


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    return Needs(((params.split, compared),))


def _asked(card: TaskCard, params: Params) -> tuple[TaskCard, Objective | None]:
    """The card whose classes and templates are asked, and the objective that they are of, if any."""
    if params.objective is None:
        return card, None
    objective = card.objectives[params.objective]
    changes = {"classes": objective.classes, "templates": {"default": objective.templates}}
    return card.model_copy(update=changes), objective


def texts(card: TaskCard, splits: dict[str, Split], params: Params) -> list[str]:
    """Every finished prompt, once."""
    asked, objective = _asked(card, params)
    named = "default" if objective else params.templates
    return zero_shot.texts(asked, splits, zero_shot.Params(templates=named))


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Score every image against every class as `zero_shot.run` does, and tell the scores by groups.

    Raises:
        DataError: all samples are of groups that are skipped.
    """
    split = splits[params.split]
    asked, objective = _asked(card, params)
    images = encoder.images(split, encoder.compared)
    named = "default" if objective else params.templates
    weights = zero_shot.classifier(asked, named, encoder)
    rows = decoded(split, images)
    wider = max(len(weights), images.shape[1])
    logits = zero_shot.scored(images, rows, weights * np.float32(encoder.logit_scale), wider)
    ids, clusters = np.array(split.ids, dtype=object)[rows], clusters_of(split, rows)
    if objective is None:
        labels = split.labels[rows].astype(np.int64)
        found = _labelled(logits, labels, ids, len(weights), seed, clusters)
    elif objective.counts:
        found = _counted(logits, objective, ids, clusters)
    else:
        found = _attributed(logits, objective, split, rows, ids, seed, clusters)
    found = _by_groups(found, card, split, rows, clusters, params)
    same = zero_shot.named_alike(asked, named)
    return replace(found, evidence=found.evidence | ({"same_prompts": same} if same else {}))


def _labelled(
    logits: Blocks, target: NDArray[np.int64], ids: Names, classes: int, seed: int, clusters: Names | None
) -> Outcome:
    """What zero-shot classification measures, without the calibration; and the macro F1."""
    found = outcomes.single_label(logits, target, ids, classes, seed, clusters)
    prediction: NDArray[np.int64] = np.asarray(found.samples["prediction"])
    of = None if clusters is None else clustered.codes(clusters)
    scores = {name: score for name, score in found.scores.items() if name != "ece"}
    scores["f1_macro"] = f1.f1_score(target, prediction, classes, of)
    samples = found.samples | {"f1_share": f1.f1_shares(target, prediction, classes)}
    per_class = found.per_class | {"f1": f1.f1_per_class(target, prediction, classes)}
    return Outcome(scores, per_class, samples)


def _attributed(
    logits: Blocks,
    objective: Objective,
    split: Split,
    rows: NDArray[np.int64],
    ids: Names,
    seed: int,
    clusters: Names | None,
) -> Outcome:
    """An objective whose right answer a column says; classes of one meaning are one, once the best class is known."""
    meanings = list(dict.fromkeys(objective.meanings))
    said = split.groupings[str(objective.label)][rows]
    place = {name: number for number, name in enumerate(meanings)}
    lost = next((name for name in said if name not in place), None)
    if lost is not None:
        raise DataError(
            f"{split.dataset}: {int((said == lost).sum()):,} samples are {lost!r} in the column {objective.label}, "
            f"which no class of the objective means (they mean {', '.join(meanings)})",
            hint="add the class, or its meaning, to the objective on the task card",
        )
    target = np.array([place[name] for name in said], dtype=np.int64)
    if not objective.means:
        return replace(_labelled(logits, target, ids, len(meanings), seed, clusters), per_class={})
    of_class = np.array([place[name] for name in objective.meanings])
    chosen = np.eye(len(meanings), dtype=np.float32)
    folded = ((block, chosen[of_class[classification.predict(scores)]]) for block, scores in logits)
    found = _labelled(folded, target, ids, len(meanings), seed, clusters)
    scores = {name: score for name, score in found.scores.items() if name not in _TOP5}
    return replace(found, scores=scores, per_class={})


def _counted(logits: Blocks, objective: Objective, ids: Names, clusters: Names | None) -> Outcome:
    """An objective of which the share of answers is measured that it counts."""
    prediction = np.empty(len(ids), dtype=np.int64)
    for block, scores in logits:
        prediction[block] = classification.predict(scores)
    counts = np.array([name in objective.counts for name in objective.classes])
    hits, chance = counts[prediction], float(counts.mean())
    if clusters is None:
        score = intervals.accuracy_score(hits, chance)
    else:
        score = clustered.mean_score(hits.astype(np.float64), clustered.codes(clusters), chance)
    samples = {"id": ids, "prediction": prediction, "counted": hits.astype(np.float64)}
    return Outcome({"share": score}, {}, samples | outcomes.column_of(clusters))


def _by_groups(
    found: Outcome,
    card: TaskCard,
    split: Split,
    rows: NDArray[np.int64],
    clusters: Names | None,
    params: Params,
) -> Outcome:
    """The outcome with its scores by group: the worst one's in the scores, each one's in the evidence."""
    columns = grouping.columns_of(card, params.group)
    groups = grouping.groups_by(split, columns, rows)
    if groups is None:
        return found
    kept = grouping.counted(groups, params.skip)
    scores, told = dict(found.scores), dict[str, list[dict[str, Any]]]()
    within = None if clusters is None else clusters[kept]
    if within is not None and _are_clusters(groups[kept], within):
        within = None
    for metric, hits in _measured(found):
        top = scores[metric]
        worst, evidence = outcomes.by_group(hits[None, kept], groups[kept], within, top.chance, metric)
        if metric == "share":
            lowest = worst["worst_group_share"]
            highest = outcomes.by_group(1 - hits[None, kept], groups[kept], within, None, metric)[0]
            worst = {
                "lowest_group_share": lowest,
                "highest_group_share": _turned(highest["worst_group_share"], top),
            }
            evidence["groups"].reverse()
        scores |= worst
        told[metric] = evidence["groups"]
    metric = "acc5" if params.primary in _TOP5 else next(iter(told))
    every = np.unique(np.concatenate([groups, grouping.groups_by(split, columns, np.arange(len(split)))]))
    known = [*(grouping.names(card, columns) or ()), *every.tolist()]
    (hits,) = (hits for each, hits in _measured(found) if each == metric)
    evidence = {
        "groups": _together(told, metric),
        "grouped": grouping.told(columns, metric, hits, groups, params.skip, known),
    }
    samples = found.samples | {"group": grouping.column(groups, params.skip)}
    if within is None and "_group_" in params.primary:  # two models are then compared over samples, too
        samples.pop("cluster", None)
    return replace(found, scores=scores, samples=samples, evidence=found.evidence | evidence)


def _are_clusters(groups: Names, clusters: Names) -> bool:
    """Whether each group is of one cluster, such as the worst slide: it is that cluster's samples then that vary."""
    pairs = len({*zip(groups.tolist(), clusters.tolist(), strict=True)})
    return pairs == len({*groups.tolist()})


def _measured(found: Outcome) -> Iterator[tuple[str, Doubles]]:
    """What is told by group: metric, and what each sample adds to it, float64 [n]."""
    if "counted" in found.samples:
        yield "share", np.asarray(found.samples["counted"])
        return
    rank = np.asarray(found.samples["rank"])
    for metric, within in (("acc1", 1), ("acc5", 5)):
        if metric in found.scores:
            yield metric, (rank < within).astype(np.float64)


def _turned(lacking: Score, share: Score) -> Score:
    """The highest share, of the lowest of what shares lack to 1."""
    low, high = lacking.ci95
    return Score(1 - lacking.value, (1 - high, 1 - low), lacking.n, share.chance)


def _together(told: dict[str, list[dict[str, Any]]], metric: str) -> list[dict[str, Any]]:
    """Each group with all that is told of it, in the order of `metric`, whose interval it is."""
    others = {
        one["group"]: {name: one[name]} for name, groups in told.items() if name != metric for one in groups
    }
    return [one | others.get(one["group"], {}) for one in told[metric]]


def _pulled(metric: str, table: Columns, params: Recorded) -> Doubles | None:
    """What each sample adds to the macro F1."""
    return np.array(table["f1_share"], dtype=np.float64) if "f1_share" in table else None


def _share(metric: str, table: Columns, params: Recorded) -> Doubles | None:
    """Which answers are counted."""
    return np.array(table["counted"], dtype=np.float64) if "counted" in table else None


_SHARE: Final = "counted classes / classes"
PROTOCOL: Final = Protocol(
    id="groups",
    version=1,
    kinds=("single-label", "attributes"),
    params=Params,
    metrics=(
        *(spec for spec in outcomes.SINGLE_LABEL if spec.name != "ece"),
        outcomes.TOP5_OF_GROUPS,
        MetricSpec(
            "f1_macro", "answers drawn evenly", shares=_pulled, elsewhere={"DataComp": "F1-macro_all"}
        ),
        MetricSpec("share", _SHARE, less_is_better=True, shares=_share),
        MetricSpec("lowest_group_share", _SHARE, less_is_better=True, shares=_share, lowest_of="group"),
        MetricSpec(
            "highest_group_share", _SHARE, less_is_better=True, shares=_share, lowest_of="group", highest=True
        ),
    ),
    check=check,
    needs=needs,
    run=run,
    texts=texts,
)
