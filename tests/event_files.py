"""TensorBoard's event files, read as the format's description says."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from clipbench.pretrain.run.events import crc32c


def events(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Steps and scalars of an event file, checksums checked; a text stands for its scalar."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        body = data[at + 12 : at + 12 + length]
        for part, mask in ((data[at : at + 8], at + 8), (body, at + 12 + length)):
            crc = crc32c(part)
            assert struct.unpack_from("<I", data, mask)[0] == (
                ((crc >> 15) | (crc << 17)) + 0xA282EAD8
            ) % 2**32  # fmt: skip
        at += 16 + length
        event = fields(body)
        scalars: dict[str, Any] = {}
        for _, summary in (f for f in event if f[0] == 5):
            for _, value in fields(summary):
                own = dict(fields(value))
                text = dict(fields(own[8]))[8].decode() if 8 in own else ""
                scalars[own[1].decode()] = text or struct.unpack("<f", own[2])[0]
        if scalars:
            found.append((dict(event).get(2, 0), scalars))
    return found


def fields(data: bytes) -> list[tuple[int, Any]]:
    """Field numbers and values of a protocol buffers message."""
    found: list[tuple[int, Any]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        size = varint() if size is None else size
        found.append((key >> 3, data[at : at + size]))
        at += size
    return found
