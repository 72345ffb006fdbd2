"""WebDataset tars of data sets, as CLIP_benchmark and others write them: an image, and its label or captions beside it.

Every tar is read once, from its start to its end, for the labels and for the places of the images, which are kept in
the cache; images are then read at their places. Which files make a sample says `clipbench.data.tars`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import fingerprint
from clipbench.cards.entry import Entry
from clipbench.cards.task import LABELLED, TaskCard
from clipbench.data.layouts.base import Layout, LayoutSpec, plain_text
from clipbench.data.paths import is_junk, split_files, split_folder
from clipbench.data.split import Note, notes_of
from clipbench.data.tars import (
    TAR_SUFFIXES,
    Gathered,
    Group,
    Member,
    gather,
    members,
    opened,
    split_name,
    stem,
    whole,
)
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError
from clipbench.utils.cache import cache_root, read_checked, write_checked
from clipbench.utils.parsing import json_value

CLASS_NAMES = "classnames.txt"  # of CLIP_benchmark's layout
SHARDS = "nshards.txt"
#: what a label's file holds, by how its name ends, in the order in which they are asked for
_NUMBER = "a class number or name"
_LABELS = {".cls": _NUMBER, ".cls.txt": _NUMBER, ".label": _NUMBER, ".label.txt": _NUMBER}
_ROW = {".npy": "0/1 a class"}
_JSON = {".json": '"label" or "cls"'}
_VALUES = {".npy": "the values that columns.values on the task card names"}
_ENDS: Final[Mapping[str, dict[str, str]]] = {
    "single-label": _LABELS | _ROW | _JSON,
    "multi-label": _ROW | _JSON | _LABELS,
    "captions": {".txt": "captions, one a line"},
    "attributes": {".npy": "the values that columns.values names", ".json": "a field for each column"},
}
_LONGEST = 1 << 26  # bytes of a label's file
_KIND = "index of tars 1"


class WebDataset(Layout):
    """One split, in tar files."""

    name_in_fingerprint = "_WebDataset"
    in_part = True

    def __init__(self, files: list[Path], root: Path, where: Path | str, card: TaskCard) -> None:
        """Look at the names of `files`, and read the class names in the folder `root`, or beside the first of them.

        Args:
            where: is said of them in messages.
            card: says what goes with an image, and which fields of its `.json` are read besides.

        Raises:
            DataError: two files of one name, or class names that cannot be read.
        """
        self.files, self.root, self.where, self._kind = files, root, str(where), card.kind
        self._vector, self._lacking = card.columns.vector, sum(n.endswith("?") for n in card.columns.values)
        apart = self._vector and card.kind != "attributes"  # a vector of values is no label
        self._ends = {end: what for end, what in _ENDS[card.kind].items() if not (apart and end == ".npy")}
        self._fields = {name: key for key, name in reversed(card.columns.beside.items())}
        self._read = self._ends | (_JSON if self._fields else {}) | (_VALUES if self._vector else {})
        self._beside: dict[str, list[str]] = {}
        self._other_y: list[str] = []
        stems = Counter(map(stem, files))
        twice = [file for file in files if stems[stem(file)] > 1]
        if twice:
            raise DataError(
                f"{twice[0]} and {twice[1]} have the same name, so their samples would have the same ids",
                hint="if one is the other, compressed or packed anew, move it away; else rename one",
            )
        self.names = class_names(card.classes, root, files[0].parent)
        self._file = self._place = self._size = np.zeros(0, np.int64)
        self._found: tuple[Note, ...] = ()

    def index(self) -> Iterator[tuple[str, Any]]:
        places: list[tuple[int, int, int]] = []
        self._beside, self._other_y = {name: [] for name in self._fields}, []
        ignored: list[str] = []
        beside: list[str] = []
        empty: list[str] = []
        for number, path in enumerate(self.files):
            with whole(path), opened(path) as file:
                files: list[Member] = []
                texts: dict[int, Any] = {}
                fields: dict[int, Any] = {}
                for member in members(file, path):
                    _, ending = split_name(member.name, self._read)
                    if ending in self._read and not is_junk(member.name):
                        data = _content(path, file, member)
                        texts[len(files)] = self._text(path, member, ending, data)
                        if ending == ".json" and self._fields:
                            fields[len(files)] = _in_json(data)
                    files.append(member)
            if not files:
                empty.append(path.name)
            found = gather([member.name for member in files], self._read)
            self._check(path, files, found)
            for group in found.samples:
                label = self._label(path, group, files, texts)
                assert group.image is not None
                places.append((number, *files[group.image][1:]))
                values = fields.get(group.texts.get(".json", -1))
                values = values if isinstance(values, dict) else {}
                values |= self._values(path, group, texts)
                for name in self._fields:
                    self._beside[name].append(self._field(path, group, values, name))
                if isinstance(label, int) and values.get("y", label) != label and "y" in self._vector:
                    self._other_y.append(f"{stem(path)}/{group.key}: y {values['y']}, label {label}")
                yield f"{stem(path)}/{group.key}", label
            beside += [f"{stem(path)}/{files[i].name}" for i in found.beside]
            lone = [i for group in found.bare for i in group.texts.values()]  # for no sample, as `_check` saw
            ignored += [f"{stem(path)}/{files[i].name}" for i in sorted([*found.ignored, *lone])]
        self._file, self._place, self._size = np.array(places, dtype=np.int64).reshape(-1, 3).T
        self._found = (
            *notes_of("empty-tars", "tar files without a member", empty),
            *notes_of("ignored-images", "images ignored: a sample's own lies beside them", beside),
            *notes_of("ignored-files", "files in the tars ignored: they belong to no sample", ignored),
            *notes_of(
                "other-y", "samples with another number as y in their .npy than as label", self._other_y
            ),
        )

    def also_in_fingerprint(self) -> dict[str, Any]:
        return {"class names": self.names} if self.names and self._kind in LABELLED else {}

    def table(self, content: str) -> tuple[list[str], list[Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        vector = [[*self._vector, self._lacking]] if self._vector else []
        key = fingerprint([content, self._kind, *self._fields, *vector])
        path = cache_root() / "splits" / f"{key}.parquet"
        kept = read_checked(path, _KIND)
        if kept is None:
            ids, labels = super().table(content)
            self.notes += self._found
            columns = {
                "id": ids,
                "label": [json.dumps(label) for label in labels],
                "file": self._file,
                "place": self._place,
                "size": self._size,
            } | {f"beside {name}": values for name, values in self._beside.items()}
            notes = json.dumps([asdict(note) for note in self._found])
            buffer = io.BytesIO()
            pq.write_table(pa.table(columns).replace_schema_metadata({"notes": notes}), buffer)
            write_checked(path, buffer.getvalue(), _KIND)
            return ids, labels
        table = pq.read_table(pa.BufferReader(kept), use_threads=False)
        self._file, self._place, self._size = (table[name].to_numpy() for name in ("file", "place", "size"))
        self._beside = {name: table[f"beside {name}"].to_pylist() for name in self._fields}
        notes = json.loads(table.schema.metadata[b"notes"])
        self.notes += tuple(Note(**note | {"examples": tuple(note["examples"])}) for note in notes)
        return table["id"].to_pylist(), [json.loads(label) for label in table["label"].to_pylist()]

    def images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        of_file = self._file[rows]
        for part in np.split(rows, np.flatnonzero(np.diff(of_file)) + 1) if len(rows) else ():
            path = self.files[self._file[part[0]]]
            places = zip(part.tolist(), self._place[part].tolist(), self._size[part].tolist(), strict=True)
            with whole(path), opened(path) as file:
                for row, place, size in places:
                    file.seek(place)
                    data = file.read(size)
                    if len(data) < size:
                        raise EOFError("it is shorter than it was when its members were counted")
                    yield row, data

    def beside(self, key: str, name: str) -> list[str]:
        return self._beside[name]

    def _values(self, path: Path, group: Group, texts: Mapping[int, Any]) -> dict[str, Any]:
        """The values in a sample's `.npy` by the names that the card gives them; nothing where there is none."""
        if not self._vector or ".npy" not in group.texts:
            return {}
        values, most = texts[group.texts[".npy"]], len(self._vector)
        least = most - self._lacking
        if isinstance(values, list) and least <= len(values) <= most and not any(map(_several, values)):
            return dict(zip(self._vector, values, strict=False))
        shape = np.shape(values) if isinstance(values, list) else ()
        due = f"{most}" if least == most else f"{least} to {most}"
        raise DataError(
            f"{path}: {group.key}.npy holds {f'{len(values)} values' if len(shape) == 1 else f'an array {shape}'}, "
            f"columns.values on the task card names {due} ({', '.join(self._vector)})",
            hint="correct columns.values: the names of the values in their order; one that may be lacking at the end "
            "has a ? behind it",
        )

    def _field(self, path: Path, group: Group, values: Mapping[str, Any], name: str) -> str:
        """What a sample's values or JSON say, a text or a whole number."""
        found = plain_text(values.get(name), self._fields[name])
        if found is None:
            said = f"it says {str(values[name])[:60]!r}" if name in values else "there is none"
            end = ".npy" if name in self._vector and ".json" not in group.texts else ".json"
            hint = f'pack {group.key}.json with {{"{name}": …}} for every sample, or name another field'
            if end == ".npy":
                hint = f"pack {group.key}.npy with all that columns.values names, for every sample"
            elif ".npy" in group.texts and not self._vector:
                hint += "; or name the values of its .npy, in their order, as columns.values"
            raise DataError(
                f"{path}: sample {group.key} has no text or whole number as {name!r} in its {end} ({said}), which "
                f"columns.{self._fields[name]} on the task card names",
                hint=hint,
            )
        return found

    def _text(self, path: Path, member: Member, ending: str, data: bytes) -> Any:
        """What a label's file says; None for JSON that says no label."""
        try:
            if ending == ".npy":
                return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False).tolist()
            if ending == ".json":
                found = _in_json(data)
                return found.get("label", found.get("cls")) if isinstance(found, dict) else found
            text = data.decode("utf-8-sig")
        except (ValueError, EOFError, MemoryError, OverflowError, TypeError, SyntaxError) as error:
            raise DataError(
                f"{path}: {member.name} cannot be read: {error}", hint=f"expected {self._read[ending]} in it"
            ) from None
        if self._kind == "captions":
            return text
        text = text.strip()
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text

    def _check(self, path: Path, files: Sequence[Member], found: Gathered) -> None:
        """Raise DataError for what is no whole sample, naming it."""
        if found.twice:
            one, other = (files[i].name for i in found.twice[0])
            what = "is there twice" if one == other else f"and {other} belong to one sample"
            raise DataError(
                f"{path}: {one} {what}; {len(found.twice):,} such files in it",
                hint="give every sample a key of its own, one image and one label; an image that is not the "
                "sample's own has a word between key and suffix, as mask in 000.mask.png",
            )
        used = {end for group in found.samples for end in group.texts}
        bare = [group for group in found.bare if not used or used & group.texts.keys()]
        expected = f"expected an image with a {' or '.join(self._wanted())} beside it"
        if not found.samples and (bare or found.untold or found.ignored):
            ends = sorted({member.name[member.name.rfind("/") + 1 :].partition(".")[2] for member in files})
            raise DataError(f"{path}: no sample: its files end in {', '.join(ends[:8])}; {expected}")
        for lacking, groups in (("image", bare), ("label", found.untold)):
            if groups:
                key = groups[0].key
                there = [m.name for m in files if m.name.startswith(f"{key}.")]
                raise DataError(
                    f"{path}: sample {key} has no {lacking} (there is {', '.join(there[:4])}); "
                    f"{len(groups):,} of {len(found.samples) + len(groups):,} samples in it have none",
                    hint=f"add them, or take the samples out of the tar: {expected}",
                )

    def _wanted(self) -> Iterator[str]:
        """How labels' files may end, and what they hold."""
        for what in dict.fromkeys(self._ends.values()):
            yield f"{', '.join(end for end, same in self._ends.items() if same == what)} ({what})"

    def _label(self, path: Path, group: Group, files: Sequence[Member], texts: Mapping[int, Any]) -> Any:
        """The raw label of a sample; None in a set of attributes."""
        if self._kind == "attributes":
            return None
        there = {end: texts[number] for end in self._ends if (number := group.texts.get(end)) is not None}
        empty = (None,) if ".txt" in there else (None, "")
        said = {end: text for end, text in there.items() if text not in empty}
        if not there:
            raise DataError(
                f"{path}: sample {group.key} has no label beside its .json",
                hint=f"expected a {' or '.join(self._wanted())}, or take the sample out of the tar",
            )
        if not said:
            names = ", ".join(files[number].name for number in group.texts.values())
            raise DataError(
                f"{path}: sample {group.key} has no label: {names} says none",
                hint=f"expected {self._ends[next(iter(there))]}, or take the sample out of the tar",
            )
        words = {end: text for end, text in said.items() if end in _LABELS}
        if len(set(words.values())) > 1:
            raise DataError(
                f"{path}: sample {group.key} has several labels: "
                + ", ".join(f"{end} says {text!r}" for end, text in words.items())
            )
        return next(iter(said.values()))


def _content(path: Path, file: IO[bytes], member: Member) -> bytes:
    """The bytes of a label's file."""
    if member.size > _LONGEST:
        raise DataError(f"{path}: {member.name} has {member.size:,} bytes, too many for a label")
    file.seek(member.place)
    data = file.read(member.size)
    if len(data) < member.size:
        raise EOFError("unexpected end of data")
    return data


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _in_json(data: bytes) -> Any:
    """What a JSON file holds; None for one that is none."""
    with contextlib.suppress(ValueError):
        return json_value(data)
    return None


def class_names(classes: tuple[str, ...], *folders: Path) -> list[str] | None:
    """The names in the first of `folders` that holds CLIP_benchmark's classnames.txt, one a line; None without one.

    A name is blank only where that of the card's `classes` is (CLEVR's distances).

    Raises:
        DataError: two of them that differ, one that is no text or empty, or that has a blank line between names.
    """
    files = list(dict.fromkeys(f for folder in folders if (f := folder / CLASS_NAMES).is_file()))
    found: list[list[str]] = []
    for file in files:
        names = [line.strip() for line in lines(decoded(file).rstrip())]
        if not any(names):
            raise DataError(f"{file} holds no class names", hint="write one a line, or delete the file")
        blank = [
            place for place, name in enumerate(names) if not name and classes[place : place + 1] != ("",)
        ]
        if blank:
            raise DataError(f"{file}:{blank[0] + 1}: a blank line, where the class number {blank[0]} stands")
        found.append(names)
    if any(names != found[0] for names in found):
        raise DataError(f"{files[0]} and {files[1]} differ", hint="keep the one that is right")
    return found[0] if found else None


def check_shards(file: Path, tars: int) -> None:
    """CLIP_benchmark's nshards.txt, where there is one, tells whether the copy is whole.

    Raises:
        DataError: it does not say `tars`.
    """
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8-sig", errors="replace").strip()
    if text != str(tars):
        raise DataError(
            f"{file} says {text[:40]!r} tar files, {tars} are there",
            hint="fetch the missing ones, or correct the number in that file",
        )


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> WebDataset | None:
    """The split that tars in `root` hold, whose names begin as the split's, or that lie in its folder."""
    spec = dataset.card.splits[role]
    if dataset.card.languages:
        return None  # its captions do not say which language they are in
    files = split_files(root, spec, role, *TAR_SUFFIXES)
    if not files:
        return None
    folder = split_folder(root, spec, role)
    if folder is not None:
        check_shards(folder / SHARDS, len(files))
    return WebDataset(files, root, files[0].parent, dataset.card)


LAYOUT: Final = LayoutSpec(tuple(_ENDS), "{split}/*.tar (CLIP_benchmark's WebDataset layout)", probe)
