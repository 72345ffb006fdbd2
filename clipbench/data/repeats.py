"""Images that are several samples of a set of captions: rows of one image become one sample, or are refused.

Retrieval would count such an image as many times as it is there, and call every hit but one wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipbench.cards.base import fingerprint
from clipbench.data.layouts.base import Layout
from clipbench.data.layouts.parquet import Parquet, captions_of
from clipbench.data.split import Note, notes_of
from clipbench.errors import DataError
from clipbench.utils.cache import cache_root, read_checked, write_checked

_BYTES = 32  # of a digest
_KIND = "clipbench digests of a split's images, version 1"


def fold(source: Layout, content: str, named: str | None, ids: Sequence[str], raw: Sequence[Any]) -> str:
    """Group the rows of one image in a table of captions; the fingerprint, which stays where nothing is grouped.

    A table says by a column which image a row shows: the one that is `named` on the card, else one of usual name, else
    the paths of the images; all rows of one value must hold the same bytes. Bytes alone decide nothing: a set may truly
    hold an image twice. Where no column says it, images that are there twice with one caption each are an error, and
    those with several captions each, as nobody writes one image twice, are a note.

    Args:
        content: the fingerprint of the rows as they are.
        ids, raw: what `source` gives as its index.

    Raises:
        DataError: images repeat, with one caption each; or the column `named` calls different images one.
    """
    images = _digests(source, content, len(ids))
    counts = Counter(image for image in images if image)
    if named is None and len(counts) == sum(counts.values()):
        return content
    if isinstance(source, Parquet):
        for column, values in source.identities(named):
            groups = _groups(values)
            wrong = next((group for group in groups if len({images[row] for row in group}) > 1), None)
            if named is not None:
                _check(source, images, column, values, wrong)
            if wrong is None and None not in values and len(groups) < len(images):
                source.groups = groups
                text = f"rows of the table are {len(groups):,} images with their captions, by the column {column!r}"
                source.notes += (Note("grouped-rows", text, len(images)),)
                images = [images[group[0]] for group in groups]
                ids, raw = zip(*source.index(), strict=True)
                content = fingerprint({"content": content, "grouped by": column})
                break
    _judge(source, images, named, ids, raw)
    return content


def _check(
    source: Parquet, images: Sequence[bytes], column: str, values: list[Any], wrong: list[int] | None
) -> None:
    """Refuse the column that the card names where it says nothing, or what is not so."""
    if None in values:
        raise DataError(
            f"{source.where}: row {values.index(None)} has nothing in the column {column!r}, which columns.image_id on "
            "the task card names",
            hint="name a column that says of every row which image it shows",
        )
    if wrong is not None:
        other = next(row for row in wrong if images[row] != images[wrong[0]])
        raise DataError(
            f"{source.where}: rows {wrong[0]} and {other} have {str(values[other])[:60]!r} in the column {column!r}, "
            "but not the same image",
            hint="name another column as columns.image_id on the task card",
        )


def _judge(
    source: Layout, images: Sequence[bytes], named: str | None, ids: Sequence[str], raw: Sequence[Any]
) -> None:
    """Refuse images that are several samples, or note them."""
    repeats = [rows for rows in _groups([image or None for image in images]) if len(rows) > 1]
    single = [rows for rows in repeats if any(len(captions_of(raw[row])) == 1 for row in rows)]
    if single and named is None:
        first, second = (ids[row] for row in single[0][:2])
        raise DataError(
            f"{source.where}: samples {first} and {second} are the same image with a caption each; {len(single):,} "
            "images are there more than once, and retrieval would count each as often",
            hint="name the column that says which image a row shows as columns.image_id on the task card (the table "
            f"has {', '.join(map(repr, source.columns))}); images that are truly there twice differ in it"
            if isinstance(source, Parquet)
            else "pack each image once, with all its captions in its .txt, one a line",
        )
    text = "images are there more than once, as samples of their own"
    source.notes += notes_of("repeated-images", text, [ids[rows[0]] for rows in repeats])


def _groups(values: Sequence[Any]) -> list[list[int]]:
    """The rows of each value, by their first; a row of None is alone."""
    found: dict[Any, list[int]] = {}
    for row, value in enumerate(values):
        found.setdefault((row,) if value is None else value, []).append(row)
    return list(found.values())


def _digests(source: Layout, content: str, count: int) -> list[bytes]:
    """sha256 of every sample's encoded image, b"" where there is none; kept in the cache by the split's fingerprint."""
    path = cache_root() / "splits" / f"{content}.images"
    kept = read_checked(path, _KIND)
    if kept is None:
        images = source.images(np.arange(count))
        kept = b"".join(hashlib.sha256(image).digest() if image else bytes(_BYTES) for _, image in images)
        write_checked(path, kept, _KIND)
    parts = (kept[start : start + _BYTES] for start in range(0, len(kept), _BYTES))
    return [part if any(part) else b"" for part in parts]
