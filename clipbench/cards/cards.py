"""The cards: strict, frozen, typed objects read from YAML. No torch here.

A card that is wrong fails at load, with the file and line, what is allowed, and the nearest name.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import operator
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from clipbench.errors import CardError, ClipbenchError, nearest
from clipbench.utils import plugins
from clipbench.utils.parsing import BOOLEANS, MOST_YAML, Unreadable, file_bytes, yaml_nodes, yaml_value

T = TypeVar("T")
# A YAML list becomes an immutable tuple; its items stay strictly typed.
Tuple = Annotated[tuple[T, ...], Field(strict=False)]
# Three channel values written as a YAML list.
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
# The least and the greatest of something, written as a YAML list.
Range = Annotated[tuple[float, float], Field(strict=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
# All of a tower, nothing of it, or its parts of these names. The tags are written like types for `_dotted`.
Frozenness = Annotated[
    Annotated[bool, Tag("tuple[bool]")] | Annotated[Tuple[str], Field(min_length=1), Tag("tuple[str]")],
    Discriminator(lambda value: "tuple[bool]" if isinstance(value, bool) else "tuple[str]"),
]


class Misplaced(ValueError):
    """A validator's finding with the place, below the validated part, that the error shall point to."""

    def __init__(self, message: str, *location: str | int) -> None:
        super().__init__(message)
        self.location = location


class Strict(BaseModel):
    """Base of every card part: unknown, missing or mistyped keys are errors; objects are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # of most cards' classes a command needs none
    )

    def canonical(self) -> dict[str, Any]:
        """The part as plain JSON types, defaults included (what fingerprints hash)."""
        return self.model_dump(mode="json")


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`: key order and spacing cannot change it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- model cards


class Preprocess(Strict):
    """How a PIL image becomes a tensor; part of every feature's key.

    `resize: shortest` scales the short side to `size` and keeps the ratio, then crops the centre;
    `squash` scales to the square `crop`; `none` takes images that have that size already, `pad` also smaller ones,
    which it centres on black.
    `order` says whether the conversion to `channels` colours comes before or after resizing
    (open_clip: after; most others: before; it matters for palette and alpha images).
    `orientation: exif` turns an image first as its EXIF tag says (as OpenCV's `imread` does), `as-stored` does not (as
    Pillow, and so open_clip, does not; but for TIFF, which Pillow always turns).
    """

    size: int = Field(224, gt=0)
    crop: int | None = Field(None, gt=0)
    resize: Literal["shortest", "squash", "none", "pad"] = "shortest"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    channels: Literal[1, 3] = 3
    order: Literal["convert-last", "convert-first"] = "convert-last"
    orientation: Literal["as-stored", "exif"] = "as-stored"
    mean: Tuple[float]
    std: Tuple[float]

    @property
    def side(self) -> int:
        """Height and width (px) of the tensor that the tower sees."""
        return self.crop or self.size

    @model_validator(mode="after")
    def _per_channel(self) -> Preprocess:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} values each, one a channel")
        if any(s <= 0 for s in self.std):
            raise ValueError("std values must be above 0")
        return self

    @model_serializer(mode="wrap")
    def _as_older_cards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that came later is left out where it says nothing: fingerprints and features of older cards stay."""
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if (k, v) != ("orientation", "as-stored")}


#: kinds of sources → what a value must look like, as a pattern and in words
_SOURCES: dict[str, tuple[str, str]] = {
    "file": (r".+", "the path of a file"),
    "open_clip": (r".+", "a pretrained tag of the architecture, for example openai"),
    "url": (r"https?://[!-.0-~]+/[!-~]+", "an http(s) address of a file"),
    "gdrive": (r"[\w-]{10,128}", "the id of a Google Drive file: what follows /d/ or id= in its link"),
    "hf": (r"[\w.-]+/[\w.-]+(@[^\s/@]+)?(/[^\s/]+)+", "owner/repo/path or owner/repo@revision/path"),
    "package": (r"[\w.-]+(/[^\s/]+)+", "<package>/<path of the file in site-packages>"),
}


class Weights(Strict):
    """Where a checkpoint comes from: exactly one of `file`, `open_clip`, `url`, `gdrive`, `hf`, `package`.

    `file` is relative to the card's folder; `open_clip` is a pretrained tag of the card's architecture; `url` an
    address; `gdrive` the id of a Google Drive file; `hf` a file of the model hub, `owner/repo/path` or
    `owner/repo@revision/path`; `package` a file that an installed Python package brings, `<package>/<path>` with
    the path as the package's RECORD lists it (its code is never imported).

    `sha256` is given where a source states it, never invented. Without one, the hash is recorded at first use and
    checked afterwards, except that a `file` may change. `link_source` says where the link was read.
    """

    file: str | None = None
    open_clip: str | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{8,64}$")
    url: str | None = None
    gdrive: str | None = None
    hf: str | None = None
    package: str | None = None
    link_source: str | None = Field(None, min_length=1)

    @property
    def source(self) -> tuple[str, str]:
        """Kind and value of the one source."""
        return next((kind, getattr(self, kind)) for kind in _SOURCES if getattr(self, kind) is not None)

    @field_validator(*_SOURCES)
    @classmethod
    def _well_formed(cls, value: str | None, info: ValidationInfo) -> str | None:
        pattern, wanted = _SOURCES[str(info.field_name)]
        # Parts of a path become parts of a path in the cache.
        climbs = info.field_name in ("hf", "package") and value and {".", ".."} & set(value.split("/"))
        if value is not None and (climbs or not re.fullmatch(pattern, value, re.ASCII)):
            raise ValueError(f'expected {wanted}, found "{value}"')
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Weights:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(_SOURCES)} (found {', '.join(given) or 'none'})"
            )
        if given[0] in ("url", "gdrive") and self.link_source is None:
            raise ValueError(f"{given[0]} needs link_source: where the link was read")
        if given[0] in ("file", "open_clip", "package") and self.link_source is not None:
            raise Misplaced(f"link_source goes with url, gdrive or hf, not {given[0]}", "link_source")
        return self

    @model_serializer(mode="wrap")
    def _as_older_cards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that came later are left out where they are unset: the fingerprints of older cards stay."""
        fields: dict[str, Any] = handler(self)
        always = ("file", "open_clip", "sha256")
        return {name: value for name, value in fields.items() if value is not None or name in always}


Confidence = Literal["primary", "secondary", "from-memory-high", "from-memory-medium", "from-memory-low"]


class Reported(Strict):
    """A number that somebody else published for this model, in percent as printed."""

    task: str
    metric: str
    percent: float = Field(ge=0, le=100)
    source: str
    confidence: Confidence


class Images(Strict):
    """Images by where they stand: a split of a task card (`dataset`; without `split`, all that the card has), or of a
    data set that has no card here, by its `name`: the hub's `owner/name`, or what `--data <name>=<folder>` calls it.

    `split` is a role of the task card, or what the data itself calls the split.
    """

    dataset: str | None = Field(None, min_length=1)
    name: str | None = Field(None, min_length=1)
    split: str | None = Field(None, min_length=1)

    @property
    def described(self) -> str:
        """In words, as `flickr8k-1000 train`."""
        return " ".join(part for part in (self.dataset, self.name, self.split) if part)

    @model_validator(mode="after")
    def _of_one_set(self) -> Images:
        if (self.dataset is None) == (self.name is None):
            raise ValueError("give dataset (the id of a task card) or name (of a data set without a card)")
        return self

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if value is not None}


class ModelCard(Strict):
    """One checkpoint. `config` belongs to the family's adapter, which validates it.

    `trained_on` are the images that it was trained on, weights that its towers started from included: a score on any
    of them is marked, and kept off the leaderboard (`clipbench.records.exposure`). `training_data` says it in words.
    """

    title: str
    family: str
    config: dict[str, Any] = {}
    preprocess: Preprocess
    weights: Weights
    licence: str | None = None
    training_data: str | None = None
    training_pairs_m: float | None = Field(None, gt=0, description="training pairs, millions")
    trained_on: Tuple[Images] = ()
    paper: str | None = None
    links: Tuple[str] = ()
    notes: str | None = None
    reported: Tuple[Reported] = ()

    @model_serializer(mode="wrap")
    def _as_older_cards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that came later is left out where it says nothing: the fingerprints of older cards stay."""
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if k != "trained_on" or v}


# ----------------------------------------------------------------- task cards


class Archive(Strict):
    """The authors' own files of a data set: what is to be unpacked into one folder.

    `folder` is what they unpack to, by which a copy among others is found.
    """

    files: Tuple[str]
    folder: str | None = None


#: what a source may lack beside splits
DIFFICULT_MARKS = "difficult"


class Source(Strict):
    """Where a data set comes from: exactly one of `hub`, `torchvision`, `builtin`, `path`, `local`.

    `hub` is a Hugging Face data set id; `revision` only where a source gives it, otherwise the resolved
    commit is recorded at first use and checked afterwards. `path` is relative to the card's folder.
    `local: true` means that there is no public copy: the data is always given with `--data`. `torchvision` is the
    name of a class there that downloads the authors' archive and knows its md5 sum.

    `lacks` says what the hub copy does not have: a split's role, or `difficult` (the marks of objects that are
    difficult to see), and what it has instead. `archive` names the files that have it all. Both say where data can be
    had and not what is measured: they are no part of fingerprints.
    """

    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    builtin: str | None = None
    path: str | None = None
    local: Literal[True] | None = None
    torchvision: (
        Literal["CIFAR10", "CIFAR100", "Caltech101", "DTD", "Flowers102", "Food101", "OxfordIIITPet"] | None
    ) = None
    archive: Archive | None = None
    lacks: dict[str, str] = {}

    @model_serializer(mode="wrap")
    def _what_is_measured(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {
            k: v
            for k, v in fields.items()
            if k not in ("archive", "lacks") and (k, v) != ("torchvision", None)
        }

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        kinds = ("hub", "torchvision", "builtin", "path", "local")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)} (found {', '.join(given) or 'none'})")
        if self.lacks and self.hub is None:
            raise ValueError("lacks goes with hub: it says what the copy there does not have")
        return self


class Columns(Strict):
    """Column names of a tabular source (parquet, hub). Image folders have none.

    `image_id` says which image a row of a set of captions shows, where an image has several rows. `cluster` says which
    samples belong together (the slide, the patient, the camera's sequence that each is from): intervals and tests are
    then over clusters, and no validation data cuts one. In WebDataset tars it is a field of each sample's `.json`.
    """

    image: str = "image"
    label: str = "label"
    caption: str = "caption"
    image_id: str | None = None
    cluster: str | None = None

    @model_serializer(mode="wrap")
    def _as_older_cards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that came later are left out where they say nothing: the fingerprints of older cards stay."""
        fields: dict[str, Any] = handler(self)
        unset = (("caption", "caption"), ("image_id", None), ("cluster", None))
        return {k: v for k, v in fields.items() if (k, v) not in unset}


class Part(Strict):
    """The samples whose ids a hash puts in [`start`, `end`) of 0 … 1: the same ids whatever else the set holds.

    Hash: the first 8 bytes of sha256 of `<seed>/<id>`, big-endian, over 2^64.
    """

    seed: int = Field(ge=0)
    start: float = Field(0.0, ge=0, lt=1)
    end: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _some(self) -> Part:
        if self.start >= self.end:
            raise ValueError(f"start ({self.start}) must be below end ({self.end})")
        return self

    def holds(self, sample_id: str) -> bool:
        """Whether the part holds the sample of this id.

        >>> [Part(seed=0, end=0.5).holds(name) for name in ("a.jpg", "b.jpg", "c.jpg")]
        [False, False, True]
        """
        digest = hashlib.sha256(f"{self.seed}/{sample_id}".encode()).digest()
        return self.start <= int.from_bytes(digest[:8], "big") / 2**64 < self.end


class SplitSpec(Strict):
    """One split: its name in the source, and how many samples it has (checked when complete).

    With `part`, it is that part of the split that has the same name and no `part`.
    """

    name: str
    rows: int | None = Field(None, gt=0)
    part: Part | None = None

    @model_serializer(mode="wrap")
    def _as_older_cards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that came later is left out where it says nothing: the fingerprints of older cards stay."""
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if (k, v) != ("part", None)}


# The tags are written like types because `_dotted` leaves such steps of a location out.
Templates = Annotated[
    Annotated[Tuple[str], Tag("tuple[str]")] | Annotated[dict[str, Tuple[str]], Tag("dict[str]")],
    Discriminator(lambda value: "dict[str]" if isinstance(value, dict) else "tuple[str]"),
]


#: kinds of sets whose samples have labels
LABELLED = ("single-label", "multi-label")


class TaskCard(Strict):
    """One data set with all its protocols. The id of a task is `<dataset>-<protocol>[@<variant>]`.

    `templates` maps a name to either a list of prompts with `{c}` for the class name, or, for
    class-specific prompts, a mapping of class name to list of finished prompts. `default` is required.
    `label_names` are the data's own label names in the order of `classes` (a wnid, a folder name), given
    where they differ from the class names; labels that carry names are then matched by name, never by
    position. `other_labels: ignore` leaves out what a multi-label set labels beside those (COCO's 80 categories
    for VOC's 20 classes), where a name that is not on the card is otherwise an error. `protocols` holds each
    protocol's parameters, validated by that protocol. `images_of` maps a split's role to other splits whose images it
    shows too, all or some of them: a model that was trained on those has seen them.

    `kind` is what goes with an image: one label, several, captions, or referring expressions with boxes; the last
    two have no classes and no templates. `also` is what else goes with it, where a set has more than one; `objects`
    are what an image shows beside what its label says.

    `boxes` says in which frame the boxes of expressions are, where images have an EXIF tag that turns them: the pixels
    `as-stored`, or those after the turn (`exif`), as viewers show them. Only sets with such images need it.

    `expressions: classes` makes the expressions of COCO's instances: the class name of each object that is the only one
    of its class in its image. Otherwise people's expressions come with the data.

    `licence` and `terms` say under what the data may be used, where that is known. They are no part of fingerprints.
    """

    title: str
    description: str | None = None
    homepage: str | None = None
    licence: str | None = None
    terms: str | None = None
    source: Source
    columns: Columns = Columns()
    splits: dict[str, SplitSpec]
    images_of: dict[str, Tuple[Images]] = {}
    kind: Literal["single-label", "multi-label", "captions", "expressions"] = "single-label"
    also: Tuple[Literal["captions", "expressions", "objects"]] = ()
    boxes: Literal["as-stored", "exif"] | None = None
    expressions: Literal["classes"] | None = None
    classes: Tuple[str] = ()
    label_names: Tuple[str] | None = None
    other_labels: Literal["error", "ignore"] = "error"
    templates: dict[str, Templates] = {}
    prompts_source: str | None = None
    protocols: dict[str, dict[str, Any]]
    notes: str | None = None

    @property
    def alone(self) -> bool:
        """Whether the source holds but one split, which need not be named there."""
        return len({spec.name for spec in self.splits.values()}) == 1

    def whole(self, role: str) -> str:
        """The role of the split that `role` is a part of; `role` itself where it is no part."""
        named = self.splits[role].name
        whole = (other for other, spec in self.splits.items() if spec.name == named and spec.part is None)
        return next(whole) if self.splits[role].part else role

    @model_validator(mode="after")
    def _parts_of_something(self) -> TaskCard:
        whole = {spec.name for spec in self.splits.values() if spec.part is None}
        for role, spec in self.splits.items():
            if spec.name not in whole:
                raise Misplaced(
                    f'a part needs the split that it is a part of: one of name "{spec.name}" without part',
                    "splits",
                    role,
                )
        return self

    @model_validator(mode="after")
    def _images_of_its_splits(self) -> TaskCard:
        for role in self.images_of:
            if role not in self.splits:
                raise Misplaced(
                    f'images_of: "{role}" is no split of this card (it has {", ".join(self.splits)})',
                    "images_of",
                    role,
                )
        return self

    @model_validator(mode="after")
    def _lacks_what_it_could_have(self) -> TaskCard:
        for what in self.source.lacks:
            if what not in self.splits and what != DIFFICULT_MARKS:
                raise Misplaced(
                    f'lacks: "{what}" is no split of this card (it has {", ".join(self.splits)}), '
                    f'nor "{DIFFICULT_MARKS}"',
                    "source",
                    "lacks",
                    what,
                )
        return self

    @property
    def terms_of_use(self) -> dict[str, str | None]:
        """Licence and terms; a licence that the card does not give is unknown."""
        return {"licence": self.licence or "unknown", "terms": self.terms}

    @field_validator("classes")
    @classmethod
    def _some_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2:
            raise ValueError(f"a classification set needs at least 2 classes (found {len(classes)})")
        return classes

    @model_validator(mode="after")
    def _of_its_kind(self) -> TaskCard:
        """Classes and prompts where the kind has labels, and nowhere else."""
        for key in ("classes", "templates", "prompts_source"):
            if self.kind in LABELLED and key not in self.model_fields_set:
                raise ValueError(f'missing key "{key}", which a {self.kind} set needs')
            if self.kind not in LABELLED and key in self.model_fields_set:
                raise Misplaced(f"a set of {self.kind} has no {key}", key)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TaskCard:
        if self.label_names is not None:
            if len(self.label_names) != len(self.classes):
                raise Misplaced(
                    f"label_names has {len(self.label_names)} entries, classes {len(self.classes)}",
                    "label_names",
                )
            if len(set(self.label_names)) != len(self.label_names):
                raise Misplaced("label_names holds the same name twice", "label_names")
        if len({self.kind, *self.also}) <= len(self.also):
            raise Misplaced(f"also names {self.kind} or one kind twice", "also")
        if self.boxes is not None and "expressions" not in (self.kind, *self.also):
            raise Misplaced("boxes belongs to sets of expressions", "boxes")
        if self.expressions is not None and self.kind != "expressions":
            raise Misplaced("expressions: classes belongs to sets of kind expressions", "expressions")
        if self.expressions is not None and not (self.source.local or self.source.path):
            raise Misplaced(
                "expressions: classes reads COCO's instances_<split>.json: its source is local or a path",
                "expressions",
            )
        if self.other_labels == "ignore" and self.kind != "multi-label":
            raise Misplaced("other_labels belongs to multi-label sets", "other_labels")
        if self.kind in LABELLED and "default" not in self.templates:
            raise Misplaced(
                f'templates needs a list named "default" (found {", ".join(self.templates) or "none"})',
                "templates",
            )
        for name, templates in self.templates.items():
            if isinstance(templates, dict):
                _check_class_prompts(name, templates, self.classes)
            else:
                _check_templates(name, templates)
        if self.columns.image_id is not None and self.kind != "captions":
            raise Misplaced("image_id goes with kind: captions", "columns", "image_id")
        if not self.protocols:
            raise Misplaced("protocols is empty: name at least one, for example zs: {}", "protocols")
        return self

    @model_serializer(mode="wrap")
    def _as_older_cards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that came later are left out where they say nothing: the fingerprints of older cards stay."""
        fields: dict[str, Any] = handler(self)
        unset = (("other_labels", "error"), ("boxes", None), ("expressions", None))
        later = ("also", "images_of")
        return {
            k: v
            for k, v in fields.items()
            if (k, v) not in unset and (k not in later or v) and k not in ("licence", "terms")
        }


def _check_templates(name: str, templates: tuple[str, ...]) -> None:
    if not templates:
        raise Misplaced(f'templates "{name}" is empty', "templates", name)
    for i, template in enumerate(templates):
        if "{c}" not in template:
            raise Misplaced(
                f'templates "{name}": "{template}" has no {{c}} for the class name', "templates", name, i
            )


def _check_class_prompts(name: str, prompts: dict[str, tuple[str, ...]], classes: tuple[str, ...]) -> None:
    lost = [c for c in classes if not prompts.get(c)]
    if lost:
        raise Misplaced(
            f'templates "{name}" has no prompt for class "{lost[0]}" ({len(lost)} missing)',
            "templates",
            name,
            lost[0],
        )
    extra = [c for c in prompts if c not in set(classes)]
    if extra:
        near = nearest(extra[0], classes)
        raise Misplaced(
            f'templates "{name}" names the unknown class "{extra[0]}"'
            + (f'; did you mean "{near}"?' if near else ""),
            "templates",
            name,
            extra[0],
        )


class Suite(Strict):
    """A named list of tasks. A suite may name other suites."""

    title: str
    tasks: Tuple[str]


class Suites(Strict):
    """tasks/suites.yaml: suite id → suite."""

    suites: dict[str, Suite]


# ------------------------------------------------------------------- recipes


class Lookahead(Strict):
    """Lookahead (Zhang et al. 2019): every `k` steps the weights go the share `alpha` of the way that they came."""

    k: int = Field(5, gt=1)
    alpha: float = Field(0.5, gt=0, lt=1)


class Peaks(Strict):
    """Peak learning rates of parts that do not take the optimiser's own `lr`; 0: the part stays as it is.

    `image` and `text` are the towers without their projections.
    """

    image: float | None = Field(None, ge=0)
    text: float | None = Field(None, ge=0)
    logit_scale: float | None = Field(None, ge=0)


class Optim(Strict):
    """What every optimiser has.

    Weight decay leaves out biases, norms and the logit scale (all tensors of fewer than two axes), or with
    `decays: all` nothing.
    """

    lr: float = Field(gt=0, description="peak learning rate")
    peaks: Peaks = Peaks()
    weight_decay: float = Field(0.0, ge=0)
    decays: Literal["matrices", "all"] = "matrices"
    clip_grad_norm: float | None = Field(None, gt=0, description="largest global gradient norm")
    lookahead: Lookahead | None = None


class AdamW(Optim):
    """AdamW (decoupled weight decay)."""

    name: Literal["adamw"]
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)


class Sgd(Optim):
    """SGD with (heavy-ball, or Nesterov's) momentum; weight decay is added to the gradient."""

    name: Literal["sgd"]
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _accelerates(self) -> Sgd:
        if self.nesterov and not self.momentum:
            raise Misplaced("nesterov needs a momentum above 0", "nesterov")
        return self


class SgdOfImages(Strict):
    """SGD of the image tower, where all else has AdamW."""

    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class AdamWSgd(Optim):
    """SGD for the image tower (`image`), AdamW for all else (DeCLIP's `AdamW_SGD`)."""

    name: Literal["adamw-sgd"]
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    image: SgdOfImages

    @model_validator(mode="after")
    def _one_peak(self) -> AdamWSgd:
        if self.peaks.image is not None:
            raise Misplaced("the image tower's peak stands under optim.image.lr", "peaks", "image")
        return self


class Engine(Strict):
    """How a step is computed: what it costs in time and memory, and which pairs a BatchNorm sees together.

    Attributes:
        chunk: pairs that go through the networks at once in each process, at most, however large the batch
            (gradient caching).
            The loss sees the whole batch all the same; a BatchNorm sees the pairs of a chunk.
        sync_batchnorm: a BatchNorm sees the pairs of all processes.
        recompute: keep no activations inside the towers' blocks, but compute them again for the gradient.
        channels_last: the image tower's memory format on a GPU.
        compile: torch.compile for both towers.
    """

    chunk: int | None = Field(None, gt=1)
    sync_batchnorm: bool = False
    recompute: bool = False
    channels_last: bool = False
    compile: bool = False


class Schedule(Strict):
    """Linear warm-up from `warmup_from` (a fraction of the peak), then half a cosine to 0, over `steps` steps.

    `batch_size` is that of all processes together.
    """

    steps: int = Field(gt=0)
    warmup: int = Field(0, ge=0)
    warmup_from: Probability = 0.0
    batch_size: int = Field(gt=1)
    eval_every: int = Field(0, ge=0, description="steps; 0: at the end only")
    checkpoint_every: int = Field(0, ge=0, description="steps; 0: at the end only")
    keep: int = Field(1, gt=0, description="checkpoints, the newest ones")

    @model_validator(mode="after")
    def _warm_within(self) -> Schedule:
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is longer than steps ({self.steps})")
        return self


class Affine(Strict):
    """Random rotation, shift and scaling of every training image, each uniform within ± its bound.

    No flips, which would turn a digit or a letter into another. What comes in from outside is black.
    """

    kind: Literal["affine"]
    rotate: float = Field(ge=0, le=180, description="degrees")
    shift: float = Field(ge=0, le=1, description="fraction of the side, in each direction")
    scale: float = Field(ge=0, lt=1, description="0.1: 0.9 to 1.1 times the size")


class MocoV2(Strict):
    """MoCo v2's augmentation (Chen et al. 2020): a random crop, resized; then, each with its probability, changed
    colours, grey, blur, and a mirror image.

    Brightness, contrast and saturation are multiplied by factors within 1 ± their bounds, the hue is turned by up to
    `hue` of a circle, in random order. Images of one channel have neither saturation nor hue.
    """

    kind: Literal["moco-v2"]
    scale: Range = Field((0.2, 1.0), description="of the crop's area, as a fraction of the image's")
    jitter: Probability = 0.8
    brightness: float = Field(0.4, ge=0)
    contrast: float = Field(0.4, ge=0)
    saturation: float = Field(0.4, ge=0)
    hue: float = Field(0.1, ge=0, le=0.5)
    grayscale: Probability = 0.2
    blur: Probability = 0.5
    sigma: Range = Field((0.1, 2.0), description="of the Gaussian, px")
    flip: Probability = Field(0.5, description="0 where a mirror image is another thing, as with digits")

    @model_validator(mode="after")
    def _ranges(self) -> MocoV2:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise Misplaced("scale must hold two numbers with 0 < first ≤ second ≤ 1", "scale")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise Misplaced("sigma must hold two numbers with 0 < first ≤ second", "sigma")
        return self


Augmentation = Annotated[Affine | MocoV2, Field(discriminator="kind")]


class PairSource(Strict):
    """What every source of training pairs has: what is done to its images and texts, and with images that are broken.

    `on_bad_image: skip` counts and names images that cannot be decoded and goes on without them; none is ever
    replaced by another.
    """

    augment: Augmentation | None = None
    clean: bool = Field(False, description="texts as CLIP-Lite's text encoder saw them (`clean_caption`)")
    alter: Probability = Field(0.0, description="of a text to be altered: a synonym, a swap, words left out")
    on_bad_image: Literal["stop", "skip"] = "stop"
    repeat: int = Field(
        1, gt=0, description="times that an epoch shows each image: 8, as if there were 8 copies"
    )


class Pairs(PairSource):
    """Training pairs: the images of a task card's split, each with one of its texts, drawn anew every time.

    `texts` are the kinds of text that are drawn from, each as likely as the next: `labels` (the names of what the
    image shows, in the card's template sets that `templates` names), `captions`, `expressions`.
    """

    kind: Literal["task-card"] = "task-card"
    dataset: str
    split: str = "train"
    texts: Tuple[Literal["labels", "captions", "expressions"]] = Field(("labels",), min_length=1)
    templates: Tuple[str] = Field(("default",), min_length=1)

    @property
    def name(self) -> str:
        return self.dataset

    @property
    def described(self) -> str:
        return f"{self.dataset}, split {self.split}"

    @property
    def trained_on(self) -> Images:
        return Images(dataset=self.dataset, split=self.split)


class NamedPairs(PairSource):
    """A source that is no task card. `name` is what `--data <name>=<folder>` calls it."""

    name: str = Field(pattern=r"^[\w.-]+$")

    @property
    def described(self) -> str:
        return self.name

    @property
    def trained_on(self) -> Images:
        """What a model card says of them."""
        return Images(name=self.name)


class CaptionedPairs(NamedPairs):
    """Images with captions in one of the layouts of `clipbench.data.layouts.captions`, of which COCO's JSON is one."""

    kind: Literal["coco-captions"]
    split: str = Field("train", description="as the files call it: train2017")

    @property
    def trained_on(self) -> Images:
        return Images(name=self.name, split=self.split)


class HubPairs(NamedPairs):
    """A Hugging Face data set with a column of images and one of captions, or a local copy of it (parquet)."""

    kind: Literal["hub"]
    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="on the hub: owner/name")
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    image: str = Field("image", description="column")
    caption: str = Field("caption", description="column, of texts or lists of texts")

    @property
    def trained_on(self) -> Images:
        return Images(name=self.id, split=self.split)


class ShardPairs(NamedPairs):
    """Tar files in img2dataset's layout: an image, and beside it `.txt` (a caption a line) or `.json` (its `caption`).

    `shards` are paths below the folder that `--data` gives, or addresses; `*` stands for any text in a path, and
    `{000..331}` for every number in both. Files on this machine are shuffled sample by sample. Addresses are read
    as a stream: their order is shuffled, and the samples of `window` shards at a time, which memory must hold;
    `rows` then says how many samples there are.
    """

    kind: Literal["webdataset"]
    shards: Tuple[str] = Field(("*.tar",), min_length=1)
    window: int = Field(2, ge=1, description="shards")
    rows: int | None = Field(None, gt=0)

    @property
    def remote(self) -> bool:
        """Whether the shards are addresses."""
        return self.shards[0].startswith(("http://", "https://"))

    @model_validator(mode="after")
    def _of_one_kind(self) -> ShardPairs:
        remote = [shard.startswith(("http://", "https://")) for shard in self.shards]
        if any(remote) and not all(remote):
            raise Misplaced("shards are either all addresses or all paths", "shards")
        if any(remote) and self.rows is None:
            raise Misplaced("shards that are addresses need rows: how many samples they hold in all", "rows")
        if any(remote) and any("*" in shard for shard in self.shards):
            raise Misplaced("an address cannot hold *; write the numbers as {000..331}", "shards")
        return self


class TablePairs(NamedPairs):
    """A table with a heading, one image and its caption a row; fields may stand in double quotes.

    `file` lies below the folder that `--data` gives, and so does `images`, from where the paths in the column
    `image` start.
    """

    kind: Literal["csv", "tsv"]
    file: str
    images: str = "."
    image: str = Field("image", description="column")
    caption: str = Field("caption", description="column")


class YfccPairs(NamedPairs):
    """JSON lines as DeCLIP gives YFCC15M: `{"caption": …, "filename": …}`; other keys are passed over.

    Folders as in a table. `without_chinese` leaves out captions with Chinese characters, as DeCLIP does.
    """

    kind: Literal["yfcc-jsonl"]
    file: str
    images: str = "."
    without_chinese: bool = True


def _of_task_card(value: Any) -> Any:
    """A source without a kind is a split of a task card."""
    return {"kind": "task-card"} | value if isinstance(value, dict) else value


AnyPairs = Annotated[
    Annotated[
        Pairs | CaptionedPairs | HubPairs | ShardPairs | TablePairs | YfccPairs, Field(discriminator="kind")
    ],
    BeforeValidator(_of_task_card),
]


class Objective(Strict):
    """What a recipe trains for: the `Settings` of a module of `clipbench.pretrain.objectives`, which `kind` names.

    Attributes:
        tokens: by what models compare whose heads for single tokens it trains; None: it trains no such heads.
    """

    tokens: ClassVar[str | None] = None

    kind: str

    @property
    def joint(self) -> bool:
        """Whether it compares in the joint space, and so trains the heads into it."""
        return True

    def check(self, recipe: Recipe) -> None:
        """Raise Misplaced where the rest of the recipe does not go with it."""


def objectives() -> dict[str, type[Objective]]:
    """The settings of every objective by `kind`: of the package's own, of installed packages and plugin folders.

    Raises:
        ClipbenchError: a module that is no objective, or two of one name.
    """
    package = importlib.import_module("clipbench.pretrain.objectives")  # by name: it lies above
    found: dict[str, type[Objective]] = {}
    for name, module in plugins.modules("objectives", package).items():
        kind = name.replace("_", "-")
        settings: Any = getattr(module.load(), "Settings", None)
        own = isinstance(settings, type) and issubclass(settings, Objective)
        if not own or get_args(settings.model_fields["kind"].annotation) != (kind,):
            raise ClipbenchError(
                f"{module.where} is no objective: it has no class Settings(Objective) of kind {kind}",
                hint="see clipbench.pretrain.objectives.base for what it needs",
            )
        found[kind] = settings
    return found


def _as_its_kind_says(value: Any) -> Any:
    if isinstance(value, Objective):
        return value
    return _any_of(tuple(objectives().values())).validate_python(value)


@functools.cache
def _any_of(settings: tuple[type[Objective], ...]) -> TypeAdapter[Objective]:
    union: Any = functools.reduce(operator.or_, settings)
    return TypeAdapter(Annotated[union, Field(discriminator="kind")])


class Target(Strict):
    """What the recipe is expected to reach, and the task that says so.

    `source` is where the number was published, and `confidence` how sure it is; without them it is our own.
    """

    task: str
    metric: str
    at_least: float = Field(ge=0, le=1)
    source: str | None = None
    confidence: Confidence | None = None

    @model_validator(mode="after")
    def _vouched(self) -> Target:
        if (self.source is None) != (self.confidence is None):
            raise ValueError("source and confidence belong together: give both, or neither")
        return self


class Best(Strict):
    """The validation score whose best evaluation gives the run's weights, instead of the last step."""

    task: str
    metric: str


class Recipe(Strict):
    """One pretraining run. `model.config` and `model.preprocess` become the run's model card.

    `trained_on` are the images that weights which towers start from were trained on; on the run's card those of `data`
    stand beside them.

    With `ema` (a decay a step) what is evaluated and saved is the exponential moving average of the weights.
    """

    title: str
    command: str
    cost: str
    seed: int = Field(0, ge=0)
    data: Tuple[AnyPairs] = Field(min_length=1)
    trained_on: Tuple[Images] = ()
    model: RecipeModel
    objective: Annotated[SerializeAsAny[Objective], BeforeValidator(_as_its_kind_says)]
    optim: Annotated[AdamW | Sgd | AdamWSgd, Field(discriminator="name")]
    schedule: Schedule
    engine: Engine = Engine()
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    evaluate: Tuple[str] = ()
    best: Best | None = None
    target: Target | None = None
    quick: dict[str, Any] = Field({}, description="key by key, what `--quick` changes: {schedule.steps: 20}")

    @model_serializer(mode="wrap")
    def _as_older_recipes(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that came later is left out where it says nothing: folders of older runs hold the same recipe."""
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if k != "trained_on" or v}

    @model_validator(mode="after")
    def _a_stream_is_alone(self) -> Recipe:
        for i, data in enumerate(self.data):
            if isinstance(data, ShardPairs) and data.remote and data.repeat > 1:
                raise Misplaced(
                    f"{data.name} is read as a stream, which has no epochs to repeat in", "data", i, "repeat"
                )
            if isinstance(data, ShardPairs) and data.remote and len(self.data) > 1:
                raise Misplaced(
                    f"{data.name} is read as a stream, which no other source can be mixed with: fetch its shards "
                    "and give them with --data",
                    "data",
                    i,
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        self.objective.check(self)
        if self.model.frozen.image is True:
            self._unchanged_images()
        if self.model.frozen.text is True:
            self._unchanged_texts()
        for name, score in (("target", self.target), ("best", self.best)):
            if score and not self.evaluate:
                raise Misplaced(f'{name}.task "{score.task}" is not in evaluate (empty)', name, "task")
        if self.best and not self.schedule.eval_every:
            raise Misplaced("best needs schedule.eval_every: evaluations to choose from", "best")
        return self

    def _unchanged_images(self) -> None:
        for i, data in enumerate(self.data):
            if isinstance(data, ShardPairs) and data.remote:
                raise Misplaced(
                    f"the image tower is frozen, so that its features are computed once: {data.name} cannot be "
                    "streamed; fetch its shards and give them with --data",
                    "data",
                    i,
                )
            if data.on_bad_image == "skip":
                raise Misplaced(
                    f"the image tower is frozen, so that its features are computed once: bad images of {data.name} "
                    "cannot be skipped; take them out of the data, or freeze only parts of the tower",
                    "data",
                    i,
                    "on_bad_image",
                )
            if data.augment is not None:
                raise Misplaced(
                    f"the image tower is frozen, so that its features are computed once: {data.name} cannot be "
                    "augmented; leave out augment, or freeze only parts of the tower (model.frozen.image)",
                    "data",
                    i,
                    "augment",
                )

    def _unchanged_texts(self) -> None:
        for i, data in enumerate(self.data):
            if data.alter:
                raise Misplaced(
                    f"the text tower is frozen, so that its features are computed once: texts of {data.name} cannot "
                    "be altered; leave out alter, or freeze only parts of the tower (model.frozen.text)",
                    "data",
                    i,
                    "alter",
                )


class Frozen(Strict):
    """What training leaves as it is, in towers that start from `weights`: a whole tower, or parts of it by name.

    A part is a module of the library that builds the tower (`blocks.0`, `embeddings`, `encoder.layer.0`); BatchNorm
    in it keeps its averages. A whole tower gives an image, or a text, the same feature at every step: it is computed
    once and kept in the feature store, and only the heads are trained.
    """

    image: Frozenness = False
    text: Frozenness = False


class RecipeModel(Strict):
    """The model that a recipe trains: what stands on its model card, apart from the weights.

    A tower whose config names `weights` starts from those, others from random ones.
    """

    family: Literal["dual"] = "dual"
    config: dict[str, Any]
    frozen: Frozen = Frozen()
    preprocess: Preprocess


# ------------------------------------------------------------------- loading


_SEAL = "# sha256 of the lines above: "


def sealed(text: str) -> str:
    """YAML lines with a comment behind them that holds their checksum; `Document` verifies it."""
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def _refuse_changed(path: Path, text: str) -> None:
    *above, last = text.splitlines(keepends=True) or [""]
    if last.startswith("# sha256") and last.rstrip() != sealed("".join(above)).splitlines()[-1]:
        raise CardError(
            f"{path}:{len(above) + 1}: the lines above are not those that were written: their checksum differs",
            hint="if you changed them, delete this last line; else put back a copy of the file",
        )


class Document:
    """A parsed YAML file that knows the line of every value, for error messages."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        try:
            self.text = file_bytes(path, MOST_YAML).decode("utf-8") if text is None else text
            _refuse_changed(path, self.text)
            self._root = yaml_nodes(self.text)
            self.value: Any = yaml_value(self.text)
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise CardError(f"{path}:{line}: not UTF-8 text ({error.reason})") from None
        except UnicodeEncodeError:  # half a character, which no UTF-8 holds
            raise CardError(f"{path}: not UTF-8 text") from None
        except Unreadable as error:
            raise CardError(f"{path}: cannot be read ({error})") from None
        except yaml.reader.ReaderError as error:  # a control character; its position counts bytes
            line = self.text.encode().count(b"\n", 0, error.position) + 1
            raise CardError(f"{path}:{line}: {str(error).splitlines()[0]}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise CardError(f"{where}: {getattr(error, 'problem', None) or error}") from None

    def line(self, location: tuple[int | str, ...]) -> int:
        """1-based line of the value at `location` (the deepest part of it that exists)."""
        node = self._root
        line = node.start_mark.line + 1 if node else 1
        for step in location:
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == str(step)]
                if not found:
                    continue  # union tags and the like, which pydantic adds to locations
                key, node = found[0]
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
        return line

    def place(self, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """`location` without the steps that are no keys: the tags of unions, which pydantic adds."""
        node, kept = self._root, []
        for i, step in enumerate(location):
            below = None
            if isinstance(node, yaml.MappingNode):
                below = next((v for k, v in node.value if k.value == str(step)), None)
                if below is None and i < len(location) - 1:
                    continue
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                below = node.value[step]
            kept.append(step)
            node = below
        return tuple(kept)


Model = TypeVar("Model", bound=BaseModel)


def parse(
    model: type[Model], document: Document, value: Any = None, *, prefix: tuple[int | str, ...] = ()
) -> Model:
    """Validate `value` (default: the whole document) as `model`.

    `prefix` is the place of `value` inside the document.

    Raises:
        CardError: naming file, line, key, what was found and what is allowed; all problems at once.
    """
    value = document.value if value is None else value
    if not isinstance(value, dict):
        found = "an empty file" if value is None else type(value).__name__
        raise CardError(f"{document.path}:1: expected a mapping of keys to values, found {found}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # A list whose items are wrong would also be called too short.
        problems = [
            p
            for p in error.errors()
            if p["type"] != "too_short" or p["ctx"]["actual_length"] == len(p["input"])
        ]
        lines = [_explain(model, document, prefix, problem) for problem in problems]
        raise CardError("\n".join(dict.fromkeys(lines))) from None


def _explain(model: type[BaseModel], document: Document, prefix: tuple[int | str, ...], problem: Any) -> str:
    error = problem.get("ctx", {}).get("error")
    location: tuple[int | str, ...] = problem["loc"]
    if isinstance(error, Misplaced):
        location += error.location
    where = f"{document.path}:{document.line((*prefix, *location))}"
    key = _dotted(document.place((*prefix, *location)))
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            allowed = _fields(model, location[:-1])
            near = nearest(str(location[-1]), allowed)
            text = f'unknown key "{key}"'
            text += f'; did you mean "{near}"?' if near else ""
            return f"{where}: {text} (allowed: {', '.join(allowed)})" if allowed else f"{where}: {text}"
        case "missing":
            return f'{where}: missing key "{key}"'
        case "string_type" if isinstance(value, bool):
            return (
                f"{where}: {key}: expected text, found the boolean {str(value).lower()} "
                f'({BOOLEANS}); put it in quotes, like "no"'
            )
        case "string_type" if isinstance(value, int | float):
            return f'{where}: {key}: expected text, found the number {value}; put it in quotes: "{value}"'
        case "value_error":
            # A message that points to a place of its own names that place in words.
            named = f"{key}: " if key and not isinstance(error, Misplaced) else ""
            return f"{where}: {named}{error}"
        case "union_tag_invalid":
            context = problem["ctx"]
            return (
                f'{where}: {key}.{context["discriminator"].strip(chr(39))}: unknown "{context["tag"]}"; '
                f"allowed: {context['expected_tags'].replace(chr(39), '')}"
            )
        case "union_tag_not_found":
            return f'{where}: missing key "{key}.{problem["ctx"]["discriminator"].strip(chr(39))}"'
        case kind:
            shown = json.dumps(value, default=str, ensure_ascii=False)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            wanted = _WANTED.get(kind) or problem["msg"][0].lower() + problem["msg"][1:]
            return f"{where}: {key}: {wanted}, found {shown}"


_WANTED = {
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping of keys to values",
    "model_type": "expected a mapping of keys to values",
}


#: how the steps begin that pydantic adds to a location for the branch of a union
_TAGS = ("tuple[", "dict[", "function-")


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step.startswith(_TAGS):
            text += f".{step}" if text else step
    return text


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed at `location` below `model` (empty where that is free)."""
    current: Any = model
    for step in location:
        if isinstance(step, str) and step.startswith(_TAGS):
            continue
        current = _below(current, step) or _tagged(current, step) or current
    models = [part for part in _parts(current) if isinstance(part, type) and issubclass(part, BaseModel)]
    return list(dict.fromkeys(name for part in models for name in part.model_fields))


def _below(annotation: Any, step: str | int) -> Any:
    """The annotation of what lies at `step` below a value of this annotation, or None where it has none."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel) and step in part.model_fields:
            return part.model_fields[str(step)].annotation
        if get_origin(part) is dict:
            return get_args(part)[1]
        if get_origin(part) is tuple and isinstance(step, int):
            return get_args(part)[0]
    return None


def _tagged(annotation: Any, tag: str | int) -> Any:
    """The alternative of a union that is told by the literal `tag`, or None."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            literals = [get_args(f.annotation) for f in part.model_fields.values()]
            if any(tag in values for values in literals):
                return part
    return None


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without its metadata."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if annotation is Objective:
        return list(objectives().values())
    if get_origin(annotation) in (Union, UnionType):
        return [part for alternative in get_args(annotation) for part in _parts(alternative)]
    return [annotation]


def finite(value: float) -> float | None:
    """`value`, or None for NaN and infinities, which JSON cannot hold."""
    return value if math.isfinite(value) else None


Recipe.model_rebuild()
