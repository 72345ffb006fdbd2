"""Data in the formats of Hugging Face `datasets`: a hub id, or a local copy as parquet, image folder or WebDataset.

Whatever the source, labels that carry names are matched to the card's classes by name, never by position.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.cards import LABELLED, SplitSpec, TaskCard, fingerprint
from clipbench.cards.entry import Entry
from clipbench.data import labels, repeats
from clipbench.data.digests import digests, sha256_file
from clipbench.data.fetched import archive_of
from clipbench.data.layouts.base import FileLayout, Layout, is_junk, no_columns, printable
from clipbench.data.layouts.folder import ImageFolder
from clipbench.data.layouts.parquet import Parquet
from clipbench.data.layouts.webdataset import CLASS_NAMES, SHARDS, WebDataset, check_shards
from clipbench.data.split import Note, Sample, Split
from clipbench.data.tars import TAR_SUFFIXES
from clipbench.errors import CardError, ClipbenchError, DataError, unknown
from clipbench.utils.cache import cache_root, read_checked, recall, remember, write_checked
from clipbench.utils.parsing import expanded

_HUB_TIMEOUT_S = 20
_LISTING = "hub listing 1"


@dataclass(frozen=True)
class DataPaths:
    """Local copies: `named` from `--data <dataset>=<path>`, `roots` from `--data <root>` and CLIPBENCH_DATA.

    With `verify`, every file is read and hashed again, whatever is remembered of it (see `clipbench.data.digests`).
    """

    named: dict[str, Path]
    roots: tuple[Path, ...]
    verify: bool = False

    @classmethod
    def parse(cls, given: Sequence[str], *, verify: bool = False) -> DataPaths:
        """From the values of `--data`, then CLIPBENCH_DATA (several, separated by the path separator).

        Raises:
            DataError: a folder that does not exist.
        """
        named: dict[str, Path] = {}
        roots: list[Path] = []
        environment = [p for p in os.environ.get("CLIPBENCH_DATA", "").split(os.pathsep) if p]
        for text in (*given, *environment):
            name, separator, path_text = text.partition("=")
            path = expanded(path_text if separator else text)
            if not path.is_dir():
                raise DataError(
                    f"no data folder {path}" + (f" (for {name})" if separator else ""),
                    hint="--data takes <dataset>=<folder>, or a folder that holds one folder a data set",
                )
            if separator:
                named.setdefault(name, path)
            else:
                roots.append(path)
        return cls(named, tuple(roots), verify)

    def find(self, dataset: str, card: TaskCard) -> Path | None:
        """The local copy of `dataset`, by its id, its hub name or the folder that its archive makes, or None."""
        if dataset in self.named:
            return self.named[dataset]
        names = [dataset]
        if card.source.hub:
            names += [card.source.hub, card.source.hub.rpartition("/")[2]]
        if card.source.archive and card.source.archive.folder:
            names.append(card.source.archive.folder)
        for root in self.roots:
            if root.absolute().name in names:
                return root
            for name in names:
                if (root / name).exists():
                    return root / name
        return None

    def without(self, dataset: str) -> str:
        """For errors: that no folder of data sets which was given holds `dataset`; empty where none was given."""
        roots = ", ".join(map(str, self.roots))
        return f"; no folder {dataset} in {roots}" if roots else ""

    def private(self, dataset: str) -> DataError:
        """The error for `dataset`, which was not found and has no public copy."""
        return DataError(
            f"{dataset} has no public copy to fetch{self.without(dataset)}",
            hint=f"point to yours: --data {dataset}=<folder>",
        )


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
    if rows is not None and len(split) < rows and isinstance(split, TableSplit) and split.in_part:
        text = f"samples of the split are not in this copy: it has {len(split):,}, the card says {rows:,}"
        split.notes += (Note("missing-samples", text, rows - len(split)),)
    elif rows is not None and len(split) != rows:
        where = split.where if isinstance(split, TableSplit) else f"{dataset.id}, {role}"
        raise DataError(
            f"{where} has {len(split):,} samples, the card says {rows:,}",
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
        from clipbench.data.builtin import BUILTINS

        if card.columns.cluster is not None:
            raise no_columns(f"{dataset.id}, {role}", "cluster", card.columns.cluster)
        if card.source.builtin not in BUILTINS:
            raise CardError(f"{dataset.path}: {unknown('builtin data set', card.source.builtin, BUILTINS)}")
        return BUILTINS[card.source.builtin](role, card.classes)
    if card.source.torchvision is not None:
        return _local(dataset, role, archive_of(card.source.torchvision, dataset.id), paths, pairs)
    if card.source.hub is not None:
        refuse_lacking(dataset, role, paths)
        return _hub(dataset, role, paths, pairs)
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
    from clipbench.data.split import Subset

    part = dataset.card.splits[role].part
    whole = open_split(dataset, dataset.card.whole(role), paths, pairs=pairs)
    rows = [row for row, sample_id in enumerate(whole.ids) if part is None or part.holds(sample_id)]
    if not rows:
        raise DataError(
            f"{dataset.id}: the {role} split holds none of the {len(whole):,} samples of the whole"
        )
    return Subset(whole, np.array(rows), role)


# ----------------------------------------------------------------- the split


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
    ) -> None:
        self.dataset, self.role = dataset.id, role
        self.classes = dataset.card.classes
        self._source, self.where = source, source.where
        #: whether it may hold a part of the split, as a copy may that has no list of what belongs to it
        self.in_part = in_part
        self.ids, raw = source.table(content)
        if not self.ids:
            raise DataError(f"{dataset.id}: the {role} split at {source.where} is empty")
        named = dataset.card.columns.image_id
        if (
            dataset.card.kind == "captions"
            and not isinstance(source, FileLayout)
            and not (pairs and named is None)
        ):
            folded = repeats.fold(source, content, named, self.ids, raw)
            if folded != content:
                content, (self.ids, raw) = folded, source.table(folded)
        self.fingerprint = content
        notes: tuple[Note, ...] = ()
        if dataset.card.kind == "captions":
            from clipbench.data.layouts import captions  # which builds on this module

            self.captions, notes = captions.gather(dataset.id, self.ids, raw, source.where)
        elif dataset.card.kind == "expressions":
            from clipbench.data.layouts import refer  # which builds on this module

            self.expressions = refer.expressions(dataset, source, self.ids, raw)
        if dataset.card.kind in LABELLED:
            self.labels, notes = labels.of(dataset, raw, source, self.ids)
        else:
            self.labels = np.zeros(len(self.ids), np.int64)
        self.notes = source.notes + notes
        if dataset.card.columns.cluster is not None:
            self.clusters = np.array(source.beside("cluster", dataset.card.columns.cluster), dtype=object)
        self.objects = source.objects
        self.scattered = isinstance(source, FileLayout)

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
    from clipbench.data.layouts import (  # which build on this module
        archives,
        captions,
        coco,
        coco_gender,
        refer,
        voc,
    )

    own = {"captions": (captions,), "expressions": (refer,)}
    modules = own.get(dataset.card.kind, (coco_gender, voc, coco, archives))
    listed = next(filter(None, (module.layout(dataset, role, root) for module in modules)), None)
    if listed is not None:
        content = _content(dataset, listed, listed.root, listed.files, paths)
        return TableSplit(dataset, role, listed, content, in_part=listed.in_part)
    spec = dataset.card.splits[role]
    tars = _find(root, spec, role, *TAR_SUFFIXES)
    tables = _find(root, spec, role, ".parquet")
    source: Layout
    if dataset.card.kind == "expressions":
        tars = []
        if not tables:
            raise refer.nothing_there(dataset, role, root)
    if tars and tables:
        raise DataError(
            f"{dataset.id}: {root} holds the {role} split twice: {tars[0].name} and {tables[0].name}",
            hint="keep the one that is meant",
        )
    folder = _folder(root, spec, role)
    if tars:
        if folder is not None:
            check_shards(folder / SHARDS, len(tars))
        source, files = WebDataset(tars, root, tars[0].parent, dataset.card), tars
    elif tables:
        source = _parquet(tables, dataset.card, root)
        files = source.files
    elif dataset.card.kind == "captions":
        raise DataError(
            f"{dataset.id}: no {role} data in {root} (it holds {_listing(root)})",
            hint=f"expected annotations/captions_{spec.name}.json, Karpathy's dataset_*.json, "
            f"captions_{spec.name}.txt (image,caption), {spec.name}*.parquet, or {spec.name}/*.tar "
            "(CLIP_benchmark's WebDataset layout)",
        )
    else:
        if folder is None:
            archives.refuse_unfinished(dataset, role, root)
        source = ImageFolder(folder or root)
        files = source.files
        others = {name for r, s in dataset.card.splits.items() for name in (r, s.name)}
        if not files or (folder is None and others.issuperset(source.names or ())):
            several = dataset.card.kind == "multi-label"
            raise DataError(
                f"{dataset.id}: no {role} data in {root} (it holds {_listing(root)})",
                hint=f"expected {spec.name}*.parquet, or {spec.name}/<class>/<image>, or {spec.name}/*.tar "
                "(CLIP_benchmark's WebDataset layout)"
                + (", or a VOCdevkit, or COCO's annotations/instances_*.json" if several else ""),
            )
    content = _content(dataset, source, root, files, paths)
    return TableSplit(dataset, role, source, content, pairs=pairs, in_part=True)


def _listing(root: Path) -> str:
    return ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"


def _parquet(files: list[Path], card: TaskCard, root: Path, where: str | None = None) -> Parquet:
    """Parquet files as a card of its kind reads them."""
    if card.kind == "expressions":
        from clipbench.data.layouts import refer

        return refer.Rows(files, card, root, where)
    return Parquet(files, card, root, where)


def _content(
    dataset: Entry[TaskCard], source: Layout, root: Path, files: list[Path], paths: DataPaths
) -> str:
    """The fingerprint of a local copy: of the bytes of all files that decide it, images among them, and class names.

    Raises:
        DataError: the name of a file cannot be written.
    """
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"the name of {printable(str(file))} is no UTF-8, so that no record can hold it",
                hint="rename it; convmv renames whole folders",
            ) from None
    hashed = _hashed(source, root, files, paths)
    named = isinstance(source, WebDataset) and source.names and dataset.card.kind in LABELLED
    return fingerprint(
        {"layout": source.name_in_fingerprint, "files": hashed}
        | _columns(dataset.card)
        | ({"class names": source.names} if named else {})
    )


def _hashed(source: Layout, root: Path, files: list[Path], paths: DataPaths) -> list[tuple[str, str]]:
    """Path and sha256 of files; digests that were remembered wrongly become a note of `source`."""
    found = digests(root, files, again=paths.verify)
    source.notes += found.notes
    return found.files


def _columns(card: TaskCard) -> dict[str, str]:
    """The columns that decide a tabular split: its images, and captions where it has them."""
    columns = {"column": card.columns.image}
    return columns | {"captions": card.columns.caption} if card.kind == "captions" else columns


def _folder(root: Path, spec: SplitSpec, role: str) -> Path | None:
    """The folder of the split, if there is one: by the card's name for it, or its role."""
    found = (folder_named(root, name) for name in split_names(spec, role))
    return next((folder for folder in found if folder), None)


def folder_named(root: Path, name: str) -> Path | None:
    """The folder `name` in `root`, if there is one; it may differ in case.

    Raises:
        DataError: there are several.
    """
    if not root.is_dir():
        return None
    found = sorted(p for p in root.iterdir() if p.name.casefold() == name.casefold() and p.is_dir())
    if len(found) > 1:
        raise DataError(
            f"{root} holds {' and '.join(p.name for p in found)}, which differ in case alone",
            hint="rename the one that is not meant",
        )
    return found[0] if found else None


def split_names(spec: SplitSpec, role: str) -> list[str]:
    """What a local copy may call the split: the card's name for it, or its role.

    Not the role where that means less: VOC's `train` is half of the `trainval` that a card may ask for.
    """
    return [spec.name] if spec.name.startswith(role) else [spec.name, role]


def _find(root: Path, spec: SplitSpec, role: str, *suffixes: str) -> list[Path]:
    """Files of the split that end so: in a folder of its name, or with names that start with it.

    Raises:
        DataError: one is a link that leads nowhere.
    """
    for name in split_names(spec, role):
        begins = re.compile(rf"{re.escape(name)}(\b|[-_.])")
        own = folder_named(root, name)
        found = [
            path
            for folder in (own, root, root / "data")
            if folder is not None and folder.is_dir()
            for path in folder.iterdir()
            if path.name.lower().endswith(suffixes) and (folder == own or begins.match(path.name))
            if not is_junk(path.name) and not path.is_dir()
        ]
        for path in found:
            if not path.is_file():
                raise DataError(f"{path} is a link that leads nowhere", hint="fetch what it leads to")
        if found:
            return sorted(found, key=lambda path: natural(path.name))
    return []


def natural(name: str) -> list[str | int]:
    """Sorting key that puts 2.tar before 10.tar."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


# ------------------------------------------------------------------------ hub


def _hub(dataset: Entry[TaskCard], role: str, paths: DataPaths, pairs: bool) -> Split:
    """Fetch the files of one split into the hub client's cache, and read them like a local copy."""
    source, spec = dataset.card.source, dataset.card.splits[role]
    hub = source.hub
    assert hub is not None
    name = f"{hub}@{source.revision}" if source.revision else hub
    try:
        commit = _whole(source.revision) or recall("data", name) or _latest(hub, source.revision)
        folder, files = _hub_files(hub, source.config, spec.name, commit)
    except ClipbenchError:
        raise
    except Exception as error:  # the hub client raises many kinds, all meaning: not to be had
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{dataset.id}: the data set {hub} is not in the local cache and cannot be fetched ({why[:240]})"
            + paths.without(dataset.id),
            hint=f"with network, run this again; with a local copy: --data {dataset.id}=<folder> "
            "(parquet, image folder or WebDataset)",
        ) from None
    if commit != source.revision:
        remember("data", name, commit, what="the commit")
    where = f"{hub}@{commit[:8]}, split {spec.name}"
    kinds = {path.suffix for path in files}
    opened: Layout
    if kinds == {".parquet"}:
        opened = _parquet(files, dataset.card, folder, where)
    elif kinds == {".tar"} and dataset.card.kind != "expressions":
        opened = WebDataset(files, folder, where, dataset.card)
    else:
        raise DataError(
            f"{where}: files of the kind {', '.join(sorted(kinds)) or 'none'}; parquet and WebDataset tars are read",
            hint=f"fetch it by hand and give the folder: --data {dataset.id}=<folder>",
        )
    if paths.verify:
        opened.notes += _verified(files)
    # Image files beside the tables; the tables themselves are what the commit says.
    linked = [path for path in opened.files if path not in set(files)] if isinstance(opened, Parquet) else []
    content = fingerprint(
        {
            "hub": hub,
            "config": source.config,
            "commit": commit,
            "split": spec.name,
        }
        | _columns(dataset.card)
        | ({"images": _hashed(opened, folder, linked, paths)} if linked else {})
    )
    return TableSplit(dataset, role, opened, content, pairs=pairs)


def _verified(files: list[Path]) -> tuple[Note, ...]:
    """Compare files of the hub client's cache with the hashes that it names them by; a note on those without one.

    Raises:
        DataError: a file is not what was fetched.
    """
    bare = []
    for path in files:
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            same = sha256_file(blob) == blob.name
        elif re.fullmatch(r"[0-9a-f]{40}", blob.name):  # of small files: git's hash
            data = blob.read_bytes()
            same = (
                hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == blob.name
            )
        else:
            bare.append(path.name)
            continue
        if not same:
            raise DataError(
                f"{path} is not what was fetched: its bytes have another hash",
                hint=f"delete {blob}, and run this again with a network",
            )
    text = "files of the hub's cache could not be verified: the client keeps no hash of them"
    return (Note.of("unverified", text, bare),) if bare else ()


def _whole(revision: str | None) -> str | None:
    """`revision` if it is a whole commit hash; branches and tags move, and are pinned like no revision at all."""
    return revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else None


def _latest(hub: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(hub, revision=revision, timeout=_HUB_TIMEOUT_S).sha)


def _hub_files(hub: str, config: str | None, split: str, commit: str) -> tuple[Path, list[Path]]:
    """The folder of the data set's local copy, and in it a split's files, downloaded where they are missing.

    Without a network, the listing that was kept when they were downloaded serves.
    """
    from huggingface_hub import hf_hub_download

    kept = cache_root() / "hub" / f"{fingerprint([hub, config, split, commit])}.json"
    held = read_checked(kept, _LISTING)
    names: list[str] = _hub_listing(hub, config, split, commit) if held is None else json.loads(held)
    paths = [Path(hf_hub_download(hub, name, repo_type="dataset", revision=commit)) for name in names]
    write_checked(kept, json.dumps(names).encode(), _LISTING)
    folder = paths[0].parents[names[0].count("/")]
    return folder, [path for path in paths if path.name != CLASS_NAMES]


def _hub_listing(hub: str, config: str | None, split: str, commit: str) -> list[str]:
    """Paths, inside the repository, of a split's files (and of a WebDataset's class names).

    CLIP_benchmark's layout is read as such, since `datasets` knows no split names but train, validation and
    test where a card of the repository does not list them.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(hub, revision=commit, timeout=_HUB_TIMEOUT_S)
    there = [file.rfilename for file in info.siblings or []]
    names = [name for name in there if re.fullmatch(rf"{re.escape(split)}/[^/]+\.tar", name)]
    if not names:
        files = load_dataset_builder(hub, config, revision=commit).config.data_files
        if split not in files:
            raise DataError(unknown(f"split of {hub}", split, [str(name) for name in files]))
        names = [str(file).rpartition(f"@{commit}/")[2] for file in files[split]]
    names.sort(key=natural)
    if all(name.endswith(".tar") for name in names) and CLASS_NAMES in there:
        names.append(CLASS_NAMES)
    return names
