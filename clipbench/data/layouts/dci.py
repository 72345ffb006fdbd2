"""Densely Captioned Images: annotations/*.json, splits.json and the images in photos/.

An image's caption is its `short_caption` and its `extra_caption`, one behind the other; what is said of its parts is no
part of it. The split `all` is that of all that splits.json lists. Source: facebookresearch/DCI (Urbanek et al. 2024).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.layouts.coco import listed_images, numbered
from clipbench.data.paths import split_names
from clipbench.data.text import json_of
from clipbench.errors import DataError

_ALL: Final = "all"
_KEYS: Final = ("image", "short_caption", "extra_caption")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in `root` or its densely_captioned_images/; None where there is none.

    Raises:
        DataError: no such split, an annotation that is none, or an image that is missing.
    """
    if dataset.card.languages:
        return None
    for folder in (root, root / "densely_captioned_images"):
        if (folder / "splits.json").is_file() and (folder / "annotations").is_dir():
            return DCI(dataset, role, folder)
    return None


LAYOUT: Final = LayoutSpec(("captions",), "splits.json, annotations/ and photos/ (DCI)", probe)


class DCI(FileLayout):
    """The images that splits.json lists, in its order."""

    name_in_fingerprint = "DCI"

    def __init__(self, dataset: Entry[TaskCard], role: str, root: Path) -> None:
        listing = root / "splits.json"
        splits = json_of(listing)
        if not isinstance(splits, dict) or not all(_are_names(of) for of in splits.values()):
            raise DataError(
                f"{listing}: expected lists of annotation files by split", hint="fetch the file again"
            )
        names = split_names(dataset.card.splits[role], role)
        own = next((splits[name] for name in names if name in splits), None)
        if own is None and _ALL in names:
            own = [file for of in splits.values() for file in of]
        if own is None:
            raise DataError(
                f"{dataset.id}: no {role} split in {listing} (there is {', '.join(splits)})",
                hint=f"set splits.{role}.name in {dataset.path} to one of these",
            )
        numbered(listing, "annotations", own)
        files = [root / "annotations" / name for name in own]
        found = [_annotation(file) for file in files]
        self._ids = [entry["image"] for entry in found]
        numbered(listing, "images", self._ids)
        self._labels = [[f"{entry['short_caption']} {entry['extra_caption']}".strip(" ")] for entry in found]
        images, self.notes = listed_images(self._ids, listing, [root / "photos", root / "images", root])
        super().__init__(
            root,
            images,
            [listing, *files],
            hint="the images are those of SA-1B's sa_000138.tar: unpack them into photos/",
        )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and name and "/" not in name and name not in (".", "..") for name in value
    )


def _annotation(file: Path) -> dict[str, str]:
    """Image and captions of an annotation file; its masks are dropped while it is parsed."""
    found = json_of(file, _KEYS)
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in _KEYS):
        raise DataError(f"{file}: expected texts {', '.join(_KEYS)}", hint="fetch the file again")
    return found
