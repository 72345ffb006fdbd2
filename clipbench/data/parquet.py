"""Parquet files: a row a sample, with columns of images and of labels or captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.cards import TaskCard
from clipbench.data.layout import Layout, first_line
from clipbench.errors import DataError

_READ_ROWS = 256  # rows of a parquet file held at once
_READ_BYTES = 1 << 20  # and what is read ahead of them


class Parquet(Layout):
    """Parquet files as `datasets` writes them, read with pyarrow.

    `datasets` would hold whole row groups, which in data sets of small images are the whole file.
    """

    name_in_fingerprint = "_Parquet"
    #: all files that decide the split
    files: list[Path]

    def __init__(self, files: list[Path], card: TaskCard, where: Path | str) -> None:
        self.files = self._files = files
        self._image = card.columns.image
        key = "caption" if card.kind == "captions" else "label"
        self._label = getattr(card.columns, key)
        self.where = str(where)
        with self._open(files[0]) as file:
            schema = file.schema_arrow
        for column in (self._image, self._label):
            if column not in schema.names:
                raise DataError(
                    f"{where}: no column {column!r}; it has {', '.join(map(repr, schema.names))}",
                    hint=f"set columns.{'image' if column == self._image else key} on the task card",
                )
        self.names = _class_label_names(schema, self._label)

    def index(self) -> Iterator[tuple[str, Any]]:
        for row, label in enumerate(self._values(self._label)):
            yield f"{row:07d}", label

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        for row, image in enumerate(self._values(self._image)):
            yield row, image_bytes(image)

    def _values(self, column: str) -> Iterator[Any]:
        """The values of `column` in all files, in order."""
        for path in self._files:
            with self._open(path) as file:
                if column not in file.schema_arrow.names:
                    raise DataError(f"{path} has no column {column!r}, other files of the split have")
                for batch in file.iter_batches(_READ_ROWS, columns=[column], use_threads=False):
                    yield from batch.column(0).to_pylist()

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # A buffered, sequential read: memory does not grow with the row group.
            with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} cannot be read as parquet: {first_line(error)}",
                hint="fetch or write the file again",
            ) from error


def _class_label_names(schema: Any, column: str) -> list[str] | None:
    """Label names that `datasets` (its `ClassLabel`) keeps in the schema of the files it writes, if any."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names: list[str] | None = described.get("info", {}).get("features", {}).get(column, {}).get("names")
    return names


def image_bytes(value: Any) -> bytes:
    """The encoded image of a cell: bytes, or `datasets`' struct of bytes and path; nothing where there is none."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and Path(value).is_file():
        return Path(value).read_bytes()
    return value if isinstance(value, bytes) else b""  # none is decoded as a bad image, with its id
