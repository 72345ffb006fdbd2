"""What open_clip knows of weights: its architectures by the sizes of their tensors, its pretrained tags, how those
prepare images, and the hashes of published files."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from clipbench.cards.model import Preprocess, Texts
from clipbench.errors import CardError, WeightsError, first_line, unknown
from clipbench.models.weights.library import FOLDER_PREFIX, HUB_PREFIX, SETTINGS, library
from clipbench.models.weights.reading import count_numbered

if TYPE_CHECKING:
    import torch

_RESIZES: Final = ("shortest", "longest", "squash")
_INTERPOLATIONS: Final = ("bicubic", "bilinear", "random")


def known_arch(arch: str) -> None:
    """Raise CardError unless open_clip has this architecture, or it is described in its form (see `settings_of`)."""
    open_clip = library()

    if arch.startswith((HUB_PREFIX, FOLDER_PREFIX)):
        settings_of(arch)
    elif arch not in open_clip.list_models():
        known, listing = open_clip.list_models(), "open_clip.list_models()"
        raise CardError(unknown("open_clip architecture", arch, known, listing=listing))


def settings_of(arch: str) -> dict[str, Any]:
    """What a repository of the hub or a folder says of its model: `model_cfg`, and perhaps `preprocess_cfg`.

    Raises:
        CardError: it says nothing in open_clip's form.
        WeightsError: the hub cannot be reached and the cache has nothing.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    path = settings_file(arch)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        model = found["model_cfg"]
        parts = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
        strange = [
            f"{part}.{key}"
            for part, fields in parts.items()
            for key in dict(model[part]).keys() - fields.__dataclass_fields__.keys()
        ]
        lacks = not isinstance(model["embed_dim"], int)
        if not isinstance(found.get("preprocess_cfg") or {}, dict):
            raise TypeError("preprocess_cfg")
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path} is no JSON: {first_line(error)}") from None
    except (LookupError, TypeError, AttributeError) as error:
        raise CardError(
            f"{path} is not in open_clip's form: {first_line(error)}",
            hint="it holds model_cfg with embed_dim, vision_cfg and text_cfg, and preprocess_cfg",
        ) from None
    if strange or lacks:
        what = (
            f"unknown to this open_clip: {', '.join(sorted(strange))}"
            if strange
            else "embed_dim is no number"
        )
        raise CardError(f"{path}: {what}", hint="was it written by a newer open_clip?" if strange else None)
    return dict(found)


def settings_file(arch: str) -> Path:
    """The open_clip_config.json of a repository of the hub, downloaded where it is missing, or of a folder.

    Raises:
        CardError: there is none.
        WeightsError: the hub cannot be reached and the cache has nothing.
    """
    if arch.startswith(FOLDER_PREFIX):
        folder = Path(arch.removeprefix(FOLDER_PREFIX))
        if not folder.is_dir():
            raise CardError(f"there is no folder {folder}", hint=f"write {FOLDER_PREFIX}<folder>")
        if not (folder / SETTINGS).is_file():
            raise CardError(
                f"{folder} has no {SETTINGS}, which says what the model is: open_clip's own form",
                hint="a checkpoint alone is named with its architecture: open_clip:<arch>@PATH",
            )
        return folder / SETTINGS
    from huggingface_hub import hf_hub_download

    with from_hub(arch):
        return Path(hf_hub_download(arch.removeprefix(HUB_PREFIX), SETTINGS))


@contextlib.contextmanager
def from_hub(arch: str) -> Iterator[None]:
    """Raise what the hub's client raises as an error of ours."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{arch} is not in the local cache and cannot be fetched ({first_line(error)})",
            hint="with network, run this again; or bring the file and use --model open_clip:<arch>@PATH",
        ) from None
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
        raise CardError(
            f"{arch}: {first_line(error)}",
            hint=f"a repository with {SETTINGS} is needed: open_clip's own form",
        ) from None


def texts_of(arch: str) -> Texts:
    """What open_clip's tokenizer of `arch` does to texts."""
    return texts_of_settings(library().get_model_config(arch))


def texts_of_settings(settings: Mapping[str, Any], stated: Texts | None = None) -> Texts:
    """`texts_of` an architecture with these settings, but for what is stated.

    Raises:
        CardError: its tokenizer draws tokens at random, as in training.
    """
    text = settings["text_cfg"]
    named, asked = bool(text.get("hf_tokenizer_name")), text.get("tokenizer_kwargs") or {}
    if asked.get("reduction_mask"):
        raise CardError(
            f"its tokenizer chooses tokens of long texts ({asked['reduction_mask']}), which is of training",
            hint="take tokenizer_kwargs.reduction_mask out of its settings",
        )
    own = {
        "clean": asked.get("clean", "whitespace" if named else "lower"),
        "context_length": text.get("context_length", 77),
        "strip_sep_token": asked.get("strip_sep_token", False) if named else None,
    }
    return Texts(**own | {name: value for name, value in stated or () if value is not None})


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


def preprocess_of(arch: str, described: Mapping[str, Any]) -> Preprocess:
    """open_clip's evaluation transform of `arch`, with what its pretrained tag or its settings say about it.

    Its size is the tower's, whatever they say, as in open_clip.

    Raises:
        CardError: images that are not square, or a way that open_clip does not know.
    """
    open_clip = library()

    size = open_clip.get_model_config(arch)["vision_cfg"].get("image_size", 224)
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if len(set(sides)) > 1:
        raise CardError(
            f"{arch} takes images of {' × '.join(map(str, sides))} px; only square images are supported",
            hint="choose a model for square images",
        )
    said = {name: value for name, value in described.items() if value is not None}
    interpolation = said.get("interpolation", "bicubic")
    found = {
        "size": sides[0],
        "resize": said.get("resize_mode", "shortest"),
        "interpolation": "bicubic" if interpolation == "random" else interpolation,  # random in training only
        "mean": said.get("mean", open_clip.OPENAI_DATASET_MEAN),
        "std": said.get("std", open_clip.OPENAI_DATASET_STD),
    }
    for name, allowed in (("resize", _RESIZES), ("interpolation", _INTERPOLATIONS)):
        if found[name] not in allowed:
            raise CardError(
                f"{name} {found[name]!r} of {arch} is not supported; allowed: {', '.join(allowed)}"
            )
    for name in ("mean", "std"):
        if not _three_numbers(found[name]):
            raise CardError(f"the {name} of {arch} is {found[name]!r}, not three numbers, one a channel")
        found[name] = tuple(map(float, found[name]))
    if said.get("mode", "RGB") != "RGB":
        raise CardError(f"{arch} takes images in mode {said['mode']!r}; only RGB is supported")
    if found["resize"] == "longest":
        found["fill"] = said.get("fill_color", 0)
    try:
        return Preprocess(**found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CardError(f"images of {arch} cannot be prepared: {where}: {first['msg']}") from None


def _three_numbers(value: object) -> bool:
    numbers = isinstance(value, list | tuple) and all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in value
    )
    return numbers and len(value) == 3  # type: ignore[arg-type]


def matching_archs(state: Mapping[str, torch.Tensor]) -> list[str]:
    """open_clip's architectures of OpenAI's form whose towers have the sizes of `state` (`visual.*`, text unprefixed).

    Widths, depths, patches and positions count, and whether it is a CoCa; the joint width, the vocabulary and the
    activation do not.
    """
    open_clip = library()

    sizes = _sizes(state)
    names = [name for name in open_clip.list_models() if not name.endswith("-quickgelu")]
    return [name for name in names if sizes is not None and _config_sizes(name) == sizes]


def _sizes(state: Mapping[str, torch.Tensor]) -> tuple[object, ...] | None:
    """(vision width, layers, patch, image side, text width, layers, positions, is a CoCa), or None."""
    try:
        text_context, text_width = state["positional_embedding"].shape
        text_layers = count_numbered(state, r"transformer\.resblocks\.(\d+)\.")
        text = (text_width, text_layers, text_context, any(key.startswith("text_decoder.") for key in state))
        stem = state["visual.conv1.weight"]
        if "visual.class_embedding" in state:
            grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
            patch = stem.shape[2]
            layers = count_numbered(state, r"visual\.transformer\.resblocks\.(\d+)\.")
            return (len(stem), layers, patch, grid * patch, *text)
        grid = math.isqrt(len(state["visual.attnpool.positional_embedding"]) - 1)
        stages = tuple(count_numbered(state, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
        return (2 * len(stem), stages, None, 32 * grid, *text)
    except (KeyError, ValueError):
        return None


def _config_sizes(arch: str) -> tuple[object, ...] | None:
    """`_sizes` of one of open_clip's architectures, or None where it is not of OpenAI's form."""
    open_clip = library()
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    settings = open_clip.get_model_config(arch)
    coca = "multimodal_cfg" in settings
    if (settings.get("custom_text") and not coca) or any(
        k.startswith(("timm_", "hf_")) for part in ("vision_cfg", "text_cfg") for k in settings[part]
    ):
        return None
    vision, text = CLIPVisionCfg(**settings["vision_cfg"]), CLIPTextCfg(**settings["text_cfg"])
    side = vision.image_size
    return (
        vision.width,
        tuple(vision.layers) if isinstance(vision.layers, list) else vision.layers,
        None if isinstance(vision.layers, list) else vision.patch_size,
        side,
        text.width,
        text.layers,
        text.context_length + text.embed_cls,
        coca,
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
