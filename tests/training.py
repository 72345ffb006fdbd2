"""Small trainings: a recipe of six steps on twenty digits, with any objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipbench.cards.model import Preprocess
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.data.builtin import digits
from clipbench.data.split import Split, Subset
from clipbench.pretrain.data.source import decode
from clipbench.pretrain.loop import pretrain

ROOT = Path(__file__).parents[1]
SMALL = {"projector_width": 12, "predictor_width": 6}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"kind": "clip"},
    "clip-lite": {"kind": "clip-lite", "negatives": 5, "prior_weight": 0.1},
    "clip-lite-clusters": {"kind": "clip-lite", "clusters": 3},
    "siglip": {"kind": "siglip"},
    "clip in tiles": {"kind": "clip", "tile": 5},
    "siglip in tiles": {"kind": "siglip", "tile": 7},
    "slip": {"kind": "slip", "projector_width": 12, "projector_dim": 6},
    "declip": {"kind": "declip", "queue": 50, **SMALL},
    "declip-repo": {"kind": "declip", "preset": "repo", "queue": 40, **SMALL},
    # without `kept`: which tokens are the largest turns on the last bit where two are nearly alike
    "filip": {"kind": "filip", "global_weight": 0.5, "text_self_weight": 0.2},
    "defilip": {"kind": "defilip", "preset": "repo", "queue": 40, **SMALL},
}
#: what models with heads for single tokens are compared by
COMPARED = {"filip": "tokens", "defilip": "joint"}


def decode_all(split: Split, preprocess: Preprocess) -> torch.Tensor:
    """All images of `split`: uint8 [n, channels, side, side]."""
    return decode(split, preprocess, "stop", workers=0)[0]


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
