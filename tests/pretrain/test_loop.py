"""Pretraining: objectives against independent arithmetic, exact resume, and what a run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from training import decode_all

from clipbench.cards.model import Images, ModelCard, Preprocess
from clipbench.cards.pairs import Affine, Pairs
from clipbench.cards.recipe import AdamW, Recipe, Sgd
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.data.builtin import ArraySplit, digits, digits_scenes
from clipbench.data.decode import normalise
from clipbench.errors import CardError, ClipbenchError, Damaged, DataError, StorageError
from clipbench.models import families
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.towers.configs import parse_config
from clipbench.pretrain.data.image_augmentation import affine
from clipbench.pretrain.data.pairs import DrawnPairs
from clipbench.pretrain.data.source import Source, captions, texts_of
from clipbench.pretrain.engine.optimisers import make_optimiser
from clipbench.pretrain.loop import choose_device, pretrain
from clipbench.pretrain.objectives import clip_lite, siglip
from clipbench.pretrain.objectives._helpers import clip_loss
from clipbench.pretrain.objectives.base import Learner, Loss, Wants, make_learner
from clipbench.pretrain.objectives.clip_lite import clip_lite_loss, prior_loss
from clipbench.pretrain.objectives.siglip import siglip_loss
from clipbench.pretrain.objectives.slip import nt_xent_loss
from clipbench.utils.row_rng import Draws

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "clipbench" / "pretrain" / "recipes" / "clip-lite-digits.yaml"
NAMES = tuple("0123456789")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CPU = torch.device("cpu")

# ------------------------------------------------------------------ fixtures


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task() -> TaskCard:
    return parse(TaskCard, Document(ROOT / "tasks" / "digits.yaml"))


@pytest.fixture(scope="module")
def train() -> ArraySplit:
    return digits("train", NAMES)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The shipped recipe, made tiny: 20 steps of 16, all its parts at work."""
    shipped = parse(Recipe, Document(RECIPE)).canonical()
    shipped["model"]["config"] = {
        "image": {"kind": "convnet", "width": 4, "stages": 2},
        "text": {"kind": "bytes", "width": 16, "layers": 1, "heads": 2, "context_length": 40},
        "embed_dim": 16,
        "projection": "clip-lite",
    }
    shipped["data"] = [{
        "dataset": "digits",
        "templates": ["default", "simple"],
        "augment": {"kind": "affine", "rotate": 10, "shift": 0.08, "scale": 0.1},
    }]  # fmt: skip
    shipped["model"]["preprocess"] = {
        "size": 8, "resize": "none", "channels": 1, "mean": [0.3054], "std": [0.376]
    }  # fmt: skip
    shipped["objective"] = {"kind": "clip-lite", "negatives": 1}
    shipped["evaluate"] = ["digits-zs"]
    shipped["optim"]["lr"] = 0.002
    shipped["schedule"] = {
        "steps": 20, "warmup": 4, "batch_size": 16, "eval_every": 8, "checkpoint_every": 6
    }  # fmt: skip
    return Recipe.model_validate(shipped)


def changed(recipe: Recipe, **parts: Any) -> Recipe:
    """`recipe` with keys of its parts replaced: `optim={"lr": 1}`; other values replace whole keys."""
    value = recipe.canonical()
    for key, part in parts.items():
        value[key] = value[key] | part if isinstance(part, dict) else part
    return Recipe.model_validate(value)


@dataclass(frozen=True)
class FakeScore:
    value: float


@dataclass(frozen=True)
class FakeRecord:
    task: str
    scores: dict[str, FakeScore]


@dataclass
class ZeroShot:
    """A stand-in for the evaluation: accuracy of the default template on the test digits."""

    hashes: list[str] = field(default_factory=list)

    def __call__(self, adapter: Adapter, task_ids: Sequence[str]) -> list[Any]:
        torch.rand(3)  # an evaluation may draw numbers; a resumed run must not notice
        self.hashes.append(adapter.weights_sha256)
        value = accuracy(adapter, 'a photo of the number: "{c}".')
        return [FakeRecord(task_id, {"acc1": FakeScore(value)}) for task_id in task_ids]


def accuracy(adapter: Adapter, template: str) -> float:
    test = digits("test", NAMES)
    images = normalise(decode_all(test, adapter.preprocess), adapter.preprocess)
    tokens, _ = adapter.tokenize([template.replace("{c}", name) for name in NAMES])
    with torch.inference_mode():
        image = F.normalize(adapter.image_tower("joint")(images), dim=1)
        text = F.normalize(adapter.text_tower()(tokens), dim=1)
    return float(np.mean((image @ text.T).argmax(1).numpy() == test.labels))


def run(recipe: Recipe, out: Path, train: ArraySplit, task: TaskCard, **more: Any) -> Path:
    return pretrain(recipe, "tiny", out, data=[(train, task)], device="cpu", progress=False, **more)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- objectives


def embeddings(batch: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    text = torch.randn(batch, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    return image, text, scale


def cosines(image: Tensor, text: Tensor) -> np.ndarray:
    x, y = image.detach().numpy(), text.detach().numpy()
    x = x / np.sqrt((x**2).sum(1, keepdims=True))
    y = y / np.sqrt((y**2).sum(1, keepdims=True))
    return np.array([[float(np.dot(a, b)) for b in y] for a in x])


def test_clip_loss_is_two_cross_entropies() -> None:
    image, text, scale = embeddings()
    logits = 3.0 * cosines(image, text)
    n = len(logits)
    rows = -np.mean([logits[i, i] - np.log(np.exp(logits[i]).sum()) for i in range(n)])
    columns = -np.mean([logits[i, i] - np.log(np.exp(logits[:, i]).sum()) for i in range(n)])
    loss = clip_loss(image, text, scale)
    assert loss.terms["image_to_text"].item() == pytest.approx(rows, rel=1e-12)
    assert loss.terms["text_to_image"].item() == pytest.approx(columns, rel=1e-12)
    assert loss.total.item() == pytest.approx((rows + columns) / 2, rel=1e-12)


@pytest.mark.parametrize("negatives", [1, 3])
def test_clip_lite_loss_is_the_jsd_bound(negatives: int) -> None:
    image, text, scale = embeddings()
    scores = 3.0 * cosines(image, text)
    n = len(scores)
    positive = np.mean([math.log1p(math.exp(-scores[i, i])) for i in range(n)])
    negative = np.mean(
        [math.log1p(math.exp(scores[i, (i + k) % n])) for i in range(n) for k in range(1, negatives + 1)]
    )
    loss = clip_lite_loss(image, text, scale, negatives=negatives)
    assert loss.terms["positive"].item() == pytest.approx(positive, rel=1e-12)
    assert loss.terms["negative"].item() == pytest.approx(negative, rel=1e-12)
    assert loss.total.item() == pytest.approx(positive + negative, rel=1e-12)
    assert list(loss.terms) == ["positive", "negative"]


def test_gradients_agree_with_finite_differences() -> None:
    inputs = embeddings()
    assert gradcheck(lambda *x: clip_loss(*x).total, inputs)
    assert gradcheck(lambda *x: clip_lite_loss(*x, negatives=2).total, inputs)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *x: siglip_loss(*x).total, (*inputs, bias))
    assert gradcheck(lambda a, b: nt_xent_loss(a, b, 0.5), inputs[:2])
    assert gradcheck(prior_loss, (inputs[0][:, :1], inputs[1][:, :1]))


def test_siglip_loss_is_a_sum_over_all_pairs() -> None:
    image, text, scale = embeddings()
    logits = 3.0 * cosines(image, text) - 2.0
    n = len(logits)
    terms = [
        [math.log1p(math.exp(z if i != j else -z)) for j, z in enumerate(row)] for i, row in enumerate(logits)
    ]
    loss = siglip_loss(image, text, scale, torch.tensor(-2.0, dtype=torch.float64))
    assert loss.terms["positive"].item() == pytest.approx(sum(terms[i][i] for i in range(n)) / n, rel=1e-12)
    assert loss.total.item() == pytest.approx(sum(map(sum, terms)) / n, rel=1e-12)
    theirs = SigLipLoss()(F.normalize(image), F.normalize(text), scale, -2.0)
    assert loss.total.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_prior_loss_is_two_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, features = torch.randn(2, 6, 1, dtype=torch.float64, generator=generator)
    yes, no = (1 / (1 + np.exp(-logits.numpy())) for logits in (noise, features))
    wanted = -np.log(yes).mean() - np.log(1 - no).mean()
    assert prior_loss(noise, features).item() == pytest.approx(wanted, rel=1e-12)


def test_nt_xent_loss_lets_each_view_find_the_other() -> None:
    first, second, _ = embeddings()
    logits = cosines(torch.cat([first, second]), torch.cat([first, second])) / 0.1
    n = len(first)
    losses = []
    for i, row in enumerate(logits):
        other = [z for j, z in enumerate(row) if j != i]
        losses.append(np.log(np.exp(other).sum()) - row[(i + n) % (2 * n)])
    assert nt_xent_loss(first, second, 0.1).item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_weighted_loss_logs_its_terms_without_their_weights() -> None:
    loss = Loss({"a": torch.tensor(2.0), "b": torch.tensor(10.0)}, {"a": 0.5, "b": 0.2})
    assert loss.total.item() == pytest.approx(3)
    assert {name: term.item() for name, term in loss.terms.items()} == {"a": 2, "b": 10}


def learner_of(recipe: Recipe, **objective: Any) -> tuple[Learner, Any]:
    towers = dual_towers(recipe)
    value = recipe.canonical() | {"objective": objective}
    return make_learner(Recipe.model_validate(value).objective, towers), towers


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "clip"},
        {"kind": "clip-lite"},
        {"kind": "clip-lite", "prior_weight": 0.1},
        {"kind": "slip", "projector_width": 4, "view_weight": 0.3},
    ],
)
def test_chance_is_the_loss_of_features_that_say_nothing(recipe: Recipe, objective: dict[str, Any]) -> None:
    learner, towers = learner_of(recipe, **objective)
    blind = {"image": torch.eye(8)[:4], "text": torch.eye(8)[4:]}  # every cosine is 0
    unsure = {f"{name}_{of}": torch.zeros(4, 1) for name in ("image", "text") for of in ("noise", "prior")}
    views = {"first": torch.eye(8)[:4], "second": torch.eye(8)[4:]}
    loss = learner.loss(blind | unsure | views, towers.logit_scale())
    assert loss.total.item() == pytest.approx(learner.chance(4))


def test_siglip_starts_as_published_and_its_chance_is_at_the_best_bias(recipe: Recipe) -> None:
    learner, towers = learner_of(recipe, kind="siglip")
    assert isinstance(learner, siglip.Learner)
    assert towers.logit_scale().item() == pytest.approx(10)
    assert learner.logit_bias.item() == -10
    blind = torch.eye(8, dtype=torch.float64)
    losses = [
        siglip_loss(blind[:4], blind[4:], towers.logit_scale(), torch.tensor(bias, dtype=torch.float64)).total
        for bias in np.linspace(-4, 2, 601)
    ]
    assert min(losses).item() == pytest.approx(learner.chance(4), abs=1e-5)


def test_half_precision_embeddings_are_compared_in_float32() -> None:
    image, text = torch.randn(2, 64, 32).to(torch.bfloat16)
    scale = torch.tensor(14.0)
    for half, full in (
        (clip_loss(image, text, scale), clip_loss(image.float(), text.float(), scale)),
        (clip_lite_loss(image, text, scale), clip_lite_loss(image.float(), text.float(), scale)),
    ):
        assert half.total.dtype == torch.float32
        assert half.total.item() == full.total.item()


def test_a_batch_that_rolls_onto_itself_is_refused() -> None:
    image, text, scale = embeddings(batch=3)
    with pytest.raises(ValueError, match="negatives must lie in 1 … 2"):
        clip_lite_loss(image, text, scale, negatives=3)


# --------------------------------------------------------------------- pairs


def test_captions_come_from_the_named_template_sets(task: TaskCard) -> None:
    texts = captions(task, NAMES, ["default", "simple"])
    assert texts[3] == ['a photo of the number: "3".', "a photo of a 3."]
    with pytest.raises(CardError, match='did you mean "simple"'):
        captions(task, NAMES, ["simpel"])


def test_batches_pair_images_with_captions_of_their_class(
    recipe: Recipe, train: ArraySplit, task: TaskCard
) -> None:
    preprocess = recipe.model.preprocess
    tokenize = dual_towers(recipe).text.tokenize
    texts = captions(task, NAMES, ["default", "simple"])
    sources = [Source(train, task, Pairs(dataset="digits", templates=("default", "simple")))]
    pairs = DrawnPairs(sources, preprocess, tokenize, batch_size=500, seed=1, device=CPU, wants=Wants())
    images = normalise(decode_all(train, preprocess), preprocess)
    label_of = {bytes(image.numpy()): label for image, label in zip(images, train.labels, strict=True)}
    seen: set[bytes] = set()
    for _ in range(2):
        batch = pairs.next_batch()
        said = [bytes(row[row > 2].to(torch.uint8) - 3) for row in batch.tokens]
        for image, row in zip(batch.images, batch.rows.tolist(), strict=True):
            pixels = bytes(image.numpy())
            assert said[row].decode() in texts[label_of[pixels]]
            seen.add(pixels)
        assert len(said) == 20
        assert (batch.tokens[:, -1] != 0).any()
    assert len(seen) > 990  # without replacement within an epoch


def test_every_kind_of_text_of_every_source_is_drawn(
    recipe: Recipe, train: ArraySplit, task: TaskCard
) -> None:
    preprocess = Preprocess(size=32, channels=1, mean=(0.0,), std=(1.0,))
    scenes = digits_scenes("train", WORDS)
    card = parse(TaskCard, Document(ROOT / "tasks" / "digits-scenes.yaml"))
    wanted = Pairs(
        dataset="digits-scenes", texts=("labels", "captions", "expressions"), templates=("default",)
    )
    sources = [Source(train, task, Pairs(dataset="digits")), Source(scenes, card, wanted)]
    tokenize = dual_towers(changed(recipe, model=recipe_with_text(recipe, 128))).text.tokenize
    batch_size = len(train) + len(scenes)
    pairs = DrawnPairs(
        sources, preprocess, tokenize, batch_size=batch_size, seed=1, device=CPU, wants=Wants()
    )
    images = torch.cat([decode_all(split, preprocess) for split in (train, scenes)])
    number = {bytes(image.numpy()): i for i, image in enumerate(images)}
    batch = pairs.next_batch()
    said = [bytes(row[row > 2].to(torch.uint8) - 3).decode() for row in batch.tokens]
    assert scenes.captions is not None
    assert scenes.expressions is not None
    about = {"the": 0, "a": 0}
    for image, row in zip(batch.images, batch.rows.tolist(), strict=True):
        at = number[bytes((image * 255).round().to(torch.uint8).numpy())]
        if at < len(train):
            assert said[row] == f'a photo of the number: "{train.labels[at]}".'
            continue
        scene = at - len(train)
        own = {f"the {word}" for word, there in zip(WORDS, scenes.labels[scene], strict=True) if there}
        assert said[row] in own | {scenes.captions.texts[scene]}
        about["the" if said[row] in own else "a"] += 1
    # labels and expressions read alike here: two draws in three
    assert 0.63 < about["the"] / (about["the"] + about["a"]) < 0.70


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({"texts": ("captions",)}, CardError, "digits train has no captions to be paired with its images"),
        ({"templates": ("simpel",)}, CardError, 'did you mean "simple"'),
    ],
)
def test_texts_that_a_source_lacks(
    wanted: dict[str, Any], error: type[ClipbenchError], message: str, train: ArraySplit, task: TaskCard
) -> None:
    with pytest.raises(error, match=message):
        texts_of(Source(train, task, Pairs(dataset="digits", **wanted)))


def test_an_image_without_a_text_is_named() -> None:
    scenes = digits_scenes("train", WORDS)
    assert scenes.expressions is not None
    bare = np.setdiff1d(np.arange(len(scenes)), scenes.expressions.image)
    card = parse(TaskCard, Document(ROOT / "tasks" / "digits-scenes.yaml"))
    with pytest.raises(DataError, match=f"{len(bare)} of 3000 images have no text.*{scenes.ids[bare[0]]}"):
        texts_of(Source(scenes, card, Pairs(dataset="digits-scenes", texts=("expressions",))))


def test_affine_draws_are_bounded_and_move_pixels() -> None:
    images = torch.zeros(200, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    still = affine(
        images, Affine(kind="affine", rotate=0, shift=0, scale=0), Draws(torch.Generator(), len(images))
    )
    assert torch.equal(still, images)
    moved = affine(
        images, Affine(kind="affine", rotate=0, shift=1 / 9, scale=0), Draws(torch.Generator(), len(images))
    )
    assert moved.dtype == torch.uint8
    lit = (moved > 0).nonzero()[:, 2:]
    assert lit.min() == 3  # a shift of a ninth of 9 px is one pixel at most
    assert lit.max() == 5
    assert len({bytes(image.numpy()) for image in moved}) > 150


def test_moved_images_are_never_mirrored() -> None:
    images = torch.zeros(64, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 1:8, 2] = 255
    images[:, :, 7, 2:7] = 255  # an L
    moved = affine(
        images, Affine(kind="affine", rotate=15, shift=0, scale=0.1), Draws(torch.Generator(), len(images))
    ).float()
    as_it_was = (moved - images).square().sum((1, 2, 3))
    mirrored = (moved - images.flip(3)).square().sum((1, 2, 3))
    assert (as_it_was < mirrored).all()
    assert (as_it_was > 0).all()


def test_too_few_images(recipe: Recipe, task: TaskCard, tmp_path: Path, train: ArraySplit) -> None:
    large = changed(recipe, schedule={"batch_size": 2000})
    with pytest.raises(DataError, match="1437 images, fewer than one batch of 2000"):
        run(large, tmp_path / "run", train, task)
    run(recipe, tmp_path / "run", train, task, stop_after=1)  # a mended recipe can have the folder


# --------------------------------------------------------------------- parts


def recipe_with_text(recipe: Recipe, length: int) -> dict[str, Any]:
    """The recipe's model, with room for texts of `length` bytes."""
    model = recipe.model.canonical()
    model["config"]["text"]["context_length"] = length
    return model


def dual_towers(recipe: Recipe) -> Any:
    from clipbench.models.towers.dual import DualTowers

    return DualTowers(parse_config(recipe.model.config, "test"), recipe.model.preprocess)


def test_ngrams_tell_orders_apart_and_need_no_padding(recipe: Recipe) -> None:
    model = recipe.model.canonical()
    model["config"]["text"] = {"kind": "ngrams", "width": 8, "longest": 2, "context_length": 9}
    text = dual_towers(changed(recipe, model=model)).text
    texts = [
        "a three, a Seven",
        "a seven, a three",
        "A SEVEN,  a three",
        "",
        "a three, a seven at the top left",
    ]
    tokens, lengths = text.tokenize(texts)
    assert lengths.tolist() == [9, 9, 9, 1, 9]  # five words, four pairs of them; cut at nine
    assert tokens[0].sort().values.tolist() != tokens[1].sort().values.tolist()  # other pairs
    assert torch.equal(tokens[1], tokens[2])
    assert torch.equal(text(tokens[3:4]), text(tokens[3:4, :1]))
    first = text.ngrams.weight[tokens[0]].mean(dim=0)
    torch.testing.assert_close(text(tokens)[0], F.layer_norm(first, (8,)))


def test_only_matrices_decay(recipe: Recipe) -> None:
    towers = dual_towers(recipe)
    for optim, kind in (
        (AdamW(name="adamw", lr=0.1, weight_decay=0.3), torch.optim.AdamW),
        (Sgd(name="sgd", lr=0.1, weight_decay=0.3), torch.optim.SGD),
    ):
        (optimiser,) = make_optimiser(optim, dict(towers.named_parameters())).parts
        assert isinstance(optimiser, kind)
        free = {
            id(p) for group in optimiser.param_groups if not group["weight_decay"] for p in group["params"]
        }
        bare = {name for name, p in towers.named_parameters() if id(p) in free}
        assert "log_scale" in bare
        assert "image.stem.1.weight" in bare  # a norm
        assert all(name.endswith("bias") or "norm" in name or "ln" in name or ".1." in name or
                   ".mlp.0." in name or ".4." in name or name == "log_scale" for name in bare)  # fmt: skip
        assert not any(p.ndim < 2 and id(p) not in free for p in towers.parameters())


def test_device_that_is_not_there() -> None:
    with pytest.raises(ClipbenchError, match='no device "nonsense"'):
        choose_device("nonsense")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"objective": {"kind": "clip-lite", "negatives": 16}}, "must be below schedule.batch_size"),
        ({"evaluate": []}, "is not in evaluate"),
        ({"objective": {"kind": "clip", "negatives": 1}}, "negatives"),
    ],
)
def test_recipe_that_contradicts_itself(recipe: Recipe, part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(recipe.canonical() | part)


# ----------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def unbroken(
    recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return run(recipe, tmp_path_factory.mktemp("runs") / "unbroken", train, task, evaluator=ZeroShot())


def test_run_leaves_a_model_and_its_story(unbroken: Path, recipe: Recipe) -> None:
    assert {p.name for p in unbroken.iterdir() if not p.name.startswith(".")} == {
        "recipe.yaml", "metrics.jsonl", "model.safetensors", "loss.png", "card.yaml"
    }  # fmt: skip
    assert parse(Recipe, Document(unbroken / "recipe.yaml")) == recipe
    assert (unbroken / "loss.png").read_bytes().startswith(b"\x89PNG")
    steps = [line for line in lines(unbroken) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    first = steps[0]
    assert first["loss"] == pytest.approx(first["loss_positive"] + first["loss_negative"])
    assert first["lr"] == pytest.approx(0.002 / 4)
    assert set(first) >= {"logit_scale", "grad_norm", "images_per_s", "data_wait"}
    assert 0 < first["data_wait"] < 1
    scores = [line for line in lines(unbroken) if "task" in line]
    assert [(line["step"], line["task"]) for line in scores] == [
        (8, "digits-zs"), (16, "digits-zs"), (20, "digits-zs")
    ]  # fmt: skip


def test_run_loads_like_any_other_model(unbroken: Path) -> None:
    card = parse(ModelCard, Document(unbroken / "card.yaml"))
    adapter = families.load(ModelEntry("run", card, unbroken))
    assert card.weights.sha256 == adapter.weights_sha256
    assert card.trained_on == (Images(dataset="digits", split="train"),)
    last = [line for line in lines(unbroken) if "task" in line][-1]
    assert accuracy(adapter, 'a photo of the number: "{c}".') == last["acc1"]


def test_evaluator_sees_the_weights_that_are_written(
    recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path
) -> None:
    evaluator = ZeroShot()
    out = run(recipe, tmp_path / "run", train, task, evaluator=evaluator)
    assert len(set(evaluator.hashes)) == 3
    assert evaluator.hashes[-1] == parse(ModelCard, Document(out / "card.yaml")).weights.sha256


@pytest.mark.parametrize("stop", [6, 7, 19])
def test_resumed_run_is_bit_identical(
    stop: int, unbroken: Path, recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(recipe, out, train, task, evaluator=ZeroShot(), stop_after=stop)
    assert not (out / "card.yaml").exists()
    torch.rand(5)  # whatever else the process drew in between
    run(recipe, out, train, task, evaluator=ZeroShot())
    assert (out / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert [timeless(line) for line in lines(out)] == [timeless(line) for line in lines(unbroken)]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("images_per_s", "data_wait")}


def test_killed_between_checkpoints(
    unbroken: Path, recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def evaluator(adapter: Adapter, task_ids: Sequence[str]) -> list[Any]:
        raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(recipe, out, train, task, evaluator=evaluator)
    assert lines(out)[-1]["step"] == 8  # the last checkpoint was at step 6
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    run(recipe, out, train, task, evaluator=ZeroShot())
    assert (out / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert [timeless(line) for line in lines(out)] == [timeless(line) for line in lines(unbroken)]


def test_finished_run_says_so(
    unbroken: Path, recipe: Recipe, train: ArraySplit, task: TaskCard, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (unbroken / "card.yaml").stat().st_mtime_ns
    assert run(changed(recipe, cost="other words"), unbroken, train, task) == unbroken
    assert "has finished" in " ".join(capsys.readouterr().err.split())
    assert (unbroken / "card.yaml").stat().st_mtime_ns == before


def test_folder_of_another_recipe(unbroken: Path, recipe: Recipe, train: ArraySplit, task: TaskCard) -> None:
    with pytest.raises(StorageError, match="another recipe; it differs in seed \\(0 there\\)"):
        run(changed(recipe, seed=1), unbroken, train, task)


def test_foreign_folder(recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StorageError, match=r"not empty and not a pretraining run .*thesis\.tex"):
        run(recipe, tmp_path, train, task)
    with pytest.raises(StorageError, match="is a file"):
        run(recipe, tmp_path / "thesis.tex", train, task)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_data_and_damaged_checkpoints_are_refused(
    recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path
) -> None:
    out = run(recipe, tmp_path / "run", train, task, stop_after=3)
    with pytest.raises(StorageError, match="other training data"):
        run(recipe, out, digits("test", NAMES), task)
    checkpoint = out / "checkpoint-00000003.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(
        Damaged, match=r"checkpoint-00000003\.pt is damaged.*no older checkpoint is whole\n.*start"
    ):
        run(recipe, out, train, task)
    assert checkpoint.exists()


def test_divergence_stops_and_keeps_the_last_checkpoint(
    recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = clip_lite.clip_lite_loss
    calls = 0

    def diverging(*arguments: Any, **more: Any) -> Loss:
        nonlocal calls
        calls += 1
        loss = whole(*arguments, **more)
        return Loss(
            loss.terms | {"positive": loss.terms["positive"] * (math.nan if calls == 9 else 1)}, loss.weights
        )

    monkeypatch.setattr(clip_lite, "clip_lite_loss", diverging)
    with pytest.raises(ClipbenchError, match=r"step 9: loss nan.*last good checkpoint is"):
        run(recipe, tmp_path / "run", train, task)
    kept = torch.load(tmp_path / "run" / "checkpoint-00000006.pt", weights_only=True)
    assert kept["step"] == 6
    assert all(torch.isfinite(t).all() for t in kept["towers"].values())


OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"kind": "clip"},
    "clip-lite with priors": {"kind": "clip-lite", "negatives": 2, "prior_weight": 0.1},
    "siglip": {"kind": "siglip"},
    "slip": {"kind": "slip", "projector_width": 12, "projector_dim": 6},
    "declip": {"kind": "declip", "queue": 50, "projector_width": 12, "predictor_width": 6},
    "declip as released": {
        "kind": "declip",
        "preset": "repo",
        "queue": 40,
        "projector_width": 12,
        "predictor_width": 6,
    },
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_every_objective_resumes_exactly_and_leaves_the_towers_alone(
    objective: dict[str, Any], recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path
) -> None:
    value = recipe.canonical() | {"objective": objective}
    value["schedule"] |= {"steps": 7, "warmup": 2}
    short = Recipe.model_validate(value)
    whole = run(short, tmp_path / "whole", train, task)
    out = run(short, tmp_path / "resumed", train, task, stop_after=4)
    torch.rand(5)  # whatever else the process drew in between
    run(short, out, train, task)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [timeless(line) for line in lines(out)] == [timeless(line) for line in lines(whole)]
    assert set(load_file(out / "model.safetensors")) == set(dual_towers(short).state_dict())


@pytest.mark.parametrize(
    "parts",
    [
        {"objective": {"kind": "clip", "max_logit_scale": 14.2}, "optim": {"name": "adamw", "lr": 0.01}},
        {"optim": {"name": "sgd", "lr": 0.05, "weight_decay": 1e-4}},
        {"precision": "bf16", "data": {"augment": None}},
        {"precision": "fp16"},
        {"objective": {"kind": "declip", "preset": "repo", "queue": 100}, "precision": "bf16"},
    ],
)
def test_other_objectives_optimisers_and_precisions(
    parts: dict[str, Any], recipe: Recipe, train: ArraySplit, task: TaskCard, tmp_path: Path
) -> None:
    value = recipe.canonical()
    value |= {k: v for k, v in parts.items() if k != "data"}
    value["data"][0] |= parts.get("data", {})
    value["schedule"]["steps"] = 8
    out = run(Recipe.model_validate(value), tmp_path / "run", train, task)
    logged = [line for line in lines(out) if "loss" in line]
    assert len(logged) == 8
    if "max_logit_scale" in parts.get("objective", {}):
        assert all(line["logit_scale"] <= 14.2 + 1e-4 for line in logged)
    assert all(t.dtype != torch.bfloat16 for t in load_file(out / "model.safetensors").values())


def test_the_shipped_recipe_learns_digits_in_a_few_steps(
    train: ArraySplit, task: TaskCard, tmp_path: Path
) -> None:
    """Its first source alone, at that source's own size: what takes minutes in the whole takes seconds."""
    value = parse(Recipe, Document(RECIPE)).canonical()
    value["data"] = value["data"][:1]
    value["data"][0]["augment"]["shift"] = 0.08
    value["model"]["preprocess"] = {
        "size": 8, "resize": "none", "channels": 1, "mean": [0.3054], "std": [0.376]
    }  # fmt: skip
    value["schedule"] |= {"steps": 200, "warmup": 20, "batch_size": 128, "eval_every": 0}
    value["optim"]["lr"] = 0.002
    value |= {"evaluate": [], "target": None}
    out = run(Recipe.model_validate(value), tmp_path / "run", train, task)
    card = parse(ModelCard, Document(out / "card.yaml"))
    adapter = families.load(ModelEntry("run", card, out))
    assert accuracy(adapter, 'a photo of the number: "{c}".') >= 0.95
    assert accuracy(adapter, "a photo of a {c}.") >= 0.95


def test_the_shipped_model_is_the_recipes(train: ArraySplit) -> None:
    path = ROOT / "model_cards" / "digits-clip-lite.yaml"
    card = parse(ModelCard, Document(path))
    recipe = parse(Recipe, Document(RECIPE))
    assert parse_config(card.config, "card") == parse_config(recipe.model.config, "recipe")
    assert card.preprocess == recipe.model.preprocess
    adapter = families.load(ModelEntry("digits-clip-lite", card, path.parent))
    assert (path.parent / "weights" / "digits-clip-lite.safetensors").stat().st_size <= 4 * 2**20
    assert accuracy(adapter, 'a photo of the number: "{c}".') >= 0.97
    assert isinstance(adapter.image_tower("backbone"), nn.Module)
