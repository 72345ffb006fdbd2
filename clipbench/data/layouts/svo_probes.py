"""SVO-Probes: a sentence, an image that shows it, and one that differs from it in the subject, the verb or the object.

A copy is a folder with `svo_probes.csv` (among its columns sentence, pos_image_id, neg_image_id, subj_neg, verb_neg
and obj_neg) and the images as `images/<image id>.jpg`. The authors give addresses of images only, of which many are
dead: rows whose images are not there are left out, and counted. What the images differ in is a part.
Source: Hendricks & Nematzadeh 2021, arXiv 2106.09141; the README of github.com/google-deepmind/svo_probes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import ChoiceFiles, Fields, Item, Shown, records_of
from clipbench.data.layouts.base import LayoutSpec
from clipbench.data.split import notes_of
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

_FILE: Final = "svo_probes.csv"
_IMAGES: Final = "images"
#: part → its column
_PARTS: Final = {"subject": "subj_neg", "verb": "verb_neg", "object": "obj_neg"}
_TRUTHS: Final = {"true": True, "false": False}


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The rows whose images are in the folder `root`; None where it has no svo_probes.csv.

    Raises:
        DataError: a table that is none, or none of its images.
    """
    file = root / _FILE
    if not file.is_file():
        return None
    columns = ("sentence", "pos_image_id", "neg_image_id", *_PARTS.values())
    rows = [_item(fields, number) for number, fields in enumerate(records_of(file, columns))]
    items = [item for item in rows if all(exists(root / _IMAGES / shown.name) for shown in item.images)]
    if not items:
        raise DataError(
            f"{dataset.id}: no row of {file} has both its images in {root / _IMAGES}",
            hint=f"fetch the images of pos_url and neg_url to {_IMAGES}/<image id>.jpg",
        )
    lost = sorted({item.id for item in rows} - {item.id for item in items}, key=int)
    text = "rows left out: one of their images, of which the authors give addresses only, is not there"
    notes = notes_of("items-without-images", text, [f"row {number}" for number in lost])
    return ChoiceFiles(root, [file], items, (_IMAGES,), form="SVO-Probes", notes=notes)


LAYOUT: Final = LayoutSpec(
    ("choices",), f"SVO-Probes' {_FILE} and {_IMAGES}/<image id>.jpg", probe, forms=("svo-probes",)
)


def _item(fields: Fields, number: int) -> Item:
    parts = [part for part, column in _PARTS.items() if _truth(fields, column)]
    if len(parts) != 1:
        fields.refuse(f"differs in {' and '.join(parts) or 'nothing'}, expected one of {', '.join(_PARTS)}")
    shown, other = (Shown(f"{fields.text(key).strip()}.jpg") for key in ("pos_image_id", "neg_image_id"))
    return Item(str(number), (shown, other), (fields.text("sentence"),), ((0, 0),), parts[0])


def _truth(fields: Fields, column: str) -> bool:
    value = fields.text(column).strip().lower()
    if value not in _TRUTHS:
        fields.refuse(f"has the {column} {value[:40]!r}, expected True or False")
    return _TRUTHS[value]
