"""Text files of data: how they are decoded, where their lines end, and what JSON in them holds."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from clipbench.errors import DataError

#: byte order marks → encodings; UTF-32's begins as UTF-16's does
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decoded(file: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark. Line ends stay as they are.

    Raises:
        DataError: it cannot be read, is in another encoding, or holds NUL characters.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint="fetch the file again") from None
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(lines(data[: error.start].decode("latin-1") + "."))
        raise DataError(
            f"{file}:{line}: not {encoding.removesuffix('-sig').upper()} (byte {error.start:,} is "
            f"0x{data[error.start]:02x})",
            hint=f"convert the file, for example from Latin-1: iconv -f latin1 -t utf-8 {file.name} > new; mv new "
            f"{file.name}"
            if encoding == "utf-8-sig"
            else "fetch the file again, or write it as UTF-8",
        ) from None
    if "\0" in text:
        line = len(lines(text[: text.index("\0")] + "."))
        raise DataError(
            f"{file}:{line}: a NUL character, which no text has",
            hint="fetch the file again; if it is UTF-16 without a byte order mark: "
            f"iconv -f utf-16le -t utf-8 {file.name} > new; mv new {file.name}",
        )
    return text


def lines(text: str) -> list[str]:
    r"""The lines of `text`, which end at \n, \r\n or \r alone: other separators (U+2028, U+0085, form feeds) are text.

    >>> lines("one\r\ntwo\u2028still two\n")
    ['one', 'two\u2028still two']
    """
    found = re.split(r"\r\n|\r|\n", text)
    return found if found[-1] else found[:-1]


def json_of(file: Path, keys: Collection[str] | None = None, *, once: bool = False) -> Any:
    """The content of a JSON file; with `keys`, of its objects these only, the rest dropped while it is parsed.

    With `once`, a key that an object has twice is an error, where JSON's readers keep the last of them.

    Raises:
        DataError: it cannot be read.
    """

    def single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            key = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {key[:60]!r} is there twice")
        return found

    keep = None if keys is None else (lambda entry: {k: v for k, v in entry.items() if k in keys})
    try:
        return json.loads(file.read_bytes(), object_hook=keep, object_pairs_hook=single if once else None)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}", hint="fetch the file again") from None
