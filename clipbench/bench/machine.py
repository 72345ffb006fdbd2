"""Threads and memory of the process that measures."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator

from clipbench.cores import cores


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[int]:
    """The same number of threads for torch and for the libraries of a peer; all cores by default."""
    import torch
    from threadpoolctl import threadpool_limits

    count = count or cores()
    before = torch.get_num_threads()
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
