"""Parity with CLIP_benchmark in zero-shot classification of CIFAR-10: metrics, and image by image."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from clipbench.cards.base import Strict
from clipbench.catalog import Catalog
from clipbench.data.digests import sha256_file
from clipbench.data.split import Split
from clipbench.errors import DataError
from clipbench.metrics import classification
from clipbench.records import store
from clipbench.records.record import utc_now
from clipbench.utils.cache import write_atomic
from parity.peer import (
    BATCH_SIZE,
    DATASET,
    Metric,
    ParityError,
    Peer,
    Program,
    Wall,
    add,
    anonymous,
    metric,
    our_program,
    peer_program,
    run,
    say,
    suffix,
    wall,
)

METRICS: Final = ("acc1", "acc5", "mean_per_class_recall")
# The peer's own program, which also keeps the logits that it scores: they are not in its result file.
_LAUNCHER = """\
import sys

import numpy as np
from clip_benchmark.cli import main
from clip_benchmark.metrics import zeroshot_classification as task

kept = sys.argv.pop(1)
scored = task.run_classification


def run_classification(model, *given, **options):
    logits, target = scored(model, *given, **options)
    np.savez(kept, logits=logits.numpy(), target=target.numpy(), logit_scale=model.logit_scale.exp().item())
    return logits, target


task.run_classification = run_classification
main()
"""
_PEER_SCALE = 100.0  # what the peer multiplies every model's cosines with
_CONFIDENCE_TOLERANCE = 1e-5  # fp32: plans that lay a tower out differently differ by about 1e-6
Precision = Literal["fp32", "bf16"]
PromptSets = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Logits:
    """The peer's scores: logits float32 [N, C] = 100 × cosine, target int64 [N], the model's own logit scale."""

    logits: NDArray[np.float32]
    target: NDArray[np.int64]
    logit_scale: float


@dataclass(frozen=True)
class Outcomes:
    """clipbench's per-sample columns [N]: class indices, rank of the true class, winning softmax probability."""

    target: NDArray[np.int64]
    prediction: NDArray[np.int64]
    rank: NDArray[np.int64]
    confidence: NDArray[np.float64]


class Images(Strict):
    """The two programs image by image.

    Attributes:
        n: images.
        same_prediction, same_rank: images with the same predicted class, the same rank of the true class.
        predicted_classes: how many classes the peer predicts at all; 1 makes accuracy a blunt witness.
        confidence_difference: largest difference between the softmax probabilities of the predicted class, at
            the model's own logit scale.
        nearest_tie: smallest gap, as a cosine, between the peer's scores of the true class and of another:
            what it would take for a rank to move.
    """

    n: int
    same_prediction: int
    same_rank: int
    predicted_classes: int
    confidence_difference: float
    nearest_tie: float


class Several(Strict):
    """Several prompt sets: one call of ours against one run each of the peer's."""

    templates: dict[str, int]
    metrics: dict[str, dict[str, Metric]]
    wall_s: Wall
    commands: dict[str, str]


class Report(Strict):
    """One comparison: `results/parity/<arch>-<precision>-<images>.json`."""

    schema_version: Literal[1] = 1
    arch: str
    weights: dict[str, str]
    data: dict[str, str | int]
    precision: Precision
    device: str
    load_average: float
    peer: Program
    ours: Program
    commands: dict[str, str]
    metrics: dict[str, Metric]
    images: Images
    wall_s: Wall
    prompt_sets: Several | None
    created: str

    def differing(self) -> list[str]:
        """What differs, prompt sets included: metrics, and confidence. Empty in bf16, which is not judged."""
        if self.precision != "fp32":
            return []
        found = [name for name, metric in self.metrics.items() if not metric.equal]
        if self.images.confidence_difference > _CONFIDENCE_TOLERANCE:
            found.append("confidence")
        if self.prompt_sets is not None:
            for prompts, by_name in self.prompt_sets.metrics.items():
                found += [f"{name} ({prompts})" for name, metric in by_name.items() if not metric.equal]
        return found

    def ratios(self) -> dict[str, float]:
        """What is timed → ours over the peer's."""
        key = f"{self.arch} {self.precision}, {self.data['n']:,} images"
        found = {key: self.wall_s.ratio}
        if self.prompt_sets is not None:
            found[f"{key}, {len(self.prompt_sets.templates)} prompt sets"] = self.prompt_sets.wall_s.ratio
        return found


def compare(ours: Mapping[str, float], peer: Mapping[str, float]) -> dict[str, Metric]:
    """The three metrics of both, side by side.

    >>> compare(dict.fromkeys(METRICS, 0.12), dict.fromkeys(METRICS, 0.1201))["acc1"].equal
    False
    """
    return {m: metric(ours[m], peer[m]) for m in METRICS}


def compare_images(ours: Outcomes, peer: Logits) -> Images:
    """Both programs image by image, from clipbench's per-sample outcomes and the peer's logits.

    Raises:
        ParityError: they are not of the same images in the same order.
    """
    if not np.array_equal(ours.target, peer.target):
        raise ParityError("the two programs read different images, or in another order")
    n = len(peer.target)
    cosines = peer.logits.astype(np.float64) / _PEER_SCALE
    gaps = np.abs(cosines - cosines[np.arange(n), peer.target][:, None])
    gaps[np.arange(n), peer.target] = np.inf
    predicted = classification.predict(peer.logits)
    confidence = classification.winning_confidence(cosines * peer.logit_scale)
    return Images(
        n=n,
        same_prediction=int((predicted == ours.prediction).sum()),
        same_rank=int((classification.rank_of_target(peer.logits, peer.target) == ours.rank).sum()),
        predicted_classes=len(np.unique(predicted)),
        confidence_difference=float(np.abs(confidence - ours.confidence).max()),
        nearest_tie=float(gaps.min()),
    )


def write_webdataset(split: Split, rows: int, templates: Sequence[str], folder: Path) -> None:
    """The first `rows` samples of `split`, image bytes unchanged, in CLIP_benchmark's layout below `folder`.

    Raises:
        DataError: the split has fewer samples, or an image of a kind that the layout does not name.
        StorageError: the folder cannot be written.
    """
    if len(split) < rows:
        raise DataError(
            f"{split.dataset} {split.role} has {len(split):,} images, {rows:,} are wanted",
            hint=f"use --images {len(split)} or fewer",
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row, sample in enumerate(split.samples(np.arange(rows))):
            add(tar, f"{row:07d}.{suffix(sample.image, sample.id)}", sample.image)
            add(tar, f"{row:07d}.cls", str(split.labels[row]).encode())
    write_atomic(folder / split.role / "0.tar", buffer.getvalue())
    write_atomic(folder / split.role / "nshards.txt", b"1\n")
    for name, lines in (
        ("classnames.txt", split.classes),
        ("zeroshot_classification_templates.txt", templates),
    ):
        write_atomic(folder / name, "".join(f"{line}\n" for line in lines).encode())


def prompt_sets(peer: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Template sets by name: the peer's for CIFAR-10, a single one, and OpenAI's seven best for ImageNet.

    Small ones on purpose: text is where clipbench saves most, images are what repeated runs repeat.
    """
    catalog = Catalog()
    simple = catalog.dataset(DATASET).card.templates["simple"]
    best = catalog.dataset("imagenet").card.templates["best7"]
    return {"default": tuple(peer), "simple": tuple(simple), "best7": tuple(best)}


def write_card(folder: Path, prompts: PromptSets) -> Path:
    """A CIFAR-10 task card with exactly these template sets, the first as default, the others as variants.

    Returns:
        The folder, as `--cards` takes it.
    """
    card = Catalog().dataset(DATASET).card
    first, *others = prompts
    changed = card.model_dump(mode="json", exclude_none=True) | {
        "templates": {"default" if name == first else name: list(prompts[name]) for name in prompts},
        "protocols": {"zs": {"primary": "acc1", "variants": {name: {"templates": name} for name in others}}},
    }
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
    write_atomic(folder / "tasks" / f"{DATASET}.yaml", text.encode())
    return folder


@dataclass(frozen=True)
class Setting:
    """What both programs are given; `work` is the folder that runs may use."""

    arch: str
    checkpoint: Path
    data: Path
    precision: Precision
    work: Path


@dataclass(frozen=True)
class PeerRun:
    """One run of the peer: its metrics, its logits, its wall time (s), its command without machine paths."""

    metrics: dict[str, float]
    logits: Logits
    seconds: float
    command: str


@dataclass(frozen=True)
class OurRun:
    """One call of clipbench: metrics and outcomes by task, its wall time (s), the device, its command likewise."""

    metrics: dict[str, dict[str, float]]
    outcomes: dict[str, Outcomes]
    seconds: float
    device: str
    command: str


def run_peer(peer: Peer, setting: Setting, templates: Sequence[str] | None = None) -> PeerRun:
    """One zero-shot run of the peer; `templates` in place of those of the data folder.

    Raises:
        ParityError: the run fails.
    """
    with tempfile.TemporaryDirectory(dir=setting.work, prefix="run-") as folder:
        scratch = Path(folder)
        output, kept, launcher = scratch / "peer.json", scratch / "logits.npz", scratch / "launcher.py"
        write_atomic(launcher, _LAUNCHER.encode())
        command = [
            str(peer.folder / "bin" / "python"), str(launcher), str(kept), "eval",
            "--dataset", f"wds/{DATASET}", "--dataset_root", str(setting.data), "--split", "test",
            "--task", "zeroshot_classification",
            "--model", setting.arch, "--pretrained", str(setting.checkpoint),
            "--batch_size", str(BATCH_SIZE), "--num_workers", "1", "--quiet", "--output", str(output),
        ]  # fmt: skip
        if setting.precision == "fp32":
            command.append("--no_amp")
        if templates is not None:
            custom = scratch / "templates.json"
            write_atomic(custom, json.dumps({DATASET: list(templates)}).encode())
            command += ["--custom_template_file", str(custom)]
        _, seconds = run(command, cwd=scratch, env={"HF_HUB_OFFLINE": "1"})
        found: dict[str, float] = json.loads(output.read_text())["metrics"]
        with np.load(kept) as arrays:
            logits = Logits(arrays["logits"], arrays["target"], float(arrays["logit_scale"]))
        return PeerRun(found, logits, seconds, anonymous(command, {scratch: "RUN", setting.work: "WORK"}))


def run_ours(setting: Setting, tasks: Sequence[str], cards: Path | None = None) -> OurRun:
    """One call of clipbench on `tasks`, its cache and results folders new.

    Raises:
        ParityError: the run fails.
    """
    model = f"open_clip:{setting.arch}@{setting.checkpoint}"
    with tempfile.TemporaryDirectory(dir=setting.work, prefix="run-") as folder:
        scratch = Path(folder)
        results = scratch / "results"
        command = [
            sys.executable, "-m", "clipbench", "eval", "--model", model, "--task", ",".join(tasks),
            "--data", f"{DATASET}={setting.data}", "--precision", setting.precision,
            "--results", str(results), "--quiet",
        ]  # fmt: skip
        if cards is not None:
            command += ["--cards", str(cards)]
        env = {
            "HF_HUB_OFFLINE": "1",
            "CLIPBENCH_CACHE": str(scratch / "cache"),
            "CLIPBENCH_CARDS": "",
            "CLIPBENCH_DATA": "",
        }
        _, seconds = run(command, cwd=scratch, env=env)
        paths = [store.path_of(model, task, results) for task in tasks]
        found = [store.read(path).record for path in paths]
        places = {scratch: "RUN", setting.work: "WORK", Path(sys.executable): "python"}
        return OurRun(
            {record.task: {m: record.scores[m].value for m in METRICS} for record in found},
            {task: _outcomes(path) for task, path in zip(tasks, paths, strict=True)},
            seconds,
            found[0].device,
            anonymous(command, places),
        )


def _outcomes(record: Path) -> Outcomes:
    import pyarrow.parquet as pq

    table = pq.read_table(store.samples_path(record))
    return Outcomes(*(table[name].to_numpy() for name in ("target", "prediction", "rank", "confidence")))


def measure(
    peer: Peer, setting: Setting, data: dict[str, str | int], rounds: int, several: int, load: float
) -> Report:
    """Both programs on one architecture, in `rounds` turns; with `several`, also on that many prompt sets.

    `data` and `load` (the machine's load average before) only go into the report; metrics are those of the last turn.

    Raises:
        ParityError: a run fails.
    """
    templates, task = peer.templates(), f"{DATASET}-zs"
    cards = None
    if Catalog().dataset(DATASET).card.templates["default"] != templates:
        cards = write_card(setting.work / "cards-peer", {"default": templates})
    turns = []
    for turn in range(1, rounds + 1):
        say(f"{setting.arch} {setting.precision}, {data['n']:,} images, {turn} of {rounds}: the peer …")
        theirs = run_peer(peer, setting)
        say(f"{setting.arch} {setting.precision}, {data['n']:,} images, {turn} of {rounds}: clipbench …")
        ours = run_ours(setting, [task], cards)
        turns.append((ours.seconds, theirs.seconds))
    return Report(
        arch=setting.arch,
        weights={"init": "torch.manual_seed(0)", "sha256": sha256_file(setting.checkpoint)},
        data=data,
        precision=setting.precision,
        device=ours.device,
        load_average=load,
        peer=peer_program(peer),
        ours=our_program(),
        commands={"ours": ours.command, "peer": theirs.command},
        metrics=compare(ours.metrics[task], theirs.metrics),
        images=compare_images(ours.outcomes[task], theirs.logits),
        wall_s=wall(turns),
        prompt_sets=measure_several(peer, setting, rounds, several) if several else None,
        created=utc_now(),
    )


def measure_several(peer: Peer, setting: Setting, rounds: int, count: int) -> Several:
    """`count` prompt sets: one call of clipbench, which encodes the images once, against a peer's run for each.

    Raises:
        ParityError: a run fails.
    """
    prompts = dict(list(prompt_sets(peer.templates()).items())[:count])
    cards = write_card(setting.work / "cards-sets", prompts)
    tasks = {name: f"{DATASET}-zs" + (f"@{name}" if i else "") for i, name in enumerate(prompts)}
    turns = []
    for turn in range(1, rounds + 1):
        say(f"{setting.arch} {setting.precision}, {count} prompt sets, {turn} of {rounds} …")
        ours = run_ours(setting, list(tasks.values()), cards)
        theirs = {name: run_peer(peer, setting, templates) for name, templates in prompts.items()}
        turns.append((ours.seconds, sum(run.seconds for run in theirs.values())))
    return Several(
        templates={name: len(templates) for name, templates in prompts.items()},
        metrics={name: compare(ours.metrics[tasks[name]], theirs[name].metrics) for name in prompts},
        wall_s=wall(turns),
        commands={"ours": ours.command, **{f"peer {name}": run.command for name, run in theirs.items()}},
    )
