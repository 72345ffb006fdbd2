"""Checkpoint files: read safely, loaded strictly."""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipbench.errors import WeightsError, nearest
from clipbench.models.weights import pickles
from clipbench.utils.cache import say

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
#: under which names training code saves a model's tensors, the first that is there being taken (`module`: DeepSpeed)
HOLDERS: Final = ("state_dict", "model_state_dict", "model", "module", "model_ema")
#: what stands in a name for a wrapper around a part, at any depth: of torch.compile, FSDP and activation checkpointing
_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: how files begin, after spaces and in lower case, that come in a checkpoint's place
_NO_CHECKPOINTS = {
    b"<!doctype html": "a web page, such as one to log in at",
    b"<html": "a web page, such as one to log in at",
    b"<": "XML or HTML, such as a page that names an error",
    b"{": "JSON, such as a message that names an error",
    b"[": "JSON, such as a message that names an error",
    b"version https://git-lfs": "a Git LFS pointer, and the file itself lies elsewhere",
    b"\x1f\x8b": "a gzip archive, which is to be unpacked",
    b"7z\xbc\xaf": "a 7z archive, which is to be unpacked",
}


def unreadable(path: Path) -> str | None:
    """What a file is instead of a whole checkpoint, all of it having been read; or None.

    None also for one that is whole and holds more than tensors, which `clipbench weights convert` can copy.
    """
    if what := strange(path):
        return what
    try:
        read_state_dict(path)
    except WeightsError:
        if pickles.names_in(path) is None:
            return "a broken checkpoint, perhaps cut off"
    return None


def strange(path: Path) -> str | None:
    """What a file is instead of a checkpoint, by its first bytes and, where it has one, its table of contents; or None.

    Nothing of it is built. Pickles are not looked into.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file"
    for mark, what in _NO_CHECKPOINTS.items():
        if text.startswith(mark):
            return what
    if _is_safetensors(path):
        try:
            with safe_open(path, "np"):
                return None
        except SafetensorError as error:
            return f"a broken safetensors file ({error})"
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                pickled = any(name.endswith(".pkl") for name in archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            return f"a broken zip archive ({error})"
        return None if pickled else "a zip archive without tensors"
    if start[:1] == b"\x80" or start[257:262] == b"ustar":  # a pickle; the archive of a very old torch
        return None
    return f"something else (it begins with {start[:8]!r})"


def read_state_dict(path: Path) -> State:
    """Tensors by name, from safetensors, a `torch.save` file or a TorchScript archive, without executing anything.

    A dict under one of `HOLDERS` is taken out, however deep; others beside it are named on stderr as not used. Names
    are freed of wrappers (see `unprefixed`).

    Raises:
        WeightsError: truncated, not a checkpoint, or a pickle that holds more than tensors.
    """
    try:
        loaded = _read(path)
    except WeightsError:
        raise
    except _NOT_A_CHECKPOINT as error:
        reason = str(error).split(". ")[0].strip() or type(error).__name__
        raise pickles.not_whole(path, reason) from None
    while isinstance(loaded, Mapping) and (held := _held(loaded)):
        taken, *others = held
        if others:
            say(
                f"{path}: {taken} is used; it holds {', '.join(others)} too, which can be saved alone to be used"
            )
        loaded = held[taken]
    return _tensors(loaded, path)


def _held(loaded: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    """What stands in `loaded` under one of `HOLDERS`, without what holds no tensors where something does."""
    import torch

    found = {key: loaded[key] for key in HOLDERS if isinstance(loaded.get(key), Mapping)}
    full = {k for k, held in found.items() if any(isinstance(v, torch.Tensor | dict) for v in held.values())}
    return {key: held for key, held in found.items() if key in full} or found


def _read(path: Path) -> object:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors" or _is_safetensors(path):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise pickles.not_whole(path, str(error)) from None
    try:
        with warnings.catch_warnings():  # of pickle protocols that torch.save does not write
            warnings.simplefilter("ignore")
            zipped = zipfile.is_zipfile(path)
            if zipped and pickles.is_torchscript(path):
                return _torchscript(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from None


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts like safetensors, whatever its name: the length of a header, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _refusal(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    """What to say of a pickle that the safe reader refuses. torch's own text advises to read it all the same."""
    found = re.search(r"GLOBAL ((?:\w+\.)+\w+)", str(error))
    names = [found[1]] if found else pickles.names_in(path)
    if names is None:
        return pickles.not_whole(path, "it is no pickle that torch.save writes")
    way = f"copy its tensors, running nothing: clipbench weights convert {path} OUT.safetensors"
    if not names:
        return WeightsError(f"{path} is pickled in a form that cannot be read safely", hint=way)
    return _more_than_tensors(path, names, f", or {way}")


def _more_than_tensors(path: Path, names: list[str], way: str = "") -> WeightsError:
    return WeightsError(
        f"{path} holds more than tensors ({', '.join(names[:3])}): reading it could run code from the file",
        hint=f"ask its author for a safetensors or state-dict file{way}",
    )


def _torchscript(path: Path) -> State:
    """The parameters and buffers of a TorchScript archive, the form in which OpenAI published CLIP.

    `torch.jit.load` would run the archive's program; this reads its tensors alone.
    """
    file = pickles.TorchFile(path)
    # the archive's classes, and what tells the element type of a list
    own = ("__torch__.", "torch.jit._pickle.")
    if foreign := sorted(name for name in file.names if not name.startswith(own)):
        raise _more_than_tensors(path, foreign)

    def named(module: pickles.Inert, prefix: str) -> Iterator[tuple[str, pickles.StoredTensor]]:
        for name, value in module.state.items():
            if isinstance(value, pickles.StoredTensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, pickles.Inert):
                yield from named(value, f"{prefix}{name}.")

    return {name: file.tensor(stored) for name, stored in named(file.root, "")}


def _tensors(loaded: object, path: Path) -> State:
    import torch

    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    wrong = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if wrong:
        raise WeightsError(
            f"{path}: entry {wrong[0]!r} is not a tensor ({len(wrong)} such entries)",
            hint=f"a state dict is expected, at the top or under {' or '.join(HOLDERS)}",
        )
    if not any(tensor.numel() for tensor in loaded.values()):
        raise WeightsError(
            f"{path}: all its tensors are empty, as where DeepSpeed (ZeRO 3) keeps their parts in other files",
            hint="put them together first, with the zero_to_fp32.py that lies beside such checkpoints",
        )
    return unprefixed(loaded)


def unprefixed(state: Mapping[str, torch.Tensor]) -> State:
    """`state` with names as the model has them, without what training code wraps it in.

    Names of wrappers go wherever they stand; `module.` (of data parallelism) and `model.`, in any order and number,
    where all names begin with them.

    Raises:
        WeightsError: two tensors would have one name.
    """
    names = [".".join(part for part in str(key).split(".") if part not in _WRAPPERS) for key in state]
    while prefix := next((p for p in ("module.", "model.") if all(n.startswith(p) for n in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise WeightsError(f"two tensors are called {twice[0]}, once within a wrapper and once without")
    return dict(zip(names, state.values(), strict=True))


def count_numbered(keys: Iterable[str], pattern: str) -> int:
    r"""1 + the largest number that `pattern` finds at the beginning of a key: layers are counted from 0.

    >>> count_numbered(["layer.0.bias", "layer.11.bias", "norm.bias"], r"layer\.(\d+)\.")
    12
    """
    found = (re.match(pattern, key) for key in keys)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


#: names of what changes a tensor's values in place, and of products and quotients with a number
_VALUED: Final = frozenset({"normal_", "triu_"})
_SCALED: Final = frozenset({"mul", "__mul__", "__rmul__", "div", "__truediv__"})


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Modules that are made meanwhile have no values, on the meta device: `load_strict` gives them theirs.

    Nothing is worked out for them: there, the first normal number, product or triangle has torch import its compiler,
    which takes seconds.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            given, name = kwargs or {}, getattr(func, "__name__", "")
            if getattr(func, "__module__", "") == torch.nn.init.__name__:
                return args[0] if args else given["tensor"]
            if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
                scaled = name in _SCALED and len(args) == 2 and isinstance(args[1], float)
                if scaled or name in _VALUED:
                    return args[0]
            return func(*args, **given)

    with torch.device("meta"), Undrawn():
        yield


def load_strict(
    module: nn.Module, state: State, path: Path, *, dropped: Sequence[str] = ()
) -> tuple[str, ...]:
    """Load `state` into `module`: every parameter and persistent buffer from the file, in float32, none left over.

    Tensors that already have their type are adopted without a copy, so `module` may stand on the meta device. Those of
    one number, such as a temperature, may be scalars in one place and vectors in the other.
    Keys that begin with one of `dropped` (an adapter's declared drop-list) are left out, which is said on stderr.

    Returns:
        What was left out, as `projector. (21)`: how keys begin, and of how many tensors.

    Raises:
        WeightsError: naming missing keys, unexpected keys, and wrong shapes.
    """
    import torch

    unused = Counter(next((part for part in dropped if key.startswith(part)), None) for key in state)
    state = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(dropped))}
    wanted = module.state_dict()
    for key in wanted.keys() & state.keys():
        if {wanted[key].shape, state[key].shape} == {(), (1,)}:
            state[key] = state[key].reshape(wanted[key].shape)
    missing = [k for k in wanted if k not in state]
    extra = [k for k in state if k not in wanted]
    shapes = [k for k in wanted if k in state and wanted[k].shape != state[k].shape]
    problems = []
    if missing:
        near = nearest(missing[0], extra)
        renamed = f' (is "{near}" the same under another name?)' if near else ""
        problems.append(f"missing {len(missing)}: {some(missing)}{renamed}")
    if extra:
        problems.append(f"unexpected {len(extra)}: {some(extra)}")
    if shapes:
        found, want = (tuple(of[shapes[0]].shape) for of in (state, wanted))
        problems.append(f"wrong shape {len(shapes)}: {shapes[0]} is {found}, the architecture has {want}")
    if problems:
        raise WeightsError(
            f"{path} does not fit the architecture: {'; '.join(problems)}",
            hint="check the card's config, or name the architecture that the file was trained with",
        )
    cast = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    module.requires_grad_(False)
    module.eval()
    left_out = tuple(f"{part} ({count})" for part, count in unused.items() if part)
    if left_out:
        say(f"{path}: tensors that the model does not use are left out: {', '.join(left_out)}")
    return left_out


def some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
