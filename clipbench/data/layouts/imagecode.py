"""ImageCoDe in three tables: descriptions, each of one image among ten that are much alike.

A copy is a folder with `query-*.parquet` (id, text), `corpus-*.parquet` (id, image) and `qrels-*.parquet` (query-id,
corpus-id, score: 1 for the image that is described, 0 for the others), as mteb/imagecode-multi on the hub has them.
Sources: Krojer et al. 2022, arXiv 2203.15867; the hub's README; the reader in embeddings-benchmark/mteb.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.choices import Choice
from clipbench.data.layouts._item_tables import ItemTables
from clipbench.data.layouts.base import LayoutSpec, plain_text
from clipbench.data.layouts.parquet import opened
from clipbench.data.layouts.refer import columns_of
from clipbench.data.paths import is_junk, natural
from clipbench.errors import DataError

#: the columns of each table
_TABLES: Final = {
    "corpus": ("id", "image"),
    "query": ("id", "text"),
    "qrels": ("query-id", "corpus-id", "score"),
}


class ImageCode(ItemTables):
    """The three tables."""

    name_in_fingerprint = "ImageCode"

    def __init__(self, tables: dict[str, list[Path]], root: Path) -> None:
        self._start_items(tables["corpus"], root, None, ["image"], {"label": ["id"]})
        self._queries, self._answers = tables["query"], tables["qrels"]
        self.files = [*self.files, *tables["query"], *tables["qrels"]]

    def _items(self, shown: Sequence[tuple[int, ...]]) -> Iterator[Choice]:
        ids = [name for (name,) in _rows(self._files, ["id"])]
        image = {name: rows[0] for name, rows in zip(ids, shown, strict=True)}
        if len(image) < len(ids):
            raise DataError(f"{self.where}: an id is twice in the corpus", hint="fetch the tables again")
        among: dict[Any, list[tuple[int, int]]] = {}
        for query, name, score in _rows(self._answers, _TABLES["qrels"]):
            if name not in image:
                raise DataError(
                    f"{self.where}: qrels name the image {str(name)[:60]!r}, which is not in the corpus",
                    hint="fetch all files of the corpus",
                )
            among.setdefault(query, []).append((score, image[name]))
        asked = set()
        for query, text in _rows(self._queries, _TABLES["query"]):
            candidates = among.get(query, [])
            right = [row for score, row in candidates if score == 1]
            wrong = [row for score, row in candidates if score != 1]
            if (
                query in asked
                or len(right) != 1
                or not wrong
                or not isinstance(text, str)
                or not text.strip()
            ):
                raise DataError(
                    f"{self.where}: query {str(query)[:60]!r} needs a text, one right image and others, and to be "
                    f"there once (it has {len(right)} right and {len(wrong)} wrong ones)",
                    hint="fetch all files of query and qrels",
                )
            asked.add(query)
            yield Choice(str(query), (right[0], *wrong), (text,), ((0, 0),))


def _rows(files: list[Path], columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """What stands in `columns` of every row; DataError where it is neither a text nor a whole number."""
    for path in files:
        with opened(path) as file:
            for batch in file.iter_batches(columns=list(columns), use_threads=False):
                values = (batch.column(batch.schema.get_field_index(name)).to_pylist() for name in columns)
                for cells in zip(*values, strict=True):
                    if any(plain_text(cell) is None for cell in cells):
                        raise DataError(
                            f"{path}: {', '.join(columns)} are {str(cells)[:80]}, expected texts or whole numbers",
                            hint="fetch it again",
                        )
                    yield cells


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ImageCode | None:
    """The items of the three tables in the folder `root`; None where they are not there.

    Raises:
        DataError: only some are there, or they are of another form.
    """
    there = [path for path in root.iterdir() if path.suffix == ".parquet" and not is_junk(path.name)]
    tables = {
        name: sorted((p for p in there if p.name.startswith(f"{name}-")), key=lambda path: natural(path.name))
        for name in _TABLES
    }
    lacking = [name for name, files in tables.items() if not files]
    if len(lacking) == len(_TABLES):
        return None
    if lacking:
        raise DataError(
            f"{dataset.id}: {root} has no {lacking[0]}-*.parquet", hint="fetch all files of the data set"
        )
    for name, files in tables.items():
        for file in files:
            missing = [column for column in _TABLES[name] if columns_of(file).count(column) != 1]
            if missing:
                raise DataError(
                    f"{file} has no column {missing[0]!r}, or has it twice", hint="fetch it again"
                )
    return ImageCode(tables, root)


LAYOUT: Final = LayoutSpec(
    ("choices",), "ImageCoDe's corpus-, query- and qrels-*.parquet", probe, forms=("imagecode",)
)
