"""Captions in a text file each: caption/<n>.txt, whose first line it is, and image/<n>.jpg (Urban-1k).

Source: the code that Long-CLIP evaluates Urban-1k with (Zhang et al. 2024, arXiv 2403.15378).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.decode import IMAGE_SUFFIXES
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.paths import is_junk, natural
from clipbench.data.split import notes_of
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError

_TEXTS: Final = ("caption", "captions")
_IMAGES: Final = ("image", "images")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The set in `root`; None where it has not two such folders, or the card has several splits or languages.

    Raises:
        DataError: no text has an image of its name, or two images have one name.
    """
    if dataset.card.languages or not dataset.card.alone:
        return None
    texts, images = (
        next((root / name for name in names if (root / name).is_dir()), None) for names in (_TEXTS, _IMAGES)
    )
    if texts is None or images is None or not any(texts.glob("*.txt")):
        return None
    return CaptionFiles(root, texts, images)


LAYOUT: Final = LayoutSpec(("captions",), "caption/<n>.txt and image/<n>.jpg (Urban-1k)", probe)


class CaptionFiles(FileLayout):
    """Images and texts of one name; what has no other half is left out and counted."""

    name_in_fingerprint = "CaptionFiles"

    def __init__(self, root: Path, texts: Path, images: Path) -> None:
        files = {path.stem: path for path in texts.glob("*.txt") if not is_junk(path.name)}
        found: dict[str, Path] = {}
        for path in sorted(images.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path.name):
                if path.stem in found:
                    raise DataError(
                        f"{found[path.stem]} and {path} have the name of one caption",
                        hint="keep the one that is meant",
                    )
                found[path.stem] = path
        names = sorted(found.keys() & files.keys(), key=natural)
        if not names:
            raise DataError(
                f"no text in {texts} has the name of an image in {images}",
                hint="caption/<n>.txt is the caption of image/<n>.jpg",
            )
        said = {name: lines(decoded(files[name])) for name in names}
        self._ids, self._labels = names, [[of[0] if of else ""] for of in said.values()]
        super().__init__(root, [found[name] for name in names], [files[name] for name in names])
        more = [name for name, of in said.items() if any(line.strip() for line in of[1:])]
        self.notes = (
            *notes_of(
                "images-without-captions",
                "images in the folder have no caption, and are left out",
                sorted(found[name].name for name in found.keys() - files.keys()),
            ),
            *notes_of(
                "captions-without-images",
                "captions are of images that are not there, and are left out",
                sorted(files[name].name for name in files.keys() - found.keys()),
            ),
            *notes_of("further-lines", "captions have further lines, which are not read", more),
        )
