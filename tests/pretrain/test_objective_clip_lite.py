"""Hard negatives of CLIP-Lite: clusters of a batch's captions, partners in them, and what they add to the loss."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from clipbench.cards.model import Preprocess
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.models import dual
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.loop import pretrain
from clipbench.pretrain.objectives.base import make_learner
from clipbench.pretrain.objectives.clip_lite import (
    cluster_partners,
    discriminator,
    hard_negative_loss,
    k_means,
)

one_thread = small.one_thread
RECIPE = Path(dual.__file__).parents[1] / "pretrain" / "recipes" / "clip-lite-digits.yaml"
PREPROCESS = Preprocess(size=8, resize="none", channels=1, mean=(0.3,), std=(0.4,))
CONFIG: dict[str, Any] = {
    "image": {"kind": "convnet", "width": 4, "stages": 2},
    "text": {"kind": "ngrams", "width": 64},
    "embed_dim": 64,
    "projection": "linear",
}


def recipe_with(**objective: Any) -> Recipe:
    value = parse(Recipe, Document(RECIPE)).canonical() | {"objective": {"kind": "clip-lite"} | objective}
    value["model"] |= {"config": CONFIG, "preprocess": PREPROCESS.canonical()}
    value["schedule"] = {"steps": 7, "warmup": 2, "batch_size": 8}
    value["data"], value["evaluate"], value["target"] = value["data"][:1], [], None
    return Recipe.model_validate(value)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bundles(seed: int = 0) -> tuple[Tensor, Tensor]:
    """24 directions around three axes, shuffled, and which axis each is around."""
    of = torch.randperm(24, generator=torch.Generator().manual_seed(seed)) % 3
    return torch.eye(3, 5, dtype=torch.float64)[of] * 4 + 0.3 * random(24, 5, seed=seed), of


@pytest.mark.parametrize("seed", range(4))
def test_k_means_finds_bundles_of_directions(seed: int) -> None:
    rows, of = bundles(seed)
    scaled = rows * (1 + torch.arange(24)[:, None])  # lengths do not count
    start = torch.tensor([int((of == k).nonzero()[0]) for k in range(3)])
    rest = torch.tensor([i for i in range(24) if i not in start])
    order = torch.cat([start, rest])
    assert torch.equal(k_means(scaled[order], 3), of[order])


def test_k_means_is_a_fixed_point_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 1.0], [0.1, 0.9]])
    assert k_means(rows, 2).tolist() == [0, 0, 1, 1, 1]  # the start parts them otherwise: rows 0 and 1
    assert k_means(rows[:2], 9).tolist() == [0, 1]


def test_partners_are_the_next_other_caption_of_the_cluster() -> None:
    rows, of = bundles()
    start = torch.tensor([int((of == k).nonzero()[0]) for k in range(3)])
    order = torch.cat([start, torch.tensor([i for i in range(24) if i not in start])])
    rows, of = rows[order], of[order]
    captions = torch.arange(24)[:, None].repeat(1, 2)
    for row, partner in enumerate(cluster_partners(rows, captions, 3).tolist()):
        following = [i % 24 for i in range(row + 1, row + 24) if of[i % 24] == of[row]]
        assert partner == following[0]


def test_the_same_caption_is_never_its_own_hard_negative() -> None:
    of = torch.tensor([0, 1, 0, 2, 2, 1, 0, 3, 0])  # captions 0 and 1 are close, so are 2 and 3
    points = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    captions = torch.tensor([[5, 1], [5, 2], [7, 1], [7, 2]])[of]
    partners = cluster_partners(points[of], captions, 2)
    assert {(int(a), int(of[b])) for a, b in zip(of, partners, strict=True)} <= {
        (0, 1),
        (1, 0),
        (2, 3),
        (3, 2),
    }
    # one cluster a caption: nobody is in company, and the batch's next caption stands in
    assert of[cluster_partners(points[of], captions, 4)].tolist() == [1, 2, 1, 3, 3, 2, 1, 0, 1]
    assert cluster_partners(points[:1].repeat(3, 1), captions[:1].repeat(3, 1), 2).tolist() == [0, 0, 0]


def test_hard_negative_loss_is_the_bounds_second_term_with_these_texts() -> None:
    image, text = random(6, 5), random(6, 5, seed=1)
    partners = torch.tensor([3, 3, 0, 5, 1, 2])
    x, y = (np.asarray(a / a.norm(dim=1, keepdim=True)) for a in (image, text))
    wanted = np.mean([np.log1p(np.exp(3 * x[i] @ y[j])) for i, j in enumerate(partners.tolist())])
    scale = torch.tensor(3.0, dtype=torch.float64)
    assert hard_negative_loss(image, text, scale, partners).item() == pytest.approx(wanted, rel=1e-12)
    inputs = (image.requires_grad_(), text.requires_grad_(), scale.requires_grad_())
    loss = functools.partial(hard_negative_loss, partners=partners)
    assert gradcheck(loss, inputs, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("prior", [0.0, 0.1])
def test_hard_negatives_take_their_share_of_the_wrong_texts(prior: float) -> None:
    torch.manual_seed(0)
    towers = DualTowers(parse_config(CONFIG, "test"), PREPROCESS)
    objective = recipe_with(clusters=3, hard_share=0.3, negatives=2, prior_weight=prior).objective
    learner = make_learner(objective, towers)
    features = {"image": random(8, 64), "text": random(8, 64, seed=1), "caption": torch.arange(8)[:, None]}
    for i, name in enumerate(("image_noise", "image_prior", "text_noise", "text_prior")):
        features[name] = random(8, 1, seed=i)
    loss = learner.loss(features, torch.tensor(3.0, dtype=torch.float64))
    terms = {name: term.item() for name, term in loss.terms.items()}
    partners = cluster_partners(features["text"], features["caption"], 3)
    hard = hard_negative_loss(features["image"], features["text"], torch.tensor(3.0), partners).item()
    assert terms["hard_negative"] == pytest.approx(hard)
    bound = terms["positive"] + 0.7 * terms["negative"] + 0.3 * hard
    total = (1 - prior) * bound + prior * (terms.get("image_prior", 0) + terms.get("text_prior", 0))
    assert loss.total.item() == pytest.approx(total)
    eye = torch.eye(16, 64)
    blind = {"image": eye[:8], "text": eye[8:], "caption": torch.arange(8)[:, None]}
    blind |= {f"{side}_{of}": torch.zeros(8, 1) for side in ("image", "text") for of in ("noise", "prior")}
    assert learner.loss(blind, torch.tensor(9.0)).total.item() == pytest.approx(learner.chance(8))


def test_a_judge_of_priors_has_the_published_widths_and_says_one_logit() -> None:
    widths = [tuple(weight.shape) for weight in discriminator(5).parameters() if weight.ndim == 2]
    assert widths == [(1000, 5), (200, 1000), (1, 200)]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"clusters": 8}, r"objective.clusters \(8\) must be below schedule.batch_size \(8\)"),
        ({"clusters": 1}, "greater than 1"),
        ({"clusters": 2, "hard_share": 0}, "greater than 0"),
    ],
)
def test_clusters_that_cannot_be_made(objective: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_with(**objective)


def test_a_run_with_hard_negatives_resumes_exactly(tmp_path: Path) -> None:
    task = Catalog().dataset("digits").card
    data = [(digits("train", task.classes), task)]
    run = functools.partial(
        pretrain, recipe_with(clusters=3), "tiny", data=data, device="cpu", progress=False
    )
    whole, out = run(tmp_path / "whole"), run(tmp_path / "resumed", stop_after=4)
    torch.rand(5)  # whatever else the process drew in between
    run(out)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert "loss_hard_negative" in (out / "metrics.jsonl").read_text()


@pytest.mark.shared
def test_hard_negatives_of_real_captions_share_words(shared_data: Path) -> None:
    """COCO's captions as bags of words: partners have more words in common than texts rolled by one."""
    card = Catalog().dataset("coco-363-captions")
    split = open_split(card, "test", DataPaths({"coco-363-captions": shared_data / "coco-363"}, ()))
    assert split.captions is not None
    texts = np.random.default_rng(0).permutation(np.array(split.captions.texts))[:512]
    own = [set(re.findall(r"\w+", text.lower())) for text in texts]
    number = {word: i for i, word in enumerate(sorted(set.union(*own)))}
    bags = torch.zeros(len(own), len(number), dtype=torch.float64)
    for bag, words in zip(bags, own, strict=True):
        bag[[number[word] for word in words]] = 1
    bags *= (len(own) / bags.sum(0)).log()  # a word that many captions have says little
    weight = F.normalize(bags, dim=1)
    partners = cluster_partners(bags, torch.arange(len(own))[:, None], 32)
    hard = (weight * weight[partners]).sum(1).mean().item()
    rolled = (weight * weight.roll(-1, dims=0)).sum(1).mean().item()
    assert hard > 3 * rolled
