"""The catalog: what is found where, and what an unknown id says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from clipbench.catalog import Catalog
from clipbench.errors import CardError
from clipbench.models.families import config_model, families
from clipbench.protocols.registry import protocol_ids

ROOT = Path(__file__).parents[2]
TASK = """\
title: Mine
source: {builtin: digits}
splits:
  test: {name: test}
classes: [a, b, c]
templates:
  default: ["{c}"]
  short: ["a {c}"]
prompts_source: ours
protocols:
  zs:
    variants:
      short: {templates: short}
"""
MODEL = """\
title: Small
family: clip
config: {arch: RN50, quick_gelu: true}
preprocess: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
weights: {file: a.pt}
"""
RECIPE = (ROOT / "clipbench/pretrain/recipes/clip-lite-digits.yaml").read_text(encoding="utf-8")
SUITES = "suites:\n  own: {title: Own, tasks: [mine-zs]}\n"


@pytest.fixture(autouse=True)
def no_user_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPBENCH_CARDS", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one card of every kind, side by side."""
    folder = tmp_path / "cards"
    folder.mkdir()
    for name, text in (("mine", TASK), ("small", MODEL), ("quick", RECIPE), ("suites", SUITES)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def message(action: Callable[[], object]) -> str:
    with pytest.raises(CardError) as caught:
        action()
    return str(caught.value)


# -------------------------------------------------------------------- where they are


def test_a_checkout_has_its_cards() -> None:
    catalog = Catalog()
    assert {"imagenet", "digits", "voc07"} <= set(catalog.dataset_files)
    assert "suites" not in catalog.dataset_files
    assert {"clip-rn50", "digits-clip-lite"} <= set(catalog.model_files)
    assert "clip-lite-digits" in catalog.recipe_files
    assert {"declip-11-zs", "quickstart"} <= set(catalog.suites)
    assert list(catalog.model_files) == sorted(catalog.model_files)


def installed(site: Path) -> Path:
    """The package as a wheel lays it out in `site`, by pyproject's own words."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    unwanted = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=unwanted)
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / target, ignore=unwanted)
    return site


def test_an_installed_wheel_has_the_same_cards(tmp_path: Path) -> None:
    site = installed(tmp_path / "site")
    program = (
        "import json, clipbench, pathlib\n"
        "from clipbench.catalog import Catalog\n"
        "from clipbench.records.check import check\n"
        "c = Catalog()\n"
        "found = check(c, pathlib.Path('nowhere'))\n"
        "print(json.dumps([clipbench.__file__, list(c.dataset_files), list(c.model_files), "
        "list(c.recipe_files), sorted(c.suites), found.problems]))"
    )
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    where, *cards, problems = json.loads(done.stdout)
    here = Catalog()
    assert Path(where).parent == site / "clipbench"
    assert cards == [
        list(here.dataset_files), list(here.model_files), list(here.recipe_files), sorted(here.suites)
    ]  # fmt: skip
    assert problems == []  # shipped weights lie beside their cards there too


@pytest.mark.parametrize("way", ["--cards", "CLIPBENCH_CARDS"])
def test_a_folder_of_mixed_cards_adds_its_own(
    folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "CLIPBENCH_CARDS":
        monkeypatch.setenv("CLIPBENCH_CARDS", str(folder))
    catalog = Catalog([folder] if way == "--cards" else ())
    shipped = set(Catalog().dataset_files)
    assert set(catalog.dataset_files) >= {"mine", "digits"}
    assert set(catalog.dataset_files) - shipped <= {"mine"}
    assert {"small", "clip-rn50"} <= set(catalog.model_files)
    assert "mine" not in catalog.model_files
    assert {"quick", "clip-lite-digits"} <= set(catalog.recipe_files)
    assert {"own", "quickstart"} <= set(catalog.suites)
    assert [t.id for t in catalog.tasks(["own"])] == ["mine-zs"]
    assert catalog.model("small").folder == folder


def test_a_folder_like_a_checkout_adds_its_own(folder: Path, tmp_path: Path) -> None:
    for kind, names in (("tasks", ("mine", "suites")), ("model_cards", ("small",)), ("recipes", ("quick",))):
        (tmp_path / "tree" / kind).mkdir(parents=True)
        for name in names:
            shutil.copy(folder / f"{name}.yaml", tmp_path / "tree" / kind)
    catalog = Catalog([tmp_path / "tree"])
    assert catalog.task("mine-zs@short").params.canonical()["templates"] == "short"
    assert catalog.model("small").card.title == "Small"
    assert catalog.recipe("quick").card.seed == 0
    assert "own" in catalog.suites


def test_several_folders_and_the_first_wins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    for other, title in ((second, "Second"), (third, "Third")):
        other.mkdir()
        (other / "mine.yaml").write_text(TASK.replace("Mine", title))
        (other / "more.yaml").write_text(TASK.replace("Mine", title))
    monkeypatch.setenv("CLIPBENCH_CARDS", os.pathsep.join([str(second), str(third)]))
    catalog = Catalog([folder])
    assert catalog.dataset("mine").card.title == "Mine"
    assert catalog.dataset("more").card.title == "Second"


def test_a_users_card_replaces_the_shipped_one(folder: Path) -> None:
    (folder / "digits.yaml").write_text(TASK.replace("Mine", "My digits"))
    assert Catalog([folder]).dataset("digits").card.title == "My digits"
    assert Catalog().dataset("digits").card.title != "My digits"


@pytest.mark.parametrize(
    ("card", "config"),
    [
        ("config: {arch: RN101}\n", {"arch": "RN101", "quick_gelu": True}),
        ("config: {}\n", {"arch": "RN50", "quick_gelu": True}),
        ("family: clip\nconfig: {quick_gelu: false}\n", {"arch": "RN50", "quick_gelu": False}),
        ("family: declip\nconfig: {variant: clip, arch: RN50}\n", {"variant": "clip", "arch": "RN50"}),
    ],
)
def test_config_of_a_base_is_merged_within_a_family(
    folder: Path, card: str, config: dict[str, object]
) -> None:
    (folder / "other.yaml").write_text(f"base: small\n{card}")
    assert Catalog([folder]).model("other").card.config == config


def test_wrong_key_of_a_merged_config_is_named_where_it_stands(folder: Path) -> None:
    (folder / "other.yaml").write_text("base: small\nconfig:\n  archs: RN101\n")
    with pytest.raises(CardError, match=r'other\.yaml:3: unknown key "config\.archs"; did you mean "arch"'):
        Catalog([folder]).model("other")


def test_a_card_that_is_all_base_has_its_bases_kind(folder: Path) -> None:
    (folder / "again.yaml").write_text("base: digits\ntitle: Again\n")
    (folder / "small2.yaml").write_text("base: small\ntitle: Small too\n")
    catalog = Catalog([folder])
    assert catalog.dataset("again").card.title == "Again"
    assert catalog.model("small2").card.title == "Small too"
    assert "again" not in catalog.model_files
    (folder / "lost.yaml").write_text("title: Lost\nbase: nothing\n")
    text = message(lambda: Catalog([folder]).dataset("lost"))
    assert text == f'{folder}/lost.yaml:2: unknown base card "nothing"'


def test_other_yaml_files_are_left_alone_and_misnamed_cards_are_not(folder: Path) -> None:
    (folder / "compose.yaml").write_text("services: {}\n")
    (folder / "list.yml").write_text("- a\n")
    assert "compose" not in Catalog([folder]).dataset_files
    (folder / "other.yml").write_text(TASK)
    assert "other.yml: a card's file name ends in .yaml" in message(
        lambda: Catalog([folder]).dataset("other")
    )


def test_broken_yaml_stops_what_needs_it_and_nothing_else(folder: Path) -> None:
    (folder / "broken.yaml").write_text("title: [\n")
    (folder / "digits.yaml").write_text("title: [\n")
    catalog = Catalog([folder])
    assert catalog.model("digits-clip-lite").id == "digits-clip-lite"
    assert catalog.task("mine-zs").id == "mine-zs"
    assert [path.name for path in catalog.problems] == ["broken.yaml", "digits.yaml"]
    for name in ("broken", "digits"):  # the shipped card does not stand in for the user's own
        assert f"{folder}/{name}.yaml:2: " in message(lambda n=name: Catalog([folder]).dataset(n))  # type: ignore[misc]
        assert f"{folder}/{name}.yaml:2: " in message(lambda n=name: Catalog([folder]).model(n))  # type: ignore[misc]
        assert f"{folder}/{name}.yaml:2: " in message(lambda n=name: Catalog([folder]).tasks([f"{n}-zs"]))  # type: ignore[misc]
    assert f"passed over, being wrong: {folder}/broken.yaml" in message(
        lambda: Catalog([folder]).dataset("mien")
    )


def test_a_broken_file_of_suites_stops_suites_alone(folder: Path) -> None:
    (folder / "suites.yaml").write_text("suits: {}\n")
    assert [task.id for task in Catalog([folder]).tasks(["mine-zs", "mine-zs@short"])] == [
        "mine-zs",
        "mine-zs@short",
    ]
    assert "suites.yaml:1: unknown key" in message(lambda: Catalog([folder]).suite("quickstart"))


@pytest.mark.parametrize("way", ["--cards", "CLIPBENCH_CARDS"])
def test_a_folder_that_is_not_there(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = tmp_path / "lost"
    if way == "CLIPBENCH_CARDS":
        monkeypatch.setenv("CLIPBENCH_CARDS", str(lost))
    text = message(lambda: Catalog([lost] if way == "--cards" else ()).dataset("digits"))
    assert text.startswith(f"no folder {lost}\n  --cards and CLIPBENCH_CARDS name folders")


# ------------------------------------------------------------------------- unknown ids


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (
            lambda c: c.model("clip-rn5"),
            'unknown model "clip-rn5"; did you mean "clip-rn50"? See: clipbench list models',
        ),
        (
            lambda c: c.task("digit-zs"),
            'unknown task "digit-zs"; did you mean "digits-zs"? See: clipbench list tasks',
        ),
        (
            lambda c: c.task("digits-zx"),
            'unknown task "digits-zx"; did you mean "digits-zs"? See: clipbench list tasks',
        ),
        (
            lambda c: c.task("digits-zs@simpel"),
            'unknown task "digits-zs@simpel"; did you mean "digits-zs@simple"? See: clipbench list tasks',
        ),
        (lambda c: c.task("digits-zs@"), 'unknown task "digits-zs@"; did you mean "digits-zs"?'),
        (lambda c: c.task("qqq"), 'unknown task "qqq"; see: clipbench list tasks'),
        (
            lambda c: c.tasks(["quikstart"]),
            'unknown task or suite "quikstart"; did you mean "quickstart"? See: clipbench list tasks',
        ),
        (
            lambda c: c.suite("declip-11-sz"),
            'unknown suite "declip-11-sz"; did you mean "declip-11-zs"? See: clipbench list suites',
        ),
        (
            lambda c: c.recipe("clip-lite-digit"),
            'unknown recipe "clip-lite-digit"; did you mean "clip-lite-digits"? See: clipbench list recipes',
        ),
        (
            lambda c: c.dataset("imagnet"),
            'unknown data set "imagnet"; did you mean "imagenet"? See: clipbench list tasks',
        ),
    ],
)
def test_an_unknown_id_names_the_nearest_and_where_to_look(
    ask: Callable[[Catalog], object], expected: str
) -> None:
    assert message(lambda: ask(Catalog())).startswith(expected)


# ------------------------------------------------------------------- tasks and suites


def test_a_variant_changes_what_it_names_and_nothing_else() -> None:
    catalog = Catalog()
    plain, variant = catalog.task("digits-zs"), catalog.task("digits-zs@simple")
    assert plain.dataset.card == variant.dataset.card
    assert plain.params.canonical() | {"templates": "simple"} == variant.params.canonical()


def test_every_listed_task_is_one() -> None:
    catalog = Catalog()
    ids = catalog.task_ids()
    assert len(set(ids)) == len(ids) > 20
    assert {catalog.task(i).id for i in ids} == set(ids)


def test_task_lists_and_suites_give_each_task_once_in_order(folder: Path) -> None:
    (folder / "suites.yaml").write_text(
        "suites:\n"
        "  inner: {title: I, tasks: [mine-zs, digits-zs]}\n"
        "  outer: {title: O, tasks: [digits-zs@simple, inner, digits-scenes-map]}\n"
    )
    catalog = Catalog([folder])
    assert [t.id for t in catalog.tasks(["outer", "mine-zs"])] == [
        "digits-zs@simple", "mine-zs", "digits-zs", "digits-scenes-zs"
    ]  # fmt: skip


def test_a_suite_that_names_itself_shows_the_way_round(folder: Path) -> None:
    (folder / "suites.yaml").write_text(
        "suites:\n  a: {title: A, tasks: [digits-zs, b]}\n  b: {title: B, tasks: [a]}\n"
    )
    assert message(lambda: Catalog([folder]).tasks(["a"])) == "suite a names itself: a → b → a"


def test_a_suite_of_unknown_tasks(folder: Path) -> None:
    (folder / "suites.yaml").write_text("suites:\n  a: {title: A, tasks: [mine-sz]}\n")
    assert 'unknown task "mine-sz"; did you mean "mine-zs"?' in message(
        lambda: Catalog([folder]).tasks(["a"])
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("suits: {}\n", ':1: unknown key "suits"; did you mean "suites"? (allowed: suites)'),
        ("suites:\n  a: {title: A}\n", ':2: missing key "suites.a.tasks"'),
        (
            "suites:\n  a: {title: A, tasks: digits-zs}\n",
            ':2: suites.a.tasks: expected a list, found "digits-zs"',
        ),
    ],
)
def test_a_suites_file_that_is_wrong(folder: Path, text: str, expected: str) -> None:
    (folder / "suites.yaml").write_text(text)
    assert f"{folder}/suites.yaml{expected}" in message(lambda: Catalog([folder]).tasks(["quickstart"]))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "short: {templates: short}",
            "short: {templats: short}",
            '13: unknown key "protocols.zs.variants.short.templats"; did you mean "templates"? '
            "(allowed: primary, templates, split, difficult, classes, any_label)",
        ),
        (
            "short: {templates: short}",
            "short: {templates: shrt}",
            '13: protocols.zs.variants.short: unknown template set "shrt"; did you mean "short"?',
        ),
        (
            "short: {templates: short}",
            "short: {split: trian}",
            '13: protocols.zs.variants.short: unknown split "trian"; allowed: test',
        ),
        (
            "short: {templates: short}",
            "short:",
            "13: protocols.zs.variants.short: expected a mapping of keys to values",
        ),
        (
            "      short: {templates: short}\n",
            "      [short]\n",
            "12: protocols.zs.variants: expected a mapping of keys to values",
        ),
        (
            "  zs:\n",
            "  zs:\n    primary: acc5\n",
            "11: protocols.zs: acc5 needs at least 5 classes",
        ),
        (
            "  zs:\n",
            "  zs:\n    primary: map_area\n",
            "11: protocols.zs: primary map_area is no metric of a single-label set "
            "(allowed: acc1, acc5, mean_per_class_recall, worst_group_acc1)",
        ),
        (
            "  zs:\n",
            "  zs:\n    difficult: ignore\n",
            "11: protocols.zs: difficult belongs to multi-label sets",
        ),
        ("  zs:\n", "  zz:\n", '11: unknown protocol "zz"'),
    ],
)
def test_protocol_settings_that_are_wrong(folder: Path, old: str, new: str, expected: str) -> None:
    assert TASK.count(old) == 1
    (folder / "mine.yaml").write_text(TASK.replace(old, new))
    text = message(lambda: Catalog([folder]).task("digits-zs") and Catalog([folder]).task("mine-zs"))
    assert f"{folder}/mine.yaml:{expected}" in text


def test_protocols_are_found_by_their_id() -> None:
    assert "zs" in protocol_ids()


# ----------------------------------------------------------------------------- models


def test_a_run_folder_is_a_model_and_so_is_its_card(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "card.yaml").write_text(MODEL)
    for name in (str(run), str(run / "card.yaml")):
        model = Catalog().model(name)
        assert (model.id, model.card.title, model.folder) == (name, "Small", run)


def test_a_run_folder_of_the_working_folder_needs_no_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "card.yaml").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    assert Catalog().model("run").card.title == "Small"


@pytest.mark.parametrize("name", ["runs/lost", "empty", "other.yaml"])
def test_a_folder_that_is_no_run(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    text = message(lambda: Catalog().model(name))
    assert f"{name} is no model: there is no {name}" in text
    assert "clipbench list models" in text


def test_an_open_clip_spec_becomes_a_card(tmp_path: Path) -> None:
    model = Catalog().model("open_clip:RN50@openai")
    assert model.id == "open_clip:RN50@openai"
    assert model.card.config == {"arch": "RN50", "quick_gelu": True}
    assert model.card.weights.open_clip == "openai"
    assert model.card.preprocess.size == 224
    path = tmp_path / "a.pt"
    path.touch()
    local = Catalog().model(f"open_clip:ViT-B-32@{path}")
    assert local.card.weights.file == str(path)
    assert local.card.config == {"arch": "ViT-B-32", "quick_gelu": False}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("open_clip:RN50", '"open_clip:RN50" names no weights\n  write open_clip:<arch>@<tag or path>'),
        ("open_clip:@openai", "names no weights"),
        ("open_clip:RN5@openai", 'unknown open_clip architecture "RN5"; did you mean "RN50"?'),
        ("open_clip:RN50@opena", 'unknown open_clip tag of RN50 "opena"; did you mean "openai"?'),
    ],
)
def test_an_open_clip_spec_that_is_wrong(spec: str, expected: str) -> None:
    assert expected in message(lambda: Catalog().model(spec))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("family: clip", "family: clop", '2: unknown model family "clop"; did you mean "clip"?'),
        ("family: clip", "family: weights", '2: unknown model family "weights"; allowed: '),
        (
            "arch: RN50",
            "arhc: RN50",
            '3: unknown key "config.arhc"; did you mean "arch"? '
            "(allowed: arch, quick_gelu, resize_positions, settings)",
        ),
        ("quick_gelu: true", "quick_gelu: maybe", "3: config.quick_gelu: input should be a valid boolean"),
    ],
)
def test_a_model_card_is_held_against_its_family(folder: Path, old: str, new: str, expected: str) -> None:
    (folder / "small.yaml").write_text(MODEL.replace(old, new))
    assert f"{folder}/small.yaml:{expected}" in message(lambda: Catalog([folder]).model("small"))


def test_every_family_has_a_typed_config() -> None:
    assert {"clip", "dual"} <= set(families())
    assert all(config_model(name).model_config["extra"] == "forbid" for name in families())


# ---------------------------------------------------------------------------- recipes


def test_a_recipe_may_be_a_file(folder: Path) -> None:
    entry = Catalog().recipe(str(folder / "quick.yaml"))
    assert (entry.id, entry.path) == ("quick", folder / "quick.yaml")


def test_a_recipes_towers_are_checked_with_it(folder: Path) -> None:
    path = folder / "quick.yaml"
    path.write_text(RECIPE.replace("width: 24", "widht: 24"))
    line = RECIPE[: RECIPE.index("width: 24")].count("\n") + 1
    text = message(lambda: Catalog([folder]).recipe("quick"))
    assert f'{path}:{line}: unknown key "model.config.image.widht"; did you mean "width"?' in text
