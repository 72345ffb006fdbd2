"""Text towers: over bytes, over word n-grams, and the encoders that transformers builds."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.data.caption_cleaning import clean_caption
from clipbench.models.adapter import Lengths
from clipbench.models.towers.base import LibraryTower, Masking, TextTower, TokenTower
from clipbench.models.towers.configs import BertConfig, BytesConfig, NgramsConfig
from clipbench.models.towers.tokenizer import PADDING, Tokenizer
from clipbench.models.weights import key_maps

# Token ids of the byte tokenizer: three special tokens, then the 256 bytes.
_PAD, _START, _END, _FIRST_BYTE = 0, 1, 2, 3
# The byte 255 is in no UTF-8 text, so it can stand for a masked one.
_MASKED = _FIRST_BYTE + 255


class ByteTransformer(TokenTower):
    """Pre-norm transformer over UTF-8 bytes, with learned positions, mean-pooled over the real tokens.

    Padding is masked everywhere, so a batch cut at its longest real token gives the same features.
    """

    def __init__(self, config: BytesConfig) -> None:
        super().__init__()
        self.features = config.width
        self.context_length = config.context_length
        self.vocabulary = _FIRST_BYTE + 256
        self.bytes = nn.Embedding(self.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        # As large as the layers' normalised inputs: from small ones, long texts take long to be told apart.
        nn.init.normal_(self.bytes.weight, std=1.0)
        nn.init.normal_(self.positions, std=0.3)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextTower`, zero-padded. A text that is too long loses its last bytes, never the end token."""
        data = [text.encode("utf-8")[: self.context_length - 2] for text in texts]
        return _padded([[_START, *(b + _FIRST_BYTE for b in own), _END] for own in data], self.context_length)

    def lengths(self, texts: Sequence[str]) -> Lengths:
        return Lengths.within([len(text.encode()) + 2 for text in texts], self.context_length)

    def masking(self) -> Masking:
        return Masking(token=_MASKED, first=_FIRST_BYTE, count=256, special=(_PAD, _START, _END))

    def real(self, tokens: Tensor) -> Tensor:
        return tokens != _PAD

    def states(self, tokens: Tensor) -> Tensor:
        real = self.real(tokens)
        hidden = self.bytes(tokens) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, real)
        states: Tensor = self.norm(hidden)
        return states

    def pool(self, states: Tensor, tokens: Tensor) -> Tensor:
        """See `TokenTower`: the mean over real tokens."""
        return _mean_of_real(states, self.real(tokens))


class NgramBag(TextTower):
    """The mean of the vectors of hashed word n-grams, normalised: it learns in a few steps."""

    def __init__(self, config: NgramsConfig) -> None:
        super().__init__()
        self.features = config.width
        self.context_length = config.context_length
        self._longest, self._buckets = config.longest, config.buckets
        self.ngrams = nn.Embedding(1 + config.buckets, config.width)
        self.norm = nn.LayerNorm(config.width)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids of n-grams (int64 [N, context_length], zero-padded) and each row's count of them (int64 [N]).

        Words are lower-cased, and punctuation marks are words; a text without any has one, empty, n-gram.
        """
        return _padded([self._ids(text)[: self.context_length] for text in texts], self.context_length)

    def lengths(self, texts: Sequence[str]) -> Lengths:
        return Lengths.within([len(self._ids(text)) for text in texts], self.context_length)

    def _ids(self, text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text.lower()) or [""]
        grams = [
            " ".join(words[start : start + length])
            for length in range(1, self._longest + 1)
            for start in range(len(words) - length + 1)
        ]
        return [1 + zlib.crc32(gram.encode("utf-8")) % self._buckets for gram in grams]

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] (L at most `context_length`, zero-padded) to float [B, width]."""
        found: Tensor = self.norm(_mean_of_real(self.ngrams(tokens), tokens != _PAD))
        return found


def _padded(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as int64 [N, length], zero-padded, and how long each is, int64 [N]."""
    tokens = torch.full((len(rows), length), _PAD, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens, torch.tensor([len(ids) for ids in rows])


def _mean_of_real(hidden: Tensor, real: Tensor) -> Tensor:
    """Mean of hidden [B, L, width] over the tokens that are real [B, L]: [B, width]."""
    weight = real.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


class _Layer(nn.Module):
    """One pre-norm transformer layer: masked self-attention, then a 4× wide MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor, real: Tensor) -> Tensor:
        """hidden float [B, L, width], real bool [B, L] (False: padding)."""
        batch, length, width = hidden.shape
        projected = self.queries_keys_values(self.attention_norm(hidden))
        queries, keys, values = projected.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=real[:, None, None, :])
        hidden = hidden + self.attention_output(mixed.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = hidden + self.mlp(hidden)
        return out


class Bert(TokenTower, LibraryTower):
    """A BERT, RoBERTa or MPNet encoder of transformers, pooled.

    Which tokens are real follows from the rows' lengths, never from an id: a text may hold a literal "[PAD]", and
    CLIP-Lite's own code attends to MPNet's padding. So a batch cut at its longest text gives the same features.
    """

    #: what files of these architectures hold beside the encoder: heads for language modelling, and a buffer of
    #: old versions
    _EXTRA = ("cls.", "lm_head.", "embeddings.position_ids")

    def __init__(self, config: BertConfig, folder: Path) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        self.features = config.width
        self.context_length = config.context_length
        self.vocabulary, self.padding = config.vocabulary, PADDING
        self._architecture, self._pool, self._clean = config.architecture, config.pool, config.clean
        self._tokenizer = Tokenizer(
            config.tokenizer, folder, context_length=config.context_length, vocabulary=config.vocabulary
        )
        settings = AutoConfig.for_model(
            config.architecture,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.feedforward,
            vocab_size=config.vocabulary,
            max_position_embeddings=config.positions,
            type_vocab_size=config.token_types,
            layer_norm_eps=config.layer_norm_eps,
        )
        build: Any = AutoModel.from_config
        self.net = build(settings, add_pooling_layer=config.pool == "pooler")
        # No file holds these buffers, so they are made here even where the rest stands on the meta device.
        embeddings = self.net.embeddings
        embeddings.position_ids = torch.arange(config.positions, device="cpu").expand(1, -1)
        if hasattr(embeddings, "token_type_ids"):
            embeddings.token_type_ids = torch.zeros(1, config.positions, dtype=torch.int64, device="cpu")
        self._pad_token = int(settings.pad_token_id)

    @property
    def fingerprint(self) -> str:
        return self._tokenizer.fingerprint

    @property
    def files(self) -> tuple[Path, ...] | None:
        return self._tokenizer.files

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextTower`, padded with -1. A text that is too long loses its last tokens, never the end token."""
        return self._tokenizer([clean_caption(text) for text in texts] if self._clean else texts)

    def lengths(self, texts: Sequence[str]) -> Lengths:
        """See `TextTower`; the cleaner of captions cuts them too, at a number of words."""
        if not self._clean:
            return self._tokenizer.lengths(texts)
        whole = self._tokenizer.lengths([clean_caption(text, max_words=len(text)) for text in texts])
        return Lengths(whole.whole, self._tokenizer.lengths([clean_caption(text) for text in texts]).read)

    def masking(self) -> Masking:
        token, special = self._tokenizer.mask, self._tokenizer.special
        return Masking(token=token, first=0, count=self.vocabulary, special=special)

    def real(self, tokens: Tensor) -> Tensor:
        return tokens >= 0

    def states(self, tokens: Tensor) -> Tensor:
        real = self.real(tokens)
        ids = tokens.where(real, self._pad_token)
        states: Tensor = self.net(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return states

    def pool(self, states: Tensor, tokens: Tensor) -> Tensor:
        if self._pool == "pooler":
            pooled: Tensor = self.net.pooler(states)
            return pooled
        return states[:, 0] if self._pool == "cls" else _mean_of_real(states, self.real(tokens))

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LibraryTower`: without heads, and without the pooler unless it is what pools."""
        dropped = self._EXTRA if self._pool == "pooler" else (*self._EXTRA, "pooler.")
        renamed = key_maps.bert(state, self._architecture)
        return {name: tensor for name, tensor in renamed.items() if not name.startswith(dropped)}
