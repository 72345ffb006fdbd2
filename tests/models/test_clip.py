"""Checkpoints: read without running anything, loaded strictly; and open_clip's models behind the Adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import open_clip.factory
import pytest
import torch
from torch import Tensor

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.catalog import Catalog
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models import clip, families
from clipbench.models.adapter import ModelEntry
from clipbench.models.weights.open_clip import known_files, preprocess_of

State = dict[str, Tensor]


def card(arch: str = "RN50", quick_gelu: bool = False, **weights: Any) -> ModelCard:
    return ModelCard(
        title="test",
        family="clip",
        config={"arch": arch, "quick_gelu": quick_gelu},
        preprocess=Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        weights=Weights(**(weights or {"file": "model.pt"})),
    )


# -------------------------------------------------------------- open_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tiny-vit": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "tiny-rn": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "tiny-custom": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": TEXT,
    },
}
PROMPTS = ["a cat", "a photo of a very small dog in the snow, seen from far above.", "", "a " * 100]


@pytest.fixture(autouse=True)
def architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in ARCHITECTURES.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


def build(arch: str, quick_gelu: bool = False) -> Any:
    """open_clip's own model with random weights, no two of its layers alike."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(arch, force_quick_gelu=quick_gelu, load_weights=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(model: Any, folder: Path, arch: str, quick_gelu: bool = False) -> ModelEntry:
    torch.save(model.state_dict(), folder / "model.pt")
    return ModelEntry("tiny", card(arch, quick_gelu), folder)


def images(arch: str) -> Tensor:
    side = ARCHITECTURES[arch]["vision_cfg"]["image_size"]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_features_are_open_clips_own(arch: str, quick_gelu: bool, tmp_path: Path) -> None:
    model = build(arch, quick_gelu)
    adapter = families.load(saved(model, tmp_path, arch, quick_gelu))
    batch = images(arch)
    expected = model.encode_image(batch)
    torch.testing.assert_close(adapter.image_tower("joint")(batch), expected, rtol=1e-5, atol=1e-6)
    ids, lengths = adapter.tokenize(PROMPTS)
    assert torch.equal(ids, open_clip.get_tokenizer(arch)(PROMPTS))
    assert lengths.tolist() == [4, 18, 2, 77]
    expected = model.encode_text(ids)
    torch.testing.assert_close(adapter.text_tower()(ids), expected, rtol=1e-5, atol=1e-6)
    assert adapter.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert adapter.context_length == 77
    assert adapter.weights_sha256 == sha256_file(tmp_path / "model.pt")
    with pytest.raises(NotApplicable, match="tokens"):
        adapter.image_tower("tokens")


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-custom"])
def test_text_cut_at_the_longest_token_gives_the_same_features(arch: str, tmp_path: Path) -> None:
    model = build(arch)
    adapter = families.load(saved(model, tmp_path, arch))
    tower = adapter.text_tower()
    ids, lengths = adapter.tokenize(PROMPTS[:3])
    expected = model.encode_text(ids)
    cut = tower(ids[:, : int(lengths.max())])
    assert cut.shape == expected.shape
    error = (cut - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < 1e-5
    alone = tower(ids[:1, : int(lengths[0])])
    assert float((alone - expected[:1]).norm() / expected[:1].norm()) < 1e-5
    with pytest.raises(AssertionError):  # one token less is too short
        torch.testing.assert_close(tower(ids[:1, : int(lengths[0]) - 1]), expected[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("without_gradients")
def test_backbone_is_the_feature_before_the_projection(tmp_path: Path) -> None:
    model = build("tiny-vit")
    adapter = families.load(saved(model, tmp_path, "tiny-vit"))
    batch = images("tiny-vit")
    features = adapter.image_tower("backbone")(batch)
    assert features.shape == (2, 64)
    torch.testing.assert_close(features @ model.visual.proj, model.encode_image(batch), rtol=1e-5, atol=1e-6)
    model.visual.proj = None
    torch.testing.assert_close(features, model.visual(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("without_gradients")
def test_backbone_of_clips_resnet_is_the_attention_pool(tmp_path: Path) -> None:
    model = build("tiny-rn")
    adapter = families.load(saved(model, tmp_path, "tiny-rn"))
    batch = images("tiny-rn")
    assert torch.equal(adapter.image_tower("backbone")(batch), adapter.image_tower("joint")(batch))


@pytest.mark.usefixtures("without_gradients")
def test_half_precision_checkpoint_with_wrapping_and_a_vector_scale(tmp_path: Path) -> None:
    model = build("tiny-rn")
    wrapped = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    wrapped["module.logit_scale"] = wrapped["module.logit_scale"].reshape(1)
    torch.save({"epoch": 1, "state_dict": wrapped}, tmp_path / "model.pt")
    adapter = families.load(ModelEntry("tiny", card("tiny-rn"), tmp_path))
    batch = images("tiny-rn")
    features, expected = adapter.image_tower("joint")(batch), model.encode_image(batch)
    assert features.dtype == torch.float32
    error = (features - expected).norm(dim=1) / expected.norm(dim=1)
    assert 0 < float(error.max()) < 0.02
    assert adapter.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-2)


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openai_archive_loads_like_a_state_dict(tmp_path: Path) -> None:
    model = build("tiny-rn", quick_gelu=True)
    batch = images("tiny-rn")
    expected = model.encode_image(batch)
    del model.attn_mask
    # a constant of OpenAI's program, no buffer
    model.attn_mask = torch.full((77, 77), float("-inf")).triu_(1)
    model.register_buffer("input_resolution", torch.tensor(64))
    for name in ("vocab_size", "context_length"):
        delattr(model, name)
        model.register_buffer(name, torch.tensor(77))
    traced = torch.jit.trace(model, (batch, open_clip.tokenize(["a", "b"])))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, tmp_path / "model.pt")
    adapter = families.load(ModelEntry("tiny", card("tiny-rn", True), tmp_path))
    torch.testing.assert_close(adapter.image_tower("joint")(batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize("trained", ["tiny-vit", "tiny-custom"])
@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-custom"])
def test_text_keys_of_custom_text_models(arch: str, trained: str, tmp_path: Path) -> None:
    """Trained with and without `--force-custom-text`: the same towers, the text's below `text.` or not."""
    model = build(trained)
    assert ("text.ln_final.bias" in model.state_dict()) == (trained == "tiny-custom")
    saved(model, tmp_path, arch)
    adapter = families.load(ModelEntry("tiny", card(arch), tmp_path))
    ids, _ = adapter.tokenize(PROMPTS)
    torch.testing.assert_close(adapter.text_tower()(ids), model.encode_text(ids), rtol=1e-5, atol=1e-6)
    with pytest.raises(CardError, match="open_clip has no pretrained tag of tiny-vit, which would tell"):
        families.detected(str(tmp_path / "model.pt"))
    torch.save(model.state_dict() | {"text.extra": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"unexpected 1: text\.extra"):
        families.load(ModelEntry("tiny", card(arch), tmp_path))


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_logit_bias_that_the_architecture_has_not(
    arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(arch)
    torch.save(model.state_dict() | {"logit_bias": torch.tensor(-10.0)}, tmp_path / "model.pt")
    adapter = families.load(ModelEntry("tiny", card(arch), tmp_path))
    assert torch.equal(adapter.image_tower("joint")(images(arch)), model.encode_image(images(arch)))
    assert adapter.logit_bias == -10
    assert adapter.left_out == ()
    assert "left out" not in capsys.readouterr().err
    assert families.load(saved(model, tmp_path, arch)).logit_bias is None


def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    torch.save(build("tiny-vit").state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        WeightsError, match=r"does not fit.*missing \d+: visual\.bn1.*unexpected \d+: .*wrong shape 1: "
    ):
        families.load(ModelEntry("tiny", card("tiny-rn"), tmp_path))


@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-rn"])
def test_scale_of_another_shape_does_not_fit(arch: str, tmp_path: Path) -> None:
    state = build(arch).state_dict() | {"logit_scale": torch.zeros(2)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"wrong shape 1: logit_scale is \(2,\)"):
        families.load(ModelEntry("tiny", card(arch), tmp_path))


# ---------------------------------------------------------- the QuickGELU trap


@pytest.mark.usefixtures("without_gradients")
def test_the_wrong_activation_loads_silently_and_moves_features(tmp_path: Path) -> None:
    model = build("tiny-vit", quick_gelu=True)
    loaded = {q: families.load(saved(model, tmp_path, "tiny-vit", q)) for q in (True, False)}
    batch = images("tiny-vit")
    right, wrong = (loaded[q].image_tower("joint")(batch) for q in (True, False))
    ids, _ = loaded[True].tokenize(PROMPTS)
    right_text, wrong_text = (loaded[q].text_tower()(ids) for q in (True, False))
    for a, b in ((right, wrong), (right_text, wrong_text)):
        assert float(((a - b).norm(dim=1) / a.norm(dim=1)).min()) > 1e-3


@pytest.mark.parametrize(
    ("arch", "tag", "trained_with"),
    [("ViT-B-32", "openai", True), ("RN50", "openai", True), ("ViT-B-32", "laion2b_s34b_b79k", False)],
)
def test_card_of_a_tag_cannot_state_the_wrong_activation(arch: str, tag: str, trained_with: bool) -> None:
    wrong = ModelEntry("mine", card(arch, not trained_with, open_clip=tag), Path())
    with pytest.raises(CardError, match=f"mine: the tag {tag} was trained with quick_gelu") as caught:
        families.load(wrong)
    assert f"set config.quick_gelu: {str(trained_with).lower()}" in str(caught.value)
    assert (f"use the architecture {arch}-quickgelu" in str(caught.value)) == trained_with


def test_known_file_cannot_be_loaded_with_the_wrong_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(build("tiny-vit", quick_gelu=True), tmp_path, "tiny-vit")
    digest = sha256_file(tmp_path / "model.pt")
    known = {digest[:8]: ("ViT-B-32@openai", {"quick_gelu": True})}
    monkeypatch.setattr(clip, "known_files", lambda: known)
    with pytest.raises(
        CardError, match=r"tiny: this file \(ViT-B-32@openai\) was trained with quick_gelu true"
    ):
        families.load(model)
    with pytest.raises(CardError, match="trained with quick_gelu true"):
        families.load(ModelEntry("x", clip.ad_hoc(f"open_clip:tiny-vit@{tmp_path / 'model.pt'}"), tmp_path))
    families.load(ModelEntry("tiny", card("tiny-vit", True), tmp_path))


def test_registry_knows_openais_files_by_their_published_hashes() -> None:
    known = known_files()
    # https://github.com/openai/CLIP, clip/clip.py: the sha256 in each download address
    published = {"afeb0e10": "RN50", "8fa8567b": "RN101", "40d36571": "ViT-B-32", "b8cca3fd": "ViT-L-14"}
    for prefix, arch in published.items():
        name, described = known[prefix]
        assert name.startswith(arch)
        assert described["quick_gelu"]
    assert all(len(prefix) == 8 for prefix in known)


# ------------------------------------------------------------------- ad hoc


def test_ad_hoc_tag_takes_everything_from_open_clip() -> None:
    made = clip.ad_hoc("open_clip:ViT-B-32@openai")
    assert made.config == {"arch": "ViT-B-32", "quick_gelu": True}
    assert made.weights.open_clip == "openai"
    assert made.preprocess.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert (made.preprocess.side, made.preprocess.interpolation, made.preprocess.resize) == (
        224,
        "bicubic",
        "shortest",
    )
    squashed = clip.ad_hoc("open_clip:ViT-B-16-SigLIP@webli").preprocess
    assert (squashed.resize, squashed.mean) == ("squash", (0.5, 0.5, 0.5))


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny-vit has a pretrained tag, which says how images are prepared."""
    pretrained = open_clip.pretrained
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", {"some": pretrained._pcfg()})


@pytest.mark.usefixtures("without_gradients", "tagged")
def test_ad_hoc_file_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("tiny-vit")
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    monkeypatch.chdir(tmp_path)
    for spec in (f"open_clip:tiny-vit@{tmp_path}/mine.pt", "open_clip:tiny-vit@mine.pt"):
        made = clip.ad_hoc(spec)
        assert made.preprocess.side == 32
        adapter = families.load(ModelEntry(spec, made, tmp_path))
        batch = images("tiny-vit")
        torch.testing.assert_close(adapter.image_tower("joint")(batch), model.encode_image(batch))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("open_clip:VitB32@openai", r'unknown open_clip architecture "VitB32"'),
        ("open_clip:ViT-B-23@openai", r'unknown open_clip architecture "ViT-B-23"; did you mean "ViT-B-32"'),
        ("open_clip:RN50@openia", r'unknown open_clip tag of RN50 "openia"; did you mean "openai".*cc12m'),
        ("open_clip:RN50", r'"open_clip:RN50" names no weights.*\n.*open_clip:<arch>@<tag or path>'),
        ("open_clip:@openai", "names no weights"),
    ],
)
def test_ad_hoc_specs_that_are_wrong(spec: str, message: str) -> None:
    with pytest.raises(CardError, match=message):
        clip.ad_hoc(spec)


def test_ad_hoc_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*gone\.pt"):
        clip.ad_hoc(f"open_clip:tiny-vit@{tmp_path}/gone.pt")


@pytest.mark.parametrize("arch", open_clip.list_models())
def test_a_file_is_prepared_as_every_published_tag_or_a_card_is_asked_for(arch: str, tmp_path: Path) -> None:
    path = tmp_path / "my run.pt"
    path.write_bytes(b"weights")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    ways = [clip.ad_hoc(f"open_clip:{arch}@{tag}").preprocess for tag in tags]
    if ways and all(way == ways[0] for way in ways):
        made = Catalog().model(f"open_clip:{arch}@{path}")
        assert made.card.preprocess == ways[0]
        assert made.detected  # so that its notes are printed
        assert f"as of all published tags of {arch} ({tags[0]}" in (made.card.notes or "")
        quick = [bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu")) for tag in tags]
        if any(own != made.card.config["quick_gelu"] for own in quick):
            assert "GELU, as open_clip's" in (made.card.notes or "")
        return
    with pytest.raises(CardError) as caught:
        clip.ad_hoc(f"open_clip:{arch}@{path}")
    for tag in tags[:3]:
        assert tag in caught.value.message
    assert len(tags) or "has no pretrained tag" in caught.value.message
    text = (caught.value.hint or "").partition("\n")[2]
    (tmp_path / "mine.yaml").write_text(text)
    card = Catalog().model(str(tmp_path / "mine.yaml")).card
    assert card.weights.file == str(path)
    assert card.config["arch"] == arch
    assert not ways or card.preprocess in ways


def test_disagreeing_tags_are_no_matter_for_a_file_that_is_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"weights")
    described = open_clip.get_pretrained_cfg("ViT-L-14", "laion2b_s32b_b82k")
    monkeypatch.setattr(clip, "known_files", lambda: {sha256_file(path)[:8]: ("ViT-L-14@a_tag", described)})
    made = clip.ad_hoc(f"open_clip:ViT-L-14@{path}")
    assert made.preprocess.mean == (0.5, 0.5, 0.5)
    assert "the file's hash is that of ViT-L-14@a_tag" in (made.notes or "")


def test_an_archive_of_openais_form_is_not_loaded_with_gelu(tmp_path: Path) -> None:
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(build("tiny-vit").state_dict() | numbers, tmp_path / "model.pt")
    model = ModelEntry("mine", card("tiny-vit", file="model.pt"), tmp_path)
    with pytest.raises(CardError, match="an archive of OpenAI's own form, was trained with quick_gelu true"):
        families.load(model)


def test_another_size_of_images_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = build("tiny-vit").state_dict()
    grid = state["visual.positional_embedding"]
    state["visual.positional_embedding"] = torch.zeros(37, grid.shape[1])
    torch.save(state, tmp_path / "model.pt")
    model = ModelEntry("mine", card("tiny-vit", file="model.pt"), tmp_path)
    with pytest.raises(
        WeightsError, match=r"trained on images of \d+ px, tiny-vit takes 32 px; .*\n.*hf-hub"
    ):
        families.load(model)
    configs = open_clip.factory._MODEL_CONFIGS
    patch = configs["tiny-vit"]["vision_cfg"]["patch_size"]
    larger = configs["tiny-vit"] | {
        "vision_cfg": configs["tiny-vit"]["vision_cfg"] | {"image_size": 6 * patch}
    }
    monkeypatch.setitem(configs, "tiny-vit-large", larger)
    with pytest.raises(WeightsError, match=r"name the architecture of that size: tiny-vit-large"):
        families.load(model)


@pytest.fixture
def resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny-large`: `tiny-vit` for images twice as wide, and for 50 tokens."""
    small = ARCHITECTURES["tiny-vit"]
    vision = small["vision_cfg"] | {"image_size": 64}
    larger = small | {"vision_cfg": vision, "text_cfg": TEXT | {"context_length": 50}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-large", larger)


def asking(arch: str, folder: Path) -> ModelEntry:
    asked = {"arch": arch, "quick_gelu": False, "resize_positions": True}
    return ModelEntry("tiny", card(arch).model_copy(update={"config": asked}), folder)


@pytest.mark.usefixtures("without_gradients", "resized")
@pytest.mark.parametrize("half", [False, True])
def test_positions_are_resized_where_the_card_asks(
    half: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build("tiny-vit").state_dict()
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in state.items()}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="does not fit"):
        families.load(ModelEntry("tiny", card("tiny-large"), tmp_path))
    capsys.readouterr()
    adapter = families.load(asking("tiny-large", tmp_path))
    said = capsys.readouterr().err
    assert "visual.positional_embedding is resized from 17 to 65 positions" in said
    assert ": positional_embedding is resized from 77 to 50 positions" in said
    theirs = build("tiny-large")
    torch.save({k: v.float() for k, v in state.items()}, tmp_path / "theirs.pt")
    open_clip.load_checkpoint(theirs, str(tmp_path / "theirs.pt"))
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    batch = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(adapter.image_tower("joint")(batch), theirs.encode_image(batch), **close)
    ids, _ = adapter.tokenize(PROMPTS)
    torch.testing.assert_close(adapter.text_tower()(ids), theirs.encode_text(ids), **close)


@pytest.mark.usefixtures("resized")
def test_resized_positions_lie_between_their_neighbours(tmp_path: Path) -> None:
    """A plane stays a plane away from the edges, and the class token stays; worked out by hand."""
    state = build("tiny-vit").state_dict()
    places = torch.arange(4) + 0.5  # of 4 × 4 patches, in patches
    plane = (10 * places[:, None] + places).reshape(16, 1).expand(-1, 64)
    state["visual.positional_embedding"] = torch.cat([torch.full((1, 64), 7.0), plane])
    torch.save(state, tmp_path / "model.pt")
    tower = families.load(asking("tiny-large", tmp_path)).image_tower("joint")
    found = tower.get_parameter("positional_embedding")
    finer = (torch.arange(8) + 0.5) / 2
    torch.testing.assert_close(found[0], torch.full((64,), 7.0))
    grid = found[1:, 0].reshape(8, 8)
    expected = 10 * finer[:, None] + finer
    torch.testing.assert_close(grid[3:5, 3:5], expected[3:5, 3:5], rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("resized")
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("visual.positional_embedding", (16, 64), "cannot be resized"),
        ("positional_embedding", (77, 31), "cannot be resized: text pos_embed width"),
        (
            "visual.positional_embedding",
            (17, 32),
            r"wrong shape 1: visual\.positional_embedding is \(65, 32\)",
        ),
    ],
)
def test_positions_that_cannot_be_resized(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    torch.save(build("tiny-vit").state_dict() | {name: torch.zeros(shape)}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=message):
        families.load(asking("tiny-large", tmp_path))


def test_tag_without_network_says_how_to_bring_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip.pretrained

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", unreachable)
    model = ModelEntry("mine", clip.ad_hoc("open_clip:RN50@openai"), Path())
    with pytest.raises(WeightsError, match=r"mine: the weights RN50@openai.*service not known") as caught:
        families.load(model)
    assert "open_clip:RN50-quickgelu@PATH" in str(caught.value)


def test_first_use_of_a_tag_is_recorded_and_checked_ever_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip.pretrained

    from clipbench.errors import ClipbenchError

    path = tmp_path / "fetched.pt"
    torch.save(build("tiny-vit").state_dict(), path)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": "somewhere"})
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", lambda *_: str(path))
    model = ModelEntry("mine", card("tiny-vit", open_clip="some_tag"), Path())
    first = families.load(model).weights_sha256
    assert families.load(model).weights_sha256 == first
    torch.save(build("tiny-vit").half().state_dict(), path)
    with pytest.raises(
        ClipbenchError, match=f"sha256 of the weights of tiny-vit@some_tag has changed: {first}"
    ):
        families.load(model)


def test_models_for_images_that_are_not_square_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ARCHITECTURES["tiny-vit"]
    wide = config | {"vision_cfg": config["vision_cfg"] | {"image_size": [224, 320]}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-wide", wide)
    assert preprocess_of("ViT-B-32", {"size": [3, 224, 224]}).size == 224
    with pytest.raises(CardError, match="takes images of 224 × 320 px; only square images are supported"):
        preprocess_of("tiny-wide", {})
