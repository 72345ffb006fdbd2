"""Models in transformers' form: features of the classes themselves, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import commandline
import numpy as np
import pytest
import saved_models
import servers
import small
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from saved_models import changed

import clipbench
from clipbench.cards.model import ModelCard, Weights
from clipbench.catalog import Catalog
from clipbench.data import digests
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models import families, remembered
from clipbench.models import transformers as ours
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.weights import resolve
from clipbench.models.weights.architectures import IMAGES as RULES
from clipbench.models.weights.architectures import JOINT

run, place, hub = commandline.run, commandline.place, servers.model_hub
TEXTS = ["a photo of a dog", "the big red cat on grass " * 12, "x", ""]
FIRST = "1" * 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each class; not to be written to."""
    root = tmp_path_factory.mktemp("saved")
    return {name: saved_models.save(name, root / name) for name in saved_models.JOINT}


@pytest.fixture
def clip(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(saved["CLIPModel"], tmp_path / "clip"))


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(33, 47), (90, 61), (32, 32), (20, 77), (51, 50), (34, 35)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows)


def own_features(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """What the class itself gives with its own image processor and tokenizer: images, texts, pooled images, pixels."""
    net: Any = getattr(transformers, name).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor: Any = transformers.AutoImageProcessor
    pixels = processor.from_pretrained(folder, backend="pil")(pictures(), return_tensors="pt").pixel_values
    positions = net.config.text_config.max_position_embeddings - (2 if name == "AltCLIPModel" else 0)
    how: dict[str, Any] = {"padding": "max_length"} if name == "SiglipModel" else {"padding": True}
    tokens = tokenizer(TEXTS, truncation=True, max_length=positions, return_tensors="pt", **how)
    with torch.no_grad():
        if name == "BlipForImageTextRetrieval":
            tokens.pop("token_type_ids", None)
            pooled = net.vision_model(pixels).last_hidden_state[:, 0]
            images = net.vision_proj(pooled)
            texts = net.text_proj(net.text_encoder(**tokens).last_hidden_state[:, 0])
        else:
            pooled = net.vision_model(pixels).pooler_output
            images = net.get_image_features(pixels).pooler_output
            texts = net.get_text_features(**tokens).pooler_output
    return {"images": images, "texts": texts, "pooled": pooled, "pixels": pixels}


@pytest.mark.parametrize("name", saved_models.JOINT)
def test_features_are_those_of_the_class(name: str, saved: dict[str, Path]) -> None:
    """With its own processor, on images of odd shapes; texts in any company."""
    model = clipbench.load_model(f"hf:{saved[name]}", device="cpu")
    own = own_features(name, saved[name])
    torch.testing.assert_close(
        torch.stack([model.preprocess(image) for image in pictures()]), own["pixels"], atol=2e-6, rtol=0
    )
    torch.testing.assert_close(model.encode_images(pictures()), unit(own["images"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_images(pictures(), "backbone"), own["pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_texts(TEXTS), unit(own["texts"]), atol=1e-5, rtol=0)
    alone = torch.cat([model.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(alone, unit(own["texts"]), atol=1e-5, rtol=0)
    assert len({tuple(row) for row in own["texts"].tolist()}) == len(TEXTS)


IMAGES = [
    *((kind, None) for kind in saved_models.IMAGES),
    ("vit", "ViTForImageClassification"),
    ("vit", "ViTForMaskedImageModeling"),
    ("deit", "DeiTForImageClassificationWithTeacher"),
    ("beit", "BeitForImageClassification"),
    ("beit", "BeitForMaskedImageModeling"),
    ("swin", "SwinForImageClassification"),
    ("dinov2", "Dinov2ForImageClassification"),
    ("convnext", "ConvNextForImageClassification"),
    ("resnet", "ResNetForImageClassification"),
    ("clip_vision_model", "CLIPVisionModelWithProjection"),
]
#: of these classes the file has no pooler, so that the class token is taken
NO_POOLER = {
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "DeiTForImageClassificationWithTeacher",
    "BeitForMaskedImageModeling",
}


@pytest.mark.parametrize(("kind", "name"), IMAGES)
def test_models_of_images_alone(
    kind: str, name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trained pooled output, or the class token; heads are left out by name."""
    folder = saved_models.save_images(kind, tmp_path / "model", name)
    model = clipbench.load_model(folder, device="cpu")
    net: Any = transformers.AutoModel.from_pretrained(folder).eval()
    processor: Any = transformers.AutoImageProcessor
    pixels = processor.from_pretrained(folder, backend="pil")(pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        own = net(pixels)
    torch.testing.assert_close(
        torch.stack([model.preprocess(image) for image in pictures()]), pixels, atol=2e-6, rtol=0
    )
    expected = own.last_hidden_state[:, 0] if name in NO_POOLER else own.pooler_output.flatten(1)
    found = model.encode_images(pictures(), "backbone")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert model.adapter.image_spaces == ("backbone",)
    assert (name is None) == (model.adapter.left_out == ())
    assert ("no weights of a pooler" in capsys.readouterr().err) == (name in NO_POOLER)
    with pytest.raises(NotApplicable, match="images only, no text tower"):
        model.encode_texts("a dog")


def test_images_are_strict_too(tmp_path: Path) -> None:
    """Heads are the one thing that may be left over, and a pooler, as a whole, the one thing that may be missing."""
    folder = saved_models.save_images("vit", tmp_path / "vit")
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file(state | {"adapter.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"unexpected 1: adapter\.weight"):
        clipbench.load_model(folder)
    for lost in ("pooler.dense.bias", "layernorm.bias"):
        save_file({k: v for k, v in state.items() if k != lost}, path)
        with pytest.raises(WeightsError, match=f"missing 1: {lost}"):
            clipbench.load_model(folder)
    siglip = saved_models.save_images("siglip_vision_model", tmp_path / "siglip")
    changed(siglip, "config.json", vision_use_head=False)
    with pytest.raises(CardError, match="no pooled output"):
        clipbench.load_model(siglip)


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_vision_models_of_earlier_versions(kind: str, tmp_path: Path) -> None:
    """Whose weights had a prefix, and a buffer more."""
    folder = saved_models.save_images(kind, tmp_path / "model")
    new = clipbench.load_model(folder, device="cpu").encode_images(pictures(), "backbone")
    path = folder / "model.safetensors"
    ids = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file({f"vision_model.{k}": v for k, v in load_file(path).items()} | ids, path)
    old = clipbench.load_model(folder, device="cpu")
    assert torch.equal(old.encode_images(pictures(), "backbone"), new)
    assert old.adapter.left_out == ("position_ids (1)",)


def test_a_card_with_pixels_of_ones_own_choice(tmp_path: Path) -> None:
    """DINOv3's processor resizes floats, which no card can say: its card is written by hand."""
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, patch_size=8
    )
    made: Any = transformers.DINOv3ViTModel
    net = made(config).eval()
    folder = tmp_path / "dinov3"
    net.save_pretrained(folder)
    transformers.DINOv3ViTImageProcessor().save_pretrained(folder)
    with pytest.raises(CardError, match='unknown image processor "DINOv3ViTImageProcessor"'):
        clipbench.load_model(folder)
    preprocess = {"size": 32, "resize": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
    card = {
        "title": "DINOv3",
        "family": "transformers",
        "config": {
            "architecture": "DINOv3ViTModel",
            "config_sha256": sha256_file(folder / "config.json"),
        },
        "preprocess": preprocess,
        "weights": {"file": "dinov3/model.safetensors"},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(card))
    model = clipbench.load_model(tmp_path / "mine.yaml", device="cpu")
    pixels = torch.stack([model.preprocess(image) for image in pictures()])
    with torch.no_grad():
        own = net(pixels).pooler_output
    torch.testing.assert_close(model.encode_images(pictures(), "backbone"), own, atol=1e-5, rtol=0)
    card["config"] = {"architecture": "ViTModel", "config_sha256": sha256_file(folder / "config.json")}
    (tmp_path / "mine.yaml").write_text(json.dumps(card))
    with pytest.raises(CardError, match="is of a DINOv3ViTModel, the card says ViTModel"):
        clipbench.load_model(tmp_path / "mine.yaml")


def test_the_documentation_names_every_class() -> None:
    text = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text()
    assert [name for name in (*JOINT, *(rule.name for rule in RULES.values())) if name not in text] == []


def test_scale_and_bias_are_those_of_the_class(saved: dict[str, Path]) -> None:
    found = {name: families.load(Catalog().model(str(folder))) for name, folder in saved.items()}
    for name in ("CLIPModel", "SiglipModel", "ChineseCLIPModel", "AltCLIPModel"):
        state = load_file(saved[name] / "model.safetensors")
        assert found[name].logit_scale == pytest.approx(state["logit_scale"].exp().item())
    assert found["AlignModel"].logit_scale == 4
    assert found["BlipForImageTextRetrieval"].logit_scale == 1
    assert "1 is taken" in str(found["BlipForImageTextRetrieval"].card.notes)
    bias = load_file(saved["SiglipModel"] / "model.safetensors")["logit_bias"].item()
    assert found["SiglipModel"].logit_bias == pytest.approx(bias)
    assert found["CLIPModel"].logit_bias is None
    with pytest.raises(NotApplicable, match="no maps are known"):
        found["CLIPModel"].saliency_method()


def test_a_folder_is_named_with_and_without_its_prefix(clip: Path) -> None:
    """A folder with a card is a run, whatever else lies there."""
    plain, named = Catalog().model(str(clip)), Catalog().model(f"hf:{clip}")
    assert plain.card == named.card
    assert (plain.id, named.id) == (str(clip), f"hf:{clip}")
    assert plain.card.title == "clip"
    small.write_run(clip)
    assert Catalog().model(str(clip)).card.family == "dual"


def test_weights_in_parts_and_in_half_precision(clip: Path, saved: dict[str, Path]) -> None:
    """Give what the weights give that they hold; their names and bytes are in the hash."""
    whole = clipbench.load_model(saved["CLIPModel"], device="cpu")
    net: Any = transformers.CLIPModel.from_pretrained(clip)
    (clip / "model.safetensors").unlink()
    net.save_pretrained(clip, max_shard_size="50KB")
    assert len(list(clip.glob("model-*.safetensors"))) > 1
    parts = clipbench.load_model(clip, device="cpu")
    assert torch.equal(parts.encode_images(pictures()), whole.encode_images(pictures()))
    first = parts.adapter.weights_sha256
    assert first != whole.adapter.weights_sha256
    part = sorted(clip.glob("model-*.safetensors"))[0]
    state = load_file(part)
    save_file({k: v + 1 for k, v in state.items()}, part)
    assert families.load(Catalog().model(str(clip))).weights_sha256 != first
    part.unlink()
    with pytest.raises(WeightsError, match=f"there is no {part.name}, which model.safetensors.index.json"):
        clipbench.load_model(clip)
    for file in clip.glob("model*"):
        file.unlink()
    net.half().save_pretrained(clip)
    half = clipbench.load_model(clip, device="cpu").encode_images(pictures())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole.encode_images(pictures()), atol=5e-3, rtol=0)
    torch.save(net.float().state_dict(), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    pickled = clipbench.load_model(clip, device="cpu").encode_images(pictures())
    torch.testing.assert_close(pickled, half, atol=1e-6, rtol=0)


def test_buffers_of_old_versions_are_left_out_by_name(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = clip / "model.safetensors"
    ids = {"text_model.embeddings.position_ids": torch.arange(20)[None]}
    save_file(load_file(path) | ids, path)
    assert clipbench.load_model(clip).adapter.left_out == ("position_ids (1)",)
    assert "position_ids (1)" in capsys.readouterr().err


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("run",)


def unsafe(folder: Path, what: str) -> None:
    """Make of `folder` what must be refused."""
    path = folder / "model.safetensors"
    state = load_file(path)
    if what == "code":
        changed(folder, "config.json", auto_map={"AutoModel": "modeling.Model"})
    elif what == "code of the processor":
        changed(folder, "preprocessor_config.json", auto_map={"AutoImageProcessor": "images.Own"})
    elif what == "code in weights":
        path.unlink()
        torch.save(state | {"more": Harmful()}, folder / "pytorch_model.bin")
    elif what == "no weights":
        path.unlink()
    elif what == "missing":
        save_file({k: v for k, v in state.items() if k != "visual_projection.weight"}, path)
    elif what == "extra":
        save_file(state | {"visual_projection.bias": torch.zeros(16)}, path)
    elif what == "shape":
        save_file(state | {"visual_projection.weight": torch.zeros(8, 32)}, path)
    elif what == "class":
        changed(folder, "config.json", architectures=["CLIPForImageClassification"])
    elif what == "NaFlex":
        changed(folder, "config.json", model_type="siglip2", architectures=["Siglip2Model"])
    elif what == "quantised":
        changed(folder, "config.json", quantization_config={"quant_method": "bitsandbytes"})
    elif what == "no settings":
        changed(folder, "config.json", text_config=None, vision_config={"hidden_size": "wide"})
    elif what == "processor":
        changed(folder, "preprocessor_config.json", image_processor_type="FuyuImageProcessor")
    elif what == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif what == "pads":
        changed(folder, "preprocessor_config.json", do_pad=True)
    elif what == "filter":
        changed(folder, "preprocessor_config.json", resample=1)
    elif what == "unknown setting":
        changed(folder, "preprocessor_config.json", sharpen=2.0)
    elif what == "no square":
        changed(folder, "preprocessor_config.json", size={"height": 32, "width": 48}, do_center_crop=False)
    elif what == "side":
        changed(folder, "preprocessor_config.json", crop_size={"height": 24, "width": 24})


REFUSED = {
    "code": (WeightsError, "config.json names code of its own, which is never run .*modeling.Model"),
    "code of the processor": (WeightsError, "preprocessor_config.json names code of its own.*images.Own"),
    "code in weights": (WeightsError, "holds more than tensors"),
    "no weights": (WeightsError, "has no weights that are read: none of model.safetensors"),
    "missing": (WeightsError, "does not fit CLIPModel, .*missing 1: visual_projection.weight"),
    "extra": (WeightsError, "does not fit CLIPModel, .*unexpected 1: visual_projection.bias"),
    "shape": (WeightsError, r"wrong shape 1: visual_projection.weight is \(8, 32\)"),
    "class": (CardError, "its class CLIPForImageClassification is not known; known are CLIPModel, "),
    "NaFlex": (CardError, "many sizes .NaFlex.*is a SiglipModel"),
    "quantised": (WeightsError, "has quantization_config, which changes the model"),
    "no settings": (WeightsError, "CLIPModel cannot be built of its config.json"),
    "processor": (CardError, 'unknown image processor "FuyuImageProcessor"'),
    "no processor": (CardError, "it has no preprocessor_config.json"),
    "pads": (CardError, "setting do_pad: True"),
    "filter": (CardError, r"setting resample: 1 \(lanczos\)"),
    "unknown setting": (CardError, r"setting sharpen: 2.0"),
    "no square": (CardError, "setting size: "),
    "side": (WeightsError, "takes images of 32 px .* prepares them with 24 px"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, message = REFUSED[what]
    unsafe(clip, what)
    with pytest.raises(kind, match=message):
        clipbench.load_model(clip)
    assert "run" not in capsys.readouterr().out.split()


def test_refused_tokenizers(clip: Path, saved: dict[str, Path]) -> None:
    """Images are encoded all the same."""
    held = {path.name: path.read_bytes() for path in clip.iterdir()}

    def message() -> str:
        model = clipbench.load_model(clip)
        assert model.encode_images(pictures()[0]).shape == (1, 16)
        with pytest.raises(WeightsError) as found:
            model.encode_texts("a dog")
        for name, data in held.items():
            (clip / name).write_bytes(data)
        return str(found.value)

    (clip / "tokenizer.json").unlink()
    assert "has no tokenizer: no tokenizer.json" in message()
    changed(clip, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokens", None]})
    assert "tokenizer_config.json names code of its own" in message()
    changed(clip, "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    if find_spec("sentencepiece") is None:
        assert "its tokenizer needs the package sentencepiece" in message()
    (clip / "tokenizer.json").write_text("{}")
    assert "no tokenizer in " in message()
    lengths: list[Any] = [-1, "long", []]
    for length in lengths:
        changed(clip, "tokenizer_config.json", model_max_length=length)
        assert "which is no length" in message()
    changed(clip, "tokenizer_config.json", padding_side="left")
    assert "pads on the left" in message()
    held_by_tokenizer = json.loads((clip / "tokenizer.json").read_text())
    more = [{"id": 999, "content": "<more>", **dict.fromkeys(["single_word", "lstrip", "rstrip"], False)}]
    held_by_tokenizer["added_tokens"] += [m | {"normalized": False, "special": True} for m in more]
    held_by_tokenizer["model"]["vocab"]["<more>"] = 999
    (clip / "tokenizer.json").write_text(json.dumps(held_by_tokenizer))
    assert "it is another model's" in message()


def test_names_that_are_none(tmp_path: Path) -> None:
    for name, message in {
        "hf:clip": "names no repository and no folder",
        "hf:./gone": "there is no folder gone",
        f"hf:{tmp_path}": "no model in transformers' form: it has no config.json",
    }.items():
        with pytest.raises(CardError, match=message):
            Catalog().model(name)


def test_a_card_states_what_its_settings_are(clip: Path, tmp_path: Path) -> None:
    """So that other settings, which give the same weights another meaning, are noticed."""
    card = Catalog().model(str(clip)).card.canonical() | {"weights": {"file": "clip/model.safetensors"}}
    (tmp_path / "mine.yaml").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))
    assert clipbench.load_model(tmp_path / "mine.yaml").encode_texts("a dog").shape == (1, 16)
    settings = json.loads((clip / "config.json").read_text())
    changed(clip, "config.json", vision_config=settings["vision_config"] | {"hidden_act": "gelu"})
    with pytest.raises(WeightsError, match=r"config\.json is not the file that the card means"):
        clipbench.load_model(tmp_path / "mine.yaml")
    assert Catalog().model(str(clip)).card.config != card["config"]


def test_a_model_is_remembered_until_one_of_its_files_changes(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = families.load

    def counted(model: ModelEntry) -> Adapter:
        loaded.append(model.id)
        return load(model)

    monkeypatch.setattr(families, "load", counted)
    first = remembered.load(Catalog().model(str(clip))).text_fingerprint
    assert remembered.load(Catalog().model(str(clip))).text_fingerprint == first
    assert len(loaded) == 1
    path = clip / "tokenizer.json"
    path.write_text(path.read_text().replace("</w>", "<|w>"))
    assert remembered.load(Catalog().model(str(clip))).text_fingerprint != first
    assert len(loaded) == 2


def test_zero_shot_from_the_command_line(
    place: commandline.Place, run: commandline.Run, saved: dict[str, Path]
) -> None:
    shutil.copytree(saved["SiglipModel"], place.root / "siglip")
    done = run(*place.eval("--model", "hf:siglip"))
    assert done.code == 0, done.said
    assert "SiglipModel; images are prepared as by its SiglipImageProcessor on Pillow" in " ".join(
        done.said.split()
    )
    shown = run("show", "hf:siglip")
    assert shown.code == 0
    assert "family" in shown.out
    assert "architecture: SiglipModel" in shown.out
    assert "attention pooling's output, which is the joint feature" in " ".join(shown.out.split())


def test_linear_probe_from_the_command_line(place: commandline.Place, run: commandline.Run) -> None:
    """The record says which feature was probed."""
    saved_models.save_images("dinov2", place.root / "dino")
    shutil.copytree(place.root / "data" / "test", place.root / "data" / "train")
    small.write_task(
        place.cards, splits={"train": {"name": "train"}, "test": {"name": "test"}}, protocols={"lp": {}}
    )
    arguments = ["--model", "hf:dino", "--task", "animals-lp", "--cards", place.cards]
    done = run("eval", *arguments, "--data", f"animals={place.root / 'data'}", "--results", place.results)
    assert done.code == 0, done.said
    found = json.dumps(place.record().model_dump(mode="json"))
    assert "the class token after the last layer norm" in found


def test_settings_name_no_way_to_run(clip: Path, saved: dict[str, Path]) -> None:
    """A kernel of the hub, which transformers would fetch and run."""
    settings = json.loads((clip / "config.json").read_text())
    how = {"attn_implementation": "org/kernel", "_attn_implementation": "org/kernel"}
    changed(clip, "config.json", **how, vision_config=settings["vision_config"] | how)
    own = clipbench.load_model(saved["CLIPModel"], device="cpu").encode_images(pictures())
    assert torch.equal(clipbench.load_model(clip, device="cpu").encode_images(pictures()), own)


def test_a_cached_run_imports_no_library(place: commandline.Place, saved: dict[str, Path]) -> None:
    shutil.copytree(saved["CLIPModel"], place.root / "clip")
    unused = ("torch", "transformers", "safetensors", "tokenizers", "torchvision")
    code = (
        "import sys\nfrom clipbench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('imported:', *(name for name in {unused} if name in sys.modules))\n"
    )
    arguments = place.eval("--model", "hf:clip")
    assert "torch" in servers.run_python(code, *arguments).splitlines()[-1]
    assert servers.run_python(code, *arguments).splitlines()[-1].strip() == "imported:"


FROM_HUB = servers.loading("model.card.weights.hf, adapter.weights_sha256[:8]")


def test_model_of_a_hub_repository(
    hub: servers.ModelHub, saved: dict[str, Path], clip: Path, tmp_path: Path, isolated_cache: Path
) -> None:
    """Its files are of one commit, which stays that of the first use; afterwards without network."""
    model = clipbench.load_model(saved["CLIPModel"], device="cpu")
    with torch.no_grad():
        feature = model.adapter.text_tower()(model.adapter.tokenize(["a cat"])[0])
    expected = f"{model.adapter.weights_sha256[:8]} {feature.norm().item():.4f}"
    mine = {
        "title": "Mine",
        "family": "transformers",
        "config": model.card.config,
        "preprocess": model.card.preprocess.canonical(),
        "weights": {"hf": "org/clip/model.safetensors"},
    }
    card = tmp_path / "mine.yaml"
    card.write_text(json.dumps(mine))
    code = changed(
        Path(shutil.copytree(clip, tmp_path / "code")), "config.json", auto_map={"AutoModel": "a.B"}
    )
    hub.repos = {"org/clip": {FIRST: saved["CLIPModel"]}, "org/code": {FIRST: code}}

    def run(*names: str, offline: bool = False) -> list[str]:
        return servers.run_python(
            FROM_HUB,
            *names,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "home"),
            CLIPBENCH_CACHE=str(isolated_cache),
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_OFFLINE="1" if offline else "0",
            NO_PROXY="127.0.0.1",
        ).splitlines()

    found, unsafe, gone = run("hf:org/clip", "hf:org/code", "hf:org/gone")
    assert found == f"org/clip@{FIRST}/model.safetensors {expected}"
    assert unsafe.startswith("WeightsError org/code: config.json names code of its own")
    assert gone.startswith("WeightsError org/gone: ")
    hub.repos["org/clip"]["2" * 40] = clip
    save_file(
        {k: v + 1 for k, v in load_file(clip / "model.safetensors").items()}, clip / "model.safetensors"
    )
    assert run("hf:org/clip") == [found]
    hub.stop()
    for marker in list((tmp_path / "home").rglob(".no_exist")):  # which other programs do not leave
        shutil.rmtree(marker)
    *same, by_card, error = run(
        "hf:org/clip", f"hf:org/clip@{FIRST}", str(card), "hf:org/other", offline=True
    )
    assert same == [found, found]
    assert by_card == f"org/clip/model.safetensors {expected}"
    assert " org/other: the weights are not in the local cache" in error


def test_the_card_of_a_folder_is_made_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a file of it changes, what was made of it is remembered."""
    made: list[str] = []
    whole = ours.on_the_hub_or_here

    def counted(spec: str) -> ModelCard:
        made.append(spec)
        return whole(spec)

    monkeypatch.setattr(ours, "FAMILY", dataclasses.replace(ours.FAMILY, named={ours.PREFIX: counted}))
    name = f"hf:{clip}"
    first = Catalog().model(name).card
    assert Catalog().model(name).card == first
    assert made == [name]
    (clip / "notes.txt").write_text("another file")
    assert Catalog().model(name).card == first
    assert made == [name, name]
    (clip / "notes.txt").unlink()


def test_the_weights_of_a_card_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"weights")
    monkeypatch.setattr(digests, "RACY_NS", 0)  # a file of this moment is remembered, too
    hashed: list[Path] = []
    whole = digests.sha256_file

    def counted(path: Path) -> str:
        hashed.append(path)
        return whole(path)

    monkeypatch.setattr(digests, "sha256_file", counted)
    monkeypatch.setattr(resolve, "sha256_file", counted)
    weights = Weights(file="a.bin")
    found = {resolve.resolve_source(weights, owner="m", folder=tmp_path) for _ in range(2)}
    assert len(found) == 1
    assert len(hashed) == 1
