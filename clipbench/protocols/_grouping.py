"""Which groups samples are of: the columns that a task names, their combinations, and the groups that it skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Tag

from clipbench.cards.base import Tuple
from clipbench.cards.task import TaskCard
from clipbench.data.split import Split
from clipbench.errors import DataError, unknown

Names = NDArray[np.object_]
#: what stands between the names of groups that are of several columns
TIMES: Final = " × "
#: a column of groups, or several, whose combinations are the groups
OneOrSeveral = Annotated[
    Annotated[str, Tag("function-str")] | Annotated[Tuple[str], Tag("tuple[str]")],
    Discriminator(lambda value: "function-str" if isinstance(value, str) else "tuple[str]"),
]


def columns_of(card: TaskCard, group: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the columns that tell groups: the first of the card where a task names none."""
    if group is None:
        return tuple(card.columns.groups)[:1]
    return (group,) if isinstance(group, str) else group


def misfit(
    card: TaskCard, group: str | tuple[str, ...] | None, skip: Sequence[str], primary: str
) -> str | None:
    """What is wrong with the groups that a task names, or None."""
    columns, known = columns_of(card, group), card.columns.groups
    lost = next((name for name in columns if name not in known), None)
    if lost is not None:
        return unknown("column of columns.group", lost, known) if known else "group needs columns.group"
    if not columns and (primary.startswith("worst_group_") or skip):
        return f"{'skip' if skip else primary} needs columns.group on the task card"
    named = names(card, columns)
    odd = next((name for name in skip if named is not None and name not in named), None)
    return None if odd is None else unknown(f"group of {TIMES.join(columns)} in skip", odd, named or ())


def names(card: TaskCard, columns: Sequence[str]) -> list[str] | None:
    """The names of all groups that the card knows of; None where a column's codes have no names there."""
    found: list[str] = []
    for place, column in enumerate(columns):
        every = card.columns.groups[column].by_code
        if every is None:
            return None
        own = dict.fromkeys(every.values())
        found = [f"{one}{TIMES}{name}" for one in found for name in own] if place else list(own)
    return found


def groups_by(split: Split, columns: Sequence[str], rows: NDArray[np.int64]) -> Names | None:
    """The groups of the samples at `rows`, text [n]; None where no column tells them."""
    if not columns:
        return None
    found, *others = (split.groupings[name][rows] for name in columns)
    for more in others:
        found = np.array(
            [f"{one}{TIMES}{other}" for one, other in zip(found, more, strict=True)], dtype=object
        )
    return found


def counted(groups: Names, skip: Sequence[str]) -> NDArray[np.bool_]:
    """Which samples are of groups that may be the worst: bool [n].

    Raises:
        DataError: none is.
    """
    kept = ~np.isin(groups, skip)
    if not kept.any():
        raise DataError(
            f"all {len(groups):,} samples are of groups that are skipped ({', '.join(skip)})",
            hint="take more samples (raise --limit), or take names out of skip on the task card",
        )
    return kept


def column(groups: Names, skip: Sequence[str]) -> Names:
    """The column of a per-sample file: the group of each sample, None where it is skipped."""
    found = groups.copy()
    found[np.isin(groups, skip)] = None
    return found


def told(
    columns: Sequence[str],
    metric: str,
    hits: NDArray[np.float64],
    groups: Names,
    skip: Sequence[str],
    known: Sequence[str],
) -> dict[str, Any]:
    """For the record: by which columns groups are told, and which of them do not count; `known` are their names."""
    skipped = [
        {"group": name, metric: float(hits[groups == name].mean()), "n": int((groups == name).sum())}
        for name in skip
        if (groups == name).any()
    ]
    every = dict.fromkeys([*known, *skip])
    return {
        "column": TIMES.join(columns),
        "metric": metric,
        "skipped": skipped,
        "without_samples": [name for name in every if not (groups == name).any()],
    }
