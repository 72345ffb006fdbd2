"""Bases, class sets and shared prompts of task cards, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.errors import CardError

ROOT = Path(__file__).parents[2]
PETS = """\
title: Pets
source: {local: true}
terms: for research
splits:
  test: {name: test, rows: 8}
classes: [cat, dog, cow, hen]
label_names: [n1, n2, n3, n4]
templates:
  default: ["a {c}", "the {c}"]
prompts_source: ours
protocols:
  zs: {}
class_sets:
  furry: {indices: [1, 0], rows: {test: 4}}
  kinds: {indices: [[0, 1], 3], classes: [mammal, bird]}
  french: {classes: french, templates: french}
"""
OTHER = "title: Other\nsource: {builtin: digits}\nsplits: {test: {name: test}}\nprotocols: {zs: {}}\n"
FRENCH = 'source: theirs\nclasses: [chat, chien, vache, poule]\ntemplates: ["une photo de {c}", "{c}"]\n'


def catalog(folder: Path, **texts: str) -> Catalog:
    """A catalog with task cards of one's own; `french` and names that end in `_shared` are prompts."""
    tasks = folder / "tasks"
    (tasks / "prompts").mkdir(parents=True)
    for name, text in ({"pets": PETS, "french": FRENCH} | texts).items():
        where = tasks / "prompts" if name == "french" or name.endswith("_shared") else tasks
        (where / f"{name}.yaml").write_text(text, encoding="utf-8")
    return Catalog([folder])


def problem(folder: Path, name: str, **texts: str) -> str:
    """What is said of a task, with the folder left out."""
    with pytest.raises(CardError) as caught:
        catalog(folder, **texts).task(name)
    return str(caught.value).replace(f"{folder}/tasks/", "")


def prompts_of(card: TaskCard) -> tuple[object, ...]:
    return card.classes, card.label_names, dict(card.templates), card.prompts_source


# -------------------------------------------------------------------- shared prompts


def test_a_name_stands_for_the_lists_of_shared_prompts(tmp_path: Path) -> None:
    mine = OTHER + "classes: french\ntemplates: {default: french, own: ['{c}!'], simple: simple}\n"
    card = catalog(tmp_path, mine=mine).dataset("mine").card
    assert card.classes == ("chat", "chien", "vache", "poule")
    assert card.templates["default"] == ("une photo de {c}", "{c}")
    assert card.templates["own"] == ("{c}!",)
    assert card.templates["simple"] == ("a photo of a {c}.",)  # shipped ones, too
    assert card.prompts_source == "theirs; openai/CLIP, data/prompts.md (MIT)"
    card = catalog(tmp_path / "told", mine=mine + "prompts_source: told\n").dataset("mine").card
    assert card.prompts_source == "told"


def test_a_card_is_the_same_with_lists_and_with_names(tmp_path: Path) -> None:
    named = OTHER + "classes: french\ntemplates: {default: french}\n"
    lists = (
        OTHER + "classes: [chat, chien, vache, poule]\ntemplates: {default: ['une photo de {c}', '{c}']}\n"
    )
    found = catalog(tmp_path, named=named, lists=lists + "prompts_source: theirs\n")
    assert found.dataset("named").card.canonical() == found.dataset("lists").card.canonical()


def test_prompts_beside_mixed_cards_replace_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "simple.yaml").write_text("source: mine\ntemplates: ['my {c}']\n")
    (tmp_path / "mine.yaml").write_text(OTHER + "classes: [a, b]\ntemplates: {default: simple}\n")
    found = Catalog([tmp_path])
    assert found.dataset("mine").card.templates == {"default": ("my {c}",)}
    assert "simple" not in found.dataset_files
    assert "imagenet-cn" not in Catalog().dataset_files


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "classes: frnch\ntemplates: {default: ['{c}']}\n",
            '5: classes: unknown shared prompts "frnch"; did you mean "french"?',
        ),
        (
            "classes: [a, b]\ntemplates:\n  default: imagnet\n",
            '7: templates.default: unknown shared prompts "imagnet"; did you mean "imagenet"?',
        ),
        (
            "classes: simple\ntemplates: {default: ['{c}']}\n",
            f"5: classes: {ROOT}/tasks/prompts/simple.yaml has no classes",
        ),
        (
            "classes: [a, b]\ntemplates: {default: 'a {c}'}\nprompts_source: x\n",
            '6: templates.default: expected a list, found "a {c}"',
        ),
    ],
)  # fmt: skip
def test_a_name_of_no_prompts_is_told_where_it_stands(tmp_path: Path, lines: str, message: str) -> None:
    assert problem(tmp_path, "mine-zs", mine=OTHER + lines).startswith(f"mine.yaml:{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: x\n", "1: shared prompts have classes, templates or both"),
        (
            "source: x\nclases: [a]\n",
            '2: unknown key "clases"; did you mean "classes"? (allowed: source, classes, templates)',
        ),
        ("source: x\nclasses: [a,\n  on]\n", "3: classes[1]: expected text, found the boolean true"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_prompts_is_told_by_its_own_lines(tmp_path: Path, text: str, message: str) -> None:
    mine = OTHER + "classes: my_shared\ntemplates: {default: ['{c}']}\n"
    assert problem(tmp_path, "mine-zs", mine=mine, my_shared=text).startswith(
        f"prompts/my_shared.yaml:{message}"
    )


# -------------------------------------------------------------------------------- bases


def test_a_mapping_as_base_gives_classes_and_prompts_alone(tmp_path: Path) -> None:
    found = catalog(tmp_path, mine=OTHER + "base: {card: pets}\n")
    base, card = found.dataset("pets").card, found.dataset("mine").card
    assert prompts_of(card) == prompts_of(base)
    assert (card.terms, card.source.builtin, card.class_sets) == (None, "digits", {})
    assert found.dataset_files["mine"].name == "mine.yaml"


def test_a_base_may_be_one_of_a_cards_class_sets(tmp_path: Path) -> None:
    base = OTHER + "base: {card: pets, classes: %s}\n"
    mine = {name: base % name for name in ("furry", "kinds", "french")}
    indices = OTHER + "base: {card: pets, indices: [3, 1]}\n"
    found = catalog(tmp_path, mine_indices=indices, **{f"my-{k}": v for k, v in mine.items()})
    card = found.dataset("my-furry").card
    assert prompts_of(card) == (("dog", "cat"), ("n2", "n1"), {"default": ("a {c}", "the {c}")}, "ours")
    assert card.splits["test"].rows is None
    card = found.dataset("my-kinds").card
    assert prompts_of(card) == (("mammal", "bird"), None, {"default": ("a {c}", "the {c}")}, "ours")
    card = found.dataset("my-french").card
    names = ("chat", "chien", "vache", "poule")
    assert prompts_of(card) == (
        names,
        ("n1", "n2", "n3", "n4"),
        {"default": ("une photo de {c}", "{c}")},
        "theirs",
    )
    card = found.dataset("mine_indices").card
    assert (card.classes, card.label_names) == (("hen", "dog"), ("n4", "n2"))


def test_bases_may_have_bases(tmp_path: Path) -> None:
    two = "base: pets\ntitle: Two\ntemplates: {default: simple}\n"
    three = "base: two\ntitle: Three\nlabel_names: [a, b, c, d]\n"
    four = OTHER + "base: {card: three, classes: furry}\n"
    found = catalog(tmp_path, two=two, three=three, four=four)
    card = found.dataset("three").card
    assert (card.title, card.classes, card.label_names) == (
        "Three",
        ("cat", "dog", "cow", "hen"),
        tuple("abcd"),
    )
    assert card.templates == {"default": ("a photo of a {c}.",)}
    assert card.prompts_source == "ours; openai/CLIP, data/prompts.md (MIT)"
    assert list(card.class_sets) == ["furry", "kinds", "french"]
    card = found.dataset("four").card
    assert (card.classes, card.label_names) == (("dog", "cat"), ("b", "a"))


def test_other_splits_leave_the_sizes_of_class_sets_behind(tmp_path: Path) -> None:
    """They are of the base's own images, so that a small copy would never be whole."""
    mine = "base: pets\nsplits: {test: {name: test}}\n"
    found = catalog(tmp_path, mine=mine, same="base: pets\n")
    assert found.task("mine-zs@furry").dataset.card.splits["test"].rows is None
    assert found.task("same-zs@furry").dataset.card.splits["test"].rows == 4
    assert Catalog().task("imagenet-1k-sample-zs@a-classes").dataset.card.splits["test"].rows is None
    assert Catalog().task("imagenet-zs@a-classes").dataset.card.splits["test"].rows == 10_000


def test_other_classes_leave_the_class_sets_of_the_base_behind(tmp_path: Path) -> None:
    mine = "base: pets\nclasses: [x, y]\nlabel_names: [a, b]\n"
    assert catalog(tmp_path, mine=mine).dataset("mine").card.class_sets == {}


def test_the_users_card_stands_for_the_shipped_one_as_a_base_too(tmp_path: Path) -> None:
    own = PETS.replace("Pets", "My ImageNet")
    found = catalog(tmp_path, imagenet=own, mine="base: imagenet\ntitle: Mine\n")
    assert found.dataset("mine").card.classes == ("cat", "dog", "cow", "hen")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"mine": "title: A\nbase: mine\n"}, "mine.yaml:2: the card is its own base: mine → mine"),
        (
            {"mine": "title: A\nbase: b\n", "b": "base: c\n", "c": "title: A\nbase: {card: b}\n"},
            "c.yaml:2: the card is its own base: mine → b → c → b",
        ),
        ({"mine": "base: {card: pest}\n"}, 'mine.yaml:1: unknown base card "pest"; did you mean "pets"?'),
        ({"mine": "base: {crad: pets}\n"}, 'mine.yaml:1: missing key "base.card"'),
        (
            {"mine": OTHER + "base:\n  card: pets\n  classes: fury\n"},
            'mine.yaml:7: unknown class set "fury"; did you mean "furry"?',
        ),
        (
            {"mine": OTHER + "base:\n  card: pets\n  classes: furry\n  indices: [1, 2]\n"},
            "mine.yaml:5: base: give classes, the name of a class set, or indices, not both",
        ),
        (
            {"mine": OTHER + "base:\n  card: pets\n  indices: [1, 4]\n"},
            "mine.yaml:7: base.indices: 4 is no class: there are 0 to 3",
        ),
        (
            {"mine": OTHER + "base:\n  card: pets\n  indices: [1, [2, 3]]\n"},
            "mine.yaml:7: base.indices: several classes in one need a name",
        ),
        ({"mine": OTHER + "base: {card: two, classes: x}\n", "two": OTHER}, 'two.yaml:1: missing key "classes"'),
    ],
)  # fmt: skip
def test_wrong_bases(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    assert problem(tmp_path, "mine-zs", **texts).startswith(message)


def test_a_model_card_has_no_classes_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards" / "mine.yaml").write_text("base: {card: clip-rn50}\n")
    with pytest.raises(CardError, match=r"mine\.yaml:1: base: expected the name of a card"):
        Catalog([tmp_path]).model("mine")


def test_cards_that_are_all_base_are_told_apart_in_a_mixed_folder(tmp_path: Path) -> None:
    for name, text in {
        "again": "base: imagenet-1k-sample\ntitle: A\n",
        "more": "base: again\ntitle: B\n",
        "subset": "base: {card: imagenet}\ntitle: C\n",
        "model": "base: clip-rn50\ntitle: D\n",
        "models": "base: model\ntitle: D\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    found = Catalog([tmp_path])
    assert {"again", "more", "subset"} <= set(found.dataset_files)
    assert {"model", "models"} <= set(found.model_files)
    assert not {"model", "models"} & set(found.dataset_files)
    assert found.dataset("more").card.classes == found.dataset("imagenet").card.classes


# --------------------------------------------------------------------------- class sets


def test_each_class_set_is_a_variant_of_zero_shot(tmp_path: Path) -> None:
    found = catalog(tmp_path)
    assert [i for i in found.task_ids() if i.startswith("pets-")] == [
        "pets-zs", "pets-zs@furry", "pets-zs@kinds", "pets-zs@french"
    ]  # fmt: skip
    plain, furry = found.task("pets-zs"), found.task("pets-zs@furry")
    assert "classes" not in plain.params.canonical()
    assert furry.params.canonical() == plain.params.canonical() | {"classes": "furry"}
    assert furry.dataset.card.classes == ("dog", "cat")
    assert furry.dataset.card.splits["test"].rows == 4
    assert furry.opened.card.classes == ("cat", "dog", "cow", "hen")
    assert found.task("pets-zs@kinds").dataset.card.splits["test"].rows is None
    assert found.task("pets-zs@french").dataset.card.splits["test"].rows == 8


def test_a_variant_may_pick_a_class_set_and_templates(tmp_path: Path) -> None:
    text = PETS.replace("zs: {}", "zs: {variants: {bare: {classes: kinds, templates: bare}}}")
    text = text.replace("templates:\n", 'templates:\n  bare: ["{c}"]\n')
    task = catalog(tmp_path, pets=text).task("pets-zs@bare")
    assert task.dataset.card.classes == ("mammal", "bird")
    assert task.params.canonical()["templates"] == "bare"


def test_class_sets_move_no_fingerprint(tmp_path: Path) -> None:
    bare = PETS[: PETS.index("class_sets")]
    with_sets, without = catalog(tmp_path / "a"), catalog(tmp_path / "b", pets=bare)
    assert with_sets.dataset("pets").card.canonical() == without.dataset("pets").card.canonical()


def test_class_prompts_are_cut_to_the_set(tmp_path: Path) -> None:
    each = json.dumps({name: [f"one {name}"] for name in ("cat", "dog", "cow", "hen")})
    text = PETS.replace('  default: ["a {c}", "the {c}"]', f"  default: {each}")
    text = text.replace("  kinds: {indices: [[0, 1], 3], classes: [mammal, bird]}\n", "")
    card = catalog(tmp_path, pets=text).task("pets-zs@furry").dataset.card
    assert card.templates == {"default": {"dog": ("one dog",), "cat": ("one cat",)}}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1, 0]", "[1, 4]", '14: class set "furry": 4 is no class: there are 0 to 3'),
        ("[1, 0]", "[1, -1]", '14: class set "furry": -1 is no class: there are 0 to 3'),
        ("[1, 0]", "[1, 1]", '14: class set "furry": 1 (dog) is there twice'),
        ("[1, 0]", "[1]", '14: class set "furry": a set has at least 2 classes (found 1)'),
        ("[1, 0]", "[1, a]", "14: class_sets.furry.indices[1]"),
        ("[1, 0]", "[1, []]", "14: class_sets.furry.indices[1]"),
        ("rows: {test: 4}", "rows: {tset: 4}", '14: class set "furry": unknown split "tset"; did you mean "test"?'),
        ("furry:", "default:", '14: class_sets: "default" is the name of all classes of the card; take another'),
        ("[mammal, bird]", "[mammal]", '15: class set "kinds": 1 names for 2 classes'),
        (", classes: [mammal, bird]", "", '15: class set "kinds": several classes in one need a name'),
        ("{classes: french, templates: french}", "{}", '16: class set "french": says nothing'),
        ("templates: french", "templates: [photo]", '16: templates "default": "photo" has no {c}'),
        ("title: Pets", "title: Pets\nkind: multi-label", "15: class_sets go with kind: single-label"),
    ],
)  # fmt: skip
def test_class_sets_that_are_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert PETS.count(old) == 1
    assert f"pets.yaml:{message}" in problem(tmp_path, "pets-zs", pets=PETS.replace(old, new))


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        (
            "pets-zs@french",
            {"french": "source: x\nclasses: [un, deux]\ntemplates: ['{c}']\n"},
            'pets.yaml:16: class set "french": 2 names for 4 classes',
        ),
        (
            "pets-zs@french",
            {"french": "source: x\nclasses: [a, b, c, d]\ntemplates: [photo]\n"},
            'pets.yaml:16: templates "default": "photo" has no {c} for the class name',
        ),
        (
            "pets-zs@french",
            {"pets": PETS.replace("{classes: french,", "{classes: frnch,")},
            'pets.yaml:16: class_sets.french.classes: unknown shared prompts "frnch"; did you mean "french"?',
        ),
        (
            "pets-zs",
            {"pets": PETS.replace("zs: {}", "zs: {classes: fury}")},
            'pets.yaml:12: protocols.zs: unknown class set "fury"; did you mean "furry"?',
        ),
        (
            "pets-zs",
            {"pets": PETS.replace("zs: {}", "zs: {classes: kinds, primary: acc5}")},
            "pets.yaml:12: protocols.zs: acc5 needs at least 5 classes",
        ),
        (
            "pets-lp",
            {"pets": PETS.replace("zs: {}", "lp: {classes: kinds}")},
            'pets.yaml:12: unknown key "protocols.lp.classes"',
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_class_set_when_it_is_used(
    tmp_path: Path, task: str, texts: dict[str, str], message: str
) -> None:
    assert problem(tmp_path, task, **texts).startswith(message)
