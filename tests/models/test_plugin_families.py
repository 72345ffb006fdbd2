"""A family of models that a plugin brings, in one module: from a folder, and from an installed package."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import commandline
import plugged
import pytest
import small
import torch
from commandline import Run
from safetensors.torch import save_file

from clipbench import models
from clipbench.catalog import Catalog
from clipbench.errors import CardError, ClipbenchError
from clipbench.models.families import families, family, load
from clipbench.records import store
from clipbench.utils import plugins

run = commandline.run
TOY = '''
"""Family `toy`: an image is what one matrix makes of its mean colour, a text what it makes of its first bytes."""

import hashlib

from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.models.adapter import Adapter, Family
from clipbench.models.weights.reading import read_state_dict
from clipbench.models.weights.resolve import resolve

PREPROCESS = Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Config(Strict):
    width: int


class ToyAdapter(Adapter):
    logit_scale, context_length = 10.0, 3

    def __init__(self, card, matrix, sha256):
        import torch

        class Image(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.matrix = torch.nn.Parameter(matrix)

            def forward(self, images):
                return images.mean(dim=(2, 3)) @ self.matrix

        class Text(Image):
            def forward(self, tokens):
                return tokens.float() @ self.matrix[: tokens.shape[1]]

        self.card, self.weights_sha256, self._image, self._text = card, sha256, Image(), Text()

    def image_tower(self, space):
        self.require_space(space)
        return self._image

    def text_tower(self, space="joint"):
        self.require_text(space)
        return self._text

    def tokenize(self, texts):
        import torch

        tokens = torch.tensor([list(hashlib.sha256(text.encode()).digest()[:3]) for text in texts])
        return tokens, torch.full((len(texts),), 3)


def load(model):
    path, sha256 = resolve(model)
    return ToyAdapter(model.card, read_state_dict(path)["toy.matrix"], sha256)


def detect(path, state):
    if "toy.matrix" not in state:
        return None
    return card(path, state["toy.matrix"].shape[1])


def card(path, width):
    return ModelCard(
        title="Toy", family="toy", config={"width": width}, preprocess=PREPROCESS, weights=Weights(file=str(path))
    )


FAMILY = Family(
    version=1,
    config=Config,
    load=load,
    detect=detect,
    named={"toy:": lambda name: card(name.removeprefix("toy:"), 4)},
)
'''


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with plugged.forgotten(models, monkeypatch):
        yield


def write_weights(path: Path, seed: int = 0) -> Path:
    save_file({"toy.matrix": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))}, path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "toy.safetensors")


def test_a_familys_file_is_all_that_it_takes(tmp_path: Path, weights: Path) -> None:
    known = families()
    assert "toy" not in known
    assert {"clip", "clip_lite", "declip", "dual"} <= set(known)
    plugged.plugin(tmp_path / "plugins", "models", TOY)
    plugins.add(tmp_path / "plugins")
    assert families() == sorted([*known, "toy"])
    assert "clipbench.models.toy" not in sys.modules  # the names do not need the modules
    model = Catalog().model(str(weights))
    assert (model.card.family, model.card.config, model.detected) == ("toy", {"width": 4}, True)
    assert Catalog().model(f"toy:{weights}").card == model.card
    images = torch.randn(2, 3, 8, 8)
    assert load(model).image_tower("joint")(images).shape == (2, 4)
    (tmp_path / "card.yaml").write_text(
        "title: T\nfamily: toy\nconfig: {wdth: 4}\npreprocess: {size: 8, mean: [0, 0, 0], std: [1, 1, 1]}\n"
        "weights: {file: toy.safetensors}\n"
    )
    with pytest.raises(
        CardError, match=r"card\.yaml:3: unknown key \"config\.wdth\"; did you mean \"width\"\?"
    ):
        Catalog().model(str(tmp_path / "card.yaml"))


@pytest.mark.parametrize("way", plugged.WAYS)
def test_a_plugins_family_goes_the_whole_way(
    way: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Listed, shown, evaluated, checked, reported, drawn, compared and gated, from one file."""
    where = ("--cards", tmp_path / "cards", *plugged.bring(way, tmp_path, "models", TOY, monkeypatch))
    small.write_task(tmp_path / "cards")
    small.write_images(tmp_path / "data", 60)
    shown = json.loads(run("show", weights, "--json", *where).out)
    assert (shown["family"], shown["config"]) == ("toy", {"width": 4})
    (tmp_path / "cards" / "mine.yaml").write_text(json.dumps(shown))
    listed = json.loads(run("list", "models", "--json", *where).out)
    assert [one["family"] for one in listed if one["id"] == "mine"] == ["toy"]
    both = [weights, write_weights(tmp_path / "other.safetensors", 1)]
    compared = plugged.whole_way(run, tmp_path, both, "animals-zs", f"animals={tmp_path / 'data'}", *where)
    assert "acc1" in [one["metric"] for one in compared]
    assert {one.record.cards.model["family"] for one in store.read_all(tmp_path / "results")} == {"toy"}


def test_a_module_that_is_no_family_is_named(tmp_path: Path) -> None:
    path = plugged.plugin(tmp_path / "plugins", "models", "FAMILY = 3\n")
    plugins.add(tmp_path / "plugins")
    with pytest.raises(ClipbenchError, match=r"is no model family: it has no FAMILY") as error:
        family("toy")
    assert str(path) in str(error.value)


def test_a_family_that_takes_anothers_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plugged.plugin(tmp_path / "plugins", "models", TOY)
    plugins.add(tmp_path / "plugins")
    monkeypatch.syspath_prepend(str(plugged.installed(tmp_path / "site", "models", TOY)))
    with pytest.raises(ClipbenchError, match='two modules are named "toy"') as error:
        families()
    assert str(path) in str(error.value)
    assert "the package theirs" in str(error.value)
