"""`clipbench bench cached`: what it costs a run over cached features that they are checked before they are trusted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.machine import best
from clipbench.catalog import Task
from clipbench.encoding.feature_store import FeatureFile
from clipbench.evaluation import Options, evaluate
from clipbench.models.adapter import ModelEntry


def measure(
    model: ModelEntry, tasks: Sequence[Task], options: Options, rows: int, columns: int
) -> dict[str, Any]:
    """Read random features with all checks and without any, and run tasks whose features are cached.

    Ratios, of times:

        checked_over_unchecked  reading a file of shards, checked / reading its bytes and no more
        checks_of_run           what the run spends on finding shards and checking them / the whole run

    The first run, which is not timed, encodes what the cache lacks.

    Raises:
        ClipbenchError: as `evaluate`.
    """
    with tempfile.TemporaryDirectory(prefix="clipbench-bench-") as folder:
        file = FeatureFile({"bench": "cached"}, rows, Path(folder))
        file.begin("plain")
        rng = np.random.default_rng(0)
        for shard in range(file.shards):
            own = len(file.shard_rows(shard))
            file.write(shard, rng.standard_normal((own, columns), np.float32), device="none")
        unchecked = best(lambda: [file.path(shard).read_bytes() for shard in range(file.shards)])
        checked = best(lambda: FeatureFile({"bench": "cached"}, rows, Path(folder)).missing())
    list(evaluate([model], tasks, options))
    with _timed() as spent:
        start = time.perf_counter()
        list(evaluate([model], tasks, options))
        run = time.perf_counter() - start
    return {
        "model": model.id,
        "tasks": [task.id for task in tasks],
        "mib": round(rows * columns * 4 / 2**20, 1),
        "checked_gb_per_s": round(rows * columns * 4 / checked / 1e9, 2),
        "run_s": round(run, 3),
        "ratios": {
            "checked_over_unchecked": round(checked / unchecked, 4),
            "checks_of_run": round(spent[0] / run, 4),
        },
    }


def view(found: dict[str, Any]) -> Group:
    head = (
        f"{found['mib']:,} MiB of features, checked at {found['checked_gb_per_s']:g} GB/s\n"
        f"{found['model']} on {', '.join(found['tasks'])}, cached: {found['run_s']:g} s"
    )
    return Group(head, "", views.ratios(found["ratios"], ".4f"))


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Seconds that feature files spend on finding their shards and checking them, meanwhile."""
    spent = [0.0]
    missing = FeatureFile.missing

    def timed(file: FeatureFile) -> list[int]:
        start = time.perf_counter()
        found = missing(file)
        spent[0] += time.perf_counter() - start
        return found

    with mock.patch.object(FeatureFile, "missing", timed):
        yield spent
