"""Image folders: one folder a class, and in it, at any depth, its images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import LABELLED, TaskCard
from clipbench.data.decode import BAD_IMAGE, IMAGE_SUFFIXES, Oversized, open_image
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.paths import is_junk, printable, split_folder
from clipbench.data.split import notes_of
from clipbench.errors import DataError

_UNMARKED = "TGA"  # has no mark of its own, so that other bytes may look like one
#: folders of archives, which are no classes
_PARTS: Final = (
    "images",
    "jpg",
    "annotations",
    "labels",
    "meta",
    "imdb",
    "devkit",
    "cars_test",
    "car_ims",
    "data",
)


class ImageFolder(FileLayout):
    """One folder a class, in `folder`; fingerprints count from `root`, which is the same unless it is given.

    An image is a file whose name ends as one, or that has no ending and begins as one. Links are followed. What else
    is there is ignored, counted and named: files of other kinds, hidden ones, and what lies beside the class folders.

    Raises:
        DataError: a folder that is reached twice, or a link that leads nowhere.
    """

    name_in_fingerprint = "_Folder"
    in_part = True

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self._folder = folder
        self._ignored: list[str] = []
        self._reached: dict[tuple[int, int], Path] = {}
        self.names = []
        try:
            for entry in self._entries(folder):
                if is_junk(entry.name) or not _is_folder(entry):
                    self._ignored.append(printable(entry.name))
                else:
                    self.names.append(entry.name)
            images = [path for name in self.names for path in sorted(self._images_in(folder / name, name))]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
        super().__init__(folder, images)
        self.root = root or folder
        text = "files or folders ignored: hidden, no image by name, or beside the class folders"
        self.notes = notes_of("ignored-files", text, self._ignored)

    def index(self) -> Iterator[tuple[str, Any]]:
        assert self.names is not None
        number = {name: i for i, name in enumerate(self.names)}
        for path in self._images:
            relative = path.relative_to(self._folder)
            yield relative.as_posix(), number[relative.parts[0]]

    def _images_in(self, folder: Path, relative: str) -> Iterator[Path]:
        """The images in a folder and below it; `relative` is its path in messages."""
        for entry in self._entries(folder):
            name = f"{relative}/{entry.name}"
            if is_junk(entry.name):
                self._ignored.append(printable(name))
            elif _is_folder(entry):
                yield from self._images_in(folder / entry.name, name)
            elif _is_image(entry):
                yield folder / entry.name
            else:
                self._ignored.append(printable(name))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What a folder holds. A second time, by a link, its images would count twice, or without an end."""
        stat = folder.stat()
        before = self._reached.setdefault((stat.st_dev, stat.st_ino), folder)
        if before is not folder:
            raise DataError(
                f"{folder} and {before} are one folder, so its images would count twice",
                hint="remove the link that is not meant",
            )
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; DataError where it is a link that leads nowhere."""
    if entry.is_symlink() and not Path(entry).exists():
        raise DataError(
            f"{printable(entry.path)} is a link that leads nowhere ({printable(str(Path(entry).readlink()))})",
            hint="fetch what it leads to, or remove it",
        )
    return entry.is_dir()


def _is_image(entry: os.DirEntry[str]) -> bool:
    if suffix := Path(entry.name).suffix:
        return suffix.lower() in IMAGE_SUFFIXES
    try:
        return open_image(entry.path).format != _UNMARKED
    except Oversized:
        return True  # and is said to be so when it is decoded
    except BAD_IMAGE:
        return False


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ImageFolder | None:
    """The split in the folder of its name in `root`, or in `root` itself where that holds no folders of splits."""
    folder = split_folder(root, dataset.card.splits[role], role)
    if folder is None:
        _refuse_unfinished(dataset, role, root)
    found = ImageFolder(folder or root, root)
    others = {name for r, s in dataset.card.splits.items() for name in (r, s.name)}
    if not found.files or (folder is None and others.issuperset(found.names or ())):
        return None
    return found


def _refuse_unfinished(dataset: Entry[TaskCard], role: str, root: Path) -> None:
    """Raise DataError where archives of the card lie in `root` as they were fetched, or images without lists of splits.

    An image folder would be read from it otherwise, whose classes are "images" and the like.
    """
    archive = dataset.card.source.archive
    if archive is None:
        return
    tops = [root, *([root / archive.folder] if archive.folder else [])]
    packed = [top / name for top in tops for name in archive.files if (top / name).is_file()]
    if packed:
        raise DataError(
            f"{dataset.id}: no {role} data in {root}: {packed[0].name} is not unpacked"
            + (f", nor are {len(packed) - 1} others" if packed[1:] else ""),
            hint=f"unpack {', '.join(path.name for path in packed)} into {packed[0].parent}",
        )
    parts = [top / name for top in tops for name in _PARTS if (top / name).is_dir()]
    known = {*dataset.card.classes, *(dataset.card.label_names or ())}
    if parts and known.isdisjoint(part.name for part in parts):
        raise DataError(
            f"{dataset.id}: no {role} data in {root}: it holds {parts[0].name}/, and no list that says what belongs to "
            "a split",
            hint=f"unpack all of {', '.join(archive.files)} into one folder",
        )


#: Any folder of folders with images would do, so it is one only where no file says what the images are.
LAYOUT: Final = LayoutSpec(LABELLED, "{split}/<class>/<image>", probe, only_other=True)
