"""What a study is: a recipe without objective, what it is crossed with, what is measured, and the papers' claims.

A study is a YAML file of `studies/`. Every cell of it is a run folder of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from clipbench.cards.base import Misplaced, Strict, Tuple
from clipbench.cards.pairs import Augmentation
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.errors import CardError, unknown
from clipbench.utils.package import PACKAGE

_FOLDER = PACKAGE / "pretrain" / "studies"
#: the measure that every study has beside its tasks
RETRIEVAL = "retrieval"


class Cell(NamedTuple):
    """One run of a study."""

    objective: str
    batch_size: int
    seed: int

    @property
    def name(self) -> str:
        """The cell's folder."""
        return f"{self.objective}@{self.batch_size}-seed{self.seed}"


class Trained(Strict):
    """An objective of a study, and what belongs to the method beside it.

    That may be how images are augmented, and heads beyond those of the study's `recipe.model.config` (`config`).
    """

    objective: dict[str, Any]
    augment: Augmentation | None = None
    config: dict[str, Any] = Field(default_factory=dict)


class Measure(Strict):
    """A task, and the metric of it that counts."""

    task: str
    metric: str


class ClassRetrieval(Strict):
    """Retrieval where images have labels: one image of each class, and each class's caption, find each other.

    The mean recall (at 1 and 5, in both directions) is averaged over as many disjoint draws as the rarest class
    has images.
    """

    dataset: str
    split: str
    templates: str


class Claim(Strict):
    """What a paper says, as a weighted sum of cells' scores: above 0 where it holds.

    A cell is an objective's name, or `<objective>@<batch size>`.
    """

    says: str
    source: str
    measure: str
    contrast: dict[str, int] = Field(min_length=2)


class Study(Strict):
    """One study; see `clipbench/pretrain/studies/`.

    `images` are seen in every cell, whatever its batch size; the learning rate grows with the root of the batch size,
    and is the recipe's at `batch_size`. `warmup` is the share of the steps.
    """

    title: str
    recipe: dict[str, Any]
    images: int = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    batch_size: int = Field(gt=1)
    seeds: Tuple[int] = Field(min_length=2)
    objectives: dict[str, Trained]
    batch_sizes: Tuple[int]
    swept: Tuple[str]
    measures: dict[str, Measure]
    retrieval: ClassRetrieval
    claims: Tuple[Claim]

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for name in self.swept:
            if name not in self.objectives:
                raise Misplaced(unknown("objective", name, self.objectives), "swept")
        known = {f"{cell.objective}@{cell.batch_size}" for cell in self.cells()} | set(self.objectives)
        for i, claim in enumerate(self.claims):
            if claim.measure not in (*self.measures, RETRIEVAL):
                raise Misplaced(unknown("measure", claim.measure, (*self.measures, RETRIEVAL)), "claims", i)
            for name in claim.contrast:
                if name not in known:
                    raise Misplaced(unknown("cell", name, known), "claims", i, "contrast")
        return self

    def cells(self) -> list[Cell]:
        """All runs, those first that claims are about, seed by seed: so one that was stopped has whole comparisons."""
        sizes = {name: {self.batch_size} for name in self.objectives}
        for name in self.swept:
            sizes[name] |= set(self.batch_sizes)
        claimed = {self.cell(name, 0)[:2] for claim in self.claims for name in claim.contrast}
        found = [
            Cell(name, size, seed) for seed in self.seeds for name in sizes for size in sorted(sizes[name])
        ]
        return sorted(found, key=lambda cell: cell[:2] not in claimed)

    def cell(self, name: str, seed: int) -> Cell:
        """The cell that claims call `name`: an objective, or `<objective>@<batch size>`."""
        objective, _, size = name.partition("@")
        return Cell(objective, int(size or self.batch_size), seed)

    def recipe_of(self, cell: Cell) -> Recipe:
        """The whole recipe of a cell.

        Raises:
            CardError: it is no recipe.
        """
        made = self.objectives[cell.objective]
        data = [dict(source) for source in self.recipe["data"]]
        for source in data:
            source |= {"augment": made.augment.canonical()} if made.augment else {}
        model = _changed(self.recipe["model"], {"config": made.config})
        steps = max(1, self.images // cell.batch_size)
        optim = dict(self.recipe["optim"])
        optim["lr"] *= math.sqrt(cell.batch_size / self.batch_size)
        value = dict(self.recipe) | {
            "title": f"{self.title}: {cell.objective}, batches of {cell.batch_size}, seed {cell.seed}",
            "command": "clipbench study",
            "cost": "a part of the study",
            "seed": cell.seed,
            "data": data,
            "model": model,
            "objective": made.objective,
            "optim": optim,
            "schedule": {
                "steps": steps,
                "warmup": math.ceil(self.warmup * steps),
                "batch_size": cell.batch_size,
                "checkpoint_every": max(50, steps // 10),
            },
        }
        text = json.dumps(value)
        return parse(Recipe, Document(Path(f"study cell {cell.name}"), text))


Form = Literal["cpu", "gpu", "quick"]


def names() -> list[str]:
    """Ids of the studies."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read(name: str, form: Form) -> Study:
    """The study `name` in a form: the file's own settings (`cpu`), changed by what it has under `gpu` or `quick`.

    Raises:
        CardError: no such study, or a file that is wrong.
    """
    if name not in names():
        raise CardError(unknown("study", name, names()))
    document = Document(_FOLDER / f"{name}.yaml")
    forms = {key: document.value.get(key, {}) for key in ("gpu", "quick")}
    value = {key: part for key, part in document.value.items() if key not in forms}
    return parse(Study, document, value if form == "cpu" else _changed(value, forms[form]))


def _changed(value: dict[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the entries of `by`, mappings within mappings likewise."""
    made = dict(value)
    for key, part in by.items():
        inner = made.get(key)
        made[key] = _changed(inner, part) if isinstance(inner, dict) and isinstance(part, dict) else part
    return made


@dataclass(frozen=True)
class Measured:
    """The scores of a cell by measure, what chance gets, and by what they were made: device, torch, commit, dirty."""

    cell: Cell
    scores: dict[str, float]
    chance: dict[str, float]
    made_by: dict[str, str | bool | None]
