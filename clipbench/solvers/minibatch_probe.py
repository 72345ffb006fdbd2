"""Linear heads trained by minibatches, as two published recipes do, on stored features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NotRequired, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.solvers.rows import Features, fetch

#: features up to this size are kept on the device; larger ones are read in chunks
_RESIDENT_BYTES: Final = 2**30
_CHUNK_ROWS: Final = 32_768  # of those: read together, shuffled among themselves

Source = Callable[[int], Features]


@dataclass(frozen=True)
class Head:
    """A linear classifier: weights float32 [K, D], bias float32 [K], and the loss of every epoch."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    losses: list[float]

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 [n, K], of features [n, D]."""
        found: NDArray[np.float32] = features @ self.weights.T + self.bias
        return found


class Training(TypedDict):
    """What both recipes have; `progress` is called with 1 after every epoch."""

    lr: float
    weight_decay: float
    epochs: int
    batch_size: int
    seed: int
    device: NotRequired[str]
    progress: NotRequired[Callable[[int], None]]


def fit_adamw(features: Features, targets: NDArray[np.int64], classes: int, **how: Unpack[Training]) -> Head:
    """LAION CLIP_benchmark's probe: AdamW (weight and bias decayed alike), cosine to 0 by step, no warm-up.

    Args:
        features: float [n, D].
        targets: int64 [n].

    Source: CLIP_benchmark 1.6.2, metrics/linear_probe.py (lr 0.1, 10 epochs, batches of 64 by default).
    """
    torch_seed = torch.Generator().manual_seed(how["seed"])
    layer = nn.Linear(features.shape[1], classes)
    bound = 1 / math.sqrt(features.shape[1])
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=torch_seed)  # PyTorch's own initialisation
    layer.to(how.get("device", "cpu"))
    optimiser = torch.optim.AdamW(layer.parameters(), lr=how["lr"], weight_decay=how["weight_decay"])
    return _fit(layer, optimiser, lambda _: features, targets, how)


def fit_sgd(
    source: Source,
    targets: NDArray[np.int64],
    classes: int,
    *,
    width: int,
    momentum: float,
    **how: Unpack[Training],
) -> Head:
    """VirTex's linear classification: SGD, weights N(0, 0.01), bias 0, cosine to 0 by step, no warm-up.

    Args:
        source: epoch number → features float [n, width] of that epoch: the same, or of freshly cropped images.
            Each epoch is asked for once.

    Source: Desai & Johnson 2021 (arXiv 2006.06666), the released code's ImageNet configuration.
    """
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(how["seed"]))
    nn.init.zeros_(layer.bias)
    layer.to(how.get("device", "cpu"))
    lr, decay = how["lr"], how["weight_decay"]
    optimiser = torch.optim.SGD(layer.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    return _fit(layer, optimiser, source, targets, how)


def _fit(
    layer: nn.Linear,
    optimiser: torch.optim.Optimizer,
    source: Source,
    targets: NDArray[np.int64],
    how: Training,
) -> Head:
    rng, device = np.random.default_rng(how["seed"]), layer.weight.device
    epochs, batch_size = how["epochs"], how["batch_size"]
    goal = torch.from_numpy(targets).to(device)
    n, step, losses = len(targets), 0, []
    peak = [group["lr"] for group in optimiser.param_groups]
    held: tuple[Features, Tensor] | None = None  # an epoch's features, where they fit
    for epoch in range(epochs):
        features = source(epoch)
        small = n * features.shape[1] * 4 <= _RESIDENT_BYTES
        if small and (held is None or held[0] is not features):
            held = (features, fetch(features, slice(0, n)).to(device, torch.float32))
        step_rows = n if small else _CHUNK_ROWS
        chunks = [range(start, min(start + step_rows, n)) for start in range(0, n, step_rows)]
        total = 0.0
        steps = sum(-(-len(chunk) // batch_size) for chunk in chunks)
        for chunk in (chunks[i] for i in rng.permutation(len(chunks))):
            first, part = chunk.start, slice(chunk.start, chunk.stop)
            block = held[1] if small and held else fetch(features, part).to(device, torch.float32)
            order = torch.from_numpy(rng.permutation(len(chunk))).to(device)
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                ahead = 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))
                for group, lr in zip(optimiser.param_groups, peak, strict=True):
                    group["lr"] = lr * ahead
                loss = F.cross_entropy(layer(block[rows]), goal[first + rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += float(loss.detach()) * len(rows)
                step += 1
        losses.append(total / n)
        if "progress" in how:
            how["progress"](1)
    weights, bias = layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()
    return Head(weights, bias, losses)
