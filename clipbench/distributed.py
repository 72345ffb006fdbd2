"""An evaluation's images over the nodes of a Ray cluster: a share each, into a cache that all nodes see."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from clipbench.catalog import Task
from clipbench.data.decode import MAX_PIXELS, allow_pixels, max_pixels
from clipbench.encoding.runtime import keep_freed_memory
from clipbench.errors import ClipbenchError, StorageError
from clipbench.evaluation import Options, Share, encode_share
from clipbench.models.adapter import ModelEntry
from clipbench.utils import plugins
from clipbench.utils.cache import cache_root, make_folder, say
from clipbench.utils.cluster import alive, slots

_QUIET_S: Final = 60.0  # without a share that ends, until it is said what is waited for


@dataclass(frozen=True)
class Work:
    """What a node must know.

    Attributes:
        folder: where relative paths start.
        token: a file in the cache, by which a node knows that it sees the same one.
        code: folders of plugins.
        pixels: most pixels of an image; None: the usual.
    """

    models: Sequence[ModelEntry]
    tasks: Sequence[Task]
    options: Options
    folder: Path
    token: str
    code: Sequence[Path]
    pixels: int | None


def encode_over(
    ray: Any,
    models: Sequence[ModelEntry],
    tasks: Sequence[Task],
    options: Options,
    code: Sequence[Path] = (),
    done: Callable[[int, int], None] = lambda ended, of: None,
) -> list[Share]:
    """Encode the images that tasks need, of every model, on the nodes of a cluster; `evaluate` then encodes none.

    A share a GPU (or a node, where none are used) is one Ray task, which loads each model once. One whose node dies is
    run again on another, and encodes what is not in the cache. While there is no node, this waits, and says so.

    Args:
        ray: connected to a cluster (see `utils.cluster`).
        code: folders of plugins that the models and tasks need.
        done: is told how many shares have ended, of how many.

    Raises:
        ClipbenchError: as `encode_share`, or a node does not see the cache of this process.
    """
    size = slots(ray, gpus=not options.runtime.on_cpu)
    root = make_folder(cache_root()).absolute()
    token = root / f"cluster-{uuid.uuid4().hex}"
    token.touch()
    runtime = replace(options.runtime, device="cpu" if options.runtime.on_cpu else "cuda")
    if runtime.workers is None:
        runtime = replace(runtime, workers=max(size.cpus, 1))
    pixels = None if max_pixels() == MAX_PIXELS else max_pixels()
    own = replace(options, runtime=runtime, progress=False)
    try:
        work = ray.put(Work(models, tasks, own, Path.cwd(), token.name, [p.absolute() for p in code], pixels))
        task = ray.remote(_share).options(
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            max_retries=-1,
            runtime_env={"env_vars": _environment(root)},
        )
        left = [task.remote(work, number, size.count) for number in range(size.count)]
        return list(_ended(ray, left, done))
    finally:
        token.unlink(missing_ok=True)


def _ended(ray: Any, left: list[Any], done: Callable[[int, int], None]) -> Iterator[Share]:
    """What the shares came to, as they end."""
    count, heard = len(left), time.monotonic()
    while left:
        ready, left = ray.wait(left, num_returns=1, timeout=5.0)
        if not ready:
            if time.monotonic() - heard > _QUIET_S:
                heard = time.monotonic()
                say(
                    f"{len(left)} of {count} shares are left; {len(alive(ray))} nodes of the cluster are alive"
                )
            continue
        heard = time.monotonic()
        try:
            told = ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ClipbenchError):
                raise type(cause)(cause.message, hint=cause.hint) from None
            raise
        done(count - len(left), count)
        yield from told


def _environment(root: Path) -> Mapping[str, str]:
    """The environment of this process that a share must have, too."""
    own = {name: value for name, value in os.environ.items() if name.startswith("CLIPBENCH_")}
    return own | {"CLIPBENCH_CACHE": str(root), "MALLOC_ARENA_MAX": "1"}


def _share(work: Work, number: int, of: int) -> list[Share]:
    """One share, on a node."""
    if not (cache_root() / work.token).is_file():
        raise StorageError(
            f"a node of the cluster does not see the cache {cache_root()}",
            hint="name a folder that all nodes share with CLIPBENCH_CACHE",
        )
    os.chdir(work.folder)
    plugins.add_all(work.code)
    allow_pixels(work.pixels)
    if work.options.runtime.on_cpu:
        keep_freed_memory()
    return list(encode_share(work.models, work.tasks, work.options, (number, of)))
