"""Captions of a split, from what a layout has of each image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from clipbench.data.split import Captions, Note, notes_of
from clipbench.data.text import lines
from clipbench.errors import DataError

_WHITE: Final = re.compile(r"[\t-\r\x1c-\x1f ]+")
_OTHER_WHITE: Final = re.compile(r"[^\S\t-\r\x1c-\x1f ]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def gather(dataset: str, ids: list[str], raw: list[Any], where: str) -> tuple[Captions, tuple[Note, ...]]:
    """The captions of a split, checked: every image has one, and none is empty.

    They stay as they are written, code point for code point, but for ASCII's white space, which becomes single spaces
    within a caption and nothing at its ends; captions that this changes are counted in a note, and so are those that
    an image has twice.

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
    spaced: list[str] = []
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
            plain = plain_caption(text)
            if not plain.isprintable() and _SURROGATE.search(plain):
                raise DataError(
                    f"{dataset}: caption {number} of image {name} in {where} holds half of a character (a lone "
                    f"surrogate): {plain[:60]!a}",
                    hint="write the file again as UTF-8",
                )
            if plain != text:
                spaced.append(name)
            if plain.strip():
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
    gathered = Captions(tuple(texts), np.array(image, dtype=np.int64))
    return gathered, (
        *notes_of(
            "repeated-captions", "captions repeat another one of their image, and count as it does", twice
        ),
        *notes_of("white-space", "captions had white space that was made single spaces", spaced),
    )


def plain_caption(text: str) -> str:
    r"""`text` with single spaces for ASCII's white space, and none at its ends; all else stays, also other spaces.

    >>> plain_caption(" two  lines\r\nof\u3000text\u00a0\n")
    'two lines of\u3000text\xa0'
    """
    return _WHITE.sub(" ", text).strip(" ")


def keeps_spaces(texts: Iterable[str]) -> bool:
    """Whether one of `texts` has white space beyond ASCII's, which once was made spaces as well."""
    return any(not text.isascii() and _OTHER_WHITE.search(text) for text in texts)
