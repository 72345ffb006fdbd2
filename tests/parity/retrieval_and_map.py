"""Parity with CLIP_benchmark beyond CIFAR-10: retrieval on captions, and mAP on VOC with difficult objects as positive.

Part of `make parity` where Flickr8k's and VOC's images are at hand. Random weights put
all scores close together, so recall at a few depths is a blunt witness; ranks of single captions and images, from the
scores that the peer ranks, are compared too.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import Strict
from clipbench.catalog import Catalog
from clipbench.data.digests import sha256_file
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.evaluation import limited
from clipbench.metrics.ranks import expected_rank
from clipbench.records import store
from clipbench.records.record import utc_now
from clipbench.utils.cache import write_atomic
from parity.peer import (
    BATCH_SIZE,
    Metric,
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

#: what the peer prints → what we do
RECALLS: Final = {
    name: name for k in (1, 5, 10) for name in (f"image_retrieval_recall@{k}", f"text_retrieval_recall@{k}")
}
AVERAGE_PRECISION: Final = {"mean_average_precision": "map_area"}

# The peer's own program, which also keeps the scores that it ranks.
_LAUNCHER = """\
import sys

import numpy as np
from clip_benchmark.cli import main
from clip_benchmark.metrics import zeroshot_retrieval as task

kept = sys.argv.pop(1)
ranked = task.batchify


def batchify(func, scores, positive, *given, **options):
    if not positive.sum(dim=1).gt(1).any():  # texts × images
        np.savez(kept, scores=scores.numpy(), owner=positive.int().argmax(dim=1).numpy())
    return ranked(func, scores, positive, *given, **options)


task.batchify = batchify
main()
"""


class Ranking(Strict):
    """Rank by rank: of the best caption of each image, and of the image of each caption.

    Attributes:
        same_text_rank, same_image_rank: how many are the same.
        rank_difference: the largest one.
        score_range: of all scores that the peer ranks; what its places are told apart by.
    """

    images: int
    captions: int
    same_text_rank: int
    same_image_rank: int
    rank_difference: float
    score_range: float


class SetReport(Strict):
    """One comparison: `results/parity/<arch>-fp32-<data set>-<images>.json`."""

    schema_version: Literal[1] = 1
    arch: str
    task: str
    weights: dict[str, str]
    data: dict[str, str | int]
    peer: Program
    ours: Program
    commands: dict[str, str]
    metrics: dict[str, Metric]
    ranking: Ranking | None
    wall_s: Wall
    created: str

    def differing(self) -> list[str]:
        """The metrics that differ."""
        return [f"{self.task} {name}" for name, metric in self.metrics.items() if not metric.equal]


@dataclass(frozen=True)
class Comparison:
    """One data set that both programs measure.

    Attributes:
        task: of ours, on `folder`, a local copy.
        peer_task: the peer's name for it.
        write: makes the peer's copy of a split in a folder.
        names: metric of the peer → ours.
        images: the seeded sample of `--limit`; None: all.
    """

    task: str
    folder: Path
    peer_task: str
    write: Callable[[Split, Path], None]
    names: Mapping[str, str]
    images: int | None = None


def comparisons(flickr8k: Path, voc: Path, captioned: int | None = None) -> list[Comparison]:
    """Those whose data is at hand; retrieval on `captioned` images, or all of them.

    mAP is always over all images: where a class is in none, the peer counts 0, and we leave it out.
    """
    found = [
        Comparison("flickr8k-1000-ret", flickr8k, "zeroshot_retrieval", write_captions, RECALLS, captioned),
        Comparison(
            "voc2012-100-zs@difficult-positive",
            voc,
            "zeroshot_classification",
            write_labels,
            AVERAGE_PRECISION,
        ),
    ]
    return [one for one in found if one.folder.is_dir()]


def measure(peer: Peer, one: Comparison, arch: str, checkpoint: Path, rounds: int, work: Path) -> SetReport:
    """Both programs on the same images, in fp32, in `rounds` turns.

    Raises:
        ParityError: a run fails.
        DataError: the data is not whole.
    """
    task = Catalog().task(one.task)
    name = task.dataset.id
    whole = open_split(task.dataset, "test", DataPaths({name: one.folder}, ()))
    split = limited(whole, one.images, 0)
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as made:
        scratch = Path(made)
        copy = scratch / "copy"
        one.write(split, copy)
        output, kept, launcher = scratch / "peer.json", scratch / "scores.npz", scratch / "launcher.py"
        write_atomic(launcher, _LAUNCHER.encode())
        theirs = [
            str(peer.folder / "bin" / "python"), str(launcher), str(kept), "eval",
            "--dataset", f"wds/{name}", "--dataset_root", str(copy), "--split", "test", "--task", one.peer_task,
            "--recall_k", "1", "5", "10", "--model", arch, "--pretrained", str(checkpoint),
            "--batch_size", str(BATCH_SIZE), "--num_workers", "1", "--quiet", "--no_amp",
            "--output", str(output),
        ]  # fmt: skip
        results = scratch / "results"
        ours = [
            sys.executable, "-m", "clipbench", "eval", "--model", f"open_clip:{arch}@{checkpoint}",
            "--task", one.task, "--data", f"{name}={one.folder.resolve()}",
            "--precision", "fp32", "--results", str(results), "--quiet",
        ]  # fmt: skip
        if one.images is not None:
            ours += ["--limit", str(one.images)]
        env = {"HF_HUB_OFFLINE": "1", "CLIPBENCH_CARDS": "", "CLIPBENCH_DATA": ""}
        turns = []
        for turn in range(1, rounds + 1):
            say(f"{arch} {one.task}, {turn} of {rounds}: the peer …")
            _, peer_s = run(theirs, cwd=scratch, env={"HF_HUB_OFFLINE": "1"})
            say(f"{arch} {one.task}, {turn} of {rounds}: clipbench …")
            cold = {"CLIPBENCH_CACHE": str(scratch / f"cache-{turn}")}
            _, our_s = run(ours, cwd=scratch, env=env | cold)
            turns.append((our_s, peer_s))
        path = store.path_of(f"open_clip:{arch}@{checkpoint}", one.task, results)
        scores = {m: s.value for m, s in store.read(path).record.scores.items()}
        said: dict[str, float] = json.loads(output.read_text())["metrics"]
        places = {scratch: "RUN", work: "WORK", Path(sys.executable): "python", one.folder.resolve(): "DATA"}
        return SetReport(
            arch=arch,
            task=one.task,
            weights={"init": "torch.manual_seed(0)", "sha256": sha256_file(checkpoint)},
            data={"dataset": name, "split": "test", "n": len(split), "fingerprint": split.fingerprint},
            peer=peer_program(peer),
            ours=our_program(),
            commands={"ours": anonymous(ours, places), "peer": anonymous(theirs, places)},
            metrics={m: metric(scores[m], said[theirs_]) for theirs_, m in one.names.items()},
            ranking=_ranking(path, kept) if kept.is_file() else None,
            wall_s=wall(turns),
            created=utc_now(),
        )


def _ranking(record: Path, kept: Path) -> Ranking:
    import pyarrow.parquet as pq

    table = pq.read_table(store.samples_path(record), columns=["text_rank", "image_rank"])
    with np.load(kept) as arrays:
        return compare_ranks(
            table["text_rank"].to_numpy(),
            np.concatenate(table["image_rank"].to_pylist()),
            arrays["scores"],
            arrays["owner"],
        )


def compare_ranks(
    text_rank: NDArray[np.float64],
    image_rank: NDArray[np.float64],
    scores: NDArray[np.float32],
    owner: NDArray[np.int64],
) -> Ranking:
    """Our ranks beside those of the peer's scores, ties counted as we do.

    Args:
        text_rank, image_rank: float64 [N], [M], from 1 on.
        scores: float32 [M, N], texts × images.
        owner: int64 [M], the image of each text.

    >>> scores = np.array([[3, 1], [2, 2], [0, 4]], np.float32)
    >>> compare_ranks(np.array([1, 1]), np.array([1, 1.5, 2]), scores, np.array([0, 0, 1])).same_image_rank
    2
    """
    mine = owner[:, None] == np.arange(scores.shape[1])
    target = scores[mine][:, None]
    ones = np.ones(len(owner), np.int64)
    of_texts = expected_rank((scores > target).sum(axis=1), (scores == target).sum(axis=1) - 1, ones)
    best = np.where(mine, scores, -np.inf).max(axis=0)
    counts = (
        (scores > best).sum(axis=0),
        ((scores == best) & ~mine).sum(axis=0),
        ((scores == best) & mine).sum(axis=0),
    )
    of_images = expected_rank(*counts)
    return Ranking(
        images=len(text_rank),
        captions=len(image_rank),
        same_text_rank=int((of_images == text_rank).sum()),
        same_image_rank=int((of_texts == image_rank).sum()),
        rank_difference=float(max(np.abs(of_images - text_rank).max(), np.abs(of_texts - image_rank).max())),
        score_range=float(np.ptp(scores)),
    )


# ------------------------------------------------------------------ the input


def write_captions(split: Split, folder: Path) -> None:
    """`split` in CLIP_benchmark's layout for retrieval: one caption a line beside each image."""
    assert split.captions is not None
    texts = np.array(split.captions.texts, dtype=object)
    labels = ["\n".join(texts[split.captions.image == row]).encode() for row in range(len(split))]
    _write(split, "txt", labels, folder, "retrieval")


def write_labels(split: Split, folder: Path) -> None:
    """`split` in CLIP_benchmark's layout for several labels an image, difficult objects being positive."""
    labels = []
    for row in split.labels:
        buffer = io.BytesIO()
        np.save(buffer, (row != 0).astype(np.int64))
        labels.append(buffer.getvalue())
    _write(split, "npy", labels, folder, "multilabel")
    templates: Any = Catalog().dataset(split.dataset).card.templates["default"]
    for name, lines in (
        ("classnames.txt", split.classes),
        ("zeroshot_classification_templates.txt", templates),
    ):
        write_atomic(folder / name, "".join(f"{line}\n" for line in lines).encode())


def _write(split: Split, end: str, labels: Sequence[bytes], folder: Path, kind: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row, sample in enumerate(split.samples(np.arange(len(split)))):
            add(tar, f"{row:07d}.{suffix(sample.image, sample.id)}", sample.image)
            add(tar, f"{row:07d}.{end}", labels[row])
    write_atomic(folder / "test" / "0.tar", buffer.getvalue())
    write_atomic(folder / "test" / "nshards.txt", b"1\n")
    write_atomic(folder / "dataset_type.txt", kind.encode())
