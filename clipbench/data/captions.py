"""Images with captions: COCO's JSON, Karpathy's splits, tables of image and caption; and what captions must be.

A copy is a folder with one of these files and the images (see `layout`). WebDataset tars (a `.txt` beside each image,
one caption a line) and parquet (a column of captions) are read by `clipbench.data.hub`, like those of other sets.
Sources: the data format on cocodataset.org; the caption files of Karpathy & Fei-Fei, arXiv 1412.2306 (the keys
`split`, `filename`, `filepath`, `sentences`, `raw`); the tables that come with Flickr8k and Flickr30k.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipbench.cards import TaskCard
from clipbench.catalog import Entry
from clipbench.data import Captions
from clipbench.data.coco import listed_images, numbered, read_lists
from clipbench.data.hub import split_names
from clipbench.data.layout import FileLayout
from clipbench.errors import DataError

_COCO: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "caption": str},
}
_KARPATHY: dict[str, dict[str, type]] = {"images": {"split": str, "filename": str, "sentences": list}}
#: a line of Flickr30k's results.csv; one of its lines lacks the second bar
_BARS = re.compile(r"(?P<image>[^|]+?)\s*\|\s*\d+\s*\|?\s*(?P<caption>.*)")
#: what the published archives call the folder of images
_FOLDERS = (
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)


def layout(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in the folder `root`; None where none of these files is there:

    - `dataset_<set>.json` (Karpathy's), in `root` or `annotations/`: the images whose `split` is the card's name for
      it; `restval` belongs to `train`. Images lie in the folder that their entry names, in `root` or `images/`.
    - `annotations/captions_<split>.json` (COCO's), or `captions.json` for a card with one split.
    - `captions_<split>.txt` or `.csv`, or `<set>_<split>_karpathy.txt`, or, for a card with one split, `captions.txt`,
      `captions.csv` or `results.csv`: a heading, then `image,caption` a line, commas in the caption or quotes about
      it allowed; or Flickr30k's `image| number| caption`.

    Raises:
        DataError: no such split, a file that is none of these, or an image that is missing.
    """
    names = split_names(dataset.card.splits[role], role)
    alone = dataset.card.alone
    found = sorted([*root.glob("dataset_*.json"), *(root / "annotations").glob("dataset_*.json")])
    if len(found) > 1:
        raise DataError(
            f"{dataset.id}: {root} holds {', '.join(path.name for path in found)}",
            hint="keep the one that is meant, beside its images",
        )
    if found:
        return _karpathy(dataset, role, found[0], root, names)
    found = sorted((root / "annotations").glob("captions*.json"))
    if found:
        wanted = [f"captions_{name}.json" for name in names] + (["captions.json"] if alone else [])
        return _coco(_chosen(dataset, role, found, wanted), root, names)
    found = sorted(
        {p for end in ("txt", "csv") for p in root.glob(f"*captions*.{end}")} | {*root.glob("*_karpathy.txt")}
    )
    found += [path for path in (root / "results.csv",) if path.is_file()]
    if found:
        wanted = [f"captions_{name}.{end}" for name in names for end in ("txt", "csv")]
        wanted += [
            path.name for name in names for path in found if path.name.endswith(f"_{name}_karpathy.txt")
        ]
        wanted += ["captions.txt", "captions.csv", "results.csv"] if alone else []
        return _table(_chosen(dataset, role, found, wanted), root, names)
    return None


def gather(dataset: str, ids: list[str], raw: list[Any], where: str) -> Captions:
    """The captions of a split, checked: every image has one, and none is empty. White space becomes single spaces.

    Args:
        raw: what each image has: a text; a text of several lines, one caption each, where blank ones are none; or a
            list of texts, or of mappings with a `raw` text.

    Raises:
        DataError: naming the first image without captions, or with one that is empty or no text.
    """
    texts: list[str] = []
    image: list[int] = []
    bare = []
    for row, (name, value) in enumerate(zip(ids, raw, strict=True)):
        several = value.splitlines() if isinstance(value, str) else value
        if not isinstance(several, list):
            raise DataError(f"{dataset}: image {name} in {where} has {str(value)[:60]!r}, expected captions")
        captions = []
        for number, caption in enumerate(several, 1):
            text = caption.get("raw") if isinstance(caption, Mapping) else caption
            if not isinstance(text, str):
                raise DataError(
                    f"{dataset}: caption {number} of image {name} in {where} is {str(caption)[:60]!r}, expected a "
                    'text, or a mapping with a text "raw"'
                )
            plain = " ".join(text.split())
            if plain:
                captions.append(plain)
            elif not isinstance(value, str):
                raise DataError(
                    f"{dataset}: caption {number} of image {name} in {where} is empty",
                    hint="take it out of the data: an empty text finds no image",
                )
        if not captions:
            bare.append(name)
        texts += captions
        image += [row] * len(captions)
    if bare:
        raise DataError(
            f"{dataset}: image {bare[0]} in {where} has no caption; {len(bare):,} of {len(ids):,} images have none",
            hint="take such images out of the data: they could never be found by a caption, nor find one",
        )
    return Captions(tuple(texts), np.array(image, dtype=np.int64))


# --------------------------------------------------------------------- layouts


class CaptionFile(FileLayout):
    """Images that are files, with their captions: name → captions, in the order of `images`."""

    def __init__(self, root: Path, file: Path, captions: dict[str, list[str]], images: list[Path]) -> None:
        super().__init__(root, images, [file])
        self._captions = captions

    def index(self) -> Iterator[tuple[str, list[str]]]:
        yield from self._captions.items()


def _chosen(dataset: Entry[TaskCard], role: str, found: list[Path], wanted: list[str]) -> Path:
    """The file of the split."""
    for name in wanted:
        for path in found:
            if path.name == name:
                return path
    raise DataError(
        f"{dataset.id}: no {role} split in {found[0].parent}: no {' or '.join(wanted)} "
        f"(there is {', '.join(path.name for path in found)})",
        hint=f"fetch that file, or set splits.{role}.name in {dataset.path} to the name that follows captions_",
    )


def _coco(file: Path, root: Path, names: list[str]) -> CaptionFile:
    found = read_lists(file, _COCO, "COCO captions")
    place = numbered(file, "images", [image["id"] for image in found["images"]])
    ids = [image["file_name"] for image in found["images"]]
    numbered(file, "file_name", ids)
    captions: list[list[str]] = [[] for _ in ids]
    for number, caption in enumerate(found["annotations"]):
        if caption["image_id"] not in place:
            raise DataError(
                f"{file}: annotations[{number}] has the image_id {caption['image_id']}, which the file does not list"
            )
        captions[place[caption["image_id"]]].append(caption["caption"])
    folders = [*(root / n for n in names), *(root / "images" / n for n in names), root / "images"]
    return CaptionFile(root, file, dict(zip(ids, captions, strict=True)), listed_images(ids, file, folders))


def _karpathy(dataset: Entry[TaskCard], role: str, file: Path, root: Path, names: list[str]) -> CaptionFile:
    found = read_lists(file, _KARPATHY, "Karpathy's splits", extra=("filepath", "raw"))["images"]
    wanted = {*names, "restval"} if "train" in names else {*names}
    mine = [entry for entry in found if entry["split"] in wanted]
    if not mine:
        there = sorted({entry["split"] for entry in found})
        raise DataError(
            f"{dataset.id}: no {role} split in {file}: no image of the split {' or '.join(names)} "
            f"(there is {', '.join(there) or 'nothing'})",
            hint=f"set splits.{role}.name in {dataset.path} to one of these",
        )
    ids = [
        "/".join(part for part in (entry.get("filepath", ""), entry["filename"]) if part) for entry in mine
    ]
    numbered(file, "filename", ids)
    captions = dict(zip(ids, (entry["sentences"] for entry in mine), strict=True))
    # Images of one split may lie in several folders (COCO's train2014 and val2014), so each has its own in its name.
    return CaptionFile(
        root, file, captions, listed_images(ids, file, [root, *(root / name for name in _FOLDERS)])
    )


def _table(file: Path, root: Path, names: list[str]) -> CaptionFile:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="fetch the file again") from None
    bars = bool(lines) and "|" in lines[0]
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        image, caption = _with_bars(line) if bars else _with_comma(line)
        if caption is None:
            wanted = "image| number| caption" if bars else "image,caption"
            raise DataError(f"{file}:{number}: expected {wanted}, found {line.strip()[:60]!r}")
        captions.setdefault(image, []).append(caption)
    folders = [*(root / n for n in names), *(root / n for n in _FOLDERS), root]
    return CaptionFile(root, file, captions, listed_images(list(captions), file, folders))


def _with_bars(line: str) -> tuple[str, str | None]:
    found = _BARS.fullmatch(line.strip())
    return (found["image"], found["caption"]) if found else ("", None)


def _with_comma(line: str) -> tuple[str, str | None]:
    """Image and caption; what commas part is put together again, unless quotes hold it together."""
    image, *caption = next(csv.reader([line]))
    return image.strip(), ",".join(caption) if image.strip() and caption else None
