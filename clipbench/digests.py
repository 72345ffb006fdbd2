"""sha256 of files, remembered in the cache folder so that unchanged files are not read again."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipbench.cache import cache_root, make_folder
from clipbench.errors import StorageError


def sha256_file(path: Path) -> str:
    """sha256 (hex) of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(root: Path, files: Iterable[Path]) -> list[tuple[str, str]]:
    """(relative path, sha256) of every file. Unchanged files (size and time) are not read again.

    Raises:
        StorageError: the cache folder cannot hold the digests.
    """
    database = make_folder(cache_root()) / "files.sqlite"
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            return _known_or_new(connection, root, files)
    except sqlite3.Error as error:
        raise StorageError(
            f"the digests of {root} cannot be kept in {database}: {error}",
            hint="free some space, delete that file if it is damaged, or set CLIPBENCH_CACHE to another folder",
        ) from None


def _known_or_new(connection: sqlite3.Connection, root: Path, files: Iterable[Path]) -> list[tuple[str, str]]:
    connection.execute("create table if not exists files (path text primary key, stat text, sha256 text)")
    known = {}
    for path, stat, digest in connection.execute(
        "select path, stat, sha256 from files where path >= ? and path < ?",
        (f"{root.resolve()}/", f"{root.resolve()}0"),
    ):
        known[path] = (stat, digest)
    stats = [(f, str(f.resolve()), f"{f.stat().st_size}:{f.stat().st_mtime_ns}") for f in files]
    fresh = [(f, p, s) for f, p, s in stats if known.get(p, ("",))[0] != s]
    with ThreadPoolExecutor(8) as threads:
        new = list(threads.map(lambda item: (item[1], item[2], sha256_file(item[0])), fresh))
    connection.executemany("insert or replace into files values (?, ?, ?)", new)
    every = {p: d for p, (_, d) in known.items()} | {p: d for p, _, d in new}
    return [(f.relative_to(root).as_posix(), every[p]) for f, p, _ in stats]
