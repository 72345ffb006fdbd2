"""Heat maps of the image-text score: where in the image it comes from.

The score is the cosine of an image's joint feature with a text's, as the adapter gives them (FILIP: late
interaction). Three kinds of map, by what a tower offers:

    GradCam        towers that average a map A, of a convolution or of patch tokens:
                   ReLU(sum over c of mean_xy(ds/dA_c) · A_c)
                   (Selvaraju et al. 2017, arXiv 1610.02391, section 3)
    Attention      ViTs: mean over heads of attention(class token → patches) · ReLU(ds/dattention) in one block
                   (ALBEF's "itc" map: Li et al. 2021, arXiv 2107.07651; salesforce/ALBEF, `Grounding.py`); where an
                   attention pool stands for the class token (SigLIP, CoCa), of the pool's query
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
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.cards.model import Preprocess
from clipbench.errors import NotApplicable
from clipbench.metrics import boxes as places
from clipbench.models.towers import attention

#: the block of ALBEF's twelve whose attention is looked at, counted from 0
_ALBEF_BLOCK, _ALBEF_DEPTH = 8, 12
#: classes of open_clip, torchvision and timm whose tokens are those of one grid, and what stands before them
_VITS = (
    "VisionTransformer",
    "VisionTransformerDistilled",
    "VisionTransformerRelPos",
    "PoolingVisionTransformer",
    "Eva",
)
#: how a map or tokens lie in what a module gives: [B, D, h, w], [B, h, w, D], or prefix tokens and a grid's, [B, L, D]
Layout = Literal["NCHW", "NHWC", "NLC"]


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
    """Grad-CAM on the output of the module `stage` of `tower`; of tokens (NLC) `prefix` come before the grid's."""

    tower: nn.Module
    stage: str
    layout: Layout = "NCHW"
    prefix: int = 0

    def __post_init__(self) -> None:
        tokens = "the tokens of " if self.layout == "NLC" else ""
        self.described = f"Grad-CAM on {tokens}{self.stage}"

    def __call__(self, images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []

        def expose(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            found.append(output.detach().clone().requires_grad_())
            torch.set_grad_enabled(True)
            return found[0].clone()  # what follows may work in place

        with _hooked(self.tower.get_submodule(self.stage).register_forward_hook(expose)):
            scores, gradients = _differentiated(self.tower, images, texts, pairs, found)
        weights = self._map(gradients).mean(dim=(2, 3), keepdim=True)
        return F.relu((weights * self._map(found[0].detach())[pairs]).sum(dim=1)), scores

    def _map(self, states: Tensor) -> Tensor:
        """`states` of the stage as [B, D, h, w]."""
        if self.layout == "NLC":
            patches = states[:, self.prefix :].transpose(1, 2)
            side = math.isqrt(patches.shape[2])
            return patches.reshape(*patches.shape[:2], side, side)
        return states.permute(0, 3, 1, 2) if self.layout == "NHWC" else states


@dataclass
class Attention(SaliencyMethod):
    """Gradient × attention of one query in the module `layer` of `tower`, whose name or whose block's is `place`.

    `layer` is the attention of a block, whose query is the class token's, or an attention pool. `prefix` tokens come
    before those of the patches.
    """

    tower: nn.Module
    place: str
    layer: nn.Module
    prefix: int = 1

    def __post_init__(self) -> None:
        self.described = f"attention × gradient in {self.place}"

    def __call__(self, images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        batch_first = getattr(self.layer, "batch_first", True)

        def expose(module: nn.Module, inputs: tuple[Tensor, ...], given: dict[str, Any], output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            tokens = inputs[0] if batch_first else inputs[0].transpose(0, 1)
            explicit = attention.written_out(self.layer, tokens, given)
            found.append(explicit.weights.detach().requires_grad_())
            torch.set_grad_enabled(True)
            own = explicit.output(found[0])
            if whole.ndim == 2:  # a pool's one query
                return own
            mixed = whole if batch_first else whole.transpose(0, 1)
            replaced = torch.cat([own.unsqueeze(1), mixed[:, 1:]], dim=1)
            replaced = replaced if batch_first else replaced.transpose(0, 1)
            return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

        with _hooked(self.layer.register_forward_hook(expose, with_kwargs=True)):
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
    """The maps that `tower` (images to joint features) offers: `Attention` for a ViT with a class token or an
    attention pool, `GradCam` for what is averaged.

    Args:
        block: of a ViT with a class token, counted from 0. None: at two thirds of the depth, as ALBEF's 8 of 12.

    Raises:
        NotApplicable: there is no such block; or what the tower pools is no map, or not known.
    """
    found = _of_tokens(tower, title, block)
    if found is not None:
        return found
    stage = last_map(tower, preprocess)
    if stage is None:
        raise NotApplicable(
            f"{title}: no heat maps, since its image tower neither averages a map or patch tokens nor is a ViT "
            "of open_clip, torchvision or timm with a class token or an attention pool"
        )
    return GradCam(tower, *stage)


def _of_tokens(tower: nn.Module, title: str, block: int | None) -> SaliencyMethod | None:
    """The maps of a ViT; None of other towers. Raises as `of_tower`."""
    vits = [(name, part) for name, part in tower.named_modules() if type(part).__name__ in _VITS]
    if not vits:
        return None
    name, vit = vits[0]
    at = f"{name}." if name else ""
    prefix = int(getattr(vit, "num_prefix_tokens", getattr(vit, "num_tokens", 1)))  # the latter of timm's PiT
    pooling = getattr(
        vit, "global_pool", getattr(vit, "pool_type", "token")
    )  # timm's, open_clip's; torchvision
    if getattr(vit, "attn_pool", None) is not None:
        if block is not None:
            raise NotApplicable(
                f"{title}: no map of a block, since its image tower has no class token: it pools by attention"
            )
        return Attention(tower, *_pool(vit, at, title), prefix)
    if getattr(vit, "head_dist", None) is not None:
        raise NotApplicable(
            f"{title}: no heat maps, since its image tower averages its class token with a distillation token"
        )
    if pooling == "avg":
        stage = "norm" if hasattr(vit, "global_pool") else "ln_post"
        if getattr(vit, "final_ln_after_pool", False):
            stage = "transformer"
        return GradCam(tower, f"{at}{stage}", "NLC", prefix)
    if pooling not in ("tok", "token"):
        raise NotApplicable(
            f"{title}: no heat maps, since its image tower pools tokens by {pooling or 'nothing'!r} (known: a class "
            "token, the mean, an attention pool)"
        )
    blocks = _attention_blocks(vit)
    if not blocks:
        raise NotApplicable(
            f"{title}: no heat maps, since its image tower's blocks have no attention that is known"
        )
    place = len(blocks) * _ALBEF_BLOCK // _ALBEF_DEPTH if block is None else block
    if place >= len(blocks):
        raise NotApplicable(f"{title}: no block {place} (the image tower has {len(blocks)}, from 0)")
    return Attention(tower, at + blocks[place][0], blocks[place][1], prefix)


def _pool(vit: Any, at: str, title: str) -> tuple[str, nn.Module]:
    """Name and module of the attention pool of `vit`.

    Raises:
        NotApplicable: the feature is not one query's look at the patches.
    """
    name, own = "attn_pool", vit.attn_pool
    if (contrastive := getattr(vit, "attn_pool_contrastive", None)) is not None:
        name, own = "attn_pool_contrastive", contrastive
        if vit.attn_pool_type == "cascade":
            raise NotApplicable(
                f"{title}: no heat maps, since its attention pool looks at what another pool gives, not at patches"
            )
    elif getattr(vit, "pool_type", "tok") != "tok":
        raise NotApplicable(
            f"{title}: no heat maps, since its attention pool has several queries, which are averaged"
        )
    if not attention.is_known_pool(own):
        raise NotApplicable(
            f"{title}: no heat maps, since its attention pool has several queries, or is not known"
        )
    return f"{at}{name}", own


def last_map(tower: nn.Module, preprocess: Preprocess) -> tuple[str, Layout] | None:
    """Name of the module that gives the last map, h × h, h > 1, before pooling; None where tokens come after it.

    For images so small that the last stage has one position left, it is an earlier one.
    """
    found: list[tuple[str, bool]] = []  # (name, whether it is a map), in the order in which they end
    last = any(getattr(part, "output_fmt", "") == "NHWC" for part in tower.modules())  # timm's, of channels

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 2:
                sides = output.shape[1:-1] if last else output.shape[2:]
                if max(sides) > 1:
                    found.append((name, output.ndim == 4 and sides[0] == sides[1]))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in tower.named_modules() if name]
    side = preprocess.side
    device = next(tower.parameters()).device
    with _hooked(*hooks):
        tower(torch.zeros(1, preprocess.channels, side, side, device=device))
    return (found[-1][0], "NHWC" if last else "NCHW") if found and found[-1][1] else None


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


def _attention_blocks(vit: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and attention of each block of `vit` whose attention can be written out."""
    blocks = []
    for name, module in vit.named_modules():
        layer = getattr(module, attention.BLOCKS.get(type(module).__name__, ""), None)
        if layer is not None and attention.is_known(layer):
            blocks.append((name, layer))
    return blocks


def _square(patches: Tensor) -> Tensor:
    """[P, T] patches of a square grid, row by row, as [P, √T, √T]."""
    side = math.isqrt(patches.shape[1])
    return patches.reshape(-1, side, side)
