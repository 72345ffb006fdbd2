"""Tiled losses: the value and the gradients of the whole matrix of pairs, of which they never hold more than a tile."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training import assert_alike, recipe_with, run

from clipbench.pretrain.objectives._helpers import clip_loss
from clipbench.pretrain.objectives._tiled import tiled_clip_loss, tiled_siglip_loss
from clipbench.pretrain.objectives.base import Loss
from clipbench.pretrain.objectives.siglip import siglip_loss

PAIRS, WIDTH = 23, 6


def leaves(dtype: torch.dtype, scale: float, pairs: int = PAIRS) -> list[Tensor]:
    """Images, texts, logarithm of the scale and bias, to be learnt; texts are like their images."""
    generator = torch.Generator().manual_seed(4)
    image, noise = torch.randn(2, pairs, WIDTH, generator=generator, dtype=dtype).unbind()
    values = [
        image,
        image + noise,
        torch.tensor(math.log(scale), dtype=dtype),
        torch.tensor(-3.0, dtype=dtype),
    ]
    return [value.requires_grad_() for value in values]


def loss_of(kind: str, given: list[Tensor], tile: int | None) -> Loss:
    image, text, log_scale, bias = given
    scale = log_scale.exp()
    if kind == "clip":
        return clip_loss(image, text, scale) if tile is None else tiled_clip_loss(image, text, scale, tile)
    if tile is None:
        return siglip_loss(image, text, scale, bias)
    return tiled_siglip_loss(image, text, scale, bias, tile)


def found(kind: str, dtype: torch.dtype, scale: float, tile: int | None) -> list[Tensor]:
    """The terms, the total and the gradients of all that is learnt."""
    given = leaves(dtype, scale)
    loss = loss_of(kind, given, tile)
    loss.total.backward()  # type: ignore[no-untyped-call]
    gradients = [value.grad for value in given if value.grad is not None]
    assert len(gradients) == (3 if kind == "clip" else 4)
    return [*(term.detach() for term in loss.terms.values()), loss.total.detach(), *gradients]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("tile", [1, 5, 22, 23, 100])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_tiles_equal_the_whole(
    kind: str, tile: int, scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative to the largest of each tensor, or to 1. In float32 logits of 100 are themselves rounded by 4e-6."""
    if dtype == torch.float32 and scale == 100:
        tolerance = 4e-6
    whole, tiled = found(kind, dtype, scale, None), found(kind, dtype, scale, tile)
    for one, other in zip(whole, tiled, strict=True):
        assert (one - other).abs().max() <= tolerance * max(1.0, float(one.abs().max()))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    given = leaves(torch.float64, 7.0, pairs=5)
    assert torch.autograd.gradcheck(lambda *g: loss_of(kind, list(g), 2).total, given)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return made


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_no_more_than_a_tile_is_held(kind: str) -> None:
    pairs, tile = 400, 50  # so that the draw of both sides, 2 · pairs · WIDTH, is larger than a tile
    sizes = {}
    for size in (None, tile):
        with Largest() as largest:  # type: ignore[no-untyped-call]
            loss_of(kind, leaves(torch.float32, 10.0, pairs), size).total.backward()  # type: ignore[no-untyped-call]
        sizes[size] = largest.elements
    assert sizes == {None: pairs**2, tile: 2 * pairs * WIDTH}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_run_in_tiles_is_the_run(kind: str, tmp_path: Path) -> None:
    whole = run(recipe_with({"kind": kind}), tmp_path / "whole")
    tiled = run(recipe_with({"kind": kind, "tile": 5}), tmp_path / "tiled")
    assert_alike(whole, tiled, 1e-5)
