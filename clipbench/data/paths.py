"""Where local copies of data sets lie, and which files and folders in one belong to a split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipbench.cards.task import SplitSpec, TaskCard
from clipbench.errors import ClipbenchError, DataError, unknown
from clipbench.utils.parsing import expanded


@dataclass(frozen=True)
class DataPaths:
    """Local copies: `named` from `--data <dataset>=<path>`, `roots` from `--data <root>` and CLIPBENCH_DATA.

    With `verify`, every file is read and hashed again, whatever is remembered of it (see `clipbench.data.digests`).
    """

    named: dict[str, Path]
    roots: tuple[Path, ...]
    verify: bool = False

    @classmethod
    def parse(
        cls, given: Sequence[str], *, known: Collection[str] | None = None, verify: bool = False
    ) -> DataPaths:
        """From the values of `--data`, then CLIPBENCH_DATA (several, separated by the path separator).

        Args:
            known: the names that may be given: a misspelt data set would otherwise be fetched instead of read.

        Raises:
            ClipbenchError: a name that is not known.
            DataError: a folder that does not exist.
        """
        for text in given:
            name, separator, _ = text.partition("=")
            if separator and known is not None and name not in known:
                raise ClipbenchError(f"--data {text}: {unknown('data set', name, known)}")
        named: dict[str, Path] = {}
        roots: list[Path] = []
        environment = [p for p in os.environ.get("CLIPBENCH_DATA", "").split(os.pathsep) if p]
        for text in (*given, *environment):
            name, separator, path_text = text.partition("=")
            path = expanded(path_text if separator else text)
            if not path.is_dir():
                raise DataError(
                    f"no data folder {path}" + (f" (for {name})" if separator else ""),
                    hint="--data takes <dataset>=<folder>, or a folder that holds one folder a data set",
                )
            if separator:
                named.setdefault(name, path)
            else:
                roots.append(path)
        return cls(named, tuple(roots), verify)

    def find(self, dataset: str, card: TaskCard) -> Path | None:
        """The local copy of `dataset`, by its id, its hub name or the folder that its archive makes, or None."""
        if dataset in self.named:
            return self.named[dataset]
        names = [dataset]
        if card.source.hub:
            names += [card.source.hub, card.source.hub.rpartition("/")[2]]
        if card.source.archive and card.source.archive.folder:
            names.append(card.source.archive.folder)
        for root in self.roots:
            if root.absolute().name in names:
                return root
            for name in names:
                if (root / name).exists():
                    return root / name
        return None

    def without(self, dataset: str) -> str:
        """For errors: that no folder of data sets which was given holds `dataset`; empty where none was given."""
        roots = ", ".join(map(str, self.roots))
        return f"; no folder {dataset} in {roots}" if roots else ""

    def private(self, dataset: str) -> DataError:
        """The error for `dataset`, which was not found and has no public copy."""
        return DataError(
            f"{dataset} has no public copy to fetch{self.without(dataset)}",
            hint=f"point to yours: --data {dataset}=<folder>",
        )


def split_folder(root: Path, spec: SplitSpec, role: str) -> Path | None:
    """The folder of the split, if there is one: by the card's name for it, or its role."""
    found = (folder_named(root, name) for name in split_names(spec, role))
    return next((folder for folder in found if folder), None)


def folder_named(root: Path, name: str) -> Path | None:
    """The folder `name` in `root`, if there is one; it may differ in case.

    Raises:
        DataError: there are several.
    """
    if not root.is_dir():
        return None
    found = sorted(p for p in root.iterdir() if p.name.casefold() == name.casefold() and p.is_dir())
    if len(found) > 1:
        raise DataError(
            f"{root} holds {' and '.join(p.name for p in found)}, which differ in case alone",
            hint="rename the one that is not meant",
        )
    return found[0] if found else None


def split_names(spec: SplitSpec, role: str) -> list[str]:
    """What a local copy may call the split: the card's name for it, or its role.

    Not the role where that means less: VOC's `train` is half of the `trainval` that a card may ask for.
    """
    return [spec.name] if spec.name.startswith(role) else [spec.name, role]


def split_files(root: Path, spec: SplitSpec, role: str, *suffixes: str) -> list[Path]:
    """Files of the split that end so: in a folder of its name, or with names that start with it.

    Raises:
        DataError: one is a link that leads nowhere.
    """
    for name in split_names(spec, role):
        begins = re.compile(rf"{re.escape(name)}(\b|[-_.])")
        own = folder_named(root, name)
        found = [
            path
            for folder in (own, root, root / "data")
            if folder is not None and folder.is_dir()
            for path in folder.iterdir()
            if path.name.lower().endswith(suffixes) and (folder == own or begins.match(path.name))
            if not is_junk(path.name) and not path.is_dir()
        ]
        for path in found:
            if not path.is_file():
                raise DataError(f"{path} is a link that leads nowhere", hint="fetch what it leads to")
        if found:
            return sorted(found, key=lambda path: natural(path.name))
    return []


def natural(name: str) -> list[str | int]:
    """Sorting key that puts 2.tar before 10.tar."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def listing(root: Path) -> str:
    """What a folder holds, for errors."""
    return ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"


#: folders and files that systems and programs leave among data
_JUNK = frozenset(
    {"__MACOSX", "PaxHeaders", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
    | {"Thumbs.db", "thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "pax_global_header"}
)


def is_junk(path: str) -> bool:
    """Whether a path's parts, separated by /, hold one that is hidden, or that a system or a program left there.

    >>> [is_junk(path) for path in ("a/._b.png", "__MACOSX/b.png", "./a/b.png", "PaxHeaders.12/b.png")]
    [True, True, False, True]
    """
    return any(
        part in _JUNK or part.startswith("PaxHeaders.") or (part.startswith(".") and part not in (".", ".."))
        for part in path.split("/")
    )


def printable(name: str) -> str:
    """The name of a file, its bytes that are no UTF-8 escaped: they fit neither into a record nor on a screen."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
