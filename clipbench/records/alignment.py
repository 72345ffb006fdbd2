"""From the per-sample files of two records to what each sample adds to their primary metric, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError
from clipbench.metrics import average_precision, clustered, paired_tests, worst_group
from clipbench.metrics.average_precision import APKind, Difficult
from clipbench.metrics.clustered import Spread
from clipbench.metrics.joint import Contributions
from clipbench.metrics.paired_tests import Difference
from clipbench.protocols import registry
from clipbench.records import store
from clipbench.records.record import Record
from clipbench.records.store import Stored

Columns = dict[str, list[Any]]
Doubles = NDArray[np.float64]
_HITS: Final = {"acc1": 1, "acc5": 5}  # metric → from which rank on a sample is wrong
#: columns that say what a model answered, not how well
_TOLD: Final = frozenset({"confidence", "expression", "prediction", "top_image", "top_texts_of", "x", "y"})
_KINDS: Final[dict[str, APKind]] = {"map_area": "area", "map_11pt": "11pt", "map_envelope": "envelope"}


@dataclass(frozen=True)
class Pair:
    """Two records of one task on the samples that both have.

    Attributes:
        difference: in the primary metric, second minus first.
        ids: of the samples (or of the images that several of them are about).
        gains: float64 [n], how much more the second has of each; None where a sample has no share of the metric.
        classes: class → (first, second): values of classes, where the record has them.
        left_out: samples that only one of them has.
        contributions: what each image, or cluster, adds to the difference; None where the metric is no sum over images.
    """

    difference: Difference
    ids: Sequence[str]
    gains: Doubles | None
    classes: dict[str, tuple[float, float]]
    left_out: int
    contributions: Contributions | None = None


def mismatch(first: Record, second: Record) -> str | None:
    """Why two records of one task cannot be compared, or None: another protocol, other data, another metric."""
    a, b = first.protocol, second.protocol
    if (a.name, a.version) != (b.name, b.version):
        return f"protocol {a.name} version {a.version} and {b.name} version {b.version}"
    if a.params != b.params:
        keys = sorted(k for k in a.params.keys() | b.params.keys() if a.params.get(k) != b.params.get(k))
        return f"protocol parameters differ: {', '.join(keys)}"
    if first.primary != second.primary:
        return f"primary metric {first.primary} and {second.primary}"
    prints = [{k: v for k, v in r.fingerprints.items() if k.startswith("split:")} for r in (first, second)]
    roles = sorted(k for k in prints[0].keys() | prints[1].keys() if prints[0].get(k) != prints[1].get(k))
    if roles:
        limits = "" if first.limit == second.limit else f" (--limit {first.limit} and {second.limit})"
        return f"measured on other data: {', '.join(roles)}{limits}"
    return None


def pair(first: Stored, second: Stored) -> Pair:
    """The difference of two comparable records, sample by sample where that can be, else from their intervals.

    Raises:
        DataError: a per-sample file is missing, not the record's, or of other labels.
    """
    metric = first.record.primary
    tables = [_table(stored) for stored in (first, second)]
    ids, a, b, left_out = _aligned(tables, (first, second))
    params = first.record.protocol.params
    classes = _classes(first.record, second.record)
    seed = first.record.seed
    images = images_of(first.record)
    kind = registry.metric(metric).precision
    if kind is not None and "score" in a:
        difference = paired_tests.of_average_precision(
            np.array(a["score"], dtype=np.float32),
            np.array(b["score"], dtype=np.float32),
            np.array(a["target"], dtype=np.uint8),
            kind,
            _difficult(params.get("difficult")),
            seed,
            cluster=None if "cluster" not in a else clustered.codes(a["cluster"]),
        )
        added = [_precision_contributed(kind, table, params) for table in (a, b)]
        contributions = _precision(images, a, added[1] - added[0])
        return Pair(difference, ids, None, classes, left_out, contributions)
    shares = [_shares(metric, table, params) for table in (a, b)]
    if shares[0] is None or shares[1] is None:
        scores = (stored.record.scores[metric] for stored in (first, second))
        return Pair(paired_tests.of_scores(*scores), ids, None, classes, left_out)
    clusters = None if "cluster" not in a else clustered.codes(a["cluster"])
    stratum = _stratum(metric, a)
    drawn = [_draws(metric, table, params) for table in (a, b)]
    same = first.record.seed == second.record.seed and len(drawn[0]) == len(drawn[1])
    gains = shares[1] - shares[0]
    spec = registry.metric(metric)
    if spec.lowest_of is not None:
        one, two = np.stack(drawn[0] or [shares[0]]), np.stack(drawn[1] or [shares[1]])
        if spec.highest:  # the lowest of what is lacking to 1, the other way round
            one, two = 1 - two, 1 - one
        counted, of = _of_groups(a[spec.lowest_of])
        clusters = None if "cluster" not in a else clustered.codes(np.array(a["cluster"], object)[counted])
        found = worst_group.difference(one[:, counted], two[:, counted], of, clusters, same=same)
        return Pair(found, ids, gains, classes, left_out)
    if len(drawn[0]) > 1 or len(drawn[1]) > 1:
        if clusters is None:
            difference, between = paired_tests.of_draws(*map(np.stack, drawn), same=same)
            contributions = Contributions(images, ids, gains / len(ids), between)
        else:
            spread = clustered.spread(_unweighted(gains, stratum), clusters, stratum)
            difference, between = paired_tests.of_draws(*map(np.stack, drawn), same=same, spread=spread)
            contributions = _of_clusters(images, a["cluster"], gains, spread, between)
        return Pair(difference, ids, gains, classes, left_out, contributions)
    if clusters is not None:
        spread = clustered.spread(_unweighted(gains, stratum), clusters, stratum)
        contributions = _of_clusters(images, a["cluster"], gains, spread)
        difference = paired_tests.of_clusters(contributions.values, spread, seed)
        return Pair(difference, ids, gains, classes, left_out, contributions)
    groups = a.get("image", ids)
    names, one, two = _grouped(groups, shares[0], shares[1])
    contributions = Contributions(images, names, (two - one) / len(names))
    return Pair(paired_tests.of_means(one, two, seed), names, two - one, classes, left_out, contributions)


def images_of(record: Record) -> str:
    """A name for the set of images that were measured on, equal for tasks that share it: the split's fingerprint."""
    params = record.protocol.params
    role = params.get("test", params.get("split", "test"))
    return record.fingerprints.get(f"split:{role}", f"{record.task} of {record.model}")


def contributions(stored: Stored) -> Contributions | None:
    """What each image, or cluster of images, adds to the primary score; None where that is no sum over images.

    Raises:
        DataError: the per-sample file is missing, or not the one that was written with the record.
    """
    record, table = stored.record, _table(stored)
    metric, params, images = record.primary, record.protocol.params, images_of(record)
    kind = registry.metric(metric).precision
    if kind is not None and "score" in table:
        return _precision(images, table, _precision_contributed(kind, table, params))
    shares = _shares(metric, table, params)
    if shares is None or not shares.size or registry.metric(metric).lowest_of is not None:
        return None
    draws = [float(one.mean()) for one in _draws(metric, table, params)]
    more = float(np.var(draws, ddof=1)) / len(draws) if len(draws) > 1 else 0.0
    if "cluster" in table:
        stratum = _stratum(metric, table)
        spread = clustered.spread(_unweighted(shares, stratum), clustered.codes(table["cluster"]), stratum)
        parts = _of_clusters(images, table["cluster"], shares, spread, more)
        return replace(parts, draws=draws if more else ())
    names, grouped, _ = _grouped(table.get("image", table["id"]), shares, shares)
    return Contributions(images, names, grouped / len(names), more, draws if more else ())


def _of_clusters(
    images: str, names: Sequence[str], shares: Doubles, spread: Spread, more: float = 0.0
) -> Contributions:
    """What each cluster adds to a score, of which each sample adds its part of `shares`, whose mean the score is."""
    every = np.unique(np.array(names, dtype=object)).tolist()
    values = clustered.sums(clustered.codes(names), shares) / len(shares)
    return Contributions(images, every, values, more, effects=spread.effects, freedom=spread.freedom)


def _precision(images: str, table: Columns, added: Doubles) -> Contributions:
    """What each image adds to a mean average precision (`_precision_contributed`), or each cluster of images."""
    if "cluster" not in table:
        return Contributions(images, table["id"], added)
    spread = clustered.spread(added * len(added), clustered.codes(table["cluster"]))
    # What hangs on an image is its part beside the same part of all.
    effects = clustered.sums(clustered.codes(table["cluster"]), added - added.mean())
    return replace(_of_clusters(images, table["cluster"], added * len(added), spread), effects=effects)


def _stratum(metric: str, table: Columns) -> NDArray[np.int64] | None:
    """The class of each sample where the metric is a mean over classes; None where it is one over samples."""
    if metric != "mean_per_class_recall":
        return None
    return np.unique(table["target"], return_inverse=True)[1].astype(np.int64)


def _unweighted(shares: Doubles, stratum: NDArray[np.int64] | None) -> Doubles:
    """What each sample has, of what it adds to a mean over samples (the same), or to one over classes (`_shares`)."""
    if stratum is None:
        return shares
    counts = np.bincount(stratum)
    return shares * counts.size * counts[stratum] / len(shares)


def _draws(metric: str, table: Columns, params: dict[str, Any]) -> list[Doubles]:
    """What each sample adds to the metric in each draw of shots; nothing where there are no draws."""
    names = [name for name in table if name.startswith("rank_")]
    rest = {name: column for name, column in table.items() if name not in names}
    found = (_shares(metric, rest | {name: table[name]}, params) for name in names)
    return [share for share in found if share is not None]


def _precision_contributed(kind: APKind, table: Columns, params: dict[str, Any]) -> Doubles:
    """The same part of a mean average precision for each image, and how it hangs on the image: float64 [n]."""
    scores, target = np.array(table["score"], np.float32), np.array(table["target"], np.uint8)
    difficult = _difficult(params.get("difficult"))
    value = average_precision.mean_average_precision(scores, target, kind, difficult)
    return average_precision.mean_average_precision_influence(scores, target, kind, difficult) + value / len(
        target
    )


def recomputed(stored: Stored) -> float | None:
    """The primary score as the per-sample file gives it; None where it cannot be had from that (ranks' medians, bias).

    Raises:
        DataError: the file is missing, or not the one that was written with the record.
    """
    record, table = stored.record, _table(stored)
    metric, params = record.primary, record.protocol.params
    kind = registry.metric(metric).precision
    if kind is not None and "score" in table:
        scores, target = np.array(table["score"], np.float32), np.array(table["target"], np.uint8)
        return average_precision.mean_average_precision(
            scores, target, kind, _difficult(params.get("difficult"))
        )
    shares = _shares(metric, table, params)
    if shares is None or not shares.size:
        return None
    spec = registry.metric(metric)
    counted, of = _of_groups(["all"] * shares.size if spec.lowest_of is None else table[spec.lowest_of])
    means = clustered.sums(of, shares[counted]) / np.bincount(of)
    return float(means.max() if spec.highest else means.min())


def _of_groups(names: Sequence[str | None]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of samples that are of a group, and the group of each as a number."""
    rows = np.flatnonzero([name is not None for name in names])
    return rows, worst_group.codes(np.array(names, dtype=object)[rows])


def _shares(metric: str, table: Columns, params: dict[str, Any]) -> Doubles | None:
    """What each sample adds to the metric, which is their mean: float64 [n]; None where it is no such mean."""
    spec = registry.metric(metric)
    return None if spec.shares is None else spec.shares(metric, table, params)


def _grouped(groups: Sequence[str], *shares: Doubles) -> tuple[list[str], Doubles, Doubles]:
    """Samples of one image as one, weighted so that the mean over images is the mean over samples."""
    names, place = np.unique(np.array(groups, dtype=object), return_inverse=True)
    if len(names) == len(groups):
        return list(groups), shares[0], shares[1]
    one, two = (np.bincount(place, weights=share) * len(names) / len(place) for share in shares)
    return names.tolist(), one, two


def _table(stored: Stored) -> Columns:
    import pyarrow.parquet as pq

    path = store.samples_path(stored.path)
    if not path.is_file():
        raise DataError(
            f"there is no {path}", hint="evaluate again: its per-sample outcomes belong to a record"
        )
    if stored.record.samples_sha256 is not None and not store.samples_intact(stored):
        raise DataError(
            f"{path} is not the file that was written with its record: it was changed, "
            "or a run was killed after writing it and before its record",
            hint=f"restore the file, or evaluate again: clipbench eval --model {stored.record.model} "
            f"--task {stored.record.task}",
        )
    file = pq.ParquetFile(path)
    table: Columns = file.read([name for name in file.schema_arrow.names if name not in _TOLD]).to_pydict()
    return table


def _aligned(tables: Sequence[Columns], stored: Sequence[Stored]) -> tuple[list[str], Columns, Columns, int]:
    """Ids that both have, in the first's order, and the rows of both in that order; how many were left out."""
    a, b = tables
    at = {name: row for row, name in enumerate(b["id"])}
    rows = [(i, at[name]) for i, name in enumerate(a["id"]) if name in at]
    if not rows:
        raise DataError(f"{stored[0].path} and {stored[1].path} have no sample in common")
    left_out = len(a["id"]) + len(b["id"]) - 2 * len(rows)
    of_a, of_b = (
        {name: [column[pair[side]] for pair in rows] for name, column in table.items()}
        for side, table in enumerate(tables)
    )
    of_groups = registry.metric(stored[0].record.primary).lowest_of
    for column in ("cluster", *((of_groups,) if of_groups else ())):
        if of_a.get(column) != of_b.get(column):
            raise DataError(
                f"{stored[0].path} and {stored[1].path} have other {column}s for the same samples",
                hint=f"evaluate both again with the same columns.{column} on the task card",
            )
    if of_a.get("target") != of_b.get("target"):
        raise DataError(
            f"{stored[0].path} and {stored[1].path} have other labels for the same samples",
            hint="evaluate both again on one copy of the data",
        )
    return of_a["id"], of_a, of_b, left_out


def _classes(first: Record, second: Record) -> dict[str, tuple[float, float]]:
    """Values of classes that both records have, of the measure that goes with the primary metric."""
    names = [f"ap_{first.primary.removeprefix('map_')}", "recall"]
    measure = next((n for n in names if n in first.per_class and n in second.per_class), None)
    if measure is None:
        return {}
    both = ((c, v, second.per_class[measure].get(c)) for c, v in first.per_class[measure].items())
    return {c: (v, w) for c, v, w in both if v is not None and w is not None}


def _difficult(value: object) -> Difficult:
    return value if value in ("positive", "negative") else "ignore"
