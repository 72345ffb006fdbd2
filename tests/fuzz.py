"""Fuzzing of every file that clipbench reads from others: `python tests/fuzz.py --inputs 50000`.

A target has some good files, and reads one that was changed: bits turned, parts cut, doubled, moved, or replaced by
what has hurt readers before. Nothing but an error of our own may come of it, in bounded time and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipbench.errors import ClipbenchError

#: what has hurt readers of text before
_TOKENS: Final = [
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"-0", b"0x10", b"1_000", b"1:30", b"null", b"~", b"true"),
    *(b"[" * 400, b"{" * 400, b'{"a":' * 300, b"- " * 300, b"&a [*a, *a]", b"*a", b"<<: *a", b"yes", b"off"),
    *(b"!!python/name:os.system", b"!!binary aGk=", b"---\n", b"...\n", b"? ", b"%YAML 9.9\n", b"\\ud800"),
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"\xe2\x80\xae",
        b"\x0c",
        b"\r\n",
    ),
    *(
        b"\r",
        b"\t",
        b'"',
        b'""',
        b"'",
        b",",
        b";",
        b"|",
        b"#",
        b"../../x",
        b"C:\\x",
        b"/dev/zero",
        b"/etc/passwd",
    ),
    *(
        b"\x1b[31m",
        b"=cmd|' /C calc'!A0",
        b"<script>",
        b"%s%n",
        b"[]",
        b"{}",
        b'[""]',
        b"1979-05-27",
        b" " * 300,
    ),
    *(b"2147483648", b"18446744073709551616", b"-1", b"1e-320", b"0.1"),
]
#: a slow input takes more than this many times the median, and more than the least that can be told on a busy machine
_SLOW: Final = 50
_LEAST_S: Final = 1.0
_WAIT_S: Final = 60.0  # after which an input is said to hang, whoever has the processor
_MEMORY: Final = 3 << 30  # bytes that the process may take on beside what it has


def mutated(good: bytes, rng: random.Random) -> bytes:
    """`good` with one to four changes."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        size = min(rng.choice((1, 2, 4, 8, 32, 200)), len(data) - at)
        match rng.randrange(9):
            case 0 if data:
                at = rng.randrange(len(data))
                data[at] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size] * rng.choice((1, 3, 50))
            case 5:
                data[at : at + size] = rng.choice(_TOKENS)
            case 6:
                data[at:at] = rng.choice(_TOKENS)
            case 7:
                part = data[at : at + size]
                del data[at : at + size]
                to = rng.randrange(len(data) + 1)
                data[to:to] = part
            case _:
                lines = bytes(data).split(b"\n")
                line = rng.randrange(len(lines))
                lines.insert(
                    rng.randrange(len(lines) + 1), lines[line] if rng.random() < 0.5 else lines.pop(line)
                )
                data = bytearray(b"\n".join(lines))
    return bytes(data)


@dataclass(frozen=True)
class Target:
    """Files of one kind: good ones by name, and what reads one whose bytes have changed."""

    good: list[bytes]
    read: Callable[[bytes], object]


@dataclass
class Outcome:
    """What came of a target's inputs."""

    inputs: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def says(self) -> str:
        """One line."""
        return (
            f"{self.inputs:,} inputs, {self.refused:,} refused, {len(self.faults)} faults, median "
            f"{1000 * self.median:.1f} ms, longest {1000 * max(self.seconds):.0f} ms"
        )


def run(target: Target, inputs: int, seed: int, keep: Path | None = None) -> Outcome:
    """Give `inputs` changed files to `target`; those that do harm are kept in the folder `keep`."""
    found = Outcome()
    rng = random.Random(seed)
    for number in range(inputs):
        data = mutated(rng.choice(target.good), rng)
        start, on_cpu = time.perf_counter(), time.process_time()
        fault = None
        try:
            with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("error")
                target.read(data)
        except ClipbenchError as error:
            found.refused += 1
            if not error.message.strip():
                fault = "an error without words"
        except (Exception, RecursionError, MemoryError) as error:  # each is what is looked for
            fault = f"{type(error).__name__}: {str(error)[:200]}"
        # Work is counted, which other programs on the machine do not stretch; and waiting, where it has no end.
        took = time.process_time() - on_cpu
        if time.perf_counter() - start > _WAIT_S:
            took = time.perf_counter() - start
        found.inputs += 1
        found.seconds.append(took)
        if fault is None and took > _LEAST_S and number > 20 and took > _SLOW * found.median:
            fault = f"took {took:.1f} s, {took / found.median:.0f} × the median"
        if fault is not None:
            found.faults.append(f"input {number} of seed {seed}: {fault}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{number}").write_bytes(data)
    return found


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """This process may not take on more than `_MEMORY` beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# --------------------------------------------------------------------- targets


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _card(**changes: Any) -> dict[str, Any]:
    card = {
        "title": "Two",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "prompts_source": "own",
        "classes": ["cat", "dog"],
        "templates": {"default": ["a photo of a {c}."]},
        "protocols": {"zs": {}},
    }
    return card | changes


def _checkout_file(*names: str) -> bytes:
    return Path(__file__).parents[1].joinpath(*names).read_bytes()


def cards(root: Path) -> Target:
    """Task cards, model cards and recipes."""
    from clipbench.catalog import Catalog

    kinds = {"tasks": "dataset", "model_cards": "model", "recipes": "recipe"}
    good = {
        b"tasks\n": [_checkout_file("tasks", "coco-363.yaml"), _checkout_file("tasks", "digits.yaml")],
        b"model_cards\n": [
            _checkout_file("model_cards", "clip-rn50.yaml"), _checkout_file("model_cards", "clip-lite-r50.yaml"),
        ],
        b"recipes\n": [_checkout_file("clipbench", "pretrain", "recipes", "clip-lite-digits.yaml")],
    }  # fmt: skip

    def read(data: bytes) -> None:
        kind, _, text = data.partition(b"\n")
        name = kind.decode("latin-1")
        if name in kinds:
            path = root / name / "x.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)
            getattr(Catalog([root]), kinds[name])("x")

    return Target([kind + text for kind, texts in good.items() for text in texts], read)


def stored_records(root: Path) -> Target:
    """Records."""
    from clipbench.records import store
    from clipbench.report import dataframe, table

    def read(data: bytes) -> None:
        path = root / "x.json"
        path.write_bytes(data)
        stored = store.read(path)
        table.record_table(stored.record)
        table.csv_text(dataframe.rows([stored]), {})

    fixtures = sorted((Path(__file__).parent / "fixtures" / "records").glob("v*.json"))
    return Target([path.read_bytes() for path in fixtures], read)


def _opened(root: Path, card: dict[str, Any]) -> None:
    """Open the split that lies in root/x as `card` says, and read its images."""
    from clipbench.cards.entry import Entry
    from clipbench.cards.task import TaskCard
    from clipbench.data.open import open_split
    from clipbench.data.paths import DataPaths

    entry = Entry("x", TaskCard.model_validate(card), root / "x.yaml")
    split = open_split(entry, "test", DataPaths({"x": root / "x"}, ()))
    for sample in split.samples(np.arange(len(split))):
        assert isinstance(sample.image, bytes)


def tars(root: Path) -> Target:
    """WebDataset tars."""
    shards = []
    for end, labels in ((".png", (b"0", b"1")), (".JPG", (b"1\n", b"0"))):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number, label in enumerate(labels):
                for name, data in ((f"{number:04}{end}", _png(number)), (f"{number:04}.cls", label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        shards.append(buffer.getvalue())
    card = _card()

    def read(data: bytes) -> None:
        path = root / "x" / "test" / "0.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        _opened(root, card)

    return Target(shards, read)


def parquet_metadata(root: Path) -> Target:
    """What Hugging Face `datasets` writes into the head of parquet files, and the files' own bytes."""
    features = {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    good = json.dumps({"info": {"features": features}}).encode()
    buffer = io.BytesIO()
    table = pa.table({"image": [_png(0), _png(1)], "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": good}), buffer)
    card = _card()

    def read(data: bytes) -> None:
        path = root / "x" / "test.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if data[:4] == b"PAR1":
            path.write_bytes(data)
        else:
            pq.write_table(table.replace_schema_metadata({"huggingface": data}), path)
        _opened(root, card)

    return Target([good, good, good, buffer.getvalue()], read)


def caption_tables(root: Path) -> Target:
    """Tables of captions, and COCO's and Karpathy's JSON."""
    images = root / "x" / "images"
    images.mkdir(parents=True)
    for number in range(2):
        (images / f"{number}.png").write_bytes(_png(number))
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(2)],
        "annotations": [{"image_id": n, "caption": f"number {n}"} for n in range(2)],
    }
    karpathy = {
        "images": [
            {"split": "test", "filename": f"{n}.png", "sentences": [{"raw": f"a {n}"}]} for n in range(2)
        ]
    }
    good = {
        "captions.txt": b'image,caption\n0.png,"a cat, black"\n1.png,two dogs\n0.png,it\n',
        "captions_test.csv": b"image,caption,split\n0.png,a,test\n1.png,b,test\n1.png,c,train\n",
        "results.csv": b"image_name| comment_number| comment\n0.png| 0| a\n1.png| 1| b\n",
        "annotations/captions_test.json": json.dumps(coco).encode(),
        "dataset_x.json": json.dumps(karpathy).encode(),
    }
    card = _card(kind="captions", protocols={"ret": {}})
    for key in ("classes", "templates", "prompts_source"):
        del card[key]

    def read(data: bytes) -> None:
        name, _, text = data.partition(b"\0")
        path = root / "x" / name.decode("latin-1")
        if name.decode("latin-1") in good:
            path.parent.mkdir(exist_ok=True)
            try:
                path.write_bytes(text)
                _opened(root, card)
            finally:
                path.unlink(missing_ok=True)

    return Target([name.encode() + b"\0" + text for name, text in good.items()], read)


def choices(root: Path) -> Target:
    """The authors' files of sets of items to choose among, in every form."""
    from choice_copies import FORMS, open_copy

    good: dict[bytes, tuple[str, Path]] = {}
    for form, of in FORMS.items():
        for file in sorted(of.write(root / form).rglob("*")):
            if file.suffix in (".json", ".csv", ".npy") and "unrefined" not in str(file):
                good[f"{form}/{file.relative_to(root / form)}".encode()] = (form, file)
    # Of forms that have many files alike, the first of a kind.
    kept = {
        (form, file.suffix, file.parent.parent): (name, file) for name, (form, file) in reversed(good.items())
    }
    content = {name: file.read_bytes() for name, file in kept.values()}

    def read(data: bytes) -> None:
        name, _, changed = data.partition(b"\0")
        if name in content:
            form, file = good[name]
            try:
                file.write_bytes(changed)
                split = open_copy(form, root / form)
                for sample in split.samples(np.arange(len(split))):
                    assert isinstance(sample.image, bytes)
            finally:
                file.write_bytes(content[name])

    return Target([name + b"\0" + whole for name, whole in content.items()], read)


def item_tables(root: Path) -> Target:
    """The hub's tables of items to choose among, and WinoGAViL's file, in every form."""
    from item_copies import COPIES, open_copy

    files: dict[bytes, tuple[str, Path]] = {}
    for name, of in COPIES.items():
        for file in sorted(of.write(root / name).rglob("*")):
            if file.suffix in (".parquet", ".csv"):
                files[f"{name}/{file.name}".encode()] = (name, file)
    content = {name: file.read_bytes() for name, (_, file) in files.items()}

    def read(data: bytes) -> None:
        name, _, changed = data.partition(b"\0")
        if name in content:
            copy, file = files[name]
            try:
                file.write_bytes(changed)
                split = open_copy(copy, root / copy)
                for sample in split.samples(np.arange(len(split))):
                    assert isinstance(sample.image, bytes)
            finally:
                file.write_bytes(content[name])

    return Target([name + b"\0" + whole for name, whole in content.items()], read)


def clip_benchmark(root: Path) -> Target:
    """Results of CLIP_benchmark."""
    from clipbench.catalog import Catalog
    from clipbench.report import export, table

    one = export.Foreign(
        "cifar10", "ViT-B-32", "openai", "zeroshot_classification", {"acc1": 0.5, "acc5": 0.9}
    )
    good = [b"json\n" + json.dumps(one._asdict()).encode(), b"csv\n" + export.write_csv([one]).encode()]
    catalog = Catalog()

    def read(data: bytes) -> None:
        kind, _, text = data.partition(b"\n")
        path = root / ("x.csv" if kind == b"csv" else "x.json")
        path.write_bytes(text)
        rows = export.rows(export.read(path), catalog)
        table.csv_text(rows, {})

    return Target(good, read)


def feature_folders(root: Path) -> Target:
    """Shards of features, and the plan beside them."""
    from clipbench.encoding.feature_store import FeatureFile
    from clipbench.errors import DataError

    key, rows = {"made": "by fuzzing"}, np.arange(12, dtype=np.float32).reshape(3, 4)
    file = FeatureFile(key, 3, root)
    file.begin("plain")
    file.write(0, rows, device="cpu")
    names = {
        file.path(0).name: file.path(0).read_bytes(),
        "plan.json": (file.folder / "plan.json").read_bytes(),
    }

    def read(data: bytes) -> None:
        name, _, content = data.partition(b"\0")
        changed = names.get(name.decode("latin-1"), content) != content
        if name.decode("latin-1") in names:
            for path, good in names.items():
                (file.folder / path).write_bytes(good)
            (file.folder / name.decode()).write_bytes(content)
        found = FeatureFile(key, 3, root)
        if found.missing():
            raise DataError("dropped, to be encoded again")
        assert np.array_equal(np.asarray(found.read()), rows)
        assert found.plan() == "plain"
        if changed:
            raise DataError("a plan that was dropped, and is that of the shards")

    return Target([name.encode() + b"\0" + content for name, content in names.items()], read)


def embeddings(root: Path) -> Target:
    """Arrays of embeddings as .npy and parquet, and the lists of ids beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipbench.data.embeddings import Rows
    from clipbench.data.named_rows import IMAGES, named_rows

    rows = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    np.save(root / "test.npy", rows)
    pq.write_table(pa.table({"id": list("abcd"), "embedding": rows.tolist()}), root / "test.parquet")
    files = {path.name: path.read_bytes() for path in root.iterdir()}
    files |= {"test.ids.txt": b"a\nb\nc\nd\n", "test.ids.json": b'["a", "b", "c", "d"]'}

    def read(data: bytes) -> None:
        name, _, content = data.partition(b"\0")
        for path in root.iterdir():
            path.unlink()
        if b".ids." in name:
            (root / "test.npy").write_bytes(files["test.npy"])
        elif b".npy" in name:
            (root / "test.ids.txt").write_bytes(files["test.ids.txt"])
        if name.decode("latin-1") in files:
            (root / name.decode()).write_bytes(content)
        table = named_rows(root, "test", IMAGES, root)
        if table is not None:
            Rows(table, np.arange(len(table))).check()

    return Target([name.encode() + b"\0" + content for name, content in files.items()], read)


def run_folders(root: Path) -> Target:
    """What a resumed run reads: checkpoint, metrics, recipe; and the card of a run that has finished."""
    import torch

    from clipbench.catalog import Catalog
    from clipbench.errors import DataError
    from clipbench.pretrain.run.directory import RunDirectory

    recipe = Catalog().recipe("clip-lite-digits", quick=True).card
    path = root / "run"
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    whole: Any = {
        "step": 2,
        "measured": False,
        "data": "data",
        "towers": weights,
        "average": {},
        "learner": {},
    }
    with RunDirectory(path, recipe) as folder:
        folder.begin("data")
        for step in (1, 2):
            folder.log({"step": step, "loss": 1.0 / step})
        folder.save(whole | {"optimiser": {}, "scaler": {}, "pairs": {}})
    files = {
        file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and file.name != ".lock"
    }

    def read(data: bytes) -> None:
        name, _, content = data.partition(b"\0")
        if name.decode("latin-1") not in files:
            raise DataError("another file")
        for file, good in files.items():
            (path / file).write_bytes(good)
        (path / name.decode()).write_bytes(content)
        with RunDirectory(path, recipe) as folder:
            found = folder.begin("data")
        assert found is None or torch.equal(found["towers"]["weight"], weights["weight"])

    return Target([name.encode() + b"\0" + content for name, content in files.items()], read)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "cards": cards,
    "records": stored_records,
    "tars": tars,
    "parquet": parquet_metadata,
    "captions": caption_tables,
    "choices": choices,
    "item_tables": item_tables,
    "clip_benchmark": clip_benchmark,
    "features": feature_folders,
    "embeddings": embeddings,
    "runs": run_folders,
}


def main() -> int:
    """Fuzz the targets that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="of these only")
    parser.add_argument("--inputs", type=int, default=50_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs that do harm")
    given = parser.parse_args()
    bad = 0
    for name in given.targets or TARGETS:
        with tempfile.TemporaryDirectory(prefix="clipbench-fuzz-") as folder:
            os.environ["CLIPBENCH_CACHE"] = f"{folder}/cache"
            root = Path(folder, "files")
            root.mkdir()
            target = TARGETS[name](root)  # before the bound: what it imports takes more than any input may
            with bounded_memory():
                found = run(target, given.inputs, given.seed, given.keep / name)
        print(f"{name}: {found.says()}", flush=True)
        for fault in found.faults[:20]:
            print(f"  {fault}", flush=True)
        bad += len(found.faults)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
