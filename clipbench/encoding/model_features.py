"""One model: its towers as they are laid out here, and where its features are kept.

A feature file's key is the hash of everything that can change a row of it. Rows are float32, in the split's
order; a row of NaN stands for an image that could not be decoded.

In a deterministic run the key also names what can move the last digits (`Runtime.fixed`), so that such a run never
meets rows of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clipbench.cards.model import Preprocess
from clipbench.data.decode import MAX_PIXELS, max_pixels
from clipbench.data.decode_stream import OnBadImage
from clipbench.data.embeddings import Rows
from clipbench.data.split import Split
from clipbench.encoding.batches import batch_rows, noise
from clipbench.encoding.feature_store import FOLDER, FeatureFile
from clipbench.encoding.plans import fastest
from clipbench.encoding.runtime import Runtime, Tower, processor, under
from clipbench.errors import NotApplicable
from clipbench.models import families, remembered
from clipbench.models.adapter import Adapter, Compared, ModelEntry
from clipbench.models.own import BATCH, OwnAdapter
from clipbench.utils.cache import cache_root
from clipbench.utils.cpu import cores
from clipbench.utils.stages import stage

if TYPE_CHECKING:
    import torch
    from torch import nn

_PROCESSES_WORTH = 512  # images below which starting decoding processes costs more than it saves


class Begun(Protocol):
    """Rows that are all made under one plan, which the first who writes them fixes."""

    @property
    def folder(self) -> object:
        """Where they are, for messages."""

    def plan(self) -> str | None:
        """The plan; None where nobody has begun yet."""

    def begin(self, plan: str) -> str:
        """Fix `plan`, unless one is fixed already: the plan that is to be used."""


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
class ModelFeatures:
    """A model, how it runs, and its feature files below `root`."""

    model: ModelEntry
    runtime: Runtime
    on_bad_image: OnBadImage = "stop"
    progress: bool = True
    root: Path = field(default_factory=lambda: cache_root() / FOLDER)
    counts: Counts = field(default_factory=Counts)
    _files: dict[Path, FeatureFile] = field(default_factory=dict, init=False, repr=False)
    _fastest: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _towers: dict[tuple[str, str], Tower] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def adapter(self) -> Adapter:
        with stage("load"):
            adapter = remembered.load(self.model)
            if isinstance(adapter, OwnAdapter):
                adapter.try_out()
            return adapter

    @property
    def own(self) -> OwnAdapter | None:
        """The adapter, where the model is code of the user's own."""
        return self.adapter if isinstance(self.adapter, OwnAdapter) else None

    @property
    def device_name(self) -> str:
        """Where features are made, as the record says it; code of the user's own need not say."""
        if self.own is None:
            return self.runtime.device_name
        place = self.own.place
        if place.startswith("cuda"):
            return replace(self.runtime, device=place).device_name
        return processor()[0] if place == "cpu" else place or "not stated"

    @property
    def batch_rows(self) -> int:
        """Images a batch."""
        return batch_rows(self.runtime) if self.own is None else self.runtime.batch_size or BATCH

    @property
    def logit_scale(self) -> float:
        return self.adapter.logit_scale

    @property
    def device(self) -> str:
        return self.runtime.device

    @property
    def compared(self) -> Compared:
        return self.adapter.compared

    @property
    def token_width(self) -> int | None:
        return self.adapter.token_width

    @property
    def precision(self) -> str:
        """Of what it encodes; nobody knows that of features that were given, or that code of the user's own made."""
        if self.own is not None:
            return "own"
        return self.runtime.precision if self.adapter.given is None else "as given"

    def require(self, space: str) -> None:
        """Raise NotApplicable unless images have `space`, at the size that it may name."""
        base, changes = prepared(space)
        self.adapter.require_space(base)
        if self.adapter.given is not None:
            return
        if self.own and changes:
            raise NotApplicable(
                f"{self.adapter.card.title}: code of the user's own prepares images itself, so that they cannot be "
                "scaled otherwise"
            )
        own, size = self.adapter.preprocess, changes.get("size")
        if size is not None and (own.resize != "shortest" or own.side > size):
            raise NotApplicable(
                f"{self.adapter.card.title}: images are not scaled to {size} px and cropped (it sees {own.side} px, "
                f"resize: {own.resize})"
            )

    def preprocess(self, space: str) -> Preprocess:
        """How images are prepared for `space`: the model's own way, but for what it may name."""
        own = self.adapter.preprocess
        changes = {k: v for k, v in prepared(space)[1].items() if getattr(own, k) != v}
        return own.model_copy(update=changes | ({"crop": own.side} if "size" in changes else {}))

    def file(self, split: Split, space: str) -> FeatureFile:
        """Where the image features of `split` are kept."""
        rows = self.given(split, space)
        key = (
            self.key(space, split.images_fingerprint)
            if rows is None
            else self.given_key(rows, space, split.fingerprint)
        )
        file = FeatureFile(key, len(split), self.root)
        return self._files.setdefault(file.folder, file)  # that which has been checked

    def given(self, split: Split, space: str) -> Rows | None:
        """The features of `split` that are there already; None where they must be encoded.

        Raises:
            DataError: some are missing, or they are no features.
        """
        return None if self.adapter.given is None else self.adapter.given.images(split, space)

    def given_key(self, rows: Rows, space: str, content: str) -> dict[str, Any]:
        """As `key`, of features that were given."""
        family = self.adapter.card.family
        named = {"family": family, "version": families.family(family).version, "given": rows.described}
        return named | {"space": prepared(space)[0], "content": content}

    def tower(self, space: str, rows: int, file: Begun | None = None) -> Tower:
        """The image tower, laid out for `rows` images; or under the plan of `file`, which it fixes if it is new."""
        space = prepared(space)[0]
        preprocess = self.adapter.preprocess
        shape = (preprocess.channels, preprocess.side, preprocess.side)
        return self._laid_out(
            space,
            lambda: self.adapter.image_tower(space),
            lambda n: noise((n, *shape), self.runtime),
            rows,
            file,
        )

    def text_tower(self, texts: Sequence[str], space: str = "joint", file: Begun | None = None) -> Tower:
        """The text tower, laid out for `texts`; or under the plan of `file`, as `tower`."""

        def example(n: int) -> torch.Tensor:
            ids, lengths = self.adapter.tokenize([sorted(texts, key=len)[len(texts) // 2]])
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
        file: Begun | None,
    ) -> Tower:
        """A tower under the plan of `file`; without one under the plan that `fastest` gave when it was first asked."""
        plan = None if file is None else file.plan()
        if plan is None:
            if space not in self._fastest:
                vary = space.startswith("text:")
                made = module().to(self.runtime.device)
                with stage("trial"):
                    chosen = fastest(made, self.runtime, example, rows, vary=vary)
                self._fastest[space] = chosen.plan
                self._towers[space, chosen.plan] = chosen
            plan = self._fastest[space] if file is None else file.begin(self._fastest[space])
        if (space, plan) not in self._towers:
            assert file is not None
            batch = example(batch_rows(self.runtime) if plan == "compiled" else 1)
            made = module().to(self.runtime.device)
            with stage("compile"):
                self._towers[space, plan] = under(made, self.runtime, plan, batch, file.folder)
        return self._towers[space, plan]

    def decoders(self, images: int) -> int:
        """Decoding processes for this many images."""
        if self.runtime.workers is not None:
            return self.runtime.workers
        return cores() if images >= _PROCESSES_WORTH else 0

    def unit_length(self, space: str) -> int | None:
        """Length of the pieces of a row that are made unit vectors; 0: the whole row; None: left as they are."""
        return {"joint": 0, "tokens": self.token_width}.get(prepared(space)[0])

    def key(self, space: str, content: str) -> dict[str, Any]:
        """Everything that can change a feature; in a deterministic run also by its last digits."""
        text = space.startswith("text:")
        key = {
            **(self._of_family(space) if self.own is None else self._of_own(self.own, space)),
            "space": prepared(space)[0],
            "content": content,
            # Images that one limit refuses are rows of NaN, which another limit must not meet.
            **({} if text or max_pixels() == MAX_PIXELS else {"max_pixels": max_pixels()}),
        }
        return key | {"deterministic": self.runtime.fixed} if self.runtime.deterministic else key

    def _of_family(self, space: str) -> dict[str, Any]:
        """What of a family's model can change a feature."""
        card = self.adapter.card
        text = space.startswith("text:")
        return {
            "family": card.family,
            "version": families.family(card.family).version,
            "config": card.config,
            "weights": self.adapter.weights_sha256,
            "preprocess": None if text else self.preprocess(space).canonical(),
            "tokenizer": self.adapter.text_fingerprint if text else None,
            "precision": self.runtime.precision,
        }

    def _of_own(self, own: OwnAdapter, space: str) -> dict[str, Any]:
        """The same of code of the user's own: its identity, which is the user's word; without one `root` is a folder
        of this run alone."""
        width = None if prepared(space)[0] == "backbone" else own.width["text:joint"]
        return {"identity": own.identity, "stated_by": "user", "version": 1, "dim": width}


def prepared(space: str) -> tuple[str, dict[str, Any]]:
    """The space, and what `<space>@<size>` or `<space>@<size>:bilinear-no-antialias` changes of a card's preprocessing.

    >>> prepared("backbone"), prepared("backbone@256")
    (('backbone', {}), ('backbone', {'size': 256}))
    """
    base, _, way = space.partition("@")
    size, _, interpolation = way.partition(":")
    mixing = {"interpolation": interpolation, "order": "convert-first"}
    return base, ({"size": int(size)} if size else {}) | (mixing if interpolation else {})
