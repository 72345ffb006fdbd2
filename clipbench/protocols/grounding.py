"""Grounding without training: does the heat map of an image-text score point at what the text means?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.task import TaskCard
from clipbench.data.split import Expressions, Split
from clipbench.errors import DataError
from clipbench.metrics import boxes, clustered, intervals
from clipbench.protocols._outcomes import column_of
from clipbench.protocols._samples import clusters_of
from clipbench.protocols.base import (
    Columns,
    Elsewhere,
    HeatInputs,
    MetricSpec,
    Needs,
    Outcome,
    Protocol,
    Recorded,
)
from clipbench.protocols.base import Params as ParamsBase

_IOU = 0.5


class Params(ParamsBase):
    """What a task card may set under `protocols: {ground: …}`.

    Attributes:
        primary: the metric that stands for the task. `acc@iou0.5` needs a copy with a detector's boxes.
        split: which of the card's splits.
        view: `whole` squashes the whole image to what the model sees, as ALBEF does, so that nothing that an
            expression may mean is cut off; `crop` is the model's own evaluation, whose map is 0 outside the crop.
        block: of a ViT, the block whose attention is looked at, counted from 0; None: at two thirds of the depth
            (ALBEF's 8 of 12). Other models have no use for it.
    """

    primary: Literal["pointing_game", "heat_energy_in_box", "acc@iou0.5"] = "pointing_game"
    split: str = "test"
    view: Literal["whole", "crop"] = "whole"
    block: int | None = Field(None, ge=0)


def needs(params: Params, compared: str) -> Needs:
    """Heat maps of the split's images."""
    return Needs(heat=params.split)


@dataclass(frozen=True)
class Found:
    """What a map says of one expression.

    Attributes:
        number: of the expression.
        empty: whether the map is 0 everywhere.
        described: how maps were made.
        point: the pixel (x, y) that it points at.
        hit: whether that is in the true box.
        centre: whether the image's middle is in the true box.
        energy: share of the heat in the true box.
        chance: share of the image that the true box is.
        overlap: IoU of the candidate box with the most heat, None without candidates.
        candidate_chance: share of the candidates that a true answer would be among.
        box: the true box, float64 [4], in the frame of the map.
        turned: the EXIF orientation by which the image was turned before the model saw it; 1: it was not.
    """

    number: int
    empty: bool
    described: str
    point: tuple[int, int]
    hit: bool
    centre: bool
    energy: float
    chance: float
    overlap: float | None
    candidate_chance: float
    box: NDArray[np.float64]
    turned: int


def run(card: TaskCard, splits: dict[str, Split], encoder: HeatInputs, params: Params, seed: int) -> Outcome:
    """Point at every expression.

    `pointing_game`: the map's largest pixel, the first of several, is in the true box (Zhang et al. 2016,
    arXiv 1608.00507; as AMC scores it). `heat_energy_in_box`: the share of the map's sum there. `acc@iou0.5`: the
    candidate box with the largest Σ heat / area^0.5 has an IoU of 0.5 at least with the true box (ALBEF); an image
    without candidates is a miss. Chance is what a map of noise gets: the mean share of the image that the boxes are;
    the mean share of candidates that would do. A map of zeros points at the first pixel; the evidence counts them.

    Chance is a low bar, since what people photograph and speak of is in the middle: `centre_baseline` in the evidence
    says what always pointing at the image's middle scores, and how far above it the pointing game is, with a 95 %
    interval of that difference over the same resampled images.

    Raises:
        DataError: `acc@iou0.5` is the primary metric and no boxes came with the data; or no image could be decoded.
    """
    split = splits[params.split]
    expressions = _expressions(split)
    if params.primary == "acc@iou0.5" and expressions.candidates is None:
        raise DataError(
            f"{split.dataset}: acc@iou0.5 needs the boxes of a detector, and this copy has none",
            hint="put detections.json ({image: [[x0, y0, x1, y1], …]}) or ALBEF's dets.json beside the annotations",
        )
    rows = [found for found, _ in _look(expressions, split, encoder, params)]
    if not rows:
        raise DataError(f"{split.dataset}: none of the {len(split)} images could be decoded")
    numbers = np.array([found.number for found in rows])
    images = expressions.image[numbers]
    clusters = clusters_of(split, images)
    together = images if clusters is None else clustered.codes(clusters)
    chance = float(np.mean([found.chance for found in rows]))
    hits = np.array([found.hit for found in rows])
    at_centre = np.array([found.centre for found in rows])
    energies = np.array([found.energy for found in rows], dtype=np.float64)
    points = np.array([found.point for found in rows])
    scores = {
        "pointing_game": _score(hits.astype(np.float64), images, clusters, chance, seed),
        "heat_energy_in_box": _score(energies, images, clusters, chance, seed),
    }
    samples: dict[str, NDArray[Any] | list[NDArray[Any]]] = {
        "id": np.array([expressions.ids[n] for n in numbers], dtype=object),
        "image": np.array(split.ids, dtype=object)[images],
        "expression": np.array([expressions.texts[n] for n in numbers], dtype=object),
        "hit": hits,
        "centre_hit": at_centre,
        "energy": energies,
        "x": points[:, 0],
        "y": points[:, 1],
        **column_of(clusters),
    }
    evidence: dict[str, object] = {
        "heat_maps": rows[0].described,
        "images": len(np.unique(images)),
        "maps_of_zeros": sum(found.empty for found in rows),
        "centre_baseline": _beside_centre(hits, at_centre, together, seed),
    }
    if expressions.candidates is not None:
        overlap = np.array([found.overlap or 0.0 for found in rows])
        by_chance = float(np.mean([found.candidate_chance for found in rows]))
        scores["acc@iou0.5"] = _score((overlap >= _IOU).astype(np.float64), images, clusters, by_chance, seed)
        samples["iou"] = overlap
        evidence["without_candidates"] = sum(found.overlap is None for found in rows)
    return Outcome(scores, samples=samples, evidence=evidence)


def pictures(
    card: TaskCard, splits: dict[str, Split], encoder: HeatInputs, params: Params, seed: int, count: int
) -> dict[str, bytes]:
    """Overlays of a seeded draw of `count` expressions, and a contact sheet of them: file name → PNG."""
    from clipbench.protocols import _overlays  # with all that draws

    split = splits[params.split]
    expressions = _expressions(split)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(expressions.ids))[:count])
    chosen = Expressions(
        tuple(expressions.ids[n] for n in drawn),
        tuple(expressions.texts[n] for n in drawn),
        expressions.image[drawn],
        expressions.boxes[drawn],
    )
    shown = np.unique(chosen.image)
    images = dict(zip(shown.tolist(), split.samples(shown), strict=True))
    made = {}
    for found, heat in _look(chosen, split, encoder, params):
        n = found.number
        picture = _overlays.overlay(
            images[int(chosen.image[n])].image,
            heat,
            found.box,
            found.point,
            chosen.texts[n],
            hit=found.hit,
            energy=found.energy,
            turned=found.turned,
        )
        made[f"{n:03d}-{chosen.ids[n]}"] = picture
    pngs = {_overlays.file_name(name): _overlays.png(picture) for name, picture in made.items()}
    if made:
        pngs["contact-sheet.png"] = _overlays.png(_overlays.contact_sheet(list(made.values())))
    return pngs


def _expressions(split: Split) -> Expressions:
    assert split.expressions is not None  # cards of this kind open as such
    return split.expressions


def _score(
    values: NDArray[np.float64],
    images: NDArray[np.int64],
    clusters: NDArray[np.object_] | None,
    chance: float,
    seed: int,
) -> intervals.Score:
    """The mean over expressions, those of an image together, or those of a cluster of images."""
    if clusters is None:
        return intervals.clustered_mean_score(values, images, chance, seed)
    return clustered.mean_score(values, clustered.codes(clusters), chance)


def _beside_centre(
    hits: NDArray[np.bool_], centre: NDArray[np.bool_], images: NDArray[np.int64], seed: int
) -> dict[str, object]:
    """The share of boxes that hold the image's middle, and what the pointing game has above it."""
    above = hits.astype(np.float64) - centre
    draws = intervals.clustered_draws(above, images, seed)
    # None: images do not differ
    interval = list(intervals.percentile(draws)) if np.ptp(draws) > 1e-12 else None
    return {"value": float(centre.mean()), "above": float(above.mean()), "above_ci95": interval}


def _look(
    expressions: Expressions, split: Split, encoder: HeatInputs, params: Params
) -> Iterator[tuple[Found, NDArray[np.float32]]]:
    """What the map of each expression says, and the map, float32 [height, width]: one at a time."""
    for heat in encoder.heat(
        split, expressions.texts, expressions.image, whole=params.view == "whole", block=params.block
    ):
        candidates = np.empty((0, 4))
        if expressions.candidates is not None:
            candidates = heat.placed(expressions.candidates[heat.sample])
        own = heat.placed(expressions.boxes[heat.texts])
        for place, number in enumerate(heat.texts.tolist()):
            large, box = heat.large(place), own[place]
            point = boxes.peak(large)
            overlap, by_chance = None, 0.0
            if len(candidates):
                overlaps = boxes.overlaps(candidates, box)
                overlap = float(overlaps[boxes.best(large, candidates)])
                by_chance = float((overlaps >= _IOU).mean())
            found = Found(
                number,
                not large.any(),
                heat.described,
                point,
                boxes.contains(box, point),
                boxes.contains(box, boxes.centre(large)),
                boxes.energy(large, box),
                boxes.share(box, large.shape[1], large.shape[0]),
                overlap,
                by_chance,
                box,
                heat.turned,
            )
            yield found, large


def _pointed(metric: str, table: Columns, params: Recorded) -> NDArray[np.float64] | None:
    """What each expression adds, from the column that holds it."""
    column = {"pointing_game": "hit", "heat_energy_in_box": "energy", "acc@iou0.5": "iou"}[metric]
    if column not in table:
        return None
    value = np.array(table[column], dtype=np.float64)
    return (value >= _IOU).astype(np.float64) if column == "iou" else value


_METRICS: Final = (
    MetricSpec("pointing_game", "mean share of the image that the boxes are", shares=_pointed),
    MetricSpec("heat_energy_in_box", "mean share of the image that the boxes are", shares=_pointed),
    MetricSpec("acc@iou0.5", "mean share of candidate boxes that would do", shares=_pointed),
)
PROTOCOL: Final = Protocol(
    id="ground",
    version=1,
    kinds=("expressions",),
    params=Params,
    metrics=_METRICS,
    check=lambda card, params: None,
    needs=needs,
    run=run,
    texts=lambda card, splits, params: list(dict.fromkeys(_expressions(splits[params.split]).texts)),
    variants={"crop": {"view": "crop"}},
    pictures=pictures,
    elsewhere={"huggingface": Elsewhere("visual-grounding")},
)
