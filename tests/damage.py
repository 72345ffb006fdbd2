"""Damage to files, as disks and careless hands do it."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, place: int) -> None:
    """Turn one bit of the file over; `place` counts bits, from the end where it is negative."""
    content = bytearray(path.read_bytes())
    place %= 8 * len(content)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def layout(content: bytes | bytearray) -> tuple[int, int]:
    """Of a shard of features: where the header's checksum begins, and where the rows do."""
    end = 16 + int.from_bytes(content[8:12], "little") + int.from_bytes(content[12:16], "little")
    return end, end + 16
