"""Where records lie, how they are written, and how they are read.

    results/<model>/<task>.json               scores, provenance, resolved cards
    results/<model>/<task>.samples.parquet    one row a sample, for paired comparisons

The parquet file is written first: a JSON file that is there is whole, and so is what stands beside it. A record
anywhere else below a results folder is an error (`read_all`): a model has one record of a task there.

Schema versions: 1 had no seal; 2 has one; 3 has notes on the data, and what of it the model was trained on. Files of
every version are read, and brought to the present one on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from clipbench.errors import DataError, StorageError
from clipbench.records.record import SCHEMA_VERSION, Json, Record, Seal, seal_of, sealed, to_json
from clipbench.utils import outputs
from clipbench.utils.cache import write_atomic
from clipbench.utils.parsing import MOST_JSON, Unreadable, file_bytes, json_value

#: folders of a results root that hold other things than records
RESERVED: Final = frozenset({"bench", "parity", "studies"})
#: what stands near the beginning of every record's file, as its keys are sorted
_OURS: Final = b'"cards": {'
#: a column of the per-sample file: one value a sample, in the split's order
Column = NDArray[Any] | Sequence[str | float | None]


@dataclass(frozen=True)
class Stored:
    """A record as it lies in a file."""

    path: Path
    record: Record
    seal: Seal


def file_name(identifier: str) -> str:
    """A name for `identifier` that any file system takes; where it had to change, a hash keeps it unique.

    >>> file_name("imagenet-zs@single"), file_name("open_clip:RN50@/data/a.pt")
    ('imagenet-zs@single', 'open_clip-RN50@-data-a.pt-b4cddc7a')
    """
    safe = re.sub(r"[^A-Za-z0-9._@+-]+", "-", identifier).strip("-.")[:100]
    if safe == identifier and safe.casefold() not in RESERVED:
        return safe
    return f"{safe}-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}".lstrip("-")


def path_of(model: str, task: str, root: Path) -> Path:
    """Where the record of `model` × `task` lies below `root`."""
    return root / file_name(model) / f"{file_name(task)}.json"


def samples_path(record: Path) -> Path:
    """The per-sample file beside a record's JSON file."""
    return record.with_name(f"{record.stem}.samples.parquet")


def write_pictures(pictures: Mapping[str, bytes], record: Path, *, force: bool = False) -> Path:
    """Write PNG files (name → content) into `<task>.heatmaps/` beside the record's JSON file; returns the folder.

    Pictures of an earlier run that lie there go, other files stay.

    Raises:
        StorageError: another file has one of these names (unless `force`), or the folder cannot be written.
    """
    folder = record.with_name(f"{record.stem}.heatmaps")
    for name in pictures:
        outputs.refuse_foreign(folder / name, outputs.PNG_MARK, force=force)
    for old in folder.glob("*.png"):
        if old.is_file() and not old.is_symlink() and outputs.is_ours(old, outputs.PNG_MARK):
            old.unlink()
    for name, content in pictures.items():
        write_atomic(folder / name, content)
    return folder


def refuse_foreign(model: str, task: str, root: Path, *, force: bool = False) -> None:
    """Refuse to put the record of `model` × `task` below `root` over something else; before any work is done for it.

    Raises:
        StorageError: at its place lies a link or a file that is no record (unless `force`), or a folder that leads out
            of `root`; or there is a folder or a record whose name differs in upper and lower case alone, and which some
            file systems would take for the same.
    """
    path = path_of(model, task, root)
    for what, place in ((f"model {model}", path.parent), (f"task {task}", path)):
        near = _alike(place)
        if near is not None:
            raise StorageError(
                f"{near} is there, whose name differs from that of the {what} in upper and lower case alone: on "
                "Windows and macOS one would overwrite the other",
                hint=f"rename the {what.split()[0]}, move {near.name} away, or choose another folder: --results DIR",
            )
    if path.parent.exists() and path.parent.resolve().parent != root.resolve():
        raise StorageError(
            f"{path.parent} is a link that leads out of the results folder {root}; what lies there is not replaced",
            hint="take the link away, or choose the folder that it leads to: --results DIR",
        )
    outputs.refuse_foreign(path, _OURS, force=force)
    outputs.refuse_foreign(samples_path(path), b"PAR1", force=force)


def _alike(path: Path) -> Path | None:
    """What lies beside `path` under another name that a file system may take for the same; or None."""
    if not path.parent.is_dir():
        return None
    folded = _same_name(path.name)
    there = (p for p in path.parent.iterdir() if p.name != path.name and _same_name(p.name) == folded)
    return min(there, default=None)


def _same_name(name: str) -> str:
    """Equal for names that differ in case or in Unicode's normal form alone."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def write(
    record: Record,
    samples: Mapping[str, Column],
    root: Path,
    *,
    force: bool = False,
    last: Callable[[Record], Record] = lambda record: record,
) -> Path:
    """Seal `record` and write it and its per-sample outcomes below `root`, each whole or not at all.

    Args:
        samples: column name → one value a sample, all equally long.
        last: what is still put into the record, once its samples are written.

    Returns:
        The path of the JSON file.

    Raises:
        StorageError: the folder cannot be written, or holds something else at that place (see `refuse_foreign`).
    """
    path = path_of(record.model, record.task, root)
    refuse_foreign(record.model, record.task, root, force=force)
    table = _parquet(samples)
    try:
        write_atomic(samples_path(path), table)
        write_atomic(path, to_json(sealed(last(record), hashlib.sha256(table).hexdigest())).encode())
    except StorageError as error:
        raise StorageError(
            f"the record is not kept, since the results folder {root} cannot be written: {error.message}",
            hint="unlock it or free some space there, or choose another: --results DIR",
        ) from None
    return path


def _parquet(samples: Mapping[str, Column]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: _arrow(values) for name, values in samples.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _arrow(values: Any) -> Any:
    """What `pyarrow.array` makes of a column, for which it imports pandas: longer work than many a run."""
    import pyarrow as pa

    kinds = set(map(type, values))
    if kinds <= {str, np.str_} and kinds:
        texts = [text.encode() for text in values]
        ends = _ends(texts)
        return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts)))
    if kinds <= {list, tuple, np.ndarray} and any(len(one) for one in values):
        arrays = all(isinstance(one, np.ndarray) for one in values)
        inner = np.concatenate(values) if arrays else [each for one in values for each in one]
        return pa.ListArray.from_arrays(
            pa.Array.from_buffers(pa.int32(), *_whole(_ends(values))), _arrow(inner)
        )
    if kinds in ({float}, {int}):
        values = np.array(values)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuf":
        return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), *_whole(values))
    return pa.array(values)


def _ends(parts: Sequence[Any]) -> NDArray[np.int32]:
    """Where each of `parts` begins, one behind the other, and where the last one ends: int32 [n + 1]."""
    return np.cumsum([0, *map(len, parts)], dtype=np.int32)


def _whole(values: NDArray[Any]) -> tuple[int, list[Any]]:
    """A count of numbers, none of them missing, and their bytes, as `pyarrow.Array.from_buffers` takes them."""
    import pyarrow as pa

    return len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]


def read_all(root: Path) -> Iterator[Stored]:
    """The records below `root`, one after the other, by path: all of thousands at once would fill memory.

    Raises:
        DataError: there is no such folder, or a file in it is not a record, or not at its own place.
    """
    return (read(path, root) for path in paths(root))


def paths(root: Path) -> list[Path]:
    """The record files below `root`; folders named in `RESERVED` hold other things and are left out.

    Raises:
        DataError: there is no such folder, or a record lies right in it: it is a model's folder, or it was moved there.
    """
    if not root.is_dir():
        raise DataError(
            f"no results folder at {root}",
            hint="make a record first: clipbench eval --model … --task …; or name a folder: --results DIR",
        )
    for path in sorted(root.glob("*.json")):
        _refuse_at_top(path, root)
    found = (path for path in root.glob("*/*.json") if path.parent.name not in RESERVED)
    return sorted(found, key=os.fspath)


def read(path: Path, root: Path | None = None) -> Stored:
    """The record at `path`, whatever schema version it was written in, and whether its seal is whole.

    Args:
        root: a results folder, where the file must lie at the record's own place (`path_of`). Two records of one model
            and task can then never lie in one folder, of which the last would win.

    Raises:
        DataError: the file is missing, broken, of a newer schema version, or not a record; or it is a copy, was
            renamed, or lies in another model's folder of `root`.
    """
    try:
        content = file_bytes(path, MOST_JSON)
    except Unreadable as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        record = _of_older(path, content, error)
    stored = Stored(path, record, seal_of(content, record.digest))
    if root is not None:
        _refuse_misplaced(stored, root)
    return stored


def _of_older(path: Path, content: bytes, error: ValidationError) -> Record:
    """The record of a past schema version; raises DataError where it is none, for which `error` is the reason."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise _broken(path, "it is not UTF-8 text") from None
    older = _upgraded(text)
    if older is None:
        raise _explained(path, text, error) from None
    try:
        return Record.model_validate_json(older)
    except ValidationError as error_of_older:
        raise _explained(path, older, error_of_older) from None


#: schema version → what the next one has beside it: a seal; what was found in the data, and seen of it in training
_UPGRADES: Final[dict[int, Json]] = {
    1: {"samples_sha256": None, "digest": None},
    2: {"notes": [], "seen": []},
}


def _upgraded(text: str) -> str | None:
    """The text of a record of a past schema version, brought to the present one; None for any other text."""
    try:
        value: JsonValue = json_value(text, nan=True)  # to be named by its key
    except ValueError:
        return None
    if not isinstance(value, dict) or type(value.get("schema_version")) is not int:
        return None
    if value["schema_version"] not in _UPGRADES:
        return None
    while isinstance(version := value["schema_version"], int) and version in _UPGRADES:
        value |= _UPGRADES[version] | {"schema_version": version + 1}
    return json.dumps(value)


def _explained(path: Path, text: str, error: ValidationError) -> DataError:
    try:
        value: JsonValue = json_value(text, nan=True)  # to be named by its key
    except ValueError as syntax:
        problem, _, place = str(syntax).partition(" at line ")
        return _broken(path, f"line {place.partition(' ')[0]}: {problem}")
    version = value.get("schema_version") if isinstance(value, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        found = json.dumps(version)
        found = found if len(found) <= 40 else f"{found[:37]}..."
        return DataError(
            f"{path}: schema_version is {found}; this clipbench reads {min(_UPGRADES)} to {SCHEMA_VERSION}",
            hint="upgrade clipbench if the record is newer; move the file away if it is no record",
        )
    problems = [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
    return _broken(path, "; ".join(problems[:3]))


def _broken(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: not a whole record: {problem}",
        hint="move the file away and make it anew: clipbench eval --model … --task …",
    )


def _refuse_misplaced(stored: Stored, root: Path) -> None:
    path, record = stored.path, stored.record
    own = path_of(record.model, record.task, root)
    if own == path or _folded(own, path):
        return
    copied = own.is_file()
    raise DataError(
        f"{path} is a record of {record.model} on {record.task}, whose own place is {own}"
        + (", where there is one" if copied else ""),
        hint=f"delete it and {samples_path(path).name}, or move both out of {root}"
        if copied
        else f"move it there and {samples_path(path).name} to {samples_path(own).name} beside it, or delete both",
    )


def _folded(own: Path, path: Path) -> bool:
    """Whether both name one entry, on a file system that takes upper and lower case for the same; no link does."""
    if not (own.is_file() and own.samefile(path)):
        return False
    pairs = ((own.name, path.parent), (own.parent.name, path.parent.parent))
    return any(name not in {entry.name for entry in folder.iterdir()} for name, folder in pairs)


def _refuse_at_top(path: Path, root: Path) -> None:
    """Raise DataError where a file right in a results folder is a record: those lie in folders, one a model."""
    try:
        stored = read(path)
    except DataError:
        return  # something else, such as another program's results
    record, whole = stored.record, root.resolve()
    if path_of(record.model, record.task, whole.parent) == whole / path.name:
        raise DataError(
            f"{root} is the folder of the model {record.model}, not a folder of such",
            hint=f"name the folder above it: {root.parent if root.name == whole.name else whole.parent}",
        )
    _refuse_misplaced(stored, root)


def samples_intact(stored: Stored) -> bool:
    """Whether the per-sample file beside a record is the one that was written with it."""
    try:
        content = samples_path(stored.path).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content).hexdigest() == stored.record.samples_sha256
