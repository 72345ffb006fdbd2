"""JSON Lines: an object a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipbench.errors import DataError
from clipbench.utils.parsing import json_value


def objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that is not blank, one at a time, in UTF-8 with or without its mark.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not text.strip():
                    continue
                try:
                    found = json_value(text)
                except ValueError as error:
                    raise DataError(
                        f"{file}:{number}: no JSON: {error}",
                        hint="fetch the file again: each line is one object",
                    ) from None
                if not isinstance(found, dict):
                    raise DataError(f"{file}:{number}: expected an object, found {str(found)[:60]!r}")
                yield number, found
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint="fetch the file again") from None
