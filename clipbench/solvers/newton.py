"""Truncated Newton for many linear problems at once: f(W) = Σᵢ loss(xᵢ W + b) + λ ‖W‖² / 2.

Each iteration solves H x = −g by preconditioned conjugate gradients (Steihaug's truncation is not needed: H ≻ 0),
with the matrix products of all problems fused into one, and takes the step by a line search. Work is saved so:

- The preconditioner is a Kronecker product, (Σᵢ second derivative by the scores) ⊗ (Gram matrix) / n + λ. One
  eigendecomposition of the centred Gram matrix, and one of a K × K matrix a problem, invert it exactly for every λ.
- Products with H go over those rows only whose curvature matters: with weak regularisation most rows are certain.
- A problem leaves the batch when it has converged.

Products are in the dtype of the rows, sums over blocks and objectives in float64.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Final, NamedTuple

import torch
from torch import Tensor

from clipbench.solvers.losses import Loss, Which
from clipbench.solvers.rows import Rows, Spectrum, one_thread_if_small

_FORCING: Final = 0.1  # conjugate gradients end at this share of the first residual
_NEGLIGIBLE: Final = 1e-4  # curvature of a row, as a share of the mean, that products with H leave out
_MODEST: Final = 0.05  # the same, where solutions need not be exact
_MINOR: Final = 0.03  # the same for a class's block, where a mean stands for what is left out
_MOST_PRODUCTS: Final = 60  # of one step: past that a new linearisation, or new blocks, gain more
_FLOOR: Final = {torch.float32: 1e-2, torch.float64: 1e-6}  # of f, below which f₀ − f is taken for rounding
_PATIENCE: Final = 20  # steps without coming nearer, after which rounding is all that is left
_SUFFICIENT: Final = 1e-4  # Armijo's constant
_MIXING_ROWS: Final = 4096  # at least, for the K × K matrices
_BLOCK_BYTES: Final = 512 * 2**20  # of blocks being made, and again of those that are kept
_BLOCK_REACH: Final = 1.3 * math.log(10)  # how far in log λ blocks serve another penalty
_BLOCK_STIFFNESS: Final = 2.0  # of blocks, before conjugate gradients have shown it
_REMAKE: Final = 0.5  # share of the cost of new blocks that products without them may take
_FEW_COLUMNS: Final = 2.5  # how much dearer an operation is in a product with few columns than with many
STATE_BYTES: Final = 128 * 2**20  # of the probabilities that are kept between a gradient and its products


class Problems(NamedTuple):
    """P problems.

    Attributes:
        penalty: float64 [P], λ.
        members: int64 [P], which of the loss's problems each is.
        start: [P, K, d + 1], the weights to begin with.
        stiffness: float64 [P], a first guess of `Solved.stiffness`, 1 where nothing is known.
        constant: float64 [P], f of zero weights, the best there is without looking at the features.
        small: float64 [P], a ‖∇f‖₂ at which a problem has converged too.
    """

    penalty: Tensor
    members: Tensor
    start: Tensor
    stiffness: Tensor
    constant: Tensor
    small: Tensor


class Solved(NamedTuple):
    """Solved problems.

    Attributes:
        weights: [P, K, d + 1], the last column is the bias; of `hinge` [P, d].
        objective: float64 [P].
        distance: float64 [P], estimated (f − min f) / min(f, f₀ − f), with f₀ the objective of zero weights.
        gradient: float64 [P], ‖∇f‖₂, the bias's part included; of `hinge` over its value at zero weights.
        passes: int64 [P], products with the features and back: gradients and Hessian products.
        converged: bool [P].
        stiffness: float64 [P], gᵀ H⁻¹ g / gᵀ M⁻¹ g for the preconditioner M, as last met.
    """

    weights: Tensor
    objective: Tensor
    distance: Tensor
    gradient: Tensor
    passes: Tensor
    converged: Tensor
    stiffness: Tensor

    @classmethod
    def none_yet(cls, start: Tensor) -> Solved:
        """Room for as many solutions as there are points to start from."""
        zeros = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        numbers = zeros.clone(), zeros.clone(), zeros.clone()
        return cls(start.clone(), *numbers, zeros.long(), zeros.bool(), zeros)

    def put(self, at: Tensor, over: Tensor, *parts: Tensor) -> None:
        """Store those of `parts`, in the order of the fields, that are `over`, at the places `at`."""
        for whole, part in zip(self, parts, strict=True):
            whole[at] = part[over]


class _Point(NamedTuple):
    """A batch of problems at their weights; `state` is None where it is too large to keep."""

    value: Tensor
    gradient: Tensor
    state: Tensor | None
    weight: Tensor
    mixing: Tensor


class Newton:
    """Minimises problems that share features, spectrum and loss."""

    def __init__(self, rows: Rows, spectrum: Spectrum, loss: Loss, *, exact: bool = True) -> None:
        """`exact`: solutions are wanted close enough for dearer preconditioners to pay."""
        self.rows, self.spectrum, self.loss, self.exact = rows, spectrum, loss, exact
        self.blocks: list[_Blocks] = []
        self.since = 0  # products of single problems since blocks were last made
        self._stride = max(1, rows.n // max(_MIXING_ROWS, 8 * loss.columns))

    def problems_at_once(self) -> int:
        """How many problems fit the memory set aside for them."""
        room = STATE_BYTES if self.rows.device.type == "cpu" else 16 * STATE_BYTES
        return max(1, room // (self.rows.n * self.loss.columns * self.rows.dtype.itemsize))

    def solve(self, problems: Problems, *, tolerance: float, max_passes: int) -> Solved:
        """Minimise problems; each ends at a `distance` of `tolerance`, or after `max_passes`."""
        work = self.rows.n * self.rows.d * problems.start[:, :, 0].numel()
        with one_thread_if_small(self.rows.device, work):
            return _Run(self, problems, tolerance, max_passes).run()

    def remember(self, blocks: _Blocks) -> None:
        """Keep factored blocks for problems of a like penalty, as far as there is room."""
        self.since = 0
        self.blocks = [known for known in self.blocks if abs(known.log - blocks.log) > 0.1]
        self.blocks.append(blocks)
        del self.blocks[: max(0, len(self.blocks) - max(1, _BLOCK_BYTES // blocks.factor.nbytes))]

    def nearest_blocks(self, penalty: Tensor) -> list[_Blocks | None]:
        """The known blocks of the penalty most like each given one, if there are any within a decade or so."""
        found: list[_Blocks | None] = []
        for log in penalty.log().tolist():
            near = min(self.blocks, key=lambda known: abs(known.log - log), default=None)
            found.append(near if near is not None and abs(near.log - log) < _BLOCK_REACH else None)
        return found

    def values(self, weights: Tensor, penalty: Tensor, members: Tensor) -> Tensor:
        """Objectives of a batch at `weights` [P, K, d + 1], float64 [P]."""
        value = penalty / 2 * weights[:, :, :-1].square().sum(dim=(1, 2), dtype=torch.float64)
        for place, block in self.rows.blocks():
            value += self.loss.terms(_scores(weights, block), place, members, self._stride).value
        return value

    def evaluate(self, weights: Tensor, penalty: Tensor, members: Tensor, *, keep: bool = True) -> _Point:
        """Value, gradient and curvature of a batch at `weights` [P, K, d + 1]."""
        (count, columns, _), rows = weights.shape, self.rows
        value = torch.zeros(count, dtype=torch.float64, device=rows.device)
        gradient = torch.zeros(weights.shape, dtype=torch.float64, device=rows.device)
        mixing = torch.zeros(count, columns, columns, dtype=torch.float64, device=rows.device)
        weight = torch.empty(count, rows.n, dtype=rows.dtype, device=rows.device)
        keep &= rows.n * count * columns * rows.dtype.itemsize <= STATE_BYTES
        state = torch.empty(count, columns, rows.n, dtype=rows.dtype, device=rows.device) if keep else None
        for place, block in rows.blocks():
            terms = self.loss.terms(_scores(weights, block), place, members, self._stride)
            value += terms.value
            gradient[:, :, :-1] += (terms.residual.flatten(0, 1) @ block).view(count, columns, -1)
            gradient[:, :, -1] += terms.residual.sum(dim=2, dtype=torch.float64)
            mixing += terms.mixing
            weight[:, place] = terms.weight
            if state is not None:
                state[:, :, place] = terms.state
        inner = weights[:, :, :-1]
        gradient[:, :, :-1] += penalty[:, None, None] * inner
        value += penalty / 2 * inner.square().sum(dim=(1, 2), dtype=torch.float64)
        return _Point(value, gradient, state, weight, mixing)


class _Run:
    """One batch on its way. What `_LIVE` names has a row for each problem that is left."""

    _LIVE: Final = (
        "_index", "_penalty", "_members", "_weights", "_stiffness", "_constant", "_small", "_passes", "_stuck",
        "_idle", "_nearest", "_preconditioned",
    )  # fmt: skip

    def __init__(self, engine: Newton, problems: Problems, tolerance: float, max_passes: int) -> None:
        penalty, members, start, stiffness, constant, small = problems
        self._engine, self._tolerance, self._max_passes = engine, tolerance, max_passes
        self._solved = Solved.none_yet(start)
        zeros = torch.zeros_like(self._solved.objective)
        self._index = torch.arange(len(start), device=start.device)
        self._penalty, self._members, self._weights = penalty, members, start
        self._stiffness, self._constant, self._small = stiffness.clone(), constant, small
        self._passes = zeros.long() + 1
        self._stuck, self._idle, self._nearest = zeros.bool(), zeros.long(), zeros + math.inf
        self._point = engine.evaluate(start, penalty, members)

    def run(self) -> Solved:
        """Newton steps of every problem that is left, after each of which those that have arrived are let go of."""
        self._settle(fresh=True)
        while self._index.numel():
            if _Blocks.pays(self._engine, self._point):
                self._engine.remember(_Blocks(self._engine, self._point, float(self._penalty)))
                self._aim(fresh=True)
            step, products = self._direction()
            self._passes += products
            if products.numel() == 1:
                self._engine.since += int(products)
            slope, norm = (_dot(self._point.gradient, vector) for vector in (step, self._preconditioned))
            self._stiffness = torch.where(norm > 0, (-slope / norm).clamp(min=1.0), self._stiffness)
            self._search(step, slope)
            self._settle()
        return self._solved

    def _aim(self, *, fresh: bool) -> None:
        """Make the preconditioner of the point, and the preconditioned gradient."""
        engine, point = self._engine, self._point
        blocks, penalty = engine.nearest_blocks(self._penalty), self._penalty
        self._precondition = _Preconditioner(engine.spectrum, point.mixing, penalty, engine.rows.n, blocks)
        if fresh:
            # What is known of the shared preconditioner's shortfall says nothing of the blocks'.
            own = self._precondition.has_blocks()
            self._stiffness = torch.where(own, _BLOCK_STIFFNESS, self._stiffness)
        self._preconditioned = self._precondition(point.gradient.to(self._weights.dtype))

    def _settle(self, *, fresh: bool = False) -> None:
        """Store what is done and keep the rest."""
        self._aim(fresh=fresh)
        distance = self._stiffness * _dot(self._point.gradient, self._preconditioned) / 2 / self._unit()
        slope = self._point.gradient.square().sum(dim=(1, 2)).sqrt()
        converged = (distance <= self._tolerance) | (slope <= self._small)
        self._idle = torch.where(distance < self._nearest, 0, self._idle + 1)
        self._nearest = torch.minimum(distance, self._nearest)
        self._stuck |= self._idle >= _PATIENCE
        over = converged | self._stuck | (self._passes >= self._max_passes)
        if not bool(over.any()):
            return
        # Blocks have a stiffness of their own; the next problem may have none.
        stiffness = torch.where(self._precondition.has_blocks(), 1.0, self._stiffness)
        self._solved.put(
            *(self._index[over], over, self._weights, self._point.value, distance, slope),
            *(self._passes, converged, stiffness),
        )
        kept = ~over
        for name in self._LIVE:
            setattr(self, name, getattr(self, name)[kept])
        self._precondition.keep(kept)
        value, gradient, state, weight, mixing = self._point
        state = None if state is None else state[kept]
        self._point = _Point(value[kept], gradient[kept], state, weight[kept], mixing[kept])

    def _unit(self) -> Tensor:
        return distance_unit(self._point.value, self._constant, _FLOOR[self._weights.dtype])

    def _direction(self) -> tuple[Tensor, Tensor]:
        """Conjugate gradients: a step [P, K, d + 1] for every problem, and how many products each took."""
        point = self._point
        curvature = _Curvature(self._engine, point, self._weights, self._penalty, self._members)
        precondition = copy(self._precondition)
        step = torch.zeros_like(self._weights)
        products = torch.zeros_like(self._passes)
        index = torch.arange(self._index.numel(), device=step.device)
        residual = -point.gradient.to(step.dtype)
        ahead = -self._preconditioned
        inner = step
        norm = first = _dot(residual, ahead)
        # No further than the tolerance asks for: the rest would be lost to the next linearisation anyway.
        wanted = 0.5 * self._tolerance * self._unit()
        goal = torch.maximum(_FORCING**2 * first, wanted / self._stiffness)
        room, small = (self._max_passes - self._passes).clamp(max=_MOST_PRODUCTS), self._small / 2
        while index.numel():
            hess_vec = curvature(ahead)
            length = norm / _dot(ahead, hess_vec).clamp(min=torch.finfo(torch.float64).tiny)
            inner = inner + length.to(step.dtype)[:, None, None] * ahead
            residual = residual - length.to(step.dtype)[:, None, None] * hess_vec
            products[index] += 1
            solved = precondition(residual)
            new = _dot(residual, solved)
            flat = residual.square().sum(dim=(1, 2), dtype=torch.float64).sqrt() <= small
            over = (new <= goal) | flat | (products[index] >= room)
            ahead = solved + (new / norm).to(step.dtype)[:, None, None] * ahead
            norm = new
            if bool(over.all()) or int(over.sum()) * 4 >= over.numel():
                step[index] = inner
                kept = ~over
                index, norm, goal = index[kept], norm[kept], goal[kept]
                room, small = room[kept], small[kept]
                inner, residual, ahead = inner[kept], residual[kept], ahead[kept]
                precondition.keep(kept)
                if index.numel():
                    curvature.keep(kept)
        return step, products

    def _search(self, step: Tensor, slope: Tensor) -> None:
        """Go along `step`, as far as it is for the better: full steps, shortened where they overshoot."""
        engine, length, trial = self._engine, torch.ones_like(slope), self._weights + step
        point = engine.evaluate(trial, self._penalty, self._members)
        self._passes += 1
        for _ in range(12):
            ahead = _dot(point.gradient, step)
            # Armijo's condition; where values no longer resolve it, its form in slopes (Hager & Zhang 2005)
            enough = point.value <= self._point.value + _SUFFICIENT * length * slope
            flat = (point.value <= self._point.value * (1 + 1e-6)) & (ahead <= (2 * _SUFFICIENT - 1) * slope)
            short = ~(enough | flat)
            if not bool(short.any()):
                break
            shorter = _minimum(self._point.value, point.value, slope, ahead, length)
            length = torch.where(short, shorter, length)
            tried = self._weights[short] + length[short].to(step.dtype)[:, None, None] * step[short]
            again = engine.evaluate(tried, self._penalty[short], self._members[short])
            self._passes[short] += 1
            trial[short] = tried
            for whole, part in zip(point, again, strict=True):
                if whole is not None and part is not None:
                    whole[short] = part
        else:
            # Below what the products resolve: stay, and say so.
            self._stuck = short
            trial[short] = self._weights[short]
        self._weights, self._point = trial, point


class _Curvature:
    """Products with the Hessians of a batch, over the rows that matter."""

    def __init__(
        self, engine: Newton, point: _Point, weights: Tensor, penalty: Tensor, members: Tensor
    ) -> None:
        self._engine, self._penalty, self._members = engine, penalty, members
        mean = point.weight.mean(dim=1, keepdim=True).clamp(min=torch.finfo(point.weight.dtype).tiny)
        least = _NEGLIGIBLE if engine.exact else _MODEST
        index = torch.nonzero((point.weight > least * mean).any(dim=0))[:, 0]
        whole = index.numel() > 0.8 * engine.rows.n
        self._rows = None if whole else engine.rows.some(index)
        self._state = point.state if whole or point.state is None else point.state[:, :, index]
        self._weights = weights if point.state is None else None

    def keep(self, kept: Tensor) -> None:
        self._penalty, self._members = self._penalty[kept], self._members[kept]
        self._state = None if self._state is None else self._state[kept]
        self._weights = None if self._weights is None else self._weights[kept]

    def __call__(self, vector: Tensor) -> Tensor:
        """H times `vector` [P, K, d + 1]."""
        engine = self._engine
        product = torch.zeros_like(vector)
        flat = product.view(-1, vector.shape[2])
        whole = ((place, place, block) for place, block in engine.rows.blocks())
        for place, index, block in whole if self._rows is None else self._rows.blocks():
            curved = engine.loss.curve(self._state_of(place, index, block), _scores(vector, block), index)
            flat[:, :-1].addmm_(curved.flatten(0, 1), block)
            product[:, :, -1] += curved.sum(dim=2)
        product[:, :, :-1] += self._penalty.to(vector.dtype)[:, None, None] * vector[:, :, :-1]
        return product

    def _state_of(self, place: slice, index: Which, block: Tensor) -> Tensor:
        if self._state is not None:
            return self._state[:, :, place]
        assert self._weights is not None
        scores = _scores(self._weights, block)
        return self._engine.loss.terms(scores, index, self._members, stride=scores.shape[2]).state


class _Preconditioner:
    """(mixing ⊗ Gram / n + λ)⁻¹ on weights, mixing⁺ on the bias; of problems that have them, their blocks' inverse."""

    def __init__(
        self, spectrum: Spectrum, mixing: Tensor, penalty: Tensor, n: int, blocks: list[_Blocks | None]
    ) -> None:
        self._spectrum, self._blocks = spectrum, blocks
        values, eigvecs = torch.linalg.eigh(mixing)
        values = values.clamp(min=0)
        dtype = spectrum.values.dtype
        self._eigvecs = eigvecs.to(dtype)
        scale = (values / n)[:, :, None] * spectrum.values.double() + penalty[:, None, None]
        self._divide = scale.reciprocal_().to(dtype)
        floor = 1e-10 * values.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        inverse = torch.where(values > floor, 1 / values.clamp(min=floor), torch.zeros_like(values))
        bias = (eigvecs * inverse[:, None]) @ eigvecs.transpose(1, 2)
        if bias.shape[1] > 1:
            # One bias for all classes changes no softmax; rounding gives that direction a curvature next to 0,
            # and its inverse would drown the others.
            bias = bias - bias.mean(dim=1, keepdim=True)
            bias = bias - bias.mean(dim=2, keepdim=True)
        self._bias = bias.to(dtype)

    def keep(self, kept: Tensor) -> None:
        self._eigvecs, self._divide, self._bias = self._eigvecs[kept], self._divide[kept], self._bias[kept]
        self._blocks = [blocks for blocks, stays in zip(self._blocks, kept.tolist(), strict=True) if stays]

    def has_blocks(self) -> Tensor:
        found = [blocks is not None for blocks in self._blocks]
        return torch.tensor(found, dtype=torch.bool, device=self._bias.device)

    def __call__(self, vector: Tensor) -> Tensor:
        known = {id(blocks): blocks for blocks in self._blocks if blocks is not None}
        out = torch.empty_like(vector) if known and all(self._blocks) else self._shared(vector)
        for blocks in known.values():
            at = [i for i, own in enumerate(self._blocks) if own is blocks]
            out[at] = blocks(vector[at])
        return out

    def _shared(self, vector: Tensor) -> Tensor:
        basis, out = self._spectrum.vectors, torch.zeros_like(vector)
        single = self._eigvecs.shape[1] == 1  # a single column needs no turn
        inside = vector[:, :, :-1] if single else self._eigvecs.transpose(1, 2) @ vector[:, :, :-1]
        if basis is not None:
            inside = inside @ basis
        inside = inside * self._divide
        if basis is not None:
            inside = inside @ basis.T
        if single:
            out[:, :, :-1] = inside
        else:
            torch.matmul(self._eigvecs, inside, out=out[:, :, :-1])
        out[:, :, -1] = (self._bias @ vector[:, :, -1:])[:, :, 0]
        return out


class _Blocks:
    """The Hessian's diagonal blocks of one softmax problem, each class with its bias, factored.

    With weak regularisation each class's curvature sits on rows of its own, few of them, and no product of one
    matrix of classes with one of features describes that; the blocks do (measured: 4 to 12 times fewer products).
    """

    def __init__(self, engine: Newton, point: _Point, penalty: float) -> None:
        assert point.state is not None
        share = point.state[0]
        columns, width = share.shape[0], engine.rows.d + 1
        blocks = torch.zeros(columns, width, width, dtype=torch.float64, device=share.device)
        rest = torch.zeros(columns, dtype=torch.float64, device=share.device)
        for place, block in engine.rows.blocks():
            curvature, matters = _of_class(share[:, place])
            rest += (curvature * ~matters).sum(dim=1, dtype=torch.float64)
            wide = torch.cat([block, torch.ones_like(block[:, :1])], dim=1)
            for k in range(columns):
                index = torch.nonzero(matters[k])[:, 0]
                some = wide[index]
                blocks[k] += (some * curvature[k, index, None]).T @ some
        # The rows left out are many and alike: the mean row's Gram matrix stands for theirs.
        mean = engine.spectrum.gram().double() / engine.rows.n
        for k in range(columns):
            blocks[k, :-1, :-1] += rest[k] * mean
        diagonal = blocks.diagonal(dim1=1, dim2=2)
        diagonal[:, -1] += rest
        diagonal[:, :-1] += penalty
        diagonal.mul_(1 + 1e-6).add_(torch.finfo(torch.float32).tiny)
        self.log = math.log(penalty)
        self.factor = torch.linalg.cholesky(blocks).to(share.dtype)

    @staticmethod
    def pays(engine: Newton, point: _Point) -> bool:
        """Whether building and using the blocks costs less than the products that it saves."""
        columns, width = engine.loss.columns, engine.rows.d + 1
        if not engine.exact or not engine.since or columns < 2 or columns * width**2 * 12 > _BLOCK_BYTES:
            return False
        if point.state is None or len(point.state) > 1:
            return False
        _, matters = _of_class(point.state[0])
        build = 2 * int(matters.sum()) * width**2 + columns * width**3
        product = 4 * engine.rows.n * width * columns * _FEW_COLUMNS
        return build < _REMAKE * product * engine.since

    def __call__(self, vector: Tensor) -> Tensor:
        """Solve for `vector` [P, K, d + 1]."""
        return torch.cholesky_solve(vector.permute(1, 2, 0), self.factor).permute(2, 0, 1)


def _of_class(share: Tensor) -> tuple[Tensor, Tensor]:
    """Curvature of every class on every row, and whether it matters, both [K, b]."""
    curvature = share * (1 - share)
    return curvature, curvature > _MINOR * curvature.mean(dim=1, keepdim=True)


def _scores(weights: Tensor, block: Tensor) -> Tensor:
    """Scores [P, K, b] of a block of rows; weights first, since few of them against many rows is the fast order."""
    found = weights[:, :, :-1].flatten(0, 1) @ block.T
    return found.view(*weights.shape[:2], -1).add_(weights[:, :, -1:])


def _minimum(before: Tensor, after: Tensor, slope: Tensor, ahead: Tensor, length: Tensor) -> Tensor:
    """Where the cubic through both values and slopes is least, within 0.1 … 0.5 of `length`."""
    theta = slope + ahead - 3 * (after - before) / length
    root = (theta * theta - slope * ahead).clamp(min=0).sqrt()
    share = 1 - (ahead + root - theta) / (ahead - slope + 2 * root)
    share = torch.where(torch.isfinite(share), share, torch.full_like(share, 0.1))
    return length * share.clamp(0.1, 0.5)


def distance_unit(value: Tensor, constant: Tensor, floor: float) -> Tensor:
    """What a distance to the minimum is measured in: the objective, or what fitting has taken off that of zero weights.

    All are float64 [P]; below the share `floor` of the objective, what was taken off it is rounding.
    """
    least = (floor * value).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.minimum(value, constant - value).maximum(least)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each problem, float64 [P]."""
    return (a * b).sum(dim=(1, 2), dtype=torch.float64)
