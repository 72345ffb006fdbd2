"""Training by several processes, and in pieces: the same numbers as one process with the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipbench.cards import Document, Recipe, TaskCard, parse
from clipbench.data import Split
from clipbench.data.builtin import digits
from clipbench.features import Subset
from clipbench.pretrain.loop import pretrain

ROOT = Path(__file__).parent.parent
SMALL = {"projector_width": 12, "predictor_width": 6}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"kind": "clip"},
    "clip-lite": {"kind": "clip-lite", "negatives": 5, "prior_weight": 0.1},
    "siglip": {"kind": "siglip"},
    "slip": {"kind": "slip", "projector_width": 12, "projector_dim": 6},
    "declip": {"kind": "declip", "queue": 50, **SMALL},
    "declip-repo": {"kind": "declip", "preset": "repo", "queue": 40, **SMALL},
    "filip": {"kind": "filip", "kept": 4, "global_weight": 0.5, "text_self_weight": 0.2},
    "defilip": {"kind": "defilip", "queue": 50, **SMALL},
}


def recipe_with(objective: dict[str, Any], **more: Any) -> Recipe:
    """Six steps of SGD (whose steps are as small as the gradients' errors are), every kind of draw at work."""
    shipped = parse(Recipe, Document(ROOT / "clipbench" / "pretrain" / "recipes" / "clip-lite-digits.yaml"))
    value = shipped.canonical() | {
        "data": [
            {"dataset": "digits", "templates": ["default", "simple"], "augment": {"kind": "moco-v2"}},
            {"dataset": "digits", "augment": {"kind": "affine", "rotate": 9, "shift": 0.1, "scale": 0.1}},
        ],
        "objective": objective,
        "optim": {"name": "sgd", "lr": 0.05},
        "schedule": {"steps": 6, "warmup": 2, "batch_size": 16, "checkpoint_every": 2},
        "evaluate": [],
        "target": None,
    }
    value["model"] |= {
        "config": {
            "image": {"kind": "convnet", "width": 4, "stages": 2},
            "text": {"kind": "bytes", "width": 16, "layers": 1, "heads": 2, "context_length": 40},
            "embed_dim": 16,
            "projection": "clip-lite",
        },
        "preprocess": {"size": 8, "resize": "none", "channels": 1, "mean": [0.3], "std": [0.4]},
    }
    if objective["kind"] in ("filip", "defilip"):
        compared = {"compared": "joint"} if objective["kind"] == "defilip" else {}
        value["model"]["config"]["tokens"] = {"dim": 8} | compared
    if (
        objective["kind"] == "filip"
    ):  # which token is the best one is a hard choice: rounding errors flip it later
        value["schedule"] |= {"steps": 3}
    return Recipe.model_validate(value | more)


def data_of(recipe: Recipe) -> list[tuple[Split, TaskCard]]:
    """Twenty digits for each source."""
    task = parse(TaskCard, Document(ROOT / "tasks" / "digits.yaml"))
    few = Subset(digits("train", tuple("0123456789")), np.arange(20))
    return [(few, task) for _ in recipe.data]


def run(recipe: Recipe, out: Path, **more: Any) -> Path:
    torch.set_num_threads(1)
    return pretrain(recipe, "tiny", out, data=data_of(recipe), device="cpu", progress=False, **more)


def together(recipes: dict[str, Recipe], folder: Path, *, count: int = 2, **more: Any) -> None:
    """Run the recipes one after another in `count` processes that train together, below `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([{name: r.canonical() for name, r in recipes.items()}, more]))
    fixed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(jobs)],
            env=os.environ | fixed | {"RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, said


def assert_alike(one: Path, other: Path, tolerance: float) -> None:
    first, second = (load_file(out / "model.safetensors") for out in (one, other))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    logged = [(out / "metrics.jsonl").read_text().splitlines() for out in (one, other)]
    for mine, theirs in zip(*(map(json.loads, lines) for lines in logged), strict=True):
        kept = [key for key in mine if key not in ("images_per_s", "data_wait")]
        assert {key: theirs[key] for key in kept} == pytest.approx(
            {key: mine[key] for key in kept}, rel=1e-5, abs=1e-5
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each objective by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, objective in OBJECTIVES.items():
        run(recipe_with(objective), folder / name)
    return folder


def test_two_processes_equal_one_with_the_joined_batch(alone: Path, tmp_path: Path) -> None:
    """Every objective, its queue and draws; stopped in between, so that all parts of a checkpoint reach both."""
    recipes = {
        name: recipe_with(objective, engine={"sync_batchnorm": True})
        for name, objective in OBJECTIVES.items()
    }
    together(recipes, tmp_path)
    for name in OBJECTIVES:
        assert_alike(alone / name, tmp_path / name, 1e-5)


if __name__ == "__main__":
    jobs, more = json.loads(Path(sys.argv[1]).read_text())
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    for name, value in jobs.items():
        run(Recipe.model_validate(value), Path(sys.argv[1]).parent / name, **more)
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()
