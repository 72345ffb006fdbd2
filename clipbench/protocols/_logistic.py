"""What probes by logistic regression have in common: their settings, what is held out, and what is told of a fit."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.base import Strict
from clipbench.metrics.intervals import Score
from clipbench.protocols._outcomes import convergence
from clipbench.protocols.base import Inputs, Outcome

if TYPE_CHECKING:
    from clipbench.solvers.logistic import Path

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


def without_ece(outcome: Outcome) -> dict[str, Score]:
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
    kept = np.zeros(len(labels), np.int64) if labels.ndim > 1 else labels
    classes = np.unique(kept, return_inverse=True)[1]
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


def lambdas_of(settings: Logistic) -> NDArray[np.float64]:
    return np.geomspace(settings.lowest, settings.highest, settings.lambdas)


def solving(settings: Logistic, encoder: Inputs) -> dict[str, Any]:
    """What all fits of a probe have in common."""
    return {"device": encoder.device, "tolerance": settings.tolerance, "max_iter": settings.max_iter}


def best_of(curve: NDArray[np.float64]) -> int:
    """Index of the best score; among equals the middle one, which is furthest from where scores fall."""
    equal = np.flatnonzero(curve == curve.max())
    return int(equal[len(equal) // 2])


def steps(advance: Any) -> Any:
    """A solver's progress (done, of all) as steps of a bar."""
    last = 0

    def progress(done: int, _: int) -> None:
        nonlocal last
        advance(done - last)
        last = done

    return progress


def criterion(settings: Logistic, *, sweep: bool = True) -> str:
    """When a λ had converged. `sweep`: λ was chosen on fits that were allowed to end sooner."""
    exact = convergence(settings.tolerance)
    if not (sweep and settings.sweep):
        return exact
    return (
        f"{exact}; while choosing λ, ‖g‖ ≤ {settings.sweep:g} ‖g₀‖ min(5, max(1, (ḡ / 2000 λ)^¼)) is enough, "
        "with ḡ the mean eigenvalue of the centred Gram matrix"
    )


def curve_of(path: Path, curve: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [{**solution(path, i), "score": float(score)} for i, score in enumerate(curve)]


def solution(path: Path, index: int) -> dict[str, Any]:
    """One λ of a path and how well it was solved (the worst of several binary problems)."""
    return {
        "lambda": float(path.lambdas[index]),
        "objective": float(np.sum(path.objective[index])),
        "distance": float(np.max(path.distance[index])),
        "gradient": float(np.max(path.gradient[index])),
        "n_iter": int(np.max(path.n_iter[index])),
        "converged": bool(np.all(path.converged[index])),
    }


def choice(path: Path, index: int) -> dict[str, Any]:
    value, count = float(path.lambdas[index]), path.lambdas.size
    edge = {0: "lowest", count - 1: "highest"}.get(index) if count > 1 else None
    return {"lambda": value, "C": 1 / value, "edge": _EDGE.format(edge) if edge else None}
