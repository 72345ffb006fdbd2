"""Class names and templates of cards, word for word and in order, against the files that they were taken from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog

PROMPTS: Final = Path(__file__).parents[2] / "../shared/data/prompts"
#: card → its name in CLIP_benchmark's file, from which its templates are, and its names where that has any
PEER: Final = {
    "clevr-count": "clevr_count_all",
    "clevr-distance": "clevr_closest_object_distance",
    "diabetic-retinopathy": "diabetic_retinopathy",
    "dmlab": "dmlab",
    "dsprites-orientation": "dsprites_label_orientation",
    "dsprites-x": "dsprites_label_x_position",
    "dsprites-y": "dsprites_label_y_position",
    "eurosat": "eurosat",
    "fer2013": "fer2013",
    "pcam": "pcam",
    "camelyon17": "camelyon17",
    "resisc45": "resisc45",
    "smallnorb-azimuth": "smallnorb_label_azimuth",
    "smallnorb-elevation": "smallnorb_label_elevation",
    "svhn": "svhn",
    "imagenet": "imagenet1k",
    "objectnet": "objectnet",
    "fmow": "fmow",
    "iwildcam": "iwildcam",
    "dollar-street": "dollar-street",
    "geode": "geode",
}
#: card → its name in OpenAI's file, and the template set that is from there
OPENAI: Final = {
    "birdsnap": ("Birdsnap", "default"),
    "country211": ("Country211", "default"),
    "gtsrb": ("GTSRB", "default"),
    "kitti-distance": ("KITTI", "default"),
    "kinetics700": ("Kinetics700", "default"),
    "mnist": ("MNIST", "default"),
    "renderedsst2": ("SST2", "default"),
    "stl10": ("STL10", "default"),
    "ucf101": ("UCF101", "default"),
    "sun397-all": ("SUN397", "default"),
    "resisc45": ("RESISC45", "openai"),
    "pcam": ("PatchCamelyon", "openai"),
}


@cache
def known(name: str) -> dict[str, Any]:
    if not PROMPTS.is_dir():
        pytest.skip("needs ../shared/data")
    found: dict[str, Any] = json.loads((PROMPTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def card(name: str) -> TaskCard:
    return Catalog().dataset(name).card


@pytest.mark.parametrize("name", sorted(PEER))
def test_names_and_templates_are_clip_benchmarks(name: str) -> None:
    entry, found = known("clip_benchmark")[PEER[name]], card(name)
    if entry["classes"] is not None:
        order = sorted if entry.get("order_unseen") else list
        assert order(found.classes) == order(entry["classes"])
    templates = entry["templates"]
    if templates is None or templates == "imagenet1k":
        templates = known("clip_benchmark")["imagenet1k"]["templates"]
    assert list(found.templates["default"]) == templates


@pytest.mark.parametrize("name", sorted(OPENAI))
def test_names_and_templates_are_openais(name: str) -> None:
    key, templates = OPENAI[name]
    entry, found = known("openai")[key], card(name)
    assert list(found.classes) == entry["classes"]
    assert list(found.templates[templates]) == [one.replace("{}", "{c}") for one in entry["templates"]]


def test_the_synonyms_of_expressions_are_openais() -> None:
    entry, found = known("openai")["FacialEmotionRecognition2013"], card("fer2013")
    by_name = {synonyms[0]: synonyms for synonyms in entry["classes"]}
    prompts = found.templates["openai"]
    assert isinstance(prompts, dict)
    assert {name: set(texts) for name, texts in prompts.items()} == {
        name: {template.format(one) for one in by_name[name] for template in entry["templates"]}
        for name in found.classes
    }


def test_the_numerals_of_clevr_are_openais() -> None:
    entry = known("openai")["CLEVRCounts"]
    catalog = Catalog()
    found = catalog.task("clevr-count-zs@openai").dataset.card
    assert sorted(found.classes, key=int) == list(found.classes)
    assert set(found.classes) == set(entry["classes"])
    assert list(found.templates["default"]) == [one.replace("{}", "{c}") for one in entry["templates"]]


@pytest.mark.parametrize("language", ["cn", "jp", "it", "ar"])
def test_imagenet_in_other_languages_is_clip_benchmarks(language: str) -> None:
    entry = known("imagenet_languages")[language]
    found = Catalog().task(f"imagenet-zs@{language}").dataset.card
    assert list(found.classes) == entry["classes"]
    assert list(found.templates["default"]) == entry["templates"]


def test_crops_of_voc_have_the_names_of_voc() -> None:
    assert set(card("voc2007-crops").classes) == set(known("openai")["PascalVOC2007"]["classes"])
