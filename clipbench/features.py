"""Features: encoded once, kept content-addressed in the feature store, resumable shard by shard.

A feature file's key is the hash of everything that can change a row of it. Rows are float32, in the split's
order; a row of NaN stands for an image that could not be decoded.

In a deterministic run the key also names what can move the last digits (`Runtime.fixed`), so that such a run never
meets rows of another.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipbench import models
from clipbench.cache import cache_root, folder_for_now
from clipbench.cards import Preprocess, fingerprint
from clipbench.cores import cores
from clipbench.data import Sample, Split
from clipbench.data.decode import (
    MAX_PIXELS,
    Bad,
    Crops,
    OnBadImage,
    cannot,
    decode_stream,
    max_pixels,
    normalise,
)
from clipbench.errors import ClipbenchError, DataError, NotApplicable
from clipbench.execution import MAX_BATCH, Runtime, Tower, fastest, under
from clipbench.protocols import HEAT
from clipbench.store import DIGEST_BYTES, FOLDER, FeatureFile, Features, digest

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress, TaskID
    from torch import nn

    from clipbench.heatmaps import Heat, HeatMaps

_TEXT_SHARDS = 8  # encoded at once, sorted by length; what is lost when a process is killed
_PROCESSES_WORTH = 512  # images below which starting decoding processes costs more than it saves


class Subset(Split):
    """The samples of a split at `rows` (ascending): for `--limit`, or with a `role` of its own a part on the card."""

    def __init__(self, whole: Split, rows: NDArray[np.int64], role: str | None = None) -> None:
        self.whole, self.rows = whole, rows
        self.limited = role is None
        self.dataset, self.role, self.classes = whole.dataset, role or whole.role, whole.classes
        self.fingerprint = fingerprint([whole.fingerprint, rows.tolist()])
        self.ids = [whole.ids[r] for r in rows.tolist()]
        self.labels = whole.labels[rows]
        self.clusters = None if whole.clusters is None else whole.clusters[rows]
        self.captions = None if whole.captions is None else whole.captions.part(rows)
        self.expressions = None if whole.expressions is None else whole.expressions.part(rows)
        self.objects = None if whole.objects is None else whole.objects.part(rows)
        self.notes = whole.notes

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        return self.whole.samples(self.rows[rows])


@dataclass
class Counts:
    """What encoding cost, for the record."""

    images_encoded: int = 0
    texts_encoded: int = 0
    images_s: float = 0.0
    texts_s: float = 0.0
    decode_wait_s: float = 0.0
    write_s: float = 0.0


@dataclass
class ModelEncoder:
    """A model as protocols see it (see `protocols.Encoder`)."""

    model: models.LoadedModel
    runtime: Runtime
    on_bad_image: OnBadImage = "stop"
    progress: bool = True
    root: Path = field(default_factory=lambda: cache_root() / FOLDER)
    counts: Counts = field(default_factory=Counts)
    #: feature space → plans of the texts' features that were read; whoever wants to know clears it before
    text_plans: dict[str, set[str]] = field(default_factory=dict)
    _end_of_crops: Callable[[], object] | None = field(default=None, init=False, repr=False)

    @cached_property
    def adapter(self) -> models.Adapter:
        return models.load(self.model)

    @property
    def logit_scale(self) -> float:
        return self.adapter.logit_scale

    @property
    def device(self) -> str:
        return self.runtime.device

    @property
    def compared(self) -> models.Compared:
        return self.adapter.compared

    @property
    def token_width(self) -> int | None:
        return self.adapter.token_width

    def images(self, split: Split, space: str = "joint") -> Features:
        """Features [n, D] of `split`; `joint` rows, and each token of `tokens`, have unit length.

        Raises:
            DataError: an image that cannot be decoded (unless such images are skipped).
            NotApplicable: the model has no such feature space.
        """
        self.require(space)
        if isinstance(split, Subset) and self.has(split, space):
            whole, rows = self._source(split, space)
            self._refuse_bad(whole, split.ids)
            return whole.read()[rows]
        encode_images([self], split, space)
        return self.file(split, space).read()

    def require(self, space: str) -> None:
        """Raise NotApplicable unless images have `space`, at the size that it may name."""
        if space == HEAT:
            self._heat_maps(None)
            return
        base, size = _sized(space)
        self.adapter.require_space(base)
        own = self.adapter.preprocess
        if size is not None and (own.resize != "shortest" or own.side > size):
            raise NotApplicable(
                f"{self.adapter.card.title}: images are not scaled to {size} px and cropped (it sees {own.side} px, "
                f"resize: {own.resize})"
            )

    def preprocess(self, space: str) -> Preprocess:
        """How images are prepared for `space`: the model's own way, but for the size that it may name."""
        own, size = self.adapter.preprocess, _sized(space)[1]
        if size is None or size == own.size:
            return own
        return own.model_copy(update={"size": size, "crop": own.side})

    def bad_images(self, split: Split, space: str) -> dict[str, str]:
        """id → reason of the skipped images of `split`."""
        if space == HEAT:
            return self.bad_heat.get(split.fingerprint, {})
        bad = self._source(split, space)[0].bad()
        return {i: bad[i] for i in split.ids if i in bad} if bad else {}

    def remarks(self, split: Split, space: str) -> list[tuple[str, str]]:
        """(id, kind) of the images of `split` of which something must be said (see `data.decode.REMARKS`)."""
        if space == HEAT:
            return sorted(self.heat_remarks.get(split.fingerprint, ()))
        found = self._source(split, space)[0].remarks()
        own = set(split.ids) if found else set()
        return [(i, kind) for i, kind in found if i in own]

    def digests(self, split: Split, space: str) -> NDArray[np.void] | None:
        """What tells the bytes of one image from those of all others, 16 bytes [n]; None where nobody noted it."""
        if space == HEAT:
            return None
        source, rows = self._source(split, space)
        found = source.digests()
        return None if found is None else found[rows]

    def texts(self, texts: list[str], space: str = "joint") -> Features:
        """Features [len(texts), D] in the order given; `joint` rows, and each token of `tokens`, have unit length.

        Raises:
            NotApplicable: the model has no text tower, or no such space.
        """
        self.adapter.require_text(space)
        unique = list(dict.fromkeys(texts))
        key = self._whole_key(f"text:{space}", fingerprint(unique))
        file = FeatureFile(key, len(unique), self.root)
        if not file.complete():
            with file.lock():
                if not file.complete():
                    self._encode_texts(file, unique, space)
        number = {text: i for i, text in enumerate(unique)}
        rows = file.read()
        self.text_plans.setdefault(space, set()).add(str(file.plan()))
        return rows if len(unique) == len(texts) else rows[[number[t] for t in texts]]

    def crops(self, split: Split, space: str, seed: int, epoch: int) -> Features:
        """Features [n, D] of new random crops and flips of the images; valid until the next call.

        They lie below the cache like any features, and are not kept.
        """
        how = Crops(**dict(self.adapter.preprocess), seed=seed, epoch=epoch)
        folder = folder_for_now(self.root, "crops")
        if self._end_of_crops is not None:
            self._end_of_crops()
        self._end_of_crops = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        key = self._whole_key(space, split.fingerprint) | {"preprocess": how.canonical()}
        file = FeatureFile(key, len(split), folder)
        shards = file.missing()
        _encode_shards([self], [file], {0: set(shards)}, shards, split, space, how)
        self.counts.images_encoded += len(split)
        return file.read()

    @contextlib.contextmanager
    def tracked(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """See `protocols.Encoder`."""
        with progress_bar(label, total, self.progress) as (bar, task):
            yield lambda steps: bar.advance(task, steps)

    def file(self, split: Split, space: str) -> FeatureFile:
        """Where the image features of `split` are kept."""
        file = FeatureFile(self._whole_key(space, split.fingerprint), len(split), self.root)
        return self._files.setdefault(file.folder, file)  # that which has been checked

    def tower(self, space: str, rows: int, file: FeatureFile | None = None) -> Tower:
        """The image tower, laid out for `rows` images; or under the plan of `file`, which it fixes if it is new."""
        space = _sized(space)[0]
        preprocess = self.adapter.preprocess
        shape = (preprocess.channels, preprocess.side, preprocess.side)
        return self._laid_out(
            space,
            lambda: self.adapter.image_tower(space),
            lambda n: _noise((n, *shape), self.runtime),
            rows,
            file,
        )

    def text_tower(
        self, texts: Sequence[str], space: str = "joint", file: FeatureFile | None = None
    ) -> Tower:
        """The text tower, laid out for `texts`; or under the plan of `file`, as `tower`."""

        def example(n: int) -> torch.Tensor:
            ids, lengths = self.adapter.tokenize([max(texts, key=len)])
            return ids[:, : int(lengths[0])].to(self.runtime.device).repeat(n, 1)

        return self._laid_out(
            f"text:{space}", lambda: self.adapter.text_tower(space), example, len(texts), file
        )

    def _laid_out(
        self,
        space: str,
        module: Callable[[], nn.Module],
        example: Callable[[int], torch.Tensor],
        rows: int,
        file: FeatureFile | None,
    ) -> Tower:
        """A tower under the plan of `file`; without one under the plan that was the fastest when it was first asked."""
        plan = None if file is None else file.plan()
        if plan is None:
            if space not in self._fastest:
                vary = space.startswith("text:")
                chosen = fastest(module().to(self.runtime.device), self.runtime, example, rows, vary=vary)
                self._fastest[space] = chosen.plan
                self._towers[space, chosen.plan] = chosen
            plan = self._fastest[space] if file is None else file.begin(self._fastest[space])
        if (space, plan) not in self._towers:
            assert file is not None
            batch = example(batch_rows(self.runtime) if plan == "compiled" else 1)
            self._towers[space, plan] = under(
                module().to(self.runtime.device), self.runtime, plan, batch, file.folder
            )
        return self._towers[space, plan]

    def heat(
        self,
        split: Split,
        texts: Sequence[str],
        image: NDArray[np.int64],
        *,
        whole: bool = True,
        block: int | None = None,
    ) -> Iterator[Heat]:
        """See `protocols.HeatEncoder`.

        Raises:
            DataError: an image that cannot be decoded (unless such images are skipped).
            NotApplicable: the model has no text tower, or no maps.
        """
        from clipbench.heatstream import heats

        maps = self._heat_maps(block)
        maps.tower.to(self.runtime.device)
        preprocess = self.adapter.preprocess
        if whole and preprocess.resize == "shortest":
            preprocess = preprocess.model_copy(update={"resize": "squash"})
        return heats(self, maps, preprocess, split, texts, image)

    def _heat_maps(self, block: int | None) -> HeatMaps:
        """The model's maps; finding out what they are takes a forward pass, so that they are kept."""
        if block not in self._known_heat_maps:
            self._known_heat_maps[block] = self.adapter.heat_maps(block)
        return self._known_heat_maps[block]

    @cached_property
    def _known_heat_maps(self) -> dict[int | None, HeatMaps]:
        return {}

    def decoders(self, images: int) -> int:
        """Decoding processes for this many images."""
        if self.runtime.workers is not None:
            return self.runtime.workers
        return cores() if images >= _PROCESSES_WORTH else 0

    @cached_property
    def bad_heat(self) -> dict[str, dict[str, str]]:
        """Fingerprint of a split → id → reason of the images that heat maps had to leave out."""
        return {}

    @cached_property
    def heat_remarks(self) -> dict[str, set[tuple[str, str]]]:
        """Fingerprint of a split → what must be said of its images, as `remarks`."""
        return {}

    @cached_property
    def _files(self) -> dict[Path, FeatureFile]:
        return {}

    @cached_property
    def _fastest(self) -> dict[str, str]:
        return {}

    @cached_property
    def _towers(self) -> dict[tuple[str, str], Tower]:
        return {}

    def has(self, split: Split, space: str) -> bool:
        """Whether the features of a `--limit` sample can be taken from those of its whole split, or none are needed.

        A whole that was there until some of it was found damaged is mended first: the sample's rows stay what they
        were. In a deterministic run a sample has its own rows, whatever was encoded before.
        """
        if space == HEAT:
            return True
        if not isinstance(split, Subset) or self.runtime.deterministic:
            return False
        whole = self.file(split.whole, space)
        missing = set(whole.missing())
        if missing and missing <= whole.dropped:
            encode_images([self], split.whole, space)
            return True
        return whole.rows > 0 and not missing

    def plan(self, split: Split, space: str) -> str:
        """How the tower ran that encoded `split`."""
        return "plain, fp32" if space == HEAT else str(self._source(split, space)[0].plan())

    def devices(self, split: Split, space: str) -> list[str]:
        """Where the tower ran that encoded `split`."""
        return [self.runtime.device_name] if space == HEAT else self._source(split, space)[0].devices()

    def _source(self, split: Split, space: str) -> tuple[FeatureFile, NDArray[np.int64] | slice]:
        """The file that has the rows of `split`, its own or that of its whole; and where they are there."""
        if isinstance(split, Subset) and self.has(split, space):
            return self.file(split.whole, space), split.rows
        return self.file(split, space), slice(None)

    def _whole_key(self, space: str, content: str) -> dict[str, Any]:
        """Everything that can change a feature; in a deterministic run also by its last digits."""
        key = self._key(space, content)
        return key | {"deterministic": self.runtime.fixed} if self.runtime.deterministic else key

    def _key(self, space: str, content: str) -> dict[str, Any]:
        """Everything that can change a feature."""
        card = self.adapter.card
        text = space.startswith("text:")
        return {
            "family": card.family,
            "version": models.family(card.family).VERSION,
            "config": card.config,
            "weights": self.adapter.weights_sha256,
            "preprocess": None if text else self.preprocess(space).canonical(),
            "tokenizer": self.adapter.text_fingerprint if text else None,
            "precision": self.runtime.precision,
            "space": _sized(space)[0],
            "content": content,
            # Images that one limit refuses are rows of NaN, which another limit must not meet.
            **({} if text or max_pixels() == MAX_PIXELS else {"max_pixels": max_pixels()}),
        }

    def _refuse_bad(self, file: FeatureFile, ids: Sequence[str]) -> None:
        if self.on_bad_image == "stop" and (bad := file.bad()):
            for i in ids:
                if i in bad:
                    raise DataError(
                        f"image {i} {cannot(bad[i])}: {bad[i]} (skipped when its features were cached)",
                        hint="replace the file, or count and name such images with --on-bad-image skip",
                    )

    def _encode_texts(self, file: FeatureFile, texts: list[str], space: str) -> None:
        """Encode the shards that are missing, several at once, so that a killed run resumes."""
        start = time.perf_counter()
        missing = file.missing()
        tower = self.text_tower(texts, space, file)
        # Groups are always the same, so that a text shares its batch with the same others whatever is there already.
        groups = [
            range(first, min(first + _TEXT_SHARDS, file.shards))
            for first in sorted({shard - shard % _TEXT_SHARDS for shard in missing})
        ]
        rows = [np.concatenate([file.shard_rows(shard) for shard in group]) for group in groups]
        todo = sum(map(len, rows))
        with progress_bar("texts", len(texts), self.progress) as (bar, task):
            bar.advance(task, len(texts) - todo)
            for group, own in zip(groups, rows, strict=True):
                features = self._encode_sorted(
                    tower, [texts[row] for row in own.tolist()], space, lambda n: bar.advance(task, n)
                )
                for shard in group:
                    part, features = np.split(features, [len(file.shard_rows(shard))])
                    if shard in missing:
                        file.write(shard, part, device=self.runtime.device_name)
        self.counts.texts_encoded += todo
        self.counts.texts_s += time.perf_counter() - start

    def _encode_sorted(
        self, tower: Tower, texts: list[str], space: str, advance: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """Encode in order of length, each batch cut at its longest text; exact for causal and masked towers."""
        import torch

        ids, lengths = self.adapter.tokenize(texts)
        order = torch.argsort(lengths, stable=True)
        size = self.runtime.batch_size or (64 if self.runtime.on_cpu else 1024)
        tokens = size * self.adapter.context_length // 2  # a batch of short texts may hold more of them
        features: NDArray[np.float32] | None = None
        position = 0
        while position < len(order):
            longest = int(lengths[order[min(position + size, len(order)) - 1]])
            count = max(1, min(len(order) - position, tokens // max(longest, 1)))
            rows = order[position : position + count]
            batch = ids[rows, : int(lengths[rows].max())].to(self.runtime.device)
            encoded = unit(tower(batch), self._unit(space)).cpu().numpy()
            if not np.isfinite(encoded).all():
                raise not_finite(self.model.id, self.runtime.precision)
            if features is None:
                features = np.empty((len(texts), encoded.shape[1]), np.float32)
            features[rows.numpy()] = encoded
            position += count
            advance(count)
        assert features is not None
        return features

    def _unit(self, space: str) -> int | None:
        """Length of the pieces of a row that are made unit vectors; 0: the whole row; None: left as they are."""
        return {"joint": 0, "tokens": self.token_width}.get(_sized(space)[0])


def _sized(space: str) -> tuple[str, int | None]:
    """The space, and the size of `<space>@<size>`.

    >>> _sized("backbone"), _sized("backbone@256")
    (('backbone', None), ('backbone', 256))
    """
    base, _, size = space.partition("@")
    return base, int(size) if size else None


def encode_images(encoders: Sequence[ModelEncoder], split: Split, space: str) -> None:
    """Make sure that every encoder has its features of `split`; one decoding pass serves all that lack them.

    The encoders must agree on preprocessing (`same_preprocessing` groups them).

    Raises:
        DataError: an image that cannot be decoded (unless such images are skipped).
        StorageError: no room for the features; finished shards are kept.
    """
    encoders = [encoder for encoder in encoders if not _through_head(encoder, split, space)]
    # Two names of one checkpoint share a file: the first encodes for both. Locks are taken in one order by all.
    owners = {e.file(split, space).folder: e for e in reversed(encoders)}
    encoding = [owners[folder] for folder in sorted(owners)]
    files = [e.file(split, space) for e in encoding]
    with contextlib.ExitStack() as locks:
        for file in files:
            if not file.complete():
                locks.enter_context(file.lock())
        todo = {i: set(f.missing()) for i, f in enumerate(files)}
        shards = sorted(set().union(*todo.values()))
        if shards:
            _encode_shards(encoding, files, todo, shards, split, space, encoding[0].preprocess(space))
    for index, (encoder, file) in enumerate(zip(encoding, files, strict=True)):
        encoder.counts.images_encoded += sum(len(file.shard_rows(s)) for s in todo[index])
        encoder._refuse_bad(file, split.ids)


def _through_head(encoder: ModelEncoder, split: Split, space: str) -> bool:
    """Make the features from those of a tower that is a model of its own, where the model has one; whether it has.

    Those are kept like any features, so that many models with heads on one tower share them.
    """
    import torch

    base_space, size = _sized(space)
    found = encoder.adapter.headed(base_space)
    if found is None:
        return False
    file = encoder.file(split, space)
    tower, head = found
    base = ModelEncoder(
        models.LoadedModel(encoder.model.id, tower.card, encoder.model.folder),
        encoder.runtime,
        encoder.on_bad_image,
        encoder.progress,
    )
    base.adapter = tower
    wanted = f"backbone@{size}" if size else "backbone"
    with file.lock():
        missing = file.missing()
        if missing:
            rows = base.images(split, wanted)
            file.begin(base.plan(split, wanted))
            bad, remarks = base.bad_images(split, wanted), base.remarks(split, wanted)
            digests = base.digests(split, wanted)
            head = head.to("cpu")
            for shard in missing:
                own = file.shard_rows(shard)
                with torch.no_grad():
                    made = head(torch.from_numpy(np.array(rows[own])))
                ids = [split.ids[row] for row in own.tolist()]
                file.write(
                    shard,
                    unit(made, encoder._unit(space)).numpy(),
                    device=encoder.runtime.device_name,
                    bad={row: Bad(i, bad[i]) for row, i in enumerate(ids) if i in bad},
                    remarks=[remark for remark in remarks if remark[0] in set(ids)],
                    digests=None if digests is None else digests[own],
                )
    for name in ("images_encoded", "images_s", "decode_wait_s", "write_s"):
        setattr(encoder.counts, name, getattr(encoder.counts, name) + getattr(base.counts, name))
    encoder._refuse_bad(file, split.ids)
    return True


def same_preprocessing(encoders: Sequence[ModelEncoder]) -> list[list[ModelEncoder]]:
    """The encoders in groups that one decoding pass can serve."""
    groups: dict[str, list[ModelEncoder]] = {}
    for encoder in encoders:
        groups.setdefault(fingerprint(encoder.model.card.preprocess.canonical()), []).append(encoder)
    return list(groups.values())


def _encode_shards(
    encoders: Sequence[ModelEncoder],
    files: Sequence[FeatureFile],
    todo: dict[int, set[int]],
    shards: Sequence[int],
    split: Split,
    space: str,
    preprocess: Preprocess,
) -> None:
    import torch

    first = encoders[0]
    runtime = first.runtime
    rows = np.concatenate([files[0].shard_rows(s) for s in shards])
    size = batch_rows(runtime)
    sizes = [len(part) for s in shards for part in _pieces(files[0].shard_rows(s), size)]
    towers = [
        e.tower(space, len(rows), file) if todo[i] else None
        for i, (e, file) in enumerate(zip(encoders, files, strict=True))
    ]
    digests: deque[bytes] = deque()
    stream = decode_stream(
        _digested(split.samples(rows), digests),
        preprocess,
        sizes=sizes,
        workers=first.decoders(len(rows)),
        overlap=not runtime.on_cpu,
        on_bad_image=first.on_bad_image,
    )
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
                count += len(batch.images)
                images = normalise(torch.from_numpy(batch.images).to(runtime.device), preprocess)
                for i, tower in enumerate(towers):
                    if tower is not None and shard in todo[i]:
                        features = _rows(tower, images, encoders[i]._unit(space))
                        if not np.isfinite(features[batch.good]).all():
                            raise not_finite(encoders[i].model.id, runtime.precision)
                        features[~batch.good] = np.nan
                        parts[i].append(features)
                bar.advance(task, len(batch.images))
            writing = time.perf_counter()
            seen = np.frombuffer(b"".join(digests.popleft() for _ in range(count)), f"V{DIGEST_BYTES}")
            for i, file in enumerate(files):
                if shard in todo[i]:
                    file.write(
                        shard,
                        np.concatenate(parts[i]),
                        device=runtime.device_name,
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


def _digested(samples: Iterator[Sample], found: deque[bytes]) -> Iterator[Sample]:
    """`samples`, the digest of each image put into `found`."""
    for sample in samples:
        found.append(digest(sample.image))
        yield sample


def _rows(tower: Tower, images: torch.Tensor, piece: int | None) -> NDArray[np.float32]:
    """Features of one batch; padded to a full batch for a compiled tower; halved while memory runs out."""
    import torch

    count = len(images)
    if tower.plan == "compiled":
        images = _padded(images, batch_rows(tower.runtime))
    try:
        features = tower(images)[:count]
    except torch.cuda.OutOfMemoryError:
        if count == 1:
            raise
        if tower.runtime.deterministic:
            raise ClipbenchError(
                f"{count} images at once do not fit the memory of {tower.runtime.device_name}; a deterministic run "
                "cannot take fewer as it likes",
                hint="give a smaller --batch-size",
            ) from None
        torch.cuda.empty_cache()
        half = count // 2
        return np.concatenate([_rows(tower, images[:half], piece), _rows(tower, images[half:count], piece)])
    rows: NDArray[np.float32] = unit(features, piece).cpu().numpy()
    return rows


def _padded(images: torch.Tensor, size: int) -> torch.Tensor:
    import torch

    lacking = max(0, size - len(images))
    return torch.cat([images, images.new_zeros((lacking, *images.shape[1:]))]) if lacking else images


def batch_rows(runtime: Runtime) -> int:
    """Images a batch: the user's choice, or what keeps a CPU's caches or a GPU's units busy."""
    return runtime.batch_size or (64 if runtime.on_cpu else MAX_BATCH)


def _pieces(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def unit(features: torch.Tensor, piece: int | None = 0) -> torch.Tensor:
    """Rows [B, D] of unit length (float32); with `piece`, each stretch of that length; None: as they are."""
    if piece is None:
        return features
    pieces = features.view(len(features), -1, piece or features.shape[1])
    normalised: torch.Tensor = pieces / pieces.norm(dim=2, keepdim=True).clamp_min(1e-12)
    return normalised.view_as(features)


def _noise(shape: tuple[int, ...], runtime: Runtime) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(runtime.device)


def not_finite(model: str, precision: str) -> ClipbenchError:
    """That a model's features or maps are not finite in this precision."""
    return ClipbenchError(
        f"{model} gives features that are not finite in {precision}",
        hint="use --precision bf16 or fp32" if precision == "fp16" else "the checkpoint may be damaged",
    )


@contextlib.contextmanager
def progress_bar(label: str, total: int, show: bool) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr with rate and time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="cyan")

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not show or not sys.stderr.isatty()
    ) as bar:
        yield bar, bar.add_task(label, total=total)
