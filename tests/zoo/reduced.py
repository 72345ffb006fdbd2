"""Architectures of open_clip made small: as deep as one or two blocks, and as narrow as their libraries let them be."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import huggingface_hub.constants
import pytest
import torch

from clipbench.models.weights.library import complete_library
from zoo import standins

WIDTH: Final = 64
_DEEP: Final = {"depth": 2, "embed_dim": WIDTH, "num_heads": 2}
#: of timm, by how names begin; the longest counts
_TIMM: Final[dict[str, dict[str, Any]]] = {
    "eva": _DEEP,
    "vit_": _DEEP,
    "vit_base_mci": {"depth": 1},  # its stem has a width of its own
    "vitamin": _DEEP,
    "fastvit_mci": {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)},
    "fastvit_mci3": {"layers": (1, 1, 1, 1, 1), "embed_dims": (32, 32, 32, 64, 64)},
    "fastvit_mci4": {"layers": (1, 1, 1, 1, 1), "embed_dims": (32, 32, 32, 64, 64)},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 48)},
    "swin": {"depths": (1, 1, 2, 1), "embed_dim": 32, "num_heads": (1, 2, 4, 8)},
}


def config(arch: str) -> dict[str, Any]:
    """The settings of `arch` made small; how it is built, and what it does to images and texts, stay as they are."""
    found: dict[str, Any] = copy.deepcopy(complete_library().get_model_config(arch))
    vision, text = found["vision_cfg"], found["text_cfg"]
    found["embed_dim"] = WIDTH
    if isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 1, 1], "width": 16}
    elif "timm_model_name" not in vision:
        vision |= {"layers": 2, "width": WIDTH, "head_width": 32}
    if "hf_model_name" not in text:
        text |= {"layers": 2, "width": WIDTH, "heads": 2}
        if named := text.get("hf_tokenizer_name"):
            text["vocab_size"] = len(standins.vocabulary(named))
    if "multimodal_cfg" in found:
        found["multimodal_cfg"] |= {"layers": 1, "width": WIDTH, "heads": 2}
        if "hf_model_name" in text:
            found["multimodal_cfg"]["width"] = 32
    return found


@contextlib.contextmanager
def shrunk(arch: str, folder: Path) -> Iterator[None]:
    """Meanwhile `arch` is a small one, and what it wants from the hub lies in a cache below `folder`."""
    import timm

    library = complete_library()
    found = config(arch)
    for repository in {found["text_cfg"].get(f"hf_{part}_name") for part in ("model", "tokenizer")} - {None}:
        standins.write(repository, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(library.factory._MODEL_CONFIGS, arch, found)
        patch.setattr(timm, "create_model", _small(timm.create_model))
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
        yield


def _small(create: Callable[..., Any]) -> Callable[..., Any]:
    from timm.models.vitamin import VitCfg, VitConvCfg

    stem = VitCfg(
        embed_dim=(32, 32, WIDTH),
        depths=(1, 1, 1),
        stem_width=32,
        conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
        head_type="1d",
    )

    def small(name: str, **asked: Any) -> Any:
        kinds = [kind for kind in _TIMM if name.startswith(kind)]
        stems = {"embed_cfg": stem} if name.startswith("vitamin") else {}
        return create(name, **asked, **_TIMM[max(kinds, key=len)], **stems)

    return small


def random(arch: str) -> Any:
    """open_clip's own model `arch`, its weights and BatchNorm's statistics random, no two of its layers alike."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = complete_library().create_model(arch, load_weights=False, pretrained_text=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model
