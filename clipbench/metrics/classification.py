"""Metrics of single-label classification and its calibration.

Two conventions hold throughout. Classes with equal scores rank by index, lowest first, so that accuracy,
top-k and mean per-class recall never disagree over a tie. What cannot be scored (a class without samples,
no samples at all) is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clipbench.metrics.arrays import Bools, Floats, Ints, check_finite

_BLOCK: Final = 4_000_000  # scores handled at a time, so that temporaries stay below about 100 MB


def rank_of_target(logits: Floats, target: Ints) -> Ints:
    """Rank of the true class among all classes, 0 for the best.

    Args:
        logits: float [N, C], any monotone scale.
        target: int64 [N], class indices below C.

    Returns:
        int64 [N]: how many classes score higher, plus how many of the equal ones have a lower index.

    Raises:
        DataError: a score is not finite.
        ValueError: shapes disagree or a target is not a class.

    >>> rank_of_target(np.array([[0.1, 0.9, 0.9], [0.5, 0.5, 0.5]]), np.array([2, 0])).tolist()
    [1, 0]
    """
    n, classes = _checked(logits)
    if target.shape != (n,):
        raise ValueError(f"target has shape {target.shape}, expected ({n},)")
    _check_classes(target, classes)
    index = np.arange(classes)
    ranks = np.empty(n, dtype=np.int64)
    for rows in _blocks(n, classes):
        block, wanted = logits[rows], target[rows, None]
        own = np.take_along_axis(block, wanted, axis=1)
        before = (block > own) | ((block == own) & (index < wanted))
        ranks[rows] = before.sum(axis=1)
    return ranks


def predict(logits: Floats) -> Ints:
    """Class of the highest score, int64 [N], for logits float [N, C]; the lowest index among equals.

    Raises:
        DataError: a score is not finite.

    >>> predict(np.array([[0.1, 0.9, 0.9], [0.5, 0.5, 0.5]])).tolist()
    [1, 0]
    """
    _checked(logits)
    best: Ints = np.argmax(logits, axis=1).astype(np.int64)
    return best


def per_class_recall(target: Ints, prediction: Ints, n_classes: int) -> NDArray[np.float64]:
    """Recall of every class: float64 [C], NaN for classes absent from `target`.

    Args:
        target, prediction: int64 [N], class indices below `n_classes`.

    Raises:
        ValueError: shapes disagree or an index is not a class.

    >>> per_class_recall(np.array([0, 0, 2]), np.array([0, 1, 2]), 3).tolist()
    [0.5, nan, 1.0]
    """
    hits, counts = class_hits(target, prediction, n_classes)
    recall = np.full(n_classes, np.nan)
    np.divide(hits, counts, out=recall, where=counts > 0)
    return recall


def mean_per_class_recall(target: Ints, prediction: Ints, n_classes: int) -> float:
    """Mean over the classes present in `target` of their recall (scikit-learn's `balanced_accuracy_score`).

    >>> mean_per_class_recall(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)
    0.75
    """
    recall = per_class_recall(target, prediction, n_classes)
    present = ~np.isnan(recall)
    return float(recall[present].mean()) if present.any() else float("nan")


def class_hits(target: Ints, prediction: Ints, n_classes: int) -> tuple[Ints, Ints]:
    """Right predictions and samples of every class, both int64 [C].

    >>> [part.tolist() for part in class_hits(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)]
    [[1, 0, 1], [2, 0, 1]]
    """
    if target.shape != prediction.shape or target.ndim != 1:
        raise ValueError(
            f"target {target.shape} and prediction {prediction.shape} must be equally long vectors"
        )
    _check_classes(target, n_classes)
    _check_classes(prediction, n_classes)
    hits = np.bincount(target[target == prediction], minlength=n_classes)
    return hits.astype(np.int64), np.bincount(target, minlength=n_classes).astype(np.int64)


def winning_confidence(logits: Floats) -> NDArray[np.float64]:
    """Softmax probability of the predicted class: float64 [N], for logits float [N, C].

    Raises:
        DataError: a score is not finite.

    >>> winning_confidence(np.array([[1000.0, 1000.0], [0.0, -1000.0]])).tolist()
    [0.5, 1.0]
    """
    n, classes = _checked(logits)
    confidence = np.empty(n)
    for rows in _blocks(n, classes):
        block = logits[rows].astype(np.float64)
        block -= block.max(axis=1, keepdims=True)
        confidence[rows] = 1 / np.exp(block, out=block).sum(axis=1)
    return confidence


def ece(confidence: NDArray[np.float64], correct: Bools, bins: int = 15) -> float:
    """Expected calibration error: mean over samples of |accuracy − confidence| of their bin.

    Bins are equally wide and closed on the right, ((m − 1)/M, m/M] (Guo et al., ICML 2017, section 2).

    Args:
        confidence: float64 [N], within 0 … 1.
        correct: bool [N].

    Returns:
        A fraction of 1; NaN without samples.

    Raises:
        ValueError: shapes disagree or a confidence is no probability.

    >>> round(ece(np.array([0.95, 0.95, 0.55]), np.array([True, False, True])), 4)  # (0.9 + 0.45) / 3
    0.45
    """
    gap = confidence - correct
    sums = np.bincount(confidence_bin(confidence, bins), weights=gap, minlength=bins)
    return float(np.abs(sums).sum() / gap.size) if gap.size else float("nan")


def confidence_bin(confidence: NDArray[np.float64], bins: int) -> Ints:
    """Calibration bin of each confidence: int64 [N], 0 … bins − 1.

    >>> confidence_bin(np.array([0.0, 0.5, 0.51, 1.0]), 2).tolist()
    [0, 0, 1, 1]
    """
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1):
        raise ValueError("confidences must be within 0 … 1")
    found: Ints = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(np.int64)
    return found


def _checked(logits: Floats) -> tuple[int, int]:
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits have shape {logits.shape}, expected [N, C]")
    for rows in _blocks(*logits.shape):
        check_finite(logits[rows])
    return logits.shape[0], logits.shape[1]


def _check_classes(index: Ints, n_classes: int) -> None:
    if index.size and not (index.min() >= 0 and index.max() < n_classes):
        raise ValueError(
            f"class indices reach from {index.min()} to {index.max()}, expected 0 … {n_classes - 1}"
        )


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        yield slice(start, start + step)
