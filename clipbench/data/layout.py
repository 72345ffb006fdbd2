"""What a layout of files is: one split, as an index of its samples and a pass over their images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.data import Note, Objects
from clipbench.errors import DataError


class Layout(ABC):
    """One split in one layout: an index pass (ids and raw labels) and an image pass."""

    where: str
    #: its name in fingerprints, where that is not the class's
    name_in_fingerprint: str | None = None
    #: the data's own label names by label number, where it has them
    names: list[str] | None = None
    #: what the images show beside what their labels say, where the data has it
    objects: Objects | None = None
    #: what a reader of the split's numbers must know; complete when the index has been read
    notes: tuple[Note, ...] = ()

    @abstractmethod
    def index(self) -> Iterator[tuple[str, Any]]:
        """(id, raw label) of every sample, in order."""

    @abstractmethod
    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """(row, encoded image), ascending, of at least `rows`."""


class FileLayout(Layout):
    """Samples that are one image file each, below `root`.

    `files` are all files that decide the split: those that its labels are read from, and its images, in order.

    Raises:
        DataError: an image is not there.
    """

    def __init__(self, root: Path, images: list[Path], annotations: Sequence[Path] = ()) -> None:
        self.root, self.where = root, str(root)
        self.files = [*annotations, *images]
        self._images = images
        lost = [path for path in images if not path.is_file()]
        if lost:
            raise DataError(
                f"{lost[0]} is not there; {len(lost):,} of the {len(images):,} images that the split lists are missing",
                hint="images and annotations often come in archives of their own: unpack both into the same folder",
            )

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        for row in rows.tolist():
            path = self._images[row]
            try:
                yield row, path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from None


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
