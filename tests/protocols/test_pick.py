"""Protocol `pick`: worked examples, brute force, ties, parts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import yaml
from fakes import Array, FakeEncoder, FakeSplit, unit

from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.data.choices import Choice
from clipbench.errors import DataError
from clipbench.protocols.pick import METRICS, PROTOCOL, Params, check, run
from clipbench.protocols.registry import protocol

ONE = ((0, 0),)
TWO = ((0, 0), (1, 1))


def card(tmp_path: Path, **settings: Any) -> TaskCard:
    fields = {
        "title": "Things",
        "kind": "choices",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "protocols": {"pick": settings},
    }
    path = tmp_path / "things.yaml"
    path.write_text(yaml.safe_dump(fields))
    return parse(TaskCard, Document(path))


def split(items: list[Choice], images: int) -> FakeSplit:
    made = FakeSplit(np.zeros(images, np.int64), (), dataset="things")
    made.choices = tuple(items)
    return made


def measured(
    tmp_path: Path, items: list[Choice], images: Array, texts: dict[str, Array], **params: Any
) -> Any:
    return run(
        card(tmp_path), {"test": split(items, len(images))}, FakeEncoder(images, texts), Params(**params), 0
    )


def values(outcome: Any) -> dict[str, float]:
    return {name: score.value for name, score in outcome.scores.items()}


def row(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def test_winograds_three_scores_of_a_worked_example(tmp_path: Path) -> None:
    """Item a: s = [[1, 0], [0, 1]], all right. Item b: s = [[.8, .6], [.6, .8 · .6 + .6 · .8 = .96]]: all right.
    Item c: both images are the same: every score of a text is a tie, and the texts are told alike."""
    images = np.stack([row(1, 0), row(0, 1), row(0, 1), row(0, 1)])
    texts = {"x": row(1, 0), "y": row(0, 1), "z": row(0.6, 0.8)}
    items = [Choice("a", (0, 1), ("x", "y"), TWO), Choice("c", (2, 3), ("y", "z"), TWO)]
    outcome = measured(tmp_path, items, images, texts, primary="group_acc")
    # c: image 0 has y 1 > z .8: right; image 1 as well: wrong. So its text score is 0; the image score is 1/2 · 1/2.
    assert values(outcome) == pytest.approx({"text_acc": 0.5, "image_acc": (1 + 0.25) / 2, "group_acc": 0.5})
    assert {name: score.chance for name, score in outcome.scores.items()} == pytest.approx(
        {"text_acc": 1 / 4, "image_acc": 1 / 4, "group_acc": 1 / 6}
    )
    assert outcome.evidence["tied_items"] == 1
    assert list(outcome.samples["id"]) == ["a", "c"]


@pytest.mark.parametrize(("ties", "sugar", "winoground"), [
    ("random", 1 / 2, (1 / 4, 1 / 4, 1 / 6)),
    ("strict", 0.0, (0.0, 0.0, 0.0)),
    ("first", 1.0, (0.0, 0.0, 0.0)),
])  # fmt: skip
def test_a_model_that_tells_nothing_apart(
    tmp_path: Path, ties: str, sugar: float, winoground: tuple[float, ...]
) -> None:
    images, same = np.ones((40, 8), np.float32) / np.float32(8**0.5), row(*[8**-0.5] * 8)
    texts = dict.fromkeys("abcd", same)
    items = [Choice(f"i{i}", (i,), ("a", "b"), ONE) for i in range(40)]
    outcome = measured(tmp_path, items, images, texts, ties=ties)
    assert values(outcome) == {"text_acc": sugar}
    assert outcome.scores["text_acc"].chance == 1 / 2
    assert outcome.evidence["tied_items"] == 40
    items = [Choice(f"i{i}", (i, i + 1), ("c", "d"), TWO) for i in range(0, 40, 2)]
    found = values(measured(tmp_path, items, images, texts, ties=ties))
    assert tuple(found.values()) == pytest.approx(winoground)


def test_scores_equal_a_loop_over_items(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    images = unit(random.standard_normal((30, 6)).astype(np.float32))
    texts = {f"t{i}": unit(random.standard_normal((1, 6)).astype(np.float32))[0] for i in range(40)}
    items = []
    for i in range(50):
        of = tuple(random.choice(30, 2, replace=False).tolist())
        items.append(Choice(f"i{i}", of, tuple(f"t{k}" for k in random.choice(40, 2, replace=False)), TWO))
    text, image, group = [], [], []
    for item in items:
        s = images[list(item.images)] @ np.stack([texts[t] for t in item.texts]).T
        text.append(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0])
        image.append(s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1])
        group.append(text[-1] and image[-1])
    assert values(measured(tmp_path, items, images, texts)) == pytest.approx(
        {"text_acc": np.mean(text), "image_acc": np.mean(image), "group_acc": np.mean(group)}
    )


def parted() -> tuple[list[Choice], Array, dict[str, Array]]:
    """Part a: 1 of 4 right; b: 2 of 2; c: 0 of 1. Text "n" is right for nobody."""
    images = np.stack([row(1, 0), row(0, 1)])
    texts = {"x": row(1, 0), "n": row(0, 1), "w": row(0.6, 0.8)}
    right = [("a", 0), ("a", 1), ("a", 1), ("a", 1), ("b", 0), ("b", 0), ("c", 1)]
    items = [Choice(f"{p}{i}", (image,), ("x", "n"), ONE, p) for i, (p, image) in enumerate(right)]
    return items, images, texts


def test_means_over_parts_and_groups_of_parts(tmp_path: Path) -> None:
    items, images, texts = parted()
    outcome = measured(tmp_path, items, images, texts, groups={"ac": ("a", "c"), "b": ("b",)})
    assert values(outcome) == pytest.approx(
        {
            "text_acc": 3 / 7,
            "text_acc_mean_of_parts": (1 / 4 + 1 + 0) / 3,
            "text_acc_mean_of_groups": ((1 / 4 + 0) / 2 + 1) / 2,
        }
    )
    assert [(one["part"], one["n"], one["text_acc"]["value"]) for one in outcome.evidence["parts"]] == [
        ("a", 4, 0.25),
        ("b", 2, 1.0),
        ("c", 1, 0.0),
    ]
    table = {name: list(column) for name, column in outcome.samples.items()}
    recorded = {"least": 1, "groups": {"ac": ["a", "c"], "b": ["b"]}}
    by_name = {spec.name: spec for spec in METRICS}
    for name, value in values(outcome).items():  # what compare and gate pair two models on
        shares = by_name[name].shares
        assert shares is not None
        found = shares(name, table, recorded)
        assert found is not None
        assert found.mean() == pytest.approx(value)


def test_parts_with_few_items_are_left_out_of_the_mean_over_parts(tmp_path: Path) -> None:
    items, images, texts = parted()
    outcome = measured(tmp_path, items, images, texts, least=2)
    assert values(outcome)["text_acc_mean_of_parts"] == pytest.approx((1 / 4 + 1) / 2)
    assert outcome.scores["text_acc_mean_of_parts"].n == 6
    assert [one.get("counted", True) for one in outcome.evidence["parts"]] == [True, True, False]


def test_one_part_alone(tmp_path: Path) -> None:
    items, images, texts = parted()
    outcome = measured(tmp_path, items, images, texts, part="a")
    assert values(outcome) == {"text_acc": 0.25}
    assert outcome.evidence["left_out"] == 3
    with pytest.raises(DataError, match='unknown part "bb"; did you mean "b"'):
        measured(tmp_path, items, images, texts, part="bb")


def test_jaccard_of_the_best_images(tmp_path: Path) -> None:
    """Two of five are right; the two best are one right and one wrong: 1 of 3. Then ten candidates, both right."""
    angle = np.linspace(0, 1.5, 15)
    images = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    items = [
        Choice("few", (0, 1, 2, 3, 4), ("A cue",), ((0, 0), (2, 0))),
        Choice("many", tuple(range(5, 15)), ("A cue",), ((0, 0), (1, 0))),
    ]
    found = values(measured(tmp_path, items, images, {"A cue": row(1, 0)}, primary="jaccard"))
    assert found["jaccard"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["jaccard_10-12"] == 1
    assert found["image_acc"] == 0.5


def test_two_right_texts_and_the_text_only_score(tmp_path: Path) -> None:
    texts = {"p": row(1, 0), "q": row(0.8, 0.6), "n": row(0, 1)}
    items = [
        Choice("a", (0,), ("p", "q", "n"), ((0, 0), (0, 1))),
        Choice("b", (1,), ("p", "q", "n"), ((0, 0), (0, 1))),
        Choice("c", (0,), ("p", "n", "q"), ((0, 0), (0, 1))),
    ]
    found = values(measured(tmp_path, items, np.stack([row(1, 0), row(0, 1)]), texts))
    assert found["text_acc"] == pytest.approx(1 / 3)
    assert found["text_only_acc"] == pytest.approx(2 / 3)  # p·q = .8 > q·n = .6, and in c p·n = 0


def test_an_item_with_an_image_that_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    items, images, texts = parted()
    damaged = images.copy()
    damaged[1] = np.nan
    outcome = measured(tmp_path, items, damaged, texts)
    assert outcome.scores["text_acc"].n == 3
    assert outcome.evidence["left_out"] == 4


def test_texts_that_are_right_and_wrong_at_once_are_named(tmp_path: Path) -> None:
    items = [Choice("same", (0,), ("x", "x"), ONE), Choice("other", (1,), ("x", "w"), ONE)]
    _, images, texts = parted()
    outcome = measured(tmp_path, items, images, texts)
    assert outcome.evidence["same_texts"] == {"items": 1, "examples": ["same"]}
    assert outcome.samples["text_acc"].tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"primary": "text_ac"}, 'unknown primary metric "text_ac"; did you mean "text_acc"?'),
        ({"primary": "text_acc_mean_of_groups"}, "needs groups"),
        ({"primary": "text_acc_mean_of_parts", "part": "a"}, "is a mean over parts, and part names one"),
        ({"groups": {"a": ("x",), "b": ("x",)}}, "groups names a part twice"),
        ({"least": 0}, "least must be 1 or more"),
    ],
)
def test_parameters_that_are_wrong(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    assert message in str(check(card(tmp_path), Params(**settings)))


def test_what_cannot_be_measured_on_the_items_is_an_error(tmp_path: Path) -> None:
    items, images, texts = parted()
    with pytest.raises(DataError, match="group_acc cannot be measured"):
        measured(tmp_path, items, images, texts, primary="group_acc")
    with pytest.raises(DataError, match="nothing to choose between"):
        measured(tmp_path, [Choice("a", (0,), ("x",), ONE)], images, texts)


class Tokens(FakeEncoder):
    """Rows of unit tokens, compared in late interaction."""

    compared = "tokens"
    token_width = 4  # type: ignore[assignment]

    def images(self, split: Any, space: str = "joint") -> Array:
        assert (space, self._images is not None) == ("tokens", True)
        return np.asarray(self._images)

    def texts(self, texts: list[str], space: str = "joint") -> Array:
        assert (space, self._texts is not None) == ("tokens", True)
        return np.stack([(self._texts or {})[text] for text in texts])


def test_a_model_of_tokens_scores_what_loops_do(tmp_path: Path) -> None:
    """Images and texts each ask by the mean over their own tokens of the best product with a token of the other."""
    random = np.random.default_rng(3)
    images = unit(random.normal(size=(12, 3, 4)).astype(np.float32))
    texts = {f"t{n}": unit(random.normal(size=(5, 4)).astype(np.float32)) for n in range(12)}
    texts["t3"][2:] = 0  # padding
    items = [Choice(f"i{n}", (2 * n, 2 * n + 1), (f"t{2 * n}", f"t{2 * n + 1}"), TWO) for n in range(6)]
    encoder = Tokens(images.reshape(12, -1), texts)
    outcome = run(card(tmp_path), {"test": split(items, 12)}, encoder, Params(), 0)

    def scores(row: int, text: str) -> tuple[float, float]:
        told = np.array([token for token in texts[text] if token.any()])
        products = images[row] @ told.T
        return float(products.max(axis=1).mean()), float(products.max(axis=0).mean())

    for number, item in enumerate(items):
        s, t = ([[scores(row, text)[way] for text in item.texts] for row in item.images] for way in (0, 1))
        by_text, by_image = (s[0][0] > s[0][1] and s[1][1] > s[1][0], t[0][0] > t[1][0] and t[1][1] > t[0][1])
        assert outcome.samples["text_acc"][number] == by_text
        assert outcome.samples["image_acc"][number] == by_image
        assert outcome.samples["group_acc"][number] == (by_text and by_image)


def test_it_is_found_and_is_for_choices(tmp_path: Path) -> None:
    assert protocol("pick") is PROTOCOL
    assert "is for sets of kind choices" in str(PROTOCOL.misfit(fakes.card(tmp_path), Params()))
