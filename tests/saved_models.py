"""Tiny models as transformers saves them, random weights and all, with image processors and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "big",
    "small",
    "dog",
    "cat",
    "cow",
    "hen",
    "pig",
    "red",
    "blue",
    "on",
    "grass",
]
SIDE = 32
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}
_EFFICIENTNET = {
    "image_size": SIDE,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 6],
    "depthwise_padding": [],
    "hidden_dim": 40,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
}
JOINT = (
    "CLIPModel",
    "MetaClip2Model",
    "SiglipModel",
    "ChineseCLIPModel",
    "AltCLIPModel",
    "AlignModel",
    "BlipForImageTextRetrieval",
)


def save(name: str, folder: Path, *, seed: int = 0, **processor: Any) -> Path:
    """The class `name` of images and texts, tiny, in `folder`, which is returned; `processor`: settings of images."""
    tokenizer, vocabulary = _TOKENIZERS[name]()
    torch.manual_seed(seed)
    model = getattr(transformers, name)(_config(name, vocabulary, tokenizer)).eval()
    _noise(model)
    model.save_pretrained(folder)
    kind, settings = _PROCESSORS[name]
    images = getattr(transformers, kind + "Pil")(**settings | processor)
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _noise(model: Any) -> None:
    """Weights that tell: those of an initialisation are near 0, or all the same."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name == "temperature":
                parameter.fill_(0.25)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.normal_()


def _config(name: str, vocabulary: int, tokenizer: Any) -> Any:
    text: dict[str, Any] = _TEXT | {"vocab_size": vocabulary}
    ids = {"pad_token_id": tokenizer.pad_token_id}
    both: dict[str, Any] = {"projection_dim": 16}
    if name in ("CLIPModel", "MetaClip2Model"):
        text |= ids | {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        kind = transformers.CLIPConfig if name == "CLIPModel" else transformers.MetaClip2Config
        return kind(text_config=text, vision_config=_VISION, **both)
    if name == "SiglipModel":
        vision = _VISION | {"hidden_size": 24}
        return transformers.SiglipConfig(
            text_config=text | ids | {"projection_size": 24}, vision_config=vision
        )
    if name == "ChineseCLIPModel":
        return transformers.ChineseCLIPConfig(text_config=text | ids, vision_config=_VISION, **both)
    if name == "AltCLIPModel":
        text |= ids | {"project_dim": 20, "max_position_embeddings": 22}
        return transformers.AltCLIPConfig(text_config=text, vision_config=_VISION, **both)
    if name == "AlignModel":
        text |= ids | {"max_position_embeddings": 80}
        return transformers.AlignConfig(text_config=text, vision_config=_EFFICIENTNET, projection_dim=40)
    text |= ids | {"encoder_hidden_size": 32, "bos_token_id": tokenizer.cls_token_id, "sep_token_id": 3}
    return transformers.BlipConfig(text_config=text, vision_config=_VISION, image_text_hidden_size=16, **both)


# ------------------------------------------------------------------ tokenizers


def _clip_tokenizer() -> tuple[Any, int]:
    """CLIP's byte-level pieces without a merge but those of two words."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{c}</w>" for c in letters)]
    merges = [("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>")]
    tokens += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs: Any = merges
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=20), len(vocabulary)


def _wordpiece() -> tuple[Any, int]:
    from transformers import BertTokenizer

    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *"abcdefgh",
        *(f"##{c}" for c in "abcdefgh"),
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return BertTokenizer(vocab=vocabulary, model_max_length=512), len(vocabulary)


def _unigram(start: bool) -> tuple[Any, int]:
    """Pieces as of sentencepiece; `start`: with the tokens of XLM-R around a text."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in specials]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(c, -6.0) for c in "▁abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    around = "<s> $A </s>" if start else "$A </s>"
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(token, i) for i, token in enumerate(specials)]
    )
    names = ["input_ids", "attention_mask"] if start else ["input_ids"]
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>" if start else "</s>",
        model_max_length=20,
        model_input_names=names,
    )
    return tokenizer, len(pieces)


_TOKENIZERS = {
    "CLIPModel": _clip_tokenizer,
    "MetaClip2Model": lambda: _unigram(start=True),
    "SiglipModel": lambda: _unigram(start=False),
    "ChineseCLIPModel": _wordpiece,
    "AltCLIPModel": lambda: _unigram(start=True),
    "AlignModel": _wordpiece,
    "BlipForImageTextRetrieval": _wordpiece,
}
_CROPPED: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_SQUARE: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}
_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIPModel": ("CLIPImageProcessor", _CROPPED),
    "MetaClip2Model": ("CLIPImageProcessor", _CROPPED),
    "SiglipModel": ("SiglipImageProcessor", _SQUARE),
    "ChineseCLIPModel": ("ChineseCLIPImageProcessor", _CROPPED),
    "AltCLIPModel": ("CLIPImageProcessor", _CROPPED),
    "AlignModel": (
        "EfficientNetImageProcessor",
        {
            "size": {"height": 40, "width": 40},
            "crop_size": {"height": SIDE + 1, "width": SIDE + 1},
            "do_center_crop": True,
            "resample": 2,
            "rescale_factor": 1 / 127.5,
            "rescale_offset": True,
            "do_normalize": False,
            "include_top": False,
        },
    ),
    "BlipForImageTextRetrieval": ("BlipImageProcessor", _SQUARE),
}


def changed(folder: Path, file: str, **settings: Any) -> Path:
    """`folder`, with other settings in one of its JSON files (None: none)."""
    path = folder / file
    held = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))
    return folder


# ----------------------------------------------------------------- images alone

_WIDTHS: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "image_size": SIDE}
_SWIN: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
}
#: model type → the class of settings, them, and the processor with its settings
IMAGES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Config", _VISION | {"image_size": 48}, "BitImageProcessor", _CROPPED),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        _VISION | {"image_size": 48, "num_register_tokens": 2},
        "BitImageProcessor",
        _CROPPED,
    ),
    "vit": ("ViTConfig", _VISION, "ViTImageProcessor", _SQUARE),
    "deit": (
        "DeiTConfig",
        _VISION,
        "DeiTImageProcessor",
        {"size": {"height": 37, "width": 37}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
    "beit": ("BeitConfig", _VISION | {"use_mean_pooling": True}, "BeitImageProcessor", _SQUARE),
    "swin": ("SwinConfig", _SWIN | {"window_size": 4}, "ViTImageProcessor", _SQUARE),
    "swinv2": ("Swinv2Config", _SWIN | {"window_size": 4}, "ViTImageProcessor", _SQUARE),
    "convnext": ("ConvNextConfig", _WIDTHS, "ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}}),
    "convnextv2": ("ConvNextV2Config", _WIDTHS, "ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}}),
    "resnet": (
        "ResNetConfig",
        {"hidden_sizes": [8, 12], "depths": [1, 2], "embedding_size": 8},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIDE}},
    ),
    "clip_vision_model": ("CLIPVisionConfig", _VISION, "CLIPImageProcessor", _CROPPED),
    "siglip_vision_model": ("SiglipVisionConfig", _VISION, "SiglipImageProcessor", _SQUARE),
}


def save_images(kind: str, folder: Path, name: str | None = None) -> Path:
    """A model of images of the model type `kind`, tiny, in `folder`, which is returned; `name`: another class of it."""
    settings, values, processor, how = IMAGES[kind]
    config = getattr(transformers, settings)(**values)
    torch.manual_seed(0)
    model: Any = getattr(transformers, name) if name else transformers.AutoModel
    model = (model._from_config if name else model.from_config)(config).eval()
    _noise(model)
    model.save_pretrained(folder)
    getattr(transformers, processor + "Pil")(**how).save_pretrained(folder)
    return folder
