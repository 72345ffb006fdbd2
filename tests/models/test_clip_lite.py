"""CLIP-Lite checkpoints: the official layout and ours against an independent computation, and what is refused.

The independent side builds torchvision's and transformers' modules directly and computes the projection blocks from
the file's tensors by their formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import torchvision
from small import BERT_TOKENS, MPNET_TOKENS, write_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel, MPNetConfig, MPNetModel

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.data.builtin import ArraySplit
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models import clip_lite, families
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers

one_thread = small.one_thread

PREPROCESS = clip_lite.PREPROCESS.model_copy(update={"size": 32})
TEXTS = ["A photo of a cat!", "dog", "a dog [PAD] and <pad> a cat", "cat " * 50, "", "a café: the dog's"]
WIDTH, LAYERS, HEADS = 128, 2, 2
OLD_BUFFER = "text_encoder.strans.embeddings.position_ids"


@dataclass(frozen=True)
class Independent:
    """A checkpoint of the official layout, the modules it was taken from, and its file's folder."""

    text: str
    resnet: nn.Module
    encoder: nn.Module
    state: dict[str, Tensor]
    folder: Path

    def image(self, images: Tensor) -> Tensor:
        return F.normalize(_block(self.state, "loss.global_d.img_block", self.backbone(images)), dim=1)

    def backbone(self, images: Tensor) -> Tensor:
        features: Tensor = self.resnet(images)
        return features

    def texts(self, texts: list[str]) -> Tensor:
        return F.normalize(_block(self.state, "loss.global_d.text_block", self.pooled(texts)), dim=1)

    def pooled(self, texts: list[str]) -> Tensor:
        """Padded to the full 30 tokens, the mask from the rows' lengths."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        rows = [tokenizer(text, truncation=True, max_length=30)["input_ids"] for text in texts]
        ids = torch.full((len(rows), 30), tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), 30, dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        output = self.encoder(input_ids=ids, attention_mask=mask)
        if self.text == "bert":
            pooler: Tensor = output.pooler_output
            return pooler
        return torch.stack(
            [h[: len(row)].mean(0) for h, row in zip(output.last_hidden_state, rows, strict=True)]
        )


def _block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """LayerNorm(W2·ReLU(BatchNorm(W1·x)) + b2 + S·x + s), BatchNorm by its running statistics."""
    s = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    h = x @ s["feature_nonlinear.0.weight"].T
    h = (h - s["feature_nonlinear.1.running_mean"]) / (s["feature_nonlinear.1.running_var"] + 1e-5).sqrt()
    h = (h * s["feature_nonlinear.1.weight"] + s["feature_nonlinear.1.bias"]).clamp_min(0)
    h = h @ s["feature_nonlinear.3.weight"].T + s["feature_nonlinear.3.bias"]
    h = h + x @ s["feature_shortcut.weight"].T + s["feature_shortcut.bias"]
    centred = h - h.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return unit * s["feature_block_ln.weight"] + s["feature_block_ln.bias"]


def _block_state(inputs: int, units: int) -> dict[str, Tensor]:
    return {
        "feature_nonlinear.0.weight": torch.randn(units, inputs) / inputs**0.5,
        "feature_nonlinear.1.weight": torch.rand(units) + 0.5,
        "feature_nonlinear.1.bias": torch.randn(units),
        "feature_nonlinear.1.running_mean": torch.randn(units),
        "feature_nonlinear.1.running_var": torch.rand(units) + 0.5,
        "feature_nonlinear.1.num_batches_tracked": torch.tensor(7),
        "feature_nonlinear.3.weight": torch.randn(units, units) / units**0.5,
        "feature_nonlinear.3.bias": torch.randn(units),
        "feature_shortcut.weight": torch.eye(units, inputs) + torch.randn(units, inputs) / 50,
        "feature_shortcut.bias": torch.randn(units),
        "feature_block_ln.weight": torch.rand(units) + 0.5,
        "feature_block_ln.bias": torch.randn(units),
    }


def _prior_state(inputs: int) -> dict[str, Tensor]:
    sizes = {"l0": (1000, inputs), "l1": (200, 1000), "l2": (1, 200)}
    return {f"{n}.weight": torch.randn(*s) for n, s in sizes.items()} | {
        f"{n}.bias": torch.randn(s[0]) for n, s in sizes.items()
    }


def official_keys(
    resnet: nn.Module, encoder: nn.Module, units: int, image: int, width: int
) -> dict[str, Tensor]:
    """Everything that the official code saves under `model`, the training heads included."""
    parts = {
        "text_encoder.strans": encoder.state_dict(),
        "image_encoder.img_encoder": resnet.state_dict(),
        "loss.global_d": {"temperature": torch.tensor(math.log(20.0))},
        "loss.global_d.img_block": _block_state(image, units),
        "loss.global_d.text_block": _block_state(width, units),
        "loss.prior_d": _prior_state(image),
        "loss.text_prior_d": _prior_state(width),
        "loss.visual_d": {"temperature": torch.tensor(1.0)},
        "loss.visual_d.img_block": _block_state(image, units),
        "loss.visual_d.text_block": _block_state(image, units),
        "loss.textual_d.img_block": _block_state(width, units),
        "loss.textual_d.text_block": _block_state(width, units),
    }
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    return state | {OLD_BUFFER: torch.arange(64).expand(1, -1).clone()}


def _resnet(arch: str) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(arch, weights=None)
    net.fc = nn.Identity()
    return net


def _encoder(text: str, tokens: int) -> nn.Module:
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 96,
        "vocab_size": tokens,
        "max_position_embeddings": 64,
    }
    built: nn.Module = BertModel(BertConfig(**sizes)) if text == "bert" else MPNetModel(MPNetConfig(**sizes))
    return built


@pytest.fixture(scope="module", params=["bert", "mpnet"])
def independent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Independent:
    torch.manual_seed(0)
    text = str(request.param)
    folder = tmp_path_factory.mktemp(text)
    tokens = write_tokenizer(folder / "tokenizer", specials=BERT_TOKENS if text == "bert" else MPNET_TOKENS)
    resnet, encoder = _resnet("resnet18"), _encoder(text, tokens)
    with torch.no_grad():  # so that no two layers are alike, and running statistics matter
        for module in (resnet, encoder):
            for name, tensor in module.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.is_floating_point():
                    tensor.add_(0.05 * torch.randn_like(tensor))
    state = official_keys(resnet, encoder, 512, 512, WIDTH)
    made = Independent(text, resnet.eval(), encoder.eval(), state, folder)
    write(made, "official.pth")
    return made


def write(made: Independent, name: str, state: dict[str, Tensor] | None = None) -> Path:
    """A regular checkpoint of the official code: the model beside what training needs."""
    path = made.folder / name
    whole = {
        "model": made.state if state is None else state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.2}]},
        "scheduler": {"last_epoch": 10_000},
        "scaler": {"scale": 65536.0},
        "iteration": 10_000,
    }
    torch.save(whole, path)
    return path


def card(file: str = "official.pth", preprocess: Preprocess = PREPROCESS, **config: Any) -> ModelCard:
    return ModelCard(
        title="small",
        family="clip_lite",
        config={"tokenizer": "tokenizer"} | config,
        preprocess=preprocess,
        weights=Weights(file=file),
    )


def load(made: Independent, file: str = "official.pth", **config: Any) -> Adapter:
    return families.load(ModelEntry("small", card(file, **config), made.folder))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------- the same numbers


def ours(made: Independent) -> dict[str, Tensor]:
    """The same checkpoint as `clipbench pretrain` would write it: no heads, no buffer, nothing that is not used."""
    names = {
        "text_encoder.strans.": "text.net.",
        "image_encoder.img_encoder.": "image.net.",
        "loss.global_d.img_block.": "image_projection.",
        "loss.global_d.text_block.": "text_projection.",
        "loss.global_d.temperature": "log_scale",
    }
    state = {}
    for key, value in made.state.items():
        for official, name in names.items():
            unused = key == OLD_BUFFER or (made.text == "mpnet" and "strans.pooler" in key)
            if key.startswith(official) and not unused:
                state[name + key.removeprefix(official)] = value
    return state


@pytest.mark.parametrize("layout", ["official", "ours"])
def test_embeddings_are_those_of_the_architecture(independent: Independent, layout: str) -> None:
    if layout == "ours":
        torch.save(ours(independent), independent.folder / "ours.pth")
    adapter = load(independent, f"{layout}.pth", clean_captions=False)
    images = torch.randn(5, 3, 32, 32)
    ids, lengths = adapter.tokenize(TEXTS)
    with torch.no_grad():
        close(adapter.image_tower("backbone")(images), independent.backbone(images))
        close(F.normalize(adapter.image_tower("joint")(images), dim=1), independent.image(images))
        text = F.normalize(adapter.text_tower()(ids), dim=1)
        close(text, independent.texts(TEXTS))
    assert ids.shape == (len(TEXTS), 30)
    assert lengths[3] == 30
    assert adapter.context_length == 30
    assert adapter.logit_scale == pytest.approx(20.0, rel=1e-6)
    assert (text[0] - text[1]).abs().max() > 1e-3  # not all alike


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_of_any_shape(independent: Independent, shape: tuple[int, ...]) -> None:
    state = {"loss.global_d.temperature": torch.full(shape, math.log(20.0))}
    write(independent, "temperature.pth", independent.state | state)
    assert load(independent, "temperature.pth").logit_scale == pytest.approx(20.0, rel=1e-6)


@pytest.mark.parametrize("width", [WIDTH, 80])
def test_the_text_encoders_further_layers_are_used(independent: Independent, width: int) -> None:
    """`MODEL.TEXTUAL.TRANSFORM` of the official code: two layers after pooling, in training and in evaluation."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, width)).requires_grad_(False)
    further = {
        f"text_encoder.fc{n}.{k}": v for n in (1, 2) for k, v in layers[2 * n - 2].state_dict().items()
    }
    block = {f"loss.global_d.text_block.{k}": v for k, v in _block_state(width, 512).items()}
    state = independent.state | further | block
    write(independent, "transform.pth", state)
    adapter = load(independent, "transform.pth", clean_captions=False)
    with torch.no_grad():
        text = F.normalize(adapter.text_tower()(adapter.tokenize(TEXTS)[0]), dim=1)
        close(
            text,
            F.normalize(_block(state, "loss.global_d.text_block", layers(independent.pooled(TEXTS))), dim=1),
        )
    write(independent, "half.pth", {k: v for k, v in state.items() if "fc2" not in k})
    with pytest.raises(WeightsError, match=r"missing 2: text_encoder\.fc2\.weight"):
        load(independent, "half.pth")


def test_what_is_left_out_is_said(independent: Independent, capsys: pytest.CaptureFixture[str]) -> None:
    load(independent)
    said = capsys.readouterr().err
    unused = ", text_encoder.strans.pooler. (2)" if independent.text == "mpnet" else ""
    heads = "loss.prior_d. (6), loss.text_prior_d. (6), loss.visual_d. (25), loss.textual_d. (24)"
    assert said.count("\n") == 1
    assert "official.pth: tensors that the model does not use are left out: " in said
    for part in (unused, heads, "text_encoder.strans.embeddings.position_ids (1)"):
        assert part.strip(", ") in said
    torch.save(ours(independent), independent.folder / "ours.pth")
    load(independent, "ours.pth")
    assert not capsys.readouterr().err


def test_batches_cut_at_their_longest_text_give_the_same_features(independent: Independent) -> None:
    adapter = load(independent)
    ids, lengths = adapter.tokenize(TEXTS)
    tower = adapter.text_tower()
    with torch.no_grad():
        full = tower(ids)
        for row, length in enumerate(lengths.tolist()):
            close(tower(ids[row : row + 1, :length]), full[row : row + 1])


def test_the_encoder_gives_unit_rows_of_cleaned_captions(independent: Independent) -> None:
    model = ModelEntry("small", card(), independent.folder)
    encoder = ModelEncoder(model, Runtime.choose("cpu"), progress=False)
    rows = torch.from_numpy(np.asarray(encoder.texts(["A PHOTO of a cat!!", "the-dog: it's a café."])))
    with torch.no_grad():
        close(rows, independent.texts(["a photo of a cat", "the dog its a cafe"]))
        official_script = load(independent, clean_captions=False)
        raw = official_script.text_tower()(official_script.tokenize(["A PHOTO of a cat!!"])[0])
    assert (F.normalize(raw, dim=1)[0] - rows[0]).abs().max() > 1e-3


def test_heat_maps_are_grad_cam_on_the_last_stage(independent: Independent) -> None:
    larger = card(preprocess=PREPROCESS.model_copy(update={"size": 64}))
    maps = families.load(ModelEntry("small", larger, independent.folder)).saliency_method()
    assert maps.described == "Grad-CAM on 0.net.layer4"
    assert (
        load(independent).saliency_method().described == "Grad-CAM on 0.net.layer3"
    )  # the fourth is one pixel there
    images = torch.randn(2, 3, 64, 64)
    texts = independent.texts(TEXTS[:3]).detach()
    found, scores = maps(images, texts, torch.tensor([1, 0, 1]))
    assert found.shape == (3, 2, 2)
    with torch.no_grad():
        close(scores, (independent.image(images)[[1, 0, 1]] * texts).sum(1))


def test_images_go_through_the_cards_preprocessing(independent: Independent) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    split = ArraySplit("noise", "test", ["0", "1", "2"], grey, np.zeros(3, dtype=np.int64), ("a", "b"))
    model = ModelEntry("small", card(), independent.folder)
    encoder = ModelEncoder(model, Runtime.choose("cpu"), progress=False)
    images = torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        close(torch.from_numpy(np.asarray(encoder.images(split))), independent.image((images - mean) / std))


def test_nothing_stays_on_the_meta_device(independent: Independent) -> None:
    adapter = load(independent)
    for module in (adapter.image_tower("joint"), adapter.text_tower()):
        for tensor in (*module.parameters(), *module.buffers()):
            assert not tensor.is_meta
            assert not tensor.requires_grad
        assert not any(part.training for part in module.modules())
    with pytest.raises(NotApplicable, match="tokens"):
        adapter.image_tower("tokens")


# ---------------------------------------------------------------------- refusals


def _less(state: dict[str, Tensor]) -> None:
    del state["loss.global_d.text_block.feature_shortcut.weight"]


def _less_text(state: dict[str, Tensor]) -> None:
    del state["text_encoder.strans.embeddings.word_embeddings.weight"]


def _more(state: dict[str, Tensor]) -> None:
    state["text_encoder.fc3.weight"] = torch.zeros(2, 2)


def _more_in_the_loss(state: dict[str, Tensor]) -> None:
    state["loss.hard_d.l0.weight"] = torch.zeros(1)


def _other_shape(state: dict[str, Tensor]) -> None:
    state["image_encoder.img_encoder.layer2.0.bn1.weight"] = torch.zeros(127)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_less, ["missing 1: loss.global_d.text_block.feature_shortcut.weight"]),
        (_less_text, ["missing 1: text_encoder.strans.embeddings.word_embeddings.weight"]),
        (_more, ["unexpected 1: text_encoder.fc3.weight"]),
        (_more_in_the_loss, ["unexpected 1: loss.hard_d.l0.weight"]),
        (_other_shape, ["wrong shape 1", "layer2.0.bn1.weight is (127,), the architecture has (128,)"]),
    ],
)
def test_a_file_that_does_not_fit(
    independent: Independent, spoil: Callable[[dict[str, Tensor]], None], words: list[str]
) -> None:
    state = dict(independent.state)
    spoil(state)
    write(independent, "spoilt.pth", state)
    with pytest.raises(WeightsError, match="does not fit the architecture") as caught:
        load(independent, "spoilt.pth")
    for word in words:
        assert word in str(caught.value)


def test_another_variant_than_the_card_says(independent: Independent) -> None:
    other = "mpnet" if independent.text == "bert" else "bert"
    layers = "encoder.layer goes to 1"
    marks = {"bert": "attention.self", "mpnet": "attention.attn"}
    for config, message in (
        (
            {"image": "resnet50"},
            "config.image is resnet50, the file has resnet18 .* 2, 2, 2, 2 blocks without",
        ),
        (
            {"text": other},
            f"config.text is {other}, the file has {independent.text} .*{marks[independent.text]}",
        ),
        ({"layers": 12}, f"config.layers is 12, the file has 2 .*{layers}"),
    ):
        with pytest.raises(WeightsError, match=message):
            load(independent, **config)
    load(independent, image="resnet18", text=independent.text, layers=2)


def test_truncated_and_foreign_files(independent: Independent) -> None:
    whole = (independent.folder / "official.pth").read_bytes()
    (independent.folder / "part.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        load(independent, "part.pth")
    for name, gone in (
        ("no-critic.pth", "loss.global_d.text_block."),
        ("no-image.pth", "image_encoder."),
        ("no-conv2.pth", "image_encoder.img_encoder.layer3.1."),
    ):
        write(independent, name, {k: v for k, v in independent.state.items() if not k.startswith(gone)})
        with pytest.raises(WeightsError, match="is no CLIP-Lite checkpoint"):
            load(independent, name)


def test_text_tower_whose_heads_cannot_be_known(independent: Independent) -> None:
    name = "loss.global_d.text_block.feature_shortcut.weight"
    write(independent, "narrow.pth", independent.state | {name: torch.zeros(512, 100)})
    with pytest.raises(WeightsError, match="100 wide, no multiple of the 64"):
        load(independent, "narrow.pth")


# --------------------------------------------------------------------- tokenizers


def test_the_tokenizer_is_read_at_first_use_and_what_lacks_is_said(independent: Independent) -> None:
    adapter = load(independent, tokenizer="./nowhere")
    adapter.image_tower("joint")
    with pytest.raises(WeightsError, match=r"no tokenizer at .*nowhere"):
        adapter.tokenize(TEXTS)
    with pytest.raises(WeightsError, match="no tokenizer at"):
        _ = adapter.text_fingerprint
    default = load(independent, tokenizer=None)
    name = {"bert": "bert-base-uncased", "mpnet": "sentence-transformers/paraphrase-mpnet-base-v2"}
    with pytest.raises(WeightsError, match=f"{name[independent.text]} is not in the local cache") as caught:
        default.tokenize(TEXTS)
    assert "tokenizer.json" in str(caught.value.hint)


def test_another_models_tokenizer_is_refused(independent: Independent) -> None:
    write_tokenizer(independent.folder / "larger", "a photo of cat dog and one more word")
    with pytest.raises(WeightsError, match=r"108 tokens, the text tower knows 104: it is another model's"):
        load(independent, tokenizer="larger").tokenize(TEXTS)


def test_fingerprint_tells_tokenizers_apart(independent: Independent) -> None:
    write_tokenizer(independent.folder / "other", "a photo of dog cat")  # two ids exchanged
    adapter, other = load(independent), load(independent, tokenizer="other")
    before = adapter.text_fingerprint
    adapter.tokenize(TEXTS)
    assert adapter.text_fingerprint == before != other.text_fingerprint
    assert len(before) == 64


# ------------------------------------------------------------------------ detect


FULL_SIZE = [
    *((arch, "bert", 2) for arch in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")),
    *(("resnet50", "bert", layers) for layers in (4, 6, 12)),
    ("resnet50", "mpnet", 12),
]


@pytest.mark.parametrize(("arch", "text", "layers"), FULL_SIZE)
def test_full_size_variants_are_found_from_their_keys(arch: str, text: str, layers: int) -> None:
    with torch.device("meta"):
        resnet = _resnet(arch)
        encoder: nn.Module = (
            BertModel(BertConfig(num_hidden_layers=layers)) if text == "bert" else MPNetModel(MPNetConfig())
        )
        image = 512 if arch in ("resnet18", "resnet34") else 2048
        state = official_keys(resnet, encoder, 2048, image, 768)
    found = clip_lite.described(state)
    assert found is not None
    expected = {"image": arch, "text": text, "layers": layers}
    assert found.config == clip_lite.Config.model_validate(expected)
    assert f"encoder.layer goes to {layers - 1}" in "; ".join(found.reasons.values())
    # the derived towers have exactly the file's tensors, apart from the drop-list
    derived = clip_lite._dual_config(state, clip_lite._OFFICIAL, clip_lite.Config(), found, Path("file"))
    with torch.device("meta"):
        tree = clip_lite._official_tree(DualTowers(derived, clip_lite.PREPROCESS), state)
    dropped = clip_lite._dropped(clip_lite._OFFICIAL, found.config)
    assert {k: v.shape for k, v in tree.state_dict().items()} == {
        k: v.shape for k, v in state.items() if not k.startswith(dropped)
    }
    if arch == "resnet50" and (text, layers) == ("bert", 2):
        size = {name: sum(p.numel() for p in tree.get_submodule(name).parameters()) for name in (
            "image_encoder", "text_encoder", "loss.global_d", "")}  # fmt: skip
        assert size["image_encoder"] == 23_508_032
        assert size["text_encoder"] == 38_603_520
        assert size["loss.global_d"] == 19_947_521
        assert size[""] == 82_059_073


def test_other_files_are_not_taken_for_clip_lite(independent: Independent) -> None:
    assert clip_lite.described({}) is None
    assert clip_lite.described({"visual.conv1.weight": torch.zeros(1)}) is None
    linear = dict(ours(independent)) | {"image_projection.weight": torch.zeros(1)}
    linear = {k: v for k, v in linear.items() if "feature_" not in k}
    assert clip_lite.described(linear) is None  # towers of ours with CLIP's heads
    assert clip_lite.described(ours(independent)) is not None


def test_config_of_the_family_is_strict() -> None:
    assert families.config_model("clip_lite") is clip_lite.Config
    for wrong in ({"image": "resnet49"}, {"max_tokens": 2}, {"heads": 12}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            clip_lite.Config.model_validate(wrong)
    with pytest.raises(CardError, match="more than the 64 tokens"):
        parse_config(
            {
                "image": {"kind": "torchvision", "arch": "resnet18"},
                "text": {
                    "kind": "bert", "layers": 1, "width": 64, "heads": 1, "feedforward": 64, "vocabulary": 9,
                    "positions": 64, "pool": "cls", "tokenizer": "x", "context_length": 65,
                },
                "embed_dim": 512,
                "projection": "clip-lite",
            },
            "card",
        )  # fmt: skip
