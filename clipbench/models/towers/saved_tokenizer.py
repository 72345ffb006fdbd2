"""The tokenizer that a model in transformers' form brings, as its processor calls it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipbench.errors import WeightsError, first_line
from clipbench.models.adapter import Lengths
from clipbench.models.towers.tokenizer import PADDING
from clipbench.models.weights.repository import Repository


class SavedTokenizer:
    """Token ids of texts, special tokens included; padding that the model does not see is -1.

    Args:
        repository: where its files lie; no others are read.
        context_length: positions of the text tower; longer texts are cut, or at what the tokenizer's own settings say.
        vocabulary: how many tokens the text tower knows.
        whole: all rows are padded to the context length, as the tokenizer pads.
    """

    def __init__(self, repository: Repository, *, context_length: int, vocabulary: int, whole: bool) -> None:
        self._whole, self._name = whole, repository.name
        self._loaded = _loaded(repository)
        self._context_length = context_length
        longest = self._loaded.model_max_length
        if not isinstance(longest, int | float) or isinstance(longest, bool) or not longest >= 1:
            raise WeightsError(
                f"{repository.name}: tokenizer_config.json has model_max_length {longest!r}, which is no length",
                hint=f"correct it, or leave it out: the text tower has {context_length} positions",
            )
        self._longest = int(min(context_length, longest))
        self._masks = "attention_mask" in self._loaded.model_input_names
        size = len(self._loaded)
        if size > vocabulary:
            raise WeightsError(
                f"{repository.name}: its tokenizer has {size:,} tokens, the text tower knows {vocabulary:,}: it is "
                "another model's",
                hint="put the tokenizer's own files beside the weights",
            )
        padding = self._loaded.pad_token_id
        if padding is None and whole:
            raise WeightsError(
                f"{repository.name}: its tokenizer has no padding token, which its texts need",
                hint="put the tokenizer's own files beside the weights",
            )
        self.padding = int(padding or 0)
        if not whole and self._loaded.padding_side != "right":
            raise WeightsError(
                f"{repository.name}: its tokenizer pads on the left, so that a text's feature would depend on the "
                "longest text beside it",
                hint="set padding_side: right in tokenizer_config.json if that is how it was trained",
            )

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64 [N, context_length]) and each row's count of those that count (int64 [N])."""
        given: dict[str, Any] = {"padding": "max_length"} if self._whole else {}
        try:
            encoded = self._loaded(list(texts), truncation=True, max_length=self._longest, **given)
        except Exception as error:  # of many kinds, all meaning: the files do not go together
            raise WeightsError(
                f"{self._name}: its tokenizer cannot read a text: {first_line(error)}",
                hint="put the tokenizer's own files beside the weights",
            ) from None
        tokens = torch.full((len(texts), self._context_length), PADDING, dtype=torch.int64)
        lengths = torch.empty(len(texts), dtype=torch.int64)
        for row, ids in enumerate(encoded["input_ids"]):
            tokens[row, : len(ids)] = torch.tensor(ids)
            lengths[row] = len(ids)
            if self._masks and self._whole:
                tokens[row, : len(ids)].masked_fill_(
                    torch.tensor(encoded["attention_mask"][row]) == 0, PADDING
                )
        return tokens, lengths

    def lengths(self, texts: Sequence[str]) -> Lengths:
        """How long the texts are before and after they are cut."""
        encoded = self._loaded(list(texts), truncation=False, verbose=False)
        return Lengths.within([len(ids) for ids in encoded["input_ids"]], self._longest)


def _loaded(repository: Repository) -> Any:
    """The tokenizer as transformers loads it.

    Raises:
        WeightsError: there is none, it is broken, it names code of its own, or a package is missing.
    """
    from transformers import AutoTokenizer

    files = repository.tokenizer
    if not files:
        raise WeightsError(
            f"{repository.name} has no tokenizer: no tokenizer.json, vocab.json and merges.txt, vocab.txt or "
            "sentencepiece model lies beside its weights",
            hint="save it there: tokenizer.save_pretrained(<folder>)",
        )
    repository.settings("tokenizer_config.json")  # which may name code of its own
    folder = files[0].parent
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except ImportError as error:
        named = re.search(r"requires the (\w+) library", str(error))
        package = named[1].lower() if named else "sentencepiece"
        raise WeightsError(
            f"{repository.name}: its tokenizer needs the package {package}, which is not installed",
            hint=f"pip install {package}" + (" protobuf" if package == "sentencepiece" else ""),
        ) from None
    except Exception as error:  # of many kinds, all meaning: no tokenizer here
        raise WeightsError(
            f"no tokenizer in {folder}: {first_line(error)}",
            hint="the folder needs the files that tokenizer.save_pretrained writes",
        ) from None
