"""Losses of linear models, for many problems that share their features.

Scores come as [P, K, b]: P problems, K columns a problem (its classes; 1 where a problem is binary), b rows.
All residuals are computed from the far side of a probability, so that 1 − p keeps its relative precision when p
is 1 to within rounding: with weak regularisation and separable classes nothing else is left to optimise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Which = slice | Tensor  # rows: a slice, or int64 indices


@dataclass(frozen=True)
class Terms:
    """What one block of rows contributes.

    Attributes:
        value: float64 [P], the sum of the rows' losses.
        residual: [P, K, b], the derivative by the scores.
        state: [P, K, b], what `Loss.curve` needs.
        weight: [P, b], an upper bound of the curvature up to a factor, to tell which rows matter.
        mixing: [P, K, K], the sum of the rows' second derivatives by the scores.
    """

    value: Tensor
    residual: Tensor
    state: Tensor
    weight: Tensor
    mixing: Tensor


class Loss(Protocol):
    """A convex loss of a row's scores."""

    columns: int

    def terms(self, scores: Tensor, rows: Which, members: Tensor, stride: int) -> Terms:
        """Value and derivatives at `scores` [P, K, b] of the problems `members` [P].

        `mixing` may be estimated from every `stride`-th row.
        """
        ...

    def curve(self, state: Tensor, moved: Tensor, index: Which) -> Tensor:
        """Second derivative times a change of the scores (`moved` [P, K, b], overwritten) of rows `index`."""
        ...


class Softmax:
    """Cross-entropy of a softmax over K classes; problems differ only in their penalty."""

    def __init__(self, target: Tensor, classes: int) -> None:
        """`target` is int64 [n] on the device of the scores, below `classes`."""
        self.columns = classes
        self._target = target

    def terms(self, scores: Tensor, rows: Which, members: Tensor, stride: int) -> Terms:
        own = self._target[rows].expand(scores.shape[0], 1, -1)
        top = scores.amax(dim=1, keepdim=True)
        right = scores.gather(1, own).sub_(top)
        shares = (scores - top).exp_()
        exp_right = right.exp()
        shares.scatter_(1, own, 0.0)
        others = shares.sum(dim=1, keepdim=True)
        whole = others + exp_right
        # log1p keeps a tiny loss, the logarithm a right class whose own share has underflowed
        loss = torch.where(exp_right > others, torch.log1p(others / exp_right), whole.log() - right)
        shares /= whole
        miss = others / whole
        state = shares.scatter(1, own, exp_right / whole)
        residual = shares.scatter_(1, own, -miss)
        sample = state[:, :, ::stride]
        mixing = (sample @ sample.transpose(1, 2)).neg_() * stride
        mixing.diagonal(dim1=1, dim2=2).add_(sample.sum(dim=2), alpha=stride)
        return Terms(loss.sum(dim=(1, 2), dtype=torch.float64), residual, state, miss[:, 0], mixing)

    def curve(self, state: Tensor, moved: Tensor, index: Which) -> Tensor:
        own = self._target[index].expand(moved.shape[0], 1, -1)
        # Relative to the right class nothing cancels where its probability is next to 1.
        moved -= moved.gather(1, own)
        moved -= (state * moved).sum(dim=1, keepdim=True)
        return moved.mul_(state)


class Signs:
    """Which problem sees which row as what: the labels of binary problems.

    Attributes:
        sign: int8 [C, n], 1 positive, −1 negative, 0 left out, by class.
        class_of: int64 [P], each problem's class.
        fold: int8 [C, n], the fold of each row, or None.
        left_out: int8 [P], the fold that each problem does not see (−1: it sees all).
        positive: how much more a positive counts than a negative.
    """

    def __init__(
        self,
        sign: Tensor,
        class_of: Tensor,
        *,
        fold: Tensor | None = None,
        left_out: Tensor | None = None,
        positive: float = 1.0,
    ) -> None:
        self._sign, self._class_of = sign, class_of
        self._fold, self._left_out, self._positive = fold, left_out, positive

    def of(self, rows: Which, members: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Signs and weights, both [P, 1, b]."""
        classes = self._class_of[members]
        sign = self._sign[classes][:, rows]
        weight = (sign != 0).to(dtype) + (self._positive - 1) * (sign > 0).to(dtype)
        if self._fold is not None and self._left_out is not None:
            weight *= self._fold[classes][:, rows] != self._left_out[members][:, None]
        return sign.to(dtype)[:, None], weight[:, None]


class Sigmoid:
    """Binary cross-entropy, log(1 + exp(−y s)) with y = ±1."""

    columns = 1

    def __init__(self, signs: Signs) -> None:
        self._signs = signs

    def terms(self, scores: Tensor, rows: Which, members: Tensor, stride: int) -> Terms:
        sign, weight = self._signs.of(rows, members, scores.dtype)
        margin = scores * sign
        value = -torch.nn.functional.logsigmoid(margin) * weight
        miss = torch.sigmoid(-margin) * weight
        state = miss * torch.sigmoid(margin)
        return _binary(value, miss * -sign, state)

    def curve(self, state: Tensor, moved: Tensor, index: Which) -> Tensor:
        return moved.mul_(state)


class SquaredHinge:
    """max(0, 1 − y s)² with y = ±1; its second derivative is the generalised one (Keerthi & DeCoste, JMLR 2005)."""

    columns = 1

    def __init__(self, signs: Signs) -> None:
        self._signs = signs

    def terms(self, scores: Tensor, rows: Which, members: Tensor, stride: int) -> Terms:
        sign, weight = self._signs.of(rows, members, scores.dtype)
        short = (1 - scores * sign).clamp_(min=0)
        state = 2 * weight * (short > 0)
        return _binary(weight * short * short, -2 * weight * short * sign, state)

    def curve(self, state: Tensor, moved: Tensor, index: Which) -> Tensor:
        return moved.mul_(state)


def _binary(value: Tensor, residual: Tensor, state: Tensor) -> Terms:
    mixing = state.sum(dim=2, keepdim=True)
    return Terms(value.sum(dim=(1, 2), dtype=torch.float64), residual, state, state[:, 0], mixing)
