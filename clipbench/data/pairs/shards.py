"""Pairs in tar files of img2dataset's layout: files of one name belong together, `000.jpg`, `000.txt`, `000.json`.

Local shards are read at scattered places, by an index of where each file starts; shards behind addresses as a stream.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import time
import urllib.error
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import fingerprint
from clipbench.cards.pairs import ShardPairs
from clipbench.data.decode_stream import ahead
from clipbench.data.digests import Digests, digests
from clipbench.data.pairs.lazy import NAMED, Built, LazySplit, LeftOut, kept_index, mapped, plain_caption
from clipbench.data.paths import listing, natural
from clipbench.data.split import Sample
from clipbench.data.tars import BROKEN, Member, compression, gather, members, split_name, whole
from clipbench.data.text import lines
from clipbench.errors import DataError
from clipbench.utils.parsing import json_value
from clipbench.utils.web import Refused, open_address

#: a range of numbers in a name; leading zeros stay
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ATTEMPTS = 4
_TIMEOUT_S = 60
#: how files with captions end; the first that is there counts
_TEXTS = (".txt", ".json")


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


def _left_out() -> tuple[LeftOut, ...]:
    """What the files of shards that make no pair lack, or have too much of; so far there are none."""
    return (
        LeftOut("samples without an image"),
        LeftOut("samples without a caption"),
        LeftOut("samples with two images, or with a file twice"),
        LeftOut("images beside a sample's own"),
    )


def _pairs(
    file: IO[bytes],
    data: NDArray[np.uint8] | bytes,
    where: Path | str,
    wanted: ShardPairs,
    left_out: Sequence[LeftOut],
) -> Iterator[tuple[str, Member, Member, str, list[str]]]:
    """Name, image, text, the text's ending, and the captions in it, of each pair in a shard, in order.

    Args:
        file, data: the shard, to be read from its start and by places.
        where: it is, for messages.
        left_out: is added to, one of each kind of `_left_out`.

    Raises:
        DataError, tars.BROKEN: as `tars.members`.
    """
    bare, empty, twice, beside = left_out
    shard = PurePosixPath(where).stem
    files = list(members(file, where))
    found = gather([member.name for member in files], _TEXTS)
    for group in sorted([*found.samples, *found.untold], key=lambda group: group.image or 0):
        assert group.image is not None
        name = f"{shard}/{group.key.removeprefix('./')}"
        ending = next((end for end in _TEXTS if end in group.texts), None)
        text = files[group.texts[ending]] if ending else None
        if ending and text:
            texts = captions(bytes(data[text.place : text.place + text.size]), ending, wanted)
            if texts:
                yield name, files[group.image], text, ending, texts
                continue
        empty.add(name)
    for group in found.bare:
        bare.add(f"{shard}/{group.key.removeprefix('./')}")
    for key in dict.fromkeys(split_name(files[i].name, _TEXTS)[0] for _, i in found.twice):
        twice.add(f"{shard}/{key}")
    for i in found.beside:
        beside.add(f"{shard}/{files[i].name}")


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
        states = [(name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
        key = {
            "shards": states,
            "root": str(root.resolve()),
            "clean": wanted.clean,
            "rules": 2,  # of which files make a pair
        }
        what = f"{wanted.name}: {', '.join(wanted.shards)} in {root}"
        self._places, self.left_out = kept_index(key, self._index, what)
        self._bytes = [mapped(file) for file in self._files]
        # The names and sizes of all files in the tars stand for their content, which may be far too much to be read.
        sizes = [(name, stat.st_size) for name, stat in stats]
        places = fingerprint(np.asarray(self._places[:: max(1, len(self._places) // 4096)]).tolist())
        self.fingerprint = fingerprint({"shards": sizes, "clean": wanted.clean, "places": places})
        super().__init__(wanted.name, len(self._places))

    def name(self, row: int) -> str:
        shard, header, *_ = self._places[row].tolist()
        name = bytes(self._bytes[shard][header : header + 100]).partition(b"\0")[0]
        key, _ = split_name(name.decode(errors="replace"), _TEXTS)
        return f"{self._files[shard].stem}/{key.removeprefix('./')}"

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
        left_out = _left_out()
        return (
            list(self._shard(number, file, left_out)) for number, file in enumerate(self._files)
        ), left_out

    def _shard(self, shard: int, path: Path, left_out: Sequence[LeftOut]) -> Iterator[tuple[int, ...]]:
        """Shard, header, image's place and size, text's place and size, and whether that is JSON."""
        data = mapped(path)
        if compression(bytes(data[:6])):
            raise DataError(f"{path} is compressed", hint="decompress it: pairs are read at scattered places")
        with whole(path), path.open("rb") as file:
            for _, image, text, ending, _ in _pairs(file, data, path, self._wanted, left_out):
                # The block before the data is the header that has the name, or the end of it.
                yield (
                    shard, image.place - 512, image.place, image.size, text.place, text.size, int(ending == ".json"),
                )  # fmt: skip


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
        self.left_out = _left_out()
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
        with ThreadPoolExecutor(size, "shard") as shards:
            yield from ahead(list(chain.from_iterable(shards.map(self._fetch, group))) for group in groups)

    def _fetch(self, number: int) -> list[tuple[Sample, list[str]]]:
        """All pairs of one shard. A connection that breaks is tried again."""
        address = self.addresses[number]
        for attempt in range(_ATTEMPTS):
            try:
                with open_address(address, timeout=_TIMEOUT_S) as answer:
                    data = answer.read()  # at once: only so is a connection noticed that ends too early
                found = _pairs(io.BytesIO(data), data, address, self.wanted, left_out := _left_out())
                pairs = [
                    (Sample(name, data[image.place : image.place + image.size]), texts)
                    for name, image, _, _, texts in found
                ]
            except (*BROKEN, http.client.HTTPException) as error:
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
                for part, more in zip(self.left_out, left_out, strict=True):
                    part.count += more.count
                    part.names = (part.names + more.names)[:NAMED]
            return pairs
        raise AssertionError
