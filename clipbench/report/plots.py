"""Pictures of a record: how a probe's penalty was chosen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from clipbench.errors import ClipbenchError
from clipbench.records.record import Record
from clipbench.utils.outputs import PNG_SOFTWARE


def validation_curve(record: Record) -> bytes:
    """λ against the validation score, the chosen λ marked, and flagged where it lies on the edge: a PNG.

    λ that did not converge are hollow. Few-shot records have a curve a draw; a multi-label record has the mean
    curve, and a mark for each class's own λ.

    Raises:
        ClipbenchError: the record chose nothing on validation data.
    """
    from matplotlib.figure import Figure

    curves = _curves(record.evidence)
    if not curves:
        raise ClipbenchError(
            f"{record.model} on {record.task}: this record has no validation curve",
            hint="records of the logistic probes have one (tasks …-lp, …-lp@<k>-shot)",
        )
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (points, chosen) in enumerate(curves):
        x = [float(p["lambda"]) for p in points]
        y = [100 * float(p["score"]) for p in points]
        solved = [bool(p["converged"]) for p in points]
        colour = f"C{number % 10}"
        label = f"draw {number + 1}" if len(curves) > 1 else None
        axes.plot(x, y, color=colour, linewidth=1, alpha=0.6, label=label)
        axes.scatter(x, y, s=14, facecolors=[colour if s else "none" for s in solved], edgecolors=colour)
        for place, count, edge in _marks(chosen):
            nearest = min(range(len(x)), key=lambda i: abs(x[i] / place - 1))
            axes.scatter([x[nearest]], [y[nearest]], s=110, marker="*", color="C3", zorder=3)
            text = f"λ = {place:.3g}" + (f" ({count} classes)" if count else "")
            text += "\non the edge" if edge else ""
            below = y[nearest] > 97  # above it would be outside
            axes.annotate(
                text,
                (x[nearest], y[nearest]),
                xytext=(0, -10 if below else 8),
                textcoords="offset points",
                ha="left" if nearest < len(x) / 8 else "right" if nearest > len(x) * 7 / 8 else "center",
                va="top" if below else "bottom",
                color="C3",
                fontsize=8,
            )
    validation: Any = record.evidence.get("validation", {})
    axes.set(
        xscale="log",
        xlabel="λ = 1 / C   (weak ← regularisation → strong)",
        ylabel=f"{validation.get('metric', 'score')} on validation data (%)",
        title=f"{record.model} on {record.task}",
    )
    axes.margins(y=0.15)
    axes.set_ylim(top=min(axes.get_ylim()[1], 102))
    axes.grid(alpha=0.25)
    if len(curves) > 1:
        axes.legend()
    if any(not p["converged"] for points, _ in curves for p in points):
        axes.text(0.99, 0.01, "hollow: not converged", transform=axes.transAxes, ha="right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata=PNG_SOFTWARE)
    return buffer.getvalue()


def _curves(evidence: Any) -> list[tuple[Sequence[Any], Any]]:
    """Points and choice of every curve that a record's evidence holds."""
    if "draws" in evidence:
        return [(draw["curve"], draw["chosen"]) for draw in evidence["draws"]]
    return [(evidence["curve"], evidence["chosen"])] if "curve" in evidence else []


def _marks(chosen: Any) -> list[tuple[float, int, bool]]:
    """(λ, how many classes took it, whether it is on the edge); 0 classes where all took the same."""
    if "lambda" in chosen:
        return [(float(chosen["lambda"]), 0, bool(chosen["edge"]))]
    found: dict[float, list[Any]] = {}
    for one in chosen.values():
        found.setdefault(float(one["lambda"]), []).append(one)
    return [(value, len(of), bool(of[0]["edge"])) for value, of in sorted(found.items())]
