"""Family `dual`: an image tower and a text tower, each with a projection head into one joint space.

What `clipbench pretrain` trains, and what is put together from towers that others trained; an image tower alone
is a model too. The towers are those of `clipbench.models.towers.dual`; a further kind of tower is a config class
here, joined to the union of its modality, and a module there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from clipbench.cards.cards import ModelCard, Preprocess, Strict, Weights, fingerprint
from clipbench.errors import CardError, WeightsError
from clipbench.models.adapter import Adapter, Family, ModelEntry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipbench.models.towers.dual import DualTowers, ImageTower, LibraryTower, TextTower
    from clipbench.models.weights.reading import State


class ConvNetTower(Strict):
    """A small residual network for images of 8 to 64 px, globally average-pooled.

    `stages` stages of `blocks` residual blocks; the first has `width` channels, each further one twice the channels
    at half the side. `stride` is that of the convolution before them: 1 keeps the full resolution.
    """

    kind: Literal["convnet"]
    width: int = Field(gt=0)
    stages: int = Field(gt=0)
    blocks: int = Field(1, gt=0)
    stride: int = Field(1, gt=0)

    @model_serializer(mode="wrap")
    def _as_older_cards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that came later is left out where it says nothing: the identity of older models stays."""
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if (k, v) != ("stride", 1)}

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.width << (self.stages - 1)


class BytesTower(Strict):
    """A transformer over the UTF-8 bytes of the text, mean-pooled over the real tokens.

    `context_length` counts the start and end tokens; longer texts are cut.
    """

    kind: Literal["bytes"]
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    context_length: int = Field(64, gt=2)

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.width

    @model_validator(mode="after")
    def _fits(self) -> BytesTower:
        _whole_heads(self.width, self.heads)
        return self


class NgramsTower(Strict):
    """The mean of vectors of the text's word n-grams, up to `longest` words long (fastText; Joulin et al. 2017).

    An n-gram is known by its hash modulo `buckets`: no vocabulary is needed, and two may share a vector. Of a text
    that has more than `context_length` of them the last, longest ones are left out.
    """

    kind: Literal["ngrams"]
    width: int = Field(gt=0)
    longest: int = Field(5, gt=0)
    buckets: int = Field(8192, gt=0)
    context_length: int = Field(128, gt=0)

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.width


class TorchvisionTower(Strict):
    """A classifier of torchvision without its last linear layer; `arch` as in `torchvision.models`.

    `weights` says where the tower's weights come from when not from the card's own file: a state dict in
    torchvision's names.
    """

    kind: Literal["torchvision"]
    arch: str
    weights: Weights | None = None


class TimmTower(Strict):
    """A model of timm without its classifier; `arch` as in `timm.list_models()`.

    `weights` says where the tower's weights come from when not from the card's own file: a state dict in timm's
    names, or in those of EfficientNet-PyTorch.
    """

    kind: Literal["timm"]
    arch: str
    weights: Weights | None = None


class BertTower(Strict):
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

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.width

    @model_validator(mode="after")
    def _consistent(self) -> BertTower:
        _whole_heads(self.width, self.heads)
        usable = self.positions - (0 if self.architecture == "bert" else 2)
        if self.context_length > usable:
            raise ValueError(
                f"context_length ({self.context_length}) is more than the {usable} tokens that positions "
                f"({self.positions}) allows"
            )
        return self


class ClipResNetTower(Strict):
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
    def _fits(self) -> ClipResNetTower:
        if min(self.layers) < 1:
            raise ValueError(f"layers must be four numbers above 0 (found {list(self.layers)})")
        _whole_heads(self.channels, self.pool_heads, "32 × width")
        return self


class ClipVitTower(Strict):
    """CLIP's ViT without its projection: the feature is the normalised class token. The defaults are those of B/32.

    `quick_gelu`: x·sigmoid(1.702x), as in OpenAI's code, instead of GELU.
    """

    kind: Literal["clip-vit"]
    patch: int = Field(32, gt=0, description="px")
    width: int = Field(768, gt=0)
    layers: int = Field(12, gt=0)
    heads: int = Field(12, gt=0)
    quick_gelu: bool = True

    @model_validator(mode="after")
    def _fits(self) -> ClipVitTower:
        _whole_heads(self.width, self.heads)
        return self


class ClipTextTower(Strict):
    """CLIP's text transformer without its projection: causal, over byte pairs; the feature is the end token's state.

    The defaults are those beside a ViT-B/32. `quick_gelu` as in `clip-vit`.
    """

    kind: Literal["clip-text"]
    width: int = Field(512, gt=0)
    layers: int = Field(12, gt=0)
    heads: int = Field(8, gt=0)
    context_length: int = Field(77, gt=2)
    quick_gelu: bool = True

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.width

    @model_validator(mode="after")
    def _fits(self) -> ClipTextTower:
        _whole_heads(self.width, self.heads)
        return self


def _whole_heads(width: int, heads: int, name: str = "width") -> None:
    if width % heads:
        raise ValueError(f"{name} ({width}) must be a multiple of heads ({heads})")


Image = Annotated[
    ConvNetTower | TorchvisionTower | TimmTower | ClipResNetTower | ClipVitTower,
    Field(discriminator="kind"),
]
Text = Annotated[BytesTower | NgramsTower | BertTower | ClipTextTower, Field(discriminator="kind")]


class TokenHeads(Strict):
    """Heads for single tokens, an image's places and a text's tokens, which late interaction compares (FILIP).

    `compared` is what images and texts are compared by: these tokens, or the joint space. `padding` says whether all
    `context_length` positions of a text count, as in DeCLIP's repository, or its own tokens alone.
    """

    dim: int = Field(256, gt=0)
    compared: Literal["tokens", "joint"] = "tokens"
    padding: bool = False


class Config(Strict):
    """Two towers and their heads; or an image tower alone, without `text`, `embed_dim`, `projection` and `tokens`.

    `projection` is `linear` (one matrix a modality, as in CLIP) or `clip-lite` (CLIP-Lite's block: nonlinear
    path + shortcut, LayerNorm), which starts as a copy of the tower's output where `embed_dim` has room for it. With
    `tokens` there are heads for single tokens; there may then be none into a joint space.

    The card's own file holds, by name, whatever has no `weights` of its own: `image.net.*`, `text.net.*` (other
    names for the towers `convnet` and `bytes`), `image_projection.*`, `text_projection.*`, `image_mapping.*` and
    `text_mapping.*` (of tokens), `log_scale`. That of an image tower alone is the tower's, in the names of the library
    that builds it.
    """

    image: Image
    text: Text | None = None
    embed_dim: int | None = Field(None, gt=0)
    projection: Literal["linear", "clip-lite"] | None = None
    tokens: TokenHeads | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.tokens is not None:
            self._late(self.tokens)
        joint = {"text": self.text, "embed_dim": self.embed_dim, "projection": self.projection}
        lacking = [name for name, value in joint.items() if value is None]
        if lacking == list(joint):
            self._alone()
        elif lacking and lacking != self._no_joint_space():
            raise ValueError(
                f"{', '.join(lacking)} missing: give text, embed_dim and projection, or none of them for an "
                "image tower alone"
            )
        return self

    def _no_joint_space(self) -> list[str]:
        """What may be left out together."""
        return ["embed_dim", "projection"] if self.tokens is not None else []

    def _late(self, tokens: TokenHeads) -> None:
        if self.text is None:
            raise ValueError("tokens needs a text tower: give text, or leave out tokens")
        if tokens.compared == "joint" and self.embed_dim is None:
            raise ValueError(
                "tokens.compared: joint needs a joint space: give embed_dim and projection, or leave out compared"
            )

    def _alone(self) -> None:
        if not isinstance(self.image, TorchvisionTower | TimmTower):
            raise ValueError(f"an image tower alone is of kind torchvision or timm (found {self.image.kind})")
        if self.image.weights is not None:
            raise ValueError(
                "the weights of an image tower alone stand under the card's own weights, not config.image's"
            )


def parse_config(config: dict[str, Any], where: str) -> Config:
    """`config` as a typed `Config`; `where` names the card or recipe in errors.

    Raises:
        CardError: naming every wrong key.
    """
    try:
        return Config.model_validate(config)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(["config", *map(str, problem["loc"])])
            lines.append(f"{where}: {key}: {problem['msg'].removeprefix('Value error, ')}")
        raise CardError("\n".join(lines)) from None


class DualAdapter(Adapter):
    """Two towers behind the Adapter interface. `towers` must be in evaluation mode."""

    def __init__(self, towers: DualTowers, card: ModelCard, weights_sha256: str) -> None:
        self.card = card
        self.weights_sha256 = weights_sha256
        self.logit_scale = towers.logit_scale().item()
        self.context_length = towers.text.context_length
        self._towers = towers
        joint = ("joint",) if towers.joint else ()
        if towers.tokens is not None:
            self.compared = towers.tokens.compared
            self.token_width = towers.tokens.dim
            self.image_spaces = (*joint, "tokens", "backbone")
            self.text_spaces = (*joint, "tokens")

    @property
    def text_fingerprint(self) -> str:
        """See `Adapter`."""
        return self._towers.text.fingerprint

    def image_tower(self, space: str) -> nn.Module:
        """See `Adapter`. `backbone` is the image tower's pooled output, `joint` its projection.

        Without a joint space nothing trained that output: `backbone` is then the mean of the places' states.
        """
        from torch import nn

        from clipbench.models.towers.dual import Patches

        self.require_space(space)
        towers = self._towers
        if space == "tokens":
            return Patches(towers.patch_tower, towers.image_mapping).eval()
        if space == "backbone":
            return towers.image if towers.joint else Patches(towers.patch_tower, None).eval()
        return nn.Sequential(towers.image, towers.image_projection).eval()

    def headed(self, space: str) -> tuple[Adapter, nn.Module] | None:
        """See `Adapter`."""
        from torch import nn

        towers = self._towers
        self.require_space(space)
        if "image" not in towers.elsewhere or not towers.joint or space == "tokens":
            return None
        head = towers.image_projection if space == "joint" else nn.Identity()
        source = sources(parse_config(self.card.config, self.card.title))["image"]
        return alone("image", towers, self.card.config, self.card.preprocess, source), head.eval()

    def text_tower(self, space: str = "joint") -> nn.Module:
        """See `Adapter`. `tokens`: all `context_length` positions; those that do not count are zeros."""
        from torch import nn

        from clipbench.models.towers.dual import Words

        self.require_text(space)
        towers = self._towers
        if space == "tokens":
            assert towers.tokens is not None
            return Words(towers.token_tower, towers.text_mapping, padding=towers.tokens.padding).eval()
        return nn.Sequential(towers.text, towers.text_projection).eval()

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Adapter`."""
        return self._towers.text.tokenize(texts)


def alone(
    side: str, towers: DualTowers, config: dict[str, Any], preprocess: Preprocess, source: Weights
) -> Adapter:
    """The tower of `towers` on `side` (`image` or `text`), whose file lies elsewhere, as a model of its own.

    Its config is as short as that of a shipped card of the same tower, so that all share their features.
    """
    typed = getattr(parse_config(config, f"{side} tower"), side)
    own = typed.model_dump(mode="json", exclude_defaults=True, exclude={"weights"})
    card = ModelCard(
        title=f"{side} tower", family="dual", config={side: own}, preprocess=preprocess, weights=source
    )
    made: type[ImageAdapter | TextAdapter] = ImageAdapter if side == "image" else TextAdapter
    return made(getattr(towers, side), card, towers.elsewhere[side])


class ImageAdapter(Adapter):
    """An image tower alone behind the Adapter interface: `backbone` is its one space."""

    def __init__(self, tower: ImageTower, card: ModelCard, weights_sha256: str) -> None:
        self.card = card
        self.weights_sha256 = weights_sha256
        self.logit_scale = math.nan
        self.context_length = 0
        self.image_spaces = ("backbone",)
        self.text_spaces = ()
        self._tower = tower

    def image_tower(self, space: str) -> nn.Module:
        """See `Adapter`."""
        self.require_space(space)
        return self._tower

    def text_tower(self, space: str = "joint") -> nn.Module:
        """See `Adapter`."""
        self.require_text(space)
        raise AssertionError("require_text has raised")

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Adapter`."""
        self.require_text()
        raise AssertionError("require_text has raised")


class TextAdapter(Adapter):
    """A text tower alone behind the Adapter interface: `backbone`, its pooled output, is its one space."""

    def __init__(self, tower: TextTower, card: ModelCard, weights_sha256: str) -> None:
        self.card = card
        self.weights_sha256 = weights_sha256
        self.logit_scale = math.nan
        self.context_length = tower.context_length
        self.image_spaces = ()
        self.text_spaces = ("backbone",)
        self._tower = tower

    @property
    def text_fingerprint(self) -> str:
        """See `Adapter`."""
        return self._tower.fingerprint

    def image_tower(self, space: str) -> nn.Module:
        """See `Adapter`."""
        self.require_space(space)
        raise AssertionError("require_space has raised")

    def text_tower(self, space: str = "backbone") -> nn.Module:
        """See `Adapter`."""
        self.require_text(space)
        return self._tower

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Adapter`."""
        return self._tower.tokenize(texts)


def load(model: ModelEntry) -> Adapter:
    """The adapter of `model`, weights loaded strictly.

    Raises:
        CardError: the card's config describes no towers that can be built.
        WeightsError: a file is missing, corrupt, another one than the card's, or does not fit.
    """
    import torch

    from clipbench.models.towers.dual import DualTowers, LibraryTower, image_tower
    from clipbench.models.weights import reading as weights

    config = parse_config(model.card.config, model.id)
    if config.text is None:
        tower = image_tower(config.image, model.card.preprocess)
        assert isinstance(tower, LibraryTower)
        digest = load_tower(tower, model.card.weights, model.id, model.folder)
        return ImageAdapter(tower.eval(), model.card, digest)

    path, sha256 = weights.resolve(model)
    state = weights.read_state_dict(path)
    with torch.device("meta"):
        towers = DualTowers(config, model.card.preprocess, model.folder)
    for side, source in sources(config).items():
        module = getattr(towers, side)
        assert isinstance(module, LibraryTower)
        _refuse_second_copy(state, f"{side}.", path)
        digest = load_tower(module, source, f"{model.id} (config.{side})", model.folder)
        towers.elsewhere[side] = digest
        state |= {f"{side}.net.{name}": tensor for name, tensor in module.net.state_dict().items()}
    weights.load_strict(towers, state, path)
    return DualAdapter(towers, model.card, identity(towers, sha256))


def sources(config: Config) -> dict[str, Weights]:
    """`image`, `text` → where that tower's weights come from, of those that name a source of their own."""
    named = {side: getattr(getattr(config, side), "weights", None) for side in ("image", "text")}
    return {side: source for side, source in named.items() if source is not None}


def load_tower(tower: LibraryTower, source: Weights, owner: str, folder: Path) -> str:
    """Load a tower's weights from a file of its own, strictly; the file's sha256.

    Raises:
        WeightsError: the file is missing, corrupt, another one than the source says, or does not fit.
    """
    from clipbench.models.weights import reading as weights

    path, sha256 = weights.resolve_source(source, owner=owner, folder=folder)
    weights.load_strict(tower.net, tower.published(weights.read_state_dict(path)), path)
    return sha256


def _refuse_second_copy(state: State, prefix: str, path: Path) -> None:
    held = [name for name in state if name.startswith(prefix)]
    if held:
        raise WeightsError(
            f"{path} holds {len(held)} tensors of a tower whose weights the card takes from elsewhere ({held[0]}, …)",
            hint=f"leave out config.{prefix}weights, or leave these tensors out of the file",
        )


def serialise(towers: DualTowers) -> tuple[bytes, str]:
    """The towers' weights as the bytes of a safetensors file, and their sha256 (hex).

    Without those of towers whose weights lie elsewhere. The same weights give the same bytes, so that a model in
    memory has the hash of the file it becomes.
    """
    from safetensors.torch import save

    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in towers.state_dict().items()
        if name.partition(".")[0] not in towers.elsewhere
    }
    data = save(state)
    return data, hashlib.sha256(data).hexdigest()


def stated(config: Config, sha256: str) -> str | None:
    """What `identity` is by what a card states, `sha256` being that of the model's own file; None where that is not
    enough: a tower whose file is named without its whole hash."""
    digests = [sha256, *(source.sha256 or "" for source in sources(config).values())]
    if len(digests) == 1 or config.text is None:
        return sha256
    return fingerprint(digests) if all(len(digest) == 64 for digest in digests) else None


def identity(towers: DualTowers, sha256: str) -> str:
    """sha256 (hex) of all that the features come from: of the model's own file, and of towers' files elsewhere."""
    return fingerprint([sha256, *towers.elsewhere.values()]) if towers.elsewhere else sha256


FAMILY: Final = Family(version=1, config=Config, load=load)
