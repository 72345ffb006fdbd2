"""From scores of every sample to an Outcome: what all protocols that classify report alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.task import TaskCard
from clipbench.metrics import average_precision, classification, clustered, intervals, worst_group
from clipbench.metrics.average_precision import DIFFICULT, APKind, Difficult
from clipbench.metrics.average_precision_intervals import mean_average_precision_scores
from clipbench.protocols import _grouping as grouping
from clipbench.protocols.base import Columns, MetricSpec, Outcome, Recorded

Doubles = NDArray[np.float64]


def _drawn(table: Columns) -> list[NDArray[Any]]:
    """The ranks of the right class, from 0: of one probe, or of each draw of shots."""
    return [np.array(table[name]) for name in table if name == "rank" or name.startswith("rank_")]


def _mean(hits: Sequence[NDArray[np.bool_]]) -> Doubles:
    mean: Doubles = np.stack(hits).mean(axis=0, dtype=np.float64)
    return mean


def _hits(metric: str, table: Columns, params: Recorded) -> Doubles | None:
    """Which samples are right by their best class, or by one of their best five."""
    ranks = _drawn(table)
    return _mean([rank < (5 if metric.endswith("acc5") else 1) for rank in ranks]) if ranks else None


def _recalled(metric: str, table: Columns, params: Recorded) -> Doubles | None:
    """What each sample adds to the mean over classes."""
    ranks = _drawn(table)
    if not ranks:
        return None
    _, label, counts = np.unique(table["target"], return_inverse=True, return_counts=True)
    right = _mean([rank == 0 for rank in ranks])
    return right * len(right) / (counts.size * counts[label])


_THEIRS: Final = "CLIP_benchmark"
_DATACOMP: Final = "DataComp"
#: what `single_label` reports
SINGLE_LABEL: Final = (
    MetricSpec("acc1", "1 / classes", shares=_hits, elsewhere={_THEIRS: "acc1", "huggingface": "accuracy"}),
    MetricSpec("acc5", "5 / classes", shares=_hits, elsewhere={_THEIRS: "acc5"}),
    MetricSpec(
        "mean_per_class_recall", "1 / classes", shares=_recalled, elsewhere={_THEIRS: "mean_per_class_recall"}
    ),
    MetricSpec("ece", "none", less_is_better=True),
    MetricSpec(
        "worst_group_acc1", "1 / classes", shares=_hits, lowest_of="group", elsewhere={_DATACOMP: "acc_wg"}
    ),
)
#: what of groups only the protocol of that name reports
TOP5_OF_GROUPS: Final = MetricSpec(
    "worst_group_acc5", "5 / classes", shares=_hits, lowest_of="group", elsewhere={_DATACOMP: "acc_top5_wg"}
)
#: what `multi_label` may report
MULTI_LABEL: Final = (
    MetricSpec(
        "map_area", "share of positives", precision="area", elsewhere={_THEIRS: "mean_average_precision"}
    ),
    MetricSpec("map_11pt", "share of positives", precision="11pt"),
    MetricSpec("map_envelope", "share of positives", precision="envelope"),
)

Names = NDArray[np.object_]
SampleColumns = dict[str, NDArray[Any] | list[NDArray[Any]]]


def single_label(
    blocks: Iterable[tuple[slice, NDArray[np.float32]]],
    target: NDArray[np.int64],
    ids: Sequence[str] | NDArray[np.object_],
    classes: int,
    seed: int,
    clusters: Names | None = None,
    groups: Names | None = None,
    *,
    skip: Sequence[str] = (),
) -> Outcome:
    """acc1, acc5 (from 5 classes on), mean per-class recall and ece, the lowest index winning a tie; and of groups acc1
    on the worst one.

    Intervals are over samples, or over clusters where samples belong together (see `clipbench.metrics.clustered`).

    Args:
        blocks: row slices and their logits, float32 [b, classes], that cover all samples.
        target: int64 [n], class indices below `classes`.
        clusters, groups: text [n], the cluster and the group of each sample.
        skip: groups that are not to be the worst.
    """
    rank, prediction = np.empty_like(target), np.empty_like(target)
    confidence = np.empty(len(target), dtype=np.float64)
    for rows, logits in blocks:
        rank[rows] = classification.rank_of_target(logits, target[rows])
        prediction[rows] = classification.predict(logits)
        confidence[rows] = classification.winning_confidence(logits)
    correct = rank == 0
    hits = {"acc1": (correct, 1 / classes)} | ({"acc5": (rank < 5, 5 / classes)} if classes >= 5 else {})
    if clusters is None:
        scores = {name: intervals.accuracy_score(*right) for name, right in hits.items()}
        recall = intervals.mean_per_class_recall_score(target, prediction, classes, seed)
        scores |= {"mean_per_class_recall": recall, "ece": intervals.ece_score(confidence, correct, seed)}
    else:
        of = clustered.codes(clusters)
        scores = {
            name: clustered.mean_score(right.astype(np.float64), of, chance)
            for name, (right, chance) in hits.items()
        }
        scores["mean_per_class_recall"] = clustered.recall_score(target, prediction, classes, of)
        scores["ece"] = clustered.ece_score(confidence, correct, of, seed)
    samples: SampleColumns = {"id": np.asarray(ids), "target": target, "prediction": prediction}
    samples |= {"rank": rank, "confidence": confidence} | column_of(clusters)
    samples |= {} if groups is None else {"group": grouping.column(groups, skip)}
    right = correct[None].astype(np.float64)
    of_groups, evidence = by_group(right, groups, clusters, 1 / classes, skip=skip)
    per_class = {"recall": classification.per_class_recall(target, prediction, classes)}
    return Outcome(scores | of_groups, per_class, samples, evidence)


def any_label(
    blocks: Iterable[tuple[slice, NDArray[np.float32]]],
    labels: NDArray[np.uint8],
    ids: Sequence[str] | NDArray[np.object_],
    clusters: Names | None = None,
) -> Outcome:
    """acc1 and acc5 where each sample has all the labels that are right: its best class, or of its best five, is one.

    Chance is what a class drawn evenly gets.

    Args:
        blocks: row slices and their logits, float32 [b, classes], that cover all samples.
        labels: uint8 [n, classes], 1 where a class is right; each sample has one.
    """
    classes, many = labels.shape[1], labels.sum(axis=1, dtype=np.int64)
    rank, prediction = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    for rows, logits in blocks:
        right = np.where(labels[rows] == 1, logits, -np.inf)
        rank[rows] = classification.rank_of_target(logits, right.argmax(axis=1))
        prediction[rows] = classification.predict(logits)
    one = many / classes
    kept = np.arange(5)[:, None]
    misses = np.maximum(classes - many - kept, 0) / (classes - kept)
    chances = {"acc1": float(one.mean())} | (
        {"acc5": float(1 - misses.prod(axis=0).mean())} if classes >= 5 else {}
    )
    scores = {}
    for name, chance in chances.items():
        hits = rank < (5 if name == "acc5" else 1)
        if clusters is None:
            scores[name] = intervals.accuracy_score(hits, chance)
        else:
            scores[name] = clustered.mean_score(hits.astype(np.float64), clustered.codes(clusters), chance)
    samples: SampleColumns = {"id": np.asarray(ids), "prediction": prediction, "rank": rank}
    samples |= {"labels": list(map(np.flatnonzero, labels == 1))} | column_of(clusters)
    return Outcome(scores, {}, samples)


def by_group(
    hits: Doubles,
    groups: Names | None,
    clusters: Names | None,
    chance: float | None,
    metric: str = "acc1",
    skip: Sequence[str] = (),
) -> tuple[dict[str, intervals.Score], dict[str, Any]]:
    """`metric` on the worst group, and as evidence each group's, the worst first; nothing where there are no groups.

    Args:
        hits: float64 [R, n], which samples each draw of shots has right.
        groups, clusters: text [n], of each sample.
        skip: groups that are not to be the worst.
    """
    if groups is None:
        return {}, {}
    if skip:
        kept = grouping.counted(groups, skip)
        hits, groups = hits[:, kept], groups[kept]
        clusters = None if clusters is None else clusters[kept]
    of = None if clusters is None else clustered.codes(clusters)
    worst, every = worst_group.worst_group(hits, worst_group.codes(groups), of, chance)
    named = zip(np.unique(groups).tolist(), every, strict=True)
    told = [
        {"group": name, metric: score.value, "ci95": list(score.ci95), "n": score.n}
        for name, score in sorted(named, key=lambda pair: pair[1].value)
    ]
    return {f"worst_group_{metric}": worst}, {"groups": told}


def column_of(names: Names | None, column: str = "cluster") -> SampleColumns:
    """The column of clusters, or groups, for the samples of an outcome; nothing where the data says none."""
    return {} if names is None else {column: names}


def multi_label(
    scores: NDArray[np.float32],
    labels: NDArray[np.uint8],
    ids: Sequence[str] | NDArray[np.object_],
    difficult: Difficult,
    seed: int,
    kinds: Sequence[APKind] = ("area", "11pt"),
    clusters: Names | None = None,
) -> Outcome:
    """Mean average precisions over classes, each class ranked over all images.

    Args:
        scores: float32 [n, C].
        labels: uint8 [n, C]: 0, 1, or `metrics.DIFFICULT`.
        kinds: of average precision.
        clusters: text [n], the cluster of each sample.
    """
    of = None if clusters is None else clustered.codes(clusters)
    samples: SampleColumns = {"id": np.asarray(ids), "target": list(labels)}
    samples |= {"score": list(scores.astype(np.float32))} | column_of(clusters)
    return Outcome(
        dict(mean_average_precision_scores(scores, labels, seed, difficult, kinds, cluster=of)),
        {
            f"ap_{k}": average_precision.per_class_average_precision(scores, labels, k, difficult)
            for k in kinds
        },
        samples,
    )


def misfit_of_labels(card: TaskCard, primary: str, difficult: Difficult | None) -> str | None:
    """Why a classifier's primary metric, or what it does with difficult objects, is nothing for `card`; or None."""
    multi = card.kind == "multi-label"
    single = ("acc1", "acc5", "mean_per_class_recall", "worst_group_acc1")
    allowed = ("map_area", "map_11pt") if multi else single
    if primary not in allowed:
        return f"primary {primary} is no metric of a {card.kind} set (allowed: {', '.join(allowed)})"
    if primary == "acc5" and len(card.classes) < 5:
        return "acc5 needs at least 5 classes"
    if primary == "worst_group_acc1" and card.columns.group is None:
        return "worst_group_acc1 needs columns.group on the task card"
    return "difficult belongs to multi-label sets" if difficult and not multi else None


def training_labels(labels: NDArray[np.uint8], difficult: Difficult) -> NDArray[np.uint8]:
    """Labels to train on: objects marked as difficult are negatives, unless the test counts them as positive."""
    return np.where(labels == DIFFICULT, int(difficult == "positive"), labels).astype(np.uint8)


def convergence(tolerance: float) -> str:
    """When the solvers call a fit converged, for the record (see `clipbench.solvers.logistic.Path`)."""
    return (
        f"estimated f − min f ≤ {tolerance:g} · min(f, f₀ − f), by gᵀ H⁻¹ g / 2 with gradient g and Hessian H; "
        "f₀ is the objective of the best constant probe"
    )
