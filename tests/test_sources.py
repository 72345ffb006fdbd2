"""Where data can be had: said by `list` and `show`, and before anything is fetched; licences; `data check`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archived
import pytest
import small

from clipbench import cli
from clipbench.cards import TaskCard, fingerprint
from clipbench.catalog import Catalog
from clipbench.data import hub
from clipbench.data.hub import DataPaths, open_split
from clipbench.errors import CardError, DataError
from clipbench.report import listing

one_thread = small.one_thread
Run = Callable[..., tuple[int, str, str]]
PROBES_FROM_ARCHIVES = {"flowers102-lp", "caltech101-lp", "aircraft-lp", "dtd-lp"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`clipbench <arguments>` in this process: how it ended, and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipbench", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return (end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any) -> None:
        raise AssertionError("something is fetched")

    monkeypatch.setattr(hub, "_hub", fetched)


# ------------------------------------------------------------------- list and show


def test_the_suite_says_where_each_of_its_tasks_data_comes_from(run: Run) -> None:
    code, out, _ = run("list", "tasks", "--suite", "declip-11")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = {row["id"]: row for row in listing.tasks(Catalog(), "declip-11")}
    assert {name for name, row in rows.items() if row["data"].startswith("--data: ")} == PROBES_FROM_ARCHIVES
    assert rows["dtd-zs"]["data"] == "clip-benchmark/wds_vtab-dtd"
    assert rows["dtd-lp"]["data"] == "--data: dtd-r1.0.1.tar.gz"
    assert "dtd-r1.0.1.tar.gz" in out
    assert rows["dtd-zs"]["revision"] == "unknown"
    assert rows["imagenet-zs"]["revision"].startswith("b24c7a5a")


def test_voc_needs_its_devkit_where_difficult_objects_count(run: Run) -> None:
    rows = {row["id"]: row["data"] for row in listing.tasks(Catalog()) if row["id"].startswith("voc07-")}
    own = {name for name, data in rows.items() if data.startswith("--data: VOCtrainval")}
    assert {"voc07-zs", "voc07-lp", "voc07-svm", "voc07-lp@difficult-positive"} <= own
    assert rows["voc07-zs@difficult-positive"] == "clip-benchmark/wds_voc2007_multilabel"


def test_an_unknown_suite_and_a_suite_of_models_are_errors(run: Run) -> None:
    code, _, err = run("list", "tasks", "--suite", "declip-12")
    assert (code, "unknown suite" in err, "declip-11" in err) == (2, True, True)
    code, _, err = run("list", "models", "--suite", "declip-11")
    assert (code, "--suite goes with list tasks" in err) == (2, True)


def test_licence_and_terms_are_shown_and_unknown_ones_said_to_be(run: Run) -> None:
    code, out, _ = run("show", "imagenet")
    assert (code, "licence: unknown" in out, "click-through" in out) == (0, True, True)
    _, out, _ = run("show", "dtd-lp", "--json")
    found = json.loads(out)
    assert found["data"] == "--data: dtd-r1.0.1.tar.gz"
    assert found["dataset"]["licence"] == "unknown"
    assert found["dataset"]["source"]["archive"]["files"] == ["dtd-r1.0.1.tar.gz"]
    _, out, _ = run("list", "tasks", "--json")
    rows = {row["id"]: row for row in json.loads(out)}
    assert rows["imagenet-zs"]["terms"] == "gated: access is given for a click-through licence"


def test_where_data_can_be_had_is_no_part_of_the_fingerprint() -> None:
    fields = {
        "title": "T",
        "source": {"hub": "a/b"},
        "splits": {"train": {"name": "train"}, "test": {"name": "test"}},
        "classes": ["a", "b"],
        "templates": {"default": ["{c}"]},
        "prompts_source": "ours",
        "protocols": {"zs": {}},
    }
    more = {"lacks": {"train": "half of it"}, "archive": {"files": ["a.zip"], "folder": "a"}}
    full = fields | {"licence": "CC0", "terms": "none", "source": {"hub": "a/b"} | more}
    plain, said = TaskCard.model_validate(fields), TaskCard.model_validate(full)
    assert said.source.lacks == {"train": "half of it"}
    assert fingerprint(plain.canonical()) == fingerprint(said.canonical())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hub": "a/b", "lacks": {"valid": "x"}}, 'lacks: "valid" is no split of this card (it has test)'),
        ({"local": True, "lacks": {"test": "x"}}, "lacks goes with hub"),
    ],
)
def test_a_card_that_lacks_what_it_cannot_have_is_wrong(
    source: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small.write_task(tmp_path, source=source)
    with pytest.raises(CardError) as error:
        Catalog([tmp_path]).dataset("animals")
    assert message in str(error.value)


# ------------------------------------------------------------- before it is fetched


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("task", "says", "unpack"),
    [
        ("dtd-lp", "wds_vtab-dtd has no train split of this card: VTAB's", "unpack dtd-r1.0.1.tar.gz into"),
        (
            "voc07-zs",
            "has no marks of difficult objects of this card",
            "unpack VOCtrainval_06-Nov-2007.tar, ",
        ),
    ],
)
def test_what_the_hub_copy_lacks_is_said_before_anything_is_fetched(
    task: str, says: str, unpack: str, run: Run, tmp_path: Path
) -> None:
    model = small.write_run(tmp_path / "model")
    code, _, err = run("eval", "--model", model, "--task", task, "--results", tmp_path / "r")
    said = " ".join(err.split())
    assert code == 2
    assert says in said
    assert unpack in said
    assert f"--data {task.partition('-')[0]}=<folder>" in said


def test_a_folder_of_data_sets_is_searched_for_what_archives_unpack_to(tmp_path: Path) -> None:
    dataset = Catalog().dataset("food101")
    archived.food(tmp_path, [name.replace(" ", "_") for name in dataset.card.classes], 1, 1)
    with pytest.raises(DataError, match=r"food-101 has 101 samples, the card says 25,250"):
        open_split(dataset, "test", DataPaths({}, (tmp_path,)))


def test_no_shipped_card_sends_a_probe_away() -> None:
    for file in (Path(__file__).parents[1] / "tasks").glob("*.yaml"):
        assert "not for a probe" not in " ".join(file.read_text(encoding="utf-8").split())
