"""Archives that torchvision downloads from their authors' sites and holds against md5 sums that it knows."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from clipbench.data.layouts.base import first_line
from clipbench.errors import DataError
from clipbench.utils.cache import cache_root, locked, say


def archive_of(name: str, dataset: str) -> Path:
    """The folder with the unpacked archive of torchvision's class `name`, downloaded where it is not in the cache.

    A download that was stopped begins anew: the folder has its name only when all is unpacked.

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
