"""sha256 of files, remembered in the cache folder so that unchanged files are not read again.

A file counts as unchanged while its device, inode, size, time of change (mtime) and time of the inode's change (ctime,
which no user can set) are what they were when it was read. So a file that is replaced, or written and given its old
time back, is read again. Taken on trust is that the file system keeps these truly, and that its clock is not set back:
bits that rot on the disk, a write to the raw device, and a file system without a ctime of its own are not noticed.
Whoever doubts it reads every file again (`again`; `--verify-data` on the command line).
A file that changed within two seconds before it was read is not remembered: it could change once more within one tick
of the file system's clock (git calls such files racily clean).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clipbench.data.split import Note, notes_of
from clipbench.errors import DataError, StorageError
from clipbench.utils.cache import cache_root, make_folder, say
from clipbench.utils.stages import stage

#: ns before reading in which a change may be followed by another that leaves the same times
RACY_NS = 2_000_000_000
_THREADS = 8
_ATTEMPTS = 3  # to read a file while another program writes it
#: SQLite's codes for a file that is damaged, or none of its own
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Digests:
    """What files hold.

    Attributes:
        files: path relative to the root, and sha256 (hex), in the order that was asked for.
        wrong: those, as relative paths, whose remembered digest was another than that of their bytes. It is corrected.
    """

    files: list[tuple[str, str]]
    wrong: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[Note, ...]:
        """The note on `wrong`, if there are any."""
        text = "files hold other bytes than were remembered of them, although their times say otherwise; corrected"
        return notes_of("wrong-digests", text, self.wrong)


def sha256_file(path: Path) -> str:
    """sha256 (hex) of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@stage("hash")
def digests(root: Path, files: Iterable[Path], *, again: bool = False) -> Digests:
    """The sha256 of every one of `files`, which lie below `root`. Unchanged ones are not read, except with `again`.

    Raises:
        DataError: a file cannot be read, or changes while it is read.
        StorageError: the cache folder cannot hold the digests.
    """
    asked = list(files)
    database = make_folder(cache_root()) / "files.sqlite"
    with ThreadPoolExecutor(_THREADS) as threads:
        states = list(threads.map(_state, asked))
        keys = [os.fsencode(path.absolute()) for path in asked]
        known = _in(database, lambda connection: _remembered(connection, list(dict.fromkeys(keys))))
        fresh = {
            key: path
            for key, path, state in zip(keys, asked, states, strict=True)
            if again or known.get(key, ("",))[0] != state
        }
        read = dict(zip(fresh, threads.map(_read, fresh.values()), strict=True))
    kept = [(k, state, digest, _seal(k, state, digest)) for k, (state, digest, old) in read.items() if old]
    lost = [(key,) for key, (_, _, old) in read.items() if not old and key in known]
    if kept or lost:
        _in(database, lambda connection: _remember(connection, kept, lost))
    every = {key: digest for key, (_, digest) in known.items()} | {k: d for k, (_, d, _) in read.items()}
    names = [path.relative_to(root).as_posix() for path in asked]
    wrong = [
        name
        for name, key in zip(names, keys, strict=True)
        if key in read and key in known and known[key][0] == read[key][0] and known[key][1] != read[key][1]
    ]
    return Digests([(name, every[key]) for name, key in zip(names, keys, strict=True)], tuple(wrong))


def _state(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _read(path: Path) -> tuple[str, str, bool]:
    """State and sha256 of a file, and whether its last change is old enough for both to be remembered."""
    for _ in range(_ATTEMPTS):
        now = time.time_ns()
        state = _state(path)
        try:
            digest = sha256_file(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        if _state(path) == state:
            return state, digest, now - max(map(int, state.split(":")[3:])) >= RACY_NS
    raise DataError(f"{path} changes while it is read", hint="wait until it is written, then run this again")


# ---------------------------------------------------------------- the database


def _in(database: Path, work: Callable[[sqlite3.Connection], _Made]) -> _Made:
    """What `work` makes of the database; one that is damaged is started anew, since all in it can be found again."""
    for first in (True, False):
        try:
            with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
                connection.text_factory = lambda text: text.decode(errors="replace")
                connection.execute(
                    "create table if not exists digests (path blob primary key, state text, sha256 text, seal text)"
                )
                return work(connection)
        except sqlite3.Error as error:
            if first and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                say(f"{database} is damaged ({error}); it is started anew, and files are read again")
                for end in ("-journal", "-wal", "-shm", ""):
                    database.with_name(database.name + end).unlink(missing_ok=True)
                continue
            raise StorageError(
                f"the digests of files cannot be kept in {database}: {error}",
                hint="free some space, delete that file if it is damaged, or set CLIPBENCH_CACHE to another folder: "
                "one on a disk of this machine, where a network file system cannot lock files",
            ) from None
    raise AssertionError  # the second round returns or raises


def _remembered(connection: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, tuple[str, str]]:
    """State and sha256 of those of `keys` that are there; a row whose seal does not fit is none."""
    connection.execute("create temporary table asked (path blob primary key)")
    connection.executemany("insert into asked values (?)", ((key,) for key in keys))
    rows = connection.execute("select path, state, sha256, seal from digests natural join asked")
    return {key: (state, digest) for key, state, digest, seal in rows if seal == _seal(key, state, digest)}


def _remember(
    connection: sqlite3.Connection, rows: list[tuple[bytes, str, str, str]], lost: list[tuple[bytes]]
) -> None:
    connection.execute("drop table if exists files")  # of earlier versions, which went by size and time alone
    connection.executemany("insert or replace into digests values (?, ?, ?, ?)", rows)
    connection.executemany("delete from digests where path = ?", lost)


def _seal(path: bytes, state: str, digest: str) -> str:
    """What tells a row as it was written from one in which a bit has turned."""
    return hashlib.sha256(b"|".join((path, f"{state}|{digest}".encode()))).hexdigest()[:16]
