"""VALSE: images of four data sets, each with a caption and a foil of it, in eleven parts.

A copy is a folder with `data/<part>.json` of Heidelberg-NLP/VALSE, each {id: {dataset, image_file, caption, foil,
mturk}}, and the images in folders called as those data sets call them (see `_FOLDERS`), or all in `images/`. An item
counts where at least two of three annotators chose the caption and not the foil: `mturk.caption` is 2 or more, as the
authors say.
Source: Parcalabescu et al. 2022, arXiv 2112.07566; the README of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import ChoiceFiles, Fields, Item, Shown, one_image
from clipbench.data.layouts.base import LayoutSpec
from clipbench.data.split import notes_of
from clipbench.data.text import json_of
from clipbench.errors import DataError

PARTS: Final = (
    *("existence", "plurals", "counting-hard", "counting-small-quant", "counting-adversarial", "relations"),
    *("action-replacement", "actant-swap", "coreference-standard", "coreference-hard", "foil-it"),
)
_AGREED: Final = 2  # of three annotators
#: SWiG's, VisDial's, Visual7W's and COCO's own names of their folders
_FOLDERS: Final = (
    *(
        f"{above}{name}"
        for above in ("", "images/")
        for name in (
            *("images_512", "swig", "SWiG", "VisualDialog_val2018", "visual7w/images", "visual7w"),
            *("val2017", "train2017", "val2014", "train2014"),
        )
    ),
    *("images", "."),
)


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The valid items of all parts, in the folder `root`; None where it has no file of a part.

    Raises:
        DataError: not all parts, a file that is none, or a missing image.
    """
    folder = next((f for f in (root / "data", root) if any(_file(f, part).is_file() for part in PARTS)), None)
    if folder is None:
        return None
    lacking = [_file(folder, part).name for part in PARTS if not _file(folder, part).is_file()]
    if lacking:
        raise DataError(
            f"{dataset.id}: {folder} has no {', '.join(lacking)}",
            hint="fetch all files of data/ of github.com/Heidelberg-NLP/VALSE",
        )
    items: list[Item] = []
    doubted: list[Item] = []
    for part in PARTS:
        for item, agreed in _read(_file(folder, part), part):
            (items if agreed >= _AGREED else doubted).append(item)
    if not items:
        raise DataError(f"{dataset.id}: {folder} has no item of which two annotators chose the caption")
    text = "items left out: fewer than two of three annotators chose the caption and not the foil"
    notes = notes_of("items-not-valid", text, [item.id for item in doubted])
    files = [_file(folder, part) for part in PARTS]
    return ChoiceFiles(root, files, items, _FOLDERS, form="VALSE", notes=notes)


LAYOUT: Final = LayoutSpec(
    ("choices",),
    "VALSE's data/<part>.json, and the images of SWiG, VisDial, Visual7W and COCO",
    probe,
    forms=("valse",),
)


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def _read(file: Path, part: str) -> list[tuple[Item, int]]:
    """Every item, and how many annotators chose its caption."""
    found = []
    for key, entry in Fields(file, "it", json_of(file, once=True)).entry.items():
        fields = Fields(file, f"item {key}", entry)
        image, caption, foil = (fields.text(name) for name in ("image_file", "caption", "foil"))
        agreed = fields.part("mturk").whole("caption")
        found.append((one_image(f"{part}/{key}", Shown(image), caption, [foil], part), agreed))
    return found
