"""What archives have in common: lists of images with labels, the splits that lists are asked for, Matlab's files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts import _matlab as matlab
from clipbench.data.layouts.base import FileLayout
from clipbench.data.paths import printable, split_names
from clipbench.data.split import Note, notes_of
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError, first_line

_VALIDATION: Final = frozenset({"val", "valid", "validation"})


class Archived(FileLayout):
    """Images that a list names: their paths below `root`, and the label of each, a name or a number."""

    name_in_fingerprint = "archive"

    def __init__(
        self,
        root: Path,
        images: Sequence[str],
        labels: Sequence[str] | Sequence[int],
        annotations: Sequence[Path],
        unpack: str,
        names: list[str] | None = None,
        *,
        notes: tuple[Note, ...] = (),
    ) -> None:
        self._ids, self._labels, self.names, self.notes = list(map(printable, images)), labels, names, notes
        for path in images:
            parts = PurePosixPath(path).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in path:
                raise DataError(f"{annotations[0]}: the image {path[:60]!r} leads out of {root}")
        super().__init__(
            root, [root / path for path in images], annotations, hint=f"unpack {unpack} into {root}"
        )
        self.root = Path(os.path.commonpath([root, *(file.parent for file in annotations)]))  # of all files


def base_of(root: Path, folders: Sequence[str], *marks: str) -> Path | None:
    """`root`, or the first of the folders in it that holds any of `marks`."""
    places = (root, *(root / folder for folder in folders))
    return next((place for place in places if any((place / mark).exists() for mark in marks)), None)


def asked_of(
    dataset: Entry[TaskCard], role: str, there: Sequence[str], base: Path
) -> tuple[tuple[str, ...], tuple[Note, ...]]:
    """Which of the authors' lists make up the split of the card, and what a reader must know of that.

    A card without a validation split trains on the authors' training and validation lists together.
    """
    card = dataset.card
    both = ("trainval",) if "trainval" in there else ("train", "val") if "val" in there else ("train",)
    others = {
        name for r, spec in card.splits.items() if r != role and spec.part is None for name in (r, spec.name)
    }
    for name in split_names(card.splits[role], role):
        word = "val" if name in _VALIDATION else name
        if word == "train" and not others & _VALIDATION:
            text = "of the authors' lists make up the training split"
            return both, notes_of("lists-together", text, both if "val" in both else ())
        if word == "trainval" and both != ("train",):
            return both, ()
        if word in there:
            return (word,), ()
    raise DataError(
        f"{dataset.id}: {base} has no {role} split: its authors name {', '.join(there)}",
        hint=f"correct splits.{role}.name in {dataset.path}, or make it a part of another split",
    )


def there(file: Path, unpack: str) -> Path:
    if not file.is_file():
        raise DataError(f"there is no {file}", hint=f"it comes with {unpack}: unpack that again")
    return file


def lines_of(file: Path, unpack: str) -> list[str]:
    """The lines of a list that hold anything.

    Raises:
        DataError: it is missing, is no text, or holds nothing.
    """
    found = [line.strip() for line in lines(decoded(there(file, unpack))) if line.strip()]
    if not found:
        raise DataError(f"{file} is empty", hint=f"it comes with {unpack}: unpack that again")
    return found


def place_in(names: list[str], name: str, file: Path, of: Path) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise DataError(f"{file}: {name[:60]!r} is none of the {len(names)} classes of {of.name}") from None


def matlab_of(file: Path, unpack: str, *names: str) -> dict[str, Any]:
    """Variables of a Matlab file (see `matlab.read`)."""
    return matlab.read(there(file, unpack), names)


def number_of(value: Any) -> int:
    """The one whole number that an array of Matlab's holds."""
    (number,) = value
    if int(number) != number:
        raise ValueError(f"{number} is no whole number")
    return int(number)


def string_of(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is expected, found {type(value).__name__}")
    return value


@contextlib.contextmanager
def in_form(file: Path) -> Iterator[None]:
    """Turns what goes wrong in a Matlab file of another form into an error that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file} does not hold what its authors' file holds ({first_line(error)})", hint="fetch it again"
        ) from None
