"""A model for programs: the adapter that evaluation uses, with the same checks, precision and preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from clipbench import models
from clipbench.cards import ModelCard
from clipbench.catalog import Catalog
from clipbench.data.decode import BAD_IMAGE, normalise, pixels
from clipbench.errors import DataError
from clipbench.execution import Runtime, Tower
from clipbench.features import unit
from clipbench.scoring import similarity

if TYPE_CHECKING:
    import torch
    from PIL import Image

#: an image as `Model.encode_images` takes it: opened, or the path of a file
ImageLike: TypeAlias = "Image.Image | str | Path"

Item = TypeVar("Item")
_BATCH = 64


def load_model(
    name: str, *, cards: Sequence[Path] = (), device: str = "auto", precision: str = "auto"
) -> Model:
    """The model `name`, ready to encode: any name that `clipbench eval --model` takes.

    Args:
        name: a model id, run folder, checkpoint file, `open_clip:<arch>@<tag or path>` or `hf-hub:<owner>/<repo>`.
        cards: folders of your own cards.
        device: auto, cpu, cuda or cuda:N.
        precision: of encoding: auto, fp32, bf16 or fp16. Features are float32 all the same.

    Raises:
        ClipbenchError: unknown name, or weights that are missing, corrupt, or do not fit.
    """
    loaded = Catalog(cards).model(name)
    return Model(models.load(loaded), Runtime.choose(device, precision))


class Model:
    """A CLIP-like model: images and texts in, comparable features out (float32, on the CPU).

    Attributes:
        card: its model card.
        logit_scale: factor on similarities before a softmax.
        compared: `joint` (one unit row a sample), or `tokens` (FILIP: unit tokens, compared by late interaction).
    """

    def __init__(self, adapter: models.Adapter, runtime: Runtime) -> None:
        self.adapter, self.runtime = adapter, runtime
        self.card: ModelCard = adapter.card
        self.logit_scale = adapter.logit_scale
        self.compared = adapter.compared
        self._towers: dict[tuple[str, str], Tower] = {}

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """One image as the tower sees it: float32 [channels, side, side], normalised.

        Raises:
            DataError: a file that is missing or no whole image.
        """
        import torch
        from PIL import Image

        try:
            opened = Image.open(image) if isinstance(image, str | Path) else image
            found = pixels(opened, self.card.preprocess)
        except BAD_IMAGE as error:
            named = str(image) if isinstance(image, str | Path) else type(image).__name__
            raise DataError(f"image {named} cannot be decoded: {error}") from None
        return normalise(torch.from_numpy(found.copy())[None], self.card.preprocess)[0]

    def encode_images(
        self, images: Iterable[ImageLike] | torch.Tensor, space: str | None = None
    ) -> torch.Tensor:
        """Features of images: float32 [n, D], unit rows; in `tokens` [n, T, d], unit tokens; in `backbone` as they are.

        Args:
            images: opened images or paths, or a batch that `preprocess` made: float [n, channels, side, side].
            space: `joint`, `tokens` or `backbone`; None: the one in which this model compares images with texts.

        Raises:
            DataError: an image that cannot be decoded.
            NotApplicable: the model has no such space.
        """
        import torch

        space = space or self.compared
        self.adapter.require_space(space)
        tower = self._tower("image", space)
        features = []
        if isinstance(images, torch.Tensor):
            batches: Iterable[torch.Tensor] = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
        else:
            batches = (torch.stack([self.preprocess(image) for image in part]) for part in _parts(images))
        for batch in batches:
            features.append(tower(batch.to(self.runtime.device)).cpu())
        return self._shaped(features, space)

    def encode_texts(self, texts: Sequence[str], space: str | None = None) -> torch.Tensor:
        """Features of texts, comparable with those of images: float32 [n, D], unit rows; in `tokens` [n, T, d].

        Raises:
            NotApplicable: the model has no text tower, or no such space.
        """
        space = space or self.compared
        self.adapter.require_text(space)
        tower = self._tower("text", space)
        features = []
        for part in _parts(texts):
            ids, lengths = self.adapter.tokenize(part)
            features.append(tower(ids[:, : int(lengths.max())].to(self.runtime.device)).cpu())
        return self._shaped(features, space)

    def similarity(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Similarity of every image with every text, without the logit scale: float32 [n, m].

        The cosine of what `encode_images` and `encode_texts` give; late interaction where they give tokens.
        """
        import torch

        return torch.from_numpy(similarity(images.numpy(), texts.numpy()))

    def _tower(self, kind: str, space: str) -> Tower:
        if (kind, space) not in self._towers:
            make = self.adapter.image_tower if kind == "image" else self.adapter.text_tower
            self._towers[kind, space] = Tower(make(space).to(self.runtime.device), self.runtime)
        return self._towers[kind, space]

    def _shaped(self, features: list[torch.Tensor], space: str) -> torch.Tensor:
        import torch

        if not features:
            raise DataError("nothing to encode: the list is empty")
        rows = torch.cat(features)
        if space == "backbone":
            return rows
        width = self.adapter.token_width if space == "tokens" else 0
        normalised = unit(rows, width)
        return normalised.view(len(rows), -1, width) if width else normalised


def _parts(items: Iterable[Item]) -> Iterable[list[Item]]:
    """`items` in lists of a batch."""
    part: list[Item] = []
    for item in items:
        part.append(item)
        if len(part) == _BATCH:
            yield part
            part = []
    if part:
        yield part
