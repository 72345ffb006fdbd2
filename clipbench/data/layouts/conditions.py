"""Image folders below folders of conditions: `<condition>/<class>/<image>`, as ImageNet-C and -9 unpack.

A card asks for it by its columns: `group: condition` is the path of the folder of classes (`fog/3`), `cluster: image`
the path of an image in it, which the same image has under every condition.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.decode import IMAGE_SUFFIXES
from clipbench.data.labels import match_card
from clipbench.data.layouts.base import FileLayout, LayoutSpec, no_columns
from clipbench.data.paths import is_junk, printable, split_folder
from clipbench.data.split import notes_of
from clipbench.errors import DataError

_CONDITION: Final = "condition"
_COLUMNS: Final = (_CONDITION, "image")
_DEEPEST: Final = 4
#: what archives call the folder of classes below a condition
_SPLITS: Final = ("val", "test")
_IMAGES: Final = tuple(IMAGE_SUFFIXES)


class Conditions(FileLayout):
    """The folders of classes below `root`: path of the folder → names of the classes in it.

    Raises:
        DataError: no image lies in them.
    """

    name_in_fingerprint = "Conditions"
    in_part = True

    def __init__(self, root: Path, found: dict[str, list[str]]) -> None:
        ignored: list[str] = []
        images: list[Path] = []
        self._conditions: list[str] = []
        ids: list[str] = []
        labels: list[str] = []
        for folder, classes in sorted(found.items()):
            for name in classes:
                for entry in _entries(root / folder / name):
                    path = f"{folder}/{name}/{entry.name}"
                    if is_junk(entry.name) or entry.is_dir() or not entry.name.lower().endswith(_IMAGES):
                        ignored.append(printable(path))
                        continue
                    images.append(root / path)
                    ids.append(printable(path))
                    labels.append(name)
                    self._conditions.append(_condition(folder))
        self._ids, self._labels = ids, labels
        super().__init__(root, images)
        self.notes = notes_of("ignored-files", "files or folders ignored: no image by name", ignored)

    def beside(self, key: str, name: str) -> list[str]:
        if name == _CONDITION:
            return self._conditions
        if name == "image":
            return ["/".join(PurePosixPath(id_).parts[-2:]) for id_ in self._ids]
        raise no_columns(self.where, key, name)


def _condition(folder: str) -> str:
    """What a folder of classes is called: its path, without a last part that is but the split.

    >>> _condition("fog/3"), _condition("only_fg/val")
    ('fog/3', 'only_fg')
    """
    path = PurePosixPath(folder)
    return (path.parent if path.name in _SPLITS and len(path.parts) > 1 else path).as_posix()


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> Conditions | None:
    """The split in the folders of conditions below its own folder, or below `root`, if the card asks for conditions."""
    if _CONDITION not in dataset.card.columns.beside.values():
        return None
    base = split_folder(root, dataset.card.splits[role], role) or root
    found = dict(_folders(dataset.card, base, "", 0))
    if not found:
        return None
    if "" in found:
        raise DataError(
            f"{dataset.id}: {base} holds the classes themselves, and no folders of conditions",
            hint="give the folder above it: <condition>/<class>/<image>",
        )
    return Conditions(base, found)


def _folders(card: TaskCard, base: Path, relative: str, depth: int) -> Iterator[tuple[str, list[str]]]:
    """The folders below `base` that hold folders of the card's classes, with these."""
    names = [e.name for e in _entries(base / relative) if e.is_dir() and not is_junk(e.name)]
    match = match_card(card, names)
    if names and match.problem is None and len(match.lost) < len(names):
        yield relative, names
    elif depth < _DEEPEST:
        for name in names:
            yield from _folders(card, base, f"{relative}/{name}" if relative else name, depth + 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None


LAYOUT: Final = LayoutSpec(("single-label",), "<condition>/<class>/<image>", probe)
