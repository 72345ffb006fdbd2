"""Types of the arrays that metrics take, and the check that all of them share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipbench.errors import DataError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def check_finite(scores: Floats) -> None:
    """Raises: DataError: a score is not finite."""
    # NaN compares false with everything: unchecked, a model of NaNs would rank every target first.
    bad = scores.size - int(np.count_nonzero(np.isfinite(scores)))
    if bad:
        raise DataError(
            f"{bad:,} of {scores.size:,} scores are not finite (half-precision overflow, or broken weights)",
            hint="the checkpoint may be damaged; where the precision was bf16 or fp16, use --precision fp32",
        )
