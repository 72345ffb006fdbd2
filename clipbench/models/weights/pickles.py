"""Files of `torch.save`, read without running anything: what their pickles name, and their tensors.

`torch.load` has no part in this. With `weights_only=False` it runs what a pickle names, hands archives with a
`constants.pkl` to TorchScript's interpreter, and may write a `.patch` file for a class whose source has changed.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clipbench.errors import WeightsError

if TYPE_CHECKING:
    import torch

# Of torch.save before version 1.6: what the file starts with.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
#: torch's names of typed storages → dtypes
_STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


def names_in(source: Path) -> list[str] | None:
    """The classes and functions that a file of `torch.save` names, tensors' own left out; None for other files."""
    try:
        with refuse_broken(source):
            return sorted(TorchFile(source).names)
    except WeightsError:
        return None


@contextlib.contextmanager
def refuse_broken(source: Path) -> Iterator[None]:
    """A file made to do harm may raise anything while it is read."""
    try:
        yield
    except Exception as error:
        reason = str(error).split(". ")[0].strip()
        raise not_whole(source, escaped(f"{type(error).__name__}{f': {reason}' if reason else ''}")) from None


def not_whole(path: Path, reason: str) -> WeightsError:
    """The error for a file that is broken or no checkpoint at all."""
    return WeightsError(
        f"{path} is not a whole checkpoint: {reason}",
        hint="fetch or write the file again; safetensors, torch.save files and TorchScript archives are read",
    )


class Inert:
    """Stands for every class and function that a pickle names, and for what they would have made.

    It takes whatever is done to it, and does nothing but keep the state and the items that it is given.
    """

    state: dict[object, Any]
    items: dict[object, Any]

    def __new__(cls, *_: object, **__: object) -> Inert:
        made = super().__new__(cls)
        made.state, made.items = {}, {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Take anything."""

    def __call__(self, *_: object, **__: object) -> Inert:
        return Inert()

    def __setstate__(self, state: object) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # a second one holds slots
            if isinstance(part, dict):
                self.state.update(part)

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, *_: object) -> None:
        """Take anything."""

    extend = add = update = append


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a pickle describes it: sizes and offset count elements of the storage `key`."""

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    start: int = 0


@dataclass
class TorchFile:
    """A file of `torch.save`, its pickle read without running anything, its tensors not read yet.

    `names` are the classes and functions that it names, apart from those that make tensors.
    """

    path: Path
    names: set[str] = field(default_factory=set)
    root: Any = None
    _storages: dict[str, torch.dtype] = field(default_factory=dict)
    _places: dict[str, tuple[int, int]] = field(default_factory=dict)  # legacy files: (offset, bytes)
    _read: dict[str, bytearray] = field(default_factory=dict)
    _archive: zipfile.ZipFile | None = None

    def __post_init__(self) -> None:
        if is_zip(self.path):
            self._archive = archive = zipfile.ZipFile(self.path)
            self._pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            order = self._pickled.removesuffix("data.pkl") + "byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise ValueError("its numbers are big-endian")
            self.root = self._unpickle(io.BytesIO(archive.read(self._pickled)))
        else:
            with self.path.open("rb") as file:
                self._legacy(file)

    def _legacy(self, file: IO[bytes]) -> None:
        """The form before torch 1.6: pickles of a mark, a version, the machine and the content, then the storages."""
        import torch

        if (self._unpickle(file), self._unpickle(file)) != (_MAGIC, _PROTOCOL):
            raise ValueError("it was not written by torch.save")
        if not self._unpickle(file).get("little_endian", True):
            raise ValueError("its numbers are big-endian")
        self.root = self._unpickle(file)
        keys = self._unpickle(file)
        end = self.path.stat().st_size
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            size = count * torch.empty(0, dtype=self._storages[key]).element_size()
            self._places[key] = (file.tell(), size)
            if file.seek(size, os.SEEK_CUR) > end:
                raise ValueError("it ends early")

    def _unpickle(self, file: IO[bytes]) -> Any:
        """The next pickle of `file`.

        The functions and classes made here are this call's own: a pickle can set attributes of what it names, and
        shall not change anything that lasts.
        """
        import torch

        def rebuild(storage: _Storage, offset: int, size: Any, stride: Any, *_: object) -> StoredTensor:
            return StoredTensor(storage.key, storage.dtype, storage.start + offset, size, stride)

        def rebuild_typed(storage: _Storage, offset: int, size: Any, stride: Any, *more: Any) -> StoredTensor:
            _grad, _hooks, dtype, *_ = more
            return StoredTensor(storage.key, dtype, offset, size, stride)

        def first(tensor: object, *_: object) -> object:
            return tensor

        def from_type(make: Any, _type: object, arguments: tuple[Any, ...], *_: object) -> object:
            return make(*arguments) if make in known.values() else Inert()

        known: dict[str, object] = {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,  # a module's names of buffers that are not saved
            "__builtin__.set": set,
            "torch._utils._rebuild_tensor": rebuild,
            "torch._utils._rebuild_tensor_v2": rebuild,
            "torch._utils._rebuild_tensor_v3": rebuild_typed,
            "torch._utils._rebuild_parameter": first,
            "torch._utils._rebuild_parameter_with_state": first,
            "torch._tensor._rebuild_from_type_v2": from_type,
        }
        dtypes = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
        places = ("torch", "torch.cuda", "torch.storage")
        storages = {
            f"{place}.{name}": getattr(torch, of) for place in places for name, of in _STORAGES.items()
        }
        held = self

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> object:
                whole = f"{module}.{name}"
                real = known.get(whole) or dtypes.get(whole) or storages.get(whole)
                if real is not None:
                    return real
                held.names.add(escaped(whole))
                return Inert

            def persistent_load(self, pid: Any) -> object:
                kind, *rest = pid
                if kind == "module":  # a class and its source code
                    return rest[0]
                dtype, key, _, _, *view = rest
                if not isinstance(dtype, torch.dtype):
                    raise TypeError("its numbers are of a kind that is not known, quantised ones perhaps")
                held._storages.setdefault(key, dtype)
                return _Storage(key, dtype, view[0][1] if view and view[0] else 0)

        # Texts of Python 2 need not be UTF-8; names of tensors are.
        return Unpickler(file, encoding="utf-8", errors="replace").load()

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """The tensor itself, contiguous, sharing its memory with no other."""
        import torch

        seen = stored.key in self._read
        if not seen:
            self._read[stored.key] = self._bytes(stored.key)
        data = self._read[stored.key]
        flat = torch.frombuffer(data, dtype=stored.dtype) if data else torch.empty(0, dtype=stored.dtype)
        tensor = torch.as_strided(flat, stored.size, stored.stride, stored.offset)
        sole = not seen and tensor.is_contiguous() and tensor.numel() == flat.numel()
        # safetensors holds neither views nor shared memory
        return tensor if sole else tensor.clone(memory_format=torch.contiguous_format)

    def _bytes(self, key: str) -> bytearray:
        if self._archive is not None:
            return bytearray(self._archive.read(self._pickled.removesuffix("data.pkl") + f"data/{key}"))
        offset, size = self._places[key]
        with self.path.open("rb") as file:
            file.seek(offset)
            return bytearray(file.read(size))


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def escaped(text: str) -> str:
    """`text` of a file that is not trusted, without what a terminal would obey."""
    return text.encode("unicode_escape").decode("ascii")
