"""Linear SVMs with squared hinge loss, for all classes, costs and folds at once.

    f(w) = ‖w‖² / 2 + C Σᵢ cᵢ max(0, 1 − yᵢ w·[xᵢ, 1])²

as scikit-learn's `LinearSVC(C, loss="squared_hinge", dual=False, intercept_scaling=1)` states it: the intercept is
one more weight and is penalised. cᵢ is the weight of the row's class (VirTex and CLIP-Lite: 2 for positives).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipbench.errors import DataError
from clipbench.metrics import average_precision
from clipbench.solvers import hinge
from clipbench.solvers.newton import Solved
from clipbench.solvers.rows import Features, Reduced, Rows, Spectrum, check, fetch, one_thread_if_small

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The costs that VirTex and CLIP-Lite choose from (`voc_clf.py`).
COSTS: Final = (0.01, 0.1, 1.0, 10.0)
POSITIVE_WEIGHT: Final = 2.0
TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class Svms:
    """Solved SVMs, one for each class and one for each cost (`fit`) or chosen cost (`fit_map`).

    Attributes:
        weights: float32 [P, D]; bias: float32 [P].
        objective: float64 [P], f above.
        distance: float64 [P], the estimated (f − min f) / f.
        gradient: float64 [P], ‖∇f‖₂ over its value at w = 0.
        n_iter: int64 [P], passes over the features.
        converged: bool [P], `distance` is at most the tolerance.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    objective: Doubles
    distance: Doubles
    gradient: Doubles
    n_iter: Ints
    converged: NDArray[np.bool_]

    def scores(self, features: Features) -> NDArray[np.float32]:
        """Decision values, float32 [n, P]."""
        check(features)
        weights, bias = torch.from_numpy(self.weights).T, torch.from_numpy(self.bias)
        found = [
            torch.addmm(bias, fetch(features, slice(start, start + 4096)).to("cpu", torch.float32), weights)
            for start in range(0, features.shape[0], 4096)
        ]
        return torch.cat(found).numpy()


@dataclass(frozen=True)
class Selection:
    """One SVM a class, its cost chosen by cross-validation.

    Attributes:
        cost: float64 [C], the chosen one.
        cv: float64 [C, costs], mean average precision over the folds.
        svms: the C final SVMs, fitted on all rows.
        unconverged: (class, cost, fold) of every fit that ended before it converged, fold −1 for a final one.
    """

    cost: Doubles
    cv: Doubles
    svms: Svms
    unconverged: list[tuple[int, float, int]]


def folds(positive: NDArray[np.bool_], count: int = 3) -> NDArray[np.int8]:
    """Fold of every row, int8 [n]: stratified and unshuffled, as scikit-learn's `StratifiedKFold(count)` cuts.

    Raises:
        DataError: fewer than `count` positives or negatives.

    >>> folds(np.array([True, False, False, True, False, True])).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    least = min(int(positive.sum()), int((~positive).sum()))
    if least < count:
        raise DataError(
            f"{count}-fold cross-validation needs {count} positives and {count} negatives (found {least})",
            hint="take more samples, or leave the class out",
        )
    # The class of the first row is dealt first (scikit-learn encodes classes by first appearance).
    first = positive == positive[0]
    order = np.sort((~first).astype(np.int8))
    found = np.empty(positive.size, dtype=np.int8)
    for number, members in enumerate((first, ~first)):
        sizes = [int((order[fold::count] == number).sum()) for fold in range(count)]
        found[members] = np.repeat(np.arange(count), sizes)
    return found


def folds_of_clusters(positive: NDArray[np.bool_], cluster: Ints, count: int = 3) -> NDArray[np.int8]:
    """Fold of every row, int8 [n]: whole clusters (int64 [n], from 0 on), with about as many of each kind in each fold.

    Those of most positives (then of most negatives, then of the lowest number) are dealt first, each to the fold that
    its positives and negatives fill least, by squares of shares. Nothing is drawn.

    Raises:
        DataError: fewer than `count` clusters with a positive, or a fold is left without negatives.

    >>> folds_of_clusters(np.array([True, False, False, True, False, True]), np.array([0, 0, 1, 1, 2, 2]), 2).tolist()
    [0, 0, 1, 1, 0, 0]
    """
    held = np.stack([np.bincount(cluster, weights=part) for part in (positive, ~positive)], axis=1)
    if (found := int((held[:, 0] > 0).sum())) < count:
        raise DataError(
            f"{count}-fold cross-validation that keeps clusters whole needs {count} clusters with positives "
            f"(found {found})",
            hint="take more samples, or leave the class out",
        )
    share = held / np.maximum(held.sum(axis=0), 1)
    filled, fold = np.zeros((count, 2)), np.zeros(len(held), dtype=np.int8)
    for own in np.lexsort((-held[:, 1], -held[:, 0])):
        fold[own] = np.argmin((share[own] * (2 * filled + share[own])).sum(axis=1))
        filled[fold[own]] += share[own]
    if not filled.all():
        raise DataError(
            f"{count}-fold cross-validation that keeps clusters whole leaves a fold without negatives",
            hint="take more samples, or leave the class out",
        )
    return fold[cluster]


def fit_map(
    features: Features,
    labels: NDArray[np.uint8],
    costs: Sequence[float] = COSTS,
    *,
    count: int = 3,
    positive_weight: float = POSITIVE_WEIGHT,
    device: str = "cpu",
    tolerance: float = TOLERANCE,
    max_iter: int = 2000,
    cluster: Ints | None = None,
) -> Selection:
    """Choose every class's cost by cross-validated average precision, then fit it on all rows.

    Args:
        features: float [n, D]; the protocols take L2-normalised rows.
        labels: uint8 [n, C], 0 absent, 1 present; 255 (difficult) is a negative here, as VirTex trains.
        costs: ascending; of equal ones the first wins.
        count: folds, stratified and unshuffled.
        positive_weight: of a positive against a negative.
        tolerance: of `Svms.distance`.
        max_iter: passes over the features for one SVM at most.
        cluster: int64 [n], from 0 on: which rows belong together, and so in one fold (`folds_of_clusters`).

    Raises:
        DataError: a class has fewer positives, negatives, or clusters of them, than folds; features are not finite.
        ValueError: shapes, labels or costs that cannot be.

    Source: CLIP-Lite `voc_clf.py`, VirTex `scripts/clf_voc07.py`.
    """
    check(features)
    chosen_from = _checked_costs(costs)
    positive = _positive(features, labels)
    cut = np.stack(
        [folds(c, count) if cluster is None else folds_of_clusters(c, cluster, count) for c in positive.T]
    )
    fit = _Fit(features, positive, cut, positive_weight, device, tolerance, max_iter)
    classes, many = positive.shape[1], chosen_from.size
    precision = np.zeros((classes, many, count))
    unconverged: list[tuple[int, float, int]] = []
    start = fit.zero(classes * count)
    class_of, fold_of = (part.ravel() for part in np.mgrid[:classes, :count])
    finals = []
    for at, cost in enumerate(chosen_from):
        # the folds of one cost, and the fit on all rows in case it is chosen
        solved = fit.solve(np.full(class_of.size, cost), class_of, fold_of, start)
        start = solved.weights
        scores = fit.scores(solved.weights)
        held = fold_of == cut[class_of].T
        found = average_precision.average_precisions_area(scores, positive[:, class_of], ~held)
        precision[:, at] = found.reshape(classes, count)
        for problem in np.flatnonzero(~solved.converged.cpu().numpy()):
            unconverged.append((int(class_of[problem]), float(cost), int(fold_of[problem])))
        finals.append(solved.weights.view(classes, count, -1).mean(dim=1))
    cv: Doubles = precision.mean(axis=2)
    best = np.argmax(cv, axis=1)  # the first of equal ones
    cost_of = chosen_from[best]
    begin = torch.stack([finals[int(best[c])][c] for c in range(classes)])
    last = fit.solve(cost_of, np.arange(classes), np.full(classes, -1), begin)
    svms = fit.svms(last, cost_of)
    unconverged += [(c, float(cost_of[c]), -1) for c in np.flatnonzero(~svms.converged).tolist()]
    return Selection(cost_of, cv, svms, unconverged)


def fit(
    features: Features,
    labels: NDArray[np.uint8],
    costs: Sequence[float],
    *,
    positive_weight: float = POSITIVE_WEIGHT,
    device: str = "cpu",
    tolerance: float = TOLERANCE,
    max_iter: int = 2000,
) -> Svms:
    """SVMs of every class at every cost, without selection: P = C · costs, classes slowest; the rest as `fit_map`."""
    check(features)
    chosen_from, positive = _checked_costs(costs), _positive(features, labels)
    class_of, at = (part.ravel() for part in np.mgrid[: positive.shape[1], : chosen_from.size])
    run = _Fit(features, positive, None, positive_weight, device, tolerance, max_iter)
    costs_of, everything = chosen_from[at], np.full(class_of.size, -1)
    return run.svms(run.solve(costs_of, class_of, everything, run.zero(class_of.size)), costs_of)


class _Fit:
    """Problems on one training set."""

    def __init__(
        self,
        features: Features,
        positive: NDArray[np.bool_],
        cut: NDArray[np.int8] | None,
        positive_weight: float,
        device: str,
        tolerance: float,
        max_iter: int,
    ) -> None:
        rows = Rows(features, device=device, centre=False, constant=True)
        self._reduced = Reduced.of(rows) if rows.n < rows.d or rows.in_memory else None
        self._rows = rows = rows if self._reduced is None else self._reduced.rows
        self._spectrum = Spectrum.of(rows) if self._reduced is None else self._reduced.spectrum
        self._tolerance, self._max_iter = tolerance, max_iter
        self._sign = self._put(np.where(positive.T, 1, -1).astype(np.int8))
        self._weight = self._put(np.where(positive.T, positive_weight, 1.0)).to(rows.dtype)
        self._cut = None if cut is None else self._put(cut)

    def zero(self, problems: int) -> Tensor:
        """Weights to start from, [P, d]."""
        return torch.zeros(problems, self._rows.d, dtype=self._rows.dtype, device=self._rows.device)

    def solve(self, cost: Doubles, class_of: Ints, fold_of: Ints, start: Tensor) -> Solved:
        """Minimise f / C of the given problems; each sees the rows that are not of its fold (−1: all)."""
        classes = self._put(class_of)
        weight = self._weight[classes]
        if self._cut is not None:
            weight = weight * (self._cut[classes] != self._put(fold_of)[:, None])
        with one_thread_if_small(self._rows.device, self._rows.n * self._rows.d * len(class_of)):
            problems = hinge.Problems(self._sign[classes], weight, self._put(1 / cost), start)
            return hinge.solve(
                self._rows, self._spectrum, problems, tolerance=self._tolerance, max_passes=self._max_iter
            )

    def scores(self, weights: Tensor) -> NDArray[np.float64]:
        """Decision values on the training rows, float64 [n, P]."""
        return torch.cat([block @ weights.T for _, block in self._rows.blocks()]).double().cpu().numpy()

    def svms(self, solved: Solved, cost: Doubles) -> Svms:
        """Solutions in the features' own coordinates."""
        inside = solved.weights
        weights = (inside if self._reduced is None else self._reduced.outward(inside)).float().cpu().numpy()
        return Svms(
            weights=np.ascontiguousarray(weights[:, :-1]),
            bias=weights[:, -1].copy(),
            objective=solved.objective.cpu().numpy() * cost,
            distance=solved.distance.cpu().numpy(),
            gradient=solved.gradient.cpu().numpy(),
            n_iter=solved.passes.cpu().numpy(),
            converged=solved.converged.cpu().numpy(),
        )

    def _put(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._rows.device)


def _checked_costs(costs: Sequence[float]) -> Doubles:
    found = np.asarray(costs, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.all(np.isfinite(found) & (found > 0)):
        raise ValueError("costs must be positive numbers")
    if np.any(np.diff(found) <= 0):
        raise ValueError("costs must ascend, so that the smaller of equally good ones comes first")
    return found


def _positive(features: Features, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    if labels.ndim != 2 or labels.shape[0] != features.shape[0]:
        raise ValueError(f"labels have shape {labels.shape}, expected [{features.shape[0]}, C]")
    found, _ = average_precision.positives(labels, "negative")
    return found
