"""The cache folder, and the ledger of what was first seen there.

The ledger holds hashes and commits that no card states: recorded at first use, checked ever after, so that
a checkpoint or a data set that changes under its name is noticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from clipbench.errors import ClipbenchError, StorageError


def cache_root() -> Path:
    """$CLIPBENCH_CACHE, or `clipbench` in the user's cache folder."""
    given = os.environ.get("CLIPBENCH_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipbench"


def make_folder(path: Path) -> Path:
    """`path`, created where it is missing.

    Raises:
        StorageError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {path}: {error.strerror}",
            hint="choose another with CLIPBENCH_CACHE (cache) or --results (records)",
        ) from None
    if not os.access(path, os.W_OK):
        raise StorageError(
            f"the folder {path} cannot be written",
            hint="choose another with CLIPBENCH_CACHE (cache) or --results (records)",
        )
    return path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, whole.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}", hint="free some space or choose another folder"
        ) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (created); other processes wait, a killed one lets go."""
    make_folder(path.parent)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recall(kind: str, name: str) -> str | None:
    """What the ledger holds for `name` under `kind`, or None."""
    return _ledger().get(kind, {}).get(name)


def remember(kind: str, name: str, value: str, *, what: str) -> None:
    """Record `value` for `name` at first use; afterwards it must stay the same.

    Raises:
        ClipbenchError: the ledger holds another value.
    """
    path = cache_root() / "ledger.json"
    with locked(path.with_suffix(".lock")):
        ledger = _ledger()
        known = ledger.setdefault(kind, {}).setdefault(name, value)
        if known != value:
            raise ClipbenchError(
                f"{what} of {name} has changed: {known} at first use, {value} now",
                hint=f"if that is meant, delete the entry {kind} / {name} from {path}",
            )
        write_atomic(path, (json.dumps(ledger, indent=1, sort_keys=True) + "\n").encode())


def _ledger() -> dict[str, dict[str, str]]:
    path = cache_root() / "ledger.json"
    try:
        ledger: dict[str, dict[str, str]] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}", hint="delete it to start a new ledger"
        ) from None
    return ledger
