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

    def curve(self, state: Tensor, moved: Tensor, index: Which) -> Tensor:
        """Second derivative times a change of the scores (`moved` [P, K, b], overwritten) of rows `index`."""


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


class Sigmoid:
    """Binary cross-entropy, log(1 + exp(−y s)) with y = ±1; problems differ in their labels.

    Attributes:
        sign: int8 [C, n], 1 positive, −1 negative, 0 left out, by problem.
    """

    columns = 1

    def __init__(self, sign: Tensor) -> None:
        self._sign = sign

    def terms(self, scores: Tensor, rows: Which, members: Tensor, stride: int) -> Terms:
        sign = self._sign[members][:, rows].to(scores.dtype)[:, None]
        seen = sign.abs()
        margin = scores * sign
        value = -torch.nn.functional.logsigmoid(margin) * seen
        miss = torch.sigmoid(-margin) * seen
        state = miss * torch.sigmoid(margin)
        mixing = state.sum(dim=2, keepdim=True)
        total = value.sum(dim=(1, 2), dtype=torch.float64)
        return Terms(total, miss * -sign, state, state[:, 0], mixing)

    def curve(self, state: Tensor, moved: Tensor, index: Which) -> Tensor:
        return moved.mul_(state)
