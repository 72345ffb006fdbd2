"""Ranks of models that paired tests tell apart, and the smallest difference that they would have seen.

A model's rank is one more than the number of models that are better than it beyond noise: by the paired test of every
pair, of one task or of the mean over a suite's tasks, with p values adjusted for their number (Holm). Models that
cannot be told apart share a rank, as in Chatbot Arena (Chiang et al. 2024, ICML, section 5). It is the lower end of
simultaneous confidence intervals of ranks (Mogstad, Romano, Shaikh & Wilhelm 2024, Review of Economic Studies 91:476):
that any model's rank is larger than its true one happens at most `alpha` of the time. Where a first is not told from a
second, nor the second from a third, but the first from the third, the ranks are 1, 1, 2: sharing one is no group with
sharp borders.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError, StorageError
from clipbench.metrics import paired_tests
from clipbench.metrics.intervals import Interval
from clipbench.metrics.joint import Contributions
from clipbench.records import alignment, store
from clipbench.records.comparison import ALPHA
from clipbench.records.store import Stored
from clipbench.report.dataframe import Row
from clipbench.utils.cache import cache_root, make_folder, read_checked, write_checked

#: how often a difference that counts as one that would have been seen is seen
POWER: Final = 0.8
_NORMAL: Final = NormalDist()
#: of what is kept in the cache, to be changed with everything that moves a rank
_KIND: Final = "ranks 2"


@dataclass(frozen=True)
class Ranks:
    """Ranks on one task, or in the mean over several.

    Attributes:
        ranks: model → rank, from 1; empty where there are no two models to be ranked.
        left_out: model → why it has none.
        detectable: the difference that the test of a pair would have seen 80 % of the time, in the metric's unit: the
            smallest and the largest over all pairs. None where no two models differ on any sample.
    """

    ranks: dict[str, int]
    left_out: dict[str, str]
    detectable: Interval | None = None


class Measured(NamedTuple):
    """A record's primary score by what each image adds to it, and the seed that its shots were drawn with."""

    parts: Contributions
    seed: int


def of(entries: Mapping[str, Sequence[Row]], alpha: float = ALPHA) -> Ranks:
    """The ranks of models by their records (rows of primary scores) of the same tasks, one or more, in the same order.

    Models that were measured otherwise than most (`pairing.mismatch`), on other samples, or without a per-sample file
    have none. What was found for the same records is kept in the cache.
    """
    left_out: dict[str, str] = {}
    for model, rows in entries.items():
        for row in rows:
            reason = _unfit(row)
            if reason is not None:
                left_out[model] = reason
                break
    fit = {model: rows for model, rows in entries.items() if model not in left_out}
    if len(fit) < 2:
        return Ranks({}, left_out)
    told = json.dumps([alpha, sorted((model, [row.digest for row in rows]) for model, rows in fit.items())])
    path = cache_root() / "ranks" / f"{hashlib.sha256(told.encode()).hexdigest()}.json"
    kept = read_checked(path, _KIND)
    if kept is not None:
        value = json.loads(kept)
        found = Ranks(**value | {"detectable": value["detectable"] and tuple(value["detectable"])})
    else:
        found, whole = _found(fit, alpha)
        if whole:
            with suppress(StorageError):  # then it is found anew every time
                make_folder(path.parent)
                write_checked(path, json.dumps(asdict(found)).encode(), _KIND)
    return Ranks(found.ranks, left_out | found.left_out, found.detectable)


def _unfit(row: Row) -> str | None:
    """Why a record cannot be compared with any, as far as its row and the folder tell."""
    if row.path is None or not store.samples_path(Path(row.path)).is_file():
        return "no per-sample file"
    return None if row.digest else "edited by hand, or without a digest"


def _found(entries: Mapping[str, Sequence[Row]], alpha: float) -> tuple[Ranks, bool]:
    """As `of`, from the records and their samples; and whether every samples file could be read."""
    stored = {model: [store.read(Path(row.path or "")) for row in rows] for model, rows in entries.items()}
    measured: dict[str, list[Measured]] = {}
    left_out: dict[str, str] = {}
    whole = True
    for model, own in stored.items():
        try:
            parts = [alignment.contributions(one) for one in own]
        except DataError:
            left_out[model], whole = "a per-sample file that is not its record's", False
            continue
        known = [Measured(p, one.record.seed) for p, one in zip(parts, own, strict=True) if p is not None]
        if len(known) < len(own):
            left_out[model] = "a metric that is no mean over samples"
        else:
            measured[model] = known
    groups = _alike(stored, measured)
    largest = max(groups, key=len, default=[])  # of equally large ones the first by name
    for model in (model for group in groups if group is not largest for model in group):
        left_out[model] = _otherwise(stored[largest[0]], stored[model])
    if len(largest) == 1:
        left_out[largest[0]] = "no other was measured as it was"
    found = ranked({model: measured[model] for model in largest}, alpha)
    return Ranks(found.ranks, left_out, found.detectable), whole


def _alike(
    stored: Mapping[str, Sequence[Stored]], measured: Mapping[str, Sequence[Measured]]
) -> list[list[str]]:
    """Models in groups whose records can be compared, task by task, on the same samples."""
    groups: list[list[str]] = []
    for model in sorted(measured):
        for group in groups:
            ids = [[list(one.parts.ids) for one in measured[each]] for each in (group[0], model)]
            if ids[0] == ids[1] and not any(map(_mismatch, stored[group[0]], stored[model])):
                group.append(model)
                break
        else:
            groups.append([model])
    return groups


def _mismatch(first: Stored, second: Stored) -> str | None:
    return alignment.mismatch(first.record, second.record)


def _otherwise(first: Sequence[Stored], second: Sequence[Stored]) -> str:
    """How the second was measured otherwise than the first."""
    for one, other in zip(first, second, strict=True):
        reason = _mismatch(one, other)
        if reason is not None:
            return f"{other.record.task}: {reason}"
    return "other samples: images that could not be read"


def ranked(measured: Mapping[str, Sequence[Measured]], alpha: float = ALPHA) -> Ranks:
    """The ranks of models by what their records' images add, of the same tasks and images in the same order."""
    models = list(measured)
    if len(models) < 2:
        return Ranks({}, {})
    tests = _tests([measured[model] for model in models])
    adjusted = paired_tests.holm([test.p for test in tests])
    ranks = dict.fromkeys(models, 1)
    for (one, other), test, p in zip(combinations(models, 2), tests, adjusted, strict=True):
        if p < alpha and test.value != 0:
            ranks[one if test.value > 0 else other] += 1
    tail = 1 - alpha / len(tests) / 2  # of Holm's first step, which every test passes
    seen = [test.error * (test.quantile(tail) + test.quantile(POWER)) for test in tests if test.error > 0]
    return Ranks(ranks, {}, (min(seen), max(seen)) if seen else None)


class _Test(NamedTuple):
    """How much more the second of a pair has, its standard error with degrees of freedom, and p, two-sided."""

    value: float
    error: float
    freedom: float
    p: float

    def quantile(self, share: float) -> float:
        if math.isinf(self.freedom):
            return _NORMAL.inv_cdf(share)
        from scipy.stats import t

        return float(t.ppf(share, self.freedom))


def _tests(measured: Sequence[Sequence[Measured]]) -> list[_Test]:
    """The paired test of every pair, in the order of `combinations`, as `compare` does it."""
    added, variance = _added(measured)
    k = len(measured[0])
    found = []
    for i, j in combinations(range(len(measured)), 2):
        gains = (added[j] - added[i]) / k
        value = float(gains.sum())
        more = sum(map(_more, measured[i], measured[j]))
        if more and k == 1:
            found.append(_over_draws(measured[i][0], measured[j][0], gains * gains.size, value))
            continue
        error = math.sqrt(variance[i, j] + more) / k
        p = 2 * paired_tests.normal_tail(abs(value) / error) if more else paired_tests.all_signs(gains)
        found.append(_Test(value, error, math.inf, p))
    return found


def _added(measured: Sequence[Sequence[Measured]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each image adds to each model's sum over tasks, and the variance of each difference of two.

    float64 [M, n] and [M, M], as `jointly.summed` has them of one pair.
    """
    columns, variance = [], np.zeros((len(measured), len(measured)))
    tasks = measured[0]
    for images in dict.fromkeys(one.parts.images for one in tasks):
        own = [place for place, one in enumerate(tasks) if one.parts.images == images]
        names = np.concatenate([np.array(tasks[place].parts.ids, dtype=object) for place in own])
        _, at = np.unique(names, return_inverse=True) if len(own) > 1 else (None, np.arange(len(names)))
        values = [[model[place].parts.values for place in own] for model in measured]
        block = np.stack([np.bincount(at, weights=np.concatenate(of)) for of in values])
        off = np.stack([np.bincount(at, weights=np.concatenate([v - v.mean() for v in of])) for of in values])
        product = off @ off.T
        own_square = np.diag(product)
        square = own_square[:, None] + own_square[None] - 2 * product
        square[square < 1e-12 * own_square.max()] = 0.0  # models that do not differ, but for rounding
        variance += square * (block.shape[1] / max(block.shape[1] - 1, 1))
        columns.append(block)
    return np.hstack(columns), variance


def _more(one: Measured, other: Measured) -> float:
    """Variance of a difference that comes from which shots were drawn, in pairs where both drew the same."""
    first, second = one.parts.draws, other.parts.draws
    if _same_draws(one, other):
        return float(np.var(np.subtract(second, first), ddof=1)) / len(first)
    return one.parts.more + other.parts.more


def _same_draws(one: Measured, other: Measured) -> bool:
    return one.seed == other.seed and len(one.parts.draws) == len(other.parts.draws) > 1


def _over_draws(one: Measured, other: Measured, gains: NDArray[np.float64], value: float) -> _Test:
    from scipy.stats import t

    first, second = (np.array(m.parts.draws or [m.parts.values.sum()]) for m in (one, other))
    error, _, freedom = paired_tests.over_draws(gains, first, second, same=_same_draws(one, other))
    return _Test(value, error, freedom, 2 * float(t.sf(abs(value) / error, freedom)))
