"""Small collections of images and captions in every form that `clipbench embed` reads, and what it wrote of them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import FP32
from numpy.typing import NDArray
from PIL import Image

from clipbench.catalog import Catalog
from clipbench.data.split import Sample, Split
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.images import encode


class Picture(NamedTuple):
    """A sample to be embedded."""

    key: str
    image: bytes
    caption: str


def pictures(count: int, start: int = 0) -> list[Picture]:
    """PNGs of 8 px, each another, with a caption each."""
    return [Picture(f"{i:05d}", png(i), f"picture number {i}") for i in range(start, start + count)]


def png(number: int, side: int = 8) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tars(folder: Path, samples: Sequence[Picture], per_part: int, ending: str = ".tar") -> Path:
    """As img2dataset writes them: image, caption and JSON a sample, and a table of metadata beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    mode: Any = {".tar": "w", ".tar.gz": "w:gz"}[ending]
    for number, start in enumerate(range(0, len(samples), per_part)):
        with tarfile.open(folder / f"{number:05d}{ending}", mode) as tar:
            for key, image, caption in samples[start : start + per_part]:
                told = {
                    "key": key,
                    "caption": caption,
                    "url": f"https://example.org/{key}",
                    "width": int(key),
                }
                add(tar, f"{key}.png", image)
                add(tar, f"{key}.txt", f"{caption}\n".encode())
                add(tar, f"{key}.json", json.dumps(told).encode())
        pq.write_table(pa.table({"key": ["x"]}), folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text("{}")
    return folder


def write_table(path: Path, samples: Sequence[Picture], group: int = 4, *, struct: bool = True) -> Path:
    """Parquet as `datasets` writes it, or with plain bytes; `group` rows a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: list[Any] = [{"bytes": s.image, "path": None} if struct else s.image for s in samples]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    columns = {
        "id": pa.array([s.key for s in samples]),
        "image": pa.array(cells, kind),
        "TEXT": pa.array([s.caption for s in samples]),
        "height": pa.array([len(s.image) for s in samples], pa.int16()),
        "thumbnail": pa.array([b"x"] * len(samples)),
    }
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def write_folder(folder: Path, samples: Sequence[Picture]) -> Path:
    """Image files in two folders, each with its caption beside it, and something else."""
    for number, sample in enumerate(samples):
        file = folder / "ab"[number % 2] / f"{sample.key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sample.image)
        file.with_suffix(".txt").write_text(sample.caption)
    (folder / "README.md").write_text("about")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def write_list(path: Path, samples: Sequence[Picture]) -> Path:
    """A list of image files, which lie beside it."""
    (path.parent / "files").mkdir(parents=True, exist_ok=True)
    for sample in samples:
        (path.parent / "files" / f"{sample.key}.png").write_bytes(sample.image)
    rows = [(f"files/{sample.key}.png", sample.caption, sample.key) for sample in samples]
    if path.suffix == ".txt":
        path.write_text("".join(f"{name}\n" for name, _, _ in rows))
    elif path.suffix == ".jsonl":
        told = [{"image": name, "caption": caption, "id": key} for name, caption, key in rows]
        path.write_text("".join(f"{json.dumps(one)}\n" for one in told))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([("image", "caption", "id"), *rows])
    return path


@dataclass(frozen=True)
class Written:
    """What a folder of embeddings holds, all parts one behind the other."""

    manifest: dict[str, Any]
    metadata: dict[str, list[Any]]
    images: NDArray[Any] | None
    texts: NDArray[Any] | None

    @property
    def keys(self) -> list[str]:
        return self.metadata["key"]


def written(folder: Path) -> Written:
    """Read a folder as clip-retrieval's tools do: files in the order of their names."""
    tables = [pq.read_table(path) for path in sorted((folder / "metadata").glob("*.parquet"))]
    table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({"key": []})
    arrays = {
        name: [np.load(path) for path in sorted((folder / name).glob("*.npy"))]
        for name in ("img_emb", "text_emb")
    }
    images, texts = (np.concatenate(arrays[n]) if arrays[n] else None for n in ("img_emb", "text_emb"))
    manifest = json.loads((folder / "manifest.json").read_text())
    return Written(manifest, table.to_pydict(), images, texts)


class Listed(Split):
    """Pictures as a split."""

    dataset, role, classes = "listed", "all", ("picture",)

    def __init__(self, samples: Sequence[Picture]) -> None:
        self._samples = samples
        self.ids = [sample.key for sample in samples]
        self.labels = np.zeros(len(samples), dtype=np.int64)
        self.fingerprint = "-".join(self.ids)

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        for row in rows.tolist():
            yield Sample(self.ids[row], self._samples[row].image)


def encoded(model: Path, samples: Sequence[Picture]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of images and of captions, as an evaluation has them."""
    encoder = ModelEncoder(Catalog().model(str(model)), FP32, progress=False)
    images = encode([encoder], Listed(samples), "joint")[0].features
    return np.asarray(images), np.asarray(encoder.texts([sample.caption for sample in samples]))
