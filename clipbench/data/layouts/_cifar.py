"""CIFAR-10 and CIFAR-100 in their authors' archives: batches of pixels for Python (pickles) and for C (bytes).

Of a pickle only the pixels, the labels and the names are taken. What it names beside numpy's arrays is refused, and
those are made here from their bytes: nothing in it is run. Source: cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipbench.data.layouts.base import FileLayout
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError, first_line

SIDE: Final = 32
_PIXELS: Final = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Form:
    """One of the archives.

    Attributes:
        archive, folder: what is unpacked, and what it unpacks to.
        train, test: names of the batches.
        names: the file of the class names.
        labels, label_names: the keys of labels and names in a pickle.
        prefix: of bytes, how many labels a record begins with (the last of them is read); 0 of a pickle.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    labels: str = ""
    label_names: str = ""
    prefix: int = 0

    def lies_at(self, folder: Path) -> bool:
        """Whether any of its batches is there."""
        return any((folder / name).is_file() for name in (*self.train, *self.test))


_BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))
FORMS: Final = (
    Form(
        "cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, ("test_batch",), "batches.meta",
        labels="labels", label_names="label_names",
    ),
    Form(
        "cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",), "meta",
        labels="fine_labels", label_names="fine_label_names",
    ),
    Form(
        "cifar-10-binary.tar.gz", "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES),
        ("test_batch.bin",), "batches.meta.txt", prefix=1,
    ),
    Form(
        "cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt",
        prefix=2,
    ),
)  # fmt: skip


class Batches(FileLayout):
    """One split of an archive. Ids are `<batch>/<row>`, the same of both of a set's archives.

    Raises:
        DataError: a batch that is missing or is not what the authors' is.
    """

    name_in_fingerprint = "CIFAR"

    def __init__(self, root: Path, form: Form, split: str) -> None:
        batches = [root / name for name in (form.train if split == "train" else form.test)]
        files = [*batches, root / form.names]
        lost = [file for file in files if not file.is_file()]
        if lost:
            raise DataError(f"there is no {lost[0]}", hint=f"unpack {form.archive} again: it holds it")
        super().__init__(root, [], files)
        read = [_pickled(b, form) if not form.prefix else _binary(b, form) for b in batches]
        self._ids = [
            f"{b.stem}/{row:05d}"
            for b, (_, labels) in zip(batches, read, strict=True)
            for row in range(len(labels))
        ]
        self._pixels = np.concatenate([pixels for pixels, _ in read])
        self._labels = [label for _, labels in read for label in labels]
        self.names = _names(root / form.names, form)

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """PNGs of the pixels, bit for bit."""
        for row in rows.tolist():
            pixels = self._pixels[row].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=0)
            yield row, buffer.getvalue()


def _names(file: Path, form: Form) -> list[str]:
    if form.prefix:
        found: Any = [line.strip() for line in lines(decoded(file)) if line.strip()]
    else:
        found = [_text(name) for name in _list(file, _load(file, form), form.label_names)]
    if not found or len(set(found)) < len(found):
        raise DataError(f"{file} names no classes, or one twice", hint=f"unpack {form.archive} again")
    return list(found)


def _binary(file: Path, form: Form) -> tuple[NDArray[np.uint8], list[int]]:
    data = np.fromfile(file, np.uint8)
    width = form.prefix + _PIXELS
    if not len(data) or len(data) % width:
        raise DataError(
            f"{file} has {len(data):,} bytes, which is no whole number of records of {width:,}",
            hint=f"unpack {form.archive} again",
        )
    records = data.reshape(-1, width)
    return records[:, form.prefix :], records[:, form.prefix - 1].tolist()


def _pickled(file: Path, form: Form) -> tuple[NDArray[np.uint8], list[int]]:
    held = _load(file, form)
    labels = _list(file, held, form.labels)
    pixels = held.get("data")
    shape = pixels.shape if isinstance(pixels, _Array) else ()
    if shape != (len(labels), _PIXELS) or not all(type(label) is int for label in labels):
        raise DataError(
            f"{file} is no batch of {form.folder}: its data is {shape or 'no array'}, with {len(labels):,} labels; "
            f"expected ({len(labels):,}, {_PIXELS:,}) of uint8 and whole numbers",
            hint=f"unpack {form.archive} again",
        )
    assert isinstance(pixels, _Array)
    return pixels.values(file), labels


def _list(file: Path, held: dict[str, Any], key: str) -> list[Any]:
    found = held.get(key)
    if not isinstance(found, list) or not found:
        raise DataError(
            f"{file} holds no list {key!r} (it holds {', '.join(map(str, held))[:80] or 'nothing'})"
        )
    return found


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# ------------------------------------------------------------------------ pickles


class _Array:
    """An array of numpy's as a pickle describes it: its shape, and its bytes."""

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = ()
        self._kind: object = None
        self._fortran: object = False
        self._data: object = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self._kind, self._fortran, self._data = state

    def values(self, file: Path) -> NDArray[np.uint8]:
        """uint8 [shape]."""
        count = int(np.prod(self.shape))
        data = self._data.encode("latin-1") if isinstance(self._data, str) else self._data
        plain = isinstance(data, bytes) and len(data) == count
        if not (plain and isinstance(self._kind, _Kind) and self._kind.name in ("u1", "uint8", "|u1")):
            raise DataError(
                f"{file}: its data is no array of {count:,} bytes", hint="unpack the archive again"
            )
        assert isinstance(data, bytes)
        return np.frombuffer(data, np.uint8).reshape(self.shape, order="F" if self._fortran else "C")


class _Kind:
    """A dtype of numpy's, by name."""

    def __init__(self, name: object = "", *_: Any) -> None:
        self.name = _text(name)

    def __setstate__(self, state: Any) -> None:
        pass


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, *_: Any) -> _Array:
    made = _Array()
    made.__setstate__((1, shape, kind, order == "F", bytes(data)))
    return made


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


#: all that a batch may name, and what stands for it here
_KNOWN: Final[dict[tuple[str, str], Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encoded,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Plain(pickle.Unpickler):
    """Reads pickles of plain values and numpy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch of CIFAR does")
        return _KNOWN[module, name]


def _load(file: Path, form: Form) -> dict[str, Any]:
    """What a pickle holds, its keys as texts; nothing of it is run."""
    try:
        with file.open("rb") as opened:
            held = _Plain(opened, encoding="bytes").load()
    except Exception as error:  # a file made to do harm may raise anything while it is read
        reason = first_line(error).encode("unicode_escape").decode("ascii")
        raise DataError(
            f"{file} cannot be read as a batch of {form.folder}: {reason}",
            hint=f"unpack {form.archive} again",
        ) from None
    if not isinstance(held, dict):
        raise DataError(f"{file} is no batch of {form.folder}", hint=f"unpack {form.archive} again")
    return {_text(key): value for key, value in held.items()}
