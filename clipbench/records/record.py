"""Records: one model × task result that can prove itself, and where it lies.

    results/<model>/<task>.json               scores, provenance, resolved cards
    results/<model>/<task>.samples.parquet    one row a sample, for paired comparisons

The parquet file is written first: a JSON file that is there is whole, and so is what stands beside it. A record
anywhere else below a results folder is an error (`filed`): a model has one record of a task there.

A record is sealed: `digest` is the sha256 of its own text (with `digest: null`), and `samples_sha256` that of the
parquet file. That tells an edit by hand from a measurement; it is no proof against someone who seals anew.

Schema versions: 1 had no seal; 2 has one; 3 has notes on the data, and what of it the model was trained on. Files of
every version are read, and brought to the present one on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from numpy.typing import NDArray
from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    SkipValidation,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from clipbench.cards.base import Strict, Tuple, finite
from clipbench.cards.model import Reported
from clipbench.errors import DataError, StorageError
from clipbench.metrics.intervals import Score
from clipbench.utils import outputs
from clipbench.utils.cache import write_atomic
from clipbench.utils.package import PACKAGE
from clipbench.utils.parsing import MOST_JSON, Unreadable, file_bytes, json_value

SCHEMA_VERSION: Final = 3
#: folders of a results root that hold other things than records
RESERVED: Final = frozenset({"bench", "parity", "studies"})
#: what the numbers may hang on
PACKAGES: Final = (
    "clipbench", "datasets", "huggingface_hub", "numpy", "open_clip_torch", "pillow", "pyarrow",
    "safetensors", "scikit-learn", "timm", "torch", "torchvision", "transformers",
)  # fmt: skip
_SHA256: Final = "^[0-9a-f]{64}$"
#: what stands near the beginning of every record's file, as its keys are sorted
_OURS: Final = b'"cards": {'

Json = dict[str, JsonValue]
Seconds = FiniteFloat
#: a column of the per-sample file: one value a sample, in the split's order
Column = NDArray[Any] | Sequence[str | float | None]


class ProtocolUsed(Strict):
    """The protocol that measured, with every parameter that could move a number."""

    name: str
    version: int = Field(ge=1)
    params: Json

    @property
    def split(self) -> str:
        """The role of the split that was measured."""
        return str(self.params.get("split", self.params.get("test")))


class Skipped(Strict):
    """An image that could not be read and was left out on the user's word (--on-bad-image skip)."""

    id: str
    reason: str


class Noted(Strict):
    """Something about a split that a reader of the numbers must know (see `clipbench.data.Note`)."""

    split: str
    kind: str
    text: str
    count: int = Field(ge=0)
    examples: Tuple[str] = ()


class Seen(Strict):
    """Images of the measured split that the model was trained on (see `clipbench.records.exposure`).

    `data` is what it was trained on; `images` of the split's `of` images are among that, None where it is not known how
    many.
    """

    data: str
    images: int | None = Field(None, gt=0)
    of: int | None = Field(None, gt=0)

    @property
    def text(self) -> str:
        """In words.

        >>> Seen(data="flickr8k-1000 train", images=800, of=1000).text, Seen(data="imagenet train", of=1000).text
        ('flickr8k-1000 train: 800 of 1,000 images', 'imagenet train: some or all of 1,000 images')
        """
        if self.of is None:
            return self.data
        count = "some or all" if self.images is None else f"{self.images:,}"
        return f"{self.data}: {count} of {self.of:,} images"


class Env(Strict):
    """Where a record was made. `commit` and `dirty` are of clipbench's own checkout, None without one."""

    packages: dict[str, str]
    python: str
    platform: str
    commit: str | None
    dirty: bool | None


class Timing(Strict):
    """Wall time by stage, in seconds, and the work it bought.

    `images_per_s` is null when every feature came from the cache.
    """

    load_s: Seconds = Field(ge=0)
    encode_images_s: Seconds = Field(ge=0)
    encode_texts_s: Seconds = Field(ge=0)
    score_s: Seconds = Field(ge=0)
    total_s: Seconds = Field(ge=0)
    images_per_s: FiniteFloat | None = Field(ge=0)
    images_encoded: int = Field(ge=0)
    texts_encoded: int = Field(ge=0)


class ResolvedCards(Strict):
    """The cards as they were resolved, defaults included; their values were validated as cards, and are long."""

    model: dict[str, SkipValidation[JsonValue]]
    task: dict[str, SkipValidation[JsonValue]]

    @field_validator("model")
    @classmethod
    def _readable_reported(cls, model: Json) -> Json:
        _REPORTED.validate_python(model.get("reported", []))
        return model

    @property
    def reported(self) -> tuple[Reported, ...]:
        """The numbers that others published for the model."""
        return _REPORTED.validate_python(self.model.get("reported", []))


_REPORTED: Final = TypeAdapter(Tuple[Reported])


class Record(Strict):
    """One model × task result.

    `scores` and `per_class` map a metric to its score, or to class name → value (null where a class could
    not be scored). `limit` is the number of samples that --limit allowed, null for the whole split.
    `notes` say what was ignored, folded or scaled of the data, counted and named. `seen` are images of the measured
    split that the model was trained on, as its card says.
    `fingerprints` are hashes of all that decides the numbers; `encoder` is how the towers were run;
    `evidence` is what a person may want to see of how the numbers came about, such as a validation curve.
    `digest` and `samples_sha256` are the seal (see the module), null before the record is written.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    model: str
    task: str
    protocol: ProtocolUsed
    primary: str
    scores: dict[str, Score]
    per_class: dict[str, dict[str, FiniteFloat | None]]
    seed: int
    limit: int | None = Field(gt=0)
    skipped: Tuple[Skipped]
    notes: Tuple[Noted] = ()
    seen: Tuple[Seen] = ()
    precision: str
    device: str
    env: Env
    fingerprints: dict[str, str]
    timing: Timing
    encoder: Json
    evidence: Json = Field(default_factory=dict)
    cards: ResolvedCards
    created: str
    samples_sha256: str | None = Field(None, pattern=_SHA256)
    digest: str | None = Field(None, pattern=_SHA256)

    @field_validator("scores")
    @classmethod
    def _some_scores(cls, scores: dict[str, Score]) -> dict[str, Score]:
        if not scores:
            raise ValueError("a record needs at least one score")
        return scores

    @field_validator("created")
    @classmethod
    def _utc(cls, created: str) -> str:
        if datetime.fromisoformat(created).utcoffset() != UTC.utcoffset(None):
            raise ValueError(f"must be an ISO 8601 time in UTC, like {utc_now()}")
        return created

    @model_validator(mode="after")
    def _primary_scored(self) -> Record:
        if self.primary not in self.scores:
            raise ValueError(f'the primary metric "{self.primary}" has no score')
        return self


# ------------------------------------------------------------------ its parts


def utc_now() -> str:
    """This second in UTC, ISO 8601: what `Record.created` holds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def by_class(classes: Sequence[str], values: NDArray[Any] | Sequence[float]) -> dict[str, float | None]:
    """Class name → value, None for NaN. Names that occur twice (ImageNet has two) get their index.

    >>> by_class(["crane", "maillot", "crane"], [0.5, float("nan"), 1.0])
    {'crane (#0)': 0.5, 'maillot': None, 'crane (#2)': 1.0}
    """
    if len(classes) != len(values):
        raise ValueError(f"{len(classes)} classes, {len(values)} values")
    names = list(classes)
    while len(set(names)) < len(names):
        count = Counter(names)
        names = [f"{name} (#{i})" if count[name] > 1 else name for i, name in enumerate(names)]
    return {name: finite(float(value)) for name, value in zip(names, values, strict=True)}


def environment() -> Env:
    """Package versions, interpreter, platform, and the commit of clipbench's own checkout."""
    versions = {name: _version(name) for name in PACKAGES}
    commit, dirty = _git_state(PACKAGE)
    return Env(
        packages={name: version for name, version in versions.items() if version},
        python=platform.python_version(),
        platform=platform.platform(),
        commit=commit,
        dirty=dirty,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state(checkout: Path) -> tuple[str | None, bool | None]:
    """Commit of `checkout`, and whether it has changes outside results/; None for what cannot be known."""
    # An installed wheel may lie inside a repository of the user's, which is not what a record is about.
    if not (checkout / ".git").exists():
        return None, None
    commit = _git(checkout, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(checkout, "status", "--porcelain", "--", ".", ":(exclude)results")
    return commit, None if changes is None else bool(changes)


def _git(checkout: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    # Inside a git hook, GIT_DIR and its like would point elsewhere.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = [program, "--no-optional-locks", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


#: whether a record still says what was measured: its digest fits, does not fit, or is missing (schema version 1)
Seal = Literal["whole", "broken", "none"]


@dataclass(frozen=True)
class Stored:
    """A record as it lies in a file."""

    path: Path
    record: Record
    seal: Seal


# -------------------------------------------------------------------- storage


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


def write(record: Record, samples: Mapping[str, Column], root: Path, *, force: bool = False) -> Path:
    """Seal `record` and write it and its per-sample outcomes below `root`, each whole or not at all.

    Args:
        samples: column name → one value a sample, all equally long.

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
        write_atomic(path, to_json(_sealed(record, hashlib.sha256(table).hexdigest())).encode())
    except StorageError as error:
        raise StorageError(
            f"the record is not kept, since the results folder {root} cannot be written: {error.message}",
            hint="unlock it or free some space there, or choose another: --results DIR",
        ) from None
    return path


def to_json(record: Record) -> str:
    """The record's file content: sorted keys, two spaces, no NaN; equal records give equal text."""
    return _text(record.canonical())


def _text(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _sealed(record: Record, samples_sha256: str) -> Record:
    bare = record.model_copy(update={"samples_sha256": samples_sha256, "digest": None})
    return bare.model_copy(update={"digest": hashlib.sha256(to_json(bare).encode()).hexdigest()})


def _seal(content: bytes, digest: str | None) -> Seal:
    """Whether `digest` is that of the file's content; spacing and the order of keys do not count."""
    if digest is None:
        return "none"
    # Quick, for a file as `write` leaves it: only a key of the record itself stands two spaces in.
    head, mark, tail = content.partition(f'\n  "digest": "{digest}"'.encode())
    hashed = hashlib.sha256(head)
    hashed.update(b'\n  "digest": null' if mark else b"")
    hashed.update(tail)
    if hashed.hexdigest() == digest:
        return "whole"
    try:
        bare = _text(json_value(content) | {"digest": None})
    except ValueError:  # a number beyond all floats, which `write` never leaves
        return "broken"
    return "whole" if hashlib.sha256(bare.encode()).hexdigest() == digest else "broken"


def _parquet(samples: Mapping[str, Column]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(samples))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read(path: Path) -> Record:
    """The record at `path`, whatever schema version it was written in.

    Raises:
        DataError: the file is missing, broken, of a newer schema version, or not a record.
    """
    return load(path).record


def load(path: Path) -> Stored:
    """The record at `path`, and whether its seal is whole.

    Raises:
        DataError: as `read`.
    """
    try:
        content = file_bytes(path, MOST_JSON)
    except Unreadable as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise _broken(path, "it is not UTF-8 text") from None
        older = _upgraded(text)
        if older is None:
            raise _explained(path, text, error) from None
        try:
            record = Record.model_validate_json(older)
            return Stored(path, record, _seal(content, record.digest))
        except ValidationError as error_of_older:
            raise _explained(path, older, error_of_older) from None
    return Stored(path, record, _seal(content, record.digest))


def _from_1(value: Json) -> Json:
    """Version 1 had no seal."""
    return value | {"schema_version": 2, "samples_sha256": None, "digest": None}


def _from_2(value: Json) -> Json:
    """Version 2 said nothing of what its data held beside what was measured, nor of what the model had seen of it."""
    return value | {"schema_version": 3, "notes": [], "seen": []}


#: schema version → how a record of that version becomes one of the next
_UPGRADES: Final[dict[int, Callable[[Json], Json]]] = {1: _from_1, 2: _from_2}


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
        value = _UPGRADES[version](value)
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


def read_all(root: Path) -> list[tuple[Path, Record]]:
    """All records below `root`, by path (see `load_all`)."""
    return [(stored.path, stored.record) for stored in load_all(root)]


def load_all(root: Path) -> list[Stored]:
    """All records below `root` with their seals, by path (see `each`)."""
    return list(each(root))


def each(root: Path) -> Iterator[Stored]:
    """One record after the other, by path: all of thousands at once would fill memory.

    Raises:
        DataError: there is no such folder, or a file in it is not a record, or not at its own place.
    """
    return (filed(path) for path in paths(root))


def filed(path: Path) -> Stored:
    """The record at `path`, a file of a results folder, which must lie at that record's own place (`path_of`).

    Two records of one model and task can then never lie in one folder, of which the last would win.

    Raises:
        DataError: as `read`; or the file is a copy, was renamed, or lies in another model's folder.
    """
    stored = load(path)
    _refuse_misplaced(stored, path.parent.parent)
    return stored


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
    files, folders = (
        {entry.name for entry in folder.iterdir()} for folder in (path.parent, path.parent.parent)
    )
    return own.name not in files or own.parent.name not in folders


def _refuse_at_top(path: Path, root: Path) -> None:
    """Raise DataError where a file right in a results folder is a record: those lie in folders, one a model."""
    try:
        stored = load(path)
    except DataError:
        return  # something else, such as another program's results
    record, whole = stored.record, root.resolve()
    if path_of(record.model, record.task, whole.parent) == whole / path.name:
        raise DataError(
            f"{root} is the folder of the model {record.model}, not a folder of such",
            hint=f"name the folder above it: {root.parent if root.name == whole.name else whole.parent}",
        )
    _refuse_misplaced(stored, root)


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


def samples_intact(stored: Stored) -> bool:
    """Whether the per-sample file beside a record is the one that was written with it."""
    try:
        content = samples_path(stored.path).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content).hexdigest() == stored.record.samples_sha256


def same(a: Record, b: Record) -> bool:
    """Whether two records agree in all but `timing`, `created` and the seal."""
    aside = {"timing", "created", "digest", "samples_sha256"}
    return a.model_dump(exclude=aside) == b.model_dump(exclude=aside)
