"""What the benchmarks know of the machine: threads, memory, and how fast it can be."""

from __future__ import annotations

import contextlib
import resource
import sys
import timeit
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from clipbench.utils.cpu import cores

if TYPE_CHECKING:
    import torch

    from clipbench.encoding.runtime import Runtime

ROUNDS = 3  # alternations; the best of each side counts, since other work on the machine only slows down


@contextlib.contextmanager
def all_threads() -> Iterator[int]:
    """A thread a core for torch and for the libraries of a peer; how many."""
    import torch
    from threadpoolctl import threadpool_limits

    count, before = cores(), torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield count
    finally:
        torch.set_num_threads(before)


def peak_mib() -> float:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def device_peak_mib(device: str) -> float | None:
    """The most memory that this process has held on a GPU; None for another device."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20 if device.startswith("cuda") else None


def forget_device_peak(device: str) -> None:
    """What a GPU has held until now does not count for `device_peak_mib`."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def matmul_peak(runtime: Runtime) -> float:
    """Best measured rate (FLOP/s) of a large matrix product and a tower's linear layer in the run's precision."""
    import torch
    import torch.nn.functional as F

    side = 2048 if runtime.on_cpu else 8192
    a = torch.randn(side, side, device=runtime.device, dtype=runtime.dtype())
    b = torch.randn(side, side, device=runtime.device, dtype=runtime.dtype())
    candidates: list[Callable[[], torch.Tensor]] = [lambda: a @ b, lambda: F.linear(a, b)]
    if runtime.on_cpu and runtime.precision != "fp16":
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        candidates.append(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))

    def timed(product: Callable[[], torch.Tensor]) -> float:
        return best(lambda: product()[0, 0].item(), rounds=5)

    return 2 * side**3 / min(timed(product) for product in candidates)


def best(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The fewest seconds that `action` took, after a first time that does not count."""
    action()
    return min(timeit.repeat(action, number=1, repeat=rounds))
