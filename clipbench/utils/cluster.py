"""A Ray cluster: connecting to one, or starting one on this machine, and what its nodes can hold.

Ray is an extra (`pip install 'clipbench[ray]'`); nothing else imports it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from clipbench.errors import ClipbenchError, first_line, unknown

#: bytes of the object store of a cluster that is started here: results are small, rows go to files
_OBJECTS: Final = 128 << 20


@dataclass(frozen=True)
class Slots:
    """Where workers fit.

    Attributes:
        count: workers that fit at once, as the cluster is now.
        cpus, gpus: of each.
    """

    count: int
    cpus: int
    gpus: int


def engine(name: str, address: str | None) -> contextlib.AbstractContextManager[Any]:
    """Ray, connected, of `--engine` and `--ray-address`; or None for this process alone.

    Raises:
        ClipbenchError: there is no such engine, or as `connected`.
    """
    if name not in ("local", "ray"):
        raise ClipbenchError(unknown("choice for --engine", name, ("local", "ray")))
    if name == "ray":
        return connected(address)
    if address is not None:
        raise ClipbenchError("--ray-address is for --engine ray", hint="add --engine ray, or leave it out")
    return contextlib.nullcontext()


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The package `ray`, connected to the cluster at `address`; None: the one of RAY_ADDRESS, or one started here.

    Raises:
        ClipbenchError: Ray is not installed, or there is no cluster to connect to.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ClipbenchError(
            "--engine ray needs the package ray, which is not here", hint="pip install 'clipbench[ray]'"
        ) from None
    address = address or os.environ.get("RAY_ADDRESS")
    # without these, Ray listens on all of this machine's addresses
    own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "object_store_memory": _OBJECTS}
    own["include_dashboard"] = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own plans for its next version
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else own),
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClipbenchError(
            f"no Ray cluster at {address or 'this machine'}: {first_line(error)}",
            hint="start one with ray start --head, and give its address with --ray-address; or leave that out to "
            "use this machine alone",
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def alive(ray: Any) -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def slots(ray: Any, *, gpus: bool) -> Slots:
    """Workers that fit the nodes: one a GPU; or, on CPUs, one a node, and more on nodes larger than the smallest.

    Raises:
        ClipbenchError: no node has what is asked for.
    """
    nodes = alive(ray)
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus:
        if not with_gpu:
            raise ClipbenchError("no node of the Ray cluster has a GPU", hint="use --device cpu")
        cpus = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu)
        return Slots(sum(int(node["GPU"]) for node in with_gpu), cpus, 1)
    able = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not able:
        raise ClipbenchError("no node of the Ray cluster has a CPU to give", hint="add a node with CPUs")
    return Slots(sum(cpus // min(able) for cpus in able), min(able), 0)
