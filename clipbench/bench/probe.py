"""`clipbench bench probe`: the whole regularisation path beside scikit-learn's single fits, in one run."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.inputs import Labelled
from clipbench.bench.machine import all_threads, device_peak_mib, peak_mib
from clipbench.errors import DataError
from clipbench.utils.progress import progress_bar

if TYPE_CHECKING:
    from clipbench.solvers.logistic import Path

    Doubles = NDArray[np.float64]
    Ints = NDArray[np.int64]

_MAX_ITER = 1000  # of both; the path counts passes over the features


def measure(
    data: Labelled,
    *,
    every: int = 8,
    device: str = "cpu",
    lambdas: Doubles | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Time the path and scikit-learn's `LogisticRegression` (default tolerance) on the same features.

    Ratios, of wall times with the same number of threads (below 1: the path is faster):

        path_over_one_fit   the whole path / one fit at the λ that is best on the test rows
        path_over_all_fits  the whole path / one fit a λ, extrapolated from every `every`-th

    Args:
        every: scikit-learn fits every n-th λ; 0: none, for features that it would take days for.
        device: of the path.
        lambdas: float64 [L], ascending; the 96 of the protocol by default.
        progress: show how many λ of the path are solved.

    Raises:
        DataError: there are fewer λ than `every`.
    """
    from clipbench.solvers import logistic

    lambdas = logistic.LAMBDAS if lambdas is None else lambdas
    if every > lambdas.size:
        raise DataError(f"--every must be at most {lambdas.size}, the number of λ (found {every})")
    with all_threads() as used, progress_bar("λ", lambdas.size, progress) as (bar, task):
        start = time.perf_counter()
        path = logistic.fit_path(
            data.train,
            data.train_targets,
            data.classes,
            lambdas,
            device=device,
            max_iter=_MAX_ITER,
            gradient_tolerance=logistic.SWEEP,
            progress=lambda done, _: bar.update(task, completed=done),
        )
        path_s = time.perf_counter() - start
        peaks = {"peak_mib": round(peak_mib())}
        if (on_device := device_peak_mib(device)) is not None:
            peaks["device_peak_mib"] = round(on_device)
        right = path.correct(data.test, data.test_targets)
        best = int(right.argmax())
        regular = range(every // 2, lambdas.size, every) if every else ()
        sampled = sorted({*regular, best}) if every else []
        fits = {i: _fit(data, float(lambdas[i])) for i in sampled}
    found = {
        "rows": int(data.train.shape[0]),
        "columns": int(data.train.shape[1]),
        "classes": data.classes,
        "lambdas": int(lambdas.size),
        "device": device,
        "threads": used,
        "gradient_tolerance": logistic.SWEEP,
        "path_s": round(path_s, 2),
        "path_passes": int(path.n_iter.sum()),
        "unconverged": path.unconverged(),
        "features_mib": round(data.train.nbytes / 2**20),
        **peaks,
        "best_lambda": float(lambdas[best]),
        "best_accuracy": float(right[best] / data.test_targets.size),
        "fits": [_side(path, i, fits[i], right, data.test_targets.size) for i in sampled],
        "ratios": {},
    }
    if every:
        all_s = float(np.mean([fits[i]["seconds"] for i in regular])) * lambdas.size
        found["ratios"] = {
            "path_over_one_fit": round(path_s / fits[best]["seconds"], 4),
            "path_over_all_fits": round(path_s / all_s, 6),
        }
    return found


def view(found: dict[str, Any]) -> Group:
    head = (
        f"{found['rows']:,} × {found['columns']:,}, {found['classes']} classes, {found['lambdas']} λ, "
        f"{found['threads']} threads on {found['device']}: the path takes {found['path_s']:,} s\n"
        f"best λ = {found['best_lambda']:.3g}: {100 * found['best_accuracy']:.2f} % of the test rows\n"
        f"peak memory {found['peak_mib']:,} MiB; the features are {found['features_mib']:,} MiB"
    )
    if "device_peak_mib" in found:
        head += f"; peak on the GPU {found['device_peak_mib']:,} MiB"
    left = found["unconverged"]
    if left:
        head += f"\nnot converged: λ = {', '.join(f'{value:.2g}' for value in left)}"
    if not found["ratios"]:
        return Group(head)
    columns = ("λ", "fit s", "iterations", "objective, path / fit", "accuracy, path", "accuracy, fit")
    fields = ("lambda", "seconds", "iterations", "objective_over_fit", "path_accuracy", "fit_accuracy")
    formats = dict(zip(fields, (".3g", ".1f", ",", ".6f", ".4f", ".4f"), strict=True))
    fits = ([f"{one[field]:{spec}}" for field, spec in formats.items()] for one in found["fits"])
    return Group(head, "", views.ratios(found["ratios"], ".4g"), "", views.table(columns, fits))


def _fit(data: Labelled, penalty: float) -> dict[str, Any]:
    """One fit of scikit-learn's at its default tolerance."""
    from scipy.special import logsumexp
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, targets = data.train, data.train_targets
    model = LogisticRegression(C=1 / penalty, max_iter=_MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        model.fit(train, targets)
        seconds = time.perf_counter() - start
    logits = np.asarray(model.decision_function(train), dtype=np.float64)
    if logits.ndim == 1:  # two classes
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    column = np.searchsorted(model.classes_, targets)
    loss = logsumexp(logits, axis=1) - logits[np.arange(column.size), column]
    objective = float(loss.sum() + penalty * np.square(model.coef_.astype(np.float64)).sum() / 2)
    return {
        "seconds": seconds,
        "iterations": int(model.n_iter_[0]),
        "objective": objective,
        "accuracy": float(np.mean(model.predict(data.test) == data.test_targets)),
    }


def _side(path: Path, at: int, fit: dict[str, Any], right: Ints, count: int) -> dict[str, Any]:
    """One λ of both."""
    return {
        "lambda": float(path.lambdas[at]),
        "seconds": round(fit["seconds"], 3),
        "iterations": fit["iterations"],
        "objective_over_fit": float(path.objective[at] / fit["objective"]),
        "path_accuracy": float(right[at] / count),
        "fit_accuracy": fit["accuracy"],
    }
