"""`clipbench weights convert`: tensors come out of any pickle exactly, and nothing in it is ever run."""

from __future__ import annotations

import functools
import importlib
import io
import os
import pickle
import shlex
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import commandline
import pytest
import torch
from commandline import Run
from small import same
from torch import Tensor, nn

from clipbench.data.digests import sha256_file
from clipbench.errors import ClipbenchError, StorageError, WeightsError
from clipbench.models.weights.convert import Converted, convert
from clipbench.models.weights.pickles import Inert, names_in
from clipbench.models.weights.reading import read_state_dict

run = commandline.run
State = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.bias": torch.randn(4, generator=generator).half(),
        "norm.count": torch.tensor(7),
    }


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "zip, protocol 4": lambda value, path: torch.save(value, path, pickle_protocol=4),
    "legacy, protocol 4": lambda value, path: torch.save(
        value, path, pickle_protocol=4, _use_new_zipfile_serialization=False
    ),
}
every_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def converted(source: Path, out: Path) -> tuple[State, Converted, list[str]]:
    """What comes out, and the names that were asked about."""
    asked: list[str] = []

    def agree(names: list[str]) -> bool:
        asked.extend(names)
        return True

    done = convert(source, out, agree=agree)
    return read_state_dict(out), done, asked


# ------------------------------------------------------------------- malice


class Call:
    """Unpickling it calls `what(*arguments)`; both may be of this kind themselves."""

    def __init__(self, what: Any, *arguments: Any) -> None:
        self.what, self.arguments = what, arguments

    def __call__(self) -> None:
        """Only what is callable can be pickled as something to call."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.what, self.arguments


def _system(marker: Path) -> object:
    return Call(os.system, f"touch {marker}")


def _eval(marker: Path) -> object:
    return Call(eval, f"open({str(marker)!r}, 'w').close()")


def _partial(marker: Path) -> object:
    return Call(functools.partial(os.system, f"touch {marker}"))


def _nested(marker: Path) -> object:
    return Call(Call(getattr, Call(importlib.import_module, "os"), "system"), f"touch {marker}")


def _torch_load(marker: Path) -> object:
    inner = marker.with_name("inner.pt")
    torch.save(_system(marker), inner)
    return Call(functools.partial(torch.load, str(inner), weights_only=False))


def _torch_hub(marker: Path) -> object:
    marker.with_name("hubconf.py").write_text(f"def model(): open({str(marker)!r}, 'w').close()\n")
    return Call(functools.partial(torch.hub.load, str(marker.parent), "model", source="local"))


@every_format
@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (_system, ["posix.system"]),
        (_eval, ["builtins.eval"]),
        (_partial, ["functools.partial", "posix.system"]),
        (_nested, ["builtins.getattr", "importlib.import_module"]),
        (_torch_load, ["functools.partial", "torch.serialization.load"]),
        (_torch_hub, ["functools.partial", "torch.hub.load"]),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_nothing_in_a_malicious_file_is_run(
    payload: Callable[[Path], object],
    named: list[str],
    write: Callable[[Any, Path], None],
    state: State,
    tmp_path: Path,
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.pt"
    write({"state_dict": state, "trap": payload(marker), "also": [payload(marker)]}, path)
    with pytest.raises(WeightsError, match="holds more than tensors"):
        read_state_dict(path)
    found, done, asked = converted(path, tmp_path / "out.safetensors")
    assert not marker.exists()
    assert same(found, state)
    assert [name.replace("__builtin__", "builtins") for name in asked] == named
    assert done.left_out == ("trap", "also")
    torch.load(path, weights_only=False)  # the payload itself works
    assert marker.exists()


def test_code_in_the_place_of_the_tensors_is_not_run(tmp_path: Path, state: State) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.pt"
    torch.save(_system(marker), path)
    with pytest.raises(WeightsError, match=r"model\.pt holds no tensors by name \(found: posix\.system\)"):
        converted(path, tmp_path / "out.safetensors")
    torch.save({"model": {**state, "extra": _system(marker)}}, path)
    found, done, _ = converted(path, tmp_path / "out.safetensors")
    assert same(found, state)
    assert done.left_out == ("extra",)
    assert not marker.exists()


def _archive(path: Path, pickled: bytes, **records: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"model/{name.replace('_', '.')}", data)


@pytest.mark.parametrize(
    "pickled",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x08\x00\x00\x00__name__X\x03\x00\x00\x00badstb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb.",
        b"ccollections\nOrderedDict\n(N}X\x06\x00\x00\x00updateX\x03\x00\x00\x00badstb.",
        b"cos\nsystem\n}X\x0c\x00\x00\x00__setstate__Nsb.",
        b"cos\nsystem\n(N}X\x0c\x00\x00\x00__setstate__Nstb.",
    ],
    ids=["function", "function's dict", "builtin class", "stand-in", "stand-in's slots"],
)
def test_a_pickle_cannot_change_what_it_names(pickled: bytes, state: State, tmp_path: Path) -> None:
    _archive(tmp_path / "bad.pt", pickled)
    before = dict(vars(Inert))
    with pytest.raises(WeightsError, match=r"bad\.pt"):
        converted(tmp_path / "bad.pt", tmp_path / "bad.safetensors")
    assert dict(vars(Inert)) == before
    torch.save(state, tmp_path / "good.pt", pickle_protocol=4)
    assert same(converted(tmp_path / "good.pt", tmp_path / "good.safetensors")[0], state)


def test_a_torchscript_archive_is_never_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.pt"
    _archive(path, pickle.dumps({"a": _system(marker)}, protocol=2), constants_pkl=pickle.dumps(()))
    with pytest.raises(WeightsError, match="holds more than tensors") as caught:
        converted(path, tmp_path / "out.safetensors")
    assert "weights convert" not in str(caught.value)  # it would lead back here
    assert not marker.exists()


def test_sizes_beyond_the_storage_are_refused(tmp_path: Path) -> None:
    class Wide:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.ones(4)._typed_storage()  # type: ignore[no-untyped-call]
            return torch._utils._rebuild_tensor_v2, (storage, 0, (1000,), (1,), False, OrderedDict())

    torch.save({"w": Wide()}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt is not a whole checkpoint: RuntimeError: setStorage"):
        converted(tmp_path / "model.pt", tmp_path / "out.safetensors")


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    _archive(tmp_path / "model.pt", b"c\x1b[2Jos\nsystem\n.")
    assert names_in(tmp_path / "model.pt") == ["\\x1b[2Jos.system"]


# ------------------------------------------------------------------ tensors


@every_format
def test_every_kind_of_tensor_comes_out(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tagged = nn.Parameter(torch.ones(2))
    tagged.note = "mine"  # type: ignore[attr-defined]
    tensors = {
        "whole": base,
        "again": base,
        "row": base[1],
        "columns": base[:, 1:3],
        "turned": base.T,
        "spread": torch.ones(1).expand(3),
        "parameter": nn.Parameter(torch.randn(3)),
        "tagged": tagged,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(4.5, dtype=torch.float64),
        **{
            str(d): torch.tensor([0, 1, 3]).to(d)
            for d in (torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.uint8, torch.bool)
        },
        "uint16": torch.tensor([1, 2], dtype=torch.uint16),
    }
    write(tensors, tmp_path / "model.pt")
    found, done, _ = converted(tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert same(found, tensors)
    assert done == (
        tmp_path / "out.safetensors",
        len(tensors),
        (tmp_path / "out.safetensors").stat().st_size,
        sha256_file(tmp_path / "out.safetensors"),
        (),
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: OrderedDict(s),
        lambda s: {"epoch": 3, "state_dict": s},
        lambda s: {"model": s, "ema": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "last_iter": 7},
    ],
)
def test_wrapping_is_taken_off(wrap: Callable[[State], Any], state: State, tmp_path: Path) -> None:
    torch.save(
        wrap(state), tmp_path / "model.pt", pickle_protocol=4
    )  # refused, though it holds tensors alone
    with pytest.raises(WeightsError, match="in a form that cannot be read safely"):
        read_state_dict(tmp_path / "model.pt")
    found, _, asked = converted(tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert same(found, state)
    assert asked == []


@pytest.fixture
def private() -> types.ModuleType:
    """A library that only the author of a checkpoint has."""
    library = types.ModuleType("private_lib")

    class Meter:
        def __init__(self) -> None:
            self.values = [1.0, 2.0]

    class Settings(dict[str, Any]):
        """A dict with a class of its own, as configurations have."""

    for kind in (Meter, Settings):
        kind.__module__, kind.__qualname__ = "private_lib", kind.__name__
        setattr(library, kind.__name__, kind)
    return library


@every_format
def test_classes_that_are_not_installed(
    private: Any,
    write: Callable[[Any, Path], None],
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.pt"
    linear = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "private_lib", private)
        wrapped = private.Settings(state_dict=private.Settings(state))
        wrapped |= {
            "optimizer": optimizer.state_dict(),
            "meter": private.Meter(),
            "device": torch.device("cpu"),
        }
        write(wrapped, path)
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    found, done, asked = converted(path, tmp_path / "out.safetensors")
    assert same(found, state)
    assert asked == ["private_lib.Meter", "private_lib.Settings", "torch.device"]
    assert done.left_out == ("optimizer", "meter", "device")


class Towers(nn.Module):
    """Everything that a module's state can hold, and cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("saved", torch.arange(3))
        self.register_buffer("unsaved", torch.arange(5), persistent=False)
        self.register_module("absent", None)
        self.constant = torch.ones(2)


@every_format
@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: {"model": m, "epoch": 1}])
def test_a_pickled_module_gives_its_state(
    wrap: Callable[[Towers], Any], write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    towers = Towers()
    write(wrap(towers), tmp_path / "model.pt")
    found, _, asked = converted(tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert same(found, towers.state_dict())
    assert f"{__name__}.Towers" in asked


def test_the_refusal_says_the_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2), "model.pt")
    with pytest.raises(WeightsError, match="holds more than tensors") as caught:
        read_state_dict(Path("model.pt"))
    typed = str(caught.value).partition("running nothing: ")[2]
    assert typed == "clipbench weights convert model.pt OUT.safetensors"
    code, out, err = astuple(run(*shlex.split(typed)[1:], "--yes"))
    assert (code, err) == (0, "")
    assert out.startswith("OUT.safetensors: 2 tensors, ")
    assert sha256_file(Path("OUT.safetensors")) in out
    assert set(read_state_dict(Path("OUT.safetensors"))) == {"weight", "bias"}


# ----------------------------------------------------------------- refusals


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
@every_format
def test_truncated_file(write: Callable[[Any, Path], None], keep: float, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write({"model": nn.Linear(9, 9)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(WeightsError, match=r"model\.pt is not a whole checkpoint"):
        converted(path, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", [b"<!doctype html><h1>404</h1>", b"{}", pickle.dumps({"a": 1}), b"PK\x03\x04 no archive"]
)
def test_not_of_torch_save(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.pt is not a whole checkpoint"):
        converted(tmp_path / "model.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([torch.ones(1)], "list"),
        ({}, "dict"),
        ({"epoch": 1, "weights": {"a": torch.ones(1)}}, "epoch, weights"),
    ],
)
def test_no_tensors_by_name(value: object, found: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=rf"model\.pt holds no tensors by name \(found: {found}\)"):
        converted(tmp_path / "model.pt", tmp_path / "out.safetensors")


def test_files_that_cannot_be_source_or_result(state: State, tmp_path: Path) -> None:
    source, out = tmp_path / "model.pt", tmp_path / "out.safetensors"
    torch.save(state, source)
    for name, result, kind, words in (
        ("model.pt", "out.pt", ClipbenchError, "must end in .safetensors"),
        ("gone.pt", "out.safetensors", WeightsError, "no checkpoint at"),
    ):
        with pytest.raises(kind, match=words):
            converted(tmp_path / name, tmp_path / result)
    converted(source, out)
    written = out.read_bytes()
    with pytest.raises(WeightsError, match="is a safetensors file already"):
        converted(out, tmp_path / "other.safetensors")
    torch.save({"a": torch.ones(1)}, source)
    with pytest.raises(ClipbenchError, match=r"out\.safetensors exists\n.*--force"):
        converted(source, out)
    assert out.read_bytes() == written
    convert(source, out, agree=lambda _: True, force=True)
    assert set(read_state_dict(out)) == {"a"}
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        converted(source, tmp_path / "file" / "out.safetensors")
    torch.save({"a": torch.ones(1, dtype=torch.complex128)}, source)
    with pytest.raises(WeightsError, match="cannot hold these tensors"):
        converted(source, tmp_path / "other.safetensors")
    quantised = (
        b"(X\x07\x00\x00\x00storagectorch\nQUInt8Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ."
    )
    _archive(source, quantised, data=b"1")
    with pytest.raises(WeightsError, match="its numbers are of a kind that is not known"):
        converted(source, tmp_path / "other.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "model.pt", "out.safetensors"]


# -------------------------------------------------------------- command line


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (Terminal("y\n"), 0, "left out, being no tensors: epoch"),
        (Terminal("\n"), 2, "was not converted: nothing is written"),
        (Terminal("n\n"), 2, "was not converted: nothing is written"),
        (io.StringIO("y\n"), 2, "there is no terminal to ask on\n  add --yes"),
    ],
)
def test_it_asks_first(
    answer: io.StringIO,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    source, out = tmp_path / "model.pt", tmp_path / "out.safetensors"
    torch.save({"model": nn.Linear(2, 2), "epoch": 1}, source)
    monkeypatch.setattr(sys, "stdin", answer)
    ended, printed, told = astuple(run("weights", "convert", source, out))
    assert ended == code
    assert "torch.nn.modules.linear.Linear" in told
    assert "None of them is run: only the tensors are copied." in told
    assert words in told
    assert out.exists() == (code == 0)
    assert bool(printed.strip()) == (code == 0)
