"""The direction of a concept against scikit-learn's PCA, and what removing it must and must not change."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

import clipbench
from clipbench.errors import DataError
from clipbench.metrics.concepts import concept_direction, remove_concept


def word_pairs(seed: int = 0, count: int = 10, dim: int = 24) -> NDArray[np.float32]:
    """Pairs that differ along one direction more than along others."""
    rng = np.random.default_rng(seed)
    pairs = rng.standard_normal((count, 2, dim))
    pairs[:, 0] += 2 * rng.standard_normal(dim)
    found: NDArray[np.float32] = (pairs / np.linalg.norm(pairs, axis=2, keepdims=True)).astype(np.float32)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_direction_is_the_first_principal_component_of_centred_pairs(seed: int) -> None:
    pairs = word_pairs(seed)
    rows = []
    for first, second in pairs.astype(np.float64):
        mean = (first + second) / 2
        rows += [first - mean, second - mean]
    expected = PCA(n_components=10, svd_solver="full").fit(np.array(rows)).components_[0]
    found = concept_direction(pairs)
    assert found.dtype == np.float64
    assert abs(found @ expected) == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-12)
    assert (pairs[:, 0] @ found).mean() > (pairs[:, 1] @ found).mean()


def test_direction_turns_with_the_order_of_the_pairs() -> None:
    pairs = word_pairs()
    np.testing.assert_allclose(concept_direction(pairs[:, ::-1]), -concept_direction(pairs), atol=1e-12)


def test_direction_of_one_pair_is_its_difference() -> None:
    assert concept_direction(np.array([[[1.0, 5.0, 2.0], [4.0, 1.0, 2.0]]])).round(12).tolist() == [
        -0.6,
        0.8,
        0,
    ]


def test_removal_makes_group_means_equal_along_the_direction() -> None:
    rng = np.random.default_rng(1)
    direction = concept_direction(word_pairs())
    groups = np.arange(500) % 3 == 0
    vectors = rng.standard_normal((500, 24)) + np.outer(5 * groups, direction)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    before = vectors @ direction
    assert before[groups].mean() - before[~groups].mean() > 0.5
    single = remove_concept(vectors.astype(np.float32), direction)
    assert single.dtype == np.float32
    for removed in (remove_concept(vectors, direction), single.astype(np.float64)):
        after = removed @ direction
        assert abs(after[groups].mean() - after[~groups].mean()) < 1e-6
        assert np.abs(after).max() < 1e-6


def test_removal_leaves_what_is_orthogonal_and_is_idempotent() -> None:
    rng = np.random.default_rng(2)
    direction = concept_direction(word_pairs())
    vectors = rng.standard_normal((50, 24))
    orthogonal = vectors - np.outer(vectors @ direction, direction)
    np.testing.assert_allclose(remove_concept(orthogonal, direction), orthogonal, rtol=0, atol=1e-14)
    once = remove_concept(vectors, direction)
    np.testing.assert_allclose(remove_concept(once, direction), once, rtol=0, atol=1e-14)
    single = remove_concept(vectors.astype(np.float32), direction)
    np.testing.assert_allclose(remove_concept(single, direction), single, rtol=0, atol=1e-6)


def test_removal_does_not_depend_on_the_directions_length_and_writes_to_nothing() -> None:
    vectors = np.random.default_rng(3).standard_normal((9, 24))
    kept, direction = vectors.copy(), concept_direction(word_pairs())
    np.testing.assert_allclose(
        remove_concept(vectors, -7.5 * direction), remove_concept(vectors, direction), atol=1e-14
    )
    assert np.array_equal(vectors, kept)


def test_the_package_offers_both() -> None:
    assert clipbench.remove_concept is remove_concept
    assert clipbench.concept_direction is concept_direction


def test_what_cannot_be_done() -> None:
    same = np.ones((3, 2, 4))
    with pytest.raises(DataError, match="no pair differ"):
        concept_direction(same)
    for shape in ((3, 4), (3, 3, 4), (0, 2, 4)):
        with pytest.raises(ValueError, match=r"\[P, 2, D\]"):
            concept_direction(np.ones(shape))
    with pytest.raises(ValueError, match="expected"):
        remove_concept(np.ones((3, 4)), np.ones(3))
    with pytest.raises(ValueError, match="length 0"):
        remove_concept(np.ones((3, 4)), np.zeros(4))
