"""Linear probes of frozen features (CLIP, arXiv 2103.00020, appendix A.3), and cheaper and older ways to probe."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.cards import LABELLED, Strict, TaskCard
from clipbench.data.split import Split
from clipbench.errors import DataError, unknown
from clipbench.metrics import clustered, intervals
from clipbench.metrics import scores as metrics
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols._samples import Samples
from clipbench.protocols.base import Elsewhere, Inputs, Needs, Outcome, Protocol
from clipbench.protocols.base import Params as ParamsBase
from clipbench.solvers.selection import Selection

if TYPE_CHECKING:
    from clipbench.solvers.logistic import Path


_SINGLE: Final = ("acc1", "acc5", "mean_per_class_recall")
_MULTI: Final = ("map_area", "map_11pt")
_EDGE: Final = "the best λ is the {} of the range: a wider range may hold a better one"


class Logistic(Strict):
    """Logistic regression with L2: Σ cross-entropy + λ ‖W‖² / 2, the bias unpenalised, λ = 1 / C.

    λ is the best on validation data of `lambdas` log-spaced values, the middle one among equals; the probe is
    then fitted again on training and validation data together. Every λ is solved until the estimated
    distance of its objective to the minimum is at most `tolerance`, relative to the objective and to what it gains
    on the best constant probe, within `max_iter` passes over the features. While λ is being chosen, a gradient
    norm of at most `sweep` of its value at the best constant probe is enough (0: never), and up to five times that
    for weak λ (`logistic.widening`); what is chosen is then fitted exactly.
    """

    kind: Literal["logistic"] = "logistic"
    lambdas: int = Field(96, ge=1)
    lowest: float = Field(1e-6, gt=0)
    highest: float = Field(1e6, gt=0)
    tolerance: float = Field(1e-7, gt=0)
    sweep: float = Field(4e-4, ge=0)
    max_iter: int = Field(1000, ge=1)


class AdamW(Strict):
    """CLIP_benchmark's probe: minibatches of AdamW, cosine schedule, no choice of anything on validation data."""

    kind: Literal["adamw"]
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=1)


class SgdVirtex(Strict):
    """VirTex's probe: SGD for many epochs. `crops`: each epoch sees new random crops and flips of the images
    through the frozen tower; without, it sees the stored features of the central crops."""

    kind: Literal["sgd-virtex"]
    lr: float = Field(0.3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1)
    crops: bool = False


class Knn(Strict):
    """Majority among the k nearest training samples by cosine."""

    kind: Literal["knn"]
    k: int = Field(20, ge=1)


class Params(ParamsBase):
    """What a task card may set under `protocols: {lp: …}`.

    Attributes:
        primary: the metric that stands for the task, and that chooses λ.
        space: the features that are probed.
        train, validation, test: the card's splits. Without `validation`, `holdout` of the training samples of
            each class (at least one where there are two) is held out, drawn with the run's seed; whole clusters,
            where the card names them, and so of each class about that share.
        shots: this many training samples a class only, `draws` times; λ is chosen on up to 4 further ones a
            class, and the probe is not fitted on those; none of them is from a cluster of the shots.
        classifier: what is fitted.
        difficult: multi-label sets that mark difficult objects: what they are in the test. In training they
            are negatives, unless they are positive in the test.
    """

    primary: Literal["acc1", "acc5", "mean_per_class_recall", "map_area", "map_11pt"] = "acc1"
    space: Literal["backbone", "joint"] = "backbone"
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    holdout: float = Field(0.2, gt=0, lt=1)
    shots: int | None = Field(None, ge=1)
    draws: int = Field(5, ge=1)
    classifier: Annotated[Logistic | AdamW | SgdVirtex | Knn, Field(discriminator="kind")] = Logistic()
    difficult: Literal["ignore", "positive", "negative"] | None = None


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    for role in (params.train, params.validation, params.test):
        if role is not None and role not in card.splits:
            return unknown("split", role, card.splits)
    if params.train in (params.validation, params.test) or params.validation == params.test:
        return "train, validation and test must be different splits"
    multi = card.kind == "multi-label"
    allowed = _MULTI if multi else _SINGLE
    if params.primary not in allowed:
        return f"primary {params.primary} is no metric of a {card.kind} set (allowed: {', '.join(allowed)})"
    if params.primary == "acc5" and len(card.classes) < 5:
        return "acc5 needs at least 5 classes"
    logistic = isinstance(params.classifier, Logistic)
    if multi and not (logistic and params.shots is None):
        return "multi-label sets have the logistic probe on all samples only"
    if params.shots is not None and not logistic:
        return "shots belong to the logistic probe"
    if params.difficult and not multi:
        return "difficult belongs to multi-label sets"
    if isinstance(params.classifier, Logistic) and params.classifier.lowest > params.classifier.highest:
        return "lowest is above highest"
    return None


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    roles = [params.train, params.test, *([params.validation] if params.validation else [])]
    return Needs(tuple((role, params.space) for role in roles))


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Fit on the training split, choose on validation data, score once on the test split.

    Images that could not be decoded (rows of NaN) are left out. What is drawn depends on the seed and the split
    alone, never on whether its features were cached.
    """
    train = Samples.of(splits[params.train], encoder, params.space)
    test = Samples.of(splits[params.test], encoder, params.space)
    if card.kind == "multi-label":
        return _multi_label(card, splits, train, test, encoder, params, seed)
    if params.shots is not None:
        name = splits[params.train].dataset
        return _few_shot(name, len(card.classes), train, test, encoder, params, seed)
    classes = len(card.classes)
    match params.classifier:
        case Logistic():
            validation = _validation(splits, encoder, params)
            blocks, evidence = _logistic(train, validation, test, classes, encoder, params, seed)
        case AdamW() | SgdVirtex():
            blocks, evidence = _minibatches(splits[params.train], train, test, classes, encoder, params, seed)
        case Knn(k=k):
            from clipbench.solvers.neighbours import vote

            blocks = vote(train.features, train.labels, classes, test.features, k, encoder.device)
            evidence = {}
    outcome = outcomes.single_label(blocks, test.labels, test.ids, classes, seed, test.clusters)
    return replace(outcome, scores=_without_ece(outcome), evidence=evidence)


def _without_ece(outcome: Outcome) -> dict[str, intervals.Score]:
    """A probe's temperature is that of its training data; its calibration is nothing that papers report."""
    return {name: score for name, score in outcome.scores.items() if name != "ece"}


def hold_out(labels: NDArray[Any], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to fit on and rows held out, each ascending: `share` of every class, at least one where there are two.

    Multi-label rows (uint8 [n, C]) have no one class: `share` of all rows is held out.

    >>> fit, held = hold_out(np.array([0, 0, 0, 0, 1, 1, 2]), 0.25, seed=0)
    >>> len(held), [0, 0, 1] == np.array([0, 0, 0, 0, 1, 1, 2])[held].tolist()
    (2, False)
    """
    rng = np.random.default_rng(seed)
    held: list[NDArray[np.int64]] = []
    groups = [np.arange(len(labels))]
    if labels.ndim == 1:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for rows in groups:
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held.append(rng.permutation(rows)[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def hold_out_clusters(
    labels: NDArray[Any], cluster: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `hold_out`, of whole clusters (int64 [n], from 0 on): about `share` of every class.

    Clusters take turns in a seeded order; each is held out where that brings the classes' counts nearer to their
    share (by squares, relative to the classes' sizes) and leaves every class something to fit on. A class of which
    nothing is then held out gives its smallest cluster, where the others leave it and all others something.

    >>> fit, held = hold_out_clusters(np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2]), 0.3, seed=0)
    >>> held.tolist()
    [4, 5]
    """
    classes = (
        np.zeros(len(labels), np.int64) if labels.ndim > 1 else np.unique(labels, return_inverse=True)[1]
    )
    kinds, count = int(classes.max()) + 1, int(cluster.max()) + 1
    sizes = np.bincount(classes)
    cells, numbers = np.unique(cluster * kinds + classes, return_counts=True)
    starts = np.searchsorted(cells, np.arange(count + 1) * kinds)
    of = [(cells[a:b] % kinds, numbers[a:b]) for a, b in itertools.pairwise(starts.tolist())]
    held, taken = np.zeros(kinds, np.int64), np.zeros(count, np.bool_)

    def leaves_some(own: int) -> bool:
        kind, number = of[own]
        return bool((held[kind] + number < sizes[kind]).all())

    order = np.random.default_rng(seed).permutation(count).tolist()
    for own in order:
        kind, number = of[own]
        nearer = (number * (2 * (held[kind] - share * sizes[kind]) + number) / sizes[kind]).sum() < 0
        if nearer and leaves_some(own):
            taken[own], held[kind] = True, held[kind] + number
    for kind in range(kinds):
        if held[kind] == 0:
            able = [own for own in order if kind in of[own][0] and leaves_some(own)]
            if able:
                own = min(able, key=lambda one: int(of[one][1].sum()))
                taken[own], held[of[own][0]] = True, held[of[own][0]] + of[own][1]
    out = np.flatnonzero(taken[cluster])
    return np.setdiff1d(np.arange(len(labels)), out), out


# ------------------------------------------------------------ logistic regression


def _logistic(
    train: Samples,
    validation: Samples | None,
    test: Samples,
    classes: int,
    encoder: Inputs,
    params: Params,
    seed: int,
) -> tuple[Iterator[tuple[slice, NDArray[np.float32]]], dict[str, Any]]:
    from clipbench.solvers.logistic import fit_path

    assert isinstance(params.classifier, Logistic)
    settings = params.classifier
    fitted, held, whole = _divided(train, validation, params, seed)
    with encoder.tracked("λ", settings.lambdas) as advance:
        path = fit_path(
            fitted.features, fitted.labels, classes, _lambdas(settings),
            gradient_tolerance=settings.sweep, progress=_steps(advance), **_solving(settings, encoder),
        )  # fmt: skip
    if params.primary == "mean_per_class_recall":
        predictions = path.predict(held.features)
        curve = np.array([metrics.mean_per_class_recall(held.labels, p, classes) for p in predictions])
    elif params.primary == "acc5":
        curve = _top5(path, held)
    else:
        curve = path.correct(held.features, held.labels) / len(held.labels)
    best = _best(curve)
    final = fit_path(
        whole.features, whole.labels, classes, path.lambdas[best : best + 1],
        like=path, **_solving(settings, encoder),
    )  # fmt: skip
    blocks = ((rows, scores[0]) for rows, scores in final.scores(test.features))
    evidence = {
        "validation": _described(validation, held, params),
        "curve": _curve(path, curve),
        "chosen": _chosen(path, best),
        "final": _solution(final, 0),
        "criterion": _criterion(settings),
        "not_converged": [*path.unconverged(), *final.unconverged()],
    }
    return blocks, evidence


def _validation(splits: dict[str, Split], encoder: Inputs, params: Params) -> Samples | None:
    """The samples of the card's own validation split, where `params` names one."""
    return Samples.of(splits[params.validation], encoder, params.space) if params.validation else None


def _divided(
    train: Samples, validation: Samples | None, params: Params, seed: int
) -> tuple[Samples, Samples, Samples]:
    """Samples to fit on, to choose λ on, and both together."""
    if validation is not None:
        return train, validation, train.joined(validation)
    if train.clusters is None:
        fit, held = hold_out(train.labels, params.holdout, seed)
    else:
        fit, held = hold_out_clusters(train.labels, clustered.codes(train.clusters), params.holdout, seed)
    if not len(held):
        what = "samples" if train.clusters is None else "clusters of training samples"
        raise DataError(
            f"no class has two training {what}, so none can be held out to choose λ on"
            if train.clusters is None
            else f"no class has two {what}, so none can be held out to choose λ on",
            hint="raise --limit, or name a validation split on the card",
        )
    return train.part(fit), train.part(held), train


def _lambdas(settings: Logistic) -> NDArray[np.float64]:
    return np.geomspace(settings.lowest, settings.highest, settings.lambdas)


def _solving(settings: Logistic, encoder: Inputs) -> dict[str, Any]:
    """What all fits of a probe have in common."""
    return {"device": encoder.device, "tolerance": settings.tolerance, "max_iter": settings.max_iter}


def _best(curve: NDArray[np.float64]) -> int:
    """Index of the best score; among equals the middle one, which is furthest from where scores fall."""
    equal = np.flatnonzero(curve == curve.max())
    return int(equal[len(equal) // 2])


def _top5(path: Path, held: Samples) -> NDArray[np.float64]:
    hits = np.zeros(path.lambdas.size)
    for rows, scores in path.scores(held.features):
        hits += [(metrics.rank_of_target(s, held.labels[rows]) < 5).sum() for s in scores]
    return hits / len(held.labels)


def _steps(advance: Any) -> Any:
    """A solver's progress (done, of all) as steps of a bar."""
    last = 0

    def progress(done: int, _: int) -> None:
        nonlocal last
        advance(done - last)
        last = done

    return progress


def _criterion(settings: Logistic, *, sweep: bool = True) -> str:
    """When a λ had converged. `sweep`: λ was chosen on fits that were allowed to end sooner."""
    exact = outcomes.convergence(settings.tolerance)
    if not (sweep and settings.sweep):
        return exact
    return (
        f"{exact}; while choosing λ, ‖g‖ ≤ {settings.sweep:g} ‖g₀‖ min(5, max(1, (ḡ / 2000 λ)^¼)) is enough, "
        "with ḡ the mean eigenvalue of the centred Gram matrix"
    )


def _described(validation: Samples | None, held: Samples, params: Params) -> dict[str, Any]:
    source = (
        f"{params.holdout:g} of {params.train}, held out" if validation is None else str(params.validation)
    )
    return {"metric": params.primary, "n": len(held.labels), "source": source}


def _curve(path: Path, curve: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [{**_solution(path, i), "score": float(score)} for i, score in enumerate(curve)]


def _solution(path: Path, index: int) -> dict[str, Any]:
    """One λ of a path and how well it was solved (the worst of several binary problems)."""
    return {
        "lambda": float(path.lambdas[index]),
        "objective": float(np.sum(path.objective[index])),
        "distance": float(np.max(path.distance[index])),
        "gradient": float(np.max(path.gradient[index])),
        "n_iter": int(np.max(path.n_iter[index])),
        "converged": bool(np.all(path.converged[index])),
    }


def _chosen(path: Path, index: int) -> dict[str, Any]:
    value, count = float(path.lambdas[index]), path.lambdas.size
    edge = {0: "lowest", count - 1: "highest"}.get(index) if count > 1 else None
    return {"lambda": value, "C": 1 / value, "edge": _EDGE.format(edge) if edge else None}


# ------------------------------------------------------------------ multi-label


def _multi_label(
    card: TaskCard,
    splits: dict[str, Split],
    train: Samples,
    test: Samples,
    encoder: Inputs,
    params: Params,
    seed: int,
) -> Outcome:
    """One logistic regression a class, each with the λ that is best for it on validation data."""
    from clipbench.solvers.logistic import fit_path_binary

    assert isinstance(params.classifier, Logistic)
    settings = params.classifier
    difficult = outcomes.require_difficult(splits[params.test], params.difficult)
    validation = _validation(splits, encoder, params)
    fitted, held, whole = _divided(train, validation, params, seed)
    with encoder.tracked("λ", settings.lambdas) as advance:
        path = fit_path_binary(
            fitted.features, outcomes.training_labels(fitted.labels, difficult), _lambdas(settings),
            gradient_tolerance=settings.sweep, progress=_steps(advance), **_solving(settings, encoder),
        )  # fmt: skip
    kind: metrics.APKind = "11pt" if params.primary == "map_11pt" else "area"
    ranked = np.concatenate([scores for _, scores in path.scores(held.features)], axis=1)
    curves = np.array([metrics.per_class_average_precision(s, held.labels, kind, difficult) for s in ranked])
    overall = _mean_known(curves)
    # A class without positives among the held-out images takes the λ that is best for the others.
    best = [_best(c if np.isfinite(c).all() else overall) for c in curves.T]
    chosen = sorted(set(best))
    final = fit_path_binary(
        whole.features, outcomes.training_labels(whole.labels, difficult), path.lambdas[chosen],
        like=path, **_solving(settings, encoder),
    )  # fmt: skip
    place = np.array([chosen.index(b) for b in best])
    columns = np.arange(len(best))
    scores = np.concatenate([s[place, :, columns].T for _, s in final.scores(test.features)])
    labels = test.labels.astype(np.uint8)
    outcome = outcomes.multi_label(scores, labels, test.ids, difficult, seed, clusters=test.clusters)
    names = dict(zip(card.classes, best, strict=True))
    evidence = {
        "validation": _described(validation, held, params),
        "curve": _curve(path, overall),
        "chosen": {name: _chosen(path, index) for name, index in names.items()},
        "criterion": _criterion(settings),
        "not_converged": [*path.unconverged(), *final.unconverged()],
    }
    return replace(outcome, evidence=evidence)


def _mean_known(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that could be scored: [L, C] to [L]."""
    known = np.isfinite(curves).all(axis=0)
    if not known.any():
        raise DataError("no class has a positive among the held-out images", hint="raise --limit or holdout")
    return np.asarray(curves[:, known].mean(axis=1))


# --------------------------------------------------------------------- few shots


def _few_shot(
    dataset: str,
    classes: int,
    train: Samples,
    test: Samples,
    encoder: Inputs,
    params: Params,
    seed: int,
) -> Outcome:
    """`draws` probes on few samples a class; scores are means over the draws, their intervals about which shots are
    drawn and which test samples there are (`stats.of_draws`).

    A draw depends on the data set's id, the seed, its number and `shots` alone: no title or other word on a card.
    """
    from clipbench.solvers.logistic import fit_path

    assert isinstance(params.classifier, Logistic)
    assert params.shots is not None
    settings = params.classifier
    found, evidence = [], []
    with encoder.tracked("draws", params.draws) as advance:
        for draw in range(params.draws):
            rng = np.random.default_rng([seed, draw, params.shots, zlib.crc32(dataset.encode())])
            shot, further = _draw(train.labels, params.shots, rng, train.clusters)
            fitted, held = train.part(shot), train.part(further)
            path = fit_path(
                fitted.features, fitted.labels, classes, _lambdas(settings), **_solving(settings, encoder)
            )
            curve = path.correct(held.features, held.labels) / len(held.labels)
            best = _best(curve)
            blocks = ((rows, scores[best]) for rows, scores in path.scores(test.features))
            found.append(outcomes.single_label(blocks, test.labels, test.ids, classes, seed, test.clusters))
            evidence.append({"curve": _curve(path, curve), "chosen": _chosen(path, best), "n": len(shot)})
            advance(1)
    return _mean_of(found, evidence, test, params.shots, settings, seed)


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
    shots: int,
    settings: Logistic,
    seed: int,
) -> Outcome:
    scores: dict[str, intervals.Score] = {}
    per_draw: dict[str, list[float]] = {}
    ranks = np.array([outcome.samples["rank"] for outcome in found])
    clusters = None if test.clusters is None else clustered.codes(test.clusters)
    for name, first in _without_ece(found[0]).items():
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
    samples |= {f"rank_{i}": rank for i, rank in enumerate(ranks)}
    evidence = {
        "draws": draws,
        "per_draw": per_draw,
        "std": {name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in per_draw.items()},
        "validation": {
            "metric": "acc1",
            "source": f"up to {min(shots, 4)} further samples a class",
        },
        "criterion": _criterion(settings, sweep=False),
    }
    return Outcome(scores, {"recall": recall}, samples, evidence)


def _error_of_recall(hits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Standard error of the mean over classes of the mean of `hits` (float64 [n]) within each.

    Classes of a single sample count with the variance that hits have at most at their mean.
    """
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    mean = np.bincount(place, weights=hits) / counts
    variance = np.bincount(place, weights=(hits - mean[place]) ** 2) / np.maximum(counts - 1, 1)
    variance = np.where(counts > 1, variance, hits.mean() * (1 - hits.mean()))
    return float(np.sqrt((variance / counts).sum()) / len(counts))


# -------------------------------------------------------------------- minibatches


def _minibatches(
    split: Split,
    train: Samples,
    test: Samples,
    classes: int,
    encoder: Inputs,
    params: Params,
    seed: int,
) -> tuple[Iterator[tuple[slice, NDArray[np.float32]]], dict[str, Any]]:
    from clipbench.solvers.minibatch_probe import fit_adamw, fit_sgd

    settings = params.classifier
    assert isinstance(settings, AdamW | SgdVirtex)
    common: dict[str, Any] = {
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed": seed,
        "device": encoder.device,
    }
    with encoder.tracked("epochs", settings.epochs) as advance:
        if isinstance(settings, AdamW):
            head = fit_adamw(train.features, train.labels, classes, progress=advance, **common)
        else:

            def source(epoch: int) -> Selection:
                if not settings.crops:
                    return train.features
                return Selection([(encoder.crops(split, params.space, seed, epoch), train.rows)])

            head = fit_sgd(
                source,
                train.labels,
                classes,
                width=train.features.shape[1],
                momentum=settings.momentum,
                progress=advance,
                **common,
            )
    step = 8192
    starts = range(0, len(test.labels), step)
    blocks = ((slice(s, s + step), head.scores(test.features[s : s + step])) for s in starts)
    seen = (
        "new crops every epoch" if isinstance(settings, SgdVirtex) and settings.crops else "stored features"
    )
    return blocks, {"loss": head.losses, "trained_on": seen}


PROTOCOL: Final = Protocol(
    id="lp",
    version=3,
    kinds=LABELLED,
    params=Params,
    metrics=tuple(spec for spec in outcomes.SINGLE_LABEL if spec.name != "ece") + outcomes.MULTI_LABEL,
    check=check,
    needs=needs,
    run=run,
    variants={
        **{f"{k}-shot": {"shots": k} for k in (1, 2, 4, 8, 16)},
        "knn": {"classifier": {"kind": "knn"}},
        "adamw": {"classifier": {"kind": "adamw"}, "space": "joint"},
    },
    elsewhere={
        "CLIP_benchmark": Elsewhere("linear_probe", "lp_"),
        "huggingface": Elsewhere("image-classification"),
    },
)
