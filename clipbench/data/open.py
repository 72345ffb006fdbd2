"""Opens splits: the built-in ones, local copies in one of the layouts, and those of the hub and of torchvision.

Whatever the source, labels that carry names are matched to the card's classes by name, never by position.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import fingerprint
from clipbench.cards.entry import Entry
from clipbench.cards.task import LABELLED, TaskCard
from clipbench.data import attributes, captions, expressions, labels, layouts, repeats
from clipbench.data.builtin import BUILTINS
from clipbench.data.digests import digests
from clipbench.data.layouts.base import Layout, LayoutSpec, called, no_columns
from clipbench.data.paths import DataPaths, listing, printable
from clipbench.data.split import Note, Sample, Split, Subset
from clipbench.errors import CardError, ClipbenchError, DataError, first_line, unknown
from clipbench.utils import plugins
from clipbench.utils.cache import cache_root, locked, say
from clipbench.utils.parsing import expanded


def open_split(dataset: Entry[TaskCard], role: str, paths: DataPaths, *, pairs: bool = False) -> Split:
    """The split of `dataset` that plays `role` ("train", "test", …).

    With `pairs`, for training, a row of a table of captions is a pair, whether or not other rows show its image; else
    an image is one sample (see `repeats.fold`).

    Raises:
        DataError: missing folder or split, unreadable layout, or labels that disagree with the card.
        CardError: the card has no such split.
    """
    if role not in dataset.card.splits:
        raise CardError(unknown(f"split of {dataset.id}", role, dataset.card.splits))
    split = _opened(dataset, role, paths, pairs)
    rows = dataset.card.splits[role].rows
    counted, what = split.counted
    if rows is not None and counted < rows and isinstance(split, TableSplit) and split.in_part:
        text = f"{what} of the split are not in this copy: it has {counted:,}, the card says {rows:,}"
        split.notes += (Note("missing-samples", text, rows - counted),)
    elif rows is not None and counted != rows:
        where = split.where if isinstance(split, TableSplit) else f"{dataset.id}, {role}"
        raise DataError(
            f"{where} has {counted:,} {what}, the card says {rows:,}",
            hint=f"the data set has changed, or splits.{role}.rows in {dataset.path} is wrong",
        )
    return split


def _opened(dataset: Entry[TaskCard], role: str, paths: DataPaths, pairs: bool) -> Split:
    card = dataset.card
    if card.splits[role].part is not None:
        return _part(dataset, role, paths, pairs)
    local = paths.find(dataset.id, card)
    if local is None and card.source.path is not None:
        local = dataset.path.parent / expanded(card.source.path)
        if not local.exists():
            raise DataError(
                f"{dataset.id}: no data folder {local}", hint=f"correct source.path in {dataset.path}"
            )
    if local is not None:
        return _local(dataset, role, local, paths, pairs)
    if card.source.builtin is not None:
        for key, name in card.columns.beside.items():
            raise no_columns(f"{dataset.id}, {role}", key, name)
        if card.source.builtin not in BUILTINS:
            raise CardError(f"{dataset.path}: {unknown('builtin data set', card.source.builtin, BUILTINS)}")
        return BUILTINS[card.source.builtin](role, card.classes)
    if card.source.torchvision is not None:
        return _local(dataset, role, archive_of(card.source.torchvision, dataset.id), paths, pairs)
    if card.source.hub is not None:
        refuse_lacking(dataset, role, paths)
        from clipbench.data import huggingface  # with all the layouts that the hub's copies may have

        source, said, linked = huggingface.fetch(dataset, role, paths)
        hashed = {"images": _hashed(source, linked, paths)} if linked else {}
        return TableSplit(dataset, role, source, fingerprint(said | _columns(card) | hashed), pairs=pairs)
    raise paths.private(dataset.id)


def refuse_lacking(dataset: Entry[TaskCard], what: str, paths: DataPaths) -> None:
    """Say before anything is fetched that the hub copy, with no other one at hand, has no `what` (see `Source.lacks`).

    Raises:
        DataError: it has none.
    """
    source = dataset.card.source
    if what not in source.lacks or paths.find(dataset.id, dataset.card) is not None:
        return
    files = ", ".join(source.archive.files) if source.archive else "the original archive"
    named = f"no {what} split" if what in dataset.card.splits else f"no marks of {what} objects"
    raise DataError(
        f"{dataset.id}: {source.hub} has {named} of this card: {source.lacks[what]}"
        + paths.without(dataset.id),
        hint=f"unpack {files} into one folder, and give that: --data {dataset.id}=<folder>",
    )


def _part(dataset: Entry[TaskCard], role: str, paths: DataPaths, pairs: bool) -> Split:
    """The samples of another split that the part `role` holds."""
    part = dataset.card.splits[role].part
    whole = open_split(dataset, dataset.card.whole(role), paths, pairs=pairs)
    names = whole.ids if whole.clusters is None else whole.clusters
    rows = [row for row, name in enumerate(names) if part is None or part.holds(name)]
    if not rows:
        lost = f"the {role} split holds none of the {len(whole):,} samples of the whole"
        raise DataError(f"{dataset.id}: {lost}")
    return Subset(whole, np.array(rows), role)


def archive_of(name: str, dataset: str) -> Path:
    """The folder with the unpacked archive of torchvision's class `name`, downloaded where it is not in the cache.

    torchvision downloads it from the authors' site, and holds it against the md5 sum that it knows. A download that was
    stopped begins anew: the folder has its name only when all is unpacked.

    Raises:
        DataError: it cannot be downloaded, or what came is not what torchvision knows.
        StorageError: the cache cannot be locked.
    """
    from torchvision import datasets

    folder = cache_root() / "torchvision" / name
    with locked(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        say(f"{dataset}: torchvision downloads {name} to {folder}")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is no output of a command
                getattr(datasets, name)(str(part), download=True)
        except Exception as error:  # urllib, tarfile, zipfile and torchvision raise many kinds
            raise DataError(
                f"{dataset}: torchvision cannot download {name}: {first_line(error)}",
                hint=f"with network, run this again; with a local copy: --data {dataset}=<folder>",
            ) from None
        part.rename(folder)
    return folder


class TableSplit(Split):
    """A split in one of the layouts. `rows` of raw labels are mapped to the card's classes at opening."""

    def __init__(
        self,
        dataset: Entry[TaskCard],
        role: str,
        source: Layout,
        content: str,
        *,
        pairs: bool = False,
        in_part: bool = False,
        images_content: str | None = None,
    ) -> None:
        self.dataset, self.role = dataset.id, role
        self.classes = dataset.card.classes
        self._source, self.where = source, source.where
        #: whether it may hold a part of the split, as a copy may that has no list of what belongs to it
        self.in_part = in_part
        self.ids, raw = source.table(content)
        if not self.ids and not dataset.card.languages:  # else it is said which languages there are
            raise DataError(f"{dataset.id}: the {role} split at {source.where} is empty")
        named = dataset.card.columns.image_id
        listed = source.scattered  # in a list of files an image has one entry
        whole_images = listed or bool(dataset.card.languages)  # whose layouts go by the image
        if dataset.card.kind == "captions" and not whole_images and not (pairs and named is None):
            folded = repeats.fold(source, content, named, self.ids, raw)
            if folded != content:
                content, (self.ids, raw) = folded, source.table(folded)
        self.fingerprint = content
        notes: tuple[Note, ...] = ()
        if dataset.card.kind == "captions":
            asked = dataset.card.languages
            self.captions, notes = (
                captions.gather_languages(dataset.id, asked, source.languages, self.ids, raw, source.where)
                if asked
                else captions.gather(dataset.id, self.ids, raw, source.where)
            )
            if captions.keeps_spaces(self.captions.texts):
                self.fingerprint = fingerprint({"content": content, "white space": "kept"})
        elif dataset.card.kind == "expressions":
            self.expressions = expressions.of(dataset, source, self.ids, raw)
        elif dataset.card.kind == "attributes":
            attributes.check_names(dataset, source)
        if dataset.card.kind in LABELLED:
            self.labels, notes = labels.of(dataset, raw, source, self.ids)
        else:
            self.labels = np.zeros(len(self.ids), np.int64)
        self.notes = source.notes + notes
        beside = {key: source.beside(key, name) for key, name in dataset.card.columns.beside.items()}
        clusters = beside.pop("cluster", None)
        self.clusters = None if clusters is None else np.array(clusters, dtype=object)
        self.groupings = {
            name: np.array(called(self.ids, codes, spec.by_code, self.where, key), dtype=object)
            for (name, spec), (key, codes) in zip(
                dataset.card.columns.groups.items(), beside.items(), strict=True
            )
        }
        self.groups = next(iter(self.groupings.values()), None)
        self.objects = source.objects
        self.choices = getattr(source, "choices", None)
        self.scattered = source.scattered
        self._images_content = images_content

    @property
    def images_fingerprint(self) -> str:
        return self._images_content or self.fingerprint

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        wanted = iter(rows.tolist())
        target = next(wanted, None)
        for index, image in self._source.images(rows):
            if index == target:
                yield Sample(self.ids[index], image)
                target = next(wanted, None)
                if target is None:
                    return


# ---------------------------------------------------------------- local copies


def _local(dataset: Entry[TaskCard], role: str, root: Path, paths: DataPaths, pairs: bool) -> Split:
    """The split in the one layout that holds it."""
    source = layout_of(dataset, role, root)
    content, images = _content(dataset, source, paths)
    return TableSplit(
        dataset, role, source, content, pairs=pairs, in_part=source.in_part, images_content=images
    )


def layout_of(dataset: Entry[TaskCard], role: str, root: Path) -> Layout:
    """The one layout in which the folder `root` holds a split.

    Raises:
        DataError: none does, or several do, or what is there is wrong.
    """
    card, name = dataset.card, dataset.card.splits[role].name
    kind = "objects" if "objects" in card.also else card.kind
    asked = {
        each: spec
        for each, spec in _layouts()
        if kind in spec.kinds and (not spec.forms or name in spec.forms)
    }
    found: dict[str, Layout] = {}
    for only_other in (False, True):
        for each, spec in asked.items():
            if spec.only_other is only_other and (there := spec.probe(dataset, role, root)) is not None:
                found[each] = there
        if found:
            break
    if not found:
        expected = [spec.expected.format(split=name) for spec in asked.values()]
        raise DataError(
            f"{dataset.id}: no {role} data in {root} (it holds {listing(root)})",
            hint=f"expected {', or '.join(expected)}",
        )
    if len(found) > 1:
        told = " and ".join(f"{each} ({there.files[0].name})" for each, there in found.items())
        raise DataError(
            f"{dataset.id}: {root} holds the {role} split in {len(found)} layouts: {told}",
            hint="keep the one that is meant, and move the other away",
        )
    (source,) = found.values()
    return source


def _layouts() -> Iterator[tuple[str, LayoutSpec]]:
    """Name of every layout, and what it says of itself; ClipbenchError where a module says nothing."""
    for name, module in plugins.modules("layouts", layouts).items():
        spec = getattr(module.load(), "LAYOUT", None)
        if not isinstance(spec, LayoutSpec):
            raise ClipbenchError(
                f"{module.where} is no layout: it has no LAYOUT",
                hint="write LAYOUT = LayoutSpec(kinds, expected, probe), of clipbench.data.layouts.base",
            )
        yield name, spec


def _content(dataset: Entry[TaskCard], source: Layout, paths: DataPaths) -> tuple[str, str | None]:
    """The fingerprint of a local copy: of the bytes of all files that decide it, images among them, and class names;
    and that of its images, where the layout says which files decide these alone.

    DataError where the name of a file cannot be written.
    """
    for file in source.files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"the name of {printable(str(file))} is no UTF-8, so that no record can hold it",
                hint="rename it; convmv renames whole folders",
            ) from None
    hashed = _hashed(source, source.files, paths)
    content = fingerprint(
        {"layout": source.name_in_fingerprint, "files": hashed}
        | _columns(dataset.card)
        | source.also_in_fingerprint()
    )
    if not source.images_alone:
        return content, None
    of_file = dict(zip(source.files, hashed, strict=True))
    return content, fingerprint(
        {"layout": source.name_in_fingerprint, "images": [of_file[file] for file in source.images_alone]}
    )


def _hashed(source: Layout, files: list[Path], paths: DataPaths) -> list[tuple[str, str]]:
    """Path and sha256 of files; digests that were remembered wrongly become a note of `source`."""
    found = digests(source.root, files, again=paths.verify)
    source.notes += found.notes
    return found.files


def _columns(card: TaskCard) -> dict[str, Any]:
    """The columns that decide a tabular split: its images, and captions (in which languages) or items."""
    columns: dict[str, Any] = {"column": card.columns.image}
    if card.languages:
        columns |= {"languages": list(card.languages)}
    if card.columns.items is not None:
        columns |= {"items": card.columns.items.canonical()}
    return columns | {"captions": card.columns.caption} if card.kind == "captions" else columns
