"""Records as a small run leaves them, and those of classifiers that are right where they are told to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import small
from numpy.typing import NDArray

from clipbench.metrics.intervals import Score
from clipbench.protocols import _outcomes
from clipbench.records import store
from clipbench.records.record import Record, by_class
from clipbench.records.store import Column, Stored

SAMPLES: dict[str, Column] = {"id": ["a", "b"], "correct": np.array([True, False]), "rank": np.array([0, 3])}
REPORTED = {
    "task": "digits-zs",
    "metric": "acc1",
    "percent": 70.5,
    "source": "a paper, table 1",
    "confidence": "secondary",
}


def make_record(**changes: Any) -> Record:
    """A whole record of a small run; `changes` replace fields."""
    fields: dict[str, Any] = {
        "model": "small",
        "task": "digits-zs",
        "protocol": {"name": "zs", "version": 1, "params": {"templates": "default"}},
        "primary": "acc1",
        "scores": {
            "ece": Score(0.05, (0.04, 0.07), 360, None),
            "acc1": Score(0.75, (0.7, 0.8), 360, 0.1),
        },
        "per_class": {"recall": {"zero": 0.5, "one": None}},
        "seed": 0,
        "limit": None,
        "skipped": (),
        "precision": "fp32",
        "device": "cpu",
        "env": {
            "packages": {"numpy": "2.0"},
            "python": "3.11.7",
            "platform": "Linux",
            "commit": "abc",
            "dirty": False,
        },
        "fingerprints": {"weights": "00"},
        "timing": {
            "load_s": 1.0,
            "encode_images_s": 2.0,
            "encode_texts_s": 0.5,
            "score_s": 0.1,
            "total_s": 3.6,
            "images_per_s": None,
            "images_encoded": 0,
            "texts_encoded": 10,
        },
        "encoder": {"layout": "channels-last"},
        "cards": {"model": {"title": "Small", "reported": [REPORTED]}, "task": {"title": "Digits"}},
        "created": "2025-01-01T00:00:00+00:00",
    }
    return Record.model_validate(fields | changes)


def write_model(
    root: Path,
    model: str,
    right: NDArray[np.bool_],
    *,
    task: str = "animals-zs",
    primary: str = "acc1",
    ids: list[str] | None = None,
    **changes: Any,
) -> Stored:
    """A record of a classifier that is right where `right` says, labels taking turns; below `root`."""
    n = len(right)
    target = np.arange(n) % 5
    logits = np.zeros((n, 5), dtype=np.float32)
    logits[np.arange(n), np.where(right, target, (target + 1) % 5)] = 1
    names = ids or [f"i{k:04d}" for k in range(n)]
    found = _outcomes.single_label([(slice(0, n), logits)], target, names, 5, 0)
    fields: dict[str, Any] = {
        "model": model,
        "task": task,
        "primary": primary,
        "scores": found.scores,
        "per_class": {"recall": by_class(small.CLASSES, found.per_class["recall"])},
        "fingerprints": {"split:test": "00"},
    }
    record = make_record(**(fields | changes))
    path = store.write(record, {k: np.asarray(v) for k, v in found.samples.items()}, root)
    return store.read(path)
