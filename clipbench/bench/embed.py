"""`clipbench bench embed`: a collection in tar files to a folder of embeddings, against encoding its images alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.machine import ROUNDS
from clipbench.data.split import Sample, Split
from clipbench.embed import job
from clipbench.embed.collection import collection
from clipbench.embed.run import Wanted
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.images import encode_images
from clipbench.encoding.runtime import Runtime
from clipbench.models.adapter import ModelEntry
from clipbench.utils.cluster import connected
from clipbench.utils.storage import Place

_DISTINCT = 512  # images, of which each stands in a collection again and again
_TINY = 16  # pixels a side, where memory is measured


def measure(
    model: ModelEntry,
    images: int,
    runtime: Runtime,
    *,
    per_part: int = 1_000,
    side: int = 64,
    sizes: Sequence[int] = (2_000, 200_000),
    small: str = "digits-clip-lite",
    progress: bool = True,
) -> dict[str, Any]:
    """Embed random JPEGs of `side` px in tar files of `per_part`, as img2dataset writes them.

    Ratios, the first two of rates (1 is the limit), the best of three in turns:

        local_over_encode   `clipbench embed` in this process / encoding the same images for an evaluation
        ray_over_local      `--engine ray` on this machine, from hiring workers on / in this process; where Ray is here
        memory_growth       most memory of a process that embeds the last of `sizes` / the first

    Memory is of processes of their own that embed tiny images with the model `small`; without `sizes` of none.
    """
    with tempfile.TemporaryDirectory(prefix="clipbench-bench-") as folder:
        root = Path(folder)
        split = _Cycled(images, side)
        _write_tars(split, root / "tars", per_part)
        encoder = ModelEncoder(model, runtime, progress=progress)
        bench = _Bench(encoder, split, root)
        tower = encoder.tower(
            "joint", 1_000_000
        )  # as for a long run: chosen, and compiled, before anything is timed
        encode, local = [], []
        for number in range(ROUNDS):
            encode.append(bench.encode(number))
            local.append(bench.embed(f"local-{number}"))
        found: dict[str, Any] = {
            "model": model.id,
            "device": runtime.device_name,
            "precision": runtime.precision,
            "plan": tower.plan,
            "images": images,
            "side": side,
            "per_part": per_part,
            "images_per_s": {
                "encode": round(images / min(encode), 1),
                "local": round(images / min(local), 1),
            },
            "ratios": {"local_over_encode": round(min(encode) / min(local), 4)},
        }
        if find_spec("ray") is not None:
            with connected(None) as ray:
                over = bench.embed("ray", ray)
            found["images_per_s"]["ray"] = round(images / over, 1)
            found["ratios"]["ray_over_local"] = round(min(local) / over, 4)
        if sizes:
            peaks = {size: _peak_mib(root, small, size) for size in sizes}
            found["peak_mib"] = {str(size): round(peak, 1) for size, peak in peaks.items()}
            found["ratios"]["memory_growth"] = round(peaks[sizes[-1]] / peaks[sizes[0]], 4)
    return found


def view(found: dict[str, Any]) -> Group:
    head = (
        f"{found['model']}, {found['precision']}, plan {found['plan']}, {found['device']}\n"
        f"{found['images']:,} JPEGs of {found['side']} px in tar files of {found['per_part']:,}"
    )
    rates = [(name, f"{rate:,}") for name, rate in found["images_per_s"].items()]
    parts: list[Any] = [head, "", views.ratios(found["ratios"], ".3f"), ""]
    parts.append(views.table(("way", "images/s"), rates))
    if "peak_mib" in found:
        peaks = [(f"{int(size):,}", f"{peak:,}") for size, peak in found["peak_mib"].items()]
        parts += ["", views.table(("tiny images", "peak MiB"), peaks)]
    return Group(*parts)


class _Cycled(Split):
    """Random JPEGs, of which there are a few, gone through again and again."""

    def __init__(self, count: int, side: int) -> None:
        rng = np.random.default_rng(0)
        self._files = [_jpeg(rng, side) for _ in range(min(count, _DISTINCT))]
        self.dataset, self.role, self.classes = "bench-embed", "all", ("image",)
        self.ids = [f"{row:09d}" for row in range(count)]
        self.labels = np.zeros(count, dtype=np.int64)
        self.fingerprint = f"bench-embed:{count}:{side}"

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        for row in rows.tolist():
            yield Sample(self.ids[row], self._files[row % len(self._files)])


class _Bench:
    """One model over one collection, into a new place each time."""

    def __init__(self, encoder: ModelEncoder, split: Split, root: Path) -> None:
        self._encoder, self._split, self._root = encoder, split, root

    def encode(self, number: int) -> float:
        """Seconds for features of an evaluation."""
        encoder = replace(self._encoder, root=self._root / f"features-{number}")
        encoder.adapter = self._encoder.adapter
        encoder._towers.update(self._encoder._towers)
        encoder._fastest.update(self._encoder._fastest)
        with mock.patch.dict(os.environ, CLIPBENCH_CACHE=str(self._root / f"cache-{number}")):
            start = time.perf_counter()
            encode_images([encoder], self._split, "joint")
            return time.perf_counter() - start

    def embed(self, name: str, ray: Any = None) -> float:
        """Seconds for a folder of embeddings."""
        start = time.perf_counter()
        found = collection(str(self._root / "tars"))
        output = job.opened(self._encoder, found, Place(str(self._root / name)), Wanted())
        output.begin()
        output.plan("images").begin(self._encoder._fastest["joint"])
        job.embed(self._encoder, found, output, Wanted(), ray=ray)
        return time.perf_counter() - start


def _jpeg(rng: np.random.Generator, side: int) -> bytes:
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_tars(split: Split, folder: Path, per_part: int) -> None:
    """The split as img2dataset writes it: image, caption and JSON a sample."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(split), per_part)):
        rows = np.arange(start, min(start + per_part, len(split)))
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for sample in split.samples(rows):
                told = json.dumps({"key": sample.id, "url": f"https://example.org/{sample.id}"}).encode()
                files = {"jpg": sample.image, "txt": f"picture {sample.id}".encode(), "json": told}
                for ending, data in files.items():
                    member = tarfile.TarInfo(f"{sample.id}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _peak_mib(root: Path, model: str, count: int) -> float:
    """The most memory that a process held which embeds so many tiny images."""
    source = root / f"tiny-{count}"
    _write_tars(_Cycled(count, _TINY), source, 1_000)
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "clipbench", "embed", "--model", model, "--quiet"),
            *("--data", str(source), "--out", str(root / f"rows-{count}")),
        ]
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, "clipbench embed")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
