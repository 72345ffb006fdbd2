"""What architectures of open_clip want from the model hub, made small: language models' settings, and tokenizers.

They lie as in the hub client's cache, so that transformers finds them as it finds what was fetched.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

_COMMIT: Final = "0" * 40
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789.,'!?_-&<>"
_WORDS: Final = "a photo of cat dog A Photo OF Cat the in"
#: tokenizers by how names of repositories begin: first tokens, the frame of a text, the padding, whether case matters
_TOKENIZERS: Final = {
    "bert-": ("[PAD] [UNK] [CLS] [SEP]", "[CLS] $A [SEP]", "[PAD]", False),
    "roberta": ("<s> <pad> </s> [UNK]", "<s> $A </s>", "<pad>", True),
    "xlm-roberta": ("<s> <pad> </s> [UNK]", "<s> $A </s>", "<pad>", True),
    "facebook/xlm-v": ("<s> <pad> </s> [UNK]", "<s> $A </s>", "<pad>", True),
    "facebook/nllb": ("<s> <pad> </s> [UNK] eng_Latn", "eng_Latn $A </s>", "<pad>", True),
    "google/mt5": ("<pad> </s> [UNK]", "$A </s>", "<pad>", True),
    "timm/ViT-B-16-SigLIP": ("[UNK] </s>", "$A </s>", "</s>", True),  # its padding is its end
    "timm/": ("<pad> <eos> <bos> [UNK]", "$A <eos>", "<pad>", True),
}


def vocabulary(repository: str) -> list[str]:
    """The tokens of the stand-in for a repository's tokenizer, in order."""
    specials = _kind(repository)[0].split()
    letters = _LETTERS + _LETTERS[:26].upper()
    return list(dict.fromkeys([*specials, *_WORDS.split(), *letters, *(f"##{each}" for each in letters)]))


def _kind(repository: str) -> tuple[str, str, str, bool]:
    gemma = "SigLIP2" in repository
    names = [name for name in _TOKENIZERS if repository.startswith(name) and not (gemma and "SigLIP" in name)]
    return _TOKENIZERS[max(names, key=len)]


def language_model(repository: str) -> Any:
    """The settings of a small model of the kind of `repository`; None: it holds a tokenizer alone."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": len(vocabulary(repository)), "num_hidden_layers": 2}
    bert = sizes | {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 90,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    if repository.startswith("xlm-roberta"):
        return transformers.XLMRobertaConfig(**bert)
    if repository.startswith("roberta"):
        return transformers.RobertaConfig(**bert)
    if repository.startswith("google/mt5"):
        return transformers.MT5Config(
            vocab_size=sizes["vocab_size"], num_layers=2, d_model=32, d_kv=16, d_ff=48, num_heads=2
        )
    if repository.startswith("facebook/nllb"):
        return transformers.M2M100Config(
            vocab_size=sizes["vocab_size"],
            encoder_layers=2,
            decoder_layers=1,
            d_model=32,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_position_embeddings=90,
        )
    return None


def write(repository: str, cache: Path) -> Path:
    """The stand-in for a repository in the hub client's `cache`; returns its folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / _COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(_COMMIT)
    _, frame, padding, cased = _kind(repository)
    ids = {token: number for number, token in enumerate(vocabulary(repository))}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, ids[token]) for token in re.findall(r"\S+", frame.replace("$A", " "))]
    made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ends)
    named = {"pad_token": padding, "unk_token": "[UNK]", "eos_token": ends[-1][0], "sep_token": ends[-1][0]}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **named)  # type: ignore[no-untyped-call]
    fast.save_pretrained(snapshot)
    if (settings := language_model(repository)) is not None:
        settings.save_pretrained(snapshot)
    else:  # of a model of timm, or one that is not asked for
        (snapshot / "config.json").write_text('{"architecture": "other"}')
    return snapshot
