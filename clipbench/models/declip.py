"""The models of DeCLIP's repository: CLIP, SLIP, FILIP, DeCLIP and DeFILIP as `Sense-GVT/DeCLIP` released them.

Their towers are OpenAI's, with these differences (official code at 5d99a85), each of which scores a model
wrongly and silently where it is missed: the text projection has a bias, the vocabulary has one token more, the
images are normalised with ImageNet's mean and std, and FILIP is compared token by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.errors import CardError, WeightsError
from clipbench.models.adapter import Adapter, Family, ModelEntry
from clipbench.models.clip import ClipAdapter
from clipbench.models.towers.open_clip import described_backbone, text_tower
from clipbench.models.weights.library import architecture, library
from clipbench.models.weights.open_clip import known_arch, matching_archs
from clipbench.models.weights.reading import load_strict, read_state_dict, without_values
from clipbench.models.weights.resolve import resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

    State = Mapping[str, torch.Tensor]

Variant = Literal["clip", "slip", "filip", "declip", "defilip"]

#: `ONECROP` in the official code, for every model and test set
PREPROCESS: Final = Preprocess(
    size=256,
    crop=224,
    resize="shortest",
    interpolation="bilinear",
    order="convert-first",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
_SIMSIAM: Final = (
    *(f"{head}{of}." for head in ("projector", "predictor") for of in ("", "_text", "_nn_text")),
    "text_label_predictor.",
)
#: heads that only training uses, some of them in no published config, by variant: the drop-list
_HEADS: Final[dict[str, tuple[str, ...]]] = {
    "clip": (),
    "slip": ("predictor_sim.",),
    "filip": ("text_label_predictor.",),
    "declip": _SIMSIAM,
    "defilip": _SIMSIAM,
}
_UNUSED: Final = "visual.fc."  # of the ResNets; the official code reads it only at sizes other than 224
_TEXT: Final = {"slip": "text_encoder"}  # everybody else: encode_text
_TOKENS: Final = ("filip", "defilip")
_MASK_TOKEN: Final = 49406  # <|mask|>, inserted before the start and end tokens
_VOCABULARY: Final = 49409
_TOKEN_WIDTH: Final = 256


class Config(Strict):
    """What a checkpoint is. The file's own keys must say the same.

    Attributes:
        arch: open_clip's name of the towers: ViT-B-32 or RN50 for all that were released.
        embed_dim: width of the joint space; None: whatever the file has.
        proj_bias: whether the text projection has a bias, as in all that were released.
        image_only: the file holds the image tower alone.
    """

    variant: Variant
    arch: str
    embed_dim: int | None = None
    proj_bias: bool = True
    image_only: bool = False


def load(model: ModelEntry) -> Adapter:
    """The adapter of a `family: declip` card; every key of the file is used or on the drop-list.

    Raises:
        CardError: an architecture that is not known, or preprocessing that is not the official one.
        WeightsError: the file is missing, corrupt, of another variant than the card says, or does not fit.
    """
    config = Config.model_validate(model.card.config)
    known_arch(config.arch)
    _check_preprocess(model)
    path, digest = resolve(model)
    state = _plain(read_state_dict(path))
    found_variant = _variant(state)
    _agree(path, config, state)
    width = _embed_dim(state) or config.embed_dim
    if width is None:
        raise WeightsError(f"{path}: no projection of the image tower (visual.proj, visual.attnpool.c_proj)")
    towers = _towers(config, width)
    _without_mask_token(path, state, config)
    _fill_counters(state, towers)
    dropped = (_UNUSED, *(() if config.image_only else _HEADS[found_variant]))
    left_out = load_strict(towers, state, path, dropped=dropped)
    adapter = DeclipAdapter(model.card, towers, config, digest)
    adapter.files, adapter.left_out = (path,), left_out
    return adapter


def detect(path: Path, state: State) -> ModelCard | None:
    """The card of a checkpoint file of the official layout; None for other files.

    An image tower alone is not recognised: cut out of CLIP it would look the same.

    Raises:
        WeightsError: the layout is this one, the towers' sizes are those of no architecture that is known.
    """
    state = _plain(dict(state))
    prefix = next(
        (p for p in ("encode_text.", "text_encoder.") if f"{p}token_embedding.weight" in state), None
    )
    if prefix is None:
        return None
    variant = _variant(state)
    renamed = {k.removeprefix(prefix): v for k, v in state.items()}
    archs = matching_archs(renamed)
    if len(archs) != 1:
        raise WeightsError(
            f"{path} has the layout of DeCLIP's repository (keys {prefix}), but its towers' sizes are those of "
            f"{' and '.join(archs) or 'no architecture that open_clip knows'}",
            hint="write a model card with family: declip that names the architecture",
        )
    bias = f"{prefix}text_projection.bias" in state
    keys = ", ".join(k for k in (prefix, *_marks(state)) if k)
    why = f"keys {keys}; {len(state[f'{prefix}token_embedding.weight']):,} tokens"
    config = Config(variant=variant, arch=archs[0], embed_dim=_embed_dim(state), proj_bias=bias)
    return ModelCard(
        title=f"{config.variant} {config.arch}, {path.name}",
        family="declip",
        config=config.canonical(),
        preprocess=PREPROCESS,
        weights=Weights(file=str(path)),
        notes=f"detected: {variant} of DeCLIP's repository, {config.arch}, {config.embed_dim}-d: {why}",
    )


class DeclipAdapter(ClipAdapter):
    """See `Adapter`. `backbone` is what the reference recommends for probes: `ln_post(CLS)` of a ViT, the
    attention pool's output of a ResNet, the mean patch token of FILIP, whose global head is untrained."""

    def __init__(self, card: ModelCard, module: Any, config: Config, weights_sha256: str) -> None:
        super().__init__(card, module, config.arch, weights_sha256)
        self._variant = config.variant
        if config.image_only:
            self.text_spaces = ()
        elif config.variant in _TOKENS:
            self.token_width = _TOKEN_WIDTH
            self.image_spaces = ("joint", "tokens", "backbone")
            self.text_spaces = ("joint", "tokens")
        if config.variant == "filip":  # the weight of its global loss was 0
            self.compared = "tokens"
            self.image_spaces = ("tokens", "backbone")
            self.text_spaces = ("tokens",)
            self.logit_scale = float(module.logit_scale_dense.exp().reshape(()))

    def image_tower(self, space: str) -> nn.Module:
        """See `Adapter`. `tokens`: the patch tokens (ResNet: the last map's positions) after `image_mapping`."""
        self.require_space(space)
        if space == "tokens":
            return _patches(self.module.visual, self.module.image_mapping)
        if space == "backbone" and self._variant == "filip":
            return _patches(self.module.visual, None)
        return super().image_tower(space)

    def text_tower(self, space: str = "joint") -> nn.Module:
        """See `Adapter`. `tokens`: all positions, padding included, after `text_mapping`, as FILIP scores them."""
        self.require_text(space)
        text = getattr(self.module, _TEXT.get(self._variant, "encode_text"))
        if space == "joint":
            return text_tower(text, self.context_length)
        return text_tower(text, self.context_length, tokens=self.module.text_mapping)


def backbone_is(card: ModelCard) -> str | None:
    """See `Family`."""
    config = Config.model_validate(card.config)
    settings = architecture(config.arch)
    if settings is None:
        return None
    if config.variant == "filip":
        convolutional = isinstance(settings["vision_cfg"]["layers"], list)
        return (
            f"mean of the {'last map' if convolutional else 'patch tokens'}, before the projection of tokens"
        )
    return described_backbone(settings["vision_cfg"])


# ------------------------------------------------------------------- the file


def _plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` with the names of a full checkpoint: a bare image tower gets its `visual.` back."""
    if any(k.startswith(("visual.", "encode_text.", "text_encoder.")) for k in state):
        return state
    return {f"visual.{k}": v for k, v in state.items()}


def _marks(state: State) -> list[str]:
    prefixes = ("image_mapping.", "projector.", "predictor_sim.")
    return [p for p in prefixes if any(k.startswith(p) for k in state)]


def _variant(state: State) -> Variant:
    """The variant by the modules that only it has."""
    marks = _marks(state)
    if any(k.startswith("text_encoder.") for k in state):
        return "slip"
    if "image_mapping." in marks:
        return "defilip" if "projector." in marks else "filip"
    return "declip" if "projector." in marks else "clip"


def _embed_dim(state: State) -> int | None:
    if (projection := state.get("visual.proj")) is not None and projection.ndim == 2:
        return int(projection.shape[1])
    if (projection := state.get("visual.attnpool.c_proj.weight")) is not None:
        return int(projection.shape[0])
    return None


def _agree(path: Path, config: Config, state: State) -> None:
    """Raise WeightsError where the file is another checkpoint than the card says."""
    text = any(k.startswith(("encode_text.", "text_encoder.")) for k in state)
    if config.image_only and text:
        raise WeightsError(
            f"{path} holds a text tower, the card says image_only: it is a full checkpoint",
            hint="use the card without -visual, which scores zero-shot too",
        )
    if not config.image_only:
        if not text:
            raise WeightsError(
                f"{path} has no text tower (keys encode_text. or text_encoder.)",
                hint="for a visual-only file use a card with image_only: true, such as declip-r50-visual",
            )
        if (found := _variant(state)) != config.variant:
            marks = ", ".join(_marks(state)) or "no training heads"
            raise WeightsError(
                f"{path} is a {found} checkpoint ({marks}), the card says variant: {config.variant}",
                hint=f"use a card of the variant {found}; there are: {', '.join(get_args(Variant))}",
            )
        name = f"{_TEXT.get(config.variant, 'encode_text')}.text_projection"
        if f"{name}.weight" in state and (f"{name}.bias" in state) != config.proj_bias:
            has, says = ("no ", "true") if config.proj_bias else ("a ", "false")
            raise WeightsError(
                f"{path}: the text projection has {has}bias ({name}.bias), the card says proj_bias: {says}",
                hint="all released checkpoints have one; without it every score moves",
            )
    width = _embed_dim(state)
    if width is not None and config.embed_dim is not None and width != config.embed_dim:
        raise WeightsError(
            f"{path}: the joint space is {width} wide, the card says embed_dim: {config.embed_dim}",
            hint="the file is another checkpoint of the family; take the card that belongs to it",
        )


def _without_mask_token(path: Path, state: dict[str, torch.Tensor], config: Config) -> None:
    """Delete the row of <|mask|>, so that OpenAI's token ids mean what they mean (exact for inference)."""
    import torch

    name = f"{_TEXT.get(config.variant, 'encode_text')}.token_embedding.weight"
    if config.image_only or name not in state:
        return
    rows = state[name]
    if len(rows) != _VOCABULARY:
        raise WeightsError(
            f"{path}: {name} has {len(rows):,} tokens; this family has {_VOCABULARY:,}: OpenAI's 49,408 and <|mask|>",
            hint="with other ids every text would be read wrongly; for OpenAI's own layout use family: clip",
        )
    state[name] = torch.cat([rows[:_MASK_TOKEN], rows[_MASK_TOKEN + 1 :]])


def _fill_counters(state: dict[str, torch.Tensor], towers: nn.Module) -> None:
    """Batch norms' counters, which do not matter here, may be missing: the private SyncBN kept none."""
    import torch

    for name in towers.state_dict():
        if name.endswith(".num_batches_tracked"):
            state.setdefault(name, torch.tensor(0))


def _check_preprocess(model: ModelEntry) -> None:
    if model.card.preprocess != PREPROCESS:
        given, official = model.card.preprocess.canonical(), PREPROCESS.canonical()
        key = next(k for k in official if given[k] != official[k])
        raise CardError(
            f"{model.id}: preprocess.{key} is {given[key]}; the models of this family were trained and published "
            f"with {official[key]}, and others lower every score quietly",
            hint="take preprocess from the card declip-r50 (base: declip-r50)",
        )


# ----------------------------------------------------------------- the towers


def _towers(config: Config, embed_dim: int) -> nn.Module:
    """The modules with the official names, on the meta device but for the causal mask."""
    open_clip = library()
    import torch
    from torch import nn

    settings = open_clip.get_model_config(config.arch)
    settings["text_cfg"]["proj_bias"] = True  # without one, open_clip's projection is a bare matrix
    with without_values():
        both = open_clip.CustomTextCLIP(
            embed_dim, settings["vision_cfg"], settings["text_cfg"], quick_gelu=True
        )
        towers = nn.Module()
        towers.visual = both.visual
        if config.image_only:
            return towers
        if not config.proj_bias:
            both.text.text_projection.bias = None
        towers.logit_scale = nn.Parameter(torch.empty(1))
        towers.add_module(_TEXT.get(config.variant, "encode_text"), both.text)
        if config.variant in _TOKENS:
            towers.image_mapping = nn.Linear(_map_width(settings["vision_cfg"]), _TOKEN_WIDTH)
            towers.text_mapping = nn.Linear(settings["text_cfg"]["width"], _TOKEN_WIDTH)
            towers.logit_scale_dense = nn.Parameter(torch.empty(()))
    both.text.attn_mask = torch.full((both.text.context_length,) * 2, float("-inf")).triu_(1)
    return towers


def _map_width(vision: dict[str, Any]) -> int:
    """Channels of the patch tokens; of the last map of a ResNet."""
    width = int(vision["width"])
    return 32 * width if isinstance(vision["layers"], list) else width


def _patches(visual: Any, mapping: nn.Module | None) -> nn.Module:
    """Images → patch tokens before `ln_post`, mapped and flattened [B, T × 256]; their mean [B, D] without mapping."""
    import torch
    from open_clip.modified_resnet import ModifiedResNet

    class Patches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.mapping = visual, mapping
            self.convolutional = isinstance(visual, ModifiedResNet)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.convolutional:
                maps = self.visual.stem(images)
                for layer in ("layer1", "layer2", "layer3", "layer4"):
                    maps = getattr(self.visual, layer)(maps)
                tokens = maps.flatten(2).transpose(1, 2)
            else:
                tokens = self.visual.transformer(self.visual._embeds(images))[:, 1:]
            return cast(
                "torch.Tensor", tokens.mean(1) if self.mapping is None else self.mapping(tokens).flatten(1)
            )

    return Patches()


FAMILY: Final = Family(version=1, config=Config, load=load, detect=detect, backbone_is=backbone_is)
