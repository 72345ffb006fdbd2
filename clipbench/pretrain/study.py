"""Studies: the same towers trained by several objectives, measured alike, and the papers' claims held against that.

A study is a YAML file of `studies/`: a recipe without objective, the objectives, seeds and batch sizes to cross it
with, what is measured, and the claims. Every cell is a run folder of its own, so that a study goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from clipbench.cards.cards import (
    AnyPairs,
    Augmentation,
    Document,
    Misplaced,
    Recipe,
    Strict,
    TaskCard,
    Tuple,
    fingerprint,
    parse,
)
from clipbench.catalog import Catalog
from clipbench.encoding.runtime import keep_freed_memory
from clipbench.errors import CardError, ClipbenchError, Stopped, unknown
from clipbench.metrics import scores as metrics
from clipbench.pretrain.engine.signals import Signals
from clipbench.pretrain.run.directory import refuse_other
from clipbench.records import record as records
from clipbench.utils.cache import read_checked, write_checked
from clipbench.utils.cpu import cores

if TYPE_CHECKING:
    from clipbench.data.pairs.shards import RemoteShards
    from clipbench.data.split import Split
    from clipbench.evaluate import Options

_FOLDER = Path(__file__).parent / "studies"
RETRIEVAL = "retrieval"
_SCORES = "scores of a study's cell 1"
DEPTHS = (1, 5)  # of recall@k, where images have labels


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


def run(
    study: Study,
    catalog: Catalog,
    options: Options,
    runs: Path,
    *,
    device: str,
    progress: bool,
    jobs: int = 1,
) -> Iterator[Measured]:
    """Train and measure every cell that is not yet finished in its folder below `runs`; yields each when it is done.

    Args:
        jobs: cells that are trained at once, each by a process of its own.

    Raises:
        CardError, DataError, StorageError, ClipbenchError: as `pretrain` and the protocols.
        Stopped: a signal came; every cell that was under way has been saved.
    """
    catalog.tasks([measure.task for measure in study.measures.values()])
    work = _Work(study, catalog, options, runs, device)
    recipes = {cell: study.recipe_of(cell) for cell in study.cells()}
    if jobs == 1:
        yield from _run(work, recipes, progress=progress)
    else:
        yield from _side_by_side(work, recipes, jobs)


@dataclass(frozen=True)
class _Work:
    """What all cells of a study are trained and measured with."""

    study: Study
    catalog: Catalog
    options: Options
    runs: Path
    device: str

    def measured(self, cell: Cell) -> Measured:
        """The scores of a cell that has been trained."""
        return _measured(self.study, cell, self.runs / cell.name, self.catalog, self.options)


def _run(work: _Work, recipes: Mapping[Cell, Recipe], *, progress: bool) -> Iterator[Measured]:
    """These cells, one after the other, in this process."""
    from clipbench.data.pairs.sources import open_pairs
    from clipbench.pretrain.loop import pretrain

    workers = work.options.runtime.workers
    opened: dict[AnyPairs, tuple[Split | RemoteShards, TaskCard]] = {}
    for cell, recipe in recipes.items():
        folder = work.runs / cell.name
        for source in recipe.data:
            if source not in opened:
                opened[source] = open_pairs(source, work.catalog.dataset, work.options.data, folder)
        if not _trained(folder, recipe):
            pretrain(
                recipe,
                cell.name,
                folder,
                data=[opened[source] for source in recipe.data],
                device=work.device,
                progress=progress,
                workers=workers,
            )
        yield work.measured(cell)


def _side_by_side(work: _Work, recipes: Mapping[Cell, Recipe], jobs: int) -> Iterator[Measured]:
    """These cells, by `jobs` processes, each of which gets another when it is done with one."""
    threads = max(1, cores() // jobs)
    runtime = replace(work.options.runtime, workers=threads if threads > 1 else 0)
    work = replace(
        work,
        catalog=Catalog(work.catalog.extra),  # without what it has read, which need not be sent
        options=replace(work.options, progress=False, runtime=runtime),
    )
    context = multiprocessing.get_context("spawn")
    waiting = deque(recipes.items())
    workers: list[tuple[Connection, SpawnProcess]] = []
    with Signals() as signals:
        try:
            for _ in range(min(jobs, len(recipes))):
                here, there = context.Pipe()
                process = context.Process(target=_worker, args=(there, work, threads))
                process.start()
                there.close()
                here.send(waiting.popleft())
                workers.append((here, process))
            for _ in recipes:
                pipe, cell = _next_done([pipe for pipe, _ in workers], signals)
                yield work.measured(cell)
                if waiting:
                    pipe.send(waiting.popleft())
        finally:
            for pipe, process in workers:
                pipe.close()
                if signals.asked != signal.SIGINT:  # which a terminal has sent to all
                    process.terminate()
            for _, process in workers:
                process.join()


def _next_done(pipes: list[Connection], signals: Signals) -> tuple[Connection, Cell]:
    """The next worker that has finished a cell, and the cell.

    Raises:
        ClipbenchError: a worker failed, and said why.
        Stopped: a signal came.
    """
    while not signals.asked:
        for pipe in connection.wait(pipes, timeout=1):
            assert isinstance(pipe, Connection)
            try:
                return pipe, pipe.recv()
            except EOFError:
                if not signals.asked:
                    raise ClipbenchError("a run failed, and with it the study", hint="see above") from None
    raise Stopped("stopped; every run is saved", signal=signals.asked)


def _worker(pipe: Connection, work: _Work, threads: int) -> None:
    """Cells one after the other, as the pipe gives them, in a process of its own."""
    import torch

    if work.options.runtime.on_cpu:
        keep_freed_memory()
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            cell, recipe = pipe.recv()
            try:
                for _ in _run(work, {cell: recipe}, progress=False):
                    pass
            except ClipbenchError as error:
                sys.exit(f"{cell.name}: {error}")
            pipe.send(cell)


def finished(study: Study, catalog: Catalog, runs: Path) -> list[Measured]:
    """The cells that have been trained and measured below `runs`.

    Raises:
        StorageError: a run of another recipe.
    """
    found = []
    for cell in study.cells():
        folder = runs / cell.name
        measured = _held(study, cell, folder, catalog) if _trained(folder, study.recipe_of(cell)) else None
        if measured:
            found.append(measured)
    return found


def _trained(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` holds a whole run of `recipe`."""
    if not (folder / "card.yaml").is_file():
        return False
    refuse_other(folder / "recipe.yaml", recipe)
    return True


def _held(study: Study, cell: Cell, folder: Path, catalog: Catalog) -> Measured | None:
    """The cell's scores from its folder, where they are of this study's measures."""
    content = read_checked(folder / "scores.json", _SCORES)
    if content is None:
        return None
    held = json.loads(content)
    if held.pop("key") != _key(study, folder, catalog) or "made_by" not in held:
        return None
    return Measured(cell, **held)


def _key(study: Study, folder: Path, catalog: Catalog) -> str:
    """Of all that decides the scores of the model in `folder`."""
    tasks = {name: catalog.task(measure.task) for name, measure in study.measures.items()}
    return fingerprint(
        [
            {name: [task.id, task.params.canonical(), task.protocol.version] for name, task in tasks.items()},
            {name: measure.metric for name, measure in study.measures.items()},
            [study.retrieval.canonical(), DEPTHS],
            (folder / "card.yaml").read_text(encoding="utf-8"),
        ]
    )


def _measured(study: Study, cell: Cell, folder: Path, catalog: Catalog, options: Options) -> Measured:
    """The cell's scores, from its folder or else measured."""
    if held := _held(study, cell, folder, catalog):
        return held
    found = _measure(study, folder, catalog, options)
    env = records.environment()
    measured = Measured(
        cell,
        scores={name: value for name, (value, _) in found.items()},
        chance={name: by_chance for name, (_, by_chance) in found.items()},
        made_by={
            "device": options.runtime.device_name,
            "torch": env.packages.get("torch"),
            "commit": env.commit,
            "dirty": env.dirty,
        },
    )
    kept = {name: getattr(measured, name) for name in ("scores", "chance", "made_by")}
    kept["key"] = _key(study, folder, catalog)
    write_checked(folder / "scores.json", json.dumps(kept, indent=1).encode(), _SCORES)
    return measured


def _measure(
    study: Study, folder: Path, catalog: Catalog, options: Options
) -> dict[str, tuple[float, float]]:
    """Measure → score and chance of the model in `folder`; features are not kept."""
    from clipbench.encoding.encoder import ModelEncoder
    from clipbench.evaluate import evaluator
    from clipbench.models import families

    model = catalog.model(str(folder.resolve()))
    adapter = families.load(model)
    ids = {name: measure.task for name, measure in study.measures.items()}
    measured: dict[str, records.Record] = {
        record.task: record
        for record in evaluator(catalog, replace(options, progress=False))(adapter, list(ids.values()))
    }
    found = {}
    for name, measure in study.measures.items():
        scores = measured[measure.task].scores
        if measure.metric not in scores:
            raise CardError(f"{measure.task}: {unknown('metric', measure.metric, scores)}")
        score = scores[measure.metric]
        found[name] = (score.value, score.chance or 0.0)
    with tempfile.TemporaryDirectory(prefix="clipbench-") as temporary:
        encoder = ModelEncoder(model, options.runtime, progress=False, root=Path(temporary))
        encoder.adapter = adapter
        found[RETRIEVAL] = class_retrieval(study.retrieval, catalog, options, encoder)
    return found


def class_retrieval(
    wanted: ClassRetrieval, catalog: Catalog, options: Options, encoder: Any
) -> tuple[float, float]:
    """Mean recall between one image of each class and the classes' captions, over disjoint draws; and chance.

    Raises:
        CardError: the set has no single labels, or no such templates.
    """
    from clipbench.data.hub import open_split
    from clipbench.pretrain.data.source import captions
    from clipbench.solvers.ranking import rank

    entry = catalog.dataset(wanted.dataset)
    if entry.card.kind != "single-label":
        raise CardError(
            f"{wanted.dataset} is a set of kind {entry.card.kind}; retrieval by class needs single-label"
        )
    split = open_split(entry, wanted.split, options.data)
    texts = [own[0] for own in captions(entry.card, entry.card.classes, [wanted.templates])]
    images = encoder.images(split, encoder.compared)
    queries = encoder.texts(texts, encoder.compared)
    width = encoder.token_width if encoder.compared == "tokens" else None
    rng = np.random.default_rng(options.seed)
    of_class = [rng.permutation(np.flatnonzero(split.labels == c)) for c in range(len(texts))]
    own = np.arange(len(texts))
    recalls = []
    for draw in range(min(len(rows) for rows in of_class)):
        drawn = images[[rows[draw] for rows in of_class]]
        both = rank(drawn, queries, own, top=1, token_width=width, device=encoder.device)
        hits = [metrics.expected_hit(r.better, r.tied, r.best, k) for r in both for k in DEPTHS]
        recalls.append(np.mean(hits))
    return float(np.mean(recalls)), float(np.mean([min(k / len(texts), 1) for k in DEPTHS]))
