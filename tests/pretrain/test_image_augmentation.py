"""Augmentation: each step against torchvision, draws within their bounds, and the same draws on any device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as V

from clipbench.cards.pairs import MocoV2, Pairs
from clipbench.pretrain.data.image_augmentation import (
    augment,
    blur,
    crop,
    draw_boxes,
    grey,
    jitter,
    moco_v2,
    turn_hue,
)
from clipbench.utils.row_rng import Draws

#: nothing happens but what a test asks for
STILL = MocoV2(kind="moco-v2", scale=(1, 1), jitter=0, grayscale=0, blur=0, flip=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(count: int) -> Draws:
    return Draws(generator(), count)


def pictures(count: int = 12, channels: int = 3, side: int = 15) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=generator(), dtype=torch.uint8)


def unit(images: Tensor) -> Tensor:
    return images.double() / 255


@pytest.mark.parametrize("side", [1, 2, 15])
def test_a_crop_is_cut_out_and_resized(side: int) -> None:
    images = unit(pictures(side=side))
    boxes = draw_boxes(draws(len(images)), side, (0.2, 1.0))
    for image, view, box in zip(images, crop(images, boxes), boxes.tolist(), strict=True):
        top, left, height, width = box
        cut = image[None, :, top : top + height, left : left + width]
        wanted = F.interpolate(cut, (side, side), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(view, wanted, rtol=0, atol=1e-12)


def test_boxes_are_as_large_and_as_wide_as_they_may_be() -> None:
    top, left, height, width = draw_boxes(draws(20_000), 200, (0.2, 1.0)).double().unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height).max() == 200  # corners reach the far edge
    assert (left + width).max() == 200
    area, ratio = height * width / 200**2, width / height
    assert area.min() == pytest.approx(0.2, abs=0.01)
    assert area.max() > 0.98
    assert ratio.min() == pytest.approx(3 / 4, abs=0.02)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.03)
    assert ratio.log().mean().abs() < 0.01  # neither upright nor lying
    small = area < 0.5  # small boxes always fit: their areas are uniform
    assert area[small].mean() == pytest.approx(0.35, abs=0.01)


def test_colours_change_as_in_torchvision_in_any_order() -> None:
    images = unit(pictures())
    drawn = torch.rand(len(images), 4, generator=generator(), dtype=torch.float64)
    amounts = torch.cat([0.6 + 0.8 * drawn[:, :3], 0.2 * drawn[:, 3:] - 0.1], dim=1)
    order = torch.rand(len(images), 4, generator=generator(1)).argsort(dim=1)
    adjust = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)
    changed = jitter(images, amounts, order)
    for image, view, own, turns in zip(images, changed, amounts.tolist(), order.tolist(), strict=True):
        wanted = image
        for number in turns:
            wanted = adjust[number](wanted, own[number])
        torch.testing.assert_close(view, wanted, rtol=0, atol=1e-3)  # torchvision's red weighs 0.2989


def test_hue_turns_round_the_circle() -> None:
    images = unit(pictures())
    third = torch.full((len(images), 1, 1, 1), 1 / 3, dtype=torch.float64)
    # A third of the circle makes red green, green blue, and blue red.
    torch.testing.assert_close(turn_hue(images, third), images.roll(1, dims=1), rtol=0, atol=1e-12)
    plain = grey(images).expand(-1, 3, -1, -1)
    torch.testing.assert_close(turn_hue(plain, third), plain)


@pytest.mark.parametrize(("side", "reach"), [(15, 6), (4, 6)])
def test_blur_is_torchvisions_with_a_width_an_image(side: int, reach: int) -> None:
    images = unit(pictures(side=side))
    sigma = torch.linspace(0.1, 2, len(images), dtype=torch.float64)
    size = 2 * min(reach, side - 1) + 1
    for image, view, own in zip(images, blur(images, sigma, reach=reach), sigma.tolist(), strict=True):
        wanted = V.gaussian_blur(image, [size, size], [own, own])
        torch.testing.assert_close(view, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_happens_without_probability(channels: int) -> None:
    images = pictures(channels=channels)
    assert torch.equal(moco_v2(images, STILL, draws(len(images))), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_drawn_an_image_and_again_the_same_from_the_same_generator(channels: int) -> None:
    one = pictures(1, channels=channels).expand(50, -1, -1, -1)
    how = MocoV2(kind="moco-v2")
    before = one.clone()
    views = augment(one, how, draws(len(one)))
    assert torch.equal(one, before)  # the images stay
    assert views.dtype == torch.uint8
    assert views.shape == one.shape
    assert len({bytes(view.numpy()) for view in views}) == 50
    assert torch.equal(augment(one, how, draws(len(one))), views)


@pytest.mark.parametrize(
    ("step", "probability"), [("flip", 0.5), ("grayscale", 0.2), ("blur", 0.5), ("jitter", 0.8)]
)
def test_every_step_is_taken_as_often_as_its_probability_says(step: str, probability: float) -> None:
    images = pictures(1).expand(4000, -1, -1, -1)
    how = STILL.model_copy(update={step: probability, "sigma": (1.0, 2.0)})
    views = moco_v2(images, how, draws(len(images)))
    share = (views != images).flatten(1).any(dim=1).double().mean().item()
    assert share == pytest.approx(probability, abs=0.03)
    if step == "flip":
        assert torch.equal(views[(views != images).flatten(1).any(dim=1)][0], images[0].flip(2))
    if step == "grayscale":
        assert (views[:, 0] == views[:, 1]).flatten(1).all(dim=1).double().mean() == pytest.approx(share)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"scale": [0.5, 0.2]}, "0 < first ≤ second ≤ 1"),
        ({"sigma": [0.0, 1.0]}, "0 < first ≤ second"),
        ({"flip": 1.5}, "less than or equal to 1"),
        ({"kind": "mocov2"}, "moco-v2"),
    ],
)
def test_augmentation_that_cannot_be(part: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairs.model_validate({"dataset": "digits", "augment": {"kind": "moco-v2"} | part})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_views() -> None:
    images, how = pictures(), MocoV2(kind="moco-v2")
    here = moco_v2(images, how, draws(len(images))).int()
    there = moco_v2(images.cuda(), how, draws(len(images))).cpu().int()
    assert (here - there).abs().max() <= 1
