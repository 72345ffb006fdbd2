"""ARO's two sets on Visual Genome: a box of an image, and two captions of it in which things are exchanged.

A copy is a folder with `visual_genome_relation.json` or `visual_genome_attribution.json`, of which the split's name on
the card says one (a list of {image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption} and
`relation_name` or `attributes`), and the images in `images/`. What is seen is the box. A relation, or a pair of
attributes, is a part.
Source: Yuksekgonul et al. 2023, arXiv 2210.01936; the reader in github.com/mertyg/vision-language-models-are-bows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import (
    VISUAL_GENOME,
    ChoiceFiles,
    Fields,
    Item,
    Shown,
    list_of,
    one_image,
)
from clipbench.data.layouts.base import LayoutSpec

_FILES: Final = ("visual_genome_relation", "visual_genome_attribution")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The items of the set that the card names, in the folder `root`; None where its file is not there.

    Raises:
        DataError: a file that is none, a box that is none, or a missing image.
    """
    file = root / f"{dataset.card.splits[role].name}.json"
    if not file.is_file():
        return None
    items = [_item(file, number, entry) for number, entry in enumerate(list_of(file, "ARO"))]
    return ChoiceFiles(root, [file], items, ("images", *VISUAL_GENOME), form="ARO")


LAYOUT: Final = LayoutSpec(
    ("choices",),
    "ARO's visual_genome_relation.json or visual_genome_attribution.json, and images/",
    probe,
    forms=_FILES,
)


def _item(file: Path, number: int, entry: Any) -> Item:
    fields = Fields(file, f"item {number}", entry)
    shown = Shown(fields.text("image_path"), fields.box("bbox_x", "bbox_y", "bbox_w", "bbox_h"))
    part = (
        fields.text("relation_name")
        if file.stem == _FILES[0]
        else "_".join(fields.texts("attributes", 2)[:2])
    )
    return one_image(str(number), shown, fields.text("true_caption"), [fields.text("false_caption")], part)
