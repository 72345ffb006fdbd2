"""Small copies of the sets that have ImageNet's classes, as the hub and as their authors have them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import class_copies
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def image(number: int, kind: str = "JPEG", *, size: tuple[int, int] = (12, 10), border: int = 0) -> bytes:
    """Encoded image number `number`, one colour; with `border`, in a red frame of so many pixels more."""
    inner = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 60))
    framed = Image.new("RGB", (size[0] + 2 * border, size[1] + 2 * border), (255, 0, 0))
    framed.paste(inner, (border, border))
    buffer = io.BytesIO()
    framed.save(buffer, kind)
    return buffer.getvalue()


def write_hub(root: Path, labels: Sequence[int], names: Sequence[str] | None) -> Path:
    """CLIP_benchmark's WebDataset: image `i` of the class `labels[i]`."""
    return class_copies.write_wds(root, [(label, image(i)) for i, label in enumerate(labels)], names)


def write_folders(root: Path, labels: Sequence[int], folders: Sequence[str], suffix: str = "JPEG") -> Path:
    """An image folder of image `i` in the folder `folders[labels[i]]`."""
    for number, label in enumerate(labels):
        path = root / folders[label] / f"{number:04d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number, "PNG" if suffix == "png" else "JPEG"))
    return root


def write_objectnet(root: Path, labels: Sequence[int], folders: Sequence[str], names: Sequence[str]) -> Path:
    """objectnet-1.0 as its zip unpacks, with two folders that are no classes of ImageNet."""
    base = root / "objectnet-1.0"
    for number, label in enumerate([*labels, -1, -2]):
        folder = folders[label] if label >= 0 else ("aerosol_can", "wheel_rim")[label]
        path = base / "images" / folder / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number, "PNG", border=1))
    (base / "mappings").mkdir()
    every = dict(zip(folders, names, strict=True)) | {"aerosol_can": "Aerosol can", "wheel_rim": "Wheel rim"}
    for name, value in (
        ("folder_to_objectnet_label", every),
        ("objectnet_to_imagenet_1k", {name: f"{name}; other" for name in names}),
    ):
        (base / "mappings" / f"{name}.json").write_text(json.dumps(value))
    return root


def write_conditions(
    root: Path, conditions: Sequence[str], labels: Sequence[int], folders: Sequence[str]
) -> Path:
    """The same images under every condition: `<condition>/<folder>/<number>`."""
    for place, condition in enumerate(conditions):
        for number, label in enumerate(labels):
            path = root / condition / folders[label] / f"ILSVRC2012_val_{number:08d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(number + 7 * place))
    return root


def write_real(root: Path, accepted: Sequence[Sequence[int]], folders: Sequence[str] | None = None) -> Path:
    """real.json and val/: image `i + 1` of each list, flat or in the folder of its first class, or class 0."""
    for number, classes in enumerate(accepted, 1):
        folder = root / "val" / (folders[classes[0] if classes else 0] if folders else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(image(number - 1))
    (root / "real.json").write_text(json.dumps([list(map(int, one)) for one in accepted]))
    return root


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
