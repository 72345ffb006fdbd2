"""What a program imports: models to encode with, and what the commands eval, compare and gate do, as functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from clipbench.cards.model import ModelCard
from clipbench.catalog import Catalog
from clipbench.data.decode import (
    BAD_IMAGE,
    IMAGE_FORMATS,
    cannot,
    normalise,
    open_image,
    pixels,
)
from clipbench.encoding.batches import unit
from clipbench.encoding.runtime import Runtime, Tower
from clipbench.errors import CardError, DataError
from clipbench.metrics.similarity import similarity
from clipbench.models import families
from clipbench.models.adapter import Adapter
from clipbench.models.own import OwnAdapter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

#: an image as `Model.preprocess` takes it: opened, the path of a file, or uint8 [height, width] or [height, width, 3]
ImageLike: TypeAlias = "Image.Image | str | Path | NDArray[np.uint8]"

Item = TypeVar("Item")
_BATCH = 64


def load_model(
    name: str | Path, *, cards: Sequence[Path] = (), device: str = "auto", precision: str = "auto"
) -> Model:
    """The model `name`, ready to encode: any name that `clipbench eval --model` takes.

    Args:
        name: a model id, run folder, checkpoint file, `open_clip:<arch>@<tag or path>`,
            `hf-hub:<owner>/<repo>`, `local-dir:<folder>`, or `hf:<owner>/<repo>` or a folder of transformers' form.
        cards: folders of your own cards.
        device: auto, cpu, cuda or cuda:N.
        precision: of encoding: auto, fp32, bf16 or fp16. Features are float32 all the same.

    Raises:
        ClipbenchError: unknown name, or weights that are missing, corrupt, or do not fit.
    """
    if not isinstance(name, str | Path):
        raise CardError(
            f"a {type(name).__name__} is no name of a model",
            hint="give a model id, the path of a run folder or checkpoint, open_clip:<arch>@<tag or path>, or "
            "hf:<owner>/<repo>",
        )
    entry = Catalog(cards).model(str(name))
    adapter = families.load(entry)
    if adapter.given is not None:
        raise CardError(
            f"{name} is a folder of embeddings, which encodes nothing",
            hint="name the model that they come from; clipbench eval scores the folder",
        )
    if isinstance(adapter, OwnAdapter):
        raise CardError(f"{name} is code of your own: call it yourself; clipbench.evaluate takes it")
    return Model(adapter, Runtime.choose(device, precision), entry.id)


class Model:
    """A CLIP-like model: images and texts in, comparable features out (float32, on the CPU).

    Attributes:
        id: what records call it.
        card: its model card.
        logit_scale: factor on similarities before a softmax.
        logit_bias: what is added to scaled similarities before a sigmoid; None of models that were trained without.
        compared: `joint` (one unit row a sample), or `tokens` (FILIP: unit tokens, compared by late interaction).
    """

    def __init__(self, adapter: Adapter, runtime: Runtime, id_: str) -> None:
        self.adapter, self.runtime, self.id = adapter, runtime, id_
        self.card: ModelCard = adapter.card
        self.logit_scale = adapter.logit_scale
        self.logit_bias = adapter.logit_bias
        self.compared = adapter.compared
        self._towers: dict[tuple[str, str], Tower] = {}

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """One image as the tower sees it: float32 [channels, side, side], normalised.

        Raises:
            DataError: a file that is missing or no whole image, or something else than an image.
        """
        import torch

        try:
            found = pixels(_opened(image), self.card.preprocess)
        except BAD_IMAGE as error:
            named = str(image) if isinstance(image, str | Path) else type(image).__name__
            raise DataError(f"image {named} {cannot(str(error))}: {error}") from None
        return normalise(torch.from_numpy(found.copy())[None], self.card.preprocess)[0]

    def encode_images(
        self,
        images: ImageLike | Iterable[ImageLike] | torch.Tensor,
        space: str | None = None,
        *,
        normalised: bool = True,
    ) -> torch.Tensor:
        """Features of images: float32 [n, D], unit rows; in `tokens` [n, T, d], unit tokens; in `backbone` as they are.

        Args:
            images: opened images, paths or arrays, or one of them; or a batch that `preprocess` made: float [n,
                channels, side, side].
            space: `joint`, `tokens` or `backbone`; None: the one in which this model compares images with texts.
            normalised: whether rows (or tokens) have unit length; else they are as the tower gives them.

        Raises:
            DataError: an image that cannot be decoded, or something else than images.
            NotApplicable: the model has no such space.
        """
        import torch

        several = _several(images)
        space = space or self.compared
        self.adapter.require_space(space)
        tower = self._tower("image", space)
        if isinstance(several, torch.Tensor):
            own = self.card.preprocess
            shape = (own.channels, own.side, own.side)
            if several.shape[1:] != shape or not several.is_floating_point():
                wanted = ", ".join(map(str, shape))
                raise DataError(
                    f"a tensor of {several.dtype} {list(several.shape)} is no batch of float [n, {wanted}]",
                    hint="preprocess makes the rows of such a batch; images can also be paths, or PIL images",
                )
            batches: Iterable[torch.Tensor] = (
                several[i : i + _BATCH] for i in range(0, len(several), _BATCH)
            )
        else:
            batches = (torch.stack([self.preprocess(image) for image in part]) for part in _parts(several))
        features = [tower(batch.to(self.runtime.device)).cpu() for batch in batches]
        return self._shaped(features, space, normalised)

    def encode_texts(
        self, texts: str | Iterable[str], space: str | None = None, *, normalised: bool = True
    ) -> torch.Tensor:
        """Features of texts, comparable with those of images: float32 [n, D], unit rows; in `tokens` [n, T, d].

        One text gives one row. `space` and `normalised` are as for images.

        Raises:
            DataError: something else than texts.
            NotApplicable: the model has no text tower, or no such space.
        """
        space = space or self.compared
        self.adapter.require_text(space)
        tower = self._tower("text", space)
        features = []
        for part in _parts([texts] if isinstance(texts, str) else _texts(texts)):
            ids, lengths = self.adapter.tokenize(part)
            features.append(tower(ids[:, : int(lengths.max())].to(self.runtime.device)).cpu())
        return self._shaped(features, space, normalised)

    def similarity(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Similarity of every image with every text, without the logit scale: float32 [n, m].

        The cosine of what `encode_images` and `encode_texts` give; late interaction where they give tokens.
        """
        import torch

        return torch.from_numpy(similarity(images.numpy(), texts.numpy()))

    def parameters(self, space: str) -> list[torch.Tensor]:
        """The parameters of the towers that give features in `space`, each once.

        Raises:
            NotApplicable: images have no such space.
        """
        adapter = self.adapter
        adapter.require_space(space)
        towers = [adapter.image_tower(space)]
        towers += [adapter.text_tower(space)] if space in adapter.text_spaces else []
        return list({id(one): one for tower in towers for one in tower.parameters()}.values())

    def _tower(self, kind: str, space: str) -> Tower:
        if (kind, space) not in self._towers:
            make = self.adapter.image_tower if kind == "image" else self.adapter.text_tower
            self._towers[kind, space] = Tower(make(space).to(self.runtime.device), self.runtime)
        return self._towers[kind, space]

    def _shaped(self, features: list[torch.Tensor], space: str, normalised: bool) -> torch.Tensor:
        import torch

        if not features:
            raise DataError("nothing to encode: the list is empty")
        rows = torch.cat(features)
        if space == "backbone":
            return rows
        width = self.adapter.token_width if space == "tokens" else 0
        if normalised:
            rows = unit(rows, width)
        return rows.view(len(rows), -1, width) if width else rows


def _opened(image: object) -> Image.Image:
    """`image` (see `ImageLike`) as Pillow has it.

    Raises:
        DataError: it is something else.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        if image.format not in (None, *IMAGE_FORMATS):
            raise DataError(
                f"an image of the format {image.format}, which is not read", hint="save it as PNG or JPEG"
            )
        return image
    if isinstance(image, np.ndarray):
        if (
            image.dtype == np.uint8
            and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
            and image.size
        ):
            return Image.fromarray(image)
        raise DataError(
            f"an array of {image.dtype} {list(image.shape)} is no image",
            hint="arrays are uint8 [height, width] or [height, width, 3] (red, green, blue)",
        )
    raise DataError(
        f"a {type(image).__name__} is no image", hint="give a path, a PIL image, or an array of uint8"
    )


def _several(images: object) -> Any:
    """One image as a list of one; a batch of preprocessed ones, or several, as they are."""
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, torch.Tensor):
        return images[None] if images.ndim == 3 else images
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, bytes | bytearray) or not isinstance(images, Iterable):
        raise DataError(
            f"a {type(images).__name__} is no image and no list of images",
            hint="give paths, PIL images, arrays of uint8, or a tensor of rows that preprocess made",
        )
    return images


def _texts(texts: object) -> Iterable[str]:
    """`texts`, each looked at."""
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise DataError(
            f"a {type(texts).__name__} is no text and no list of texts", hint="give a str, or several"
        )
    for text in texts:
        if not isinstance(text, str):
            raise DataError(
                f"a {type(text).__name__} among the texts is no text", hint="give a str, or several"
            )
        yield text


def _parts(items: Iterable[Item]) -> Iterable[list[Item]]:
    """`items` in lists of a batch."""
    each = iter(items)
    while part := list(islice(each, _BATCH)):
        yield part
