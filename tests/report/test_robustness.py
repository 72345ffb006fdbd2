"""Effective robustness: the reference page's example, its interval, what lies outside, and a line of one's own."""

from __future__ import annotations

import numpy as np
import pytest

from clipbench.errors import DataError
from clipbench.report import robustness
from clipbench.report.dataframe import Row
from clipbench.report.robustness import STANDARD, measured
from clipbench.utils.outputs import PNG_MARK


def row(model: str, task: str, value: float, half: float = 0.004) -> Row:
    return Row(model, task, metric="acc1", value=value, low=value - half, high=value + half, n=10_000)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_the_example_of_the_reference_page() -> None:
    """ID 75.54: 63.3 is expected on V2; ViT-L/14 has 69.8, so ρ is 6.6 points."""
    (one,) = measured([row("L", "imagenet-zs", 0.7554), row("L", "imagenetv2-zs", 0.698)])
    assert round(100 * one.expected, 1) == pytest.approx(63.3, abs=0.11)
    assert round(one.rho, 1) == pytest.approx(6.6, abs=0.11)
    assert one.outside is False
    assert one.base == "imagenet-zs"


def test_the_interval_has_the_noise_of_both_accuracies() -> None:
    """Against draws of both accuracies: the share of ρ's interval that they fill."""
    random = np.random.default_rng(0)
    n, base, shift = 10_000, 0.70, 0.60
    half = [1.96 * np.sqrt(p * (1 - p) / n) for p in (base, shift)]
    (one,) = measured([row("m", "imagenet-zs", base, half[0]), row("m", "imagenetv2-zs", shift, half[1])])
    fit = STANDARD["imagenetv2-zs"][1][0]
    drawn = [random.binomial(n, p, 20_000) / n for p in (base, shift)]
    rhos = 100 * (drawn[1] - np.array([fit.predicts(p) for p in drawn[0]]))
    assert one.ci95[1] - one.rho == pytest.approx(1.96 * rhos.std(), rel=0.03)
    assert one.rho == pytest.approx(rhos.mean(), abs=0.02)


def test_accuracies_outside_the_fit_are_flagged() -> None:
    rows = [row("weak", "imagenet-zs", 0.30), row("weak", "imagenetv2-zs", 0.25)]
    (one,) = measured(rows)
    assert one.outside
    assert "x: extrapolated" in robustness.text([one], "standard")


def test_each_shift_has_imagenet_on_its_own_classes() -> None:
    rows = [row("m", "imagenet-zs", 0.7), row("m", "imagenet-r-zs", 0.6)]
    with pytest.raises(DataError, match="imagenet-r-zs with imagenet-zs@r-classes"):
        measured(rows)
    (one,) = measured([*rows, row("m", "imagenet-zs@r-classes", 0.88)])
    assert (one.shift, one.base) == ("imagenet-r-zs", "imagenet-zs@r-classes")
    assert one.expected == pytest.approx(1 / (1 + np.exp(-(0.6368 * logit(0.88) - 2.1077))))


@pytest.mark.parametrize(("base", "slope", "intercept"), [(0.90, 0.6894, -5.14), (0.95, 2.956, -10.2774)])
def test_imagenet_a_has_two_lines(base: float, slope: float, intercept: float) -> None:
    (one,) = measured([row("m", "imagenet-zs@a-classes", base), row("m", "imagenet-a-zs", 0.3)])
    assert one.expected == pytest.approx(1 / (1 + np.exp(-(slope * logit(base) + intercept))))
    assert one.outside is None


def test_a_line_through_the_measured_models_is_another_thing() -> None:
    on_line = [(0.5, 0.4), (0.6, 0.52), (0.75, 0.66), (0.8, 0.7)]
    rows = [
        row(f"m{i}", task, value)
        for i, pair in enumerate(on_line)
        for task, value in zip(("imagenet-zs", "imagenetv2-zs"), pair, strict=True)
    ]
    found = measured(rows, "measured")
    slope, intercept = np.polyfit([logit(x) for x, _ in on_line], [logit(y) for _, y in on_line], 1)
    for one, (x, y) in zip(found, on_line, strict=True):
        expected = 1 / (1 + np.exp(-(slope * logit(x) + intercept)))
        assert one.rho == pytest.approx(100 * (y - expected))
    assert "no effective robustness" in robustness.text(found, "measured")
    with pytest.raises(DataError, match="of 3 models or more"):
        measured(rows[:4], "measured")
    for line in ("standard", "measured"):
        assert PNG_MARK in robustness.plot(found, line)


def test_the_table_fits_80_columns() -> None:
    name = "open_clip:ViT-B-32@x"
    found = measured([row(name, "imagenet-zs", 0.7554), row(name, "imagenetv2-zs", 0.698)])
    text = robustness.text(found, "standard")
    assert max(map(len, text.splitlines()[:4])) <= 80
