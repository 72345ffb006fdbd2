"""ImageNet (ILSVRC 2012) as its archives unpack, of which the validation set has its classes in a file apart."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._archived import Archived, in_form, lines_of, matlab_of, number_of, string_of
from clipbench.data.layouts.base import FileLayout
from clipbench.data.layouts.folder import ImageFolder
from clipbench.data.paths import split_names
from clipbench.errors import DataError

_WNID: Final = re.compile(r"n\d{8}")
_FLAT: Final = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def imagenet(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """ImageNet (ILSVRC 2012) where the folder alone does not say it: the test split of a card is ILSVRC's `val`.

    `val` holds a folder for each wnid, or, as its archive unpacks, 50,000 images whose classes the development kit
    has: numbers of its own, 1 to 1000, which are not the order of the sorted wnids and become wnids by meta.mat. Of
    Kaggle's copy LOC_val_solution.csv says them.
    """
    names = dataset.card.label_names
    if names is None or not all(_WNID.fullmatch(name) for name in names):
        return None
    places = (root, root / "ILSVRC2012", root / "imagenet", root / "ILSVRC" / "Data" / "CLS-LOC")
    if "train" in (role, dataset.card.splits[role].name):
        train = next((base / "train" for base in places if (base / "train").is_dir()), None)
        if train is None:
            return None
        packed = sorted(p.name for p in train.glob("n*.tar") if _WNID.fullmatch(p.stem))
        if packed:
            raise DataError(
                f"{train} holds {len(packed):,} archives that are not unpacked, first {packed[0]}",
                hint=f"unpack each into a folder of its name, as {train / packed[0].removesuffix('.tar')}",
            )
        return None if train.parent == root else ImageFolder(train)
    own = [root / name for name in split_names(dataset.card.splits[role], role)]
    if any(_wnids(folder) for folder in own):
        return None  # an image folder as all others
    folders = [*own, *(base / name for base in places for name in ("val", "ILSVRC2012_img_val")), root]
    for folder in folders:
        if not folder.is_dir():
            continue
        if folder != root and _wnids(folder):
            return ImageFolder(folder)
        numbers = sorted(int(m[1]) for m in (_FLAT.fullmatch(p.name) for p in folder.iterdir()) if m)
        if numbers:
            return _flat(folder, numbers, (root, *places[1:]))
    return None


def _wnids(folder: Path) -> bool:
    """Whether a folder holds one for each of several wnids."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_WNID.fullmatch(entry.name) and entry.is_dir() for entry in entries)


def _flat(folder: Path, numbers: list[int], places: Sequence[Path]) -> FileLayout:
    """The images of ILSVRC's validation set in one folder, of which `numbers` are there."""
    truth = "ILSVRC2012_validation_ground_truth.txt"
    tops = [*places, folder, folder.parent]
    kits = [top / kit for top in tops for kit in ("ILSVRC2012_devkit_t12/data", "devkit/data", "data", ".")]
    kit = next((k for k in kits if (k / truth).is_file()), None)
    unpack = "ILSVRC2012_img_val.tar"
    if kit is not None:
        annotations = [kit / truth, kit / "meta.mat"]
        wnids = _synsets(annotations[1])
        told = lines_of(annotations[0], "ILSVRC2012_devkit_t12.tar.gz")
        strange = next((n for n, line in enumerate(told, 1) if line not in wnids), None)
        if strange is not None:
            raise DataError(
                f"{annotations[0]}:{strange}: {told[strange - 1][:40]!r} is no class of meta.mat "
                f"(1 to {len(wnids):,})",
                hint="unpack ILSVRC2012_devkit_t12.tar.gz again",
            )
        images = {f"ILSVRC2012_val_{n:08d}.JPEG": wnids[line] for n, line in enumerate(told, 1)}
    else:
        solution = next(
            (t / "LOC_val_solution.csv" for t in tops if (t / "LOC_val_solution.csv").is_file()), None
        )
        if solution is None:
            raise DataError(
                f"{folder} holds {len(numbers):,} images of ILSVRC's validation set, and nothing says their classes",
                hint=f"unpack ILSVRC2012_devkit_t12.tar.gz into {places[0]}",
            )
        annotations = [solution]
        rows = [line.partition(",")[::2] for line in lines_of(solution, "the copy")[1:]]
        images = {f"{image}.JPEG": (said.split() or [""])[0] for image, said in sorted(rows)}
    if len(numbers) > len(images):
        raise DataError(
            f"{folder} holds {len(numbers):,} images, of which {annotations[0].name} tells {len(images):,}",
            hint="unpack ILSVRC2012_devkit_t12.tar.gz again",
        )
    top = next(
        p for p in (*places, folder.parent) if folder.is_relative_to(p) and annotations[0].is_relative_to(p)
    )
    inside = folder.relative_to(top).as_posix()
    ids = [f"{inside}/{name}" if inside != "." else name for name in images]
    return Archived(top, ids, list(images.values()), annotations, unpack)


def _synsets(file: Path) -> dict[str, str]:
    """Number (as text) → wnid of the classes: the development kit lists what is above them in WordNet, too."""
    found = matlab_of(file, "ILSVRC2012_devkit_t12.tar.gz", "synsets")
    with in_form(file):
        rows = [
            (number_of(r["ILSVRC2012_ID"]), string_of(r["WNID"]), number_of(r["num_children"]))
            for r in found["synsets"]
        ]
    return {str(number): wnid for number, wnid, children in rows if children == 0}
