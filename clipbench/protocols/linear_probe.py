"""Linear probes of frozen features (CLIP, arXiv 2103.00020, appendix A.3), and cheaper and older ways to probe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.base import Strict, Tuple
from clipbench.cards.task import LABELLED, TaskCard
from clipbench.data.labels import require_difficult
from clipbench.data.split import Split
from clipbench.errors import DataError
from clipbench.metrics import average_precision, classification, clustered
from clipbench.metrics.average_precision import APKind
from clipbench.protocols import _grouping as grouping
from clipbench.protocols import _logistic as logistic
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols._few_shot import few_shot
from clipbench.protocols._logistic import Logistic, best_of
from clipbench.protocols._samples import Samples
from clipbench.protocols.base import Elsewhere, Inputs, Needs, Outcome, Protocol
from clipbench.protocols.base import Params as ParamsBase
from clipbench.solvers.selection import Selection

if TYPE_CHECKING:
    from clipbench.solvers.logistic import Path


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
        group, skip: as of `groups`: the column of groups, or several, and the groups that are not to be the worst,
            neither in the test nor where λ is chosen.
    """

    later: ClassVar = ("group", "skip")

    primary: Literal["acc1", "acc5", "mean_per_class_recall", "worst_group_acc1", "map_area", "map_11pt"] = (
        "acc1"
    )
    space: Literal["backbone", "joint"] = "backbone"
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    holdout: float = Field(0.2, gt=0, lt=1)
    shots: int | None = Field(None, ge=1)
    draws: int = Field(5, ge=1)
    classifier: Annotated[Logistic | AdamW | SgdVirtex | Knn, Field(discriminator="kind")] = Logistic()
    difficult: Literal["ignore", "positive", "negative"] | None = None
    group: grouping.OneOrSeveral | None = None
    skip: Tuple[str] = ()

    @property
    def by(self) -> tuple[str, ...]:
        """The columns of groups that it names; none: the card's first."""
        return (self.group,) if isinstance(self.group, str) else self.group or ()


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if params.train in (params.validation, params.test) or params.validation == params.test:
        return "train, validation and test must be different splits"
    if problem := outcomes.misfit_of_labels(card, params.primary, params.difficult):
        return problem
    if problem := grouping.misfit(card, params.group, params.skip, params.primary):
        return problem
    path = params.classifier if isinstance(params.classifier, Logistic) else None
    if card.kind == "multi-label" and (path is None or params.shots is not None):
        return "multi-label sets have the logistic probe on all samples only"
    if params.shots is not None and path is None:
        return "shots belong to the logistic probe"
    return "lowest is above highest" if path and path.lowest > path.highest else None


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    roles = [params.train, params.test, *([params.validation] if params.validation else [])]
    return Needs(tuple((role, params.space) for role in roles))


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Fit on the training split, choose on validation data, score once on the test split.

    Images that could not be decoded (rows of NaN) are left out. What is drawn depends on the seed and the split
    alone, never on whether its features were cached.
    """
    train = Samples.of(splits[params.train], encoder, params.space, by=params.by)
    test = Samples.of(splits[params.test], encoder, params.space, by=params.by)
    if card.kind == "multi-label":
        return _multi_label(card, splits, train, test, encoder, params, seed)
    if params.shots is not None and isinstance(params.classifier, Logistic):
        name = splits[params.train].dataset
        found = few_shot(
            name,
            len(card.classes),
            train,
            test,
            encoder,
            params.classifier,
            params.shots,
            params.draws,
            seed,
            params.skip,
        )
        return replace(found, evidence=found.evidence | _grouped(card, test, found, params))
    classes = len(card.classes)
    match params.classifier:
        case Logistic():
            blocks, evidence = _logistic(train, splits, test, classes, encoder, params, seed)
        case AdamW() | SgdVirtex():
            blocks, evidence = _minibatches(splits[params.train], train, test, classes, encoder, params, seed)
        case Knn(k=k):
            from clipbench.solvers.neighbours import vote

            blocks = vote(train.features, train.labels, classes, test.features, k, encoder.device)
            evidence = {}
    outcome = outcomes.single_label(
        blocks, test.labels, test.ids, classes, seed, test.clusters, test.groups, skip=params.skip
    )
    evidence |= _grouped(card, test, outcome, params)
    return replace(outcome, scores=logistic.without_ece(outcome), evidence=outcome.evidence | evidence)


def _grouped(card: TaskCard, test: Samples, found: Outcome, params: Params) -> dict[str, Any]:
    """Where a task says by which groups, or skips some: the columns, and which groups do not count."""
    if test.groups is None or not (params.by or params.skip):
        return {}
    columns = grouping.columns_of(card, params.group)
    known = [*(grouping.names(card, columns) or ()), *np.unique(test.groups).tolist()]
    ranks = [np.asarray(found.samples[name]) for name in found.samples if name.startswith("rank")]
    hits = np.mean([rank == 0 for rank in ranks], axis=0)
    return {"grouped": grouping.told(columns, "acc1", hits, test.groups, params.skip, known)}


# ------------------------------------------------------------ logistic regression


def _logistic(
    train: Samples,
    splits: dict[str, Split],
    test: Samples,
    classes: int,
    encoder: Inputs,
    params: Params,
    seed: int,
) -> tuple[Iterator[tuple[slice, NDArray[np.float32]]], dict[str, Any]]:
    from clipbench.solvers.logistic import fit_path

    assert isinstance(params.classifier, Logistic)
    settings = params.classifier
    fitted, held, whole = _divided(train, splits, encoder, params, seed)
    with encoder.tracked("λ", settings.lambdas) as advance:
        path = fit_path(
            fitted.features, fitted.labels, classes, logistic.lambdas_of(settings),
            gradient_tolerance=settings.sweep, progress=logistic.steps(advance), **logistic.solving(settings, encoder),
        )  # fmt: skip
    if params.primary == "mean_per_class_recall":
        predictions = path.predict(held.features)
        curve = np.array([classification.mean_per_class_recall(held.labels, p, classes) for p in predictions])
    elif params.primary == "acc5":
        curve = _top5(path, held)
    elif params.primary == "worst_group_acc1":
        assert held.groups is not None  # of the groups that are there
        hits = np.stack([p == held.labels for p in path.predict(held.features)])
        names = np.unique(held.groups[grouping.counted(held.groups, params.skip)])
        curve = np.min([hits[:, held.groups == name].mean(axis=1) for name in names], axis=0)
    else:
        curve = path.correct(held.features, held.labels) / len(held.labels)
    best = best_of(curve)
    final = fit_path(
        whole.features, whole.labels, classes, path.lambdas[best : best + 1],
        like=path, **logistic.solving(settings, encoder),
    )  # fmt: skip
    blocks = ((rows, scores[0]) for rows, scores in final.scores(test.features))
    evidence = {
        "validation": _described(held, params),
        "curve": logistic.curve_of(path, curve),
        "chosen": logistic.choice(path, best),
        "final": logistic.solution(final, 0),
        "criterion": logistic.criterion(settings),
        "not_converged": [*path.unconverged(), *final.unconverged()],
    }
    return blocks, evidence


def _divided(
    train: Samples, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int
) -> tuple[Samples, Samples, Samples]:
    """Samples to fit on, to choose λ on (the card's own validation split, or some of training), and both together."""
    if params.validation:
        validation = Samples.of(splits[params.validation], encoder, params.space, by=params.by)
        return train, validation, train.joined(validation)
    if train.clusters is None:
        what = "training samples"
        fit, held = logistic.hold_out(train.labels, params.holdout, seed)
    else:
        what, codes = "clusters of training samples", clustered.codes(train.clusters)
        fit, held = logistic.hold_out_clusters(train.labels, codes, params.holdout, seed)
    if not len(held):
        raise DataError(
            f"no class has two {what}, so none can be held out to choose λ on",
            hint="raise --limit, or name a validation split on the card",
        )
    return train.part(fit), train.part(held), train


def _top5(path: Path, held: Samples) -> NDArray[np.float64]:
    hits = np.zeros(path.lambdas.size)
    for rows, scores in path.scores(held.features):
        hits += [(classification.rank_of_target(s, held.labels[rows]) < 5).sum() for s in scores]
    return hits / len(held.labels)


def _described(held: Samples, params: Params) -> dict[str, Any]:
    whole = "" if held.clusters is None else " in whole clusters"
    source = params.validation or f"{params.holdout:g} of {params.train}, held out{whole}"
    return {"metric": params.primary, "n": len(held.labels), "source": source}


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
    difficult = require_difficult(splits[params.test], params.difficult)
    fitted, held, whole = _divided(train, splits, encoder, params, seed)
    with encoder.tracked("λ", settings.lambdas) as advance:
        path = fit_path_binary(
            fitted.features, outcomes.training_labels(fitted.labels, difficult), logistic.lambdas_of(settings),
            gradient_tolerance=settings.sweep, progress=logistic.steps(advance), **logistic.solving(settings, encoder),
        )  # fmt: skip
    kind: APKind = "11pt" if params.primary == "map_11pt" else "area"
    ranked = np.concatenate([scores for _, scores in path.scores(held.features)], axis=1)
    curves = np.array(
        [average_precision.per_class_average_precision(s, held.labels, kind, difficult) for s in ranked]
    )
    overall = _mean_known(curves)
    # A class without positives among the held-out images takes the λ that is best for the others.
    best = [best_of(c if np.isfinite(c).all() else overall) for c in curves.T]
    chosen = sorted(set(best))
    final = fit_path_binary(
        whole.features, outcomes.training_labels(whole.labels, difficult), path.lambdas[chosen],
        like=path, **logistic.solving(settings, encoder),
    )  # fmt: skip
    place = np.array([chosen.index(b) for b in best])
    columns = np.arange(len(best))
    scores = np.concatenate([s[place, :, columns].T for _, s in final.scores(test.features)])
    labels = test.labels.astype(np.uint8)
    outcome = outcomes.multi_label(scores, labels, test.ids, difficult, seed, clusters=test.clusters)
    names = dict(zip(card.classes, best, strict=True))
    evidence = {
        "validation": _described(held, params),
        "curve": logistic.curve_of(path, overall),
        "chosen": {name: logistic.choice(path, index) for name, index in names.items()},
        "criterion": logistic.criterion(settings),
        "not_converged": [*path.unconverged(), *final.unconverged()],
    }
    return replace(outcome, evidence=evidence)


def _mean_known(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that could be scored: [L, C] to [L]."""
    known = np.isfinite(curves).all(axis=0)
    if not known.any():
        raise DataError("no class has a positive among the held-out images", hint="raise --limit or holdout")
    return np.asarray(curves[:, known].mean(axis=1))


# -------------------------------------------------------------------- minibatches


def _minibatches(
    split: Split, train: Samples, test: Samples, classes: int, encoder: Inputs, params: Params, seed: int
) -> tuple[Iterator[tuple[slice, NDArray[np.float32]]], dict[str, Any]]:
    from clipbench.solvers.minibatch_probe import fit_adamw, fit_sgd

    settings = params.classifier
    assert isinstance(settings, AdamW | SgdVirtex)
    fields = {"lr", "weight_decay", "epochs", "batch_size"}
    common = settings.model_dump(include=fields) | {"seed": seed, "device": encoder.device}
    with encoder.tracked("epochs", settings.epochs) as advance:
        if isinstance(settings, AdamW):
            head = fit_adamw(train.features, train.labels, classes, progress=advance, **common)
        else:

            def source(epoch: int) -> Selection:
                if not settings.crops:
                    return train.features
                return Selection([(encoder.crops(split, params.space, seed, epoch), train.rows)])

            common |= {"width": train.features.shape[1], "momentum": settings.momentum}
            head = fit_sgd(source, train.labels, classes, progress=advance, **common)
    step = 8192
    starts = range(0, len(test.labels), step)
    blocks = ((slice(s, s + step), head.scores(test.features[s : s + step])) for s in starts)
    crops = isinstance(settings, SgdVirtex) and settings.crops
    seen = "new crops every epoch" if crops else "stored features"
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
