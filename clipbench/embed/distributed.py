"""Parts of a collection over the nodes of a Ray cluster: an embedder a GPU, or a node, that is given part after part.

A part is one task and one set of files, so what there is to hand out are numbers; rows never travel between nodes.
Each worker loads the model once and has the next part in hand before it is through with one, so that its reading and
decoding go on without a gap. Where a worker, or its node, dies, its parts are handed out again.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from clipbench.data.embedded import MANIFEST
from clipbench.embed.collection import Collection
from clipbench.embed.output import Finished, Output
from clipbench.embed.run import Embedder, Failed, Wanted
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime, keep_freed_memory
from clipbench.errors import ClipbenchError, StorageError
from clipbench.models.adapter import ModelEntry
from clipbench.utils.cache import say
from clipbench.utils.cluster import alive, slots

_IN_HAND: Final = 2  # parts that a worker has at once: the one under way, and the next
_DEATHS: Final = 3  # of workers, while they had a part in hand: it is then given up
_NO_PART_S: Final = 0.05  # that a worker waits for a part before it looks what else there is to do
_QUIET_S: Final = 60.0  # without a sign of life, until it is said that workers are waited for


@dataclass(frozen=True)
class Work:
    """What a worker must know."""

    model: ModelEntry
    runtime: Runtime
    collection: Collection
    output: Output
    wanted: Wanted


class Worker:
    """Embeds the parts that it is given, on one node."""

    embedder = Embedder

    def __init__(self, work: Work) -> None:
        self._work = work
        self._given: dict[int, int | None] = {}

    def give(self, place: int, number: int | None) -> None:
        """One more part, the one at `place` of those that this worker is given; None: there are no more."""
        self._given[place] = number

    def run(self) -> Generator[tuple[int, Finished | Failed] | None, None, None]:
        """None, once it has a place on a node; then what became of the parts, one after the other.

        Raises:
            ClipbenchError: as `Embedder.run`, or this node does not see the folder of the output.
        """
        yield None
        work = self._work
        if not (work.output.folder / MANIFEST).is_file():
            raise StorageError(
                f"a node of the cluster does not see {work.output.folder}",
                hint="name a folder that all nodes share, or one behind s3:// and the like",
            )
        if work.runtime.on_cpu:
            keep_freed_memory()
        encoder = ModelEncoder(work.model, work.runtime, progress=False)
        embedder = self.embedder(encoder, work.collection, work.output, work.wanted)
        yield from embedder.run(self._numbers())

    def _numbers(self) -> Iterator[int | None]:
        """The parts, as they are given; None while there are none."""
        for place in itertools.count():
            while place not in self._given:  # calls may come in another order than they were made
                time.sleep(_NO_PART_S)
                yield None
            number = self._given.pop(place)
            if number is None:
                return
            yield number


@dataclass
class _Hired:
    """A worker, as the driver sees it."""

    actor: Any
    told: Any
    placed: bool = False
    given: deque[int] = field(default_factory=deque)
    count: int = 0

    def give(self, number: int | None) -> None:
        """Give it one more part."""
        if number is not None:
            self.given.append(number)
        self.actor.give.remote(self.count, number)
        self.count += 1


def distributed(
    ray: Any, work: Work, numbers: Sequence[int], advance: Callable[[float], None]
) -> Iterator[tuple[int, Finished | Failed]]:
    """What became of the parts of these numbers, as each is finished, in any order.

    Args:
        ray: connected to a cluster (see `utils.cluster`).
        advance: is told of each part that is through.

    Raises:
        ClipbenchError: as `Worker.run`, and where no node can hold a worker.
    """
    size = slots(ray, gpus=not work.runtime.on_cpu)
    runtime = replace(
        work.runtime,
        workers=work.runtime.workers if work.runtime.workers is not None else max(size.cpus, 1),
    )
    hire = ray.remote(Worker).options(
        num_cpus=size.cpus,
        num_gpus=size.gpus,
        max_restarts=0,
        max_concurrency=2,
        # a thread that is not the first has an arena of its own, which gives large blocks back each time
        runtime_env={"env_vars": {"MALLOC_ARENA_MAX": "1"}},
    )
    told = ray.put(replace(work, runtime=runtime))
    todo = deque(numbers)
    deaths: Counter[int] = Counter()
    hired: list[_Hired] = []
    left = len(todo)
    heard = time.monotonic()
    while left:
        while todo and len(hired) < min(size.count, left):
            actor = hire.remote(told)
            hired.append(_Hired(actor, actor.run.options(num_returns="streaming").remote()))
        for one in hired:
            while todo and one.placed and len(one.given) < _IN_HAND and _fair(one, hired, todo, deaths):
                one.give(todo.popleft())
        ready, _ = ray.wait([one.told for one in hired], num_returns=1, timeout=5.0, fetch_local=False)
        if not ready:
            if time.monotonic() - heard > _QUIET_S:
                heard = time.monotonic()
                say(f"waiting for workers: {len(alive(ray))} nodes of the cluster are alive")
            continue
        heard = time.monotonic()
        one = next(one for one in hired if one.told is ready[0])
        try:
            message = ray.get(next(one.told))
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, StopIteration) as error:
            hired.remove(one)
            if "creation task" in str(error):  # what Ray says of a worker that never was one
                raise ClipbenchError(
                    f"a worker could not start on the cluster: {_last_line(error)}",
                    hint="install the same version of clipbench, and what it needs, on all nodes",
                ) from None
            for number in list(one.given):
                deaths[number] += 1
                if deaths[number] >= _DEATHS:
                    one.given.remove(number)
                    name = work.collection.parts[number].name
                    left -= 1
                    advance(1)
                    yield number, Failed(name, f"{_DEATHS} workers died while they embedded it")
            say(f"a worker died; {len(one.given)} parts are handed out again")
            todo.extendleft(reversed(one.given))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ClipbenchError):
                raise type(cause)(cause.message, hint=cause.hint) from None
            raise
        else:
            if message is None:
                one.placed = True
                continue
            number, part = message
            one.given.remove(number)
            left -= 1
            advance(1)
            yield number, part
    for one in hired:
        one.give(None)  # to one that has no place yet, too: it ends as soon as it has


def _fair(one: _Hired, hired: Sequence[_Hired], todo: deque[int], deaths: Mapping[int, int]) -> bool:
    """Whether `one` may take another part: not its second while others still lack their first.

    A part that was in hand when a worker died is in hand alone, so that the one that is to blame is found.
    """
    if any(deaths.get(number) for number in (todo[0], *one.given)):
        return not one.given
    return not one.given or len(todo) > sum(1 for other in hired if other.placed and not other.given)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1].strip()[:200]
