"""k nearest neighbours by cosine, in blocks: the cheap monitor of a representation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from clipbench.solvers.rows import Features, fetch

_QUERIES: Final = 512
_KEYS: Final = 16_384


def vote(
    train: Features, targets: NDArray[np.int64], classes: int, test: Features, k: int, device: str = "cpu"
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Row slices of `test` and the share of their k nearest training rows in each class: float32 [b, classes].

    The neighbours' cosines, scaled far below one vote, decide between classes with equally many; then the lowest
    index. With fewer than k training rows all of them vote. No n × m matrix is made.

    Args:
        train, test: float [n, D], [m, D]; need not be unit rows.
        targets: int64 [n].
    """
    k = min(k, train.shape[0])
    goal = torch.from_numpy(targets).to(device)
    for start in range(0, test.shape[0], _QUERIES):
        rows = slice(start, min(start + _QUERIES, test.shape[0]))
        queries = torch.nn.functional.normalize(fetch(test, rows).to(device, torch.float32), dim=1)
        best = torch.full((len(queries), k), -2.0, device=device)
        whose = torch.zeros((len(queries), k), dtype=torch.int64, device=device)
        for first in range(0, train.shape[0], _KEYS):
            keys = fetch(train, slice(first, min(first + _KEYS, train.shape[0]))).to(device, torch.float32)
            cosines = queries @ torch.nn.functional.normalize(keys, dim=1).T
            found, index = cosines.topk(min(k, len(keys)), dim=1)
            merged, place = torch.cat([best, found], dim=1).topk(k, dim=1)
            whose = torch.cat([whose, goal[first + index]], dim=1).gather(1, place)
            best = merged
        votes = torch.zeros((len(queries), classes), device=device)
        # 1 + cosine is in [0, 2]: k of them, scaled, stay below one vote
        votes.scatter_add_(1, whose, 1 + (1 + best) / (4 * k))
        yield rows, (votes / k).cpu().numpy()
