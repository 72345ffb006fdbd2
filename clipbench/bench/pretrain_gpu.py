"""`clipbench bench pretrain` on a GPU: steps of CLIP, CLIP-Lite and DeCLIP with the papers' towers."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.machine import device_peak_mib, forget_device_peak, matmul_peak
from clipbench.bench.pretrain import random_pairs, random_recipe, steps_of
from clipbench.cards.recipe import Recipe
from clipbench.encoding.runtime import Runtime

_SIDE = 224
_MODEL: dict[str, Any] = {
    "config": {
        "image": {"kind": "clip-resnet", "layers": [3, 4, 6, 3], "width": 64},
        "text": {"kind": "clip-text", "layers": 12, "width": 512, "heads": 8},
        "embed_dim": 1024,
        "projection": "linear",
    },
    "preprocess": {
        "size": _SIDE,
        "resize": "none",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"kind": "clip"},
    "clip-lite": {"kind": "clip-lite"},
    "declip": {"kind": "declip", "preset": "repo", "queue": 65_536},
}
_WARM_UP = 5  # steps that do not count: libraries choose their kernels in them
_COUNTED_PAIRS = 32  # of the step whose operations are counted


def measure(
    batch_size: int, runtime: Runtime, *, steps: int = 3, rounds: int = 3, compiled: bool = False
) -> dict[str, Any]:
    """Time training steps of CLIP's ResNet-50 (224 px) and its text transformer of 12 layers.

    The steps are those of `clipbench pretrain` as it runs, data and log included: random pictures in memory that are
    cropped anew (for DeCLIP as MoCo v2 does, twice), captions of 8 to 70 words, AdamW, images in channels-last
    format. DeCLIP, with two views and two texts a pair, takes a batch in two pieces (gradient caching).

    Objectives take turns; of each the median step counts. Floating-point operations are those of a small batch, a
    pair; what gradient caching computes again is not counted as work. An objective that the GPU has no memory for is
    null.

    Args:
        batch_size: pairs a step.
        steps: of each, a round; a few more come before them and do not count.
        compiled: with `engine.compile`.
    """
    import torch

    split, card = random_pairs(2 * batch_size, side=_SIDE, words=(8, 70))
    peak = matmul_peak(runtime)
    found: dict[str, list[_Steps]] = {name: [] for name in _OBJECTIVES}
    with tempfile.TemporaryDirectory(prefix="clipbench-") as temporary:
        folder = Path(temporary)
        small = {name: _recipe(name, runtime, min(_COUNTED_PAIRS, batch_size), 2) for name in _OBJECTIVES}
        flops = {name: _flops(recipe, split, card, runtime, folder / name) for name, recipe in small.items()}
        for number in range(rounds):
            for name in _OBJECTIVES:
                chunk = -(-batch_size // 2) if name == "declip" else None
                steps_in_all = _WARM_UP + steps + 1
                recipe = _recipe(name, runtime, batch_size, steps_in_all, chunk=chunk, compiled=compiled)
                forget_device_peak(runtime.device)
                with contextlib.suppress(torch.cuda.OutOfMemoryError):
                    out = folder / f"{name}-{number}"
                    took, waited = steps_of(recipe, split, card, out, device=runtime.device)
                    gib = (device_peak_mib(runtime.device) or 0) / 2**10
                    found[name].append(_Steps(took[_WARM_UP:], waited[_WARM_UP:], gib))
    return {
        "device": runtime.device_name,
        "torch": torch.__version__,
        "precision": runtime.precision,
        "compiled": compiled,
        "batch_size": batch_size,
        "steps": steps * rounds,
        "matmul_peak_tflops": round(peak / 1e12, 1),
        "objectives": {
            name: _summary(own, batch_size, flops[name], peak) if own else None for name, own in found.items()
        },
    }


class _Steps(NamedTuple):
    """A round of one objective: seconds and waiting shares of its steps, and the most memory of the GPU (GiB)."""

    seconds: list[float]
    waits: list[float]
    memory_gib: float


def _summary(rounds: list[_Steps], batch_size: int, flops: float, peak: float) -> dict[str, float]:
    """`flops` of a pair, and the `peak` (FLOP/s)."""
    seconds = median(second for own in rounds for second in own.seconds)
    rate = flops * batch_size / seconds
    return {
        "seconds": round(seconds, 4),
        "images_per_s": round(batch_size / seconds, 1),
        "gflop_per_pair": round(flops / 1e9, 1),
        "tflops": round(rate / 1e12, 1),
        "of_matmul_peak": round(rate / peak, 4),
        "memory_gib": round(max(own.memory_gib for own in rounds), 1),
        "data_wait": round(median(wait for own in rounds for wait in own.waits), 4),
    }


def view(found: dict[str, Any]) -> Group:
    head = (
        f"{found['device']}, {found['precision']}, matmul peak {found['matmul_peak_tflops']:,} TFLOP/s\n"
        f"ResNet-50 and 12 layers of text, {found['batch_size']} pairs a step (of DeCLIP in two pieces), "
        f"median of {found['steps']} steps{', compiled' if found['compiled'] else ''}"
    )
    columns = ("a step", "s", "images/s", "TFLOP/s", "of the peak", "GiB", "data wait")
    rows = []
    for name, own in found["objectives"].items():
        if own is None:
            rows.append([name, "out of memory"])
            continue
        rates = [f"{own['seconds']:.3f}", f"{own['images_per_s']:,.0f}", f"{own['tflops']:.0f}"]
        peak, wait = (f"{100 * own[share]:.1f} %" for share in ("of_matmul_peak", "data_wait"))
        rows.append([name, *rates, peak, f"{own['memory_gib']:.1f}", wait])
    return Group(head, "", views.table(columns, rows))


def _recipe(
    objective: str,
    runtime: Runtime,
    batch_size: int,
    steps: int,
    *,
    chunk: int | None = None,
    compiled: bool = False,
) -> Recipe:
    """The towers of DeCLIP's repository (`declip-yfcc15m-r50`) under each objective."""
    engine = {"channels_last": True, "compile": compiled, "chunk": chunk}
    return random_recipe(
        *(_MODEL, _OBJECTIVES[objective], batch_size, steps, 0.1), engine=engine, precision=runtime.precision
    )


def _flops(recipe: Recipe, split: Any, card: Any, runtime: Runtime, out: Path) -> float:
    """Floating-point operations of a step (forward, backward, augmentation), a pair."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not see into every fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        steps_of(recipe, split, card, out, device=runtime.device)
    return float(counter.get_total_flops()) / recipe.schedule.batch_size
