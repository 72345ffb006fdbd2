"""`clipbench eval --engine ray` on clusters simulated on this machine: the records of one process."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commandline
import pytest
import small
from commandline import mended
from measuring import FP32

from clipbench import distributed
from clipbench.catalog import Catalog
from clipbench.errors import StorageError
from clipbench.evaluation import Options
from clipbench.records import store
from clipbench.records.record import Record
from clipbench.utils import cluster

run, place = commandline.run, commandline.place
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
TASKS = ("animals-zs", "digits-zs", "digits-lp@knn", "digits-lp@4-shot")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes of a CPU each, beside one that only coordinates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        memory: dict[str, Any] = {"object_store_memory": 80 << 20}
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
        )
        for _ in range(2):
            made.add_node(num_cpus=1, **memory)
    yield made
    made.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def grid(place: commandline.Place) -> list[str | Path]:
    """Three models on four tasks."""
    small.write_images(place.root / "many", 1_200)
    models = [small.write_run(place.root / f"run{seed}", seed=seed) for seed in range(3)]
    names: list[str | Path] = [word for model in models for word in ("--model", model)]
    tasks: list[str | Path] = [word for task in TASKS for word in ("--task", task)]
    own: list[str | Path] = [
        "--cards",
        place.cards,
        "--data",
        f"animals={place.root / 'many'}",
        "--precision",
        "fp32",
    ]
    return ["eval", *names, *tasks, *own, "--workers", "0", "--results", place.results]


def records(place: commandline.Place) -> dict[tuple[str, str], Record]:
    found = {(of.record.model, of.record.task): of.record for of in store.read_all(place.results)}
    assert len(found) == 12
    return found


def same(one: dict[tuple[str, str], Record], other: dict[tuple[str, str], Record]) -> None:
    assert one.keys() == other.keys()
    for key, record in one.items():
        assert record.scores == other[key].scores, key
        assert record.fingerprints == other[key].fingerprints, key


def test_a_grid_gives_the_records_of_one_process(
    place: commandline.Place,
    grid: list[str | Path],
    run: commandline.Run,
    nodes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = run(*grid, "--engine", "ray", "--ray-address", nodes.address)
    assert done.code == 0, done.err
    over = records(place)
    assert {record.timing.images_encoded for record in over.values()} == {0}
    monkeypatch.setenv("CLIPBENCH_CACHE", str(place.root / "alone"))
    assert run(*grid, "--force").code == 0
    same(records(place), over)


def test_a_node_that_dies_costs_its_share_under_way(
    place: commandline.Place, grid: list[str | Path], run: commandline.Run, nodes: Any,
    monkeypatch: pytest.MonkeyPatch, isolated_cache: Path,
) -> None:  # fmt: skip
    extra = nodes.add_node(num_cpus=1, object_store_memory=80 << 20)

    def kill() -> None:
        while not list(isolated_cache.glob("features-2/*/*.shard")):
            time.sleep(0.02)
        nodes.remove_node(extra, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    done = run(*grid, "--engine", "ray", "--ray-address", nodes.address)
    killer.join()
    assert done.code == 0, done.err
    over = records(place)
    assert {record.timing.images_encoded for record in over.values()} == {0}


def test_wrong_uses(
    place: commandline.Place, run: commandline.Run, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = place.eval("--engine", "ray", "--ray-address", nodes.address)
    mended(run(*own, "--limit", "5"), "whole splits")
    mended(run(*own, "--shard", "0/2"), "whole splits")

    with cluster.connected(nodes.address) as ray, monkeypatch.context() as patch:
        patch.setattr(distributed, "_environment", lambda root: {"CLIPBENCH_CACHE": str(root / "other")})
        catalog = Catalog()
        with pytest.raises(StorageError, match="does not see the cache"):
            distributed.encode_over(
                ray, [catalog.model("digits-clip-lite")], catalog.tasks(["digits-zs"]), Options(FP32)
            )
    monkeypatch.setitem(sys.modules, "ray", None)
    mended(run(*place.eval("--engine", "ray")), "pip install 'clipbench[ray]'")
