"""Referring expressions in parquet files with the images in them.

with ref_list, image_info     one row an image (jxu124/refcoco-benchmark)
with answer, bbox, image      one row an object (lmms-lab/RefCOCO)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.expressions import Expression, detections_of, from_xywh
from clipbench.data.layouts.base import LayoutSpec
from clipbench.data.layouts.parquet import Parquet
from clipbench.data.layouts.refer import columns_of, sentences
from clipbench.data.paths import split_files
from clipbench.errors import DataError


class Rows(Parquet):
    """Parquet files with the images in them: one row an image (`ref_list`), or one an object (`answer`, `bbox`)."""

    name_in_fingerprint = "Rows"

    def __init__(self, files: list[Path], card: TaskCard, root: Path, where: str | None = None) -> None:
        self.detections = detections_of(root) if where is None else None  # of the hub none lies beside
        columns = columns_of(files[0])
        forms = (("ref_list", "image_info"), ("answer", "bbox", "file_name", "question_id"))
        form = next((f for f in forms if set(f) <= set(columns)), None)
        if form is None or card.columns.image not in columns:
            raise DataError(
                f"{where or root}: the columns {', '.join(map(repr, columns))} are none of the known forms of "
                f"referring expressions: {card.columns.image!r} with {' or with '.join(', '.join(f) for f in forms)}",
                hint="set columns.image on the task card if that is what differs; else write "
                "referring_expressions_<split>.json and the images as files",
            )
        self._start(files, card, root, where, {"image": card.columns.image})
        if self.detections is not None:
            self.files.append(self.detections)
        self._found: dict[str, list[Expression]] = {}
        rows_of: dict[str, list[int]] = {}
        try:
            for row, values in enumerate(zip(*(self._values(c) for c in form), strict=True)):
                name, added = _of_list(*values) if form[0] == "ref_list" else _of_object(*values)
                self._found.setdefault(name, []).extend(added)
                rows_of.setdefault(name, []).append(row)
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.where}: {' and '.join(form)} are not as expected ({error})") from None
        self.groups = list(rows_of.values())

    def index(self) -> Iterator[tuple[str, Any]]:
        yield from self._found.items()


def _of_list(refs: list[dict[str, Any]], image: dict[str, Any]) -> tuple[str, list[Expression]]:
    found = [e for ref in refs for e in sentences(ref["ref_info"], from_xywh(ref["ann_info"]["bbox"]))]
    return str(image["file_name"]), found


def _of_object(answers: list[str], box: Any, file: str, question: Any) -> tuple[str, list[Expression]]:
    # The name of an object: that of its image, and the object's number.
    name = re.sub(r"^(COCO_\w+_\d{12})_\d+(\.\w+)$", r"\1\2", file)
    return name, [(f"{question}/{number}", text, from_xywh(box)) for number, text in enumerate(answers)]


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> Rows | None:
    """The split that parquet files in `root` hold, unless they name image files or the card wants COCO's objects."""
    files = split_files(root, dataset.card.splits[role], role, ".parquet")
    if not files or dataset.card.expressions == "classes" or "image_path" in columns_of(files[0]):
        return None
    return Rows(files, dataset.card, root)


LAYOUT: Final = LayoutSpec(("expressions",), "{split}*.parquet", probe)
