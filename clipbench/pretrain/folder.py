"""The folder of a pretraining run: whose it is, how far the run has come, and the model that it becomes.

recipe.yaml                 the resolved recipe; says whose folder this is
metrics.jsonl               one line a step, and one a task of every evaluation
events.out.tfevents.*       the same for TensorBoard, where that is asked for
checkpoint-<step>.pt        everything that a resumed run needs; gone when the run has finished
best-<step>.safetensors     weights of the best evaluation so far, where the recipe names a score; gone likewise
model.safetensors           the trained weights
loss.png                    loss and zero-shot curves
skipped.json                images that could not be decoded, where there were any
card.yaml                   the model card, written last: the run has finished
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypedDict

import torch
import yaml

from clipbench.cache import locked, make_folder, write_atomic
from clipbench.cards import Document, ModelCard, Recipe, parse
from clipbench.errors import CardError, StorageError, WeightsError, unknown
from clipbench.pretrain.events import Events, Line
from clipbench.pretrain.optimisers import OptimiserState
from clipbench.pretrain.pairs import PairsState

# Keys of a recipe that describe a run and change nothing in it.
_PROSE = {"title", "command", "cost", "target", "quick"}
_BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


class Checkpoint(TypedDict):
    """All that decides how a run goes on, as plain tensors, numbers and names.

    `measured`: whether the evaluation that may be due after this step is in the metrics already.
    """

    step: int
    measured: bool
    data: str
    towers: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    learner: dict[str, torch.Tensor]
    optimiser: OptimiserState
    scaler: dict[str, Any]
    pairs: PairsState


class RunFolder:
    """One run's folder, held by one process at a time (a second one waits).

    Use as a context manager; entering creates the folder or takes it up where it is. Of processes that train together
    one `writes`; in the others nothing is read or written.
    """

    def __init__(self, path: Path, recipe: Recipe, *, writes: bool = True, tensorboard: bool = False) -> None:
        self.path = path
        self._writes = writes
        self._tensorboard = tensorboard
        self._events: Events | None = None
        self._recipe = recipe
        self._metrics: IO[str] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> RunFolder:
        """Take the folder.

        Raises:
            StorageError: it holds something else, a run of another recipe, or cannot be written.
        """
        if not self._writes:
            return self
        _refuse_foreign(self.path)
        make_folder(self.path)
        self._stack.enter_context(locked(self.path / ".lock"))
        if (self.path / "recipe.yaml").exists():
            refuse_other(self.path / "recipe.yaml", self._recipe)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._metrics, self._events):
            if file:
                file.close()
        self._stack.close()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "card.yaml").exists()

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that stand while the run goes on, the newest last."""
        return sorted(self.path.glob("checkpoint-*.pt"))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; older ones than the recipe keeps go, and weights that are no longer the best.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        if not self._writes:
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(self.path / f"checkpoint-{checkpoint['step']:08}.pt", buffer.getvalue())
        best = self._best(self.best_step() or 0)
        old = [path for path in self.path.glob("best-*.safetensors") if path != best]
        for path in [*self.checkpoints[: -self._recipe.schedule.keep], *old]:
            path.unlink(missing_ok=True)

    def save_best(self, step: int, weights: bytes) -> None:
        """Keep the weights that the evaluation after `step` was of.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        write_atomic(self._best(step), weights)

    def read_best(self, step: int) -> bytes:
        """The weights that `save_best` kept.

        Raises:
            StorageError: they are gone.
        """
        try:
            return self._best(step).read_bytes()
        except OSError as error:
            raise StorageError(
                f"cannot read {self._best(step)}, the best weights of this run: {error.strerror}"
            ) from None

    def best_step(self) -> int | None:
        """The step after which the recipe's `best` score was highest (the first such); None before any evaluation.

        Raises:
            CardError: the evaluation has no such score.
        """
        best = self._recipe.best
        if best is None:
            return None
        own = [line for line in self.lines() if line.get("task") == best.task]
        if not own:
            return None
        if best.metric not in own[0]:
            known = [name for name in own[0] if name not in ("step", "task")]
            raise CardError(f"recipe: best.metric: {unknown(f'score of {best.task}', best.metric, known)}")
        scored = [(number(line[best.metric]), line) for line in own if line[best.metric] is not None]
        if not scored:
            return None
        top = max(value for value, _ in scored)
        return int(next(number(line["step"]) for value, line in scored if value == top))

    def _best(self, step: int) -> Path:
        return self.path / f"best-{step:08}.safetensors"

    def begin(self, data: str) -> Checkpoint | None:
        """Mark the folder as this run's; the checkpoint to go on from, or None at the start.

        Lines that a killed run logged after its last checkpoint are dropped.

        Args:
            data: fingerprint of the training split, which must not have changed.

        Raises:
            StorageError: the run began on other data.
            WeightsError: the checkpoint cannot be read.
        """
        if not self._writes:
            return None
        found = self._read_checkpoint()
        if found and found["data"] != data:
            raise StorageError(
                f"{self.path} was begun on other training data than the recipe's split holds now",
                hint="give the data it was begun with, or choose another --out",
            )
        if not (self.path / "recipe.yaml").exists():
            write_atomic(self.path / "recipe.yaml", _yaml(self._recipe.canonical()))
        last = found["step"] if found else 0
        again = last if found and not found["measured"] else None
        kept = [
            line
            for line in self.lines()
            if number(line["step"]) <= last and not ("task" in line and line["step"] == again)
        ]
        write_atomic(self.path / "metrics.jsonl", "".join(map(_json_line, kept)).encode())
        if self._tensorboard:
            for path in self.path.glob("events.out.tfevents.*"):
                path.unlink()
            self._events = Events(self.path)
            for line in kept:
                self._events.add(line)
        return found

    def log(self, line: Line) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        if not self._writes:
            return
        try:
            if self._metrics is None:
                self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
            self._metrics.write(_json_line(line))
            self._metrics.flush()
            if self._events:
                self._events.add(line)
        except OSError as error:
            raise StorageError(f"cannot write {self.path / 'metrics.jsonl'}: {error.strerror}") from None

    def lines(self) -> list[Line]:
        """What metrics.jsonl holds; a line that a killed run left incomplete is passed over."""
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def finish(self, weights: bytes, curves: bytes, card: ModelCard) -> None:
        """Write the model, its curves and, last, its card; checkpoints are then of no more use.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        write_atomic(self.path / "model.safetensors", weights)
        write_atomic(self.path / "loss.png", curves)
        write_atomic(self.path / "card.yaml", _yaml(card.model_dump(mode="json", exclude_none=True)))
        for path in [*self.checkpoints, *self.path.glob("best-*.safetensors")]:
            path.unlink(missing_ok=True)

    def write_skipped(self, count: int, names: dict[str, str]) -> None:
        """Say which images could not be decoded: how often that was, and name and reason of the first ones.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        text = json.dumps({"skipped": count, "images": names}, indent=1, ensure_ascii=False)
        write_atomic(self.path / "skipped.json", text.encode())

    def _read_checkpoint(self) -> Checkpoint | None:
        if not self.checkpoints:
            return None
        *older, newest = self.checkpoints
        try:
            found: Checkpoint = torch.load(newest, map_location="cpu", weights_only=True)
        except _BROKEN as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            instead = f"go on from {older[-1].name}" if older else "start the run over"
            raise WeightsError(
                f"{newest} is not a whole checkpoint: {reason}", hint=f"delete it to {instead}"
            ) from None
        return found


def number(value: float | str | None) -> float:
    """A numeric entry of a line."""
    assert isinstance(value, int | float)
    return value


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file; a run needs a folder", hint="choose another --out")
    if not path.exists() or (path / "recipe.yaml").exists():
        return
    # Hidden files are this class's own lock and unfinished writes.
    strange = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    if strange:
        raise StorageError(
            f"{path} is not empty and not a pretraining run (it holds {strange[0]}, but no recipe.yaml)",
            hint="choose another --out, or empty the folder",
        )


def refuse_other(recipe_file: Path, recipe: Recipe) -> None:
    """Raise StorageError unless the recipe in the file is `recipe`, but for its prose."""
    held = parse(Recipe, Document(recipe_file)).canonical()
    wanted = recipe.canonical()
    differing = [
        f"{key} ({held[key]!r} there)" for key in wanted if key not in _PROSE and held[key] != wanted[key]
    ]
    if differing:
        raise StorageError(
            f"{recipe_file.parent} holds a run of another recipe; it differs in {', '.join(differing)}",
            hint="choose another --out, or delete the folder",
        )


def _json_line(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _yaml(value: dict[str, Any]) -> bytes:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text.encode()
