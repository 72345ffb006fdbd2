"""Text files of captions, one a line, a file a language; another file lists the images in the same order.

XTD10 (Aggarwal & Kale 2020): `test_1kcaptions_<language>.txt` in the folders `XTD10/`, `MIC/` and `STAIR/` of its
repository, beside `XTD10/test_image_names.txt`. XTD200 and Flickr30k-200 (Visheratin 2023): `<language>.txt` beside
`test_image_names.txt` or `filenames.txt`. Images lie in `images/`, or beside the list. A blank line is no caption: its
image has none in that language.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.layouts.coco import listed_images, numbered
from clipbench.data.split import notes_of
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError

_FOLDERS: Final = ("", "XTD10", "MIC", "STAIR")
_LISTS: Final = ("test_image_names.txt", "filenames.txt")
_BEGIN: Final = "test_1kcaptions_"


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The set in `root`; None where there is no list of images, or the card has no languages.

    Raises:
        DataError: two lists, a file of more or fewer lines than there are images, or an image that is missing.
    """
    if not dataset.card.languages:
        return None
    found = [file for folder in _FOLDERS for name in _LISTS if (file := root / folder / name).is_file()]
    if len(found) > 1:
        raise DataError(
            f"{dataset.id}: {found[0]} and {found[1]} may both list the images",
            hint="keep the one that is meant, beside its captions",
        )
    return CaptionLines(found[0], root, dataset.card) if found else None


LAYOUT: Final = LayoutSpec(
    ("captions",),
    "test_image_names.txt, a text file of captions for each language, and images/ (XTD10, XTD200)",
    probe,
)


class CaptionLines(FileLayout):
    """Images by `listing`; captions of the languages that are asked for."""

    name_in_fingerprint = "CaptionLines"

    def __init__(self, listing: Path, root: Path, card: TaskCard) -> None:
        self._ids = [name.strip() for name in lines(decoded(listing).rstrip())]
        numbered(listing, "images", self._ids)
        there = _files(root, listing)
        self.languages = sorted(there)
        captions: dict[str, list[str]] = {}
        passed: list[str] = []
        read = []
        for language in card.languages:
            if language not in there:
                continue
            file, *others = there[language]
            passed += [str(other.relative_to(root)) for other in others]
            read.append(file)
            captions[language] = _captions(file, len(self._ids))
            if len(captions[language]) != len(self._ids):
                raise DataError(
                    f"{file} has {len(captions[language]):,} lines, {listing.name} lists {len(self._ids):,} images",
                    hint="line n is the caption of the n-th image: fetch both files again",
                )
        self._labels = [
            {language: [of[row]] for language, of in captions.items() if of[row].strip()}
            for row in range(len(self._ids))
        ]
        images, notes = listed_images(self._ids, listing, [root / "images", root, listing.parent])
        super().__init__(root, images, [listing, *read])
        self.images_alone = images
        blank = [
            f"{language}: {self._ids[row]}" for language, of in captions.items() for row, text in enumerate(of)
            if not text.strip()
        ]  # fmt: skip
        self.notes = (
            *notes,
            *notes_of(
                "images-without-captions", "lines are blank: their images have no caption there", blank
            ),
            *notes_of(
                "passed-over-files", "files of captions passed over: another folder comes first", passed
            ),
        )


def _captions(file: Path, count: int) -> list[str]:
    """The lines of a text file, without blank ones behind the first `count`."""
    found = lines(decoded(file))
    while len(found) > count and not found[-1].strip():
        found.pop()
    return found


def _files(root: Path, listing: Path) -> dict[str, list[Path]]:
    """Language → its files, that of the folder that comes first before others."""
    found: dict[str, list[Path]] = {}
    for folder in _FOLDERS:
        for file in sorted((root / folder).glob("*.txt")):
            if file == listing or file.name in _LISTS:
                continue
            if file.stem.startswith(_BEGIN):
                found.setdefault(file.stem.removeprefix(_BEGIN), []).append(file)
            elif file.parent == listing.parent:
                found.setdefault(file.stem, []).append(file)
    return found
