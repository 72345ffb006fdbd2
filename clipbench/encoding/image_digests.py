"""Digests of images' bytes: which images of two splits, or of one, are the same file."""

from __future__ import annotations

from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

DIGEST_BYTES: Final = 16


def digest(image: bytes) -> bytes:
    """What tells the bytes of one image from those of all others: 16 bytes, XXH3-128."""
    return xxhash.xxh3_128_digest(image)


def among(digests: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which of `digests` [n] are also among `others` [m]: bool [n]."""
    own, theirs = _halves(digests), _halves(others)
    found = np.isin(own, theirs)
    known = set(others[np.isin(theirs, own[found])].tolist())  # as wholes, where halves agree
    found[found] = [value in known for value in digests[found].tolist()]
    return found


def repeated(digests: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which of `digests` [n] stand there before: bool [n]."""
    found = np.zeros(len(digests), dtype=np.bool_)
    values, counts = np.unique(_halves(digests), return_counts=True)
    seen: set[bytes] = set()
    for row in np.flatnonzero(np.isin(_halves(digests), values[counts > 1])).tolist():
        value = digests[row].tobytes()
        found[row] = value in seen
        seen.add(value)
    return found


def _halves(digests: NDArray[np.void]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests).view(np.uint64)[::2]
