"""`clipbench bench svm`: choosing every class's cost and fitting it, beside scikit-learn's `LinearSVC`, in one run."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.machine import all_threads
from clipbench.errors import DataError

_FOLDS = 3


def measure(
    features: NDArray[np.floating], labels: NDArray[np.uint8], *, every: int = 1, rounds: int = 10
) -> dict[str, Any]:
    """Time `clipbench.solvers.svm.fit_map` and what it replaces: 4 costs × 3 folds × classes of `LinearSVC`.

    The latter is set as VirTex and CLIP-Lite set it (`voc_clf.py`: dual, tol 1e-4, at most 2,000 iterations). They take
    turns, after a round that warms up: ours runs up to `rounds` times, between classes of the other. Times are means,
    so that other work on the machine weighs on both alike.

    Args:
        features: float [n, D], L2-normalised rows.
        labels: uint8 [n, C], 0 absent, 1 present; classes with fewer than 3 positives or negatives are left out.
        every: scikit-learn fits every n-th class, from which the others' time is extrapolated.

    Raises:
        DataError: no class has enough positives and negatives.
    """
    from clipbench.solvers import svm

    positives = (labels == 1).sum(axis=0)
    used = np.flatnonzero((positives >= _FOLDS) & (len(labels) - positives >= _FOLDS))
    if not used.size:
        raise DataError(
            f"no class has {_FOLDS} positives and {_FOLDS} negatives", hint="take another data set"
        )
    labels = labels[:, used]
    with all_threads() as count:
        sampled = range(every // 2, used.size, every)
        ours = svm.fit_map(features, labels, count=_FOLDS)
        ours_s, fits = [], []
        for number, c in enumerate(sampled):
            if number % -(-len(sampled) // rounds) == 0:
                start = time.perf_counter()
                ours = svm.fit_map(features, labels, count=_FOLDS)
                ours_s.append(time.perf_counter() - start)
            fits.append(_fit(features, labels[:, c] == 1, svm.COSTS, svm.POSITIVE_WEIGHT))
    own_s = float(np.mean(ours_s))
    peer_s = float(np.mean([fit["seconds"] for fit in fits])) * used.size
    chosen = [ours.cost[c] == fit["cost"] for c, fit in zip(sampled, fits, strict=True)]
    best = [float(ours.cv[c].max()) for c in sampled]
    return {
        "rows": len(features),
        "columns": features.shape[1],
        "classes": int(used.size),
        "classes_left_out": int(len(positives) - used.size),
        "costs": list(svm.COSTS),
        "folds": _FOLDS,
        "threads": count,
        "ours_s": round(own_s, 3),
        "linear_svc_s": round(peer_s, 2),
        "fitted_classes": len(fits),
        "linear_svc_unconverged": sum(fit["unconverged"] for fit in fits),
        "unconverged": len(ours.unconverged),
        "same_cost": sum(map(bool, chosen)),
        "cv_map": round(100 * float(np.mean(best)), 3),
        "linear_svc_cv_map": round(100 * float(np.mean([max(fit["cv"]) for fit in fits])), 3),
        "ratios": {"linear_svc_over_ours": round(peer_s / own_s, 1)},
    }


def view(found: dict[str, Any]) -> Group:
    head = (
        f"{found['rows']:,} × {found['columns']:,}, {found['classes']} classes × {len(found['costs'])} costs × "
        f"{found['folds']} folds and the final fits, {found['threads']} threads"
    )
    fitted = found["fitted_classes"]
    extrapolated = "" if fitted == found["classes"] else f", extrapolated from {fitted} classes"
    ratio = f"{found['ratios']['linear_svc_over_ours']:.1f}"
    rows = (
        ["clipbench", f"{found['ours_s']:.3f}", "", f"{found['cv_map']:.2f}"],
        ["LinearSVC", f"{found['linear_svc_s']:,.2f}", ratio, f"{found['linear_svc_cv_map']:.2f}"],
    )
    said = [
        f"the same cost in {found['same_cost']} of {fitted} classes{extrapolated}",
        f"fits that did not converge: {found['unconverged']}; of LinearSVC, {found['linear_svc_unconverged']}",
        "mAP: over the folds of cross-validation, in %",
    ]
    table = views.table(("", "s", "× as long", "mAP of the chosen costs"), rows)
    return Group(head, "", table, "", *said)


def _fit(
    features: NDArray[np.floating], positive: NDArray[np.bool_], costs: tuple[float, ...], weight: float
) -> dict[str, Any]:
    """One class, as VirTex chooses its cost and fits it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    model = LinearSVC(class_weight={1: weight, -1: 1}, dual=True, max_iter=2000, random_state=0)
    search = GridSearchCV(model, {"C": costs}, cv=_FOLDS, scoring="average_precision")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        start = time.perf_counter()
        search.fit(features, np.where(positive, 1, -1))
        seconds = time.perf_counter() - start
    cv = search.cv_results_["mean_test_score"].tolist()
    return {"seconds": seconds, "cost": search.best_params_["C"], "cv": cv, "unconverged": len(caught)}
