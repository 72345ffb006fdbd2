"""Outcomes of a few samples, by worked values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSplit, card
from numpy.typing import NDArray

from clipbench.data.labels import require_difficult
from clipbench.errors import DataError
from clipbench.metrics.average_precision import DIFFICULT, Difficult
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols.base import Outcome


def single(classes: int) -> Outcome:
    """Four samples of classes 0, 0, 1, 2, whose logits put their own class first, second, fourth and last."""
    logits = np.tile(-np.arange(classes, dtype=np.float32), (4, 1))
    logits[0, 0], logits[1, 1] = 9, 9
    logits[2] = [7, 1, 8, 9, *[-1] * (classes - 4)]
    logits[3, 2] = -50
    ids = [f"i{n}" for n in range(4)]
    blocks = [(slice(0, 3), logits[:3]), (slice(3, 4), logits[3:])]
    return outcomes.single_label(blocks, np.array([0, 0, 1, 2]), ids, classes, seed=0)


def test_single_labels_by_hand() -> None:
    outcome = single(6)
    assert np.asarray(outcome.samples["rank"]).tolist() == [0, 1, 3, 5]
    assert np.asarray(outcome.samples["prediction"]).tolist() == [0, 1, 3, 0]
    for name, value, chance in (
        ("acc1", 0.25, 1 / 6),
        ("acc5", 0.75, 5 / 6),
        ("mean_per_class_recall", 0.5 / 3, 1 / 6),
    ):
        score = outcome.scores[name]
        assert (score.value, score.chance) == pytest.approx((value, chance)), name
    assert np.asarray(outcome.per_class["recall"])[:3].tolist() == [0.5, 0, 0]


@pytest.mark.parametrize(("classes", "has"), [(4, False), (5, True)])
def test_the_best_five_count_from_five_classes_on(classes: int, has: bool) -> None:
    assert ("acc5" in single(classes).scores) is has


def test_confidence_is_that_of_the_softmax() -> None:
    confidence = np.asarray(single(4).samples["confidence"])
    assert confidence[2] == pytest.approx(np.exp(9) / np.exp([7, 1, 8, 9]).sum(), rel=1e-6)


def test_what_samples_add_to_a_metric_is_read_from_their_file() -> None:
    """Of recall, a sample of one of three classes adds as much as the two of another do together."""
    outcome = single(6)
    table = {name: np.asarray(column).tolist() for name, column in outcome.samples.items()}
    again = {"rank_0": table["rank"], "rank_1": [1, 0, 0, 5], "target": table["target"]}  # two draws of shots
    wanted: dict[str, tuple[list[float], list[float]]] = {
        "acc1": ([1, 0, 0, 0], [0.5, 0.5, 0.5, 0]),
        "acc5": ([1, 1, 1, 0], [1, 1, 1, 0]),
        "mean_per_class_recall": ([2 / 3, 0, 0, 0], [1 / 3, 1 / 3, 2 / 3, 0]),
    }
    found = {s.name: s.shares for s in outcomes.SINGLE_LABEL if s.shares and s.lowest_of is None}
    assert found.keys() == wanted.keys()
    for name, of in found.items():
        for columns, shares in zip((table, again), wanted[name], strict=True):
            assert of(name, columns, {}) == pytest.approx(np.array(shares)), name
        assert sum(wanted[name][0]) / 4 == pytest.approx(outcome.scores[name].value)
        assert of(name, {"id": [], "target": []}, {}) is None


def test_of_errors_of_calibration_the_smaller_is_better_and_of_nothing_else() -> None:
    every = (*outcomes.SINGLE_LABEL, *outcomes.MULTI_LABEL)
    assert {spec.name for spec in every if spec.less_is_better} == {"ece"}
    assert {spec.precision for spec in outcomes.MULTI_LABEL} == {"area", "11pt", "envelope"}


# -------------------------------------------------------------------- multi-label


@pytest.mark.parametrize(
    ("kind", "primary", "difficult", "said"),
    [
        ("single-label", "acc1", None, None),
        ("single-label", "map_area", None, "map_area is no metric of a single-label set"),
        ("single-label", "acc1", "ignore", "difficult belongs to multi-label sets"),
        ("multi-label", "map_11pt", "ignore", None),
        ("multi-label", "acc1", None, "acc1 is no metric of a multi-label set"),
    ],
)
def test_a_metric_that_does_not_fit_the_labels_is_named(
    kind: str, primary: str, difficult: Difficult | None, said: str | None, tmp_path: Path
) -> None:
    found = outcomes.misfit_of_labels(card(tmp_path, 6, kind=kind), primary, difficult)
    assert said in (found or "") if said else found is None


def test_the_best_five_need_five_classes(tmp_path: Path) -> None:
    found = [outcomes.misfit_of_labels(card(tmp_path, classes), "acc5", None) for classes in (4, 5)]
    assert found == ["acc5 needs at least 5 classes", None]
    assert outcomes.misfit_of_labels(card(tmp_path, 4), "acc1", None) is None


LABELS: NDArray[np.uint8] = np.array([[1, 0], [0, 1], [DIFFICULT, 1]], dtype=np.uint8)


def test_several_labels_by_hand() -> None:
    """The first class ranks its difficult image first, then its positive; the second its negative, then both."""
    scores = np.array([[0.5, 0.9], [0.1, 0.8], [0.9, 0.7]], dtype=np.float32)
    values = {"ignore": 1.0, "positive": 1.0, "negative": 0.5}
    for difficult, first in values.items():
        outcome = outcomes.multi_label(scores, LABELS, ["a", "b", "c"], difficult, 0)  # type: ignore[arg-type]
        second = (1 / 2 + 2 / 3) / 2
        assert np.asarray(outcome.per_class["ap_area"]).tolist() == pytest.approx([first, second]), difficult
        assert outcome.scores["map_area"].value == pytest.approx((first + second) / 2)
        assert set(outcome.per_class) == {"ap_area", "ap_11pt"}
    assert [row.tolist() for row in outcome.samples["target"]] == LABELS.tolist()
    assert np.array_equal(np.stack(list(outcome.samples["score"])), scores)


@pytest.mark.parametrize(("difficult", "trained"), [("ignore", 0), ("negative", 0), ("positive", 1)])
def test_difficult_objects_are_trained_as_they_are_tested(difficult: Difficult, trained: int) -> None:
    found = outcomes.training_labels(LABELS, difficult)
    assert found.tolist() == [[1, 0], [0, 1], [trained, 1]]
    assert found.dtype == np.uint8


def test_a_rule_for_difficult_objects_needs_some() -> None:
    marked, bare = (FakeSplit(labels, ("a", "b")) for labels in (LABELS, LABELS[:2]))
    assert require_difficult(marked, None) == "ignore"
    assert require_difficult(bare, None) == "ignore"
    rule: Difficult
    for rule in ("ignore", "negative", "positive"):
        assert require_difficult(marked, rule) == rule
    assert require_difficult(bare, "positive") == "positive"
    for rule in ("ignore", "negative"):
        with pytest.raises(DataError, match=f"difficult: {rule} would be difficult: positive"):
            require_difficult(bare, rule)
