"""Training by several processes, and in pieces: the same numbers as one process with the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training import OBJECTIVES, ROOT, assert_alike, recipe_with, run

from clipbench.cards.recipe import Recipe
from clipbench.pretrain.engine.distributed import Processes, join
from clipbench.pretrain.objectives._helpers import clip_loss

PATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))


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
            env=os.environ | fixed | {"RANK": str(rank), "PYTHONPATH": PATH},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said


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
