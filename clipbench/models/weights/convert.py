"""Checkpoints that hold more than tensors, made safe: their tensors are copied, and nothing in them is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipbench.data.digests import sha256_file
from clipbench.errors import ClipbenchError, StorageError, WeightsError
from clipbench.models.weights import pickles
from clipbench.models.weights.reading import HOLDERS, read_state_dict, unprefixed
from clipbench.utils.cache import replacing

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


class Converted(NamedTuple):
    """What was written: number of tensors, size of the file, its sha256 (hex); and the entries that were left out."""

    path: Path
    tensors: int
    bytes: int
    sha256: str
    left_out: tuple[str, ...]


def convert(source: Path, out: Path, *, agree: Callable[[list[str]], bool], force: bool = False) -> Converted:
    """Write the tensors of `source`, by name, to the safetensors file `out`.

    Read are dicts of tensors (at the top, or under one of `HOLDERS`) and pickled modules. Where the file
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
    with pickles.refuse_broken(source):
        script = pickles.is_zip(source) and pickles.is_torchscript(source)
    if script:
        return _write(read_state_dict(source), out, ())
    with pickles.refuse_broken(source):
        held = pickles.TorchFile(source)
        named, left_out = _tensors_of(held.root)
    if not named:
        found = ", ".join((left_out or sorted(held.names))[:5]) or type(held.root).__name__
        raise WeightsError(
            f"{source} holds no tensors by name (found: {found})",
            hint=f"a state dict is expected, at the top or under {' or '.join(HOLDERS)}, or a module",
        )
    if held.names and not agree(sorted(held.names)):
        raise ClipbenchError(f"{source} was not converted: nothing is written")
    with pickles.refuse_broken(source):
        state = {name: held.tensor(stored) for name, stored in named.items()}
    return _write(unprefixed(state), out, tuple(left_out))


# -------------------------------------------------------------------- tensors


def _tensors_of(root: object) -> tuple[dict[str, pickles.StoredTensor], list[str]]:
    """Tensors by name, and the names of entries that are none."""
    above: list[str] = []
    held = root
    while inner := {
        key: value for key in HOLDERS if _entries(value := _entries(held).get(key)) or _is_module(value)
    }:
        taken = next(iter(inner))
        above += [str(name) for name in _entries(held) if name != taken]
        held = inner[taken]
    named = dict(_of_module(held, "") if _is_module(held) else _entries(held).items())
    tensors = {str(name): value for name, value in named.items() if isinstance(value, pickles.StoredTensor)}
    others = [str(name) for name, value in named.items() if not isinstance(value, pickles.StoredTensor)]
    return tensors, [pickles.escaped(name) for name in above + others]


def _entries(value: object) -> Mapping[Any, Any]:
    if isinstance(value, pickles.Inert):
        return value.items
    return value if isinstance(value, dict) else {}


def _is_module(value: object) -> bool:
    return isinstance(value, pickles.Inert) and "_modules" in value.state and "_parameters" in value.state


def _of_module(module: object, prefix: str) -> Iterator[tuple[str, Any]]:
    """What `state_dict()` of a pickled module would hold."""
    assert isinstance(module, pickles.Inert)
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
    """Write `state`, whole or not at all; StorageError without room, WeightsError for numbers that it cannot hold."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            save_file(state, part, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write {out}: {error}", hint="free some space or choose another folder"
        ) from None
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{out} cannot hold these tensors: {error}") from None
    return Converted(out, len(state), out.stat().st_size, sha256_file(out), left_out)
