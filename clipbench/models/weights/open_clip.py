"""What open_clip knows of weights: its architectures by the sizes of their tensors, its pretrained tags, how those
prepare images, and the hashes of published files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipbench.cards.model import Preprocess
from clipbench.errors import CardError, WeightsError, unknown
from clipbench.models.weights.library import library
from clipbench.models.weights.reading import count_numbered
from clipbench.utils.stages import stage

if TYPE_CHECKING:
    import torch

#: what an architecture's name begins with that a repository of the model hub describes
HUB_PREFIX: Final = "hf-hub:"


def known_arch(arch: str) -> None:
    """Raise CardError unless open_clip has this architecture."""
    with stage("import"):
        open_clip = library()

    if not arch.startswith(HUB_PREFIX) and arch not in open_clip.list_models():
        known, listing = open_clip.list_models(), "open_clip.list_models()"
        raise CardError(unknown("open_clip architecture", arch, known, listing=listing))


def tag_settings(arch: str, tag: str) -> dict[str, Any]:
    open_clip = library()

    described: dict[str, Any] = open_clip.get_pretrained_cfg(arch, tag)
    if not described:
        known = open_clip.list_pretrained_tags_by_model(arch)
        raise CardError(unknown(f"open_clip tag of {arch}", tag, known))
    return described


def published(arch: str) -> dict[Preprocess, list[str]]:
    """open_clip's pretrained tags of `arch`, by how they prepare images."""
    open_clip = library()

    ways: dict[Preprocess, list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(arch):
        ways.setdefault(preprocess_of(arch, tag_settings(arch, tag)), []).append(tag)
    return ways


@cache
def known_files() -> dict[str, tuple[str, dict[str, Any]]]:
    """First 8 hex digits of sha256 → (arch@tag, settings), for every file whose hash open_clip's registry states."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    known = {}
    for arch, tag in list_pretrained():
        described = get_pretrained_cfg(arch, tag)
        url = described.get("url", "")
        if "openaipublic" in url:
            known[url.split("/")[-2][:8]] = (f"{arch}@{tag}", described)
        elif "mlfoundations" in url:
            known[Path(url).stem.split("-")[-1]] = (f"{arch}@{tag}", described)
    return known


def preprocess_of(arch: str, described: dict[str, Any]) -> Preprocess:
    """open_clip's evaluation transform of `arch`, with what its pretrained tag says about it."""
    open_clip = library()

    size = described.get("size") or open_clip.get_model_config(arch)["vision_cfg"].get("image_size", 224)
    sides = list(size)[-2:] if isinstance(size, list | tuple) else [size]
    if len(set(sides)) > 1:
        raise CardError(
            f"{arch} takes images of {' × '.join(map(str, sides))} px; only square images are supported",
            hint="choose a model for square images",
        )
    side = int(sides[-1])
    mode = described.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise CardError(
            f"open_clip's resize mode {mode!r} of {arch} is not supported; allowed: shortest, squash"
        )
    return Preprocess(
        size=side,
        resize=mode,
        interpolation=described.get("interpolation", "bicubic"),
        mean=tuple(described.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(described.get("std", open_clip.OPENAI_DATASET_STD)),
    )


def matching_archs(state: Mapping[str, torch.Tensor]) -> list[str]:
    """open_clip's architectures of OpenAI's form whose towers have the sizes of `state` (`visual.*`, text unprefixed).

    Widths, depths, patches and positions count; the joint width, the vocabulary and the activation do not.
    """
    open_clip = library()

    sizes = _sizes(state)
    names = [name for name in open_clip.list_models() if not name.endswith("-quickgelu")]
    return [name for name in names if sizes is not None and _config_sizes(name) == sizes]


def _sizes(state: Mapping[str, torch.Tensor]) -> tuple[object, ...] | None:
    """(vision width, layers, patch, image side, text width, layers, context), or None."""
    try:
        text_context, text_width = state["positional_embedding"].shape
        text_layers = count_numbered(state, r"transformer\.resblocks\.(\d+)\.")
        stem = state["visual.conv1.weight"]
        if "visual.class_embedding" in state:
            grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
            patch = stem.shape[2]
            layers = count_numbered(state, r"visual\.transformer\.resblocks\.(\d+)\.")
            return (len(stem), layers, patch, grid * patch, text_width, text_layers, text_context)
        grid = math.isqrt(len(state["visual.attnpool.positional_embedding"]) - 1)
        stages = tuple(count_numbered(state, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
        return (2 * len(stem), stages, None, 32 * grid, text_width, text_layers, text_context)
    except (KeyError, ValueError):
        return None


def _config_sizes(arch: str) -> tuple[object, ...] | None:
    """`_sizes` of one of open_clip's architectures, or None where it is not of OpenAI's form."""
    open_clip = library()

    settings = open_clip.get_model_config(arch)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    if settings.get("custom_text") or any(k.startswith(("timm_", "hf_")) for k in (*vision, *text)):
        return None
    layers = vision["layers"]
    side = vision.get("image_size", 224)
    return (
        vision["width"],
        tuple(layers) if isinstance(layers, list) else layers,
        None if isinstance(layers, list) else vision["patch_size"],
        side,
        text["width"],
        text["layers"],
        text.get("context_length", 77),
    )


def check_side(arch: str, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise WeightsError where a file differs from its architecture in the size of images alone."""
    found, wanted = _sizes(state), _config_sizes(arch)
    if found is None or wanted is None or found[3] == wanted[3]:
        return
    if (*found[:3], *found[4:]) == (*wanted[:3], *wanted[4:]):
        others = matching_archs(state)
        raise WeightsError(
            f"{path} was trained on images of {found[3]} px, {arch} takes {wanted[3]} px; position embeddings are not "
            "resized unasked",
            hint=f"name the architecture of that size: {', '.join(others)}"
            if others
            else "open_clip has none; a repository in its form for the hub (hf-hub:<owner>/<repo>) says the size; or a "
            "ViT's are resized by a card that says config: {resize_positions: true}",
        )


def joint_sizes(arch: str) -> tuple[int, int]:
    open_clip = library()

    settings = open_clip.get_model_config(arch)
    return settings["embed_dim"], settings["text_cfg"].get("vocab_size", 49408)
