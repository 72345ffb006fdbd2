"""Objectives are found by their files: the package's own, and those of plugins, which train like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import commandline
import plugged
import pytest
import yaml
from commandline import Run, mended
from pydantic import ValidationError
from training import ROOT, recipe_with

from clipbench.pretrain import objectives
from clipbench.records import store

run = commandline.run

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
        return base.Loss({"apart": apart}, {"apart": self._weight})

    def chance(self, batch_size: int) -> float:
        return 2 * self._weight
'''


#: what papers and their code give
DEFAULTS: dict[str, dict[str, float]] = {
    "clip": {"max_logit_scale": 100},
    "siglip": {"initial_logit_scale": 10, "initial_logit_bias": -10},
    "slip": {
        "max_logit_scale": 100,
        "view_weight": 1,
        "temperature": 0.1,
        "projector_width": 4096,
        "projector_dim": 256,
    },
    "filip": {"max_logit_scale": 100, "masked": 0.15, "global_weight": 0, "text_self_weight": 0},
    "declip": {
        "max_logit_scale": 100,
        "image_self_weight": 0.2,
        "text_self_weight": 0.2,
        "nearest_weight": 0.2,
        "queue": 65_536,
        "masked": 0.15,
        "projector_width": 1024,
        "predictor_width": 512,
    },
    "defilip": {"token_weight": 0.2, "queue": 65_536},
    "clip-lite": {"negatives": 1, "prior_weight": 0, "hard_share": 0.5},
}
POSITIVE = {"max_logit_scale", "initial_logit_scale", "view_weight", "temperature", "token_weight"}
COUNTS = {"projector_width", "projector_dim", "predictor_width", "queue", "negatives"}


def settings(kind: str, **given: float) -> Any:
    module = import_module(f"clipbench.pretrain.objectives.{kind.replace('-', '_')}")
    return module.Settings.model_validate({"kind": kind} | given)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_an_objectives_numbers_are_the_published_ones_and_have_bounds(kind: str) -> None:
    for name, value in DEFAULTS[kind].items():
        assert getattr(settings(kind), name) == value
        allowed, refused = (1e-9, 0) if name in POSITIVE else (1, 0) if name in COUNTS else (0, -1e-9)
        if name in ("masked", "hard_share"):
            allowed, refused = 1e-9, 0
        if name == "initial_logit_bias":
            continue
        assert getattr(settings(kind, **{name: allowed}), name) == allowed
        with pytest.raises(ValidationError, match="greater than"):
            settings(kind, **{name: refused})
    for name, least in {"filip": {"kept": 1}, "defilip": {"kept": 1}, "clip-lite": {"clusters": 2}}.get(
        kind, {}
    ).items():
        assert getattr(settings(kind, **{name: least}), name) == least
        with pytest.raises(ValidationError, match="greater than"):
            settings(kind, **{name: least - 1})


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with plugged.forgotten(objectives, monkeypatch):
        yield


@pytest.mark.parametrize("way", plugged.WAYS)
def test_a_plugins_objective_goes_the_whole_way(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Recipes with it are listed, shown and trained, and what they train is evaluated, from one file."""
    value = recipe_with({"kind": "clip"}).canonical() | {"objective": {"kind": "toy-distance"}}
    value["schedule"] |= {"steps": 2, "warmup": 1}
    (tmp_path / "recipes").mkdir()
    recipe, out = tmp_path / "recipes" / "toy.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(value))
    without = run("pretrain", "--recipe", recipe, "--out", out)
    line = recipe.read_text().splitlines().index("objective:") + 1
    mended(without, f"toy.yaml:{line}: ", 'objective.kind: unknown "toy-distance"; allowed: clip, clip-lite')

    options = plugged.bring(way, tmp_path, "objectives", TOY, monkeypatch, "toy_distance")
    where = ("--cards", tmp_path, *options)
    assert "toy" in [one["id"] for one in json.loads(run("list", "recipes", "--json", *where).out)]
    settings = {"kind": "toy-distance", "weight": 2.0}
    assert json.loads(run("show", "toy", "--json", *where).out)["objective"] == settings

    done = run("pretrain", "--recipe", "toy", "--out", out, "-q", *where)
    assert done.code == 0, done
    first, second = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(2 * first["loss_apart"])
    assert second["loss"] != first["loss"]
    assert "toy-distance objective" in (out / "card.yaml").read_text()
    assert yaml.safe_load((out / "recipe.yaml").read_text())["objective"] == settings

    results = tmp_path / "results"
    done = run("eval", "--model", out, "--task", "digits-zs", "--limit", "20", "--results", results, *where)
    assert done.code == 0, done
    (stored,) = store.read_all(results)
    assert "toy-distance objective" in json.dumps(stored.record.cards.model)
    assert 0 <= stored.record.scores["acc1"].value <= 1


@pytest.mark.parametrize("text", ["", TOY, TOY.replace("toy-distance", "bad").replace("(Objective)", "")])
def test_a_module_that_is_no_objective_is_named(tmp_path: Path, text: str, run: Run) -> None:
    plugged.plugin(tmp_path, "objectives", text, "bad")
    done = run("pretrain", "--recipe", "clip-lite-digits", "--out", tmp_path / "none", "--plugins", tmp_path)
    mended(done, "bad.py is no objective: it has no class Settings(Objective) of kind bad")


def test_recipes_are_read_without_torch() -> None:
    code = (
        "import sys\n"
        "from clipbench.cards.recipe import Recipe; from clipbench.cards.strict_yaml import Document, parse\n"
        "from pathlib import Path\n"
        "for path in Path('clipbench/pretrain/recipes').glob('*.yaml'): parse(Recipe, Document(path))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
