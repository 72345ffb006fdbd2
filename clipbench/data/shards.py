"""Pairs in tar files of img2dataset's layout: files of one name belong together, `000.jpg`, `000.txt`, `000.json`.

Local shards are read at scattered places, by an index of where each file starts; shards behind addresses as a stream.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import re
import tarfile
import time
import urllib.error
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from clipbench.cards import ShardPairs, fingerprint
from clipbench.data import Sample
from clipbench.data.decode import IMAGE_SUFFIXES
from clipbench.data.hub import natural
from clipbench.data.lazy import Built, LazySplit, LeftOut, kept_index, mapped, plain_caption
from clipbench.data.rows import listing
from clipbench.data.text import lines
from clipbench.digests import Digests, digests
from clipbench.errors import DataError
from clipbench.parsing import json_value
from clipbench.web import Refused, open_address

#: a range of numbers in a name; leading zeros stay
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ATTEMPTS = 4
_TIMEOUT_S = 60
_File = TypeVar("_File")
_BROKEN = (tarfile.TarError, http.client.HTTPException, OSError, EOFError)


def expand(pattern: str) -> list[str]:
    """`pattern` with every number of its ranges.

    >>> expand("cc3m-{0098..0101}.tar")
    ['cc3m-0098.tar', 'cc3m-0099.tar', 'cc3m-0100.tar', 'cc3m-0101.tar']
    """
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [p for n in numbers for p in expand(pattern[: found.start()] + n + pattern[found.end() :])]


def captions(data: bytes, suffix: str, wanted: ShardPairs) -> list[str]:
    """The captions in the bytes of a `.txt` or `.json` file, as the source wants them; none that is empty."""
    if suffix == ".json":
        with contextlib.suppress(ValueError):
            found = json_value(data)
            found = found.get("caption") if isinstance(found, dict) else None
            return [plain] if isinstance(found, str) and (plain := plain_caption(found, wanted)) else []
        return []
    found = lines(data.decode("utf-8", errors="replace"))
    return [plain for line in found if (plain := plain_caption(line, wanted))]


def _parts(name: str) -> tuple[str, str]:
    """What the files of a pair have in common, and the ending that tells them apart (from the first dot)."""
    path = PurePosixPath(name)
    stem, dot, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, f"{dot}{ending}".lower()


class LocalShards(LazySplit):
    """Pairs in tar files on this machine, each found by its place."""

    def __init__(self, wanted: ShardPairs, root: Path, *, verify: bool = False) -> None:
        """Find the shards of `wanted` below `root`, and the pairs in them.

        With `verify`, `content` hashes the shards whatever is remembered of them.

        Raises:
            DataError: no such shards, one that is missing or no whole tar file, or no pair in them.
        """
        self._wanted, self._root, self._verify = wanted, root, verify
        self._files = _local_files(wanted, root)
        stats = [(f.relative_to(root).as_posix(), f.stat()) for f in self._files]
        key = {
            "shards": [
                [name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats
            ],
            "root": str(root.resolve()),
            "clean": wanted.clean,
        }
        what = f"{wanted.name}: {', '.join(wanted.shards)} in {root}"
        index = kept_index(key, self._index, what)
        self.left_out, self._places = index.left_out, index.places
        self._bytes = [mapped(file) for file in self._files]
        # The names and sizes of all files in the tars stand for their content, which may be far too much to be read.
        self.fingerprint = fingerprint(
            {
                "shards": [[name, stat.st_size] for name, stat in stats],
                "clean": wanted.clean,
                "places": fingerprint(
                    np.asarray(index.places[:: max(1, len(index.places) // 4096)]).tolist()
                ),
            }
        )
        super().__init__(wanted.name, len(index.places))

    def name(self, row: int) -> str:
        shard, header, *_ = self._places[row].tolist()
        name = bytes(self._bytes[shard][header : header + 100]).partition(b"\0")[0]
        return f"{self._files[shard].stem}/{_parts(name.decode(errors='replace'))[0]}"

    def image(self, row: int) -> bytes:
        shard, _, place, size, *_ = self._places[row].tolist()
        return bytes(self._bytes[shard][place : place + size])

    def texts(self, row: int) -> list[str]:
        shard, *_, place, size, is_json = self._places[row].tolist()
        data = bytes(self._bytes[shard][place : place + size])
        return captions(data, ".json" if is_json else ".txt", self._wanted)

    def content(self) -> Digests:
        return digests(self._root, self._files, again=self._verify)

    def _index(self) -> Built:
        bare, empty = LeftOut("samples without an image"), LeftOut("samples without a caption")

        def blocks() -> Iterator[list[tuple[int, ...]]]:
            for shard, file in enumerate(self._files):
                yield list(self._pairs(shard, file, bare, empty))

        return blocks(), (bare, empty)

    def _pairs(self, shard: int, file: Path, bare: LeftOut, empty: LeftOut) -> Iterator[tuple[int, ...]]:
        """Shard, header, image's place and size, text's place and size, and whether that is JSON."""
        data = mapped(file)
        try:
            with tarfile.open(file, "r:") as tar:
                members = ((*_parts(m.name), m) for m in tar if m.isfile())
                for key, image, text, suffix in _samples(members):
                    name = f"{file.stem}/{key}"
                    for member in (image, text):
                        if member and member.offset_data + member.size > len(data):
                            raise tarfile.ReadError("unexpected end of data")
                    if image is None:
                        bare.add(name)
                        continue
                    place, size = (text.offset_data, text.size) if text else (0, 0)
                    if text is None or not captions(bytes(data[place : place + size]), suffix, self._wanted):
                        empty.add(name)
                        continue
                    # The block before the data is the header that has the name, or the end of it.
                    yield (
                        shard, image.offset_data - 512, image.offset_data, image.size, place, size,
                        int(suffix == ".json"),
                    )  # fmt: skip
        except _BROKEN as error:
            raise DataError(
                f"{file} is no whole tar file: {error}",
                hint="fetch it again; tar files are read uncompressed",
            ) from None


def _local_files(wanted: ShardPairs, root: Path) -> list[Path]:
    files: dict[Path, None] = {}
    for pattern in wanted.shards:
        for name in expand(pattern):
            found = sorted(root.glob(name), key=lambda path: natural(path.name))
            if not found:
                raise DataError(
                    f"{wanted.name}: no shard {name} in {root} (it holds {listing(root)})",
                    hint="correct `shards` of the source in the recipe, or the folder that --data gives",
                )
            files |= dict.fromkeys(found)
    return list(files)


def _samples(
    files: Iterable[tuple[str, str, _File]],
) -> Iterator[tuple[str, _File | None, _File | None, str]]:
    """Files (key, ending, file) by their key: each key with its image, its text, and the text's ending."""
    for key, group in itertools.groupby(files, key=lambda part: part[0]):
        ends = {ending: file for _, ending, file in group}
        image = next((ends[e] for e in ends if e in IMAGE_SUFFIXES), None)
        suffix = next((e for e in (".txt", ".json") if e in ends), "")
        yield key, image, ends.get(suffix) if suffix else None, suffix


class RemoteShards:
    """Pairs in tar files behind addresses: a stream, shard by shard, without rows to be asked for.

    Attributes:
        dataset, role, fingerprint: as those of a `Split`.
        left_out: samples that the shards hold and the stream does not, so far, by what is wrong with them.
    """

    role = "train"

    def __init__(self, wanted: ShardPairs) -> None:
        self.dataset = wanted.name
        self.wanted = wanted
        self.addresses = [address for pattern in wanted.shards for address in expand(pattern)]
        self.fingerprint = fingerprint({"addresses": self.addresses, "clean": wanted.clean})
        self.left_out = (LeftOut("samples without an image"), LeftOut("samples without a caption"))
        self._counted: set[int] = set()

    def __len__(self) -> int:
        """Pairs, as the source says."""
        assert self.wanted.rows is not None
        return self.wanted.rows

    def windows(self, order: Sequence[int], first: int = 0) -> Iterator[list[tuple[Sample, list[str]]]]:
        """The pairs of `window` shards at a time, from window number `first` on; `order` numbers the addresses.

        The next window is fetched while the caller works on this one. Samples without an image or a caption are not
        among them.

        Raises:
            DataError: a shard that cannot be fetched, or is no whole tar file.
        """
        size = self.wanted.window
        groups = [order[start : start + size] for start in range(0, len(order), size)][first:]
        with ThreadPoolExecutor(1, "window") as ahead, ThreadPoolExecutor(size, "shard") as shards:

            def fetch(group: Sequence[int]) -> list[tuple[Sample, list[str]]]:
                return [pair for pairs in shards.map(self._fetch, group) for pair in pairs]

            coming = ahead.submit(fetch, groups[0]) if groups else None
            for number in range(len(groups)):
                assert coming is not None
                window = coming.result()
                if number + 1 < len(groups):
                    coming = ahead.submit(fetch, groups[number + 1])
                yield window

    def _fetch(self, number: int) -> list[tuple[Sample, list[str]]]:
        """All pairs of one shard. A connection that breaks is tried again."""
        address = self.addresses[number]
        for attempt in range(_ATTEMPTS):
            try:
                with open_address(address, timeout=_TIMEOUT_S) as answer:
                    data = answer.read()  # at once: only so is a connection noticed that ends too early
                pairs, bare, empty = self._pairs(data, PurePosixPath(address).stem)
            except _BROKEN as error:
                gone = isinstance(error, Refused)
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                    gone = error.code in (401, 403, 404, 410)
                if gone or attempt == _ATTEMPTS - 1:
                    raise DataError(
                        f"{self.dataset}: the shard {address} cannot be read: {error}",
                        hint="correct `shards` of the source in the recipe; the same command goes on from the last "
                        "checkpoint",
                    ) from None
                time.sleep(2**attempt)
                continue
            if number not in self._counted:
                self._counted.add(number)
                for part, names in zip(self.left_out, (bare, empty), strict=True):
                    for name in names:
                        part.add(name)
            return pairs
        raise AssertionError

    def _pairs(self, data: bytes, shard: str) -> tuple[list[tuple[Sample, list[str]]], list[str], list[str]]:
        """The pairs of one shard, and the names of samples without an image and without a caption."""
        pairs: list[tuple[Sample, list[str]]] = []
        bare, empty = [], []
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            files = ((*_parts(m.name), tar.extractfile(m).read()) for m in tar if m.isfile())  # type: ignore[union-attr]
            for key, image, text, suffix in _samples(files):
                texts = [] if text is None else captions(text, suffix, self.wanted)
                if image is None:
                    bare.append(f"{shard}/{key}")
                elif not texts:
                    empty.append(f"{shard}/{key}")
                else:
                    pairs.append((Sample(f"{shard}/{key}", image), texts))
        return pairs, bare, empty
