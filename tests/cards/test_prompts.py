"""Shared prompts, class sets and cards of another card's classes: what they become, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipbench.catalog import Catalog
from clipbench.errors import CardError

PROMPTS = Path(__file__).parents[2] / "../shared/data/prompts"
ANIMALS = {
    "title": "Animals",
    "source": {"local": True},
    "splits": {"test": {"name": "test"}},
    "prompts_source": "us",
    "classes": ["cat", "dog", "owl", "eel"],
    "label_names": ["n1", "n2", "n3", "n4"],
    "templates": {"default": ["a {c}"], "own": {c: [f"the {c}"] for c in ("cat", "dog", "owl", "eel")}},
    "protocols": {"zs": {}},
}


def catalog(tmp_path: Path, **cards: object) -> Catalog:
    """A catalog of a user's folder: `prompts_x` is a file of prompts, all else are task cards."""
    (tmp_path / "tasks" / "prompts").mkdir(parents=True)
    for name, value in cards.items():
        folder = "tasks/prompts" if name.startswith("prompts_") else "tasks"
        (tmp_path / folder / f"{name.removeprefix('prompts_')}.yaml").write_text(yaml.safe_dump(value))
    return Catalog((tmp_path,))


def test_names_of_shared_prompts_become_their_lists(tmp_path: Path) -> None:
    given = catalog(
        tmp_path,
        prompts_zoo={
            "source": "us",
            "classes": ["cat", "dog", "owl", "eel"],
            "templates": ["a {c}", "my {c}"],
        },
        animals={**ANIMALS, "classes": "zoo", "templates": {"default": "zoo", "shipped": "imagenet"}},
    )
    card = given.dataset("animals").card
    assert card.classes == ("cat", "dog", "owl", "eel")
    assert card.templates["default"] == ("a {c}", "my {c}")
    assert len(card.templates["shipped"]) == 80
    assert "zoo" not in given.dataset_files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "zo"}, 'unknown file of shared prompts "zo"; did you mean "zoo"?'),
        ({"templates": {"default": "names"}}, "names.yaml has no templates"),
        ({"templates": {"default": "empty"}}, "it holds neither classes nor templates"),
        ({"class_sets": {"x": {"indices": [0, 4]}}}, "names class 4; the card has classes 0 to 3"),
        ({"class_sets": {"x": {"indices": [0, 0]}}}, "indices[1]: 0 is there twice"),
        ({"class_sets": {"x": {"indices": [0, [1, 2]]}}}, "indices[1] folds classes: give the names"),
        ({"class_sets": {"x": {"indices": [0]}}}, "at least 2 classes (found 1)"),
        ({"class_sets": {"x": {"indices": [0, -1]}}}, "greater than or equal to 0"),
        ({"class_sets": {"x": {"indices": [0, []]}}}, "indices[1] names no class"),
        ({"class_sets": {"x": {}}}, "needs indices, classes or templates"),
        ({"class_sets": {"x": {"classes": ["a", "b"]}}}, "has 2 names, the card 4 classes"),
        ({"class_sets": {"x": {"templates": ["a"]}}}, "has no {c} for the class name"),
        ({"class_sets": {"default": {"indices": [0, 1]}}}, "is the name of all classes"),
        ({"class_sets": {"x": {"indices": [0, 1], "classes": ["a"]}}}, "classes has 1 entries, indices 2"),
        ({"protocols": {"zs": {"classes": "x"}}}, 'unknown class set "x"'),
    ],
)
def test_what_is_no_class_set_is_one_error(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    given = catalog(
        tmp_path,
        prompts_zoo={"source": "us", "templates": ["a {c}"]},
        prompts_names={"source": "us", "classes": ["a"]},
        prompts_empty={"source": "us"},
        animals=ANIMALS | changes,
    )
    with pytest.raises(CardError) as caught:
        given.dataset("animals")
    assert message in str(caught.value)


def test_a_card_has_the_classes_of_another_cards_class_set(tmp_path: Path) -> None:
    sets = {"wet": {"indices": [3, 0]}, "fold": {"indices": [[0, 1], 3], "classes": ["pet", "eel"]}}
    new = {"title": "B", "source": {"local": True}, "protocols": {"zs": {}}}
    given = catalog(
        tmp_path,
        animals=ANIMALS | {"class_sets": sets},
        wet={"base": {"card": "animals", "classes": "wet"}, **new},
        fold={"base": {"card": "animals", "classes": "fold"}, **new},
        wrong={"base": {"card": "animals", "classes": "wett"}, **new},
    )
    wet = given.dataset("wet").card
    assert (wet.classes, wet.label_names) == (("eel", "cat"), ("n4", "n1"))
    assert wet.templates == {"default": ("a {c}",), "own": {"eel": ("the eel",), "cat": ("the cat",)}}
    assert wet.class_sets == {}
    fold = given.dataset("fold").card
    assert (fold.classes, fold.label_names) == (("pet", "eel"), None)
    assert list(fold.templates) == ["default"]  # nobody wrote a prompt for "pet"
    with pytest.raises(CardError, match='unknown class set of animals "wett"; did you mean "wet"'):
        given.dataset("wrong")


@pytest.mark.parametrize("name", ["a", "r", "o"])
def test_imagenets_class_sets_are_those_of_the_wnids(name: str) -> None:
    """Class j of the smaller set is the class of ImageNet with its wnid, in the order of the sorted wnids."""
    if not PROMPTS.is_dir():
        pytest.skip("needs ../shared/data")
    known = json.loads((PROMPTS / "clip_benchmark.json").read_text())
    wnids = known[f"imagenet-{name}"]["wnids"]
    imagenet = Catalog().dataset("imagenet").card
    assert imagenet.label_names is not None
    of_wnid = dict(zip(imagenet.label_names, imagenet.classes, strict=True))
    subset = imagenet.of_classes(f"{name}-classes")
    assert subset.label_names == tuple(sorted(wnids)) == tuple(wnids)
    assert subset.classes == tuple(of_wnid[wnid] for wnid in sorted(wnids))
    card = Catalog().dataset(f"imagenet-{name}").card
    assert (card.classes, card.label_names) == (subset.classes, subset.label_names)
    numbers = np.array(imagenet.numbers_in(f"{name}-classes"))
    assert [imagenet.label_names[i] for i in np.flatnonzero(numbers >= 0)] == sorted(wnids)
    np.testing.assert_array_equal(numbers[numbers >= 0], np.arange(200))


def test_objectnets_classes_are_folded_as_its_own_map_says() -> None:
    if not PROMPTS.is_dir():
        pytest.skip("needs ../shared/data")
    known = json.loads((PROMPTS / "clip_benchmark.json").read_text())["objectnet"]
    card = Catalog().dataset("imagenet").card.of_classes("objectnet-classes")
    assert list(card.classes) == known["classes"]
    numbers = Catalog().dataset("imagenet").card.numbers_in("objectnet-classes")
    assert [[i for i, n in enumerate(numbers) if n == k] for k in range(113)] == [
        sorted(one) for one in known["imagenet_indices"]
    ]


@pytest.mark.parametrize(
    ("language", "templates", "distinct"),
    [("cn", 80, 999), ("jp", 37, 991), ("it", 49, 980), ("ar", 55, 996)],
)
def test_imagenet_in_other_languages(language: str, templates: int, distinct: int) -> None:
    card = Catalog().dataset("imagenet").card.of_classes(language)
    assert (len(card.classes), len(set(card.classes))) == (1000, distinct)
    assert [*card.templates] == ["default"]
    assert len(card.templates["default"]) == templates
