"""Parts of a collection through a model's towers, and onto the disk.

All parts of a call go through one stream of batches, so that the decoding processes live as long as it; no batch holds
images of two parts, so that a part's rows are the same whichever others were embedded before.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipbench.data.decode import cannot, normalise
from clipbench.data.decode_stream import Batch, OnBadImage, decode_groups
from clipbench.data.split import Sample
from clipbench.embed.collection import Collection
from clipbench.embed.output import Finished, Format, Output, Rows, renamed
from clipbench.embed.reading import Item, Reading
from clipbench.encoding.batches import not_finite, rows_of
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.images import own_rows
from clipbench.encoding.own import Pictures, pictures_of
from clipbench.encoding.runtime import Tower
from clipbench.errors import DataError, StorageError
from clipbench.models.own import PLAN

DType = Literal["float16", "float32"]
_MANY = 1_000_000  # images for which the tower is laid out: a collection is large


@dataclass(frozen=True)
class Wanted:
    """What is to be written of a collection.

    Attributes:
        texts: embed captions too, and write their cosine with the image.
        min_score: write the keys of samples whose cosine is at least this.
        dtype: of rows in the files.
        form: of the files.
        on_bad_image: leave out samples that cannot be embedded, and name them; or stop at the first.
    """

    texts: bool = False
    min_score: float | None = None
    dtype: DType = "float16"
    form: Format = "npy"
    on_bad_image: OnBadImage = "skip"


@dataclass(frozen=True)
class Failed:
    """A part that could not be read to its end; nothing of it was written."""

    name: str
    why: str


@dataclass
class _Part:
    """A part under way."""

    number: int
    reading: Reading
    items: list[Item] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    failed: str | None = None


@dataclass(frozen=True)
class _Group:
    """What goes into one batch: samples of `part`, maybe none; `last`: there are no more of it. None: of no part."""

    part: _Part | None
    items: list[Item]
    last: bool


class Embedder:
    """Embeds parts of one collection with one model."""

    def __init__(self, encoder: ModelEncoder, collection: Collection, output: Output, wanted: Wanted) -> None:
        self._encoder, self._of, self._output, self._wanted = encoder, collection, output, wanted
        self._size = encoder.batch_rows
        self._tower: Tower | None = None

    def run(
        self, numbers: Iterable[int | None], advance: Callable[[float], None] = lambda parts: None
    ) -> Iterator[tuple[int, Finished | Failed]]:
        """Embed the parts of these numbers, in order, and tell what became of each once it is written.

        Args:
            numbers: of parts; None: there is none now, and may be one later.
            advance: is told what has been done meanwhile, in parts.

        Raises:
            DataError: a sample cannot be embedded, and `on_bad_image` is "stop".
            StorageError: the output cannot be written.
        """
        parts = (self._texts if self._of.kind == "texts" else self._images)(numbers, advance)
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer, contextlib.closing(parts):
            pending: Future[tuple[int, Finished | Failed]] | None = None
            for part in parts:
                if pending is not None and (part is not None or pending.done()):
                    yield pending.result()
                    pending = None
                if part is not None:
                    texts = self._texts_of(part) if part.failed is None else None
                    pending = writer.submit(self._write, part, texts)
            if pending is not None:
                yield pending.result()

    def _texts(
        self, numbers: Iterable[int | None], advance: Callable[[float], None]
    ) -> Generator[_Part | None, None, None]:
        """Parts of texts, read; None where there is none now."""
        for number in numbers:
            if number is None:
                yield None
                continue
            part = _Part(number, Reading(self._of, self._of.parts[number]))
            part.items = list(self._samples(part))
            yield part
            advance(1)

    def _images(
        self, numbers: Iterable[int | None], advance: Callable[[float], None]
    ) -> Generator[_Part | None, None, None]:
        """Parts of images, encoded; None in between."""
        groups: deque[_Group] = deque()
        with contextlib.closing(self._stream(self._groups(numbers, groups))) as stream:
            for batch in stream:
                group = groups.popleft()
                part = group.part
                if part is not None and group.items:
                    self._encode(part, group.items, batch)
                    advance(len(group.items) / max(part.reading.expected, len(group.items)))
                yield part if group.last else None

    def _groups(self, numbers: Iterable[int | None], groups: deque[_Group]) -> Iterator[list[Sample]]:
        """The samples of one batch after the other; what each belongs to is put into `groups` first."""
        for number in numbers:
            if number is None:
                groups.append(_Group(None, [], last=False))
                yield []
                continue
            part = _Part(number, Reading(self._of, self._of.parts[number]))
            samples: list[Sample] = []
            items: list[Item] = []
            for item in self._samples(part):
                if len(samples) == self._size:
                    groups.append(_Group(part, items, last=False))
                    yield samples
                    samples, items = [], []
                assert item.image is not None
                samples.append(Sample(item.key, item.image))
                items.append(replace(item, image=None))
            groups.append(_Group(part, items, last=True))
            yield samples

    def _samples(self, part: _Part) -> Iterator[Item]:
        """The samples of a part that can be embedded, so far; the others are counted. It may fail on the way."""
        seen: set[str] = set()
        texts = self._wanted.texts or self._of.kind == "texts"
        try:
            for item in part.reading:
                part.samples += 1
                why = item.wrong or ("no caption" if texts and item.caption is None else "")
                why = why or ("its key is there twice" if item.key in seen else "")
                seen.add(item.key)
                if why:
                    self._leave_out(part, item.key, why)
                else:
                    yield item
        except _Stop:
            raise
        except (DataError, StorageError) as error:
            part.failed = error.message

    def _leave_out(self, part: _Part, key: str, why: str) -> None:
        if self._wanted.on_bad_image == "stop":
            raise _Stop(
                f"{self._of.parts[part.number].name}: sample {key} cannot be embedded: {why}",
                hint="count and name such samples with --on-bad-image skip",
            )
        part.bad.append((key, why))

    def _stream(self, groups: Iterator[list[Sample]]) -> Generator[Batch | Pictures, None, None]:
        encoder = self._encoder
        workers = encoder.decoders(_MANY)
        if encoder.own is not None:
            return pictures_of(groups, workers=workers, on_bad_image="skip")
        return decode_groups(
            groups,
            encoder.preprocess("joint"),
            largest=self._size,
            workers=workers,
            overlap=not encoder.runtime.on_cpu,
            on_bad_image="skip",
        )

    def _encode(self, part: _Part, items: list[Item], batch: Batch | Pictures) -> None:
        """Take up the rows of one batch."""
        import torch

        encoder = self._encoder
        for bad in batch.bad:
            self._leave_out(part, bad.id, f"{cannot(bad.reason)}: {bad.reason}")
        part.remarks.update(kind for _, kind in batch.remarks)
        part.items += [item for item, good in zip(items, batch.good.tolist(), strict=True) if good]
        if not batch.good.any():
            return
        if isinstance(batch, Pictures):
            self._output.plan("images").begin(PLAN)
            rows = own_rows(encoder, batch, "joint")[batch.good]
        else:
            if self._tower is None:
                self._tower = encoder.tower("joint", _MANY, self._output.plan("images"))
            pixels = torch.from_numpy(batch.images).to(encoder.runtime.device)
            images = normalise(pixels, encoder.preprocess("joint"))
            rows = rows_of(self._tower, images, encoder.unit_length("joint"))[batch.good]
        if not np.isfinite(rows).all():
            raise not_finite(encoder.model.id, encoder.runtime.precision)
        part.rows.append(rows)

    def _texts_of(self, part: _Part) -> NDArray[np.float32] | None:
        """The rows of the captions of a part that has been read."""
        if not (self._wanted.texts or self._of.kind == "texts") or not part.items:
            return None
        captions = [item.caption or "" for item in part.items]
        return self._encoder.rows_of_texts(captions, self._output.plan("texts"))

    def _write(self, part: _Part, texts: NDArray[np.float32] | None) -> tuple[int, Finished | Failed]:
        name = self._of.parts[part.number].name
        if part.failed is not None:
            return part.number, Failed(name, part.failed)
        images = np.concatenate(part.rows) if part.rows else None
        rows = Rows(part.items, images, texts, part.reading.types)
        keys = None
        if self._wanted.min_score is not None:
            score = rows.similarity
            keys = (
                []
                if score is None
                else [part.items[i].key for i in np.flatnonzero(score >= self._wanted.min_score)]
            )
        done = Finished(
            name,
            part.samples,
            len(part.items),
            tuple(sorted(part.bad)),
            None if keys is None else len(keys),
            dict(part.remarks),
            dict(part.reading.ignored),
            renamed(list(dict.fromkeys(name for item in part.items for name in item.own))),
            self._encoder.device_name,
        )
        self._output.write(part.number, rows, self._wanted.form, self._wanted.dtype, done, keys)
        return part.number, done


class _Stop(DataError):
    """That a sample cannot be embedded, where that ends the run."""
