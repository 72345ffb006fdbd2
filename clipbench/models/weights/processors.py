"""How an image processor of transformers prepares images, as a card says it; nothing of transformers is imported.

The processors on Pillow are the reference (transformers' `…ImageProcessorPil`): those on torchvision, which
transformers takes where it can, round resized pixels otherwise. What a processor does that no card can say is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from clipbench.cards.model import Interpolation, Preprocess
from clipbench.errors import CardError, unknown
from clipbench.models.weights.repository import Repository

PROCESSOR: Final = "processor_config.json"
IMAGE_PROCESSOR: Final = "preprocessor_config.json"

_Kind = Literal["plain", "convnext", "efficientnet"]
_CLIP: Final = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_IMAGENET: Final = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALVES: Final = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_PLAIN: Final = {"kind": "plain", "do_center_crop": False, "crop_size": None, "do_convert_rgb": None}
_CLIP_LIKE: Final = {
    **_PLAIN,
    **_CLIP,
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
}
#: what a processor does where its file does not say it; `to_square`: whether a bare number is both sides of a square
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "CLIPImageProcessor": {**_CLIP_LIKE, "to_square": False},
    "ChineseCLIPImageProcessor": {**_CLIP_LIKE, "to_square": False},
    "BitImageProcessor": {**_CLIP_LIKE, "to_square": False},
    "SiglipImageProcessor": {
        **_PLAIN,
        **_HALVES,
        "resample": 3,
        "size": {"height": 224, "width": 224},
        "to_square": False,
        "do_convert_rgb": True,
    },
    "BlipImageProcessor": {
        **_PLAIN,
        **_CLIP,
        "resample": 3,
        "size": {"height": 384, "width": 384},
        "to_square": True,
        "do_convert_rgb": True,
    },
    "ViTImageProcessor": {
        **_PLAIN,
        **_HALVES,
        "resample": 2,
        "size": {"height": 224, "width": 224},
        "to_square": True,
    },
    "DeiTImageProcessor": {
        **_PLAIN,
        **_HALVES,
        "resample": 3,
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "to_square": True,
    },
    "BeitImageProcessor": {
        **_PLAIN,
        **_HALVES,
        "resample": 3,
        "size": {"height": 224, "width": 224},
        "crop_size": {"height": 224, "width": 224},
        "to_square": True,
    },
    "ConvNextImageProcessor": {
        **_PLAIN,
        **_HALVES,
        "kind": "convnext",
        "resample": 3,
        "size": {"shortest_edge": 384},
        "to_square": False,
        "crop_pct": 224 / 256,
    },
    "EfficientNetImageProcessor": {
        **_PLAIN,
        **_HALVES,
        "kind": "efficientnet",
        "resample": 3,
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "to_square": True,
        "rescale_offset": False,
        "include_top": True,
    },
}
#: the processor of a model whose files do not name one
OF_TYPES: Final = {
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "chinese_clip": "ChineseCLIPImageProcessor",
    "altclip": "CLIPImageProcessor",
    "align": "EfficientNetImageProcessor",
    "blip": "BlipImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "beit": "BeitImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "dinov2": "BitImageProcessor",
}
_INTERPOLATIONS: Final[dict[int, Interpolation]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_FILTERS: Final = {1: "lanczos", 4: "box", 5: "hamming"}
#: what is said beside the images themselves, and of labels, batches and how a processor runs
_IDLE: Final = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "device",
        "data_format",
        "input_data_format",
        "return_tensors",
        "disable_grouping",
        "do_reduce_labels",
        "reduce_labels",
        "default_to_square",
        "image_seq_length",
        "use_fast",
        "_valid_processor_keys",
    }
)
_KNOWN: Final = frozenset(
    {
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "do_convert_rgb",
        "do_pad",
        "pad_size",
    }
)
_OWN: Final[dict[str, frozenset[str]]] = {
    "plain": frozenset(),
    "convnext": frozenset({"crop_pct"}),
    "efficientnet": frozenset({"rescale_offset", "include_top"}),
}


def preprocess_of(repository: Repository, model_type: str) -> tuple[Preprocess, str]:
    """How images are prepared for a model, and the name of the processor that says so.

    Raises:
        CardError: the processor is not known, or does what no card can say: naming the setting.
        WeightsError: its file is broken, or names code of its own.
    """
    nested = (repository.settings(PROCESSOR) or {}).get("image_processor")
    own = nested if isinstance(nested, dict) else repository.settings(IMAGE_PROCESSOR)
    if own is None:
        raise CardError(
            f"{repository.name} does not say how images are prepared for it: it has no {IMAGE_PROCESSOR}",
            hint="save its image processor beside it (processor.save_pretrained), or write a card with preprocess "
            "(clipbench show of a model like it shows one)",
        )
    stated = own.get("image_processor_type") or own.get("feature_extractor_type") or OF_TYPES.get(model_type)
    name = str(stated).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in DEFAULTS:
        raise CardError(
            f"{repository.name}: {unknown('image processor', name, DEFAULTS)}",
            hint="if its pixels are those of a known one, write a card with preprocess and family: transformers",
        )
    return translated(own, DEFAULTS[name], f"{repository.name}: {name}"), name


def translated(own: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> Preprocess:
    """What a processor's file `own` says, with the processor's `defaults`, as a card says it.

    Raises:
        CardError: it does what no card can say.
    """
    kind: _Kind = defaults["kind"]
    value: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": None,
        "pad_size": None,
    }
    value |= {**defaults, **{key: own[key] for key in own if own[key] is not None}}
    strange = sorted(
        key for key in own if key not in _KNOWN | _IDLE | _OWN[kind] and own[key] not in (None, False)
    )
    if strange:
        raise _refused(where, strange[0], own[strange[0]], "is not known")
    for key in ("resample", "rescale_factor", "crop_pct"):
        if key in value and (not isinstance(value[key], int | float) or isinstance(value[key], bool)):
            raise _refused(where, key, value[key], "is no number")
    if value["do_pad"]:
        raise _refused(where, "do_pad", True, "pads images")
    if value["resample"] not in _INTERPOLATIONS:
        raise _refused(where, "resample", value["resample"], _FILTERS.get(value["resample"], "is no filter"))
    size, crop, resize = _sides(value, kind, where)
    if min(size, crop) <= 0:
        raise _refused(where, "size", value["size"], "is no size")
    mean, std = _affine(value, where)
    converts = value["do_convert_rgb"]
    return Preprocess(
        size=size,
        crop=None if crop == size else crop,
        resize=resize,
        interpolation=_INTERPOLATIONS[value["resample"]],
        order="convert-first",
        centre="down" if resize in ("shortest", "squash-crop") else "nearest",
        transparency="on-white" if converts else "dropped",
        mean=mean,
        std=std,
    )


def _sides(
    value: Mapping[str, Any], kind: _Kind, where: str
) -> tuple[int, int, Literal["shortest", "squash", "squash-crop"]]:
    """Size, crop and resize of a card."""
    if not value["do_resize"]:
        raise _refused(where, "do_resize", False, "leaves images as large as they are")
    size = value["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size} if value["to_square"] else {"shortest_edge": size}
    if not isinstance(size, dict) or not all(
        length is None or isinstance(length, int) for length in size.values()
    ):
        raise _refused(where, "size", size, "is no square and no shortest edge")
    size = {side: length for side, length in size.items() if length is not None}
    crop = value["crop_size"] if value["do_center_crop"] else None
    if isinstance(crop, dict):
        crop = {side: length for side, length in crop.items() if length is not None}
        if set(crop) != {"height", "width"} or crop["height"] != crop["width"]:
            raise _refused(where, "crop_size", crop, "is no square")
        crop = crop["height"]
    if crop is not None and not isinstance(crop, int):
        raise _refused(where, "crop_size", crop, "is no square")
    if set(size) == {"shortest_edge"}:
        short = int(size["shortest_edge"])
        if kind == "convnext":
            if crop is not None:
                raise _refused(where, "do_center_crop", True, "crops twice")
            if short >= 384:
                return short, short, "squash"
            return int(short / value["crop_pct"]), short, "shortest"
        if crop is None:
            raise _refused(where, "do_center_crop", False, "leaves images of any ratio")
        return short, int(crop), "shortest"
    if kind != "convnext" and set(size) == {"height", "width"} and size["height"] == size["width"]:
        side = int(size["height"])
        return (side, side, "squash") if crop in (None, side) else (side, int(crop), "squash-crop")
    raise _refused(where, "size", size, "is no square and no shortest edge")


def _affine(value: Mapping[str, Any], where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`mean` and `std` of a card, whose (x / 255 − mean) / std is what the processor makes of x."""
    scale = float(value["rescale_factor"]) if value["do_rescale"] else 1.0
    offset = 1.0 if value["do_rescale"] and value.get("rescale_offset") else 0.0
    means, stds = [offset] * 3, [1.0] * 3
    given = {}
    for key in ("image_mean", "image_std"):
        found = value[key]
        found = [found] * 3 if isinstance(found, int | float) else found
        if (
            not isinstance(found, list)
            or len(found) != 3
            or not all(isinstance(v, int | float) for v in found)
        ):
            raise _refused(where, key, found, "is not one number a colour")
        given[key] = [float(v) for v in found]
    if value["do_normalize"]:
        means = [m + own for m, own in zip(means, given["image_mean"], strict=True)]
        stds = given["image_std"]
    if value.get("include_top"):
        stds = [s * own for s, own in zip(stds, given["image_std"], strict=True)]
    per = 255 * scale
    if not (math.isfinite(per) and per > 0 and min(stds) > 0):
        raise _refused(where, "rescale_factor", value["rescale_factor"], "or image_std is not above 0")
    if math.isclose(per, 1, rel_tol=1e-7):  # 1 / 255, however many digits the file has
        per = 1.0
    return tuple(m / per for m in means), tuple(s / per for s in stds)


def _refused(where: str, key: str, value: object, why: str) -> CardError:
    return CardError(
        f"{where}: its setting {key}: {value} ({why}) has no counterpart on a card, so that images would be prepared "
        "otherwise than for its training",
        hint="write a card with family: transformers and the preprocess that you choose "
        "(clipbench show of a model like it shows one)",
    )
