"""Copies in the form of DataComp's on the hub: an image, `.cls` and a vector of metadata in `.npy`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from beside import tar_of
from PIL import Image

#: card → the metadata of a sample with this class and number, as DataComp's evaluators name it
VECTORS: dict[str, Any] = {
    "fmow": lambda label, row: [(0, 1, 2, 3, 4)[row % 5] if row % 29 else 5, 14 + row % 2, label],
    "iwildcam": lambda label, row: [row % 7, row, 2013, 5, 2, 12, 30, 9, label] + [0] * (row % 2),
    "camelyon17": lambda label, row: [2, 20 + row % 10, label],
    "dollar-street": lambda label, row: [float(1 + row % 4), 685.5 + row, float(row % 3)],
    "geode": lambda label, row: [row % 6, row % 19],
    "fairface": lambda label, row: [row % 9, row % 2, row % 7, int(row % 7 != 1)],
    "utkface": lambda label, row: [row % 9, row % 2, row % 5, int(row % 5 != 1)],
}


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


def webp(row: int) -> bytes:
    noise = np.random.default_rng(row).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def write(
    root: Path,
    labels: Sequence[int] | None,
    vectors: Sequence[Any],
    names: Sequence[str] = (),
    *,
    shards: int = 2,
    images: Sequence[bytes] | None = None,
) -> Path:
    """A copy; `labels` None: without `.cls`, as of faces."""
    for shard, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        files: list[tuple[str, bytes]] = []
        for row in rows.tolist():
            key = f"s{row:07d}"
            files.append((f"{key}.webp", webp(row) if images is None else images[row]))
            if labels is not None:
                files.append((f"{key}.cls", str(labels[row]).encode()))
            files.append(
                (f"{key}.npy", vectors[row] if isinstance(vectors[row], bytes) else npy(vectors[row]))
            )
        tar_of(root / "test" / f"{shard}.tar", files)
    (root / "test" / "nshards.txt").write_text(str(shards))
    if names:
        (root / "classnames.txt").write_text("\n".join(names))
    return root


def copy_of(root: Path, card: str, classes: Sequence[str], count: int = 60) -> Path:
    """A small copy of a card's set; of faces, which have no class, `classes` are the lines of its classnames.txt."""
    labels = [(row * 7) % max(1, len(classes)) for row in range(count)]
    vectors = [VECTORS[card](label, row) for row, label in enumerate(labels)]
    return write(root, None if card.endswith("face") else labels, vectors, classes)
