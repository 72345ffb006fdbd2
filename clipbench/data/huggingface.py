"""Data sets of the Hugging Face hub: the files of one split in the hub client's cache, at a commit that stays."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from clipbench.cards.base import fingerprint
from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.digests import sha256_file
from clipbench.data.layouts.base import Layout
from clipbench.data.layouts.item_rows import ItemRows
from clipbench.data.layouts.parquet import Parquet
from clipbench.data.layouts.parquet_languages import LANGUAGE, ParquetLanguages
from clipbench.data.layouts.refer_parquet import Rows
from clipbench.data.layouts.webdataset import CLASS_NAMES, WebDataset
from clipbench.data.paths import DataPaths, natural
from clipbench.data.split import Note, notes_of
from clipbench.errors import ClipbenchError, DataError, unknown
from clipbench.utils.cache import cache_root, read_checked, recall, remember, write_checked

_TIMEOUT_S = 20
_LISTING = "hub listing 1"


def fetch(
    dataset: Entry[TaskCard], role: str, paths: DataPaths
) -> tuple[Layout, dict[str, str | None], list[Path]]:
    """The files of one split, downloaded to the hub client's cache where they are missing, read like a local copy.

    Returns:
        Their layout, what says which tables or tars they are, and the image files beside these.

    Raises:
        DataError: they cannot be had, or are neither parquet nor tars.
    """
    source, spec = dataset.card.source, dataset.card.splits[role]
    hub = source.hub
    assert hub is not None
    name = f"{hub}@{source.revision}" if source.revision else hub
    try:
        commit = _commit(hub, source.revision, name)
        # Where each language has a split of its own, those of the languages that are asked for.
        splits = [spec.name.replace(LANGUAGE, of) for of in dataset.card.languages] or [spec.name]
        parts = {split: _files(hub, source.config, split, commit) for split in dict.fromkeys(splits)}
        folder, files = next(iter(parts.values()))[0], [file for _, of in parts.values() for file in of]
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
    if kinds == {".parquet"} and dataset.card.languages:
        tables = {of: parts[spec.name.replace(LANGUAGE, of)][1] for of in dataset.card.languages}
        opened = ParquetLanguages(tables, dataset.card, folder, dataset.card.languages, where)
    elif kinds == {".parquet"}:
        reader = {"expressions": Rows, "choices": ItemRows}.get(dataset.card.kind, Parquet)
        opened = reader(files, dataset.card, folder, where)
    elif kinds == {".tar"} and dataset.card.kind not in ("expressions", "choices"):
        opened = WebDataset(files, folder, where, dataset.card)
    else:
        raise DataError(
            f"{where}: files of the kind {', '.join(sorted(kinds)) or 'none'}; parquet and WebDataset tars are read",
            hint=f"fetch it by hand and give the folder: --data {dataset.id}=<folder>",
        )
    if paths.verify:
        opened.notes += _verified(files)
    said = {"hub": hub, "config": source.config, "commit": commit, "split": spec.name}
    return opened, said, [path for path in opened.files if path not in set(files)]


def _verified(files: list[Path]) -> tuple[Note, ...]:
    """Raise DataError where a file is not what the hub client's cache names it by; a note on those without a hash."""
    bare = []
    for path in files:
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            same = sha256_file(blob) == blob.name
        elif re.fullmatch(r"[0-9a-f]{40}", blob.name):  # of small files: git's hash
            data = b"blob %d\0" % blob.stat().st_size + blob.read_bytes()
            same = hashlib.sha1(data, usedforsecurity=False).hexdigest() == blob.name
        else:
            bare.append(path.name)
            continue
        if not same:
            raise DataError(
                f"{path} is not what was fetched: its bytes have another hash",
                hint=f"delete {blob}, and run this again with a network",
            )
    text = "files of the hub's cache could not be verified: the client keeps no hash of them"
    return notes_of("unverified", text, bare)


def _commit(hub: str, revision: str | None, name: str) -> str:
    """The commit of `revision`, as it is or as it was first used: branches and tags move, as no revision does."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if known := recall("data", name):
        return known
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(hub, revision=revision, timeout=_TIMEOUT_S).sha)


def _kept(hub: str, config: str | None, split: str, commit: str) -> Path:
    """Where the listing of a split's files is kept once they were downloaded."""
    return cache_root() / "hub" / f"{fingerprint([hub, config, split, commit])}.json"


def fetched(hub: str, config: str | None, split: str, commit: str) -> bool:
    """Whether all files of a split are in the hub client's cache. Nothing is asked of the network."""
    held = read_checked(_kept(hub, config, split, commit), _LISTING)
    if held is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    names: list[str] = json.loads(held)
    return all(
        isinstance(try_to_load_from_cache(hub, name, repo_type="dataset", revision=commit), str)
        for name in names
    )


def _files(hub: str, config: str | None, split: str, commit: str) -> tuple[Path, list[Path]]:
    """The folder of the data set's local copy, and in it a split's files, downloaded where they are missing.

    Without a network, the listing that was kept when they were downloaded serves.
    """
    from huggingface_hub import hf_hub_download

    kept = _kept(hub, config, split, commit)
    held = read_checked(kept, _LISTING)
    names: list[str] = _listed(hub, config, split, commit) if held is None else json.loads(held)
    paths = [Path(hf_hub_download(hub, name, repo_type="dataset", revision=commit)) for name in names]
    write_checked(kept, json.dumps(names).encode(), _LISTING)
    folder = paths[0].parents[names[0].count("/")]
    return folder, [path for path in paths if path.name != CLASS_NAMES]


def _listed(hub: str, config: str | None, split: str, commit: str) -> list[str]:
    """Paths, inside the repository, of a split's files (and of a WebDataset's class names).

    CLIP_benchmark's layout is read as such, since `datasets` knows no split names but train, validation and
    test where a card of the repository does not list them.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(hub, revision=commit, timeout=_TIMEOUT_S)
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
