"""EqBen: pairs of images that differ little, each with a caption, from five sources.

A copy is a folder with a list of {image0, image1, caption0, caption1}, called as the split is on the card:
`eqben_subset_10percent_final.json`, the authors' tenth, with the images below `image_subset/`, or `all_select.json`,
their small set for language models, with the images below `images/`. A frame of YouCook2 is an array (.npy: height,
width, and blue, green, red), and is read as an image of these pixels. The first folder of image0 is a part. The whole
set has another form, which is not read.
Source: Wang et al. 2023, arXiv 2303.14465; README and `src/eqben/eqben_utils.py` of github.com/Wangt-CN/EqBen.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts._choice_files import ChoiceFiles, Fields, Item, list_of, two_pairs
from clipbench.data.layouts.base import LayoutSpec

_NAMES: Final = ("eqben_subset_10percent_final", "all_select")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> ChoiceFiles | None:
    """The pairs in the folder `root`; None where the file that the card names is not there.

    Raises:
        DataError: a file that is none, or a missing image.
    """
    file = root / f"{dataset.card.splits[role].name}.json"
    if not file.is_file():
        return None
    items = [_item(file, number, entry) for number, entry in enumerate(list_of(file, "EqBen"))]
    return _Frames(root, [file], items, ("image_subset", "images", "."), form="EqBen")


LAYOUT: Final = LayoutSpec(("choices",), f"EqBen's {_NAMES[0]}.json and image_subset/", probe, forms=_NAMES)


class _Frames(ChoiceFiles):
    def read(self, path: Path) -> bytes:
        data = super().read(path)
        return _picture(data) if path.suffix == ".npy" else data


def _picture(data: bytes) -> bytes:
    """An array of blue, green and red, as PNG; empty where it is none."""
    try:
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:  # a file made to do harm may raise anything while its header is read
        return b""
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[2] != 3
    ):
        return b""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _item(file: Path, number: int, entry: Any) -> Item:
    fields = Fields(file, f"item {number}", entry)
    images = [fields.text(f"image{place}") for place in (0, 1)]
    texts = [fields.text(f"caption{place}") for place in (0, 1)]
    return two_pairs(str(number), images, texts, images[0].partition("/")[0])
