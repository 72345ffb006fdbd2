"""timm's towers for images of another size than their own: as timm builds them, with positions as it resizes them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import reduced_towers
import small
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.errors import CardError, WeightsError
from clipbench.models import families
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.towers.configs import TimmConfig, parse_config
from clipbench.models.towers.dual import DualTowers

one_thread = small.one_thread
DINO = "vit_small_patch14_dinov2"
REDUCED: dict[str, dict[str, Any]] = {
    DINO: {"embed_dim": 32, "depth": 2, "num_heads": 2},
    f"{DINO}.lvd142m": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_medium_patch16_gap_256": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "eva02_tiny_patch14_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_base_mci_224": {"depth": 1},
}
ASKED = {"img_size": 224, "resize_positions": True}


@pytest.fixture(autouse=True)
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create(name: str, **more: Any) -> nn.Module:
        made: nn.Module = real(name, **REDUCED.get(name, {}) | more)
        return made

    monkeypatch.setattr(timm, "create_model", create)


def loaded(folder: Path, arch: str, size: int = 224, **more: Any) -> Adapter:
    """The tower alone, of `tower.safetensors` in `folder`, for images of `size` px."""
    card = ModelCard(
        title="tower",
        family="dual",
        config={"image": {"kind": "timm", "arch": arch} | more},
        preprocess=Preprocess(size=size, mean=(0.5,) * 3, std=(0.5,) * 3),
        weights=Weights(file="tower.safetensors"),
    )
    return families.load(ModelEntry("tower", card, folder))


def saved(folder: Path, arch: str, half: bool = False, **more: Any) -> Any:
    """timm's model `arch`, its weights in `tower.safetensors`."""
    torch.manual_seed(0)
    net = reduced_towers.shaken(timm.create_model(arch, num_classes=0, **more))
    state = {name: tensor.half() if half else tensor for name, tensor in net.state_dict().items()}
    save_file(state, folder / "tower.safetensors")
    return net


def timms_own(folder: Path, arch: str, size: int = 224) -> Any:
    """timm's model of that size, with the file as timm itself fits it."""
    net: Any = timm.create_model(arch, num_classes=0, img_size=size)
    state: Mapping[str, Tensor] = load_file(folder / "tower.safetensors")
    state = {name: tensor.float() for name, tensor in state.items()}
    fit = importlib.import_module(type(net).__module__).checkpoint_filter_fn
    net.load_state_dict(fit(state, net))
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("arch", [DINO, f"{DINO}.lvd142m", "vit_small_patch14_reg4_dinov2"])
def test_dinov2_at_224_px_is_timms(
    arch: str, half: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native = saved(tmp_path, arch, half)
    assert native.patch_embed.img_size == (518, 518)
    tower = loaded(tmp_path, arch, **ASKED).image_tower("backbone")
    said = capsys.readouterr().err
    assert (
        "tower.safetensors: pos_embed is of 37 × 37 patches, the model has 16 × 16: it is resized, as the"
        in said
    )
    batch = torch.randn(2, 3, 224, 224)
    wanted = timms_own(tmp_path, arch)(batch)
    assert wanted.shape == (2, 32)
    torch.testing.assert_close(tower(batch), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "size"),
    [("vit_medium_patch16_gap_256", 96), ("eva02_tiny_patch14_224", 112), ("vit_base_mci_224", 96)],
)
def test_other_vits_of_another_size_are_timms(arch: str, size: int, tmp_path: Path) -> None:
    saved(tmp_path, arch)
    tower = loaded(tmp_path, arch, size, img_size=size, resize_positions=True).image_tower("backbone")
    batch = torch.randn(2, 3, size, size)
    torch.testing.assert_close(tower(batch), timms_own(tmp_path, arch, size)(batch), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("more", [{}, {"resize_positions": True}])
def test_a_file_of_that_size_is_loaded_as_it_is(
    more: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = saved(tmp_path, DINO, img_size=224)
    tower = loaded(tmp_path, DINO, img_size=224, **more).image_tower("backbone")
    batch = torch.randn(2, 3, 224, 224)
    assert torch.equal(tower(batch), net(batch))
    assert "resized" not in capsys.readouterr().err


def test_positions_are_not_resized_unasked(tmp_path: Path) -> None:
    saved(tmp_path, DINO)
    with pytest.raises(WeightsError, match="are not resized unasked") as caught:
        loaded(tmp_path, DINO, img_size=224)
    assert "pos_embed is of 37 × 37 patches, the model has 16 × 16" in str(caught.value)
    assert "set config.image.resize_positions: true" in str(caught.value)


@pytest.mark.parametrize("rows", [1, 2, 20])
def test_positions_of_no_square_grid_do_not_fit(rows: int, tmp_path: Path) -> None:
    state = saved(tmp_path, DINO).state_dict()
    state["pos_embed"] = torch.zeros(1, rows, 32 if rows > 2 else 16)
    save_file(state, tmp_path / "tower.safetensors")
    with pytest.raises(WeightsError, match=r"wrong shape 1: pos_embed is \(1, "):
        loaded(tmp_path, DINO, **ASKED)


@pytest.mark.parametrize(
    ("arch", "size", "more", "message"),
    [
        (DINO, 224, {}, r"cannot take images of .* 224 × 224 px(.*\n)*.*set config\.image\.img_size: 224"),
        (
            DINO,
            224,
            {"img_size": 518},
            r"img_size is 518 px, preprocess gives images of 224 px(.*\n)*.*to 518",
        ),
        (DINO, 225, {"img_size": 225}, r"225 px, which patches of 14 px do not cover(.*\n)*.*multiple of 14"),
        ("vit_base_mci_224", 100, {"img_size": 100}, "100 px, which patches of 16 px do not cover"),
        (
            "resnet18",
            96,
            {"img_size": 96},
            r"timm's resnet18 takes images of any size(.*\n)*.*leave out config",
        ),
        (DINO, 7, {"img_size": 7}, "7 px, which patches of 14 px do not cover"),
    ],
)
def test_sizes_that_cannot_be(
    arch: str, size: int, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=message):
        loaded(tmp_path, arch, size, **more)


def test_what_timm_says_of_a_size_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the grid must be a multiple of the window\nand so on")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        CardError, match=r"timm's test_vit cannot be built for it: the grid must .* window\n"
    ) as caught:
        loaded(tmp_path, "test_vit", 96, img_size=96)
    assert caught.value.hint == "choose another size"
    with pytest.raises(AssertionError):
        loaded(tmp_path, "test_vit", 96)


@pytest.mark.parametrize("size", [0, -14, 22.4, "224"])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(CardError, match=r"config\.image\.timm\.img_size"):
        parse_config({"image": {"kind": "timm", "arch": DINO, "img_size": size}}, "card")


@torch.no_grad()
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_image_tower_of_two(elsewhere: bool, tmp_path: Path) -> None:
    """Its weights in the model's own file, or in one of their own."""
    native = saved(tmp_path, DINO)
    image: dict[str, Any] = {"kind": "timm", "arch": DINO} | ASKED
    text = {"kind": "ngrams", "width": 8, "buckets": 16}
    config = {"image": image, "text": text, "embed_dim": 8, "projection": "linear"}
    preprocess = Preprocess(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    state = DualTowers(parse_config(config, "test"), preprocess).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("image.")}
    if elsewhere:
        image["weights"] = {"file": "tower.safetensors"}
    else:
        state |= {f"image.net.{name}": tensor for name, tensor in native.state_dict().items()}
    save_file(state, tmp_path / "both.safetensors")
    card = ModelCard(
        title="both",
        family="dual",
        config=config,
        preprocess=preprocess,
        weights=Weights(file="both.safetensors"),
    )
    batch = torch.randn(2, 3, 224, 224)
    tower = families.load(ModelEntry("both", card, tmp_path)).image_tower("backbone")
    torch.testing.assert_close(tower(batch), timms_own(tmp_path, DINO)(batch), rtol=1e-5, atol=1e-5)


def test_cards_that_say_nothing_of_it_are_what_they_were() -> None:
    before = {"kind": "timm", "arch": "test_vit", "weights": None}
    assert TimmConfig(kind="timm", arch="test_vit").canonical() == before
    asked = TimmConfig(kind="timm", arch="test_vit", img_size=96, resize_positions=True)
    assert asked.canonical() == before | {"img_size": 96, "resize_positions": True}
