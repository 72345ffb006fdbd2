"""DeCLIP's repository: checkpoints in the official layout, against open_clip's towers built without the adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.factory
import pytest
import torch
from declip_files import (
    ARCHS,
    RN,
    TEXT,
    VIT,
    know_architectures,
    model_of,
    official,
    random_state,
    save,
    simsiam,
)
from small import write_images, write_task
from torch import Tensor, nn

from clipbench.cards.model import Weights
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.evaluation import Options, evaluate
from clipbench.metrics.similarity import late_interaction
from clipbench.models import declip, families
from clipbench.models.adapter import ModelEntry
from clipbench.protocols import zero_shot

State = dict[str, Tensor]

#: variant, architecture, joint width
RELEASED = (
    ("declip", "small-rn", 32),
    ("declip", "small-vit", 96),
    ("clip", "small-vit", 16),
    ("declip", "small-vit", 16),
    ("slip", "small-vit", 16),
    ("filip", "small-vit", 24),
    ("defilip", "small-vit", 16),
    ("clip", "small-rn", 32),
    ("filip", "small-rn", 32),
)
#: head → how many tensors it has
HEADS = {"projector": 21, "predictor": 9}
TEXTS = ["a cat", "a photo of a very small dog in the snow, seen from far above.", "", "a " * 100, "! mask !"]


@pytest.fixture(autouse=True)
def architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    know_architectures(monkeypatch)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def independent(state: State, vision: dict[str, Any], text: dict[str, Any], embed_dim: int) -> Any:
    """open_clip's CLIP with the whole vocabulary, mask token included: to be fed shifted ids."""
    settings = text | {"vocab_size": 49409, "proj_bias": True}
    clip = open_clip.CLIP(embed_dim, vision, settings, quick_gelu=True).eval()
    kept = {}
    for name, value in state.items():
        plain = name.removeprefix("encode_text.").removeprefix("text_encoder.")
        if plain in clip.state_dict():
            kept[plain] = value.reshape(clip.state_dict()[plain].shape)
    clip.load_state_dict(kept)
    return clip


def shifted(texts: list[str]) -> Tensor:
    """Token ids of the official tokenizer: one more from the mask token on."""
    ids: Tensor = open_clip.get_tokenizer("ViT-B-32")(texts)
    return ids + (ids >= 49406).long()


def captured(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What `module` returns while `run` runs."""
    kept: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, __, output: kept.append(output))
    run()
    hook.remove()
    return kept[0]


# ------------------------------------------------------------------ equality


@pytest.mark.parametrize(
    ("variant", "arch", "embed_dim", "millions"),
    [
        ("clip", "ViT-B-32", 512, 151.3),
        ("declip", "ViT-B-32", 512, 180.3),
        ("declip", "ViT-B-32", 3072, 186.2),
        ("slip", "ViT-B-32", 512, 172.3),
        ("filip", "ViT-B-32", 768, 177.3),
        ("defilip", "ViT-B-32", 512, 180.6),
        ("clip", "RN50", 1024, 104.1),
        ("declip", "RN50", 1024, 133.7),
    ],
)
def test_layout_has_the_official_number_of_parameters(
    variant: str, arch: str, embed_dim: int, millions: float
) -> None:
    """The reference's counts, taken from the official model classes: the layout written here is theirs."""
    config = open_clip.get_model_config(arch)
    shapes = official(variant, config["vision_cfg"], config["text_cfg"], embed_dim)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(buffers))
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def _compare(
    state: State, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, model: ModelEntry
) -> None:
    adapter = families.load(model)
    clip = independent(state, vision, text, embed_dim)
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ids, _ = adapter.tokenize(TEXTS)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    if adapter.compared == "joint":
        torch.testing.assert_close(adapter.image_tower("joint")(images), clip.encode_image(images), **close)
        torch.testing.assert_close(adapter.text_tower()(ids), clip.encode_text(shifted(TEXTS)), **close)
        assert adapter.logit_scale == pytest.approx(state["logit_scale"].exp().item())
    if "tokens" in adapter.image_spaces:
        last = clip.visual.layer4 if isinstance(vision["layers"], list) else clip.visual.transformer
        patches = captured(last, lambda: clip.encode_image(images))
        patches = patches.flatten(2).transpose(1, 2) if patches.ndim == 4 else patches[:, 1:]
        words = captured(clip.ln_final, lambda: clip.encode_text(shifted(TEXTS)))
        mapped = patches @ state["image_mapping.weight"].T + state["image_mapping.bias"]
        torch.testing.assert_close(adapter.image_tower("tokens")(images), mapped.flatten(1), **close)
        mapped = words @ state["text_mapping.weight"].T + state["text_mapping.bias"]
        torch.testing.assert_close(adapter.text_tower("tokens")(ids), mapped.flatten(1), **close)
        # cut at the longest text of a batch: padding counts all the same
        cut = adapter.text_tower("tokens")(ids[:1, :4])
        torch.testing.assert_close(cut, mapped[:1].flatten(1), **close)
    backbone = adapter.image_tower("backbone")(images)
    if adapter.compared == "tokens":
        torch.testing.assert_close(backbone, patches.mean(1), **close)
        assert adapter.logit_scale == pytest.approx(state["logit_scale_dense"].exp().item())
    elif isinstance(vision["layers"], list):
        torch.testing.assert_close(backbone, clip.encode_image(images), **close)
    else:
        pooled = captured(clip.visual.ln_post, lambda: clip.encode_image(images))[:, 0]
        torch.testing.assert_close(backbone, pooled, **close)


@pytest.mark.parametrize(("variant", "arch", "embed_dim"), RELEASED)
def test_embeddings_are_those_of_the_architecture(
    variant: str, arch: str, embed_dim: int, tmp_path: Path
) -> None:
    state = random_state(official(variant, ARCHS[arch], TEXT, embed_dim))
    path = save(state, tmp_path / "ckpt.pth.tar")
    _compare(state, ARCHS[arch], TEXT, embed_dim, model_of(path, variant, arch, embed_dim))


@pytest.mark.parametrize(("arch", "embed_dim"), [("ViT-B-32", 3072), ("RN50", 1024)])
def test_embeddings_at_full_size_from_half_precision(arch: str, embed_dim: int, tmp_path: Path) -> None:
    config = open_clip.get_model_config(arch)
    shapes = official("declip", config["vision_cfg"], config["text_cfg"], embed_dim)
    state = {k: v.half() if v.is_floating_point() else v for k, v in random_state(shapes).items()}
    path = save(state, tmp_path / "ckpt.pth.tar")
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    model = model_of(path, "declip", arch, embed_dim)
    _compare(rounded, config["vision_cfg"], config["text_cfg"], embed_dim, model)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
def test_other_wrappings(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    state = random_state(official("declip", VIT, TEXT, 16))
    path = save(state, tmp_path / "flat.pth.tar", wrap)
    _compare(state, VIT, TEXT, 16, model_of(path, "declip", "small-vit"))


@pytest.mark.parametrize("prefix", ["module.visual.", "visual.", ""])
@pytest.mark.parametrize("arch", ARCHS)
def test_image_tower_alone(arch: str, prefix: str, tmp_path: Path) -> None:
    state = random_state(official("declip", ARCHS[arch], TEXT, 32))
    alone = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    path = save(alone, tmp_path / "visual.pth.tar", lambda s: {f"{prefix}{k}": v for k, v in s.items()})
    adapter = families.load(model_of(path, "declip", arch, 32, image_only=True))
    images = torch.randn(2, 3, 224, 224)
    expected = independent(state, ARCHS[arch], TEXT, 32).encode_image(images)
    torch.testing.assert_close(adapter.image_tower("joint")(images), expected, rtol=1e-5, atol=1e-5)
    assert adapter.image_tower("backbone")(images).shape == (2, 32 if arch == "small-rn" else 128)
    with pytest.raises(NotApplicable, match="images only, no text tower"):
        adapter.text_tower()


@pytest.mark.parametrize("name", ["logit_scale", "logit_scale_dense"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_logit_scale_of_any_shape(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    state = random_state(official("filip", VIT, TEXT, 24))
    state[name] = state[name].reshape(shape)
    path = save(state, tmp_path / "c.pth.tar")
    _compare(state, VIT, TEXT, 24, model_of(path, "filip", "small-vit", 24))


@pytest.mark.parametrize(
    ("variant", "arch"), [("clip", "small-vit"), ("slip", "small-vit"), ("declip", "small-rn")]
)
def test_a_text_projection_without_a_bias(variant: str, arch: str, tmp_path: Path) -> None:
    state = random_state(official(variant, ARCHS[arch], TEXT, 32, bias=False))
    path = save(state, tmp_path / "c.pth.tar")
    prefix = "text_encoder" if variant == "slip" else "encode_text"
    zero = state | {f"{prefix}.text_projection.bias": torch.zeros(32)}
    _compare(zero, ARCHS[arch], TEXT, 32, model_of(path, variant, arch, 32, proj_bias=False))
    found = families.detected(str(path))
    assert found.card.config["proj_bias"] is False
    _compare(zero, ARCHS[arch], TEXT, 32, found)
    with pytest.raises(WeightsError, match=r"the text projection has no bias.*proj_bias: true"):
        families.load(model_of(path, variant, arch, 32))


@pytest.mark.parametrize("variant", ["declip", "defilip"])
def test_heads_that_no_published_config_trains(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`return_simsiam_text` and `return_simsiam_nn_text` of the official code."""
    plain = official(variant, VIT, TEXT, 16)
    state = random_state(plain | simsiam("_text", 16) | simsiam("_nn_text", 16))
    path = save(state, tmp_path / "c.pth.tar")
    capsys.readouterr()
    _compare(state, VIT, TEXT, 16, model_of(path, variant, "small-vit", 16))
    said = capsys.readouterr().err
    heads = [f"{head}{of}. ({count})" for of in ("", "_text", "_nn_text") for head, count in HEADS.items()]
    for head in (*heads, "text_label_predictor. (2)"):
        assert head in said, head
    assert families.detected(str(path)).card.config["variant"] == variant
    other = save(state | {"projector_d.linear1.weight": torch.zeros(1)}, tmp_path / "d.pth.tar")
    with pytest.raises(WeightsError, match=r"unexpected 1: projector_d\.linear1\.weight"):
        families.load(model_of(other, variant, "small-vit", 16))


def test_missing_batch_counters_do_not_matter(tmp_path: Path) -> None:
    state = random_state(official("clip", RN, TEXT, 32))
    path = save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "c.pth.tar")
    _compare(state, RN, TEXT, 32, model_of(path, "clip", "small-rn"))


# --------------------------------------------------------------------- traps


@pytest.fixture
def declip_file(tmp_path: Path) -> tuple[State, Path]:
    state = random_state(official("declip", VIT, TEXT, 16))
    return state, save(state, tmp_path / "ckpt.pth.tar")


def test_stock_token_ids_on_the_whole_vocabulary_would_be_wrong(declip_file: tuple[State, Path]) -> None:
    """The mask-token trap: OpenAI's ids mean other tokens there, and nothing complains."""
    state, path = declip_file
    adapter = families.load(model_of(path, "declip", "small-vit"))
    ids, _ = adapter.tokenize(TEXTS)
    assert int(ids.max()) == 49407
    clip = independent(state, VIT, TEXT, 16)
    right, trapped = clip.encode_text(shifted(TEXTS)), clip.encode_text(ids)
    found = adapter.text_tower()(ids)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    assert torch.cosine_similarity(trapped, right).max() < 0.99


def test_embeddings_without_the_projections_bias_would_be_wrong(declip_file: tuple[State, Path]) -> None:
    """The bias trap: OpenAI's form cannot hold it, and dropping it moves every text."""
    state, path = declip_file
    adapter = families.load(model_of(path, "declip", "small-vit"))
    ids, _ = adapter.tokenize(TEXTS)
    clip = independent(state, VIT, TEXT, 16)
    right = clip.encode_text(shifted(TEXTS))
    clip.text_projection.bias.zero_()
    trapped = clip.encode_text(shifted(TEXTS))
    torch.testing.assert_close(adapter.text_tower()(ids), right, rtol=1e-5, atol=1e-5)
    assert (trapped - right).abs().max() > 0.1


def test_global_embedding_of_filip_is_not_offered(tmp_path: Path) -> None:
    path = save(random_state(official("filip", VIT, TEXT, 24)), tmp_path / "f.pth.tar")
    adapter = families.load(model_of(path, "filip", "small-vit"))
    with pytest.raises(NotApplicable, match=r'no image feature space "joint" \(has: tokens, backbone\)'):
        adapter.image_tower("joint")
    with pytest.raises(NotApplicable, match='no text feature space "joint"'):
        adapter.text_tower()


def _lose(name: str) -> Callable[[State], None]:
    def spoil(state: State) -> None:
        del state[name]

    return spoil


def _put(name: str, *shape: int) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lose("encode_text.ln_final.bias"), r"missing 1: encode_text\.ln_final\.bias"),
        (
            _lose("visual.transformer.resblocks.1.mlp.c_fc.weight"),
            r"missing 1: visual\.transformer\.resblocks\.1",
        ),
        (_lose("visual.proj"), r"missing 1: visual\.proj"),
        (_lose("encode_text.token_embedding.weight"), r"missing 1: encode_text\.token_embedding"),
        (_lose("logit_scale"), "missing 1: logit_scale"),
        (_put("encode_text.extra", 3), r"unexpected 1: encode_text\.extra"),
        (_put("predictor_sim.linear1.weight", 3), r"unexpected 1: predictor_sim"),
        (_put("logit_scale", 2), r"wrong shape 1: logit_scale is \(2,\)"),
        (_put("visual.ln_post.bias", 9), r"wrong shape 1: visual\.ln_post\.bias is \(9,\).*\(128,\)"),
        (_lose("encode_text.text_projection.bias"), r"the text projection has no bias.*proj_bias: true"),
        (_put("encode_text.token_embedding.weight", 49408, 64), r"has 49,408 tokens; this family has 49,409"),
    ],
)
def test_key_that_does_not_fit(spoil: Callable[[State], None], message: str, tmp_path: Path) -> None:
    state = random_state(official("declip", VIT, TEXT, 16))
    spoil(state)
    path = save(state, tmp_path / "ckpt.pth.tar")
    with pytest.raises(WeightsError, match=message):
        families.load(model_of(path, "declip", "small-vit", 16))


@pytest.mark.parametrize("said", ["clip", "slip", "filip", "declip", "defilip"])
@pytest.mark.parametrize("is_really", ["clip", "slip", "filip", "declip", "defilip"])
def test_swapped_variant(said: str, is_really: str, tmp_path: Path) -> None:
    path = save(random_state(official(is_really, VIT, TEXT, 16)), tmp_path / "c.pth.tar")
    model = model_of(path, said, "small-vit", 16)
    if said == is_really:
        families.load(model)
        return
    with pytest.raises(
        WeightsError, match=rf"is a {is_really} checkpoint \(.*\), the card says variant: {said}"
    ):
        families.load(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"embed_dim": 3072}, "the joint space is 16 wide, the card says embed_dim: 3072"),
        ({"proj_bias": False}, "the text projection has a bias .*proj_bias: false"),
        ({"image_only": True}, "holds a text tower, the card says image_only"),
        ({"arch": "small-rn"}, "does not fit the architecture"),
    ],
)
def test_another_checkpoint_than_the_card_says(
    config: dict[str, Any], message: str, declip_file: tuple[State, Path]
) -> None:
    given = {"variant": "declip", "arch": "small-vit", **config}
    with pytest.raises(WeightsError, match=message):
        families.load(model_of(declip_file[1], **given))


def test_full_card_on_a_visual_file(declip_file: tuple[State, Path], tmp_path: Path) -> None:
    state, _ = declip_file
    path = save({k: v for k, v in state.items() if k.startswith("visual.")}, tmp_path / "visual.pth.tar")
    with pytest.raises(WeightsError, match=r"has no text tower.*\n.*declip-r50-visual"):
        families.load(model_of(path, "declip", "small-vit"))


def test_other_preprocessing_is_refused(declip_file: tuple[State, Path]) -> None:
    model = model_of(declip_file[1], "declip", "small-vit")
    clips = declip.PREPROCESS.model_copy(update={"mean": open_clip.OPENAI_DATASET_MEAN})
    card = model.card.model_copy(update={"preprocess": clips})
    with pytest.raises(
        CardError, match=r"preprocess\.mean is \[0\.48.*published\s+with \[0\.485, 0\.456, 0\.406\]"
    ):
        families.load(ModelEntry("m", card, model.folder))


def test_truncated_file_and_wrong_hash(declip_file: tuple[State, Path]) -> None:
    _, path = declip_file
    model = model_of(path, "declip", "small-vit")
    wrong = model.card.model_copy(update={"weights": Weights(file=str(path), sha256="0" * 64)})
    with pytest.raises(WeightsError, match="is not the file that the card means: sha256 is"):
        families.load(ModelEntry("m", wrong, path.parent))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="is not a whole checkpoint"):
        families.load(model)


# ------------------------------------------------------------ token by token


def test_late_interaction_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((7, 5, 4)).astype(np.float32)
    texts = rng.standard_normal((3, 6, 4)).astype(np.float32)
    expected = [
        [np.mean([max(float(p @ w) for w in text) for p in image]) for text in texts] for image in images
    ]
    np.testing.assert_allclose(late_interaction(images, texts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 4 * 5 * 6, 3 * 4 * 5 * 6, 1 << 20])
def test_late_interaction_in_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((7, 5, 4)).astype(np.float32)
    texts = rng.standard_normal((3, 6, 4)).astype(np.float32)
    whole = late_interaction(images, texts)
    monkeypatch.setattr("clipbench.metrics.similarity._BLOCK_BYTES", block)
    np.testing.assert_allclose(late_interaction(images, texts), whole, rtol=1e-6)


def test_zero_shot_of_filip_is_the_official_evaluation(tmp_path: Path) -> None:
    """Reference 6.2 written out: one image, one class, one token at a time."""
    path = save(random_state(official("filip", VIT, TEXT, 24)), tmp_path / "f.pth.tar")
    model = model_of(path, "filip", "small-vit", 24)
    data = write_images(tmp_path / "data", 12, side=40)
    catalog = Catalog([write_task(tmp_path / "tasks")])
    entry = catalog.dataset("animals")
    split = open_split(entry, "test", DataPaths({"animals": data}, ()))
    encoder = ModelEncoder(model, Runtime("cpu", "fp32"), progress=False)
    outcome = zero_shot.run(entry.card, {"test": split}, encoder, zero_shot.Params(), 0)

    adapter = families.load(model)
    images = np.asarray(encoder.images(split, "tokens")).reshape(len(split), 49, 256)
    np.testing.assert_allclose(np.linalg.norm(images, axis=2), 1, rtol=1e-5)
    classes = []
    for prompts in zero_shot.prompts(entry.card, "default"):
        tokens = adapter.text_tower("tokens")(adapter.tokenize(prompts)[0]).view(-1, 77, 256).double()
        mean = (tokens / tokens.norm(dim=2, keepdim=True)).mean(0)
        classes.append(mean / mean.norm())
    logits = torch.tensor(
        [[(torch.tensor(i).double() @ c.T).max(dim=1).values.mean() for c in classes] for i in images]
    )
    assert outcome.samples["prediction"].tolist() == logits.argmax(1).tolist()
    confidence = (logits * adapter.logit_scale).softmax(1).amax(1)
    np.testing.assert_allclose(np.asarray(outcome.samples["confidence"]), confidence, rtol=1e-4)


def test_image_only_model_is_not_applicable_before_anything_is_encoded(tmp_path: Path) -> None:
    state = random_state(official("declip", VIT, TEXT, 16))
    path = save({k: v for k, v in state.items() if k.startswith("visual.")}, tmp_path / "v.pth.tar")
    model = model_of(path, "declip", "small-vit", 16, image_only=True)
    catalog = Catalog([write_task(tmp_path / "tasks")])
    paths = DataPaths({"animals": write_images(tmp_path / "data", 12)}, ())
    options = Options(Runtime("cpu", "fp32"), data=paths, progress=False)
    (result,) = evaluate([model], catalog.tasks(["animals-zs"]), options)
    assert result.record is None
    assert result.reason == "declip small-vit: images only, no text tower"
    assert not list((tmp_path / "cache").rglob("*.shard"))


def test_what_is_left_out_of_the_file_is_in_the_record(tmp_path: Path) -> None:
    """Also where the features are cached and nothing of the file is read again."""
    path = save(random_state(official("declip", VIT, TEXT, 16)), tmp_path / "c.pth.tar")
    catalog = Catalog([write_task(tmp_path / "tasks")])
    paths = DataPaths({"animals": write_images(tmp_path / "data", 12)}, ())
    options = Options(Runtime("cpu", "fp32"), data=paths, progress=False)
    heads = ["projector. (21)", "predictor. (9)", "text_label_predictor. (2)"]
    for images in (12, 0):
        model = model_of(path, "declip", "small-vit", 16)
        (result,) = evaluate([model], catalog.tasks(["animals-zs"]), options)
        assert result.record is not None
        assert result.record.timing.images_encoded == images
        assert result.record.encoder["left_out"] == heads


# ------------------------------------------------------------------- ad hoc


@pytest.mark.parametrize(("variant", "arch", "embed_dim"), RELEASED)
def test_file_alone_says_what_it_is(variant: str, arch: str, embed_dim: int, tmp_path: Path) -> None:
    path = save(random_state(official(variant, ARCHS[arch], TEXT, embed_dim)), tmp_path / "ckpt.pth.tar")
    model = families.detected(str(path))
    assert model.card.family == "declip"
    expected = {
        "variant": variant,
        "arch": arch,
        "embed_dim": embed_dim,
        "proj_bias": True,
        "image_only": False,
    }
    assert model.card.config == expected
    assert f"{variant} of DeCLIP's repository, {arch}, {embed_dim}-d" in (model.card.notes or "")
    families.load(model)


def test_image_tower_alone_is_not_guessed(tmp_path: Path) -> None:
    state = random_state(official("declip", VIT, TEXT, 16))
    for prefix in ("visual.", ""):
        kept = {prefix + k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
        path = save(kept, tmp_path / "visual.pth.tar", lambda s: s)
        with pytest.raises(WeightsError, match=r"of no family that is known.*\n.*looks the same in several"):
            families.detected(str(path))
