"""PASCAL VOC development kits: multi-label sets that mark the objects which are difficult to see.

A kit is a folder `VOC<year>` with `JPEGImages/<id>.jpg`, `Annotations/<id>.xml` (every object with its class and
whether it is difficult) and `ImageSets/Main/`: `<split>.txt` (the ids) and `<class>_<split>.txt` (beside each id 1
where the class is present, 0 where only difficult objects of it are, -1 where it is absent). Source: the
documentation of the VOC2007 development kit, which calls the latter the ground truth for classification.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import LABELLED, TaskCard
from clipbench.data import labels
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.paths import split_names
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError
from clipbench.metrics.average_precision import DIFFICULT
from clipbench.utils.parsing import exists

#: the second word of a line in <class>_<split>.txt → label
_LABELS = {"1": 1, "0": DIFFICULT, "-1": 0}


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in the VOC folder that `root` is or holds; None without such a folder.

    Where there are class files, they decide and no XML is read; otherwise the boxes do: a class is present (1) with
    any object that is not difficult, and difficult (255) where all of its objects are. A folder without
    `ImageSets/Main` is one split, for a card that has one.

    Raises:
        DataError: several VOC folders and none of the card's year, no such split, class files that disagree, an
            image or XML file that is missing or cannot be read.
    """
    folder = _folder(dataset, root)
    if folder is None:
        return None
    main = folder / "ImageSets" / "Main"
    for name in split_names(dataset.card.splits[role], role):
        ids = main / f"{name}.txt"
        suffix = f"_{name}.txt"
        classes = {p.name.removesuffix(suffix): p for p in sorted(main.glob(f"*{escape(suffix)}"))}
        if classes:
            return _ClassFiles(folder, classes, ids if ids.is_file() else None)
        if ids.is_file():
            return _Boxes(dataset, folder, list(_listed(ids, 1)), ids)
    if not main.is_dir() and dataset.card.alone:
        return _Boxes(dataset, folder, sorted(p.stem for p in (folder / "Annotations").glob("*.xml")))
    raise _no_split(dataset, role, main)


LAYOUT: Final = LayoutSpec(LABELLED, "a VOCdevkit (kind: multi-label)", probe)


def _folder(dataset: Entry[TaskCard], root: Path) -> Path | None:
    """`root`, or the folder VOC<year> in it or in its VOCdevkit; of several, the one of the year in the card's id."""
    if _is_kit(root):
        return root
    found = [p for base in (root, root / "VOCdevkit") for p in sorted(base.glob("VOC20??")) if _is_kit(p)]
    if len(found) > 1:
        years = re.findall(r"\d+", dataset.id)[:1]  # voc07, voc2012-100
        of_year = [p for p in found if years and p.name.endswith(years[0])]
        if len(of_year) != 1:
            raise DataError(
                f"{dataset.id}: {root} holds {', '.join(str(p.relative_to(root)) for p in found)}",
                hint=f"name the one that is meant: --data {dataset.id}={found[0]}",
            )
        return of_year[0]
    return found[0] if found else None


def _is_kit(folder: Path) -> bool:
    return (folder / "ImageSets" / "Main").is_dir() or any((folder / "Annotations").glob("*.xml"))


def _no_split(dataset: Entry[TaskCard], role: str, main: Path) -> DataError:
    name = dataset.card.splits[role].name
    if not main.is_dir():
        return DataError(
            f"{dataset.id}: no {main}, which would say what belongs to {name}",
            hint=f"unpack the whole VOCdevkit, or write the ids to {main / f'{name}.txt'}, one a line",
        )
    there = sorted({p.stem.rpartition("_")[2] for p in main.glob("*.txt")})
    return DataError(
        f"{dataset.id}: no {role} split in {main}: neither {name}.txt nor <class>_{name}.txt "
        f"(there is {', '.join(there) or 'nothing'})",
        hint="VOC's trainval and test come in archives of their own, each with its part of one VOCdevkit: unpack the "
        f"other one into the same folder, or correct splits.{role}.name in {dataset.path}",
    )


class _ClassFiles(FileLayout):
    """Labels from `<class>_<split>.txt`. `ids_file`, where it is there, must list the same images."""

    name_in_fingerprint = "_ClassFiles"

    def __init__(self, folder: Path, files: dict[str, Path], ids_file: Path | None) -> None:
        self.names = list(files)
        columns = {path: _listed(path, 2) for path in files.values()}
        first, *others = columns
        self._ids = list(columns[first])
        lists = {path: list(columns[path]) for path in others}
        if ids_file is not None:
            lists[ids_file] = list(_listed(ids_file, 1))
        for path, ids in lists.items():
            if ids != self._ids:
                raise DataError(
                    f"{path} and {first.name} do not list the same images in the same order: "
                    + _first_difference(ids, self._ids),
                    hint="unpack the development kit again",
                )
        self._labels = np.array([list(labels.values()) for labels in columns.values()], dtype=np.uint8).T
        super().__init__(folder, _images(folder, self._ids), list(files.values()))


class _Boxes(FileLayout):
    """Labels from `Annotations/<id>.xml`, in the order of the card's classes."""

    name_in_fingerprint = "_Boxes"

    def __init__(
        self, dataset: Entry[TaskCard], folder: Path, ids: list[str], ids_file: Path | None = None
    ) -> None:
        self._dataset, self._ids = dataset, ids
        self._files = [folder / "Annotations" / f"{i}.xml" for i in ids]
        lost = [path for path in self._files if not exists(path)]
        if lost:
            raise DataError(
                f"{dataset.id}: neither class files in ImageSets/Main nor {lost[0]} say what the image shows; "
                f"{len(lost):,} of {len(ids):,} annotations are missing",
                hint="unpack the archive with the annotations (of its test sets, VOC published those of 2007 only)",
            )
        lists = [] if ids_file is None else [ids_file]
        super().__init__(folder, _images(folder, ids), [*lists, *self._files])

    def index(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        dataset, card = self._dataset, self._dataset.card
        shown = [list(_objects(path)) for path in self._files]
        found = labels.match_card(card, list(dict.fromkeys(name for of in shown for name, _ in of)))
        if found.lost and card.other_labels == "error":
            named = ((path, name) for path, of in zip(self._files, shown, strict=True) for name, _ in of)
            raise self._unknown(*next((path, name) for path, name in named if name in found.lost))
        labels.refuse_doubt(dataset, found, self.where)
        self.notes = found.notes + labels.other_labels(found.lost)
        column = dict(zip(found.names, found.places, strict=True))
        for image, of in zip(self._ids, shown, strict=True):
            row = np.zeros(len(card.classes), dtype=np.uint8)
            for name, difficult in of:
                index = column[name]
                if index is None:
                    continue
                if not difficult:
                    row[index] = 1
                elif not row[index]:
                    row[index] = DIFFICULT
            yield image, row

    def _unknown(self, path: Path, name: str) -> DataError:
        near = labels.is_it(name, self._dataset.card.label_names or self._dataset.card.classes)
        return DataError(
            f"{path} has an object {name!r}, not a class of {self._dataset.id}{near}",
            hint=f"correct classes or label_names in {self._dataset.path}, or set other_labels: ignore there",
        )


def _images(folder: Path, ids: list[str]) -> list[Path]:
    return [folder / "JPEGImages" / f"{i}.jpg" for i in ids]


def _listed(path: Path, words: int) -> dict[str, int]:
    """Id → label of every line of a list; of one with a single word a line, id → 1."""
    found: dict[str, int] = {}
    for number, line in enumerate(lines(decoded(path)), 1):
        parts = line.split()
        if not parts:
            continue
        label = _LABELS.get(parts[-1] if words == 2 else "1")
        if len(parts) != words or label is None or not re.fullmatch(r"[\w.-]+", parts[0]):
            wanted = "an image id" + (" and 1, 0 or -1" if words == 2 else "")
            raise DataError(f"{path}:{number}: expected {wanted}, found {line.strip()[:60]!r}")
        if parts[0] in found:
            raise DataError(f"{path}:{number}: the image {parts[0]} is listed twice")
        found[parts[0]] = label
    return found


def _first_difference(ids: list[str], others: list[str]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)
    if place is None:
        return f"{len(ids):,} and {len(others):,} images"
    return f"image {place + 1:,} is {ids[place]} and {others[place]}"


# ------------------------------------------------------------------------ XML


class _Tree(ET.TreeBuilder):
    """A tree of a document that declares nothing: entities of its own could make it grow without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it declares a document type ({name}), which annotations do not")


def _objects(path: Path) -> Iterator[tuple[str, bool]]:
    """Class and difficulty of every object in an annotation file. Parts of an object (a head, a hand) are none."""
    try:
        parser = ET.XMLParser(target=_Tree())  # noqa: S314 - refuses what could declare entities
        parser.feed(path.read_bytes())
        root = parser.close()
    except (OSError, ValueError, LookupError, ET.ParseError) as error:
        raise DataError(
            f"{path} cannot be read as a VOC annotation: {error}", hint="unpack the file again"
        ) from None
    if root.tag != "annotation":
        raise DataError(f"{path} is no VOC annotation: it is <{root.tag}>, expected <annotation>")
    for number, found in enumerate(root.findall("object"), 1):
        name = (found.findtext("name") or "").strip()
        difficult = found.findtext("difficult", "0").strip()
        if not name or difficult not in ("0", "1"):
            what = f"difficult is {difficult!r}, expected 0 or 1" if name else "it has no name"
            raise DataError(f"{path}: object {number}: {what}")
        yield name, difficult == "1"
