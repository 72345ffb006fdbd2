"""The sets that DataComp hosts with metadata, each from a small copy in the hub's form, from the card to the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commandline
import hosted_groups
import numpy as np
import pytest
import small
import yaml
from commandline import Run
from sklearn.metrics import f1_score

from clipbench.catalog import Catalog
from clipbench.records import alignment, comparison, store

run = commandline.run
CARDS = sorted(hosted_groups.VECTORS)
#: task → what it is on DataComp's side: the primary metric, the columns of groups and what is skipped
PRIMARY = {
    "fmow-groups": ("worst_group_acc1", ["region"], ["Other"]),
    "fmow-groups@datacomp": ("worst_group_acc1", ["region"], []),
    "fmow-groups@year": ("worst_group_acc1", ["year"], []),
    "iwildcam-groups": ("f1_macro", [], []),
    "camelyon17-groups": ("worst_group_acc1", ["slide"], []),
    "dollar-street-groups": ("worst_group_acc5", ["income"], []),
    "geode-groups": ("worst_group_acc1", ["region"], []),
}
#: card → images, classes, and the metric of its zero-shot task
FACTS = {
    "fmow": (22_108, 62, 14),
    "iwildcam": (42_791, 182, 2),
    "camelyon17": (85_054, 2, 2),
    "dollar-street": (3_503, 58, 80),
    "geode": (12_488, 40, 80),
}


@pytest.mark.parametrize("name", FACTS)
def test_cards_say_what_the_sets_are(name: str) -> None:
    card = Catalog().dataset(name).card
    rows, classes, templates = FACTS[name]
    assert (
        card.source.hub
        == f"djghosh/wds_{'wilds-' if name in ('fmow', 'iwildcam', 'camelyon17') else ''}"
        + (f"{name.replace('-', '_')}_test")
    )
    assert (card.splits["test"].rows, len(card.classes), len(card.templates["default"])) == (
        rows,
        classes,
        templates,
    )
    assert Catalog().task(f"{name}-zs").params.primary == "acc1"


@pytest.mark.parametrize(("name", "rows"), [("fairface", 10_954), ("utkface", 23_703)])
def test_cards_of_faces(name: str, rows: int) -> None:
    card = Catalog().dataset(name).card
    assert (card.kind, card.splits["test"].rows, card.classes) == ("attributes", rows, ())
    sizes = {key: len(objective.classes) for key, objective in card.objectives.items()}
    assert sizes == {"race": 7, "gender": 2, "age": 9, "crime": 21, "nonhuman": 21}
    toxic = card.objectives["crime"].classes
    assert toxic == card.objectives["nonhuman"].classes
    assert [toxic.index(one) for one in card.objectives["nonhuman"].counts] == [14, 15, 16, 17]
    assert [toxic.index(one) for one in card.objectives["crime"].counts] == [18, 19, 20]
    assert card.objectives["race"].meanings == tuple(
        "white" if place == 1 else "non-white" for place in range(7)
    )
    variants = ("", "@gender", "@age", "@gender-race", "@crime", "@nonhuman")
    tasks = [Catalog().task(f"{name}-groups{variant}") for variant in variants]
    assert [task.params.primary for task in tasks] == ["worst_group_acc1"] * 4 + ["highest_group_share"] * 2


def _copies(root: Path, cards: Path) -> list[str | Path]:
    """Copies of all sets, the shipped cards with as few samples, and the arguments that name both."""
    arguments: list[str | Path] = ["--cards", cards]
    cards.mkdir()
    for name in CARDS:
        entry = Catalog().dataset(name)
        card = entry.card
        shipped = yaml.safe_load(entry.path.read_text())
        shipped["splits"]["test"]["rows"] = 90
        (cards / f"{name}.yaml").write_text(json.dumps(shipped))
        lines = [f"{one}:{c}" for one, objective in card.objectives.items() for c in objective.classes]
        classes = list(card.classes)
        if name == "geode":  # its order was not seen
            classes.reverse()
        hosted_groups.copy_of(root / name, name, classes or lines, 90)
        arguments += ["--data", f"{name}={root / name}"]
    return arguments


def test_every_task_from_the_command_line(tmp_path: Path, run: Run) -> None:
    data = _copies(tmp_path / "data", tmp_path / "cards")
    cards = data[:2]
    tasks = [f"{name}-zs" for name in FACTS] + list(PRIMARY)
    tasks += [
        f"{name}-groups{v}"
        for name in ("fairface", "utkface")
        for v in ("", "@gender-race", "@crime", "@age")
    ]
    chosen = [part for task in tasks for part in ("--task", task)]
    models = [small.write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    named = [part for model in models for part in ("--model", model)]
    common = (*data, "--precision", "fp32", "--results", tmp_path / "results")
    done = run("eval", *named, *chosen, *common)
    assert done.code == 0, done
    assert "never the worst, since the task skips them: Other" in done.said
    assert "14 of the groups known have no sample, and do not count: 2002, 2003" in done.said
    assert "share of 7 groups by race, the worst first" in done.said
    found = {(one.record.model, one.record.task): one for one in store.read_all(tmp_path / "results")}
    assert len(found) == 2 * len(tasks)
    for (_, task), stored in found.items():
        record, table = stored.record, alignment._table(stored)
        assert record.primary == (PRIMARY[task][0] if task in PRIMARY else record.primary)
        value = record.scores[record.primary].value
        assert alignment.recomputed(stored) == pytest.approx(value)
        assert "other-y" not in {note.kind for note in record.notes}
        if task in PRIMARY:
            assert value == pytest.approx(_reference(task, table, tmp_path / "data"))
    first, second = sorted({model for model, _ in found})
    judged = comparison.compare(first, second, tmp_path / "results", None, 0.05, 0)
    assert {one.task for one in judged if not one.is_mean} == set(tasks)
    for one in judged:
        if not one.is_mean:
            assert one.first is not None
            assert one.second is not None
            assert one.difference == pytest.approx(one.second - one.first)
    done = run("compare", first, second, "--results", tmp_path / "results")
    assert done.code == 0, done
    done = run("report", *cards, "--results", tmp_path / "results", "--format", "json")
    assert done.code == 0, done
    assert {"worst_group_acc5", "f1_macro", "highest_group_share"} <= {
        one["metric"] for one in json.loads(done.out)
    }
    done = run("gate", "--baseline", tmp_path / "results", "--candidate", tmp_path / "results", *cards)
    assert done.code == 0, done
    assert "highest_group_share" in done.said
    assert run("check", *cards, "--results", tmp_path / "results").code == 0
    assert run("site", *cards, "--results", tmp_path / "results", "--out", tmp_path / "site").code == 0


def _reference(task: str, table: dict[str, Any], data: Path) -> float:
    """The primary metric from ranks and labels, and the metadata of the copy itself."""
    metric, columns, skip = PRIMARY[task]
    name = task.partition("-groups")[0]
    card = Catalog().dataset(name).card
    ids = [int(one.rpartition("/s")[2]) for one in table["id"]]
    labels = [(row * 7) % len(card.classes) for row in ids]
    if metric == "f1_macro":
        target = np.array(table["target"])
        assert target.tolist() == labels
        answers = _answers(data.parent / "results", task, table)
        return float(f1_score(target, answers, average="macro", labels=np.unique(target)))
    vectors = [hosted_groups.VECTORS[name](label, row) for row, label in zip(ids, labels, strict=True)]
    ((column, spec),) = [(c, card.columns.groups[c]) for c in columns]
    at = card.columns.vector.index(spec.column or column)
    names = spec.by_code
    of = [str(int(vector[at])) if names is None else names[str(vector[at])] for vector in vectors]
    hits = np.array(table["rank"]) < (5 if metric.endswith("5") else 1)
    return min(float(hits[np.array(of) == one].mean()) for one in set(of) - set(skip))


def _answers(results: Path, task: str, table: dict[str, Any]) -> Any:
    import pyarrow.parquet as pq

    for stored in store.read_all(results):
        if stored.record.task == task and alignment._table(stored)["rank"] == table["rank"]:
            return np.array(pq.read_table(store.samples_path(stored.path))["prediction"].to_pylist())
    raise AssertionError(task)


def test_a_list_of_classes_in_another_order_is_matched_by_name(tmp_path: Path) -> None:
    from clipbench.data.open import open_split
    from clipbench.data.paths import DataPaths

    entry = Catalog().dataset("geode")
    classes = list(entry.card.classes)
    hosted_groups.copy_of(tmp_path, "geode", classes[::-1], 40)
    split = open_split(entry, "test", DataPaths({"geode": tmp_path}, ()))
    assert [split.classes[label] for label in split.labels] == [
        classes[::-1][(row * 7) % 40] for row in range(40)
    ]


def test_another_number_of_values_is_refused_by_name(tmp_path: Path, run: Run) -> None:
    classes = Catalog().dataset("fmow").card.classes
    hosted_groups.write(tmp_path / "data", [0, 1], [[0, 14, 0, 1], [1, 15, 1, 1]], classes)
    model = small.write_run(tmp_path / "run")
    done = run("eval", "--model", model, "--task", "fmow-groups", "--data", f"fmow={tmp_path / 'data'}")
    commandline.mended(done, "holds 4 values, columns.values on the task card names 3 (region, year, y)")
