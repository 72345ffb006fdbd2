"""The samples of one part of a collection, one after the other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from clipbench.data.captions import plain_caption
from clipbench.data.paths import printable
from clipbench.data.tars import compression, gather, members, opened, split_name, stem, whole
from clipbench.embed.collection import Collection, Columns, Part, opened_table, stem_of
from clipbench.embed.lists import beside
from clipbench.errors import DataError, StorageError, first_line
from clipbench.utils.parsing import json_value
from clipbench.utils.storage import Place

_TEXTS: Final = (".txt", ".json")
_READ_ROWS: Final = 64  # rows of a parquet file held at once


@dataclass(frozen=True)
class Item:
    """A sample as it is read.

    Attributes:
        key: its name in the collection.
        image: the encoded image; None where there is none, or where the collection is of texts.
        path: where the image comes from.
        caption, url: what is known of it.
        own: its other columns.
        wrong: why it cannot be embedded; "" where nothing is wrong so far.
    """

    key: str
    image: bytes | None
    path: str
    caption: str | None = None
    url: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    wrong: str = ""


class Reading:
    """The samples of a part, read once.

    Attributes:
        types: of own columns whose type the source states: name → `pyarrow.DataType`.
        ignored: what the part holds and no sample is made of: how → how many.
        expected: samples, from when the first one is given.
    """

    def __init__(self, of: Collection, part: Part) -> None:
        self._of, self._part = of, part
        self.types: dict[str, Any] = {}
        self.ignored: dict[str, int] = {}
        self.expected = 0

    def __iter__(self) -> Iterator[Item]:
        """The samples, in order.

        Raises:
            DataError, StorageError: the part cannot be read to its end.
        """
        match self._of.kind:
            case "tars":
                yield from self._tar()
            case "parquet":
                yield from self._table()
            case "images":
                self.expected = self._part.last - self._part.first
                yield from self._images()
            case "list" | "texts":
                self.expected = self._part.last - self._part.first
                yield from self._list(self._of.kind == "texts")

    def _tar(self) -> Iterator[Item]:
        place = self._part.file
        caption = self._of.wanted.caption
        with ExitStack() as until, whole(str(place)):
            path = until.enter_context(place.here())
            file = until.enter_context(opened(_plain(path, until)))
            files = list(members(file, str(place)))
            found = gather([member.name for member in files], _TEXTS)

            def content(number: int) -> bytes:
                member = files[number]
                file.seek(member.place)
                data = file.read(member.size)
                if len(data) != member.size:
                    raise EOFError(f"it ends within {member.name}")
                return data

            twice = dict.fromkeys(split_name(files[second].name, _TEXTS)[0] for _, second in found.twice)
            self.expected = len(twice) + len(found.bare) + len(found.samples) + len(found.untold)
            for key in twice:
                yield Item(key, None, place.name, wrong="two images, or a file twice")
            for group in found.bare:
                yield Item(group.key, None, place.name, wrong="no image")
            groups = sorted((*found.samples, *found.untold), key=lambda group: group.image or 0)
            for group in groups:
                assert group.image is not None
                told = self._told(content(group.texts[".json"])) if ".json" in group.texts else {}
                own = {k: v for k, v in told.items() if k not in ("url", "caption", caption)}
                if own.get("key") == group.key.rpartition("/")[2]:
                    del own["key"]
                text = _text(told.get(caption or "caption"))
                if ".txt" in group.texts and caption is None:
                    text = _text(content(group.texts[".txt"]).decode(errors="replace")) or text
                yield Item(
                    group.key.removeprefix("./"),
                    content(group.image),
                    f"{place.name}/{files[group.image].name}",
                    text,
                    _text(told.get("url")),
                    own,
                )
            for how, numbers in (
                ("images beside a sample's own", found.beside),
                ("other files", found.ignored),
            ):
                if numbers:
                    self.ignored[how] = len(numbers)

    def _told(self, data: bytes) -> dict[str, Any]:
        """What a sample's JSON says of it; nothing, and counted, where it is none."""
        try:
            found = json_value(data, nan=True)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        self.ignored["JSON that cannot be read"] = self.ignored.get("JSON that cannot be read", 0) + 1
        return {}

    def _table(self) -> Iterator[Item]:
        columns, part = self._of.columns, self._part
        assert columns is not None
        with opened_table(part.file) as file:
            schema = file.schema_arrow
            self.types = {name: schema.field(name).type for name in columns.own}
            read = [n for n in (columns.image, columns.caption, columns.key, columns.url, *columns.own) if n]
            number = part.start
            groups = range(part.first, part.last)
            self.expected = sum(file.metadata.row_group(group).num_rows for group in groups)
            try:
                for batch in file.iter_batches(_READ_ROWS, groups, columns=read):
                    for row in batch.to_pylist():
                        yield self._row(row, columns, f"{number:07d}", part.file)
                        number += 1
            except (OSError, ValueError) as error:  # of a file that is damaged further in
                raise DataError(f"{part.name} cannot be read: {first_line(error)}") from None

    def _images(self) -> Iterator[Item]:
        folder = self._part.file
        for name in self._of.names[self._part.first : self._part.last]:
            text = f"{stem_of(name)}.txt"
            caption = None
            if text in self._of.captions:
                caption = _text((folder / text).read().decode(errors="replace"))
            yield _from_file(folder / name, Item(printable(name), None, printable(name), caption))

    def _list(self, texts: bool) -> Iterator[Item]:
        place, columns = self._part.file, self._of.columns
        rows = self._of.names[self._part.first : self._part.last]
        for number, row in enumerate(rows, self._part.first):
            key = f"{number:07d}"
            if columns is not None:
                yield self._row(row, columns, key, place, texts)
            elif texts:
                yield Item(key, None, "", row)
            else:
                yield _from_file(beside(place, row), Item(row, None, row))

    def _row(
        self, row: Mapping[str, Any], columns: Columns, number: str, place: Place, texts: bool = False
    ) -> Item:
        """The sample of a table's row."""
        own = {name: row.get(name) for name in columns.own}
        caption = _text(row.get(columns.caption)) if columns.caption else None
        url = _text(row.get(columns.url)) if columns.url else None
        key = row.get(columns.key) if columns.key else None
        item = Item(number if key is None else str(key), None, "", caption, url, own)
        if texts:
            return item
        assert columns.image is not None
        cell = row.get(columns.image)
        if isinstance(cell, Mapping):  # as `datasets` writes it
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes) and cell:
            return Item(item.key, cell, f"{place.name}/{number}", caption, url, own)
        if not cell:
            return Item(item.key, None, "", caption, url, own, wrong="no image")
        if not isinstance(cell, str):
            return Item(item.key, None, "", caption, url, own, wrong=f"its image is {type(cell).__name__}")
        found = item if columns.key else Item(cell, None, "", caption, url, own)
        return _from_file(beside(place, cell), Item(found.key, None, cell, caption, url, own))


def _from_file(place: Place, item: Item) -> Item:
    """`item` with the image of a file of its own."""
    try:
        return Item(item.key, place.read(), item.path, item.caption, item.url, item.own)
    except StorageError as error:
        return Item(item.key, None, item.path, item.caption, item.url, item.own, wrong=error.message)


def _plain(path: Path, until: ExitStack) -> Path:
    """A tar file that can be read at scattered places: itself, or decompressed for as long as it is needed."""
    with path.open("rb") as file:
        if compression(file.read(6)) is None:
            return path
    folder = until.enter_context(tempfile.TemporaryDirectory(prefix="clipbench-"))
    plain = Path(folder) / stem(path)
    with opened(path) as packed, plain.open("wb") as target:
        shutil.copyfileobj(packed, target, 1 << 20)
    return plain


def _text(value: Any) -> str | None:
    """A text with single spaces; the first, of several; None where it is none, or empty."""
    if isinstance(value, list):
        value = next((one for one in value if isinstance(one, str)), None)
    return (plain_caption(value) or None) if isinstance(value, str) else None
