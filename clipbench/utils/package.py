"""The folder that the package is imported from, and the versions of those that it builds on."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

#: the folder `clipbench`, wherever this file lies in it
PACKAGE: Final = Path(str(sys.modules[__name__.partition(".")[0]].__file__)).resolve().parent


def shipped(kind: str) -> Path:
    """The folder of shipped `tasks` or `model_cards`: beside the package in a checkout, in it in a wheel."""
    checkout = PACKAGE.parent / kind
    return checkout if checkout.is_dir() else PACKAGE / "_cards" / kind


@cache
def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not installed.

    Read from the head of its metadata: `importlib.metadata.version` parses all of it, the whole README too.
    """
    try:
        installed = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""
    found = re.search(r"^Version: *(\S+)", text, re.MULTILINE)
    return found[1] if found else installed.version
