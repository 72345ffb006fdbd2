"""The folder of a pretraining run: whose it is, how far the run has come, and the model that it becomes.

recipe.yaml          the resolved recipe; says whose folder this is
metrics.jsonl        one line a step, and one a task of every evaluation
checkpoint.pt        everything that a resumed run needs; gone when the run has finished
model.safetensors    the trained weights
loss.png             loss and zero-shot curves
skipped.json         images that could not be decoded, where there were any
card.yaml            the model card, written last: the run has finished
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
from clipbench.errors import StorageError, WeightsError
from clipbench.pretrain.pairs import PairsState

# Keys of a recipe that describe a run and change nothing in it.
_PROSE = {"title", "command", "cost", "target", "quick"}
_BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)

#: one line of metrics.jsonl
Line = dict[str, float | str | None]


class Checkpoint(TypedDict):
    """All that decides how a run goes on, as plain tensors, numbers and names."""

    step: int
    data: str
    towers: dict[str, torch.Tensor]
    learner: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    pairs: PairsState
    rng: torch.Tensor


class RunFolder:
    """One run's folder, held by one process at a time (a second one waits).

    Use as a context manager; entering creates the folder or takes it up where it is.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self._recipe = recipe
        self._metrics: IO[str] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> RunFolder:
        """Take the folder.

        Raises:
            StorageError: it holds something else, a run of another recipe, or cannot be written.
        """
        _refuse_foreign(self.path)
        make_folder(self.path)
        self._stack.enter_context(locked(self.path / ".lock"))
        if (self.path / "recipe.yaml").exists():
            _refuse_other(self.path / "recipe.yaml", self._recipe)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._metrics:
            self._metrics.close()
        self._stack.close()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "card.yaml").exists()

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint stands while the run goes on."""
        return self.path / "checkpoint.pt"

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(self.checkpoint, buffer.getvalue())

    def begin(self, data: str) -> Checkpoint | None:
        """Mark the folder as this run's; the checkpoint to go on from, or None at the start.

        Lines that a killed run logged after its last checkpoint are dropped.

        Args:
            data: fingerprint of the training split, which must not have changed.

        Raises:
            StorageError: the run began on other data.
            WeightsError: the checkpoint cannot be read.
        """
        found = self._read_checkpoint()
        if found and found["data"] != data:
            raise StorageError(
                f"{self.path} was begun on other training data than the recipe's split holds now",
                hint="give the data it was begun with, or choose another --out",
            )
        if not (self.path / "recipe.yaml").exists():
            write_atomic(self.path / "recipe.yaml", _yaml(self._recipe.canonical()))
        last = found["step"] if found else 0
        kept = [line for line in self.lines() if number(line["step"]) <= last]
        write_atomic(self.path / "metrics.jsonl", "".join(map(_json_line, kept)).encode())
        return found

    def log(self, line: Line) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        try:
            if self._metrics is None:
                self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
            self._metrics.write(_json_line(line))
            self._metrics.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self.path / 'metrics.jsonl'}: {error.strerror}") from None

    def lines(self) -> list[Line]:
        """What metrics.jsonl holds; a line that a killed run left incomplete is passed over."""
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def finish(self, weights: bytes, curves: bytes, card: ModelCard) -> None:
        """Write the model, its curves and, last, its card; the checkpoint is then of no more use.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        write_atomic(self.path / "model.safetensors", weights)
        write_atomic(self.path / "loss.png", curves)
        write_atomic(self.path / "card.yaml", _yaml(card.model_dump(mode="json", exclude_none=True)))
        self.checkpoint.unlink(missing_ok=True)

    def write_skipped(self, count: int, names: dict[str, str]) -> None:
        """Say which images could not be decoded: how often that was, and name and reason of the first ones.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        text = json.dumps({"skipped": count, "images": names}, indent=1, ensure_ascii=False)
        write_atomic(self.path / "skipped.json", text.encode())

    def _read_checkpoint(self) -> Checkpoint | None:
        if not self.checkpoint.exists():
            return None
        try:
            found: Checkpoint = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except _BROKEN as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(
                f"{self.checkpoint} is not a whole checkpoint: {reason}",
                hint="delete it to start the run over",
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


def _refuse_other(recipe_file: Path, recipe: Recipe) -> None:
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
