"""Two towers behind the Adapter interface: shapes, trimming, strict loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipbench import models
from clipbench.cards import ModelCard, Preprocess, Weights
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models import LoadedModel, dual
from clipbench.pretrain.towers import ClipLiteBlock, DualTowers

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
    return DualTowers(dual.parse_config(config, "test"), PREPROCESS)


@pytest.fixture
def towers() -> DualTowers:
    torch.manual_seed(0)
    built = _build(CONFIG)
    with torch.no_grad():  # so that no two parameters are alike by their initial value
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


@pytest.fixture
def model(towers: DualTowers, tmp_path: Path) -> LoadedModel:
    data, sha256 = dual.serialise(towers)
    (tmp_path / "model.safetensors").write_bytes(data)
    return LoadedModel("small", card(sha256=sha256), tmp_path)


def test_loaded_towers_are_those_saved(towers: DualTowers, model: LoadedModel) -> None:
    adapter = models.load(model)
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


def test_no_other_space(model: LoadedModel) -> None:
    with pytest.raises(NotApplicable, match="tokens"):
        models.load(model).image_tower("tokens")


def test_batch_cut_at_its_longest_text_gives_the_same_features(model: LoadedModel) -> None:
    adapter = models.load(model)
    tokens, lengths = adapter.tokenize(["a", "seven!!", ""])
    assert lengths.tolist() == [3, 9, 2]
    assert tokens.shape == (3, 24)
    tower = adapter.text_tower()
    with torch.inference_mode():
        full, cut = tower(tokens), tower(tokens[:, : int(lengths.max())])
        alone = tower(tokens[:1, :3])
    torch.testing.assert_close(cut, full, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone, full[:1], rtol=1e-5, atol=1e-6)


def test_tokens_are_bytes_and_long_texts_keep_their_end(model: LoadedModel) -> None:
    adapter = models.load(model)
    tokens, lengths = adapter.tokenize(["é", "x" * 100])
    assert tokens[0, :5].tolist() == [1, 0xC3 + 3, 0xA9 + 3, 2, 0]
    assert lengths.tolist() == [4, 24]
    assert tokens[1, -1] == 2


def test_every_byte_changes_the_features(model: LoadedModel) -> None:
    adapter = models.load(model)
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
    model: LoadedModel, spoil: Callable[[dict[str, Tensor]], None], words: list[str]
) -> None:
    path = model.folder / "model.safetensors"
    state = load_file(path)
    spoil(state)
    save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        models.load(LoadedModel("small", card(), model.folder))
    for word in words:
        assert word in str(caught.value)


def test_another_file_than_the_card_means(model: LoadedModel) -> None:
    with pytest.raises(WeightsError, match="sha256"):
        models.load(LoadedModel("small", card(sha256="0" * 64), model.folder))


def test_truncated_file(model: LoadedModel) -> None:
    path = model.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a whole"):
        models.load(LoadedModel("small", card(), model.folder))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*model\.safetensors"):
        models.load(LoadedModel("small", card(), tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 8}, "embed_dim of at least 16"),
        ({"projektion": "linear"}, "projektion"),
        ({"text": {"kind": "bytes", "width": 15, "layers": 1, "heads": 2}}, "multiple of heads"),
        ({"image": {"kind": "convnet", "width": 4, "stages": 5}, "embed_dim": 64}, "8 px is too small"),
    ],
)
def test_config_that_cannot_be_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message):
        _build(CONFIG | change)


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
