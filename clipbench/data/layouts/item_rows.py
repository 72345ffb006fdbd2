"""Items to choose among as rows of parquet files, whose columns the card names: Winoground, SugarCrepe, ARO, ColorSwap.

`columns.items` of the card says which columns hold images and texts, and which of these belong together. Forms that are
read so: facebook/winoground, stanfordnlp/colorswap, mteb/SUGARCREPE_fmt and mteb's four sets of ARO on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import SplitSpec, TaskCard
from clipbench.data.choices import Choice
from clipbench.data.layouts._item_tables import ItemTables
from clipbench.data.layouts.base import LayoutSpec, plain_text
from clipbench.data.paths import split_files
from clipbench.data.split import notes_of
from clipbench.errors import DataError


class ItemRows(ItemTables):
    """Tables of which each row is an item."""

    name_in_fingerprint = "ItemRows"

    def __init__(self, files: list[Path], card: TaskCard, root: Path, where: str | None = None) -> None:
        """Read the columns of `files`, below the data set's folder `root`; `where` is what messages call them.

        Raises:
            DataError: the card names no columns of items, or as `Parquet`.
        """
        if card.columns.items is None:
            raise DataError(
                f"{where or root}: the card does not say which columns hold images and texts",
                hint="set columns.items on the task card: {images: [image], texts: [caption, negative_caption], "
                "right: [[0, 0]]}",
            )
        self._asked = card.columns.items
        texts = {
            "items.texts": self._asked.texts,
            "items.part": [self._asked.part] if self._asked.part else [],
        }
        self._start_items(files, root, where, self._asked.images, texts, self._asked.box)

    def _items(self, shown: Sequence[tuple[int, ...]]) -> Iterator[Choice]:
        part = self._asked.part
        columns = [*self._asked.texts, *([part] if part else [])]
        for row, ((_, cells), images) in enumerate(zip(self._read(columns), shown, strict=True)):
            of = self._part(row, cells.pop()) if part else ""
            texts = [
                text
                for name, cell in zip(self._asked.texts, cells, strict=True)
                for text in self._texts(row, name, cell)
            ]
            most = [max(places) for places in zip(*self._asked.right, strict=True)]
            if most[0] >= len(images) or most[1] >= len(texts):
                raise DataError(
                    f"{self.where}: row {row} has {len(images)} images and {len(texts)} texts; columns.items.right on "
                    f"the task card names image {most[0]} and text {most[1]}, from 0 on",
                    hint="set columns.items on the task card",
                )
            right = tuple((image, text) for image, text in self._asked.right)
            yield Choice(f"{row:07d}", images, tuple(texts), right, of)

    def _texts(self, row: int, column: str, cell: Any) -> list[str]:
        found = cell if isinstance(cell, list) else [cell]
        if not found or not all(isinstance(text, str) and text.strip() for text in found):
            said = "nothing" if cell is None else repr(str(cell)[:60])
            raise DataError(
                f"{self.where}: row {row} has {said} in the column {column!r}, expected a text, or a list of texts",
                hint="take the row out, or set columns.items.texts on the task card",
            )
        return found

    def _part(self, row: int, cell: Any) -> str:
        names = [plain_text(name) for name in (cell if isinstance(cell, list) else [cell])]
        if not names or None in names:
            raise DataError(
                f"{self.where}: row {row} has nothing in the column {self._asked.part!r}, which columns.items.part on "
                "the task card names",
                hint="fill it in every row, or take columns.items.part off the card",
            )
        return "_".join(str(name) for name in names)


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ItemRows | None:
    """The split that parquet files in `root` hold; None where there are none.

    Raises:
        DataError: as `ItemRows`.
    """
    card = dataset.card
    files = split_files(root, card.splits[role], role, ".parquet")
    if files or not card.alone or card.columns.items is None:
        return ItemRows(files, card, root) if files else None
    for name in ("test", "validation", "train"):
        if files := split_files(root, SplitSpec(name=name), name, ".parquet"):
            found = ItemRows(files, card, root)
            text = "tables are called as another split: they are taken for the one that the data set has"
            found.notes += notes_of("other-name", text, [file.name for file in files])
            return found
    return None


LAYOUT: Final = LayoutSpec(("choices",), "{split}*.parquet", probe, only_other=True)
