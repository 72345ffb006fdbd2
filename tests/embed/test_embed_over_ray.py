"""`clipbench embed --engine ray` on clusters simulated on this machine: the same rows, whichever workers die."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import collected
import commandline
import pytest
import small
from collected import pictures, written
from commandline import mended

from clipbench.catalog import Catalog
from clipbench.embed import distributed, job
from clipbench.embed.collection import collection
from clipbench.embed.output import Output
from clipbench.embed.run import Embedder, Failed, Wanted
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import ClipbenchError
from clipbench.utils import cluster
from clipbench.utils.storage import Place

run = commandline.run
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
SAMPLES = pictures(24)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes of a CPU each, beside one that only coordinates; its address is `nodes.address`."""
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


def opened(tmp_path: Path, out: str, per_part: int = 2) -> tuple[ModelEncoder, Any, Output]:
    small.write_run(tmp_path / "run")
    if not (tmp_path / "tars").exists():
        collected.write_tars(tmp_path / "tars", SAMPLES, per_part)
    encoder = ModelEncoder(
        Catalog().model(str(tmp_path / "run")), Runtime("cpu", "fp32", workers=0), progress=False
    )
    found = collection(str(tmp_path / "tars"))
    output = job.opened(encoder, found, Place(str(tmp_path / out)), Wanted(dtype="float32", texts=True))
    output.begin()
    for which in ("images", "texts"):
        output.plan(which).begin("plain")
    return encoder, found, output


def same(one: Path, other: Path) -> None:
    for path in one.rglob("*"):
        if path.suffix in (".npy", ".parquet") or path.parent.name == "parts":
            assert (other / path.relative_to(one)).read_bytes() == path.read_bytes(), path


def test_two_nodes_give_the_rows_of_one_process(tmp_path: Path, nodes: Any) -> None:
    wanted = Wanted(dtype="float32", texts=True)
    job.embed(*opened(tmp_path, "one"), wanted)
    with cluster.connected(nodes.address) as ray:
        told = job.embed(*opened(tmp_path, "two"), wanted, ray=ray)
    assert told.manifest["complete"]
    assert (told.new, told.rows) == (12, 24)
    same(tmp_path / "one", tmp_path / "two")
    assert written(tmp_path / "two").keys == [sample.key for sample in SAMPLES]


def test_a_node_that_dies_costs_its_parts_under_way(tmp_path: Path, nodes: Any) -> None:
    wanted = Wanted(dtype="float32", texts=True)
    job.embed(*opened(tmp_path, "one"), wanted)
    extra = nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    encoder, found, output = opened(tmp_path, "two")

    def kill() -> None:
        while len(list((tmp_path / "two" / "parts").glob("*.json"))) < 2:
            time.sleep(0.02)
        nodes.remove_node(extra, allow_graceful=False)

    with cluster.connected(nodes.address) as ray:
        killer = threading.Thread(target=kill)
        killer.start()
        told = job.embed(encoder, found, output, wanted, ray=ray)
        killer.join()
    assert told.manifest["complete"]
    same(tmp_path / "one", tmp_path / "two")


class Dying(Embedder):
    """Its process ends at part 3."""

    def run(self, numbers: Any, advance: Any = lambda parts: None) -> Any:
        import os

        def watched() -> Iterator[int | None]:
            for number in numbers:
                if number == 3:
                    time.sleep(0.5)  # so that what was finished is told of
                    os._exit(1)
                yield number

        return super().run(watched(), advance)


class DyingWorker(distributed.Worker):
    embedder = Dying


def test_a_part_that_kills_its_workers_is_given_up(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "Worker", DyingWorker)
    encoder, found, output = opened(tmp_path, "out")
    work = distributed.Work(
        encoder.model, encoder.runtime, found, output, Wanted(dtype="float32", texts=True)
    )
    with cluster.connected(nodes.address) as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which no other process can import
        told = dict(distributed.distributed(ray, work, range(6), lambda parts: None))
    failed = {number for number, of in told.items() if isinstance(of, Failed)}
    assert failed == {3}
    assert "3 workers died while they embedded it" in str(told[3])
    assert sorted(told) == list(range(6))


class Unable(distributed.Worker):
    def __init__(self, work: distributed.Work) -> None:
        raise ImportError("no module named clipbench.embed")


def test_workers_that_cannot_start_end_it(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "Worker", Unable)
    with cluster.connected(nodes.address) as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with pytest.raises(ClipbenchError, match=r"could not start .*no module named") as raised:
            job.embed(*opened(tmp_path, "out"), Wanted(dtype="float32", texts=True), ray=ray)
    assert "same version of clipbench" in str(raised.value.hint)


def test_an_error_of_a_worker_is_the_users(tmp_path: Path, nodes: Any, run: commandline.Run) -> None:
    small.write_run(tmp_path / "run")
    bad = [*SAMPLES[:2], collected.Picture("00099", SAMPLES[0].image[:40], "cut")]
    collected.write_tars(tmp_path / "tars", bad, 12)
    more = ["--precision", "fp32", "--engine", "ray", "--ray-address", nodes.address]
    done = run(
        *("embed", "-m", tmp_path / "run", "--data", tmp_path / "tars", "--out", tmp_path / "out"),
        *("--on-bad-image", "stop", *more),
    )
    assert done.code == 2
    assert "cannot be decoded" in done.err
    assert "Traceback" not in done.err


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, run: commandline.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_run(tmp_path / "run")
    collected.write_tars(tmp_path / "tars", SAMPLES, 12)
    monkeypatch.setitem(sys.modules, "ray", None)
    own = ["embed", "-m", tmp_path / "run", "--data", tmp_path / "tars", "--out", tmp_path / "out"]
    mended(run(*own, "--engine", "ray"), "needs the package ray", "pip install 'clipbench[ray]'")
    mended(run(*own, "--ray-address", "x:1"), "add --engine ray")
    mended(run(*own, "--engine", "spark"), "local, ray")
    assert not (tmp_path / "out").exists()
