"""The feature store: rows on disk, one file a shard, each whole and able to prove it.

    features-2/<key>/plan.json      how the tower runs, fixed by the first who writes
    features-2/<key>/00000.shard    the first 512 rows

A key is the hash of everything that can change a row. A shard is written beside its place and renamed into it, so
that nobody sees half of one, and of two who write the same one either wins: no lock is needed, nor trusted. What is
read is checked once; a shard that is not what was written is named, dropped, and thereby missing again.

A shard's file, numbers in little-endian order:

    8 bytes     "clipfeat"
    4 + 4       lengths of the two parts that follow
    …           its header, JSON (see `Shard`): also whose rows these are, and the checksum of the rows
    …           16 bytes a row, the XXH3-128 of the image's bytes; nothing where rows are of texts
    16          XXH3-128 of all bytes so far
    …           float32 [rows, dim]

XXH3 is no proof against forgery, but of any two files that differ by accident it tells one from the other; it reads
as fast as memory gives.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipbench.cards.base import fingerprint
from clipbench.data.decode_stream import Bad
from clipbench.encoding.image_digests import DIGEST_BYTES
from clipbench.encoding.runtime import MAX_BATCH
from clipbench.errors import Damaged, StorageError
from clipbench.utils.cache import create_checked, locked, open_checked, say, write_atomic
from clipbench.utils.package import version_of

SHARD_ROWS: Final = MAX_BATCH
#: name of the folder of all feature files below the cache; its number is the version of the format
FOLDER: Final = "features-2"
_MAGIC: Final = b"clipfeat"
_PREFIX: Final = struct.Struct("<8sII")
_PLAN_KIND: Final = "clipbench plan of features 1"
_RUN_BYTES: Final = 16_384  # reading so many bytes more costs about as much as a read of its own

_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Shard:
    """What a shard's header says, once the file was found whole.

    Attributes:
        dim: columns.
        plan: how the tower ran.
        device: on which processor or GPU.
        bad: number of the row in the shard → the image that could not be decoded; such rows are NaN, no others.
        remarks: (id, kind) of images that were decoded, see `data.decode.REMARKS`.
        offset: of the rows in the file.
        digested: whether the digests of the images are there.
    """

    dim: int
    plan: str
    device: str
    bad: Mapping[int, Bad]
    remarks: tuple[tuple[str, str], ...]
    offset: int
    digested: bool
    stamp: _Stamp


class FeatureFile:
    """float32 [rows, D] on disk, in shards of `SHARD_ROWS`. A killed process loses at most the shard it was writing."""

    def __init__(self, key: dict[str, Any], rows: int, root: Path) -> None:
        self.rows = rows
        self.shards = -(-rows // SHARD_ROWS)
        self.folder = root / fingerprint(key)
        #: shards that this object found damaged, and dropped
        self.dropped: set[int] = set()
        self._checked: dict[int, Shard] = {}
        self._plan: str | None = None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Have other processes wait, who would otherwise do the same work; where there are no locks, nobody waits."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(StorageError):
                held.enter_context(locked(self.folder / "lock"))
            yield

    def missing(self) -> list[int]:
        """Shards that are not there; those that are damaged are named on stderr and dropped."""
        return [shard for shard in range(self.shards) if self.shard(shard) is None]

    def complete(self) -> bool:
        """Whether all rows are there."""
        return self.rows > 0 and not self.missing()

    def shard_rows(self, shard: int) -> NDArray[np.int64]:
        """Row numbers of a shard."""
        return np.arange(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, self.rows))

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard:05}.shard"

    def plan(self) -> str | None:
        """How the towers run whose rows these are; None where nobody has begun yet."""
        if self._plan is None and self.folder.is_dir():
            self._plan = self._planned()
            if self._plan is None:
                shards = (self._looked(number) for number in range(self.shards))
                self._plan = next((shard.plan for shard in shards if shard is not None), None)
                if self._plan is not None:
                    with contextlib.suppress(StorageError):  # a cache that is only read
                        self._fix(self._plan)
        return self._plan

    def begin(self, plan: str) -> str:
        """Fix `plan` for all who write here, unless one is fixed already: the plan that is to be used.

        Raises:
            StorageError: the folder cannot be written.
        """
        for _ in range(3):  # another process may drop a damaged one at the same time
            fixed = self.plan()
            if fixed is not None:
                return fixed
            self._fix(plan)
        raise StorageError(f"{self._plan_path} cannot be read", hint="unlock or delete it")

    def write(
        self,
        shard: int,
        features: NDArray[np.float32],
        *,
        device: str,
        bad: Mapping[int, Bad] | None = None,
        remarks: Sequence[tuple[str, str]] = (),
        digests: NDArray[np.void] | None = None,
    ) -> None:
        """Write one shard [its rows, D] under the plan of `begin`; `bad`, `remarks`: see `Shard`; `digests`: of images.

        Raises:
            StorageError: the disk is full or the folder cannot be written; finished shards stay.
        """
        bad = bad or {}
        rows = np.ascontiguousarray(features, dtype="<f4")
        data = rows.reshape(-1).view(np.uint8).data
        if sorted(bad) != _not_finite(rows):
            raise ValueError(
                "rows that are not finite are those of images that could not be decoded, and no others"
            )
        first, *_, last = (place := self.shard_rows(shard))[[0, -1]].tolist()
        if len(rows) != len(place):
            raise ValueError(f"{len(rows)} rows, but the shard has {len(place)}")
        header = json.dumps(
            self._identity(shard)
            | {
                "first": first,
                "last": last,
                "dim": rows.shape[1],
                "dtype": "float32",
                "plan": self.plan(),
                "device": device,
                "host": platform.node(),
                "torch": version_of("torch"),
                "bad": [[row, b.id, b.reason] for row, b in sorted(bad.items())],
                "remarks": [list(remark) for remark in remarks],
                "rows_xxh3_128": xxhash.xxh3_128_hexdigest(data),
            }
        ).encode()
        seen = b"" if digests is None else digests.tobytes()
        head = _PREFIX.pack(_MAGIC, len(header), len(seen)) + header + seen
        try:
            write_atomic(self.path(shard), head, xxhash.xxh3_128_digest(head), data)
        except StorageError as error:
            raise StorageError(
                f"{error.message} (all features of this split need {self.rows * rows.shape[1] * 4 / 2**20:.1f} MiB)",
                hint="free some space or set CLIPBENCH_CACHE to another folder, then run the same command: "
                "finished shards are kept",
            ) from None

    def read(self) -> Matrix:
        """All rows.

        Raises:
            StorageError: some are not there (any more).
        """
        return Matrix(self)

    def bad(self) -> dict[str, str]:
        """id → reason of the images that could not be decoded."""
        return {b.id: b.reason for shard in self._all() for b in shard.bad.values()}

    def remarks(self) -> list[tuple[str, str]]:
        """(id, kind) of images of which something must be said (see `data.decode.REMARKS`)."""
        return [remark for shard in self._all() for remark in shard.remarks]

    def devices(self) -> list[str]:
        """The processors or GPUs that these rows come from."""
        return sorted({shard.device for shard in self._all()})

    def digests(self) -> NDArray[np.void] | None:
        """The digest of every image's bytes (see `image_digests`), [rows]; None where rows are of texts."""
        found = np.empty(self.rows, dtype=f"V{DIGEST_BYTES}")
        for number in range(self.shards):
            with self.opened(number) as (shard, file):
                if not shard.digested:
                    return None
                size = len(self.shard_rows(number)) * DIGEST_BYTES
                file.seek(shard.offset - DIGEST_BYTES - size)
                part = np.frombuffer(file.read(size), dtype=found.dtype)
                found[self.shard_rows(number)] = part
        return found

    def shard(self, shard: int) -> Shard | None:
        """A shard, checked once and again whenever its file is another; None where it is missing or was damaged."""
        found = self._looked(shard)
        if found is not None and found.plan != self.plan():
            self._drop(shard, found.stamp, f"its plan is {found.plan}, that of the others {self.plan()}")
            return None
        return found

    @contextlib.contextmanager
    def opened(self, shard: int) -> Iterator[tuple[Shard, FileIO]]:
        """A whole shard and its open file.

        Raises:
            StorageError: it is missing or was damaged.
        """
        for _ in range(3):  # another process may put its own in this one's place meanwhile
            try:
                file = self.path(shard).open("rb", buffering=0)
            except FileNotFoundError:
                break
            with file:
                known = self._checked.get(shard)
                if known is not None and known.stamp == _stamp(os.fstat(file.fileno())):
                    yield known, file
                    return
            if self.shard(shard) is None:
                break
        raise StorageError(
            f"{self.path(shard)} is gone or damaged, though it was there before",
            hint="run the same command again",
        )

    # ------------------------------------------------------------------ parts

    def _looked(self, shard: int) -> Shard | None:
        """As `shard`, whatever its plan."""
        path, stamp = self.path(shard), None
        try:
            stamp = _stamp(path.stat())
            known = self._checked.get(shard)
            if known is None or known.stamp != stamp:
                with path.open("rb", buffering=0) as file:
                    stamp = _stamp(os.fstat(file.fileno()))
                    known = self._check(shard, file, stamp)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise StorageError(
                f"{path} cannot be read: {error.strerror}",
                hint="unlock it, or set CLIPBENCH_CACHE to another folder",
            ) from None
        except OSError as error:
            self._drop(shard, stamp, f"{error.strerror}")
            return None
        except _NotWhole as damage:
            self._drop(shard, stamp, str(damage))
            return None
        self._checked[shard] = known
        return known

    def _all(self) -> Iterator[Shard]:
        return (found for number in range(self.shards) if (found := self.shard(number)) is not None)

    def _identity(self, shard: int) -> dict[str, Any]:
        """Whose rows these are."""
        return {"key": self.folder.name, "shard": shard, "of": self.shards, "rows": self.rows}

    def _check(self, shard: int, file: FileIO, stamp: _Stamp) -> Shard:
        """Read a shard and compare it with what it says of itself. Raises _NotWhole."""
        data = memoryview(file.read())
        if len(data) < _PREFIX.size:
            raise _NotWhole("it is cut off")
        magic, length, seen = _PREFIX.unpack_from(data)
        end = _PREFIX.size + length + seen
        if magic != _MAGIC or len(data) < end + DIGEST_BYTES:
            raise _NotWhole("it is cut off, or no shard of features")
        if xxhash.xxh3_128_digest(data[:end]) != data[end : end + DIGEST_BYTES]:
            raise _NotWhole("its header is not what its checksum says")
        header = json.loads(bytes(data[_PREFIX.size : _PREFIX.size + length]))
        wrong = [name for name, value in self._identity(shard).items() if header[name] != value]
        if wrong:
            told = ", ".join(f"{name} {header[name]}" for name in wrong)
            raise _NotWhole(f"it is another one ({told})")
        count, offset = len(self.shard_rows(shard)), end + DIGEST_BYTES
        rows = data[offset:]
        if len(rows) != count * header["dim"] * 4 or seen not in (0, count * DIGEST_BYTES):
            raise _NotWhole(f"it has {len(data):,} bytes, which are not those of {count} rows")
        if xxhash.xxh3_128_hexdigest(rows) != header["rows_xxh3_128"]:
            raise _NotWhole("its rows are not what their checksum says")
        bad = {row: Bad(name, reason) for row, name, reason in header["bad"]}
        if _not_finite(np.frombuffer(rows, dtype="<f4").reshape(count, -1)) != sorted(bad):
            raise _NotWhole("it has rows that are not finite, though their images could be decoded")
        remarks = tuple((name, kind) for name, kind in header["remarks"])
        return Shard(header["dim"], header["plan"], header["device"], bad, remarks, offset, seen > 0, stamp)

    def _drop(self, shard: int, stamp: _Stamp | None, why: str) -> None:
        path = self.path(shard)
        say(f"{path} is damaged: {why}; it is dropped, and its rows are encoded again")
        self.dropped.add(shard)
        self._checked.pop(shard, None)
        with contextlib.suppress(OSError):  # where it cannot be dropped, nor can it be written: said then
            if stamp is None or _stamp(path.stat()) == stamp:  # else somebody has mended it
                path.unlink()

    @property
    def _plan_path(self) -> Path:
        return self.folder / "plan.json"

    def _fix(self, plan: str) -> None:
        about = {"plan": plan, "host": platform.node()}
        create_checked(self._plan_path, json.dumps(about).encode(), _PLAN_KIND)

    def _planned(self) -> str | None:
        try:
            return str(json.loads(open_checked(self._plan_path, _PLAN_KIND))["plan"])
        except FileNotFoundError:
            return None
        except Damaged as damage:
            say(f"{damage.message}; it is dropped, and the plan is that of the shards")
            with contextlib.suppress(OSError):
                self._plan_path.unlink()
            return None


class Matrix:
    """The rows of a feature file: float32 [n, D]. What is asked for is copied out; nothing stays in memory.

    Attributes:
        shape: (rows, columns).
        dtype: float32.
    """

    ndim: Final = 2
    dtype: Final = np.dtype(np.float32)

    def __init__(self, file: FeatureFile) -> None:
        if file.missing():
            raise StorageError(f"features are missing in {file.folder}", hint="run the same command again")
        with file.opened(0) as (shard, _):
            self.shape = (file.rows, shard.dim)
        self._file = file

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows in memory."""
        if copy is False:
            raise ValueError("rows on disk are copied into memory")
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(
        self, place: int | slice | Sequence[int] | NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """A copy of the row or rows at `place`: a number, a slice, or numbers in any order.

        Raises:
            StorageError: they are gone, or were damaged since they were checked.
        """
        if isinstance(place, int | np.integer):
            row: NDArray[np.float32] = self[[int(place)]][0]
            return row
        numbers = np.arange(len(self))[place]
        if (np.diff(numbers) >= 0).all():
            return self._gathered(numbers)
        order = np.argsort(numbers, kind="stable")
        found = np.empty((len(numbers), self.shape[1]), np.float32)
        found[order] = self._gathered(numbers[order])
        return found

    def finite(self) -> NDArray[np.bool_]:
        """Which rows are features [n]; those of images that could not be decoded are NaN."""
        found = np.ones(len(self), dtype=np.bool_)
        for number in range(self._file.shards):
            shard = self._file.shard(number)
            if shard is not None:
                found[number * SHARD_ROWS + np.array(list(shard.bad), dtype=np.int64)] = False
        return found

    def _gathered(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows at ascending `numbers`: a stretch of them at once, or all between where that is less work."""
        found = np.empty((len(numbers), self.shape[1]), np.float32)
        cuts = np.flatnonzero(np.diff(numbers // SHARD_ROWS)) + 1
        for own, target in zip(np.split(numbers, cuts), np.split(found, cuts), strict=True):
            if not len(own):
                continue
            runs = np.flatnonzero(np.diff(own) != 1) + 1
            between = np.arange(own[0], own[-1] + 1)
            with self._file.opened(int(own[0]) // SHARD_ROWS) as (shard, file):
                if len(runs) and len(between) * self.shape[1] * 4 <= len(runs) * _RUN_BYTES:
                    rows = np.empty((len(between), self.shape[1]), np.float32)
                    _read_into(file, shard, between, rows)
                    target[:] = rows[own - own[0]]
                    continue
                for stretch, part in zip(np.split(own, runs), np.split(target, runs), strict=True):
                    _read_into(file, shard, stretch, part)
        return found


#: what protocols and solvers read: in memory, or on disk
Features = NDArray[np.float32] | Matrix


class _NotWhole(Exception):
    """Why a shard is not what was written."""


def _read_into(file: FileIO, shard: Shard, rows: NDArray[np.int64], target: NDArray[np.float32]) -> None:
    """Copy the shard's `rows`, which follow each other, into `target` (contiguous)."""
    view = target.reshape(-1).view(np.uint8).data
    file.seek(shard.offset + int(rows[0]) % SHARD_ROWS * shard.dim * 4)
    while view and (count := file.readinto(view)):
        view = view[count:]
    if view:
        raise StorageError("features were cut off while they were read", hint="run the same command again")


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _not_finite(rows: NDArray[np.float32]) -> list[int]:
    """Numbers of the rows that are not finite."""
    with np.errstate(all="ignore"):
        suspect = np.flatnonzero(~np.isfinite(rows.sum(axis=1)))  # a sum is quick, but may overflow
    return [row for row in suspect.tolist() if not np.isfinite(rows[row]).all()]
