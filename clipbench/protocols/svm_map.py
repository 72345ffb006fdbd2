"""Linear SVMs on frozen features, mean average precision over classes: VOC07 as VirTex and CLIP-Lite measure it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar, Final, Literal, get_args

from pydantic import Field

from clipbench.cards.base import Tuple
from clipbench.cards.task import TaskCard
from clipbench.data.labels import require_difficult
from clipbench.data.split import Split
from clipbench.metrics import clustered
from clipbench.metrics.average_precision import APKind
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols._samples import Samples
from clipbench.protocols.base import Elsewhere, Inputs, Needs, Outcome, Protocol
from clipbench.protocols.base import Params as ParamsBase


class Params(ParamsBase):
    """What a task card may set under `protocols: {svm: …}`; the defaults are VirTex's.

    Attributes:
        primary: the metric that stands for the task: `map_area` is scikit-learn's average precision.
        train, test: the card's splits.
        resize: short side in px before the central crop, whatever the model's own evaluation does: 256 in VirTex,
            224 in CLIP-Lite (the variant `clip-lite`); None: as the model's card says (`as-trained`).
        interpolation: how they are scaled to `resize`: without antialiasing in CLIP-Lite; None: as the card says.
        costs: each class takes the one that is best in cross-validation, the smallest among equals.
        folds: stratified, unshuffled; of whole clusters, where the card names them.
        positive_weight: of a positive against a negative.
        tolerance: each SVM is solved until the estimated distance of its objective to the minimum is at most this,
            relative to the objective and to what it gains on zero weights, within `max_iter` passes over the features.
        difficult: what objects marked as difficult are in the test. In training they are negatives, unless they
            are positive in the test.
    """

    later: ClassVar = ("interpolation",)

    primary: Literal["map_area", "map_11pt", "map_envelope"] = "map_area"
    train: str = "train"
    test: str = "test"
    resize: int | None = Field(256, gt=0)
    interpolation: Literal["bilinear-no-antialias"] | None = None
    costs: Tuple[float] = (0.01, 0.1, 1.0, 10.0)
    folds: int = Field(3, ge=2)
    positive_weight: float = Field(2.0, gt=0)
    tolerance: float = Field(1e-6, gt=0)
    max_iter: int = Field(2000, ge=1)
    difficult: Literal["ignore", "positive", "negative"] | None = None


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if params.train == params.test:
        return "train and test must be different splits"
    if params.interpolation is not None and params.resize is None:
        return "interpolation is of resize, which is null"
    if not params.costs or any(a >= b for a, b in pairwise(params.costs)):
        return "costs must ascend, and there must be one at least"
    return "costs must be above 0" if params.costs[0] <= 0 else None


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    space = "backbone" if params.resize is None else f"backbone@{params.resize}"
    space += "" if params.interpolation is None else f":{params.interpolation}"
    return Needs(((params.train, space), (params.test, space)))


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """One squared-hinge SVM a class on L2-normalised features, its cost by cross-validation on the training split.

    Source: CLIP-Lite, `voc_clf.py`, and VirTex, `scripts/clf_voc07.py`.
    """
    from clipbench.solvers.svm import fit_map

    difficult = require_difficult(splits[params.test], params.difficult)
    (_, space), _ = needs(params, encoder.compared).images
    train, test = (Samples.of(splits[r], encoder, space, unit=True) for r in (params.train, params.test))
    found = fit_map(
        train.features,
        outcomes.training_labels(train.labels, difficult),
        params.costs,
        count=params.folds,
        positive_weight=params.positive_weight,
        device=encoder.device,
        tolerance=params.tolerance,
        max_iter=params.max_iter,
        cluster=None if train.clusters is None else clustered.codes(train.clusters),
    )
    scores, kinds = found.svms.scores(test.features), get_args(APKind)
    outcome = outcomes.multi_label(scores, test.labels, test.ids, difficult, seed, kinds, test.clusters)
    whole = {} if train.clusters is None else {"folds": f"{params.folds}, of whole clusters"}
    return replace(outcome, evidence=_evidence(card, found, params) | whole)


def _evidence(card: TaskCard, found: Any, params: Params) -> dict[str, Any]:
    names = card.classes
    return {
        "chosen": {name: {"C": float(cost)} for name, cost in zip(names, found.cost, strict=True)},
        "cross_validation": {
            name: dict(zip(map(str, params.costs), map(float, row), strict=True))
            for name, row in zip(names, found.cv, strict=True)
        },
        "criterion": outcomes.convergence(params.tolerance),
        "not_converged": [
            {"class": names[c], "C": float(cost), "fold": int(fold) if fold >= 0 else None}
            for c, cost, fold in found.unconverged
        ],
    }


PROTOCOL: Final = Protocol(
    id="svm",
    version=2,
    kinds=("multi-label",),
    params=Params,
    metrics=outcomes.MULTI_LABEL,
    check=check,
    needs=needs,
    run=run,
    variants={
        "clip-lite": {"resize": 224, "interpolation": "bilinear-no-antialias"},
        "as-trained": {"resize": None},
    },
    elsewhere={"huggingface": Elsewhere("image-classification")},
)
