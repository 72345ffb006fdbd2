"""A study's results: a table, a picture, and which claims held (study.json, README.md, study.png)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipbench.metrics.intervals import Interval, of_seeds
from clipbench.pretrain.study.plan import RETRIEVAL, Claim, Measured, Study
from clipbench.records.record import environment
from clipbench.utils.escape import json_text
from clipbench.utils.outputs import PNG_MARK, PNG_SOFTWARE, write_own


@dataclass(frozen=True)
class Verdict:
    """A claim, the contrast of each seed, their mean and interval, and what follows by the study's rule.

    Without `ci95`, runs that it needs are not there yet.
    """

    claim: Claim
    values: tuple[float, ...]
    mean: float | None
    ci95: Interval | None

    @property
    def says(self) -> str:
        """`held`, `reversed`, `not told apart`, or `open`.

        The rule: the interval of the mean over seeds lies above 0, below it, or holds it.
        """
        if self.ci95 is None:
            return "open"
        low, high = self.ci95
        return "held" if low > 0 else "reversed" if high < 0 else "not told apart"


def verdicts_of(study: Study, measured: Sequence[Measured]) -> list[Verdict]:
    """Every claim against the scores of the cells; no claim before all that it needs are there."""
    scores = {one.cell: one.scores for one in measured}
    verdicts = []
    for claim in study.claims:
        needed = [{study.cell(name, s): w for name, w in claim.contrast.items()} for s in study.seeds]
        values = tuple(
            sum(weight * scores[cell][claim.measure] for cell, weight in terms.items())
            for terms in needed
            if all(cell in scores for cell in terms)
        )
        whole = len(values) == len(study.seeds)
        mean, interval = of_seeds(values) if whole else (None, None)
        verdicts.append(Verdict(claim, values, mean, interval))
    return verdicts


def write(
    name: str, study: Study, measured: Sequence[Measured], command: str, folder: Path, *, force: bool = False
) -> Path:
    """study.json, study.png and README.md in `folder`; returns the page.

    Raises:
        StorageError: the folder cannot be written, or holds such files of another's (unless `force`).
    """
    order = study.cells()
    measured = sorted(measured, key=lambda one: order.index(one.cell))
    verdicts = verdicts_of(study, measured)
    held = {
        "study": name,
        "command": command,
        "settings": study.canonical(),
        "env": environment().canonical(),
        "cells": [
            one.cell._asdict() | {"scores": one.scores, "chance": one.chance, "made_by": one.made_by}
            for one in measured
        ],
        "claims": [
            {"says": v.claim.says, "verdict": v.says, "values": v.values, "mean": v.mean, "ci95": v.ci95}
            for v in verdicts
        ],
    }  # fmt: skip
    for file, data, mark in (
        ("study.json", (json_text(held, indent=1) + "\n").encode(), b'{\n "study": "'),
        ("study.png", draw(study, measured), PNG_MARK),
        ("README.md", page(study, measured, verdicts, command).encode(), b"`clipbench study "),
    ):
        write_own(folder / file, data, mark, force=force)
    return folder / "README.md"


def page(study: Study, measured: Sequence[Measured], verdicts: Sequence[Verdict], command: str) -> str:
    """The page in markdown."""
    shown = _measures(study)
    seeds, done, of = f"{len(study.seeds)} seeds", len(measured), len(study.cells())
    waiting = ["", f"**{done} of {of} runs are finished.** Claims that need the others are open."]
    lines = [
        f"# {study.title}",
        "",
        f"`{command}`. Every cell: {study.images:,} images seen of {_data(study)}, towers from random weights, "
        f"{seeds}. Values are per cent: the mean over seeds and its 95 % interval (Student's t). {_made_by(measured)}.",
        *(waiting if done < of else ()),
        "",
        "![scores by objective, and by batch size](study.png)",
        "",
        "## Claims",
        "",
        "A claim held where the interval of its contrast over seeds lies above 0, and is reversed where it lies below; "
        "else this study cannot say. Rule and claims were fixed before the first run; no allowance is made for their "
        "number. What holds at this scale need not hold at the papers', nor the other way round.",
        "",
        "| claim | source | measure | difference, points | verdict |",
        "|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        claim, difference = verdict.claim, ""
        if verdict.mean is not None and verdict.ci95 is not None:
            low, high = verdict.ci95
            difference = f"{100 * verdict.mean:+.2f} ({100 * low:+.2f} … {100 * high:+.2f})"
        cells = (claim.says, claim.source, claim.measure, difference, f"**{verdict.says}**")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Scores",
        "",
        f"| objective | batch | {' | '.join(shown)} |",
        "|---|---|" + "---|" * len(shown),
    ]
    for (objective, size), own in _by_cell(study, measured).items():
        values = " | ".join(_percent([one.scores[measure] for one in own]) for measure in shown)
        few = "" if len(own) == len(study.seeds) else f" ({len(own)} of {seeds})"
        lines.append(f"| {objective} | {size}{few} | {values} |")
    chance = " | ".join(f"{100 * measured[0].chance[measure]:.2f}" for measure in shown)
    lines += [f"| chance | | {chance} |", ""]
    for measure in shown:
        lines.append(f"- {measure}: {_explained(study, measure)}")
    return "\n".join(lines) + "\n"


def draw(study: Study, measured: Sequence[Measured]) -> bytes:
    """Scores by objective at the usual batch size, every seed a point; and by batch size: a PNG."""
    from matplotlib.figure import Figure

    shown = _measures(study)
    cells = _by_cell(study, measured)
    rows = 2 if study.swept else 1
    figure = Figure(figsize=(4.2 * len(shown), 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, len(shown), squeeze=False)
    figure.suptitle(study.title)
    for axes, measure in zip(panels[0], shown, strict=True):
        for place, objective in enumerate(study.objectives):
            values = [100 * one.scores[measure] for one in cells.get((objective, study.batch_size), ())]
            if not values:
                continue
            axes.bar(place, float(np.mean(values)), color=f"C{place}", alpha=0.5)
            axes.plot([place] * len(values), values, "k.", markersize=5)
        axes.axhline(100 * measured[0].chance[measure], color="0.5", linestyle=":")
        axes.set_title(f"{measure} (%), batches of {study.batch_size}")
        axes.set_xticks(range(len(study.objectives)), list(study.objectives), rotation=30)
    for axes, measure in zip(panels[1] if study.swept else (), shown, strict=False):
        for objective in study.swept:
            sizes = sorted(size for name, size in cells if name == objective)
            own = [[100 * one.scores[measure] for one in cells[objective, size]] for size in sizes]
            colour = f"C{list(study.objectives).index(objective)}"
            axes.plot(sizes, [float(np.mean(values)) for values in own], color=colour, label=objective)
            for size, values in zip(sizes, own, strict=True):
                axes.plot([size] * len(values), values, ".", color=colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(study.batch_sizes, [str(size) for size in study.batch_sizes])
        axes.set(xlabel="batch size", title=f"{measure} (%)")
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata=PNG_SOFTWARE)
    return buffer.getvalue()


def _measures(study: Study) -> list[str]:
    return [*study.measures, RETRIEVAL]


def _by_cell(study: Study, measured: Sequence[Measured]) -> Mapping[tuple[str, int], list[Measured]]:
    """(objective, batch size) → what its seeds measured, in the study's order."""
    found: dict[tuple[str, int], list[Measured]] = {}
    order = list(study.objectives).index
    for one in sorted(measured, key=lambda m: (order(m.cell.objective), m.cell.batch_size)):
        found.setdefault((one.cell.objective, one.cell.batch_size), []).append(one)
    return found


def _percent(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{100 * values[0]:.2f}"
    mean, (low, high) = of_seeds([100 * value for value in values])
    return f"{mean:.2f} ({low:.2f} … {high:.2f})"


def _made_by(measured: Sequence[Measured]) -> str:
    """On which devices, and with which torch and commits, the cells were trained and measured."""
    made: dict[str, list[str]] = {"device": [], "torch": [], "commit": []}
    for one in measured:
        for name, values in made.items():
            values.append(str(one.made_by[name] or "unknown"))
        if one.made_by["dirty"]:
            made["commit"][-1] += " (changed)"
    devices, torches, commits = (", ".join(dict.fromkeys(values)) for values in made.values())
    return f"Made on {devices} with torch {torches}, commit {commits}"


def _data(study: Study) -> str:
    sources: list[dict[str, Any]] = study.recipe["data"]
    return ", ".join(f"{source['dataset']} {source.get('split', 'train')}" for source in sources)


def _explained(study: Study, measure: str) -> str:
    if measure != RETRIEVAL:
        return f"{study.measures[measure].metric} of {study.measures[measure].task}"
    wanted = study.retrieval
    return (
        f"mean recall at 1 and 5 in both directions between one image of each class of {wanted.dataset} "
        f'{wanted.split} and the classes\' captions (templates "{wanted.templates}"), averaged over disjoint draws'
    )
