"""Sets of ImageNet's classes whose folders have names of their own: ImageNet-V2 and ObjectNet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.decode import BAD_IMAGE, open_image
from clipbench.data.layouts._archived import base_of
from clipbench.data.layouts.base import FileLayout
from clipbench.data.layouts.folder import ImageFolder
from clipbench.data.paths import folder_named, printable, split_names
from clipbench.data.split import notes_of
from clipbench.errors import DataError
from clipbench.utils.parsing import Unreadable, file_bytes, json_value

#: how the folders of ImageNet-V2 begin, and what the authors call the one that is meant unless another is named
_V2: Final = "imagenetv2-"
_MATCHED: Final = f"{_V2}matched-frequency-format-val"
_OBJECTNET: Final = "objectnet-1.0"
_BORDER: Final = 1  # pixels, red, by which ObjectNet marks its images
_LARGEST: Final = 1 << 20


class NumberedFolders(ImageFolder):
    """One folder a class that is called by the number of the class: 7, or 007, never by its place among the folders."""

    name_in_fingerprint = "NumberedFolders"

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__(folder)
        assert self.names is not None
        numbers = [int(name) for name in self.names]
        beyond = next((name for name in self.names if int(name) >= classes), None)
        if beyond is not None:
            raise DataError(
                f"{folder / beyond} is the folder of class {int(beyond)}, the card has the classes 0 to {classes - 1}"
            )
        if len(set(numbers)) < len(numbers):
            raise DataError(
                f"{folder} holds two folders of one class number", hint="keep the one that is right"
            )
        self._numbers, self.names = dict(zip(self.names, numbers, strict=True)), None

    def index(self) -> Iterator[tuple[str, Any]]:
        for path in self._images:
            relative = path.relative_to(self._folder)
            yield relative.as_posix(), self._numbers[relative.parts[0]]


def imagenetv2(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """ImageNet-V2: `imagenetv2-<variant>-format-val/<class number>/<image>`, or that folder itself.

    Asked of cards of ImageNet's 1,000 wnids. A loader that sorts the names of the folders has nearly every label wrong.
    """
    card = dataset.card
    if card.label_names is None or len(card.label_names) != 1000:
        return None
    names = split_names(card.splits[role], role)
    names += [_MATCHED] if role == "test" else []
    folder = next((f for name in names if (f := folder_named(root, name)) and _numbered(f)), None)
    if folder is None and _numbered(root):
        if root.name.startswith(_V2) and root.name not in names:
            raise DataError(
                f"{dataset.id}: {root} is not the {role} split, which is called {names[-1]}",
                hint="give the folder above it, with each variant in its own",
            )
        folder = root
    return None if folder is None else NumberedFolders(folder, len(card.classes))


def _numbered(folder: Path) -> bool:
    """Whether a folder holds folders, and all of them are called by numbers."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return bool(names) and all(name.isascii() and name.isdecimal() for name in names)


class ObjectNetFolders(FileLayout):
    """The images in those of ObjectNet's folders that are classes of a card, without their border."""

    name_in_fingerprint = "ObjectNet"
    in_part = True

    def __init__(self, base: Path, mappings: Path, classes: tuple[str, ...]) -> None:
        top = base / "images"
        there = sorted(path.name for path in top.iterdir() if path.is_dir())
        self.names = [name for name in there if name in set(classes)]
        images = [
            path
            for name in self.names
            for path in sorted((top / name).iterdir())
            if path.suffix.lower() in (".png", ".jpg", ".jpeg")
        ]
        super().__init__(base, images, [mappings / name for name in _MAPS])
        number = {name: i for i, name in enumerate(self.names)}
        self._ids = [printable(path.relative_to(base).as_posix()) for path in images]
        self._labels = [number[path.parent.name] for path in images]
        others = [name for name in there if name not in number]
        text = "folders left out, whose objects are no classes of ImageNet"
        self.notes = notes_of("other-classes", text, others)

    def also_in_fingerprint(self) -> dict[str, Any]:
        return {"border": _BORDER}

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        for row, data in super().images(rows):
            yield row, _inside(data, self._images[row])


_MAPS: Final = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json")


def _inside(data: bytes, path: Path) -> bytes:
    """An image without its border, as PNG; nothing of what is no image."""
    try:
        image = open_image(data).convert("RGB")
    except BAD_IMAGE:
        return b""
    if min(image.size) <= 2 * _BORDER:
        raise DataError(f"{path} is {image.width} × {image.height} pixels, which are all border")
    buffer = io.BytesIO()
    image.crop((_BORDER, _BORDER, image.width - _BORDER, image.height - _BORDER)).save(
        buffer, "PNG", compress_level=1
    )
    return buffer.getvalue()


def objectnet(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """ObjectNet: `images/<folder>/<image>` and `mappings/`, whose files say which folders are classes of ImageNet.

    Raises:
        DataError: they say others than the card, or are not there.
    """
    base = base_of(
        root, (_OBJECTNET, f"{_OBJECTNET}/{_OBJECTNET}"), f"mappings/{_MAPS[0]}", f"mappings/{_MAPS[1]}"
    )
    folders = dataset.card.label_names
    if base is None or folders is None:
        return None
    if not (base / "images").is_dir():
        raise DataError(f"{base} holds mappings/ and no images/", hint="unpack objectnet-1.0.zip whole")
    of_folder, in_imagenet = (_mapping(base / "mappings" / name) for name in _MAPS)
    known = {folder for folder, label in of_folder.items() if label in in_imagenet}
    if known != set(folders):
        odd = sorted(known ^ set(folders))
        raise DataError(
            f"{dataset.id}: {base / 'mappings'} maps {len(known)} folders to ImageNet, the card has {len(folders)}; "
            f"the first that is on one side alone is {odd[0]!r}",
            hint=f"take the mappings of objectnet-1.0, or correct label_names in {dataset.path}",
        )
    return ObjectNetFolders(base, base / "mappings", folders)


def _mapping(file: Path) -> dict[str, str]:
    """A JSON file of names to names."""
    try:
        found = json_value(file_bytes(file, _LARGEST))
    except (Unreadable, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error})", hint="unpack objectnet-1.0.zip whole") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise DataError(f"{file} is no mapping of names to names", hint="unpack objectnet-1.0.zip whole")
    return found
