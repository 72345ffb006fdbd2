"""Matlab's files of version 5 (`.mat`): numbers, texts, cells and structs of a variable, and nothing that could run.

scipy's reader ends the process on some damaged files; here every length is checked. Source: MathWorks, MAT-File Format.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipbench.errors import DataError

_HEADER: Final = 128
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_NUMBERS: Final = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_TEXTS: Final = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15  # classes of arrays
_DEPTH: Final = 8
_MOST_BYTES: Final = 1 << 28  # of one variable, unpacked


def read(file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Variables of a file by name, of which each of `names` is there.

    Numbers are arrays [n] and texts are str; a cell array is a list, a struct array a list of dicts; all in Matlab's
    order, columns first.

    Raises:
        DataError: it cannot be read, is no such file or of another version, is damaged, or lacks a variable.
    """
    try:
        data = file.read_bytes()
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if data[:8] == b"\x89HDF\r\n\x1a\n" or data[:15] == b"MATLAB 7.3 MAT-":
            raise ValueError("it is of version 7.3, which is HDF5; save it with -v7")
        if order is None or len(data) < _HEADER:
            raise ValueError("it does not begin as a Matlab file of version 5")
        reader = _Reader(order, names)
        found = dict(reader.variables(memoryview(data)[_HEADER:]))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, struct.error, zlib.error, OverflowError) as error:
        raise DataError(f"{file} cannot be read as a Matlab file: {error}", hint="fetch it again") from None
    lost = [name for name in names if name not in found]
    if lost:
        raise DataError(f"{file} holds no variable {lost[0]}", hint="fetch it again")
    return found


class _Reader:
    def __init__(self, order: str, names: Sequence[str]) -> None:
        self._order, self._names = order, names

    def variables(self, data: memoryview, *, unpacked: bool = False) -> Iterator[tuple[str, Any]]:
        """Name and value of those that are wanted; `unpacked` where they were compressed, which is done but once."""
        for kind, body in self._elements(data):
            if kind == _COMPRESSED and not unpacked:
                unpacker = zlib.decompressobj()
                whole = unpacker.decompress(bytes(body), _MOST_BYTES)
                if not unpacker.eof:
                    raise ValueError("a variable does not end, or is too large")
                yield from self.variables(memoryview(whole), unpacked=True)
            elif kind == _MATRIX:
                name, value = self._array(body, 0, top=True)
                if name in self._names:
                    yield name, value

    def _elements(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Type and bytes of each element; short ones have both in one word."""
        at = 0
        while at < len(data):
            kind, length = struct.unpack_from(self._order + "II", data, at)
            start = at + 8
            if kind >> 16:
                length, kind, start = kind >> 16, kind & 0xFFFF, at + 4
                at += 8
            else:
                at = start + length if kind == _COMPRESSED else start + -(-length // 8) * 8
            if start + length > len(data) or (start == at - 4 and length > 4):
                raise ValueError("it ends too early, or a length in it is wrong")
            yield kind, data[start : start + length]

    def _array(self, body: memoryview, depth: int, *, top: bool = False) -> tuple[str, Any]:
        if not len(body):
            return "", np.zeros(0)
        if depth > _DEPTH:
            raise ValueError("its arrays lie too deep in one another")
        parts = self._elements(body)
        kind = struct.unpack_from(self._order + "I", self._next(parts))[0] & 0xFF
        if kind > _LAST_NUMBER:
            return "", None  # objects and functions, whose form is Matlab's own
        shape = self._numbers(*self._one(parts)).tolist()
        count = math.prod(shape)
        if any(size < 0 for size in shape):
            raise ValueError(f"an array has the shape {shape}")
        name = bytes(self._next(parts)).decode("latin-1")
        if top and name not in self._names:
            return name, None
        if kind == _CELL:
            return name, self._several(parts, count, depth)
        if kind == _STRUCT:
            (width,) = self._numbers(*self._one(parts)).tolist()
            joined = bytes(self._next(parts))
            if not 0 < width <= len(joined):
                raise ValueError("a struct has no names of fields")
            fields = [
                joined[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(joined), width)
            ]
            values = self._several(parts, count * len(fields), depth)
            width = len(fields)
            return name, [
                dict(zip(fields, values[i * width : (i + 1) * width], strict=True)) for i in range(count)
            ]
        if kind == _CHAR:
            return name, self._text(*self._one(parts)) if count else ""
        if kind < _FIRST_NUMBER:
            return name, None
        numbers = self._numbers(*self._one(parts))
        if len(numbers) != count:
            raise ValueError(f"an array of {count:,} numbers has {len(numbers):,}")
        return name, numbers

    def _several(self, parts: Iterator[tuple[int, memoryview]], count: int, depth: int) -> list[Any]:
        values = []
        for kind, body in parts:
            if kind != _MATRIX:
                raise ValueError("an array holds what is none")
            values.append(self._array(body, depth + 1)[1])
        if len(values) != count:
            raise ValueError(f"an array of {count:,} parts has {len(values):,}")
        return values

    def _one(self, parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
        found = next(parts, None)
        if found is None:
            raise ValueError("it ends too early")
        return found

    def _next(self, parts: Iterator[tuple[int, memoryview]]) -> memoryview:
        return self._one(parts)[1]

    def _numbers(self, kind: int, body: memoryview) -> Any:
        if kind not in _NUMBERS:
            raise ValueError(f"numbers of an unknown type ({kind})")
        return np.frombuffer(body, np.dtype(self._order + _NUMBERS[kind]))

    def _text(self, kind: int, body: memoryview) -> str:
        if kind not in _TEXTS:
            raise ValueError(f"a text of an unknown type ({kind})")
        encoding = _TEXTS[kind]
        wide = ("-le" if self._order == "<" else "-be") if encoding in ("utf-16", "utf-32") else ""
        return bytes(body).decode(encoding + wide)
