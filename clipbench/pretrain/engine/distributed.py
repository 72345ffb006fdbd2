"""Processes that train together: started by `torchrun`, each with its part of every batch.

The seam is between the networks and the loss. Each process runs the networks on its own pairs; then the features are
gathered, and every process computes the loss of the whole batch, as one process would. So an objective knows nothing of
processes: its logits, rolls and queue are those of the joined batch, and the same everywhere.

Since all processes hold the same loss, none needs another's gradient of it: a process's own rows of that gradient go
back through its own networks. Parameters that the loss reads itself (logit scale and bias) then have their whole
gradient everywhere, those of the networks only what the own pairs add. The rows are therefore multiplied by the number
of processes, and one mean over processes is right for both. `DistributedDataParallel` is not used: it would see neither
the parameters outside of its forward pass, nor that a batch may go through the networks twice, in pieces.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipbench.errors import CardError, ClipbenchError

T = TypeVar("T")
# How long processes wait for each other: the first one evaluates while the others wait.
_PATIENCE = timedelta(hours=6)
_BUCKET = 2**23  # numbers that are averaged at once


class Processes:
    """The processes of this run; here, one alone.

    Attributes:
        rank: this one's number, from 0.
        world: how many there are.
    """

    rank = 0
    world = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, evaluates and reports."""
        return self.rank == 0

    def gather(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of the joined batch: each [n, …] of this process to [N, …], in the order of ranks.

        Gradients reach the own rows, `world` times as large: `average` them over processes.
        """
        return features

    def average(self, module: nn.Module) -> None:
        """Replace the gradients of `module` by their means over processes."""

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return here

    def share(self, value: T) -> T:
        """The first process's `value`, which the others need not know."""
        return value


class _Joined(Processes):
    """Several processes, over torch.distributed."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self._device = device

    def gather(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        # Rows may differ in number: masked tokens do.
        counts = torch.tensor([len(rows) for rows in features.values()], device=self._device)
        everyone = [torch.empty_like(counts) for _ in range(self.world)]
        distributed.all_gather(everyone, counts)
        of_each = torch.stack(everyone, dim=1).tolist()
        return {
            name: _gathered(rows, own, self.rank)
            for (name, rows), own in zip(features.items(), of_each, strict=True)
        }

    def average(self, module: nn.Module) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        waiting = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(self.world)
            waiting.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))
        for bucket, flat, work in waiting:
            work.wait()
            for gradient, mean in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def any(self, here: bool) -> bool:
        found = torch.tensor(int(here), device=self._device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return bool(found)

    def share(self, value: T) -> T:
        held: list[Any] = [value if self.first else None]
        distributed.broadcast_object_list(held, device=self._device)
        shared: T = held[0]
        return shared


@contextlib.contextmanager
def join(device: torch.device, batch_size: int) -> Iterator[Processes]:
    """The processes that `torchrun` started together, or this one alone.

    Args:
        device: this process's own (see `choose_device` in the loop).
        batch_size: pairs of a joined batch.

    Raises:
        ClipbenchError: the batch cannot be shared equally.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    if batch_size % world:
        raise ClipbenchError(
            f"schedule.batch_size ({batch_size}) is the whole batch, and cannot be shared equally by {world} processes",
            hint="change schedule.batch_size, or --nproc-per-node",
        )
    mine = not distributed.is_initialized()  # a program may have joined them itself
    if mine:
        backend = "nccl" if device.type == "cuda" else "gloo"
        own = device if device.type == "cuda" else None
        distributed.init_process_group(backend, timeout=_PATIENCE, device_id=own)
    try:
        yield _Joined(device)
    finally:
        if mine:
            distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All processes' rows; the gradient's own rows go back, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int], rank: int) -> Tensor:
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        ctx.world = len(counts)
        longest = max(counts)
        sent = rows.new_zeros(longest, *rows.shape[1:])
        sent[: len(rows)] = rows
        received = [torch.empty_like(sent) for _ in counts]
        distributed.all_gather(received, sent)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0][ctx.own] * ctx.world, None, None


def _gathered(rows: Tensor, counts: Sequence[int], rank: int) -> Tensor:
    gathered: Tensor = _Gather.apply(rows, counts, rank)
    return gathered


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type together, in buckets of about `_BUCKET` numbers."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        for tensor in (t for t in tensors if t.dtype == dtype):
            bucket.append(tensor)
            if sum(t.numel() for t in bucket) >= _BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket


# ------------------------------------------------------------------- BatchNorm


def synchronise(module: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """`module` with BatchNorms that see the joined batch, changed in place (unless it is one itself).

    On a GPU these are torch's own, which run nowhere else. A frozen one stays as it is.

    Raises:
        CardError: a kind of BatchNorm that cannot see it on a CPU.
    """
    if processes.world == 1:
        return module
    if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
        return module
    if device.type == "cuda":
        import timm.layers.norm_act as timm_norms  # its converter knows timm's own kinds too

        converted: nn.Module = timm_norms.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        module.add_module(name, synchronise(child, processes, device))
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return JoinedBatchNorm.like(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, JoinedBatchNorm):
        raise CardError(
            f"engine.sync_batchnorm: on a CPU {type(module).__name__} cannot see the pairs of other processes",
            hint="choose another image tower, train on GPUs, or leave out engine.sync_batchnorm",
        )
    return module


class JoinedBatchNorm(_BatchNorm):
    """BatchNorm over the rows of all processes (each with as many), for any device."""

    @classmethod
    def like(cls, norm: nn.Module) -> JoinedBatchNorm:
        """One in the place of `norm`."""
        assert isinstance(norm, _BatchNorm)
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.load_state_dict(norm.state_dict())
        return made.train(norm.training)

    def _check_input_dim(self, rows: Tensor) -> None:
        """Any shape with channels will do."""

    def forward(self, rows: Tensor) -> Tensor:
        """float [B, channels, …], to the same shape."""
        if not self.training:
            return super().forward(rows)
        axes = [axis for axis in range(rows.ndim) if axis != 1]
        shape = [1, -1, *(1 for _ in rows.shape[2:])]
        wide = rows if rows.dtype == torch.float64 else rows.float()
        count = wide.numel() // wide.shape[1] * distributed.get_world_size()
        mean = _summed(wide.sum(axes)) / count
        centred = wide - mean.view(shape)
        variance = _summed(centred.square().sum(axes)) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(rows.dtype)


class _Sum(torch.autograd.Function):
    """The sum over processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _summed(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)
    return total
