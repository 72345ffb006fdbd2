"""Image towers: a small residual network, and those that torchvision and timm build."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.cards.model import Preprocess
from clipbench.errors import CardError, WeightsError, first_line, unknown
from clipbench.models.towers.base import ImageTower, LibraryTower, PatchTower
from clipbench.models.towers.configs import ConvNetConfig, TimmConfig, TorchvisionConfig
from clipbench.models.weights import key_maps
from clipbench.utils.cache import say


class ConvNet(PatchTower):
    """Small residual network (basic blocks, BatchNorm) with global average pooling."""

    def __init__(self, config: ConvNetConfig, channels: int, side: int) -> None:
        super().__init__()
        if side < config.stride * 2 ** (config.stages - 1):
            at_first = f"divides the side by {config.stride}, and " if config.stride > 1 else ""
            raise CardError(
                f"an image tower of {config.stages} stages {at_first}halves the side {config.stages - 1} times: "
                f"{side} px is too small",
                hint="lower config.image.stages, or raise preprocess.size",
            )
        self.features = config.width << (config.stages - 1)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, config.width, 3, stride=config.stride, padding=1, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        width = config.width
        for stage in range(config.stages):
            for block in range(config.blocks):
                first = stage > 0 and block == 0
                outputs = config.width * 2**stage
                blocks.append(_ResidualBlock(width, outputs, stride=2 if first else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)

    def states(self, images: Tensor) -> Tensor:
        """See `PatchTower`: the last map, [B, features, height, width]."""
        maps: Tensor = self.blocks(self.stem(images))
        return maps

    def pool(self, states: Tensor) -> Tensor:
        return states.mean(dim=(2, 3))


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.residual(maps) + self.shortcut(maps))


class Torchvision(ImageTower, LibraryTower):
    """A classifier of torchvision, its last linear layer replaced by the identity."""

    def __init__(self, config: TorchvisionConfig, preprocess: Preprocess) -> None:
        import torchvision

        super().__init__()
        known = torchvision.models.list_models(module=torchvision.models)
        if config.arch not in known:
            listing = "torchvision.models.list_models()"
            raise CardError(unknown("torchvision architecture", config.arch, known, listing=listing))
        # Some architectures compute while they are built, which the meta device cannot.
        with torch.device("cpu"):
            net: nn.Module = torchvision.models.get_model(config.arch, weights=None)
            linear = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)]
            if not linear:
                raise CardError(f"{config.arch} of torchvision has no linear classifier to be left out")
            net.set_submodule(linear[-1], nn.Identity())
            self.features = _pooled_width(net, preprocess, config.arch)
        self.net = net
        self._classifier = f"{linear[-1]}."

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side] to float [B, features]."""
        features: Tensor = self.net(images)
        return features

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LibraryTower`: without the classifier."""
        return {name: tensor for name, tensor in state.items() if not name.startswith(self._classifier)}


class Timm(PatchTower, LibraryTower):
    """A model of timm without its classifier."""

    def __init__(self, config: TimmConfig, preprocess: Preprocess) -> None:
        import timm

        super().__init__()
        if not timm.is_model(config.arch):
            listing = "timm.list_models()"
            raise CardError(unknown("timm architecture", config.arch, timm.list_models(), listing=listing))
        # On the CPU: many have buffers that no file holds, and the meta device would lose them.
        with torch.device("cpu"):
            net = _timm_model(config, preprocess)
            self.features = _pooled_width(net, preprocess, config.arch)
        self.net = net
        self._config = config

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, side, side] to float [B, features]."""
        features: Tensor = self.net(images)
        return features

    def states(self, images: Tensor) -> Tensor:
        """See `PatchTower`: a map, channels first or (as timm says of the model) last; or tokens [B, L, D]."""
        states: Tensor = self.net.forward_features(images)
        return states

    def pool(self, states: Tensor) -> Tensor:
        pooled: Tensor = self.net.forward_head(states)
        return pooled

    def tokens(self, states: Tensor) -> Tensor:
        """See `PatchTower`: without the class token and its like."""
        if states.ndim == 3:
            return states[:, getattr(self.net, "num_prefix_tokens", 0) :]
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return states.flatten(1, 2) if last else super().tokens(states)

    def fitted(self, state: dict[str, Tensor], path: Path, prefix: str = "") -> dict[str, Tensor]:
        """See `LibraryTower`: absolute position embeddings of another square grid, by timm's own function."""
        from timm.layers.pos_embed import resample_abs_pos_embed

        name, wanted = f"{prefix}pos_embed", getattr(self.net, "pos_embed", None)
        held = state.get(name)
        grid: tuple[int, int] | None = getattr(getattr(self.net, "patch_embed", None), "grid_size", None)
        if held is None or wanted is None or grid is None or held.ndim != 3 or held.shape == wanted.shape:
            return state
        first = wanted.shape[1] - grid[0] * grid[1]  # the class token's and its like
        side = math.isqrt(max(held.shape[1] - first, 0))
        if held.shape[2] != wanted.shape[2] or side * side != held.shape[1] - first or side == 0:
            return state  # `load_strict` says what does not fit
        told = f"{path}: {name} is of {side} × {side} patches, the model has {grid[0]} × {grid[1]}"
        if not self._config.resize_positions:
            raise WeightsError(
                f"{told}; position embeddings are not resized unasked",
                hint="set config.image.resize_positions: true, or give config.image.img_size and preprocess.size of "
                "the file's own images",
            )
        say(f"{told}: it is resized, as the card asks")
        resized = resample_abs_pos_embed(
            held.float(), new_size=list(grid), old_size=[side, side], num_prefix_tokens=first
        )
        return state | {name: resized}

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LibraryTower`: EfficientNet-PyTorch's names become timm's; without the classifier."""
        if key_maps.is_efficientnet_pytorch(state):
            blocks = getattr(self.net, "blocks", nn.Sequential())
            state = key_maps.efficientnet_pytorch(state, [len(list(s.children())) for s in blocks])
        described: dict[str, Any] = getattr(self.net, "pretrained_cfg", {})
        found = described.get("classifier") or ()  # a name, or several
        names = (found,) if isinstance(found, str) else found
        dropped = tuple(f"{name}." for name in names)
        return {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}


def _timm_model(config: TimmConfig, preprocess: Preprocess) -> nn.Module:
    """timm's model, of the size of images that the card asks for.

    Raises:
        CardError: the images have another size, or the model cannot be built for it.
    """
    import timm

    asked: dict[str, Any] = {}
    if (side := config.img_size) is not None:
        asked["img_size"] = side
        if side != preprocess.side:
            raise CardError(
                f"config.image.img_size is {side} px, preprocess gives images of {preprocess.side} px",
                hint=f"set preprocess.size (or its crop) to {side}, or img_size to {preprocess.side}",
            )
    try:
        net: nn.Module = timm.create_model(
            config.arch, pretrained=False, num_classes=0, in_chans=preprocess.channels, **asked
        )
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        if side is None:
            raise
        fixed = "img_size" not in str(error)
        problem = f"cannot be built for it: {first_line(error)}" if fixed else "takes images of any size"
        raise CardError(
            f"config.image.img_size is {side} px, but timm's {config.arch} {problem}",
            hint="choose another size" if fixed else "leave out config.image.img_size",
        ) from None
    embedding: Any = getattr(net, "patch_embed", None)
    patch = int(embedding.feat_ratio()) if hasattr(embedding, "feat_ratio") else 1
    if side is not None and side % patch:
        raise CardError(
            f"config.image.img_size is {side} px, which patches of {patch} px do not cover",
            hint=f"choose a multiple of {patch}",
        )
    return net


def _pooled_width(net: nn.Module, preprocess: Preprocess, arch: str) -> int:
    """Length of the feature that `net` gives for an image of `preprocess`."""
    side = preprocess.side
    image = torch.zeros(1, preprocess.channels, side, side)
    try:
        with torch.no_grad():
            features = net.eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise CardError(
            f"{arch} cannot take images of {preprocess.channels} channels and {side} × {side} px: "
            f"{first_line(error)}",
            hint="correct preprocess, or choose another architecture"
            + (f", or set config.image.img_size: {side}" if hasattr(net, "set_input_size") else ""),
        ) from None
    net.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise CardError(f"{arch} gives no pooled feature of an image", hint="choose another architecture")
    return features.shape[1]
