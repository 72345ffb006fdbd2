"""Effective robustness: how far accuracy on a shift of ImageNet lies above what accuracy on ImageNet predicts.

Taori et al. 2020 (arXiv 2007.00644): a line through models that were trained on ImageNet alone, of logit(accuracy on
the shift) on logit(accuracy on ImageNet), on the classes of the shift; what a model has above the line is ρ, in points.
The lines are fits to the standard models of the authors' table (modestyachts/imagenet-testbed 0170eec,
robustness_top1s.csv and model_types.py). A line through the models that were measured here is another thing, and has
another name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Final, Literal, NamedTuple

import numpy as np

from clipbench.errors import DataError
from clipbench.records import published
from clipbench.report.dataframe import Row
from clipbench.report.table import aligned
from clipbench.utils.outputs import PNG_SOFTWARE

Line = Literal["standard", "measured"]


class Fit(NamedTuple):
    """A line of logits, for accuracies on ImageNet from `low` to `high`: where they are from, and how well it fits.

    `models` is None where that is not said; `known` are the accuracies that the line was fitted to, None likewise.
    """

    slope: float
    intercept: float
    models: int | None = None
    r2: float | None = None
    low: float = 0.0
    high: float = 1.0
    known: tuple[float, float] | None = None

    def predicts(self, accuracy: float) -> float:
        """Accuracy on the shift, of 1.

        >>> round(100 * Fit(0.9232, -0.4977).predicts(0.7554), 1)
        63.3
        """
        return _sigmoid(self.slope * _logit(accuracy) + self.intercept)


#: task of the shift → the task on ImageNet's own images of its classes, and the lines of the standard models
STANDARD: Final[dict[str, tuple[str, tuple[Fit, ...]]]] = {
    "imagenetv2-zs": ("imagenet-zs", (Fit(0.9232, -0.4977, 85, 0.996, known=(0.565, 0.847)),)),
    "imagenet-sketch-zs": ("imagenet-zs", (Fit(1.0709, -2.3701, 85, 0.869, known=(0.565, 0.847)),)),
    "imagenet-r-zs": (
        "imagenet-zs@r-classes",
        (Fit(0.6368, -2.1077, 80, 0.889, known=(0.769, 0.965)),),
    ),
    "objectnet-zs": (
        "imagenet-zs@objectnet-classes",
        (Fit(0.9809, -1.9283, 85, 0.953, known=(0.566, 0.883)),),
    ),
    "imagenet-a-zs": (
        "imagenet-zs@a-classes",
        (
            Fit(0.6894, -5.1400, 33, 0.411, high=0.9186),
            Fit(2.9560, -10.2774, 51, 0.905, low=0.9186),
        ),
    ),
}
_METRIC: Final = "acc1"
_TICKS: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_FEWEST: Final = 3  # models that make a line


@dataclass(frozen=True)
class Robustness:
    """One model on one shift; accuracies and their ends are of 1.

    Attributes:
        expected: what the line gives for the model's accuracy on ImageNet.
        rho: how far the accuracy on the shift lies above it, in points.
        ci95: of `rho`: the sampling noise of both accuracies; the line is taken as it is.
        outside: whether the accuracy on ImageNet lies outside those that the line was fitted to; None: not known.
    """

    model: str
    shift: str
    base: str
    on_base: float
    on_shift: float
    expected: float
    rho: float
    ci95: tuple[float, float]
    outside: bool | None


def _logit(value: float) -> float:
    return math.log(value / (1 - value))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def measured(rows: Iterable[Row], line: Line = "standard") -> list[Robustness]:
    """Every model on every shift of which both accuracies were measured, by shift, then model.

    Args:
        rows: of records that may be shown.
        line: of the standard models, or through the models that were measured here (at least three).

    Raises:
        DataError: there is none.
    """
    scores = {
        (row.model, row.task): row
        for row in rows
        if row.metric == _METRIC and row.value is not None and row.low is not None and row.high is not None
    }
    found: list[Robustness] = []
    for shift, (base, fits) in STANDARD.items():
        pairs = [
            (model, scores[model, base], row)
            for (model, task), row in sorted(scores.items())
            if task == shift and (model, base) in scores
        ]
        pairs = [pair for pair in pairs if all(0 < (row.value or 0) < 1 for row in pair[1:])]
        if line == "measured":
            own = line_through([(row.value or 0.0, other.value or 0.0) for _, row, other in pairs])
            fits = () if own is None else (own,)
        for model, row, other in pairs if fits else ():
            found.append(_above(model, shift, base, row, other, fits))
    if not found:
        wanted = "; ".join(f"{shift} with {base}" for shift, (base, _) in STANDARD.items())
        many = f" of {_FEWEST} models or more" if line == "measured" else ""
        raise DataError(
            f"no records{many} of a shift of ImageNet and of ImageNet on its classes",
            hint=f"measure both: {wanted}",
        )
    return found


def line_through(points: Sequence[tuple[float, float]]) -> Fit | None:
    """Least squares of logits through (accuracy on ImageNet, on the shift); None through fewer than three."""
    if len(points) < _FEWEST or len({x for x, _ in points}) < 2:
        return None
    x, y = (np.array([_logit(point[axis]) for point in points]) for axis in (0, 1))
    slope, intercept = np.polyfit(x, y, 1)
    left = y - slope * x - intercept
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float((left**2).sum()) / spread if spread else 1.0
    ends = min(p[0] for p in points), max(p[0] for p in points)
    return Fit(float(slope), float(intercept), len(points), r2, known=ends)


def _above(model: str, shift: str, base: str, row: Row, other: Row, fits: Sequence[Fit]) -> Robustness:
    on_base, on_shift = row.value or 0.0, other.value or 0.0
    fit = next(fit for fit in fits if fit.low <= on_base <= fit.high)
    expected = fit.predicts(on_base)
    # how much the prediction moves with the accuracy on ImageNet
    steep = fit.slope * expected * (1 - expected) / (on_base * (1 - on_base))
    halves = [((one.high or 0.0) - (one.low or 0.0)) / 2 for one in (row, other)]
    half = 100 * math.hypot(steep * halves[0], halves[1])
    rho = 100 * (on_shift - expected)
    outside = None if fit.known is None else not fit.known[0] <= on_base <= fit.known[1]
    return Robustness(model, shift, base, on_base, on_shift, expected, rho, (rho - half, rho + half), outside)


def text(found: Sequence[Robustness], line: Line) -> str:
    """A table for a terminal of 80 columns, and what its numbers mean."""
    headings = ["shift / model", "ImageNet", "shift", "line", "ρ points", ""]
    lines: list[list[str]] = []
    for shift in dict.fromkeys(one.shift for one in found):
        own = [one for one in found if one.shift == shift]
        lines.append([f"{shift} (on {own[0].base})"])
        for one in sorted(own, key=lambda one: -one.rho):
            shown = [f"{100 * value:.2f}" for value in (one.on_base, one.on_shift, one.expected)]
            ends = f"{one.rho:+.2f} ({one.ci95[0]:+.2f} … {one.ci95[1]:+.2f})"
            lines.append([f"  {one.model}", *shown, ends, "x" if one.outside else ""])
    told = [
        "line: what models trained on ImageNet alone have (Taori et al. 2020), of the same accuracy on ImageNet"
        if line == "standard"
        else "line: through the models measured here; no effective robustness, which is against standard models",
        "ρ: how far above the line, in points, with the sampling noise of both accuracies",
    ]
    if any(one.outside for one in found):
        told.append(
            "x: extrapolated: the accuracy on ImageNet lies outside those that the line was fitted to"
        )
    if line == "standard" and any(one.shift == "imagenet-a-zs" for one in found):
        told.append(
            "imagenet-a-zs: two lines, below and above 91.86 on its classes; their ends are not known"
        )
    return aligned(headings, lines, left={0, 5}) + "\n" + "".join(f"{fill(one, 80)}\n" for one in told)


def plot(found: Sequence[Robustness], line: Line) -> bytes:
    """Accuracy on each shift against ImageNet on logit axes, with the line; published models hollow: a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shifts = list(dict.fromkeys(one.shift for one in found))
    figure = Figure(figsize=(4.6 * len(shifts), 4.6), layout="constrained")
    for axes, shift in zip(np.atleast_1d(figure.subplots(1, len(shifts))), shifts, strict=True):
        own = [one for one in found if one.shift == shift]
        base = own[0].base
        theirs = _published(base, shift)
        if line == "standard":
            fits: Sequence[Fit] = STANDARD[shift][1]
        else:
            through = line_through([(one.on_base, one.on_shift) for one in own])
            fits = () if through is None else (through,)
        for fit in fits:
            low, high = fit.known or (max(fit.low, 0.5), min(fit.high, 0.985))
            grid = np.linspace(low, high, 50)
            axes.plot(grid, [fit.predicts(x) for x in grid], color="0.4", linewidth=1.2)
        if theirs:
            axes.scatter(
                *zip(*theirs, strict=True), s=18, facecolors="none", edgecolors="0.6", label="published"
            )
        axes.scatter(
            [o.on_base for o in own], [o.on_shift for o in own], s=34, color="C0", label="measured here"
        )
        for one in own:
            axes.annotate(
                one.model, (one.on_base, one.on_shift), xytext=(5, -9), textcoords="offset points", fontsize=7
            )
        axes.set(
            xscale="logit",
            yscale="logit",
            xlabel=f"{base}, acc1 (%)",
            ylabel=f"{shift}, acc1 (%)",
            title=shift,
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(_TICKS))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
            axis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    title = (
        "Effective robustness: against models trained on ImageNet alone"
        if line == "standard"
        else "A line through the models measured here (no effective robustness)"
    )
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata=PNG_SOFTWARE)
    return buffer.getvalue()


def _published(base: str, shift: str) -> list[tuple[float, float]]:
    """Accuracies of open_clip's table where it has both."""
    of: dict[tuple[str, str], dict[str, float]] = {}
    for one in published.every():
        if one.source == "openclip" and one.task in (base, shift) and one.metric == _METRIC:
            of.setdefault((one.architecture, one.tag), {})[one.task] = one.percent / 100
    pairs = [(own[base], own[shift]) for own in of.values() if base in own and shift in own]
    return [pair for pair in pairs if 0 < pair[0] < 1 and 0 < pair[1] < 1]
