"""Results of mteb beside ours: what corresponds, under our names and marked; what does not, counted and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commandline
import pytest
from recorded import SAMPLES, make_record

from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.records import store
from clipbench.report import export, mteb_results

run = commandline.run
RECALLS = {"hit_rate_at_1": 0.5, "hit_rate_at_5": 0.8, "hit_rate_at_10": 0.9}


def write(folder: Path, task: str, scores: dict[str, Any], *, revision: str = "abc", **more: Any) -> Path:
    """A file as mteb 2 writes it, with the bare NaN that it writes too."""
    path = folder / "results" / "org__small" / revision / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    one = {"main_score": 0.1, "nauc_recall_at_1000_max": float("nan"), "languages": ["eng-Latn"]}
    whole = {"test": [one | {"hf_subset": "default"} | scores]} | more
    path.write_text(json.dumps({"task_name": task, "mteb_version": "2.26.24", "scores": whole}))
    (path.parent / "model_meta.json").write_text(json.dumps({"name": "org/small", "revision": revision}))
    return path


def beside(*paths: Path) -> tuple[dict[tuple[str, str, str], float | None], list[str]]:
    rows, notes = export.beside(paths, Catalog())
    assert {row.kept_off for row in rows} <= {"foreign"}
    return {(row.model, row.task, str(row.metric)): row.value for row in rows}, notes


def test_what_measures_the_same_stands_under_our_names(tmp_path: Path) -> None:
    write(tmp_path, "CIFAR10ZeroShot", {"accuracy": 0.71, "recall": 0.7, "f1": 0.69, "ap": None})
    rows, notes = export.beside([tmp_path], Catalog())
    assert [(row.model, row.task, row.metric, row.value, row.primary) for row in rows] == [
        ("org/small (mteb)", "cifar10-zs@simple", "acc1", 0.71, True),
        ("org/small (mteb)", "cifar10-zs@simple", "mean_per_class_recall", 0.7, False),
    ]
    assert rows[0].why == (
        "foreign: mteb, its file of CIFAR10ZeroShot; equal scores count as the first class"
    )
    assert (rows[0].n, rows[0].low, rows[0].seen) == (None, None, "")
    assert notes == [
        "mteb: 1 result shown beside ours, marked F",
        "mteb: of CIFAR10ZeroShot: equal scores count as the first class",
    ]


def test_recalls_of_both_directions_make_the_mean(tmp_path: Path) -> None:
    first = write(
        tmp_path,
        "Flickr30kT2IRetrieval",
        {name.replace("hit_rate", "recall"): v for name, v in RECALLS.items()},
    )
    values, notes = beside(first)
    assert set(values) == {
        ("org/small (mteb)", "flickr30k-ret", f"image_retrieval_recall@{k}") for k in (1, 5, 10)
    }
    assert notes[1] == (
        "mteb: 1 not shown, which are in --format csv and json alone, for they make no mean_recall, the metric of "
        "flickr30k-ret (Flickr30kT2IRetrieval)"
    )
    write(tmp_path, "Flickr30kI2TRetrieval", {name: v + 0.05 for name, v in RECALLS.items()})
    values, notes = beside(tmp_path)
    assert values["org/small (mteb)", "flickr30k-ret", "text_retrieval_recall@5"] == pytest.approx(0.85)
    mean = values["org/small (mteb)", "flickr30k-ret", "mean_recall"]
    assert mean == pytest.approx((0.5 + 0.8 + 0.9) / 3 + 0.025)
    assert notes == [
        "mteb: 2 results shown beside ours, marked F",
        "mteb: of Flickr30kI2TRetrieval, Flickr30kT2IRetrieval: its main score is nDCG@10, which is not shown; another "
        "copy of the photos",
    ]


def test_what_does_not_correspond_is_counted_and_named(tmp_path: Path) -> None:
    for task in ("CIFAR100ZeroShot", "Food101ZeroShot", "AROCocoOrder", "DTDZeroShot"):
        write(tmp_path, task, {"accuracy": 0.5})
    other = {"main_score": 0.1, "hf_subset": "fra", "accuracy": 0.2}
    write(tmp_path, "CIFAR10ZeroShot", {}, train=[other])
    values, notes = beside(tmp_path)
    assert values == {}
    assert notes == [
        "mteb: 0 results shown beside ours, marked F",
        "mteb: 1 not shown, which are of other splits or subsets (CIFAR10ZeroShot [train, fra])",
        "mteb: 1 not shown, which have no accuracy, recall of test, default (CIFAR10ZeroShot)",
        "mteb: 1 not shown, which have no counterpart here (AROCocoOrder)",
        "mteb: 2 not shown, which measure something else: class names keep their underscores in its prompts "
        "(CIFAR100ZeroShot, Food101ZeroShot)",
        "mteb: 1 not shown, which measure something else: its prompt is none of ours (a photo of {c} texture.) "
        "(DTDZeroShot)",
    ]


def test_revisions_and_experiments_are_told_apart_and_doubles_refused(tmp_path: Path) -> None:
    task, scores = "CIFAR10ZeroShot", {"accuracy": 0.5}
    write(tmp_path, task, scores, revision="0123456789")
    write(tmp_path, task, scores, revision="0123456789/experiments/precision_bf16")
    values, _ = beside(tmp_path)
    assert {model for model, _, _ in values} == {
        "org/small@01234567 (mteb)", "org/small@01234567/precision_bf16 (mteb)"
    }  # fmt: skip
    again = write(tmp_path / "again", task, scores, revision="0123456789")
    with pytest.raises(DataError, match="have the same: acc1 of org/small on cifar10-zs@simple"):
        beside(tmp_path, again)
    (again.parent / "model_meta.json").unlink()
    assert {model for model, _, _ in beside(again)[0]} == {"org/small (mteb)"}  # as its folder is called


@pytest.mark.parametrize(
    ("value", "words"),
    [(71.0, r"accuracy is 71\.0, no share of 1"), ("0.5", "accuracy is '0.5'"), (True, "accuracy is True")],
)
def test_what_is_no_share_of_1_is_refused(value: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, "CIFAR10ZeroShot", {"accuracy": value})
    with pytest.raises(DataError, match=words):
        beside(path)


@pytest.mark.parametrize("scores", [None, {"test": {}}, {"test": [1]}, []])
def test_a_file_that_is_not_whole_is_refused(scores: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"task_name": "CIFAR10ZeroShot", "scores": scores}))
    with pytest.raises(DataError, match=r"x\.json is no result of mteb: its scores are no lists by split"):
        beside(path)


def test_what_is_of_neither_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"task": "CIFAR10ZeroShot"}')
    with pytest.raises(DataError, match="is no result of CLIP_benchmark") as caught:
        beside(tmp_path)
    assert caught.value.hint is not None
    assert "those of mteb task_name and scores" in caught.value.hint
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"has no \.json or \.csv"):
        beside(empty)


def test_every_task_of_the_table_is_one_of_ours_with_its_metrics() -> None:
    catalog, table = Catalog(), mteb_results.tasks()
    assert not set(table.same) & set(table.other)
    for match in table.same.values():
        task = catalog.task(match.task)
        names = {spec.name for spec in task.protocol.metrics}
        assert {name.partition("@")[0] for name in match.metrics} <= {
            name.partition("@")[0] for name in names
        }
        assert all(match.metrics.values())


def test_report_shows_them_at_80_columns_without_a_rank(tmp_path: Path, run: commandline.Run) -> None:
    root, theirs = tmp_path / "records", tmp_path / "mteb"
    for model in ("one", "two"):
        store.write(make_record(model=model, task="cifar10-zs@simple"), SAMPLES, root)
    write(theirs, "CIFAR10ZeroShot", {"accuracy": 0.71})
    write(theirs, "AROCocoOrder", {"accuracy": 0.71})
    done = run("report", "--results", root, "--beside", theirs)
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if "71.00" in line]
    assert line.split() == ["cifar10-zs@simple", "acc1", "71.00", "–", "–", "F"]  # neither n nor rank
    assert "mteb: 1 not shown, which have no counterpart here (AROCocoOrder)" in done.err
    assert max(map(len, (done.out + done.err).splitlines())) <= 80
    alone = run("report", "--results", root)
    assert "mteb" not in alone.out + alone.err
    table = json.loads(run("report", "--results", root, "--beside", theirs, "-f", "json").out)
    rows = table if isinstance(table, list) else table["rows"]
    assert {row["rank"] for row in rows if row["model"] == "org/small (mteb)"} == {None}
