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


# ------------------------------------------------------- what the reference page says

#: data set → classes, images of the test split, primary metric, the copy on the hub
PAGE = {
    "imagenetv2": (1000, 10_000, "acc1", "clip-benchmark/wds_imagenetv2"),
    "imagenet-sketch": (1000, 50_889, "acc1", "clip-benchmark/wds_imagenet_sketch"),
    "imagenet-a": (200, 7_500, "acc1", "clip-benchmark/wds_imagenet-a"),
    "imagenet-r": (200, 30_000, "acc1", "clip-benchmark/wds_imagenet-r"),
    "imagenet-o": (200, 2_000, "acc1", "clip-benchmark/wds_imagenet-o"),
    "objectnet": (113, 18_574, "acc1", "clip-benchmark/wds_objectnet"),
    "imagenet-real": (1000, None, "acc1", None),
    "imagenet-c": (1000, 75 * 50_000, "mean_acc1", None),
    "imagenet-9": (9, None, "gap", None),
    "imagenet-e": (1000, None, "drop", None),
}


@pytest.mark.parametrize("dataset", PAGE)
def test_cards_are_as_the_reference_page_has_them(dataset: str) -> None:
    classes, rows, primary, hub = PAGE[dataset]
    found = card(dataset)
    assert len(found.classes) == classes
    assert found.splits["test"].rows == rows
    assert found.source.hub == hub
    assert len(found.templates["default"]) == 80
    assert found.templates["default"] == card("imagenet").templates["default"]
    (protocol,) = found.protocols
    assert catalog().task(f"{dataset}-{protocol}").params.primary == primary
    assert len(found.label_names or found.classes) == classes


def test_the_reference_page_has_these_sizes() -> None:
    """Its section 5, row by row: id, n / classes."""
    page = Path(__file__).parents[2] / "../shared/reference/suites.md"
    if not page.is_file():
        pytest.skip("needs ../shared/reference")
    section = page.read_text(encoding="utf-8").partition("## 5.")[2].partition("## 6.")[0]
    rows = [
        line.split("|")
        for line in section.splitlines()
        if line.startswith("| `imagenet") or "`objectnet`" in line
    ]
    for cells in rows:
        name, size = cells[1].strip().strip("`"), cells[2].replace(",", "")
        if name in PAGE and PAGE[name][3] is not None:
            assert size.split()[0] == str(PAGE[name][1])
            assert size.split()[2] == str(PAGE[name][0])
    assert {cells[1].strip().strip("`") for cells in rows} - set(PAGE) == {"imagenet-w"}


def test_a_set_of_other_images_does_not_say_that_it_shows_imagenets() -> None:
    assert all(
        not card(name).images_of for name in ("imagenetv2", "imagenet-sketch", "imagenet-a", "objectnet")
    )
    for name in ("imagenet-real", "imagenet-c", "imagenet-e"):
        (one,) = card(name).images_of["test"]
        assert (one.dataset, one.split) == ("imagenet", "test")


def test_alexnets_errors_are_those_of_the_15_corruptions() -> None:
    """Those of hendrycks/robustness, whose mean is 78.9 %."""
    reference = card("imagenet-c").protocols["conditions"]["reference"]
    assert len(reference) == 15
    assert sum(reference.values()) / 15 == pytest.approx(0.788993, abs=1e-6)
