"""ImageNet's class sets and the sets that have its classes, against lists of wnids that others published."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog

PROMPTS = Path(__file__).parents[2] / "../shared/data/prompts"


@cache
def catalog() -> Catalog:
    return Catalog()


@cache
def known() -> dict[str, Any]:
    if not PROMPTS.is_dir():
        pytest.skip("needs ../shared/data")
    found: dict[str, Any] = json.loads((PROMPTS / "clip_benchmark.json").read_text(encoding="utf-8"))
    return found


def card(dataset: str) -> TaskCard:
    return catalog().dataset(dataset).card


# ------------------------------------------------------------------- subsets by wnid


@pytest.mark.parametrize("name", ["a", "r", "o"])
def test_the_classes_of_a_subset_are_those_of_its_wnids(name: str) -> None:
    """Class j of the smaller set is the class of ImageNet with its wnid, in the order of the sorted wnids."""
    wnids = sorted(known()[f"imagenet-{name}"]["wnids"])
    imagenet = card("imagenet")
    assert imagenet.label_names == tuple(sorted(known()["_imagenet_wnids"]["wnids"]))
    name_of = dict(zip(imagenet.label_names, imagenet.classes, strict=True))
    for subset in (card(f"imagenet-{name}"), catalog().task(f"imagenet-zs@{name}-classes").dataset.card):
        assert subset.label_names == tuple(wnids)
        assert subset.classes == tuple(name_of[wnid] for wnid in wnids)
        assert len(subset.templates["default"]) == 80
    members = catalog().task(f"imagenet-zs@{name}-classes").members
    assert [imagenet.label_names[place] for (place,) in members] == wnids


def test_objectnets_classes_are_folded_as_its_own_map_says() -> None:
    task = catalog().task("imagenet-zs@objectnet-classes")
    assert task.members == tuple(tuple(group) for group in known()["objectnet"]["imagenet_indices"])
    assert list(task.dataset.card.classes) == known()["objectnet"]["classes"]
    assert len({place for group in task.members for place in group}) == 125
    assert task.dataset.card.splits["test"].rows == 6250


@pytest.mark.parametrize(
    ("language", "templates", "distinct"),
    [("cn", 80, 999), ("jp", 37, 991), ("it", 49, 980), ("ar", 55, 996)],
)
def test_imagenet_in_other_languages(language: str, templates: int, distinct: int) -> None:
    of = catalog().task(f"imagenet-zs@{language}").dataset.card
    assert (len(of.classes), len(set(of.classes))) == (1000, distinct)
    assert [*of.templates] == ["default"]
    assert len(of.templates["default"]) == templates
    assert of.label_names == card("imagenet").label_names
    theirs = json.loads((PROMPTS / "imagenet_languages.json").read_text(encoding="utf-8"))[language]
    assert list(of.classes) == theirs["classes"]
    assert list(of.templates["default"]) == theirs["templates"]
