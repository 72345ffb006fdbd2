"""One architecture through open_clip and through clipbench, by name and file, as whoever has a checkpoint does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

import clipbench
from clipbench.api import Model
from clipbench.catalog import Catalog
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, NotApplicable
from clipbench.models.weights.library import complete_library
from zoo import reduced

#: what a value of a unit row may differ by, and of a preprocessed image
CLOSE: Final = 1e-5
TEXTS: Final = (
    "a photo of a cat",
    "A Photo, of_the DOG!  (in the snow)",
    "caf\u00e9 &amp; cr\u00e8me \u2013 &lt;b&gt;",
    "dog",
    "",
    "a cat in the photo of the dog, " * 20,
)
#: how many of them are short, so that a batch of them alone is cut
SHORT: Final = 5


def pictures() -> list[Image.Image]:
    """Images of odd shapes and modes: tall, wide, tiny, with a palette, with alpha, grey."""
    rng = np.random.default_rng(0)

    def noise(width: int, height: int) -> Image.Image:
        rough = Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
        return rough.resize((width, height), Image.Resampling.BICUBIC)

    clear = noise(301, 299).convert("RGBA")
    clear.putalpha(noise(301, 299).convert("L"))
    return [
        noise(231, 517),
        noise(640, 333),
        noise(19, 11),
        noise(260, 257).quantize(32),
        clear,
        noise(224, 224).convert("L"),
    ]


@dataclass(frozen=True)
class Compared:
    """What was found of one architecture; differences are the largest of any value.

    `texts` are all of them together, `alone` the short ones, also as they are `encoded` in an evaluation. `apart` is
    the least of what unit rows of different images, or of different texts, differ: 0 would prove nothing.
    """

    apart: float
    pixels: float
    images: float
    texts: float
    alone: float
    encoded: float
    tokens_equal: bool
    scale: tuple[float, float]
    bias: tuple[float | None, float | None]
    heat: str

    @property
    def largest(self) -> float:
        """The largest difference of features and of preprocessed images."""
        return max(self.pixels, self.images, self.texts, self.alone, self.encoded)

    def problem(self) -> str | None:
        """What is not open_clip's; None: nothing."""
        for name in ("pixels", "images", "texts", "alone", "encoded"):
            if not getattr(self, name) < CLOSE:
                return f"{name} differ by {getattr(self, name):.2g}"
        if not self.tokens_equal:
            return "tokens differ"
        if self.bias[0] != self.bias[1] or abs(self.scale[0] - self.scale[1]) > 1e-4:
            return f"scale and bias are {self.scale}, {self.bias}"
        return None if self.apart > 100 * CLOSE else "all images or all texts have the same features"


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two arrays of one shape; NaN where one is not finite."""
    first, second = torch.as_tensor(np.asarray(ours)), torch.as_tensor(np.asarray(theirs))
    assert first.shape == second.shape, (first.shape, second.shape)
    return float((first - second).abs().max())


def named(arch: str, path: Path) -> tuple[str, str | None]:
    """What `--model` gets for the file of an architecture, and the pretrained tag whose preprocessing that takes.

    Where open_clip's tags disagree, or there is none, it is the card that clipbench's error tells to write.
    """
    tags = complete_library().list_pretrained_tags_by_model(arch)
    try:
        Catalog().model(f"open_clip:{arch}@{path}")
    except CardError as error:
        text = (error.hint or "").partition("\n")[2]
        card = path.with_suffix(".yaml")
        card.write_text(text)
        found = re.search(r"# as of ([^\s,]+)", text)
        return str(card), found[1] if found else None
    return f"open_clip:{arch}@{path}", tags[0]


def compare(arch: str, folder: Path) -> Compared:
    """`arch`, made small, in open_clip and in clipbench; files go below `folder`.

    Raises:
        ClipbenchError: clipbench cannot load it.
    """
    with reduced.shrunk(arch, folder), torch.no_grad():
        library = complete_library()
        model, path = reduced.random(arch), folder / "weights.pt"
        torch.save(model.state_dict(), path)
        name, tag = named(arch, path)
        described = library.get_pretrained_cfg(arch, tag) if tag else {}
        settings = library.transform.merge_preprocess_dict(library.transform.PreprocessCfg(), described)
        settings["size"] = model.visual.image_size
        prepare = library.transform.image_transform_v2(
            library.transform.PreprocessCfg(**settings), is_train=False
        )
        ours, images = clipbench.load_model(name, device="cpu", precision="fp32"), pictures()
        theirs = torch.stack([prepare(image) for image in images])
        ids = library.get_tokenizer(arch)(list(TEXTS))
        texts = F.normalize(model.encode_text(ids), dim=-1)
        rows = F.normalize(model.encode_image(theirs), dim=-1)
        return Compared(
            apart=min(float(torch.pdist(each).min()) for each in (rows, texts)),
            pixels=difference(torch.stack([ours.preprocess(image) for image in images]), theirs),
            images=difference(ours.encode_images(images), rows),
            texts=difference(ours.encode_texts(TEXTS), texts),
            alone=difference(ours.encode_texts(TEXTS[:SHORT]), texts[:SHORT]),
            encoded=difference(_by_the_encoder(name, folder), texts[:SHORT]),
            tokens_equal=torch.equal(ours.adapter.tokenize(TEXTS)[0], ids),
            scale=(ours.logit_scale, float(model.logit_scale.exp())),
            bias=(ours.logit_bias, None if model.logit_bias is None else float(model.logit_bias)),
            heat=heat_maps(ours),
        )


def _by_the_encoder(name: str, folder: Path) -> Any:
    """Short texts' features as an evaluation has them: sorted by length, each batch cut at its longest text."""
    runtime = Runtime.choose("cpu", "fp32")
    encoder = ModelEncoder(Catalog().model(name), runtime, progress=False, root=folder / "features")
    return encoder.texts(list(TEXTS[:SHORT]))


def heat_maps(model: Model) -> str:
    """What heat maps of this model are, or why there are none."""
    try:
        return model.adapter.saliency_method().described
    except NotApplicable as error:
        return (
            f"no: {error.message.removeprefix(f'{model.card.title}: ').removeprefix('no heat maps, since ')}"
        )
