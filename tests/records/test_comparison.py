"""Comparing records: samples line up, verdicts follow the tests, and where models disagree is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded import make_record, write_model

from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.metrics import average_precision, intervals, joint
from clipbench.metrics.intervals import Score
from clipbench.records import alignment, store
from clipbench.records import comparison as compare
from clipbench.records.eligibility import Eligibility
from clipbench.records.store import Stored
from clipbench.report import comparison_table
from clipbench.utils.cache import write_atomic

RESULTS = Path(__file__).parents[2] / "results"


def _right(n: int, share: float, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(n) < share


# --------------------------------------------------------------------- shares


@pytest.mark.parametrize("path", store.paths(RESULTS), ids=lambda path: path.stem)
def test_shares_of_the_shipped_samples_are_the_recorded_score(path: Path) -> None:
    stored = store.read(path)
    metric = stored.record.primary
    table = alignment._table(stored)
    shares = alignment._shares(metric, table, stored.record.protocol.params)
    found = alignment.pair(stored, stored)
    assert (found.difference.value, found.difference.p) == (0, 1)
    if metric.startswith("map_"):
        assert shares is None
        assert found.difference.method == "paired bootstrap"
        return
    assert shares is not None
    assert shares.mean() == pytest.approx(stored.record.scores[metric].value, abs=1e-12)
    _, grouped, _ = alignment._grouped(table.get("image", table["id"]), shares, shares)
    assert grouped.mean() == pytest.approx(stored.record.scores[metric].value, abs=1e-12)


@pytest.mark.parametrize("metric", ["acc1", "acc5", "mean_per_class_recall"])
def test_shares_are_the_metric_where_classes_are_uneven(metric: str, tmp_path: Path) -> None:
    stored = write_model(tmp_path, "a", _right(33, 0.6, 0), primary=metric)
    shares = alignment._shares(metric, alignment._table(stored), {})
    assert shares is not None
    assert shares.mean() == pytest.approx(stored.record.scores[metric].value, abs=1e-12)


@pytest.mark.parametrize("metric", ["mean_recall", "text_retrieval_recall@1", "image_retrieval_recall@5"])
def test_recalls_weigh_captions_as_the_metric_does(metric: str) -> None:
    table: dict[str, list[Any]] = {"text_rank": [1, 7, 2], "image_rank": [[1, 6], [2], [1, 1, 9]]}
    by_hand = {
        "text_retrieval_recall@1": 1 / 3,
        "image_retrieval_recall@5": 4 / 6,
        "mean_recall": ((1 / 3 + 2 / 3) / 2 + (3 / 6 + 4 / 6) / 2) / 2,
    }
    shares = alignment._shares(metric, table, {"ks": [1, 5]})
    assert shares is not None
    assert shares.mean() == pytest.approx(by_hand[metric])


def test_expressions_of_one_image_count_as_one() -> None:
    names, one, two = alignment._grouped(["x", "y", "x"], np.array([1.0, 0, 1]), np.array([0.0, 1, 1]))
    assert names == ["x", "y"]
    assert (one.tolist(), two.tolist()) == ([4 / 3, 0], [2 / 3, 2 / 3])


# ------------------------------------------------------------------- verdicts


def test_a_better_model_is_better_and_the_same_one_not_distinguishable(tmp_path: Path) -> None:
    right = _right(500, 0.7, 0)
    more = right | _right(500, 0.3, 1)
    write_model(tmp_path, "a", right)
    write_model(tmp_path, "b", more)
    write_model(tmp_path, "a2", right)
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert found.verdict == "better"
    assert found.difference == pytest.approx(more.mean() - right.mean())
    assert (found.first, found.second) == (right.mean(), more.mean())
    assert found.ci95 is not None
    assert found.ci95[0] > 0
    assert found.p_worse == 1.0
    (back,) = compare.compare("b", "a", tmp_path, None, 0.05, 5)
    assert back.verdict == "worse"
    (same,) = compare.compare("a", "a2", tmp_path, None, 0.05, 5)
    assert (same.verdict, same.p, same.only_first, same.classes) == ("not distinguishable", 1.0, (), ())


def test_less_is_better_where_it_is(tmp_path: Path) -> None:
    score = {"gap_before": Score(0.2, (0.19, 0.21), 100, None)}
    lower = {"gap_before": Score(0.1, (0.09, 0.11), 100, None)}
    for model, scores in (("a", score), ("b", lower)):
        write_model(tmp_path, model, _right(9, 0.5, 0), primary="gap_before", scores=scores)
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert (found.verdict, found.method) == ("better", "intervals, not paired")


def test_where_they_disagree_most_is_named(tmp_path: Path) -> None:
    right = np.ones(50, dtype=bool)
    worse = right.copy()
    worse[[1, 6, 11, 3]] = False  # three dogs, a hen
    better = worse.copy()
    worse[0] = False
    write_model(tmp_path, "a", better)
    other = worse.copy()
    other[1] = True
    write_model(tmp_path, "b", other)
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert (found.only_first, found.only_second) == (("i0000",), ("i0001",))
    assert [name for name, _, _ in found.classes] == ["cat", "dog"]
    assert found.classes[0][1:] == pytest.approx((1.0, 0.9))
    (none,) = compare.compare("a", "b", tmp_path, None, 0.05, 0)
    assert (none.only_first, none.classes) == ((), ())


def test_p_values_are_adjusted_for_the_number_of_tasks(tmp_path: Path) -> None:
    right, less = np.ones(60, dtype=bool), np.ones(60, dtype=bool)
    less[:6] = False  # p = 2 / 64 = 0.031
    for task in ("a-zs", "b-zs"):
        write_model(tmp_path, "a", right, task=task)
        write_model(tmp_path, "b", less if task == "a-zs" else right, task=task)
    alone, _, _mean = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert (alone.p, alone.p_adjusted, alone.verdict) == (0.03125, 0.0625, "not distinguishable")
    (only,) = compare.compare("a", "b", tmp_path, ["a-zs"], 0.05, 5)
    assert (only.p_adjusted, only.verdict) == (0.03125, "worse")


def test_the_mean_over_tasks_takes_the_images_that_they_share_together(tmp_path: Path) -> None:
    right, less = np.ones(60, dtype=bool), np.ones(60, dtype=bool)
    less[:5] = False  # 5 of 60, in both tasks the same images
    for task, images in (("a-zs", "00"), ("b-zs", "00"), ("c-zs", "11")):
        own: dict[str, Any] = {"task": task, "fingerprints": {"split:test": images}}
        write_model(tmp_path, "a", right, **own)
        write_model(tmp_path, "b", less if task != "c-zs" else right, **own)
    *tasks, mean = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert [c.p for c in tasks] == [0.0625, 0.0625, 1]
    assert (mean.task, mean.metric, mean.model, mean.other) == ("mean", "mean of 3 tasks", "a", "b")
    assert mean.second == pytest.approx((2 * 55 / 60 + 1) / 3)
    assert mean.difference == pytest.approx(-10 / 180)
    assert mean.p == 0.0625  # of five images; of ten it would be 0.002
    *_, mean = compare.compare("a", "b", tmp_path, ["a-zs", "c-zs"], 0.05, 5)
    assert (mean.metric, mean.p, mean.n) == ("mean of 2 tasks", 0.0625, 120)
    assert [c.task for c in compare.compare("a", "b", tmp_path, ["a-zs"], 0.05, 5)] == ["a-zs"]
    assert "contributions" not in mean.as_json()


def test_average_precision_is_in_the_mean_by_how_it_hangs_on_each_image() -> None:
    """The standard error of contributions is that of the bootstrap."""
    labels, found = np.zeros((300, 3), dtype=np.uint8), []
    rng = np.random.default_rng(0)
    labels[rng.random(labels.shape) < 0.3] = 1
    for lift in (1.0, 1.5):
        scores = (rng.normal(size=labels.shape) + lift * labels).astype(np.float32)
        table = {"score": list(scores), "target": list(labels)}
        added = alignment._precision_contributed("area", table, {})
        assert added.sum() == pytest.approx(average_precision.mean_average_precision(scores, labels, "area"))
        draws = np.array(
            [
                average_precision.mean_average_precision(scores[drawn], labels[drawn], "area")
                for drawn in intervals.resamples(300, 0, 300)
            ]
        )
        found.append((joint.summed([joint.Contributions("x", range(300), added)])[1], draws.std()))
    for error, spread in found:
        assert error == pytest.approx(spread, rel=0.15)


def test_few_shot_probes_differ_only_beyond_what_other_shots_would_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def of_draws(root: Path, model: str, shares: list[float]) -> None:
        ranks = [np.where(rng.random(900) < share, 0, 1) for share in shares]
        own: dict[str, Any] = {"task": "a-lp@1-shot", "fingerprints": {"split:test": "00"}, "model": model}
        score = Score(float(np.mean([r == 0 for r in ranks])), (0, 1), 900, 0.1)
        record = make_record(**own, primary="acc1", scores={"acc1": score})
        columns = {f"rank_{i}": rank for i, rank in enumerate(ranks)}
        ids = np.array([str(i) for i in range(900)], dtype=object)
        store.write(record, {"id": ids, "target": np.arange(900) % 5} | columns, root)

    of_draws(tmp_path, "a", [0.5, 0.5, 0.5])
    of_draws(tmp_path, "b", [0.48, 0.58, 0.68])  # by the images alone p would be below 1e-6
    of_draws(tmp_path, "c", [0.7, 0.72, 0.74])
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert found.difference == pytest.approx(0.08, abs=0.03)
    assert (found.method, found.verdict) == ("t over draws and samples", "not distinguishable")
    (found,) = compare.compare("a", "c", tmp_path, None, 0.05, 5)
    assert (found.verdict, found.n) == ("better", 900)
    part = alignment.contributions(store.read(store.path_of("b", "a-lp@1-shot", tmp_path)))
    assert part is not None
    assert part.more == pytest.approx(0.1**2 / 3, rel=0.6)


def test_draws_are_paired_where_both_drew_the_same_shots(tmp_path: Path) -> None:
    """Equally many draws with one seed: then the spread of the differences counts, not that of either."""
    ranks = {
        "a": [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]],  # 0.5, 0.75, 1
        "b": [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]],  # 0.25, 0.5, 1: 0.25, 0.25 and 0 less
    }

    def stored(model: str, draws: int, seed: int) -> Stored:
        score = Score(float(np.mean(np.array(ranks[model][:draws]) == 0)), (0, 1), 4, 0.1)
        record = make_record(
            model=model,
            task=f"{draws}-{seed}",
            seed=seed,
            scores={"acc1": score},
            fingerprints={"split:test": "00"},
        )
        columns = {f"rank_{i}": np.array(rank) for i, rank in enumerate(ranks[model][:draws])}
        samples = {"id": np.array(list("wxyz"), dtype=object), "target": np.arange(4)} | columns
        return store.read(store.write(record, samples, tmp_path))

    def more(first: Stored, second: Stored) -> float:
        found = alignment.pair(first, second).contributions
        assert found is not None
        return found.more

    one = stored("a", 3, 0)
    apart = np.var([0.5, 0.75, 1], ddof=1) / 3 + np.var([0.25, 0.5, 1], ddof=1) / 3
    assert more(one, stored("b", 3, 0)) == pytest.approx(np.var([0.25, 0.25, 0], ddof=1) / 3)
    assert more(one, stored("b", 3, 1)) == pytest.approx(apart)
    fewer = np.var([0.5, 0.75, 1], ddof=1) / 3 + np.var([0.25, 0.5], ddof=1) / 2
    assert more(one, stored("b", 2, 0)) == pytest.approx(fewer)


def test_what_images_add_to_a_precision_is_its_mean_and_its_slope(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = (rng.random((40, 3)) < 0.4).astype(np.uint8)
    scores = (rng.normal(size=target.shape) + target).astype(np.float32)
    value = average_precision.mean_average_precision(scores, target, "area")
    record = make_record(primary="map_area", scores={"map_area": Score(value, (0, 1), 40, 0.4)})
    samples: dict[str, Any] = {"id": np.array([f"i{k:02d}" for k in range(40)], dtype=object)}
    samples |= {"target": list(target), "score": list(scores)}
    found = alignment.contributions(store.read(store.write(record, samples, tmp_path)))
    assert found is not None
    assert found.values.sum() == pytest.approx(value)
    slope = average_precision.mean_average_precision_influence(scores, target, "area")
    assert found.centred == pytest.approx(slope, abs=1e-12)


def test_precision_without_its_scores_is_compared_by_intervals(tmp_path: Path) -> None:
    def stored(model: str, value: float) -> Stored:
        score = Score(value, (value - 0.1, value + 0.1), 2, 0.1)
        record = make_record(
            model=model, primary="map_area", scores={"map_area": score}, fingerprints={"split:test": "00"}
        )
        return store.read(store.write(record, {"id": np.array(["x", "y"], dtype=object)}, tmp_path))

    one, other = stored("a", 0.5), stored("b", 0.6)
    assert alignment.contributions(one) is None
    found = alignment.pair(one, other)
    assert (found.difference.method, found.gains) == ("intervals, not paired", None)


def test_a_model_that_was_trained_on_the_images_is_named(tmp_path: Path) -> None:
    right, more = _right(300, 0.6, 0), _right(300, 0.9, 1)
    counted = [{"data": "photos train", "images": 80, "of": 300}]
    for task, seen in (("a-zs", counted), ("b-zs", [])):
        write_model(tmp_path, "a", right, task=task)
        write_model(tmp_path, "b", more, task=task, seen=seen)
    found = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    said = "photos train: 80 of 300 images"
    assert [(c.task, c.seen) for c in found] == [
        ("a-zs", ("", said)),
        ("b-zs", ("", "")),
        ("mean", ("", "a-zs")),
    ]
    assert found[0].as_json()["seen"] == ["", said]
    lines = comparison_table.text(found, "a", "b", 0.05).splitlines()
    assert f"T a-zs: b was trained on {said}" in lines
    marked = [line.split()[0] for line in lines[2:5] if " T  " in line]
    assert marked == ["a-zs", "mean"]
    (clean,) = compare.compare("a", "b", tmp_path, ["b-zs"], 0.05, 5)
    assert "trained on" not in comparison_table.text([clean], "a", "b", 0.05)


def test_what_todays_cards_say_of_training_data_is_named_too() -> None:
    """The shipped record says it; one of before would not, and its model's card does."""
    stored = store.read(RESULTS / "lite-minilm" / "coco-363-zs.json")
    bare = Stored(stored.path, stored.record.model_copy(update={"seen": ()}), stored.seal)
    assert compare._seen(None, bare, stored) == ("", "coco-363-captions train: some or all of 159 images")
    assert compare._seen(Eligibility(Catalog()), bare, bare)[0].startswith("coco-363-captions train: ")


def test_folders_are_compared_model_by_model(tmp_path: Path) -> None:
    for folder, share in (("old", 0.5), ("new", 0.9)):
        for model in ("a", "b"):
            write_model(tmp_path / folder, model, _right(200, share, 1))
    write_model(tmp_path / "old", "gone", _right(200, 0.5, 1))
    found = compare.compare(str(tmp_path / "old"), str(tmp_path / "new"), tmp_path / "none", None, 0.05, 5)
    assert [(c.model, c.other, c.verdict) for c in found] == [("a", "a", "better"), ("b", "b", "better")]


def test_samples_that_only_one_has_are_left_out_and_counted(tmp_path: Path) -> None:
    write_model(tmp_path, "a", np.ones(10, dtype=bool))
    write_model(tmp_path, "b", np.ones(7, dtype=bool))
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert (found.left_out, found.n) == (3, 7)


# --------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"protocol": {"name": "zs", "version": 2, "params": {"templates": "default"}}},
            "zs version 1 and zs",
        ),
        ({"protocol": {"name": "zs", "version": 1, "params": {"templates": "x"}}}, "differ: templates"),
        ({"primary": "mean_per_class_recall"}, "primary metric acc1 and mean_per_class_recall"),
        ({"fingerprints": {"split:test": "01"}}, "other data: split:test"),
        (
            {"fingerprints": {"split:test": "01"}, "limit": 5},
            r"other data: split:test \(--limit None and 5\)",
        ),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_model(tmp_path, "a", _right(20, 0.5, 0))
    write_model(tmp_path, "b", _right(20, 0.5, 0), **changes)
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert (found.verdict, found.p) == ("not comparable", None)
    assert found.reason is not None
    assert re.search(reason, found.reason)


def test_a_record_that_was_edited_is_not_compared(tmp_path: Path) -> None:
    write_model(tmp_path, "a", _right(20, 0.5, 0))
    path = write_model(tmp_path, "b", _right(20, 0.5, 0)).path
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert (found.verdict, found.reason) == ("not comparable", f"{path} was edited by hand, or damaged")


def test_a_samples_file_that_is_not_the_records_is_refused(tmp_path: Path) -> None:
    a = write_model(tmp_path, "a", _right(20, 0.5, 0))
    b = write_model(tmp_path, "b", _right(20, 0.5, 0))
    store.samples_path(a.path).write_bytes(store.samples_path(b.path).read_bytes() + b" ")
    with pytest.raises(DataError, match="not the file that was written with its record"):
        compare.compare("a", "b", tmp_path, None, 0.05, 5)
    store.samples_path(a.path).unlink()
    with pytest.raises(DataError, match=r"there is no .*samples\.parquet"):
        compare.compare("a", "b", tmp_path, None, 0.05, 5)


def test_a_kill_between_samples_and_record_is_said_and_evaluating_again_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = write_model(tmp_path, "a", _right(20, 0.5, 0))
    write_model(tmp_path, "b", _right(20, 0.5, 0))

    class Killed(BaseException):
        pass

    def until_the_record(path: Path, *data: bytes) -> None:
        if path.suffix == ".json":
            raise Killed
        write_atomic(path, *data)

    monkeypatch.setattr("clipbench.records.store.write_atomic", until_the_record)
    with pytest.raises(Killed):
        write_model(tmp_path, "a", _right(20, 0.9, 1))
    monkeypatch.undo()
    assert store.read(a.path) == a
    why = r"is not the file .* was killed after writing it and before its record\n.*eval --model a --task animals-zs"
    with pytest.raises(DataError, match=why):
        compare.compare("a", "b", tmp_path, None, 0.05, 5)
    write_model(tmp_path, "a", _right(20, 0.9, 1))
    (found,) = compare.compare("a", "b", tmp_path, None, 0.05, 5)
    assert found.first == 0.9


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "small", _right(20, 0.5, 0))
    write_model(tmp_path, "other", _right(20, 0.5, 0), task="else-zs")
    with pytest.raises(DataError, match='unknown model "smal"; did you mean "small"'):
        compare.compare("small", "smal", tmp_path, None, 0.05, 5)
    with pytest.raises(DataError, match="no task in common"):
        compare.compare("small", "other", tmp_path, None, 0.05, 5)
    with pytest.raises(DataError, match=r"is a model and .* a folder"):
        compare.compare("small", str(tmp_path), tmp_path, None, 0.05, 5)


def test_the_command_prints_a_line_a_task_and_json(tmp_path: Path) -> None:
    right = _right(500, 0.7, 0)
    write_model(tmp_path, "a", right)
    write_model(tmp_path, "b", right & _right(500, 0.9, 1))
    command = [sys.executable, "-m", "clipbench", "compare", "a", "b", "--results", str(tmp_path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if line.startswith("animals-zs  acc1"))
    assert line.endswith("<0.001  worse")
    assert "classes: " in text
    assert "a alone or more: i0" in text
    (found,) = json.loads(
        subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    )
    assert (found["task"], found["verdict"], found["method"]) == ("animals-zs", "worse", "McNemar, exact")
