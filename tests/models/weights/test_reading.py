"""Checkpoints: read without running anything, loaded strictly; and open_clip's models behind the Adapter."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small import same
from torch import Tensor, nn

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.data.digests import sha256_file
from clipbench.errors import WeightsError
from clipbench.models.adapter import ModelEntry
from clipbench.models.weights.convert import convert
from clipbench.models.weights.reading import HOLDERS, load_strict, read_state_dict
from clipbench.models.weights.resolve import resolve, verify

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(64, 3, 9, 9, generator=generator),
        "norm.bias": torch.randn(4, generator=generator).half(),
        "norm.count": torch.tensor(7),
    }


# ------------------------------------------------------------------ reading


def _legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "model.safetensors": save_file,
    "model.pt": torch.save,
    "legacy.pt": _legacy,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_tensors(name: str, state: State, tmp_path: Path) -> None:
    WRITERS[name](state, tmp_path / name)
    assert same(read_state_dict(tmp_path / name), state)
    (tmp_path / name).rename(tmp_path / "1SZJ8CU5dDIwuvZWxb4")  # as downloads are called
    assert same(read_state_dict(tmp_path / "1SZJ8CU5dDIwuvZWxb4"), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "legacy.pt"])
def test_wrapping_is_taken_off(
    name: str, wrap: Callable[[State], dict[str, Any]], state: State, tmp_path: Path
) -> None:
    WRITERS[name](wrap(state), tmp_path / name)
    assert same(read_state_dict(tmp_path / name), state)


@pytest.mark.parametrize("seed", range(60))
def test_wrapping_of_any_nesting_is_taken_off(seed: int, state: State, tmp_path: Path) -> None:
    draw = random.Random(seed)
    within = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
    before = "".join(f"{draw.choice(('module', 'model', *within))}." for _ in range(draw.randrange(6)))

    def wrapped(name: str) -> str:
        parts = [
            part for own in name.split(".") for part in (*draw.choices(within, k=draw.randrange(3)), own)
        ]
        return before + ".".join(parts)

    held: dict[str, Any] = {wrapped(name): tensor for name, tensor in state.items()}
    for _ in range(draw.randrange(4)):
        held = {"epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}, draw.choice(HOLDERS): held}
    torch.save(held, tmp_path / "model.pt")
    assert same(read_state_dict(tmp_path / "model.pt"), state)
    out = tmp_path / "out.safetensors"
    convert(tmp_path / "model.pt", out, agree=lambda names: True)
    assert same(read_state_dict(out), state)


def test_wrappers_of_torch_itself(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    compiled: Callable[[nn.Module], Any] = torch.compile
    module[1] = compiled(module[1])
    torch.save({"model": nn.DataParallel(compiled(module)).state_dict()}, tmp_path / "model.pt")
    assert "module._orig_mod.1._orig_mod.bias" in torch.load(tmp_path / "model.pt")["model"]
    assert same(read_state_dict(tmp_path / "model.pt"), expected)


def test_what_else_a_file_holds_is_said(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model_ema": averaged, "model": {"width": 64}, "module": state}, tmp_path / "model.pt")
    assert same(read_state_dict(tmp_path / "model.pt"), state)  # a dict of settings is no model
    said = f"{tmp_path}/model.pt: module is used; it holds model_ema too, which can be saved alone to be used"
    assert capsys.readouterr().err == f"clipbench: {said}\n"
    torch.save({"model_ema": averaged, "epoch": 1}, tmp_path / "model.pt")
    assert same(read_state_dict(tmp_path / "model.pt"), averaged)
    assert not capsys.readouterr().err


def test_names_that_become_one_are_refused(state: State, tmp_path: Path) -> None:
    state |= {"conv._orig_mod.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"two tensors are called conv\.weight"):
        read_state_dict(tmp_path / "model.pt")


def test_tensors_that_deepspeed_keeps_elsewhere(state: State, tmp_path: Path) -> None:
    empty = {name: torch.empty(0) for name in state}
    torch.save({"module": empty, "ds_version": "0.15"}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"all its tensors are empty.*ZeRO 3.*\n.*zero_to_fp32"):
        read_state_dict(tmp_path / "model.pt")
    torch.save({"module": empty | state, "ds_version": "0.15"}, tmp_path / "model.pt")
    assert same(read_state_dict(tmp_path / "model.pt"), state)


def test_prefix_that_not_all_keys_have_stays(state: State, tmp_path: Path) -> None:
    mixed = {"module.weight": state["conv.weight"], "scale": state["norm.count"]}
    torch.save(mixed, tmp_path / "model.pt")
    assert same(read_state_dict(tmp_path / "model.pt"), mixed)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_archive_as_openai_published_them(tmp_path: Path) -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half()
            self.logit_scale = nn.Parameter(torch.tensor(4.6))
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, images: Tensor) -> Tensor:
            return self.visual(images.half()).float() * self.logit_scale.exp()  # type: ignore[no-any-return]

    towers = Towers().eval()
    path = tmp_path / "RN50.pt"
    torch.jit.save(torch.jit.trace(towers, torch.randn(1, 3, 8, 8)), path)  # type: ignore[no-untyped-call]
    expected = torch.jit.load(path).state_dict()  # type: ignore[no-untyped-call]
    assert "visual.0.weight" in expected
    assert same(read_state_dict(path), dict(expected))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", WRITERS)
def test_truncated_file(name: str, keep: float, state: State, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(WeightsError, match=f"{name} is not a whole checkpoint"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"<!doctype html><h1>404</h1>", b'{"error": "not found"}', b"version 1"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_page_saved_as_a_checkpoint(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} is not a whole checkpoint") as caught:
        read_state_dict(tmp_path / name)
    assert "weights_only" not in str(caught.value)


class Malice:
    """Unpickling it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _malicious_torchscript(value: object, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("model/constants.pkl", pickle.dumps((), protocol=2))


@pytest.mark.parametrize(
    "write",
    [torch.save, _legacy, _malicious_torchscript, lambda value, path: path.write_bytes(pickle.dumps(value))],
    ids=["zip", "legacy", "torchscript", "pickle"],
)
def test_malicious_pickle_is_refused_and_not_run(write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.pt"
    write({"weight": Malice(marker)}, path)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value)
    with path.open("rb") as file:  # the payload itself works
        if not zipfile.is_zipfile(file):
            return
    with zipfile.ZipFile(path) as archive:
        pickled = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickle.loads(archive.read(pickled))
    assert marker.exists()


def test_whole_module_is_named_as_what_is_too_much(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(
        WeightsError, match=r"more than tensors \(torch\.nn\.modules\.linear\.Linear\)"
    ) as caught:
        read_state_dict(tmp_path / "model.pt")
    assert f"clipbench weights convert {tmp_path / 'model.pt'} OUT.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(1)], "holds a list, not tensors by name"),
        (torch.ones(1), "holds a Tensor, not tensors by name"),
        ({}, "holds a dict, not tensors by name"),
        ({"state_dict": {}}, "holds a dict, not tensors by name"),
        ({"epoch": 1, "weights": {"a": torch.ones(1)}}, r"entry 'epoch' is not a tensor \(2 such entries\)"),
    ],
)
def test_not_tensors_by_name(value: object, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=rf"model\.pt:? {message}"):
        read_state_dict(tmp_path / "model.pt")


# ------------------------------------------------------------------ hashes


def card(arch: str = "RN50", quick_gelu: bool = False, **weights: Any) -> ModelCard:
    return ModelCard(
        title="test",
        family="clip",
        config={"arch": arch, "quick_gelu": quick_gelu},
        preprocess=Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        weights=Weights(**(weights or {"file": "model.pt"})),
    )


def test_sha256_whole_or_as_prefix(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"abc")
    actual = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(path) == actual
    for expected in (None, actual, actual[:8]):
        assert verify(path, expected) == actual
        assert resolve(ModelEntry("m", card(file="model.pt", sha256=expected), tmp_path)) == (path, actual)
    for expected in (actual[:-1] + "e", "ba7816be"):
        with pytest.raises(WeightsError, match=rf"sha256 is {actual}, the card says {expected}"):
            verify(path, expected)
    with pytest.raises(WeightsError, match="No such file"):
        verify(tmp_path / "gone.pt", None)
    with pytest.raises(WeightsError, match=r"m: no checkpoint at .*gone\.pt"):
        resolve(ModelEntry("m", card(file="gone.pt"), tmp_path))


# ------------------------------------------------------------ strict loading


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)


@pytest.fixture
def fitting() -> State:
    torch.manual_seed(0)
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in Small().state_dict().items()}


def test_meta_module_gets_the_tensors_themselves(fitting: State) -> None:
    with torch.device("meta"):
        module = Small()
    load_strict(module, fitting, Path("file"))
    assert same(module.state_dict(), fitting)
    assert module.first.weight.data_ptr() == fitting["first.weight"].data_ptr()
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_half_precision_becomes_float32(fitting: State) -> None:
    module = Small()
    half = {k: v.half() if v.is_floating_point() else v for k, v in fitting.items()}
    load_strict(module, half, Path("file"))
    loaded = module.state_dict()
    assert loaded["first.weight"].dtype == torch.float32
    assert torch.equal(loaded["first.weight"], half["first.weight"].float())
    assert loaded["norm.num_batches_tracked"].dtype == torch.int64


def _spoil(state: State, *, lose: str = "", add: str = "", reshape: str = "") -> State:
    spoiled = {k: v for k, v in state.items() if k != lose}
    if add:
        spoiled[add] = torch.zeros(1)
    if reshape:
        spoiled[reshape] = torch.zeros(9)
    return spoiled


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"lose": "first.weight"}, ["missing 1: first.weight"]),
        ({"lose": "norm.running_mean"}, ["missing 1: norm.running_mean"]),
        ({"add": "head.weight"}, ["unexpected 1: head.weight"]),
        ({"reshape": "first.bias"}, ["wrong shape 1: first.bias is (9,), the architecture has (4,)"]),
        (
            {"lose": "first.weight", "add": "first.weights", "reshape": "norm.bias"},
            ["missing 1", 'is "first.weights" the same', "unexpected 1", "wrong shape 1"],
        ),
    ],
)
def test_what_does_not_fit_is_named(spoil: dict[str, str], words: list[str], fitting: State) -> None:
    module = Small()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(WeightsError, match=r"file\.pt does not fit the architecture") as caught:
        load_strict(module, _spoil(fitting, **spoil), Path("file.pt"))
    for word in words:
        assert word in str(caught.value)
    assert same(module.state_dict(), before)  # nothing is loaded halfway


def test_drop_list_is_the_adapters(fitting: State, capsys: pytest.CaptureFixture[str]) -> None:
    fitting |= {"head.bias": torch.zeros(1), "head.weight": torch.zeros(1), "counter": torch.tensor(1)}
    with pytest.raises(WeightsError, match=r"unexpected 3: head\.bias"):
        load_strict(Small(), fitting, Path("file"))
    with pytest.raises(WeightsError, match="unexpected 1: counter"):
        load_strict(Small(), fitting, Path("file"), dropped=["head."])
    assert not capsys.readouterr().err
    left_out = load_strict(Small(), fitting, Path("file"), dropped=["head.", "nothing.", "counter"])
    assert left_out == ("head. (2)", "counter (1)")
    assert (
        "file: tensors that the model does not use are left out: head. (2), counter (1)\n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("given", [(), (1,), (1, 1), (2,)])
def test_one_number_is_a_scalar_or_a_vector(given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    module = nn.Module()
    module.scale = nn.Parameter(torch.zeros(shape))
    if given not in ((), (1,)):
        with pytest.raises(WeightsError, match="wrong shape 1: scale"):
            load_strict(module, {"scale": torch.full(given, 3.0)}, Path("file"))
        return
    load_strict(module, {"scale": torch.full(given, 3.0)}, Path("file"))
    assert torch.equal(module.scale, torch.full(shape, 3.0))
