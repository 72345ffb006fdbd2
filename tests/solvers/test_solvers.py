"""Solvers against scikit-learn in float64, run to convergence, and the cases at the edge."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from clipbench.bench import probe
from clipbench.bench import svm as bench_svm
from clipbench.bench.inputs import Labelled, random_labelled
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime, keep_freed_memory
from clipbench.errors import DataError
from clipbench.evaluation import limited
from clipbench.metrics import classification
from clipbench.solvers import logistic, newton, svm
from clipbench.solvers.logistic import NEVER, fit_path, fit_path_binary
from clipbench.solvers.logistic import Path as Probes
from clipbench.solvers.losses import Softmax
from clipbench.solvers.rows import Rows, Spectrum
from clipbench.utils.cpu import cores

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]
TEN = np.logspace(-6, 6, 10)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> object:
    """Small products on a shared machine: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield None
    torch.set_num_threads(before)


def blobs(n: int, d: int, classes: int, seed: int = 0, spread: float = 1.5) -> tuple[Matrix, Ints]:
    """Overlapping classes with features of unequal scale."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    centres = rng.normal(size=(classes, d))
    features = centres[targets] + spread * rng.normal(size=(n, d)) * np.geomspace(3, 0.1, d) + 0.5
    return features, targets.astype(np.int64)


def digits() -> tuple[Matrix, Ints, Matrix, Ints]:
    """scikit-learn's real digits, scaled to 0 … 1: 1,200 to fit on, 597 to test."""
    features, targets = load_digits(return_X_y=True)
    features, targets = features / 16, targets.astype(np.int64)
    return features[:1200], targets[:1200], features[1200:], targets[1200:]


def objective(path: Probes, at: int, features: Matrix, targets: Ints) -> float:
    """Σ CE + λ ‖W‖² / 2 from its definition, in float64 (two classes: as scikit-learn penalises)."""
    weights, bias = path.weights[at].astype(np.float64), path.bias[at].astype(np.float64)
    binary = np.unique(targets).size == 2
    penalty = path.lambdas[at] * (weights**2).sum() / 2 * (2 if binary else 1)
    return cross_entropy(features @ weights.T + bias, targets) + float(penalty)


def cross_entropy(logits: Matrix, targets: Ints) -> float:
    others = logits - logits[np.arange(len(targets)), targets][:, None]
    return float(logsumexp(others, axis=1).sum())


def reference(features: Matrix, targets: Ints, penalty: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-12, max_iter=500)
    with threadpool_limits(1):
        return model.fit(features.astype(np.float64), targets)


def reference_objective(model: LogisticRegression, features: Matrix, targets: Ints, penalty: float) -> float:
    logits = model.decision_function(features.astype(np.float64))
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    loss = cross_entropy(logits, np.searchsorted(model.classes_, targets))
    return float(loss + penalty * (model.coef_**2).sum() / 2)


# --------------------------------------------------------------- logistic


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_path_equals_scikit_learn_over_the_whole_range(precision: Literal["float64", "float32"]) -> None:
    train, y, test, _ = digits()
    path = fit_path(train, y, 10, precision=precision)
    assert path.unconverged() == []
    predicted, same = path.predict(test), []
    for at in range(7, 96, 11):
        model = reference(train, y, path.lambdas[at])
        best = reference_objective(model, train, y, path.lambdas[at])
        assert objective(path, at, train, y) == pytest.approx(best, rel=1e-6)
        assert path.objective[at] == pytest.approx(best, rel=2e-6)
        same.append(np.mean(predicted[at] == model.predict(test)))
    assert np.mean(same) >= 0.999


def test_two_classes_follow_scikit_learns_penalty() -> None:
    features, targets = blobs(300, 12, 2)
    path = fit_path(features, targets, 2, TEN)
    for at, penalty in enumerate(TEN):
        best = reference_objective(reference(features, targets, penalty), features, targets, penalty)
        assert objective(path, at, features, targets) == pytest.approx(best, rel=1e-6)
    np.testing.assert_allclose(path.weights[:, 0], -path.weights[:, 1], atol=1e-4)


def test_fewer_rows_than_columns_one_sample_classes_constants_and_duplicates() -> None:
    features, targets = blobs(60, 90, 4)
    features[:, 5] = 3.0  # constant
    features[10:20] = features[10]  # duplicates, of several classes
    targets[:] = np.where(targets == 3, 0, targets)
    targets[7] = 3  # the only one
    path = fit_path(features, targets, 4, TEN)
    assert path.unconverged() == []
    for at, penalty in enumerate(TEN):
        best = reference_objective(reference(features, targets, penalty), features, targets, penalty)
        assert objective(path, at, features, targets) == pytest.approx(best, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(path.weights[:, :, 5], 0, atol=1e-6)


def test_a_class_without_samples_is_never_predicted() -> None:
    features, targets = blobs(200, 6, 3)
    targets[targets == 1] = 4
    path = fit_path(features, targets, 6, TEN)
    assert set(np.unique(path.predict(features))) <= {0, 2, 4}
    assert np.all(path.bias[:, [1, 3, 5]] == NEVER)
    classification.predict(next(path.scores(features))[1][0])  # finite
    packed = fit_path(features, np.searchsorted([0, 2, 4], targets), 3, TEN)
    np.testing.assert_allclose(path.objective, packed.objective)


def test_half_precision_features_are_fitted_as_they_are() -> None:
    features, targets = blobs(300, 10, 3)
    half = features.astype(np.float16)
    wide = fit_path(half.astype(np.float32), targets, 3, TEN)
    np.testing.assert_allclose(fit_path(half, targets, 3, TEN).objective, wide.objective, rtol=1e-9)
    as_tensor = fit_path(torch.from_numpy(half), targets, 3, TEN)
    np.testing.assert_allclose(as_tensor.objective, wide.objective, rtol=1e-9)


def test_a_strong_penalty_leaves_the_class_frequencies() -> None:
    features, targets = blobs(200, 5, 4)
    targets[:40] = 2
    path = fit_path(features, targets, 4, np.array([1e12]))
    np.testing.assert_allclose(path.weights, 0, atol=1e-8)
    share = np.bincount(targets, minlength=4) / targets.size
    softmax = np.exp(path.bias[0]) / np.exp(path.bias[0]).sum()
    np.testing.assert_allclose(softmax, share, rtol=1e-5)
    constant = fit_path(np.ones((200, 3)), targets, 4, TEN)
    assert constant.unconverged() == []
    np.testing.assert_allclose(constant.weights, 0, atol=1e-8)


def test_scores_predictions_and_hits_agree() -> None:
    train, y, test, target = digits()
    path = fit_path(train, y, 10, TEN)
    scores = np.concatenate([block for _, block in path.scores(test)], axis=1)
    assert scores.shape == (10, len(test), 10)
    np.testing.assert_array_equal(path.predict(test), scores.argmax(axis=2))
    np.testing.assert_array_equal(path.correct(test, target), (path.predict(test) == target).sum(axis=1))
    with pytest.raises(ValueError, match="the probes 64"):
        path.predict(test[:, :10])


def test_a_refit_starts_from_the_path_and_ends_at_the_same_optimum() -> None:
    train, y, test, target = digits()
    path = fit_path(train, y, 10)
    both, labels = np.concatenate([train, test]), np.concatenate([y, target])
    chosen = path.lambdas[40:41]
    cold, warm = (fit_path(both, labels, 10, chosen, like=like) for like in (None, path))
    assert warm.objective[0] == pytest.approx(cold.objective[0], rel=1e-6)
    assert warm.n_iter[0] < cold.n_iter[0]


def test_what_did_not_converge_is_named() -> None:
    train, y, _, _ = digits()
    path = fit_path(train, y, 10, TEN, max_iter=4)
    assert 0 < len(path.unconverged()) < 10
    assert set(path.unconverged()) == set(TEN[~path.converged])
    assert np.all(path.distance[path.converged] <= path.tolerance)


def test_a_sweep_stops_at_its_gradient_and_chooses_as_the_exact_path() -> None:
    train, y, test, target = digits()
    exact, sweep = (fit_path(train, y, 10, gradient_tolerance=most) for most in (0.0, logistic.SWEEP))
    assert sweep.unconverged() == []
    assert sweep.n_iter.sum() < exact.n_iter.sum()
    centred = train - train.mean(axis=0)
    enough = logistic.SWEEP * logistic.widening(
        sweep.lambdas, float(np.square(centred).sum()) / train.shape[1]
    )
    assert np.all(np.minimum(sweep.gradient / enough, sweep.distance / sweep.tolerance) <= 1)
    hits = [path.correct(test, target) for path in (exact, sweep)]
    assert abs(int(hits[0].max()) - int(hits[1].max())) <= 2


def test_the_benchmark_says_what_it_measured() -> None:
    data = Labelled(*digits(), 10)
    found = probe.measure(data, every=32)
    assert found["ratios"]["path_over_all_fits"] < 1
    assert [fit["lambda"] for fit in found["fits"]] == sorted(fit["lambda"] for fit in found["fits"])
    assert found["unconverged"] == []
    assert len(found["fits"]) >= 3
    Console(file=io.StringIO()).print(probe.view(found))
    alone = probe.measure(data, every=0, lambdas=np.logspace(-2, 4, 7))
    assert (alone["fits"], alone["ratios"]) == ([], {})
    Console(file=io.StringIO()).print(probe.view(alone))
    with pytest.raises(DataError, match="at most 96"):
        probe.measure(data, every=97)


def test_random_features_can_be_told_apart_and_lie_in_files(tmp_path: Path) -> None:
    data = random_labelled(tmp_path, 40_000, 32, 10)
    assert isinstance(data.train, np.memmap)
    assert data.train.shape == (40_000, 32)
    assert data.test.shape == (4_000, 32)
    found = probe.measure(data, every=0, lambdas=np.logspace(-2, 4, 7))
    assert 0.8 < found["best_accuracy"] < 1
    again = random_labelled(tmp_path, 40_000, 32, 10)
    np.testing.assert_array_equal(again.train_targets, data.train_targets)


def test_the_benchmark_of_svms_chooses_as_linear_svc_does() -> None:
    train, y, _, _ = digits()
    rows = unit(train[:300])
    labels = (y[:300, None] == np.arange(11)).astype(np.uint8)  # nobody is of the last class
    found = bench_svm.measure(rows, labels, every=5, rounds=1)
    assert (found["classes"], found["classes_left_out"], found["fitted_classes"]) == (10, 1, 2)
    assert found["cv_map"] == pytest.approx(found["linear_svc_cv_map"], abs=0.5)
    assert found["unconverged"] == 0
    Console(file=io.StringIO()).print(bench_svm.view(found))
    with pytest.raises(DataError, match="no class"):
        bench_svm.measure(rows, labels[:, 10:])


def test_blocks_and_what_is_kept_in_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, y, _, _ = digits()
    lambdas = np.logspace(-2, 4, 7)
    whole = fit_path(train, y, 10, lambdas, precision="float64", tolerance=1e-9)
    monkeypatch.setattr("clipbench.solvers.rows.CACHE_BYTES", 0)
    monkeypatch.setattr(newton, "STATE_BYTES", 0)
    streamed = fit_path(train, y, 10, lambdas, precision="float64", block_rows=256, tolerance=1e-9)
    np.testing.assert_allclose(streamed.objective, whole.objective, rtol=1e-8)
    assert streamed.unconverged() == []


def test_progress_counts_every_penalty() -> None:
    features, targets = blobs(100, 5, 3)
    seen: list[tuple[int, int]] = []
    fit_path(features, targets, 3, progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (96, 96)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_what_cannot_be_fitted_is_refused() -> None:
    features, targets = blobs(20, 3, 2)
    with pytest.raises(DataError, match="two classes"):
        fit_path(features, np.zeros(20, dtype=np.int64), 2)
    with pytest.raises(ValueError, match="expected 0 … 0"):
        fit_path(features, targets, 1)
    with pytest.raises(ValueError, match="positive"):
        fit_path(features, targets, 2, np.array([0.0]))
    with pytest.raises(ValueError, match="twice"):
        fit_path(features, targets, 2, np.array([1.0, 1.0]))
    with pytest.raises(DataError, match="no features"):
        fit_path(features[:0], targets[:0], 2)
    with pytest.raises(ValueError, match="floats"):
        fit_path(features.astype(np.int64), targets, 2)
    features[3, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fit_path(features, targets, 2)


def test_binary_paths_equal_scikit_learn_class_by_class_without_the_ignored() -> None:
    features, targets = blobs(240, 8, 4)
    rng = np.random.default_rng(1)
    labels = (targets[:, None] == np.arange(5)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    labels[labels[:, 4] == 1, 4] = 0  # a class without positives
    path = fit_path_binary(features, labels, TEN)
    assert path.objective.shape == (10, 5)
    assert path.unconverged() == []
    scores = np.concatenate([block for _, block in path.scores(features)], axis=1)
    assert np.all(scores[:, :, 4] == NEVER)
    for c in range(4):
        seen = labels[:, c] != 255
        for at in range(0, 10, 3):
            model = reference(features[seen], labels[seen, c].astype(np.int64), TEN[at])
            best = reference_objective(model, features[seen], labels[seen, c].astype(np.int64), TEN[at])
            assert path.objective[at, c] == pytest.approx(best, rel=1e-6)
            np.testing.assert_allclose(
                scores[at, :, c], model.decision_function(features), rtol=2e-2, atol=1e-2
            )
    with pytest.raises(ValueError, match="255"):
        fit_path_binary(features, labels + 1)


# -------------------------------------------------------------------- svm


def unit(features: Matrix) -> Matrix:
    found: Matrix = features / np.linalg.norm(features, axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("width", [20, 400])
def test_svms_equal_linear_svc(width: int) -> None:
    features, targets = blobs(200, width, 3)
    features = unit(features)
    labels = (targets[:, None] == np.arange(3)).astype(np.uint8)
    labels[:5, 0] = 255  # difficult: a negative
    found = svm.fit(features, labels, svm.COSTS)
    assert found.converged.all()
    scores = found.scores(features)
    for c in range(3):
        for at, cost in enumerate(svm.COSTS):
            model = LinearSVC(C=cost, dual=False, class_weight={1: 2, 0: 1}, tol=1e-10, max_iter=10_000)
            model.fit(features, labels[:, c] == 1)
            np.testing.assert_allclose(
                scores[:, 4 * c + at], model.decision_function(features), rtol=1e-2, atol=2e-3
            )


def test_an_svm_that_is_given_few_passes_keeps_to_them_and_says_so() -> None:
    features, targets = blobs(200, 20, 3, spread=2.5)
    labels = (targets[:, None] == np.arange(3)).astype(np.uint8)
    whole = svm.fit(unit(features), labels, [10.0])
    assert whole.n_iter.min() > 8
    short = svm.fit(unit(features), labels, [10.0], max_iter=5)
    assert short.n_iter.max() <= 6  # the point that a last step leads to is looked at
    assert not short.converged.any()


def test_folds_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive = rng.random(40) < 0.3
        positive[:3], positive[-3:] = True, False
        rng.shuffle(positive)
        found = svm.folds(positive)
        for k, (_, held) in enumerate(StratifiedKFold(3).split(np.zeros((40, 1)), positive)):
            np.testing.assert_array_equal(np.flatnonzero(found == k), held)
    with pytest.raises(DataError, match="3-fold"):
        svm.folds(np.arange(9) < 2)


def test_the_cost_is_chosen_as_by_cross_validating_linear_svc() -> None:
    features, targets = blobs(240, 30, 4, spread=2.5)
    features = unit(features)
    labels = (targets[:, None] == np.arange(4)).astype(np.uint8)
    chosen = svm.fit_map(features, labels)
    assert chosen.unconverged == []
    final, every = chosen.svms.scores(features), svm.fit(features, labels, svm.COSTS).scores(features)
    for c in range(4):
        y = labels[:, c] == 1
        own = every[:, 4 * c + svm.COSTS.index(chosen.cost[c])]  # fitted on all rows
        np.testing.assert_allclose(final[:, c], own, rtol=1e-2, atol=2e-3)
        best, cost_of = -1.0, 0.0
        for at, cost in enumerate(svm.COSTS):
            scores = []
            for train, held in StratifiedKFold(3).split(features, y):
                model = LinearSVC(C=cost, dual=False, class_weight={1: 2, 0: 1}, max_iter=10_000, tol=1e-8)
                model.fit(features[train], y[train])
                scores.append(average_precision_score(y[held], model.decision_function(features[held])))
            assert chosen.cv[c, at] == pytest.approx(np.mean(scores), abs=2e-3)
            if np.mean(scores) > best:
                best, cost_of = float(np.mean(scores)), cost
        assert chosen.cost[c] == cost_of


def test_equally_good_costs_keep_the_smallest() -> None:
    features = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]]), 6, axis=0)  # every cost separates
    labels = np.repeat(np.array([[1], [0]], dtype=np.uint8), 6, axis=0)
    assert svm.fit_map(features, labels).cost.tolist() == [0.01]
    with pytest.raises(ValueError, match="ascend"):
        svm.fit_map(features, labels, (1.0, 0.1))


def test_a_distance_is_measured_by_the_objective_or_by_what_fitting_took_off_it() -> None:
    value, constant = (torch.tensor(part, dtype=torch.float64) for part in ([2.0, 9.0, 9.95], [10.0, 10, 10]))
    assert newton.distance_unit(value, constant, 0.01).tolist() == pytest.approx([2, 1, 0.0995])


# ------------------------------------------------------------------ memory

_PEAK = """
import resource, sys
import numpy as np
from clipbench.solvers.logistic import fit_path
import torch
torch.set_num_threads(1)
path, rows = sys.argv[1], int(sys.argv[2])
features = np.memmap(path, np.float32, "r", shape=(rows, 256))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fitted = fit_path(features, np.arange(rows) % 3, 3, np.array([1e6, 1e5]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, fitted.converged.all())
"""


def test_memory_mapped_features_larger_than_the_bound_stay_on_disk(tmp_path: Path) -> None:
    rows = 500_000  # 488 MiB, more than the 384 MiB that may be copied
    file = tmp_path / "features.f32"
    block = np.random.default_rng(0).normal(size=(50_000, 256)).astype(np.float32)
    with file.open("wb") as handle:
        for _ in range(10):
            block.tofile(handle)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(file), str(rows)], capture_output=True, text=True, check=True
    )
    grown, converged = done.stdout.split()
    assert converged == "True"
    assert float(grown) < 350  # MiB


def test_rows_are_centred_and_read_in_blocks() -> None:
    features, _ = blobs(50, 4, 2)
    rows = Rows(features, dtype=torch.float64, block_rows=7)
    whole = torch.cat([block for _, block in rows.blocks()]).numpy()
    np.testing.assert_allclose(whole, features - features.mean(axis=0))
    index = torch.tensor([0, 6, 7, 30, 49])
    part = torch.cat([block for _, _, block in rows.some(index).blocks()]).numpy()
    np.testing.assert_allclose(part, whole[index.numpy()])


def test_one_bias_for_all_classes_is_no_direction_of_a_step() -> None:
    # rounding gives it a curvature next to 0, whose inverse would drown every other direction
    rng = np.random.default_rng(0)
    shares = torch.from_numpy(rng.dirichlet(np.ones(5), 4000)).float()
    mixing = (torch.diag(shares.sum(dim=0)) - shares.T @ shares)[None].double()
    spectrum = Spectrum(torch.ones(3), None)
    precondition = newton._Preconditioner(spectrum, mixing, torch.ones(1, dtype=torch.float64), 4000, [None])
    vector = torch.zeros(1, 5, 4)
    vector[:, :, -1] = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0]) + 1.0
    found = precondition(vector)[0, :, -1]
    assert abs(float(found.sum())) < 1e-6 * float(found.abs().max())
    expected = torch.linalg.pinv(mixing[0], hermitian=True, rtol=1e-3) @ vector[0, :, -1].double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-9)


def test_blocks_bring_a_stiffness_of_their_own_when_they_are_new_alone() -> None:
    features, targets = blobs(200, 4, 3)
    rows = Rows(features, dtype=torch.float64)
    engine = newton.Newton(rows, Spectrum.of(rows), Softmax(torch.from_numpy(targets), 3))
    ones = torch.ones(2, dtype=torch.float64)
    penalty, start = torch.tensor([1e-2, 1e4], dtype=torch.float64), torch.zeros(2, 3, 5, dtype=torch.float64)
    problems = newton.Problems(penalty, torch.zeros(2).long(), start, 7 * ones, 200 * ones, 0 * ones)
    run = newton._Run(engine, problems, 1e-6, 100)
    point = engine.evaluate(start[:1], penalty[:1], torch.zeros(1).long())
    engine.remember(newton._Blocks(engine, point, 1e-2))  # of no use to the other penalty
    run._aim(fresh=False)
    assert run._stiffness.tolist() == [7, 7]
    run._aim(fresh=True)
    assert run._stiffness.tolist() == [newton._BLOCK_STIFFNESS, 7]


def test_steps_that_come_no_nearer_are_given_up() -> None:
    features, targets = blobs(200, 4, 3)
    rows = Rows(features, dtype=torch.float32)
    engine = newton.Newton(rows, Spectrum.of(rows), Softmax(torch.from_numpy(targets), 3))
    one, start = torch.ones(1, dtype=torch.float64), torch.zeros(1, 3, 5)
    problems = newton.Problems(100 * one, torch.zeros(1).long(), start, one, 200 * one, 0 * one)
    found = engine.solve(problems, tolerance=0, max_passes=2000)  # which rounding keeps from being met
    assert not found.converged.any()
    assert 20 < int(found.passes) < 1000


def test_an_option_that_no_path_has_is_refused() -> None:
    options: Any = {"max_iters": 3}
    with pytest.raises(TypeError, match="no option max_iters"):
        fit_path(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]), 2, **options)


# -------------------------------------------------------------- real features


@pytest.mark.shared
def test_the_path_equals_scikit_learn_on_real_features(shared_data: Path, tmp_path: Path) -> None:
    catalog = Catalog()
    entry = catalog.dataset("cifar10")
    paths = DataPaths({"cifar10": shared_data / "cifar10"}, ())
    keep_freed_memory()
    model = catalog.model("efficientnet-lite0")
    torch.set_num_threads(cores())  # no small tower
    encoder = ModelEncoder(model, Runtime.choose("cpu"), progress=False, root=tmp_path)
    splits = [limited(open_split(entry, role, paths), n, 0) for role, n in (("train", 160), ("test", 60))]
    train, test = (np.asarray(encoder.images(split, "backbone"), dtype=np.float64) for split in splits)
    torch.set_num_threads(1)
    columns = np.linspace(0, train.shape[1] - 1, 48).astype(int)
    train, test, targets = train[:, columns], test[:, columns], splits[0].labels.astype(np.int64)
    path = fit_path(train, targets, 10, TEN, precision="float32")
    assert path.unconverged() == []
    predicted, same = path.predict(test), []
    for at, penalty in enumerate(TEN):
        fitted = reference(train, targets, penalty)
        best = reference_objective(fitted, train, targets, penalty)
        assert objective(path, at, train, targets) == pytest.approx(best, rel=1e-6, abs=1e-6)
        same.append(np.mean(predicted[at] == fitted.predict(test)))
    assert np.mean(same) >= 0.999
