"""What commands work with, made from the values of their options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipbench.catalog import Catalog
from clipbench.cli.output import catalogs
from clipbench.data.paths import DataPaths
from clipbench.encoding.runtime import Runtime, keep_freed_memory
from clipbench.errors import ClipbenchError
from clipbench.utils import plugins


def open_catalog(cards: list[Path] | None, code: list[Path] | None) -> Catalog:
    """The cards, read with these plugins; those that had to be passed over are named when the command ends."""
    plugins.add_all(code or ())
    catalog = Catalog(cards or ())
    catalogs.append(catalog)
    return catalog


def names(option: str, given: list[str]) -> list[str]:
    """Comma-separated and repeated values as one list, each once, in order."""
    found = list(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))
    if not found:
        raise ClipbenchError(f"{option} names nothing", hint="see clipbench list models|tasks|suites")
    return found


def data_paths(
    given: list[str] | None, catalog: Catalog, more: Sequence[str] = (), *, verify: bool = False
) -> DataPaths:
    """The values of --data, of data sets of the catalog. `more`: other names that may be given."""
    return DataPaths.parse(given or (), known={*catalog.dataset_files, *more}, verify=verify)


def choose_runtime(
    device: str,
    precision: str,
    batch_size: int | None = None,
    workers: int | None = None,
    deterministic: bool = False,
) -> Runtime:
    """The runtime of this process, which on a CPU keeps the memory that it frees."""
    runtime = Runtime.choose(device, precision, batch_size, workers, deterministic)
    if runtime.on_cpu:
        keep_freed_memory()
    return runtime


def auto(option: str, text: str) -> int | None:
    """The number of an option that takes `auto` (None) or a whole number."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ClipbenchError(f"{option} takes auto or a whole number (found {text!r})")
    return int(text)


def share(text: str | None) -> tuple[int, int]:
    """k and n of --shard; without it the one share that is all."""
    if text is None:
        return 0, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ClipbenchError(
            f"--shard {text}: expected k/n with 0 ≤ k < n", hint="for the first of eight: --shard 0/8"
        )
    return int(first), int(second)
