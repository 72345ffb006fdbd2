"""The moving average of a run's weights."""

from __future__ import annotations

import copy

import torch

from clipbench.models.towers.dual import DualTowers


class MovingAverage:
    """The exponential moving average of towers; buffers (BatchNorm's averages) are copied as they are.

    Attributes:
        towers: a model of their own, in evaluation mode.
    """

    def __init__(self, towers: DualTowers, decay: float) -> None:
        self.towers = copy.deepcopy(towers).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, towers: DualTowers, step: int) -> None:
        """Take the weights after step `step` (from 1) in: early ones count less, (1 + step) / (10 + step) at most."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.towers.parameters()), list(towers.parameters()), share)
        for own, new in zip(self.towers.buffers(), towers.buffers(), strict=True):
            own.copy_(new)
