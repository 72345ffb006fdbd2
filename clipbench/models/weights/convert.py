"""Checkpoints that hold more than tensors, made safe: their tensors are copied, and nothing in them is run.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from clipbench.data.digests import sha256_file
from clipbench.errors import ClipbenchError, StorageError, WeightsError
from clipbench.models.weights.reading import not_whole, read_state_dict, storage_dtype, unprefixed

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

# Of torch.save before version 1.6: what the file starts with.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Converted(NamedTuple):
    """What was written: number of tensors, size of the file, its sha256 (hex); and the entries that were left out."""

    path: Path
    tensors: int
    bytes: int
    sha256: str
    left_out: tuple[str, ...]


def convert(source: Path, out: Path, *, agree: Callable[[list[str]], bool], force: bool = False) -> Converted:
    """Write the tensors of `source`, by name, to the safetensors file `out`.

    Read are dicts of tensors (at the top, or under `state_dict` or `model`) and pickled modules. Where the file
    names classes or functions that are no tensors', `agree` is asked with their names first.

    Raises:
        WeightsError: `source` is missing, broken, or holds no tensors by name.
        ClipbenchError: `out` exists or is no .safetensors file, or `agree` said no.
        StorageError: `out` cannot be written.
    """
    if out.suffix != ".safetensors":
        raise ClipbenchError(f"{out} must end in .safetensors, by which the file is known")
    if out.exists() and not force:
        raise ClipbenchError(f"{out} exists", hint="choose another name, or add --force to replace it")
    if not source.is_file():
        raise WeightsError(f"no checkpoint at {source}", hint="name a file that torch.save wrote")
    if source.suffix == ".safetensors":
        raise WeightsError(f"{source} is a safetensors file already", hint="use it as it is")
    with _broken(source):
        script = _is_zip(source) and _is_torchscript(source)
    if script:
        state = {name: _own(tensor) for name, tensor in read_state_dict(source).items()}
        return _write(state, out, ())
    with _broken(source):
        held = _Held(source)
        named, left_out = _tensors_of(held.root)
    if not named:
        found = ", ".join((left_out or sorted(held.names))[:5]) or type(held.root).__name__
        raise WeightsError(
            f"{source} holds no tensors by name (found: {found})",
            hint="a state dict is expected, at the top or under state_dict or model, or a module",
        )
    if held.names and not agree(sorted(held.names)):
        raise ClipbenchError(f"{source} was not converted: nothing is written")
    with _broken(source):
        state = {name: held.tensor(stored) for name, stored in named.items()}
    return _write(unprefixed(state), out, tuple(left_out))


def names_in(source: Path) -> list[str] | None:
    """The classes and functions that a file of `torch.save` names, tensors' own left out; None for other files."""
    try:
        with _broken(source):
            return sorted(_Held(source).names)
    except WeightsError:
        return None


@contextlib.contextmanager
def _broken(source: Path) -> Iterator[None]:
    """A file made to do harm may raise anything while it is read."""
    try:
        yield
    except Exception as error:
        reason = str(error).split(". ")[0].strip()
        raise not_whole(source, _plain(f"{type(error).__name__}{f': {reason}' if reason else ''}")) from None


# -------------------------------------------------------------------- reading


class _Inert:
    """Stands for every class and function that a pickle names, and for what they would have made.

    It takes whatever is done to it, and does nothing but keep the state and the items that it is given.
    """

    state: dict[object, Any]
    items: dict[object, Any]

    def __new__(cls, *_: object, **__: object) -> _Inert:
        made = super().__new__(cls)
        made.state, made.items = {}, {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Take anything."""

    def __call__(self, *_: object, **__: object) -> _Inert:
        return _Inert()

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
class _Stored:
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
class _Held:
    """A file of `torch.save`, its pickle read without running anything, its tensors not read yet.

    `names` are the classes and functions that it names, apart from those that make tensors.
    """

    path: Path
    names: set[str] = field(default_factory=set)
    root: Any = None
    _storages: dict[str, torch.dtype] = field(default_factory=dict)
    _places: dict[str, tuple[int, int]] = field(default_factory=dict)  # legacy files: (offset, bytes)
    _read: dict[str, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if _is_zip(self.path):
            with zipfile.ZipFile(self.path) as archive:
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

        def rebuild(storage: _Storage, offset: int, size: Any, stride: Any, *_: object) -> _Stored:
            return _Stored(storage.key, storage.dtype, storage.start + offset, size, stride)

        def rebuild_typed(
            storage: _Storage,
            offset: int,
            size: Any,
            stride: Any,
            _grad: object,
            _hooks: object,
            dtype: Any,
            *_: object,
        ) -> _Stored:
            return _Stored(storage.key, dtype, offset, size, stride)

        def first(tensor: object, *_: object) -> object:
            return tensor

        def from_type(make: Any, _type: object, arguments: tuple[Any, ...], *_: object) -> object:
            return make(*arguments) if make in known.values() else _Inert()

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
        held = self

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> object:
                whole = f"{module}.{name}"
                real = known.get(whole) or dtypes.get(whole) or storage_dtype(module, name)
                if real is not None:
                    return real
                held.names.add(_plain(whole))
                return _Inert

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

    def tensor(self, stored: _Stored) -> torch.Tensor:
        """The tensor itself, contiguous, sharing its memory with no other."""
        import torch

        seen = stored.key in self._read
        if not seen:
            self._read[stored.key] = self._bytes(stored.key)
        data = self._read[stored.key]
        flat = torch.frombuffer(data, dtype=stored.dtype) if data else torch.empty(0, dtype=stored.dtype)
        tensor = torch.as_strided(flat, stored.size, stored.stride, stored.offset)
        sole = not seen and tensor.is_contiguous() and tensor.numel() == flat.numel()
        return tensor if sole else _own(tensor)

    def _bytes(self, key: str) -> bytearray:
        if self._places:
            offset, size = self._places[key]
            with self.path.open("rb") as file:
                file.seek(offset)
                return bytearray(file.read(size))
        with zipfile.ZipFile(self.path) as archive:
            return bytearray(archive.read(self._pickled.removesuffix("data.pkl") + f"data/{key}"))


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy: safetensors holds neither views nor shared memory."""
    import torch

    return tensor.clone(memory_format=torch.contiguous_format)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


# -------------------------------------------------------------------- tensors


def _tensors_of(root: object) -> tuple[dict[str, _Stored], list[str]]:
    """Tensors by name, and the names of entries that are none."""
    above: list[str] = []
    held = root
    for key in ("state_dict", "model"):
        inner = _entries(root).get(key)
        if _entries(inner) or _is_module(inner):
            held = inner
            above = [str(name) for name in _entries(root) if name != key]
            break
    named = dict(_of_module(held, "") if _is_module(held) else _entries(held).items())
    tensors = {str(name): value for name, value in named.items() if isinstance(value, _Stored)}
    others = [str(name) for name, value in named.items() if not isinstance(value, _Stored)]
    return tensors, [_plain(name) for name in above + others]


def _entries(value: object) -> Mapping[Any, Any]:
    if isinstance(value, _Inert):
        return value.items
    return value if isinstance(value, dict) else {}


def _plain(text: str) -> str:
    """`text` of a file that is not trusted, without what a terminal would obey."""
    return text.encode("unicode_escape").decode("ascii")


def _is_module(value: object) -> bool:
    return isinstance(value, _Inert) and "_modules" in value.state and "_parameters" in value.state


def _of_module(module: object, prefix: str) -> Iterator[tuple[str, Any]]:
    """What `state_dict()` of a pickled module would hold."""
    assert isinstance(module, _Inert)
    unsaved = module.state.get("_non_persistent_buffers_set", set())
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(module.state.get(kind)).items():
            if value is not None and not (kind == "_buffers" and name in unsaved):
                yield f"{prefix}{name}", value
    for name, child in _entries(module.state.get("_modules")).items():
        if child is not None:
            yield from _of_module(child, f"{prefix}{name}.")


# -------------------------------------------------------------------- writing


def _write(state: State, out: Path, left_out: tuple[str, ...]) -> Converted:
    """Write `state` so that a reader sees the whole file or none.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
        WeightsError: a type of numbers that safetensors does not have.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, part, metadata={"format": "pt"})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(out)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write {out}: {error}", hint="free some space or choose another folder"
        ) from None
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{out} cannot hold these tensors: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return Converted(out, len(state), out.stat().st_size, sha256_file(out), left_out)
