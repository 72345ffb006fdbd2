"""Parity with CLIP_benchmark's `image_caption_selection`: SugarCrepe and Winoground's form, on made-up items.

Part of `make parity` where COCO's images and captions are at hand. Items are captions beside the same with two words
exchanged, or pairs of images with a caption each. The peer takes arg-max, so that the first of equal scores wins, which
is the right one: `@argmax` here. Winoground is gated, so that the peer's reader of it is given a folder that looks as
the hub's data set does when it is loaded.

Its rule for equal scores is compared on features that are told (`tied`): with a model, the same
caption twice in a batch has features that differ in the last bit, and rounding decides.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipbench.catalog import Catalog
from clipbench.data.digests import sha256_file
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.records import store
from clipbench.records.record import utc_now
from clipbench.utils.cache import write_atomic
from parity.peer import (
    BATCH_SIZE,
    Metric,
    Peer,
    anonymous,
    metric,
    our_program,
    peer_program,
    run,
    say,
    wall,
)
from parity.retrieval_and_map import SetReport

# The peer's own function, on features that stand in for images and texts.
_STUB: Final = """\
import json
import sys

import torch
from clip_benchmark.metrics import image_caption_selection


class Told:
    def encode_image(self, images):
        return images[:, :, 0, 0]

    def encode_text(self, texts):
        return texts


held = json.load(open(sys.argv[1]))
images = torch.tensor(held["images"])[..., None, None]
tokenizer = lambda texts: torch.tensor([held["texts"][text] for text in texts])
print(json.dumps(image_caption_selection.evaluate(Told(), [(images, held["said"])], tokenizer, "cpu", amp=False)))
"""
_PARTS: Final = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
#: metric of the peer → ours
_NAMES: Final = {"text_acc": "text_acc", "image_acc": "image_acc", "acc": "group_acc"}

# The peer's own program; its Winoground reads the folder that is given.
_LAUNCHER: Final = """\
import json
import sys
from pathlib import Path

from clip_benchmark.cli import main
from clip_benchmark.datasets import winoground
from PIL import Image


def start(self, root=".", transform=None):
    self.transform = transform
    self.ds = [
        row | {key: Image.open(Path(root) / row[key]) for key in ("image_0", "image_1")}
        for row in json.loads((Path(root) / "items.json").read_text())
    ]


winoground.WinoGround.__init__ = start
main()
"""


@dataclass(frozen=True)
class Comparison:
    """One set that both programs choose in.

    Attributes:
        task: of ours.
        peer_set: the peer's name for the set.
        write: makes both copies, ours in `<folder>/ours` and the peer's in `<folder>/peer`, from images and captions.
        metrics: of the peer's, that mean something there.
        part: of ours that the peer's set is.
    """

    task: str
    peer_set: str
    write: Callable[[Path, Sequence[tuple[Path, str]]], None]
    metrics: tuple[str, ...]
    part: str | None = None


def comparisons(coco: Path) -> list[Comparison]:
    """Those that can be made: all, where the images and captions of COCO are at hand."""
    found = [
        Comparison(
            "sugarcrepe-pick@argmax", "sugar_crepe/swap_obj", write_sugarcrepe, ("text_acc",), "swap-obj"
        ),
        Comparison(
            "winoground-pick@argmax", "winoground", write_winoground, ("text_acc", "image_acc", "acc")
        ),
    ]
    return found if coco.is_dir() else []


def captioned(coco: Path, count: int = 120) -> list[tuple[Path, str]]:
    """Images and a caption of each."""
    held = json.loads((coco / "annotations" / "captions.json").read_text("utf-8"))
    of = {entry["image_id"]: " ".join(entry["caption"].split()) for entry in reversed(held["annotations"])}
    return [(coco / "images" / i["file_name"], of[i["id"]]) for i in held["images"] if i["id"] in of][:count]


def exchanged(caption: str) -> str:
    """The caption with its second word and its last one exchanged.

    >>> exchanged("A dog sees a cat.")
    'A cat. sees a dog'
    """
    words = caption.split()
    if len(words) > 2:
        words[1], words[-1] = words[-1], words[1]
    return " ".join(words)


def write_sugarcrepe(folder: Path, pairs: Sequence[tuple[Path, str]]) -> None:
    """Each part the same items; the numbers have gaps."""
    items = {
        str(2 * n): {"filename": path.name, "caption": caption, "negative_caption": exchanged(caption)}
        for n, (path, caption) in enumerate(pairs)
    }
    for part in _PARTS:
        for place in (folder / "ours" / "data", folder / "peer"):
            write_atomic(place / f"{part}.json", json.dumps(items, ensure_ascii=False).encode())
    for path, _ in pairs:
        for place in (folder / "ours", folder / "peer"):
            write_atomic(place / "val2017" / path.name, path.read_bytes())


def write_winoground(folder: Path, pairs: Sequence[tuple[Path, str]]) -> None:
    """Two images and captions an item."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for number, ((one, first), (other, second)) in enumerate(zip(pairs[::2], pairs[1::2], strict=False)):
        row = {"image_0": one.name, "image_1": other.name, "caption_0": first, "caption_1": second}
        rows.append({"id": number, **row, "collapsed_tag": "Object"})
        for path in (one, other):
            write_atomic(folder / "peer" / path.name, path.read_bytes())
    write_atomic(folder / "peer" / "items.json", json.dumps(rows).encode())
    table = {name: [row[name] for row in rows] for name in rows[0]}
    for key in ("image_0", "image_1"):
        table[key] = [{"bytes": (folder / "peer" / name).read_bytes(), "path": name} for name in table[key]]
    (folder / "ours").mkdir()
    pq.write_table(pa.table(table), folder / "ours" / "test-00000-of-00001.parquet")


def measure(
    peer: Peer, one: Comparison, coco: Path, arch: str, checkpoint: Path, rounds: int, work: Path
) -> SetReport:
    """Both programs on the same items, in fp32, in `rounds` turns.

    Raises:
        ParityError: a run fails.
        DataError: the data is not whole.
    """
    shipped = Catalog().task(one.task).dataset
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as made:
        scratch = Path(made)
        one.write(scratch, captioned(coco))
        cards, split = _opened(shipped.id, scratch)
        launcher, output, results = scratch / "launcher.py", scratch / "peer.json", scratch / "results"
        write_atomic(launcher, _LAUNCHER.encode())
        theirs = [
            str(peer.folder / "bin" / "python"), str(launcher), "eval",
            "--dataset", one.peer_set, "--dataset_root", str(scratch / "peer"), "--split", "test",
            "--task", "image_caption_selection", "--model", arch, "--pretrained", str(checkpoint),
            "--batch_size", str(BATCH_SIZE), "--num_workers", "1", "--quiet", "--no_amp", "--output", str(output),
        ]  # fmt: skip
        ours = [
            sys.executable, "-m", "clipbench", "eval", "--model", f"open_clip:{arch}@{checkpoint}",
            "--task", one.task, "--data", f"{shipped.id}={scratch / 'ours'}", "--cards", str(cards),
            "--precision", "fp32", "--results", str(results), "--quiet",
        ]  # fmt: skip
        turns = []
        for turn in range(1, rounds + 1):
            say(f"{arch} {one.task}, {turn} of {rounds}: the peer …")
            _, peer_s = run(theirs, cwd=scratch, env={"HF_HUB_OFFLINE": "1"})
            say(f"{arch} {one.task}, {turn} of {rounds}: clipbench …")
            env = {"HF_HUB_OFFLINE": "1", "CLIPBENCH_CARDS": "", "CLIPBENCH_DATA": ""}
            cold = {"CLIPBENCH_CACHE": str(scratch / f"cache-{turn}")}
            _, our_s = run(ours, cwd=scratch, env=env | cold)
            turns.append((our_s, peer_s))
        record = store.read(store.path_of(f"open_clip:{arch}@{checkpoint}", one.task, results)).record
        said: dict[str, float] = json.loads(output.read_text())["metrics"]
        places = {scratch: "RUN", work: "WORK", Path(sys.executable): "python"}
        return SetReport(
            arch=arch,
            task=one.task,
            weights={"init": "torch.manual_seed(0)", "sha256": sha256_file(checkpoint)},
            data={
                "dataset": shipped.id, "split": "test", "n": len(split.choices or ()), "fingerprint": split.fingerprint,
            },
            peer=peer_program(peer),
            ours=our_program(),
            commands={"ours": anonymous(ours, places), "peer": anonymous(theirs, places)},
            metrics={_NAMES[name]: metric(_ours(record, _NAMES[name], one.part), said[name]) for name in one.metrics},
            ranking=None,
            wall_s=wall(turns),
            created=utc_now(),
        )  # fmt: skip


def _opened(name: str, scratch: Path) -> tuple[Path, Split]:
    """A folder with the card of the set, without the number of items of the true one; our copy of it, open."""
    cards = scratch / "cards"
    path = Catalog().dataset(name).path
    write_atomic(cards / path.name, re.sub(r", rows: \d+", "", path.read_text("utf-8")).encode())
    split = open_split(Catalog([cards]).dataset(name), "test", DataPaths({name: scratch / "ours"}, ()))
    return cards, split


def tied(peer: Peer, coco: Path, work: Path) -> dict[str, Metric]:
    """Both programs' metrics on features along three axes, whose scores of 1, 0 and -1 are often equal.

    Raises:
        ParityError: a run fails.
    """
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as made:
        scratch = Path(made)
        write_winoground(scratch, captioned(coco))
        cards, split = _opened("winoground", scratch)
        items = split.choices or ()
        texts = sorted({text for item in items for text in item.texts})
        random, axes = np.random.default_rng(0), np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
        seen, said = (axes[random.integers(0, 6, count)] for count in (len(split), len(texts)))
        held = {
            "images": [[seen[row].tolist() for row in item.images] for item in items],
            "texts": dict(zip(texts, said.tolist(), strict=True)),
            "said": [item.texts for item in items],
        }
        write_atomic(scratch / "told.json", json.dumps(held).encode())
        write_atomic(scratch / "stub.py", _STUB.encode())
        python = str(peer.folder / "bin" / "python")
        printed, _ = run([python, str(scratch / "stub.py"), str(scratch / "told.json")], cwd=scratch, env={})
        model = scratch / "given"
        (model / "winoground").mkdir(parents=True)
        np.save(model / "winoground/test.npy", seen)
        write_atomic(model / "winoground/test.ids.txt", "".join(f"{name}\n" for name in split.ids).encode())
        np.save(model / "texts.npy", said)
        write_atomic(model / "texts.json", json.dumps(texts).encode())
        results, task = scratch / "results", "winoground-pick@argmax"
        ours = [
            sys.executable, "-m", "clipbench", "eval", "--model", f"embeddings:{model}", "--task", task,
            "--data", f"winoground={scratch / 'ours'}", "--cards", str(cards), "--results", str(results), "--quiet",
        ]  # fmt: skip
        env = {"CLIPBENCH_CACHE": str(scratch / "cache"), "CLIPBENCH_CARDS": "", "CLIPBENCH_DATA": ""}
        run(ours, cwd=scratch, env=env)
        record = store.read(store.path_of(f"embeddings:{model}", task, results)).record
        found: dict[str, float] = json.loads(printed.strip().splitlines()[-1])
        return {name: metric(record.scores[name].value, found[theirs]) for theirs, name in _NAMES.items()}


def _ours(record: Any, name: str, part: str | None) -> float:
    """Our score, of one part where it is named."""
    if part is None:
        return float(record.scores[name].value)
    return float(np.sum([one[name]["value"] for one in record.evidence["parts"] if one["part"] == part]))
