"""Accuracies by condition, and sums of them, against brute force and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from fakes import FakeEncoder, FakeSplit, unit

from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.errors import CardError, DataError
from clipbench.protocols.conditions import PROTOCOL, Params, run

NAMES = tuple(f"c{i}" for i in range(4))


def card(tmp_path: Path, **changes: Any) -> TaskCard:
    fields = {
        "classes": NAMES,
        "templates": {"default": ["{c}"]},
        "columns": {"group": "condition"},
        "protocols": {"conditions": {}},
    }
    return parse(TaskCard, Document(small.write_task(tmp_path, "fake", **(fields | changes)) / "fake.yaml"))


def measured(tmp_path: Path, conditions: list[str], seed: int = 0, **params: Any) -> tuple[Any, Any, Any]:
    """The outcome on random features, 4 classes; the hits of each sample, and the conditions."""
    rng = np.random.default_rng(seed)
    images = unit(rng.standard_normal((len(conditions), 5)).astype(np.float32))
    weights = unit(rng.standard_normal((4, 5)).astype(np.float32))
    labels = rng.integers(0, 4, len(conditions))
    split = FakeSplit(labels, NAMES)
    split.groups = np.array(conditions, dtype=object)
    split.clusters = np.array([f"image{i % 30}" for i in range(len(conditions))], dtype=object)
    encoder = FakeEncoder(images, dict(zip(NAMES, weights, strict=True)))
    outcome = run(card(tmp_path), {"test": split}, encoder, Params(**params), seed=0)
    return outcome, (images @ weights.T).argmax(axis=1) == labels, split.groups


def test_each_condition_counts_as_one_whatever_its_size(tmp_path: Path) -> None:
    outcome, hits, of = measured(tmp_path, ["a"] * 90 + ["b"] * 20 + ["c"] * 10)
    mean = np.mean([hits[of == name].mean() for name in "abc"])
    assert outcome.scores["mean_acc1"].value == pytest.approx(mean)
    assert outcome.scores["mean_acc1"].value != pytest.approx(hits.mean())
    assert outcome.scores["mean_acc1"].chance == pytest.approx(0.25)
    told = {one["condition"]: (one["acc1"], one["n"]) for one in outcome.evidence["conditions"]}
    assert told == {name: (pytest.approx(hits[of == name].mean()), (of == name).sum()) for name in "abc"}
    for spec in PROTOCOL.metrics:
        if spec.name in outcome.scores:
            assert spec.shares is not None
            shares = spec.shares(spec.name, outcome.samples, {})
            assert shares is not None
            assert shares.mean() == pytest.approx(outcome.scores[spec.name].value)


def test_the_mean_corruption_error_is_that_of_its_paper(tmp_path: Path) -> None:
    conditions = [f"{kind}/{s}" for kind in ("noise/shot", "fog") for s in (1, 2, 3)] * 30 + ["extra/x/1"] * 5
    reference = {"shot": 0.8, "fog": 0.5}
    outcome, hits, of = measured(tmp_path, conditions, primary="mce", reference=reference, severities=3)
    ce = []
    for kind, name in (("shot", "noise/shot"), ("fog", "fog")):
        errors = [1 - hits[of == f"{name}/{s}"].mean() for s in (1, 2, 3)]
        ce.append(sum(errors) / (3 * reference[kind]))
    assert outcome.scores["mce"].value == pytest.approx(np.mean(ce))
    assert outcome.scores["mce"].chance == pytest.approx(0.75 * (1 / 0.8 + 1 / 0.5) / 2)
    assert outcome.evidence["left_out"] == 5
    assert len(outcome.samples["condition"]) == 180


def test_a_gap_and_a_drop_are_differences(tmp_path: Path) -> None:
    conditions = ["same"] * 40 + ["rand"] * 50 + ["original"] * 60
    outcome, hits, of = measured(tmp_path, conditions, gap=("same", "rand"), original="original")
    mean = {name: hits[of == name].mean() for name in ("same", "rand", "original")}
    assert outcome.scores["gap"].value == pytest.approx(mean["same"] - mean["rand"])
    assert outcome.scores["drop"].value == pytest.approx(mean["original"] - (mean["same"] + mean["rand"]) / 2)
    assert outcome.scores["drop"].chance == pytest.approx(0)


def test_where_every_image_is_wrong_the_interval_still_has_a_width(tmp_path: Path) -> None:
    """30 images, all wrong: as of 0 of 30 the upper end is 11.4 %, and a gap may be as large either way."""
    split = FakeSplit(np.zeros(60, np.int64), NAMES)
    split.groups = np.array(["a"] * 30 + ["b"] * 30, dtype=object)
    split.clusters = np.array([f"image{i % 30}" for i in range(60)], dtype=object)
    weights = np.eye(4, dtype=np.float32)
    images = np.tile(weights[1], (60, 1))
    encoder = FakeEncoder(images, dict(zip(NAMES, weights, strict=True)))
    outcome = run(card(tmp_path), {"test": split}, encoder, Params(gap=("a", "b")), seed=0)
    wilson = 1.96**2 / (30 + 1.96**2)
    assert outcome.scores["mean_acc1"].value == 0
    assert outcome.scores["mean_acc1"].ci95[1] == pytest.approx(wilson, abs=1e-3)
    assert outcome.scores["mean_acc1"].ci95[0] == 0
    assert list(outcome.scores["gap"].ci95) == pytest.approx([-wilson, wilson], abs=1e-3)


def test_only_the_conditions_that_are_named_count(tmp_path: Path) -> None:
    outcome, hits, of = measured(tmp_path, ["a", "b"] * 40, only=("b",))
    assert outcome.scores["mean_acc1"].value == pytest.approx(hits[of == "b"].mean())
    assert outcome.evidence["left_out"] == 40
    with pytest.raises(DataError, match="no image of 1 of 1 conditions, first d"):
        measured(tmp_path, ["a", "b"] * 40, only=("d",))


def test_intervals_hold_the_expected_value(tmp_path: Path) -> None:
    """Of 200 draws of images that are right at random, by image alike under every condition, about 95 % hold it."""
    held = 0
    for seed in range(200):
        outcome, _, _ = measured(tmp_path, ["a"] * 30 + ["b"] * 30, seed=seed)
        low, high = outcome.scores["mean_acc1"].ci95
        held += low <= 0.25 <= high
    assert held >= 180


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"primary": "mce"}, "primary mce needs reference"),
        ({"primary": "gap"}, "primary gap needs gap"),
        ({"primary": "drop"}, "primary drop needs original"),
        ({"gap": ["a"]}, "gap names two conditions, found a"),
        ({"reference": {"fog": 0.0}}, "reference holds errors, above 0 and at most 1"),
        ({"reference": {"fog": 0.5}, "only": ["fog/1"]}, "give only or reference, not both"),
        ({"templates": "x"}, 'unknown template set "x"'),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    columns = {"group": "condition"}
    small.write_task(tmp_path, protocols={"conditions": params}, columns=columns)
    with pytest.raises(CardError) as caught:
        Catalog([tmp_path]).task("animals-conditions")
    assert message in str(caught.value)


def test_a_card_without_groups_has_no_conditions(tmp_path: Path) -> None:
    small.write_task(tmp_path, protocols={"conditions": {}})
    with pytest.raises(CardError, match="conditions needs columns"):
        Catalog([tmp_path]).task("animals-conditions")
