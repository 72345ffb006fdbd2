"""Captions of a split, from what a layout has of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbench.data.split import Captions, Note, notes_of
from clipbench.data.text import lines
from clipbench.errors import DataError


def gather(dataset: str, ids: list[str], raw: list[Any], where: str) -> tuple[Captions, tuple[Note, ...]]:
    """The captions of a split, checked: every image has one, and none is empty. White space becomes single spaces.

    A caption that an image has twice is counted in a note.

    Args:
        raw: what each image has: a text; a text of several lines, one caption each, where blank ones are none; or a
            list of texts, or of mappings with a `raw` text; or one such mapping.

    Raises:
        DataError: naming the first image without captions, or with one that is empty or no text.
    """
    texts: list[str] = []
    image: list[int] = []
    bare: list[str] = []
    twice: list[str] = []
    for row, (name, value) in enumerate(zip(ids, raw, strict=True)):
        several = lines(value) if isinstance(value, str) else [value] if isinstance(value, Mapping) else value
        if not isinstance(several, list):
            raise DataError(f"{dataset}: image {name} in {where} has {str(value)[:60]!r}, expected captions")
        captions = []
        for number, caption in enumerate(several, 1):
            text = caption.get("raw") if isinstance(caption, Mapping) else caption
            if not isinstance(text, str):
                raise DataError(
                    f"{dataset}: caption {number} of image {name} in {where} is {str(caption)[:60]!r}, expected a "
                    'text, or a mapping with a text "raw"'
                )
            plain = " ".join(text.split())
            if plain:
                captions.append(plain)
            elif not isinstance(value, str):
                raise DataError(
                    f"{dataset}: caption {number} of image {name} in {where} is empty",
                    hint="take it out of the data: an empty text finds no image",
                )
        if not captions:
            bare.append(name)
        twice += [name for text, count in Counter(captions).items() for _ in range(count - 1)]
        texts += captions
        image += [row] * len(captions)
    if bare:
        raise DataError(
            f"{dataset}: image {bare[0]} in {where} has no caption; {len(bare):,} of {len(ids):,} images have none",
            hint="take such images out of the data: they could never be found by a caption, nor find one",
        )
    text = "captions repeat another one of their image, and count as it does"
    gathered = Captions(tuple(texts), np.array(image, dtype=np.int64))
    return gathered, notes_of("repeated-captions", text, twice)
