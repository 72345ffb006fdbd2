"""CLIP's own towers in training: the same functions as open_clip's, masks, errors, and runs that become models."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import small
import torch
from small import BERT_TOKENS, write_tokenizer
from torch import nn

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError
from clipbench.evaluation import Options, evaluate
from clipbench.models import dual, families
from clipbench.models.adapter import ModelEntry
from clipbench.models.saliency import Attention, GradCam, TokenCosine
from clipbench.models.towers.adapters import serialise
from clipbench.models.towers.base import TokenTower
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.loop import pretrain
from clipbench.utils.row_rng import Draws

one_thread = small.one_thread
RECIPE = Path(dual.__file__).parents[1] / "pretrain" / "recipes" / "clip-lite-digits.yaml"
RGB = Preprocess(size=64, resize="squash", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
RESNET: dict[str, Any] = {"kind": "clip-resnet", "layers": [1, 1, 1, 1], "width": 8, "heads": 4}
VIT: dict[str, Any] = {"kind": "clip-vit", "patch": 16, "width": 24, "layers": 2, "heads": 3}
TEXT: dict[str, Any] = {"kind": "clip-text", "width": 16, "layers": 3, "heads": 2}
TEXTS = ["a photo of a cat", "dog!", "an <|endoftext|> inside", "cat " * 90, ""]


def both(image: dict[str, Any], text: dict[str, Any] = TEXT, **more: Any) -> dict[str, Any]:
    return {"image": image, "text": text, "embed_dim": 20, "projection": "linear"} | more


def built(config: dict[str, Any], preprocess: Preprocess = RGB) -> DualTowers:
    torch.manual_seed(0)
    return DualTowers(parse_config(config, "test"), preprocess).eval()


def theirs(image: dict[str, Any], *, quick_gelu: bool) -> Any:
    """open_clip's CLIP of the same sizes, with random weights."""
    torch.manual_seed(1)
    vision: dict[str, Any] = {"image_size": 64, "layers": image["layers"], "width": image["width"]}
    if image["kind"] == "clip-resnet":
        vision["head_width"] = 32 * image["width"] // image["heads"]
    else:
        vision |= {"patch_size": image["patch"], "head_width": image["width"] // image["heads"]}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
    net = open_clip.CLIP(20, vision, text, quick_gelu=quick_gelu)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def renamed(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of open_clip's CLIP in our names."""
    state = dict(net.state_dict())
    made = {"log_scale": state.pop("logit_scale"), "text_projection.weight": state.pop("text_projection").T}
    if (projection := state.pop("visual.proj", None)) is not None:
        made["image_projection.weight"] = projection.T
    for name, tensor in state.items():
        image = name.startswith("visual.")
        made[f"image.net.{name.removeprefix('visual.')}" if image else f"text.net.{name}"] = tensor
    return made


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("image", [RESNET, VIT], ids=["resnet", "vit"])
def test_towers_and_linear_heads_are_open_clips_model(image: dict[str, Any], quick_gelu: bool) -> None:
    net = theirs(image, quick_gelu=quick_gelu)
    more = {"quick_gelu": quick_gelu}
    towers = built(both(image | more if image is VIT else image, TEXT | more))
    towers.load_state_dict(renamed(net))
    images = torch.randn(2, 3, 64, 64)
    ids, lengths = towers.text.tokenize(TEXTS)
    assert torch.equal(ids, open_clip.tokenize(TEXTS))
    assert lengths.tolist() == [7, 4, 10, 77, 2]
    with torch.no_grad():
        found, texts = towers(images, ids, torch.arange(5))
        torch.testing.assert_close(found, net.encode_image(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(texts, net.encode_text(ids), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(towers.text(ids[4:, :2]), towers.text(ids[4:]), rtol=1e-5, atol=1e-6)


def test_words_that_are_remembered_have_the_tokens_of_the_whole_text() -> None:
    texts = [
        *TEXTS,
        "Two DOGS, running; it's the dogs' 3rd run: they're 12-year-olds!!! <start_of_text>",
        "  spaces   all   over ",
        "tab\tand\nline",
        "cats &amp; dogs &lt;3",
        "dÃ©jÃ  vu at the cafÃ©",  # mended as a whole: "déjà vu"
        "naïve “quotes” ﬁne",
        "it 's a dog's life, 're 'll",
        "",
        "".join(map(chr, range(32, 127))),
    ]
    text = built(both(VIT, TEXT)).text
    for _ in range(2):
        assert torch.equal(text.tokenize(texts)[0], open_clip.tokenize(texts))


@pytest.mark.parametrize("arch", ["RN50", "ViT-B-32"])
def test_defaults_are_the_published_sizes(arch: str) -> None:
    settings = open_clip.get_model_config(arch)
    width = settings["text_cfg"]["width"]
    image = {"kind": "clip-resnet" if arch == "RN50" else "clip-vit"}
    config = both(image, {"kind": "clip-text", "width": width}, embed_dim=settings["embed_dim"])
    with torch.device("meta"):
        towers = DualTowers(parse_config(config, "test"), RGB.model_copy(update={"size": 224}))
        net = open_clip.CLIP(**settings)
    sizes = {name: tensor.shape for name, tensor in renamed(net).items()}
    assert {name: tensor.shape for name, tensor in towers.state_dict().items()} == sizes


def test_random_weights_are_open_clips_and_tell_images_and_texts_apart() -> None:
    towers = built(both(VIT))
    weight = towers.get_parameter("text.net.token_embedding.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    with torch.no_grad():
        for features in (
            towers.image(torch.randn(4, 3, 64, 64)),
            towers.text(towers.text.tokenize(TEXTS)[0]),
        ):
            assert torch.pdist(features).min() > 1e-3


# ----------------------------------------------------------------------- masks


def test_no_text_has_the_token_that_masks() -> None:
    text = built(both(VIT)).text
    assert isinstance(text, TokenTower)
    every = [chr(c) for c in range(0x3000) if not 0xD800 <= c < 0xE000] + ["ÿ", "😀", "\U0010ffff"]
    seen = set(text.tokenize(every)[0].flatten().tolist())
    assert text.masking().token not in seen
    assert len(seen) > 256


def test_masked_byte_pairs_leave_start_end_and_padding_alone() -> None:
    text = built(both(VIT)).text
    assert isinstance(text, TokenTower)
    tokens, lengths = text.tokenize(["! two dogs! run over a field of grass, and one sleeps"] * 3000)
    changed, chosen = text.mask(tokens, 0.15, Draws(torch.Generator().manual_seed(0), len(tokens)))
    assert torch.equal(text.real(tokens).sum(1), lengths)
    inner = text.real(tokens) & (tokens < 49406)  # "!" among them, whose id padding has too
    assert int(inner.sum()) == 3000 * (int(lengths[0]) - 2)
    assert not (chosen & ~inner).any()
    assert chosen[inner].double().mean().item() == pytest.approx(0.15, abs=0.005)
    before, after = tokens[chosen], changed[chosen]
    assert (after == 187).double().mean().item() == pytest.approx(0.8, abs=0.02)
    assert ((after != 187) & (after != before)).double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert int(after.max()) < 49406
    assert torch.equal(changed.argmax(1), tokens.argmax(1))


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (both(RESNET | {"heads": 7}), r"32 × width \(256\) must be a multiple of heads \(7\)"),
        (both(RESNET | {"layers": [1, 1, 1]}), "layers"),
        (both(RESNET | {"layers": [1, 0, 1, 1]}), "four numbers above 0"),
        (both(RESNET | {"width": 7}), "multiple of 2"),
        (both(VIT | {"heads": 5}), r"width \(24\) must be a multiple of heads \(5\)"),
        (both(VIT | {"patch": 15}), r"multiple of 15 px \(found 64 px\)"),
        (both(VIT, TEXT | {"heads": 3}), r"width \(16\) must be a multiple of heads \(3\)"),
        (both(VIT, TEXT | {"layers": 0}), "greater than 0"),
        ({"image": VIT}, r"of kind torchvision or timm \(found clip-vit\)"),
    ],
)
def test_config_that_cannot_be_built(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message):
        built(config)


def test_a_resnet_halves_its_images_five_times() -> None:
    with pytest.raises(CardError, match=r"multiple of 32 px \(found 48 px\)"):
        built(both(RESNET), RGB.model_copy(update={"size": 48}))


# ---------------------------------------------------------------------- models

#: image tower, text tower, objective and more of the config
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "clip": (RESNET, TEXT, {"kind": "clip"}, {}),
    "clip-lite": (RESNET, TEXT, {"kind": "clip-lite"}, {"projection": "clip-lite"}),
    "declip": (VIT, TEXT, {"kind": "declip", "queue": 16, "projector_width": 8, "predictor_width": 4}, {}),
    "filip": (RESNET, TEXT, {"kind": "filip", "contrastive_text": "masked"}, {"embed_dim": None, "projection": None}),
    "bert": ({"kind": "torchvision", "arch": "resnet18"}, {"kind": "bert"}, {"kind": "clip"}, {}),
    "timm": ({"kind": "timm", "arch": "test_vit2"}, {"kind": "bytes", "width": 8, "layers": 1, "heads": 2},
             {"kind": "siglip"}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("image", "text", "objective", "more"), RUNS.values(), ids=RUNS.keys())
def test_runs_become_models(
    image: dict[str, Any],
    text: dict[str, Any],
    objective: dict[str, Any],
    more: dict[str, Any],
    tmp_path: Path,
) -> None:
    if text["kind"] == "bert":
        write_tokenizer(tmp_path / "tokenizer", specials=BERT_TOKENS)
        sizes = {"layers": 1, "width": 16, "heads": 2, "feedforward": 24, "vocabulary": 104, "positions": 64}
        text = text | sizes | {"pool": "cls", "context_length": 40, "tokenizer": str(tmp_path / "tokenizer")}
    config = {k: v for k, v in both(image, text, **more).items() if v is not None}
    config |= {"tokens": {"dim": 8}} if objective["kind"] == "filip" else {}
    recipe = parse(Recipe, Document(RECIPE)).canonical() | {"objective": objective}
    recipe["model"] = {"config": config, "preprocess": RGB.canonical()}
    recipe["schedule"] = {"steps": 3, "batch_size": 4}
    recipe["data"], recipe["evaluate"], recipe["target"] = recipe["data"][:1], [], None
    task = Catalog().dataset("digits").card
    data = [(digits("train", task.classes), task)]
    folder = pretrain(
        Recipe.model_validate(recipe), "tiny", tmp_path / "run", data=data, device="cpu", progress=False
    )
    model = ModelEntry("run", parse(ModelCard, Document(folder / "card.yaml")), folder)
    options = Options(Runtime("cpu", "fp32", workers=0), limit=40, progress=False)
    (result,) = evaluate([model], Catalog().tasks(["digits-zs"]), options)
    assert result.record is not None
    assert math.isfinite(result.record.scores["acc1"].value)


@pytest.mark.parametrize(
    ("image", "more", "maps"),
    [
        (RESNET, {}, GradCam),
        (VIT, {}, Attention),
        (VIT, {"tokens": {"dim": 8}}, TokenCosine),
        (RESNET, {"tokens": {"dim": 8}}, TokenCosine),
    ],
)
def test_loaded_towers_are_those_saved_and_have_heat_maps(
    image: dict[str, Any], more: dict[str, Any], maps: type[object], tmp_path: Path
) -> None:
    config = both(image, **more)
    towers = built(config)
    data, sha256 = serialise(towers)
    (tmp_path / "model.safetensors").write_bytes(data)
    weights = Weights(file="model.safetensors", sha256=sha256)
    card = ModelCard(title="small", family="dual", config=config, preprocess=RGB, weights=weights)
    adapter = families.load(ModelEntry("small", card, tmp_path))
    images = torch.randn(2, 3, 64, 64)
    ids, _ = adapter.tokenize(TEXTS[:2])
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        close(adapter.image_tower("joint")(images), towers.image_features(images)["image"])
        close(adapter.image_tower("backbone")(images), towers.image(images))
        close(adapter.text_tower("joint")(ids), towers.text_projection(towers.text(ids)))
    assert len(adapter.text_fingerprint) == 64
    heat = adapter.saliency_method()
    assert isinstance(heat, maps)
    space = "tokens" if maps is TokenCosine else "joint"
    with torch.no_grad():
        texts = adapter.text_tower(space)(ids)
    found, scores = heat(images, texts, torch.tensor([0, 1]))
    side = 2 if image is RESNET else 4
    assert found.shape == (2, side, side)
    assert torch.isfinite(scores).all()
