"""Retrieval: each caption's image among all images, and each image's captions among all captions, nothing trained."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar, Final, cast

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import Tuple
from clipbench.cards.task import TaskCard
from clipbench.data.split import Split
from clipbench.errors import unknown
from clipbench.metrics import clustered, intervals
from clipbench.metrics.intervals import Score
from clipbench.protocols import _languages, _ranked
from clipbench.protocols._outcomes import column_of
from clipbench.protocols._ranked import NDCG, OF_IMAGES, OF_TEXTS
from clipbench.protocols._samples import clusters_of, decoded
from clipbench.protocols.base import (
    Columns,
    CutInputs,
    Elsewhere,
    Inputs,
    MetricSpec,
    Needs,
    Outcome,
    Protocol,
    Recorded,
)
from clipbench.protocols.base import Params as ParamsBase
from clipbench.solvers.ranking import Ranks

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


class Params(ParamsBase):
    """What a task card may set under `protocols: {ret: …}`.

    Attributes:
        primary: the metric that stands for the task.
        ks: the depths of recall@k; their mean over both directions is `mean_recall`, that of one depth `mean_recall@k`.
        split: which of the card's splits.
        language: of a card with several, the one that is measured; None: each, and the mean over them.
    """

    later: ClassVar = ("language",)

    primary: str = "mean_recall"
    ks: Tuple[int] = (1, 5, 10)
    split: str = "test"
    language: str | None = None


def check(card: TaskCard, params: Params) -> str | None:
    """What is wrong with `params` for `card`, or None."""
    if not params.ks or params.ks[0] < 1 or any(a >= b for a, b in pairwise(params.ks)):
        return "ks must ascend from 1 or more, and there must be one at least"
    if params.language is not None and params.language not in card.languages:
        return unknown("language", params.language, card.languages)
    recalls = [f"{way}_recall@{k}" for way in (OF_IMAGES, OF_TEXTS) for k in params.ks]
    means = ["mean_recall", *(f"mean_recall@{k}" for k in params.ks)]
    allowed = [
        *means,
        *recalls,
        f"{OF_IMAGES}_map@R",
        *(f"{way}_ndcg@{NDCG}" for way in (OF_IMAGES, OF_TEXTS)),
    ]
    return None if params.primary in allowed else unknown("primary metric", params.primary, allowed)


def needs(params: Params, compared: str) -> Needs:
    """Image features that the protocol reads: (split role, feature space)."""
    return Needs(((params.split, compared),))


def texts(card: TaskCard, splits: dict[str, Split], params: Params) -> list[str]:
    """Every caption, once."""
    captions = splits[params.split].captions
    assert captions is not None  # cards of this kind open as such
    return list(dict.fromkeys(captions.texts))


def run(card: TaskCard, splits: dict[str, Split], encoder: Inputs, params: Params, seed: int) -> Outcome:
    """Rank all captions for every image, and all images for every caption.

    All captions of an image count. The score is the cosine, or late interaction where the model compares tokens (each
    direction by its own mean). Equal scores count as in random order (see `metrics.expected_hit`), so that a
    model that tells nothing apart scores chance. An image that could not be decoded (a row of NaN) is left out, and
    its captions with it.

    Raises:
        DataError: a k is larger than the number of images or of captions.
    """
    split = splits[params.split]
    assert split.captions is not None
    features = encoder.images(split, encoder.compared)
    rows, captions = decoded(split, features), split.captions
    if card.languages and params.language is None:
        return _languages.run(split, captions, cast(CutInputs, encoder), features, rows, params.ks)
    if params.language is not None:
        captions, rows = _languages.only(captions, params.language, rows)
    own = captions.part(rows)
    of_images, of_texts = _ranked.compared(split.dataset, encoder, features, rows, own, params.ks)
    clusters = clusters_of(split, rows)
    cluster = None if clusters is None else clustered.codes(clusters)
    evidence: dict[str, Any] = {
        "images": len(rows),
        "captions": len(own.texts),
        "captions_left_out": len(captions.texts) - len(own.texts),
    }
    if params.language is not None:
        evidence["images_without_captions"] = len(decoded(split, features)) - len(rows)
    return Outcome(
        scores(of_images, of_texts, own.image, params.ks, seed, cluster),
        samples=_samples(np.array(split.ids, dtype=object)[rows], of_images, of_texts, own.image, params.ks)
        | column_of(clusters),
        evidence=evidence,
    )


def scores(
    of_images: Ranks,
    of_texts: Ranks,
    owner: Ints,
    ks: tuple[int, ...],
    seed: int,
    cluster: Ints | None = None,
) -> dict[str, Score]:
    """All metrics of both directions.

    `text_retrieval_recall@k`: images with one of their captions among the k best; `image_retrieval_recall@k`:
    captions whose image is; `mean_recall`: the mean of all of these, `mean_recall@k`: of the two at one depth; mean and
    median rank, from 1 on, of the best caption and of the image; `text_retrieval_map@R`: see
    `metrics.expected_average_precision` (of a caption, which has one image, it would be recall@1); `…_ndcg@10`: see
    `metrics.expected_ndcg`. Chance is what equal scores for everything get. Intervals are about the images: Wilson's
    for recalls, the captions of an image being taken together; a bootstrap over images for the rest.

    Args:
        of_images: of N images among M texts.
        of_texts: of M texts among N images.
        owner: int64 [M], the image that each text belongs to, ascending.
        ks: of recall@k.
        seed: of the bootstrap.
        cluster: int64 [N], from 0 on, which images belong together: intervals are over clusters then.
    """
    count = len(of_images.better)
    each = np.arange(count)
    guess_images, guess_texts = _ranked.guess(of_images, len(owner)), _ranked.guess(of_texts, count)
    by_image, by_text = (each, owner) if cluster is None else (cluster, cluster[owner])
    ways = {OF_IMAGES: (of_images, guess_images, by_image), OF_TEXTS: (of_texts, guess_texts, by_text)}
    found: dict[str, Score] = {}
    hits = {way: [_ranked.hit(ranks, k) for k in ks] for way, (ranks, _, _) in ways.items()}
    for way, (_, guess, group) in ways.items():
        for k, hit in zip(ks, hits[way], strict=True):
            chance = float(_ranked.hit(guess, k).mean())
            score = intervals.grouped_share_score if cluster is None else clustered.mean_score
            found[f"{way}_recall@{k}"] = score(hit, group, chance)
    chances = [score.chance or 0.0 for score in found.values()]
    found["mean_recall"] = _mean_recall(
        np.mean(hits[OF_IMAGES], axis=0),
        np.mean(hits[OF_TEXTS], axis=0),
        owner,
        float(np.mean(chances)),
        seed,
        cluster,
    )
    for depth, k in enumerate(ks):
        pair = [found[f"{way}_recall@{k}"].chance or 0.0 for way in ways]
        found[f"mean_recall@{k}"] = _mean_recall(
            hits[OF_IMAGES][depth], hits[OF_TEXTS][depth], owner, float(np.mean(pair)), seed, cluster
        )
    for way, (ranks, guess, group) in ways.items():
        of, chance_of = _ranked.rank(ranks), _ranked.rank(guess)
        found[f"{way}_mean_rank"] = (
            _mean(of, group, float(chance_of.mean()), seed)
            if cluster is None
            else clustered.rank_score(of, group, float(chance_of.mean()))
        )
        found[f"{way}_median_rank"] = _median(of, group, float(np.median(chance_of)), seed)
    precision, by_chance = (_ranked.precision(ranks) for ranks in (of_images, guess_images))
    found[f"{OF_IMAGES}_map@R"] = (
        _mean(precision, each, float(by_chance.mean()), seed)
        if cluster is None
        else clustered.mean_score(precision, cluster, float(by_chance.mean()))
    )
    for way, (ranks, guess, group) in ways.items():
        gain, chance = _ranked.ndcg(ranks), float(_ranked.ndcg(guess).mean())
        found[f"{way}_ndcg@{NDCG}"] = (
            _mean(gain, group, chance, seed) if cluster is None else clustered.mean_score(gain, group, chance)
        )
    return found


def _mean(values: Doubles, group: Ints, chance: float, seed: int) -> Score:
    """Mean over all values, its interval over groups."""
    interval = intervals.percentile(intervals.clustered_draws(values, group, seed))
    return Score(float(values.mean()), interval, values.size, chance)


def _median(values: Doubles, group: Ints, chance: float, seed: int) -> Score:
    order = np.argsort(values, kind="stable")
    ordered, of = values[order], group[order]
    groups = int(group.max()) + 1
    draws = intervals.bootstrap(
        groups,
        lambda drawn: intervals.median_of_weighted(ordered, np.bincount(drawn, minlength=groups)[of]),
        seed,
    )
    return Score(float(np.median(values)), intervals.percentile(draws), values.size, chance)


def _mean_recall(
    of_images: Doubles, of_texts: Doubles, owner: Ints, chance: float, seed: int, cluster: Ints | None
) -> Score:
    """Mean of both directions' mean recalls; n is the number of images."""
    if cluster is not None:  # images and captions are two strata
        every, way = np.concatenate([of_images, of_texts]), np.repeat([0, 1], [of_images.size, of_texts.size])
        score = clustered.mean_score(every, np.concatenate([cluster, cluster[owner]]), chance, way)
        return replace(score, n=of_images.size)
    sums, counts = np.bincount(owner, weights=of_texts), np.bincount(owner)

    def resampled(drawn: Ints) -> float:
        return float(of_images[drawn].mean() + sums[drawn].sum() / counts[drawn].sum()) / 2

    value = float(of_images.mean() + of_texts.mean()) / 2
    draws = intervals.bootstrap(of_images.size, resampled, seed)
    # Where no draw differs, as when everything is found, Wilson's interval says what the bootstrap cannot.
    alike = np.ptp(draws) == 0
    ci95 = intervals.wilson(value * of_images.size, of_images.size) if alike else intervals.percentile(draws)
    return Score(value, ci95, of_images.size, chance)


def _samples(
    ids: NDArray[np.object_], of_images: Ranks, of_texts: Ranks, owner: Ints, ks: tuple[int, ...]
) -> dict[str, Any]:
    """See `_ranked.samples`."""
    return _ranked.needed({"id": ids} | _ranked.samples(ids, of_images, of_texts, owner, ks), ks)


def _recalls(metric: str, table: Columns, params: Recorded) -> Doubles | None:
    """What each image and its captions add to a mean over both, of recalls or of nDCG."""
    kind, _, k = metric.partition("@")
    if kind.endswith("_ndcg"):
        if "text_ndcg" not in table:  # an older file
            return None
        of_image = np.array(table["text_ndcg"], np.float64)
        of_caption = np.array([sum(own) for own in table["image_ndcg"]])
    else:
        if "text_rank" not in table:
            return None
        ks = [int(k)] if k else params["ks"]
        of_image, of_caption = np.mean([_ranked.hits_of(table, depth) for depth in ks], axis=0)
    images, captions = _languages.weights(table)
    of_images, of_texts = of_image * images, of_caption * captions
    if kind == "mean_recall":
        return (of_images + of_texts) / 2
    return of_images if kind.startswith(OF_IMAGES) else of_texts


_METRICS: Final = (
    MetricSpec("mean_recall", "mean of the recalls' chances", shares=_recalls),
    MetricSpec(
        "mean_recall@*",
        "mean of both recalls' chances",
        shares=_recalls,
        elsewhere={"DataComp": "mean_recall@*"},
    ),
    *(
        MetricSpec(
            f"{way}_recall@*",
            "that of equal scores",
            shares=_recalls,
            elsewhere={"CLIP_benchmark": f"{way}_recall@*"},
        )
        for way in (OF_IMAGES, OF_TEXTS)
    ),
    *(
        MetricSpec(f"{way}_{kind}_rank", "that of equal scores", unit="rank", less_is_better=True)
        for way in (OF_IMAGES, OF_TEXTS)
        for kind in ("mean", "median")
    ),
    MetricSpec(f"{OF_IMAGES}_map@R", "that of equal scores"),
    *(
        MetricSpec(f"{way}_ndcg@*", "that of equal scores", shares=_recalls, elsewhere={"mteb": "ndcg_at_*"})
        for way in (OF_IMAGES, OF_TEXTS)
    ),
)
PROTOCOL: Final = Protocol(
    id="ret",
    version=1,
    kinds=("captions",),
    params=Params,
    metrics=_METRICS,
    check=check,
    needs=needs,
    run=run,
    texts=texts,
    of_card=lambda card: {language: {"language": language} for language in card.languages},
    languages=lambda card, params: card.languages if params.language is None else (params.language,),
    variants={"r1": {"primary": "mean_recall@1"}},
    elsewhere={
        "CLIP_benchmark": Elsewhere("zeroshot_retrieval"),
        "huggingface": Elsewhere("image-text-retrieval"),
    },
)
