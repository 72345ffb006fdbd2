"""Files here or in another store, by one kind of name: a path, or `s3://`, `gs://`, `az://`, `hf://`, … through fsspec.

What is written is whole or not there: beside its place and renamed on this machine, by one object's upload elsewhere.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, NamedTuple

from clipbench.errors import StorageError, first_line
from clipbench.utils.cache import replacing, write_atomic
from clipbench.utils.parsing import expanded

#: scheme → the package that fsspec needs for it; "": none, or one that is always there
SCHEMES: Final = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "",
    "memory": "",
}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


class Found(NamedTuple):
    """A file of a folder: its name below it, with `/`, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Place:
    """A file or folder; `text` is as the user named it."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place of this name.

        Raises:
            StorageError: a scheme that is not read, or whose package is missing.
        """
        found = _SCHEME.match(text)
        if not found:
            return cls(str(expanded(text.removeprefix("file:"))))
        scheme = found[1].lower()
        if scheme == "file":
            return cls(str(Path(text[found.end() :])))
        if scheme not in SCHEMES:
            more = (
                " Fetch such files first; the names of many may stand in a list of s3://, gs:// or hf:// places."
                if scheme in ("http", "https")
                else ""
            )
            allowed = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
            raise StorageError(
                f"{text}: {scheme}:// is not read; a path, {allowed} are.{more}", hint="correct the place"
            )
        place = cls(scheme + text[found.end(1) :].rstrip("/"))
        _ = place._store  # so that a missing package is told of now
        return place

    @property
    def local(self) -> bool:
        """Whether it is on this machine, or a file system of it."""
        return _SCHEME.match(self.text) is None

    @property
    def path(self) -> Path:
        """Its path, of a local one."""
        assert self.local
        return Path(self.text)

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self._key).name if not self.local else self.path.name

    @property
    def parent(self) -> Place:
        """The folder that it lies in."""
        return Place(str(self.path.parent) if self.local else self.text.rpartition("/")[0])

    def __truediv__(self, name: str) -> Place:
        return Place(str(self.path / name) if self.local else f"{self.text.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.text

    def is_file(self) -> bool:
        """Whether there is such a file."""
        with self._asking():
            return self.path.is_file() if self.local else bool(self._store.isfile(self._key))

    def is_folder(self) -> bool:
        """Whether there is such a folder; in an object store: anything below it."""
        with self._asking():
            return self.path.is_dir() if self.local else bool(self._store.isdir(self._key))

    def size(self) -> int:
        """Bytes of the file."""
        with self._asking():
            return self.path.stat().st_size if self.local else int(self._store.size(self._key) or 0)

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            StorageError: it cannot be read.
        """
        with self._asking():
            return self.path.read_bytes() if self.local else bytes(self._store.cat_file(self._key))

    def open(self) -> IO[bytes]:
        """The file, to be read at any place.

        Raises:
            StorageError: it cannot be opened.
        """
        with self._asking():
            opened: IO[bytes] = self.path.open("rb") if self.local else self._store.open(self._key, "rb")
        return opened

    @contextlib.contextmanager
    def here(self) -> Iterator[Path]:
        """The file on this machine: itself, or a copy for as long as it is needed.

        Raises:
            StorageError: it cannot be read.
        """
        if self.local:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="clipbench-") as folder:
            copy = Path(folder) / self.name
            with self._asking():
                self._store.get_file(self._key, str(copy))
            yield copy

    def write(self, data: bytes | memoryview) -> None:
        """Write the file, whole or not at all, in place of what is there.

        Raises:
            StorageError: it cannot be written.
        """
        if self.local:
            self._make_parent()
            write_atomic(self.path, data)
            return
        with self._asking("written"):
            self._store.pipe_file(self._key, bytes(data))

    def write_new(self, data: bytes) -> None:
        """Write the file unless there is one: of several who do so on one machine, one wins.

        Raises:
            StorageError: it cannot be written.
        """
        if not self.local:
            if not self.is_file():
                self.write(data)
            return
        self._make_parent()
        with replacing(self.path, create=True) as part:
            part.write_bytes(data)

    def files(self) -> list[Found]:
        """All files below the folder, in the order of their names; hidden ones too.

        Raises:
            StorageError: it cannot be listed.
        """
        with self._asking("listed"):
            if self.local:
                found = [
                    Found(path.relative_to(self.path).as_posix(), path.stat().st_size)
                    for path in self.path.rglob("*")
                    if path.is_file()
                ]
            else:
                self._store.invalidate_cache()
                below = self._store.find(self._key, detail=True)
                start = len(self._store._strip_protocol(self._key).rstrip("/")) + 1
                found = [Found(name[start:], int(of.get("size") or 0)) for name, of in below.items()]
        return sorted(found)

    def _make_parent(self) -> None:
        with self._asking("written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _store(self) -> Any:
        import fsspec

        scheme = self.text.partition("://")[0]
        try:
            return fsspec.filesystem(scheme)
        except ImportError:
            package = SCHEMES[scheme]
            raise StorageError(
                f"{self.text}: to read {scheme}://, fsspec needs a package that is not here",
                hint=f"pip install {package}",
            ) from None
        except Exception as error:  # whatever a store's package makes of settings that are wrong
            raise StorageError(f"{self.text} cannot be reached: {first_line(error)}") from None

    @property
    def _key(self) -> str:
        return self.text.partition("://")[2]

    @contextlib.contextmanager
    def _asking(self, what: str = "read") -> Iterator[None]:
        """Turn what the file system, or a store's package, raises into an error that names the place."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            why = error.strerror or first_line(error)
            raise StorageError(f"{self.text} cannot be {what}: {why}") from None
        except Exception as error:
            if self.local:
                raise
            # the packages of stores have errors of their own: no credentials, no such bucket, no network
            kind = type(error).__name__
            raise StorageError(
                f"{self.text} cannot be {what}: {kind}: {first_line(error)}",
                hint="look at the credentials and the network; what was finished is kept",
            ) from None
