"""Concepts as directions of a feature space: found from pairs of words, and removed from vectors.

Source: Bolukbasi et al., NeurIPS 2016 (arXiv 1607.06520), for word vectors; CLIP-Lite (arXiv 2112.07133)
takes the direction in the space that texts share with images, and removes it from images.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError

Real = TypeVar("Real", np.float32, np.float64)


def concept_direction(pairs: NDArray[np.floating]) -> NDArray[np.float64]:
    """The direction in which the members of pairs differ most: float64 [D], of unit length.

    It is the first principal component of both vectors of each pair, less the pair's mean. It points to the side
    on which the first members are, seen over all pairs.

    Args:
        pairs: float [P, 2, D]: the vectors of (she, he), (woman, man), …

    Raises:
        DataError: no pair's members differ.
        ValueError: another shape.

    >>> concept_direction(np.array([[[3.0, 1.0], [1.0, 1.0]], [[0.0, 2.0], [-2.0, 2.0]]])).tolist()
    [1.0, 0.0]
    """
    if pairs.ndim != 3 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(f"pairs have shape {pairs.shape}, expected [P, 2, D]")
    vectors = pairs.astype(np.float64)
    halves = (vectors[:, 0] - vectors[:, 1]) / 2  # the second member's is the same with the other sign
    if not halves.any():
        raise DataError("the members of no pair differ, so they have no direction in common")
    found: NDArray[np.float64] = np.linalg.svd(halves, full_matrices=False)[2][0]
    return -found if (halves @ found).sum() < 0 else found + 0.0  # without -0.0


def remove_concept(vectors: NDArray[Real], direction: NDArray[np.floating]) -> NDArray[Real]:
    """`vectors` without their part along `direction`: u − g (u·g) / (g·g).

    Whatever differed along it is then equal; what is orthogonal to it stays as it is; a second removal changes
    nothing. Lengths are not restored: divide by them where cosines are wanted.

    Args:
        vectors: float32 or float64 [n, D].
        direction: float [D], of any length but 0. Sums are in float64.

    Raises:
        ValueError: shapes disagree, or a direction of length 0.

    >>> remove_concept(np.array([[3.0, 4.0], [5.0, 0.0]]), np.array([2.0, 0.0])).tolist()
    [[0.0, 4.0], [0.0, 0.0]]
    """
    if vectors.ndim != 2 or direction.shape != vectors.shape[1:]:
        raise ValueError(
            f"vectors have shape {vectors.shape}, the direction {direction.shape}; expected [n, D] and [D]"
        )
    g = direction.astype(np.float64)
    length = float(g @ g)
    if length == 0:
        raise ValueError("a direction of length 0 cannot be removed")
    u = vectors.astype(np.float64)
    return (u - np.outer(u @ g / length, g)).astype(vectors.dtype)
