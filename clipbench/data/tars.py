"""Tar files in WebDataset's layout, of data sets and of training pairs: their members, and which make a sample.

The files of a sample have a key in common, in front of their endings: `000.jpg`, `000.cls`. WebDataset ends the key at
the first dot of the name. Here it ends in front of the ending that says what the file is (`.jpg`, `.cls`, `.cls.txt`),
which is the same for such names, and reads keys with dots, `img.000.jpg` and `img.000.cls`, too. A file whose key has
no partner, as the mask in `000.mask.png`, belongs to the sample whose key it begins with, up to one of its dots.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from clipbench.data.decode import IMAGE_SUFFIXES
from clipbench.data.paths import is_junk, printable
from clipbench.errors import DataError

#: how the names of tar files end
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: what is raised for a file that is no whole tar file, or not compressed as it says
BROKEN = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    IndexError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_READ_BYTES = 1 << 18  # read at once
#: headers that hold more than a header does (long names, pax), and the longest that is read
_MORE = (b"L", b"K", b"x", b"g", b"X")
_MORE_BYTES = 1 << 20


class Member(NamedTuple):
    """A file in a tar file: its name, and the place and size (bytes) of its content, decompressed."""

    name: str
    place: int
    size: int


@contextmanager
def whole(where: Path | str) -> Iterator[None]:
    """Turn what is raised for a file that is no whole tar file into an error that names it, `where`."""
    try:
        yield
    except BROKEN as error:
        why = str(error) or type(error).__name__
        raise DataError(
            f"{where} is no whole tar file: {why}", hint="fetch it again, or pack it again"
        ) from None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of a tar file, decompressed where it is compressed. Reading it backwards may be slow.

    Raises:
        OSError: it cannot be read.
    """
    with io.BufferedReader(io.FileIO(path), _READ_BYTES) as file:
        start = compression(file.peek(6))
        if start is None:
            yield file
        else:
            with _COMPRESSED[start](file, "rb") as plain:
                yield io.BufferedReader(plain, _READ_BYTES)


def compression(begins: bytes) -> bytes | None:
    """The mark with which a compressed file begins, if `begins`, its first bytes, are of one."""
    return next((mark for mark in _COMPRESSED if begins.startswith(mark)), None)


def stem(path: Path) -> str:
    """The name of a tar file without its suffix."""
    end = next((end for end in TAR_SUFFIXES if path.name.lower().endswith(end)), path.suffix)
    return path.name[: len(path.name) - len(end)]


class _Header(tarfile.TarInfo):
    """A header; one that is broken ends the archive for `tarfile` without a word, and is an error here."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            kind = type(error).__name__  # of the classes, type stubs know the first one alone
            if kind == "EOFHeaderError":  # the mark that ends a tar file
                raise
            why = f"{error} at byte {tar.offset:,}"
            if kind == "EmptyHeaderError":
                why = "it ends without the mark that ends a tar file" if tar.offset else "it is empty"
            elif kind == "TruncatedHeaderError":
                why = "it ends within a header"
            raise tarfile.ReadError(why) from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _MORE and found.size > _MORE_BYTES):
            raise tarfile.ReadError(f"a header says {found.size:,} bytes")
        return found


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]  # those read so far


def members(file: IO[bytes], where: Path | str) -> Iterator[Member]:
    """All files in the tar file at the start of `file`, in order, read once; names that are no UTF-8 are escaped.

    Between two of them the caller may read their content.

    Raises:
        DataError: a member is neither a file nor a folder. `where` is the tar file, for messages.
        BROKEN: it is no whole tar file (see `whole`).
    """
    with _Tar(fileobj=file, mode="r", tarinfo=_Header, encoding="utf-8") as tar:
        while (found := tar.next()) is not None:
            tar.members.clear()  # which it keeps for the methods that are not used here
            name = printable(found.name)
            if found.size < 0:
                raise tarfile.ReadError(f"the header of {name} says {found.size:,} bytes")
            if found.isdir():
                continue
            if not found.isreg() or found.issparse():
                kind = f"a link to {found.linkname}" if found.islnk() or found.issym() else "no ordinary file"
                raise DataError(
                    f"{where}: the member {name} is {kind}",
                    hint="pack the files themselves: tar --dereference --hard-dereference",
                )
            yield Member(name, found.offset_data, found.size)
        while block := file.read(_READ_BYTES):
            if block.count(0) != len(block):
                raise tarfile.ReadError(
                    "there are bytes behind the mark that ends it (several tar files in one?)"
                )


@dataclass
class Group:
    """A sample: its key, which of the names is its image, and which are its texts, by their endings."""

    key: str
    image: int | None
    texts: dict[str, int] = field(default_factory=dict)


@dataclass
class Gathered:
    """What the files of a tar file are, as numbers in the list of their names.

    Attributes:
        samples: in the order of their images.
        bare, untold: samples without an image, and without a text.
        twice: pairs of files of one sample that cannot both be meant: two images, or two of one ending.
        beside: images that belong to a sample, but are not its own.
        ignored: what belongs to no sample.
    """

    samples: list[Group] = field(default_factory=list)
    bare: list[Group] = field(default_factory=list)
    untold: list[Group] = field(default_factory=list)
    twice: list[tuple[int, int]] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)
    ignored: list[int] = field(default_factory=list)


def split_name(name: str, ends: Collection[str]) -> tuple[str, str]:
    """A file's key, and its ending in lower case; the ending is "" where it is neither an image's nor one of `ends`.

    >>> split_name("a/img.000.PNG", ()), split_name("000.cls.txt", (".cls.txt",)), split_name("000.bin", ())
    (('a/img.000', '.png'), ('000', '.cls.txt'), ('000.bin', ''))
    """
    base = name[name.rfind("/") + 1 :]
    last = base.rfind(".")
    if last > 0:
        for dot in (base.rfind(".", 1, last), last):
            ending = base[dot:].lower() if dot > 0 else ""
            if ending in IMAGE_SUFFIXES or ending in ends:
                return name[: len(name) - len(ending)], ending
    return name, ""


def gather(names: Sequence[str], ends: Collection[str]) -> Gathered:
    """Which files of a tar file make a sample: an image, and texts that end in one of `ends`."""
    found = Gathered()
    groups: dict[str, Group] = {}
    others: list[int] = []
    double: set[str] = set()
    for number, name in enumerate(names):
        if is_junk(name):
            found.ignored.append(number)
            continue
        key, ending = split_name(name, ends)
        if not ending:
            others.append(number)
            continue
        group = groups.setdefault(key, Group(key, None))
        other = group.image if ending in IMAGE_SUFFIXES else group.texts.get(ending)
        if other is not None:
            found.twice.append((other, number))
            double.add(key)
        elif ending in IMAGE_SUFFIXES:
            group.image = number
        else:
            group.texts[ending] = number
    samples = {key for key, group in groups.items() if group.image is not None and group.texts}
    for key, group in groups.items():
        if key in double:
            continue
        if key in samples:
            found.samples.append(group)
        elif not any(before in samples for before in _before(key)):
            (found.bare if group.image is None else found.untold).append(group)
        elif group.image is not None:
            found.beside.append(group.image)
    found.samples.sort(key=lambda group: cast(int, group.image))
    found.ignored += [i for i in others if not any(before in groups for before in _before(names[i]))]
    return found


def _before(name: str) -> Iterator[str]:
    """What stands in front of each dot of a file's name, the longest first."""
    start = name.rfind("/") + 1
    dot = name.rfind(".", start)
    while dot > start:
        yield name[:dot]
        dot = name.rfind(".", start, dot)
