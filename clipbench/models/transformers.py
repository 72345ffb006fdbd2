"""Family `transformers`: models in the form of the library of that name, from the model hub or a folder.

`--model hf:<owner>/<repo>[@revision]` and `--model hf:<folder>` make their card; the folder is one that
`save_pretrained` writes: config.json, weights, preprocessor_config.json, tokenizer. Which classes are known, and what
their features are, `clipbench.models.weights.architectures` says.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, NotApplicable, WeightsError
from clipbench.models.adapter import Adapter, Family, Lengths, ModelEntry
from clipbench.models.weights.architectures import Images, Joint, architecture_of, backbone_is
from clipbench.models.weights.processors import IMAGE_PROCESSOR, PROCESSOR, preprocess_of
from clipbench.models.weights.repository import SETTINGS, Repository, read_parts
from clipbench.utils.parsing import exists, expanded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipbench.models.saliency import SaliencyMethod

PREFIX: Final = "hf:"


class Config(Strict):
    """`architecture` is the class of transformers that encodes, and `config_sha256` the sha256 of the model's
    config.json, which says so too, and what its weights mean."""

    architecture: str = Field(description="the class of transformers, as CLIPModel")
    config_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the model's config.json")


def on_the_hub_or_here(spec: str) -> ModelCard:
    """The card of `hf:<owner>/<repo>[@revision]` or `hf:<folder>`; its notes say what was found there.

    Raises:
        CardError: no such name, a class that is not known, or images prepared as no card can say.
        WeightsError: the hub cannot be reached and the cache has nothing; no weights; code of the repository's own.
    """
    name = spec.removeprefix(PREFIX)
    repository = _repository(name).pinned()
    settings = repository.settings()
    if settings is None:
        raise CardError(
            f"{spec} is no model in transformers' form: it has no {SETTINGS}",
            hint=f"write {PREFIX}<owner>/<repo> or {PREFIX}<folder that save_pretrained wrote>",
        )
    architecture = architecture_of(settings, name)
    preprocess, processor = preprocess_of(repository, str(settings.get("model_type")))
    path = repository.find(SETTINGS)
    assert path is not None
    scaled = isinstance(architecture, Images) or architecture.scale is not None
    unscaled = "" if scaled else "; no factor on cosines is in its file: 1 is taken"
    weights = repository.source(repository.weights())
    repository.say_unasked()
    return ModelCard(
        title=Path(name).resolve().name if repository.folder else name,
        family="transformers",
        config={"architecture": architecture.name, "config_sha256": sha256_file(path)},
        preprocess=preprocess,
        weights=weights,
        notes=f"{architecture.name}; images are prepared as by its {processor} on Pillow{unscaled}",
    )


def _repository(name: str) -> Repository:
    path = expanded(name)
    if name.startswith((".", "/", "~")) or exists(path, folder=True):
        if not exists(path, folder=True):
            raise CardError(f"{PREFIX}{name} is no model: there is no folder {path}")
        return Repository(name, folder=path.resolve())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[^\s/@]+)?", name, re.ASCII):
        raise CardError(
            f'"{PREFIX}{name}" names no repository and no folder',
            hint=f"write {PREFIX}<owner>/<repo>, {PREFIX}<owner>/<repo>@<revision> or {PREFIX}<folder>",
        )
    return Repository(name, hub=name)


def named_files(spec: str) -> Sequence[Path] | None:
    """See `Family`: a folder's own files. What the hub has is asked for each time."""
    path = expanded(spec.removeprefix(PREFIX))
    if not exists(path, folder=True):
        return None
    return sorted(file for file in path.iterdir() if file.is_file())


def weights_file(model: ModelEntry) -> tuple[Path, str]:
    """The weights of a card, or the index of their parts, all downloaded where missing, and their sha256 (hex).

    Raises: as `Repository.parts` and `Repository.digest`.
    """
    repository, paths = _files(model)
    return paths[0], repository.digest(paths, model.card.weights, model.id)


def _files(model: ModelEntry) -> tuple[Repository, list[Path]]:
    weights = model.card.weights
    repository = Repository.of(weights, model.folder, model.id).pinned()
    return repository, repository.parts(str(weights.source[1]).rpartition("/")[2])


def load(model: ModelEntry) -> Adapter:
    """The adapter of a `family: transformers` card.

    Raises:
        CardError: a class that is not known.
        WeightsError: a file is missing, corrupt, another one than the card's, or does not fit.
    """
    from clipbench.models.towers.pretrained import build

    repository, paths = _files(model)
    settings, path = repository.settings(), repository.find(SETTINGS)
    if settings is None or path is None:
        raise WeightsError(f"{model.id}: there is no {SETTINGS} beside {paths[0]}")
    config, found = Config.model_validate(model.card.config), sha256_file(path)
    if config.config_sha256 != found:
        raise WeightsError(
            f"{path} is not the file that the card means: sha256 is {found}, the card says {config.config_sha256}",
            hint="bring the right file, or correct config.config_sha256 on the card",
        )
    architecture = architecture_of(settings, model.id)
    if architecture.name != config.architecture:
        raise CardError(
            f"{model.id}: {path} is of a {architecture.name}, the card says {config.architecture}",
            hint=f"write config.architecture: {architecture.name}",
        )
    digest = repository.digest(paths, model.card.weights, model.id)
    net, left_out, pooled = build(architecture, settings, read_parts(paths), paths[0])
    if architecture.fixed:
        _check_side(net, model, path)
    adapter: Adapter
    if isinstance(architecture, Joint):
        adapter = JointAdapter(model.card, architecture, net, repository, digest)
    else:
        adapter = ImagesAdapter(model.card, architecture, net, digest, pooled=pooled)
    named = (repository.find(file) for file in (PROCESSOR, IMAGE_PROCESSOR))
    tokenizer = repository.tokenizer if isinstance(architecture, Joint) else ()
    adapter.files = (path.parent, path, *paths, *(file for file in named if file), *tokenizer)
    adapter.left_out = left_out
    repository.say_unasked()
    return adapter


def _check_side(net: Any, model: ModelEntry, path: Path) -> None:
    """Raise WeightsError where a tower of one size has another than images have on the card."""
    side, own = getattr(net.config, "vision_config", net.config).image_size, model.card.preprocess.side
    if side not in (own, [own, own]):
        raise WeightsError(
            f"{model.id}: its tower takes images of {side} px ({path}), the card prepares them with {own} px",
            hint="correct preprocess on the card, or the processor's file beside the weights",
        )


class _TransformersAdapter(Adapter):
    def saliency_method(self, block: int | None = None) -> SaliencyMethod:
        raise NotApplicable(f"{self.card.title}: no maps are known of towers that transformers builds")


class ImagesAdapter(_TransformersAdapter):
    """A model for images alone: `backbone` is its one space."""

    def __init__(
        self, card: ModelCard, architecture: Images, net: Any, weights_sha256: str, *, pooled: bool
    ) -> None:
        self.card = card
        self.weights_sha256 = weights_sha256
        self.logit_scale = math.nan
        self.context_length = 0
        self.image_spaces, self.text_spaces = ("backbone",), ()
        self._net, self._pooled = net, pooled

    def image_tower(self, space: str) -> nn.Module:
        from clipbench.models.towers.pretrained import ImageSide

        self.require_space(space)
        return ImageSide(self._net, "pooler_output" if self._pooled else "first").eval()

    def text_tower(self, space: str = "joint") -> nn.Module:
        self.require_text(space)
        raise AssertionError

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.require_text()
        raise AssertionError


class JointAdapter(_TransformersAdapter):
    """A model of images and texts: `joint` as its class's own features, `backbone` before the projection."""

    def __init__(
        self, card: ModelCard, architecture: Joint, net: Any, repository: Repository, weights_sha256: str
    ) -> None:
        self.card = card
        self.weights_sha256 = weights_sha256
        self._architecture, self._net, self._repository = architecture, net, repository
        self.logit_scale = 1.0
        if architecture.scale is not None:
            scale = getattr(net, architecture.scale)
            self.logit_scale = (
                1 / scale.item() if architecture.scale == "temperature" else scale.exp().reshape(()).item()
            )
        self.logit_bias = None if architecture.bias is None else getattr(net, architecture.bias).item()
        self._config = net.config.text_config
        self.context_length = int(self._config.max_position_embeddings)
        if self._config.model_type in ("xlm-roberta", "roberta", "altclip_text_model"):
            self.context_length -= self._config.pad_token_id + 1  # positions count from behind the padding's

    @property
    def text_fingerprint(self) -> str:
        lines = [f"{path.name} {sha256_file(path)}\n" for path in self._repository.tokenizer]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def _tokenizer(self) -> Any:
        from clipbench.models.towers.saved_tokenizer import SavedTokenizer

        return SavedTokenizer(
            self._repository,
            context_length=self.context_length,
            vocabulary=self._config.vocab_size,
            whole=self._architecture.whole,
        )

    def image_tower(self, space: str) -> nn.Module:
        from clipbench.models.towers.pretrained import ImageSide, part

        self.require_space(space)
        side = self._architecture.image
        tower, head = part(self._net, side)
        return ImageSide(tower, side.taken, head if space == "joint" else None).eval()

    def text_tower(self, space: str = "joint") -> nn.Module:
        from clipbench.models.towers.pretrained import TextSide, part

        self.require_text(space)
        side = self._architecture.text
        tower, head = part(self._net, side)
        return TextSide(tower, side.taken, head, self._tokenizer.padding).eval()

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = self._tokenizer(texts)
        return found

    def lengths(self, texts: Sequence[str]) -> Lengths:
        found: Lengths = self._tokenizer.lengths(texts)
        return found


FAMILY: Final = Family(
    version=1,
    config=Config,
    load=load,
    weights_file=weights_file,
    backbone_is=lambda card: backbone_is(str(card.config.get("architecture"))),
    named={PREFIX: on_the_hub_or_here},
    named_files=named_files,
)
