"""SugarCrepe and SugarCrepe++: images of COCO's val2017, each with captions of which one is wrong.

A copy is a folder with `data/<part>.json` of RAIVNLab/sugar-crepe (each {"0": {filename, caption, negative_caption},
…}, with gaps in the numbers) or of Sri-Harsha/scpp (each a list of {id, filename, caption, caption2,
negative_caption}), and the images in `val2017/` or `images/val2017/`. All parts are one split. The repository's
`data_unrefined/` is another set, which is never read.
Sources: Hsieh et al. 2023, arXiv 2306.14610; Dumpala et al. 2024, arXiv 2406.11171; the files of both repositories.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import (
    COCO_2017,
    ChoiceFiles,
    Fields,
    Item,
    Shown,
    one_image,
)
from clipbench.data.layouts.base import LayoutSpec
from clipbench.data.text import json_of
from clipbench.errors import DataError

#: parts of SugarCrepe; SugarCrepe++ has those that do not add to a caption
PARTS: Final = ("add-att", "add-obj", "replace-att", "replace-obj", "replace-rel", "swap-att", "swap-obj")
_UNREFINED: Final = "data_unrefined"


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The items of all parts, in the folder `root`; None where it has no file of a part.

    Raises:
        DataError: files of both sets, of the unrefined one, or not of all parts; a file that is none; a missing image.
    """
    folders = [f for f in (root / "data", root) if any(_file(f, part).is_file() for part in PARTS)]
    if not folders:
        return None
    if len(folders) > 1:
        raise DataError(
            f"{dataset.id}: {root} and its data/ both hold files of parts", hint="keep those that are meant"
        )
    if root.resolve().name == _UNREFINED:
        raise DataError(
            f"{dataset.id}: {root} holds the unrefined items, which are another set",
            hint="give the folder above it, whose data/ holds the refined ones",
        )
    found = {_file(folders[0], part): part for part in PARTS if _file(folders[0], part).is_file()}
    read = {file: json_of(file, once=True) for file in found}
    plus = {file for file, content in read.items() if isinstance(content, list)}
    if 0 < len(plus) < len(read):
        one, other = (next(f for f in read if (f in plus) is both).name for both in (True, False))
        raise DataError(
            f"{dataset.id}: {folders[0]} mixes SugarCrepe++ ({one}) and SugarCrepe ({other})",
            hint="keep each set in a folder of its own",
        )
    form = "sugarcrepe-pp" if plus else "sugarcrepe"
    if dataset.card.splits[role].name != form:
        raise DataError(
            f"{dataset.id}: {folders[0]} holds {form}, the card asks for {dataset.card.splits[role].name}",
            hint="the two have files of the same names: give the other set's folder",
        )
    wanted = [part for part in PARTS if not plus or not part.startswith("add-")]
    lacking = [_file(folders[0], part).name for part in wanted if part not in found.values()]
    if lacking:
        raise DataError(
            f"{dataset.id}: {folders[0]} has no {', '.join(lacking)}", hint="fetch the files of all parts"
        )
    of = _plus if plus else _plain
    items = [item for file, content in read.items() for item in of(file, found[file], content)]
    return ChoiceFiles(root, list(read), items, COCO_2017, form=form)


LAYOUT: Final = LayoutSpec(
    ("choices",),
    "data/<part>.json of SugarCrepe or SugarCrepe++, and COCO's images in val2017/",
    probe,
    forms=("sugarcrepe", "sugarcrepe-pp"),
)


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part.replace('-', '_')}.json"


def _plain(file: Path, part: str, content: Any) -> Iterator[Item]:
    for key, entry in Fields(file, "it", content).entry.items():
        fields = Fields(file, f"item {key}", entry)
        image, wrong = Shown(fields.text("filename")), fields.text("negative_caption")
        yield one_image(f"{part}/{key}", image, fields.text("caption"), [wrong], part)


def _plus(file: Path, part: str, content: Any) -> Iterator[Item]:
    for number, entry in enumerate(content):
        fields = Fields(file, f"item {number}", entry)
        texts = tuple(fields.text(key) for key in ("caption", "caption2", "negative_caption"))
        image = Shown(fields.text("filename"))
        yield Item(f"{part}/{fields.number_or_text('id')}", (image,), texts, ((0, 0), (0, 1)), part)
