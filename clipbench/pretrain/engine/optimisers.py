"""Optimisers of recipes, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from clipbench.cards.recipe import AdamW, AdamWSgd, Lookahead, Schedule, Sgd

#: names of parameters begin so → the part whose peak rate they take
_PARTS = {"towers.image.": "image", "towers.text.": "text", "towers.log_scale": "logit_scale"}


class OptimiserState(TypedDict):
    """State of each torch optimiser, and Lookahead's slow weights with the steps since they moved."""

    parts: list[dict[str, Any]]
    slow: list[Tensor]
    since: int


def learning_rate(step: int, schedule: Schedule, peak: float) -> float:
    """The rate of optimiser step `step` (0-based): linear warm-up to `peak`, then half a cosine to 0.

    >>> schedule = Schedule(steps=10, warmup=2, batch_size=8)
    >>> [round(learning_rate(step, schedule, 1.0), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]
    >>> learning_rate(0, Schedule(steps=10, warmup=2, warmup_from=0.1, batch_size=8), 1.0)
    0.55
    """
    if step < schedule.warmup:
        start = schedule.warmup_from
        return peak * (start + (1 - start) * (step + 1) / schedule.warmup)
    done = (step - schedule.warmup) / (schedule.steps - schedule.warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2


class Optimiser:
    """One or two torch optimisers, each group with a peak rate of its own, and Lookahead around them."""

    def __init__(self, parts: list[torch.optim.Optimizer], lookahead: Lookahead | None) -> None:
        self.parts = parts
        self._lookahead = lookahead
        self._slow = [p.detach().clone() for p in self._trained()] if lookahead else []
        self._since = 0

    def set_rates(self, step: int, schedule: Schedule) -> None:
        """Each group's rate for optimiser step `step` (0-based)."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate(step, schedule, group["peak"])

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        for part in self.parts:
            scaler.unscale_(part)

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """Take a step, unless the scaler found gradients that overflowed."""
        for part in self.parts:
            scaler.step(part)
        scaler.update()
        if self._lookahead:
            self._since += 1
            if self._since == self._lookahead.k:
                self._since = 0
                self._meet(self._lookahead.alpha)

    @torch.no_grad()
    def _meet(self, alpha: float) -> None:
        for slow, fast in zip(self._slow, self._trained(), strict=True):
            slow.lerp_(fast, alpha)
            fast.copy_(slow)

    def _trained(self) -> list[Tensor]:
        return [p for part in self.parts for group in part.param_groups for p in group["params"]]

    def state_dict(self) -> OptimiserState:
        parts = [part.state_dict() for part in self.parts]
        return {"parts": parts, "slow": self._slow, "since": self._since}

    def load_state_dict(self, state: OptimiserState) -> None:
        """Go on where `state` was taken."""
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)
        for slow, held in zip(self._slow, state["slow"], strict=True):
            slow.copy_(held)
        self._since = state["since"]


def make_optimiser(optim: AdamW | Sgd | AdamWSgd, named: Mapping[str, nn.Parameter]) -> Optimiser:
    """The optimiser of a recipe for parameters by name, the towers' named `towers.…`.

    AdamW is torch's fused one where the device has it.
    """
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if isinstance(optim, AdamWSgd):
        image = {name: p for name, p in trained.items() if _part(name) == "image"}
        others = {name: p for name, p in trained.items() if name not in image}
        of_images = Sgd(name="sgd", decays=optim.decays, **optim.image.canonical())
        return Optimiser([_one(of_images, image), _one(optim, others)], optim.lookahead)
    return Optimiser([_one(optim, trained)], optim.lookahead)


def _one(optim: AdamW | Sgd | AdamWSgd, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        own = getattr(optim.peaks, _part(name), None)
        decays = optim.decays == "all" or parameter.ndim >= 2
        key = (optim.lr if own is None else own, optim.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    made = [{"params": p, "peak": peak, "lr": peak, "weight_decay": d} for (peak, d), p in groups.items()]
    if isinstance(optim, Sgd):
        return torch.optim.SGD(made, momentum=optim.momentum, nesterov=optim.nesterov)
    fused = all(p.device.type in ("cpu", "cuda") for p in named.values())
    return torch.optim.AdamW(made, betas=optim.betas, eps=optim.eps, fused=fused)


def _part(name: str) -> str:
    return next((part for start, part in _PARTS.items() if name.startswith(start)), "")
