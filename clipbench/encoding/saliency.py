"""SaliencyMaps maps of a split, given out image by image."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clipbench.cards.model import Preprocess
from clipbench.data.decode import BAD_IMAGE, normalise, open_image, seen
from clipbench.data.decode_stream import decode_stream
from clipbench.data.images import frames
from clipbench.data.split import Sample, Split
from clipbench.encoding.batches import not_finite
from clipbench.encoding.feature_store import Features
from clipbench.encoding.images import Encoded
from clipbench.encoding.model_features import ModelFeatures
from clipbench.models.saliency import SaliencyMaps, SaliencyMethod
from clipbench.utils.progress import progress_bar
from clipbench.utils.stages import stage


class Saliency:
    """One model's heat maps of splits; images are decoded once a pass, batch by batch, and only the small maps of one
    batch are held. Maps are in fp32 whatever precision encodes features."""

    def __init__(self, model: ModelFeatures, texts: Callable[[list[str], str], Features]) -> None:
        """`texts`: gives the features of texts in a space.

        Raises:
            NotApplicable: the model has no text tower, or no maps.
        """
        self._model, self._texts = model, texts
        self._maps: dict[int | None, SaliencyMethod] = {None: model.adapter.saliency_method(None)}
        #: fingerprint of a split → id → reason of its images that were left out
        self._bad: dict[str, dict[str, str]] = {}
        self._remarks: dict[str, set[tuple[str, str]]] = {}

    def seen(self, split: Split) -> Encoded:
        """What is known of the images of `split` after a pass; there are no features."""
        name = split.fingerprint
        return Encoded(
            np.zeros((0, 0), np.float32),
            self._bad.get(name, {}),
            sorted(self._remarks.get(name, ())),
            None,
            "plain, fp32",
            [self._model.runtime.device_name],
        )

    def heat(
        self,
        split: Split,
        texts: Sequence[str],
        image: NDArray[np.int64],
        *,
        whole: bool = True,
        block: int | None = None,
    ) -> Iterator[SaliencyMaps]:
        """See `protocols.base.HeatInputs`.

        Raises:
            DataError: an image that cannot be decoded (unless such images are skipped).
            ClipbenchError: maps that are not finite.
        """
        model, runtime = self._model, self._model.runtime
        if block not in self._maps:  # finding out what they are takes a forward pass
            self._maps[block] = model.adapter.saliency_method(block)
        maps = self._maps[block]
        maps.tower.to(runtime.device)
        preprocess = model.adapter.preprocess
        if whole and preprocess.resize in ("shortest", "squash-crop"):
            preprocess = preprocess.model_copy(update={"resize": "squash"})
        unique = list(dict.fromkeys(texts))
        number = {text: i for i, text in enumerate(unique)}
        features = self._texts(unique, maps.space)
        text_rows = np.array([number[text] for text in texts])
        rows = np.unique(image)
        size = runtime.batch_size or (16 if runtime.on_cpu else 64)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        shapes: deque[tuple[tuple[int, int], int]] = deque()
        stream = decode_stream(
            _measured(split.samples(rows), shapes, preprocess),
            preprocess,
            sizes=[len(part) for part in parts],
            workers=model.decoders(len(rows)),
            overlap=not runtime.on_cpu,
            on_bad_image=model.on_bad_image,
        )
        bad = self._bad.setdefault(split.fingerprint, {})
        remarks = self._remarks.setdefault(split.fingerprint, set())
        bar = progress_bar(f"{split.dataset} {split.role}", len(rows), model.progress)
        with bar as (shown, task), contextlib.closing(stream):
            for part in parts:
                start = time.perf_counter()
                with stage("encode images"):
                    batch = next(stream)
                    bad.update({b.id: b.reason for b in batch.bad})
                    remarks.update(batch.remarks)
                    numbers = np.flatnonzero(np.isin(image, part[batch.good]))
                    place = np.searchsorted(part, image[numbers])
                    prepared = normalise(torch.from_numpy(batch.images).to(runtime.device), preprocess)
                    found, scores = _pairs(maps, prepared, place, features, text_rows[numbers])
                    if not (torch.isfinite(found).all() and np.isfinite(scores).all()):
                        raise not_finite(model.model.id, "fp32")
                    sizes = [shapes.popleft() for _ in part]
                    model.counts.images_encoded += len(part)
                    model.counts.images_s += time.perf_counter() - start
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
                shown.advance(task, len(part))


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
