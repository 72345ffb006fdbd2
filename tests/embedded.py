"""Folders of embeddings: of what a model makes of the shipped digits, and small ones of rows that are made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import FP32
from numpy.typing import NDArray

from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.report.task_inputs import asked

MODEL = "digits-clip-lite"


def npy(path: Path, rows: Any, names: Sequence[str] | None = None) -> Path:
    """A .npy file of rows, and its list of ids; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)
    if names is not None:
        (path.parent / f"{path.stem}.ids.txt").write_text("".join(f"{name}\n" for name in names))
    return path


def parquet(path: Path, rows: NDArray[Any], names: Sequence[str], column: str = "id", **more: Any) -> Path:
    """A parquet file of rows with names, in row groups of 100; returns it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    values = pa.array(rows.reshape(-1))
    table = pa.table(
        {column: list(names), "embedding": pa.FixedSizeListArray.from_arrays(values, rows.shape[1])} | more
    )
    pq.write_table(table, path, row_group_size=100)
    return path


def of_model(folder: Path, tasks: Sequence[str]) -> None:
    """Write what `MODEL` makes of all that `tasks` ask for, as `clipbench data inputs` lists it."""
    catalog = Catalog()
    encoder = ModelEncoder(catalog.model(MODEL), FP32, progress=False)
    wanted = asked(catalog.tasks(tasks), DataPaths({}, ()))
    for name, ids in wanted.ids.items():
        dataset, _, role = name.partition("/")
        split = open_split(catalog.dataset(dataset), role, DataPaths({}, ()))
        npy(folder / f"{name}.npy", np.asarray(encoder.images(split)), ids)
        npy(folder / "backbone" / f"{name}.npy", np.asarray(encoder.images(split, "backbone")), ids)
    if wanted.texts:
        np.save(folder / "texts.npy", np.asarray(encoder.texts(wanted.texts)))
        (folder / "texts.json").write_text(json.dumps(wanted.texts))
    (folder / "embeddings.yaml").write_text(f"title: Given\nlogit_scale: {encoder.logit_scale}\n")
