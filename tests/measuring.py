"""Evaluation in this process, as tests ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipbench.catalog import Catalog
from clipbench.data.paths import DataPaths
from clipbench.encoding.runtime import Runtime
from clipbench.evaluation import Options, Result, evaluate
from clipbench.records.record import Record

FP32 = Runtime("cpu", "fp32", workers=0)


def measure(
    models: Sequence[str | Path],
    tasks: Sequence[str],
    *,
    cards: Path | None = None,
    data: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    runtime: Runtime = FP32,
) -> list[Result]:
    """Results of `models` on `tasks`, task by task."""
    catalog = Catalog([cards] if cards else ())
    options = Options(
        runtime=runtime,
        data=DataPaths({"animals": data} if data else {}, ()),
        limit=limit,
        seed=seed,
        progress=False,
    )
    return list(evaluate([catalog.model(str(m)) for m in models], catalog.tasks(tasks), options))


def record_of(result: Result) -> Record:
    assert result.record is not None
    return result.record
