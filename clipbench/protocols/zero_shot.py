"""Zero-shot classification (CLIP, arXiv 2103.00020, section 3.1): prompts make the classifier, nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.task import ALL_CLASSES, CLASSES, LABELLED, TaskCard
from clipbench.data.labels import require_difficult
from clipbench.data.split import Split
from clipbench.encoding.feature_store import Features
from clipbench.errors import unknown
from clipbench.metrics.similarity import similarity
from clipbench.protocols import _outcomes as outcomes
from clipbench.protocols._samples import clusters_of, decoded, groups_of
from clipbench.protocols.base import Elsewhere, Inputs, Needs, Outcome, Protocol
from clipbench.protocols.base import Params as ParamsBase

_BLOCK = 4_000_000  # scores, and features, held at once


class Params(ParamsBase):
    """What a task card may set under `protocols: {zs: …}`.

    Attributes:
        primary: the metric that stands for the task.
        templates: which of the card's template sets.
        split: which of the card's splits.
        difficult: for labels that mark objects as difficult (VOC): leave them out of their class, or count
            them as positive or negative. Labels that mark none are refused, except with `positive`.
        classes: which of the card's class sets; each is a variant of its own name, too.
        any_label: of a multi-label set: an image is right where its best class is any of its labels (ImageNet ReaL).
    """

    later: ClassVar = (CLASSES, "any_label")

    primary: Literal["acc1", "acc5", "mean_per_class_recall", "worst_group_acc1", "map_area", "map_11pt"] = (
        "acc1"
    )
    templates: str = "default"
    split: str = "test"
    difficult: Literal["ignore", "positive", "negative"] | None = None
    classes: str = ALL_CLASSES
    any_label: bool = False


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if params.templates not in card.templates:
        return unknown("template set", params.templates, card.templates)
    if not params.any_label:
        return outcomes.misfit_of_labels(card, params.primary, params.difficult)
    if card.kind != "multi-label" or params.difficult:
        return "any_label belongs to multi-label sets, and takes no difficult"
    return (
        None if params.primary in ("acc1", "acc5") else f"any_label has acc1 and acc5, not {params.primary}"
    )


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    return Needs(((params.split, compared),))


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Score every image against every class.

    Class weight = normalise(mean over prompts of normalise(text(prompt))); logit = cosine × logit scale, in
    float32 whatever precision encoded the features; the lowest index wins a tie. A model that compares tokens
    is scored by late interaction instead (see `classifier`). Images that could not be decoded (rows of NaN) are
    left out.
    """
    split = splits[params.split]
    images = encoder.images(split, encoder.compared)
    weights = classifier(card, params.templates, encoder)
    rows = decoded(split, images)
    ids, labels = np.array(split.ids, dtype=object)[rows], split.labels[rows]
    clusters = clusters_of(split, rows)
    scale, wider = np.float32(encoder.logit_scale), max(len(weights), images.shape[1])
    if params.any_label:
        logits = scored(images, rows, weights * scale, wider)
        outcome = outcomes.any_label(logits, labels.astype(np.uint8), ids, clusters)
    elif card.kind == "multi-label":
        difficult = require_difficult(split, params.difficult)
        scores = np.concatenate([part for _, part in scored(images, rows, weights, images.shape[1])])
        labels = labels.astype(np.uint8)
        outcome = outcomes.multi_label(scores, labels, ids, difficult, seed, clusters=clusters)
    else:
        logits = scored(images, rows, weights * scale, wider)
        outcome = outcomes.single_label(
            logits, labels.astype(np.int64), ids, len(weights), seed, clusters, groups_of(split, rows)
        )
        by_frequency = {"chance_by_frequency": chance_by_frequency(labels.astype(np.int64))}
        outcome = replace(outcome, evidence=outcome.evidence | by_frequency)
    named = named_alike(card, params.templates)
    return replace(outcome, evidence=outcome.evidence | ({"same_prompts": named} if named else {}))


def chance_by_frequency(labels: NDArray[np.int64]) -> float:
    """acc1 of a guesser that knows how frequent classes are and draws by that: the sum of their squared shares.

    DataComp states this as chance; a score's own `chance` is 1 / classes.

    >>> mnist = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    >>> round(chance_by_frequency(np.repeat(np.arange(10), mnist)), 5)
    0.10035
    """
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float((shares**2).sum())


def prompts(card: TaskCard, templates: str) -> list[list[str]]:
    """The finished prompts of each class, in the card's order."""
    found = card.templates[templates]
    if isinstance(found, dict):
        return [list(found[c]) for c in card.classes]
    return [[t.replace("{c}", c) for t in found] for c in card.classes]


def texts(card: TaskCard, splits: dict[str, Split], params: Params) -> list[str]:
    """Every finished prompt, once."""
    return _unique(prompts(card, params.templates))


def _unique(groups: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(text for group in groups for text in group))


def same_prompts(card: TaskCard, templates: str) -> list[list[int]]:
    """Groups of classes that no model can tell apart, since all of their prompts are the same: class indices."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, texts in enumerate(prompts(card, templates)):
        groups.setdefault(tuple(sorted(texts)), []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def named_alike(card: TaskCard, templates: str) -> list[list[str]]:
    """The classes of `same_prompts`, each with its name and number, for the record."""
    return [[f"{card.classes[c]} ({c})" for c in group] for group in same_prompts(card, templates)]


def classifier(card: TaskCard, templates: str, encoder: Inputs) -> NDArray[np.float32]:
    """Class weights: float32 [C, D], unit rows; or [C, T, d], where the model compares tokens.

    Tokens are averaged over a class's prompts position by position, padding included, and divided by the
    Frobenius norm of the class's block, as FILIP's evaluation in the DeCLIP repository does.
    """
    groups = prompts(card, templates)
    unique = _unique(groups)
    number = {text: i for i, text in enumerate(unique)}
    rows = encoder.texts(unique, encoder.compared)
    means = np.stack([rows[[number[text] for text in group]].mean(axis=0) for group in groups])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    unit: NDArray[np.float32] = means / np.maximum(norms, np.float32(1e-12))
    return unit if encoder.compared == "joint" else unit.reshape(len(unit), -1, encoder.token_width or 0)


def scored(
    images: Features, rows: NDArray[np.int64], weights: NDArray[np.float32], width: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Places among `rows` and their similarity with the class weights, so many that `width` numbers a row fit."""
    step = max(1, _BLOCK // width)
    for start in range(0, len(rows), step):
        place = slice(start, start + step)
        yield place, similarity(images[rows[place]], weights)


PROTOCOL: Final = Protocol(
    id="zs",
    version=2,
    kinds=LABELLED,
    params=Params,
    metrics=outcomes.SINGLE_LABEL + outcomes.MULTI_LABEL,
    check=check,
    needs=needs,
    run=run,
    texts=texts,
    elsewhere={
        "CLIP_benchmark": Elsewhere("zeroshot_classification"),
        "huggingface": Elsewhere("zero-shot-image-classification"),
    },
)
