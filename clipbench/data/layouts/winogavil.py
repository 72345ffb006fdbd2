"""WinoGAViL: a cue, and the images among several that people associate with it.

A copy is a folder with `winogavil_dataset.csv` (ID, cue, candidates, associations, …; lists as text) and the images of
`winogavil_images.zip`, called `<candidate>.jpg`; or with parquet files of the split whose columns are those that the
hub's data set has once it is loaded: candidates, candidate_images, cue, associations (ID).

The text is "A <cue>", or "An <cue>" before a vowel, in small letters, as DataComp's evaluation writes it.
Sources: Bitton et al. 2022, arXiv 2207.12576; nlphuji/winogavil on the hub; mlfoundations/datacomp.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.choices import Choice
from clipbench.data.layouts._choice_files import ChoiceFiles, Fields, Item, Shown, records_of
from clipbench.data.layouts._item_tables import ItemTables
from clipbench.data.layouts.base import Layout, LayoutSpec
from clipbench.data.layouts.refer import columns_of
from clipbench.data.paths import split_files

_FILE: Final = "winogavil_dataset.csv"
_FOLDERS: Final = ("winogavil_images", "images", "winogavil_images/winogavil_images", ".")
_COLUMNS: Final = ("candidates", "candidate_images", "cue", "associations")
_LONGEST: Final = 10_000  # characters of a list


def prompt(cue: str) -> str:
    """The text of a cue.

    >>> [prompt(cue) for cue in ("Owl", "pogonophile")]
    ['An owl', 'A pogonophile']
    """
    small = cue.lower()
    return f"{'An' if small[0] in 'aeiou' else 'A'} {small}"


class Table(ItemTables):
    """Parquet files with the images in them."""

    name_in_fingerprint = "WinoGAViL"

    def __init__(self, files: list[Path], root: Path) -> None:
        texts = {"label": ["candidates", "cue", "associations"]}
        self._start_items(files, root, None, ["candidate_images"], texts)

    def _items(self, shown: Sequence[tuple[int, ...]]) -> Iterator[Choice]:
        columns = ("candidates", "cue", "associations")
        for row, ((file, cells), images) in enumerate(zip(self._read(columns), shown, strict=True)):
            fields = Fields(file, f"row {row} of the split", dict(zip(columns, cells, strict=True)))
            candidates, text, right = _read(fields)
            if len(candidates) != len(images):
                fields.refuse(f"has {len(candidates)} candidates and {len(images)} images")
            yield Choice(f"{row:07d}", images, (text,), right)


def _item(fields: Fields) -> Item:
    candidates, text, right = _read(fields)
    images = tuple(Shown(f"{name}.jpg") for name in candidates)
    return Item(fields.number_or_text("ID"), images, (text,), right)


def _read(fields: Fields) -> tuple[list[str], str, tuple[tuple[int, int], ...]]:
    """Candidates, text, and the pairs that belong together."""
    candidates, associations = _list(fields, "candidates"), _list(fields, "associations")
    right = tuple((place, 0) for place, name in enumerate(candidates) if name in set(associations))
    if not 0 < len(right) < len(candidates) or not set(associations) <= set(candidates):
        fields.refuse(f"has {len(candidates)} candidates, of which {len(right)} are among its associations")
    return candidates, prompt(fields.text("cue").strip()), right


def _list(fields: Fields, key: str) -> list[str]:
    """A list of texts, or one that is written as text, with the quotes of JSON or Python."""
    if isinstance(fields.entry.get(key), str):
        text = fields.text(key)
        found: Any = None
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text) if len(text) <= _LONGEST else None
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        fields = Fields(fields.file, fields.where, {key: found})
    return fields.texts(key)


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> Layout | None:
    """The items in the folder `root`; None where neither form is there.

    Raises:
        DataError: a file that is none, or a missing image.
    """
    if (root / _FILE).is_file():
        items = [
            _item(fields) for fields in records_of(root / _FILE, ("ID", "cue", "candidates", "associations"))
        ]
        return ChoiceFiles(root, [root / _FILE], items, _FOLDERS, form="WinoGAViL")
    files = split_files(root, dataset.card.splits[role], role, ".parquet")
    if not files or not set(_COLUMNS) <= set(columns_of(files[0])):
        return None
    return Table(files, root)


LAYOUT: Final = LayoutSpec(
    ("choices",),
    f"{_FILE} and winogavil_images/, or test*.parquet of WinoGAViL",
    probe,
    forms=("winogavil",),
)
