"""Images with captions: COCO's JSON, Karpathy's splits, tables of image and caption.

A copy is a folder with one of these files and the images (see `probe`). What captions must be says
`clipbench.data.captions`.
Sources: the data format on cocodataset.org; the caption files of Karpathy & Fei-Fei, arXiv 1412.2306 (the keys
`split`, `filename`, `filepath`, `sentences`, `raw`); the tables that come with Flickr8k and Flickr30k.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import Columns, TaskCard
from clipbench.data.decode import IMAGE_SUFFIXES
from clipbench.data.layouts import _caption_tables as tables
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.layouts.coco import ID, Lists, chosen, listed_images, numbered, read_lists
from clipbench.data.paths import split_names
from clipbench.data.split import Note, notes_of
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

_COCO: Lists = {"images": {"id": ID, "file_name": (str,)}, "annotations": {"image_id": ID, "caption": (str,)}}
_KARPATHY: Lists = {"images": {"split": (str,), "filename": (str,), "sentences": (list,)}}
#: tables that do not say in their name which split they hold
_WHOLE = (
    "captions.txt",
    "captions.csv",
    "captions.tsv",
    "results.csv",
    "Flickr8k.token.txt",
    "results_20130124.token",
)
#: what the published archives call the folder of images
IMAGE_FOLDERS = (
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in the folder `root`; None where none of these files is there:

    - `dataset_<set>.json` (Karpathy's), in `root` or `annotations/`: the images whose `split` is the card's name for
      it; `restval` belongs to `train`. Images lie in the folder that their entry names, in `root` or `images/`.
    - `annotations/captions_<split>.json` (COCO's), or `captions.json` for a card with one split.
    - `captions_<split>.txt`, `.csv` or `.tsv`, `<set>_<split>_karpathy.txt`, `<set>_<split>.txt` where the split's name
      is not its role (`test_zh`), or, for a card with one split or where a column says which split a row belongs to,
      `captions.txt`, `.csv` or `.tsv`, `results.csv`, `Flickr8k.token.txt` or `results_20130124.token`: a table as
      `clipbench.data.layouts._caption_tables` reads it.

    Raises:
        DataError: no such split, a file that is none of these, or an image that is missing.
    """
    if dataset.card.languages:
        return None  # none of these files says of a caption which language it is in
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
        return _coco(chosen(dataset, role, found, wanted, "captions_"), root, names)
    ends = ("txt", "csv", "tsv")
    # A split's name such as test_zh is part of a file's name, where `test` alone says too little.
    peculiar = [] if dataset.card.splits[role].name == role else [f"_{dataset.card.splits[role].name}.txt"]
    patterns = [*(f"*captions*.{end}" for end in ends), "*_karpathy.txt", *(f"*{end}" for end in peculiar)]
    found = sorted({path for pattern in patterns for path in root.glob(pattern)})
    found += [root / name for name in _WHOLE[3:] if (root / name).is_file()]
    if found:
        columns = dataset.card.columns
        wanted = [f"captions_{name}.{end}" for name in names for end in ends]
        here = {path.name: path for path in found}
        endings = [*(f"_{name}_karpathy.txt" for name in names), *peculiar]
        wanted += [file for end in endings for file in here if file.endswith(end)]
        whole = [name for name in _WHOLE if name in here]
        none = here.keys().isdisjoint(wanted)
        if alone or (none and whole and tables.tells_splits(root / whole[0], columns)):
            wanted += _WHOLE
        return _table(chosen(dataset, role, found, wanted, "captions_"), root, names, columns)
    return None


LAYOUT: Final = LayoutSpec(
    ("captions",),
    "annotations/captions_{split}.json, Karpathy's dataset_*.json, captions_{split}.txt (image,caption)",
    probe,
)


class CaptionFile(FileLayout):
    """Images that are files, with their captions: name → captions. `others` are images that the file does not leave
    out by oversight; all other images beside those with captions are counted in a note.
    """

    name_in_fingerprint = "CaptionFile"

    def __init__(
        self,
        root: Path,
        file: Path,
        captions: dict[str, list[str]],
        folders: list[Path],
        others: Collection[str] = (),
        notes: tuple[Note, ...] = (),
    ) -> None:
        images, cut = listed_images(list(captions), file, folders)
        super().__init__(root, images, [file])
        self._ids, self._labels = list(captions), list(captions.values())
        self.notes = notes + cut + _without_captions(images, others)


def _without_captions(images: list[Path], others: Collection[str]) -> tuple[Note, ...]:
    """A note on the images that lie beside `images` and are not among them nor among `others`; else nothing."""
    named = {path.name for path in images} | {name.rpartition("/")[2] for name in others}
    there = {
        path.name
        for folder in {path.parent for path in images}
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES
    }
    lost = sorted(there - named)
    text = "images in the folder have no caption in the file, and are left out"
    return notes_of("images-without-captions", text, lost)


def _coco(file: Path, root: Path, names: list[str]) -> CaptionFile:
    found = read_lists(file, _COCO, "COCO captions")
    place = numbered(file, "images", [str(image["id"]) for image in found["images"]])
    ids = [image["file_name"] for image in found["images"]]
    numbered(file, "file_name", ids)
    captions: list[list[str]] = [[] for _ in ids]
    for number, caption in enumerate(found["annotations"]):
        owner = str(caption["image_id"])
        if owner not in place:
            raise DataError(
                f"{file}: annotations[{number}] has the image_id {owner}, which the file does not list"
            )
        captions[place[owner]].append(caption["caption"])
    folders = [*(root / n for n in names), *(root / "images" / n for n in names), root / "images", root]
    return CaptionFile(root, file, dict(zip(ids, captions, strict=True)), folders)


def _karpathy(dataset: Entry[TaskCard], role: str, file: Path, root: Path, names: list[str]) -> CaptionFile:
    found = read_lists(file, _KARPATHY, "Karpathy's splits", extra=("filepath", "raw"))["images"]
    wanted = _of_splits(names)
    mine = [entry for entry in found if entry["split"] in wanted]
    if not mine:
        there = sorted({entry["split"] for entry in found})
        raise DataError(
            f"{dataset.id}: no {role} split in {file}: no image of the split {' or '.join(names)} "
            f"(there is {', '.join(there) or 'nothing'})",
            hint=f"set splits.{role}.name in {dataset.path} to one of these",
        )
    paths = ((entry.get("filepath", ""), entry["filename"]) for entry in mine)
    ids = ["/".join(filter(None, path)) for path in paths]
    numbered(file, "filename", ids)
    captions = dict(zip(ids, (entry["sentences"] for entry in mine), strict=True))
    # Images of one split may lie in several folders (COCO's train2014 and val2014), so each has its own in its name.
    folders = [root, *(root / name for name in IMAGE_FOLDERS)]
    return CaptionFile(root, file, captions, folders, [entry["filename"] for entry in found])


def _of_splits(names: list[str]) -> set[str]:
    """What a file may call the split: Karpathy's `restval` belongs to `train`."""
    return {*names, "restval"} if "train" in names else {*names}


def _table(file: Path, root: Path, names: list[str], columns: Columns) -> CaptionFile:
    folders = [*(root / n for n in names), *(root / n for n in IMAGE_FOLDERS), root]
    table = tables.read(
        file, columns, _of_splits(names), lambda name: any(exists(folder / name) for folder in folders)
    )
    return CaptionFile(root, file, table.captions, folders, table.others, table.notes)
