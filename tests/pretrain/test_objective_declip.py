"""What objectives learn beside the towers: DeCLIP's terms, queue, masked tokens and altered captions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import BERT_TOKENS, write_tokenizer
from torch import Tensor
from torch.autograd import gradcheck

from clipbench.cards.model import Preprocess
from clipbench.cards.pairs import MocoV2, Pairs
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.errors import CardError
from clipbench.models.towers.base import TokenTower
from clipbench.models.towers.configs import BytesConfig, parse_config
from clipbench.models.towers.dual import DualTowers
from clipbench.models.towers.text import ByteTransformer
from clipbench.pretrain.data import text_augmentation
from clipbench.pretrain.data.batch import Batch
from clipbench.pretrain.data.pairs import DrawnPairs
from clipbench.pretrain.data.source import Source
from clipbench.pretrain.objectives._helpers import captions, masked_language_loss
from clipbench.pretrain.objectives.base import Learner, make_learner
from clipbench.pretrain.objectives.declip import Learner as Declip
from clipbench.pretrain.objectives.declip import nearest, simsiam_loss
from clipbench.utils.row_rng import Draws

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "clipbench" / "pretrain" / "recipes" / "clip-lite-digits.yaml"
TINY = {
    "image": {"kind": "convnet", "width": 4, "stages": 1},
    "text": {"kind": "bytes", "width": 8, "layers": 1, "heads": 2},
    "embed_dim": 8,
    "projection": "linear",
}
SMALL = {"queue": 9, "projector_width": 6, "predictor_width": 3}
PREPROCESS = Preprocess(size=8, resize="none", channels=1, mean=(0.3,), std=(0.4,))


def recipe_with(**objective: Any) -> Recipe:
    value = parse(Recipe, Document(RECIPE)).canonical() | {"objective": objective}
    value["schedule"] |= {"batch_size": 4}
    value["data"] = value["data"][:1]
    return Recipe.model_validate(value)


def made_for(config: dict[str, Any], **objective: Any) -> tuple[Learner, DualTowers]:
    """The learner of an objective, and towers of `config`."""
    torch.manual_seed(0)
    towers = DualTowers(parse_config(config, "test"), PREPROCESS)
    return make_learner(recipe_with(**objective).objective, towers), towers


def declip(**more: Any) -> tuple[Declip, DualTowers]:
    learner, towers = made_for(TINY, kind="declip", **SMALL | more)
    assert isinstance(learner, Declip)
    return learner, towers


def one_batch(learner: Learner, towers: DualTowers) -> Batch:
    """Four digits."""
    task = parse(TaskCard, Document(ROOT / "tasks" / "digits.yaml"))
    pairs = DrawnPairs(
        [Source(digits("train", tuple("0123456789")), task, recipe_with(kind="clip").data[0])],
        PREPROCESS,
        towers.text.tokenize,
        batch_size=4,
        seed=0,
        device=torch.device("cpu"),
        wants=learner.wants,
    )
    return pairs.next_batch()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draws(count: int) -> Draws:
    return Draws(torch.Generator().manual_seed(0), count)


def unit(rows: Tensor | np.ndarray) -> np.ndarray:
    array = np.asarray(rows.detach() if isinstance(rows, Tensor) else rows, dtype=np.float64)
    unit_rows: np.ndarray = array / np.sqrt((array**2).sum(1, keepdims=True))
    return unit_rows


def to_own(image: np.ndarray, text: np.ndarray) -> float:
    """Mean −ln of the softmax of image i's logits at text i, the scale being 3."""
    logits = 3 * image @ text.T
    return float(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)]))


# -------------------------------------------------------------- pure functions


def test_simsiam_predicts_the_other_view_and_sends_nothing_through_it() -> None:
    rows = [random(5, 4, seed=i).requires_grad_() for i in range(4)]
    first, second = (rows[0], rows[1]), (rows[2], rows[3])
    p1, z1, p2, z2 = map(unit, rows)
    wanted = -((p1 * z2).sum(1).mean() + (p2 * z1).sum(1).mean()) / 2
    loss = simsiam_loss(first, second)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    assert [row.grad is None for row in rows] == [False, True, False, True]
    assert gradcheck(lambda a, b: simsiam_loss((a, rows[1]), (b, rows[3])), (rows[0], rows[2]))


def test_masked_language_loss_is_a_mean_cross_entropy_and_0_of_nothing() -> None:
    logits, target = random(6, 5).requires_grad_(), torch.tensor([0, 4, 2, 2, 1, 3])
    table = np.exp(logits.detach().numpy())
    wanted = -np.mean([math.log(table[i, t] / table[i].sum()) for i, t in enumerate(target.tolist())])
    assert masked_language_loss(logits, target).item() == pytest.approx(wanted, rel=1e-12)
    assert gradcheck(lambda rows: masked_language_loss(rows, target), logits)
    none = masked_language_loss(logits[:0], target[:0])
    none.backward()  # type: ignore[no-untyped-call]
    assert none.item() == 0


def test_nearest_is_by_cosine() -> None:
    queue = torch.eye(3)
    rows = torch.tensor([[5.0, 6.0, 0.0], [0.1, 0.0, 0.0], [-1.0, -2.0, -0.5]], requires_grad=True)
    found = nearest(queue, rows)
    assert found.argmax(1).tolist() == [1, 0, 2]
    assert not found.requires_grad


# -------------------------------------------------------------------- DeCLIP


def features_of(batch: int = 4) -> dict[str, Tensor]:
    names = ("image", "second", "text", "altered")
    features = {name: random(batch, 8, seed=i) for i, name in enumerate(names)}
    for i, name in enumerate(("projected_1", "predicted_1", "projected_2", "predicted_2")):
        features[name] = random(batch, 6, seed=10 + i)
    return features | {"guesses": random(3, 259, seed=20), "hidden": torch.tensor([5, 258, 70])}


@pytest.mark.parametrize(
    ("more", "weights"),
    [
        ({}, {"clip": 0.4, "multi_view": 0.2}),
        ({"preset": "repo"}, {"clip": 0.1, "multi_view": 0.3}),
        ({"nearest_directions": "both"}, {"clip": 0.4, "multi_view": 0.2}),
        ({"preset": "repo", "nearest_weight": 0.7}, {"clip": 0.1, "multi_view": 0.3, "nearest": 0.7}),
    ],
)
def test_declips_terms_and_total(more: dict[str, Any], weights: dict[str, float]) -> None:
    learner, _ = declip(**more)
    learner.double()
    features = features_of()
    loss = learner.loss(features, torch.tensor(3.0, dtype=torch.float64))

    v1, v2, t, altered = (unit(features[name]) for name in ("image", "second", "text", "altered"))
    queue = unit(learner.queue)

    def both(image: np.ndarray, text: np.ndarray) -> float:
        return (to_own(image, text) + to_own(text, image)) / 2

    texts = [t, altered] if more.get("preset") == "repo" else [t]
    found = [np.array([queue[np.argmax([float(q @ row) for q in queue])] for row in rows]) for rows in texts]
    compare = both if "nearest_directions" in more else to_own
    p1, z1, p2, z2 = (unit(features[f"{of}_{i}"]) for i in (1, 2) for of in ("predicted", "projected"))
    table = np.exp(features["guesses"].numpy())
    wanted = {
        "clip": both(v1, t),
        "multi_view": (both(v2, t) + both(v1, altered) + both(v2, altered)) / 3,
        "image_self": -((p1 * z2).sum(1).mean() + (p2 * z1).sum(1).mean()) / 2,
        "text_self": -np.mean([np.log(table[i, j] / table[i].sum()) for i, j in enumerate((5, 258, 70))]),
        "nearest": np.mean([compare(view, rows) for rows in found for view in (v1, v2)]),
    }
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(wanted, rel=1e-9)
    weights = {"image_self": 0.2, "text_self": 0.2, "nearest": 0.2} | weights
    assert loss.total.item() == pytest.approx(sum(weights[k] * wanted[k] for k in wanted), rel=1e-6)


def test_the_released_codes_contrastive_term_is_the_mean_of_all_four_pairs() -> None:
    features = features_of()
    scale = torch.tensor(3.0, dtype=torch.float64)
    terms = declip(preset="repo")[0].double().loss(features, scale).terms
    views, texts = (("image", "second"), ("text", "altered"))
    four = [
        (to_own(unit(features[v]), unit(features[t])) + to_own(unit(features[t]), unit(features[v]))) / 2
        for v in views for t in texts
    ]  # fmt: skip
    assert 0.1 * terms["clip"].item() + 0.3 * terms["multi_view"].item() == pytest.approx(0.4 * np.mean(four))


def test_declips_gradients_agree_with_finite_differences() -> None:
    learner, _ = declip(preset="repo", nearest_directions="both")
    learner.double()
    fixed = features_of(3)
    names = ("image", "second", "text", "altered", "predicted_1", "predicted_2", "guesses")
    # An affine path through each feature keeps the check small: one number a feature moves it.
    moved = torch.zeros(len(names), 8, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ways = {name: random(8, *fixed[name].shape, seed=40 + i) for i, name in enumerate(names)}

    def total(moves: Tensor, scale: Tensor) -> Tensor:
        features = fixed | {
            name: fixed[name] + torch.einsum("k,kij->ij", moves[i], ways[name])
            for i, name in enumerate(names)
        }
        return learner.loss(features, scale).total

    assert gradcheck(total, (moved, scale))


def test_declips_chance_is_the_loss_of_features_that_say_nothing() -> None:
    learner, _ = declip()
    eye = torch.eye(8)
    blind = {"image": eye[:2], "second": eye[2:4], "text": eye[4:6], "altered": eye[6:8]}
    for name in ("projected_1", "projected_2"):
        blind[name] = torch.eye(6)[:2]
    for name in ("predicted_1", "predicted_2"):
        blind[name] = torch.eye(6)[2:4]
    learner.queue.zero_()
    blind |= {"guesses": torch.zeros(5, 259), "hidden": torch.arange(5)}
    assert learner.loss(blind, torch.tensor(9.0)).total.item() == pytest.approx(learner.chance(2))


@pytest.mark.parametrize("preset", ["paper", "repo"])
def test_the_queue_is_first_in_first_out_and_texts_never_find_themselves(preset: str) -> None:
    learner, _ = declip(preset=preset)
    start = learner.queue.clone()
    assert start.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    expected = list(start)
    at = 0
    for step in range(5):
        features = {
            name: random(4, 8, seed=30 + step + i).float() for i, name in enumerate(("text", "altered"))
        }
        learner.remember(features)
        for name in ("altered", "text") if preset == "repo" else ("text",):
            for row in features[name]:
                expected[at % 9] = row / row.norm()
                at += 1
    torch.testing.assert_close(learner.queue, torch.stack(expected))
    assert int(learner.cursor) == at % 9


@pytest.mark.parametrize("preset", ["paper", "repo"])
def test_declip_compares_the_text_that_its_preset_says(preset: str) -> None:
    learner, towers = declip(preset=preset)
    batch = one_batch(learner, towers)
    assert not torch.equal(batch.images, batch.views[0])
    assert batch.altered is not None
    assert batch.altered[1].shape == (4,)
    features = learner(towers, batch)
    clean = towers.text_projection(towers.text(batch.tokens))[batch.rows]
    assert len(features["hidden"]) > 0
    assert torch.equal(features["text"], clean) == (preset == "paper")
    learner.loss(features, towers.logit_scale()).total.backward()  # type: ignore[no-untyped-call]
    untouched = [
        name for name, p in [*learner.named_parameters(), *towers.named_parameters()] if p.grad is None
    ]
    assert untouched == []


def test_the_tokens_to_be_guessed_are_those_of_each_pairs_own_caption() -> None:
    learner, towers = declip()
    batch = one_batch(learner, towers)
    captions_of = torch.tensor([2, 0, 2, 1])  # of texts that differ in length
    tokens, _ = towers.text.tokenize(["a", "of two", "and the third"])
    batch = replace(batch, tokens=tokens[:, :20], rows=captions_of)
    found = captions(towers, batch, 1 - 1e-9, compare_masked=False, guesser=torch.nn.Identity())
    texts = [row[(row > 2)].tolist() for row in tokens[captions_of]]
    assert found["hidden"].tolist() == [token for text in texts for token in text]
    assert found["guesses"].shape == (len(found["hidden"]), 8)


def bert(folder: Path, **more: Any) -> dict[str, Any]:
    """The config of a small BERT, whose tokenizer is written to `folder`."""
    write_tokenizer(folder, specials=f"{BERT_TOKENS} [MASK]")
    sizes = {"layers": 1, "width": 8, "heads": 2, "feedforward": 8, "vocabulary": 105, "positions": 64}
    text = {"kind": "bert", "pool": "mean", "tokenizer": str(folder), "context_length": 40}
    return TINY | {"text": text | sizes | more}


@pytest.mark.parametrize("pool", ["mean", "cls", "pooler"])
def test_declip_trains_a_bert_too(tmp_path: Path, pool: str) -> None:
    learner, towers = made_for(bert(tmp_path, pool=pool), kind="declip", preset="repo", **SMALL)
    features = learner(towers, one_batch(learner, towers))
    assert features["guesses"].shape == (len(features["hidden"]), 105)
    learner.loss(features, towers.logit_scale()).total.backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in towers.named_parameters() if p.grad is None] == []


def test_declip_needs_a_state_for_every_token_and_something_to_hide_it(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="of kind ngrams, or wholly frozen"):
        made_for(TINY | {"text": {"kind": "ngrams", "width": 8}}, kind="declip")
    config = bert(tmp_path, vocabulary=104)
    write_tokenizer(tmp_path)
    with pytest.raises(CardError, match="has no mask token"):
        made_for(config, kind="declip")


@pytest.mark.parametrize(
    ("objective", "augment", "message"),
    [
        ({"queue": 3}, True, r"objective.queue \(3\) must hold the 4 texts that enter it at every step"),
        ({"queue": 7, "preset": "repo"}, True, r"must hold the 8 texts .*\(2 for each of 4 pairs\)"),
        ({}, False, "give digits an augment"),
        ({"preset": "papper"}, True, "'paper' or 'repo'"),
    ],
)
def test_a_declip_recipe_that_cannot_be_run(objective: dict[str, Any], augment: bool, message: str) -> None:
    value = recipe_with(kind="clip").canonical() | {"objective": {"kind": "declip"} | objective}
    if not augment:
        value["data"][0]["augment"] = None
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(value)


def test_a_batch_of_one_is_refused() -> None:
    value = recipe_with(kind="clip").canonical()
    value["schedule"]["batch_size"] = 1
    with pytest.raises(ValueError, match="greater than 1"):
        Recipe.model_validate(value)


# ---------------------------------------------------------------------- texts


def test_masked_tokens_are_bytes_and_changed_as_in_bert() -> None:
    text = BytesConfig(kind="bytes", width=8, layers=1, heads=2, context_length=60)
    tower = ByteTransformer(text)
    tokens, _ = tower.tokenize(["the quick brown fox jumps over ümlauts"] * 2000 + [""])
    changed, chosen = tower.mask(tokens, 0.15, draws(len(tokens)))
    assert torch.equal(changed[~chosen], tokens[~chosen])
    special = tokens < 3
    assert not (chosen & special).any()
    assert chosen[~special].double().mean().item() == pytest.approx(0.15, abs=0.005)
    before, after = tokens[chosen], changed[chosen]
    assert (after == 258).double().mean().item() == pytest.approx(0.8, abs=0.02)
    assert ((after != 258) & (after != before)).double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert ((after >= 3) & (after <= 258)).all()
    assert (tokens != 258).all()


def test_masked_words_of_a_bert_are_changed_as_in_bert_and_special_ones_never(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = DualTowers(parse_config(bert(tmp_path), "test"), PREPROCESS).text
    assert isinstance(tower, TokenTower)
    tokens, lengths = tower.tokenize(["a [PAD] photo of a cat and of a dog, xyz" for _ in range(2000)])
    ids = dict(zip(f"{BERT_TOKENS} [MASK]".split(), range(5), strict=True))
    assert ids["[PAD]"] in tokens
    changed, chosen = tower.mask(tokens, 0.15, draws(len(tokens)))
    assert torch.equal(changed[~chosen], tokens[~chosen])
    assert not (chosen & (tokens < 5)).any()  # padding is -1
    assert torch.equal(tower.real(tokens).sum(1), lengths)
    assert chosen[tokens >= 5].double().mean().item() == pytest.approx(0.15, abs=0.005)
    before, after = tokens[chosen], changed[chosen]
    assert (after == ids["[MASK]"]).double().mean().item() == pytest.approx(0.8, abs=0.02)
    replaced = after[(after != ids["[MASK]"]) & (after != before)]
    assert len(replaced) / len(before) == pytest.approx(0.1, abs=0.02)
    assert {0, 104} < set(replaced.tolist()) <= set(range(105))


def test_altered_captions_differ_by_one_change() -> None:
    text = "A large dog, running"
    made = text_augmentation.alter([text] * 4000, draws(4000))
    counts = dict.fromkeys(("same", "synonym", "swap", "fewer"), 0)
    for altered in made:
        own = altered.split()
        if altered == text:
            counts["same"] += 1
        elif sorted(own) == sorted(text.split()):
            counts["swap"] += 1
        elif len(own) < 4:
            assert set(own) < set(text.split())
            counts["fewer"] += 1
        else:
            assert sum(a != b for a, b in zip(own, text.split(), strict=True)) == 1
            assert altered in {
                "A big dog, running", "A huge dog, running", "A large hound, running", "A large dog, racing"
            }  # fmt: skip
            counts["synonym"] += 1
    assert counts["synonym"] / 4000 == pytest.approx(1 / 3, abs=0.03)
    assert counts["swap"] / 4000 == pytest.approx(1 / 3, abs=0.03)
    assert counts["fewer"] / 4000 == pytest.approx((1 - 0.9**4) / 3, abs=0.02)


def test_an_altered_caption_is_never_empty_and_depends_on_its_own_draws() -> None:
    texts = ["Dog", "a b", "  spaced   out  "] * 500
    made = text_augmentation.alter(texts, draws(len(texts)))
    assert all(made)
    assert {"Dog", "Hound"} == set(made[::3])
    assert made == text_augmentation.alter(texts, draws(len(texts)))
    assert text_augmentation.alter([], draws(0)) == []
    assert text_augmentation.alter(["", " "], draws(2)) == ["", " "]


# ------------------------------------------------------------------ real data


@pytest.mark.shared
def test_real_photos_and_captions_come_again_as_they_were(shared_data: Path) -> None:
    """COCO's captions, two views of 3 channels: the same batches from a restored state, and every term finite."""
    card = Catalog().dataset("coco-363-captions")
    split = open_split(card, "test", DataPaths({"coco-363-captions": shared_data / "coco-363"}, ()))
    preprocess = Preprocess(size=32, resize="squash", mean=(0.5,) * 3, std=(0.25,) * 3)
    towers = DualTowers(parse_config(TINY, "test"), preprocess)
    learner = make_learner(recipe_with(kind="declip", queue=32).objective, towers)
    wanted = Pairs(dataset="coco-363-captions", texts=("captions",), augment=MocoV2(kind="moco-v2"))
    pairs = DrawnPairs(
        [Source(split, card.card, wanted)],
        preprocess,
        towers.text.tokenize,
        batch_size=32,
        seed=0,
        device=torch.device("cpu"),
        wants=learner.wants,
    )
    pairs.next_batch()
    state = pairs.state()
    first = pairs.next_batch()
    pairs.restore(state)
    again = pairs.next_batch()
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.views[0], again.views[0])
    assert first.altered is not None
    assert again.altered is not None
    assert all(map(torch.equal, first.altered, again.altered))
    own = [
        bytes(row[row > 2].to(torch.uint8) - 3).decode(errors="ignore") for row in first.tokens[first.rows]
    ]
    other = [
        bytes(row[row > 2].to(torch.uint8) - 3).decode(errors="ignore")
        for row in first.altered[0][first.altered[1]]
    ]
    assert 8 < sum(a != b for a, b in zip(own, other, strict=True)) <= 32
    loss = learner.loss(learner(towers, again), towers.logit_scale())
    assert all(math.isfinite(term.item()) for term in loss.terms.values())
