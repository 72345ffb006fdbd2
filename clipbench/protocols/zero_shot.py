"""Zero-shot classification (CLIP, arXiv 2103.00020, section 3.1): prompts make the classifier, nothing is trained."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipbench import metrics, stats
from clipbench.cards import Strict, TaskCard
from clipbench.data import Split
from clipbench.errors import DataError, unknown
from clipbench.protocols import Encoder, Outcome

ID = "zs"
VERSION = 1

_BLOCK = 4_000_000  # scores, and features, held at once
_SINGLE = ("acc1", "acc5", "mean_per_class_recall")
_MULTI = ("map_area", "map_11pt")


class Params(Strict):
    """What a task card may set under `protocols: {zs: …}`.

    Attributes:
        primary: the metric that stands for the task.
        templates: which of the card's template sets.
        split: which of the card's splits.
        difficult: for labels that mark objects as difficult (VOC): leave them out of their class, or count
            them as positive or negative. Labels that mark none are refused, except with `positive`.
    """

    primary: Literal["acc1", "acc5", "mean_per_class_recall", "map_area", "map_11pt"] = "acc1"
    templates: str = "default"
    split: str = "test"
    difficult: Literal["ignore", "positive", "negative"] | None = None


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if params.templates not in card.templates:
        return unknown("template set", params.templates, card.templates)
    if params.split not in card.splits:
        return unknown("split", params.split, card.splits)
    allowed = _MULTI if card.kind == "multi-label" else _SINGLE
    if params.primary not in allowed:
        return f"primary {params.primary} is no metric of a {card.kind} set (allowed: {', '.join(allowed)})"
    if params.primary == "acc5" and len(card.classes) < 5:
        return "acc5 needs at least 5 classes"
    if params.difficult and card.kind != "multi-label":
        return "difficult belongs to multi-label sets"
    return None


def needs(params: Params) -> list[tuple[str, str]]:
    """Image features that the protocol reads: (split role, feature space)."""
    return [(params.split, "joint")]


def run(card: TaskCard, splits: dict[str, Split], encoder: Encoder, params: Params, seed: int) -> Outcome:
    """Score every image against every class.

    Class weight = normalise(mean over prompts of normalise(text(prompt))); logit = cosine × logit scale, in
    float32 whatever precision encoded the features; the lowest index wins a tie. Images that could not be
    decoded (rows of NaN) are left out.
    """
    split = splits[params.split]
    images = encoder.images(split, "joint")
    weights = classifier(card, params.templates, encoder)
    rows = np.flatnonzero(np.isfinite(images[:, 0]))
    if not len(rows):
        raise DataError(f"{split.dataset}: none of the {len(split)} images could be decoded")
    ids = np.array(split.ids, dtype=object)[rows]
    if card.kind == "multi-label":
        return _multi_label(images, rows, ids, split, weights, params, seed)
    return _single_label(images, rows, ids, split, weights * np.float32(encoder.logit_scale), seed)


def prompts(card: TaskCard, templates: str) -> list[list[str]]:
    """The finished prompts of each class, in the card's order."""
    found = card.templates[templates]
    if isinstance(found, dict):
        return [list(found[c]) for c in card.classes]
    return [[t.replace("{c}", c) for t in found] for c in card.classes]


def classifier(card: TaskCard, templates: str, encoder: Encoder) -> NDArray[np.float32]:
    """Class weights, unit rows: float32 [C, D]."""
    groups = prompts(card, templates)
    rows = encoder.texts([text for group in groups for text in group])
    ends = np.cumsum([len(group) for group in groups])
    means = np.stack(
        [rows[end - len(group) : end].mean(axis=0) for end, group in zip(ends, groups, strict=True)]
    )
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    unit: NDArray[np.float32] = means / np.maximum(norms, np.float32(1e-12))
    return unit


def _single_label(
    images: NDArray[np.float32],
    rows: NDArray[np.int64],
    ids: NDArray[np.object_],
    split: Split,
    weights: NDArray[np.float32],
    seed: int,
) -> Outcome:
    count = len(weights)
    target = split.labels[rows].astype(np.int64)
    rank, prediction = np.empty_like(target), np.empty_like(target)
    confidence = np.empty(len(rows), dtype=np.float64)
    step = max(1, _BLOCK // max(count, images.shape[1]))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        logits = images[rows[block]] @ weights.T
        rank[block] = metrics.rank_of_target(logits, target[block])
        prediction[block] = metrics.predict(logits)
        confidence[block] = metrics.winning_confidence(logits)
    correct = rank == 0
    scores = {"acc1": stats.accuracy_score(correct, 1 / count)}
    if count >= 5:
        scores["acc5"] = stats.accuracy_score(rank < 5, 5 / count)
    scores["mean_per_class_recall"] = stats.mean_per_class_recall_score(target, prediction, count, seed)
    scores["ece"] = stats.ece_score(confidence, correct, seed)
    return Outcome(
        scores,
        {"recall": metrics.per_class_recall(target, prediction, count)},
        {"id": ids, "target": target, "prediction": prediction, "rank": rank, "confidence": confidence},
    )


def _multi_label(
    images: NDArray[np.float32],
    rows: NDArray[np.int64],
    ids: NDArray[np.object_],
    split: Split,
    weights: NDArray[np.float32],
    params: Params,
    seed: int,
) -> Outcome:
    labels = split.labels[rows].astype(np.uint8)
    marked = bool((split.labels == metrics.DIFFICULT).any())
    if params.difficult in ("ignore", "negative") and not marked:
        raise DataError(
            f"{split.dataset}: this copy of the data does not mark difficult objects, so difficult: "
            f"{params.difficult} would be difficult: positive under another name",
            hint="take the variant that counts them as positive (clipbench list tasks), or a copy that marks them",
        )
    step = max(1, _BLOCK // images.shape[1])
    scores = np.concatenate([images[rows[i : i + step]] @ weights.T for i in range(0, len(rows), step)])
    difficult = params.difficult or "ignore"
    per_class: dict[str, NDArray[np.float64]] = {
        "ap_area": metrics.per_class_average_precision(scores, labels, "area", difficult),
        "ap_11pt": metrics.per_class_average_precision(scores, labels, "11pt", difficult),
    }
    return Outcome(
        stats.mean_average_precision_scores(scores, labels, seed, difficult),
        per_class,
        {"id": ids, "target": list(labels), "score": list(scores.astype(np.float32))},
    )
