"""`clipbench bench startup`: what a run costs before and around the work itself, cold and warm, beside the peer."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.inputs import random_clip
from clipbench.catalog import Catalog
from clipbench.encoding.runtime import Runtime
from clipbench.errors import ClipbenchError
from clipbench.records import store
from clipbench.utils.cache import make_folder, write_atomic

if TYPE_CHECKING:
    from rich.console import RenderableType

_DATASET = "cifar10"
_PEER = "clip_benchmark"


def measure(
    arch: str,
    sizes: Sequence[int],
    runtime: Runtime,
    rounds: int,
    peer: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Zero-shot classification of random images in CIFAR-10's classes, by whole processes, with random weights.

    Cold: with an empty cache; warm: again with what that run left there; and the peer, LAION's CLIP_benchmark, where
    it is installed. All take turns, and the median of the turns counts. Stages are those of the record
    (`timing.stages`), and `end`: what is left of the wall time.

    Args:
        sizes: how many images.
        model: whatever `clipbench eval --model` takes, instead of `arch`; the peer is left out then.
        peer: the Python that has the peer; None: this one, if it has it.

    Raises:
        CardError: open_clip has no such architecture.
        ClipbenchError: a program fails, or `peer` does not have the peer.
    """
    python = None if model else peer or (sys.executable if find_spec(_PEER) else None)
    found = []
    with tempfile.TemporaryDirectory(prefix="clipbench-bench-") as name:
        folder = Path(name)
        if model is None:
            card = random_clip(arch, folder).card.model_dump(mode="json", exclude_none=True)
            write_atomic(folder / "random.yaml", yaml.safe_dump(card).encode())
        for size in sizes:
            _write_images(folder / f"data-{size}", size)
            task = _Task(arch, model or str(folder / "random.yaml"), folder, folder / f"data-{size}", runtime)
            turns: dict[str, list[dict[str, float]]] = {}
            for turn in range(rounds):
                place = make_folder(folder / f"{size}-{turn}")
                turns.setdefault("cold", []).append(task.ours(place, "cold"))
                turns.setdefault("warm", []).append(task.ours(place, "warm"))
                if python is not None:
                    turns.setdefault("peer", []).append({"wall": task.peer(place, python)})
            one: dict[str, Any] = {kind: _medians(own) for kind, own in turns.items()}
            found.append(one | {"images": size})
            if python is not None:
                ratios = [
                    ours["wall"] / theirs["wall"]
                    for ours, theirs in zip(turns["cold"], turns["peer"], strict=True)
                ]
                found[-1] |= {"ratio": round(median(ratios), 3), "ratios": [round(r, 3) for r in ratios]}
    return {
        "arch": model or arch,
        "precision": runtime.precision,
        "device": runtime.device_name,
        "rounds": rounds,
        "load_average": round(os.getloadavg()[0], 2),
        "sizes": found,
    }


def view(found: dict[str, Any]) -> RenderableType:
    sizes = found["sizes"]
    runs = [(size, kind) for size in sizes for kind in ("cold", "warm", "peer") if kind in size]
    stages = dict.fromkeys(stage for size, kind in runs for stage in size[kind])
    notes, rows = [], []
    for stage in sorted(stages, key="end".__eq__):
        own = (size[kind].get(stage) for size, kind in runs)
        rows.append([stage, *("" if seconds is None else f"{seconds:.2f}" for seconds in own)])
    for size in sizes:
        if "ratio" in size:
            low, high = min(size["ratios"]), max(size["ratios"])
            notes.append(
                f"{size['images']:,} images: cold {size['ratio']:.2f} of the peer ({low:.2f} to {high:.2f})"
            )
    head = (
        f"{found['arch']}, {found['precision']}, {found['device']}; seconds, medians of {found['rounds']}; "
        f"load average {found['load_average']}"
    )
    columns = [f"{size['images']:,} {kind}" for size, kind in runs]
    return Group(head, "", views.table(("images", *columns), rows), "", *notes)


@dataclass(frozen=True)
class _Task:
    """What both programs are given; `name` is what ours calls the model, `model` the folder of random weights."""

    arch: str
    name: str
    model: Path
    data: Path
    runtime: Runtime

    def ours(self, place: Path, kind: str) -> dict[str, float]:
        """Seconds by stage of one process, its cache in `place`."""
        results = place / kind
        command = [
            sys.executable, "-m", "clipbench", "eval", "--quiet",
            "--model", self.name, "--task", f"{_DATASET}-zs",
            "--data", f"{_DATASET}={self.data}", "--device", self.runtime.device,
            "--precision", self.runtime.precision, "--results", str(results),
        ]  # fmt: skip
        env = {"CLIPBENCH_CACHE": str(place / "cache"), "CLIPBENCH_CARDS": "", "CLIPBENCH_DATA": ""}
        wall = _run(command, env)
        [path] = store.paths(results)
        stages = store.read(path).record.timing.stages
        return {"wall": wall, **stages, "end": wall - sum(stages.values())}

    def peer(self, place: Path, python: str) -> float:
        """Seconds of one process of the peer."""
        command = [
            python, "-c", f"from {_PEER}.cli import main; main()", "eval", "--quiet",
            "--dataset", f"wds/{_DATASET}", "--dataset_root", str(self.data), "--split", "test",
            "--task", "zeroshot_classification", "--model", self.arch, "--pretrained", str(self.model / "random.pt"),
            "--num_workers", "1", "--output", str(place / "peer.json"),
        ]  # fmt: skip
        return _run(command + (["--no_amp"] if self.runtime.precision == "fp32" else []), {})


def _run(command: Sequence[str], env: Mapping[str, str]) -> float:
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, env=os.environ | {"HF_HUB_OFFLINE": "1"} | dict(env), capture_output=True, text=True
        )
    except OSError as error:
        raise ClipbenchError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ClipbenchError("\n".join([f"exit status {done.returncode}: {' '.join(command[:4])} …", *said]))
    return time.perf_counter() - start


def _write_images(folder: Path, count: int) -> None:
    """Random PNGs of 32 × 32 px as a WebDataset, which both programs read."""
    card = Catalog().dataset(_DATASET).card
    rng = np.random.default_rng(0)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for row in range(count):
            image = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image, "PNG")
            label = str(row % len(card.classes)).encode()
            for name, data in ((f"{row:07d}.png", image.getvalue()), (f"{row:07d}.cls", label)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    write_atomic(folder / "test/0.tar", packed.getvalue())
    write_atomic(folder / "test/nshards.txt", b"1\n")
    write_atomic(folder / "classnames.txt", "\n".join(card.classes).encode())
    templates = "\n".join(card.templates["default"])
    write_atomic(folder / "zeroshot_classification_templates.txt", templates.encode())


def _medians(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    stages = dict.fromkeys(stage for turn in turns for stage in turn)
    return {stage: round(median(turn.get(stage, 0.0) for turn in turns), 3) for stage in stages}
