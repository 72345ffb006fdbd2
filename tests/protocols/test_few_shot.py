"""How certain few-shot probes are, by the formulas written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, given
from numpy.typing import NDArray
from scipy.stats import t

from clipbench.metrics import clustered
from clipbench.protocols import _few_shot as few_shot
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols._logistic import Logistic, choice
from clipbench.protocols._samples import Samples
from clipbench.protocols.base import Outcome

LABELS = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])  # a class of one sample is among them
RANKS = np.array(
    [[0, 0, 5, 1, 0, 0, 0, 3, 0, 1], [0, 2, 0, 1, 0, 2, 0, 4, 0, 0], [0, 0, 5, 0, 0, 0, 1, 0, 0, 5]]
)


def mean_of(
    ranks: NDArray[np.int64], clusters: list[str] | None = None, groups: list[str] | None = None
) -> Outcome:
    """Probes of which each is as right as its row says: the own class has so many better ones, of six."""
    split = given("test", np.zeros((len(LABELS), 1), dtype=np.float32), LABELS, classes=6)
    split.clusters = None if clusters is None else np.array(clusters, dtype=object)
    split.groups = None if groups is None else np.array(groups, dtype=object)
    test, found = Samples.of(split, FakeEncoder(), "joint"), []
    for row in ranks:
        logits = np.zeros((len(LABELS), 6), dtype=np.float32)
        for at, (label, rank) in enumerate(zip(LABELS, row, strict=True)):
            others = [c for c in range(6) if c != label]
            logits[at, [*others[:rank], label, *others[rank:]]] = np.arange(6, 0, -1)
        blocks = [(slice(None), logits)]
        found.append(outcomes.single_label(blocks, LABELS, test.ids, 6, 0, test.clusters))
    return few_shot._mean_of(found, [{} for _ in found], test, "further samples", Logistic(), 0)


def half(values: list[float], square: float, freedom: float) -> float:
    """Half the interval of a mean of draws, by Satterthwaite, `square` being the variance that the samples leave."""
    between = float(np.var(values, ddof=1)) / len(values)
    total = between + square
    welch = total**2 / (between**2 / (len(values) - 1) + square**2 / freedom)
    return float(t.ppf(0.975, welch)) * math.sqrt(total)


@pytest.mark.parametrize(("metric", "best"), [("acc1", 1), ("acc5", 5)])
def test_accuracy_varies_by_draws_and_by_samples(metric: str, best: int) -> None:
    hits = best > RANKS
    values = hits.mean(axis=1).tolist()
    expected = half(values, hits.mean(axis=0).var(ddof=1) / 10, 9)
    found = mean_of(RANKS).scores[metric]
    assert found.value == pytest.approx(np.mean(values))
    assert found.ci95[0] == pytest.approx(found.value - expected)
    assert found.ci95[1] == pytest.approx(min(1, found.value + expected))


def test_recall_varies_by_draws_and_by_samples_within_classes() -> None:
    hits, counts = (RANKS == 0).mean(axis=0), np.bincount(LABELS)
    values = [float(np.mean([(row[c == LABELS] == 0).mean() for c in range(4)])) for row in RANKS]
    square = sum(hits[c == LABELS].var(ddof=1) / counts[c] for c in (0, 1, 3))
    square += hits.mean() * (1 - hits.mean())  # of the class of one sample
    found = mean_of(RANKS).scores["mean_per_class_recall"]
    assert found.value == pytest.approx(np.mean(values))
    expected = half(values, square / 16, 9)
    assert found.ci95 == pytest.approx((max(0, found.value - expected), min(1, found.value + expected)))


@pytest.mark.parametrize("metric", ["acc1", "mean_per_class_recall"])
def test_of_clusters_the_spread_is_theirs(metric: str) -> None:
    clusters = list("aabbcabdde")
    hits = (RANKS == 0).mean(axis=0)
    stratum = None if metric == "acc1" else LABELS
    spread = clustered.spread(hits, clustered.codes(clusters), stratum)
    outcome = mean_of(RANKS, clusters)
    per_draw: Any = outcome.evidence["per_draw"]
    found, expected = outcome.scores[metric], half(per_draw[metric], spread.error**2, spread.freedom)
    assert found.ci95 == pytest.approx((max(0, found.value - expected), min(1, found.value + expected)))
    assert np.asarray(outcome.samples["cluster"]).tolist() == clusters


def test_draws_that_agree_on_samples_that_agree_leave_wilsons_interval() -> None:
    (low, high) = mean_of(np.zeros((2, 10), dtype=np.int64)).scores["acc1"].ci95
    assert 0.6 < low < 0.8
    assert high == 1


def test_the_lowest_of_the_groups_is_of_each_draw() -> None:
    groups = list("aaabbbcccc")
    right = (RANKS == 0).astype(np.float64)
    lowest = [min(row[:3].mean(), row[3:6].mean(), row[6:].mean()) for row in right]
    evidence: Any = mean_of(RANKS, groups=groups).evidence
    assert len(set(lowest)) > 1
    assert evidence["per_draw"]["worst_group_acc1"] == pytest.approx(lowest)
    assert evidence["std"]["worst_group_acc1"] == pytest.approx(np.std(lowest, ddof=1))


@pytest.mark.parametrize("clusters", [False, True])
def test_the_record_says_what_penalties_were_chosen_on(clusters: bool) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    train, test = (given(role, rng.random((60, 3), np.float32), labels, 2) for role in ("train", "test"))
    if clusters:
        train.clusters = np.array([f"s{k // 6}" for k in range(60)], dtype=object)
    fit, seen = (Samples.of(split, FakeEncoder(), "joint") for split in (train, test))
    outcome = few_shot.few_shot("digits", 2, fit, seen, FakeEncoder(), Logistic(), shots=2, draws=1, seed=0)
    source = f"up to 2 further samples a class{', of clusters without a shot' if clusters else ''}"
    assert outcome.evidence["validation"] == {"metric": "acc1", "source": source}


@pytest.mark.parametrize(
    ("count", "edges"), [(1, [None]), (2, ["lowest", "highest"]), (3, ["lowest", None, "highest"])]
)
def test_the_ends_of_a_range_are_said_where_there_is_a_range(count: int, edges: list[str | None]) -> None:
    class Path:
        lambdas = np.geomspace(1e-2, 1e2, count)

    for index, edge in enumerate(edges):
        found = choice(Path, index)  # type: ignore[arg-type]
        assert edge in found["edge"] if edge else found["edge"] is None
        assert found["lambda"] * found["C"] == pytest.approx(1)
