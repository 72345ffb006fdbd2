"""The shipped recipes: what they were taken from, and that their quick forms train."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from small import one_thread, picture

from clipbench.cards.base import fingerprint
from clipbench.cards.pairs import MocoV2
from clipbench.cards.recipe import AdamW, Sgd
from clipbench.catalog import Catalog
from clipbench.data.pairs.sources import open_pairs
from clipbench.data.paths import DataPaths
from clipbench.pretrain.loop import model_card, pretrain
from clipbench.pretrain.study import plan
from clipbench.records.exposure import exposure

__all__ = ["one_thread"]
#: recipe → peak rate, decay, start of the warm-up, scale of crops, ImageNet zero-shot: configs and README of DeCLIP
YFCC = {
    "clip-yfcc15m-vitb32": (1e-3, 0.1, 1e-4, (0.5, 1.0), 32.8),
    "slip-yfcc15m-vitb32": (5e-4, 0.5, 1e-4, (0.5, 1.0), 34.3),
    "filip-yfcc15m-vitb32": (5e-4, 0.5, 1e-4, (0.2, 1.0), 39.5),
    "declip-yfcc15m-vitb32": (1e-3, 0.1, 1e-4, (0.2, 1.0), 43.2),
    "defilip-yfcc15m-vitb32": (1e-3, 0.1, 1e-4, (0.2, 1.0), 45.0),
    "declip-yfcc15m-r50": (1e-3, 0.1, 1e-4, (0.2, 1.0), 44.4),
}
#: recipe or form of a study → its fingerprint
PINNED = Path(__file__).parent / "recipe_fingerprints.json"
LARGE = [*YFCC, "declip-cc3m-r50", "clip-lite-coco", "clip-coco"]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.mark.parametrize("name", YFCC)
def test_yfcc_recipes_are_those_of_declips_repository(name: str, catalog: Catalog) -> None:
    rate, decay, start, crops, percent = YFCC[name]
    card = catalog.recipe(name).card
    assert isinstance(card.optim, AdamW)
    assert (card.optim.lr, card.optim.weight_decay) == (rate, decay)
    assert (card.optim.betas, card.optim.eps, card.optim.clip_grad_norm) == ((0.9, 0.98), 1e-8, None)
    assert card.optim.lr * card.schedule.warmup_from == pytest.approx(start)
    assert (card.schedule.warmup, card.schedule.batch_size, card.precision) == (2500, 4096, "fp32")
    # 34.07 epochs of 15,388,848 pairs
    assert card.schedule.steps * 4096 / 15_388_848 == pytest.approx(34.07, abs=0.01)
    augment = card.data[0].augment
    assert isinstance(augment, MocoV2)
    assert augment.scale == crops
    plain = name.startswith(("clip", "slip"))
    strength = (augment.jitter, augment.grayscale, augment.blur, augment.flip)
    assert strength == ((0, 0, 0, 0) if plain else (0.8, 0.2, 0.5, 0.5))
    assert card.target is not None
    assert card.target.at_least == pytest.approx(percent / 100)
    assert (card.target.task, card.target.confidence) == ("imagenet-zs", "primary")
    preprocess = card.model.preprocess
    assert (preprocess.size, preprocess.side, preprocess.interpolation) == (256, 224, "bilinear")
    assert (preprocess.mean, preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_coco_recipes_differ_in_the_objective_alone(catalog: Catalog) -> None:
    lite, clip = (catalog.recipe(name).card for name in ("clip-lite-coco", "clip-coco"))
    same = {"data", "model", "optim", "schedule", "precision", "seed", "evaluate", "engine"}
    assert lite.model_dump(include=same) == clip.model_dump(include=same)
    assert isinstance(lite.optim, Sgd)
    assert (lite.optim.peaks.image, lite.optim.peaks.text, lite.optim.lr) == (0.2, 0.001, 0.001)
    assert (lite.optim.decays, lite.optim.weight_decay, lite.optim.clip_grad_norm) == ("all", 1e-4, 10)
    assert lite.optim.lookahead is not None
    assert (lite.optim.lookahead.k, lite.optim.lookahead.alpha) == (5, 0.5)
    assert (lite.schedule.steps, lite.schedule.warmup, lite.schedule.batch_size) == (250_000, 10_000, 1024)
    augment = lite.data[0].augment
    assert isinstance(augment, MocoV2)  # the one view of CLIP-Lite: crop and colours alone
    assert (augment.scale, augment.jitter, augment.hue) == ((0.2, 1.0), 0.8, 0.1)
    assert (augment.grayscale, augment.blur, augment.flip) == (0, 0, 0)


def test_every_target_that_others_measured_says_how_sure_it_is(catalog: Catalog) -> None:
    for name in LARGE:
        card = catalog.recipe(name).card
        assert card.target is not None, name
        assert card.target.source, name
        assert card.cost, name
        assert f"--recipe {name} --data {card.data[0].name}=" in card.command, name


@pytest.mark.parametrize(
    "name", ["clip-lite-coco", "declip-yfcc15m-r50", *list(YFCC)[1:3], "defilip-yfcc15m-vitb32"]
)
def test_quick_forms_train(name: str, catalog: Catalog, tmp_path: Path) -> None:
    card = catalog.recipe(
        name, quick=True, assignments=["schedule.steps=2", "schedule.batch_size=6", "schedule.warmup=1"]
    ).card
    folder = tmp_path / card.data[0].name
    (folder / "images").mkdir(parents=True)
    rows = ["image,caption"]
    for number in range(13):
        (folder / "images" / f"{number}.png").write_bytes(picture(number, 40))
        rows += [f"{number}.png,a photo of {number} things", f"{number}.png,{number} things seen"]
    (folder / "captions.txt").write_text("\n".join(rows))
    data: list[Any] = [
        open_pairs(source, catalog.dataset, DataPaths({}, (tmp_path,)), Path(name)) for source in card.data
    ]
    out = pretrain(card, name, tmp_path / "run", data=data, device="cpu", progress=False)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert (out / "card.yaml").exists()


def test_what_a_run_says_that_it_was_trained_on(catalog: Catalog) -> None:
    """Each source once, whatever its texts, and what its towers' weights had seen."""
    start = SimpleNamespace(config=SimpleNamespace(canonical=dict), described=str)

    def said(name: str, **how: Any) -> list[str]:
        recipe = catalog.recipe(name, **how).card
        return [one.described for one in model_card(recipe, name, 9, cast(Any, start), "ab" * 32).trained_on]

    assert said("lite-minilm") == [
        "imagenet train", "tiny-imagenet train", "flickr8k-1000 train", "coco-363-captions train"
    ]  # fmt: skip
    assert said("clip-lite-digits") == ["digits train", "digits-scenes train"]
    assert said("clip-lite-coco") == ["coco train2017"]
    assert said("clip-yfcc15m-vitb32") == ["yfcc15m"]
    quick = catalog.recipe("clip-yfcc15m-vitb32", quick=True).card
    found = exposure(
        [one.trained_on for one in quick.data], catalog.dataset("flickr8k-1000"), "held-out", catalog
    )
    assert [one.text for one in found.seen] == [
        "flickr8k-1000 train: 200 of 200 images"
    ]  # a folder without parts
    shipped = {name: catalog.model(name).card.trained_on for name in ("lite-minilm", "digits-clip-lite")}
    assert [one.described for one in shipped["lite-minilm"]] == said("lite-minilm")
    assert [one.described for one in shipped["digits-clip-lite"]] == said("clip-lite-digits")


def test_no_recipes_fingerprint_moves(catalog: Catalog) -> None:
    """A run's folder goes on only with the recipe that it began with, defaults included."""
    found = {name: fingerprint(catalog.recipe(name).card.canonical()) for name in catalog.recipe_files}
    found |= {
        f"{name} --quick": fingerprint(catalog.recipe(name, quick=True).card.canonical())
        for name in catalog.recipe_files
        if catalog.recipe(name).card.quick
    }
    forms: tuple[plan.Form, ...] = ("cpu", "gpu", "quick")
    for name in plan.names():
        for form in forms:
            made = plan.read(name, form)
            cells = {cell.name: made.recipe_of(cell).canonical() for cell in made.cells()}
            found[f"study {name} {form}"] = fingerprint(cells)
    assert found == json.loads(PINNED.read_text())
