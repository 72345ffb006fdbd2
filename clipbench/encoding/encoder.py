"""A model as protocols see it: features of images and texts, encoded once and kept (see `protocols.base.Inputs`)."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.base import fingerprint
from clipbench.data.decode import Crops
from clipbench.data.split import Split
from clipbench.encoding.batches import not_finite, unit
from clipbench.encoding.cuts import Cut, lengths, of
from clipbench.encoding.feature_store import FeatureFile, Features
from clipbench.encoding.given import keep
from clipbench.encoding.images import encode, encode_shards
from clipbench.encoding.model_features import Begun, ModelFeatures
from clipbench.encoding.runtime import Tower
from clipbench.errors import NotApplicable, StorageError
from clipbench.models.own import PLAN, OwnAdapter
from clipbench.utils.cache import folder_for_now, read_checked, write_checked
from clipbench.utils.progress import progress_bar
from clipbench.utils.stages import stage

if TYPE_CHECKING:
    from clipbench.encoding.saliency import Saliency

_LIST: Final = "clipbench list of texts 1"
#: texts and what is told of progress, to their features [n, D]
_EncodeTexts = Callable[[list[str], Callable[[int], None]], NDArray[np.float32]]
_TEXT_SHARDS = 8  # encoded at once, sorted by length; what is lost when a process is killed


@dataclass
class ModelEncoder(ModelFeatures):
    """A model as protocols see it."""

    #: feature space → plans of the texts' features that were read; whoever wants to know clears it before
    text_plans: dict[str, set[str]] = field(default_factory=dict)
    #: feature space → what the model left out of the texts that were read, in turn; cleared likewise
    cuts: dict[str, list[Cut]] = field(default_factory=dict)
    _end_of_crops: Callable[[], object] | None = field(default=None, init=False, repr=False)

    def images(self, split: Split, space: str = "joint") -> Features:
        """Features [n, D] of `split`; `joint` rows, and each token of `tokens`, have unit length.

        Raises:
            DataError: an image that cannot be decoded (unless such images are skipped).
            NotApplicable: the model has no such feature space.
        """
        self.require(space)
        return encode([self], split, space)[0].features

    def texts(self, texts: list[str], space: str = "joint") -> Features:
        """Features [len(texts), D] in the order given; `joint` rows, and each token of `tokens`, have unit length.

        Raises:
            NotApplicable: the model has no text tower, or no such space.
        """
        self.adapter.require_text(space)
        unique = list(dict.fromkeys(texts))
        given = None if self.adapter.given is None else self.adapter.given.texts(unique)
        name, content = f"text:{space}", fingerprint(unique)
        key = self.key(name, content) if given is None else self.given_key(given, name, content)
        file = FeatureFile(key, len(unique), self.root)
        if given is not None:
            keep(file, given, unit=True)
        elif not file.complete():
            with file.lock():
                if not file.complete():
                    self._encode_texts(file, unique, space)
        number = {text: i for i, text in enumerate(unique)}
        rows = file.read()
        self.text_plans.setdefault(space, set()).add(str(file.plan()))
        self.cuts.setdefault(space, []).append(
            of(lengths(self.adapter, unique, file.folder), [number[text] for text in texts])
        )
        return rows if len(unique) == len(texts) else rows[[number[t] for t in texts]]

    def rows_of_texts(self, texts: list[str], where: Begun) -> NDArray[np.float32]:
        """Features [len(texts), D] of unit length, encoded now and kept by the caller, under the plan of `where`.

        Raises:
            NotApplicable: the model has no text tower.
        """
        self.adapter.require_text("joint")
        return self._encoding_texts(texts, "joint", where)(texts, lambda _: None)

    @stage("encode images")
    def crops(self, split: Split, space: str, seed: int, epoch: int) -> Features:
        """Features [n, D] of new random crops and flips of the images; valid until the next call.

        They lie below the cache like any features, and are not kept.
        """
        if self.own:
            raise NotApplicable(
                f"{self.adapter.card.title}: code of the user's own prepares images itself, without new crops"
            )
        how = Crops(**dict(self.adapter.preprocess), seed=seed, epoch=epoch)
        folder = folder_for_now(self.root, "crops")
        if self._end_of_crops is not None:
            self._end_of_crops()
        self._end_of_crops = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        key = self.key(space, split.fingerprint) | {"preprocess": how.canonical()}
        file = FeatureFile(key, len(split), folder)
        shards = file.missing()
        encode_shards([self], [file], {0: set(shards)}, shards, split, space, how)
        self.counts.images_encoded += len(split)
        return file.read()

    @contextlib.contextmanager
    def tracked(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        with progress_bar(label, total, self.progress) as (bar, task):
            yield lambda steps: bar.advance(task, steps)

    @cached_property
    def saliency(self) -> Saliency:
        """The model's heat maps.

        Raises:
            NotApplicable: the model has no text tower, or no maps.
        """
        from clipbench.encoding.saliency import Saliency

        return Saliency(self, self.texts)

    @stage("encode texts")
    def _encode_texts(self, file: FeatureFile, texts: list[str], space: str) -> None:
        """Encode the shards that are missing, several at once, so that a killed run resumes."""
        start = time.perf_counter()
        missing, known = file.missing(), self._known(file, texts, space)
        # Groups are always the same, so that a text shares its batch with the same others whatever is there already.
        groups = [
            range(first, min(first + _TEXT_SHARDS, file.shards))
            for first in sorted({shard - shard % _TEXT_SHARDS for shard in missing})
        ]
        rows = [np.concatenate([file.shard_rows(shard) for shard in group]) for group in groups]
        new = [[row for row in own.tolist() if texts[row] not in known] for own in rows]
        todo = sum(map(len, new))
        with progress_bar("texts", len(texts), self.progress) as (bar, task):
            bar.advance(task, len(texts) - todo)
            encode = self._encoding_texts(texts, space, file) if todo else None
            for group, own, wanted in zip(groups, rows, new, strict=True):
                made = dict(known)
                if encode is not None and wanted:
                    those = [texts[row] for row in wanted]
                    encoded = encode(those, lambda n: bar.advance(task, n))
                    made |= zip(those, encoded, strict=True)
                features = np.stack([made[texts[row]] for row in own.tolist()])
                for shard in group:
                    part, features = np.split(features, [len(file.shard_rows(shard))])
                    if shard in missing:
                        file.write(shard, part, device=self.device_name)
        with contextlib.suppress(StorageError):  # a cache that is full: another set encodes them again
            write_checked(self._lists(space) / f"{file.folder.name}.json", json.dumps(texts).encode(), _LIST)
        self.counts.texts_encoded += todo
        self.counts.texts_s += time.perf_counter() - start

    def _known(self, file: FeatureFile, texts: list[str], space: str) -> dict[str, NDArray[np.float32]]:
        """Text → its row, where a set that was encoded here has it, under the plan of `file`, which may become that
        set's. In a deterministic run no rows hang on what was encoded before."""
        found: dict[str, NDArray[np.float32]] = {}
        lists = () if self.runtime.deterministic else sorted(self._lists(space).glob("*.json"))
        for path in lists:
            others: list[str] = json.loads(read_checked(path, _LIST) or b"[]")
            common = sorted(set(others) & set(texts) - found.keys())
            other = FeatureFile(self.key(f"text:{space}", fingerprint(others)), len(others), self.root)
            if not common or other.folder == file.folder or not other.complete():
                continue
            plan, place = other.plan(), {text: row for row, text in enumerate(others)}
            if other.devices() == [self.device_name] and file.begin(str(plan)) == plan:
                found |= zip(common, other.read()[[place[text] for text in common]], strict=True)
        return found

    def _lists(self, space: str) -> Path:
        """Where it stands which sets of texts were encoded: `<folder of their features>.json`, each a list of texts."""
        return self.root / "texts-1" / fingerprint(self.key(f"text:{space}", ""))

    def _encoding_texts(self, texts: list[str], space: str, file: Begun) -> _EncodeTexts:
        """What encodes these texts, some at a time, under the plan of `file`."""
        if self.own is not None:
            file.begin(PLAN)
            return partial(self._encode_by_own, self.own, space)
        return partial(self._encode_sorted, self.text_tower(texts, space, file), space)

    def _encode_by_own(
        self, own: OwnAdapter, space: str, texts: list[str], advance: Callable[[int], None]
    ) -> NDArray[np.float32]:
        import torch

        found = []
        for start in range(0, len(texts), self.batch_rows):
            part = texts[start : start + self.batch_rows]
            rows = torch.from_numpy(own.rows(f"text:{space}", part, part))
            found.append(unit(rows, self.unit_length(space)).numpy())
            advance(len(part))
        return np.concatenate(found)

    def _encode_sorted(
        self, tower: Tower, space: str, texts: list[str], advance: Callable[[int], None]
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
            encoded = unit(tower(batch), self.unit_length(space)).cpu().numpy()
            if not np.isfinite(encoded).all():
                raise not_finite(self.model.id, self.runtime.precision)
            if features is None:
                features = np.empty((len(texts), encoded.shape[1]), np.float32)
            features[rows.numpy()] = encoded
            position += count
            advance(count)
        assert features is not None
        return features
