"""Objectives are found by their files: the package's own, and those of plugins, which train like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from training import ROOT, recipe_with

TOY = '''
"""The squared distance of an image from its text, after a head of its own."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clipbench.cards.recipe import Objective
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.objectives import base
from clipbench.pretrain.objectives._helpers import unit


class Settings(Objective):
    """Nothing but a weight."""

    kind: Literal["toy-distance"]
    weight: float = Field(2.0, gt=0)


class Learner(base.Learner):
    """One linear head."""

    def __init__(self, settings: Settings, towers: DualTowers) -> None:
        super().__init__()
        self._weight = settings.weight
        self.head = nn.Linear(towers.embed_dim, towers.embed_dim)

    def loss(self, features: base.Features, logit_scale: Tensor) -> base.Loss:
        apart = (unit(self.head(features["image"])) - unit(features["text"])).square().sum(dim=1).mean()
        return base.WeightedLoss({"apart": apart}, {"apart": self._weight})

    def chance(self, batch_size: int) -> float:
        return 2 * self._weight
'''


def clipbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process of its own: modules of plugins stay loaded."""
    command = [sys.executable, "-m", "clipbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    (tmp_path / "plugins" / "objectives").mkdir(parents=True)
    return tmp_path / "plugins"


def test_an_objective_of_a_plugin_folder_trains_and_is_listed(tmp_path: Path, plugins: Path) -> None:
    (plugins / "objectives" / "toy_distance.py").write_text(TOY)
    value = recipe_with({"kind": "clip"}).canonical() | {"objective": {"kind": "toy-distance"}}
    value["schedule"] |= {"steps": 2, "warmup": 1}
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "toy.yaml"
    recipe.write_text(yaml.safe_dump(value))

    done = clipbench("list", "recipes", "--cards", str(tmp_path), "--plugins", str(plugins))
    assert "toy" in done.stdout.split(), done.stderr
    without = clipbench("pretrain", "--recipe", str(recipe), "--out", str(tmp_path / "run"))
    line = recipe.read_text().splitlines().index("objective:") + 1
    assert without.returncode == 2
    assert f'toy.yaml:{line}: objective.kind: unknown "toy-distance"; allowed: clip, clip-lite' in " ".join(
        without.stderr.split()
    )

    out = tmp_path / "run"
    done = clipbench("pretrain", "--recipe", str(recipe), "--out", str(out), "-q", "--plugins", str(plugins))
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(2 * first["loss_apart"])
    assert second["loss"] != first["loss"]
    assert "toy-distance objective" in (out / "card.yaml").read_text()
    assert yaml.safe_load((out / "recipe.yaml").read_text())["objective"] == {
        "kind": "toy-distance",
        "weight": 2.0,
    }


@pytest.mark.parametrize("text", ["", TOY, TOY.replace("toy-distance", "bad").replace("(Objective)", "")])
def test_a_module_that_is_no_objective_is_named(plugins: Path, text: str) -> None:
    (plugins / "objectives" / "bad.py").write_text(text)
    done = clipbench("pretrain", "--recipe", "clip-lite-digits", "--out", "none", "--plugins", str(plugins))
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "bad.py is no objective: it has no class Settings(Objective) of kind bad" in said


def test_recipes_are_read_without_torch() -> None:
    code = (
        "import sys\n"
        "from clipbench.cards.recipe import Recipe; from clipbench.cards.strict_yaml import Document, parse\n"
        "from pathlib import Path\n"
        "for path in Path('clipbench/pretrain/recipes').glob('*.yaml'): parse(Recipe, Document(path))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
