"""Heat maps of the image-text score: where in the image it comes from.

The score is the cosine of an image's joint feature with a text's, as the adapter gives them (FILIP: late
interaction). Three kinds of map, by what a tower offers:

    GradCam        towers that end in a convolutional map A: ReLU(sum over c of mean_xy(ds/dA_c) · A_c)
                   (Selvaraju et al. 2017, arXiv 1610.02391, section 3)
    Attention      ViTs: mean over heads of attention(class token → patches) · ReLU(ds/dattention) in one block
                   (ALBEF's "itc" map: Li et al. 2021, arXiv 2107.07651; salesforce/ALBEF, `Grounding.py`)
    TokenCosine    models with a token space: each patch's own term of FILIP's score, ReLU of its best cosine with
                   any text token (Yao et al. 2021, arXiv 2111.07783, section 3.1)

An image goes through the tower once; what follows the map or block is differentiated once a text, all images of a
batch together. Towers are those that encode, called with forward hooks that are gone afterwards.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.cards.model import Preprocess
from clipbench.errors import NotApplicable
from clipbench.metrics import boxes as places

#: the block of ALBEF's twelve whose attention is looked at, counted from 0
_ALBEF_BLOCK, _ALBEF_DEPTH = 8, 12
#: transformer blocks of open_clip, torchvision and timm: class name → name of its attention
_BLOCKS = {"ResidualAttentionBlock": "attn", "EncoderBlock": "self_attention", "Block": "attn"}


@dataclass(frozen=True)
class SaliencyMaps:
    """The maps of one image.

    Attributes:
        sample: its number in the split.
        texts: int64 [K], the numbers of the texts.
        maps: float32 [K, h, w], at least 0.
        scores: float32 [K], each text's similarity with the image.
        size: width and height of the image as stored, px.
        turned: the EXIF orientation by which it was turned before the model saw it; 1: it was not.
        seen: left, top, right, bottom of the part that the maps cover, in pixels after the turn; it may reach beyond
            the image.
        described: how they were made.
    """

    sample: int
    texts: NDArray[np.int64]
    maps: Tensor
    scores: NDArray[np.float32]
    size: tuple[int, int]
    seen: tuple[int, int, int, int]
    described: str
    turned: int = 1

    def placed(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """`boxes` [J, 4] in pixels of the image as stored, in those of the image as the model saw it."""
        return places.turn(boxes, self.size, self.turned)

    def large(self, place: int) -> NDArray[np.float32]:
        """The map of `texts[place]` up-sampled bicubically to the image: float32 [height, width], 0 outside `seen`.

        Overshoots below 0 are cut. The image is the one that the model saw: after the turn.
        """
        width, height = self.size if self.turned < 5 else self.size[::-1]
        left, top, right, bottom = self.seen
        covered = F.interpolate(
            self.maps[place][None, None],
            size=(bottom - top, right - left),
            mode="bicubic",
            align_corners=False,
        )
        whole = np.zeros((height, width), dtype=np.float32)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        inside = covered[0, 0, y0 - top : y1 - top, x0 - left : x1 - left]
        whole[y0:y1, x0:x1] = inside.clamp_min(0).cpu().numpy()
        return whole


class SaliencyMethod(ABC):
    """Maps of one model.

    Attributes:
        tower: the image tower; in evaluation mode.
        space: the space whose text features are wanted.
        described: what is computed, for the record.
    """

    tower: nn.Module
    space: str = "joint"
    described: str

    @abstractmethod
    def __call__(self, images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Maps and scores of P pairs of an image and a text, in float32.

        Args:
            images: float32 [B, channels, side, side], normalised.
            texts: float32 [P, D], unit rows (`tokens`: T unit tokens one behind the other).
            pairs: int64 [P], the image of each.

        Returns:
            maps [P, h, w], at least 0 everywhere, and scores [P].
        """


@dataclass
class GradCam(SaliencyMethod):
    """Grad-CAM on the output of the module `stage` of `tower`."""

    tower: nn.Module
    stage: str

    def __post_init__(self) -> None:
        self.described = f"Grad-CAM on {self.stage}"

    def __call__(self, images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []

        def expose(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            found.append(output.detach().clone().requires_grad_())
            torch.set_grad_enabled(True)
            return found[0].clone()  # what follows may work in place

        with _hooked(self.tower.get_submodule(self.stage).register_forward_hook(expose)):
            scores, gradients = _differentiated(self.tower, images, texts, pairs, found)
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        return F.relu((weights * found[0].detach()[pairs]).sum(dim=1)), scores


@dataclass
class Attention(SaliencyMethod):
    """Gradient × attention of the class token in the module `block` of `tower`, whose attention is `attention`.

    `prefix` tokens come before those of the patches, the class token first.
    """

    tower: nn.Module
    block: str
    attention: nn.Module
    prefix: int = 1

    def __post_init__(self) -> None:
        self.described = f"attention × gradient in {self.block}"

    def __call__(self, images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        batch_first = getattr(self.attention, "batch_first", True)

        def expose(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            tokens, mixed = (x if batch_first else x.transpose(0, 1) for x in (inputs[0], whole))
            weights, values, project = _class_attention(self.attention, tokens)
            found.append(weights.detach().requires_grad_())
            torch.set_grad_enabled(True)
            own = project(torch.einsum("bhl,bhld->bhd", found[0], values).flatten(1))
            replaced = torch.cat([own.unsqueeze(1), mixed[:, 1:]], dim=1)
            replaced = replaced if batch_first else replaced.transpose(0, 1)
            return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

        with _hooked(self.attention.register_forward_hook(expose)):
            scores, gradients = _differentiated(self.tower, images, texts, pairs, found)
        patches = (found[0].detach()[pairs] * F.relu(gradients)).mean(dim=1)[:, self.prefix :]
        return _square(patches), scores


@dataclass
class TokenCosine(SaliencyMethod):
    """Cosines of the patches that `tower` gives, tokens of `width`, with the text's tokens."""

    tower: nn.Module
    width: int
    space: str = "tokens"
    described: str = "best cosine of each patch with the text's tokens"

    def __call__(self, images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            patches = F.normalize(self.tower(images).float().view(len(images), -1, self.width), dim=2)
            words = [text.view(-1, self.width) for text in texts]
            mine = zip(pairs.tolist(), words, strict=True)  # zeros are padding
            best = torch.stack([(patches[i] @ own[own.any(dim=1)].T).amax(dim=1) for i, own in mine])
        return F.relu(_square(best)), best.mean(dim=1)


def of_tower(
    tower: nn.Module, preprocess: Preprocess, title: str, block: int | None = None
) -> SaliencyMethod:
    """The maps that `tower` (images to joint features) offers: `Attention` for a ViT, else `GradCam`.

    Args:
        block: of a ViT, counted from 0. None: at two thirds of the depth, as ALBEF's 8 of 12.

    Raises:
        NotApplicable: there is no such block, or neither a known ViT nor a map at the end.
    """
    blocks = _attention_blocks(tower)
    if blocks:
        place = len(blocks) * _ALBEF_BLOCK // _ALBEF_DEPTH if block is None else block
        if place >= len(blocks):
            raise NotApplicable(f"{title}: no block {place} (the image tower has {len(blocks)}, from 0)")
        return Attention(tower, *blocks[place])
    stage = last_map(tower, preprocess)
    if stage is None:
        raise NotApplicable(
            f"{title}: no heat maps, since its image tower neither ends in a convolutional map nor is a plain ViT "
            "of open_clip, torchvision or timm with a class token"
        )
    return GradCam(tower, stage)


def last_map(tower: nn.Module, preprocess: Preprocess) -> str | None:
    """Name of the module that gives the last map [B, C, h, h], h > 1, before pooling; None where tokens come after it.

    For images so small that the last stage has one position left, it is an earlier one.
    """
    found: list[tuple[str, bool]] = []  # (name, whether it is a map), in the order in which they end

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 2 and max(output.shape[2:]) > 1:
                square = output.ndim == 4 and output.shape[2] == output.shape[3]
                found.append((name, square))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in tower.named_modules() if name]
    side = preprocess.side
    device = next(tower.parameters()).device
    with _hooked(*hooks):
        tower(torch.zeros(1, preprocess.channels, side, side, device=device))
    return found[-1][0] if found and found[-1][1] else None


@contextmanager
def _hooked(*hooks: Any) -> Iterator[None]:
    """Removes the hooks at the end, and restores whether gradients are computed, which a hook may have changed."""
    try:
        with torch.no_grad():  # until a hook says otherwise
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _differentiated(
    tower: nn.Module, images: Tensor, texts: Tensor, pairs: Tensor, found: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Scores [P], and the gradient of each by its image's row of the tensor that a hook puts into `found`.

    A backward pass takes one text of every image: rows do not mix, so that it gives the gradients of all of them.
    """
    features = tower(images)
    if isinstance(features, tuple):  # open_clip's towers that give tokens beside the pooled feature
        features = features[0]
    scores = (F.normalize(features.float(), dim=1)[pairs] * texts).sum(dim=1)
    gradients = found[0].new_empty((len(pairs), *found[0].shape[1:]))
    turns = _turns(pairs)
    for number, turn in enumerate(turns, 1):
        (gradient,) = torch.autograd.grad(scores[turn].sum(), found[0], retain_graph=number < len(turns))
        gradients[turn] = gradient[pairs[turn]]
    return scores.detach(), gradients


def _turns(pairs: Tensor) -> list[Tensor]:
    """Places of the first pair of every image, of the second of those that have one, and so on."""
    turns: list[list[int]] = []
    seen: Counter[int] = Counter()
    for place, image in enumerate(pairs.tolist()):
        if seen[image] == len(turns):
            turns.append([])
        turns[seen[image]].append(place)
        seen[image] += 1
    return [torch.tensor(turn, device=pairs.device) for turn in turns]


def _class_attention(layer: Any, tokens: Tensor) -> tuple[Tensor, Tensor, nn.Module]:
    """What the first of tokens [B, L, D] attends to, [B, heads, L]; values [B, heads, L, d]; what follows them."""
    if isinstance(layer, nn.MultiheadAttention):
        assert layer.in_proj_weight is not None
        projected, after = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias), layer.out_proj
    else:
        projected, after = layer.qkv(tokens), layer.proj
    shape = (*tokens.shape[:2], 3, layer.num_heads, -1)
    queries, keys, values = projected.view(shape).permute(2, 0, 3, 1, 4)
    if not isinstance(layer, nn.MultiheadAttention):
        queries, keys = layer.q_norm(queries), layer.k_norm(keys)
    logits = queries[:, :, :1] @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
    return logits.softmax(dim=3)[:, :, 0], values, after


def _attention_blocks(tower: nn.Module) -> list[tuple[str, nn.Module, int]]:
    """Name, attention and prefix tokens of each block of a ViT that pools its class token; empty for other towers."""
    prefix = 1
    for module in tower.modules():
        pools = (
            getattr(module, "pool_type", "tok"),  # open_clip's
            getattr(module, "global_pool", "token"),  # timm's; a module in its convolutional networks
        )
        if any(isinstance(pool, str) and pool not in ("tok", "token") for pool in pools):
            return []
        if getattr(module, "attn_pool", None) is not None:
            return []
        prefix = int(getattr(module, "num_prefix_tokens", prefix))
    blocks = []
    for name, module in tower.named_modules():
        attention = getattr(module, _BLOCKS.get(type(module).__name__, ""), None)
        if attention is not None and _plain(attention):
            blocks.append((name, attention, prefix))
    return blocks


def _plain(attention: nn.Module) -> bool:
    """Whether it is softmax(q kᵀ / √d) v and a linear layer, as `_class_attention` computes it."""
    from timm.layers.attention import Attention as Timms  # here, since timm takes a second

    if isinstance(attention, nn.MultiheadAttention):
        return attention.in_proj_weight is not None and attention.bias_k is None
    norm, gate = getattr(attention, "norm", None), getattr(attention, "gate", None)
    return type(attention) is Timms and gate is None and isinstance(norm, nn.Identity | None)


def _square(patches: Tensor) -> Tensor:
    """[P, T] patches of a square grid, row by row, as [P, √T, √T]."""
    side = math.isqrt(patches.shape[1])
    return patches.reshape(-1, side, side)
