"""Images as a model that is the user's own code is given them: opened, RGB, as they are stored."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipbench.data.decode import BAD_IMAGE, open_image, reason
from clipbench.data.decode_stream import Bad, OnBadImage, undecodable
from clipbench.data.images import standard
from clipbench.data.split import Sample
from clipbench.models.own import OwnAdapter

_Told = tuple[Image.Image | None, str, tuple[str, ...]]


@dataclass(frozen=True)
class Pictures:
    """A batch of images in stream order, as `data.decode_stream.Batch`; `images` and `ids` are those that are good."""

    images: list[Image.Image]
    ids: list[str]
    good: NDArray[np.bool_]
    bad: tuple[Bad, ...]
    remarks: tuple[tuple[str, str], ...]

    def rows(self, adapter: OwnAdapter, space: str) -> NDArray[np.float32]:
        """What the object gives for them, [B, D]; NaN where an image could not be decoded."""
        rows = adapter.rows(space, self.images, self.ids) if self.images else None
        found = np.full((len(self.good), adapter.width_of(space)), np.nan, dtype=np.float32)
        if rows is not None:
            found[self.good] = rows
        return found


def pictures(
    samples: Iterator[Sample], *, sizes: Sequence[int], workers: int, on_bad_image: OnBadImage
) -> Generator[Pictures, None, None]:
    """Batches of `samples`, in order, `sizes` images each, decoded by `workers` threads (0: by this one).

    Raises:
        DataError: an image that cannot be decoded, and `on_bad_image` is "stop".
    """
    groups = (list(itertools.islice(samples, size)) for size in sizes)
    yield from pictures_of(groups, workers=workers, on_bad_image=on_bad_image)


def pictures_of(
    groups: Iterator[list[Sample]], *, workers: int, on_bad_image: OnBadImage
) -> Generator[Pictures, None, None]:
    """As `pictures`, of groups of samples, a batch each."""
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="decode") as pool:
        for group in groups:
            each = map(_opened, group) if workers == 0 else pool.map(_opened, group)
            told = list(zip(group, each, strict=True))
            bad = [Bad(sample.id, why) for sample, (image, why, _) in told if image is None]
            if bad and on_bad_image == "stop":
                raise undecodable(bad, "count and name such images with --on-bad-image skip")
            yield Pictures(
                [image for _, (image, _, _) in told if image is not None],
                [sample.id for sample, (image, _, _) in told if image is not None],
                np.array([image is not None for _, (image, _, _) in told], dtype=np.bool_),
                tuple(bad),
                tuple((sample.id, kind) for sample, (_, _, kinds) in told for kind in kinds),
            )


def _opened(sample: Sample) -> _Told:
    """The image, RGB and without metadata, or why there is none; and the kinds of `decode.REMARKS` that hold."""
    try:
        image, kinds = standard(open_image(sample.image), "as-stored")
        image = image.convert("RGB")
    except BAD_IMAGE as error:
        return None, reason(error, sample.image), ()
    image.info = {}  # by an EXIF tag in there code would turn what the record says was seen as stored
    return image, "", kinds
