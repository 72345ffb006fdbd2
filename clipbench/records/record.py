"""A record: one model × task result that can prove itself. `clipbench.records.store` has where it lies.

A record is sealed: `digest` is the sha256 of its own text (with `digest: null`), and `samples_sha256` that of the
parquet file beside it. That tells an edit by hand from a measurement; it is no proof against someone who seals anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from numpy.typing import NDArray
from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    SkipValidation,
    TypeAdapter,
    field_validator,
    model_validator,
)

from clipbench.cards.base import Strict, Tuple, finite
from clipbench.cards.model import Reported
from clipbench.metrics.intervals import Score
from clipbench.utils.package import PACKAGE, version_of
from clipbench.utils.parsing import json_value

SCHEMA_VERSION: Final = 3
#: what the numbers may hang on
PACKAGES: Final = (
    "clipbench", "datasets", "huggingface_hub", "numpy", "open_clip_torch", "pillow", "pyarrow",
    "safetensors", "scikit-learn", "timm", "torch", "torchvision", "transformers",
)  # fmt: skip
_SHA256: Final = "^[0-9a-f]{64}$"

Json = dict[str, JsonValue]
Seconds = FiniteFloat


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
    """Wall time in seconds, and the work it bought.

    `stages` are those of the process (see `clipbench.utils.stages`) since it began, or since its record before;
    `total_s` is their sum. `encode_images_s` and `encode_texts_s` are the model's own, also where several share one
    decoding pass. `images_per_s` is null when every feature came from the cache. Records had no `stages` before, and in
    `total_s` only what stands above it.
    """

    later: ClassVar = ("stages",)

    load_s: Seconds = Field(ge=0)
    encode_images_s: Seconds = Field(ge=0)
    encode_texts_s: Seconds = Field(ge=0)
    score_s: Seconds = Field(ge=0)
    total_s: Seconds = Field(ge=0)
    images_per_s: FiniteFloat | None = Field(ge=0)
    images_encoded: int = Field(ge=0)
    texts_encoded: int = Field(ge=0)
    stages: dict[str, Annotated[Seconds, Field(ge=0)]] = Field({})

    def and_since(self, stages: dict[str, float]) -> Timing:
        """With what has been spent since."""
        every = dict.fromkeys((*self.stages, *stages), 0.0)
        spent = {name: self.stages.get(name, 0.0) + stages.get(name, 0.0) for name in every}
        return self.model_copy(update={"stages": spent, "total_s": sum(spent.values())})


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
    versions = {name: version_of(name) for name in PACKAGES}
    commit, dirty = _git_state(PACKAGE.parent)
    return Env(
        packages={name: version for name, version in versions.items() if version},
        python=platform.python_version(),
        platform=platform.platform(),
        commit=commit,
        dirty=dirty,
    )


def _git_state(checkout: Path) -> tuple[str | None, bool | None]:
    """Commit of `checkout`, and whether it has changes outside results/; None for what cannot be known."""
    # An installed wheel may lie inside a repository of the user's, which is not what a record is about.
    if not (checkout / ".git").exists():
        return None, None
    told = _git(checkout, "status", "--porcelain=v2", "--branch", "--", ".", ":(exclude)results")
    commit = re.search("^# branch.oid ([0-9a-f]+)$", told or "", re.MULTILINE)
    if told is None or commit is None:
        return None, None
    return commit[1], any(not line.startswith("#") for line in told.splitlines())


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


def to_json(record: Record) -> str:
    """The record's file content: sorted keys, two spaces, no NaN; equal records give equal text."""
    return _text(record.canonical())


def _text(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def same(a: Record, b: Record) -> bool:
    """Whether two records agree in all but `timing`, `created` and the seal."""
    aside = {"timing", "created", "digest", "samples_sha256"}
    return a.model_dump(exclude=aside) == b.model_dump(exclude=aside)


#: whether a record still says what was measured: its digest fits, does not fit, or is missing (schema version 1)
Seal = Literal["whole", "broken", "none"]


def sealed(record: Record, samples_sha256: str) -> Record:
    """The record with its seal, as it is to be written beside a per-sample file of this sha256."""
    bare = record.model_copy(update={"samples_sha256": samples_sha256, "digest": None})
    return bare.model_copy(update={"digest": hashlib.sha256(to_json(bare).encode()).hexdigest()})


def seal_of(content: bytes, digest: str | None) -> Seal:
    """Whether `digest` is that of the file's content; spacing and the order of keys do not count."""
    if digest is None:
        return "none"
    # Quick, for a file as `store.write` leaves it: only a key of the record itself stands two spaces in.
    head, mark, tail = content.partition(f'\n  "digest": "{digest}"'.encode())
    hashed = hashlib.sha256(head)
    hashed.update(b'\n  "digest": null' if mark else b"")
    hashed.update(tail)
    if hashed.hexdigest() == digest:
        return "whole"
    try:
        bare = _text(json_value(content) | {"digest": None})
    except ValueError:  # a number beyond all floats, which `store.write` never leaves
        return "broken"
    return "whole" if hashlib.sha256(bare.encode()).hexdigest() == digest else "broken"
