"""Samples in groups: read from the data, and acc1 on the worst one from the card to the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commandline
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import yaml
from beside import message, opened, packed, tar_of, with_column
from commandline import Run
from numpy.typing import NDArray
from recorded import write_model

from clipbench.cards.task import Columns, TaskCard
from clipbench.data.builtin import BUILTINS
from clipbench.data.split import Subset
from clipbench.errors import DataError
from clipbench.metrics.worst_group import difference, worst_group
from clipbench.protocols import _outcomes as outcomes
from clipbench.records import alignment, comparison, gate, store
from clipbench.records.store import Stored

run = commandline.run
DIGITS = Path(__file__).parents[2] / "tasks" / "digits.yaml"


# ------------------------------------------------------------------- the data


def test_a_card_without_groups_keeps_its_fingerprint() -> None:
    assert "group" not in Columns().model_dump()
    assert Columns(group="region").model_dump()["group"] == "region"


def test_groups_belong_to_sets_of_one_label() -> None:
    fields = {
        "title": "d", "splits": {"test": {"name": "test"}}, "kind": "captions",
        "protocols": {"ret": {}}, "columns": {"group": "region"}, "source": {"local": True},
    }  # fmt: skip
    with pytest.raises(ValueError, match="group goes with kind: single-label"):
        TaskCard.model_validate(fields)


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_layouts_have_groups_beside_clusters(tmp_path: Path, layout: str) -> None:
    regions = ["a", "a", "b", "c", "b", "a"]
    if layout == "parquet":
        file = small.write_parquet(tmp_path / "test.parquet", 6)
        with_column(file, "slide", regions)
        with_column(file, "region", [ord(one) for one in regions])
        other = [str(ord(one)) for one in regions]
    else:
        packed(tmp_path, regions)
        other = regions
    for columns, groups in (
        ({"group": "slide"}, regions),
        ({"cluster": "slide", "group": "slide"}, regions),  # one column may be both
        ({"cluster": "slide", "group": "region" if layout == "parquet" else "slide"}, other),
    ):
        split = opened(tmp_path, columns=columns)
        assert split.groups is not None
        assert split.groups.tolist() == groups
        assert (split.clusters is None) == ("cluster" not in columns)
    assert split.fingerprint == opened(tmp_path, columns={}).fingerprint  # features stay
    part = Subset(split, np.array([2, 3]))
    assert part.groups is not None
    assert part.groups.tolist() == other[2:4]
    note = split.beside_notes()[1]
    assert (note.kind, note.count, note.examples) == ("groups", 3, (other[3], other[2], other[0]))
    assert str(note).startswith("3 groups of samples, the smallest of 1 (")


def test_a_sample_without_a_group_is_an_error(tmp_path: Path) -> None:
    said = message(packed(tmp_path / "tars", ["a", None, "b"]), columns={"group": "slide"})
    assert "sample 001 has no text or whole number as 'slide'" in said
    assert "columns.group on the task card" in said
    file = small.write_parquet(tmp_path / "table" / "test.parquet", 3)
    with_column(file, "slide", ["a", "b", None])
    said = message(tmp_path / "table", columns={"group": "slide"})
    assert "row 2 has nothing in the column 'slide', which columns.group" in said
    said = message(small.write_images(tmp_path / "folder", 10), columns={"group": "slide"})
    assert "columns.group on the task card is 'slide', but samples here have no columns" in said


# ------------------------------------------------------------- record and pair


def _write(
    root: Path, model: str, right: NDArray[np.bool_], groups: list[str], clusters: list[str] | None = None
) -> Stored:
    """A record as `write_model` makes it, of samples in groups, with the worst one as the primary metric."""
    n = len(right)
    target = np.arange(n) % 5
    logits = np.zeros((n, 5), dtype=np.float32)
    logits[np.arange(n), np.where(right, target, (target + 1) % 5)] = 1
    ids = [f"i{k:04d}" for k in range(n)]
    beside = (None if one is None else np.array(one, dtype=object) for one in (clusters, groups))
    found = outcomes.single_label([(slice(0, n), logits)], target, ids, 5, 0, *beside)
    changes: dict[str, Any] = {
        "primary": "worst_group_acc1",
        "scores": found.scores,
        "evidence": found.evidence,
    }
    plain = write_model(root, model, right, **changes)
    path = store.write(plain.record, {k: np.asarray(v) for k, v in found.samples.items()}, root)
    return store.read(path)


def test_the_outcome_names_every_group_the_worst_first(tmp_path: Path) -> None:
    right = np.array([True] * 6 + [True] * 3 + [False] + [False])
    groups = ["b"] * 6 + ["a"] * 4 + ["lone"]
    record = _write(tmp_path, "m", right, groups).record
    score = record.scores["worst_group_acc1"]
    assert (score.value, score.n, score.chance) == (0.0, 1, 0.2)
    told: Any = record.evidence["groups"]
    assert [(one["group"], one["acc1"], one["n"]) for one in told] == [
        ("lone", 0, 1),
        ("a", 0.75, 4),
        ("b", 1, 6),
    ]
    assert record.scores["acc1"].value == pytest.approx(9 / 11)


@pytest.mark.parametrize("clustered", [False, True])
def test_records_are_compared_on_their_worst_groups(tmp_path: Path, clustered: bool) -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{k % 3}" for k in range(300)]
    clusters = [f"s{k // 10}" for k in range(300)] if clustered else None
    first = rng.random(300) < 0.8
    second = first & ((np.arange(300) % 3 != 1) | (rng.random(300) < 0.3))
    one, other = (
        _write(tmp_path, name, right, groups, clusters) for name, right in (("a", first), ("b", second))
    )
    pair = alignment.pair(one, other)
    of, within = np.arange(300) % 3, np.unique(clusters, return_inverse=True)[1] if clusters else None
    one_hits, other_hits = (right[None].astype(np.float64) for right in (first, second))
    assert pair.difference == difference(one_hits, other_hits, of, within, same=True)
    assert pair.difference.value == pytest.approx(
        other.record.scores["worst_group_acc1"].value - one.record.scores["worst_group_acc1"].value
    )
    assert pair.difference.p_less < 0.01
    assert (pair.contributions, alignment.contributions(one)) == (None, None)  # no part of a mean over tasks
    for stored in (one, other):
        assert alignment.recomputed(stored) == pytest.approx(stored.record.scores["worst_group_acc1"].value)
    found = comparison.with_verdicts([comparison.of(one, other, top=2)], 0.05)
    assert [(c.verdict, len(c.only_first)) for c in found] == [("worse", 2)]
    (check,) = gate.decided([gate.Check("a", "t", "pass", comparison=found[0])], 0.5, 0.1, 0.05)
    assert check.outcome == "fail"
    assert "more than noise" in check.why


def test_records_of_other_groups_are_not_compared(tmp_path: Path) -> None:
    right = np.arange(40) % 3 > 0
    one = _write(tmp_path / "a", "m", right, ["x"] * 20 + ["y"] * 20)
    other = _write(tmp_path / "b", "m", right, ["x"] * 21 + ["y"] * 19)
    with pytest.raises(DataError, match="other groups for the same samples"):
        comparison.of(one, other, top=1)


# ------------------------------------------------------------ the whole way


def _digits(folder: Path, layout: str) -> tuple[list[str], dict[str, Any]]:
    """The built-in digits in another layout, in groups by how much ink they have; the test groups, and the card."""
    card = yaml.safe_load(DIGITS.read_text())
    groups: list[str] = []
    for role, count in (("train", 400), ("test", 360)):
        split = BUILTINS["digits"](role, card["classes"])
        images = [sample.image for sample in split.samples(np.arange(count))]
        ink = [len(image) for image in images]  # of more ink, the PNG is longer
        groups = np.array(["thin", "plain", "bold"])[
            np.searchsorted(np.quantile(ink, [0.1, 0.6]), ink)
        ].tolist()
        labels = split.labels[:count].tolist()
        if layout == "parquet":
            cells = [{"bytes": image, "path": None} for image in images]
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(
                pa.table({"image": cells, "label": labels, "stroke": groups}), folder / f"{role}.parquet"
            )
        else:
            tar_of(
                folder / role / "0.tar",
                [
                    file
                    for row, (image, label, group) in enumerate(zip(images, labels, groups, strict=True))
                    for file in (
                        (f"{row:04d}.png", image),
                        (f"{row:04d}.json", json.dumps({"label": label, "stroke": group}).encode()),
                    )
                ],
            )
        card["splits"][role] = {"name": role}
    probe = {"primary": "worst_group_acc1", "classifier": {"kind": "logistic", "lambdas": 3}}
    card |= {
        "source": {"local": True},
        "columns": {"group": "stroke"},
        "protocols": {"zs": {"primary": "worst_group_acc1"}, "lp": probe},
    }
    return groups, card


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_from_the_command_line(tmp_path: Path, run: Run, layout: str) -> None:
    groups, card = _digits(tmp_path / "data", layout)
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "strokes.yaml").write_text(json.dumps(card))
    common = ("--cards", tmp_path / "cards", "--data", f"strokes={tmp_path / 'data'}")
    smallest = min(map(groups.count, set(groups)))
    done = run("data", "check", "strokes", *common)
    assert done.code == 0, done
    assert f"strokes test: 3 groups of samples, the smallest of {smallest} (thin, " in done.said
    tasks = ["strokes-zs", "strokes-lp", "strokes-lp@2-shot", "strokes-lp@knn"]
    chosen = [part for task in tasks for part in ("--task", task)]
    small_model = small.write_run(tmp_path / "run")
    for model in ("digits-clip-lite", small_model):
        arguments = ("--precision", "fp32", "--results", tmp_path / "results")
        done = run("eval", "--model", model, *chosen, *common, *arguments)
        assert done.code == 0, done
        assert "acc1 of 3 groups, the worst first: " in done.said
    for stored in store.read_all(tmp_path / "results"):
        record, table = stored.record, alignment._table(stored)
        assert table["group"] == groups
        draws = [np.array(table[name]) == 0 for name in table if name.startswith("rank")]
        hits = np.stack(draws).astype(np.float64)
        names = sorted(set(groups))
        of = np.array([names.index(group) for group in groups])
        expected, every = worst_group(hits, of, None, 0.1)
        assert record.scores["worst_group_acc1"] == expected
        assert expected.value == pytest.approx(min(hits[:, of == g].mean() for g in range(3)))
        told: Any = record.evidence["groups"]
        assert {one["group"]: one["acc1"] for one in told} == {
            name: score.value for name, score in zip(names, every, strict=True)
        }
    lp = next(s.record for s in store.read_all(tmp_path / "results") if s.record.task == "strokes-lp")
    validation: Any = lp.evidence["validation"]
    assert validation["metric"] == "worst_group_acc1"
    first, second = sorted({stored.record.model for stored in store.read_all(tmp_path / "results")})
    done = run("compare", first, second, "--results", tmp_path / "results")
    assert done.code == 0, done
    judged = {one.task: one for one in comparison.compare(first, second, tmp_path / "results", None, 0.05, 0)}
    assert sorted(judged) == sorted(tasks)  # and no mean over them
    assert all(one.metric == "worst_group_acc1" for one in judged.values())
    assert judged["strokes-zs"].verdict != "not distinguishable"
    done = run("report", "--results", tmp_path / "results", *common[:2], "--format", "json")
    assert done.code == 0, done
    assert '"metric": "worst_group_acc1"' in done.said
    both = ("--baseline", tmp_path / "results", "--candidate", tmp_path / "results")
    done = run("gate", *both, *common[:2])
    assert done.code == 0, done
    assert done.said.count("worst_group_acc1") == 8


def test_a_probe_skips_groups(tmp_path: Path, run: Run) -> None:
    groups, card = _digits(tmp_path / "data", "parquet")
    columns = {"group": {"other": {"column": "label"}, "stroke": {}}}
    classifier = {"kind": "logistic", "lambdas": 3}
    probe = {"primary": "worst_group_acc1", "group": "stroke", "skip": ["thin"], "classifier": classifier}
    card |= {"columns": columns, "protocols": {"lp": probe}}
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "strokes.yaml").write_text(json.dumps(card))
    common = ("--cards", tmp_path / "cards", "--data", f"strokes={tmp_path / 'data'}")
    tasks = [part for task in ("strokes-lp", "strokes-lp@2-shot") for part in ("--task", task)]
    done = run("eval", "--model", "digits-clip-lite", *tasks, *common, "--results", tmp_path / "results")
    assert done.code == 0, done
    assert done.said.count("never the worst, since the task skips them: thin") == 2
    kept = np.array(groups) != "thin"
    for stored in store.read_all(tmp_path / "results"):
        record, table = stored.record, alignment._table(stored)
        assert table["group"] == [group if group != "thin" else None for group in groups]
        hits = np.stack([np.array(table[name]) == 0 for name in table if name.startswith("rank")]).astype(
            float
        )
        names, of = np.unique(np.array(groups)[kept], return_inverse=True)
        assert names.tolist() == ["bold", "plain"]
        assert record.scores["worst_group_acc1"] == worst_group(hits[:, kept], of, None, 0.1)[0]
        assert record.scores["acc1"].n == len(groups)
        told: Any = record.evidence
        assert [one["group"] for one in told["grouped"]["skipped"]] == ["thin"]
        assert told["grouped"]["skipped"][0]["acc1"] == pytest.approx(hits[:, ~kept].mean())
        assert alignment.recomputed(stored) == pytest.approx(record.scores["worst_group_acc1"].value)
    card["protocols"]["lp"]["group"] = "stork"
    (tmp_path / "cards" / "strokes.yaml").write_text(json.dumps(card))
    done = run("eval", "--model", "digits-clip-lite", *tasks, *common, "--results", tmp_path / "results")
    commandline.mended(done, 'unknown column of columns.group "stork"')
