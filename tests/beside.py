"""Copies of a small set whose samples have columns beside their labels, and how they are opened."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import class_copies
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small

from clipbench.data.split import Split
from clipbench.errors import DataError


def with_column(path: Path, name: str, values: list[Any]) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, pa.array(values)), path)


def tar_of(path: Path, files: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            class_copies.add(tar, name, data)


def packed(root: Path, slides: list[Any], *, label: str = ".cls") -> Path:
    files: list[tuple[str, bytes]] = []
    for row, slide in enumerate(slides):
        key = f"{row:03d}"
        fields = {} if slide is ... else {"slide": slide}
        files.append((f"{key}.png", small.picture(row)))
        if label == ".json":
            fields |= {"label": row % 5}
        else:
            files.append((f"{key}{label}", b"a cat" if label == ".txt" else str(row % 5).encode()))
        files.append((f"{key}.json", json.dumps(fields).encode()))
    tar_of(root / "test" / "0.tar", files)
    return root


def opened(root: Path, role: str = "test", **changes: Any) -> Split:
    """A split whose card names `slide` as its clusters."""
    return class_copies.opened(root, role, **{"columns": {"cluster": "slide"}} | changes)


def message(root: Path, **changes: Any) -> str:
    """The error that `opened` ends with, and its hint."""
    with pytest.raises(DataError) as caught:
        opened(root, **changes)
    return f"{caught.value.message} | {caught.value.hint}"
