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
from safetensors.torch import load_file, save_file
from torch import nn

from clipbench.cards.cards import Document, Recipe, TaskCard, parse
from clipbench.data.builtin import digits
from clipbench.data.split import Split, Subset
from clipbench.pretrain.engine.distributed import Processes, join
from clipbench.pretrain.loop import pretrain
from clipbench.pretrain.objectives.losses import clip_loss

ROOT = Path(__file__).parent.parent
SMALL = {"projector_width": 12, "predictor_width": 6}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"kind": "clip"},
    "clip-lite": {"kind": "clip-lite", "negatives": 5, "prior_weight": 0.1},
    "clip-lite-clusters": {"kind": "clip-lite", "clusters": 3},
    "siglip": {"kind": "siglip"},
    "slip": {"kind": "slip", "projector_width": 12, "projector_dim": 6},
    "declip": {"kind": "declip", "queue": 50, **SMALL},
    "declip-repo": {"kind": "declip", "preset": "repo", "queue": 40, **SMALL},
    # without `kept`: which tokens are the largest turns on the last bit where two are nearly alike
    "filip": {"kind": "filip", "global_weight": 0.5, "text_self_weight": 0.2},
    "defilip": {"kind": "defilip", "preset": "repo", "queue": 40, **SMALL},
}
#: what models with heads for single tokens are compared by
COMPARED = {"filip": "tokens", "defilip": "joint"}


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
            **(
                {"tokens": {"dim": 8, "compared": COMPARED[kind]}}
                if (kind := objective["kind"]) in COMPARED
                else {}
            ),
        },
        "preprocess": {"size": 8, "resize": "none", "channels": 1, "mean": [0.3], "std": [0.4]},
    }
    return Recipe.model_validate(value | more)


def data_of(recipe: Recipe) -> list[tuple[Split, TaskCard]]:
    """Twenty digits for each source."""
    task = parse(TaskCard, Document(ROOT / "tasks" / "digits.yaml"))
    few = Subset(digits("train", tuple("0123456789")), np.arange(20))
    return [(few, task) for _ in recipe.data]


def run(recipe: Recipe, out: Path, **more: Any) -> Path:
    torch.set_num_threads(1)
    return pretrain(recipe, "tiny", out, data=data_of(recipe), device="cpu", progress=False, **more)


def together(recipes: dict[str, Recipe], folder: Path, **more: Any) -> None:
    """Run the recipes one after another in two processes that train together, below `folder`."""
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([{name: r.canonical() for name, r in recipes.items()}, more]))
    joined("train", jobs)


def joined(what: str, path: Path) -> None:
    """Call this file in two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fixed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, what, str(path)],
            env=os.environ | fixed | {"RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said


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


# Unequal numbers of rows, as masked tokens have.
SHARES = (5, 3)


def gradients(group: Processes) -> dict[str, torch.Tensor]:
    """Loss and gradients of two float64 heads, this process having its share of the rows; alone, all of them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, sum(SHARES), 7, dtype=torch.float64, generator=generator)
    heads = nn.ModuleDict({name: nn.Linear(7, 4, dtype=torch.float64) for name in ("image", "text")})
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    if group.world > 1:
        rows = torch.split(rows, list(SHARES), dim=1)[group.rank]
    features = {name: heads[name](own) for name, own in zip(heads, rows, strict=True)}
    features = group.gather(features)
    loss = clip_loss(features["image"], features["text"], torch.tensor(3.0, dtype=torch.float64)).total
    torch.autograd.backward(loss)
    group.average(heads)
    found = {
        name: parameter.grad for name, parameter in heads.named_parameters() if parameter.grad is not None
    }
    return {"loss": loss.detach(), **found}


def test_gathered_features_have_the_gradients_of_the_joined_batch(tmp_path: Path) -> None:
    joined("gradients", tmp_path)
    alone = gradients(Processes())
    assert set(alone) == {"loss", "image.weight", "image.bias", "text.weight", "text.bias"}
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


def _train(path: Path) -> None:
    jobs, more = json.loads(path.read_text())
    for name, value in jobs.items():
        run(Recipe.model_validate(value), path.parent / name, **more)


def _gradients(folder: Path) -> None:
    with join(torch.device("cpu"), sum(SHARES)) as group:
        save_file(gradients(group), folder / f"{group.rank}.safetensors")


if __name__ == "__main__":
    if "RANK" in os.environ:  # else alone: test_engine kills it
        torch.distributed.init_process_group("gloo")
    {"train": _train, "gradients": _gradients}[sys.argv[1]](Path(sys.argv[2]))
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()
