"""Parquet files of captions in several languages: tables of one language each, which show the same images.

The card's split is named by the language (`{language}`, as floschne/xm3600 is): `<language>*.parquet`, or a folder of
the language. Rows of one image, in whatever table, have one value in the column `columns.image_id`; what they show is
read from the first table that has it, in the order of the card's languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import SplitSpec, TaskCard
from clipbench.data.layouts.base import Layout, LayoutSpec
from clipbench.data.layouts.parquet import Parquet, captions_of
from clipbench.data.paths import split_files
from clipbench.errors import DataError

LANGUAGE: Final = "{language}"


class ParquetLanguages(Layout):
    """Tables by language. An image is a sample, with its captions in all of them; its id is what says which it is."""

    name_in_fingerprint = "ParquetLanguages"
    in_part = True

    def __init__(
        self,
        tables: Mapping[str, list[Path]],
        card: TaskCard,
        root: Path,
        there: Sequence[str],
        where: str | None = None,
    ) -> None:
        """`tables`: language → its files; `there`: all languages that the copy has.

        Raises:
            DataError: as `Parquet`; no column says which image a row shows, or it says nothing of a row.
        """
        self.root, self.where = root, str(root) if where is None else where
        self.languages = tuple(there)
        self._tables = {
            language: Parquet(files, card, root, f"{self.where} ({language})")
            for language, files in tables.items()
        }
        self.files = [file for table in self._tables.values() for file in table.files]
        #: image → table that shows it, and its first row there
        self._shown: dict[str, tuple[Parquet, int]] = {}
        self._captions: dict[str, dict[str, list[Any]]] = {}
        for language, table in self._tables.items():
            ids = _images_of(table, card.columns.image_id)
            for row, (name, (_, cell)) in enumerate(zip(ids, table.index(), strict=True)):
                self._shown.setdefault(name, (table, row))
                of = self._captions.setdefault(name, {})
                of[language] = [*of.get(language, []), *(captions_of(cell) if cell is not None else ())]

    def index(self) -> Iterator[tuple[str, Any]]:
        yield from self._captions.items()

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        wanted = set(rows.tolist())
        number = 0
        for table in self._tables.values():
            # Images that this table is the first to have follow each other, in its order.
            own = [row for first, row in self._shown.values() if first is table]
            numbers = {row: number + place for place, row in enumerate(own)}
            number += len(own)
            mine = [row for row, place in numbers.items() if place in wanted]
            if not mine:
                continue
            kept = set(mine)
            for row, image in table.images(np.array(mine)):
                if row in kept:
                    yield numbers[row], image


def _images_of(table: Parquet, named: str | None) -> list[str]:
    """Which image each row shows, as the column says that is `named`, or one of usual name."""
    for column, values in table.identities(named):
        if None not in values:
            return [str(value) for value in values]
        if named is not None:
            raise DataError(
                f"{table.where}: row {values.index(None)} has nothing in the column {column!r}, which columns.image_id "
                "on the task card names",
                hint="name a column that says of every row which image it shows",
            )
    raise DataError(
        f"{table.where}: no column says which image a row shows (it has {', '.join(map(repr, table.columns))})",
        hint="name one as columns.image_id on the task card: images are the same in all languages",
    )


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ParquetLanguages | None:
    """The split that parquet files of the card's languages hold in `root`; None where there is none of any."""
    spec = dataset.card.splits[role]
    if LANGUAGE not in spec.name:
        return None
    tables = {}
    for language in dataset.card.languages:
        own = SplitSpec(name=spec.name.replace(LANGUAGE, language))
        if files := split_files(root, own, own.name, ".parquet"):
            tables[language] = files
    there = _there(root)
    return ParquetLanguages(tables, dataset.card, root, there) if tables or there else None


def _there(root: Path) -> list[str]:
    """What parquet files in `root` are called by, up to a number of theirs."""
    names = {
        path.name for folder in (root, root / "data") if folder.is_dir() for path in folder.glob("*.parquet")
    }
    names |= {f"{path.name}." for path in root.iterdir() if path.is_dir() and any(path.glob("*.parquet"))} - {
        "data."
    }
    return sorted({re.split(r"[-.]", name)[0] for name in names})


LAYOUT: Final = LayoutSpec(("captions",), "{split}*.parquet (of each language)", probe)
