"""Cards made from a folder: what `clipbench eval` measures on without a card, and `clipbench init task` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.data.layouts.base import Layout
from clipbench.data.open import layout_of, open_split
from clipbench.data.paths import DataPaths, listing
from clipbench.errors import ClipbenchError, DataError, did_you_mean
from clipbench.utils.parsing import Unreadable, exists, expanded, file_bytes

TEMPLATE: Final = "a photo of a {c}."
#: role → what folders and files of it may be called
_ROLES: Final = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_MOST: Final = 64 << 20
_PLACEHOLDERS: Final = ("one class", "another class")


@dataclass(frozen=True)
class Prompts:
    """What a user says of classes: a file of names, and templates or files of them; empty where nothing is said."""

    classes: Path | None = None
    templates: Sequence[str] = ()


def draft(name: str, root: Path, prompts: Prompts, kind: str | None = None) -> str:
    """The card of the data set `name`, made from what lies in `root`: YAML, with comments on what was assumed.

    Args:
        kind: single-label or captions; None: labels where there are some, else captions.

    Raises:
        DataError: nothing there is a data set, or labels have no names, or names do not fit.
        ClipbenchError: the name is none that a data set can have.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise ClipbenchError(
            f'"{name}" is no name for a data set',
            hint="take small letters, digits, and - . _ after the first sign",
        )
    splits = _splits(root)
    if kind is None:
        found = _labelled(name, root, splits)
        several = found is not None and (found.names is None or len(found.names) > 1)
        kind = "single-label" if several or prompts != Prompts() else "captions"
    if kind == "captions":
        return _captioned(name, root, splits)
    layout = _labelled(name, root, splits)
    if layout is None:
        raise DataError(
            f"{name}: no images with labels in {root} (it holds {listing(root)})",
            hint=f"expected a folder for each class, or tars or parquet files; with captions: {name}-ret",
        )
    return _classified(name, root, splits, layout, prompts)


def _splits(root: Path) -> dict[str, str]:
    """Role → what it is called in `root`; one split `test` where nothing there has the name of a split."""
    if not root.is_dir():
        raise DataError(f"no data folder {root}")
    there = [path.name for path in (*root.iterdir(), *_below(root / "data"))]
    found = {}
    for role, names in _ROLES.items():
        called = [n for n in names if any(re.match(rf"{n}(\b|[-_.])", one, re.IGNORECASE) for one in there)]
        if called:
            found[role] = called[0]
    if "test" not in found and found:
        role = "val" if "val" in found else next(iter(found))
        found = {r: n for r, n in found.items() if r != role} | {"test": found[role]}
    return found or {"test": "test"}


def _below(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _card(name: str, fields: dict[str, Any]) -> Entry[TaskCard]:
    path = Path(f"{name}.yaml")
    return Entry(name, parse(TaskCard, Document(path, json.dumps(fields))), path)


def _fields(name: str, splits: dict[str, str], **more: Any) -> dict[str, Any]:
    given = {"title": name, "source": {"local": True}, "splits": {r: {"name": n} for r, n in splits.items()}}
    return given | more


def _labelled(name: str, root: Path, splits: dict[str, str]) -> Layout | None:
    """The test split as a set of one label an image; None where it is none."""
    fields = _fields(
        name,
        splits,
        classes=list(_PLACEHOLDERS),
        templates={"default": [TEMPLATE]},
        prompts_source="made from the data",
        protocols={"zs": {}},
    )
    try:
        return layout_of(_card(name, fields), "test", root)
    except DataError as error:
        if "no test data in" in error.message:
            return None
        raise


def _names(name: str, layout: Layout) -> tuple[list[str], bool]:
    """The data's own names of labels, in the order of their numbers; and whether they are these numbers.

    Raises:
        DataError: labels that are neither all texts nor all whole numbers from 0 on.
    """
    if layout.names is not None:
        return list(layout.names), False
    labels = list(layout.index())
    if all(isinstance(label, str) for _, label in labels):
        return sorted({label for _, label in labels}), False
    odd = next((one for one in labels if not (isinstance(one[1], int) and one[1] >= 0)), None)
    if odd is not None:
        raise DataError(
            f"{name}: sample {odd[0]} at {layout.where} has the label {str(odd[1])[:60]}; without a card all labels "
            "are texts, or all are whole numbers from 0 on",
            hint="correct the data, or write a card; where an image has several labels, with kind: multi-label",
        )
    return [str(number) for number in range(1 + max(int(label) for _, label in labels))], True


def _classified(name: str, root: Path, splits: dict[str, str], layout: Layout, prompts: Prompts) -> str:
    own, numbers = _names(name, layout)
    if numbers and prompts.classes is None:
        raise DataError(
            f"{name}: the labels at {layout.where} are numbers, and nothing says what they are called",
            hint="give the names with --classes, or write them into classnames.txt there: one a line in the order of "
            "the numbers",
        )
    if len(own) < 2:
        raise DataError(
            f"{name}: {root} holds {len(own)} class ({', '.join(own)}); classification needs two",
            hint="make a folder for each class, with its images in it",
        )
    classes = _classes(prompts.classes, own, root)
    templates = _templates(prompts.templates) or [TEMPLATE]
    assumed = [
        f"one label an image, {len(own)} classes {'numbered' if numbers else 'named'} by {_told(layout)}",
        "the names stand in prompts as they are"
        if prompts.classes is None
        else f"names from {prompts.classes}",
        *(["one plain template; a set of your own may score higher"] if not prompts.templates else []),
        *_of_splits(splits),
    ]
    lines = [*_head(name, root, assumed), *_split_lines(splits)]
    protocols = ["zs", *(["lp"] if "train" in splits else [])]
    lines += ["protocols:", *(f"  {one}: {{}}" for one in protocols)]
    lines += ['prompts_source: "yours"', "templates:", "  default:", *(f"    - {_q(t)}" for t in templates)]
    lines += ["classes:  # as they stand in prompts", *(f"  - {_q(c)}" for c in classes)]
    if classes != own and not numbers:
        lines += ["label_names:  # as the data calls them, in the same order", *(f"  - {_q(c)}" for c in own)]
    return "\n".join(lines) + "\n"


def _told(layout: Layout) -> str:
    return "its folders" if layout.name_in_fingerprint == "_Folder" else "the data"


def _captioned(name: str, root: Path, splits: dict[str, str]) -> str:
    entry = _card(name, _fields(name, splits, kind="captions", protocols={"ret": {}}))
    split = open_split(entry, "test", DataPaths({name: root}, ()))
    assert split.captions is not None
    count = len(split.captions.texts)
    ks = [k for k in (1, 5, 10) if k <= min(len(split), count)]
    assumed = [f"{len(split):,} images with {count:,} captions", *_of_splits(splits)]
    if ks != [1, 5, 10]:
        assumed.append(f"recall@k only up to {ks[-1]}, since there are no more images")
    lines = [*_head(name, root, assumed), *_split_lines(splits), "kind: captions", "protocols:"]
    settings = "{}" if ks == [1, 5, 10] else f"{{ks: {ks}}}"
    return "\n".join([*lines, f"  ret: {settings}"]) + "\n"


def _of_splits(splits: dict[str, str]) -> list[str]:
    if splits == {"test": "test"}:
        return ["all of it is the test split"]
    return [f"the {role} split is what is called {name}" for role, name in splits.items()]


def _head(name: str, root: Path, assumed: Sequence[str]) -> list[str]:
    return [
        f"# Assumed from the data in {root.name or root}; change what is wrong:",
        *(f"#   {one}" for one in assumed),
        f"title: {_q(name)}",
        f"source: {{local: true}}  # given with --data {name}=<folder>",
    ]


def _split_lines(splits: dict[str, str]) -> list[str]:
    """Without numbers of rows, so that a copy may grow; with `rows: N` one that lacks samples is an error."""
    return ["splits:", *(f"  {role}: {{name: {_q(called)}}}" for role, called in splits.items())]


def _q(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# ------------------------------------------------------------------ what users say


def _lines(path: Path, what: str) -> list[str]:
    """The lines of a file of a user's, without those at its end that are blank."""
    try:
        text = file_bytes(path, _MOST).decode("utf-8-sig")
    except Unreadable as error:
        raise DataError(f"{path}: cannot be read ({error})", hint=f"expected {what}, one a line") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text", hint=f"expected {what}, one a line") from None
    found = [line.strip(" \r") for line in text.rstrip().split("\n")]
    blank = next((number for number, line in enumerate(found, 1) if not line.strip()), None)
    if blank is not None:
        raise DataError(f"{path}:{blank}: a blank line", hint=f"expected {what}, one a line")
    return found


def _classes(path: Path | None, own: Sequence[str], root: Path) -> list[str]:
    """The names of classes for prompts, in the order of the data's own names.

    Raises:
        DataError: they do not fit.
    """
    if path is None:
        return list(own)
    given = _lines(expanded(path), "class names")
    if not any("\t" in line for line in given):
        if len(given) != len(own):
            raise DataError(
                f"{path} has {len(given)} names, {root} {len(own)} classes ({', '.join(own[:4])}, …)",
                hint="give a name for each class in their sorted order, or lines of folder<TAB>name",
            )
        return given
    pairs = {}
    for number, line in enumerate(given, 1):
        folder, tab, called = line.partition("\t")
        folder, called = folder.strip(), called.strip()
        if not tab or not folder or not called:
            raise DataError(f"{path}:{number}: expected folder<TAB>name, as other lines have it")
        if folder not in own:
            raise DataError(f'{path}:{number}: no class "{folder}" in {root}{did_you_mean(folder, own)}')
        if folder in pairs:
            raise DataError(f'{path}:{number}: "{folder}" is there twice')
        pairs[folder] = called
    missing = [folder for folder in own if folder not in pairs]
    if missing:
        raise DataError(
            f"{path}: no name for {len(missing)} of the {len(own)} classes ({', '.join(missing[:4])})",
            hint="add a line folder<TAB>name for each",
        )
    return [pairs[folder] for folder in own]


def _templates(given: Sequence[str]) -> list[str]:
    """Templates, of which each is one or a file of them.

    Raises:
        DataError: one has no place for the class name.
    """
    found: list[str] = []
    for text in given:
        if "{c}" not in text and exists(expanded(text)):
            found += _lines(expanded(text), "templates with {c}")
        else:
            found.append(text)
    bare = next((text for text in found if "{c}" not in text), None)
    if bare is not None:
        raise DataError(
            f'the template "{bare}" has no {{c}} for the class name',
            hint='for example --templates "a photo of a {c}.", or a file with one template a line',
        )
    return found
