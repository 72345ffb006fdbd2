"""Image processors of transformers, as cards say them: the pixels of the processors on Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from clipbench.data.decode import normalise, pixels
from clipbench.errors import CardError
from clipbench.models.weights.processors import DEFAULTS, OF_TYPES, preprocess_of, translated
from clipbench.models.weights.repository import Repository

SHAPES = [(33, 47), (47, 33), (90, 61), (32, 32), (20, 77), (51, 50), (34, 35), (256, 255), (7, 300)]
EDGE: dict[str, Any] = {"size": {"shortest_edge": 32}}
CROPPED: dict[str, Any] = EDGE | {"crop_size": {"height": 27, "width": 27}, "do_center_crop": True}
SQUARE: dict[str, Any] = {"size": {"height": 32, "width": 32}}
TOP: dict[str, Any] = {"include_top": True, "rescale_offset": True, "rescale_factor": 1 / 127.5}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("CLIPImageProcessor", CROPPED),
    ("CLIPImageProcessor", EDGE | {"crop_size": {"height": 41, "width": 41}}),
    ("CLIPImageProcessor", CROPPED | {"do_normalize": False, "resample": 0}),
    ("CLIPImageProcessor", CROPPED | {"do_rescale": False, "image_mean": [110, 120, 130], "image_std": 57.0}),
    ("ChineseCLIPImageProcessor", CROPPED),
    ("BitImageProcessor", CROPPED | {"resample": 2}),
    ("SiglipImageProcessor", SQUARE),
    ("SiglipImageProcessor", SQUARE | {"do_convert_rgb": False}),
    ("BlipImageProcessor", SQUARE),
    ("ViTImageProcessor", SQUARE | {"rescale_factor": 0.00392156862745098}),
    ("DeiTImageProcessor", SQUARE | {"crop_size": {"height": 27, "width": 27}}),
    ("BeitImageProcessor", SQUARE | {"do_center_crop": True, "crop_size": {"height": 25, "width": 25}}),
    ("ConvNextImageProcessor", EDGE | {"crop_pct": 0.95}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("EfficientNetImageProcessor", SQUARE | {"include_top": False, "do_center_crop": False}),
    ("EfficientNetImageProcessor", SQUARE | {"include_top": True, "do_center_crop": False}),
    (
        "EfficientNetImageProcessor",
        SQUARE | TOP | {"do_center_crop": True, "crop_size": {"height": 9, "width": 9}},
    ),
    ("EfficientNetImageProcessor", SQUARE | TOP | {"include_top": False, "do_normalize": False}),
]


def own(name: str) -> Any:
    return getattr(transformers, f"{name}Pil")


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_pixels_are_the_processors_own(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    processor = own(name)(**settings)
    processor.save_pretrained(tmp_path)
    preprocess, found = preprocess_of(Repository("model", folder=tmp_path), "")
    assert found == name
    rng = np.random.default_rng(0)
    for height, width in SHAPES:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = processor(image, return_tensors="pt").pixel_values
        mine = normalise(torch.from_numpy(pixels(image, preprocess))[None], preprocess)
        torch.testing.assert_close(mine, expected, atol=3e-6, rtol=1e-6, msg=f"{height} × {width}")


def _palette(image: Image.Image) -> Image.Image:
    found = image.convert("RGB").quantize(16)
    found.info["transparency"] = 3
    return found


@pytest.mark.parametrize(
    "mode", ["L", "LA", "RGBA", "CMYK", "1", "P", "RGB with a colour that is transparent"]
)
def test_images_of_other_modes(mode: str) -> None:
    """Transparency is laid on white, as the processors that convert to RGB have it."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 4), dtype=np.uint8), "RGBA")
    if mode == "P":
        image = _palette(image)
    elif mode.startswith("RGB with"):
        image = image.convert("RGB")
        image.info["transparency"] = image.getpixel((3, 3))
    else:
        image = image.convert(mode)
    processor = own("CLIPImageProcessor")(**CROPPED)
    preprocess = translated(json.loads(processor.to_json_string()), DEFAULTS["CLIPImageProcessor"], "clip")
    mine = normalise(torch.from_numpy(pixels(image, preprocess))[None], preprocess)
    torch.testing.assert_close(mine, processor(image, return_tensors="pt").pixel_values, atol=3e-6, rtol=0)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_processors_own(name: str) -> None:
    """Of files that leave a setting out: every setting that a card can say."""
    processor, defaults = own(name)(), DEFAULTS[name]
    assert defaults["to_square"] == processor.default_to_square
    for key, value in defaults.items():
        if key in ("kind", "to_square"):
            continue
        found = getattr(processor, key)
        if key in ("size", "crop_size"):
            found = found and {side: length for side, length in dict(found).items() if length is not None}
        elif isinstance(found, tuple):
            found = list(found)
        assert (found or None) == (value or None), key
    assert (processor.do_resize, processor.do_rescale, processor.do_normalize) == (True, True, True)
    assert processor.rescale_factor == 1 / 255
    assert not processor.do_pad
    whole = json.loads(processor.to_json_string())
    assert translated({"image_processor_type": name}, defaults, name) == translated(whole, defaults, name)


def test_processors_of_model_types_are_the_librarys_own() -> None:
    from transformers.models.auto import image_processing_auto

    library: Any = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    shared = {kind: name for kind, name in OF_TYPES.items() if kind in library}
    assert {kind: library[kind]["pil"].removesuffix("Pil") for kind in shared} == shared
    assert set(OF_TYPES) - set(shared) <= {"clip_vision_model", "siglip_vision_model"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("CLIPImageProcessor", {"do_resize": False}, "setting do_resize: False"),
        ("CLIPImageProcessor", {"do_center_crop": False}, "setting do_center_crop: False"),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32, "longest_edge": 64}}, "setting size: "),
        ("CLIPImageProcessor", {"crop_size": {"height": 32, "width": 24}}, "setting crop_size: "),
        ("CLIPImageProcessor", {"resample": 5}, r"setting resample: 5 \(hamming\)"),
        ("CLIPImageProcessor", {"resample": 9}, "setting resample: 9 "),
        ("CLIPImageProcessor", {"size": 0}, "setting size: 0 "),
        ("CLIPImageProcessor", {"size": {"shortest_edge": "x"}}, "setting size: "),
        ("CLIPImageProcessor", {"image_std": [0, 1, 1]}, "image_std is not above 0"),
        ("CLIPImageProcessor", {"image_mean": [0.5]}, "setting image_mean: "),
        ("CLIPImageProcessor", {"rescale_factor": "x"}, "setting rescale_factor: x"),
        ("CLIPImageProcessor", {"crop_pct": 0.9}, "setting crop_pct: 0.9 "),
        (
            "ConvNextImageProcessor",
            {"do_center_crop": True, "crop_size": 224},
            "setting do_center_crop: True",
        ),
        ("ConvNextImageProcessor", {"size": {"height": 32, "width": 32}}, "setting size: "),
        ("ViTImageProcessor", {"do_pad": True}, "setting do_pad: True"),
    ],
)
def test_what_no_card_can_say_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message):
        translated(settings, DEFAULTS[name], "model")
    assert translated({}, {**DEFAULTS["ViTImageProcessor"]}, "model").side == 224
