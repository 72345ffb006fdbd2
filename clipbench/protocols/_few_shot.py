"""Probes on few samples a class: several draws of them, and intervals that hold how much the draws differ."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError
from clipbench.metrics import clustered, intervals
from clipbench.protocols import _grouping as grouping
from clipbench.protocols import _logistic as logistic
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols._samples import Samples
from clipbench.protocols.base import Inputs, Outcome


def few_shot(
    dataset: str,
    classes: int,
    train: Samples,
    test: Samples,
    encoder: Inputs,
    settings: logistic.Logistic,
    shots: int,
    draws: int,
    seed: int,
    skip: Sequence[str] = (),
) -> Outcome:
    """`draws` probes on few samples a class; scores are means over the draws, their intervals about which shots are
    drawn and which test samples there are (`stats.of_draws`).

    A draw depends on the data set's id, the seed, its number and `shots` alone: no title or other word on a card.
    """
    from clipbench.solvers.logistic import fit_path

    found, evidence = [], []
    with encoder.tracked("draws", draws) as advance:
        for draw in range(draws):
            rng = np.random.default_rng([seed, draw, shots, zlib.crc32(dataset.encode())])
            shot, further = _draw(train.labels, shots, rng, train.clusters)
            fitted, held = train.part(shot), train.part(further)
            path = fit_path(
                fitted.features,
                fitted.labels,
                classes,
                logistic.lambdas_of(settings),
                **logistic.solving(settings, encoder),
            )
            curve = path.correct(held.features, held.labels) / len(held.labels)
            best = logistic.best_of(curve)
            blocks = ((rows, scores[best]) for rows, scores in path.scores(test.features))
            found.append(outcomes.single_label(blocks, test.labels, test.ids, classes, seed, test.clusters))
            evidence.append(
                {
                    "curve": logistic.curve_of(path, curve),
                    "chosen": logistic.choice(path, best),
                    "n": len(shot),
                }
            )
            advance(1)
    source = f"up to {min(shots, 4)} further samples a class"
    source += "" if train.clusters is None else ", of clusters without a shot"
    return _mean_of(found, evidence, test, source, settings, seed, skip)


def _draw(
    labels: NDArray[np.int64],
    shots: int,
    rng: np.random.Generator,
    clusters: NDArray[np.object_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`shots` rows of each class, and up to 4 (and at most `shots`) further ones, each ascending.

    None of the further ones is from a cluster of the shots, of whatever class.
    """
    taken, rest = [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < shots + 1:
            raise DataError(
                f"class number {label} has {len(rows)} training samples; {shots} shots and one further sample to "
                "choose λ on need more",
                hint="take a variant with fewer shots, or raise --limit",
            )
        taken.append(rows[:shots])
        rest.append(rows[shots:])
    if clusters is not None:
        seen = set(clusters[np.concatenate(taken)].tolist())
        rest = [rows[[name not in seen for name in clusters[rows]]] for rows in rest]
        if not any(len(rows) for rows in rest):
            raise DataError(
                f"{shots} shots a class are from all of the {len(seen)} clusters of the training split, so no sample "
                "is left to choose λ on",
                hint="take a variant with fewer shots, or raise --limit",
            )
    further = [rows[: min(shots, 4)] for rows in rest]
    return np.sort(np.concatenate(taken)), np.sort(np.concatenate(further))


def _mean_of(
    found: list[Outcome],
    draws: list[dict[str, Any]],
    test: Samples,
    source: str,
    settings: logistic.Logistic,
    seed: int,
    skip: Sequence[str] = (),
) -> Outcome:
    scores: dict[str, intervals.Score] = {}
    per_draw: dict[str, list[float]] = {}
    ranks = np.array([outcome.samples["rank"] for outcome in found])
    clusters = None if test.clusters is None else clustered.codes(test.clusters)
    for name, first in logistic.without_ece(found[0]).items():
        values = [outcome.scores[name].value for outcome in found]
        per_draw[name] = values
        hits = (ranks < (5 if name == "acc5" else 1)).mean(axis=0)
        per_class = name == "mean_per_class_recall"
        independent = float(len(hits))
        if clusters is not None:
            spread = clustered.spread(hits, clusters, test.labels if per_class else None)
            error, freedom, independent = spread.error, spread.freedom, spread.clusters
        elif per_class:
            error, freedom = _error_of_recall(hits, test.labels), len(hits) - 1
        else:
            error, freedom = float(hits.std()) / math.sqrt(max(len(hits) - 1, 1)), len(hits) - 1
        value = float(np.mean(values))
        half, _ = intervals.of_draws(values, error, freedom + 1)
        if half == 0:  # all draws and samples alike: what one sample of each of them would say
            low, high = intervals.wilson(value * independent, independent)
        else:
            low, high = max(0.0, value - half), min(1.0, value + half)
        scores[name] = intervals.Score(value, (low, high), first.n, first.chance)
    recall = np.mean([outcome.per_class["recall"] for outcome in found], axis=0)
    samples: dict[str, Any] = {"id": test.ids, "target": test.labels} | outcomes.column_of(test.clusters)
    samples |= {} if test.groups is None else {"group": grouping.column(test.groups, skip)}
    samples |= {f"rank_{i}": rank for i, rank in enumerate(ranks)}
    right = (ranks == 0).astype(np.float64)
    of_groups, told = outcomes.by_group(right, test.groups, test.clusters, scores["acc1"].chance, skip=skip)
    if test.groups is not None:  # the lowest of each draw, whose mean is below the lowest mean
        rows = [test.groups == name for name in np.unique(test.groups) if name not in skip]
        per_draw["worst_group_acc1"] = np.min([right[:, own].mean(axis=1) for own in rows], axis=0).tolist()
    evidence = told | {
        "draws": draws,
        "per_draw": per_draw,
        "std": {name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in per_draw.items()},
        "validation": {"metric": "acc1", "source": source},
        "criterion": logistic.criterion(settings, sweep=False),
    }
    return Outcome(scores | of_groups, {"recall": recall}, samples, evidence)


def _error_of_recall(hits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Standard error of the mean over classes of the mean of `hits` (float64 [n]) within each.

    Classes of a single sample count with the variance that hits have at most at their mean.
    """
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    mean = np.bincount(place, weights=hits) / counts
    variance = np.bincount(place, weights=(hits - mean[place]) ** 2) / np.maximum(counts - 1, 1)
    variance = np.where(counts > 1, variance, hits.mean() * (1 - hits.mean()))
    return float(np.sqrt((variance / counts).sum()) / len(counts))
