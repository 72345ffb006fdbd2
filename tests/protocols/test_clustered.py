"""Samples that belong together: read from the data, whole in every interval, test and validation split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import commandline
import numpy as np
import pytest
import small
from beside import message, opened, packed, tar_of, with_column
from commandline import Run
from fakes import FakeSplit
from numpy.typing import NDArray
from recorded import write_model
from scipy.special import expit, logit
from scipy.stats import t

from clipbench.cards.entry import Entry
from clipbench.cards.task import Columns, TaskCard
from clipbench.data.layouts.webdataset import WebDataset
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Subset
from clipbench.errors import DataError
from clipbench.metrics import average_precision, clustered, intervals, paired_tests
from clipbench.metrics.average_precision import APKind
from clipbench.metrics.average_precision_intervals import (
    mean_average_precision_draws,
    mean_average_precision_scores,
)
from clipbench.metrics.joint import summed
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols._few_shot import _draw
from clipbench.protocols._logistic import hold_out_clusters
from clipbench.records import alignment, comparison, store

run = commandline.run


# ------------------------------------------------------------------ estimators


def _by_matrices(
    values: NDArray[np.float64], cluster: NDArray[np.int64], stratum: NDArray[np.int64]
) -> float:
    """The CR2 variance of the mean of the strata's means, cell by cell, from regression on the strata."""
    strata = int(stratum.max()) + 1
    pulls = np.zeros(int(cluster.max()) + 1)
    for c in range(strata):
        own = values[stratum == c]
        for g in range(pulls.size):
            cell = (stratum == c) & (cluster == g)
            if not cell.any():
                continue
            n = int(cell.sum())
            hat = np.full((n, n), 1 / own.size)
            eigen, basis = np.linalg.eigh(np.eye(n) - hat)
            root = basis @ np.diag(np.clip(eigen, 1e-12, None) ** -0.5) @ basis.T
            pulls[g] += (root @ (values[cell] - own.mean())).sum() / own.size / strata
    return float((pulls**2).sum())


def test_the_spread_of_a_mean_is_the_cluster_robust_one() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(9), rng.integers(2, 12, 9))
    values = (rng.random(cluster.size) < rng.random(9)[cluster]).astype(np.float64)
    found = clustered.spread(values, cluster)
    assert found.value == pytest.approx(values.mean())
    assert found.error**2 == pytest.approx(_by_matrices(values, cluster, np.zeros_like(cluster)))
    classes = rng.integers(0, 3, cluster.size)
    recalls = clustered.spread(values, cluster, classes)
    assert recalls.value == pytest.approx(np.mean([values[classes == c].mean() for c in range(3)]))
    assert recalls.error**2 == pytest.approx(_by_matrices(values, cluster, classes))


def test_clusters_of_one_sample_each_have_the_usual_standard_error() -> None:
    values = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    found = clustered.spread(values, np.arange(6))
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(6))
    assert (found.clusters, found.freedom) == pytest.approx((6, 5))


def test_uneven_clusters_leave_fewer_degrees_of_freedom() -> None:
    cluster = np.repeat(np.arange(4), [1, 1, 1, 7])
    found = clustered.spread(np.array([1.0, 0, 1, *[1.0, 0, 0, 0, 1, 0, 0]]), cluster)
    assert found.clusters == pytest.approx(100 / 52)
    assert found.freedom == 1
    # 3 classes of two equal clusters each: one degree of freedom a class; of 2 and 8: (1/2 + 1/8)² / (1/4 + 1/64/7)
    cluster, classes = np.repeat(np.arange(6), 5), np.repeat(np.arange(3), 10)
    values = np.tile([1.0, 0, 0, 0, 0, 1, 1, 1, 0, 0], 3)
    assert clustered.spread(values, cluster, classes).freedom == pytest.approx(3)
    hits = np.array([1.0, 0, *[1.0, 0, 1, 0, 1, 0, 1, 0]])
    found = clustered.spread(hits, np.arange(10), np.array([0, 0] + [1] * 8))
    assert found.freedom == pytest.approx((5 / 8) ** 2 / (1 / 4 + 1 / 64 / 7))
    # 6 clusters with a sample of each of 3 classes, all as far from the mean: one less than clusters, not 3 times that
    cluster, classes = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)
    assert clustered.spread(cluster % 2 == 0, cluster, classes).freedom == pytest.approx(5)


def test_the_interval_is_students_on_the_logit_scale() -> None:
    values, cluster = np.array([1.0, 1, 1, 0, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    score = clustered.mean_score(values, cluster, 0.5)
    # Each cluster weighs 1/4; their sums are off by 0.75, -0.25, 0.75 and -1.25, less 2 · 5/8.
    error = math.sqrt(sum(off**2 for off in (0.75, -0.25, 0.75, -1.25)) / (1 - 1 / 4)) / 8
    kurtosis = (
        4
        * sum(off**4 for off in (0.75, -0.25, 0.75, -1.25))
        / sum(off**2 for off in (0.75, -0.25, 0.75, -1.25)) ** 2
    )
    freedom = min(3, 8 / (kurtosis - 1))
    alone = 0.625 * 0.375
    moved = (0.625 * alone / error**2 + 0.5) / (
        alone / error**2 + 1
    )  # by half a right and half a wrong sample
    half = t.ppf(0.975, freedom) * error * math.sqrt(moved * (1 - moved) / alone) / alone
    at = math.log(score.value / (1 - score.value))
    assert score.value == 0.625
    assert score.ci95 == pytest.approx([1 / (1 + math.exp(-at + side * half)) for side in (1, -1)])


def test_clusters_that_agree_count_as_one_sample_each() -> None:
    score = clustered.mean_score(np.ones(50), np.repeat(np.arange(5), 10), None)
    assert score.ci95 == intervals.wilson(5, 5)
    assert clustered.mean_score(np.array([1.0, 0.0]), np.array([0, 0]), None).ci95 == intervals.wilson(0.5, 1)


def test_a_class_of_one_cluster_counts_by_its_distance_from_the_mean() -> None:
    hits = np.array([1.0, 1.0, 0.0, 1.0])
    found = clustered.spread(hits, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    assert found.value == 0.75
    assert found.error == pytest.approx(math.sqrt(2 * (0.25 / 2) ** 2 / (1 - 1 / 2)))


def test_calibration_goes_as_far_as_the_gaps_of_all_bins() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(200), rng.random(200) < 0.5
    cluster = np.repeat(np.arange(20), 10)
    score = clustered.ece_score(confidence, correct, cluster, seed=2)
    assert score.value == intervals.ece_score(confidence, correct, seed=2).value
    place, gap = np.clip(np.ceil(confidence * 15) - 1, 0, 14), confidence - correct

    def gaps(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([gap[rows][place[rows] == b].sum() for b in range(15)]) / rows.size

    every = gaps(np.arange(200))
    off = [
        np.abs(gaps(np.concatenate([np.flatnonzero(cluster == c) for c in drawn])) - every).sum()
        for drawn in intervals.resamples(20, seed=2)
    ]
    half = np.quantile(off, 0.95) * t.ppf(0.975, 19) / 1.959964 * math.sqrt(20 / 19)
    assert score.ci95 == pytest.approx((max(0, score.value - half), score.value + half))


def test_calibration_of_a_single_cluster_may_be_any() -> None:
    confidence, correct = np.array([0.9, 0.8, 0.4]), np.array([True, False, True])
    score = clustered.ece_score(confidence, correct, np.zeros(3, dtype=np.int64), seed=0)
    assert (score.value, score.ci95) == (intervals.ece_score(confidence, correct, seed=0).value, (0, 1))


@pytest.mark.parametrize("kind", ["11pt", "area"])
def test_precision_leaves_out_whole_clusters(kind: APKind) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 2)), (rng.random((40, 2)) < 0.4).astype(np.uint8)
    cluster = np.repeat(np.arange(8), 5)

    def expected(rows: NDArray[np.bool_]) -> float:
        """Of all images there are: the i-th best of P positives marks the recall i / (P + 1)."""
        if kind == "11pt":
            return average_precision.mean_average_precision(scores[rows], labels[rows], kind)
        found = []
        for score, label in zip(scores[rows].T, labels[rows].T, strict=True):
            hits = np.sort(score[label == 1])[::-1]
            above = [(score[label == 0] > hit).sum() for hit in hits]
            marks = np.arange(1, hits.size + 1) * hits.size / (hits.size + 1)
            found.append(np.mean(marks / (marks + above)))
        return float(np.mean(found))

    left = np.array([expected(cluster != own) for own in range(8)])
    error = math.sqrt(7 / 8 * ((left - left.mean()) ** 2).sum())
    found = mean_average_precision_draws(scores, labels, 3, "ignore", [kind], cluster=cluster)[kind]
    about = expected(cluster >= 0)
    bias = 7 * (left.mean() - about) if kind == "area" else 0
    error = math.hypot(error, bias)
    assert found.draws == pytest.approx(left)
    assert found.error == pytest.approx(error)
    assert 1 <= found.freedom <= 7
    score = mean_average_precision_scores(scores, labels, 3, kinds=[kind], cluster=cluster)[f"map_{kind}"]
    centre, half = about - bias, t.ppf(0.975, found.freedom) * error
    assert score.ci95 == pytest.approx(
        [expit(logit(centre) + side * half / (centre * (1 - centre))) for side in (-1, 1)]
    )
    one, other = rng.random((40, 2)).astype(np.float32), scores.astype(np.float32)
    paired = paired_tests.of_average_precision(one, other, labels, kind, "ignore", 3, cluster=cluster)
    first = mean_average_precision_draws(one, labels, 3, "ignore", [kind], cluster=cluster)[kind]
    gains = found.draws - first.draws
    error = math.sqrt(7 / 8 * ((gains - gains.mean()) ** 2).sum())
    bias = 7 * (gains.mean() - (about - first.about)) if kind == "area" else 0
    freedom = clustered.jackknife(0, gains, np.ones(8)).freedom
    half = (paired.ci95[1] - paired.ci95[0]) / 2
    assert half == pytest.approx(t.ppf(0.975, freedom) * math.hypot(error, bias))
    assert paired.method == "jackknife of clusters"
    assert paired.ci95[0] <= paired.value <= paired.ci95[1]


def test_precision_of_very_many_clusters_leaves_out_groups_of_them() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((60, 1)), (rng.random((60, 1)) < 0.4).astype(np.uint8)
    few, each = (
        mean_average_precision_draws(scores, labels, 3, "ignore", ["11pt"], count, np.arange(60))["11pt"]
        for count in (20, 60)
    )
    assert few.weight is not None
    assert few.weight.tolist() == [3.0] * 20
    assert few.error == pytest.approx(each.error, rel=0.3)


def test_rankings_without_a_fault_leave_wilsons_interval_of_the_clusters_that_show_something() -> None:
    labels, cluster = np.array([[1], [1], [1], [0], [0]], dtype=np.uint8), np.array([0, 1, 2, 3, 3])
    score = mean_average_precision_scores(
        labels.astype(np.float64), labels, 0, kinds=["area"], cluster=cluster
    )
    assert score["map_area"].ci95 == intervals.wilson(3, 3)


# ----------------------------------------------------------------- two models


def test_two_models_are_told_apart_by_clusters() -> None:
    gains, cluster = np.array([1.0, 1, 1, 1, 0, 1, 1, 1]), np.repeat(np.arange(4), 2)
    found = paired_tests.of_clusters(
        np.bincount(cluster, gains) / 8, clustered.spread(gains, cluster), seed=0
    )
    assert (found.value, found.n) == (0.875, 4)
    assert found.p == 2 / 2**4  # all signs of four clusters; of seven samples it would be 2 / 2**7
    assert found.ci95[1] - found.value == pytest.approx(clustered.spread(gains, cluster).half)


def _write(root: Path, model: str, right: NDArray[np.bool_], names: list[str], **changes: Any) -> Any:
    """A record as `write_model` makes it, of samples in clusters."""
    plain = write_model(root, model, right, **changes)
    n = len(right)
    target = np.arange(n) % 5
    logits = np.zeros((n, 5), dtype=np.float32)
    logits[np.arange(n), np.where(right, target, (target + 1) % 5)] = 1
    ids = [f"i{k:04d}" for k in range(n)]
    clusters = np.array(names, dtype=object)
    found = outcomes.single_label([(slice(0, n), logits)], target, ids, 5, 0, clusters)
    record = plain.record.model_copy(update={"scores": found.scores})
    path = store.write(record, {k: np.asarray(v) for k, v in found.samples.items()}, root)
    return store.read(path)


@pytest.mark.parametrize("primary", ["acc1", "mean_per_class_recall"])
def test_records_are_compared_by_clusters(tmp_path: Path, primary: str) -> None:
    rng = np.random.default_rng(1)
    names = [f"s{k // 13}" for k in range(200)]
    one, other = (
        _write(tmp_path, m, rng.random(200) < share, names, primary=primary)
        for m, share in (("a", 0.5), ("b", 0.9))
    )
    pair = alignment.pair(one, other)
    assert pair.difference.n == len(set(names))
    assert pair.difference.value == pytest.approx(
        other.record.scores[primary].value - one.record.scores[primary].value
    )
    assert pair.difference.method.endswith("of clusters")
    part = alignment.contributions(other)
    assert part is not None
    assert set(part.ids) == set(names)
    assert part.values.sum() == pytest.approx(other.record.scores[primary].value)
    table = alignment._table(other)
    hits, before = ((np.array(t["rank"]) == 0).astype(np.float64) for t in (table, alignment._table(one)))
    stratum = np.array(table["target"]) if primary == "mean_per_class_recall" else None
    gained = clustered.spread(hits - before, clustered.codes(names), stratum)
    assert pair.difference.ci95 == pytest.approx((gained.value - gained.half, gained.value + gained.half))
    spread = clustered.spread(hits, clustered.codes(names), stratum)
    assert summed([part])[1] == pytest.approx(spread.error)
    mean = paired_tests.of_contributions([pair.contributions, pair.contributions], seed=0)  # type: ignore[list-item]
    assert mean.n == len(set(names))
    assert mean.ci95 == pytest.approx(pair.difference.ci95)


def test_records_of_other_clusters_are_not_compared(tmp_path: Path) -> None:
    right = np.arange(40) % 3 > 0
    one = _write(tmp_path / "a", "m", right, ["x"] * 20 + ["y"] * 20)
    other = write_model(tmp_path / "b", "m", right)
    with pytest.raises(DataError, match=f"{one.path} and {other.path} have other clusters"):
        comparison.of(one, other, top=1)


# ------------------------------------------------------------------- held out


def test_no_cluster_is_cut_by_validation_data() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(60), rng.integers(1, 30, 60))
    labels = rng.integers(0, 5, cluster.size)
    fit, held = hold_out_clusters(labels, cluster, 0.2, seed=0)
    assert not set(cluster[fit]) & set(cluster[held])
    assert sorted([*fit, *held]) == list(range(cluster.size))
    shares = np.bincount(labels[held]) / np.bincount(labels)
    assert np.all(np.abs(shares - 0.2) < 0.08)
    assert hold_out_clusters(labels, cluster, 0.2, seed=0)[1].tolist() == held.tolist()
    assert hold_out_clusters(labels, cluster, 0.2, seed=1)[1].tolist() != held.tolist()


def test_of_several_labels_a_sample_about_the_share_of_all_is_held_out() -> None:
    cluster = np.repeat(np.arange(10), 4)
    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    fit, held = hold_out_clusters(labels, cluster, 0.2, seed=0)
    assert (len(fit), len(held), len(set(cluster[held]))) == (32, 8, 2)


def test_every_class_of_two_clusters_has_some_held_out_and_some_to_fit_on() -> None:
    labels, cluster = np.repeat([0, 1, 2], 10), np.repeat(np.arange(6), 5)
    labels, cluster = np.append(labels, [3, 3]), np.append(cluster, [6, 6])  # one cluster: it stays
    for seed in range(5):
        fit, held = hold_out_clusters(labels, cluster, 0.2, seed)
        assert set(labels[held].tolist()) == {0, 1, 2}
        assert set(labels[fit].tolist()) == {0, 1, 2, 3}
    assert not len(hold_out_clusters(labels, np.zeros_like(labels), 0.2, 0)[1])


def test_samples_to_choose_on_are_of_no_clusters_of_the_shots() -> None:
    labels = np.arange(60) % 2
    clusters = np.array([f"s{k // 6}" for k in range(60)], dtype=object)
    shot, further = _draw(labels, 2, np.random.default_rng(0), clusters)
    assert not set(clusters[shot]) & set(clusters[further])
    assert (len(shot), np.bincount(labels[further]).tolist()) == (4, [2, 2])
    with pytest.raises(DataError, match="all of the 1 clusters"):
        _draw(labels, 2, np.random.default_rng(0), np.full(60, "s", dtype=object))


# ------------------------------------------------------------------- the data


def test_parts_of_a_split_cut_no_cluster(tmp_path: Path) -> None:
    slides = [f"s{k // 4}" for k in range(40)]
    with_column(small.write_parquet(tmp_path / "test.parquet", 40), "slide", slides)
    cuts = {"train": {"end": 0.5}, "test": {"start": 0.5}}
    splits = {role: {"name": "test", "part": {"seed": 0} | cut} for role, cut in cuts.items()}
    every: dict[str, Any] = {"whole": {"name": "test"}} | splits
    parts = [opened(tmp_path, role=role, splits=every).clusters for role in cuts]
    one, other = (set(() if part is None else part.tolist()) for part in parts)
    assert one | other == set(slides)
    assert one
    assert other
    assert not one & other


def test_a_single_cluster_gives_no_interval() -> None:
    with pytest.raises(DataError, match=r"all 3 samples are of one cluster \('s'\)"):
        clustered.codes(["s", "s", "s"])


@pytest.mark.parametrize("many", [False, True], ids=["single-label", "multi-label"])
def test_classes_of_one_cluster_are_named(many: bool) -> None:
    labels = np.array([0, 0, 1, 1, 2])
    split = FakeSplit(np.eye(3, dtype=np.uint8)[labels] if many else labels, ("cat", "dog", "eel"))
    split.clusters = np.array(["a", "b", "a", "a", "c"], dtype=object)
    _, lone = split.beside_notes()
    assert (lone.kind, lone.count, lone.examples) == ("lone-classes", 2, ("dog", "eel"))
    split.clusters = np.array(["a", "b", "a", "b", "c"], dtype=object)
    assert split.beside_notes()[1].examples == ("eel",)


def test_a_card_without_clusters_keeps_its_fingerprint() -> None:
    assert "cluster" not in Columns().model_dump()
    assert Columns(cluster="slide").model_dump()["cluster"] == "slide"


@pytest.mark.parametrize("values", [[f"s{k // 5}" for k in range(20)], [k // 5 for k in range(20)]])
def test_parquet_has_a_column_of_clusters(tmp_path: Path, values: list[Any]) -> None:
    file = small.write_parquet(tmp_path / "test.parquet", 20)
    bare = opened(tmp_path, columns={})
    with_column(file, "slide", values)
    split = opened(tmp_path)
    assert split.clusters is not None
    assert split.clusters.tolist() == [str(value) for value in values]
    assert split.ids == bare.ids
    assert split.fingerprint == opened(tmp_path, columns={}).fingerprint  # features stay
    part = Subset(split, np.array([3, 7]))
    assert part.clusters is not None
    assert part.clusters.tolist() == [str(values[3]), str(values[7])]
    (note,) = split.beside_notes()
    assert (note.count, "the largest of 5;" in note.text) == (4, True)


def test_columns_that_name_no_clusters(tmp_path: Path) -> None:
    file = small.write_parquet(tmp_path / "test.parquet", 20)
    said = message(tmp_path)
    assert "no column 'slide'; it has 'image', 'label'" in said
    assert "columns.cluster" in said
    with_column(file, "slide", [*["a"] * 19, None])
    assert "row 19 has nothing in the column 'slide', which columns.cluster" in message(tmp_path)
    with_column(file, "area", [0.5] * 20)
    said = message(tmp_path, columns={"cluster": "area"})
    assert "the column 'area' holds fractions, expected texts or whole numbers" in said


@pytest.mark.parametrize("label", [".cls", ".json", ".txt"])
def test_webdataset_has_a_field_of_clusters(tmp_path: Path, label: str) -> None:
    root = packed(tmp_path, ["a", "a", "b", 7, "b", "a"], label=label)
    captions = {"kind": "captions", "classes": None, "templates": None, "prompts_source": None}
    changes: dict[str, Any] = captions | {"protocols": {"ret": {}}} if label == ".txt" else {}
    for _ in range(2):  # the second time from the cache
        split = opened(root, **changes)
        assert split.clusters is not None
        assert split.clusters.tolist() == ["a", "a", "b", "7", "b", "a"]
    bare = opened(root, **changes, columns={})
    assert (bare.clusters, bare.ids, bare.fingerprint) == (None, split.ids, split.fingerprint)
    if label == ".txt":
        assert split.captions is not None
        assert set(split.captions.texts) == {"a cat"}
    else:
        assert split.labels.tolist() == bare.labels.tolist() == [0, 1, 2, 3, 4, 0]


def test_a_card_that_gains_clusters_reads_the_tars_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, slides = packed(tmp_path, ["a", "b", "b", "c", "c"]), ["a", "b", "b", "c", "c"]
    bare = opened(root, columns={})
    split = opened(root)
    assert (bare.clusters, split.clusters.tolist() if split.clusters is not None else None) == (None, slides)
    monkeypatch.setattr(WebDataset, "index", lambda self: pytest.fail("both indexes are in the cache"))
    assert opened(root, columns={}).ids == bare.ids
    again = opened(root).clusters
    assert again is not None
    assert again.tolist() == slides
    with pytest.raises(pytest.fail.Exception):
        opened(root, columns={"cluster": "patient"})  # another field is another index


@pytest.mark.parametrize("odd", [..., None, 0.5, True, "", ["a"]])
def test_a_sample_that_says_no_cluster_is_named(tmp_path: Path, odd: Any) -> None:
    said = message(packed(tmp_path, ["a", "a", odd, "b", "b"]))
    assert "sample 002 has no text or whole number as 'slide' in its .json" in said
    assert "columns.cluster on the task card" in said


def test_a_field_beside_is_no_caption(tmp_path: Path) -> None:
    tar_of(
        tmp_path / "test" / "0.tar", [("0.png", small.picture(0)), ("0.json", b'{"slide": 1, "label": "x"}')]
    )
    captions = {"kind": "captions", "classes": None, "templates": None, "prompts_source": None}
    said = message(tmp_path, **captions, protocols={"ret": {}})
    assert "sample 0 has no label beside its .json" in said
    assert ".txt (captions, one a line)" in said


def test_layouts_without_columns_say_what_has_them(tmp_path: Path) -> None:
    small.write_images(tmp_path, 10)
    said = message(tmp_path)
    assert "columns.cluster on the task card is 'slide', but samples here have no columns" in said
    assert "parquet tables (a column) and WebDataset tars" in said
    fields = {
        "title": "d", "splits": {"test": {"name": "test"}}, "classes": [str(d) for d in range(10)],
        "templates": {"default": ["{c}"]}, "prompts_source": "t", "protocols": {"zs": {}},
        "columns": {"cluster": "slide"}, "source": {"builtin": "digits"},
    }  # fmt: skip
    entry = Entry("digits", TaskCard.model_validate(fields), Path("d.yaml"))
    with pytest.raises(DataError, match="samples here have no columns"):
        open_split(entry, "test", DataPaths({}, ()))


# ------------------------------------------------------------ the whole way


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_from_the_command_line(tmp_path: Path, run: Run, layout: str) -> None:
    slides = [f"s{k // 7:02d}" for k in range(60)]
    for role in ("train", "test"):
        if layout == "parquet":
            with_column(small.write_parquet(tmp_path / "data" / f"{role}.parquet", 60), "slide", slides)
        else:
            packed(tmp_path / "data", list(slides))
            if role == "test":
                (tmp_path / "data" / "test").rename(tmp_path / "data" / "train")
                packed(tmp_path / "data", list(slides))
    small.write_task(
        tmp_path / "cards",
        columns={"cluster": "slide"},
        splits={role: {"name": role} for role in ("train", "test")},
        protocols={"zs": {}, "lp": {"classifier": {"kind": "logistic", "lambdas": 3}}},
    )
    common = ("--cards", tmp_path / "cards", "--data", f"animals={tmp_path / 'data'}")
    done = run("data", "check", "animals", *common)
    assert done.code == 0, done
    assert (
        "animals test: 9 clusters of samples, the largest of 7; intervals and tests are over clusters"
        in done.said
    )
    tasks = ["animals-zs", "animals-lp", "animals-lp@1-shot", "animals-lp@knn"]
    chosen = [part for task in tasks for part in ("--task", task)]
    for seed in (0, 1):
        model = small.write_run(tmp_path / f"run{seed}", seed=seed)
        arguments = ("--precision", "fp32", "--results", tmp_path / "results")
        done = run("eval", "--model", model, *chosen, *common, *arguments)
        assert done.code == 0, done
        assert (
            "test: 9 clusters of samples, the largest of 7; intervals and tests are over clusters"
            in done.said
        )
    found = list(store.read_all(tmp_path / "results"))
    assert len(found) == 8
    for stored in found:
        table = alignment._table(stored)
        assert table["cluster"] == slides
        assert next(note.count for note in stored.record.notes if note.kind == "clusters") == 9
        if "rank" in table:
            hits = (np.array(table["rank"]) == 0).astype(np.float64)
            expected = clustered.mean_score(hits, clustered.codes(slides), 0.2)
            assert stored.record.scores["acc1"].ci95 == expected.ci95
    first, second = sorted({stored.record.model for stored in found})
    done = run("compare", first, second, "--results", tmp_path / "results")
    assert done.code == 0, done
    judged = comparison.compare(first, second, tmp_path / "results", None, 0.05, 0)
    assert [one.n for one in judged] == [9] * 5  # four tasks and their mean
