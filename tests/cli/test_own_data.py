"""Data without a card, from the command line: measured, checked, reported; and the card that `init task` writes."""

from __future__ import annotations

from pathlib import Path

import commandline
import pytest
import small
from commandline import mended

from clipbench.records import store

run, place = commandline.run, commandline.place


def names(place: commandline.Place) -> Path:
    path = place.root / "names.txt"
    path.write_text("".join(f"{name}\ta {name}\n" for name in small.CLASSES))
    return path


def test_a_folder_is_measured_without_a_card(place: commandline.Place, run: commandline.Run) -> None:
    own = ["--data", "my=data", "--results", "results"]
    more = ["--classes", names(place), "--templates", "one {c}", "--templates", "my {c}"]
    done = run("eval", "--model", "run", "--task", "my-zs", *own, *more, "--precision", "fp32")
    assert done.code == 0, done.err
    assert "assumed" in done.err
    (stored,) = store.read_all(Path("results"))
    card = stored.record.cards.task
    assert card["classes"] == [f"a {name}" for name in sorted(small.CLASSES)]
    assert card["label_names"] == sorted(small.CLASSES)
    assert card["templates"] == {"default": ["one {c}", "my {c}"]}
    for command in (("check", "--results", "results"), ("report", "--results", "results")):
        assert run(*command).code == 0
    again = run("eval", "--model", "run", "--task", "my-zs", *own, "--precision", "fp32", "--quiet")
    assert again.code == 0
    (stored,) = store.read_all(Path("results"))
    assert stored.record.cards.task["classes"] == sorted(small.CLASSES)


def test_the_written_card_runs_as_it_is(place: commandline.Place, run: commandline.Run) -> None:
    done = run("init", "task", "my", "--data", "data", "--out", "mine")
    assert done.code == 0, done.err
    text = Path("mine/my.yaml").read_text()
    assert text.startswith("# Assumed from the data in data")
    typed = done.err.splitlines()[-1].replace("MODEL", "run").split()
    assert typed[:2] == ["clipbench", "eval"]
    assert run(*typed[1:], "--results", "results").code == 0
    mended(
        run("init", "task", "my", "--data", "data", "--out", "mine"), "is there already, and is not replaced"
    )
    assert Path("mine/my.yaml").read_text() == text
    assert run("check", "--cards", "mine").code == 0


def test_wrong_uses_say_what_to_type(place: commandline.Place, run: commandline.Run) -> None:
    model = ["eval", "--model", "run"]
    mended(
        run(*model, "--task", "my-zs", "--data", "my=data", "--templates", "x"), "has no {c}", "--templates"
    )
    mended(run(*model, "--task", "my-zs", "--data", "my=gone"), "no data folder gone")
    mended(
        run(*model, "--task", "digits-zs", "--classes", "names.txt"),
        "--classes is for one data set",
        "no such",
    )
    mended(
        run(*model, "--task", "my-ground", "--data", "my=data"),
        "without a card there are my-zs, my-lp, my-ret",
    )
    mended(run(*model, "--task", "my-lp", "--data", "my=data"), "there is no train folder in data")
    mended(run(*model, "--task", "my-zs", "--data", "mine=data"), "unknown")
    mended(run("init", "task", "digits", "--data", "data"), "there is a card digits already")
    Path("empty").mkdir()
    mended(run(*model, "--task", "my-zs", "--data", "my=empty"), "no images with labels")
    assert not Path("results").exists()


@pytest.mark.parametrize("protocol", ["zs", "lp"])
def test_folders_of_splits_have_a_probe(
    place: commandline.Place, run: commandline.Run, protocol: str
) -> None:
    Path("split").mkdir()
    for split in ("train", "test"):
        small.write_images(Path(f"{split}-copy"), 40)
        (Path(f"{split}-copy") / "test").rename(Path("split") / split)
    data = ["--data", "my=split", "--results", "results", "--precision", "fp32"]
    done = run("eval", "--model", "run", "--task", f"my-{protocol}", *data)
    assert done.code == 0, done.err
