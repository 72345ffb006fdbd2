"""Crossmodal-3600 as its authors give it: captions.jsonl, and the images in images/.

A line is one image: `image/key`, which is the name of its file without `.jpg`, and for each language an object with its
`caption`s, a list of texts. Source: Thapliyal et al. 2022, google.github.io/crossmodal-3600.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._json_lines import objects
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.layouts.coco import listed_images, numbered
from clipbench.data.split import notes_of
from clipbench.errors import DataError

_FILE: Final = "captions.jsonl"
_KEY: Final = "image/key"


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The set in `root`; None where there is no captions.jsonl, or the card has no languages.

    Raises:
        DataError: a line is no such object, or an image is missing.
    """
    file = root / _FILE
    return XM3600(file, root, dataset.card) if dataset.card.languages and file.is_file() else None


LAYOUT: Final = LayoutSpec(("captions",), "captions.jsonl and images/ (Crossmodal-3600)", probe)


class XM3600(FileLayout):
    """Its images are those of all lines, whatever languages are asked for."""

    name_in_fingerprint = "XM3600"

    def __init__(self, file: Path, root: Path, card: TaskCard) -> None:
        self._ids, self._labels = [], []
        there: dict[str, None] = {}
        for number, line in objects(file):
            key = line.get(_KEY)
            if not isinstance(key, str) or not key:
                raise DataError(f"{file}:{number}: no {_KEY!r} with the name of an image")
            own = {name: value for name, value in line.items() if not name.startswith("image/")}
            there |= dict.fromkeys(own)
            self._ids.append(key)
            self._labels.append(
                {name: _captions(file, number, name, own[name]) for name in card.languages if name in own}
            )
        numbered(file, _KEY, self._ids)
        self.languages = list(there)
        images, self.notes = listed_images([f"{key}.jpg" for key in self._ids], file, [root / "images", root])
        super().__init__(root, images, [file], hint="unpack images.tgz and captions.zip into one folder")
        self.images_alone = images
        text = "languages of the file are not asked for"
        unread = [name for name in there if name not in card.languages]
        self.notes += notes_of("unread-languages", text, unread)


def _captions(file: Path, number: int, language: str, value: Any) -> list[Any]:
    found = value.get("caption") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError(f'{file}:{number}: {language!r} has no "caption" with a list of texts')
    return found
