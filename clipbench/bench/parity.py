"""Parity with LAION's CLIP_benchmark: the same checkpoint, images and prompts must give the same numbers.

    python -m clipbench.bench.parity        (or: make parity)

gives the peer an environment of its own over this one (same torch and open_clip), writes a WebDataset copy of the
first CIFAR-10 test images, makes random checkpoints, and runs both programs one after the other as a user would:
a process each, cold caches, model load and everything else inside the wall time.

In fp32 acc1, acc5 and mean per-class recall must agree to 4 decimals. Accuracy alone can be a blunt witness (a
random RN50 calls every image the same class), so the confidence in each image's predicted class must agree too:
it moves with any slip in preprocessing, encoding or prompts. In bf16 the numbers are shown, not judged: the peer
scores in bf16 too, where logits tie, while clipbench always scores in fp32.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from clipbench.cards.cards import Strict
from clipbench.catalog import Catalog
from clipbench.data.decode import open_image
from clipbench.data.digests import sha256_file
from clipbench.data.hub import DataPaths, open_split
from clipbench.data.split import Split
from clipbench.errors import ClipbenchError, DataError, unknown
from clipbench.metrics import scores as metrics
from clipbench.records import record as records
from clipbench.utils.cache import cache_root, locked, make_folder, write_atomic
from clipbench.utils.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

    from clipbench.bench.parity_sets import SetReport

PEER: Final = "clip-benchmark==1.6.2"
#: what the peer imports and clipbench does not; all else comes from clipbench's environment
LIBRARIES: Final = ("webdataset", "braceexpand", "pycocoevalcap", "pycocotools")
#: `requests` is imported without being declared; from NumPy 2.4 on scoring fails (LAION-AI/CLIP_benchmark#147)
MENDS: Final = ("requests", "numpy<2.4")
METRICS: Final = ("acc1", "acc5", "mean_per_class_recall")
DATASET: Final = "cifar10"
BATCH_SIZE: Final = 64  # the peer's default

_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("clip-benchmark", "numpy", "open_clip_torch", "pillow", "scikit-learn", "torch", "torchvision",
                    "webdataset")  # fmt: skip
_VERSIONS = (
    "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
)
_CHECKPOINT = (
    "import sys, torch, open_clip; torch.manual_seed(0); "
    "torch.save(open_clip.create_model(sys.argv[1]).state_dict(), sys.argv[2])"
)
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
_HALF_STEP = 0.5e-4  # agreement to 4 decimals
_CONFIDENCE_TOLERANCE = 1e-5  # fp32: plans that lay a tower out differently differ by about 1e-6

Precision = Literal["fp32", "bf16"]
PromptSets = Mapping[str, tuple[str, ...]]


class ParityError(ClipbenchError):
    """One of the two programs, or the making of its input, failed."""


class PeerUnavailable(ParityError):
    """The peer is not there and cannot be fetched: no package index can be reached."""


# --------------------------------------------------------- what a run gives


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


# --------------------------------------------------------------- what is kept


class Metric(Strict):
    """One metric (a fraction) from both programs; `equal`: to 4 decimals."""

    ours: float
    peer: float
    equal: bool


class Wall(Strict):
    """Wall time of whole processes, in seconds. `ratio` is ours over the peer's."""

    ours: float
    peer: float
    ratio: float


class Program(Strict):
    """One of the two programs, and the packages it ran on. Commit and dirty flag are of clipbench's checkout."""

    name: str
    version: str
    packages: dict[str, str]
    python: str
    commit: str | None = None
    dirty: bool | None = None


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
        key = f"{self.arch} {self.precision}"
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


def metric(ours: float, peer: float) -> Metric:
    """One metric of both."""
    return Metric(ours=ours, peer=peer, equal=abs(ours - peer) < _HALF_STEP)


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
    predicted = metrics.predict(peer.logits)
    confidence = metrics.winning_confidence(cosines * peer.logit_scale)
    return Images(
        n=n,
        same_prediction=int((predicted == ours.prediction).sum()),
        same_rank=int((metrics.rank_of_target(peer.logits, peer.target) == ours.rank).sum()),
        predicted_classes=len(np.unique(predicted)),
        confidence_difference=float(np.abs(confidence - ours.confidence).max()),
        nearest_tie=float(gaps.min()),
    )


def wall(ours: float, peer: float) -> Wall:
    """Two wall times (s) and their ratio."""
    return Wall(ours=round(ours, 2), peer=round(peer, 2), ratio=round(ours / peer, 4))


# ------------------------------------------------------------------- the peer


@dataclass(frozen=True)
class Peer:
    """CLIP_benchmark, installed in the environment at `folder`."""

    folder: Path
    versions: dict[str, str]

    def bundled(self, name: str) -> dict[str, list[str]]:
        """One of the peer's own JSON files: data set → list of strings."""
        path = _site_packages(self.folder) / "clip_benchmark" / "datasets" / name
        found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def templates(self) -> tuple[str, ...]:
        """The peer's CIFAR-10 prompts, with `{c}` for the class name."""
        return tuple(self.bundled("en_zeroshot_classification_templates.json")[DATASET])


def prepare_peer(folder: Path) -> Peer:
    """The peer's environment at `folder`, made where it is missing or was made of something else.

    A `.pth` file adds clipbench's own site-packages behind the environment's, so torch, torchvision and open_clip
    are shared, not fetched again, and the peer's own NumPy comes first.

    Raises:
        PeerUnavailable: no package index can be reached.
        ParityError: the environment cannot be made, or the peer does not start in it.
    """
    over = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    recipe = {"requirements": [PEER, *LIBRARIES, *MENDS], "over": over, "python": sys.version}
    made_of = folder / "made_of.json"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not made_of.is_file() or json.loads(made_of.read_text()) != recipe:
            say(f"installing {PEER} …")
            _python(sys.executable, "-m", "venv", "--clear", str(folder))
            write_atomic(_site_packages(folder) / "zz_clipbench.pth", "\n".join([*over, ""]).encode())
            _pip_install(folder, "--no-deps", PEER, *LIBRARIES)
            _pip_install(folder, *MENDS)
            write_atomic(made_of, json.dumps(recipe, indent=1).encode())
    python = str(folder / "bin" / "python")
    versions: dict[str, str] = json.loads(_python(python, "-c", _VERSIONS, *_PACKAGES))
    # Also brings what both programs import into the file cache, so that neither is timed with a cold disk.
    _python(python, "-c", "import clip_benchmark.cli")
    return Peer(folder, versions)


def _site_packages(environment: Path) -> Path:
    base = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", "venv", base))


def _pip_install(environment: Path, *arguments: str) -> None:
    python = str(environment / "bin" / "python")
    try:
        _python(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)
    except ParityError as error:
        if "from versions: none" not in error.message:
            raise
        raise PeerUnavailable(
            f"{PEER} cannot be installed: no package index answers",
            hint="run this where pip can reach one; what is installed once is used again",
        ) from None


def _python(*command: str) -> str:
    """What `command` prints. Paths of the caller's Python do not reach it."""
    return run(command, cwd=Path.cwd(), env={})[0]


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> tuple[str, float]:
    """Standard output and wall time (s) of `command`.

    Raises:
        ParityError: it cannot be started or fails, with the last lines of what it said.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=cwd, env=kept | dict(env), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise ParityError(f"{command[0]} cannot be started: {error.strerror}") from None
    seconds = time.perf_counter() - start
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise ParityError("\n".join([f"exit status {done.returncode}: {' '.join(command)}", *said]))
    return done.stdout, seconds


# ------------------------------------------------------------------ the input


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


def suffix(image: bytes, name: str) -> str:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    with open_image(image) as opened:
        kind = opened.format or ""
    if kind not in kinds:
        raise DataError(unknown(f"image format of {name} for a WebDataset", kind, kinds))
    return kinds[kind]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def random_checkpoint(arch: str, folder: Path) -> Path:
    """A state dict of open_clip's `arch` as initialised from seed 0, made where it is missing.

    Raises:
        ParityError: open_clip has no such architecture.
    """
    path = folder / f"{records.file_name(arch)}.pt"
    if not path.is_file():
        say(f"making a random {arch} …")
        part = make_folder(folder) / f".{path.name}.{os.getpid()}.part"
        try:
            _python(sys.executable, "-c", _CHECKPOINT, arch, str(part))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


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


# ------------------------------------------------------------------- the runs


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
        paths = [records.path_of(model, task, results) for task in tasks]
        found = [records.read(path) for path in paths]
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

    table = pq.read_table(records.samples_path(record))
    return Outcomes(*(table[name].to_numpy() for name in ("target", "prediction", "rank", "confidence")))


def anonymous(command: Sequence[str], places: Mapping[Path, str]) -> str:
    """The command line with each path of `places` replaced by its name, the longest first.

    >>> anonymous(["/a/bin/python", "-m", "x", "--out=/a/b"], {Path("/a"): "A", Path("/a/b"): "B"})
    'A/bin/python -m x --out=B'
    """
    line = shlex.join(command)
    for place in sorted(places, key=lambda p: len(str(p)), reverse=True):
        line = re.sub(rf"{re.escape(str(place))}(?![\w.+-])", places[place], line)
    return line


def measure(peer: Peer, setting: Setting, data: dict[str, str | int], several: int, load: float) -> Report:
    """Both programs on one architecture, side by side; with `several`, also on that many prompt sets.

    `data` and `load` (the machine's load average before) only go into the report.

    Raises:
        ParityError: a run fails.
    """
    templates, task = peer.templates(), f"{DATASET}-zs"
    cards = None
    if Catalog().dataset(DATASET).card.templates["default"] != templates:
        cards = write_card(setting.work / "cards-peer", {"default": templates})
    say(f"{setting.arch} {setting.precision}: the peer …")
    theirs = run_peer(peer, setting)
    say(f"{setting.arch} {setting.precision}: clipbench …")
    ours = run_ours(setting, [task], cards)
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
        wall_s=wall(ours.seconds, theirs.seconds),
        prompt_sets=measure_several(peer, setting, several) if several else None,
        created=records.utc_now(),
    )


def measure_several(peer: Peer, setting: Setting, count: int) -> Several:
    """`count` prompt sets: one call of clipbench, which encodes the images once, against a peer's run for each.

    Raises:
        ParityError: a run fails.
    """
    prompts = dict(list(prompt_sets(peer.templates()).items())[:count])
    cards = write_card(setting.work / "cards-sets", prompts)
    tasks = {name: f"{DATASET}-zs" + (f"@{name}" if i else "") for i, name in enumerate(prompts)}
    say(f"{setting.arch} {setting.precision}: clipbench, {count} prompt sets …")
    ours = run_ours(setting, list(tasks.values()), cards)
    theirs = {}
    for name, templates in prompts.items():
        say(f"{setting.arch} {setting.precision}: the peer, prompt set {name} …")
        theirs[name] = run_peer(peer, setting, templates)
    return Several(
        templates={name: len(templates) for name, templates in prompts.items()},
        metrics={name: compare(ours.metrics[tasks[name]], theirs[name].metrics) for name in prompts},
        wall_s=wall(ours.seconds, sum(run.seconds for run in theirs.values())),
        commands={"ours": ours.command, **{f"peer {name}": run.command for name, run in theirs.items()}},
    )


def peer_program(peer: Peer) -> Program:
    name, _, _ = PEER.partition("==")
    return Program(
        name=name, version=peer.versions[name], packages=peer.versions, python=platform.python_version()
    )


def our_program() -> Program:
    env = records.environment()
    return Program(
        name="clipbench",
        version=__version__,
        packages=env.packages,
        python=env.python,
        commit=env.commit,
        dirty=env.dirty,
    )


# ------------------------------------------------------------ the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, write a report for each architecture, print a table. 1 when a metric differs in fp32, else 0.

    Raises:
        ClipbenchError: the peer, the data or a run is not to be had.
    """
    given = _parser().parse_args(arguments)
    load = round(os.getloadavg()[0], 2)
    work = make_folder((given.work or cache_root() / "parity").expanduser().resolve())
    out = make_folder(given.out)
    split = open_split(Catalog().dataset(DATASET), "test", DataPaths.parse([f"{DATASET}={given.data}"]))
    peer = prepare_peer(work / f"peer-{PEER.replace('==', '-')}")
    folder = work / f"{DATASET}-{given.images}"
    write_webdataset(split, given.images, peer.templates(), folder)
    data: dict[str, str | int] = {
        "dataset": DATASET, "split": "test", "n": given.images, "fingerprint": split.fingerprint,
    }  # fmt: skip
    reports = []
    for arch in given.archs.split(","):
        checkpoint = random_checkpoint(arch, work / "checkpoints")
        setting = Setting(arch, checkpoint, folder, given.precision, work)
        report = measure(peer, setting, data, given.prompt_sets, load)
        text = json.dumps(report.canonical(), indent=2, ensure_ascii=False) + "\n"
        name = f"{records.file_name(arch)}-{given.precision}-{given.images}.json"
        write_atomic(out / name, text.encode())
        reports.append(report)
    from clipbench.bench import parity_sets  # which builds on this module

    sets = []
    arch = given.archs.split(",")[0]
    for one in parity_sets.comparisons(given.flickr8k, given.voc, given.captioned):
        checkpoint = random_checkpoint(arch, work / "checkpoints")
        found = parity_sets.measure(peer, one, arch, checkpoint, work)
        text = json.dumps(found.canonical(), indent=2, ensure_ascii=False) + "\n"
        name = f"{records.file_name(arch)}-fp32-{found.data['dataset']}-{found.data['n']}.json"
        write_atomic(out / name, text.encode())
        sets.append(found)
    _print(reports, sets, as_json=given.json)
    differing = [name for one in reports for name in one.differing()] + [
        n for one in sets for n in one.differing()
    ]
    return 1 if differing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clipbench.bench.parity", description=f"Compare clipbench with {PEER}."
    )
    parser.add_argument("--images", type=_count, default=2000, help="first images of the test split (2000)")
    parser.add_argument("--archs", default="ViT-B-32,RN50", help="open_clip architectures, with commas")
    parser.add_argument(
        "--data", type=Path, default=_ROOT / "../shared/data/cifar10", help="a copy of CIFAR-10"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: shown, not judged"
    )
    parser.add_argument(
        "--prompt-sets",
        type=int,
        choices=(0, 2, 3),
        default=3,
        help="also several prompt sets in one call (3)",
    )
    for option, folder, what in (
        ("--flickr8k", "flickr8k-1000", "its images and captions.txt, for retrieval"),
        ("--voc", "voc2012-100", "its images and boxes, for mAP"),
    ):
        parser.add_argument(option, type=Path, default=_ROOT / "../shared/data" / folder, help=what)
    parser.add_argument("--captioned", type=_count, help="images for retrieval (all of them)")
    parser.add_argument("--out", type=Path, default=Path("results/parity"), help="folder of the reports")
    parser.add_argument("--work", type=Path, help="folder of the peer's environment, checkpoints and data")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return int(text)


def _print(reports: Sequence[Report], sets: Sequence[SetReport], *, as_json: bool) -> None:
    if as_json:
        ratios = {name: ratio for report in reports for name, ratio in report.ratios().items()}
        ratios |= {f"{one.arch} {one.task}": one.wall_s.ratio for one in sets}
        found = {"ratios": ratios, "reports": [report.canonical() for report in (*reports, *sets)]}
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(reports), highlight=False)
    console.print(
        f"wall time of whole processes; load average before: {reports[0].load_average}", style="dim"
    )
    for report in reports:
        images = report.images
        console.print(
            f"{report.arch}: same class for {images.same_prediction:,} and same rank for {images.same_rank:,} of "
            f"{images.n:,} images ({images.predicted_classes} classes predicted); confidence within "
            f"{images.confidence_difference:.1e}; nearest tie {images.nearest_tie:.1e}",
            style="dim",
            highlight=False,
        )
        if lost := report.differing():
            console.print(f"[bold red]differs:[/] {report.arch}: {', '.join(lost)}", highlight=False)
    for one in sets:
        console.print(_set_table(one), highlight=False)


def _set_table(one: SetReport) -> Table:
    from rich.table import Table

    caption = f"{one.wall_s.ours:.1f} s / {one.wall_s.peer:.1f} s = {one.wall_s.ratio:.2f}"
    if one.ranking is not None:
        same = one.ranking
        caption += (
            f"; same rank for {same.same_text_rank:,} of {same.images:,} images and {same.same_image_rank:,} of "
            f"{same.captions:,} captions"
        )
    table = Table("metric", "clipbench", "peer", title=f"{one.arch}, {one.task}, fp32", caption=caption)
    for name, found in one.metrics.items():
        table.add_row(name, f"{found.ours:.4f}", f"{found.peer:.4f}" + ("" if found.equal else " ≠"))
    return table


def _table(reports: Sequence[Report]) -> Table:
    from rich.table import Table

    first = reports[0]
    table = Table(
        title=f"clipbench {first.ours.version} and {first.peer.name} {first.peer.version}: "
        f"{first.data['n']:,} images of CIFAR-10, {first.precision}",
    )
    for heading in ("model", "prompts", "", *METRICS, "wall s", "ratio"):
        justify: Literal["left", "right"] = "right" if heading in (*METRICS, "wall s", "ratio") else "left"
        table.add_column(heading.replace("_", " "), justify=justify)
    for report in reports:
        _add_pair(table, report.arch, "default", report.metrics, report.wall_s)
        if report.prompt_sets is not None:
            for name, found in report.prompt_sets.metrics.items():
                _add_pair(table, report.arch, name, found, None)
            _add_pair(table, report.arch, "all in one call", {}, report.prompt_sets.wall_s)
    return table


def _add_pair(
    table: Table, arch: str, prompts: str, found: Mapping[str, Metric], wall_s: Wall | None
) -> None:
    ours, theirs = ["clipbench"], ["peer"]
    for name in METRICS:
        metric = found.get(name)
        ours.append("" if metric is None else f"{metric.ours:.4f}")
        theirs.append("" if metric is None else f"{metric.peer:.4f}" + ("" if metric.equal else " ≠"))
    ours += ["", ""] if wall_s is None else [f"{wall_s.ours:.1f}", f"{wall_s.ratio:.2f}"]
    theirs += ["", ""] if wall_s is None else [f"{wall_s.peer:.1f}", ""]
    table.add_row(arch, prompts, *ours)
    table.add_row("", "", *theirs, end_section=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        code = main()
    except ClipbenchError as error:
        say(f"error: {error}")
        code = 2
    raise SystemExit(code)
