"""Ranks and best keys in both directions, against sorting whole score matrices."""

from __future__ import annotations

import itertools
from math import comb
from typing import Any

import numpy as np
import pytest
import small
import torch
from numpy.typing import NDArray

from clipbench.metrics.ranks import expected_average_precision, expected_hit, expected_rank
from clipbench.metrics.similarity import late_interaction, late_interactions
from clipbench.solvers import ranking

one_thread = small.one_thread

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
KINDS = ("random", "tied", "two values", "constant", "one direction")
BLOCKS = (None, (64, 64), (64, 192), (128, 64))


def features(kind: str, images: int, seed: int = 0, width: int = 24) -> tuple[Floats, Floats, Ints]:
    """Images, texts, and whose they are: one to eleven texts an image."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), rng.integers(1, 12, images))
    shapes = (images, width), (len(owner), width)
    if kind == "constant":
        a, b = (np.tile(_few_bits(rng.standard_normal(width)), (shape[0], 1)) for shape in shapes)
    elif kind == "one direction":  # all texts alike, so that images tie by whole columns
        a = _few_bits(rng.standard_normal(shapes[0]))
        b = np.tile(_few_bits(rng.standard_normal(width)), (shapes[1][0], 1))
    else:
        # Whole numbers, whose products float32 holds exactly in whatever order they are added up.
        low, high = {"tied": (-1, 1), "two values": (0, 1)}.get(kind, (-500, 500))
        a, b = (rng.integers(low, high, s, endpoint=True).astype(np.float64) for s in shapes)
    return a.astype(np.float32), b.astype(np.float32), owner


def _few_bits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whose products float64 holds exactly in whatever order they are added up."""
    return np.round(values * 2**12) / 2**12


def exact(images: Floats, texts: Floats) -> Floats:
    """All scores, rounded once."""
    found: Floats = (images.astype(np.float64) @ texts.astype(np.float64).T).astype(np.float32)
    return found


def expected(scores: Floats, mine: NDArray[np.bool_], top: int) -> dict[str, Any]:
    """What `Ranks` should hold for scores [Q, keys], of which `mine` are a query's targets."""
    target = np.where(mine, scores, -np.inf).max(axis=1, keepdims=True)
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores), axis=1)[:, :top]
    best = np.take_along_axis(scores, order, axis=1)
    return {
        "better": (scores > target).sum(axis=1),
        "tied": ((scores == target) & ~mine).sum(axis=1),
        "best": ((scores == target) & mine).sum(axis=1),
        "top": order,
        "scores": best,
        "more": (scores == best[:, -1:]).sum(axis=1) - (best == best[:, -1:]).sum(axis=1),
    }


def check(
    found: tuple[ranking.Ranks, ranking.Ranks], by: tuple[Floats, Floats], owner: Ints, top: int
) -> None:
    mine = owner == np.arange(len(by[0]))[:, None]
    sides = ((by[0], mine), (np.ascontiguousarray(by[1].T), np.ascontiguousarray(mine.T)))
    for ranks, (scores, targets) in zip(found, sides, strict=True):
        for name, value in expected(scores, targets, min(top, scores.shape[1])).items():
            np.testing.assert_array_equal(getattr(ranks, name), value, err_msg=name)
        for row, own in enumerate(ranks.own):
            assert sorted(own[~np.isnan(own)]) == sorted(scores[row][targets[row]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_both_directions_equal_a_sort_of_all_scores(kind: str, block: tuple[int, int] | None) -> None:
    images, texts, owner = features(kind, 150)
    scores = exact(images, texts)
    check(ranking.rank(images, texts, owner, block=block), (scores, scores), owner, 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_many_products_are_torchs(
    kind: str, block: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_EXACT", 0)
    images, texts, owner = features(kind, 150)
    scores = (torch.from_numpy(images) @ torch.from_numpy(texts).T).numpy()
    check(ranking.rank(images, texts, owner, block=block), (scores, scores), owner, 10)


def test_scores_of_unit_rows_are_exact_sums_rounded_once(rng_rows: tuple[Floats, Floats]) -> None:
    """In whole numbers, of which no sum is rounded: so neither blocks nor the order of the terms matter."""
    images, texts = rng_rows
    whole = [np.rint(rows.astype(np.float64) * 2**26).astype(np.int64) for rows in rng_rows]
    scores = ((whole[0] @ whole[1].T) / 2**52).astype(np.float32)
    check(ranking.rank(images, texts, np.arange(200)), (scores, scores), np.arange(200), 10)
    np.testing.assert_allclose(scores, exact(images, texts), atol=3e-8)


@pytest.fixture
def rng_rows() -> tuple[Floats, Floats]:
    """200 images and as many texts: unit rows of 512 numbers."""
    rows = np.random.default_rng(0).standard_normal((400, 512)).astype(np.float32)
    rows[200:] += rows[:200] / 2
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:200], rows[200:]


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_on_a_gpu_finds_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations of torch, here on a CPU."""
    monkeypatch.setattr(ranking, "_EXACT", 0)
    monkeypatch.setattr(ranking, "_OnCpu", ranking._OnGpu)
    images, texts, owner = features(kind, 150)
    scores = (torch.from_numpy(images) @ torch.from_numpy(texts).T).numpy()
    check(ranking.rank(images, texts, owner, block=(64, 192)), (scores, scores), owner, 10)
    check(ranking.rank(images, texts, owner, top=100, block=(64, 64)), (scores, scores), owner, 100)


@pytest.mark.parametrize("top", [1, 3, 40, 10_000])
def test_any_number_of_best_keys(top: int) -> None:
    images, texts, owner = features("tied", 90, seed=1, width=6)
    scores = images @ texts.T
    check(ranking.rank(images, texts, owner, top=top, block=(64, 64)), (scores, scores), owner, top)


def test_best_keys_of_descending_scores_are_those_of_the_first_blocks() -> None:
    """The first block fills the lists; nothing that follows reaches them, and then the other way round."""
    keys = np.linspace(1, 0.5, 700, dtype=np.float32)[:, None]
    for texts in (keys, np.ascontiguousarray(keys[::-1])):
        images = np.ones((3, 1), np.float32)
        owner = np.repeat(np.arange(3), (500, 100, 100))
        scores = images @ texts.T
        check(ranking.rank(images, texts, owner, block=(64, 64)), (scores, scores), owner, 10)


def test_zeros_of_either_sign_tie() -> None:
    images = np.array([[1.0], [-1.0], [1.0]], np.float32)
    texts = np.zeros((5, 1), np.float32)
    owner = np.array([0, 1, 1, 2, 2])
    check(ranking.rank(images, texts, owner), (images @ texts.T, images @ texts.T), owner, 10)


def test_texts_and_images_in_another_order_stand_where_they_stood() -> None:
    images, texts, owner = features("random", 130, seed=3)
    new = np.random.default_rng(4).permutation(130)  # the image at each place
    order = np.concatenate([np.flatnonzero(owner == i) for i in new])
    moved = np.argsort(new)[owner[order]]
    a = ranking.rank(images, texts, owner, block=(64, 128))
    b = ranking.rank(images[new], texts[order], moved, block=(64, 128))
    np.testing.assert_array_equal(a[0].better[new], b[0].better)
    np.testing.assert_array_equal(a[1].better[order], b[1].better)
    np.testing.assert_array_equal(new[b[1].top], a[1].top[order])


@pytest.mark.parametrize("most", [0, ranking._EXACT])
@pytest.mark.parametrize("width", [3, 16, 511, 512, 768])
def test_equal_rows_get_equal_scores_wherever_they_stand(
    width: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product rounds by what it multiplies, not by where: else a constant model would not score chance."""
    monkeypatch.setattr(ranking, "_EXACT", most)
    images, texts, owner = features("constant", 100, width=width)
    of_images, of_texts = ranking.rank(images, texts, owner, block=(64, 64))
    assert not of_images.better.any()
    assert not of_texts.better.any()
    np.testing.assert_array_equal(of_images.tied + of_images.best, len(texts))
    np.testing.assert_array_equal(of_texts.tied, 99)


def test_each_block_is_announced_once() -> None:
    images, texts, owner = features("random", 150)
    seen: list[int] = []
    ranking.rank(images, texts, owner, block=(64, 192), advance=seen.append)
    assert sum(seen) == ranking.blocks(150, len(texts), (64, 192)) == 3 * -(-len(texts) // 192)


def test_memory_mapped_features_are_read_block_by_block(tmp_path: Any) -> None:
    images, texts, owner = features("random", 70)
    for name, array in (("images", images), ("texts", texts)):
        array.tofile(tmp_path / name)
    mapped = [
        np.memmap(tmp_path / name, np.float32, "r", shape=array.shape)
        for name, array in (("images", images), ("texts", texts))
    ]
    found, plain = ranking.rank(mapped[0], mapped[1], owner), ranking.rank(images, texts, owner)
    np.testing.assert_array_equal(found[0].top, plain[0].top)


def test_owners_that_are_wrong() -> None:
    images, texts = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    for owner in ([1, 0, 0], [0, 0, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match="every image must have a text"):
            ranking.rank(images, texts, np.array(owner))
    with pytest.raises(ValueError, match="do not go together"):
        ranking.rank(images, texts, np.array([0, 1]))


# ------------------------------------------------------------------- by tokens


def test_each_direction_has_its_own_late_interaction() -> None:
    rng = np.random.default_rng(5)
    images, texts = (rng.standard_normal(s).astype(np.float32) for s in ((70, 4, 3), (200, 5, 3)))
    products = np.einsum("isd,jtd->ijst", images, texts)
    by_image, by_text = products.max(axis=3).mean(axis=2), products.max(axis=2).mean(axis=2)
    of_images, of_texts = late_interactions(torch.from_numpy(images), torch.from_numpy(texts))
    np.testing.assert_allclose(of_images.numpy(), by_image, atol=1e-5)
    np.testing.assert_allclose(of_texts.numpy(), by_text, atol=1e-5)
    np.testing.assert_allclose(late_interaction(images, texts), by_image, atol=1e-5)
    owner = np.sort(np.concatenate([np.arange(70), rng.integers(0, 70, 130)]))
    flat = images.reshape(70, -1), texts.reshape(200, -1)
    for block in (None, (64, 64)):
        found = ranking.rank(*flat, owner, token_width=3, block=block)
        check(found, (of_images.numpy(), of_texts.numpy()), owner, 10)


# --------------------------------------------------------------- ties, by trial


@pytest.mark.parametrize("values", [(3, 2, 2, 2, 1, 1), (3, 3, 2, 2, 2, 2)])
def test_expectations_under_ties_are_means_over_all_orders(values: tuple[int, ...]) -> None:
    """All orders of six keys: rank of the best target, hits, and average precision."""
    scores = np.array(values, np.float32)
    for targets in ((0,), (2,), (0, 1), (2, 3), (1, 4), (4, 5), (0, 2, 5), (1, 2, 3)):
        own = scores[list(targets)]
        mine = np.isin(np.arange(6), targets)
        ranks, precisions = [], []
        for shuffled in itertools.permutations(range(6)):
            order = sorted(shuffled, key=lambda key: -scores[key])
            hit = mine[order]
            ranks.append(1 + int(np.argmax(hit)))
            precision = np.cumsum(hit) / np.arange(1, 7)
            precisions.append(float((precision * hit)[: len(targets)].sum() / len(targets)))
        better, tied, best = (
            np.array([value])
            for value in (
                (scores > own.max()).sum(),
                ((scores == own.max()) & ~mine).sum(),
                (own == own.max()).sum(),
            )
        )
        assert expected_rank(better, tied, best)[0] == pytest.approx(np.mean(ranks))
        for k in range(1, 7):
            found = expected_hit(better, tied, best, k)[0]
            assert found == pytest.approx(np.mean([rank <= k for rank in ranks])), (targets, k)
        for kept in range(len(targets), 7):
            more = np.array([(scores[kept:] == scores[kept - 1]).sum()])
            found = expected_average_precision(own[None], scores[None, :kept], more)[0]
            assert found == pytest.approx(np.mean(precisions)), (targets, kept)


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_constant_scores_hit_as_often_as_guessing(k: int) -> None:
    images, texts, owner = features("constant", 40)
    of_images, of_texts = ranking.rank(images, texts, owner)
    keys, counts = len(texts), np.bincount(owner)
    chance = [1 - comb(keys - int(c), k) / comb(keys, k) for c in counts]
    hits = expected_hit(of_images.better, of_images.tied, of_images.best, k)
    np.testing.assert_allclose(hits, chance, rtol=1e-12)
    hits = expected_hit(of_texts.better, of_texts.tied, of_texts.best, k)
    np.testing.assert_allclose(hits, k / 40, rtol=1e-12)


# ----------------------------------------------------------------- hand-worked


def test_four_images_and_eight_texts_by_hand() -> None:
    """The scores are the features of the texts themselves: images are unit vectors."""
    scores = np.array(
        [
            [9, 1, 0, 2, 0, 3, 0, 0],  # texts 0 and 1 are its own: 0 is first
            [8, 7, 7, 6, 5, 0, 9, 1],  # 2 and 3: 2 is behind 6 and 0, tied with 1 for the third place
            [0, 2, 3, 4, 4, 4, 1, 0],  # 4 and 5: tied with 3 for the first place
            [5, 6, 4, 7, 8, 9, 0, 3],  # 6 and 7: 7 is behind all but 6
        ],
        np.float32,
    )
    images, texts = np.eye(4, dtype=np.float32), np.ascontiguousarray(scores.T)
    owner = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    of_images, of_texts = ranking.rank(images, texts, owner, top=3)
    assert expected_rank(of_images.better, of_images.tied, of_images.best).tolist() == [
        1,
        3.5,
        pytest.approx(1 + 1 / 3),
        7,
    ]
    hits = [expected_hit(of_images.better, of_images.tied, of_images.best, k) for k in (1, 3)]
    assert hits[0].round(4).tolist() == [1, 0, 0.6667, 0]
    assert hits[1].tolist() == [1, 0.5, 1, 0]
    # Of 9 8 0 5 the first, of 1 7 2 6 the first, of 0 7 3 4 the second, …; of 0 9 1 0 the last, which ties.
    ranks = expected_rank(of_texts.better, of_texts.tied, of_texts.best)
    assert ranks.tolist() == [1, 4, 1, 2, 3, 2, 3.5, 1]
    assert of_images.top.tolist() == [[0, 5, 3], [6, 0, 1], [3, 4, 5], [5, 4, 3]]
    assert (of_images.more.tolist(), of_images.tied.tolist()) == ([0, 1, 0, 0], [0, 1, 1, 0])
