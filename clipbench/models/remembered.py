"""What a model is, remembered from when it was loaded: where all its features are cached, no tower is needed again.

    models-1/<key>.json    what the adapter says of itself, and the files that it was made from, with their sha256
    models-1/<key>.json    the card that was made of a name (`open_clip:…`, `hf-hub:…`, a checkpoint file), and what
                           was said meanwhile, which is said again

A key is the hash of the card, of the folder that it lies in, of the family's version and of the libraries that build
towers. What is remembered holds while the files are what they were, which is told by their times, as for data
(`clipbench.data.digests`). Towers are loaded when an image or a text must be encoded, and compared with it then.

A made card's key is the hash of the name, of the files that it is made from, of those libraries, and of the code that
makes cards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipbench import cards, models
from clipbench.cards.base import fingerprint
from clipbench.cards.model import ModelCard
from clipbench.data.digests import digests
from clipbench.errors import ClipbenchError, DataError, StorageError
from clipbench.models import families
from clipbench.models.adapter import Adapter, Compared, Lengths, ModelEntry
from clipbench.utils.cache import cache_root, overheard, read_checked, say, write_checked
from clipbench.utils.package import version_of
from clipbench.utils.parsing import expanded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipbench.models.saliency import SaliencyMethod

_FOLDER: Final = "models-1"
_KIND: Final = "clipbench model 1"
_CARD: Final = "clipbench made card 1"
_BUILDERS: Final = ("open_clip_torch", "timm", "tokenizers", "torch", "torchvision", "transformers")


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What an adapter says of itself; `text_fingerprint` is None until a tokenizer has been asked."""

    weights_sha256: str
    logit_scale: float
    logit_bias: float | None
    context_length: int
    image_spaces: tuple[str, ...]
    text_spaces: tuple[str, ...]
    compared: Compared
    token_width: int | None
    left_out: tuple[str, ...]
    text_fingerprint: str | None = None

    @classmethod
    def of(cls, adapter: Adapter) -> _Facts:
        return cls(**{name: getattr(adapter, name) for name in _ASKED})


_ASKED: Final = [field.name for field in dataclasses.fields(_Facts) if field.name != "text_fingerprint"]


def load(model: ModelEntry) -> Adapter:
    """The adapter of `model`; its weights are left where they are until a tower is asked for, if they were read before.

    Raises:
        ClipbenchError: as `clipbench.models.families.load`.
    """
    if model.adapter is not None:
        return model.adapter
    family = families.family(model.card.family)
    if family.given:  # whose arrays are looked at each time
        return families.load(model)
    decisive = {
        "card": model.card.canonical(),
        "folder": str(model.folder),
        "version": family.version,
        "packages": _packages(),
    }
    place = cache_root() / _FOLDER / f"{fingerprint(decisive)}.json"
    facts = _recalled(place)
    if facts is not None:
        return _Remembered(model, place, facts)
    adapter = families.load(model)
    if adapter.files is None:
        return adapter
    found = _Remembered(model, place, _Facts.of(adapter), adapter)
    found.keep()
    return found


def named(name: str) -> ModelEntry | None:
    """The model of a name that begins as one family's names do (`open_clip:RN50@openai`); None for other names.

    Raises:
        ClipbenchError: as the family's `named`.
    """
    found = families.naming(name)
    if found is None:
        return None
    family, make = found

    def made() -> ModelEntry:
        card = make(name)
        return ModelEntry(name, card, Path.cwd(), detected=card.notes is not None)

    return _entry(name, lambda: family.named_files(name), made)


def saved(name: str) -> ModelEntry:
    """The model of `--model <folder>` that holds a model as transformers saves it. Raises as its family."""
    entry = named(f"hf:{name}")
    assert entry is not None
    return dataclasses.replace(entry, id=name)


def detected(name: str) -> ModelEntry:
    """The model of `--model <checkpoint file>`. Raises as `clipbench.models.families.detected`."""
    return _entry(name, lambda: (expanded(name),), lambda: families.detected(name))


def _entry(
    name: str, files: Callable[[], Sequence[Path] | None], make: Callable[[], ModelEntry]
) -> ModelEntry:
    """What `make` makes, or made before of the same `files`."""
    before = _place_of_card(name, files())
    data = None if before is None else read_checked(before, _CARD)
    if data is not None:
        held: dict[str, Any] = json.loads(data)
        for text in held["said"]:
            say(text)
        card = ModelCard.model_validate(held["card"])
        return ModelEntry(name, card, Path(held["folder"]), detected=held["detected"])
    with overheard() as said:
        entry = make()
    place = _place_of_card(name, files())  # which may have come from the network, or changed, meanwhile
    if place is not None and before in (None, place):
        held = {"card": entry.card.canonical(), "folder": str(entry.folder)}
        held |= {"detected": entry.detected, "said": said}
        with contextlib.suppress(StorageError):
            write_checked(place, json.dumps(held).encode(), _CARD)
    return entry


def _place_of_card(name: str, files: Sequence[Path] | None) -> Path | None:
    """Where the card of `name` is kept that is made from `files`; None where these are not known, or cannot be read."""
    if files is None:
        return None
    try:
        decisive = {
            "name": name,
            "folder": str(Path.cwd()),
            "files": _hashed([*(path.resolve() for path in files), *_code()]),
            "packages": _packages(),
        }
    except (OSError, DataError, StorageError):
        return None
    return cache_root() / _FOLDER / f"{fingerprint(decisive)}.json"


def _code() -> Iterator[Path]:
    """The modules that make cards: families, also those of plugins, what they read checkpoints with, and cards."""
    for folder in (*cards.__path__, *models.__path__):
        yield from sorted(Path(folder).rglob("*.py"))
    for name in families.families():
        if (file := families.module(name).__file__) is not None:
            yield Path(file)


def _packages() -> dict[str, str | None]:
    return {name: version_of(name) for name in _BUILDERS}


class _Remembered(Adapter):
    """An adapter that says what is remembered of it, and loads its towers when one is asked for."""

    def __init__(self, model: ModelEntry, place: Path, facts: _Facts, loaded: Adapter | None = None) -> None:
        self.card = model.card
        for name in _ASKED:
            setattr(self, name, getattr(facts, name))
        self._model, self._place, self._facts = model, place, facts
        if loaded is not None:
            self._loaded = loaded

    @cached_property
    def _loaded(self) -> Adapter:
        """The adapter itself.

        Raises:
            ClipbenchError: it is another one than is remembered.
        """
        adapter = families.load(self._model)
        if repr(_Facts.of(adapter)) != repr(dataclasses.replace(self._facts, text_fingerprint=None)):
            with contextlib.suppress(OSError):
                self._place.unlink()
            raise ClipbenchError(
                f"{self._model.id} is not what was remembered of it in {self._place}, which is forgotten",
                hint="run the same command again",
            )
        return adapter

    @property
    def text_fingerprint(self) -> str:
        if self._facts.text_fingerprint is None:
            self._facts = dataclasses.replace(self._facts, text_fingerprint=self._loaded.text_fingerprint)
            self.keep()
        return str(self._facts.text_fingerprint)

    def keep(self) -> None:
        """Write down what is known, and the files that it was made from; where nothing can be written, nothing is."""
        paths = self._loaded.files or ()
        with contextlib.suppress(StorageError, DataError):
            held = {"facts": dataclasses.asdict(self._facts), "files": _hashed(paths)}
            write_checked(self._place, json.dumps(held).encode(), _KIND)

    def image_tower(self, space: str) -> nn.Module:
        return self._loaded.image_tower(space)

    def text_tower(self, space: str = "joint") -> nn.Module:
        return self._loaded.text_tower(space)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return self._loaded.tokenize(texts)

    def lengths(self, texts: Sequence[str]) -> Lengths | None:
        return self._loaded.lengths(texts)

    def headed(self, space: str) -> tuple[Adapter, nn.Module] | None:
        return self._loaded.headed(space)

    def saliency_method(self, block: int | None = None) -> SaliencyMethod:
        return self._loaded.saliency_method(block)


def _recalled(place: Path) -> _Facts | None:
    """What is remembered at `place`, if the files that it came from are what they were."""
    data = read_checked(place, _KIND)
    if data is None:
        return None
    held: dict[str, Any] = json.loads(data)
    paths = [Path(path) for path in held["files"]]
    try:
        if held["files"] != _hashed(paths):
            return None
    except DataError:  # one is gone
        return None
    facts: dict[str, Any] = held["facts"]
    if not facts.keys() >= set(_ASKED):  # of an older version, which asked for less
        return None
    tuples = {name: tuple(facts.get(name, ())) for name in ("image_spaces", "text_spaces", "left_out")}
    return _Facts(**facts | tuples)


def _hashed(paths: Sequence[Path]) -> dict[str, str | list[str]]:
    """Path → sha256 of a file; of a folder the names in it, whose files stand beside it."""
    files = [path for path in paths if not path.is_dir()]
    hashed = digests(Path(files[0].anchor), files).files if files else []
    found: dict[str, str | list[str]] = {
        str(path): digest for path, (_, digest) in zip(files, hashed, strict=True)
    }
    return found | {
        str(path): sorted(entry.name for entry in path.iterdir()) for path in paths if path.is_dir()
    }
