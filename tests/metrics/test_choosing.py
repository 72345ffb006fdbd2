"""Choosing among images and captions, against every order of equal scores, and worked examples."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipbench.errors import DataError
from clipbench.metrics.choosing import both_win, images_win, jaccard, right_texts_alike, texts_win


def won(scores: NDArray[Any], right: NDArray[np.bool_], rows: bool, columns: bool) -> bool:
    """Whether every right score beats every wrong one of its row, and of its column; no two are equal."""
    for i, t in np.argwhere(right):
        for j, u in np.argwhere(~right):
            if ((rows and i == j) or (columns and t == u)) and scores[i, t] < scores[j, u]:
                return False
    return True


def orders(scores: NDArray[Any]) -> list[NDArray[Any]]:
    """The scores' ranks in each order that agrees with them, equal ones in any order."""
    flat = scores.ravel()
    found = []
    for order in permutations(range(flat.size)):
        if all(flat[a] >= flat[b] for a, b in pairwise(order)):
            ranks = np.empty(flat.size)
            ranks[list(order)] = -np.arange(flat.size)
            found.append(ranks.reshape(scores.shape))
    return found


@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (2, 2), (3, 2), (2, 3), (1, 5)])
def test_ties_count_as_in_every_order_of_equal_scores(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(shape))
    for _ in range(60):
        scores = random.integers(0, 3, shape).astype(np.float32)
        right = random.random(shape) < 0.5
        every = orders(scores)
        for function, rows, columns in (
            (texts_win, True, False),
            (images_win, False, True),
            (both_win, True, True),
        ):
            expected = np.mean([won(one, right, rows, columns) for one in every])
            found = function(scores[None], right[None], "random")[0]
            assert found == pytest.approx(expected), (scores, right, function)


def test_strict_and_first_decide_every_tie_alike() -> None:
    random = np.random.default_rng(5)
    scores = random.integers(0, 3, (200, 2, 3)).astype(np.float64)
    right = random.random((200, 2, 3)) < 0.4
    lost = scores - 0.1 * ~right * -1  # a tie is lost
    place = scores - 0.01 * np.arange(3)
    for item in range(200):
        assert texts_win(scores, right, "strict")[item] == won(lost[item], right[item], True, False)
        assert texts_win(scores, right, "first")[item] == won(place[item], right[item], True, False)


def test_a_model_that_tells_nothing_apart_scores_chance() -> None:
    """SugarCrepe 1 / 2, its successor 1 / 3, ARO's orders 1 / 5, Winoground 1 / 4, 1 / 4 and 1 / 6."""
    first = np.eye(1, 5, dtype=bool)
    for count, chance in ((2, 1 / 2), (5, 1 / 5)):
        right = first[None, :, :count]
        assert texts_win(np.ones((1, 1, count)), right, "random") == pytest.approx(chance)
        assert texts_win(np.ones((1, 1, count)), right, "strict") == 0
        assert texts_win(np.ones((1, 1, count)), right, "first") == 1
    two_of_three = np.array([[[True, True, False]]])
    assert texts_win(np.ones((1, 1, 3)), two_of_three, "random") == pytest.approx(1 / 3)
    assert right_texts_alike(np.ones((1, 3, 3)), two_of_three[:, 0], "random") == pytest.approx(1 / 3)
    assert right_texts_alike(np.ones((1, 3, 3)), two_of_three[:, 0], "strict") == 0
    assert both_win(np.ones((1, 2, 2)), np.eye(2, dtype=bool)[None], "random") == pytest.approx(1 / 6)
    assert both_win(np.ones((1, 4, 4)), np.eye(4, dtype=bool)[None], "strict") == 0


def test_three_images_and_three_texts_all_alike() -> None:
    """Each right score beats the four wrong ones of its row and column; each wrong one has two right ones above."""
    random = np.random.default_rng(0)
    drawn = random.random((400_000, 3, 3))
    right = np.broadcast_to(np.eye(3, dtype=bool), drawn.shape)
    share = both_win(drawn, right, "strict").mean()
    assert both_win(np.zeros((1, 3, 3)), right[:1], "random") == pytest.approx(share, abs=4e-3)


def test_more_equal_scores_than_can_be_counted_are_an_error() -> None:
    with pytest.raises(DataError, match="25 scores of one item are equal"):
        both_win(np.zeros((1, 5, 5)), np.eye(5, dtype=bool)[None], "random")


def test_winogrounds_scores_of_a_worked_example() -> None:
    """Item 0 is right in all; in 1 both images choose caption 0; in 2 both captions choose image 1."""
    scores = np.array([[[3, 1], [2, 4]], [[5, 3], [4.5, 4]], [[1, 0], [2, 3]]])
    right = np.broadcast_to(np.eye(2, dtype=bool), (3, 2, 2))
    assert texts_win(scores, right, "random").tolist() == [1, 0, 1]
    assert images_win(scores, right, "random").tolist() == [1, 1, 0]
    assert both_win(scores, right, "random").tolist() == [1, 0, 0]


def test_text_only_compares_the_right_pair_with_both_others() -> None:
    cosines = np.eye(3)[None].repeat(3, axis=0)
    for item, (own, one, other) in enumerate([(0.9, 0.5, 0.6), (0.6, 0.5, 0.9), (0.6, 0.9, 0.5)]):
        for a, b, value in ((0, 1, own), (0, 2, one), (1, 2, other)):
            cosines[item, a, b] = cosines[item, b, a] = value
    right = np.array([[True, True, False]] * 3)
    assert right_texts_alike(cosines, right, "random").tolist() == [1, 0, 0]


@pytest.mark.parametrize("count", [5, 6])
def test_jaccard_is_the_mean_over_every_order_of_equal_scores(count: int) -> None:
    random = np.random.default_rng(count)
    for _ in range(20):
        scores = random.integers(0, 3, count).astype(np.float64)
        right = np.zeros(count, dtype=bool)
        right[random.choice(count, random.integers(1, count), replace=False)] = True
        k, found = int(right.sum()), []
        for one in orders(scores):
            best = np.argsort(-one)[:k]
            hits = right[best].sum()
            found.append(hits / (2 * k - hits))
        assert jaccard(scores[None], right[None], "random")[0] == pytest.approx(np.mean(found))
        assert jaccard(scores[None], right[None], "strict")[0] == pytest.approx(np.min(found))
        hits = right[sorted(range(count), key=lambda i: (-scores[i], i))[:k]].sum()
        assert jaccard(scores[None], right[None], "first")[0] == pytest.approx(hits / (2 * k - hits))


@pytest.mark.parametrize(("count", "chance"), [(5, 0.38), (6, 0.34), (10, 0.24), (12, 0.19)])
def test_chance_of_winogavil_by_candidates(count: int, chance: float) -> None:
    """As DataComp has it, within a point: the mean over the numbers of associations that occur is not known here."""
    few = [jaccard(np.zeros((1, count)), np.arange(count)[None] < k, "random")[0] for k in (2, 3, 4)]
    assert min(few) - 0.01 < chance < max(few) + 0.01
