"""Copies of one small set of captions in each layout, and its card."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split

#: image → captions: one with commas, one that begins with a quote, white space to be mended
CAPTIONS = {
    "b.png": ["A dog, a ball and a boy .", '"Stop" it says, in red'],
    "a.png": ["A cat\n."],
    "c.png": ["Two  hens ", "Hens", "A hen, a hen"],
}
TEXTS = ["A dog, a ball and a boy .", '"Stop" it says, in red', "A cat .", "Two hens", "Hens", "A hen, a hen"]
OWNERS = [0, 0, 1, 2, 2, 2]


def entry(**changes: Any) -> Entry[TaskCard]:
    fields: dict[str, Any] = {
        "title": "Pets",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "kind": "captions",
        "protocols": {"ret": {}},
    }
    return Entry("pets", TaskCard.model_validate(fields | changes), Path("tasks/pets.yaml"))


def open_test(root: Path, role: str = "test", **changes: Any) -> Split:
    return open_split(entry(**changes), role, DataPaths({"pets": root}, ()))


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_pictures(folder: Path) -> None:
    for number, name in enumerate(CAPTIONS):
        write(folder / name, small.picture(number))


def coco() -> dict[str, Any]:
    """Captions in another order than images, but for those of one image."""
    pairs = [(7 * number, text) for number, texts in enumerate(CAPTIONS.values()) for text in texts]
    pairs.sort(key=lambda pair: -pair[0])
    return {
        "info": {"year": 2017},
        "images": [{"id": 7 * n, "file_name": name, "height": 8} for n, name in enumerate(CAPTIONS)],
        "annotations": [{"image_id": i, "id": n, "caption": text} for n, (i, text) in enumerate(pairs)],
    }


def karpathy() -> dict[str, Any]:
    splits = [
        ("train", "x.png"),
        *(("test", name) for name in CAPTIONS),
        ("restval", "y.png"),
        ("val", "z.png"),
    ]
    return {
        "dataset": "pets",
        "images": [
            {
                "filename": name,
                "filepath": "val2014",
                "split": split,
                "imgid": n,
                "sentences": [
                    {"raw": raw, "tokens": raw.split(), "sentid": 0} for raw in CAPTIONS.get(name, ["A pig"])
                ],
            }
            for n, (split, name) in enumerate(splits)
        ],
    }


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def flat(text: str) -> str:
    return text.replace("\n", " ")


def write_coco(root: Path) -> None:
    write(root / "annotations/captions_test.json", json.dumps(coco()))
    write_pictures(root / "test")


def write_coco_alone(root: Path) -> None:
    write(root / "annotations/captions.json", json.dumps(coco()))
    write(root / "annotations/instances.json", "{}")  # of another task on the same images
    write_pictures(root / "images")


def write_karpathy(root: Path) -> None:
    write(root / "dataset_pets.json", json.dumps(karpathy()))
    write_pictures(root / "val2014")


def write_table(root: Path) -> None:
    lines = [f"{name},{quoted(flat(text))}" for name, texts in CAPTIONS.items() for text in texts]
    write(root / "captions.txt", "\n".join(["image,caption", *lines, ""]))
    write_pictures(root / "images")


def write_unquoted_table(root: Path) -> None:
    """As CLIP_benchmark reads them: all that follows the first comma is the caption."""
    lines = [
        f"{n},{quoted(t) if t[0] == chr(34) else flat(t)}" for n, texts in CAPTIONS.items() for t in texts
    ]
    write(root / "pets_test_karpathy.txt", "\n".join(["image,caption", *lines]))
    write_pictures(root)


def write_bars(root: Path) -> None:
    lines = [f"{name}| {n}| {flat(t)}" for name, texts in CAPTIONS.items() for n, t in enumerate(texts)]
    lines[2] = lines[2].replace("| 0| ", "| 0   ")  # the line that Flickr30k's has
    write(root / "results.csv", "\n".join(["image_name| comment_number| comment", *lines]))
    write_pictures(root / "flickr30k_images")


def write_webdataset(root: Path, ending: str = "txt") -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, texts in enumerate(CAPTIONS.values()):
            parts = {"png": small.picture(number), ending: "\n".join(map(flat, [*texts, ""])).encode()}
            for end, data in parts.items():
                member = tarfile.TarInfo(f"{number:04d}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write(root / "test/0.tar", buffer.getvalue())
    write(root / "test/nshards.txt", "1\n")
    write(root / "dataset_type.txt", "retrieval")


def write_parquet(root: Path, column: str = "caption", mappings: bool = False) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": small.picture(n), "path": None} for n in range(len(CAPTIONS))]
    texts: list[Any] = list(CAPTIONS.values())
    if mappings:
        texts = [[{"raw": text, "sentid": 1} for text in of] for of in texts]
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, column: texts}), root / "test-00000.parquet")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "coco": write_coco,
    "coco, one split": write_coco_alone,
    "karpathy": write_karpathy,
    "table": write_table,
    "table, unquoted": write_unquoted_table,
    "bars": write_bars,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "parquet of mappings": lambda root: write_parquet(root, mappings=True),
}
