"""Captions of a split, from what a layout has of each image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def gather_languages(
    dataset: str,
    languages: Sequence[str],
    there: Sequence[str],
    ids: list[str],
    raw: list[Mapping[str, Any]],
    where: str,
) -> tuple[Captions, tuple[Note, ...]]:
    """The captions of a split in several languages, of each as `gather`. An image may lack captions in some of them.

    Args:
        languages: that are wanted.
        there: that the copy has.
        raw: what each image has: language → as of `gather`; nothing where it has no caption in it.

    Raises:
        DataError: the copy has no captions in a language, or as of `gather`.
    """
    found: list[Captions] = []
    notes: dict[str, list[Note]] = {}
    lacking = [language for language in languages if not any(of.get(language) for of in raw)]
    if lacking:
        raise _no_captions(dataset, languages, lacking, there, where)
    for name in languages:
        rows = [row for row, of in enumerate(raw) if of.get(name)]
        some = [raw[row][name] for row in rows]
        captions, said = gather(dataset, [ids[row] for row in rows], some, f"{where} ({name})")
        found.append(Captions(captions.texts, np.array(rows, dtype=np.int64)[captions.image]))
        for note in said:
            notes.setdefault(note.kind, []).append(note)
    image = np.concatenate([captions.image for captions in found])
    language = np.repeat(np.arange(len(found)), [len(captions.texts) for captions in found])
    order = np.lexsort((language, image))
    texts = [text for captions in found for text in captions.texts]
    joined = Captions(
        tuple(texts[i] for i in order.tolist()), image[order], tuple(languages), language[order]
    )
    return joined, tuple(
        Note(kind, of[0].text, sum(note.count for note in of), of[0].examples) for kind, of in notes.items()
    )


def _no_captions(
    dataset: str, languages: Sequence[str], lacking: Sequence[str], there: Sequence[str], where: str
) -> DataError:
    """The error for languages in which a copy has no captions."""
    some = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
    of = f" ({len(lacking)} of {len(languages)} languages)" if len(languages) > 1 else ""
    has = ", ".join(there[:40]) + (", …" if len(there) > 40 else "")
    known = [language for language in there if language not in lacking]
    return DataError(
        f"{dataset}: {where} has no captions in {some}{of}; it has {has or 'none in any language of the card'}",
        hint=f"measure one that is there (--task {dataset}-ret@{known[0]}), or fetch the others"
        if known
        else "fetch them, or correct the languages on the task card",
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
