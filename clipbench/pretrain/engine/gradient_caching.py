"""The gradient of one batch, at once or piece by piece, by one process or several."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipbench.cards.recipe import Recipe
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.data.batch import Batch
from clipbench.pretrain.engine.distributed import Processes
from clipbench.pretrain.objectives.base import Features, Learner, Loss

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Gradient:
    """What a batch does: the features of all processes' pairs, their loss, and its gradient.

    With `engine.chunk` the networks see a chunk at a time (gradient caching; Gao et al. 2021): once without keeping
    anything, for the features of all pairs and the gradient of the loss of the whole batch by them; then again, chunk
    by chunk, to take that gradient through the networks. Accumulating the gradients of chunks' own losses would be
    something else: a chunk's pairs would be compared with that chunk alone. There is no such way here.
    """

    def __init__(
        self, recipe: Recipe, towers: DualTowers, learner: Learner, processes: Processes, device: torch.device
    ) -> None:
        self._towers = towers
        self._learner = learner
        self._processes = processes
        self._chunk = recipe.engine.chunk
        self._seed = recipe.seed
        self._autocast = (device.type, _AUTOCAST[recipe.precision], recipe.precision != "fp32")
        self._networks = nn.ModuleList([towers, learner])

    def __call__(self, batch: Batch, step: int, scaler: torch.amp.GradScaler) -> tuple[Features, Loss]:
        """Add the gradients of step `step` (0-based), scaled, to the parameters; features and loss of all pairs."""
        pieces = batch.pieces(self._chunk) if self._chunk else [batch]
        if len(pieces) == 1:
            own = self._features(batch, step, 0)
            found = self._loss(own, scaler)
        else:
            found = self._cached(pieces, step, scaler)
        self._processes.average(self._networks)
        return found

    def _cached(self, pieces: list[Batch], step: int, scaler: torch.amp.GradScaler) -> tuple[Features, Loss]:
        generator = pieces[0].draws.generator
        start = generator.get_state()

        def features(number: int) -> Features:
            generator.set_state(start)  # every piece draws for the whole batch
            return self._features(pieces[number], step, number)

        with torch.no_grad(), still(self._networks):
            cached = [features(number) for number in range(len(pieces))]
        own = {name: torch.cat([part[name] for part in cached]) for name in cached[0]}
        for rows in own.values():
            rows.requires_grad_(rows.is_floating_point())
        found = self._loss(own, scaler)
        wanted = {
            name: torch.split(rows.grad, [len(part[name]) for part in cached])
            for name, rows in own.items()
            if rows.grad is not None
        }
        del cached
        for number in range(len(pieces)):
            again = features(number)
            reached = [name for name in wanted if again[name].requires_grad]
            torch.autograd.backward(
                [again[name] for name in reached], [wanted[name][number] for name in reached]
            )
        return found

    def _features(self, batch: Batch, step: int, piece: int) -> Features:
        # So that what the networks draw themselves (dropout) comes again: after a stop, and for a piece's second pass.
        torch.manual_seed(_seed(self._seed, step, self._processes.rank, piece))
        kind, dtype, enabled = self._autocast
        with torch.autocast(kind, dtype, enabled=enabled):
            features: Features = self._learner(self._towers, batch)
        return features

    def _loss(self, own: Features, scaler: torch.amp.GradScaler) -> tuple[Features, Loss]:
        joined = self._processes.gather(own)
        loss = self._learner.loss(joined, self._towers.logit_scale())
        scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
        return joined, loss


@contextlib.contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """BatchNorm's running averages stay as they are: for a pass over pairs that are seen twice."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def values(loss: Loss) -> dict[str, float]:
    """The total (`loss`) and every term (`loss_…`), brought from the device at once."""
    terms = {"loss": loss.total} | {f"loss_{name}": term for name, term in loss.terms.items()}
    numbers: list[float] = torch.stack([term.detach().double() for term in terms.values()]).tolist()
    return dict(zip(terms, numbers, strict=True))


def _seed(*numbers: int) -> int:
    """A seed for torch that differs wherever the numbers do."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1
