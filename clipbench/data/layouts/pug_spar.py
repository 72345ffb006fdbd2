"""PUG: SPAR: rendered images of animals, with a caption and the same with places or textures exchanged.

A copy is the folder of facebookresearch/PUG's SPAR: `labels.csv` (among its columns filename, character_name,
character2_name, character1_pos, character_texture and character2_texture; `blank` is no animal) and the images that it
names. Captions are made as the authors make them for their questions with one hard negative, without the background's
name. A kind of question is a part; images of other questions are left out, and counted.
Source: Bordes et al. 2023, arXiv 2308.03977; `PUG_SPAR/run_eval_vlms_on_spar.py` of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import (
    ChoiceFiles,
    Fields,
    Item,
    Shown,
    one_image,
    records_of,
)
from clipbench.data.layouts.base import LayoutSpec
from clipbench.data.split import notes_of
from clipbench.errors import DataError

_FILE: Final = "labels.csv"
_COLUMNS: Final = (
    *("filename", "character_name", "character2_name", "character1_pos"),
    *("character_texture", "character2_texture"),
)
_BLANK: Final = "blank"
#: where the first animal is → where the second is
_PLACES: Final = {"left": "right", "bottom": "top"}
#: textures of the first animal, for which the second has another → parts
_TEXTURES: Final = {"Blue": "two-blue-red", "Grass": "two-grass-stone"}
PARTS: Final = (
    *(f"{count}-{one}-{other}" for count in ("one", "two") for one, other in _PLACES.items()),
    *_TEXTURES.values(),
)


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The items of all parts, in the folder `root`; None where it has no labels.csv.

    Raises:
        DataError: a table that is none, one without such questions, or a missing image.
    """
    file = root / _FILE
    if not file.is_file():
        return None
    items: list[Item] = []
    others: list[str] = []
    for number, fields in enumerate(records_of(file, _COLUMNS)):
        item = _item(fields, number)
        if item is None:
            others.append(fields.text("filename"))
        else:
            items.append(item)
    if not items:
        raise DataError(f"{dataset.id}: {file} has no image of animals in places or of textures")
    text = "images left out: no caption with one thing exchanged is made of them"
    notes = notes_of("images-of-other-questions", text, others)
    return ChoiceFiles(root, [file], items, (".",), form="PUG: SPAR", notes=notes)


LAYOUT: Final = LayoutSpec(
    ("choices",), f"PUG: SPAR's {_FILE} and the images that it names", probe, forms=("pug-spar",)
)


def _item(fields: Fields, number: int) -> Item | None:
    """What is asked of one image; None for one of another question."""
    one, two = fields.text("character_name"), fields.text("character2_name")
    texture, second = fields.text("character_texture"), fields.entry["character2_texture"]
    place = fields.entry["character1_pos"]
    shown = Shown(fields.text("filename"))
    both = _BLANK not in (one, two)
    if texture == "Default" and place in _PLACES and (one, two) != (_BLANK, _BLANK):
        here, there = place, _PLACES[place]
        if both and one != two:
            right, wrong = _placed(one, two, here, there), _placed(two, one, here, there)
            return one_image(str(number), shown, right, [wrong], f"two-{here}-{there}")
        if not both:
            animal, own, other = (two, there, here) if one == _BLANK else (one, here, there)
            right, wrong = (
                f"This is a photo of a {animal} on the {at} of the picture" for at in (own, other)
            )
            return one_image(str(number), shown, right, [wrong], f"one-{here}-{there}")
    if texture in _TEXTURES and both and one != two:
        right, wrong = _textured(one, two, texture, second), _textured(two, one, texture, second)
        return one_image(str(number), shown, right, [wrong], _TEXTURES[texture])
    return None


def _placed(one: str, two: str, here: str, there: str) -> str:
    return f"This is a photo of a {one} on the {here} and a {two} on the {there} of the picture"


def _textured(one: str, two: str, first: str, second: str) -> str:
    return f"This is a photo of a {one} textured with {first} and a {two} textured with {second}"
