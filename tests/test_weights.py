"""Checkpoints: read without running anything, loaded strictly; and open_clip's models behind the Adapter."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import open_clip.factory
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipbench.cards.cards import ModelCard, Preprocess, Weights
from clipbench.catalog import Catalog
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models import clip, families
from clipbench.models.adapter import ModelEntry
from clipbench.models.weights.open_clip import known_files, preprocess_of
from clipbench.models.weights.reading import load_strict, read_state_dict
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


def same(left: State, right: State) -> bool:
    """The same names, types and values."""
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


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


def test_drop_list_is_the_adapters(fitting: State) -> None:
    fitting["input_resolution"] = torch.tensor(224)
    with pytest.raises(WeightsError, match="unexpected 1: input_resolution"):
        load_strict(Small(), fitting, Path("file"))
    load_strict(Small(), fitting, Path("file"), adopt=lambda name: name != "input_resolution")


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


def test_models_for_images_that_are_not_square_are_refused() -> None:

    assert preprocess_of("ViT-B-32", {"size": [3, 224, 224]}).size == 224
    with pytest.raises(CardError, match="takes images of 224 × 320 px; only square images are supported"):
        preprocess_of("ViT-B-32", {"size": [224, 320]})
