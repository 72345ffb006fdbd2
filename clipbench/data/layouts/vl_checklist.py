"""VL-CheckList: images with a caption that is right and one that is wrong in an attribute, an object or a relation.

A copy is a folder with `data/Attribute/`, `data/Object/` and `data/Relation/` of om-ai-lab/VL-CheckList, which hold
JSON files, each a list of [path of the image, {"POS": [caption, …], "NEG": [caption, …]}], of which the first captions
count, and the images in `vg/`, `swig/` and `hake/`. A file is a part, called as its path below data/.
Source: Zhao et al. 2022, arXiv 2207.00221; DATASETS.md and `vl_checklist/` of the repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import (
    ChoiceFiles,
    Fields,
    Item,
    Shown,
    list_of,
    one_image,
)
from clipbench.data.layouts.base import LayoutSpec
from clipbench.errors import DataError

_KINDS: Final = ("Attribute", "Object", "Relation")
_KEYS: Final = ("image", "captions")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The items of all files, in the folder `root`; None where it has none of the three folders.

    Raises:
        DataError: not all folders, a file that is none, or a missing image.
    """
    data = root / "data"
    files = {kind: sorted((data / kind).rglob("*.json")) for kind in _KINDS}
    lacking = [kind for kind, found in files.items() if not found]
    if len(lacking) == len(_KINDS):
        return None
    if lacking:
        raise DataError(
            f"{dataset.id}: {data} has no JSON file in {' nor in '.join(f'{kind}/' for kind in lacking)}",
            hint="fetch data/ of github.com/om-ai-lab/VL-CheckList as a whole",
        )
    every = [file for found in files.values() for file in found]
    items = [item for file in every for item in _items(file, data)]
    return ChoiceFiles(root, every, items, ("vg", "swig", "hake", "images", "."), form="VL-CheckList")


LAYOUT: Final = LayoutSpec(
    ("choices",),
    "VL-CheckList's data/ and the images in vg/, swig/ and hake/",
    probe,
    forms=("vl-checklist",),
)


def _items(file: Path, data: Path) -> Iterator[Item]:
    part = file.relative_to(data).with_suffix("").as_posix()
    for number, entry in enumerate(list_of(file, "VL-CheckList")):
        fields = Fields(file, f"item {number}", entry, _KEYS)
        captions = fields.part("captions")
        shown, right, wrong = Shown(fields.text("image")), captions.texts("POS"), captions.texts("NEG")
        yield one_image(f"{part}/{number}", shown, right[0], [wrong[0]], part)
