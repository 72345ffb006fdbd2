"""Files that are written where a person says: what clipbench did not write there is not replaced unasked.

Pages, pictures and reports carry a mark near their beginning, by which a later run knows its own. What has no room for
one (other programs' formats) is replaced only where nothing changes, or with `--force`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from clipbench.errors import StorageError
from clipbench.utils.cache import write_atomic

#: in the text chunk of a PNG
PNG_MARK: Final = b"Software\0clipbench"
#: what Pillow and matplotlib are told, so that it stands there
PNG_SOFTWARE: Final = {"Software": "clipbench"}
_LOOKED_AT: Final = 65_536  # bytes in which a mark stands
_FORCE: Final = "name another file, move that one away, or add --force to replace it"


def write_own(path: Path, data: bytes, mark: bytes | None, *, force: bool = False) -> None:
    """Write `data` to `path`, whole or not at all, unless something that is not ours lies there.

    Args:
        mark: what stands in the first 64 KiB of `data`, as of every file of the kind; None: the kind has no mark.
        force: replace whatever lies there.

    Raises:
        StorageError: something else lies there, or the folder cannot be written.
    """
    refuse_foreign(path, mark, data, force=force)
    write_atomic(path, data)


def refuse_foreign(path: Path, mark: bytes | None, data: bytes = b"", *, force: bool = False) -> None:
    """Raise StorageError where `write_own` would."""
    if force and not path.is_dir():
        return
    if path.is_symlink():
        raise StorageError(f"{path} is a link, which is not replaced", hint=_FORCE)
    if not path.exists():
        return
    if not path.is_file():
        raise StorageError(f"{path} is no file", hint="name another place")
    if not is_ours(path, mark) and path.read_bytes() != data:
        raise StorageError(f"{path} was not written by clipbench, and is not replaced", hint=_FORCE)


def is_ours(path: Path, mark: bytes | None) -> bool:
    """Whether the file at `path` carries `mark`.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return mark is not None and mark in file.read(_LOOKED_AT)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from None
