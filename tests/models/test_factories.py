"""Models that are code of the user's own, by name: `python:<module>:<factory>`, and entry points of packages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import commandline
import plugged
import pytest
import small
from commandline import Run, mended

import clipbench
from clipbench import models
from clipbench.catalog import Catalog
from clipbench.errors import CardError, ClipbenchError
from clipbench.models import families
from clipbench.records import store

one_thread, run = small.one_thread, commandline.run
MINE = """
import numpy as np

class Mine:
    logit_scale = 10
    identity = "mine 1"

    def __init__(self, turned=False):
        self.turned = turned

    def encode_images(self, images):
        return np.stack([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])

    def encode_texts(self, texts):
        rows = np.array([[sum(map(ord, text[start::3])) % 97 + 1 for start in range(3)] for text in texts])
        return rows[:, ::-1] if self.turned else rows

def make():
    return Mine()

def turned():
    return Mine(turned=True)

there = Mine()
ready, number = there, 3

def needs(checkpoint):
    return Mine()

def fails():
    raise FileNotFoundError("no weights at /data/w.pt")

def leaves():
    import sys
    sys.exit(3)

def nothing():
    pass

def wrong():
    class Wrong(Mine):
        def encode_texts(self, texts):
            return [[1.0]]
    return Wrong()
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules and Python's path are as they were."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    with plugged.forgotten(models, monkeypatch):
        yield
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("mine_code", "mine_package", "broken")
    ]:
        assert name not in before
        del sys.modules[name]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the module mine_code, data, and a task card."""
    (tmp_path / "mine_code.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    small.write_task(tmp_path / "cards")
    small.write_images(tmp_path / "data", 60)
    return tmp_path


def test_a_factory_in_the_current_folder_goes_the_whole_way(here: Path, run: Run) -> None:
    """Shown, evaluated, checked, reported, drawn, compared and gated."""
    names = ["python:mine_code:make", "python:mine_code:turned"]
    with (here / "mine_code.py").open("a") as file:
        file.write('print("imported")\n')
    shown = run("show", names[0], "--json")
    assert json.loads(shown.out)["config"] == {"object": "mine_code.Mine", "identity": "mine 1"}
    assert "imported" in shown.err  # no result of ours
    both = [Path(name) for name in names]
    compared = plugged.whole_way(
        run, here, both, "animals-zs", f"animals={here / 'data'}", "--cards", here / "cards"
    )
    assert "acc1" in [one["metric"] for one in compared]
    assert {one.record.cards.model["family"] for one in store.read_all(here / "results")} == {"python"}
    (record,) = clipbench.evaluate(
        names[0], "animals-zs", cards=[here / "cards"], data={"animals": here / "data"}
    )
    assert record.model == names[0]


@pytest.mark.parametrize("what", ["Mine", "there", "ready", "make"])
def test_a_class_an_object_and_a_function_give_a_model(here: Path, what: str) -> None:
    entry = Catalog().model(f"python:mine_code:{what}")
    assert (entry.id, entry.card.title, entry.card.family) == (f"python:mine_code:{what}", "Mine", "python")
    assert families.load(entry) is entry.adapter


def test_a_module_in_a_package_and_a_name_in_a_class(here: Path) -> None:
    (here / "mine_package" / "deep").mkdir(parents=True)
    (here / "mine_package" / "deep" / "m.py").write_text(
        MINE + "\nclass Box:\n    make = staticmethod(make)\n"
    )
    assert Catalog().model("python:mine_package.deep.m:Box.make").card.title == "Mine"


def test_each_missing_part_is_named(here: Path, run: Run) -> None:
    (here / "broken.py").write_text("import not_there_at_all\n")
    (here / "broken_syntax.py").write_text("x = 1\ndef (:\n")
    for name, *words in (
        ("python:mine_code", "a module and a factory are wanted", "python:my_package.models:make"),
        ("python:", "a module and a factory are wanted"),
        ("python:mine_code:", "a module and a factory are wanted"),
        ("python:.mine_code:make", "a module and a factory are wanted"),
        ("python:mine_code:make:x", "a module and a factory are wanted"),
        (
            "python:./mine_code.py:make",
            "is a path, where the name of a module is wanted",
            "python:mine_code:make",
        ),
        ("python:mine_cod:make", "there is no module mine_cod on Python's path, or in", "PYTHONPATH"),
        ("python:mine_code.deep:make", "there is no module mine_code.deep"),
        ("python:mine_code:mak", 'unknown name in the module mine_code: "mak"; did you mean "make"?'),
        ("python:mine_code:number", "mine_code:number is a int, no factory"),
        ("python:mine_code:needs", "mine_code:needs cannot be called without arguments", "'checkpoint'"),
        ("python:mine_code:nothing", "a NoneType is no model: it has no encode_images"),
        (
            "python:mine_code:fails",
            "mine_code:fails() raises FileNotFoundError: no weights at /data/w.pt",
            "in fails",
        ),
        ("python:mine_code:leaves", "mine_code:leaves() raises SystemExit: 3", "in leaves"),
        (
            "python:broken:make",
            "importing broken raises ModuleNotFoundError",
            "not_there_at_all",
            "broken.py, line 1",
        ),
        ("python:broken_syntax:make", "raises SyntaxError", "broken_syntax.py, line 2"),
    ):
        done = run("show", name)
        mended(done, name, *words)
    done = run("eval", "--model", "python:mine_code:wrong", "--task", "digits-zs", "--quiet")
    assert (done.code, done.out) == (2, "")
    assert (
        "error: python:mine_code:wrong: encode_images gives rows of 3 numbers and encode_texts of 1"
        in done.err
    )


def test_the_place_of_an_error_is_the_users_own_line(here: Path) -> None:
    with pytest.raises(ClipbenchError) as caught:
        Catalog().model("python:mine_code:fails")
    line = MINE.splitlines().index('    raise FileNotFoundError("no weights at /data/w.pt")') + 1
    assert f"{here / 'mine_code.py'}, line {line}, in fails" in str(caught.value)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_no_card_has_code_run(here: Path) -> None:
    card = here / "card.yaml"
    card.write_text(
        json.dumps(
            Catalog().model("python:mine_code:make").card.canonical()
            | {"config": {"object": "mine_code:leaves"}}
        )
    )
    with pytest.raises(CardError):
        Catalog().model(str(card))
    card.write_text(
        "title: T\nfamily: python\nconfig: {object: mine_code.leaves}\n"
        "preprocess: {size: 8, mean: [0, 0, 0], std: [1, 1, 1]}\nweights: {file: toy.safetensors}\n"
    )
    with pytest.raises(CardError, match="the family python has no cards, since a card runs no code"):
        clipbench.load_model(card)
    with pytest.raises(CardError, match="the family python has no cards, since a card runs no code"):
        clipbench.evaluate(card, "digits-zs")


def test_it_is_no_model_to_load_or_to_fetch(here: Path, run: Run) -> None:
    with pytest.raises(CardError, match="is code of your own: call it yourself"):
        clipbench.load_model("python:mine_code:make")
    mended(run("weights", "fetch", "python:mine_code:turned"), "is code of your own")


# ------------------------------------------------------------------- installed packages


def test_a_packages_model_goes_the_whole_way(here: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    site = plugged.installed(
        here / "site", "models", MINE, "their-own = their_parts:make\ntheir-turned = their_parts:turned"
    )
    monkeypatch.syspath_prepend(str(site))
    listed = {one["id"]: one for one in json.loads(run("list", "models", "--json").out)}
    assert listed["their-own"] == {
        "id": "their-own",
        "family": "python",
        "pairs (M)": None,
        "title": "their_parts:make, of the package theirs 1.0",
    }
    assert "their_parts" not in sys.modules  # a list imports nothing
    assert "their-turned" in run("list", "models").out
    assert json.loads(run("show", "their-own", "--json").out)["title"] == "Mine"
    both = [Path("their-own"), Path("their-turned")]
    plugged.whole_way(run, here, both, "animals-zs", f"animals={here / 'data'}", "--cards", here / "cards")
    mended(run("show", "their-ow"), 'did you mean "their-own"?')
    with pytest.raises(CardError, match='did you mean "their-own"'):
        Catalog().model("their-ow")
    assert "their-own" not in families.families()


def test_a_package_that_brings_no_model_is_named_by_check(
    here: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    text = MINE + "\nfrom clipbench.models.dual import FAMILY\n"
    points = "gone = their_parts:gone\nfamily = their_parts:FAMILY\nmine = their_parts:make"
    monkeypatch.syspath_prepend(str(plugged.installed(here / "site", "models", text, points)))
    small.write_run(here / "run")
    (here / "cards" / "mine.yaml").write_text((here / "run" / "card.yaml").read_text())
    done = run("check", "--cards", here / "cards", "--results", here / "none")
    assert done.code == 2
    assert 'gone: unknown name in the module their_parts: "gone"' in done.said
    assert "family: their_parts:FAMILY is a family of models, not a model" in done.said
    assert 'two models are named "mine": that of the package theirs 1.0, and that of' in done.said
    with pytest.raises(CardError, match='two models are named "mine"'):
        Catalog([here / "cards"]).model("mine")


def test_two_packages_that_bring_one_name_are_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(plugged.installed(here / "site", "models", MINE, "a = their_parts:make")))
    other = plugged.installed(here / "other", "models", MINE, "a = their_parts:turned")
    (other / "theirs-1.0.dist-info").rename(other / "others-1.0.dist-info")
    metadata = other / "others-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("theirs", "others"))
    monkeypatch.syspath_prepend(str(other))
    with pytest.raises(ClipbenchError, match='two models are named "a": the package ') as caught:
        Catalog().model("a")
    assert "theirs 1.0" in str(caught.value)
    assert "others 1.0" in str(caught.value)
