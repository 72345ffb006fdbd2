"""TensorBoard's event files, written without TensorBoard: scalars and texts.

A file is a row of records (length, its checksum, data, its checksum), each of which holds one `Event` message of
TensorFlow's event.proto in protocol buffers' wire format. Checksums are CRC-32C, masked as in TensorFlow's
record_writer.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

#: one line of metrics.jsonl
Line = dict[str, float | str | None]


def number(value: float | str | None) -> float:
    """A numeric entry of a line of metrics.jsonl."""
    assert isinstance(value, int | float)
    return value


class Events:
    """One event file in a folder, of a name that TensorBoard finds."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.clipbench"
        self._file = self.path.open("wb")
        self._write(_text(3, "brain.Event:2"))

    def add(self, line: Line) -> None:
        """The numbers of a line of metrics.jsonl: a step's under `train/`, an evaluation's under its task's name."""
        scope, step = line.get("task", "train"), line["step"]
        assert isinstance(step, int)
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        self.scalars(step, {f"{scope}/{name}": value for name, value in numbers.items() if name != "step"})

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers by name, of one step."""
        values = (_text(1, name) + b"\x15" + struct.pack("<f", value) for name, value in numbers.items())
        summary = b"".join(_message(1, value) for value in values)
        self._write(b"\x10" + _varint(step) + _message(5, summary))
        self._file.flush()

    def text(self, name: str, text: str) -> None:
        """A text in Markdown: a tensor of one string (DT_STRING, 7) for TensorBoard's plugin `text`."""
        tensor = b"\x08\x07" + _message(2, _message(2, b"\x08\x01")) + _text(8, text)
        value = _text(1, name) + _message(8, tensor) + _message(9, _message(1, _text(1, "text")))
        self._write(_message(5, _message(1, value)))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _table()


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of `data`.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
