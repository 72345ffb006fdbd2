"""The benchmark of GPU steps, on a CPU with tiny towers: that it counts and reports what its words say."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from small import one_thread  # noqa: F401 - a fixture

from clipbench.bench import pretrain_gpu
from clipbench.bench.pretrain import random_pairs
from clipbench.encoding.runtime import Runtime

_VIT = {"kind": "clip-vit", "patch": 8, "width": 16, "layers": 1, "heads": 2}
_TEXT = {"kind": "clip-text", "layers": 1, "width": 16, "heads": 2}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers of one block, of width 16."""
    monkeypatch.setattr(pretrain_gpu, "_SIDE", 16)
    config = {"image": _VIT, "text": _TEXT, "embed_dim": 16, "projection": "linear"}
    seen = {"size": 16, "resize": "none", "mean": [0.5] * 3, "std": [0.25] * 3}
    monkeypatch.setattr(pretrain_gpu, "_MODEL", {"config": config, "preprocess": seen})


def test_operations_are_those_of_all_matrix_products(tmp_path: Path) -> None:
    split, card = random_pairs(8, side=16, words=(20, 20))
    runtime = Runtime("cpu", "fp32")
    recipe = pretrain_gpu._recipe("clip", runtime, 8, 2)
    counted = pretrain_gpu._flops(recipe, split, card, runtime, tmp_path)
    images, texts = 5, 22  # tokens: patches and class; words, start and end
    # weights that a token meets: attention's four matrices, and two that are four times as wide
    block = 12 * 16**2
    forward = (images + texts) * block + 2 * 16 * (images**2 + texts**2) + 2 * 16**2 + 2 * 8 * 16
    patches = 4 * 3 * 64 * 16  # of which no gradient goes on to the pixels
    assert counted == pytest.approx(2 * (3 * forward + 2 * patches), rel=0.01)


def test_steps_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_gpu, "matmul_peak", lambda _: 1e12)
    found = pretrain_gpu.measure(8, Runtime("cpu", "fp32"), steps=2, rounds=1)
    own = found["objectives"]
    assert list(own) == ["clip", "clip-lite", "declip"]
    clip = own["clip"]
    assert own["declip"]["seconds"] > 0
    assert clip["images_per_s"] == pytest.approx(8 / clip["seconds"], rel=0.01)
    assert clip["memory_gib"] == 0.0  # of a GPU
    assert found["steps"] == 2
    console = Console(width=80, record=True)
    console.print(pretrain_gpu.view(found))
    shown = console.export_text()
    assert "matmul peak 1.0 TFLOP/s" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
