"""Model cards: one checkpoint, how it sees images, and where its weights are."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from clipbench.cards.base import Misplaced, Strict, Tuple

#: how pixels are found between pixels, see `Preprocess`
Interpolation = Literal["nearest", "bilinear", "bicubic", "bilinear-no-antialias"]


class Preprocess(Strict):
    """How a PIL image becomes a tensor; part of every feature's key.

    `resize: shortest` scales the short side to `size` and keeps the ratio, then crops the centre;
    `longest` scales the long side to `size`, so that the whole image is seen, and pads the other to it, each channel
    with `fill` before colours are converted (of an image with a palette, its colour of that number);
    `squash` scales to the square `crop`, `squash-crop` to the square `size` and then crops the centre; `none` takes
    images that have that size already, `pad` also smaller ones, which it centres on black.
    `order` says whether the conversion to `channels` colours comes before or after resizing
    (open_clip: after; most others: before; it matters for palette and alpha images).
    `interpolation` is Pillow's, which smooths an image before it shrinks it; `bilinear-no-antialias` is OpenCV's, and
    torch's without `antialias`, which do not. It mixes colours, so it needs `order: convert-first`.
    `centre` says where the middle of an odd number of pixels is: `nearest` rounds its half to the even neighbour, as
    torchvision does, `down` takes the lower one, as transformers does.
    `transparency: dropped` sees the stored colours of transparent pixels, `on-white` lays the image on white first.
    `orientation: exif` turns an image first as its EXIF tag says (as OpenCV's `imread` does), `as-stored` does not (as
    Pillow, and so open_clip, does not; but for TIFF, which Pillow always turns).
    """

    later: ClassVar = ("orientation", "centre", "transparency", "fill")

    size: int = Field(224, gt=0)
    crop: int | None = Field(None, gt=0)
    resize: Literal["shortest", "longest", "squash", "squash-crop", "none", "pad"] = "shortest"
    fill: int = Field(0, ge=0, le=255)
    interpolation: Interpolation = "bicubic"
    channels: Literal[1, 3] = 3
    order: Literal["convert-last", "convert-first"] = "convert-last"
    orientation: Literal["as-stored", "exif"] = "as-stored"
    centre: Literal["nearest", "down"] = "nearest"
    transparency: Literal["dropped", "on-white"] = "dropped"
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
        if self.interpolation == "bilinear-no-antialias" and self.order != "convert-first":
            raise Misplaced("bilinear-no-antialias needs order: convert-first", "interpolation")
        if self.transparency == "on-white" and (self.order, self.channels) != ("convert-first", 3):
            raise Misplaced("on-white needs order: convert-first and 3 channels", "transparency")
        if self.resize == "longest" and self.crop not in (None, self.size):
            raise Misplaced("resize: longest pads to size, of which nothing is cropped", "crop")
        if self.resize != "longest" and self.fill:
            raise Misplaced("fill goes with resize: longest", "fill")
        return self


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

    later: ClassVar = ("url", "gdrive", "hf", "package", "link_source")

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


class Texts(Strict):
    """What is done to a text before the tower sees its tokens; what is not given is as the architecture has it.

    `clean` is open_clip's: each way mends broken Unicode and HTML entities and brings white space to single spaces;
    `lower` also lowers case, and `canonicalize` does that, makes `_` a space and deletes all other punctuation.
    Tokens beyond `context_length` are cut off, those at the ends included. `strip_sep_token` makes the token that ends
    a text padding.
    """

    clean: Literal["lower", "whitespace", "canonicalize"] | None = None
    context_length: int | None = Field(None, ge=3)
    strip_sep_token: bool | None = None


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

    later: ClassVar = ("dataset", "name", "split")

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


class ModelCard(Strict):
    """One checkpoint. `config` belongs to the family's adapter, which validates it.

    `trained_on` are the images that it was trained on, weights that its towers started from included: a score on any
    of them is marked, and kept off the leaderboard (`clipbench.records.exposure`). `training_data` says it in words.
    """

    later: ClassVar[tuple[str, ...]] = ("trained_on", "text")

    title: str
    family: str
    config: dict[str, Any] = Field({})
    preprocess: Preprocess
    text: Texts | None = Field(
        None, description="of families that read it; without it, as the architecture has it"
    )
    weights: Weights
    licence: str | None = None
    training_data: str | None = None
    training_pairs_m: float | None = Field(None, gt=0, description="training pairs, millions")
    trained_on: Tuple[Images] = ()
    paper: str | None = None
    links: Tuple[str] = ()
    notes: str | None = None
    reported: Tuple[Reported] = ()


#: family of the models that are code of the user's own
OWN_FAMILY: Final = "python"
#: stands for the sha256 of weights where the user's code does not say which weights it has
UNSTATED: Final = "none stated"


class OwnCard(ModelCard):
    """What is told of a model that is the user's own code: it prepares images itself, and has its weights from where
    it likes. No file holds such a card, and none is read: code is run for those alone who name it.
    """

    family: str = OWN_FAMILY
    preprocess: None = None  # type: ignore[assignment]
    weights: None = None  # type: ignore[assignment]
