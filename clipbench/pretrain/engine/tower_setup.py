"""How towers compute, where the recipe's `engine` says so: their weights and results stay what they are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from clipbench.cards.recipe import Engine
from clipbench.errors import CardError
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.engine.gradient_caching import still


def set_up_towers(towers: DualTowers, engine: Engine) -> None:
    """Set up memory format, recomputation and compilation, in place.

    Raises:
        CardError: a tower without blocks that could be computed again.
    """
    # Not on a CPU: with torch 2.14 a small ConvNet's run in this format ended in corrupted memory; why is unknown.
    if engine.channels_last and towers.log_scale.device.type == "cuda":
        towers.image.to(memory_format=torch.channels_last)
    if engine.recompute:
        _recompute([*blocks(towers.image), *blocks(towers.text)])
    if engine.compile:
        towers.image.compile()
        towers.text.compile()


def _recompute(found: list[nn.Module]) -> None:
    if not found:
        raise CardError(
            "engine.recompute: neither tower has blocks that could be computed again",
            hint="leave out engine.recompute, or choose other towers",
        )
    for block in found:
        # BatchNorm's running averages move once, however often the block is computed.
        contexts = functools.partial(lambda own: (contextlib.nullcontext(), still(own)), block)
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """The tower's repeated parts: members, with parts of their own, of its lists and sequences."""
    for child in tower.children():
        listed = isinstance(tower, nn.ModuleList | nn.Sequential)
        if listed and not isinstance(child, nn.ModuleList | nn.Sequential):
            if any(True for _ in child.children()):
                yield child
        else:
            yield from blocks(child)
