"""Lists of files or texts: one a line (`.txt`), in one JSON list, or a table (`.csv`, `.tsv`, `.jsonl`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbench.data.text import decoded, lines
from clipbench.errors import DataError, first_line
from clipbench.utils.parsing import json_value
from clipbench.utils.storage import Place


@dataclass(frozen=True)
class ListRows:
    """The rows of a list.

    Attributes:
        names: of its columns; none where a row is a line.
        rows: a text each, or column → value.
    """

    names: Sequence[str]
    rows: Sequence[Any]

    def __len__(self) -> int:
        return len(self.rows)


def list_rows(place: Place) -> ListRows:
    """The rows of a list, blank lines left out.

    Raises:
        DataError: it cannot be read, is empty, or a row is not as it should be.
        StorageError: it cannot be fetched.
    """
    low = place.name.lower()
    with place.here() as path:
        text = _decoded(path, place)
    if low.endswith(".jsonl"):
        found = _objects(text, place)
    elif low.endswith((".csv", ".tsv")):
        found = _table(text, place, "\t" if low.endswith(".tsv") else ",")
    elif low.endswith(".json"):
        found = _json_list(text, place)
    else:
        found = ListRows((), [line for line in lines(text) if line.strip()])
    if not found.rows:
        raise DataError(f"{place} is empty: it has no rows", hint="correct --data")
    return found


def beside(place: Place, name: str) -> Place:
    """The file that `name` in the list at `place` means: a place of its own, or one that starts from its folder."""
    own = Place.parse(name)
    return own if not own.local or own.path.is_absolute() else place.parent / name


def _decoded(path: Path, place: Place) -> str:
    try:
        return decoded(path)
    except DataError as error:  # of a copy, whose path says nothing
        raise DataError(error.message.replace(str(path), str(place)), hint=error.hint) from None


def _objects(text: str, place: Place) -> ListRows:
    rows = []
    for number, line in enumerate(lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json_value(line)
        except ValueError as error:
            raise DataError(
                f"{place}:{number}: no JSON: {first_line(error)}", hint="mend that line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{place}:{number}: no JSON object", hint='a line is like {"image": …, "caption": …}'
            )
        rows.append(row)
    return ListRows(list(dict.fromkeys(name for row in rows for name in row)), rows)


def _json_list(text: str, place: Place) -> ListRows:
    try:
        rows = json_value(text)
    except ValueError as error:
        raise DataError(f"{place}: no JSON: {first_line(error)}") from None
    if not isinstance(rows, list) or not all(isinstance(row, str) and row.strip() for row in rows):
        raise DataError(
            f"{place} is no list of texts that are not empty", hint='write it as ["first", "second", …]'
        )
    return ListRows((), rows)


def _table(text: str, place: Place, delimiter: str) -> ListRows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        rows = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{place}:{reader.line_num}: {len(row)} cells, the first line has {len(names)} names",
                    hint="mend that line; a cell that holds the delimiter stands in quotes",
                )
            rows.append(dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"{place}:{reader.line_num}: {error}", hint="mend that line") from None
    return ListRows(names, rows)
