"""CREPE's productivity: a box of an image of Visual Genome, a caption of it, and captions that are wrong in one thing.

A copy is a folder with `prod_hard_negatives/<kind>/prod_vg_hard_negs_<kind>_complexity_<n>.csv` for the kinds atom,
negate and swap and n from 4 to 12 (columns image_id, caption, hard_negs, x, y, width, height) and Visual Genome's
images in `VG_100K/` and `VG_100K_2/`. A file is a part. The systematicity sets, one for each corpus that a model may
be trained on, are not read.
Source: Ma et al. 2023, arXiv 2212.07796; `crepe_eval_utils.py` and `evaluate/data.py` of github.com/RAIVNLab/CREPE.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import (
    VISUAL_GENOME,
    ChoiceFiles,
    Fields,
    Item,
    Shown,
    one_image,
    records_of,
)
from clipbench.data.layouts.base import LayoutSpec
from clipbench.errors import DataError

_FOLDER: Final = "prod_hard_negatives"
#: part → its file
_PARTS: Final = {
    f"{kind}-{n}": f"{kind}/prod_vg_hard_negs_{kind}_complexity_{n}.csv"
    for kind in ("atom", "negate", "swap")
    for n in range(4, 13)
}
PARTS: Final = tuple(_PARTS)
_COLUMNS: Final = ("image_id", "caption", "hard_negs", "x", "y", "width", "height")
#: a text as Python writes it
_TEXT: Final = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The items of all parts, in the folder `root`; None where it has none of the files.

    Raises:
        DataError: not all files, one that is none, or a missing image.
    """
    folder = next((f for f in (root / _FOLDER, root / "data" / _FOLDER) if f.is_dir()), root)
    files = {part: folder / file for part, file in _PARTS.items()}
    lacking = [file.name for file in files.values() if not file.is_file()]
    if len(lacking) == len(files):
        return None
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise DataError(
            f"{dataset.id}: {folder} has no {lacking[0]}{more}", hint="fetch the files of all parts"
        )
    items = [item for part, file in files.items() for item in _items(part, file)]
    return ChoiceFiles(root, list(files.values()), items, VISUAL_GENOME, form="CREPE")


LAYOUT: Final = LayoutSpec(
    ("choices",), f"CREPE's {_FOLDER}/, and VG_100K/ and VG_100K_2/", probe, forms=("crepe",)
)


def _items(part: str, file: Path) -> Iterator[Item]:
    for number, fields in enumerate(records_of(file, _COLUMNS)):
        box = fields.box("x", "y", "width", "height")
        shown = Shown(f"{fields.text('image_id').strip()}.jpg", box)
        yield one_image(f"{part}/{number}", shown, fields.text("caption"), _negatives(fields), part)


def _negatives(fields: Fields) -> list[str]:
    """The texts of a list as Python writes it: ['one', "it's two"]."""
    value = fields.text("hard_negs").strip()
    literals = _TEXT.findall(value)
    bare = re.sub(r"\s+", "", _TEXT.sub("T", value))
    if not literals or bare != f"[{','.join('T' * len(literals))}]":
        fields.refuse(f"has the hard_negs {value[:60]!r}, expected a list of texts")
    try:
        texts = [str(ast.literal_eval(literal)) for literal in literals]
    except (ValueError, SyntaxError):
        texts = []
    if not texts or not all(text.strip() for text in texts):
        fields.refuse(f"has the hard_negs {value[:60]!r}, expected a list of texts")
    return texts
