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

All that a resumed run reads is verified first. A checkpoint ends in its checksum, and holds those of the lines of
metrics.jsonl and of the best weights up to its step; card.yaml holds that of the weights, and ends, like recipe.yaml,
in its own. A run goes on from the newest checkpoint with which all of this is right.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict

import torch
import yaml

from clipbench.cards.model import ModelCard
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse, sealed
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, Damaged, StorageError, WeightsError, unknown
from clipbench.models.weights.pickles import names_in
from clipbench.pretrain.data.pairs import PairsState
from clipbench.pretrain.engine.optimisers import OptimiserState
from clipbench.pretrain.run.events import Events, Line, number
from clipbench.utils.cache import (
    has_checksum,
    locked,
    make_folder,
    open_checked,
    say,
    write_atomic,
    write_checked,
)

# Keys of a recipe that describe a run and change nothing in it.
_PROSE = {"title", "command", "cost", "target", "quick", "trained_on"}
# What torch and zipfile raise for a file that is broken.
_BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)
_CHECKPOINT = "checkpoint 1"


class Beside(TypedDict):
    """Of the run's other files at the time of a checkpoint: what must be the same when the run goes on.

    `metrics_sha256` is that of the first `lines` lines of metrics.jsonl; `best`: step → sha256 of the best weights.
    """

    lines: int
    metrics_sha256: str
    best: dict[int, str]


class Checkpoint(TypedDict):
    """All that decides how a run goes on, as plain tensors, numbers and names.

    `measured`: whether the evaluation that may be due after this step is in the metrics already. `beside` is added
    when it is written.
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
    beside: NotRequired[Beside]


class RunDirectory:
    """One run's folder, held by one process at a time (a second one waits).

    Use as a context manager; entering creates the folder or takes it up where it is. Of processes that train together
    one `writes`; in the others nothing is read or written.

    Whatever writes raises StorageError where the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, recipe: Recipe, *, writes: bool = True, tensorboard: bool = False) -> None:
        self.path = path
        self._writes = writes
        self._tensorboard = tensorboard
        self._events: Events | None = None
        self._recipe = recipe
        self._metrics: BinaryIO | None = None
        self._lines, self._sum = 0, hashlib.sha256()  # of metrics.jsonl
        self._best_sha256: dict[int, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> RunDirectory:
        """Take the folder; StorageError where it holds something else, or a run of another recipe."""
        if not self._writes:
            return self
        _refuse_foreign(self.path)
        make_folder(self.path)
        with ExitStack() as stack:  # which lets go of a folder that is refused
            stack.enter_context(locked(self.path / ".lock"))
            if (self.path / "recipe.yaml").exists():
                refuse_other(self.path / "recipe.yaml", self._recipe)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._metrics, self._events):
            if file:
                with suppress(OSError):  # of a line that could not be written, which has been said
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
        """Write a checkpoint; older ones than the recipe keeps go, and weights that are no longer the best."""
        if not self._writes:
            return
        best_step = self.best_step()
        self._best_sha256 = {step: of for step, of in self._best_sha256.items() if step == best_step}
        beside: Beside = {
            "lines": self._lines, "metrics_sha256": self._sum.hexdigest(), "best": self._best_sha256
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(checkpoint | {"beside": beside}, buffer)
        write_checked(self.path / f"checkpoint-{checkpoint['step']:08}.pt", buffer.getvalue(), _CHECKPOINT)
        best = self._best(best_step or 0)
        old = [path for path in self.path.glob("best-*.safetensors") if path != best]
        for path in [*self.checkpoints[: -self._recipe.schedule.keep], *old]:
            path.unlink(missing_ok=True)

    def save_best(self, step: int, weights: bytes) -> None:
        """Keep the weights that the evaluation after `step` was of."""
        write_atomic(self._best(step), weights)
        self._best_sha256[step] = hashlib.sha256(weights).hexdigest()

    def read_best(self, step: int) -> bytes:
        """The weights that `save_best` kept.

        Raises:
            Damaged: they are gone, or not what was written.
        """
        path = self._best(step)
        try:
            weights = path.read_bytes()
        except OSError as error:
            raise Damaged(
                f"cannot read {path}, the best weights of this run: {error.strerror}", hint=_AGAIN
            ) from None
        if hashlib.sha256(weights).hexdigest() != self._best_sha256.get(step):
            raise Damaged(f"{path}, the best weights of this run, is damaged", hint=_AGAIN)
        return weights

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
            StorageError: the run began on other data, or the folder cannot be written.
            Damaged: files to go on from are there, but none that is whole.
            WeightsError: a checkpoint holds code.
        """
        if not self._writes:
            return None
        found = self._newest_whole()
        if found and found["data"] != data:
            raise StorageError(
                f"{self.path} was begun on other training data than the recipe's split holds now",
                hint="give the data it was begun with, or choose another --out",
            )
        if not (self.path / "recipe.yaml").exists():
            write_atomic(self.path / "recipe.yaml", _yaml(self._recipe.canonical()))
        kept = self._lines_of(found)
        write_atomic(self.path / "metrics.jsonl", *kept)
        self._lines, self._sum = len(kept), hashlib.sha256(b"".join(kept))
        if self._tensorboard:
            for path in self.path.glob("events.out.tfevents.*.clipbench"):
                path.unlink()
            with _going_on(self.path / "events.out.tfevents.*"):
                self._events = Events(self.path)
                for line in self.lines():
                    self._events.add(line)
        return found

    def log(self, line: Line) -> None:
        """Append one line to metrics.jsonl."""
        if not self._writes:
            return
        path = self.path / "metrics.jsonl"
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        with _going_on(path):
            if self._metrics is None:
                self._metrics = path.open("ab")
            self._metrics.write(text)
            self._metrics.flush()
        self._lines += 1
        self._sum.update(text)
        if self._events:
            with _going_on(self._events.path):
                self._events.add(line)

    def lines(self) -> list[Line]:
        """What metrics.jsonl holds; a line that a killed run left incomplete is passed over.

        Raises:
            Damaged: a line that is none.
        """
        return [self._parsed(number, line) for number, line in enumerate(self._whole_lines(), start=1)]

    def _whole_lines(self) -> list[bytes]:
        path = self.path / "metrics.jsonl"
        content = path.read_bytes() if path.exists() else b""
        return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]

    def _parsed(self, place: int, line: bytes) -> Line:
        try:
            found: Line = json.loads(line)
            number(found["step"])
        except (ValueError, TypeError, KeyError, AssertionError):
            raise Damaged(
                f"{self.path / 'metrics.jsonl'}:{place}: not a line that was written", hint=_WITHOUT_METRICS
            ) from None
        return found

    def finish(self, weights: bytes, curves: bytes, card: ModelCard) -> None:
        """Write the model, its curves and, last, its card; checkpoints are then of no more use."""
        write_atomic(self.path / "model.safetensors", weights)
        write_atomic(self.path / "loss.png", curves)
        write_atomic(self.path / "card.yaml", _yaml(card.model_dump(mode="json", exclude_none=True)))
        for path in [*self.checkpoints, *self.path.glob("best-*.safetensors")]:
            path.unlink(missing_ok=True)

    def write_skipped(self, count: int, names: dict[str, str]) -> None:
        """Say which images could not be decoded: how often that was, and name and reason of the first ones."""
        text = json.dumps({"skipped": count, "images": names}, indent=1, ensure_ascii=False)
        write_atomic(self.path / "skipped.json", text.encode())

    def _newest_whole(self) -> Checkpoint | None:
        """The newest checkpoint that is whole with all that belongs to it; newer ones, named on stderr, are deleted.

        Damaged where there are checkpoints and none is; WeightsError where one holds code.
        """
        damaged: list[tuple[Path, Damaged]] = []
        newer_best: set[int] = set()
        for path in reversed(self.checkpoints):
            try:
                found = _read_checkpoint(path)
                best = set(found["beside"]["best"]) if "beside" in found else set()
                # Best weights go when newer ones are better; going on from before that, these will come again.
                outdone = bool(damaged) and not best & newer_best
                newer_best |= best
                self._verify(found, path, outdone=outdone)
            except Damaged as damage:
                damaged.append((path, damage))
                continue
            for newer, why in damaged:
                say(f"{why.message}; going on from {path.name}")
                newer.unlink()
            return found
        if damaged:
            why = damaged[0][1]
            raise Damaged(
                f"{why.message}; no older checkpoint is whole",
                hint=why.hint
                or f"put back a copy of it; or delete {self.path}, or choose another --out, to start the run over",
            )
        return None

    def _verify(self, found: Checkpoint, path: Path, *, outdone: bool) -> None:
        """Raise Damaged unless the files beside a checkpoint are what they were; take up their checksums.

        `outdone`: its best weights may be gone.
        """
        metrics = self.path / "metrics.jsonl"
        if "beside" not in found:  # of an earlier version, which has been said
            best = self._best(self.best_step() or 0)
            self._best_sha256 = {int(best.stem[5:]): sha256_file(best)} if best.exists() else {}
            return
        beside = found["beside"]
        self._best_sha256 = {}
        if beside["lines"] and not metrics.exists():
            say(
                f"{metrics} is gone; its {beside['lines']} lines are missing in the curves and where weights are chosen"
            )
            return
        own = self._whole_lines()[: beside["lines"]]
        same = hashlib.sha256(b"".join(own)).hexdigest() == beside["metrics_sha256"]
        if len(own) < beside["lines"] or not same:
            raise Damaged(
                f"{metrics} is damaged: its first {beside['lines']} lines are not those that {path.name} follows",
                hint=_WITHOUT_METRICS,
            )
        for step, sha256 in beside["best"].items():
            best = self._best(step)
            if outdone and not best.exists():
                continue
            if not best.exists() or sha256_file(best) != sha256:
                raise Damaged(
                    f"{best}, the best weights of this run, is {'damaged' if best.exists() else 'gone'}",
                    hint="put back a copy of it; or delete metrics.jsonl to go on without: the best are then chosen "
                    "among the evaluations that follow",
                )
            self._best_sha256[step] = sha256

    def _lines_of(self, found: Checkpoint | None) -> list[bytes]:
        """The lines of metrics.jsonl that were logged before the checkpoint."""
        if found is None:
            return []
        own = self._whole_lines()
        if "beside" in found:
            return own[: found["beside"]["lines"]]
        last = found["step"]
        parsed = [(text, self._parsed(place, text)) for place, text in enumerate(own, start=1)]
        return [
            text
            for text, line in parsed
            if number(line["step"]) <= last
            and (found["measured"] or not ("task" in line and line["step"] == last))
        ]


_AGAIN = "the same command goes on from an older checkpoint, where there is one, or says what to do"
_WITHOUT_METRICS = (
    "put back a copy of it; or delete it: the curves, and the choice of the best weights, then lack its lines"
)


@contextmanager
def _going_on(path: Path) -> Iterator[None]:
    """Say which file of a run cannot be written, and that the run is not lost."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}",
            hint="free some space there; the same command goes on from the last checkpoint, or starts over without one",
        ) from None


def _read_checkpoint(path: Path) -> Checkpoint:
    """What a checkpoint holds; Damaged where it is not what was written, WeightsError where it holds code (not run)."""
    try:
        content = open_checked(path, _CHECKPOINT)
    except Damaged as damage:
        _refuse_code(path)
        content = _of_an_earlier_version(path, damage)
    try:
        found: Checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _BROKEN as error:
        _refuse_code(path)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"{path} is not a whole checkpoint: {reason.split('. ')[0]}") from None
    if not isinstance(found, dict) or Checkpoint.__annotations__.keys() - found.keys() - {"beside"}:
        raise Damaged(f"{path} is no checkpoint of a run")
    return found


def _refuse_code(path: Path) -> None:
    """Raise WeightsError where the pickle names what no checkpoint of ours does."""
    if names := names_in(path):
        raise WeightsError(
            f"{path} is no checkpoint that clipbench wrote: it holds code ({', '.join(names[:3])}), "
            "which reading it would run; nothing of it was run",
            hint="find out who put it there, and delete it: the run goes on from an older checkpoint, or starts over",
        )


def _of_an_earlier_version(path: Path, damage: Damaged) -> bytes:
    """The content of a checkpoint without a checksum of its own, whose parts have the archive's (CRC-32)."""
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            whole = archive.testzip() is None
    except _BROKEN:
        whole = False
    if not whole or has_checksum(content):
        raise damage from None
    say(f"{path.name} is of an earlier version, without a checksum; its archive's own (CRC-32) is right")
    return content


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
    other = [key for key in wanted if key not in _PROSE and held[key] != wanted[key]]
    differing = [f"{key} ({held[key]!r} there)" for key in other]
    if differing:
        raise StorageError(
            f"{recipe_file.parent} holds a run of another recipe; it differs in {', '.join(differing)}",
            hint="choose another --out, or delete the folder",
        )


def _yaml(value: dict[str, Any]) -> bytes:
    return sealed(str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))).encode()
