"""Captions in JSON Lines: an object a line with an image's file name and a caption, or a list of them.

What the keys are called the card says (`columns.image`, `columns.caption`), else they are looked for as the columns of
tables are; so is a key that says which split a line belongs to. DOCCI's docci_descriptions.jsonlines is one such file.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import Columns, TaskCard
from clipbench.data.labels import fold
from clipbench.data.layouts._caption_tables import HEADINGS
from clipbench.data.layouts._json_lines import objects
from clipbench.data.layouts.base import LayoutSpec
from clipbench.data.layouts.captions import IMAGE_FOLDERS, CaptionFile
from clipbench.data.paths import is_junk, split_names
from clipbench.data.split import Note
from clipbench.errors import DataError

_SUFFIXES: Final = (".jsonl", ".jsonlines")


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> CaptionFile | None:
    """The split of `dataset` that plays `role`, in the folder `root`; None where no such file has images and captions.

    Raises:
        DataError: several files have them, none of their lines is of the split, or an image is missing.
    """
    if dataset.card.languages:
        return None
    columns = dataset.card.columns
    there = sorted(path for path in root.iterdir() if path.suffix in _SUFFIXES and not is_junk(path.name))
    found = {path: keys for path in there if (keys := _keys(path, columns)) is not None}
    if not found:
        return None
    names = split_names(dataset.card.splits[role], role)
    own = {
        path: keys for path, keys in found.items() if path.stem.endswith(tuple(f"_{name}" for name in names))
    }
    found = own or found
    if len(found) > 1:
        raise DataError(
            f"{dataset.id}: {' and '.join(path.name for path in found)} in {root} have images and captions",
            hint="keep the one that is meant, beside its images",
        )
    ((file, keys),) = found.items()
    if "split" not in keys and not own and not dataset.card.alone:
        raise DataError(
            f"{dataset.id}: {file} does not say which split a line belongs to",
            hint=f"call it captions_{names[0]}.jsonl, or give each line a key split",
        )
    return JsonLines(dataset, role, file, root, keys)


LAYOUT: Final = LayoutSpec(("captions",), "a .jsonl of image and caption, with images/", probe)


class JsonLines(CaptionFile):
    """One file, of which lines of other splits are left out."""

    name_in_fingerprint = "JsonLines"

    def __init__(
        self, dataset: Entry[TaskCard], role: str, file: Path, root: Path, keys: dict[str, str]
    ) -> None:
        """`keys`: image, caption and perhaps split → what they are called in `file`."""
        names = split_names(dataset.card.splits[role], role)
        wanted = set(map(fold, names))
        captions: dict[str, list[Any]] = {}
        others: set[str] = set()
        left_out: Counter[str] = Counter()
        for number, line in objects(file):
            image, text = (line.get(keys[key]) for key in ("image", "caption"))
            if not isinstance(image, str) or not image.strip() or not isinstance(text, str | list):
                raise DataError(
                    f"{file}:{number}: expected {keys['image']!r} with a file name and {keys['caption']!r}"
                )
            of = str(line.get(keys["split"])) if "split" in keys else None
            if of is not None and fold(of) not in wanted:
                left_out[of] += 1
                others.add(image)
                continue
            captions.setdefault(image, []).extend([text] if isinstance(text, str) else text)
        if left_out and not captions:
            there = ", ".join(repr(name) for name, _ in left_out.most_common(6))
            raise DataError(
                f"{dataset.id}: no {role} split in {file}: no line of {' or '.join(names)} (there is {there})",
                hint=f"set splits.{role}.name in {dataset.path} to one of these",
            )
        notes: tuple[Note, ...] = ()
        if left_out:
            of_each = ", ".join(f"{count:,} to {name!r}" for name, count in left_out.most_common(6))
            text = f"lines of the file belong to other splits ({of_each})"
            notes = (Note("rows-of-other-splits", text, sum(left_out.values())),)
        folders = [*(root / name for name in (*names, *IMAGE_FOLDERS)), root]
        super().__init__(root, file, captions, folders, others - captions.keys(), notes)


def _keys(file: Path, columns: Columns) -> dict[str, str] | None:
    """What the first line of a file calls image, caption and perhaps split; None where it lacks one of the two."""
    first = next((line for _, line in objects(file)), {})
    found: dict[str, str] = {}
    for role, known in HEADINGS.items():
        own = getattr(columns, role, role)
        named = [own] if role in columns.model_fields_set else [key for key in first if fold(key) in known]
        if named and named[0] in first:
            found[role] = named[0]
    return found if {"image", "caption"} <= found.keys() else None
