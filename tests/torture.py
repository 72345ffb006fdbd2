"""Files that rot and runs that are killed: never another number without a word.

    python tests/torture.py --flips 300 --kills 30

A flip turns over one random bit of one random file that a score or a resumed run depends on, then reads it as users
do: `eval`, `compare`, `report`, a training run that goes on. The outcome is that of the undisturbed files, or a message
that names the file. A kill ends `eval` of four tasks with SIGKILL at a random moment; the same command then gives the
record of an undisturbed run. Everything runs in children that are forked from this process, which imports once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import rows_of, write_shard, write_table
from damage import flip
from pydantic import TypeAdapter
from small import CLASSES, labels, picture, write_task
from training import recipe_with

from clipbench import cli
from clipbench.cards.pairs import AnyPairs
from clipbench.cards.recipe import Recipe
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data import huggingface
from clipbench.data.pairs.sources import Packed, open_pairs
from clipbench.data.paths import DataPaths
from clipbench.encoding import plans
from clipbench.encoding.runtime import Runtime
from clipbench.errors import ClipbenchError
from clipbench.models.adapter import Adapter
from clipbench.pretrain.loop import pretrain
from clipbench.records import store
from clipbench.utils import cache

EXACT = ("--deterministic", "--device", "cpu", "--workers", "0", "--quiet")
FOUR = ("digits-zs", "digits-lp", "digits-scenes-ret", "digits-scenes-ground")
TASK = "animals-zs"


# ----------------------------------------------------------------- children


@dataclass(frozen=True)
class Outcome:
    """What an action gave, or the message of the error that it raised; and all that it printed."""

    value: Any
    error: str | None
    said: str
    crash: str | None = None


def in_child(action: Callable[[], Any]) -> Outcome:
    """Run `action` in a forked child."""
    with tempfile.TemporaryFile() as answer:
        child = _fork(lambda: pickle.dump(_attempt(action), answer), answer)
        _, status = os.waitpid(child, 0)
        answer.seek(0)
        if status:
            return Outcome(None, None, "", crash=f"the process ended with status {status}")
        found: Outcome = pickle.load(answer)
        return found


def _fork(action: Callable[[], object], answer: io.BufferedRandom | None = None) -> int:
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        action()
        if answer is not None:
            answer.flush()
        os._exit(0)
    finally:
        os._exit(1)


def _attempt(action: Callable[[], Any]) -> Outcome:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return Outcome(action(), None, said.getvalue())
        except ClipbenchError as error:
            return Outcome(None, str(error), said.getvalue())
        except BaseException as error:
            return Outcome(None, None, said.getvalue(), crash=f"{type(error).__name__}: {error}")


def command(*arguments: object) -> None:
    """`clipbench` with these arguments, in this process.

    Raises:
        ClipbenchError: it ended with exit code 2, having said why.
    """
    sys.argv = ["clipbench", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        if end.code == 2:
            raise ClipbenchError("exit code 2") from None
        if end.code:
            raise RuntimeError(f"exit code {end.code}") from None


def measured(results: Path) -> list[dict[str, Any]]:
    """All records below `results`, without what differs from run to run (see `same`)."""
    aside = {"timing", "created", "digest", "samples_sha256"}
    return [stored.record.model_dump(exclude=aside) for stored in store.read_all(results)]


# -------------------------------------------------------------------- the world


@dataclass(frozen=True)
class World:
    """Data (`data`, `cards`), and below `state` all that flips may hit; `kept` is a copy of that."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def restore(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.copytree(self.folder / "kept", self.state)

    def keep(self) -> None:
        shutil.copytree(self.state, self.folder / "kept")

    def eval(self, results: Path) -> None:
        command(
            "eval", "--model", self.state / "model", "--task", TASK, "--task", "animals-lp",
            "--cards", self.folder / "cards", "--data", f"animals={self.data / 'animals'}",
            "--results", results, *EXACT,
        )  # fmt: skip


def by_weights(adapter: Adapter, tasks: Sequence[str]) -> list[Any]:
    """An evaluation whose score only the weights decide."""

    @dataclass(frozen=True)
    class Measured:
        task: str
        scores: dict[str, Any]

    @dataclass(frozen=True)
    class Score:
        value: float

    value = int(adapter.weights_sha256[:4], 16) / 65536
    return [Measured(task, {"acc1": Score(value)}) for task in tasks]


def recipe() -> Recipe:
    schedule = {"steps": 8, "batch_size": 8, "eval_every": 2, "checkpoint_every": 2, "keep": 2}
    made = recipe_with(
        {"kind": "clip"}, schedule=schedule, evaluate=["digits-zs@val"], ema=0.9,
        best={"task": "digits-zs@val", "metric": "acc1"},
        data=[{"name": "mine", "kind": "csv", "file": "pairs.csv", "images": "images"}],
    )  # fmt: skip
    value = made.canonical()
    value["model"]["preprocess"] |= {"channels": 3, "mean": [0.3] * 3, "std": [0.4] * 3}
    return Recipe.model_validate(value)


def opened(world: World) -> tuple[Any, TaskCard]:
    """The source of the recipe: a table of pairs."""
    pairs: AnyPairs = TypeAdapter(AnyPairs).validate_python(recipe().data[0].canonical())
    return open_pairs(pairs, Catalog().dataset, DataPaths({"mine": world.data / "pairs"}, ()), Path("recipe"))


def train(world: World, out: Path, **more: Any) -> tuple[bytes, list[str]]:
    """Train in `out`, or go on there; the weights (none before the end), and what was logged but for the clock."""
    data = [opened(world)]
    pretrain(recipe(), "tiny", out, data=data, device="cpu", progress=False, evaluator=by_weights, **more)
    weights = out / "model.safetensors"
    logged = re.sub(r', "images_per_s".*', "", (out / "metrics.jsonl").read_text())
    return weights.read_bytes() if weights.exists() else b"", logged.splitlines()


def listing() -> list[str]:
    """The files of a data set of the hub, by the listing that is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "_listed", lambda *_: ["test/0.tar"])
        patch.setattr("huggingface_hub.hf_hub_download", lambda _, name, **__: str(Path("/hub") / name))
        _, files = huggingface._files("org/set", None, "test", "0" * 40)
    return [str(file) for file in files]


def packed(world: World) -> list[bytes]:
    """Images for training, from the file that holds them packed."""
    split, _ = opened(world)
    found = Packed(split)
    return [found.image(row) for row in range(len(split))]


def ledger() -> list[str | None]:
    return [cache.recall("weights", "https://there/a.pt"), cache.recall("data", "org/set")]


def plan() -> str:
    """The plan that a small tower runs by, tried where none is remembered."""
    runtime = Runtime("cpu", "fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "_TRIAL_ROWS", {True: 1})
        tower = torch.nn.Linear(64, 64)
        return plans.fastest(tower, runtime, lambda n: torch.ones(n, 64), 4096, vary=True).plan


def prepare(world: World) -> None:
    """Make the data, a model, its records, a training run that was stopped, and what the cache holds of all this."""
    for role, first in (("train", 0), ("test", 60)):
        of = labels(60).tolist()
        samples = [
            (f"{i:04d}", {"png": picture(first + i), "cls": str(label).encode()})
            for i, label in enumerate(of)
        ]
        write_shard(world.data / "animals" / role / "0.tar", samples)
    (world.data / "animals" / "classnames.txt").write_text("\n".join(CLASSES))
    splits = {"test": {"name": "test"}, "train": {"name": "train"}}
    write_task(world.folder / "cards" / "tasks", splits=splits, protocols={"zs": {}, "lp": {}})
    write_table(world.data / "pairs", rows_of([f"caption {i}" for i in range(24)]))
    train(world, world.state / "model")
    train(world, world.state / "run", stop_after=7)
    for name in ("results", "others"):
        world.eval(world.state / name)
    cache.remember("weights", "https://there/a.pt", "0123abcd", what="sha256")
    cache.remember("data", "org/set", "4567cdef", what="the commit")
    listing()
    plan()
    packed(world)


def readers(world: World) -> dict[str, Callable[[], Any]]:
    """What reads the files below a folder of the state, by the folder; the first that fits."""
    state = world.state

    def evaluate() -> Any:
        world.eval(world.folder / "fresh")
        return measured(world.folder / "fresh")

    def reports() -> Any:
        for arguments in (("compare", "results", "others"), ("report", "--results", "results")):
            command(*arguments)
        return measured(state / "results")

    def images() -> Any:
        return packed(world)

    def resume() -> Any:
        return train(world, state / "run")

    return {
        "cache/pairs/*.images": images,
        "cache/pairs/*.places": images,
        "cache/pairs/*": resume,
        "cache/hub/*": listing,
        "cache/ledger.json": ledger,
        "cache/files.sqlite": evaluate,
        "cache/plans*/*": plan,
        "cache/splits/*": evaluate,
        "cache/features*/**/*": evaluate,
        "model/card.yaml": evaluate,
        "model/model.safetensors": evaluate,
        "results/**/*": reports,
        "run/*": resume,
    }


def targets(world: World) -> dict[str, list[Path]]:
    """Kind → the files that a flip may hit; empty ones, locks and pictures hold nothing that counts."""
    found: dict[str, list[Path]] = {}
    seen: set[Path] = set()
    for kind in readers(world):
        files = sorted(path for path in world.state.glob(kind) if path.is_file() and path.stat().st_size)
        own = [path for path in files if path.suffix not in (".lock", ".png") and path not in seen]
        own = [path for path in own if not path.name.startswith(".")]
        seen |= set(own)
        found[kind] = own
    return found


def flips(world: World, count: int, seed: int) -> Counter[str]:
    """Turn over `count` bits, one at a time; how many were said and how many changed nothing, by kind.

    Raises:
        AssertionError: another outcome without a word, or a traceback.
    """
    os.environ["CLIPBENCH_CACHE"] = str(world.state / "cache")
    made = in_child(lambda: prepare(world))
    assert made.crash is None, made
    assert made.error is None, made
    world.keep()
    undisturbed: dict[str, Outcome] = {}
    tally: Counter[str] = Counter()
    rng = random.Random(seed)
    there = {kind: files for kind, files in targets(world).items() if files}
    kinds = [*there, *rng.choices([*there], k=count)][:count]  # each at least once
    for number, kind in enumerate(kinds):
        path = rng.choice(there[kind])
        world.restore()
        shutil.rmtree(world.folder / "fresh", ignore_errors=True)
        read = readers(world)[kind]
        if read.__name__ not in undisturbed:
            first = undisturbed[read.__name__] = in_child(_in(world.state, read))
            assert first.error is None, first
            assert first.crash is None, first
            world.restore()
            shutil.rmtree(world.folder / "fresh", ignore_errors=True)
        place = rng.randrange(8 * path.stat().st_size)
        flip(path, place)
        found = in_child(_in(world.state, read))
        what = f"seed {seed}, flip {number}: bit {place} of {path.relative_to(world.state)}"
        assert found.crash is None, f"{what}: {found}"
        text = f"{found.said} {found.error or ''}"
        named = path.name in text or path.stem in text or path.parent.name in text
        if found.error is not None:
            assert named, f"{what}: not named in {text}"
            tally[f"{kind}: an error that names the file"] += 1
        elif found.value == undisturbed[read.__name__].value:
            words = named and "damaged" in text
            tally[f"{kind}: the same" + (", and said" if words else "")] += 1
        else:
            assert "damaged" in text, f"{what}: another outcome without a word: {text}"
            tally[f"{kind}: said"] += 1
    return tally


def _in(folder: Path, action: Callable[[], Any]) -> Callable[[], Any]:
    def inside() -> Any:
        os.chdir(folder)
        return action()

    return inside


# ------------------------------------------------------------------------ kills


def kills(folder: Path, count: int, seed: int, limit: int | None) -> Counter[str]:
    """Kill `eval` of four tasks at `count` random moments, and run it again.

    Raises:
        AssertionError: another record than that of an undisturbed run.
    """
    more = ("--limit", limit) if limit else ()

    def evaluate(name: str) -> Callable[[], None]:
        tasks = [word for task in FOUR for word in ("--task", task)]
        return lambda: command(
            "eval",
            "--model",
            "digits-clip-lite",
            *tasks,
            "--results",
            folder / name / "results",
            *more,
            *EXACT,
        )

    def whole(name: str) -> Outcome:
        os.environ["CLIPBENCH_CACHE"] = str(folder / name / "cache")

        def action() -> Any:
            evaluate(name)()
            return measured(folder / name / "results")

        return in_child(action)

    started = time.monotonic()
    undisturbed = whole("undisturbed")
    lasted = time.monotonic() - started
    assert undisturbed.value, undisturbed
    tally: Counter[str] = Counter()
    rng = random.Random(seed)
    for number in range(count):
        name = f"kill{number}"
        os.environ["CLIPBENCH_CACHE"] = str(folder / name / "cache")
        child = _fork(lambda name=name: _attempt(evaluate(name)))  # type: ignore[misc]
        after = rng.uniform(0, 0.7 * lasted)  # the first run is the slowest
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        left = list((folder / name).rglob("*.part"))
        found = whole(name)
        what = f"seed {seed}, kill {number}, after {after:.2f} s of {lasted:.2f}"
        assert found.crash is None, f"{what}: {found}"
        assert found.error is None, f"{what}: {found}"
        assert found.value == undisturbed.value, f"{what}: {_differing(found.value, undisturbed.value)}"
        tally["the same record"] += 1
        tally["killed too late, the run had ended"] += not os.WIFSIGNALED(status)
        tally["unfinished writes left by the kill"] += len(left)
        tally["of these still there"] += sum(path.exists() for path in left)
        shutil.rmtree(folder / name)
    return tally


def _differing(found: Any, wanted: Any) -> str:
    return "; ".join(
        f"{one.get('task')}.{key}: {one[key]} != {other[key]}"
        for one, other in zip(found, wanted, strict=False)
        for key in one
        if one[key] != other.get(key)
    )[:2000]


def main() -> None:
    """Run both campaigns; exit code 1 where one finds another number without a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--limit", type=int, help="samples a split, of the runs that are killed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="clipbench-torture-") as folder:
        found = {}
        if given.flips:
            found[f"{given.flips} flips"] = flips(World(Path(folder)), given.flips, given.seed)
        if given.kills:
            found[f"{given.kills} kills"] = kills(Path(folder), given.kills, given.seed, given.limit)
    for name, tally in found.items():
        print(f"{name} (seed {given.seed})")
        for what, times in sorted(tally.items()):
            print(f"  {times:4d} {what}")


if __name__ == "__main__":
    main()
