"""Heat maps of a split: images decoded once, batch by batch, and given out one by one."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from clipbench.cards.cards import Preprocess
from clipbench.data.decode import BAD_IMAGE, decode_stream, normalise, open_image, seen
from clipbench.data.images import frames
from clipbench.data.split import Sample, Split
from clipbench.encoding.encoder import not_finite
from clipbench.encoding.feature_store import Features
from clipbench.models.saliency import SaliencyMaps, SaliencyMethod

if TYPE_CHECKING:
    from clipbench.encoding.encoder import ModelEncoder


def heats(
    encoder: ModelEncoder,
    maps: SaliencyMethod,
    preprocess: Preprocess,
    split: Split,
    texts: Sequence[str],
    image: NDArray[np.int64],
) -> Iterator[SaliencyMaps]:
    """The maps of every text on its image, for images prepared by `preprocess`; see `protocols.HeatEncoder`.

    Only the small maps of one batch are held.

    Raises:
        DataError: an image that cannot be decoded (unless such images are skipped).
        ClipbenchError: maps that are not finite.
    """
    runtime = encoder.runtime
    unique = list(dict.fromkeys(texts))
    number = {text: i for i, text in enumerate(unique)}
    features = encoder.texts(unique, maps.space)
    text_rows = np.array([number[text] for text in texts])
    rows = np.unique(image)
    size = runtime.batch_size or (16 if runtime.on_cpu else 64)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    shapes: deque[tuple[tuple[int, int], int]] = deque()
    stream = decode_stream(
        _measured(split.samples(rows), shapes, preprocess),
        preprocess,
        sizes=[len(part) for part in parts],
        workers=encoder.decoders(len(rows)),
        overlap=not runtime.on_cpu,
        on_bad_image=encoder.on_bad_image,
    )
    bad = encoder.bad_heat.setdefault(split.fingerprint, {})
    remarks = encoder.heat_remarks.setdefault(split.fingerprint, set())
    with (
        encoder.tracked(f"{split.dataset} {split.role}", len(rows)) as advance,
        contextlib.closing(stream),
    ):
        for part in parts:
            start = time.perf_counter()
            batch = next(stream)
            bad.update({b.id: b.reason for b in batch.bad})
            remarks.update(batch.remarks)
            numbers = np.flatnonzero(np.isin(image, part[batch.good]))
            place = np.searchsorted(part, image[numbers])
            prepared = normalise(torch.from_numpy(batch.images).to(runtime.device), preprocess)
            found, scores = _pairs(maps, prepared, place, features, text_rows[numbers])
            if not (torch.isfinite(found).all() and np.isfinite(scores).all()):
                raise not_finite(encoder.model.id, "fp32")
            sizes = [shapes.popleft() for _ in part]
            encoder.counts.images_encoded += len(part)
            encoder.counts.images_s += time.perf_counter() - start
            for row in np.flatnonzero(batch.good).tolist():
                own = np.flatnonzero(place == row)
                stored, turned = sizes[row]
                width, height = stored[::-1] if turned >= 5 else stored
                yield SaliencyMaps(
                    int(part[row]),
                    numbers[own],
                    found[own],
                    scores[own],
                    stored,
                    seen(width, height, preprocess),
                    maps.described,
                    turned,
                )
            advance(len(part))


def _pairs(
    maps: SaliencyMethod,
    images: torch.Tensor,
    place: NDArray[np.int64],
    features: Features,
    text_rows: NDArray[np.int64],
) -> tuple[torch.Tensor, NDArray[np.float32]]:
    """Maps [P, h, w] and scores [P] of the pairs of image `place[p]` and text `text_rows[p]`.

    Images with about as many texts go together, since each is as much work as the one with the most.
    """
    counts = np.bincount(place, minlength=len(images))
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    step = max(1, len(images) // 2)
    done, found, scores = [np.zeros(0, dtype=np.int64)], [], [np.zeros(0, dtype=np.float32)]
    for start in range(0, len(order), step):
        pairs = np.flatnonzero(np.isin(place, order[start : start + step]))
        chosen, local = np.unique(place[pairs], return_inverse=True)
        heat, score = maps(
            images[chosen],
            torch.from_numpy(np.array(features[text_rows[pairs]])).to(images.device),
            torch.from_numpy(local.reshape(-1)).to(images.device),
        )
        done.append(pairs)
        found.append(heat)
        scores.append(score.cpu().numpy())
    back = np.argsort(np.concatenate(done))
    whole = torch.cat(found)[back] if found else torch.zeros(0, 1, 1)
    return whole, np.concatenate(scores)[back]


def _measured(
    samples: Iterator[Sample], shapes: deque[tuple[tuple[int, int], int]], preprocess: Preprocess
) -> Iterator[Sample]:
    """`samples`, each one's size as stored and its turn put into `shapes`; 0 × 0 for bytes that are no image."""
    for sample in samples:
        try:
            with open_image(sample.image) as image:
                size, _, turned = frames(image, preprocess.orientation)
                shapes.append((size, turned))
        except BAD_IMAGE:
            shapes.append(((0, 0), 1))
        yield sample
