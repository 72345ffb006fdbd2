"""A checkpoint given by its path: the family by its keys, what was found and why, and refusals to guess."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import declip_files
import open_clip.factory
import pytest
import servers
import small
import torch
from safetensors.torch import save_file
from servers import FIRST, ModelHub, loading, run_python
from torch import Tensor

from clipbench.catalog import Catalog
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, WeightsError
from clipbench.models import clip, families
from clipbench.models.towers.configs import backbone_is, parse_config
from clipbench.models.towers.open_clip import random_model

hub = servers.model_hub
State = dict[str, Tensor]
CONFIG: dict[str, Any] = {"embed_dim": 24, "vision_cfg": declip_files.VIT, "text_cfg": declip_files.TEXT}


@pytest.fixture(autouse=True)
def architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "small-vit", CONFIG)
    monkeypatch.setitem(configs, "small-vit-quickgelu", CONFIG | {"quick_gelu": True})
    monkeypatch.setitem(configs, "small-rn", CONFIG | {"vision_cfg": declip_files.RN})
    pretrained = open_clip.pretrained
    monkeypatch.setitem(pretrained._PRETRAINED, "small-rn", {"some": pretrained._slpcfg()})


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def build(arch: str, quick_gelu: bool = False) -> Any:
    torch.manual_seed(0)
    return random_model(arch, quick_gelu=quick_gelu).eval()


def openais(state: State) -> State:
    """As OpenAI's archives hold it: half precision, and three numbers beside the weights."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    return half | {k: torch.tensor(v) for k, v in numbers.items()}


@pytest.mark.parametrize("arch", ["small-vit", "small-rn"])
def test_openais_own_file_is_told_by_what_it_holds_beside_the_weights(arch: str, tmp_path: Path) -> None:
    model = build(arch, quick_gelu=True)
    torch.save(openais(model.state_dict()), tmp_path / "mine.pt")
    found = Catalog().model(str(tmp_path / "mine.pt"))
    assert found.detected
    assert found.card.config == {"arch": arch, "quick_gelu": True}
    assert found.card.preprocess.resize == "shortest"  # OpenAI's, whatever tags the architecture has
    assert found.card.notes == (
        f"detected: CLIP, {arch}: OpenAI's own archive (context_length, input_resolution, vocab_size)"
    )
    adapter = families.load(found)
    images = torch.randn(2, 3, 224, 224)
    for name, value in openais(model.state_dict()).items():
        if name in model.state_dict():
            model.state_dict()[name].copy_(value)
    torch.testing.assert_close(
        adapter.image_tower("joint")(images), model.encode_image(images), rtol=1e-5, atol=1e-5
    )
    ids = adapter.tokenize(["a cat"])[0]
    torch.testing.assert_close(adapter.text_tower()(ids), model.encode_text(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"epoch": 3, "state_dict": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "optimizer": {}},
    ],
)
def test_open_clips_checkpoints_in_every_wrapping(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    """One architecture has these sizes, and no QuickGELU twin."""
    torch.save(wrap(build("small-rn").state_dict()), tmp_path / "epoch_3.pt")
    found = families.detected(str(tmp_path / "epoch_3.pt"))
    assert found.card.config == {"arch": "small-rn", "quick_gelu": False}
    notes = found.card.notes or ""
    assert notes.startswith(
        "detected: CLIP, small-rn: its sizes fit no other; images: {size: 224, resize: squash, "
    )
    assert notes.endswith(": as of all published tags of small-rn (some)")
    assert found.card.preprocess.resize == "squash"
    families.load(found)


def test_activation_that_the_file_does_not_tell_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "epoch_3.pt"
    torch.save(build("small-vit").state_dict(), path)
    with pytest.raises(WeightsError, match="fits small-vit, small-vit-quickgelu") as caught:
        families.detected(str(path))
    assert f"--model open_clip:small-vit-quickgelu@{path} if it was trained with QuickGELU" in str(
        caught.value
    )
    assert f"or open_clip:small-vit@{path}" in str(caught.value)


def test_file_whose_hash_is_known_needs_no_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "epoch_3.pt"
    torch.save(build("small-vit").state_dict(), path)
    known = {sha256_file(path)[:8]: ("small-vit@some_tag", {"quick_gelu": True})}
    monkeypatch.setattr(clip, "known_files", lambda: known)
    found = families.detected(str(path))
    assert found.card.config == {"arch": "small-vit", "quick_gelu": True}
    assert found.card.notes == "detected: CLIP, small-vit: its hash is that of small-vit@some_tag"


def test_sizes_of_no_architecture(tmp_path: Path) -> None:
    state = build("small-rn").state_dict()
    state["positional_embedding"] = torch.zeros(78, 64)
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(
        WeightsError, match="the layout of CLIP, but no architecture of open_clip has its sizes"
    ):
        families.detected(str(tmp_path / "clip.pt"))
    state = declip_files.random_state(
        declip_files.official("declip", declip_files.VIT, declip_files.TEXT, 16)
    )
    state["encode_text.positional_embedding"] = torch.zeros(78, 64)
    path = declip_files.save(state, tmp_path / "declip.pth.tar")
    with pytest.raises(
        WeightsError, match=r"the layout of DeCLIP's repository .*no architecture that open_clip"
    ):
        families.detected(str(path))


def test_keys_of_two_families_are_not_guessed(tmp_path: Path) -> None:
    declips = declip_files.random_state(declip_files.official("clip", declip_files.RN, declip_files.TEXT, 24))
    both = build("small-rn").state_dict() | declips
    torch.save(both, tmp_path / "both.pt")
    with pytest.raises(WeightsError, match=r"could be of more than one family: clip, declip.*\n.*model card"):
        families.detected(str(tmp_path / "both.pt"))


def test_clip_lite(tmp_path: Path) -> None:
    layers = (
        "embeddings.word_embeddings.weight",
        *(f"encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)),
    )
    image = [
        f"image_encoder.img_encoder.layer{stage}.{i}.conv1.weight" for stage in (1, 2, 3, 4) for i in (0, 1)
    ]
    heads = [f"loss.global_d.{block}.feature_shortcut.weight" for block in ("img_block", "text_block")]
    keys = [*image, *(f"text_encoder.strans.{k}" for k in layers), *heads]
    torch.save({"model": {k: torch.zeros(1) for k in keys}, "iteration": 7}, tmp_path / "checkpoint_7.pth")
    card = families.detected(str(tmp_path / "checkpoint_7.pth")).card
    assert card.family == "clip_lite"
    assert {k: card.config[k] for k in ("image", "text", "layers")} == {
        "image": "resnet18",
        "text": "bert",
        "layers": 2,
    }
    assert (card.notes or "").startswith("detected: CLIP-Lite, resnet18 and 2 layers of bert: ")


def test_clip_without_its_projection_is_of_no_family(tmp_path: Path) -> None:
    state = build("small-rn").state_dict()
    del state["text_projection"]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(WeightsError, match="of no family that is known"):
        families.detected(str(tmp_path / "cut.pt"))


def test_keys_of_no_family(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"of no family that is known \(clip, .*it begins with encoder\.weight"
    ):
        families.detected(str(tmp_path / "other.pth"))


def test_weights_of_a_run_are_named_with_their_folder(tmp_path: Path) -> None:
    run = small.write_run(tmp_path / "run")
    with pytest.raises(WeightsError, match=rf"it belongs to a run: --model {run}"):
        Catalog().model(str(run / "model.safetensors"))


@pytest.mark.parametrize("name", ["gone.pth.tar", "folder/gone.pt", "gone.safetensors"])
def test_file_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=rf"{name} is no model: there is no file {tmp_path}/{name}"):
        Catalog().model(name)


def test_page_saved_as_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pth.tar").write_bytes(b"<!doctype html>")
    with pytest.raises(WeightsError, match="is not a whole checkpoint"):
        Catalog().model(str(tmp_path / "ckpt.pth.tar"))


FROM_HUB = loading(
    'model.card.config["quick_gelu"], model.card.preprocess.side, model.card.preprocess.interpolation, '
    "model.card.weights.hf"
)


def test_model_of_a_hub_repository(hub: ModelHub, tmp_path: Path, isolated_cache: Path) -> None:
    """In open_clip's own form: its settings, its preprocessing, the safe file first; afterwards without network."""
    model = build("small-rn")
    folder = tmp_path / "commit"
    folder.mkdir()
    settings = {
        "model_cfg": CONFIG | {"vision_cfg": declip_files.RN, "quick_gelu": True},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    torch.save({"state_dict": {}}, folder / "open_clip_pytorch_model.bin")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    hub.repos = {"org/clip": {FIRST: folder}, "org/bare": {FIRST: bare}}
    quick = random_model("small-rn", quick_gelu=True).eval()
    quick.load_state_dict(model.state_dict())
    norm = quick.encode_text(open_clip.get_tokenizer("small-rn")(["a cat"])).norm().item()
    expected = f"True 224 bilinear org/clip/open_clip_model.safetensors {norm:.4f}"

    def run(*names: str, **environment: str) -> list[str]:
        places = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "CLIPBENCH_CACHE": str(isolated_cache),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }
        return run_python(FROM_HUB, *names, **places | environment).splitlines()

    found, unknown, other_form, malformed = run(
        "hf-hub:org/clip", "hf-hub:org/gone", "hf-hub:org/bare", "hf-hub:clip"
    )
    assert found == expected
    assert unknown.startswith("CardError hf-hub:org/gone: ")
    assert "a repository with open_clip_config.json is needed" in other_form
    assert malformed.startswith('CardError "hf-hub:clip" names no repository')
    assert "open_clip_pytorch_model.bin" not in hub.downloads()
    hub.stop()
    assert run("hf-hub:org/clip", HF_HUB_OFFLINE="1") == [expected]
    (error,) = run("hf-hub:org/other", HF_HUB_OFFLINE="1")
    assert error.startswith("WeightsError hf-hub:org/other is not in the local cache and cannot be fetched")


def test_names_that_are_no_files_stay_ids() -> None:
    with pytest.raises(CardError, match='unknown model "declip-r5"; did you mean "declip-r50"'):
        Catalog().model("declip-r5")


def test_every_shipped_card_of_images_says_what_its_backbone_is() -> None:
    said = {}
    for name in Catalog().model_files:
        card = Catalog().model(name).card
        said[name] = families.family(card.family).backbone_is(card)
    assert said.pop("clip-rn50") == "output of the attention pool, which is the joint feature itself"
    assert said.pop("clip-vit-b32") == "class token after the last LayerNorm, before the projection"
    assert said.pop("filip-yfcc15m-vit-b32") == "mean of the patch tokens, before the projection of tokens"
    assert (
        said.pop("efficientnet-lite0")
        == "pooled output of timm's tf_efficientnet_lite0, without its classifier"
    )
    assert all(said.values())


def test_a_card_of_an_unknown_architecture_says_nothing() -> None:
    card = Catalog().model("clip-rn50").card
    unknown = card.model_copy(update={"config": {"arch": "RN5", "quick_gelu": True}})
    assert families.family("clip").backbone_is(unknown) is None


@pytest.mark.parametrize(
    ("image", "more", "told"),
    [
        ({"kind": "convnet", "width": 8, "stages": 1}, {}, "average-pooled last map, before the projection"),
        (
            {"kind": "torchvision", "arch": "resnet18"},
            {},
            "input of the last linear layer of torchvision's resnet18",
        ),
        ({"kind": "clip-vit"}, {}, "class token after the last LayerNorm, before the projection"),
        ({"kind": "clip-resnet"}, {}, "output of the attention pool, which is the joint feature itself"),
        ({"kind": "clip-resnet"}, {"projection": "clip-lite"}, "output of the attention pool"),
        (
            {"kind": "clip-vit"},
            {"embed_dim": None, "projection": None, "tokens": {}},
            "mean of the places' states: there is no joint space that would have trained their pooling",
        ),
    ],
)
def test_what_the_backbone_of_two_towers_is(image: dict[str, Any], more: dict[str, Any], told: str) -> None:
    config = {"image": image, "text": {"kind": "ngrams", "width": 8}, "embed_dim": 8, "projection": "linear"}
    if "tokens" in more:
        config["text"] = {"kind": "clip-text", "width": 16, "heads": 2, "layers": 1}
    assert backbone_is(parse_config(config | more, "test")) == told
