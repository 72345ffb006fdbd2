"""The folder that a collection is embedded into: rows in clip-retrieval's layout, and what they are.

    manifest.json                       model, weights, preparation, source, options; counts, once parts are finished
    img_emb/img_emb_00.npy              rows of images [n, D], of unit length
    text_emb/text_emb_00.npy            rows of captions, or of texts
    metadata/metadata_00.parquet        row by row: key, image_path, caption, url, similarity, and columns of its own
    embeddings/part_00.parquet          instead of these three, with `--format parquet`
    kept/kept_00.txt                    keys of samples whose caption fits, with `--min-score`
    parts/00.json                       what became of the part, written last: it is finished
    plan-images.txt, plan-texts.txt     how the towers run, fixed by the first who embeds

The number is the part's. Every file is written whole or not at all.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipbench.data.embedded import IMAGE_ROWS, KIND, MANIFEST, TEXT_ROWS
from clipbench.embed.reading import Item
from clipbench.errors import ClipbenchError, StorageError, unknown
from clipbench.utils.escape import json_text
from clipbench.utils.parsing import json_value
from clipbench.utils.storage import Place
from clipbench.utils.version import __version__

Format = Literal["npy", "parquet"]
#: columns of the metadata that are ours
OWN: Final = ("key", "image_path", "caption", "url", "similarity")
_NAMED: Final = 100  # bad samples that the manifest names; each part's file names all of its own


@dataclass(frozen=True)
class Finished:
    """What became of a part.

    Attributes:
        name: of the part.
        samples: that it holds.
        rows: that were written.
        bad: (key, reason) of those that were not.
        kept: of those, how many have a similarity of at least `--min-score`; None without it.
        remarks: how images were decoded that readers must know of: kind → how many.
        ignored: what the part holds beside samples: how → how many.
        renamed: own columns that were called as one of ours → their name in the metadata.
        device: where the rows were made.
    """

    name: str
    samples: int
    rows: int
    bad: tuple[tuple[str, str], ...] = ()
    kept: int | None = None
    remarks: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True)
class Rows:
    """The rows of a part, to be written.

    Attributes:
        items: the samples, a row each; their images need not be there any more.
        images: float32 [n, D]; None where the collection is of texts.
        texts: float32 [n, D]; None where captions are not embedded.
        types: of own columns, where the source states them.
    """

    items: Sequence[Item]
    images: NDArray[np.float32] | None
    texts: NDArray[np.float32] | None
    types: Mapping[str, Any]

    @property
    def similarity(self) -> NDArray[np.float32] | None:
        """The cosine of each image with its caption, [n]."""
        if self.images is None or self.texts is None:
            return None
        found: NDArray[np.float32] = np.einsum("nd,nd->n", self.images, self.texts, dtype=np.float32)
        return found


class Output:
    """A folder of embeddings, old or new.

    Attributes:
        folder: where it is.
        settings: all that decides the rows, and what the files are; see `begin`.
        asked: as the user named model and source, which may differ from run to run.
    """

    def __init__(self, folder: Place, settings: Mapping[str, Any], asked: Mapping[str, str]) -> None:
        self.folder, self.settings, self.asked = folder, settings, asked
        self._digits = len(str(max(int(settings["source"]["parts"]) - 1, 0)))

    def begin(self) -> None:
        """Take up the folder, or make it.

        Raises:
            StorageError: it holds something else, or cannot be written.
            ClipbenchError: it was begun with other settings.
        """
        place = self.folder / MANIFEST
        if not place.is_file():
            there = self.folder.files() if self.folder.is_folder() else []
            if there or self.folder.is_file():
                some = there[0].name if there else "is a file"
                raise StorageError(
                    f"{self.folder} is not a folder of embeddings: it has no {MANIFEST}, and holds {some}",
                    hint="name a new folder with --out",
                )
            place.write_new(self._manifest({}))
        held = manifest(self.folder)
        other = _differences(held["settings"], json_value(json_text(self.settings)))
        if other:
            raise ClipbenchError(
                f"{self.folder} was begun otherwise: {'; '.join(other)}",
                hint="give the same model, data and options, or another --out",
            )

    def finished(self) -> dict[int, Finished]:
        """The parts that are there, by their numbers."""
        return finished(self.folder)

    def write(
        self, number: int, rows: Rows, form: Format, dtype: str, done: Finished, keys: Sequence[str] | None
    ) -> None:
        """Write all files of a part; the last one says that it is finished.

        Args:
            number: of the part.
            dtype: of the rows in the files: float16 or float32.
            keys: those that are kept; None without `--min-score`.

        Raises:
            StorageError: there is no room, or no way to write there.
        """
        of = f"{number:0{self._digits}d}"
        if rows.items:
            self._write_rows(of, rows, form, dtype, done.renamed)
        if keys is not None:
            (self.folder / "kept" / f"kept_{of}.txt").write("".join(f"{key}\n" for key in keys).encode())
        (self.folder / "parts" / f"{of}.json").write(json_text(asdict(done)).encode())

    def _write_rows(self, of: str, rows: Rows, form: Format, dtype: str, names: Mapping[str, str]) -> None:
        table = _table(rows, names)
        if form == "parquet":
            for name, array in ((IMAGE_ROWS[0], rows.images), (TEXT_ROWS[0], rows.texts)):
                if array is not None:
                    table = table.append_column(name, _as_lists(array.astype(dtype)))
            (self.folder / "embeddings" / f"part_{of}.parquet").write(_parquet(table))
        else:
            for name, array in ((IMAGE_ROWS[1], rows.images), (TEXT_ROWS[1], rows.texts)):
                if array is not None:
                    (self.folder / name / f"{name}_{of}.npy").write(_npy(array.astype(dtype)))
            (self.folder / "metadata" / f"metadata_{of}.parquet").write(_parquet(table))

    def keys_twice(self) -> list[str]:
        """Keys that more than one part has, in order of their numbers.

        Raises:
            StorageError: a file of metadata cannot be read.
        """
        seen: set[str] = set()
        twice: dict[str, None] = {}
        for number, part in sorted(self.finished().items()):
            if part.rows:
                keys = keys_of(self.folder, f"{number:0{self._digits}d}")
                twice |= dict.fromkeys(key for key in keys if key in seen)
                seen.update(keys)
        return list(twice)

    def close(self, failed: Mapping[str, str]) -> dict[str, Any]:
        """Write the counts of all finished parts into the manifest, which is returned.

        Args:
            failed: parts that could not be read → why.
        """
        made = self._manifest(failed)
        (self.folder / MANIFEST).write(made)
        return manifest(self.folder)

    def plan(self, which: str) -> SharedPlan:
        """How a tower runs for all rows here. `which`: images or texts."""
        return SharedPlan(self.folder / f"plan-{which}.txt")

    def _manifest(self, failed: Mapping[str, str]) -> bytes:
        done = self.finished() if self.folder.is_folder() else {}
        bad = [(part.name, *one) for _, part in sorted(done.items()) for one in part.bad]
        parts = int(self.settings["source"]["parts"])
        kept = [part.kept for part in done.values() if part.kept is not None]
        found = {
            "format": KIND,
            "clipbench": __version__,
            "complete": len(done) == parts,
            "parts": {"all": parts, "finished": len(done), "failed": dict(failed)},
            "samples": sum(part.samples for part in done.values()),
            "rows": sum(part.rows for part in done.values()),
            "kept": sum(kept) if kept else None,
            "bad": {
                "count": len(bad),
                "reasons": dict(Counter(_kind_of(why) for _, _, why in bad).most_common()),
                "first": [{"part": part, "key": key, "reason": why} for part, key, why in bad[:_NAMED]],
            },
            "remarks": _summed(part.remarks for part in done.values()),
            "ignored": _summed(part.ignored for part in done.values()),
            "renamed": {k: v for part in done.values() for k, v in part.renamed.items()},
            "devices": sorted({part.device for part in done.values() if part.device}),
            "plans": {w: self.plan(w).plan() for w in ("images", "texts")} if done else {},
            "asked": self.asked,
            "settings": self.settings,
        }
        return json.dumps(found, indent=2, ensure_ascii=False).encode() + b"\n"


class SharedPlan:
    """A plan in a file, fixed by the first who writes it (`encoding.model_features.Begun`)."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._plan: str | None = None

    @property
    def folder(self) -> Place:
        return self._place.parent

    def plan(self) -> str | None:
        if self._plan is None and self._place.is_file():
            self._plan = self._place.read().decode().strip() or None
        return self._plan

    def begin(self, plan: str) -> str:
        if self.plan() is None:
            self._place.write_new(f"{plan}\n".encode())
        return self.plan() or plan


def manifest(folder: Place) -> dict[str, Any]:
    """The manifest of a folder of embeddings.

    Raises:
        StorageError: it cannot be read, or is none.
    """
    place = folder / MANIFEST
    try:
        found = json_value(place.read())
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != KIND:
        raise StorageError(
            f"{place} is no manifest of {KIND}",
            hint="name a new folder, or the one that clipbench embed wrote",
        )
    return found


def finished(folder: Place) -> dict[int, Finished]:
    """The finished parts of a folder of embeddings, by their numbers.

    Raises:
        StorageError: what is written of one cannot be read.
    """
    place = folder / "parts"
    if not place.is_folder():
        return {}
    found = {}
    for file in place.files():
        if not file.name.removesuffix(".json").isdecimal():
            continue
        try:
            told = json_value((place / file.name).read())
            found[int(file.name.removesuffix(".json"))] = Finished(
                **told | {"bad": tuple((key, why) for key, why in told["bad"])}
            )
        except (ValueError, TypeError, KeyError):
            raise StorageError(
                f"{place / file.name} is damaged", hint="delete it: its part is then embedded again"
            ) from None
    return found


def keys_of(folder: Place, part: str) -> list[str]:
    """The keys of the rows of a part, which is numbered as its files are.

    Raises:
        StorageError: they cannot be read.
    """
    import pyarrow.parquet as pq

    place = folder / "metadata" / f"metadata_{part}.parquet"
    if not place.is_file():
        place = folder / "embeddings" / f"part_{part}.parquet"
    with place.open() as file:
        try:
            keys: list[str] = pq.read_table(file, columns=["key"])["key"].to_pylist()
        except Exception as error:  # pyarrow raises what it likes for bytes that are no parquet
            raise StorageError(
                f"{place} cannot be read: {error}", hint="delete parts/ of that number: it is embedded again"
            ) from None
    return keys


def format_of(text: str) -> Format:
    """The format that a user names."""
    if text not in ("npy", "parquet"):
        raise ClipbenchError(unknown("choice for --format", text, ("npy", "parquet")))
    return "npy" if text == "npy" else "parquet"


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Own columns that are called as one of ours → another name.

    >>> renamed(["width", "similarity", "own_similarity"])
    {'similarity': 'own_similarity_2'}
    """
    found: dict[str, str] = {}
    for name in names:
        if name in (*OWN, IMAGE_ROWS[0], TEXT_ROWS[0]):
            other, number = f"own_{name}", 2
            while other in names:
                other, number = f"own_{name}_{number}", number + 1
            found[name] = other
    return found


def _table(rows: Rows, names: Mapping[str, str]) -> Any:
    """The metadata of rows (`pyarrow.Table`)."""
    import pyarrow as pa

    items = rows.items
    columns: dict[str, Any] = {
        "key": pa.array([item.key for item in items], pa.string()),
        "image_path": pa.array([item.path for item in items], pa.string()),
        "caption": pa.array([item.caption for item in items], pa.string()),
        "url": pa.array([item.url for item in items], pa.string()),
    }
    if rows.images is None:
        del columns["image_path"]
    if rows.similarity is not None:
        columns["similarity"] = pa.array(rows.similarity)
    for name in dict.fromkeys(name for item in items for name in item.own):
        values = [item.own.get(name) for item in items]
        columns[names.get(name, name)] = _column(values, rows.types.get(name))
    return pa.table(columns)


def _column(values: list[Any], of: Any) -> Any:
    """An own column: of the type that its source states, or else of its values; those of several types are JSON."""
    import pyarrow as pa

    if of is not None:
        return pa.array(values, of)
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {str}:
        return pa.array(values, pa.bool_() if kinds == {bool} else pa.string())
    if kinds <= {int, float}:
        try:
            return pa.array(values, pa.int64() if kinds == {int} else pa.float64())
        except (pa.ArrowInvalid, OverflowError):
            pass
    return pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])


def _as_lists(array: NDArray[Any]) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _parquet(table: Any) -> memoryview:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getbuffer()


def _npy(array: NDArray[Any]) -> memoryview:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()


def _differences(held: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """What of two settings differs, one clause each."""
    found = []
    for name in dict.fromkeys((*held, *now)):
        old, new = held.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{at}{name}.")
        elif old != new:
            found.append(f"{at}{name} was {_shown(old)}, and is {_shown(new)} now")
    return found


def _shown(value: Any) -> str:
    text = json_text(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind_of(why: str) -> str:
    """A reason without what differs from sample to sample: file names and numbers."""
    return why.partition(": ")[2] if why.startswith("/") or "://" in why[:12] else why


def _summed(many: Any) -> dict[str, int]:
    found: Counter[str] = Counter()
    for one in many:
        found.update(one)
    return dict(found.most_common())
