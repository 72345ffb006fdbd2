"""Training pairs as recipes name them: where images and texts come from, and what is done to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from clipbench.cards.base import Misplaced, Probability, Strict, Tuple
from clipbench.cards.model import Images

# The least and the greatest of something, written as a YAML list.
Range = Annotated[tuple[float, float], Field(strict=False)]


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

    @property
    def remote(self) -> bool:
        """Whether the pairs are read from addresses, as a stream."""
        return False


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
        return any(shard.startswith(("http://", "https://")) for shard in self.shards)

    @model_validator(mode="after")
    def _of_one_kind(self) -> ShardPairs:
        if self.remote and not all(shard.startswith(("http://", "https://")) for shard in self.shards):
            raise Misplaced("shards are either all addresses or all paths", "shards")
        if self.remote and self.rows is None:
            raise Misplaced("shards that are addresses need rows: how many samples they hold in all", "rows")
        if self.remote and any("*" in shard for shard in self.shards):
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
