"""One batch through a tower: what a batch holds, and how its rows come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipbench.encoding.runtime import MAX_BATCH, Runtime, Tower
from clipbench.errors import ClipbenchError

if TYPE_CHECKING:
    import torch


def unit(features: torch.Tensor, piece: int | None = 0) -> torch.Tensor:
    """Rows [B, D] of unit length (float32); with `piece`, each stretch of that length; None: as they are."""
    if piece is None:
        return features
    pieces = features.view(len(features), -1, piece or features.shape[1])
    normalised: torch.Tensor = pieces / pieces.norm(dim=2, keepdim=True).clamp_min(1e-12)
    return normalised.view_as(features)


def batch_rows(runtime: Runtime) -> int:
    """Images a batch: the user's choice, or what keeps a CPU's caches or a GPU's units busy."""
    return runtime.batch_size or (64 if runtime.on_cpu else MAX_BATCH)


def rows_of(tower: Tower, images: torch.Tensor, piece: int | None) -> NDArray[np.float32]:
    """Features of one batch; padded to a full batch for a compiled tower; halved while memory runs out."""
    import torch

    count = len(images)
    if tower.plan == "compiled":
        images = _padded(images, batch_rows(tower.runtime))
    try:
        features = tower(images)[:count]
    except torch.cuda.OutOfMemoryError:
        if count == 1:
            raise
        if tower.runtime.deterministic:
            raise ClipbenchError(
                f"{count} images at once do not fit the memory of {tower.runtime.device_name}; a deterministic run "
                "cannot take fewer as it likes",
                hint="give a smaller --batch-size",
            ) from None
        torch.cuda.empty_cache()
        half = count // 2
        return np.concatenate(
            [rows_of(tower, images[:half], piece), rows_of(tower, images[half:count], piece)]
        )
    rows: NDArray[np.float32] = unit(features, piece).cpu().numpy()
    return rows


def _padded(images: torch.Tensor, size: int) -> torch.Tensor:
    import torch

    lacking = max(0, size - len(images))
    return torch.cat([images, images.new_zeros((lacking, *images.shape[1:]))]) if lacking else images


def noise(shape: tuple[int, ...], runtime: Runtime) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(runtime.device)


def not_finite(model: str, precision: str) -> ClipbenchError:
    """That a model's features or maps are not finite in this precision."""
    return ClipbenchError(
        f"{model} gives features that are not finite in {precision}",
        hint="use --precision bf16 or fp32" if precision == "fp16" else "the checkpoint may be damaged",
    )
