"""What's Up: images, and captions that differ in a preposition: photos made for it, and images of COCO and GQA.

A copy is a folder with the six files of amitakamath/whatsup_vlms, each a list of items of which the first caption is
right:

    controlled_images_dataset.json   {image_path, caption_options} (four captions), images in controlled_images/
    controlled_clevr_dataset.json    as that, images in controlled_clevr/
    coco_qa_one_obj.json, coco_qa_two_obj.json   [number of the image, right, wrong], images in val2017/
    vg_qa_one_obj.json, vg_qa_two_obj.json       as those, images in vg_images/

A file is a part.
Source: Kamath et al. 2023, arXiv 2310.19785; `dataset_zoo/aro_datasets.py` of the repository.
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

#: part → its file, and the folder of its images
_PARTS: Final = {
    "controlled-a": ("controlled_images_dataset.json", "controlled_images"),
    "controlled-b": ("controlled_clevr_dataset.json", "controlled_clevr"),
    "coco-one": ("coco_qa_one_obj.json", "val2017"),
    "coco-two": ("coco_qa_two_obj.json", "val2017"),
    "gqa-one": ("vg_qa_one_obj.json", "vg_images"),
    "gqa-two": ("vg_qa_two_obj.json", "vg_images"),
}
PARTS: Final = tuple(_PARTS)
_KEYS: Final = ("image", "right caption", "wrong caption")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The items of all parts, in the folder `root`; None where it has none of the files.

    Raises:
        DataError: not all files, one that is none, or a missing image.
    """
    files = [root / file for file, _ in _PARTS.values()]
    lacking = [file.name for file in files if not file.is_file()]
    if len(lacking) == len(files):
        return None
    if lacking:
        raise DataError(
            f"{dataset.id}: {root} has no {', '.join(lacking)}", hint="fetch the files of all parts"
        )
    items = [item for part, file in zip(_PARTS, files, strict=True) for item in _items(part, file)]
    return ChoiceFiles(root, files, items, (".", "images"), form="What's Up")


LAYOUT: Final = LayoutSpec(
    ("choices",),
    "What's Up's controlled_images_dataset.json and its five others, with their images",
    probe,
    forms=("whatsup",),
)


def _items(part: str, file: Path) -> Iterator[Item]:
    folder = _PARTS[part][1]
    for number, entry in enumerate(list_of(file, "What's Up")):
        if folder.startswith("controlled"):
            fields = Fields(file, f"item {number}", entry)
            # The path begins where the authors ran their code (data/…); the file's name says all.
            name, options = fields.text("image_path").rpartition("/")[2], fields.texts("caption_options", 2)
        else:
            fields = Fields(file, f"item {number}", entry, _KEYS)
            image = fields.number_or_text("image")
            name = f"{image.zfill(12) if folder == 'val2017' else image}.jpg"
            options = [fields.text(key) for key in _KEYS[1:]]
        yield one_image(f"{part}/{number}", Shown(f"{folder}/{name}"), options[0], options[1:], part)
