"""Fingerprints of splits as they were: a feature that was encoded once is found by its split's fingerprint for good."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths

#: data set → split → fingerprint; of data sets of `../shared/data`, of built-in ones, and of copies made here
PINNED: Final = json.loads((Path(__file__).parents[1] / "fixtures" / "pinned_splits.json").read_text())
#: data sets of `../shared/data` whose folder is not called as their card
FOLDERS: Final = {name: "coco-363" for name in PINNED["shared"] if name.startswith("coco-363")}


def fingerprints(entry: Entry[TaskCard], paths: DataPaths) -> dict[str, str]:
    return {role: open_split(entry, role, paths).fingerprint for role in entry.card.splits}


@pytest.mark.parametrize("name", PINNED["built-in"])
def test_built_in_sets(name: str) -> None:
    assert fingerprints(Catalog().dataset(name), DataPaths({}, ())) == PINNED["built-in"][name]


@pytest.mark.parametrize("name", PINNED["shared"])
def test_copies_of_real_sets(name: str, shared_data: Path) -> None:
    paths = DataPaths({name: shared_data / FOLDERS.get(name, name)}, ())
    assert fingerprints(Catalog().dataset(name), paths) == PINNED["shared"][name]


def _write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def archive(root: Path) -> dict[str, Any]:
    """DTD's lists and images; nothing is decoded when a split is opened."""
    for split in ("train", "val", "test"):
        _write(root / "labels" / f"{split}1.txt", f"dotted/{split}.jpg\nwoven/{split}.jpg\n")
        for name in ("dotted", "woven"):
            _write(root / "images" / name / f"{split}.jpg", f"{name} {split}")
    return {}


def folder(root: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        for name in ("dotted", "woven"):
            _write(root / split / name / "1.png", f"{name} {split}")
    return {}


def tars(root: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in (
                ("1.png", split.encode()),
                ("1.cls", b"1"),
                ("2.png", b"2"),
                ("2.cls", b"0"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        _write(root / split / "0.tar", data.getvalue())
    return {}


def gender(root: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        image = {"file_name": f"{split}.jpg", "gender": "woven", "objects": ["cup"]}
        _write(
            root / "annotations" / f"gender_{split}.json", json.dumps({"objects": ["cup"], "images": [image]})
        )
        _write(root / "images" / f"{split}.jpg", split)
    return {"also": ["objects"]}


def voc(root: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        for name, label in (("dotted", 1), ("woven", -1)):
            _write(root / "ImageSets" / "Main" / f"{name}_{split}.txt", f"{split} {label}\n")
        _write(root / "JPEGImages" / f"{split}.jpg", split)
    return {"kind": "multi-label"}


def cifar(root: Path) -> dict[str, Any]:
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        _write(root / "cifar-10-batches-bin" / name, bytes([len(name) % 2]) + bytes(3072))
    _write(root / "cifar-10-batches-bin" / "batches.meta.txt", "dotted\nwoven\n")
    return {}


MADE: Final = {each.__name__: each for each in (archive, folder, tars, gender, voc, cifar)}


@pytest.mark.parametrize("name", MADE)
def test_copies_made_here(name: str, tmp_path: Path) -> None:
    make: Callable[[Path], dict[str, Any]] = MADE[name]
    card = {
        "title": "Made",
        "source": {"local": True},
        "splits": {"train": {"name": "train"}, "test": {"name": "test"}},
        "classes": ["dotted", "woven"],
        "templates": {"default": ["{c}"]},
        "prompts_source": "tests",
        "protocols": {"zs": {}},
    } | make(tmp_path)
    entry = Entry("made", TaskCard.model_validate(card), Path("made.yaml"))
    assert fingerprints(entry, DataPaths({"made": tmp_path}, ())) == PINNED["made"][name]
