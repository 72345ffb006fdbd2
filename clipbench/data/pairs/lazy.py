"""Splits for training that are never held whole: images, captions and names are read when they are asked for.

What is held is an index, memory-mapped from the cache: the places of every pair in the files. It is built once, in one
pass over them, which also counts and names the pairs that cannot be used. Each time that it is opened its checksum is
verified, which reads it whole: about a second for 40 million pairs.
"""

from __future__ import annotations

import copy
import io
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import fingerprint
from clipbench.cards.pairs import PairSource
from clipbench.data.caption_cleaning import clean_caption
from clipbench.data.digests import Digests
from clipbench.data.split import Sample, Split
from clipbench.errors import DataError
from clipbench.utils.cache import cache_root, is_whole, locked, read_checked, say, write_checked

#: names that are kept of pairs that were left out
NAMED = 20
_INDEX, _STORY = "index of pairs 1", "pairs left out 1"


def plain_caption(text: str, wanted: PairSource) -> str:
    """`text` as the source wants it, with single spaces; "" where nothing is left of it."""
    return clean_caption(text) if wanted.clean else " ".join(text.split())


@dataclass
class LeftOut:
    """Pairs of a source that have no caption, or no image: how many, and the names of the first ones."""

    why: str
    count: int = 0
    names: tuple[str, ...] = ()

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < NAMED:
            self.names += (name,)

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.names) else ""
        return f"{self.count:,} {self.why}: {', '.join(self.names)}{more}"


class LazySplit(Split):
    """A split for training whose pairs are read one by one, in any order, from any thread.

    Its fingerprint is for telling whether a stopped run would go on with the same data. It covers the pairs and their
    captions, and of the images, which may be too many to be read at each start, only what their names and sizes say.
    Whatever keeps something that was computed from the images goes by the fingerprint of `hashed`.

    Attributes:
        left_out: pairs that the files hold and the split does not, by what is wrong with them.
    """

    scattered = True
    classes = ()
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, name: str, count: int) -> None:
        self.dataset, self.role = name, "train"
        self.ids = _Names(count, self.name)
        self.labels = np.broadcast_to(np.int64(0), count)

    @abstractmethod
    def name(self, row: int) -> str:
        """A stable name of the pair."""

    @abstractmethod
    def image(self, row: int) -> bytes:
        """The encoded image; b"" where there is none."""

    @abstractmethod
    def texts(self, row: int) -> list[str]:
        """The captions, of which each is fit to be drawn."""

    @abstractmethod
    def content(self) -> Digests:
        """The sha256 of every file that holds images. Unchanged ones are not read again."""

    def hashed(self) -> LazySplit:
        """This split, with a fingerprint that covers the bytes of every image.

        Raises:
            DataError: a file cannot be read.
            StorageError: the cache cannot hold the digests.
        """
        found = self.content()
        made = copy.copy(self)
        made.fingerprint = fingerprint([self.fingerprint, found.files])
        for note in found.notes:
            say(f"{self.dataset}: {note}")
        return made

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        for row in rows.tolist():
            yield Sample(self.name(row), self.image(row))


class _Names(Sequence[str]):
    """Names that are made when they are asked for."""

    def __init__(self, count: int, name: Callable[[int], str]) -> None:
        self._count, self._name = count, name

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self._name(i) for i in range(self._count)[row]]
        return self._name(range(self._count)[row])


#: rows of an index, block by block, and at the end what was left out
Built = tuple[Iterator[list[tuple[int, ...]]], Sequence[LeftOut]]


def kept_index(
    key: Any, build: Callable[[], Built], what: str
) -> tuple[NDArray[np.int64], tuple[LeftOut, ...]]:
    """The index that `build` makes, from the cache where it has been made before; `key` is all that decides it.

    Returns:
        Where the pairs of a source are, int64 [n, width], memory-mapped; and what was left out.

    Raises:
        DataError: it is empty. `what` names the source, for messages.
        StorageError: the cache cannot hold it.
    """
    base = cache_root() / "pairs" / fingerprint(key)
    file, story = base.with_suffix(".npy"), base.with_suffix(".json")
    with locked(base.with_suffix(".lock")):
        held = read_checked(story, _STORY)  # written last
        if held is None or not is_whole(file, _INDEX):
            blocks, left_out = build()
            arrays = [np.array(block, dtype=np.int64) for block in blocks if block]
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(arrays) if arrays else np.zeros((0, 1), np.int64))
            write_checked(file, buffer.getvalue(), _INDEX)
            held = json.dumps([asdict(part) for part in left_out]).encode()
            write_checked(story, held, _STORY)
    places = np.load(file, mmap_mode="r")
    parts = [LeftOut(p["why"], p["count"], tuple(p["names"])) for p in json.loads(held)]
    found = tuple(part for part in parts if part.count)
    if not len(places):
        raise DataError(
            f"{what} holds no pair of an image and a caption" + "".join(f"; {part}" for part in found),
            hint="give the whole file, or correct the source in the recipe",
        )
    return places, found


def mapped(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, memory-mapped.

    Raises:
        DataError: it is empty or cannot be read.
    """
    try:
        if not path.stat().st_size:
            raise DataError(f"{path} is empty", hint="fetch the file again")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
