"""Labels: class names and class numbers of data as places in a card's list of classes.

Names are matched to names and never by position, at the first of these levels at which they agree:

    1. as they are; then in Unicode's normal form C (a macOS folder name has its accents apart)
    2. with runs of white space, `_` and hyphens inside a name as one space
    3. without regard to case and compatibility forms as well (see `fold`)
    4. without regard to punctuation as well, where no other name of the card or of the data comes to the same

Letters, marks and digits of every script always tell names apart, and so do symbols and `#`, `%`, `&`, `@`, `*`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts.base import Layout
from clipbench.data.split import Note, Split, notes_of
from clipbench.errors import DataError, nearest
from clipbench.metrics.average_precision import DIFFICULT, Difficult

Labels = NDArray[np.int64] | NDArray[np.uint8]

#: punctuation by Unicode's categories that names things all the same
_SIGNS: Final = frozenset("#%&@*")
#: a hyphen inside a name; at its end it may be a sign (`-1`, `A-`)
_HYPHENS: Final = re.compile(r"(?<=[^\s‐-])[‐-]+(?=[^\s‐-])|(?<=\s)[‐-]+(?=\s)")


def fold(name: str) -> str:
    """A name without case, compatibility forms and the choice of spaces: NFKC, case-folded; runs of white space, `_`
    and hyphens inside the name are one space.

    >>> fold("Sea_Lion"), fold("ﬁre-fly"), fold("C++"), fold("CÔTE"), fold("-1")
    ('sea lion', 'fire fly', 'c++', 'côte', '-1')
    """
    return _spaced(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _spaced(name: str) -> str:
    return " ".join(_HYPHENS.sub(" ", " ".join(_composed(name).replace("_", " ").split())).split())


def _loose(name: str) -> str:
    """`fold` without punctuation and without characters that are not seen (joiners, marks of direction, variants)."""
    kept = (
        " " if kind.startswith("P") and c not in _SIGNS else c
        for c, kind in ((c, unicodedata.category(c)) for c in fold(name))
        if kind != "Cf" and not "\ufe00" <= c <= "\ufe0f"
    )
    return " ".join("".join(kept).split())


_LEVELS: Final[tuple[Callable[[str], str], ...]] = (str, _composed, _spaced, fold, _loose)
_FOLD: Final = _LEVELS.index(fold)
_LOOSE: Final = _LEVELS.index(_loose)


@dataclass(frozen=True)
class Match:
    """Which known name each of some names means.

    Attributes:
        names, known: what was matched to what.
        places: for each name, the place of the known name, or None.
        levels: for each name, the number of the level at which they agree.
        problem: why names cannot be told, or None.
    """

    names: tuple[str, ...]
    known: tuple[str, ...]
    places: tuple[int | None, ...]
    levels: tuple[int, ...]
    problem: str | None

    @property
    def lost(self) -> list[str]:
        """Names that mean nothing."""
        return [name for name, place in zip(self.names, self.places, strict=True) if place is None]

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was taken for the same though it is written in another way."""
        pairs = [
            (level, f"{name} → {self.known[place]}")
            for name, place, level in zip(self.names, self.places, self.levels, strict=True)
            if place is not None
        ]
        folded = [pair for level, pair in pairs if 1 < level < _LOOSE]
        loose = [pair for level, pair in pairs if level == _LOOSE]
        text = "label names matched without regard to"
        return (
            *notes_of("folded-names", f"{text} case, spaces, _ and hyphens", folded),
            *notes_of("loosely-folded-names", f"{text} punctuation", loose),
        )


def match(names: Sequence[str], known: Sequence[str]) -> Match:
    """Match `names` to the `known` ones, each at the strictest level that finds it (see the module).

    A name that is there twice in the same order on both sides, but for spaces, goes by position.
    """
    places: list[int | None] = [None] * len(names)
    levels = [0] * len(names)
    problem: str | None = None
    for level, key in enumerate(_LEVELS):
        open_ = [i for i, place in enumerate(places) if place is None]
        if not open_:
            break
        keys, there = [key(name) for name in names], [key(name) for name in known]
        at: dict[str, list[int]] = {}
        for place, word in enumerate(there):
            at.setdefault(word, []).append(place)
        how_often = Counter(keys)
        aligned = level < _FOLD and keys == there
        for i in open_:
            found = at.get(keys[i], [])
            if level >= _FOLD and not keys[i]:
                continue  # nothing is left of the name
            if level == _LOOSE and (len(found) > 1 or how_often[keys[i]] > 1):
                continue
            if aligned:
                places[i] = i
            elif len(found) == 1:
                places[i] = found[0]
            elif found:
                problem = problem or (
                    f"the label name {names[i]!r} may mean the classes "
                    + " and ".join(f"{known[p]!r} (number {p})" for p in found[:3])
                )
            levels[i] = level
    twice = next((p for p, n in Counter(p for p in places if p is not None).items() if n > 1), None)
    if twice is not None and problem is None:
        same = [name for name, place in zip(names, places, strict=True) if place == twice]
        problem = f"names repeat: {' and '.join(map(repr, same[:3]))} are all the class {known[twice]!r}"
    return Match(tuple(names), tuple(known), tuple(places), tuple(levels), problem)


def match_card(card: TaskCard, names: Sequence[str]) -> Match:
    """`match` with the card's label_names or its classes: the first that have all names, else those with most."""
    found = [match(names, known) for known in (card.label_names, card.classes) if known is not None]
    return min(found, key=lambda f: (bool(f.problem or f.lost), len(f.lost), f.problem is not None))


def of(
    dataset: Entry[TaskCard], raw: list[Any], source: Layout, ids: list[str]
) -> tuple[Labels, tuple[Note, ...]]:
    """Raw labels as indices into the card's classes, int64 [n], and what a reader must know of them.

    For multi-label sets a matrix, uint8 [n, C], of 0, 1 and 255 (difficult).

    Raises:
        DataError: a label that is no class of the card, or one that may be several.
    """
    if dataset.card.kind == "multi-label":
        return _multi_label(dataset, raw, source, ids)
    if any(isinstance(label, str) for label in raw):
        return _named(dataset, raw, source, ids)
    numbers, notes = _numbers(dataset, raw, source, ids)
    _in_range(dataset, numbers, source, ids)
    labels = np.array(numbers, dtype=np.int64)
    if not source.names:
        return labels, notes
    order, renamed = _order(dataset, source.names, source.where)
    return order[labels], notes + renamed


def without_samples(split: Split) -> tuple[Note, ...]:
    """A note on the classes that `split` has no sample of, or of a multi-label set no positive one; else nothing."""
    if not split.classes:
        return ()
    several = split.labels.ndim == 2
    if several:
        per_class = (split.labels == 1).sum(axis=0)
    else:
        per_class = np.bincount(split.labels.astype(np.int64), minlength=len(split.classes))
    lost = [name for name, count in zip(split.classes, per_class, strict=True) if not count]
    what = "of the {:,} classes without any {}sample".format(len(per_class), "positive " if several else "")
    return notes_of("classes-without-samples", what, lost)


# ---------------------------------------------------------------------- names


def _named(
    dataset: Entry[TaskCard], raw: list[Any], source: Layout, ids: list[str]
) -> tuple[NDArray[np.int64], tuple[Note, ...]]:
    """Labels that are names."""
    for i, value in zip(ids, raw, strict=True):
        if not isinstance(value, str):
            raise DataError(
                f"{dataset.id}: sample {i} in {source.where} has the label {str(value)[:60]}, expected a class name, "
                "as others have"
            )
    found = match_card(dataset.card, list(dict.fromkeys(raw)))
    refuse_doubt(dataset, found, source.where)
    if found.lost:
        lost = found.lost[0]
        raise DataError(
            f"{dataset.id}: sample {ids[raw.index(lost)]} in {source.where} has the label {lost!r}, not a class of "
            f"the card{is_it(lost, found.known)}",
            hint=f"correct label_names in {dataset.path}"
            + ("; numbers that mean positions must be integers, not texts" if lost.strip().isdigit() else ""),
        )
    notes = found.notes
    named = dataset.card.label_names
    if named is not None and found.known != named and all(name.strip().isdigit() for name in found.names):
        note = "labels are texts of digits, taken for the names of classes and neither for positions nor label_names"
        notes += (Note.of("numbers-as-names", note, found.names),)
    place = dict(zip(found.names, found.places, strict=True))
    return np.array([place[value] for value in raw], dtype=np.int64), notes


def _order(
    dataset: Entry[TaskCard], names: Sequence[str], where: str
) -> tuple[NDArray[np.int64], tuple[Note, ...]]:
    """For each label name of the data, the index of the card's class; DataError where there is none, or several."""
    found = match_card(dataset.card, names)
    refuse_doubt(dataset, found, where)
    if found.lost:
        count = len(dataset.card.classes)
        counts = "" if len(names) == count else f"the data has {len(names)} classes, the card {count}; "
        raise DataError(
            f"{dataset.id}: the labels of {where} do not agree with the card: {counts}{difference(found)}",
            hint=f"add the data's own label names, in the order of classes, as label_names in {dataset.path}",
        )
    return np.array(found.places, dtype=np.int64), found.notes


def refuse_doubt(dataset: Entry[TaskCard], found: Match, where: str) -> None:
    """Raise DataError where names cannot be told."""
    if found.problem:
        raise DataError(
            f"{dataset.id}: the labels of {where} do not agree with the card: {found.problem}",
            hint=f"labels that are names must tell classes apart: write the data's own names, letter for letter, as "
            f"label_names in {dataset.path}, or correct the data",
        )


def is_it(name: str, known: Sequence[str]) -> str:
    """For messages: the known name that is most like an unknown one, if any is."""
    near = nearest(name, known)
    return f' (is it "{near}"?)' if near else ""


def difference(found: Match) -> str:
    """How names differ from the known ones, where some mean nothing, repeat or are missing."""
    if found.lost:
        first = f"{len(found.lost)} names are not on it, first {found.lost[0]!r}"
        return first + is_it(found.lost[0], found.known)
    if found.problem:
        return found.problem
    absent = [name for place, name in enumerate(found.known) if place not in found.places]
    if not absent:
        return "though the names agree"
    return f"{len(absent)} of its names are missing, first {absent[0]!r}"


# -------------------------------------------------------------------- numbers


def _numbers(
    dataset: Entry[TaskCard], raw: list[Any], source: Layout, ids: list[str]
) -> tuple[list[int], tuple[Note, ...]]:
    """Labels that are whole numbers; floating-point ones and truth values are noted."""
    kinds = {type(label) for label in raw}
    if kinds == {int}:
        return raw, ()
    several = next((label for label in raw if isinstance(label, list | tuple | np.ndarray)), None)
    if several is not None:
        raise DataError(
            f"{dataset.id}: each sample in {source.where} has {np.shape(several)} labels, the card says one",
            hint=f"set kind: multi-label in {dataset.path}",
        )
    for i, label in zip(ids, raw, strict=True):
        number = isinstance(label, int | float | np.integer | np.floating)
        if number and math.isfinite(label) and label == int(label):
            continue
        raise DataError(
            f"{dataset.id}: sample {i} in {source.where} has the label {str(label)[:60]}, expected a class number or "
            "name" + (" (a whole number)" if number else ""),
            hint="leave samples without a label out of the data" if label is None or label != label else None,
        )
    notes = []
    floats = [str(label) for label in raw if isinstance(label, float | np.floating)]
    if floats:
        text = "labels are floating-point numbers, all of them whole, and are read as class numbers"
        notes.append(Note("whole-floats", text, len(floats), tuple(dict.fromkeys(floats))[:3]))
    truths = sum(isinstance(label, bool) for label in raw)
    if truths:
        if len(dataset.card.classes) != 2 or truths < len(raw):
            raise DataError(
                f"{dataset.id}: {truths:,} of {len(raw):,} labels in {source.where} are true or false, the card has "
                f"{len(dataset.card.classes)} classes",
                hint="write class numbers or names",
            )
        classes = dataset.card.classes
        text = f"labels are truth values: false is read as {classes[0]!r}, true as {classes[1]!r}"
        notes.append(Note("truth-values", text, truths))
    return [int(label) for label in raw], tuple(notes)


def _in_range(dataset: Entry[TaskCard], numbers: list[int], source: Layout, ids: list[str]) -> None:
    """Raise DataError where a class number is below 0, or not below the number of classes."""
    allowed = len(source.names) if source.names else len(dataset.card.classes)
    if not numbers or (min(numbers) >= 0 and max(numbers) < allowed):
        return
    outside = [row for row, number in enumerate(numbers) if not 0 <= number < allowed]
    low, high = min(numbers), max(numbers)
    hint = f"the class list of {dataset.path} and the data's labels disagree"
    if (low, high) == (-1, -1):
        hint = "-1 stands for labels that are not published: take another split"
    elif (low, high) == (1, allowed):
        hint = "if they are counted from 1, write numbers from 0, or names"
    raise DataError(
        f"{dataset.id}: sample {ids[outside[0]]} in {source.where} has the label {numbers[outside[0]]}, "
        f"but there are {allowed} classes (0 to {allowed - 1}); {len(outside)} such samples",
        hint=hint,
    )


# ------------------------------------------------------------- several labels


def _multi_label(
    dataset: Entry[TaskCard], raw: list[Any], source: Layout, ids: list[str]
) -> tuple[NDArray[np.uint8], tuple[Note, ...]]:
    card, names = dataset.card, source.names
    count = len(card.classes)
    notes: tuple[Note, ...] = ()
    matrix = _matrix(dataset, raw, source, ids)
    if card.other_labels == "ignore" and names and matrix.shape[1:] == (len(names),):
        found = match_card(card, names)
        kept = [i for i, place in enumerate(found.places) if place is not None]
        notes = other_labels(found.lost)
        matrix, names = matrix[:, kept], [names[i] for i in kept]
    if matrix.ndim != 2 or matrix.shape[1] != count:
        width = matrix.shape[1] if matrix.ndim == 2 else "no"
        raise DataError(
            f"{dataset.id}: labels in {source.where} have {width} columns, the card has {count} classes"
            + (f": {difference(match_card(card, names))}" if names else ""),
            hint=f"correct classes, or kind, in {dataset.path}",
        )
    odd = np.argwhere(~np.isin(matrix, (0, 1, DIFFICULT)))
    if len(odd):
        row, column = odd[0]
        raise DataError(
            f"{dataset.id}: sample {ids[row]} in {source.where} has the label {matrix[row, column]:g} in column "
            f"{column}; allowed: 0 (absent), 1 (present), {DIFFICULT} (difficult)"
        )
    order, renamed = _order(dataset, names, source.where) if names else (np.arange(count), ())
    turned = np.zeros(matrix.shape, dtype=np.uint8)
    turned[:, order] = matrix
    return turned, notes + renamed


def other_labels(lost: Sequence[str]) -> tuple[Note, ...]:
    """A note on what a multi-label set labels beside the card's classes, and a card leaves out; else nothing."""
    text = "label names of the data left out: they are not on the card, which says other_labels: ignore"
    return notes_of("other-labels", text, lost)


def _matrix(dataset: Entry[TaskCard], raw: list[Any], source: Layout, ids: list[str]) -> NDArray[np.float64]:
    """Rows of numbers, as floats, so that a fraction is noticed and not cut off."""
    try:
        found = np.asarray(raw)
        if found.dtype.kind in "biuf":
            return found.astype(np.float64)
    except (ValueError, OverflowError):
        pass  # rows of several lengths
    kinds = Counter(map(_kind, raw))
    usual = kinds.most_common(1)[0][0]
    odd = next((i for i, label in enumerate(raw) if label is None or _kind(label) != usual), 0)
    raise DataError(
        f"{dataset.id}: sample {ids[odd]} in {source.where} has the label {str(raw[odd])[:60]}, "
        f"expected a row of {len(dataset.card.classes)} numbers, one a class"
    )


def _kind(label: Any) -> str:
    return f"{len(label)} numbers" if isinstance(label, list) else type(label).__name__


def require_difficult(split: Split, difficult: Difficult | None) -> Difficult:
    """`difficult`, by default "ignore"; refused where the labels mark no difficult object and it would mean nothing.

    Raises:
        DataError: the copy of the data marks none, and they are to be left out or counted as negative.
    """
    marked = bool((split.labels == DIFFICULT).any())
    if difficult in ("ignore", "negative") and not marked:
        raise DataError(
            f"{split.dataset}: this copy of the data does not mark difficult objects, so difficult: "
            f"{difficult} would be difficult: positive under another name",
            hint="take the variant that counts them as positive (clipbench list tasks), or a copy that marks them",
        )
    return difficult or "ignore"
