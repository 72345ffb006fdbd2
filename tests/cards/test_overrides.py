"""`--set` and `--quick`: typed, checked, and in the recipe that a run keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from captioned import rows_of, write_table

from clipbench.cards.overrides import changed, parse_assignments
from clipbench.cards.pairs import MocoV2
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.catalog import Catalog
from clipbench.cli import app
from clipbench.errors import CardError
from clipbench.records.check import check

TINY: dict[str, Any] = {
    "title": "t", "command": "c", "cost": "none",
    "data": [{"kind": "csv", "name": "mine", "file": "pairs.csv", "images": "images"}],
    "model": {
        "config": {
            "image": {"kind": "convnet", "width": 4, "stages": 1},
            "text": {"kind": "bytes", "width": 8, "layers": 1, "heads": 2, "context_length": 20},
            "embed_dim": 8, "projection": "linear",
        },
        "preprocess": {"size": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
    },
    "objective": {"kind": "clip"}, "optim": {"name": "adamw", "lr": 0.01},
    "schedule": {"steps": 500, "batch_size": 16},
    "quick": {"schedule.steps": 2, "schedule.batch_size": 4},
}  # fmt: skip


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """A folder of cards with the recipe `tiny`."""
    return write_recipe(tmp_path / "cards", TINY)


def write_recipe(folder: Path, value: dict[str, Any], name: str = "tiny") -> Path:
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    return folder


def test_values_are_yaml_and_typed() -> None:
    given = ["a=1", "b=1e-3", "c=[x, 2]", "d={kind: clip}", "e=null", "f=a=b", "g=", "h=-2.E+5"]
    assert parse_assignments(given) == {
        "a": 1, "b": 0.001, "c": ["x", 2], "d": {"kind": "clip"}, "e": None, "f": "a=b", "g": None, "h": -2e5
    }  # fmt: skip
    for wrong in ("optim.lr", "=3", "a=[1"):
        with pytest.raises(CardError, match="--set"):
            parse_assignments([wrong])


def test_changes_leave_the_original_alone() -> None:
    value = {"a": {"b": [1, {"c": 2}]}, "n": None}
    assert changed(value, {"a.b[1].c": 3, "a.b.0": 9, "n.x.y": 1}, "t") == {
        "a": {"b": [9, {"c": 3}]}, "n": {"x": {"y": 1}}
    }  # fmt: skip
    assert value == {"a": {"b": [1, {"c": 2}]}, "n": None}
    with pytest.raises(CardError, match=r"t: a\.b\.2: a\.b has the entries 0 to 1, not 2"):
        changed(value, {"a.b.2": 1}, "t")
    with pytest.raises(CardError, match=r"a\.b\.0 is 1, which has no parts"):
        changed(value, {"a.b.0.c": 1}, "t")


def test_any_field_is_set(cards: Path) -> None:
    entry = Catalog([cards]).recipe(
        "tiny",
        assignments=[
            "optim.lr=1e-4", "data[0].augment={kind: moco-v2}", "data.0.augment.blur=0",
            "objective={kind: siglip}", "model.config.image.width=6", "seed=7",
        ],
    )  # fmt: skip
    assert entry.card.optim.lr == 1e-4
    assert entry.card.data[0].augment == MocoV2(kind="moco-v2", blur=0)
    assert entry.card.objective.kind == "siglip"
    assert entry.card.model.config["image"]["width"] == 6
    assert entry.card.seed == 7
    assert entry.id == "tiny"


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("optim.lrr=1", 'unknown key "optim.lrr"; did you mean "lr"?'),
        ("optm.lr=1", 'unknown key "optm"; did you mean "optim"?'),
        ("optim.lr=fast", 'optim.lr: input should be a valid number, found "fast"'),
        ("optim.lr=-1", "optim.lr: input should be greater than 0"),
        ("schedule.steps=2.5", "schedule.steps: input should be a valid integer"),
        ("schedule.batch_size=1", "schedule.batch_size: input should be greater than 1"),
        ("data.0.kind=cvs", 'data[0].kind: unknown "cvs"; allowed: task-card, coco-captions'),
        ("model.config.image.widht=4", 'unknown key "model.config.image.widht"; did you mean "width"?'),
        ("data.1.name=x", "data has the entries 0 to 0, not 1"),
        ("title.x=1", "title is 't', which has no parts"),
    ],
)
def test_a_field_that_cannot_be_set(cards: Path, assignment: str, wanted: str) -> None:
    with pytest.raises(CardError) as caught:
        Catalog([cards]).recipe("tiny", assignments=[assignment])
    assert wanted in str(caught.value)


def test_errors_say_where_a_wrong_value_comes_from(cards: Path) -> None:
    with pytest.raises(CardError, match=r"the recipe was changed by --quick and --set optim\.lr=0"):
        Catalog([cards]).recipe("tiny", quick=True, assignments=["optim.lr=0"])


def test_quick_form(cards: Path) -> None:
    catalog = Catalog([cards])
    assert catalog.recipe("tiny").card.schedule.steps == 500
    quick = catalog.recipe("tiny", quick=True, assignments=["schedule.steps=3"]).card
    assert (quick.schedule.steps, quick.schedule.batch_size) == (3, 4)
    write_recipe(cards, {k: v for k, v in TINY.items() if k != "quick"}, "slow")
    with pytest.raises(CardError, match="recipe slow has no quick form"):
        Catalog([cards]).recipe("slow", quick=True)
    write_recipe(cards, TINY | {"quick": {"schedule.stps": 1}}, "typo")
    problems = check(Catalog([cards]), cards / "none").problems
    assert len(problems) == 1
    assert 'unknown key "schedule.stps"; did you mean "steps"?' in problems[0]


# ------------------------------------------------------------------ command line


def pretrain(cards: Path, out: Path, *arguments: str) -> Any:
    """The outcome of `clipbench pretrain --recipe tiny`."""
    from typer.testing import CliRunner

    given = [
        "pretrain",
        "--recipe",
        "tiny",
        "--out",
        str(out),
        "--cards",
        str(cards),
        "--device",
        "cpu",
        "--quiet",
    ]
    return CliRunner().invoke(app, [*given, *arguments])


def test_the_run_keeps_the_recipe_as_it_was_run(cards: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", rows_of([f"text {i}" for i in range(9)]))
    out = tmp_path / "run"
    found = pretrain(cards, out, "--quick", "--set", "optim.lr=1e-4", "--data", f"mine={data}")
    assert found.exit_code == 0, found
    kept = parse(Recipe, Document(out / "recipe.yaml"))
    assert kept == Catalog([cards]).recipe("tiny", quick=True, assignments=["optim.lr=1e-4"]).card
    assert kept.schedule.steps == 2
    assert "mine" in (out / "card.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "changes", "wanted"),
    [
        (["--set", "optm.lr=1"], {}, 'did you mean "optim"'),
        ([], {"optm": 1}, 'unknown key "optm"; did you mean "optim"'),
        (["--set", "schedule.batch_size=1"], {}, "schedule.batch_size: input should be greater than 1"),
        (["--set", "schedule.batch_size=10"], {}, "9 images, fewer than one batch of 10"),
        (["--data", "mien={data}"], {}, 'unknown data set "mien"; did you mean "mine"?'),
        (["--data", "mine={data}/gone"], {}, "no data folder"),
        (["--set", "data.0.file=x.csv"], {}, "no files x.csv"),
        (["--set", "data.0.images=imgs"], {}, "no folder of images"),
        (["--set", "data.0.file=empty.csv"], {}, "empty.csv is empty"),
        (["--set", "data.0.file=other.csv"], {}, "no image gone.png"),
        ([], {"objective": {"kind": "declip", "queue": 15}}, "must hold the 16 texts that enter it"),
        (
            ["--quick", "--set", "data.0.augment=null"],
            {"objective": {"kind": "declip", "queue": 16}},
            "two views",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_training(
    cards: Path, tmp_path: Path, arguments: list[str], changes: dict[str, Any], wanted: str
) -> None:
    data = write_table(tmp_path / "data", rows_of([f"text {i}" for i in range(9)]))
    (data / "empty.csv").write_text("")
    (data / "other.csv").write_text("image,caption\ngone.png,x\n")
    value = TINY | {"data": [TINY["data"][0] | {"augment": {"kind": "moco-v2"}}]} | changes
    write_recipe(cards, value)
    out = tmp_path / "run"
    given = [text.replace("{data}", str(data)) for text in arguments]
    found = pretrain(cards, out, "--data", f"mine={data}", *given)
    assert found.exception is not None
    assert wanted in str(found.exception)
    assert not (out / "metrics.jsonl").exists()
    shutil.rmtree(tmp_path / "data")
