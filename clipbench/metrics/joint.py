"""Sums of scores that share images: how much each image adds, and the standard error when images are drawn together.

Two tasks of the same images rise and fall together, so their mean is less certain than that of independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Contributions:
    """A score, or a difference of two, as a sum over images.

    Attributes:
        images: which set they are of: contributions with the same one share images where they share ids.
        ids: of the images, each once.
        values: float64 [n], n ≥ 1, of independent images; they sum to the score.
        more: variance of the score that does not come from which images there are, such as which shots were drawn.
        draws: the score in each draw of shots, where there are several.
        effects: of images that come in clusters of uneven size, how far each cluster pulls the score; None: as far
            as its value is from the mean of all.
        freedom: degrees of freedom of the spread of `effects`.
    """

    images: str
    ids: Sequence[Hashable]
    values: Doubles
    more: float = 0.0
    draws: Sequence[float] = ()
    effects: Doubles | None = None
    freedom: float = math.inf

    @property
    def centred(self) -> Doubles:
        """How far each image pulls the score; their squares, times n / (n − 1), sum to its variance."""
        if self.effects is None:
            centred: Doubles = self.values - self.values.mean()
        else:  # `summed` widens once more by what these, of `clustered.spread`, are already widened by
            centred = self.effects * math.sqrt(1 - 1 / self.effects.size)
        return centred


def summed(parts: Sequence[Contributions]) -> tuple[Doubles, float]:
    """What each image adds to the sum of all parts (float64, one for each image), and that sum's standard error.

    Each part is centred by itself: what varies is which images there are, drawn together for all parts that share them.

    >>> part = Contributions("a", ["x", "y"], np.array([0.5, 0.0]))
    >>> values, error = summed([part, part])
    >>> values.tolist(), error, summed([part])[1]
    ([1.0, 0.0], 1.0, 0.5)
    >>> round(summed([part, Contributions("b", ["x", "y"], part.values)])[1], 4)  # of other images
    0.7071
    """
    variance, found = sum(part.more for part in parts), []
    for images in dict.fromkeys(part.images for part in parts):
        own = [part for part in parts if part.images == images]
        names = np.concatenate([np.array(part.ids, dtype=object) for part in own])
        _, place = np.unique(names, return_inverse=True)
        centred = np.concatenate([part.centred for part in own])
        off = np.bincount(place, weights=centred)
        variance += float((off**2).sum()) * off.size / max(off.size - 1, 1)
        found.append(np.bincount(place, weights=np.concatenate([part.values for part in own])))
    return np.concatenate(found), math.sqrt(variance)
