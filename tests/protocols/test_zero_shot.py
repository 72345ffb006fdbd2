"""Zero-shot scores against scikit-learn and brute force, and the classifier against a hand-worked one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from fakes import Array, FakeEncoder, FakeSplit, unit
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, recall_score, top_k_accuracy_score

from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import DataError
from clipbench.models.adapter import ModelEntry
from clipbench.protocols import zero_shot
from clipbench.protocols.base import Needs
from clipbench.protocols.zero_shot import PROTOCOL, Params, classifier, needs, prompts, run

one_thread = small.one_thread


def card(tmp_path: Path, count: int = 5, **changes: Any) -> TaskCard:
    names = [f"c{i}" for i in range(count)]
    fields = {"classes": names, "templates": {"default": ["{c}"]}, "protocols": {"zs": {}}} | changes
    return parse(TaskCard, Document(small.write_task(tmp_path, "fake", **fields) / "fake.yaml"))


def features(n: int, dim: int, seed: int) -> Array:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32))


def fake(images: Array, weights: Array) -> FakeEncoder:
    return FakeEncoder(images, {f"c{i}": row for i, row in enumerate(weights)})


# -------------------------------------------------------------------------- scores


@pytest.mark.parametrize("block", [7, 4_000_000])
def test_single_label_scores_are_scikit_learns(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zero_shot, "_BLOCK", block)  # small: many blocks of one row
    images, weights = features(300, 6, 0), features(9, 6, 1)
    labels = np.random.default_rng(2).integers(0, 9, 300)
    names = tuple(f"c{i}" for i in range(9))
    outcome = run(
        card(tmp_path, 9), {"test": FakeSplit(labels, names)}, fake(images, weights), Params(), seed=0
    )
    logits = images @ weights.T
    found = {name: score.value for name, score in outcome.scores.items()}
    prediction = logits.argmax(axis=1)
    assert found["acc1"] == pytest.approx(accuracy_score(labels, prediction))
    assert found["acc5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert found["mean_per_class_recall"] == pytest.approx(recall_score(labels, prediction, average="macro"))
    np.testing.assert_allclose(outcome.per_class["recall"], recall_score(labels, prediction, average=None))
    scaled = 20.0 * logits.astype(np.float64)
    softmax = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outcome.samples["confidence"], softmax.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(outcome.samples["prediction"], prediction)
    assert {score.n for score in outcome.scores.values()} == {300}
    assert outcome.scores["acc1"].chance == pytest.approx(1 / 9)
    assert outcome.scores["acc5"].chance == pytest.approx(5 / 9)


def test_few_classes_have_no_acc5(tmp_path: Path) -> None:
    labels = np.arange(12) % 4
    split = FakeSplit(labels, ("c0", "c1", "c2", "c3"))
    outcome = run(
        card(tmp_path, 4), {"test": split}, fake(features(12, 3, 0), features(4, 3, 1)), Params(), seed=0
    )
    assert set(outcome.scores) == {"acc1", "mean_per_class_recall", "ece"}


def test_a_tie_goes_to_the_lowest_index(tmp_path: Path) -> None:
    images = np.tile(np.array([[1, 0]], np.float32), (6, 1))
    weights = np.tile(np.array([[1, 0]], np.float32), (6, 1))  # a model that cannot tell the classes apart
    labels = np.arange(6)
    split = FakeSplit(labels, tuple(f"c{i}" for i in range(6)))
    outcome = run(card(tmp_path, 6), {"test": split}, fake(images, weights), Params(), seed=0)
    np.testing.assert_array_equal(outcome.samples["prediction"], np.zeros(6))
    np.testing.assert_array_equal(outcome.samples["rank"], labels)
    assert outcome.scores["acc1"].value == pytest.approx(1 / 6)
    assert outcome.scores["acc5"].value == pytest.approx(5 / 6)
    assert outcome.scores["mean_per_class_recall"].value == pytest.approx(1 / 6)


def test_images_that_could_not_be_decoded_are_left_out_everywhere(tmp_path: Path) -> None:
    images, weights = features(40, 4, 0), features(5, 4, 1)
    labels = np.random.default_rng(2).integers(0, 5, 40)
    names = tuple(f"c{i}" for i in range(5))
    gone = np.array([0, 7, 39])
    kept = np.setdiff1d(np.arange(40), gone)
    broken = images.copy()
    broken[gone] = np.nan
    task = card(tmp_path, 5)
    outcome = run(task, {"test": FakeSplit(labels, names)}, fake(broken, weights), Params(), seed=0)
    without = run(
        task, {"test": FakeSplit(labels[kept], names)}, fake(images[kept], weights), Params(), seed=0
    )
    assert outcome.scores == without.scores
    assert outcome.scores["acc1"].n == 37
    assert list(outcome.samples["id"]) == [f"test{i}" for i in kept]


def test_nothing_decoded_is_an_error_not_a_score(tmp_path: Path) -> None:
    images = np.full((3, 4), np.nan, np.float32)
    split = FakeSplit(np.zeros(3, np.int64), tuple(f"c{i}" for i in range(5)))
    with pytest.raises(DataError, match="none of the 3 images could be decoded"):
        run(card(tmp_path), {"test": split}, fake(images, features(5, 4, 1)), Params(), seed=0)


def multi(tmp_path: Path, difficult: str | None = None) -> tuple[TaskCard, Params]:
    settings = {"primary": "map_area"} | ({"difficult": difficult} if difficult else {})
    task = card(tmp_path, 4, kind="multi-label", protocols={"zs": settings})
    return task, Params.model_validate(settings)


def multi_labels(marked: bool) -> NDArray[np.uint8]:
    rng = np.random.default_rng(3)
    labels = (rng.random((80, 4)) < 0.3).astype(np.uint8)
    if marked:
        labels[rng.random((80, 4)) < 0.1] = 255
    return labels


@pytest.mark.parametrize("difficult", ["ignore", "positive", "negative"])
def test_multi_label_scores_are_scikit_learns(tmp_path: Path, difficult: str) -> None:
    images, weights, labels = features(80, 6, 0), features(4, 6, 1), multi_labels(marked=True)
    task, params = multi(tmp_path, difficult)
    outcome = run(task, {"test": FakeSplit(labels, task.classes)}, fake(images, weights), params, seed=0)
    scores = images @ weights.T
    expected = []
    for c in range(4):
        kept = labels[:, c] != 255 if difficult == "ignore" else np.ones(80, bool)
        truth = np.where(labels[:, c] == 255, difficult == "positive", labels[:, c])
        expected.append(average_precision_score(truth[kept], scores[kept, c]))
    np.testing.assert_allclose(outcome.per_class["ap_area"], expected)
    assert outcome.scores["map_area"].value == pytest.approx(np.mean(expected))
    assert set(outcome.scores) == {"map_area", "map_11pt"}
    np.testing.assert_allclose(np.stack(list(outcome.samples["score"])), scores)


def test_labels_that_mark_nothing_are_not_scored_under_a_name_that_needs_marks(tmp_path: Path) -> None:
    images, weights, labels = features(80, 6, 0), features(4, 6, 1), multi_labels(marked=False)
    encoder = fake(images, weights)
    for difficult in ("ignore", "negative"):
        task, params = multi(tmp_path, difficult)
        with pytest.raises(DataError, match="does not mark difficult objects"):
            run(task, {"test": FakeSplit(labels, task.classes)}, encoder, params, seed=0)
    outcomes = []
    for choice in ("positive", None):
        task, params = multi(tmp_path, choice)
        outcomes.append(run(task, {"test": FakeSplit(labels, task.classes)}, encoder, params, seed=0))
    assert outcomes[0].scores == outcomes[1].scores


def test_multi_label_leaves_out_what_could_not_be_decoded(tmp_path: Path) -> None:
    images, weights, labels = features(80, 6, 0), features(4, 6, 1), multi_labels(marked=False)
    task, params = multi(tmp_path, "positive")
    broken = images.copy()
    broken[:5] = np.nan
    outcome = run(task, {"test": FakeSplit(labels, task.classes)}, fake(broken, weights), params, seed=0)
    without = run(
        task, {"test": FakeSplit(labels[5:], task.classes)}, fake(images[5:], weights), params, seed=0
    )
    assert outcome.scores == without.scores
    assert outcome.scores["map_area"].n == 75


# ---------------------------------------------------------------------- classifier


def test_the_classifier_is_the_normalised_mean_of_normalised_prompts(tmp_path: Path) -> None:
    task = card(tmp_path, 2, templates={"default": ["a {c}", "the {c}"]})
    texts = {
        "a c0": np.array([1, 0], np.float32),
        "the c0": np.array([0, 1], np.float32),
        "a c1": np.array([0.6, 0.8], np.float32),
        "the c1": np.array([1, 0], np.float32),
    }
    encoder = FakeEncoder(features(1, 2, 0), texts)
    half = 2**-0.5
    np.testing.assert_allclose(
        classifier(task, "default", encoder),
        # mean of c1: (0.8, 0.4), norm 0.4·√5
        np.array([[half, half], [2 / 5**0.5, 1 / 5**0.5]]),
        rtol=1e-6,
    )
    assert encoder.asked == ["a c0", "the c0", "a c1", "the c1"]


def test_class_specific_prompts_go_to_their_class_in_the_cards_order(tmp_path: Path) -> None:
    task = card(tmp_path, 2, templates={"default": {"c1": ["one"], "c0": ["zero", "nought"]}})
    assert prompts(task, "default") == [["zero", "nought"], ["one"]]
    texts = dict(zip(("zero", "nought", "one"), np.eye(3, dtype=np.float32), strict=True))
    weights = classifier(task, "default", FakeEncoder(features(1, 3, 0), texts))
    half = 2**-0.5
    np.testing.assert_allclose(weights, np.array([[half, half, 0], [0, 0, 1]]), rtol=1e-6)


def test_braces_in_a_class_name_stay_as_they_are(tmp_path: Path) -> None:
    task = card(tmp_path, 2, classes=["{c}{c}", "50%"], templates={"default": ["a {c}, a {c}"]})
    assert prompts(task, "default") == [["a {c}{c}, a {c}{c}"], ["a 50%, a 50%"]]


def encoder_of(tmp_path: Path, **sizes: int) -> ModelEncoder:
    """An encoder of a small random model with a cache of its own."""
    model = Catalog().model(str(small.write_run(tmp_path / "run", **sizes)))
    return ModelEncoder(model, Runtime("cpu", "fp32"), progress=False, root=tmp_path / "features")


def test_a_prompt_is_encoded_once_and_rows_come_in_the_order_asked(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    asked = ["a dog", "a longer text", "a dog", "b", "a longer text"]
    rows = np.asarray(encoder.texts(asked))
    assert encoder.counts.texts_encoded == 3
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    for text, row in zip(asked, rows, strict=True):
        np.testing.assert_allclose(encoder.texts([text])[0], row, atol=1e-6)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    assert np.abs(rows[0] - rows[3]).max() > 1e-3


def full_context(encoder: ModelEncoder, texts: list[str]) -> Array:
    """Unit text features, every text padded to the whole context."""
    ids, _ = encoder.adapter.tokenize(texts)
    tower = encoder.adapter.text_tower()
    with torch.no_grad():
        rows = [tower(ids[i : i + 1000]).numpy() for i in range(0, len(ids), 1000)]
    return unit(np.concatenate(rows))


def test_an_imagenet_classifier_is_exact_though_cut_at_the_longest_token(tmp_path: Path) -> None:
    task = Catalog().dataset("imagenet").card
    assert (len(task.classes), len(task.templates["default"])) == (1000, 80)
    encoder = encoder_of(tmp_path, context=77)
    some = {"classes": task.classes[::10], "label_names": None}  # a tenth, for time
    task = task.model_copy(update=some)
    groups = prompts(task, "default")
    texts = [text for group in groups for text in group]
    means = full_context(encoder, texts).reshape(100, 80, -1).mean(axis=1)
    found = classifier(task, "default", encoder)
    np.testing.assert_allclose(found, unit(means), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert encoder.counts.texts_encoded == len(set(texts))


def test_a_causal_tower_of_open_clip_is_exact_too(tmp_path: Path) -> None:
    import open_clip

    from clipbench.models import clip

    torch.manual_seed(0)
    vision = {"layers": 1, "width": 16, "patch_size": 16, "image_size": 32, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    module = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)
    spec = clip.ad_hoc("open_clip:RN50@openai")
    encoder = ModelEncoder(
        ModelEntry("small", spec, tmp_path), Runtime("cpu", "fp32"), progress=False, root=tmp_path
    )
    encoder.adapter = clip.ClipAdapter(spec, module, "RN50", "00")
    task = Catalog().dataset("food101").card
    texts = [text for group in prompts(task, "default") for text in group]
    with torch.no_grad():
        expected = unit(module.encode_text(encoder.adapter.tokenize(texts)[0]).numpy())
    np.testing.assert_allclose(encoder.texts(texts), expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


# -------------------------------------------------------------------------- params


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({}, None),
        ({"primary": "acc5"}, None),
        ({"templates": "defalt"}, 'unknown template set "defalt"; did you mean "default"? Allowed: default'),
        ({"split": "tset"}, 'unknown split "tset"; did you mean "test"? Allowed: test'),
        (
            {"primary": "map_area"},
            "primary map_area is no metric of a single-label set "
            "(allowed: acc1, acc5, mean_per_class_recall, worst_group_acc1)",
        ),
        ({"difficult": "ignore"}, "difficult belongs to multi-label sets"),
        ({"primary": "worst_group_acc1"}, "worst_group_acc1 needs columns.group on the task card"),
    ],
)
def test_what_params_need_of_a_card(tmp_path: Path, params: dict[str, str], problem: str | None) -> None:
    assert PROTOCOL.misfit(card(tmp_path), Params.model_validate(params)) == problem


def test_what_a_multi_label_card_needs(tmp_path: Path) -> None:
    task, params = multi(tmp_path, "ignore")
    assert PROTOCOL.misfit(task, params) is None
    assert PROTOCOL.misfit(task, Params()) == (
        "primary acc1 is no metric of a multi-label set (allowed: map_area, map_11pt)"
    )
    assert PROTOCOL.misfit(card(tmp_path, 4), Params(primary="acc5")) == "acc5 needs at least 5 classes"


def test_the_split_that_params_name_is_the_one_read() -> None:
    assert needs(Params(split="val"), "joint") == Needs((("val", "joint"),))
    assert needs(Params(), "tokens") == Needs((("test", "tokens"),))


# ------------------------------------------------------------------ any of the labels


def test_any_label_is_right(tmp_path: Path) -> None:
    """As brute force says, ties to the lower index; chance as counted over all choices of five classes."""
    rng = np.random.default_rng(3)
    images, weights = features(200, 6, 0), features(7, 6, 1)
    weights[4] = weights[1]  # ties
    labels = (rng.random((200, 7)) < 0.2).astype(np.uint8)
    labels[np.arange(200), rng.integers(0, 7, 200)] = 1
    names = tuple(f"c{i}" for i in range(7))
    of = card(tmp_path, 7, kind="multi-label", protocols={"zs": {"any_label": True}})
    params = Params(any_label=True)
    outcome = run(of, {"test": FakeSplit(labels, names)}, fake(images, weights), params, seed=0)
    order = np.argsort(-(images @ weights.T), axis=1, kind="stable")
    found = np.take_along_axis(labels, order, axis=1) == 1
    assert outcome.scores["acc1"].value == pytest.approx(found[:, 0].mean())
    assert outcome.scores["acc5"].value == pytest.approx(found[:, :5].any(axis=1).mean())
    np.testing.assert_array_equal(outcome.samples["prediction"], order[:, 0])
    np.testing.assert_array_equal(outcome.samples["rank"], found.argmax(axis=1))
    assert outcome.scores["acc1"].chance == pytest.approx(labels.sum(axis=1).mean() / 7)
    every = [list(c) for c in itertools.combinations(range(7), 5)]
    assert outcome.scores["acc5"].chance == pytest.approx(
        np.mean([labels[:, c].any(axis=1).mean() for c in every])
    )
    assert set(outcome.scores) == {"acc1", "acc5"}


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("single-label", {"any_label": True}, "any_label belongs to multi-label sets"),
        (
            "multi-label",
            {"any_label": True, "primary": "map_area"},
            "any_label has acc1 and acc5, not map_area",
        ),
        ("multi-label", {"any_label": True, "difficult": "ignore"}, "takes no difficult"),
        ("multi-label", {}, "primary acc1 is no metric of a multi-label set"),
    ],
)
def test_where_any_label_may_stand(tmp_path: Path, kind: str, params: dict[str, Any], message: str) -> None:
    assert message in str(zero_shot.check(card(tmp_path, kind=kind), Params(**params)))


def test_the_record_says_what_guessing_by_frequency_scores(tmp_path: Path) -> None:
    """Against draws of a guesser that knows the frequencies: KITTI's kind of set, where 1 / classes says little."""
    random = np.random.default_rng(0)
    labels = random.choice(4, 400, p=[0.05, 0.15, 0.2, 0.6])
    split = FakeSplit(labels, tuple(f"c{i}" for i in range(4)))
    outcome = run(
        card(tmp_path, 4), {"test": split}, fake(features(400, 3, 0), features(4, 3, 1)), Params(), 0
    )
    frequent = outcome.evidence["chance_by_frequency"]
    guesses = random.choice(labels, (4_000, 400))
    assert frequent == pytest.approx((guesses == labels).mean(), abs=2e-3)
    assert outcome.scores["acc1"].chance == 0.25
