"""The picture of a run: its loss, and its scores as it went."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from clipbench.pretrain.run.events import Line, number


def draw(lines: Sequence[Line], *, title: str, chance: float, metric: str) -> bytes:
    """Loss by step, and where there were evaluations `metric` by step for every task: a PNG.

    Args:
        lines: of metrics.jsonl.
        chance: the loss of features that say nothing, drawn as a line.
        metric: name of the score to draw; evaluations without it are left out.
    """
    import pandas as pd
    from matplotlib.figure import Figure

    steps = [line for line in lines if "loss" in line]
    scores = [line for line in lines if line.get(metric) is not None]
    figure = Figure(figsize=(10, 4) if scores else (5.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    figure.suptitle(title)

    x = np.array([number(line["step"]) for line in steps])
    loss = np.array([number(line["loss"]) for line in steps])
    axes[0].plot(x, loss, color="0.8", linewidth=0.8, label="each step")
    axes[0].plot(x, pd.Series(loss).ewm(alpha=0.1).mean(), color="C0", label="smoothed")
    axes[0].axhline(chance, color="C3", linestyle=":", label=f"chance ({chance:.3f})")
    axes[0].set(xlabel="step", ylabel="loss", xlim=(0, 1.06 * x[-1]))
    axes[0].legend()

    for task in dict.fromkeys(str(line["task"]) for line in scores):
        own = [line for line in scores if line["task"] == task]
        values = [100 * number(line[metric]) for line in own]
        axes[1].plot([number(line["step"]) for line in own], values, marker="o", label=task)
        end = (number(own[-1]["step"]), values[-1])
        axes[1].annotate(f"{end[1]:.1f}", end, xytext=(0, -14), textcoords="offset points", ha="center")
    if scores:
        axes[1].set(xlabel="step", ylabel=f"{metric} (%)", xlim=(0, 1.06 * x[-1]), ylim=(0, 102))
        axes[1].legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
