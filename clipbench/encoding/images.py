"""Images through towers into feature files: decoded once for all models that prepare them alike."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.model import Preprocess
from clipbench.data.decode import cannot, normalise
from clipbench.data.decode_stream import Bad, Batch, decode_stream
from clipbench.data.split import Note, Sample, Split, Subset
from clipbench.encoding.batches import not_finite, rows_of, unit
from clipbench.encoding.feature_store import FeatureFile, Features
from clipbench.encoding.given import keep
from clipbench.encoding.image_digests import DIGEST_BYTES, digest
from clipbench.encoding.model_features import ModelFeatures, prepared
from clipbench.encoding.own import Pictures, pictures
from clipbench.encoding.runtime import Tower
from clipbench.errors import DataError
from clipbench.models.adapter import ModelEntry
from clipbench.models.own import PLAN
from clipbench.utils.progress import progress_bar
from clipbench.utils.stages import stage


@dataclass(frozen=True)
class Encoded:
    """Features of a split that are there, and how they came about.

    Attributes:
        features: float32 [n, D].
        bad: id → reason of the images that were skipped; their rows are NaN.
        remarks: (id, kind) of images of which something must be said (see `data.decode.REMARKS`).
        digests: what tells the bytes of one image from those of all others, 16 bytes [n]; None where nobody noted it.
        plan: how the tower ran.
        devices: where it ran.
        notes: what else a reader of numbers from them must know.
    """

    features: Features
    bad: dict[str, str]
    remarks: list[tuple[str, str]]
    digests: NDArray[np.void] | None
    plan: str
    devices: list[str]
    notes: tuple[Note, ...] = ()


def encode(models: Sequence[ModelFeatures], split: Split, space: str) -> list[Encoded]:
    """The features of `split` of each model, encoded first where they are not there.

    One decoding pass serves all models that prepare images alike. Those of a `--limit` sample are taken from the whole
    split's, if these are there.

    Raises:
        DataError: an image that cannot be decoded (unless such images are skipped).
        StorageError: no room for the features; finished shards are kept.
    """
    wholes = [_held(model, split, space) for model in models]
    lacking: dict[Preprocess, list[ModelFeatures]] = {}
    for model, whole in zip(models, wholes, strict=True):
        if whole is None:
            lacking.setdefault(model.model.card.preprocess, []).append(model)
    for group in lacking.values():
        encode_images(group, split, space)
    found = []
    for model, whole in zip(models, wholes, strict=True):
        file = whole or model.file(split, space)
        _refuse(model, file.bad(), split.ids)
        encoded, given = _read(file, split, whole is not None), model.given(split, space)
        found.append(encoded if given is None else replace(encoded, notes=given.notes))
    return found


def _read(file: FeatureFile, split: Split, sample: bool) -> Encoded:
    """What `file` has of `split`, which may be a `sample` of what it is of."""
    bad, remarks, digests = file.bad(), file.remarks(), file.digests()
    features: Features = file.read()
    if sample and isinstance(split, Subset):
        own = set(split.ids) if bad or remarks else set()
        features = features[split.rows]
        bad = {i: reason for i, reason in bad.items() if i in own}
        remarks = [(i, kind) for i, kind in remarks if i in own]
        digests = None if digests is None else digests[split.rows]
    return Encoded(features, bad, remarks, digests, str(file.plan()), file.devices())


def _held(model: ModelFeatures, split: Split, space: str) -> FeatureFile | None:
    """The file of the whole of which `split` is a `--limit` sample, where the sample's rows can be taken from it.

    A whole that was there until some of it was found damaged is mended first: the sample's rows stay what they
    were. In a deterministic run a sample has its own rows, whatever was encoded before; so it has of given rows.
    """
    if not isinstance(split, Subset) or model.runtime.deterministic or model.adapter.given is not None:
        return None
    whole = model.file(split.whole, space)
    missing = set(whole.missing())
    if missing and missing <= whole.dropped:
        encode_images([model], split.whole, space)
        return whole
    return whole if whole.rows > 0 and not missing else None


def _refuse(model: ModelFeatures, bad: dict[str, str], ids: Sequence[str]) -> None:
    """Stop at an image that was skipped when the features were cached, unless such images are skipped."""
    first = next((i for i in ids if i in bad), None) if model.on_bad_image == "stop" and bad else None
    if first is not None:
        raise DataError(
            f"image {first} {cannot(bad[first])}: {bad[first]} (skipped when its features were cached)",
            hint="replace the file, or count and name such images with --on-bad-image skip",
        )


def encode_share(models: Sequence[ModelFeatures], split: Split, space: str, share: tuple[int, int]) -> None:
    """Encode a share (k, n) of `split` for each model: the shards ≡ k mod n of its feature file, as far as they lack.

    Processes with other shares may write the same files at the same time. What a head makes of a tower's features is
    left to whoever reads them.

    Raises:
        DataError, StorageError: as `encode`.
    """
    alike: dict[Preprocess, list[ModelFeatures]] = {}
    for model in models:
        alike.setdefault(model.model.card.preprocess, []).append(model)
    for group in alike.values():
        encode_images(group, split, space, share)


@stage("encode images")
def encode_images(
    encoders: Sequence[ModelFeatures], split: Split, space: str, share: tuple[int, int] | None = None
) -> None:
    """Make sure that every encoder has its features of `split`, or a share of them (see `encode_share`).

    One decoding pass serves all that lack them. The encoders must prepare images alike.

    Raises:
        DataError: an image that cannot be decoded (unless such images are skipped).
        StorageError: no room for the features; finished shards are kept.
    """
    encoders = [encoder for encoder in encoders if not encoder.file(split, space).complete()]
    encoders = [encoder for encoder in encoders if not _given(encoder, split, space)]
    encoders = [encoder for encoder in encoders if not _through_head(encoder, split, space, share)]
    if not encoders:
        return
    # Two names of one checkpoint share a file: the first encodes for both. Locks are taken in one order by all.
    owners = {e.file(split, space).folder: e for e in reversed(encoders)}
    encoding = [owners[folder] for folder in sorted(owners)]
    files = [e.file(split, space) for e in encoding]
    with contextlib.ExitStack() as locks:
        for file in files:
            if share is None and not file.complete():
                locks.enter_context(file.lock())
        todo = {i: _of_share(f.missing(), share) for i, f in enumerate(files)}
        shards = sorted(set().union(*todo.values()))
        if shards:
            how = None if encoding[0].own else encoding[0].preprocess(space)
            encode_shards(encoding, files, todo, shards, split, space, how)
    for index, (encoder, file) in enumerate(zip(encoding, files, strict=True)):
        encoder.counts.images_encoded += sum(len(file.shard_rows(s)) for s in todo[index])


def _of_share(shards: Sequence[int], share: tuple[int, int] | None) -> set[int]:
    return {shard for shard in shards if share is None or shard % share[1] == share[0]}


def _given(encoder: ModelFeatures, split: Split, space: str) -> bool:
    """Copy the features where they are there already; whether they are."""
    rows = encoder.given(split, space)
    if rows is not None:
        keep(encoder.file(split, space), rows, unit=encoder.unit_length(space) is not None)
    return rows is not None


def _through_head(encoder: ModelFeatures, split: Split, space: str, share: tuple[int, int] | None) -> bool:
    """Make the features from those of a tower that is a model of its own, where the model has one; whether it has.

    Those are kept like any features, so that many models with heads on one tower share them. Of a share, they alone are
    made.
    """
    import torch

    found = encoder.adapter.headed(prepared(space)[0])
    if found is None:
        return False
    file = encoder.file(split, space)
    tower, head = found
    base = ModelFeatures(
        ModelEntry(encoder.model.id, tower.card, encoder.model.folder),
        encoder.runtime,
        encoder.on_bad_image,
        encoder.progress,
    )
    base.adapter = tower
    wanted = "".join(("backbone", *space.partition("@")[1:]))
    if share is not None:
        encode_images([base], split, wanted, share)
        _add(encoder, base)
        return True
    with file.lock():
        missing = file.missing()
        if missing:
            [of_tower] = encode([base], split, wanted)
            file.begin(of_tower.plan)
            bad = of_tower.bad
            head = head.to("cpu")
            for shard in missing:
                own = file.shard_rows(shard)
                with torch.no_grad():
                    made = head(torch.from_numpy(np.array(of_tower.features[own])))
                ids = [split.ids[row] for row in own.tolist()]
                file.write(
                    shard,
                    unit(made, encoder.unit_length(space)).numpy(),
                    device=encoder.runtime.device_name,
                    bad={row: Bad(i, bad[i]) for row, i in enumerate(ids) if i in bad},
                    remarks=[remark for remark in of_tower.remarks if remark[0] in set(ids)],
                    digests=None if of_tower.digests is None else of_tower.digests[own],
                )
    _add(encoder, base)
    return True


def _add(encoder: ModelFeatures, base: ModelFeatures) -> None:
    """Count what `base` encoded as done for `encoder`."""
    for name in ("images_encoded", "images_s", "decode_wait_s", "write_s"):
        setattr(encoder.counts, name, getattr(encoder.counts, name) + getattr(base.counts, name))


def encode_shards(
    encoders: Sequence[ModelFeatures],
    files: Sequence[FeatureFile],
    todo: dict[int, set[int]],
    shards: Sequence[int],
    split: Split,
    space: str,
    preprocess: Preprocess | None,
) -> None:
    """Encode `shards` of `split` for models that prepare images alike; `preprocess` None: they are the user's own code.

    `todo`: number of a model → the shards that its file lacks.
    """
    import torch

    first = encoders[0]
    runtime = first.runtime
    rows = np.concatenate([files[0].shard_rows(s) for s in shards])
    size = first.batch_rows
    sizes = [len(part) for s in shards for part in _pieces(files[0].shard_rows(s), size)]
    wanting = [i for i, file in enumerate(files) if todo[i]]
    digests: deque[bytes] = deque()
    towers: dict[int, Tower] = {}
    for i in wanting:
        if preprocess is None:
            files[i].begin(PLAN)
        else:
            towers[i] = encoders[i].tower(space, len(rows), files[i])
    stream = _stream(first, _digested(split.samples(rows), digests), sizes, preprocess)
    start = time.perf_counter()
    waited = wrote = 0.0
    label = f"{split.dataset} {split.role}" + (f" × {len(encoders)} models" if len(encoders) > 1 else "")
    with progress_bar(label, len(split), first.progress) as (bar, task), contextlib.closing(stream):
        bar.advance(task, len(split) - len(rows))
        for shard in shards:
            parts: list[list[NDArray[np.float32]]] = [[] for _ in encoders]
            bad: dict[int, Bad] = {}
            remarks: list[tuple[str, str]] = []
            count = 0
            for _ in _pieces(files[0].shard_rows(shard), size):
                waiting = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - waiting
                gone = np.flatnonzero(~batch.good) + count
                bad |= zip(gone.tolist(), batch.bad, strict=True)
                remarks += batch.remarks
                count += len(batch.good)
                if isinstance(batch, Batch) and preprocess is not None:
                    images = normalise(torch.from_numpy(batch.images).to(runtime.device), preprocess)
                for i in wanting:
                    if shard not in todo[i]:
                        continue
                    if isinstance(batch, Pictures):
                        features = own_rows(encoders[i], batch, space)
                    else:
                        features = rows_of(towers[i], images, encoders[i].unit_length(space))
                        if not np.isfinite(features[batch.good]).all():
                            raise not_finite(encoders[i].model.id, runtime.precision)
                        features[~batch.good] = np.nan
                    parts[i].append(features)
                bar.advance(task, len(batch.good))
            writing = time.perf_counter()
            seen = np.frombuffer(b"".join(digests.popleft() for _ in range(count)), f"V{DIGEST_BYTES}")
            for i, file in enumerate(files):
                if shard in todo[i]:
                    file.write(
                        shard,
                        np.concatenate(parts[i]),
                        device=encoders[i].device_name,
                        bad=bad,
                        remarks=remarks,
                        digests=seen,
                    )
            wrote += time.perf_counter() - writing
    seconds = time.perf_counter() - start
    for encoder in encoders:
        encoder.counts.images_s += seconds
        encoder.counts.decode_wait_s += waited
        encoder.counts.write_s += wrote


def _stream(
    model: ModelFeatures, samples: Iterator[Sample], sizes: Sequence[int], preprocess: Preprocess | None
) -> Generator[Batch | Pictures, None, None]:
    """Batches of decoded images, as `preprocess` says; None: as code of the user's own is given them."""
    workers, on_bad_image = model.decoders(sum(sizes)), model.on_bad_image
    if preprocess is None:
        return pictures(samples, sizes=sizes, workers=workers, on_bad_image=on_bad_image)
    overlap = not model.runtime.on_cpu
    return decode_stream(
        samples, preprocess, sizes=sizes, workers=workers, overlap=overlap, on_bad_image=on_bad_image
    )


def own_rows(encoder: ModelFeatures, batch: Pictures, space: str) -> NDArray[np.float32]:
    """Features of one batch by the user's own code; rows of NaN where an image could not be decoded."""
    import torch

    assert encoder.own is not None
    rows: NDArray[np.float32] = unit(
        torch.from_numpy(batch.rows(encoder.own, space)), encoder.unit_length(space)
    ).numpy()
    return rows


def _digested(samples: Iterator[Sample], found: deque[bytes]) -> Iterator[Sample]:
    """`samples`, the digest of each image put into `found`."""
    for sample in samples:
        found.append(digest(sample.image))
        yield sample


def _pieces(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
