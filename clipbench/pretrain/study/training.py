"""A study at work: every cell is trained in its folder, or gone on with, and measured; by one process or several."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from clipbench.cards.pairs import AnyPairs
from clipbench.cards.recipe import Recipe
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.pairs.shards import RemoteShards
from clipbench.data.pairs.sources import open_pairs
from clipbench.data.split import Split
from clipbench.encoding.runtime import keep_freed_memory
from clipbench.errors import ClipbenchError, Stopped
from clipbench.evaluation import Options
from clipbench.pretrain.engine.signals import Signals
from clipbench.pretrain.loop import pretrain
from clipbench.pretrain.study.plan import Cell, Measured, Study
from clipbench.pretrain.study.scores import measured_of, trained
from clipbench.utils.cpu import cores


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
        return measured_of(self.study, cell, self.runs / cell.name, self.catalog, self.options)


def _run(work: _Work, recipes: Mapping[Cell, Recipe], *, progress: bool) -> Iterator[Measured]:
    """These cells, one after the other, in this process."""
    workers = work.options.runtime.workers
    opened: dict[AnyPairs, tuple[Split | RemoteShards, TaskCard]] = {}
    for cell, recipe in recipes.items():
        folder = work.runs / cell.name
        for source in recipe.data:
            if source not in opened:
                opened[source] = open_pairs(source, work.catalog.dataset, work.options.data, folder)
        if not trained(folder, recipe):
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
    """The next worker that has finished a cell, and the cell; ClipbenchError where one failed, Stopped by a signal."""
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
