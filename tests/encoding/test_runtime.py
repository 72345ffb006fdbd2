"""How a tower runs: every plan gives the same features; what may be chosen of devices and precisions."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from clipbench.encoding import plans
from clipbench.encoding.runtime import Plan, Runtime, Tower
from clipbench.errors import ClipbenchError, NotApplicable

CPU = Runtime("cpu", "fp32")


def clip_tower(kind: str, *, quick_gelu: bool = False) -> nn.Module:
    """A small image tower of open_clip with statistics that a batch norm cannot ignore."""
    torch.manual_seed(0)
    vision: dict[str, Any] = {"image_size": 32, "width": 32}
    kinds: dict[str, dict[str, Any]] = {
        "vit": {"patch_size": 8, "layers": 2, "head_width": 16},
        "rn": {"layers": [1, 1, 1, 1]},
    }
    vision |= kinds[kind]
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.CLIP(16, vision, text, quick_gelu=quick_gelu).eval().requires_grad_(False)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            part.weight.data.normal_(1, 0.3)
            part.bias.data.normal_()
    tower: nn.Module = model.visual
    return tower


@pytest.mark.parametrize("plan", ["channels_last", "packed"])
@pytest.mark.parametrize("kind", ["vit", "rn"])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_plans_agree_in_fp32(plan: Plan, kind: str, quick_gelu: bool) -> None:
    module, images = clip_tower(kind, quick_gelu=quick_gelu), torch.randn(3, 3, 32, 32)
    plain = Tower(module, CPU)(images)
    assert plans._error(Tower(module, CPU, plan)(images), plain) < 1e-5
    assert torch.equal(Tower(module, CPU)(images), plain), "the plan must not touch the module that it copies"


def test_a_packed_tower_really_is_packed() -> None:
    kinds = {type(m).__name__ for m in Tower(clip_tower("vit"), CPU, "packed")._module.modules()}  # type: ignore[attr-defined]
    assert {"PackedLinear", "PackedAttention"} <= kinds
    kinds = {type(m).__name__ for m in Tower(clip_tower("rn"), CPU, "packed")._module.modules()}  # type: ignore[attr-defined]
    assert "PackedConv" in kinds
    assert "BatchNorm2d" not in kinds


@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_packed_bf16_is_as_exact_as_autocast(kind: str) -> None:
    module, images = clip_tower(kind), torch.randn(16, 3, 32, 32)
    exact = Tower(module, CPU)(images)
    runtime = Runtime("cpu", "bf16")
    autocast = plans._error(Tower(module, runtime)(images), exact)
    try:
        Tower(module, runtime, "packed")
    except RuntimeError as error:  # the trial of plans passes over it there
        pytest.skip(f"this processor packs no bf16: {error}")
    packed = plans._error(Tower(module, runtime, "packed")(images), exact)
    assert 0 < packed < 2 * autocast < 0.2


def test_the_compiled_plan_agrees() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.GELU(), nn.Flatten(), nn.Linear(128, 16)).eval()
    images = torch.randn(4, 3, 32, 32)
    assert plans._error(Tower(module, CPU, "compiled")(images), Tower(module, CPU)(images)) < 1e-5


def test_masked_attention_agrees() -> None:
    module = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 2, batch_first=True)}).eval()
    mask = torch.full((5, 5), float("-inf")).triu_(1)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows: torch.Tensor = self.inner["attn"](x, x, x, need_weights=False, attn_mask=mask)[0][:, 0]
            return rows

    x = torch.randn(3, 5, 16)
    assert torch.allclose(Tower(Masked(), CPU, "packed")(x), Tower(Masked(), CPU)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("device", "precision", "batch_size", "workers", "said"),
    [
        ("tpu", "auto", None, None, 'unknown device "tpu"'),
        ("cpu", "fp8", None, None, 'unknown precision "fp8"'),
        ("cpu", "auto", 0, None, "--batch-size"),
        ("cpu", "auto", 513, None, "--batch-size"),
        ("cpu", "auto", None, -1, "--workers"),
    ],
)
def test_bad_choices_are_named(
    device: str, precision: str, batch_size: int | None, workers: int | None, said: str
) -> None:
    with pytest.raises(ClipbenchError, match=said):
        Runtime.choose(device, precision, batch_size, workers)


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    code = (
        "import resource, numpy as np\n"
        "from clipbench.encoding.runtime import keep_freed_memory\n"
        "kept = keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(1 << 23)\n"
        "before = faults()\n"
        "for _ in range(5): np.ones(1 << 23)\n"
        "print(kept, faults() - before)\n"
    )
    kept, faults = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert kept == "False" or int(faults) < 1000  # mapped anew, five times 64 MiB are 80,000 pages


def test_auto_on_a_cpu_is_fp32() -> None:
    assert Runtime.choose("cpu").precision == "fp32"


@pytest.mark.parametrize(
    ("gives", "found"),
    [
        (lambda batch: (batch, batch), "tuple"),
        (lambda batch: batch, r"\[2, 3, 4, 4\]"),
        (lambda batch: batch[:1, :, 0, 0], "1, 3"),
    ],
)
def test_a_tower_that_gives_no_rows_is_named(gives: Any, found: str) -> None:
    class Odd(nn.Module):
        def forward(self, batch: torch.Tensor) -> Any:
            return gives(batch)

    with pytest.raises(NotApplicable, match=found):
        Tower(Odd(), Runtime("cpu", "fp32"))(torch.zeros(2, 3, 4, 4))
