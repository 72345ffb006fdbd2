"""The samples of a split that could be decoded, with their features: what probes are fitted on and scored with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.data.split import Split
from clipbench.encoding.feature_store import Features, Matrix
from clipbench.errors import DataError
from clipbench.protocols._grouping import groups_by
from clipbench.protocols.base import Inputs
from clipbench.solvers.selection import Selection


def decoded(split: Split, features: Features) -> NDArray[np.int64]:
    """Rows of `features` [n, D] that are no rows of NaN, which stand for images that could not be decoded.

    The store has no other rows of NaN, and the record names these images (`skipped`).

    Raises:
        DataError: there are none.
    """
    finite = features.finite() if isinstance(features, Matrix) else np.isfinite(features[:, 0])
    rows = np.flatnonzero(finite)
    if not len(rows):
        raise DataError(f"{split.dataset}: none of the {len(split)} images could be decoded")
    return rows


def clusters_of(split: Split, rows: NDArray[np.int64]) -> NDArray[np.object_] | None:
    """The clusters of the samples at `rows`; None where they do not belong together."""
    return None if split.clusters is None else split.clusters[rows]


def groups_of(split: Split, rows: NDArray[np.int64]) -> NDArray[np.object_] | None:
    """The groups of the samples at `rows`; None where the data does not say."""
    return None if split.groups is None else split.groups[rows]


@dataclass(frozen=True)
class Samples:
    """Some samples of a split, or of several.

    Attributes:
        features: [n, D].
        labels: int64 [n], or uint8 [n, C].
        ids: [n].
        rows: int64 [n], their places in the split.
        clusters: text [n], which belong together; None where the data does not say.
        groups: text [n], the group of each, likewise.
    """

    features: Selection
    labels: NDArray[Any]
    ids: NDArray[np.object_]
    rows: NDArray[np.int64]
    clusters: NDArray[np.object_] | None = None
    groups: NDArray[np.object_] | None = None

    @classmethod
    def of(
        cls, split: Split, encoder: Inputs, space: str, *, unit: bool = False, by: Sequence[str] = ()
    ) -> Samples:
        """All of `split` that could be decoded, with features in `space`; with `unit`, rows of unit length; in the
        groups that the columns `by` tell, by default those of the split.

        Raises:
            DataError: there are none.
        """
        matrix = encoder.images(split, space)
        rows = decoded(split, matrix)
        ids = np.array(split.ids, dtype=object)[rows]
        groups = groups_by(split, by, rows) if by else groups_of(split, rows)
        beside = clusters_of(split, rows), groups
        return cls(Selection([(matrix, rows)], unit=unit), split.labels[rows], ids, rows, *beside)

    def part(self, rows: NDArray[np.int64]) -> Samples:
        """The samples at `rows` (ascending) of these."""
        beside = (None if one is None else one[rows] for one in (self.clusters, self.groups))
        return Samples(self.features.part(rows), self.labels[rows], self.ids[rows], self.rows[rows], *beside)

    def joined(self, other: Samples) -> Samples:
        """These samples, then those of `other`."""
        pairs = (self.clusters, other.clusters), (self.groups, other.groups)
        return Samples(
            self.features.joined(other.features),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.rows, other.rows]),
            *(None if a is None or b is None else np.concatenate([a, b]) for a, b in pairs),
        )
