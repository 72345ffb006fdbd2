"""What the towers of family `dual` are, as cards and recipes say it: two towers and their heads, or one alone.

A further kind of tower is a config class here, joined to the union of its modality, and a module in a file beside.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from clipbench.cards.base import Strict, fingerprint
from clipbench.cards.model import Weights
from clipbench.errors import CardError


def _whole_heads(config: Any) -> Any:
    """A validator of configs with `width` and `heads`."""
    if config.width % config.heads:
        raise ValueError(f"width ({config.width}) must be a multiple of heads ({config.heads})")
    return config


class ConvNetConfig(Strict):
    """A small residual network for images of 8 to 64 px, globally average-pooled.

    `stages` stages of `blocks` residual blocks; the first has `width` channels, each further one twice the channels
    at half the side. `stride` is that of the convolution before them: 1 keeps the full resolution.
    """

    later: ClassVar = ("stride",)

    kind: Literal["convnet"]
    width: int = Field(gt=0)
    stages: int = Field(gt=0)
    blocks: int = Field(1, gt=0)
    stride: int = Field(1, gt=0)


class BytesConfig(Strict):
    """A transformer over the UTF-8 bytes of the text, mean-pooled over the real tokens.

    `context_length` counts the start and end tokens; longer texts are cut.
    """

    kind: Literal["bytes"]
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    context_length: int = Field(64, gt=2)

    _fits = model_validator(mode="after")(_whole_heads)


class NgramsConfig(Strict):
    """The mean of vectors of the text's word n-grams, up to `longest` words long (fastText; Joulin et al. 2017).

    An n-gram is known by its hash modulo `buckets`: no vocabulary is needed, and two may share a vector. Of a text
    that has more than `context_length` of them the last, longest ones are left out.
    """

    kind: Literal["ngrams"]
    width: int = Field(gt=0)
    longest: int = Field(5, gt=0)
    buckets: int = Field(8192, gt=0)
    context_length: int = Field(128, gt=0)


class TorchvisionConfig(Strict):
    """A classifier of torchvision without its last linear layer; `arch` as in `torchvision.models`.

    `weights` says where the tower's weights come from when not from the card's own file: a state dict in
    torchvision's names.
    """

    kind: Literal["torchvision"]
    arch: str
    weights: Weights | None = None


class TimmConfig(Strict):
    """A model of timm without its classifier; `arch` as in `timm.list_models()`.

    `img_size` builds it for images of another side than its own, in px, where it is made for one side as ViTs are.
    `weights` says where the tower's weights come from when not from the card's own file: a state dict in timm's
    names, or in those of EfficientNet-PyTorch.
    """

    later: ClassVar = ("img_size", "resize_positions")

    kind: Literal["timm"]
    arch: str
    img_size: int | None = Field(None, gt=0)
    resize_positions: bool = Field(
        False, description="interpolate absolute position embeddings of another grid, as timm does"
    )
    weights: Weights | None = None


class BertConfig(Strict):
    """A text encoder of transformers: BERT, RoBERTa or MPNet.

    `pool` is what stands for the text: `pooler` (the [CLS] vector through BERT's trained tanh layer), `cls`, or
    `mean` over the real tokens. `clean` passes texts through CLIP-Lite's caption cleaner first. `weights` says
    where the tower's weights come from when not from the card's own file: a state dict in transformers' names.
    """

    kind: Literal["bert"]
    architecture: Literal["bert", "roberta", "mpnet"] = "bert"
    layers: int = Field(gt=0)
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    feedforward: int = Field(gt=0, description="width of the layers' inner part")
    vocabulary: int = Field(gt=0, description="tokens, special ones included")
    positions: int = Field(
        512, gt=0, description="rows of the position table (RoBERTa, MPNet: the first 2 unused)"
    )
    token_types: int = Field(2, gt=0, description="rows of the token type table; MPNet has none")
    layer_norm_eps: float = Field(1e-12, gt=0, description="1e-5 in the published RoBERTa and MPNet")
    pool: Literal["pooler", "cls", "mean"]
    tokenizer: str = Field(description="see `clipbench.models.towers.tokenizer`")
    context_length: int = Field(gt=2, description="longest text in tokens, special ones included")
    clean: bool = False
    weights: Weights | None = None

    _fits = model_validator(mode="after")(_whole_heads)

    @model_validator(mode="after")
    def _consistent(self) -> BertConfig:
        usable = self.positions - (0 if self.architecture == "bert" else 2)
        if self.context_length > usable:
            raise ValueError(
                f"context_length ({self.context_length}) is more than the {usable} tokens that positions "
                f"({self.positions}) allows"
            )
        return self


class ClipResNetConfig(Strict):
    """CLIP's modified ResNet (Radford et al. 2021, section 2.4): a stem of three convolutions, blur before strides, and
    attention in place of the last average. The defaults are RN50's.

    The attention pool ends in a matrix of its own, into the joint space, as in CLIP; with `projection: linear` no
    second one follows. `heads` are those of the pool, of 64 channels each where they are not given.
    """

    kind: Literal["clip-resnet"]
    layers: Annotated[tuple[int, int, int, int], Field(strict=False)] = (3, 4, 6, 3)
    width: int = Field(64, gt=0, multiple_of=2)
    heads: int | None = Field(None, gt=0)

    @property
    def channels(self) -> int:
        """Of the last map."""
        return 32 * self.width

    @property
    def pool_heads(self) -> int:
        """Heads of the attention pool."""
        return self.heads or self.channels // 64

    @model_validator(mode="after")
    def _fits(self) -> ClipResNetConfig:
        if min(self.layers) < 1:
            raise ValueError(f"layers must be four numbers above 0 (found {list(self.layers)})")
        if self.channels % self.pool_heads:
            raise ValueError(f"32 × width ({self.channels}) must be a multiple of heads ({self.pool_heads})")
        return self


class ClipVitConfig(Strict):
    """CLIP's ViT without its projection: the feature is the normalised class token. The defaults are those of B/32.

    `quick_gelu`: x·sigmoid(1.702x), as in OpenAI's code, instead of GELU.
    """

    kind: Literal["clip-vit"]
    patch: int = Field(32, gt=0, description="px")
    width: int = Field(768, gt=0)
    layers: int = Field(12, gt=0)
    heads: int = Field(12, gt=0)
    quick_gelu: bool = True

    _fits = model_validator(mode="after")(_whole_heads)


class ClipTextConfig(Strict):
    """CLIP's text transformer without its projection: causal, over byte pairs; the feature is the end token's state.

    The defaults are those beside a ViT-B/32. `quick_gelu` as in `clip-vit`.
    """

    kind: Literal["clip-text"]
    width: int = Field(512, gt=0)
    layers: int = Field(12, gt=0)
    heads: int = Field(8, gt=0)
    context_length: int = Field(77, gt=2)
    quick_gelu: bool = True

    _fits = model_validator(mode="after")(_whole_heads)


ImageConfig = Annotated[
    ConvNetConfig | TorchvisionConfig | TimmConfig | ClipResNetConfig | ClipVitConfig,
    Field(discriminator="kind"),
]
TextConfig = Annotated[BytesConfig | NgramsConfig | BertConfig | ClipTextConfig, Field(discriminator="kind")]


class TokenHeads(Strict):
    """Heads for single tokens, an image's places and a text's tokens, which late interaction compares (FILIP).

    `compared` is what images and texts are compared by: these tokens, or the joint space. `padding` says whether all
    `context_length` positions of a text count, as in DeCLIP's repository, or its own tokens alone.
    """

    dim: int = Field(256, gt=0)
    compared: Literal["tokens", "joint"] = "tokens"
    padding: bool = False


class DualConfig(Strict):
    """Two towers and their heads; or an image tower alone, without `text`, `embed_dim`, `projection` and `tokens`.

    `projection` is `linear` (one matrix a modality, as in CLIP) or `clip-lite` (CLIP-Lite's block: nonlinear
    path + shortcut, LayerNorm), which starts as a copy of the tower's output where `embed_dim` has room for it. With
    `tokens` there are heads for single tokens; there may then be none into a joint space.

    The card's own file holds, by name, whatever has no `weights` of its own: `image.net.*`, `text.net.*` (other
    names for the towers `convnet` and `bytes`), `image_projection.*`, `text_projection.*`, `image_mapping.*` and
    `text_mapping.*` (of tokens), `log_scale`. That of an image tower alone is the tower's, in the names of the library
    that builds it.
    """

    image: ImageConfig
    text: TextConfig | None = None
    embed_dim: int | None = Field(None, gt=0)
    projection: Literal["linear", "clip-lite"] | None = None
    tokens: TokenHeads | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DualConfig:
        joint = {"text": self.text, "embed_dim": self.embed_dim, "projection": self.projection}
        lacking = [name for name, value in joint.items() if value is None]
        if self.tokens is not None:
            if self.text is None:
                raise ValueError("tokens needs a text tower: give text, or leave out tokens")
            if self.tokens.compared == "joint" and self.embed_dim is None:
                raise ValueError(
                    "tokens.compared: joint needs a joint space: give embed_dim and projection, or leave out compared"
                )
            if lacking == ["embed_dim", "projection"]:
                return self
        if lacking == list(joint):
            if not isinstance(self.image, TorchvisionConfig | TimmConfig):
                raise ValueError(
                    f"an image tower alone is of kind torchvision or timm (found {self.image.kind})"
                )
            if self.image.weights is not None:
                raise ValueError(
                    "the weights of an image tower alone stand under the card's own weights, not config.image's"
                )
        elif lacking:
            raise ValueError(
                f"{', '.join(lacking)} missing: give text, embed_dim and projection, or none of them for an "
                "image tower alone"
            )
        return self


def parse_config(config: dict[str, Any], where: str) -> DualConfig:
    """`config` as a typed `DualConfig`; `where` names the card or recipe in errors.

    Raises:
        CardError: naming every wrong key.
    """
    try:
        return DualConfig.model_validate(config)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(["config", *map(str, problem["loc"])])
            lines.append(f"{where}: {key}: {problem['msg'].removeprefix('Value error, ')}")
        raise CardError("\n".join(lines)) from None


def sources(config: DualConfig) -> dict[str, Weights]:
    """`image`, `text` → where that tower's weights come from, of those that name a source of their own."""
    named = {side: getattr(getattr(config, side), "weights", None) for side in ("image", "text")}
    return {side: source for side, source in named.items() if source is not None}


def stated(config: DualConfig, sha256: str) -> str | None:
    """What `identity` is by what a card states, `sha256` being that of the model's own file; None where that is not
    enough: a tower whose file is named without its whole hash."""
    digests = [sha256, *(source.sha256 or "" for source in sources(config).values())]
    if len(digests) == 1 or config.text is None:
        return sha256
    return fingerprint(digests) if all(len(digest) == 64 for digest in digests) else None


def backbone_is(config: DualConfig) -> str:
    """What the `backbone` features of two towers, or one alone, are, in a few words."""
    image = config.image
    if config.text is not None and config.embed_dim is None:
        return "mean of the places' states: there is no joint space that would have trained their pooling"
    match image:
        case TorchvisionConfig():
            return f"input of the last linear layer of torchvision's {image.arch}"
        case TimmConfig():
            return f"pooled output of timm's {image.arch}, without its classifier"
        case ConvNetConfig():
            return "average-pooled last map, before the projection"
        case ClipVitConfig():
            return "class token after the last LayerNorm, before the projection"
    joint = ", which is the joint feature itself" if config.projection == "linear" else ""
    return f"output of the attention pool{joint}"
