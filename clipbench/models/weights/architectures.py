"""The classes of transformers that are models here: what is compared with what, and which feature is the `backbone`.

Nothing of transformers is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from clipbench.errors import CardError

#: what is taken of a tower's output: its own pooled one, or the state of the first token
Taken = Literal["pooler_output", "first"]


@dataclass(frozen=True)
class Side:
    """One side of a model of images and text: the names of its tower and of its head (None: the tower has it)."""

    tower: str
    taken: Taken
    head: str | None


@dataclass(frozen=True)
class Joint:
    """A class of transformers that compares images with text, by the names of its parts.

    Attributes:
        name: the class.
        backbone: what of its image tower is the `backbone`, in words.
        whole: whether texts are padded to the context length, and their padding seen: as SigLIP was trained.
        scale: the parameter of the factor on cosines: its logarithm, or, as `temperature`, one over it; None: none.
        bias: the parameter of what is added to them.
        fixed: whether images have the one size of its settings.
    """

    name: str
    backbone: str
    image: Side
    text: Side
    whole: bool = False
    scale: str | None = "logit_scale"
    bias: str | None = None
    fixed: bool = True


@dataclass(frozen=True)
class Images:
    """A class of transformers for images alone.

    Attributes:
        name: the class.
        backbone: its pooled output, in words.
        pooler: how names of weights begin that only the pooled output needs; without them in a file, the state of the
            class token is taken.
        fixed: as of `Joint`.
        heads: how names of weights begin that a file may hold beside the tower: heads, and tokens of training.
    """

    name: str
    backbone: str
    pooler: str | None = None
    heads: tuple[str, ...] = ("classifier.",)
    fixed: bool = True


Architecture = Joint | Images

_CLS: Final = "the class token after the last layer norm"
_MEAN: Final = "the mean over all places"
_POOLER: Final = "its pooler's output; of a file without a pooler, the last state of the class token"
_ATTENTION: Final = "its attention pooling's output"
_SAME: Final = ", which is the joint feature"
_BEFORE: Final = f"{_CLS}, before the projection"
_PROJECTED: Final = Side("vision_model", "pooler_output", "visual_projection")
_MASKED: Final = ("classifier.", "decoder.", "embeddings.mask_token")
_JOINT: Final = (
    Joint("CLIPModel", _BEFORE, _PROJECTED, Side("text_model", "pooler_output", "text_projection")),
    Joint("MetaClip2Model", _BEFORE, _PROJECTED, Side("text_model", "pooler_output", "text_projection")),
    Joint(
        "SiglipModel",
        _ATTENTION + _SAME,
        Side("vision_model", "pooler_output", None),
        Side("text_model", "pooler_output", None),
        whole=True,
        bias="logit_bias",
    ),
    Joint("ChineseCLIPModel", _BEFORE, _PROJECTED, Side("text_model", "first", "text_projection")),
    Joint("AltCLIPModel", _BEFORE, _PROJECTED, Side("text_model", "first", "text_projection")),
    Joint(
        "AlignModel",
        _MEAN + _SAME,
        Side("vision_model", "pooler_output", None),
        Side("text_model", "first", "text_projection"),
        scale="temperature",
        fixed=False,
    ),
    Joint(
        "BlipForImageTextRetrieval",
        _BEFORE,
        Side("vision_model", "first", "vision_proj"),
        Side("text_encoder", "first", "text_proj"),
        scale=None,
    ),
)
JOINT: Final[Mapping[str, Joint]] = {rule.name: rule for rule in _JOINT}
#: by the `model_type` of their settings
IMAGES: Final[Mapping[str, Images]] = {
    "dinov2": Images("Dinov2Model", _CLS, fixed=False),
    "dinov2_with_registers": Images("Dinov2WithRegistersModel", _CLS, fixed=False),
    "dinov3_vit": Images("DINOv3ViTModel", _CLS, fixed=False),
    "vit": Images("ViTModel", _POOLER, "pooler.", _MASKED),
    "deit": Images(
        "DeiTModel",
        _POOLER,
        "pooler.",
        (*_MASKED, "cls_classifier.", "distillation_classifier."),
    ),
    "beit": Images(
        "BeitModel",
        _POOLER,
        "pooler.",
        ("classifier.", "lm_head.", "layernorm.", "embeddings.mask_token"),
    ),
    "swin": Images("SwinModel", f"{_MEAN} after the last layer norm", heads=_MASKED, fixed=False),
    "swinv2": Images("Swinv2Model", f"{_MEAN} after the last layer norm", heads=_MASKED, fixed=False),
    "convnext": Images("ConvNextModel", f"{_MEAN}, then a layer norm", fixed=False),
    "convnextv2": Images("ConvNextV2Model", f"{_MEAN}, then a layer norm", fixed=False),
    "resnet": Images("ResNetModel", _MEAN, fixed=False),
    "clip_vision_model": Images("CLIPVisionModel", _CLS, heads=("visual_projection.",)),
    "siglip_vision_model": Images("SiglipVisionModel", _ATTENTION, heads=()),
}
_OF_NAMES: Final[Mapping[str, Architecture]] = {**JOINT, **{rule.name: rule for rule in IMAGES.values()}}
#: the class of settings that do not name one
_OF_TYPES: Final = {
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
    "chinese_clip": "ChineseCLIPModel",
    "altclip": "AltCLIPModel",
    "align": "AlignModel",
}
#: why a class that could be thought of is none here → what to take
_REFUSED: Final = {
    "siglip2": "its images keep their shape and come in many sizes (NaFlex), where a tower here sees squares of one "
    "size; SigLIP 2 of one size, such as google/siglip2-base-patch16-224, is a SiglipModel",
}


def backbone_is(name: str) -> str | None:
    """What the `backbone` of the class `name` is, in words; None of one that is not known."""
    found = _OF_NAMES.get(name)
    return None if found is None else found.backbone


def architecture_of(settings: Mapping[str, Any], name: str) -> Architecture:
    """The class of a model by its `config.json`; `name` is the model's, for messages.

    Raises:
        CardError: it is none of those known.
    """
    kind, stated = str(settings.get("model_type")), settings.get("architectures") or []
    if why := _REFUSED.get(kind):
        raise CardError(f"{name}: model_type {kind}: {why}")
    own = str(stated[0]) if isinstance(stated, list) and stated else _OF_TYPES.get(kind, "")
    tower = settings.get("vision_config", settings)
    if isinstance(tower, Mapping) and tower.get("vision_use_head") is False:
        raise CardError(
            f"{name}: its image tower has no pooled output (vision_use_head: false)",
            hint="choose a checkpoint with its pooling head",
        )
    if own in JOINT:
        return JOINT[own]
    if kind in IMAGES:
        return IMAGES[kind]
    towers = ", ".join(sorted(IMAGES))
    raise CardError(
        f"{name}: its class {own or kind} is not known; known are {', '.join(JOINT)}, and for images alone the model "
        f"types {towers}",
        hint="choose a model of one of these, or write a model family (docs/architecture.md, Adding something)",
    )
