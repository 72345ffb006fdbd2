"""`clipbench bench encode`: how close encoding comes to the bare forward pass, and to what the cores could do."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.inputs import random_clip
from clipbench.bench.machine import ROUNDS, best, matmul_peak
from clipbench.catalog import Catalog
from clipbench.data.decode import decode, normalise
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Sample, Split, Subset
from clipbench.encoding.batches import batch_rows, unit
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.images import encode_images
from clipbench.encoding.model_features import Counts
from clipbench.encoding.runtime import Runtime, Tower
from clipbench.errors import DataError
from clipbench.models.adapter import ModelEntry
from clipbench.models.families import load
from clipbench.protocols import zero_shot
from clipbench.utils.cpu import cores

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Pass:
    """One pass of the encoder over a split."""

    seconds: float
    counts: Counts


def measure(
    arch: str, images: int, runtime: Runtime, paths: DataPaths, *, progress: bool = True
) -> dict[str, Any]:
    """Encode CIFAR-10 and, where it is at hand, `imagenet-native-96`, beside the bare forward pass.

    The model has random weights: speed does not depend on them. The plan is chosen by its usual trial, before
    anything is timed. Ratios, all of rates (1 is the limit):

        cifar10_over_bare       end to end / forward pass over preloaded tensors (batch, precision, plan alike)
        native96_over_packed    end to end / all cores busy with decoding and forward pass without a gap
        forward_of_matmul_peak  floating-point operations of the bare pass / this machine's measured peak
        prompts_over_full       cost of ImageNet's prompts as encoded here / at full context, same plan (a sample of
                                the 1,000 × 80; `prompts_max_error` is the largest difference of an embedding)

    Raises:
        DataError: CIFAR-10 is not at hand.
    """
    dataset = Catalog().dataset("cifar10")
    whole = open_split(dataset, "test", paths)
    split = Subset(whole, np.arange(min(images, len(whole))))
    places = (root / "imagenet-native-96" for root in paths.roots)
    native = next((place for place in places if place.is_dir()), None)
    with tempfile.TemporaryDirectory(prefix="clipbench-bench-") as folder:
        bench = _Bench(random_clip(arch, Path(folder)), runtime, Path(folder), progress)
        tower = bench.encoder.tower("joint", 1_000_000)  # as for a long run
        tensors = bench.preload(split)
        bare_s, ends = bench.alternate(split, tensors)
        peak = matmul_peak(runtime)
        flops = _flops(bench.encoder, tensors[0][:1])
        found: dict[str, Any] = {
            "arch": arch,
            "device": runtime.device_name,
            "precision": runtime.precision,
            "plan": tower.plan,
            "batch_size": len(tensors[0]),
            "cores": cores(),
            "matmul_peak_gflops": round(peak / 1e9, 1),
            "forward_gflop_per_image": round(flops / 1e9, 2),
            "cifar10": _side(len(split), bare_s, ends),
            "ratios": {
                "cifar10_over_bare": bare_s / ends.seconds,
                "forward_of_matmul_peak": flops * len(split) / bare_s / peak,
            },
        }
        found["ratios"]["prompts_over_full"], found["prompts_max_error"] = bench.prompts()
        if native is not None:
            found["native96"], ratio = bench.packed(_Folder(native, images))
            found["ratios"]["native96_over_packed"] = ratio
        found["ratios"] = {name: round(value, 4) for name, value in sorted(found["ratios"].items())}
    return found


def view(found: dict[str, Any]) -> Group:
    head = (
        f"{found['arch']}, {found['precision']}, plan {found['plan']}, batch {found['batch_size']}, "
        f"{found['cores']} cores, {found['device']}\n"
        f"matmul peak {found['matmul_peak_gflops']:,} GFLOP/s, "
        f"forward {found['forward_gflop_per_image']} GFLOP an image"
    )
    rows = []
    for name in ("cifar10", "native96"):
        if name in found:
            part = found[name]
            shares = (f"{100 * part['share'][stage]:.1f} %" for stage in ("decode_wait", "forward", "write"))
            rows.append([name, f"{part['images_per_s']:,}", f"{part['limit_images_per_s']:,}", *shares])
    spent = views.table(("data", "images/s", "limit", "decode wait", "forward", "write"), rows)
    return Group(head, "", views.ratios(found["ratios"], ".3f"), "", spent)


class _Bench:
    """One model, encoded again and again with an empty feature store."""

    def __init__(self, model: ModelEntry, runtime: Runtime, folder: Path, progress: bool) -> None:
        self._folder, self._number = folder, itertools.count()
        self.encoder = ModelEncoder(model, runtime, progress=progress)
        self.encoder.adapter = load(model)

    def preload(self, split: Split) -> list[torch.Tensor]:
        """The split as normalised batches on the device."""
        import torch

        preprocess = self.encoder.adapter.preprocess
        pixels = [decode(s.image, preprocess) for s in split.samples(np.arange(len(split)))]
        size = batch_rows(self.encoder.runtime)
        batches = []
        for start in range(0, len(pixels), size):
            batch = torch.from_numpy(np.stack(pixels[start : start + size])).to(self.encoder.runtime.device)
            batches.append(normalise(batch, preprocess))
        return batches

    def bare(self, tensors: list[torch.Tensor]) -> float:
        """Seconds of the forward pass over all batches, features brought back."""
        tower: Tower = self.encoder.tower("joint", 1_000_000)
        start = time.perf_counter()
        for batch in tensors:
            tower(batch).cpu()
        return time.perf_counter() - start

    def run(self, split: Split) -> _Pass:
        """Encode `split` into a feature store of its own."""
        self.encoder.root = self._folder / str(next(self._number))
        self.encoder.counts = Counts()
        start = time.perf_counter()
        encode_images([self.encoder], split, "joint")
        return _Pass(time.perf_counter() - start, self.encoder.counts)

    def alternate(self, split: Split, tensors: list[torch.Tensor]) -> tuple[float, _Pass]:
        """Best bare pass (s) and best end-to-end pass of several, in turns."""
        self.bare(tensors[:1])
        bare, ends = [], []
        for _ in range(ROUNDS):
            bare.append(self.bare(tensors))
            ends.append(self.run(split))
        return min(bare), min(ends, key=lambda p: p.seconds)

    def packed(self, split: Split) -> tuple[dict[str, Any], float]:
        """Encode large images; the limit is every core busy with decoding or forward pass without a gap."""
        preprocess, runtime = self.encoder.adapter.preprocess, self.encoder.runtime
        samples = list(split.samples(np.arange(len(split))))
        decode_s = best(lambda: [decode(s.image, preprocess) for s in samples[:96]]) / len(samples[:96])
        bare_s, ends = self.alternate(split, self.preload(split))
        forward_s = bare_s / len(split)
        limit_s = decode_s / cores() + forward_s if runtime.on_cpu else max(decode_s / cores(), forward_s)
        side = _side(len(split), limit_s * len(split), ends)
        side["decode_ms_per_image"] = round(1000 * decode_s, 2)
        return side, limit_s * len(split) / ends.seconds

    def prompts(self, count: int = 400) -> tuple[float, float]:
        """Cost of prompts cut at their longest token over cost at full context, and the largest difference."""
        import torch

        card = Catalog().dataset("imagenet").card
        every = [text for group in zero_shot.prompts(card, "default") for text in group]
        texts = every[:: len(every) // count]
        encoder = self.encoder
        tower = encoder.text_tower(texts)
        ids, _ = encoder.adapter.tokenize(texts)
        batches = torch.split(ids.to(encoder.runtime.device), batch_rows(encoder.runtime))

        def cut() -> NDArray[np.float32]:
            encoder.root = self._folder / str(next(self._number))
            return np.asarray(encoder.texts(texts))

        def full() -> NDArray[np.float32]:
            rows: NDArray[np.float32] = torch.cat([unit(tower(batch)).cpu() for batch in batches]).numpy()
            return rows

        cut_s, full_s = best(cut, rounds=2), best(full, rounds=1)
        return cut_s / full_s, float(np.abs(cut() - full()).max())


class _Folder(Split):
    """A flat folder of images, gone through again and again up to `count`."""

    def __init__(self, folder: Path, count: int) -> None:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
        if not files:
            raise DataError(f"no images in {folder}")
        self._files = [files[i % len(files)] for i in range(count)]
        self.dataset, self.role, self.classes = folder.name, "all", ("image",)
        self.ids = [f"{i}/{path.name}" for i, path in enumerate(self._files)]
        self.labels = np.zeros(count, dtype=np.int64)
        self.fingerprint = f"{folder.name}:{count}"

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        for row in rows.tolist():
            yield Sample(self.ids[row], self._files[row].read_bytes())


def _side(images: int, limit_s: float, ends: _Pass) -> dict[str, Any]:
    """Rates and where the time went."""
    wait, write = ends.counts.decode_wait_s, ends.counts.write_s
    shares = {"decode_wait": wait, "forward": ends.seconds - wait - write, "write": write}
    return {
        "images": images,
        "images_per_s": round(images / ends.seconds, 1),
        "limit_images_per_s": round(images / limit_s, 1),
        "share": {name: round(seconds / ends.seconds, 4) for name, seconds in shares.items()},
    }


def _flops(encoder: ModelEncoder, image: torch.Tensor) -> int:
    """Floating-point operations of one image through the tower as it comes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into the fused operator
    with FlopCounterMode(display=False) as counter:
        Tower(encoder.adapter.image_tower("joint"), Runtime(encoder.runtime.device, "fp32"))(image)
    torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())
