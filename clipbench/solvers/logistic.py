"""Logistic regression for all penalties at once: scikit-learn's objective, its whole path in one run.

    f(W, b) = Σᵢ cross-entropy(W xᵢ + b, yᵢ) + λ ‖W‖² / 2,   λ = 1 / C,   the bias unpenalised

as `sklearn.linear_model.LogisticRegression(C)` states it. For two classes scikit-learn penalises the one vector
w = w₁ − w₀, which is λ (‖w₀‖² + ‖w₁‖²) for the symmetric pair w₁ = −w₀ = w / 2: followed here.

The path is solved from coarse to fine. One λ a decade is solved from the strongest penalty to the weakest, each
started on the line through the last two solutions; then the λ between them in batches, started on the polynomial
in log λ through their solved neighbours, until the finest ones are next to their optimum before they begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipbench.errors import DataError
from clipbench.solvers.losses import Loss, Sigmoid, Softmax
from clipbench.solvers.newton import Newton, Problems
from clipbench.solvers.rows import Features, Reduced, Rows, Spectrum, check, fetch

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The 96 penalties of CLIP's linear probe (Radford et al., 2021, appendix A.3).
LAMBDAS: Final[Doubles] = np.logspace(-6, 6, 96)
#: Of `Path.distance`, by precision of the products: float32 resolves no more.
TOLERANCE: Final = {"float64": 1e-8, "float32": 1e-7}
#: A gradient tolerance for choosing λ: no worse an objective than scikit-learn's fit at its default tolerance.
SWEEP: Final = 4e-4
_WEAK: Final = 1 / 2000  # of the mean eigenvalue of the Gram matrix: below it the gradient tolerance grows,
_WEAKEST: Final = 5.0  # up to so many times
NEVER: Final = -1e9  # bias of a class without samples: its optimum is −∞, and scores must stay finite
IGNORED: Final = 255
_FEW, _MANY = 16, 32  # passes for one λ, below and above which the next is further off or nearer
_SMALL: Final = 2**21  # values up to which float64 costs nothing worth saving
_SCORE_BYTES: Final = 2**26


@dataclass(frozen=True)
class Path:
    """Probes of one training set, one for each λ, and how well each was solved.

    A λ has converged when the estimated distance of its objective to the minimum, gᵀ H⁻¹ g / 2 with gradient g and
    Hessian H, is at most `tolerance` times min(f, f₀ − f), where f₀ is the objective of the best constant probe; or
    when `gradient` is at most the gradient tolerance asked for. H⁻¹ stands for the preconditioner, scaled by what
    conjugate gradients last showed it to be short of: no scale of the features enters.

    Attributes:
        lambdas: float64 [L], as given.
        weights: float32 [L, K, D].
        bias: float32 [L, K]; `NEVER` for a class without samples.
        objective: float64 [L] (several binary problems: [L, K]), the sum over samples plus penalty.
        distance: float64, like `objective`: the estimate above.
        gradient: float64, like `objective`: ‖∇f‖₂ at the solution over ‖∇f‖₂ at the best constant probe.
        n_iter: int64, like `objective`: passes over the features, one a gradient or Hessian product.
        converged: bool, like `objective`.
        tolerance: of `distance`.
    """

    lambdas: Doubles
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    objective: Doubles
    distance: Doubles
    gradient: Doubles
    n_iter: Ints
    converged: NDArray[np.bool_]
    tolerance: float
    device: str = "cpu"
    spectrum: _Shared | None = field(default=None, repr=False, compare=False)

    def scores(self, features: Features) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Row slices of `features` [n, D] and their scores, float32 [L, b, K].

        Raises:
            ValueError: the features have another width than those fitted on.
        """
        check(features)
        count, classes, width = self.weights.shape
        if features.shape[1] != width:
            raise ValueError(f"features have {features.shape[1]} columns, the probes {width}")
        weights = torch.from_numpy(self.weights).to(self.device).view(-1, width).T
        bias = torch.from_numpy(self.bias).to(self.device).view(-1)
        step = max(1, min(4096, _SCORE_BYTES // (4 * count * classes)))
        for start in range(0, features.shape[0], step):
            rows = slice(start, min(start + step, features.shape[0]))
            block = fetch(features, rows).to(self.device, torch.float32)
            found = torch.addmm(bias, block, weights).view(-1, count, classes)
            yield rows, found.transpose(0, 1).cpu().numpy()

    def predict(self, features: Features) -> Ints:
        """Class of the highest score under each λ, int64 [L, n]; the lowest index among equals."""
        found = np.empty((self.lambdas.size, features.shape[0]), dtype=np.int64)
        for rows, scores in self.scores(features):
            found[:, rows] = scores.argmax(axis=2)
        return found

    def correct(self, features: Features, targets: Ints) -> Ints:
        """How many of `targets` int64 [n] each λ predicts right, int64 [L]."""
        hits = np.zeros(self.lambdas.size, dtype=np.int64)
        for rows, scores in self.scores(features):
            hits += (scores.argmax(axis=2) == targets[rows]).sum(axis=1)
        return hits

    def unconverged(self) -> list[float]:
        """The λ whose objective may still be above its minimum by more than the tolerance."""
        solved = self.converged.reshape(self.lambdas.size, -1).all(axis=1)
        return [float(value) for value in self.lambdas[~solved]]


@dataclass(frozen=True)
class _Shared:
    """The spectrum of a training set, for another one much like it."""

    spectrum: Spectrum
    n: int


class Options(TypedDict, total=False):
    """How a path is solved.

    Attributes:
        device: `cpu` (by default), `cuda` or `cuda:N`.
        tolerance: of `Path.distance`; `TOLERANCE` by default.
        gradient_tolerance: of `Path.gradient`, 0 by default; a λ that meets either has converged. Weak penalties leave
            directions along which the objective is all but flat, and most work goes there: `SWEEP` skips it, for
            choosing λ. It is widened for weak λ, see `widening`.
        max_iter: passes over the features for one λ at most; 1,000 by default.
        precision: of products with the features; `auto` (by default) is float64 for small sets and float32 otherwise.
        block_rows: rows handled at a time.
        like: a path whose training set is most of this one (train, then train + validation): solutions start
            from its nearest λ, and its spectrum is used again.
        progress: called after every batch with how many of how many λ are done.
    """

    device: str
    tolerance: float | None
    gradient_tolerance: float
    max_iter: int
    precision: Literal["auto", "float32", "float64"]
    block_rows: int | None
    like: Path | None
    progress: Callable[[int, int], None] | None


def fit_path(
    features: Features, targets: Ints, classes: int, lambdas: Doubles = LAMBDAS, **options: Unpack[Options]
) -> Path:
    """Multinomial logistic regression for every λ.

    Args:
        features: float16, float32 or float64 [n, D], in memory or memory-mapped; streamed in row blocks where a
            copy would be large.
        targets: int64 [n], class indices below `classes`.
        classes: K; classes without samples are never predicted.
        lambdas: float64 [L], positive, in any order.

    Raises:
        DataError: fewer than two classes have samples, or features are not finite.
        ValueError: shapes, targets or λ that cannot be.

    Source: Radford et al. 2021, appendix A.3 (the protocol); scikit-learn's LogisticRegression (the objective).
    """
    check(features)
    lambdas = _checked_lambdas(lambdas)
    counts = _class_counts(features, targets, classes)
    present = np.flatnonzero(counts)
    if present.size < 2:
        raise DataError(
            f"a probe needs samples of two classes at least (found {present.size} of {classes})",
            hint="check the split's labels, or take more samples",
        )
    place = np.full(classes, -1)
    place[present] = np.arange(present.size)
    loss = Softmax(torch.from_numpy(place[targets]).to(options.get("device", "cpu")), present.size)
    prior = np.log(counts[present] / counts.sum())
    driver = _Driver(features, loss, prior[None] - prior.mean(), present, options)
    driver.run(lambdas * (2 if present.size == 2 else 1))  # scikit-learn's penalty for two classes, see above
    return driver.path(lambdas, np.full(classes, NEVER))


def widening(penalties: Doubles, mean_eigenvalue: float) -> Doubles:
    """By how much the gradient tolerance of each penalty is widened: min(5, max(1, (ḡ / 2000 λ)^¼)).

    ḡ is the mean eigenvalue of the centred Gram matrix. The rule follows how far scikit-learn's L-BFGS gets at its
    default tolerance: the weaker the penalty, the less far (measured on 25,000 × 1,280 real features).

    >>> widening(np.array([10.0, 0.1, 1e-6]), 3200.0).tolist()
    [1.0, 2.0, 5.0]
    """
    wider: Doubles = (_WEAK * mean_eigenvalue / penalties) ** 0.25
    return wider.clip(1.0, _WEAKEST)


def fit_path_binary(
    features: Features, labels: NDArray[np.uint8], lambdas: Doubles = LAMBDAS, **options: Unpack[Options]
) -> Path:
    """One binary logistic regression a class and λ, on multi-label sets.

    Args:
        labels: uint8 [n, C], 0 absent, 1 present, 255 left out of this class.
        features, lambdas and the rest: as `fit_path`.

    Returns:
        A path whose K is C; `objective` and its like are [L, C]. A class without positives (or without negatives)
        scores a constant.

    Raises:
        DataError: no class has both positives and negatives, or features are not finite.
        ValueError: shapes, labels or λ that cannot be.
    """
    check(features)
    lambdas = _checked_lambdas(lambdas)
    if labels.ndim != 2 or labels.shape[0] != features.shape[0]:
        raise ValueError(f"labels have shape {labels.shape}, expected [{features.shape[0]}, C]")
    if np.any((labels > 1) & (labels != IGNORED)):
        raise ValueError("multi-label labels must be 0 (absent), 1 (present) or 255 (left out)")
    sign = np.where(labels == IGNORED, 0, 2 * labels.astype(np.int8) - 1).astype(np.int8)
    positives, negatives = (sign > 0).sum(axis=0), (sign < 0).sum(axis=0)
    present = np.flatnonzero((positives > 0) & (negatives > 0))
    if not present.size:
        raise DataError("no class has both positives and negatives", hint="check the split's labels")
    signs = torch.from_numpy(np.ascontiguousarray(sign[:, present].T)).to(options.get("device", "cpu"))
    prior = np.log(positives[present] / negatives[present])
    driver = _Driver(features, Sigmoid(signs), prior[:, None], present, options)
    driver.run(lambdas)
    return driver.path(lambdas, np.where(negatives > 0, NEVER, -NEVER))


class _Driver:
    """Walks over the λ, strongest first, coarse to fine."""

    def __init__(
        self, features: Features, loss: Loss, prior: Doubles, present: Ints, options: Options
    ) -> None:
        """`prior` [problems, K] is the best bias of zero weights; `present` are the classes that it is of."""
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"a path has no option {', '.join(sorted(unknown))}")
        n, width = features.shape
        precision = options.get("precision", "auto")
        if precision == "auto":
            precision = "float64" if n * min(n, width) <= _SMALL else "float32"
        dtype = torch.float64 if precision == "float64" else torch.float32
        tolerance = options.get("tolerance")
        self._tolerance = TOLERANCE[precision] if tolerance is None else tolerance
        self._gradient_tolerance = options.get("gradient_tolerance", 0.0)
        self._max_iter, self._progress = options.get("max_iter", 1000), options.get("progress")
        self._device, like = options.get("device", "cpu"), options.get("like")
        rows = Rows(features, device=self._device, dtype=dtype, block_rows=options.get("block_rows"))
        self._mean = rows.mean
        self._reduced: Reduced | None = None
        self.shared: _Shared | None = None
        if n < width:
            self._reduced = Reduced.of(rows)
            rows, spectrum = self._reduced.rows, self._reduced.spectrum
        elif like is not None and like.spectrum is not None and like.spectrum.spectrum.values.dtype == dtype:
            known = like.spectrum
            spectrum = Spectrum(known.spectrum.values * (n / known.n), known.spectrum.vectors)
        else:
            spectrum = Spectrum.of(rows)
        if self._reduced is None:
            self.shared = _Shared(spectrum, n)
        self._like, self._problems, self._present = like, len(prior), present
        self._engine = Newton(rows, spectrum, loss, exact=self._gradient_tolerance == 0)
        self._prior = torch.from_numpy(prior).to(rows.device, dtype)

    def run(self, penalties: Doubles) -> None:
        """Solve every penalty; results in the order of `penalties`."""
        count, rows = penalties.size, self._engine.rows
        self._logs = np.log(penalties)
        shape = (count, *self._prior.shape, rows.d + 1)
        self._solved = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
        self._known: list[int] = []
        self._stiff = np.ones((count, self._problems))
        self.objective, self.distance, self.gradient = (np.zeros((count, self._problems)) for _ in range(3))
        self.n_iter = np.zeros((count, self._problems), dtype=np.int64)
        self.converged = np.zeros((count, self._problems), dtype=bool)
        members = torch.arange(self._problems, device=rows.device)
        ones = torch.ones(self._problems, device=rows.device)
        start = self._engine.evaluate(self._zero(), ones, members, keep=False)
        scale = start.gradient.square().sum(dim=(1, 2)).sqrt().cpu().numpy()
        mean = float(self._engine.spectrum.values.double().mean())
        enough = self._gradient_tolerance * widening(penalties, mean)[:, None] * scale
        for batch in self._batches():
            penalty = torch.from_numpy(np.repeat(penalties[batch], self._problems)).to(rows.device)
            first = torch.cat([self._start(i, float(penalties[i]), members) for i in batch])
            stiffness = torch.from_numpy(np.concatenate([self._guess(i) for i in batch])).to(rows.device)
            small = torch.from_numpy(enough[batch].ravel()).to(rows.device)
            among, constant = members.repeat(len(batch)), start.value.repeat(len(batch))
            problems = Problems(penalty, among, first, stiffness, constant, small)
            found = self._engine.solve(problems, tolerance=self._tolerance, max_passes=self._max_iter)
            across = (len(batch), self._problems)
            for at, i in enumerate(batch):
                self._solved[i] = found.weights[at * self._problems : (at + 1) * self._problems]
            self.objective[batch] = found.objective.view(across).cpu().numpy()
            self.distance[batch] = found.distance.view(across).cpu().numpy()
            gradient = found.gradient.view(across).cpu().numpy()
            self.gradient[batch] = np.divide(gradient, scale, out=np.zeros_like(gradient), where=scale > 0)
            self.n_iter[batch] = found.passes.view(across).cpu().numpy()
            self.converged[batch] = found.converged.view(across).cpu().numpy()
            self._stiff[batch] = found.stiffness.view(across).cpu().numpy()
            self._known += batch
            if self._progress is not None:
                self._progress(len(self._known), count)

    def path(self, lambdas: Doubles, absent: Doubles) -> Path:
        """The solutions, of all classes and in the features' own coordinates; `absent` [C]: biases without samples."""
        count, width, classes, present = lambdas.size, self._mean.numel(), absent.size, self._present
        solved = self._solved.flatten(1, 2)
        bias = np.tile(absent.astype(np.float32), (count, 1))
        whole = self._reduced is None and present.size == classes and solved.dtype == torch.float32
        # Where the solutions are the weights, no copy is made: of many classes they are the most that is held.
        shape = (count, classes, width)
        weights = solved[:, :, :-1].cpu().numpy() if whole else np.zeros(shape, dtype=np.float32)
        for i in range(count):
            own = solved[i].double()
            inside = own[:, :-1] if self._reduced is None else self._reduced.outward(own[:, :-1])
            bias[i, present] = (own[:, -1] - inside @ self._mean).cpu().numpy()
            if not whole:
                weights[i, present] = inside.cpu().numpy()
        single = self._problems == 1 and self._prior.shape[1] > 1
        numbers = [self.objective, self.distance, self.gradient, self.n_iter, self.converged]
        if single:
            objective, distance, gradient, n_iter, converged = (part[:, 0] for part in numbers)
        else:
            wholes = [np.full((count, classes), part.dtype == bool, part.dtype) for part in numbers]
            for whole_part, part in zip(wholes, numbers, strict=True):
                whole_part[:, present] = part  # of the other classes there is nothing to solve
            objective, distance, gradient, n_iter, converged = wholes
        return Path(
            lambdas, weights, bias, objective, distance, gradient, n_iter, converged, self._tolerance,
            self._device, self.shared,
        )  # fmt: skip

    def _batches(self) -> Iterator[list[int]]:
        """λ indices, in the order in which to solve them; asked for the next when the last is solved."""
        order = np.argsort(-self._logs, kind="stable")
        last = order.size - 1
        widest = 1
        while widest < last and 2 * widest * self._spacing() <= 1.1 * math.log(10):
            widest *= 2
        at, stride, done = 0, widest, [0]
        yield [int(order[0])]
        while at < last:
            at = min(at + stride, last)
            yield [int(order[at])]
            done.append(at)
            # Where the optimum moves far, shorter ways keep Newton's method within its region of fast convergence.
            passes = self.n_iter[order[at]].max()
            if passes > _MANY:
                stride = max(min(2, widest), stride // 2)
            elif passes < _FEW:
                stride = min(widest, stride * 2)
        at_once = max(1, self._engine.problems_at_once() // self._problems)
        while len(done) <= last:
            level = [(a + b) // 2 for a, b in pairwise(done) if b - a > 1]
            for begin in range(0, len(level), at_once):
                yield [int(order[at]) for at in level[begin : begin + at_once]]
            done = sorted(done + level)

    def _spacing(self) -> float:
        """Mean distance between neighbouring λ, in log λ."""
        span = float(self._logs.max() - self._logs.min())
        return span / max(1, self._logs.size - 1) or math.inf

    def _zero(self) -> Tensor:
        rows = self._engine.rows
        zero = torch.zeros(*self._prior.shape, rows.d + 1, dtype=rows.dtype, device=rows.device)
        zero[:, :, -1] = self._prior
        return zero

    def _start(self, index: int, penalty: float, members: Tensor) -> Tensor:
        """Where the solution at a λ is expected, [problems, K, d + 1]."""
        if self._like is not None:
            return self._from_like(self._like, index)
        if not self._known:
            return self._zero()
        away = self._logs[self._known] - self._logs[index]
        inside = away.min() < 0 < away.max()
        nearest = np.argsort(np.abs(away), kind="stable")
        if not inside:
            return self._extrapolated(away, nearest, penalty, members)
        near = np.sort(np.abs(away))[:2].sum()
        return self._through(nearest[: 4 if near > 0.6 * math.log(10) else 6], away)

    def _extrapolated(self, away: Doubles, nearest: Ints, penalty: float, members: Tensor) -> Tensor:
        """The best of the last solution and the line and the parabola through the last ones, by problem."""
        counts = range(1, min(3, len(away)) + 1)
        starts = torch.stack([self._through(nearest[:count], away) for count in counts])
        if len(starts) == 1:
            return starts[0]
        of_each = torch.full_like(starts[:, :, 0, 0].flatten(), penalty, dtype=torch.float64)
        values = self._engine.values(starts.flatten(0, 1), of_each, members.repeat(len(starts)))
        best = values.view(len(starts), -1).argmin(dim=0)
        return starts[best, torch.arange(members.numel(), device=members.device)]

    def _through(self, nodes: Ints, away: Doubles) -> Tensor:
        """The polynomial in log λ through solved ones (places in `_known`), at 0 of `away`."""
        start = torch.zeros_like(self._solved[0])
        for weight, node in zip(_lagrange(away[nodes]), nodes, strict=True):
            start += float(weight) * self._solved[self._known[node]]
        return start

    def _from_like(self, like: Path, index: int) -> Tensor:
        """The nearest solution of another path, in the coordinates of this one."""
        nearest = int(np.abs(np.log(like.lambdas) - self._logs[index]).argmin())
        weights, bias = (
            torch.from_numpy(part[nearest][self._present]).to(self._mean.device).double()
            for part in (like.weights, like.bias)
        )
        inside = weights if self._reduced is None else self._reduced.inward(weights)
        start = self._zero()
        start[:, :, :-1] = inside.view(start[:, :, :-1].shape)
        centred = bias + weights @ self._mean
        # A class that the other set lacked has no bias there to start from.
        own = start[:, :, -1].flatten()
        known = torch.where(bias.abs() < -NEVER / 2, centred.to(own.dtype), own)
        start[:, :, -1] = known.view(start.shape[:2])
        return start

    def _guess(self, index: int) -> Doubles:
        """Stiffness of the nearest solved λ."""
        if not self._known:
            return np.ones(self._problems)
        nearest = int(np.abs(self._logs[self._known] - self._logs[index]).argmin())
        found: Doubles = self._stiff[self._known[nearest]]
        return found


def _lagrange(nodes: Doubles) -> Doubles:
    """Weights with which values at `nodes` make the value at 0 of the polynomial through them.

    >>> _lagrange(np.array([-1.0, 1.0])).tolist()
    [0.5, 0.5]
    """
    weights = np.ones(nodes.size)
    for i in range(nodes.size):
        others = np.delete(nodes, i)
        weights[i] = np.prod(-others / (nodes[i] - others))
    return weights


def _checked_lambdas(lambdas: Doubles) -> Doubles:
    found: Doubles = np.asarray(lambdas, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.all(np.isfinite(found) & (found > 0)):
        raise ValueError("lambdas must be a vector of positive numbers")
    if np.unique(found).size != found.size:
        raise ValueError("a λ is given twice")
    return found


def _class_counts(features: Features, targets: Ints, classes: int) -> Ints:
    if targets.shape != (features.shape[0],):
        raise ValueError(f"targets have shape {targets.shape}, expected ({features.shape[0]},)")
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets reach from {targets.min()} to {targets.max()}, expected 0 … {classes - 1}")
    return np.bincount(targets, minlength=classes).astype(np.int64)
