"""sDCI: images and parts of them, each with a summary of its dense description and one that a language model made
wrong.

A copy is the folder `densely_captioned_images` of facebookresearch/DCI, or the one above it: `splits.json` (split →
names of entries), `complete/<name>` (JSON with image, mask_data, summaries, negatives and clip_scores) and `photos/`.
Of an image count the whole and every mask of 224 px or more each way, which is seen with 15 % more on each side.
`swaps` has the first negative of that kind, `hardest` the one of all kinds that CLIP scored highest for the authors.
Images whose entry lacks a summary, a negative or a score are left out as a whole, as the authors do, and counted.
Source: Urbanek et al. 2023, arXiv 2312.08578; `densely_captioned_images/dataset/` of the repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import Box, ChoiceFiles, Fields, Item, Shown, one_image
from clipbench.data.layouts.base import LayoutSpec
from clipbench.data.split import notes_of
from clipbench.data.text import json_of
from clipbench.errors import DataError, unknown

PARTS: Final = ("swaps", "hardest")
#: how the card calls a split: as the authors do, after this
_BEGINS: Final = "sdci-"
_FOLDER: Final = "densely_captioned_images"
_SPLITS: Final = "splits.json"
_LEAST: Final = 224  # px
_PADDED: Final = 0.15
_READ: Final = ("image", "mask_data", "summaries", "negatives", "clip_scores")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The items of a split, in the folder `root`; None where that has no splits.json and no complete/.

    Raises:
        DataError: no such split, a file that is none, nothing with negatives, or a missing image.
    """
    base = root / _FOLDER if (root / _FOLDER).is_dir() else root
    if not (base / _SPLITS).is_file() or not (base / "complete").is_dir():
        return None
    splits = Fields(base / _SPLITS, "it", json_of(base / _SPLITS, once=True))
    name = dataset.card.splits[role].name.removeprefix(_BEGINS)
    if name not in splits.entry:
        raise DataError(f"{dataset.id}: {base / _SPLITS}: {unknown('split', name, splits.entry)}")
    items: list[Item] = []
    lacking: list[str] = []
    files = [base / _SPLITS]
    for entry in splits.texts(name):
        file = base / "complete" / entry
        if Path(entry).name != entry:
            splits.refuse(f"names the entry {entry[:60]!r}, which leads out of complete/")
        files.append(file)
        content = {
            key: value for key, value in Fields(file, "it", json_of(file)).entry.items() if key in _READ
        }
        try:
            items += _items(Fields(file, "it", content), Path(entry).stem)
        except _Lacking:
            lacking.append(entry)
    if not items:
        raise DataError(
            f"{dataset.id}: no entry of {name} in {base / 'complete'} has summaries and negatives"
        )
    text = "images left out: their entry lacks a summary, a negative or its score"
    notes = notes_of("images-without-negatives", text, lacking)
    return _Clipped(base, files, items, ("photos",), form="sDCI", notes=notes)


LAYOUT: Final = LayoutSpec(
    ("choices",),
    f"{_FOLDER}/ with {_SPLITS}, complete/ and photos/ (sDCI)",
    probe,
    forms=tuple(_BEGINS + name for name in ("train", "valid", "test")),
)


class _Clipped(ChoiceFiles):
    clipped = True


class _Lacking(Exception):
    """An entry lacks something that most have."""


def _items(entry: Fields, name: str) -> Iterator[Item]:
    if any(entry.entry.get(key) is None for key in _READ):
        raise _Lacking
    if len(entry.part("negatives").entry) == 1:  # the whole image's alone
        raise _Lacking
    image = entry.text("image")
    shown = {"base": Shown(image)}
    masks = entry.part("mask_data")
    for key in masks.entry:
        mask = masks.part(key)
        box = _box(mask)
        if box is not None:
            shown[f"m-{mask.whole('idx')}-sc"] = Shown(image, box)
    made = [_pair(entry, name, key, one) for key, one in shown.items()]
    yield from (item for pair in made for item in pair)


def _box(mask: Fields) -> Box | None:
    """What is seen of a mask; None for one that is too small."""
    bounds = mask.part("bounds")
    corners = [bounds.part(corner) for corner in ("topLeft", "bottomRight")]
    left, top, right, bottom = (corner.whole(axis) for corner in corners for axis in ("x", "y"))
    width, height = right - left, bottom - top
    if width < _LEAST or height < _LEAST:
        return None
    wide, high = int(width * _PADDED), int(height * _PADDED)
    return left - wide, top - high, right + wide, bottom + high


def _pair(entry: Fields, name: str, key: str, shown: Shown) -> tuple[Item, Item]:
    """The items of one image or crop: with the first swap, and with the hardest negative."""
    of = {each: entry.part(each).entry.get(key) for each in ("summaries", "negatives", "clip_scores")}
    if any(value is None for value in of.values()):
        raise _Lacking
    where = Fields(entry.file, key, of)
    summary = where.text("summaries") if isinstance(of["summaries"], str) else where.texts("summaries")[0]
    negatives, scores = where.part("negatives"), where.part("clip_scores")
    if not negatives.entry.get("swaps"):
        raise _Lacking
    texts: dict[str, str] = {}
    for kind, value in negatives.entry.items():
        texts |= {f"{kind}_{n}": text for n, text in enumerate(negatives.texts(kind) if value else ())}
    if not texts.keys() <= scores.entry.keys():
        raise _Lacking
    # Of equal scores the last counts, as with the authors, who sort and take the end.
    hardest = max(texts, key=lambda each: (scores.number(each), list(texts).index(each)))
    chosen = {"swaps": texts["swaps_0"], "hardest": texts[hardest]}
    first, second = (
        one_image(f"{name}/{key}/{kind}", shown, summary, [text], kind) for kind, text in chosen.items()
    )
    return first, second
