"""Squared-hinge SVMs against their objective written out and minimised by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from clipbench.solvers import hinge
from clipbench.solvers.rows import Rows, Spectrum


def test_objective_and_weights_are_those_of_the_problem_written_out() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 5))
    sign = np.where(features @ rng.standard_normal((5, 2)) + rng.standard_normal((40, 2)) > 0, 1, -1).T
    weight, penalty = rng.uniform(0, 2, (2, 40)), np.array([3.0, 0.5])
    rows = Rows(features, dtype=torch.float64, centre=False)
    given = hinge.Problems(
        torch.from_numpy(sign.astype(np.int8)),
        torch.from_numpy(weight),
        torch.from_numpy(penalty),
        torch.zeros(2, 5, dtype=torch.float64),
    )
    found = hinge.solve(rows, Spectrum.of(rows), given, tolerance=1e-12, max_passes=1000)
    for p in range(2):

        def value(w: np.ndarray, p: int = p) -> float:
            short = np.maximum(0, 1 - sign[p] * (features @ w))
            return float((weight[p] * short**2).sum() + penalty[p] * (w @ w) / 2)

        best = minimize(value, np.zeros(5), method="BFGS", options={"gtol": 1e-9})
        weights = found.weights[p].numpy()
        assert float(found.objective[p]) == pytest.approx(value(weights), rel=1e-12)
        assert value(weights) == pytest.approx(best.fun, rel=1e-9)
        np.testing.assert_allclose(weights, best.x, atol=1e-5)
