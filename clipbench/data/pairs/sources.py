"""Where a recipe's pairs come from: every kind of source as a split, and a card that says what goes with its images."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipbench.cards.entry import Entry
from clipbench.cards.pairs import AnyPairs, CaptionedPairs, HubPairs, Pairs, ShardPairs, TablePairs, YfccPairs
from clipbench.cards.task import Columns, Source, SplitSpec, TaskCard
from clipbench.data.open import open_split
from clipbench.data.pairs.shards import LocalShards, RemoteShards
from clipbench.data.pairs.tables import RowSplit
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import Damaged
from clipbench.utils.cache import cache_root, locked, make_folder, read_checked, replacing, write_checked

_ROLE = "train"
_PLACES = "places of images 1"
#: where an image ends in the file, and its CRC-32
_PLACE = np.dtype([("end", "<i8"), ("crc32", "<u4")])


def open_pairs(
    wanted: AnyPairs, dataset: Callable[[str], Entry[TaskCard]], paths: DataPaths, recipe: Path
) -> tuple[Split | RemoteShards, TaskCard]:
    """The images and texts of one source of a recipe, and the card that goes with them.

    Args:
        dataset: finds a task card.
        paths: the folders of `--data`; a source that is no task card goes by its `name`.
        recipe: the recipe's file, for messages.

    Raises:
        DataError: missing or unreadable files, or none that is of this kind.
        CardError: no such task card or split.
    """
    if isinstance(wanted, Pairs):
        entry = dataset(wanted.dataset)
        return open_split(entry, wanted.split, paths, pairs=True), entry.card
    card = _card(wanted)
    match wanted:
        case CaptionedPairs() | HubPairs():
            return open_split(Entry(wanted.name, card, recipe), _ROLE, paths, pairs=True), card
        case ShardPairs() if wanted.remote:
            return RemoteShards(wanted), card
        case ShardPairs():
            return LocalShards(wanted, _folder(wanted.name, card, paths), verify=paths.verify), card
        case TablePairs() | YfccPairs():
            return RowSplit(wanted, _folder(wanted.name, card, paths), verify=paths.verify), card


def _card(wanted: CaptionedPairs | HubPairs | ShardPairs | TablePairs | YfccPairs) -> TaskCard:
    """A card of one split of captioned images."""
    hub = wanted if isinstance(wanted, HubPairs) else None
    return TaskCard(
        title=wanted.name,
        source=Source(hub=hub.id, config=hub.config, revision=hub.revision) if hub else Source(local=True),
        columns=Columns(image=hub.image, caption=hub.caption) if hub else Columns(),
        splits={_ROLE: SplitSpec(name=getattr(wanted, "split", _ROLE))},
        kind="captions",
        protocols={"ret": {}},
    )


def _folder(name: str, card: TaskCard, paths: DataPaths) -> Path:
    found = paths.find(name, card)
    if found is None:
        raise paths.private(name)
    return found


class Packed:
    """The encoded images of a split in one file of the cache, where each is found at once.

    Parquet files and other sets that are read from beginning to end are written there when they are first trained on
    without being held in memory. It takes as much room as the images do. Where each image lies, and its checksum, is
    kept beside it; the checksum is verified at each reading.
    """

    def __init__(self, split: Split) -> None:
        """Take up the file of `split`, or write it; StorageError where the cache has no room."""
        file = make_folder(cache_root() / "pairs") / f"{split.fingerprint}.images"
        places = file.with_suffix(".places")
        with locked(file.with_suffix(".lock")):
            held = read_checked(places, _PLACES)  # written last
            size = -1 if held is None else np.frombuffer(held, _PLACE)[-1]["end"]
            if held is None or not file.is_file() or file.stat().st_size != size:
                held = _write(split, file)
                write_checked(places, held, _PLACES)
        self._file, self._places = file, np.frombuffer(held, _PLACE)
        self._bytes = np.memmap(file, dtype=np.uint8, mode="r")

    def image(self, row: int) -> bytes:
        """The encoded image of sample number `row`.

        Raises:
            Damaged: it is not the one that was written.
        """
        start, (end, checksum) = self._places[row]["end"], self._places[row + 1]
        image = bytes(self._bytes[start:end])
        if zlib.crc32(image) != checksum:
            raise Damaged(
                f"{self._file} is damaged: image {row} is not what its checksum says",
                hint="delete the file, then run the same command: it is made anew",
            )
        return image


def _write(split: Split, file: Path) -> bytes:
    """All images one behind the other; returns where each ends and its checksum (`_PLACE` [n + 1]; row 0: nothing)."""
    places = np.zeros(len(split) + 1, _PLACE)
    hint = "free some space, or set CLIPBENCH_CACHE to a folder with more room"
    with replacing(file, f", the images of {split.dataset}", hint=hint) as part, part.open("wb") as out:
        for row, sample in enumerate(split.samples(np.arange(len(split))), start=1):
            out.write(sample.image)
            places[row] = places[row - 1]["end"] + len(sample.image), zlib.crc32(sample.image)
    return places.tobytes()
