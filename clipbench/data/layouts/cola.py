"""Cola's multi-object set: pairs of images of Visual Genome, and two captions in which attributes are exchanged.

A copy is a folder with `data/COLA_multiobjects_matching_benchmark.json` (or that file alone), a list of [address of
image 1, caption 1, address of image 2, caption 2], and the images, called as the last part of their addresses, in
`images/`, `vg_gqa_images/` or Visual Genome's own folders. Nothing is fetched from the addresses.
Source: Ray et al. 2023, arXiv 2305.03689; the README of github.com/arijitray1993/COLA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import (
    VISUAL_GENOME,
    ChoiceFiles,
    Fields,
    Item,
    list_of,
    two_pairs,
)
from clipbench.data.layouts.base import LayoutSpec
from clipbench.utils.parsing import exists

_FILE: Final = "COLA_multiobjects_matching_benchmark.json"
_KEYS: Final = ("image 1", "caption 1", "image 2", "caption 2")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The pairs in the folder `root`; None where the file is not there.

    Raises:
        DataError: a file that is none, or a missing image.
    """
    file = next((path for path in (root / "data" / _FILE, root / _FILE) if exists(path)), None)
    if file is None:
        return None
    items = [_item(file, number, entry) for number, entry in enumerate(list_of(file, "Cola"))]
    return ChoiceFiles(root, [file], items, VISUAL_GENOME, form="Cola")


LAYOUT: Final = LayoutSpec(("choices",), f"Cola's data/{_FILE}, and images/", probe, forms=("cola",))


def _item(file: Path, number: int, entry: Any) -> Item:
    fields = Fields(file, f"item {number}", entry, _KEYS)
    names = [_name(fields, key) for key in _KEYS[::2]]
    return two_pairs(str(number), names, [fields.text(key) for key in _KEYS[1::2]])


def _name(fields: Fields, key: str) -> str:
    """The file's name in an address."""
    try:
        name = unquote(urlsplit(fields.text(key)).path).rpartition("/")[2]
    except ValueError:
        name = ""
    if not name:
        fields.refuse(f"has the {key} {fields.text(key)[:60]!r}, expected the address of an image")
    return name
