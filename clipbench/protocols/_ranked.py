"""What each query of a retrieval scores, of its place among all keys, in expectation over the order of equal scores."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.data.split import Captions
from clipbench.encoding.feature_store import Features
from clipbench.errors import DataError
from clipbench.metrics.ranks import expected_average_precision, expected_hit, expected_ndcg, expected_rank
from clipbench.protocols.base import Columns, Inputs
from clipbench.solvers import ranking
from clipbench.solvers.ranking import Ranks

Doubles = NDArray[np.float64]

#: captions are what is retrieved for an image: CLIP_benchmark's names of the two directions
OF_IMAGES: Final = "text_retrieval"
OF_TEXTS: Final = "image_retrieval"
#: the depth of nDCG, whatever those of the recalls are: mteb's main metric
NDCG: Final = 10


def compared(
    name: str,
    encoder: Inputs,
    features: Features,
    rows: NDArray[np.int64],
    captions: Captions,
    ks: tuple[int, ...],
) -> tuple[Ranks, Ranks]:
    """Images as queries among captions, and captions among images.

    Args:
        name: of the set, for errors.
        features: of all images; `rows` are those that are compared, which `captions` are of.

    Raises:
        DataError: a k is larger than the number of images or of captions.
    """
    sizes = len(rows), len(captions.texts)
    if ks[-1] > min(sizes):
        raise DataError(
            f"{name}: recall@{ks[-1]} needs as many (there are {sizes[0]:,} images and {sizes[1]:,} captions)",
            hint="measure on more images: raise --limit, or leave it out; or set smaller ks on the task card",
        )
    images = features if len(rows) == len(features) else features[rows]
    texts = encoder.texts(list(captions.texts), encoder.compared)
    width = encoder.token_width if encoder.compared == "tokens" else None
    total = ranking.blocks(*sizes, token_width=width, device=encoder.device)
    with encoder.tracked("ranks", total) as advance:
        return ranking.rank(
            images,
            texts,
            captions.image,
            top=max(ks[-1], NDCG, int(np.bincount(captions.image).max())),
            token_width=width,
            device=encoder.device,
            advance=advance,
        )


def samples(
    ids: NDArray[np.object_], of_images: Ranks, of_texts: Ranks, owner: NDArray[np.int64], ks: tuple[int, ...]
) -> dict[str, Any]:
    """One row an image: the rank of its best caption, whose captions are its best, and its nDCG; for each of its
    captions the rank of the image, and the best image; and of both their hits, see `needed`. The texts themselves stay
    in the data."""
    ends = np.cumsum(np.bincount(owner))[:-1]
    hits: dict[str, Any] = {f"text_hit@{k}": hit(of_images, k) for k in ks}
    hits |= {f"image_hit@{k}": np.split(hit(of_texts, k), ends) for k in ks}
    return hits | {
        "text_rank": rank(of_images),
        "top_texts_of": list(ids[owner[of_images.top[:, : ks[-1]]]]),
        "image_rank": np.split(rank(of_texts), ends),
        "top_image": np.split(ids[of_texts.top[:, 0]], ends),
        "text_ndcg": ndcg(of_images),
        "image_ndcg": np.split(ndcg(of_texts), ends),
    }


def needed(columns: dict[str, Any], ks: tuple[int, ...]) -> dict[str, Any]:
    """The columns of `samples` without the hits that the ranks say, too: all but those among equal scores."""
    found = dict(columns)
    for k in ks:
        pairs = [(columns[f"text_hit@{k}"], columns["text_rank"])]
        pairs += zip(columns[f"image_hit@{k}"], columns["image_rank"], strict=True)
        if all(np.array_equal(hits, ranks <= k) for hits, ranks in pairs):
            del found[f"text_hit@{k}"], found[f"image_hit@{k}"]
    return found


def hits_of(table: Columns, k: int) -> tuple[Doubles, Doubles]:
    """Hits at depth k from the columns that `needed` leaves: of each image, and of its captions their sum."""
    if f"text_hit@{k}" in table:
        of_image, of_captions = table[f"text_hit@{k}"], table[f"image_hit@{k}"]
    else:
        of_image = [rank <= k for rank in table["text_rank"]]
        of_captions = [[rank <= k for rank in own] for own in table["image_rank"]]
    return np.array(of_image, np.float64), np.array([sum(own) for own in of_captions], np.float64)


def guess(ranks: Ranks, keys: int) -> Ranks:
    """What equal scores for all `keys` would give the same queries."""
    targets = (~np.isnan(ranks.own)).sum(axis=1)
    return Ranks(
        better=np.zeros_like(ranks.better),
        tied=keys - targets,
        best=targets,
        own=ranks.own * 0,
        top=ranks.top,
        scores=ranks.scores * 0,
        more=np.full_like(ranks.more, keys - ranks.top.shape[1]),
    )


def hit(ranks: Ranks, k: int) -> Doubles:
    """Whether the best target is among the first k keys."""
    return expected_hit(ranks.better, ranks.tied, ranks.best, k)


def rank(ranks: Ranks) -> Doubles:
    """The rank of the best target, from 1 on."""
    return expected_rank(ranks.better, ranks.tied, ranks.best)


def precision(ranks: Ranks) -> Doubles:
    """Average precision over as many keys as there are targets."""
    return expected_average_precision(ranks.own, ranks.scores, ranks.more)


def ndcg(ranks: Ranks) -> Doubles:
    """Normalised discounted cumulative gain over the first `NDCG` keys."""
    return expected_ndcg(ranks.own, ranks.scores, ranks.more, NDCG)


def each(way: str, ranks: Ranks, ks: tuple[int, ...]) -> dict[str, Doubles]:
    """Metric of one direction → what each query scores: those that are means over queries."""
    found = {f"{way}_recall@{k}": hit(ranks, k) for k in ks} | {f"{way}_mean_rank": rank(ranks)}
    if way == OF_IMAGES:  # of a caption, which has one image, it would be recall@1
        found[f"{way}_map@R"] = precision(ranks)
    return found | {f"{way}_ndcg@{NDCG}": ndcg(ranks)}
