"""Augmentation of training images, batched on their device; every image is changed by draws of its own.

All draws come from one CPU generator, a fixed count an image, so that they do not depend on the device, nor on which
process sees which images of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from clipbench.cards.pairs import Affine, Augmentation, MocoV2
from clipbench.utils.row_rng import Draws

#: aspect ratios of MoCo v2's crops, and how often one is drawn anew that does not fit (torchvision's defaults)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
#: weights of red, green and blue in a grey value (ITU-R BT.601)
_LUMA = (0.299, 0.587, 0.114)


def augment(images: Tensor, how: Augmentation, draws: Draws) -> Tensor:
    """A view of each image.

    Args:
        images: uint8 [B, channels, side, side], on any device.
        draws: for these B images.

    Returns:
        uint8 [B, channels, side, side].
    """
    if isinstance(how, Affine):
        return affine(images, how, draws)
    return moco_v2(images, how, draws)


def affine(images: Tensor, bounds: Affine, draws: Draws) -> Tensor:
    """Each image rotated, shifted and scaled; bilinear, black outside. For arguments see `augment`."""
    drawn = draws.rand(4) * 2 - 1
    angle = drawn[:, 0] * math.radians(bounds.rotate)
    zoom = 1 / (1 + drawn[:, 1] * bounds.scale)
    # Output coordinates run over [-1, 1], so a shift by a fraction of the side is twice that number.
    shift = drawn[:, 2:] * (2 * bounds.shift)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    rows = rows.to(images.device, non_blocking=True)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8)


def moco_v2(images: Tensor, how: MocoV2, draws: Draws) -> Tensor:
    """Cropped and resized, then by chance jittered in colour, made grey, blurred, mirrored; see `augment`.

    Source: Chen et al. 2020, MoCo v2; its code's parameters are the defaults of `how`.
    """
    boxes = draw_boxes(draws, images.shape[-1], how.scale).to(images.device, non_blocking=True)
    chance, amount = draws.rand(4), draws.rand(5)
    order = draws.rand(4).argsort(dim=1)

    views = crop(images.float().div_(255), boxes)
    jittered = torch.nonzero(chance[:, 0] < how.jitter)[:, 0]
    own = amount[jittered]
    around = own[:, :3] * 2 - 1
    strengths = torch.tensor([how.brightness, how.contrast, how.saturation])
    factors = (1 + around * strengths).clamp_(min=0)
    shifts = (own[:, 3] * 2 - 1) * how.hue
    at = jittered.to(images.device, non_blocking=True)
    views[at] = jitter(views[at], torch.cat([factors, shifts[:, None]], dim=1), order[jittered])

    at = torch.nonzero(chance[:, 1] < how.grayscale)[:, 0].to(images.device, non_blocking=True)
    views[at] = grey(views[at]).expand(-1, images.shape[1], -1, -1)
    blurred = torch.nonzero(chance[:, 2] < how.blur)[:, 0]
    sigma = how.sigma[0] + (how.sigma[1] - how.sigma[0]) * amount[blurred, 4]
    at = blurred.to(images.device, non_blocking=True)
    views[at] = blur(views[at], sigma.to(images.device, non_blocking=True), reach=math.ceil(3 * how.sigma[1]))
    at = torch.nonzero(chance[:, 3] < how.flip)[:, 0].to(images.device, non_blocking=True)
    views[at] = views[at].flip(3)
    return views.mul_(255).round_().to(torch.uint8)


def draw_boxes(draws: Draws, side: int, scale: tuple[float, float]) -> Tensor:
    """Random crops of square images: int64 [B, 4], top, left, height and width (px).

    Areas are uniform in `scale` (fractions of the image), aspect ratios log-uniform in 3/4 … 4/3; of ten draws the
    first that fits is taken, or else the whole image. Corners are uniform.
    """
    tries = draws.rand(_TRIES, 2, dtype=torch.float64)
    corner = draws.rand(2, dtype=torch.float64)
    area = side**2 * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    low, high = (math.log(ratio) for ratio in _RATIO)
    ratio = (low + (high - low) * tries[..., 1]).exp()
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round().clamp(min=1)
    fits = (sizes <= side).all(dim=2)
    first = fits.int().argmax(dim=1)
    chosen = sizes[torch.arange(len(first)), first].where(fits.any(dim=1)[:, None], torch.tensor(float(side)))
    return torch.cat([(corner * (side + 1 - chosen)).floor(), chosen], dim=1).long()


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Each image's box, bilinearly resized to the image's own size; nothing outside the box is looked at.

    Args:
        images: float [B, channels, side, side].
        boxes: int64 [B, 4], as `draw_boxes` makes them.
    """
    side = images.shape[-1]
    steps = torch.arange(side, device=images.device) + 0.5
    start, size = boxes[:, :2, None].to(images.dtype), boxes[:, 2:, None].to(images.dtype)
    # [B, 2, side]: where each output row and column lies, in pixels of the input
    places = torch.minimum((steps * size / side - 0.5).clamp(min=0), size - 1) + start
    rows, columns = (2 * places / max(side - 1, 1) - 1).unbind(dim=1)
    grid = torch.stack(
        [columns[:, None, :].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)], dim=3
    )
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def jitter(images: Tensor, amounts: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of each image changed, in an order of its own.

    Args:
        images: float [B, channels, side, side] in 0 … 1, of 1 or 3 channels.
        amounts: float [B, 4] on the CPU: three factors, and the turn of the hue (0.1: a tenth of the circle).
        order: int64 [B, 4] on the CPU: which change comes first, second, …
    """
    changes: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda own, by: own * by,
        lambda own, by: _blend(own, grey(own).mean(dim=(1, 2, 3), keepdim=True), by),
        lambda own, by: _blend(own, grey(own), by),
        turn_hue,
    )
    changed = images.clone()
    for turn in order.T:
        for number, change in enumerate(changes):
            chosen = torch.nonzero(turn == number)[:, 0]
            at = chosen.to(images.device, non_blocking=True)
            by = amounts[chosen, number].to(images.device, non_blocking=True)[:, None, None, None]
            changed[at] = change(changed[at], by).clamp_(0, 1)
    return changed


def grey(images: Tensor) -> Tensor:
    """The grey values of images of 1 or 3 channels: float [B, 1, side, side]."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, dtype=images.dtype).view(1, 3, 1, 1).to(images.device, non_blocking=True)
    return (images * weights).sum(dim=1, keepdim=True)


def turn_hue(images: Tensor, by: Tensor) -> Tensor:
    """The hue of each image turned (`by`: float [B, 1, 1, 1], in circles); grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # in sixths of the circle times the chroma, from the channel that is largest
    others = torch.where(green == value, blue - red + 2 * chroma, red - green + 4 * chroma)
    sixths = torch.where(red == value, green - blue, others)
    hue = sixths / chroma.where(chroma > 0, 1.0) + 6 * by[:, 0]
    # Each channel is the value, less the chroma where the hue is far from it (of red, green and blue: 5, 3, 1).
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=images.dtype).view(1, 3, 1, 1)
    offsets = offsets.to(images.device, non_blocking=True)
    place = (hue[:, None] + offsets) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor, *, reach: int) -> Tensor:
    """Each image under a Gaussian of its own width, cut off at `reach` px; mirrored at the edge.

    Args:
        images: float [B, channels, side, side].
        sigma: float [B], px, on the images' device.
    """
    side = images.shape[-1]
    reach = min(reach, side - 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    # A product with a band matrix a side: quick for any batch, since every image has a kernel of its own.
    seen = (torch.arange(side, device=images.device)[:, None] + offsets).abs()
    seen = seen.where(seen < side, 2 * (side - 1) - seen)
    which = F.one_hot(seen, side).to(images.dtype)  # [side, 2 reach + 1, side]
    band = torch.einsum("bo,iox->bix", kernel.to(images.dtype), which)[:, None]
    return band @ images @ band.transpose(2, 3)


def _blend(images: Tensor, other: Tensor, by: Tensor) -> Tensor:
    return by * images + (1 - by) * other
