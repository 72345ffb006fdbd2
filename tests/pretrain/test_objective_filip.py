"""Late interaction in training: the loss against loops in float64, heads for tokens, and models that they become."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn import functional as F

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, NotApplicable
from clipbench.evaluation import Options, evaluate
from clipbench.metrics.similarity import late_interactions, similarity
from clipbench.models import families
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.saliency import TokenCosine
from clipbench.models.towers.adapters import serialise
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.data.frozen_features import PrecomputedImages
from clipbench.pretrain.data.pairs import DrawnPairs
from clipbench.pretrain.data.source import Source
from clipbench.pretrain.loop import pretrain
from clipbench.pretrain.objectives import declip, defilip, filip
from clipbench.pretrain.objectives.base import Learner, make_learner
from clipbench.pretrain.objectives.filip import filip_loss

one_thread = small.one_thread
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "clipbench" / "pretrain" / "recipes" / "clip-lite-digits.yaml"
PREPROCESS = Preprocess(size=8, resize="none", channels=1, mean=(0.3,), std=(0.4,))
TOWERS: dict[str, Any] = {
    "image": {"kind": "convnet", "width": 4, "stages": 2},
    "text": {"kind": "bytes", "width": 8, "layers": 1, "heads": 2, "context_length": 40},
}
FILIP = TOWERS | {"tokens": {"dim": 6}}
BOTH = TOWERS | {"embed_dim": 8, "projection": "linear"}
DEFILIP = BOTH | {"tokens": {"dim": 6, "compared": "joint"}}
GLOBAL = BOTH | {"tokens": {"dim": 6}}
SMALL = {"queue": 9, "projector_width": 6, "predictor_width": 3}
Array = NDArray[np.float64]


def recipe_with(config: dict[str, Any], **objective: Any) -> Recipe:
    value = parse(Recipe, Document(RECIPE)).canonical() | {"objective": objective}
    value["model"] = {"config": config, "preprocess": PREPROCESS.canonical()}
    value["schedule"] = {"steps": 7, "warmup": 2, "batch_size": 4}
    value["data"], value["evaluate"], value["target"] = value["data"][:1], [], None
    return Recipe.model_validate(value)


def made(config: dict[str, Any], **objective: Any) -> tuple[Learner, DualTowers]:
    torch.manual_seed(0)
    towers = DualTowers(parse_config(config, "test"), PREPROCESS)
    return make_learner(recipe_with(config, **objective).objective, towers), towers


def drawn(learner: Learner, towers: DualTowers) -> DrawnPairs:
    task = parse(TaskCard, Document(ROOT / "tasks" / "digits.yaml"))
    split = digits("train", tuple("0123456789"))
    return DrawnPairs(
        [Source(split, task, recipe_with(TOWERS, kind="clip").data[0])],
        PREPROCESS,
        towers.text.tokenize,
        batch_size=4,
        seed=0,
        device=torch.device("cpu"),
        wants=learner.wants,
    )


# ------------------------------------------------------------- the pure function


def pairs(padded: bool = True) -> tuple[Array, Array]:
    """Three images of 4 tokens and three texts of up to 5, the rest zeros."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(3, 4, 6)), rng.normal(size=(3, 5, 6))
    if padded:
        text[0, 3:], text[1, 1:], text[2, 4:] = 0, 0, 0
    return image, text


def by_loops(image: Array, text: Array, scale: float, kept: int | None) -> tuple[float, float]:
    """FILIP's two cross-entropies, token by token."""
    images = [[t / math.sqrt(t @ t) for t in own] for own in image]
    texts = [[t / math.sqrt(t @ t) for t in own if t @ t > 0] for own in text]

    def found(own: list[Array], other: list[Array]) -> list[Array]:
        sums = [-sum(float(t @ o) for o in other) for t in own]
        return [own[i] for i in np.argsort(sums, kind="stable")[:kept]]

    in_image = [found(i, t) for i, t in zip(images, texts, strict=True)]
    in_text = [found(t, i) for i, t in zip(images, texts, strict=True)]

    def loss(queries: list[list[Array]], keys: list[list[Array]]) -> float:
        total = 0.0
        for i, query in enumerate(queries):
            logits = [scale * sum(max(float(q @ k) for k in key) for q in query) / len(query) for key in keys]
            total += math.log(sum(map(math.exp, logits))) - logits[i]
        return total / len(queries)

    return loss(images, in_text), loss(texts, in_image)


def slopes(function: Callable[[Array], float], at: Array) -> Array:
    """Central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-6
        found[place] = (function(at + step) - function(at - step)) / 2e-6
    return found


@pytest.mark.parametrize("kept", [None, 2, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_filip_loss_and_its_gradient_are_those_of_loops(kept: int | None, padded: bool) -> None:
    image, text = pairs(padded)
    x, y = (torch.tensor(a, requires_grad=True) for a in (image, text))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = filip_loss(x, y, scale, kept=kept)
    wanted = by_loops(image, text, 3.0, kept)
    assert tuple(term.item() for term in loss.terms.values()) == pytest.approx(wanted, rel=1e-12)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert y.grad is not None
    assert scale.grad is not None

    def mean(image: Array, text: Array, scale: float) -> float:
        return sum(by_loops(image, text, scale, kept)) / 2

    np.testing.assert_allclose(x.grad, slopes(lambda a: mean(a, text, 3.0), image), rtol=0, atol=1e-8)
    real = (text != 0).any(2)
    slope = slopes(lambda a: mean(image, np.where(real[..., None], a, 0), 3.0), text)
    np.testing.assert_allclose(y.grad, slope, rtol=0, atol=1e-8)
    slope = slopes(lambda a: mean(image, text, float(a)), np.array(3.0))
    assert scale.grad.item() == pytest.approx(float(slope), abs=1e-8)


def test_padding_moves_no_loss_and_blocks_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = (torch.tensor(a, requires_grad=True) for a in pairs())
    scale = torch.tensor(3.0, dtype=torch.float64)
    whole = filip_loss(image, text, scale)
    assert filip_loss(image, F.pad(text, (0, 0, 0, 7)), scale) == whole
    monkeypatch.setattr(filip, "_BLOCK", 100)  # two images, or two texts, at once
    blocks = filip_loss(image, text, scale)
    torch.testing.assert_close(blocks.total, whole.total, rtol=1e-12, atol=0)
    slopes = (torch.autograd.grad(loss.total, (image, text)) for loss in (blocks, whole))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_half_precision_tokens_are_compared_in_float32() -> None:
    image, text = (torch.tensor(a).to(torch.bfloat16) for a in pairs())
    loss = filip_loss(image, text, torch.tensor(3.0))
    assert loss.total.dtype == torch.float32
    assert loss == filip_loss(image.float(), text.float(), torch.tensor(3.0))


def test_scores_of_evaluation_are_the_losss_and_know_padding() -> None:
    image, text = (F.normalize(torch.tensor(a), dim=2).float() for a in pairs())
    of_images, of_texts = late_interactions(image, text)
    close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    close(of_images, filip.late_interaction(image, text))
    close(of_texts, filip.late_interaction(text, image).T)
    same = similarity(image.flatten(1).numpy(), text.numpy())
    close(torch.from_numpy(same), of_images)
    alone = -image[0, :1].repeat(2, 1)  # a text whose one token is the opposite of the image's first
    alone[1] = 0
    assert similarity(image[:1, :1].flatten(1).numpy(), alone[None].numpy()).item() == pytest.approx(-1)


# -------------------------------------------------------------------- learners


def test_filip_logs_its_terms_and_weighs_them() -> None:
    learner, towers = made(GLOBAL, kind="filip", global_weight=0.5, text_self_weight=0.25, kept=3)
    learner.double()
    towers.double()
    image, text = (torch.tensor(a) for a in pairs())
    joint = torch.eye(3, 8, dtype=torch.float64)
    features = {"image_tokens": image, "text_tokens": text, "image": joint, "text": joint}
    features |= {"guesses": torch.zeros(2, 259, dtype=torch.float64), "hidden": torch.tensor([3, 8])}
    loss = learner.loss(features, torch.tensor(3.0, dtype=torch.float64))
    ways = by_loops(image.numpy(), text.numpy(), 3.0, 3)
    scale = 1 / 0.07
    wanted = {
        "image_to_text": ways[0],
        "text_to_image": ways[1],
        "text_self": math.log(259),
        "global": math.log(math.exp(scale) + 2) - scale,
    }
    assert {k: v.item() for k, v in loss.terms.items()} == pytest.approx(wanted, rel=1e-6)
    total = sum(ways) / 2 + 0.25 * wanted["text_self"] + 0.5 * wanted["global"]
    assert loss.total.item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "objective"),
    [
        (FILIP, {"kind": "filip"}),
        (FILIP | {"tokens": {"dim": 6, "padding": True}}, {"kind": "filip", "kept": 16, "contrastive_text": "masked"}),
        (GLOBAL, {"kind": "filip", "global_weight": 0.5, "text_self_weight": 0.2}),
        (DEFILIP, {"kind": "defilip", **SMALL}),
        (DEFILIP, {"kind": "defilip", "preset": "repo", "kept": 16, **SMALL}),
    ],
)  # fmt: skip
def test_a_batch_trains_every_head(config: dict[str, Any], objective: dict[str, Any]) -> None:
    learner, towers = made(config, **objective)
    features = learner(towers, drawn(learner, towers).next_batch())
    assert features["image_tokens"].shape == (4, 16, 6)
    assert features["text_tokens"].shape == (4, 40, 6)
    empty = (features["text_tokens"] == 0).all(2)
    assert bool(empty.any()) != config["tokens"].get("padding", False)
    loss = learner.loss(features, towers.logit_scale())
    loss.total.backward()  # type: ignore[no-untyped-call]
    named = [*learner.named_parameters(), *towers.named_parameters()]
    assert [name for name, p in named if p.grad is None] == []


def test_the_masked_caption_is_compared_where_the_recipe_says() -> None:
    for text in ("clean", "masked"):
        learner, towers = made(FILIP, kind="filip", contrastive_text=text, masked=0.9)
        batch = drawn(learner, towers).next_batch()
        states = towers.token_tower.states(batch.tokens)
        clean = towers.text_features(states, batch.tokens)["text_tokens"][batch.rows]
        assert torch.equal(learner(towers, batch)["text_tokens"], clean) == (text == "clean")


def test_defilip_is_declip_and_the_tokens_of_the_pairs() -> None:
    learner, towers = made(DEFILIP, kind="defilip", token_weight=0.3, kept=2, **SMALL)
    assert isinstance(learner, defilip.Learner)
    batch = drawn(learner, towers).next_batch()
    features = learner(towers, batch)
    loss = learner.loss(features, towers.logit_scale())
    plain = declip.Learner.loss(learner, features, towers.logit_scale())
    late = filip_loss(features["image_tokens"], features["text_tokens"], torch.tensor(1 / 0.07), kept=2)
    assert list(loss.terms) == [*plain.terms, "tokens"]
    assert loss.total.item() == pytest.approx((plain.total + 0.3 * late.total).item(), rel=1e-6)
    assert towers.image_features(batch.images)["image"].equal(features["image"])


def test_chance_is_the_loss_of_tokens_that_say_nothing() -> None:
    eye = torch.eye(8)
    blind = {"image_tokens": eye[None, :4].repeat(2, 1, 1), "text_tokens": eye[None, 4:].repeat(2, 1, 1)}
    blind |= {"image": eye[:2], "text": eye[2:4], "guesses": torch.zeros(5, 259), "hidden": torch.arange(5)}
    for config, more in ((FILIP, {}), (GLOBAL, {"global_weight": 0.5, "text_self_weight": 0.2})):
        learner, _ = made(config, kind="filip", **more)
        loss = learner.loss(blind, torch.tensor(9.0))
        assert loss.total.item() == pytest.approx(learner.chance(2))
    learner, _ = made(DEFILIP, kind="defilip", **SMALL)
    other, _ = made(BOTH, kind="declip", **SMALL)
    assert learner.chance(4) == pytest.approx(other.chance(4) + 0.2 * math.log(4))


@pytest.mark.parametrize(
    ("config", "objective", "message"),
    [
        (BOTH, {"kind": "filip"}, "filip needs heads for single tokens, and a model that compares by tokens"),
        (GLOBAL, {"kind": "defilip"}, "a model that compares by joint"),
        (DEFILIP, {"kind": "filip", "global_weight": 1}, "a model that compares by tokens"),
        (GLOBAL, {"kind": "clip"}, "clip does not train the heads of config.tokens"),
        (FILIP, {"kind": "clip"}, "clip does not train the heads of config.tokens"),
        (FILIP, {"kind": "filip", "global_weight": 1}, "joint space, which the model has not"),
        (GLOBAL, {"kind": "filip"}, "does not train the heads into a joint space"),
        (TOWERS, {"kind": "clip"}, "embed_dim, projection missing"),
        (TOWERS | {"tokens": {"compared": "joint"}}, {"kind": "filip"}, "needs a joint space"),
        (TOWERS | {"tokens": {}, "embed_dim": 8}, {"kind": "filip"}, "projection missing"),
        ({"image": TOWERS["image"], "tokens": {}}, {"kind": "filip"}, "tokens needs a text tower"),
        (FILIP | {"text": {"kind": "ngrams", "width": 8}}, {"kind": "filip"}, "of kind ngrams, or wholly frozen"),
        (FILIP | {"image": {"kind": "convnet", "width": 4, "stages": 4}}, {"kind": "filip"}, "square grid of places"),
    ],
)  # fmt: skip
def test_heads_and_objective_that_do_not_fit(
    config: dict[str, Any], objective: dict[str, Any], message: str
) -> None:
    with pytest.raises(CardError, match=message):
        made(config, **objective)


def test_torchvisions_models_have_no_tokens() -> None:
    config = parse_config(FILIP | {"image": {"kind": "torchvision", "arch": "shufflenet_v2_x0_5"}}, "test")
    with pytest.raises(CardError, match="of kind torchvision, or wholly frozen"):
        DualTowers(config, Preprocess(size=32, mean=(0.5,) * 3, std=(0.5,) * 3))
    towers = DualTowers(parse_config(FILIP, "test"), PREPROCESS)
    towers.image = PrecomputedImages(8)
    with pytest.raises(CardError, match="has no state for each place"):
        make_learner(recipe_with(FILIP, kind="filip").objective, towers)


# ---------------------------------------------------------------------- models


def saved(config: dict[str, Any], folder: Path) -> tuple[Adapter, DualTowers]:
    """Towers of `config` with random weights, and the adapter of the file that they become."""
    torch.manual_seed(0)
    towers = DualTowers(parse_config(config, "test"), PREPROCESS).eval()
    data, sha256 = serialise(towers)
    (folder / "model.safetensors").write_bytes(data)
    weights = Weights(file="model.safetensors", sha256=sha256)
    card = ModelCard(title="small", family="dual", config=config, preprocess=PREPROCESS, weights=weights)
    return families.load(ModelEntry("small", card, folder)), towers


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_a_saved_model_compares_as_it_was_trained(tmp_path: Path, joint: bool, padding: bool) -> None:
    config = copy.deepcopy(GLOBAL if joint else FILIP)
    config["tokens"]["padding"] = padding
    adapter, towers = saved(config, tmp_path)
    assert (adapter.compared, adapter.token_width) == ("tokens", 6)
    spaces = ("joint", "tokens") if joint else ("tokens",)
    assert (adapter.text_spaces, adapter.image_spaces) == (spaces, (*spaces, "backbone"))
    images = torch.randn(3, 1, 8, 8)
    ids, lengths = adapter.tokenize(["one", "a longer text", ""])
    with torch.inference_mode():
        image = towers.image_features(images)
        filled = towers.filled(ids)
        text = towers.text_features(towers.token_tower.states(filled), filled)
        tower = adapter.text_tower("tokens")
        torch.testing.assert_close(adapter.image_tower("tokens")(images), image["image_tokens"].flatten(1))
        for length in (40, int(lengths.max())):
            torch.testing.assert_close(
                tower(ids[:, :length]), text["text_tokens"].flatten(1), rtol=1e-5, atol=1e-6
            )
        states = towers.patch_tower.tokens(towers.patch_tower.states(images))
        torch.testing.assert_close(adapter.image_tower("backbone")(images), states.mean(1))
        if joint:
            torch.testing.assert_close(adapter.image_tower("joint")(images), image["image"])
            torch.testing.assert_close(adapter.text_tower("joint")(ids), text["text"])
        else:
            with pytest.raises(NotApplicable, match='no image feature space "joint"'):
                adapter.image_tower("joint")
    assert bool((text["text_tokens"] == 0).any()) != padding


def test_a_heat_map_leaves_padding_out(tmp_path: Path) -> None:
    adapter, _ = saved(FILIP, tmp_path)
    maps = adapter.saliency_method()
    assert isinstance(maps, TokenCosine)
    images = torch.randn(2, 1, 8, 8)
    ids, lengths = adapter.tokenize(["one", "a longer text"])
    with torch.inference_mode():
        texts = F.normalize(adapter.text_tower("tokens")(ids).view(2, 40, 6), dim=2)
        heat, scores = maps(images, texts.flatten(1), torch.tensor([0, 1]))
        patches = F.normalize(adapter.image_tower("tokens")(images).view(2, 16, 6), dim=2)
    for i, length in enumerate(lengths.tolist()):
        best = (patches[i] @ texts[i, :length].T).amax(1)
        torch.testing.assert_close(heat[i], best.clamp_min(0).view(4, 4))
        torch.testing.assert_close(scores[i], best.mean())


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "test_efficientnet"])
def test_tokens_of_timms_models_are_their_places(arch: str) -> None:
    preprocess = Preprocess(size=160, resize="none", mean=(0.5,) * 3, std=(0.5,) * 3)
    config = FILIP | {"image": {"kind": "timm", "arch": arch}}
    towers = DualTowers(parse_config(config, "test"), preprocess).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        states = towers.patch_tower.states(images)
        tokens = towers.patch_tower.tokens(states)
        torch.testing.assert_close(towers.patch_tower.pool(states), towers.image(images))
        moved = images.clone()
        moved[:, :, :8, :8] += 1  # at the top left
        change = (towers.patch_tower.tokens(towers.patch_tower.states(moved)) - tokens).abs().sum((0, 2))
    assert math.isqrt(tokens.shape[1]) ** 2 == tokens.shape[1]
    assert int(change.argmax()) == 0


def train(recipe: Recipe, out: Path, **more: Any) -> Path:
    task = Catalog().dataset("digits").card
    data = [(digits("train", task.classes), task)]
    return pretrain(recipe, "tiny", out, data=data, device="cpu", progress=False, **more)


@pytest.mark.parametrize(
    ("config", "objective"),
    [
        (FILIP, {"kind": "filip"}),
        (DEFILIP, {"kind": "defilip", "preset": "repo", "kept": 4, **SMALL}),
    ],
)
def test_runs_resume_exactly_and_become_models(
    config: dict[str, Any], objective: dict[str, Any], tmp_path: Path
) -> None:
    recipe = recipe_with(config, **objective)
    whole = train(recipe, tmp_path / "whole")
    out = train(recipe, tmp_path / "resumed", stop_after=4)
    torch.rand(5)  # whatever else the process drew in between
    train(recipe, out)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    held = set(load_file(out / "model.safetensors"))
    assert {"image_mapping.weight", "text_mapping.bias"} <= held
    assert ("image_projection.weight" in held) == (objective["kind"] == "defilip")
    model = ModelEntry("run", parse(ModelCard, Document(out / "card.yaml")), out)
    assert families.load(model).compared == ("tokens" if objective["kind"] == "filip" else "joint")
    options = Options(Runtime("cpu", "fp32", workers=0), progress=False)
    (result,) = evaluate([model], Catalog().tasks(["digits-zs"]), options)
    assert result.record is not None
    assert 0 <= result.record.scores["acc1"].value <= 1
