"""Copies of small sets with classes in each layout, their cards, and how they are opened."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import DataError

CLASSES = ("bat", "cat", "sea lion")
#: (class, encoded image) of the twelve test images, in the order of the classes
IMAGES: list[tuple[int, bytes]] = []
for number in range(12):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (number * 20, 255 - number * 20, 7)).save(buffer, "PNG")
    IMAGES.append((number // 4, buffer.getvalue()))
LABELS = [label for label, _ in IMAGES]


def entry(path: Path = Path("tasks/animals.yaml"), **changes: Any) -> Entry[TaskCard]:
    """The card of `animals`: twelve images of three classes, and a train split that most copies lack."""
    fields: dict[str, Any] = {
        "title": "Animals",
        "source": {"local": True},
        "splits": {"train": {"name": "train"}, "test": {"name": "test"}},
        "classes": CLASSES,
        "templates": {"default": ["a photo of a {c}."]},
        "prompts_source": "tests",
        "protocols": {"zs": {}},
    }
    return Entry("animals", TaskCard.model_validate(fields | changes), path)


def at(root: Path) -> DataPaths:
    return DataPaths({"animals": root}, ())


def open_test(root: Path, **changes: Any) -> Split:
    return open_split(entry(**changes), "test", at(root))


def stored(split: Split, rows: Sequence[int] | None = None) -> list[tuple[str, bytes]]:
    wanted = np.array(range(len(split)) if rows is None else rows, dtype=np.int64)
    return [(sample.id, sample.image) for sample in split.samples(wanted)]


def by_image(split: Split) -> dict[bytes, int]:
    """Image → label, whatever the order."""
    return dict(zip((image for _, image in stored(split)), np.asarray(split.labels).tolist(), strict=True))


# ------------------------------------------------------------ writing copies

Images = Sequence[tuple[Any, bytes]]


def write_parquet(
    root: Path,
    images: Images = IMAGES,
    names: Sequence[str] | None = CLASSES,
    *,
    split: str = "test",
    columns: tuple[str, str] = ("image", "label"),
    shards: int = 1,
) -> Path:
    """A parquet copy as `datasets` writes it; `names` None: plain numbers or texts as labels."""
    import datasets

    kind = (
        datasets.ClassLabel(names=list(names))
        if names
        else datasets.Value("string" if images and isinstance(images[0][0], str) else "int64")
    )
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: kind})
    root.mkdir(parents=True, exist_ok=True)
    for shard, part in enumerate(np.array_split(np.arange(len(images)), shards)):
        chosen = [images[i] for i in part]
        values = {
            columns[0]: [{"bytes": image, "path": None} for _, image in chosen],
            columns[1]: [label for label, _ in chosen],
        }
        table = datasets.Dataset.from_dict(values, features=features)
        table.to_parquet(str(root / f"{split}-{shard:05d}-of-{shards:05d}.parquet"))
    return root


def write_folder(
    root: Path, images: Images = IMAGES, names: Sequence[str] = CLASSES, split: str = "test"
) -> Path:
    for number, (label, image) in enumerate(images):
        path = root / split / names[label] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return root


def write_wds(
    root: Path,
    images: Images = IMAGES,
    names: Sequence[str] | None = CLASSES,
    *,
    split: str = "test",
    shards: int = 3,
    label_suffix: str = "cls",
) -> Path:
    """CLIP_benchmark's layout: <split>/<n>.tar, nshards.txt, classnames.txt."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for shard, part in enumerate(np.array_split(np.arange(len(images)), shards)):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in part:
                label, image = images[i]
                add(tar, f"s{i:07d}.{label_suffix}", _label_bytes(label, label_suffix))
                add(tar, f"s{i:07d}.png", image)
    (folder / "nshards.txt").write_text(str(shards))
    if names is not None:
        (root / "classnames.txt").write_text("\n".join(names) + "\n")
    return root


def _label_bytes(label: Any, suffix: str) -> bytes:
    if suffix == "cls":
        return str(label).encode()
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(label))
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "parquet": write_parquet,
    "folder": write_folder,
    "wds": write_wds,
}


def opened(root: Path, role: str = "test", **changes: Any) -> Split:
    """A split of a copy with the classes of `small`; a change to None leaves a field of the card out."""
    import small  # with torch, which is not to be loaded where memory is measured

    fields: dict[str, Any] = {
        "title": "Animals",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "classes": small.CLASSES,
        "templates": {"default": ["a {c}"]},
        "prompts_source": "tests",
        "protocols": {"zs": {}},
    }
    given = {name: value for name, value in (fields | changes).items() if value is not None}
    card = TaskCard.model_validate(given)
    return open_split(Entry("animals", card, Path("animals.yaml")), role, DataPaths({"animals": root}, ()))


def message(root: Path, **changes: Any) -> str:
    """The error that `opened` ends with."""
    with pytest.raises(DataError) as caught:
        opened(root, **changes)
    return str(caught.value)
