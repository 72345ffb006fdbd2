"""Checkpoint files: finding, hashing, reading safely, loading strictly."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipbench.errors import WeightsError, nearest
from clipbench.models import LoadedModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    State = dict[str, torch.Tensor]

# What torch, zipfile and pickle raise for bytes that are not what they should be.
_NOT_A_CHECKPOINT = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    StopIteration,
    zipfile.BadZipFile,
)
#: torch's names of typed storages, in TorchScript archives → dtypes
_STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def sha256_file(path: Path) -> str:
    """sha256 (hex) of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(model: LoadedModel) -> tuple[Path, str]:
    """The checkpoint file of a card with `weights: {file: …}`, and its sha256.

    Raises:
        WeightsError: the file is missing, or its hash is not the card's.
    """
    assert model.card.weights.file is not None
    path = (model.folder / Path(model.card.weights.file).expanduser()).resolve()
    if not path.is_file():
        raise WeightsError(
            f"{model.id}: no checkpoint at {path}",
            hint="put the file there, or correct weights.file on the card",
        )
    return path, verify(path, model.card.weights.sha256)


def verify(path: Path, expected: str | None) -> str:
    """sha256 (hex) of `path`; a shorter `expected` is compared as a prefix, as open_clip's file names hold it.

    Raises:
        WeightsError: the hash does not start with `expected`.
    """
    try:
        actual = sha256_file(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    if expected is not None and not actual.startswith(expected):
        raise WeightsError(
            f"{path} is not the file that the card means: sha256 is {actual}, the card says {expected}",
            hint="delete the file and fetch it again, or correct the card",
        )
    return actual


def read_state_dict(path: Path) -> State:
    """Tensors by name, from safetensors, a `torch.save` file or a TorchScript archive, without executing anything.

    A dict under `state_dict` or `model` is unwrapped, and a `module.` prefix common to all keys removed.

    Raises:
        WeightsError: truncated, not a checkpoint, or a pickle that holds more than tensors.
    """
    try:
        loaded = _read(path)
    except WeightsError:
        raise
    except _NOT_A_CHECKPOINT as error:
        reason = str(error).split(". ")[0].strip() or type(error).__name__
        raise _not_whole(path, reason) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    return _tensors(loaded, path)


def _read(path: Path) -> object:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _not_whole(path, str(error)) from None
    try:
        if not zipfile.is_zipfile(path):
            with warnings.catch_warnings():  # of pickle protocols that torch.save does not write
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return _torchscript(archive)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(
            r"GLOBAL ((?:\w+\.)+\w+)", str(error)
        )  # torch's own text advises to read it all the same
        if not named:
            raise _not_whole(path, "it is no pickle that torch.save writes") from None
        raise WeightsError(
            f"{path} holds more than tensors ({named[1]}): reading it could run code from the file",
            hint="ask its author for a safetensors or state-dict file, or convert it where you trust it: "
            "torch.save(model.state_dict(), PATH)",
        ) from None


def _not_whole(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} is not a whole checkpoint: {reason}",
        hint="fetch or write the file again; safetensors, torch.save files and TorchScript archives are read",
    )


def _torchscript(archive: zipfile.ZipFile) -> State:
    """The parameters and buffers of a TorchScript archive, the form in which OpenAI published CLIP.

    `torch.jit.load` would run the archive's program; this reads its tensors alone. Every class of the archive
    becomes a plain object that holds attributes, and nothing else can be named.
    """
    import torch

    pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl") + "data/"
    storages: dict[str, torch.Tensor] = {}

    class Module:
        pass

    def rebuild(
        storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> torch.Tensor:
        return torch.as_strided(storage, size, stride, offset)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if module.startswith("__torch__"):
                return Module
            if module == "torch" and name in _STORAGES:
                return getattr(torch, _STORAGES[name])
            if module == "torch.jit._pickle":  # tells the element type of a list; its content comes first
                return lambda content, *_: content
            known = {"torch._utils._rebuild_tensor_v2": rebuild, "collections.OrderedDict": OrderedDict}
            if f"{module}.{name}" not in known:
                raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
            return known[f"{module}.{name}"]

        def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> torch.Tensor:
            _, dtype, key, _, _ = pid
            if key not in storages:
                storages[key] = torch.frombuffer(bytearray(archive.read(folder + key)), dtype=dtype)
            return storages[key]

    def named(module: Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from named(value, f"{prefix}{name}.")

    root = Unpickler(io.BytesIO(archive.read(pickled))).load()
    return dict(named(root, ""))


def _tensors(loaded: object, path: Path) -> State:
    import torch

    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    wrong = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if wrong:
        raise WeightsError(
            f"{path}: entry {wrong[0]!r} is not a tensor ({len(wrong)} such entries)",
            hint="a state dict is expected, at the top or under state_dict or model",
        )
    prefix = "module." if all(str(k).startswith("module.") for k in loaded) else ""
    return {str(k)[len(prefix) :]: v for k, v in loaded.items()}


def load_strict(
    module: nn.Module, state: State, path: Path, *, adopt: Callable[[str], bool] | None = None
) -> None:
    """Load `state` into `module`: every parameter and persistent buffer from the file, in float32, none left over.

    Tensors that already have their type are adopted without a copy, so `module` may stand on the meta device.
    Keys for which `adopt` is False are left out (an adapter's declared drop-list).

    Raises:
        WeightsError: naming missing keys, unexpected keys, and wrong shapes.
    """
    import torch

    state = {k: v for k, v in state.items() if adopt is None or adopt(k)}
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state]
    extra = [k for k in state if k not in wanted]
    shapes = [k for k in wanted if k in state and wanted[k].shape != state[k].shape]
    problems = []
    if missing:
        near = nearest(missing[0], extra)
        problems.append(
            f"missing {len(missing)}: {_some(missing)}"
            + (f' (is "{near}" the same under another name?)' if near else "")
        )
    if extra:
        problems.append(f"unexpected {len(extra)}: {_some(extra)}")
    if shapes:
        first = shapes[0]
        found, want = tuple(state[first].shape), tuple(wanted[first].shape)
        problems.append(f"wrong shape {len(shapes)}: {first} is {found}, the architecture has {want}")
    if problems:
        raise WeightsError(
            f"{path} does not fit the architecture: {'; '.join(problems)}",
            hint="check the card's config, or name the architecture that the file was trained with",
        )
    cast = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    module.requires_grad_(False)
    module.eval()


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
