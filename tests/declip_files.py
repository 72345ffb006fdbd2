"""Checkpoints in the layout of DeCLIP's repository, of small towers that open_clip is told of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip.factory
import pytest
import torch
from torch import Tensor

from clipbench.cards.model import ModelCard, Weights
from clipbench.models import declip
from clipbench.models.adapter import ModelEntry

State = dict[str, Tensor]

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT: dict[str, Any] = {"image_size": 224, "layers": 2, "width": 128, "patch_size": 32}
RN: dict[str, Any] = {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
ARCHS = {"small-vit": VIT, "small-rn": RN}


def know_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell open_clip of the small architectures."""
    for name, vision in ARCHS.items():
        config = {"embed_dim": 1, "vision_cfg": vision, "text_cfg": TEXT}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int, batch: bool = False) -> dict[str, tuple[int, ...]]:
    names = ["weight", "bias", *(["running_mean", "running_var"] if batch else [])]
    counter: dict[str, tuple[int, ...]] = {f"{name}.num_batches_tracked": ()} if batch else {}
    return {f"{name}.{n}": (width,) for n in names} | counter


def transformer(prefix: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        block = f"{prefix}transformer.resblocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        shapes |= linear(f"{block}.attn.out_proj", width, width) | norm(f"{block}.ln_1", width)
        shapes |= linear(f"{block}.mlp.c_fc", width, 4 * width) | linear(
            f"{block}.mlp.c_proj", 4 * width, width
        )
        shapes |= norm(f"{block}.ln_2", width)
    return shapes


def vit(width: int, layers: int, embed_dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (50, width),
        "visual.proj": (width, embed_dim),
        "visual.conv1.weight": (width, 3, 32, 32),
    }
    shapes |= norm("visual.ln_pre", width) | norm("visual.ln_post", width)
    return shapes | transformer("visual.", width, layers)


def resnet(width: int, layers: list[int], embed_dim: int) -> dict[str, tuple[int, ...]]:
    half = width // 2
    shapes: dict[str, tuple[int, ...]] = {"visual.conv1.weight": (half, 3, 3, 3)}
    shapes |= {"visual.conv2.weight": (half, half, 3, 3), "visual.conv3.weight": (width, half, 3, 3)}
    for i, channels in ((1, half), (2, half), (3, width)):
        shapes |= norm(f"visual.bn{i}", channels, batch=True)
    inputs = width
    for stage, blocks in enumerate(layers):
        planes = width << stage
        for j in range(blocks):
            block = f"visual.layer{stage + 1}.{j}"
            convs = ((planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1))
            for k, (out, into, side) in enumerate(convs, 1):
                shapes[f"{block}.conv{k}.weight"] = (out, into, side, side)
                shapes |= norm(f"{block}.bn{k}", out, batch=True)
            if j == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
                shapes |= norm(f"{block}.downsample.1", 4 * planes, batch=True)
            inputs = 4 * planes
    wide = 32 * width
    shapes["visual.attnpool.positional_embedding"] = (50, wide)
    for name, out in (("q", wide), ("k", wide), ("v", wide), ("c", embed_dim)):
        shapes |= linear(f"visual.attnpool.{name}_proj", wide, out)
    return shapes | linear("visual.fc", wide, 1024)


def official(
    variant: str, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, *, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole official checkpoint, training heads included (reference: declip.md 3.4, 4.3).

    `bias`: of the text projection.
    """
    convolutional = isinstance(vision["layers"], list)
    shapes = (resnet if convolutional else vit)(vision["width"], vision["layers"], embed_dim)
    prefix = "text_encoder." if variant == "slip" else "encode_text."
    width = text["width"]
    shapes |= {
        f"{prefix}positional_embedding": (77, width),
        f"{prefix}token_embedding.weight": (49409, width),
    }
    shapes |= transformer(prefix, width, text["layers"]) | norm(f"{prefix}ln_final", width)
    shapes |= linear(f"{prefix}text_projection", width, embed_dim, bias) | {"logit_scale": (1,)}
    feature = 32 * vision["width"] if convolutional else vision["width"]
    if variant in ("declip", "defilip"):
        shapes |= simsiam("", embed_dim)
    if variant in ("declip", "filip", "defilip"):
        shapes |= linear("text_label_predictor", width, 49409)
    if variant == "slip":
        for i, (into, out) in enumerate(((feature, 4096), (4096, 4096), (4096, 256)), 1):
            shapes |= linear(f"predictor_sim.linear{i}", into, out) | norm(
                f"predictor_sim.bn{i}", out, batch=True
            )
    if variant in ("filip", "defilip"):
        shapes |= linear("image_mapping", feature, 256) | linear("text_mapping", width, 256)
        shapes["logit_scale_dense"] = ()
    return shapes


def simsiam(of: str, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """The heads `projector<of>` and `predictor<of>`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (into, out) in enumerate(((embed_dim, 1024), (1024, 1024), (1024, 1024)), 1):
        shapes |= linear(f"projector{of}.linear{i}", into, out) | norm(
            f"projector{of}.bn{i}", out, batch=True
        )
    shapes |= linear(f"predictor{of}.linear1", 1024, 512) | norm(f"predictor{of}.bn1", 512, batch=True)
    return shapes | linear(f"predictor{of}.layer2", 512, 1024)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Values of a size that keeps activations near 1, whatever the name."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
        elif name.startswith("logit_scale"):
            state[name] = torch.full(shape, math.log(20.0) + 0.1 * seed + (0.5 if "dense" in name else 0))
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
            state[name] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
    return state


def save(state: State, path: Path, wrap: Callable[[State], Any] | None = None) -> Path:
    """As the official solver saves: prefixed, under `model`, beside the optimiser."""
    named = {f"module.{k}": v for k, v in state.items()}
    torch.save(wrap(state) if wrap else {"model": named, "optimizer": {"lr": 0.1}, "last_iter": 7}, path)
    return path


def model_of(path: Path, variant: str, arch: str, embed_dim: int | None = None, **config: Any) -> ModelEntry:
    card = ModelCard(
        title=f"{variant} {arch}",
        family="declip",
        config={"variant": variant, "arch": arch, "embed_dim": embed_dim, **config},
        preprocess=declip.PREPROCESS,
        weights=Weights(file=str(path)),
    )
    return ModelEntry("m", card, path.parent)
