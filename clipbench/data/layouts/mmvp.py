"""MMVP-VLM: pairs of images that CLIP takes for alike, each image with a statement, in nine patterns.

A copy is the folder of MMVP/MMVP_VLM: `Questions.csv` (id, type, statement; two rows a pair, the odd id before the
even one) and `MLLM_VLM Images/<type>/<id>.jpg`. A text is "a photo of " and the statement, as the authors make it. A
type is a part.
Source: Tong et al. 2024, arXiv 2401.06209; `scripts/evaluate_vlm.py` of github.com/tsb0601/MMVP.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import ChoiceFiles, Item, table_of, two_pairs
from clipbench.data.layouts.base import LayoutSpec
from clipbench.errors import DataError

_QUESTIONS: Final = "Questions.csv"
_IMAGES: Final = "MLLM_VLM Images"
_BEFORE: Final = "a photo of "


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The pairs of all types, in the folder `root`; None where it has no Questions.csv.

    Raises:
        DataError: a table that is none, rows that are no pair, or a missing image.
    """
    file = root / _QUESTIONS
    if not file.is_file():
        return None
    return ChoiceFiles(root, [file], list(_pairs(file)), (_IMAGES,), form="MMVP")


LAYOUT: Final = LayoutSpec(
    ("choices",), f"MMVP-VLM's {_QUESTIONS} and '{_IMAGES}/'", probe, forms=("mmvp-vlm",)
)


def _pairs(file: Path) -> Iterator[Item]:
    rows = table_of(file)[1:]
    if not rows:
        raise DataError(f"{file} has no rows below its heading", hint="fetch the file again")
    for line, row in rows:
        if len(row) != 3 or not row[0].isdecimal() or not all(field.strip() for field in row):
            raise DataError(
                f"{file}:{line}: expected an id, a type and a statement, found {','.join(row)[:60]!r}",
                hint="fetch the file again",
            )
    for at in range(0, len(rows), 2):
        pair = [row for _, row in rows[at : at + 2]]
        numbers, kinds = [int(row[0]) for row in pair], {row[1] for row in pair}
        if numbers[0] % 2 == 0 or numbers[1:] != [numbers[0] + 1] or len(kinds) > 1:
            told = " and ".join(f"{row[0]} ({row[1]})" for row in pair)
            raise DataError(
                f"{file}:{rows[at][0]}: expected a pair of one type, an odd id and the next one, found {told[:90]}",
                hint="fetch the file again",
            )
        (kind,) = kinds
        names, texts = [f"{kind}/{row[0]}.jpg" for row in pair], [_BEFORE + row[2] for row in pair]
        yield two_pairs(str(numbers[0]), names, texts, kind)
