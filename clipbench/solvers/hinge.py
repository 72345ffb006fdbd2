"""Squared hinge losses of many binary problems on the same rows: f(w) / C = λ ‖w‖² / 2 + Σᵢ cᵢ max(0, 1 − yᵢ w·xᵢ)².

Newton's method with the generalised Hessian (Keerthi & DeCoste, JMLR 2005): its system is solved by conjugate
gradients, whose products go to all problems at once, and the step is as long as makes f least on its line, for which
the scores of the step are known. The rows lie in the eigenbasis of their Gram matrix where they are in memory, so that
the preconditioner, λ + mean curvature · eigenvalues, is diagonal. A problem leaves the batch when it has converged.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from clipbench.solvers.newton import Solved, distance_unit
from clipbench.solvers.rows import Rows, Spectrum

_FORCING: Final = 0.1  # conjugate gradients end at this share of the first residual
_MOST_PRODUCTS: Final = 60  # of one step: past that a new linearisation gains more
_PATIENCE: Final = 20  # steps without coming nearer, after which rounding is all that is left
_FLAT: Final = 0.1  # a step ends where the slope along it is at most this share of the first
_LINE_STEPS: Final = 30
_FLOOR: Final = 1e-2  # of f, below which f₀ − f is taken for rounding
_STATE_BYTES: Final = 256 * 2**20  # of what a batch of problems holds for each row
_PER_ROW: Final = 12  # such numbers


class Problems(NamedTuple):
    """P problems.

    Attributes:
        sign: int8 [P, n], 1 positive, −1 negative.
        weight: [P, n], cᵢ; 0 for rows that a problem does not see.
        penalty: float64 [P], λ.
        start: [P, d], the weights to begin with.
    """

    sign: Tensor
    weight: Tensor
    penalty: Tensor
    start: Tensor


def solve(rows: Rows, spectrum: Spectrum, problems: Problems, *, tolerance: float, max_passes: int) -> Solved:
    """Minimise the problems, in batches that fit the memory; the objectives are f / C.

    Args:
        tolerance: of `Solved.distance`, at which a problem has converged.
        max_passes: for one problem at most.
    """
    at_once = max(1, _STATE_BYTES // (rows.n * rows.dtype.itemsize * _PER_ROW))
    parts = []
    for begin in range(0, len(problems.start), at_once):
        some = Problems(*(part[begin : begin + at_once] for part in problems))
        parts.append(_Batch(rows, spectrum, some, tolerance, max_passes).run())
    return Solved(*map(torch.cat, zip(*parts, strict=True)))


class _Batch:
    """Problems on their way. What `_LIVE` names has a row for each that is left."""

    _LIVE: Final = (
        "_at", "_sign", "_weight", "_penalty", "_w", "_value", "_gradient", "_lacking", "_short",
        "_curvature", "_scale", "_preconditioned", "_stiffness", "_nearest", "_idle", "_passes",
        "_zero_value", "_zero_slope",
    )  # fmt: skip

    def __init__(
        self, rows: Rows, spectrum: Spectrum, problems: Problems, tolerance: float, max_passes: int
    ) -> None:
        sign, weight, penalty, start = problems
        self._rows, self._spectrum = rows, spectrum
        self._tolerance, self._max_passes = tolerance, max_passes
        self._sign, self._weight = sign.to(rows.dtype), weight.to(rows.dtype)
        self._penalty = penalty.to(rows.dtype)[:, None]
        count = len(start)
        self._at = torch.arange(count, device=rows.device)
        zeros = torch.zeros(count, dtype=torch.float64, device=rows.device)
        self._stiffness, self._idle, self._nearest = zeros + 1, zeros, zeros + torch.inf
        self._passes = torch.ones_like(self._at)
        self._zero_value = self._weight.sum(dim=1, dtype=torch.float64)
        self._zero_slope = _norm(self._back(-2 * self._weight * self._sign))
        self._solved = Solved.none_yet(start)
        self._w = start
        self._evaluate()

    def run(self) -> Solved:
        self._settle()
        while self._at.numel():
            step, moved, products = self._direction()
            slope = _dot(self._gradient, step)
            size = _dot(self._gradient, self._preconditioned)
            self._stiffness = torch.where(size > 0, (-slope / size).clamp(min=1.0), self._stiffness)
            self._w = self._w + self._length(step, moved, slope) * step
            self._passes += products + 1
            self._evaluate()
            self._settle()
        return self._solved

    # -- products with the rows

    def _scores(self, vectors: Tensor) -> Tensor:
        """[P, n] of vectors [P, d]."""
        parts = [vectors @ block.T for _, block in self._rows.blocks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _back(self, scores: Tensor) -> Tensor:
        """[P, d] of scores [P, n]."""
        found: Tensor | None = None
        for place, block in self._rows.blocks():
            found = scores[:, place] @ block if found is None else found.addmm_(scores[:, place], block)
        assert found is not None
        return found

    # -- a point

    def _evaluate(self) -> None:
        self._lacking = 1 - self._scores(self._w).mul_(self._sign)
        self._short = self._lacking.clamp(min=0)
        pulled = self._weight * self._short
        self._value = (pulled * self._short).sum(dim=1, dtype=torch.float64)
        self._value += self._penalty[:, 0].double() / 2 * self._w.square().sum(dim=1, dtype=torch.float64)
        self._gradient = self._back(pulled.mul_(self._sign).mul_(-2)).addcmul_(self._penalty, self._w)
        self._curvature = 2 * self._weight * (self._short > 0)
        mean = self._curvature.mean(dim=1, keepdim=True)
        self._scale = self._penalty + mean * self._spectrum.values
        self._preconditioned = self._precondition(self._gradient, self._scale)

    def _precondition(self, vectors: Tensor, scale: Tensor) -> Tensor:
        basis = self._spectrum.vectors
        return vectors / scale if basis is None else ((vectors @ basis) / scale) @ basis.T

    def _settle(self) -> None:
        """Store what is done and keep the rest."""
        distance = self._stiffness * _dot(self._gradient, self._preconditioned) / 2 / self._unit()
        converged = distance <= self._tolerance
        nearer = distance < self._nearest
        self._nearest = torch.minimum(distance, self._nearest)
        self._idle = torch.where(nearer, 0.0, self._idle + 1)
        over = converged | (self._idle >= _PATIENCE) | (self._passes >= self._max_passes)
        if not bool(over.any()):
            return
        slope = _norm(self._gradient) / self._zero_slope.clamp(min=torch.finfo(torch.float64).tiny)
        self._solved.put(
            *(self._at[over], over, self._w, self._value, distance, slope),
            *(self._passes, converged, self._stiffness),
        )
        kept = ~over
        for name in self._LIVE:
            setattr(self, name, getattr(self, name)[kept])

    def _unit(self) -> Tensor:
        return distance_unit(self._value, self._zero_value, _FLOOR)

    # -- a step

    def _direction(self) -> tuple[Tensor, Tensor, Tensor]:
        """By conjugate gradients: a step [P, d], its scores [P, n], and how many products each took."""
        step, moved = torch.empty_like(self._w), torch.empty_like(self._short)
        taken = torch.zeros_like(self._passes)
        index = torch.arange(len(step), device=step.device)
        penalty, curvature, scale = self._penalty, self._curvature, self._scale
        residual, ahead = -self._gradient, -self._preconditioned
        inner, inner_scores = torch.zeros_like(step), torch.zeros_like(moved)
        norm = _dot(residual, ahead)
        room = self._max_passes - self._passes
        # No further than the tolerance asks for: the rest would be lost to the next linearisation anyway.
        goal = torch.maximum(_FORCING**2 * norm, 0.5 * self._tolerance * self._unit() / self._stiffness)
        for product in range(1, _MOST_PRODUCTS + 1):
            scores = self._scores(ahead)
            image = self._back(curvature * scores).addcmul_(penalty, ahead)
            length = norm / _dot(ahead, image).clamp(min=torch.finfo(torch.float64).tiny)
            by = length.to(step.dtype)[:, None]
            inner.addcmul_(by, ahead)
            inner_scores.addcmul_(by, scores)
            residual.addcmul_(by, image, value=-1)
            solved = self._precondition(residual, scale)
            new = _dot(residual, solved)
            over = (new <= goal) | (product >= room)
            left = int((~over).sum()) if product < _MOST_PRODUCTS else 0
            if 4 * left <= 3 * over.numel():
                step[index], moved[index], taken[index] = inner, inner_scores, product
                if not left:
                    break
                kept = ~over
                index, norm, new, goal, room = index[kept], norm[kept], new[kept], goal[kept], room[kept]
                penalty, curvature, scale = penalty[kept], curvature[kept], scale[kept]
                residual, ahead, solved = residual[kept], ahead[kept], solved[kept]
                inner, inner_scores = inner[kept], inner_scores[kept]
            ahead = torch.addcmul(solved, (new / norm).to(step.dtype)[:, None], ahead)
            norm = new
        return step, moved, taken

    def _length(self, step: Tensor, moved: Tensor, slope: Tensor) -> Tensor:
        """How far to go along each step, [P, 1]: nearly to where f, convex and piecewise quadratic, is least."""
        pull = self._sign * moved
        along = self._penalty[:, 0].double() * _dot(self._w, step)
        bend = self._penalty[:, 0].double() * _dot(step, step)
        length, low = torch.ones_like(slope), torch.zeros_like(slope)
        high = torch.full_like(slope, torch.inf)
        for _ in range(_LINE_STEPS):
            short = torch.addcmul(self._lacking, pull, length.to(pull.dtype)[:, None], value=-1)
            short.clamp_(min=0)
            weighted = self._weight * pull
            here = along + length * bend - 2 * (weighted * short).sum(dim=1, dtype=torch.float64)
            done = here.abs() <= _FLAT * slope.abs()
            if bool(done.all()):
                break
            curved = bend + 2 * (weighted * pull * (short > 0)).sum(dim=1, dtype=torch.float64)
            low, high = torch.where(here < 0, length, low), torch.where(here > 0, length, high)
            newton = length - here / curved.clamp(min=torch.finfo(torch.float64).tiny)
            middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
            inside = (newton > low) & (newton < high)
            length = torch.where(done, length, torch.where(inside, newton, middle))
        return length.to(step.dtype)[:, None]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each problem, float64 [P]."""
    found: Tensor = torch.linalg.vecdot(a, b)
    return found.double()


def _norm(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=1, dtype=torch.float64).sqrt()
