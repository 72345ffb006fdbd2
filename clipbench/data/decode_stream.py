"""Images as a stream of decoded batches, over worker processes: `python -m clipbench.data.decode_stream`, each."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.model import Preprocess
from clipbench.data.decode import BAD_IMAGE, cannot, decode_and_remark, reason
from clipbench.data.split import Sample
from clipbench.errors import ClipbenchError, DataError, StorageError, unknown

OnBadImage = Literal["stop", "skip"]


def on_bad_image(text: str) -> OnBadImage:
    """What to do with an image that cannot be decoded, from the user's word for it."""
    if text not in get_args(OnBadImage):
        raise ClipbenchError(unknown("choice for --on-bad-image", text, get_args(OnBadImage)))
    return "skip" if text == "skip" else "stop"


_Item = TypeVar("_Item")
#: of the images of one message, by their place in it: (index, reason) of those that failed, (index, kind) of remarks
Told = tuple[list[tuple[int, str]], list[tuple[int, str]]]


@dataclass(frozen=True)
class Bad:
    """An image that could not be decoded."""

    id: str
    reason: str


def undecodable(bad: Sequence[Bad], instead: str) -> DataError:
    """The error for images of a batch that could not be decoded; `instead`: what may be done other than mend them."""
    first = bad[0]
    what = cannot(first.reason)
    more = f" (and {len(bad) - 1} more in the same batch)" if len(bad) > 1 else ""
    return DataError(f"image {first.id} {what}: {first.reason}{more}", hint=f"replace the file, or {instead}")


@dataclass(frozen=True)
class Batch:
    """Decoded images in stream order. `images` is valid until the next batch is asked for.

    `good` [B] is False where the image could not be decoded (its pixels are zeros). `remarks` are (id, kind) of images
    that were decoded in a way that a reader of the numbers must know of (see `REMARKS`).
    """

    images: NDArray[np.uint8]
    good: NDArray[np.bool_]
    bad: tuple[Bad, ...]
    remarks: tuple[tuple[str, str], ...] = ()


def decode_stream(
    samples: Iterator[Sample],
    preprocess: Preprocess,
    *,
    sizes: Sequence[int] | int,
    workers: int,
    overlap: bool,
    on_bad_image: OnBadImage = "stop",
) -> Generator[Batch, None, None]:
    """Batches of `samples`, in order, `sizes` images each, decoded in `workers` processes (0: in this one).

    One size is that of all batches, as many as `samples` fill.

    With `overlap` the workers decode ahead while the caller computes on another device. Without it they work
    only while the caller waits: where the forward pass keeps every core busy, decoding beside it would stall
    all of its threads for the time of one.

    Raises:
        DataError: an image that cannot be decoded, and `on_bad_image` is "stop".
    """
    largest = sizes if isinstance(sizes, int) else max(sizes, default=1)
    groups: Iterator[list[Sample]]
    if isinstance(sizes, int):
        groups = iter(lambda: list(itertools.islice(samples, largest)), [])
    else:
        groups = (list(itertools.islice(samples, size)) for size in sizes)
    yield from decode_groups(
        groups, preprocess, largest=largest, workers=workers, overlap=overlap, on_bad_image=on_bad_image
    )


def decode_groups(
    groups: Iterator[list[Sample]],
    preprocess: Preprocess,
    *,
    largest: int,
    workers: int,
    overlap: bool,
    on_bad_image: OnBadImage = "stop",
) -> Generator[Batch, None, None]:
    """As `decode_stream`, of groups of at most `largest` samples, a batch each; a group may be empty."""
    shape = (preprocess.channels, preprocess.side, preprocess.side)
    slots = 1 + (2 if overlap and workers else 0)
    with _Pool(workers, preprocess, slots, largest, shape) as pool:
        pending: list[_Pending] = []
        if overlap:
            groups = ahead(groups)
        free = list(range(slots))
        exhausted = False
        while True:
            while free and not exhausted:
                group = next(groups, None)
                if group is None:
                    exhausted = True
                    break
                pending.append(pool.submit(group, free.pop(0)))
            if not pending:
                return
            batch = pending.pop(0)
            yield batch.result(pool, on_bad_image)
            free.append(batch.slot)


def ahead(items: Iterator[_Item]) -> Generator[_Item, None, None]:
    """`items`, none of them None, of which the next one is made while the caller works on this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item


@dataclass
class _Pending:
    """A batch whose parts are being decoded."""

    group: list[Sample]
    slot: int
    parts: list[tuple[int, Future[Told]]]

    def result(self, pool: _Pool, on_bad_image: OnBadImage) -> Batch:
        images = pool.slot(self.slot)[: len(self.group)]
        good = np.ones(len(self.group), dtype=np.bool_)
        bad: list[Bad] = []
        remarks: list[tuple[str, str]] = []
        for start, part in self.parts:
            failed, remarked = part.result()
            remarks += [(self.group[start + offset].id, kind) for offset, kind in remarked]
            for offset, why in failed:
                index = start + offset
                good[index] = False
                images[index] = 0
                bad.append(Bad(self.group[index].id, why))
        if bad and on_bad_image == "stop":
            raise undecodable(bad, "count and name such images with --on-bad-image skip")
        return Batch(images, good, tuple(bad), tuple(remarks))


class _Pool:
    """Worker processes that write pixels into memory shared with this one.

    Workers are plain child processes that speak pickle over pipes: they never import the caller's main
    module, and never inherit its threads or its GPU context.
    """

    def __init__(
        self, workers: int, preprocess: Preprocess, slots: int, batch_size: int, shape: tuple[int, int, int]
    ) -> None:
        self._workers = workers
        self._preprocess = preprocess
        self._pixels, self._file = _shared(workers, (slots, batch_size, *shape))
        self._local = threading.local()
        self._children: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="decode")

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._children.empty():
            child = self._children.get()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    with contextlib.suppress(OSError):  # the rest of a message to a process that is gone
                        pipe.close()
            child.wait()
        if self._file is not None:
            os.close(self._file)

    def slot(self, index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._pixels[index]
        return pixels

    def submit(self, group: list[Sample], slot: int) -> _Pending:
        if not self._workers:
            done: Future[Told] = Future()
            done.set_result(decode_into(self.slot(slot), [s.image for s in group], self._preprocess))
            return _Pending(group, slot, [(0, done)])
        size = max(1, min(16, -(-len(group) // self._workers)))
        parts = []
        for start in range(0, len(group), size):
            images = [sample.image for sample in group[start : start + size]]
            parts.append((start, self._threads.submit(self._ask, slot, start, images)))
        return _Pending(group, slot, parts)

    def _ask(self, slot: int, start: int, images: list[bytes]) -> Told:
        child = getattr(self._local, "child", None)
        if child is None:
            child = self._local.child = self._start()
        try:
            send(child.stdin, (slot, start, images))
            answer: Told = receive(child.stdout)
        except (OSError, EOFError):
            code = child.wait()
            raise DataError(
                f"a decoding process ended unexpectedly (exit status {code})",
                hint="if memory ran out, use fewer --workers",
            ) from None
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        assert self._file is not None
        child = subprocess.Popen(
            [sys.executable, "-m", "clipbench.data.decode_stream"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._file,),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self._children.put(child)
        send(child.stdin, (self._file, self._pixels.shape, self._preprocess))
        return child


def _shared(workers: int, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], int | None]:
    """A uint8 array of `shape`; with workers, in a file that they map too (in memory where there is room).

    The file has no name any more, only the descriptor that is returned: nothing is left of it, however we end.
    """
    if not workers:
        return np.zeros(shape, dtype=np.uint8), None
    size = int(np.prod(shape))
    memory = Path("/dev/shm")  # noqa: S108 - shared memory, not a temporary folder
    use_memory = memory.is_dir() and shutil.disk_usage(memory).free > 2 * size
    try:
        with tempfile.TemporaryFile(dir=memory if use_memory else None) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
            return map_pixels(file.fileno(), shape), os.dup(file.fileno())
    except OSError as error:
        raise StorageError(
            f"no room for {size / 2**20:.0f} MiB of decoding buffers: {error.strerror}",
            hint="set TMPDIR to a folder with more room, or use a smaller --batch-size or --workers 0",
        ) from None


def map_pixels(file: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The shared pixel buffer behind the descriptor `file` as a writable uint8 array."""
    return np.frombuffer(mmap.mmap(file, int(np.prod(shape))), dtype=np.uint8).reshape(shape)


def decode_into(target: NDArray[np.uint8], images: list[bytes], preprocess: Preprocess) -> Told:
    """Decode `images` into `target` [≥ len(images), C, side, side], and tell what is to be told of them."""
    failed: list[tuple[int, str]] = []
    remarks: list[tuple[int, str]] = []
    for index, data in enumerate(images):
        try:
            target[index], kinds = decode_and_remark(data, preprocess)
        except BAD_IMAGE as error:
            failed.append((index, reason(error, data)))
        else:
            remarks += [(index, kind) for kind in kinds]
    return failed, remarks


def send(pipe: IO[bytes] | None, message: Any) -> None:
    """Write one message to a worker's pipe."""
    assert pipe is not None
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def receive(pipe: IO[bytes] | None) -> Any:
    """Read one message; EOFError when the other side is gone. Both ends are this package's own processes."""
    assert pipe is not None
    return pickle.load(pipe)  # noqa: S301 - a pipe between our own processes


def work() -> None:
    """Decode groups of images into shared memory until the pipe closes: the process that `_Pool` drives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which closes the pipe
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not end up between two messages
    with contextlib.suppress(EOFError, BrokenPipeError):
        file, shape, preprocess = receive(sys.stdin.buffer)
        pixels = map_pixels(file, shape)
        while True:
            slot, start, images = receive(sys.stdin.buffer)
            target = pixels[slot, start : start + len(images)]
            send(answers, decode_into(target, images, preprocess))


if __name__ == "__main__":
    work()
