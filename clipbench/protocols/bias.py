"""How a model's similarity with neutral queries differs between two groups, before and after a concept is removed.

CLIP-Lite's probe (arXiv 2112.07133; `bias_eda.py`), with an aggregate, intervals, and what the removal costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.base import Tuple
from clipbench.cards.task import TaskCard
from clipbench.data.labels import fold, match
from clipbench.data.split import Split
from clipbench.errors import DataError, unknown
from clipbench.metrics import classification, intervals
from clipbench.metrics.average_precision_intervals import mean_average_precision_scores
from clipbench.metrics.concepts import concept_direction, remove_concept
from clipbench.metrics.group_ranking import Counts, Rankings, membership
from clipbench.metrics.intervals import Score
from clipbench.metrics.similarity import similarity
from clipbench.protocols._samples import decoded
from clipbench.protocols.base import Elsewhere, Inputs, MetricSpec, Needs, Outcome, Protocol
from clipbench.protocols.base import Params as ParamsBase
from clipbench.protocols.zero_shot import classifier, prompts

Pair = Annotated[tuple[str, str], Field(strict=False)]
Stage = Literal["before", "after"]
Images = dict[Stage, NDArray[np.float32]]
_STAGES: Final[tuple[Stage, ...]] = ("before", "after")

_MEASURES: Final = (
    "how far the highest similarities of the two groups' images with neutral queries lie apart, and who is among "
    "the best images of all, before and after one direction is removed from the image features; and how well the "
    "model then still tells objects in the same images"
)
_DOES_NOT_MEASURE: Final = (
    "whether the model, or a use of it, is fair. The groups are two, and are what the words of captions say of "
    "people, not what people say of themselves. The direction is one, linear, and found from a few English word "
    "pairs: what else tells the groups apart stays in the features, and a small gap after removal does not show "
    "that it is gone. The groups' images differ in scenes and objects too, so a gap is not the effect of gender "
    "alone. Queries and images are a choice; other ones give other numbers"
)


class Params(ParamsBase):
    """What a task card may set under `protocols: {bias: …}`.

    Attributes:
        primary: the metric that stands for the task.
        split: which of the card's splits.
        pairs: definitional pairs of words, from which the direction is found.
        queries: texts that name neither group.
        objects: names of the objects that the data labels, as they stand in prompts.
        templates: which of the card's template sets makes the objects' prompts.
        top: a group's similarity with a query is the mean over this many of its images, the most similar ones.
        skew_at: maxskew@k looks at this many images, the most similar ones of both groups.
    """

    primary: Literal["gap_before", "gap_after"] = "gap_before"
    split: str = "test"
    pairs: Tuple[Pair]
    queries: Tuple[str]
    objects: Tuple[str]
    templates: str = "default"
    top: int = Field(10, ge=1)
    skew_at: int = Field(100, ge=1)


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if params.templates not in card.templates:
        return unknown("template set", params.templates, card.templates)
    if isinstance(card.templates[params.templates], dict):
        return f"templates {params.templates} are finished prompts of the classes; objects need a list with {{c}}"
    if len(card.classes) != 2:
        return f"a gap is between two groups (the card has {len(card.classes)} classes)"
    if not params.pairs or any(a == b for a, b in params.pairs):
        return "pairs must hold a pair at least, each of two different words"
    for name, given in (("queries", params.queries), ("objects", tuple(map(fold, params.objects)))):
        if not given or len(set(given)) < len(given):
            return f"{name} must hold one at least, and none twice"
    return None


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space).

    Always `joint`: a direction is removed from one vector an image.
    """
    return Needs(((params.split, "joint"),))


def texts(card: TaskCard, splits: dict[str, Split], params: Params) -> list[str]:
    """Words of the pairs, queries, and prompts of the objects, each once."""
    of_objects = [text for group in prompts(_of_objects(card, params), params.templates) for text in group]
    return list(dict.fromkeys((*_words(params), *params.queries, *of_objects)))


def _words(params: Params) -> list[str]:
    return [word for pair in params.pairs for word in pair]


def _of_objects(card: TaskCard, params: Params) -> TaskCard:
    """The card with the objects for classes."""
    return card.model_copy(update={"classes": params.objects})


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Compare the groups with each query, remove the concept from the images, and compare again.

    The direction is `concept_direction` of the pairs' texts, as the model gives them, of unit length (CLIP-Lite's
    code has them before normalisation, which weights the pairs by the lengths of their vectors). It is removed from
    the image vectors alone, which then are brought to unit length again; texts stay. `gap` is the mean over queries
    of the absolute difference between the groups' mean of their `top` highest cosines; `maxskew@k` the mean over
    queries of `Rankings.max_skew`. Chance is the mean of the same number over groups that are shuffled: what a model
    that does not see the groups gets on these images. Intervals are from resamples within the groups.

    What removal costs is measured on the objects that the same images show, zero-shot: `object_acc1`, the share of
    images whose most similar object is there (of those that show any), and `object_map`, the mean average precision.

    Raises:
        DataError: fewer images than `top` in a group or than `skew_at` in all, or objects that are not the card's.
    """
    split = splits[params.split]
    found = encoder.images(split, "joint")
    rows = decoded(split, found)
    groups = split.labels[rows].astype(np.int64)
    _enough(split, groups, params)
    pairs = np.asarray(encoder.texts(_words(params), "joint"))
    direction = concept_direction(np.stack([pairs[::2], pairs[1::2]], axis=1))
    before = np.asarray(found[rows])
    removed = remove_concept(before, direction)
    length = np.linalg.norm(removed, axis=1, keepdims=True)
    images: Images = {"before": before, "after": removed / np.maximum(length, np.float32(1e-12))}
    queries = np.asarray(encoder.texts(list(params.queries), "joint"))
    ranked = {stage: Rankings(similarity(images[stage], queries)) for stage in _STAGES}
    members = membership(groups, 2)
    top = {stage: ranked[stage].top_means(params.top, members) for stage in _STAGES}
    skew = {stage: ranked[stage].max_skew(params.skew_at, members) for stage in _STAGES}
    cost, shown = _cost(card, split, rows, images, encoder, params, seed)
    ids = np.array(split.ids, dtype=object)[rows]
    return Outcome(
        _scores(ranked, groups, params, seed) | cost,
        {f"top{params.top}_{stage}": top[stage].mean(axis=0) for stage in _STAGES},
        {"id": ids, "target": groups, "projection": before @ direction, **shown},
        _evidence(card, params, pairs, direction, {"before": before, "after": removed}, groups, top, skew),
    )


def _enough(split: Split, groups: NDArray[np.int64], params: Params) -> None:
    counts = np.bincount(groups, minlength=2)
    for name, count in zip(split.classes, counts.tolist(), strict=True):
        if count < params.top:
            raise DataError(
                f"{split.dataset}: {count} images of {name}, fewer than the {params.top} that a mean is over",
                hint="measure more images (raise --limit, or leave it out), or lower `top` on the task card",
            )
    if len(groups) < params.skew_at:
        raise DataError(
            f"{split.dataset}: {len(groups)} images, fewer than the {params.skew_at} of maxskew@{params.skew_at}",
            hint="measure more images (raise --limit, or leave it out), or lower `skew_at` on the task card",
        )


def _scores(
    ranked: dict[Stage, Rankings], groups: NDArray[np.int64], params: Params, seed: int
) -> dict[str, Score]:
    """Gap and skew before and after, and how far removal moves them."""
    names = [f"{metric}_{stage}" for stage in _STAGES for metric in ("gap", f"maxskew@{params.skew_at}")]

    def measured(counts: Iterable[Counts]) -> NDArray[np.float64]:
        return np.array([_of_counts(ranked, c, params) for c in counts])

    members = membership(groups, 2)
    value = measured([members])[0].tolist()
    draws = measured(members * weights for weights in intervals.stratified(groups, seed))
    rng = np.random.default_rng(seed)
    shuffled = measured(membership(rng.permutation(groups), 2) for _ in range(intervals.RESAMPLES))
    scores = {
        name: Score(value[i], intervals.basic(value[i], draws[:, i], 0.0), len(groups), float(chance))
        for i, (name, chance) in enumerate(zip(names, shuffled.mean(axis=0), strict=True))
    }
    for i, name in enumerate(("gap_change", f"maxskew@{params.skew_at}_change")):
        change, drawn = value[2 + i] - value[i], draws[:, 2 + i] - draws[:, i]
        scores[name] = Score(change, intervals.basic(change, drawn), len(groups), None)
    return scores


def _of_counts(ranked: dict[Stage, Rankings], counts: Counts, params: Params) -> list[float]:
    """Gap and mean skew before, then after."""
    found = []
    for stage in _STAGES:
        top = ranked[stage].top_means(params.top, counts)
        found.append(float(np.abs(top[:, 0] - top[:, 1]).mean()))
        found.append(float(ranked[stage].max_skew(params.skew_at, counts).mean()))
    return found


def _cost(
    card: TaskCard,
    split: Split,
    rows: NDArray[np.int64],
    images: Images,
    encoder: Inputs,
    params: Params,
    seed: int,
) -> tuple[dict[str, Score], dict[str, NDArray[np.float64]]]:
    """Scores of zero-shot objects before and after, and each image's hits; nothing where no image shows any."""
    present = _present(split, params)[rows]
    some = np.flatnonzero(present.any(axis=1))
    if not len(some):
        return {}, {}
    weights = classifier(_of_objects(card, params), params.templates, encoder)
    scores: dict[str, Score] = {}
    hits: dict[Stage, NDArray[np.bool_]] = {}
    for stage in _STAGES:
        found = similarity(images[stage], weights)
        hits[stage] = present[some, classification.predict(found[some])] == 1
        scores[f"object_acc1_{stage}"] = intervals.accuracy_score(hits[stage], float(present[some].mean()))
        precision = mean_average_precision_scores(found, present, seed, kinds=("area",))
        scores[f"object_map_{stage}"] = precision["map_area"]
    change = hits["after"].astype(np.float64) - hits["before"]
    interval = intervals.bootstrap_mean(change, seed)
    scores["object_acc1_change"] = Score(float(change.mean()), interval, len(some), None)
    columns = {f"object_hit_{stage}": np.full(len(rows), np.nan) for stage in _STAGES}
    for stage in _STAGES:
        columns[f"object_hit_{stage}"][some] = hits[stage]
    return scores, columns


def _present(split: Split, params: Params) -> NDArray[np.uint8]:
    """The data's objects in the order of the card's: uint8 [n, C]."""
    names = split.objects.names if split.objects else ()
    found = match(names, params.objects)
    odd = found.lost + [name for i, name in enumerate(params.objects) if i not in found.places]
    if split.objects is None or found.problem or odd:
        raise DataError(
            f"{split.dataset}: the data labels {len(names)} objects, the card names {len(params.objects)}; "
            + (found.problem or f"not in both: {', '.join(odd[:5])}"),
            hint="correct `objects` of the protocol bias on the task card",
        )
    turned = np.zeros_like(split.objects.present)
    turned[:, np.array(found.places, dtype=np.int64)] = split.objects.present
    return turned


def _evidence(
    card: TaskCard,
    params: Params,
    pairs: NDArray[np.float32],
    direction: NDArray[np.float64],
    images: Images,
    groups: NDArray[np.int64],
    top: dict[Stage, NDArray[np.float64]],
    skew: dict[Stage, NDArray[np.float64]],
) -> dict[str, Any]:
    """What each query gives, how much of the pairs the direction holds, and what the numbers do and do not say."""
    halves = (pairs[::2] - pairs[1::2]).astype(np.float64)
    along = {stage: images[stage].astype(np.float64) @ direction for stage in _STAGES}
    return {
        "measures": _MEASURES,
        "does_not_measure": _DOES_NOT_MEASURE,
        "images": dict(zip(card.classes, np.bincount(groups, minlength=2).tolist(), strict=True)),
        "share_of_pairs_along_direction": float(((halves @ direction) ** 2).sum() / (halves**2).sum()),
        "mean_projection": {
            stage: {name: float(along[stage][groups == i].mean()) for i, name in enumerate(card.classes)}
            for stage in _STAGES
        },
        "queries": {
            query: {
                stage: {
                    f"top{params.top}": dict(zip(card.classes, top[stage][q].tolist(), strict=True)),
                    f"maxskew@{params.skew_at}": float(skew[stage][q]),
                }
                for stage in _STAGES
            }
            for q, query in enumerate(params.queries)
        },
    }


_METRICS: Final = (
    *(
        MetricSpec(f"{measure}_{stage}", "mean over shuffled groups", less_is_better=True)
        for measure in ("gap", "maxskew@*")
        for stage in _STAGES
    ),
    *(MetricSpec(f"{measure}_change", "none") for measure in ("gap", "object_acc1")),
    MetricSpec("maxskew@*_change", "none", less_is_better=True),
    *(MetricSpec(f"object_acc1_{stage}", "mean share of objects that an image shows") for stage in _STAGES),
    *(MetricSpec(f"object_map_{stage}", "share of positives") for stage in _STAGES),
)
PROTOCOL: Final = Protocol(
    id="bias",
    version=2,
    kinds=("objects",),
    params=Params,
    metrics=_METRICS,
    check=check,
    needs=needs,
    run=run,
    texts=texts,
    elsewhere={"huggingface": Elsewhere("bias-evaluation")},
)
