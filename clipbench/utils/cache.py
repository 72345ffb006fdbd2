"""The cache folder, files there that carry a checksum, and the ledger of what was first seen.

A file that a score or a resumed run depends on ends in the sha256 of what comes before it (`write_checked`), so that a
file which the disk, or anybody, has changed is never taken for what was written.

The ledger holds hashes and commits that no card states: recorded at first use, checked ever after, so that
a checkpoint or a data set that changes under its name is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from clipbench.errors import ClipbenchError, Damaged, StorageError
from clipbench.utils.parsing import expanded

_MARK = b"\nclipbench-sha256:"
_SEAL_BYTES = len(_MARK) + 65  # with 64 hex digits and the end of the line
_BLOCK = 2**20
_ABANDONED_S = 3600


def cache_root() -> Path:
    """$CLIPBENCH_CACHE, or `clipbench` in the user's cache folder."""
    given = os.environ.get("CLIPBENCH_CACHE")
    if given:
        return expanded(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipbench"
    except RuntimeError:  # a user without a name, as containers have them
        raise StorageError(
            "there is no home folder to keep the cache in",
            hint="name a folder with CLIPBENCH_CACHE, or set HOME",
        ) from None


def make_folder(path: Path) -> Path:
    """`path`, created where it is missing.

    Raises:
        StorageError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        problem = None if os.access(path, os.W_OK) else f"the folder {path} cannot be written"
    except OSError as error:
        problem = f"cannot create the folder {path}: {error.strerror}"
    if problem:
        hint = "choose another with CLIPBENCH_CACHE (cache) or --results (records)"
        raise StorageError(problem, hint=hint)
    return path


def write_atomic(path: Path, *data: bytes | memoryview) -> None:
    """Write `data`, one piece behind the other, to `path` so that a reader sees the old file or the new one, whole.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as part, part.open("wb") as file:
        file.writelines(data)


@contextlib.contextmanager
def replacing(
    path: Path,
    what: str = "",
    *,
    hint: str = "free some space or choose another folder",
    create: bool = False,
) -> Iterator[Path]:
    """A file of this process beside `path`, for the caller to write; it then takes that place, whole, on the disk.

    Args:
        what, hint: for the error: what is written there, and what to do.
        create: unless there is such a file: of several who write at once, one wins and no other's is seen.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    part = part_of(path)
    try:
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        if not create:
            part.replace(path)
            return
        with contextlib.suppress(FileExistsError):
            try:
                os.link(part, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                with path.open("xb") as file:
                    file.write(part.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot write {path}{what}: {error.strerror}", hint=hint) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where this process writes what becomes `path`; parts that killed processes left in the folder (created) go.

    Raises:
        StorageError: the folder cannot be written.
    """
    make_folder(path.parent)
    with contextlib.suppress(OSError):  # what another process clears away at the same time
        for entry in os.scandir(path.parent):
            if entry.name.endswith(".part") and entry.name.startswith(".") and _abandoned(Path(entry)):
                Path(entry).unlink(missing_ok=True)
    return path.with_name(f".{path.name}{_of_this_process()}")


def folder_for_now(root: Path, kind: str) -> Path:
    """A new folder of this process below `root` (created), `<kind>-….part`; those that killed processes left go.

    Raises:
        StorageError: `root` cannot be written.
    """
    make_folder(root)
    for old in root.glob(f"{kind}-*"):
        with contextlib.suppress(OSError):  # what another process clears away at the same time
            if not old.is_symlink() and old.is_dir() and _abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
    try:
        return Path(tempfile.mkdtemp(prefix=f"{kind}-", suffix=_of_this_process(), dir=root))
    except OSError as error:
        raise StorageError(
            f"cannot create a folder in {root}: {error.strerror}",
            hint="free some space or set CLIPBENCH_CACHE to another folder",
        ) from None


def _of_this_process() -> str:
    """How names of files end that this process is writing."""
    return f".{_processes_known_here()}.{os.getpid()}.part"


def _abandoned(part: Path) -> bool:
    """Whether the process that wrote this has ended.

    Of one that cannot be seen from here: whether nothing came for an hour, or into a folder for a day.
    """
    *_, where, process, _ = f"..{part.name}".split(".")
    if where == _processes_known_here() and process.isdigit():
        try:
            os.kill(int(process), 0)  # which sends nothing
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            pass
        return False
    if not part.is_dir():
        return time.time() - part.stat().st_mtime > _ABANDONED_S
    newest = max(path.stat().st_mtime for path in (part, *part.rglob("*")))
    return time.time() - newest > 24 * _ABANDONED_S


@cache
def _processes_known_here() -> str:
    """A name for this machine since it was started, and in it the container: where process numbers mean one thing."""
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


# ------------------------------------------------------------------ checksums


def write_checked(path: Path, data: bytes, kind: str) -> None:
    """Write `data` and behind it its checksum, as `write_atomic` does; `kind` is what the file is, and its version."""
    write_atomic(path, _checked(data, kind))


def create_checked(path: Path, data: bytes, kind: str) -> None:
    """As `write_checked`, unless there is such a file: of several who write at once, one wins."""
    with replacing(path, create=True) as part:
        part.write_bytes(_checked(data, kind))


def _checked(data: bytes, kind: str) -> bytes:
    digest = _begun(kind)
    digest.update(data)
    return data + _seal(digest)


def read_checked(path: Path, kind: str) -> bytes | None:
    """What `write_checked` wrote for the same `kind`; None where there is no such file, or it is damaged.

    That it is damaged is said on stderr: for what is then made anew.
    """
    with _made_anew():
        return open_checked(path, kind)
    return None


def is_whole(path: Path, kind: str) -> bool:
    """Whether `path` holds what `write_checked` wrote, first in the file: for what is memory-mapped, or made anew.

    That it is damaged is said on stderr. The file is read once, block by block: about a second for each GiB, or what
    the disk takes.
    """
    with _made_anew(), _opened(path) as file:
        left = max(os.fstat(file.fileno()).st_size - _SEAL_BYTES, 0)
        digest = _begun(kind)
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
        _compare(path, file.read(), digest)
        return True
    return False


@contextlib.contextmanager
def _made_anew() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass
    except Damaged as damage:
        say(f"{damage.message}; it is made anew")


def open_checked(path: Path, kind: str) -> bytes:
    """What `write_checked` wrote for the same `kind`: for what cannot be made anew.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it was changed or cut off, is of another kind, or cannot be read.
    """
    with _opened(path) as file:
        content = file.read()
    digest, data = _begun(kind), content[:-_SEAL_BYTES]
    digest.update(data)
    _compare(path, content[-_SEAL_BYTES:], digest)
    return data


def has_checksum(content: bytes) -> bool:
    """Whether a file's content ends like those that `write_checked` writes, be it right or wrong."""
    return content[-_SEAL_BYTES:].startswith(_MARK)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def _begun(kind: str) -> hashlib._Hash:
    return hashlib.sha256(f"{kind}\n".encode())


def _seal(digest: hashlib._Hash) -> bytes:
    return _MARK + digest.hexdigest().encode() + b"\n"


def _compare(path: Path, seal: bytes, digest: hashlib._Hash) -> None:
    if seal == _seal(digest):
        return
    if has_checksum(seal):
        raise Damaged(f"{path} is damaged: its content is not what its checksum says")
    raise Damaged(f"{path} is damaged, cut off or of an earlier version: it does not end in a checksum")


_overhearing: list[list[str]] = []


def say(text: str) -> None:
    """One line on stderr."""
    print(f"clipbench: {text}", file=sys.stderr, flush=True)
    for heard in _overhearing:
        heard.append(text)


@contextlib.contextmanager
def overheard() -> Iterator[list[str]]:
    """What is said meanwhile, for whoever must say it again."""
    heard: list[str] = []
    _overhearing.append(heard)
    try:
        yield heard
    finally:
        _overhearing.pop()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (created); other processes wait, a killed one lets go."""
    from filelock import FileLock

    make_folder(path.parent)
    try:
        lock = FileLock(path)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageError(
            f"cannot lock {path}: {reason}",
            hint="choose another folder with CLIPBENCH_CACHE (cache) or --results (records)",
        ) from None
    try:
        yield
    finally:
        lock.release()


# --------------------------------------------------------------------- ledger


def recall(kind: str, name: str) -> str | None:
    """What the ledger holds for `name` under `kind`, or None.

    Raises:
        Damaged: the ledger is not what was written.
    """
    return _ledger().get(kind, {}).get(name)


def remember(kind: str, name: str, value: str, *, what: str) -> None:
    """Record `value` for `name` at first use; afterwards it must stay the same.

    Raises:
        ClipbenchError: the ledger holds another value.
        Damaged: the ledger is not what was written.
    """
    path = _ledger_path()
    with locked(path.with_suffix(".lock")):
        ledger = _ledger()
        known = ledger.setdefault(kind, {}).setdefault(name, value)
        if known != value:
            raise ClipbenchError(
                f"{what} of {name} has changed: {known} at first use, {value} now",
                hint=f"if that is meant, delete the entry {kind} / {name} from {path}",
            )
        sealed = {
            kind: {name: {"value": value, "check": _check(kind, name, value)} for name, value in own.items()}
            for kind, own in ledger.items()
        }
        write_atomic(path, (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode())


def _ledger_path() -> Path:
    return cache_root() / "ledger.json"


def _check(kind: str, name: str, value: str) -> str:
    """A checksum of one entry: entries are deleted by hand, so that one of the whole file would not do."""
    return hashlib.sha256("\0".join((kind, name, value)).encode()).hexdigest()[:16]


def _ledger() -> dict[str, dict[str, str]]:
    """kind → name → value, each entry verified."""
    path = _ledger_path()
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Damaged(
            f"{path}, the ledger of what was first seen, cannot be read: {error}",
            hint="mend it by hand; or delete it: what is there now is then taken for the first",
        ) from None
    if not isinstance(held, dict) or not all(isinstance(own, dict) for own in held.values()):
        raise _damaged(path, "it is not kinds of entries by name")
    entries = [(kind, name, entry) for kind, own in held.items() for name, entry in own.items()]
    ledger: dict[str, dict[str, str]] = {kind: {} for kind in held}
    unsealed = 0
    for kind, name, entry in entries:
        if isinstance(entry, str):  # of a version before checksums
            unsealed, value = unsealed + 1, entry
        else:
            value = str(entry.get("value")) if isinstance(entry, dict) else ""
            if entry != {"value": value, "check": _check(kind, name, value)}:
                raise _damaged(path, f"the entry {kind} / {name} is not what was written")
        ledger[kind][name] = value
    if unsealed:
        say(f"{path}: {unsealed} entries of an earlier version have no checksum; they are taken as they are")
    return ledger


def _damaged(path: Path, what: str) -> Damaged:
    return Damaged(
        f"{path}, the ledger of what was first seen, is damaged: {what}",
        hint="delete the entry, or the file: what is there now is then taken for the first",
    )
