"""Retrieval in several languages: each by itself, on images that are encoded once, and the mean over languages.

What is reported are means over languages of the means within each, whatever the languages have of images and captions.
Intervals are about the images, whose captions in all languages are one piece of evidence (`clustered.spread`, with
languages as strata).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbench.data.split import Captions, Split
from clipbench.encoding.feature_store import Features
from clipbench.errors import DataError
from clipbench.metrics import clustered
from clipbench.metrics.intervals import Score
from clipbench.protocols import _ranked
from clipbench.protocols._outcomes import column_of
from clipbench.protocols._ranked import OF_IMAGES, OF_TEXTS
from clipbench.protocols._samples import clusters_of
from clipbench.protocols.base import Columns, CutInputs, Outcome
from clipbench.solvers.ranking import Ranks

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


def only(captions: Captions, language: str, rows: Ints) -> tuple[Captions, Ints]:
    """The captions in one language, and those of `rows` (ascending) whose images have any."""
    own = captions.of(language)
    return own, rows[np.isin(rows, own.image)]


@dataclass(frozen=True)
class _Part:
    """One language: metric → what each query scores, and what it would if all keys scored alike.

    `cluster`: of the images and of the captions, to whose which cluster each belongs.
    """

    of: dict[str, tuple[Doubles, Doubles]]
    cluster: dict[str, Ints]


def run(
    split: Split, captions: Captions, encoder: CutInputs, features: Features, rows: Ints, ks: tuple[int, ...]
) -> Outcome:
    """Rank in every language, and take the mean.

    Raises:
        DataError: a k is larger than the number of images or of captions in a language.
    """
    ids = np.array(split.ids, dtype=object)
    clusters = clusters_of(split, np.arange(len(split)))
    codes = np.arange(len(split)) if clusters is None else clustered.codes(clusters)
    parts: dict[str, _Part] = {}
    evidence: dict[str, Any] = {}
    columns: list[dict[str, Any]] = []
    for language in captions.languages:
        own, mine = only(captions, language, rows)
        kept = own.part(mine)
        name = f"{split.dataset} in {language}"
        if not len(mine):
            raise DataError(f"{name}: none of the images that have captions could be decoded")
        sides = _ranked.compared(name, encoder, features, mine, kept, ks)
        parts[language] = _part(*sides, kept.image, ks, codes[mine])
        cut = encoder.cuts[encoder.compared][-1].cut
        evidence[language] = _told(parts[language], ks) | {
            "images": len(mine),
            "images_without_captions": len(rows) - len(mine),
            "captions": len(kept.texts),
            "captions_cut": "not stated" if cut is None else cut,
        }
        columns.append(
            {
                "id": np.array([f"{language}/{one}" for one in ids[mine]], dtype=object),
                "image": ids[mine],
                "language": np.array([language] * len(mine), dtype=object),
                **_ranked.samples(ids[mine], *sides, kept.image, ks),
                **column_of(None if clusters is None else clusters[mine]),
            }
        )
    whole = {
        "images": len(rows),
        "captions": sum(one["captions"] for one in evidence.values()),
        "captions_left_out": len(captions.texts) - sum(one["captions"] for one in evidence.values()),
        "languages": evidence,
    }
    return Outcome(
        _scores(list(parts.values()), ks, len(rows)),
        samples=_ranked.needed(_joined(columns), ks),
        evidence=whole,
    )


def _part(of_images: Ranks, of_texts: Ranks, owner: Ints, ks: tuple[int, ...], codes: Ints) -> _Part:
    """`codes`: the cluster of each image."""
    of: dict[str, tuple[Doubles, Doubles]] = {}
    for way, ranks, keys in ((OF_IMAGES, of_images, len(owner)), (OF_TEXTS, of_texts, len(codes))):
        alike = _ranked.each(way, _ranked.guess(ranks, keys), ks)
        of |= {name: (values, alike[name]) for name, values in _ranked.each(way, ranks, ks).items()}
    return _Part(of, {OF_IMAGES: codes, OF_TEXTS: codes[owner]})


def _told(part: _Part, ks: tuple[int, ...]) -> dict[str, float]:
    """Metric → value in one language, for the record."""
    found = {name: float(values.mean()) for name, (values, _) in part.of.items()}
    for k in ks:
        found[f"mean_recall@{k}"] = (found[f"{OF_IMAGES}_recall@{k}"] + found[f"{OF_TEXTS}_recall@{k}"]) / 2
    found["mean_recall"] = float(np.mean([found[f"mean_recall@{k}"] for k in ks]))
    return found


def _scores(parts: Sequence[_Part], ks: tuple[int, ...], images: int) -> dict[str, Score]:
    """The means over languages, in the order in which one language's are reported."""
    found = {
        name: _score([(part.of[name], part.cluster[_way(name)]) for part in parts], name)
        for name in parts[0].of
    }
    means = {"mean_recall": ks} | {f"mean_recall@{k}": (k,) for k in ks}
    for mean, depths in means.items():
        strata = [
            (
                tuple(np.mean([part.of[f"{way}_recall@{k}"][i] for k in depths], axis=0) for i in (0, 1)),
                part.cluster[way],
            )
            for part in parts
            for way in (OF_IMAGES, OF_TEXTS)
        ]
        found[mean] = replace(_score(strata, mean), n=images)
    recalls = [name for name in found if "recall" in name]
    return {name: found[name] for name in (*recalls, *(name for name in found if name not in recalls))}


def _way(name: str) -> str:
    return OF_IMAGES if name.startswith(OF_IMAGES) else OF_TEXTS


def _score(strata: Sequence[tuple[tuple[Doubles, ...], Ints]], name: str) -> Score:
    """The mean over strata of the mean within each: (values, what chance gives), clusters."""
    values = np.concatenate([of[0] for of, _ in strata])
    chance = float(np.mean([of[1].mean() for of, _ in strata]))
    cluster = np.unique(np.concatenate([codes for _, codes in strata]), return_inverse=True)[1]
    stratum = np.repeat(np.arange(len(strata)), [codes.size for _, codes in strata])
    score = clustered.rank_score if name.endswith("_rank") else clustered.mean_score
    return score(values, cluster, chance, stratum)


def _joined(columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of all languages, one behind the other."""
    found: dict[str, Any] = {}
    for name in columns[0]:
        parts = [part[name] for part in columns]
        lists = isinstance(parts[0], list)
        found[name] = [one for part in parts for one in part] if lists else np.concatenate(parts)
    return found


def weights(table: Columns) -> tuple[Doubles, Doubles]:
    """How much each row's image counts, and each of its captions, where the mean over all rows is the mean over
    languages of the mean within each: float64 [n] both. A table of one language has no column of them.
    """
    rows = len(table["text_rank"])
    of = table.get("language", [""] * rows)
    _, place = np.unique(np.array(of, dtype=object), return_inverse=True)
    images = np.bincount(place)
    captions = np.bincount(place, weights=[len(own) for own in table["image_rank"]])
    return rows / (images.size * images[place]), rows / (images.size * captions[place])
