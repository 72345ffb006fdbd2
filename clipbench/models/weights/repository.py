"""A model as the library transformers saves it: a folder, here or on the model hub, with its settings and weights.

Nothing of it is run, and what would need code of its own is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipbench.cards.model import Weights
from clipbench.errors import CardError, WeightsError
from clipbench.models.weights.fetch import Unasked, find_if_there
from clipbench.models.weights.reading import read_state_dict
from clipbench.models.weights.resolve import pin, verify
from clipbench.utils.cache import recall, remember, say
from clipbench.utils.parsing import Unreadable, expanded, file_bytes, json_value

if TYPE_CHECKING:
    from clipbench.models.weights.reading import State

SETTINGS: Final = "config.json"
#: of the weights, in the order in which they are looked for: the safe form first, whole before in parts
_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX: Final = ".index.json"
#: of tokenizers
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
#: of these, what holds a vocabulary; merges.txt goes with vocab.json
_VOCABULARIES: Final = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_MOST_JSON: Final = 64 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A folder that `save_pretrained` wrote (`folder`), or a repository of the hub (`hub`: `owner/repo[@revision]`).

    `name` is the model's, for messages.
    """

    name: str
    folder: Path | None = None
    hub: str | None = None
    _unasked: dict[str, None] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, weights: Weights, folder: Path, name: str) -> Repository:
        """Where the file lies that a card names; relative paths start from `folder`.

        Raises:
            CardError: a source that has no files beside it.
        """
        kind, value = weights.source
        if kind == "file":
            return cls(name, folder=(folder / expanded(value)).resolve().parent)
        if kind == "hf" and value.count("/") == 2:
            return cls(name, hub=value.rpartition("/")[0])
        raise CardError(
            f"{name}: weights.{kind} says not where config.json and the tokenizer lie",
            hint="write weights: {file: <folder>/model.safetensors} or {hf: <owner>/<repo>/model.safetensors}",
        )

    def source(self, file: str) -> Weights:
        """`file` of it, as a card names it."""
        return (
            Weights(hf=f"{self.hub}/{file}") if self.hub else Weights(file=str(self._folder.resolve() / file))
        )

    @property
    def _folder(self) -> Path:
        assert self.folder is not None
        return self.folder

    def pinned(self) -> Repository:
        """The repository at the commit that it has now, or had at first use, so that all its files belong together."""
        path = self.find(SETTINGS)
        if self.hub and path is not None and _COMMIT.fullmatch(path.parent.name):
            return Repository(self.name, hub=f"{self.hub.partition('@')[0]}@{path.parent.name}")
        return self

    def find(self, file: str) -> Path | None:
        """`file`, downloaded where it is missing; None where there is none.

        Without the hub, a pinned repository is what the cache has of it (see `say_unasked`).

        Raises:
            WeightsError: the hub cannot be reached, or has no such repository.
        """
        if self.hub:
            try:
                return find_if_there(self.source(file), self.name)
            except Unasked:
                if not _COMMIT.fullmatch(self.hub.partition("@")[2]):
                    raise
                self._unasked[file] = None
                return None
        path = self._folder / file
        return path if path.is_file() else None

    def settings(self, file: str = SETTINGS) -> dict[str, Any] | None:
        """What a JSON file of it holds; None where there is none.

        Raises:
            WeightsError: it is no JSON object, or names code of the repository's own.
        """
        path = self.find(file)
        if path is None:
            return None
        try:
            found = json_value(file_bytes(path, _MOST_JSON))
        except (Unreadable, ValueError) as error:
            raise WeightsError(f"{self.name}: {path} cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise WeightsError(
                f"{self.name}: {path} holds a {type(found).__name__}, where settings are expected"
            )
        if code := found.get("auto_map"):
            named = next(iter(code.values()), code) if isinstance(code, dict) else code
            raise WeightsError(
                f"{self.name}: {file} names code of its own, which is never run (auto_map: {named})",
                hint="choose a repository whose model transformers itself has, or write a model family "
                "(docs/architecture.md, Adding something)",
            )
        return found

    def say_unasked(self) -> None:
        """Say on stderr for which files the hub could not be asked, which are taken for not being there."""
        if self._unasked:
            say(f"{self.name}: without the hub, taken for not being there: {', '.join(self._unasked)}")
            self._unasked.clear()

    # -- weights

    def weights(self) -> str:
        """The name of its weights file, or of the index of several.

        Raises:
            WeightsError: it has none.
        """
        for file in _WEIGHTS:
            if self.find(file) is not None:
                return file
        raise WeightsError(
            f"{self.name} has no weights that are read: none of {', '.join(_WEIGHTS)}",
            hint="save them with save_pretrained",
        )

    def parts(self, file: str) -> list[Path]:
        """The files of the weights `file`, which may be an index of several; it comes first.

        Raises:
            WeightsError: one is missing, or the index is none.
        """
        path = self.find(file)
        if path is None:
            raise WeightsError(f"{self.name}: there is no {file}", hint="correct weights on the card")
        if not file.endswith(_INDEX):
            return [path]
        mapped = (self.settings(file) or {}).get("weight_map")
        if not isinstance(mapped, dict) or not mapped:
            raise WeightsError(f"{self.name}: {path} is no index of weights: it has no weight_map")
        parts = [path]
        for name in sorted(set(map(str, mapped.values()))):
            part = self.find(name) if re.fullmatch(r"[\w.-]+", name) else None
            if part is None:
                raise WeightsError(
                    f"{self.name}: there is no {name}, which {file} names",
                    hint="bring all parts of the weights",
                )
            parts.append(part)
        return parts

    def digest(self, paths: list[Path], weights: Weights, owner: str) -> str:
        """sha256 (hex) of the weights: of their file, or of the names and hashes of several; checked as `resolve` does.

        Raises:
            WeightsError: they are not the card's, or cannot be read.
            ClipbenchError: they are not those of their first use.
        """
        if len(paths) == 1:
            digest = verify(paths[0], weights.sha256, kept=self.hub is not None)
        else:
            lines = [f"{path.name} {verify(path, None, kept=self.hub is not None)}\n" for path in paths]
            digest = hashlib.sha256("".join(lines).encode()).hexdigest()
            if weights.sha256 is not None and not digest.startswith(weights.sha256):
                raise WeightsError(
                    f"{paths[0]} and its parts are not the files that the card means: their sha256 is {digest}, the "
                    f"card says {weights.sha256}",
                    hint="delete the files and fetch them again, or correct the card",
                )
        if self.hub and weights.sha256 is None:
            name = f"hf:{weights.hf}"
            if len(paths) == 1:
                pin(name, paths[0], digest, owner)
            else:
                if recall("weights", name) is None:
                    read_parts(paths)
                remember("weights", name, digest, what="sha256 of the weights")
        return digest

    # -- tokenizer

    @cached_property
    def tokenizer(self) -> tuple[Path, ...]:
        """The files of its tokenizer; none where it has no vocabulary."""
        there = {file: path for file in _TOKENIZER if (path := self.find(file)) is not None}
        return tuple(there.values()) if there.keys() & set(_VOCABULARIES) else ()


def read_parts(paths: Iterable[Path]) -> State:
    """The tensors of one weights file, or of the parts that its index names.

    Raises:
        WeightsError: as `read_state_dict`; or two parts hold one tensor.
    """
    state: State = {}
    for path in _without_index(paths):
        part = read_state_dict(path)
        if twice := state.keys() & part.keys():
            raise WeightsError(f"{path} holds {min(twice)}, which another part of the weights holds too")
        state |= part
    return state


def _without_index(paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in paths if not path.name.endswith(_INDEX))
