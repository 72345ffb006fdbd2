"""open_clip's image towers of every kind, with the settings of its architectures, reduced to a layer or so."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import open_clip
import open_clip.factory
import open_clip.model
import pytest
import timm
import torch
from torch import nn

from clipbench.models.weights.library import complete_library

EMBED_DIM = 24
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
_VIT: dict[str, Any] = {"embed_dim": 32, "num_heads": 2}
_MCI: dict[str, Any] = {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)}
_CONVNEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 64)}
_OWN: dict[str, Any] = {"width": 32, "head_width": 16, "attn_pooler_heads": 2, "attn_pooler_queries": 5}
#: open_clip's architecture → side of the images, and what is changed of its tower: of timm's model, or of `vision_cfg`
REDUCED: dict[str, tuple[int, dict[str, Any]]] = {
    "ViT-B-32": (64, _OWN | {"layers": 2}),
    "ViT-M-16-alt": (64, _OWN | {"layers": 2}),
    "ViT-L-14-CLIPA": (56, _OWN | {"layers": 2}),
    "coca_ViT-B-32": (64, _OWN | {"layers": 2}),
    "coca_base": (64, _OWN | {"layers": 2, "patch_size": 16}),
    "RN50": (64, {"layers": [1, 1, 1, 1], "width": 8}),
    "ViT-B-16-SigLIP": (64, _VIT | {"depth": 2}),
    "PE-Core-B-16": (64, _VIT | {"depth": 2, "attn_pool_num_heads": 2}),
    "EVA01-g-14": (56, _VIT | {"depth": 2}),
    "EVA02-B-16": (64, _VIT | {"depth": 2}),
    "EVA02-E-14": (56, _VIT | {"depth": 2}),
    "MobileCLIP-B": (64, {"num_heads": 12, "depth": 1}),
    "MobileCLIP2-L-14": (56, _VIT | {"depth": 2}),
    "MobileCLIP-S1": (64, _MCI),
    "MobileCLIP2-S3": (128, {"layers": (1, 1, 1, 1, 1), "embed_dims": (8, 16, 16, 32, 64)}),
    "convnext_base": (64, _CONVNEXT),
    "convnext_large_d": (64, _CONVNEXT),
    "ViTamin-S": (64, {"depth": 1}),
    "swin_base_patch4_window7_224": (
        56,
        {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)},
    ),
    "vit_medium_patch16_gap_256": (64, _VIT | {"depth": 2}),
    "vit_relpos_medium_patch16_cls_224": (64, _VIT | {"depth": 1}),
}
#: of these timm's model takes images of any size
_ANY_SIZE = ("fastvit", "convnext")


def settings(arch: str, **changes: Any) -> dict[str, Any]:
    """open_clip's settings of `arch` with the reduced tower's `vision_cfg`, and a small text tower as CLIP has it."""
    side, reduced = REDUCED[arch]
    found = deepcopy(open_clip.get_model_config(arch))
    vision = found["vision_cfg"] | {"image_size": side} | changes
    if "timm_model_name" not in vision:
        vision |= reduced
    return {"embed_dim": EMBED_DIM, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT}


def tiny(arch: str) -> str:
    """The reduced architecture's name, of which open_clip thinks that its tokenizer is CLIP's."""
    return f"tiny-{arch.replace('SigLIP', 'sigmoid')}"


def know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have timm build the models of these architectures reduced, and open_clip know them as `tiny(arch)`."""
    complete_library()
    real, names = timm.create_model, {}
    for arch, (side, reduced) in REDUCED.items():
        known = settings(arch)
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, tiny(arch), known)
        if (name := known["vision_cfg"].get("timm_model_name")) is not None:
            names[name] = reduced if name.startswith(_ANY_SIZE) else reduced | {"img_size": side}

    def create(name: str, **more: Any) -> nn.Module:
        made: nn.Module = real(name, **names.get(name, {}) | more)
        return made

    monkeypatch.setattr(timm, "create_model", create)


def visual(arch: str, **changes: Any) -> Any:
    """The image tower of `arch` as open_clip builds it, reduced, with random weights far from their start."""
    torch.manual_seed(0)
    known = settings(arch, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tower = open_clip.model._build_vision_tower(EMBED_DIM, known["vision_cfg"])
    return shaken(tower)


def shaken(module: nn.Module, by: float = 0.1) -> Any:
    """`module` in evaluation mode, no two of its layers alike, and the statistics of its norms none of a start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(by * torch.randn_like(buffer))
    return module.eval()


def images(arch: str, count: int = 3) -> torch.Tensor:
    """Noise of the size that the reduced tower takes."""
    side = REDUCED[arch][0]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
