"""Choosing between captions, or images, of one item: Winoground, SugarCrepe, ARO, WinoGAViL; nothing trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.base import Tuple
from clipbench.cards.task import TaskCard
from clipbench.data.choices import Choice
from clipbench.data.split import Split
from clipbench.encoding.feature_store import Features
from clipbench.errors import DataError, unknown
from clipbench.metrics import choosing, clustered, intervals
from clipbench.metrics.choosing import Ties
from clipbench.metrics.intervals import Score
from clipbench.metrics.similarity import late_interactions
from clipbench.protocols._samples import decoded
from clipbench.protocols.base import (
    Columns,
    Elsewhere,
    Inputs,
    MetricSpec,
    Needs,
    Outcome,
    Protocol,
    Recorded,
)
from clipbench.protocols.base import Params as ParamsBase

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_BLOCK: Final = 4_000_000  # numbers held at once
#: what is measured of an item; each is a column of the per-sample file
_MEASURES: Final[tuple[str, ...]] = ("text_acc", "image_acc", "group_acc", "text_only_acc", "jaccard")
#: items with so many candidates, as WinoGAViL's main metric has it
_MANY: Final = "jaccard_10-12"
_PARTS, _GROUPS = "_mean_of_parts", "_mean_of_groups"


class Params(ParamsBase):
    """What a task card may set under `protocols: {pick: …}`.

    Attributes:
        primary: the metric that stands for the task.
        split: which of the card's splits.
        ties: what equal scores count for: what is expected in random order, a loss (`strict`), or the one that comes
            first wins (`first`, arg-max; a model that tells nothing apart may then score 100 %).
        part: only items of this part of the set.
        least: of means over parts, the fewest items that a part must have to count.
        groups: name → its parts, for means over groups of parts.
    """

    primary: str = "text_acc"
    split: str = "test"
    ties: Ties = "random"
    part: str | None = None
    least: int = 1
    groups: dict[str, Tuple[str]] = Field({})


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    names = [spec.name for spec in METRICS]
    if params.primary not in names:
        return unknown("primary metric", params.primary, names)
    if params.primary.endswith((_PARTS, _GROUPS)) and params.part is not None:
        return f"primary {params.primary} is a mean over parts, and part names one"
    if params.primary.endswith(_GROUPS) and not params.groups:
        return f"primary {params.primary} needs groups"
    named = [part for parts in params.groups.values() for part in parts]
    if len(set(named)) < len(named):
        return "groups names a part twice"
    return "least must be 1 or more" if params.least < 1 else None


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    return Needs(((params.split, compared),))


def texts(card: TaskCard, splits: dict[str, Split], params: Params) -> list[str]:
    """Every text, once."""
    return list(dict.fromkeys(text for item in _asked(splits[params.split], params) for text in item.texts))


def _asked(split: Split, params: Params) -> tuple[Choice, ...]:
    """The items that are measured.

    Raises:
        DataError: there are none.
    """
    assert split.choices is not None  # cards of this kind open as such
    parts = sorted({item.part for item in split.choices} - {""})
    for part in ([] if params.part is None else [params.part]) + [
        p for of in params.groups.values() for p in of
    ]:
        if part not in parts:
            raise DataError(
                f"{split.dataset}: {unknown('part', part, parts)}",
                hint="a copy of the whole set is needed; --limit may have left none of its items",
            )
    items = tuple(item for item in split.choices if params.part in (None, item.part))
    if not items:
        raise DataError(
            f"{split.dataset}: there is no whole item among {len(split):,} images",
            hint="raise --limit, or leave it out: an item is measured where all of its images are there",
        )
    return items


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Score the images of every item with its texts.

    text_acc: every image prefers each of its texts to each other; image_acc: every text prefers its images; group_acc:
    both; text_only_acc: the right texts are more alike to each other than to the wrong one; jaccard: of the K best
    images and the K right ones. A measure is reported where it has a meaning for all items. The score is the cosine in
    float64, or late interaction where the model compares tokens (images and texts each by their own mean). An item
    with an image that could not be decoded is left out.

    Intervals are over items; items that show the same images are taken together.
    """
    split = splits[params.split]
    features = encoder.images(split, encoder.compared)
    rows = decoded(split, features)
    asked = _asked(split, params)
    undamaged = set(rows.tolist())
    items = [item for item in asked if undamaged.issuperset(item.images)]
    if not items:
        raise DataError(f"{split.dataset}: no item has all of its images decoded")
    found = _measured(items, features, encoder, params.ties)
    by_chance = _by_chance(items, params.ties)
    shown = _numbered([tuple(sorted(item.images)) for item in items])
    parts = np.array([item.part for item in items], dtype=object)
    candidates = np.array([len(item.images) for item in items])
    measures = [name for name in _MEASURES if name in found.values]
    scores = {name: _score(found.values[name], shown, by_chance[name]) for name in measures}
    if (many := candidates >= 10).any() and "jaccard" in measures:
        again = _numbered(shown[many].tolist())
        scores[_MANY] = _score(found.values["jaccard"][many], again, by_chance["jaccard"][many])
    told: dict[str, Any] = {}
    if len(set(parts)) > 1:
        for name in measures:
            scores |= _over_parts(name, found.values[name], by_chance[name], parts, shown, params)
        told["parts"] = _by_part({name: found.values[name] for name in measures}, parts, shown, params.least)
    if params.primary not in scores:
        raise DataError(
            f"{split.dataset}: {params.primary} cannot be measured on these items (reported: {', '.join(scores)})",
            hint="set primary on the task card to one of these, or measure on more items (--limit)",
        )
    whole = split.choices or ()
    twice = [item.id for item in items if _same_texts(item)]
    told |= {
        "items": len(items),
        "tied_items": int(found.tied.sum()),
        "left_out": len(whole) - len(items),
        "of_other_parts": len(whole) - len(asked),
        "same_texts": {"items": len(twice), "examples": twice[:3]},
    }
    samples: dict[str, Any] = {"id": np.array([item.id for item in items], dtype=object)}
    samples |= {"part": parts, "candidates": candidates, "tied": found.tied}
    samples |= {name: found.values[name] for name in measures}
    return Outcome(scores, samples=samples, evidence=told)


def _same_texts(item: Choice) -> bool:
    """Whether a text that is right for an image of the item is also one that is not."""
    for image in range(len(item.images)):
        own = {item.texts[text] for at, text in item.right if at == image}
        other = [text for place, text in enumerate(item.texts) if (image, place) not in item.right]
        if own and own & set(other):
            return True
    return False


def _numbered(keys: Sequence[Any]) -> Ints:
    """A number from 0 on for each different key."""
    number: dict[Any, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)


# ------------------------------------------------------------------- of each item


@dataclass(frozen=True)
class _Found:
    """Of each item: measures by name, float64 [n], and whether some of its scores are equal, bool [n]."""

    values: dict[str, Doubles]
    tied: NDArray[np.bool_]


def _right(item: Choice) -> NDArray[np.bool_]:
    """Which images and texts belong together: bool [I, T]."""
    right = np.zeros((len(item.images), len(item.texts)), dtype=bool)
    right[tuple(np.array(item.right, dtype=np.int64).reshape(-1, 2).T)] = True
    return right


def _applicable(items: Sequence[Choice]) -> list[str]:
    """The measures that mean something for all items."""
    shapes = {(len(item.images), len(item.texts), tuple(sorted(item.right))) for item in items}
    rights = [_right(Choice("", tuple(range(i)), ("",) * t, right)) for i, t, right in shapes]
    text = all((r.any(axis=1) & ~r.all(axis=1)).any() for r in rights)
    image = all((r.any(axis=0) & ~r.all(axis=0)).any() for r in rights)
    pairs = all(len(r) == 1 and r.sum() >= 2 and not r.all() for r in rights)
    several = all(r.shape[1] == 1 for r in rights) and any(r.sum() > 1 for r in rights) and image
    chosen = (text, image, text and image, pairs, several)
    return [name for name, wanted in zip(_MEASURES, chosen, strict=True) if wanted]


def _measured(items: Sequence[Choice], features: Features, encoder: Inputs, ties: Ties) -> _Found:
    """All measures of all items, items of one shape at a time."""
    measures = _applicable(items)
    if not measures:
        raise DataError("the items have nothing to choose between: no image or text is wrong")
    every = list(dict.fromkeys(text for item in items for text in item.texts))
    rows = encoder.texts(every, encoder.compared)
    number = {text: place for place, text in enumerate(every)}
    values = {name: np.empty(len(items)) for name in measures}
    tied = np.zeros(len(items), dtype=bool)
    for places in _of_one_shape(items, features.shape[1]):
        some = [items[place] for place in places]
        images = np.asarray(features[np.array([item.images for item in some]).ravel()])
        captions = np.asarray(rows[np.array([[number[t] for t in item.texts] for item in some]).ravel()])
        scores = _scores(images, captions, len(some), encoder)
        right = np.stack([_right(item) for item in some])
        tied[places] = _any_equal(scores.of_images, right) | _any_equal(scores.of_texts, right)
        products = None
        if "text_only_acc" in measures:
            products = _scores(captions, captions, len(some), encoder).of_images
        for name in measures:
            values[name][places] = _measure(name, scores, right, products, ties)
    return _Found(values, tied)


def _of_one_shape(items: Sequence[Choice], width: int) -> Iterator[list[int]]:
    """Places of items with as many images and texts, so many that their features fit."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for place, item in enumerate(items):
        by_shape.setdefault((len(item.images), len(item.texts)), []).append(place)
    for (images, captions), places in by_shape.items():
        step = max(1, _BLOCK // (width * images * captions))
        for start in range(0, len(places), step):
            yield places[start : start + step]


class _Scores(NamedTuple):
    """Scores of each item's images with its texts, float64 [items, I, T]: as images say it, and as texts do.

    Cosines are the same in both; in late interaction each that asks has its own mean over its tokens.
    """

    of_images: Doubles
    of_texts: Doubles


def _scores(images: Floats, captions: Floats, items: int, encoder: Inputs) -> _Scores:
    """The scores of items of one shape.

    Sums of cosines are taken in one order for every pair, so that equal features give equal scores.
    """
    if encoder.compared == "joint":
        left = images.reshape(items, -1, 1, images.shape[1]).astype(np.float64)
        right = captions.reshape(items, 1, -1, captions.shape[1]).astype(np.float64)
        found: Doubles = (left * right).sum(axis=-1)
        return _Scores(found, found)
    import torch

    width = encoder.token_width or 0
    tokens = [
        torch.from_numpy(rows.reshape(items, len(rows) // items, -1, width)) for rows in (images, captions)
    ]
    pairs = [late_interactions(*pair) for pair in zip(*tokens, strict=True)]
    one, other = (torch.stack(scores).numpy().astype(np.float64) for scores in zip(*pairs, strict=True))
    return _Scores(one, other)


def _any_equal(scores: Doubles, right: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a right score of an item equals a wrong one of the same image or text: bool [n]."""
    own, other = np.where(right, scores, np.nan), np.where(right, np.nan, scores)
    rows = (own[:, :, :, None] == other[:, :, None, :]).any(axis=(1, 2, 3))
    columns = (own[:, :, None, :] == other[:, None, :, :]).any(axis=(1, 2, 3))
    both: NDArray[np.bool_] = rows | columns
    return both


def _measure(
    name: str, scores: _Scores, right: NDArray[np.bool_], products: Doubles | None, ties: Ties
) -> Doubles:
    match name:
        case "text_acc":
            return choosing.texts_win(scores.of_images, right, ties)
        case "image_acc":
            return choosing.images_win(scores.of_texts, right, ties)
        case "group_acc" if scores.of_images is scores.of_texts:
            return choosing.both_win(scores.of_images, right, ties)
        case "group_acc":  # other scores decide, whose ties have nothing to do with each other
            both: Doubles = choosing.texts_win(scores.of_images, right, ties) * choosing.images_win(
                scores.of_texts, right, ties
            )
            return both
        case "text_only_acc":
            assert products is not None
            return choosing.right_texts_alike(products, right[:, 0], ties)
        case _:
            return choosing.jaccard(scores.of_texts[:, :, 0], right[:, :, 0], ties)


def _by_chance(items: Sequence[Choice], ties: Ties) -> dict[str, Doubles]:
    """What random scores give each item: float64 [n] by measure; whatever ties count for."""
    measures = _applicable(items)
    known: dict[Any, dict[str, float]] = {}
    chances = []
    for item in items:
        right = _right(item)
        key = right.shape, right.tobytes()
        if key not in known:
            blank, square = np.zeros(right.shape)[None], np.zeros((1, right.shape[1], right.shape[1]))
            known[key] = {
                name: float(_measure(name, _Scores(blank, blank), right[None], square, "random")[0])
                for name in measures
            }
        chances.append(known[key])
    return {name: np.array([chance[name] for chance in chances]) for name in measures}


# ------------------------------------------------------------------- of all items


def _score(values: Doubles, shown: Ints, by_chance: Doubles) -> Score:
    """Mean over items; those with the same images are one group."""
    return intervals.grouped_share_score(values, shown, float(by_chance.mean()))


def _weights(parts: Sequence[Any], name: str, params: Mapping[str, Any]) -> Doubles | None:
    """What each item adds to a mean over parts, or groups of parts, for 1 each: float64 [n]; None: there is no mean."""
    every = np.asarray(parts, dtype=object)
    sizes = {part: int((every == part).sum()) for part in set(parts)}
    counted = {part for part, size in sizes.items() if size >= params.get("least", 1)}
    of_part: dict[str, float] = {}
    if name.endswith(_PARTS):
        of_part = dict.fromkeys(counted, 1 / max(len(counted), 1))
    else:
        groups = [[p for p in of if p in counted] for of in (params.get("groups") or {}).values()]
        of_part = {p: 1 / len(groups) / len(of) for of in groups for p in of}
        if not groups or not all(groups):
            return None
    if not of_part:
        return None
    return np.array([of_part.get(part, 0.0) * len(every) / sizes[part] for part in parts])


def _over_parts(
    name: str,
    values: Doubles,
    by_chance: Doubles,
    parts: NDArray[np.object_],
    shown: Ints,
    params: Params,
) -> dict[str, Score]:
    """The means over parts, and over groups of parts, of a measure."""
    found = {}
    for metric in (f"{name}{_PARTS}", f"{name}{_GROUPS}"):
        weight = _weights(parts.tolist(), metric, params.canonical())
        if weight is None:
            continue
        value, chance = float((values * weight).mean()), float((by_chance * weight).mean())
        means = {part: values[parts == part].mean() for part in set(parts)}
        off = weight * (values - np.array([means[part] for part in parts])) / len(values)
        sums = clustered.sums(shown, off)
        counted = int((weight > 0).sum())
        groups = len(set(shown[weight > 0].tolist()))
        error = math.sqrt(float((sums**2).sum()) * groups / max(groups - 1, 1))
        alike = min(value * (1 - value) / error**2, counted) if error > 0 and 0 < value < 1 else groups
        value = min(max(value, 0.0), 1.0)
        found[metric] = Score(value, intervals.wilson(value * alike, alike), counted, chance)
    return found


def _by_part(
    values: Mapping[str, Doubles], parts: NDArray[np.object_], shown: Ints, least: int
) -> list[dict[str, Any]]:
    """Each part with its own scores, in the order of names."""
    told = []
    for part in sorted(set(parts)):
        of = parts == part
        group = _numbered(shown[of].tolist())
        one: dict[str, Any] = {"part": part, "n": int(of.sum())}
        if one["n"] < least:
            one["counted"] = False
        for name, value in values.items():
            score = intervals.grouped_share_score(value[of], group, None)
            one[name] = {"value": score.value, "ci95": list(score.ci95)}
        told.append(one)
    return told


def _shares(metric: str, table: Columns, params: Recorded) -> Doubles | None:
    """What each item adds to a metric, from the per-sample file."""
    name = next((name for name in _MEASURES if metric.startswith(name) and name in table), None)
    if name is None:
        return None
    values = np.array(table[name], np.float64)
    if metric == _MANY:
        many = np.array(table["candidates"]) >= 10
        return values * many * (len(many) / max(int(many.sum()), 1))
    if metric == name:
        return values
    weight = _weights(list(table["part"]), metric, params)
    return None if weight is None else values * weight


_ELSEWHERE: Final[dict[str, dict[str, str]]] = {
    "text_acc": {"CLIP_benchmark": "text_acc", "mteb": "text_acc"},
    "image_acc": {"CLIP_benchmark": "image_acc", "mteb": "image_acc"},
    "group_acc": {"CLIP_benchmark": "acc", "mteb": "accuracy"},
    "jaccard": {"DataComp": "jaccard_all"},
    _MANY: {"DataComp": "jaccard_10-12"},
}
METRICS: Final = tuple(
    MetricSpec(
        f"{name}{of}",
        "that of random scores",
        shares=_shares,
        elsewhere=_ELSEWHERE.get(f"{name}{of}", {}),
    )
    for name in (*_MEASURES, _MANY)
    for of in (("",) if name == _MANY else ("", _PARTS, _GROUPS))
)
PROTOCOL: Final = Protocol(
    id="pick",
    version=1,
    kinds=("choices",),
    params=Params,
    metrics=METRICS,
    check=check,
    needs=needs,
    run=run,
    texts=texts,
    variants={"strict": {"ties": "strict"}, "argmax": {"ties": "first"}},
    elsewhere={"CLIP_benchmark": Elsewhere("image_caption_selection")},
)
