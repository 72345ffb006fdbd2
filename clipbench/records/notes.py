"""What a record notes of its samples and its model beside what a split says of itself."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from clipbench.data.decode import REMARKS
from clipbench.data.split import Note, Split
from clipbench.encoding.cuts import added
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.image_digests import among, repeated
from clipbench.encoding.images import Encoded
from clipbench.encoding.model_features import ModelFeatures
from clipbench.records.exposure import Exposure


def unknown_data(known: Exposure) -> list[Note]:
    """That the model's card names training data of which there is no card, so that what they share is not known."""
    text = "sets of training data have no card here, so whether they hold images of this split is not known"
    return [Note.of("unknown-training-data", text, known.unknown)] if known.unknown else []


def assumed(encoder: ModelFeatures, scores: Collection[str]) -> list[Note]:
    """That the factor on cosines was not given, where one of `scores` hangs on it."""
    if encoder.adapter.scale_stated or "ece" not in scores:
        return []
    text = f"logit scale is not given: {encoder.logit_scale:g} was assumed, on which ece and confidences hang"
    return [Note("logit-scale-assumed", text, 1)]


def cut_texts(encoder: ModelEncoder) -> list[Note]:
    """How many texts the model cuts at its context, where it says so."""
    notes = []
    for cut in map(added, encoder.cuts.values()):
        if cut.cut:
            text = f"of {cut.texts:,} texts are longer than what the model reads, and are cut: "
            notes.append(
                Note(
                    "cut-texts", text + f"{100 * cut.lost / cut.tokens:.1f} % of all tokens are lost", cut.cut
                )
            )
    return notes


def remarks(encoded: dict[tuple[str, str], Encoded], role: str) -> list[Note]:
    """What must be said of how images of a split were decoded."""
    of_kind: dict[str, dict[str, None]] = {}
    for (own, _), found in encoded.items():
        if own == role:
            for name, kind in found.remarks:
                of_kind.setdefault(kind, {})[name] = None
    return [Note.of(kind, REMARKS.get(kind, kind), list(names)) for kind, names in of_kind.items()]


def repeats(
    encoded: dict[tuple[str, str], Encoded], splits: dict[str, Split], scored: str
) -> dict[str, list[Note]]:
    """Split → notes on images of the split `scored` that are there twice, byte for byte, or also in training."""
    seen = {}
    for (role, _), found in encoded.items():
        if found.digests is not None:
            good = [i for i, name in enumerate(splits[role].ids) if name not in found.bad]
            seen[role] = np.array(good, dtype=np.int64), found.digests[good]
    if scored not in seen:
        return {}
    rows, digests = seen.pop(scored)
    names = np.array(splits[scored].ids, dtype=object)[rows]
    notes = []
    if seen and (again := among(digests, np.concatenate([others for _, others in seen.values()]))).any():
        text = f"images are also in {', '.join(seen)}, byte for byte: the probe is scored on what it was fitted on"
        notes.append(Note.of("test-in-training", text, names[again].tolist()))
    if (again := repeated(digests)).any():
        text = "images are those of an earlier sample, byte for byte: they count more than once"
        notes.append(Note.of("repeated-images", text, names[again].tolist()))
    return {scored: notes}
