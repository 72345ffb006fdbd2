"""From encoded bytes to uint8 pixels, one image at a time (a stream of them: `clipbench.data.decode_stream`).

Pixels are resized and cropped as uint8 on the CPU and normalised later, on the device that encodes them:
a quarter of the traffic, and the same float32 values.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from clipbench.cards.model import Interpolation, Preprocess
from clipbench.data.images import standard
from clipbench.utils.parsing import Unreadable, file_bytes

if TYPE_CHECKING:
    import torch

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MODE = {1: "L", 3: "RGB"}
#: raster formats that are read, as Pillow calls them, and how their files end. None of them runs another program or
#: reads other files, as PostScript, PDF and metafiles may. Common ones first: they are tried in this order.
_ENDS = {
    "JPEG": "jpg jpeg jpe jfif mpo",
    "PNG": "png apng",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif tiff",
    "PPM": "ppm pgm pbm pnm pfm",
    "JPEG2000": "jp2 j2k j2c jpc jpf jpx",
    "AVIF": "avif avifs",
    "QOI": "qoi",
    "DIB": "dib",
    "DDS": "dds",
    "ICO": "ico",
    "PCX": "pcx",
    "PSD": "psd",
    "SGI": "sgi rgb rgba bw",
    "SUN": "ras",
    "XBM": "xbm",
    "TGA": "tga icb vda vst",  # has no mark of its own, so it comes last
}
#: for `Image.open(formats=…)`
IMAGE_FORMATS: Final = tuple(_ENDS)
#: how the names of image files end, in lower case
IMAGE_SUFFIXES: Final = frozenset(f".{end}" for ends in _ENDS.values() for end in ends.split())
# What Pillow raises for bytes that are not a whole image, depending on the format.
BAD_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # an error where the caller's filters make it one
)

#: pixels that an image may have, as it is stored and as it is scaled for a model: Pillow's own limit
MAX_PIXELS: Final = 178_956_970
#: by `allow_pixels`, for this process and its decoding processes
_MAX_PIXELS_SET: Final = "CLIPBENCH_MAX_PIXELS"
_MOST_BYTES: Final = 2 << 30  # of a file
_MOST_TIFF_PARTS: Final = 1 << 17
_TIFF_PLACES: Final = (273, 279, 324, 325)  # tags of the places and lengths of strips and tiles
_OPENING: Final = threading.Lock()

#: how files of formats begin that no Pillow reads, or not each
_LACKING = (
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (8, b"WEBP", "WebP"),
)

#: kinds of what is said of an image that was decoded, and what they mean, as a clause that follows a count
REMARKS: Final[dict[str, str]] = {
    "16-bit-scaled": "grey images of 16 bits scaled to 8 by their whole range (x / 257), where open_clip cuts at 255",
    "exif-turned": "images turned as their EXIF tag says, before the model saw them",
    "exif-turn-ignored": "images seen as they are stored, though their EXIF tag turns them (the model card's "
    "orientation: as-stored)",
    "alpha-dropped": "images with transparent pixels, of which the stored colours were seen: alpha was dropped",
    "alpha-on-white": "images with transparent pixels, laid on white (the model card's transparency: on-white)",
    "first-frame": "files with several frames or pages, of which the first was seen",
}


class Oversized(ValueError):
    """An image that is larger than the limit, or of another size than the model takes; it may be sound otherwise."""


def allow_pixels(most: int | None) -> None:
    """Let images have up to `most` pixels in this process and its decoding processes (None: as before)."""
    if most is not None:
        os.environ[_MAX_PIXELS_SET] = str(most)


@contextlib.contextmanager
def pixels_allowed(most: int | None) -> Iterator[None]:
    """As `allow_pixels`, as long as it lasts."""
    before = os.environ.get(_MAX_PIXELS_SET)
    allow_pixels(most)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_MAX_PIXELS_SET, None)
        else:
            os.environ[_MAX_PIXELS_SET] = before


def max_pixels() -> int:
    """How many pixels an image may have: what `allow_pixels` set, else MAX_PIXELS."""
    return int(os.environ.get(_MAX_PIXELS_SET) or MAX_PIXELS)


def open_image(source: bytes | str | Path) -> Image.Image:
    """An image from its bytes or its file, its pixels not yet decoded: the only way in which this package opens one.

    Formats are those of IMAGE_FORMATS, by content and not by name: no other program is started for one.

    Raises:
        Oversized: more pixels than `max_pixels`.
        OSError, SyntaxError, ValueError, EOFError: the bytes are not an image, or the file cannot be read.
    """
    if not isinstance(source, bytes):
        try:
            source = file_bytes(Path(source), _MOST_BYTES)
        except Unreadable as error:
            raise OSError(str(error)) from None
    if source[:2] in (b"II", b"MM") and (parts := _tiff_parts(source)) > _MOST_TIFF_PARTS:
        raise Oversized(
            f"it is cut into {parts:,} strips or tiles, of which {_MOST_TIFF_PARTS:,} are allowed"
        )
    with _OPENING:  # Pillow's own limit, which warns at half of ours and cannot be raised for one image
        own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(source), formats=IMAGE_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = own
    within_limit(*image.size)
    return image


def _tiff_parts(data: bytes) -> int:
    """How many strips or tiles the first image of a TIFF file is cut into; Pillow takes time and memory for each."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    big = number(2, 2) == 43
    start, wide = (number(8, 8), 8) if big else (number(4, 4), 4)
    first, step = start + (8 if big else 2), 4 + 2 * wide
    entries = min(number(start, 8 if big else 2), 4096)
    tags = (first + step * entry for entry in range(entries))
    return max((number(at + 4, wide) for at in tags if number(at, 2) in _TIFF_PLACES), default=0)


def within_limit(width: int, height: int, scaled: str = "") -> None:
    """Raise Oversized where an image of this size has more pixels than it may. `scaled`: other words for "has"."""
    most = max_pixels()
    if width * height > most:
        raise Oversized(
            f"it {scaled or 'has'} {width:,} × {height:,} pixels, of which {most:,} are allowed (--max-pixels)"
        )


class Crops(Preprocess):
    """A random crop of every image instead of the central one, scaled to the tower's side, half of them mirrored.

    Area and ratio as torchvision's `RandomResizedCrop` draws them. The draw of an image depends on its bytes,
    `seed` and `epoch` alone, not on who decodes it.
    """

    seed: int
    epoch: int
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


def decode(data: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode, resize and crop one image: uint8 [channels, side, side].

    Sizes and offsets are rounded as torchvision's `Resize` and `CenterCrop` round them, so that the pixels
    equal those of open_clip's evaluation transform.

    Raises:
        OSError, SyntaxError, ValueError, EOFError: the bytes are not a whole image, or one of 32 bits a channel.
    """
    return decode_and_remark(data, preprocess)[0]


def decode_and_remark(data: bytes, preprocess: Preprocess) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """See `decode`; with the kinds of `REMARKS` that hold for the image."""
    image, remarks = standard(open_image(data), preprocess.orientation, preprocess.transparency)
    if isinstance(preprocess, Crops):
        rng = np.random.default_rng([preprocess.seed, preprocess.epoch, zlib.crc32(data)])
        return _channels_first(_random_crop(image, preprocess, rng), preprocess), remarks
    return _resized(image, preprocess), remarks


def _random_crop(image: Image.Image, crops: Crops, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    if crops.order == "convert-first":
        image = image.convert(_MODE[crops.channels])
    box = (0.0, 0.0, float(width), float(height))
    low, high = np.log(crops.ratio)
    for _ in range(10):
        area = width * height * rng.uniform(*crops.area)
        ratio = float(np.exp(rng.uniform(low, high)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (left, top, left + w, top + h)
            break
    else:  # long and narrow: the central part whose ratio is allowed
        w = min(width, round(height * crops.ratio[1]))
        h = min(height, round(width / crops.ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
    cut = _scaled(image, crops.side, crops.side, crops.interpolation, box)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def pixels(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Resize and crop one image: uint8 [channels, side, side]. Raises as `decode`."""
    return _resized(standard(image, preprocess.orientation, preprocess.transparency)[0], preprocess)


def _resized(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    mode = _MODE[preprocess.channels]
    if preprocess.order == "convert-first":
        image = image.convert(mode)
    width, height = image.size
    side = preprocess.side
    match preprocess.resize:
        case "shortest":
            size = preprocess.size
            short, long = min(width, height), max(width, height)
            if short != size:
                long = int(size * long / short)
                new = (size, long) if width <= height else (long, size)
                within_limit(*new, f"has {width:,} × {height:,} and would be scaled to")
                width, height = new
                image = _scaled(image, width, height, preprocess.interpolation)
            image = _centre(image, preprocess)
        case "squash-crop":
            size = preprocess.size
            if (width, height) != (size, size):
                image = _scaled(image, size, size, preprocess.interpolation)
            image = _centre(image, preprocess)
        case "longest":
            new = _longest(width, height, side)
            if not all(new):
                raise Oversized(
                    f"it is {width}×{height}, of which nothing is left where its long side has {side}"
                )
            image = _padded(_scaled(image, *new, preprocess.interpolation), preprocess)
        case "squash":
            if (width, height) != (side, side):
                image = _scaled(image, side, side, preprocess.interpolation)
        case "none":
            if (width, height) != (side, side):
                raise Oversized(f"it is {width}×{height}, the model takes {side}×{side} without resizing")
        case "pad":
            if max(width, height) > side:
                raise Oversized(f"it is {width}×{height}, the model takes up to {side}×{side}")
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
    return _channels_first(image, preprocess)


def _centre(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The central square that the tower sees, black where it reaches beyond the image."""
    left, top = (_start(length, preprocess) for length in image.size)
    return image.crop((left, top, left + preprocess.side, top + preprocess.side))


def _start(length: int, preprocess: Preprocess) -> int:
    """Where the central `side` pixels of `length` begin; below 0 where they are more."""
    left = length - preprocess.side
    return left // 2 if preprocess.centre == "down" else round(left / 2)


def _longest(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of an image whose long side is scaled to `side`, rounded as by open_clip's `ResizeKeepRatio`."""
    ratio = max(width, height) / side
    return round(width / ratio), round(height / ratio)


def _padded(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """`image`, which is not larger, in the middle of a square; if it cannot be, a pixel nearer to the left or top."""
    bands, side = len(image.getbands()), preprocess.side
    left, top = (side - image.width) // 2, (side - image.height) // 2
    border = (left, top, side - image.width - left, side - image.height - top)
    fill = preprocess.fill if bands == 1 else (preprocess.fill,) * bands
    whole = ImageOps.expand(image, border, fill)
    if image.mode == "P":
        whole.putpalette(image.getpalette() or [])
    return whole


def _scaled(
    image: Image.Image,
    width: int,
    height: int,
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """`image`, or the whole pixels of it in `box` (left, top, right, bottom), in another size."""
    if interpolation != "bilinear-no-antialias":
        return image.resize((width, height), _RESAMPLING[interpolation], box=box)
    values = np.asarray(image if box is None else image.crop(box))
    for axis, length in enumerate((height, width)):
        if length < values.shape[axis]:
            values = _between(values, axis, length)
    # Pillow smooths where it shrinks alone, and it leaves a side alone that has its length.
    whole = Image.fromarray(np.floor(values + np.float32(0.5)).astype(np.uint8))
    return whole.resize((width, height), Image.Resampling.BILINEAR)


def _between(values: NDArray[Any], axis: int, length: int) -> NDArray[np.float32]:
    """`values` at `length` places along `axis`, each from the two pixels beside the middle of what it stands for."""
    own = values.shape[axis]
    places = ((np.arange(length) + 0.5) * own / length - 0.5).clip(0, own - 1)
    before = places.astype(np.int64)
    share = (places - before).astype(np.float32).reshape((-1,) + (1,) * (values.ndim - 1 - axis))
    first, second = (
        values.take(at.clip(max=own - 1), axis).astype(np.float32) for at in (before, before + 1)
    )
    found: NDArray[np.float32] = first + share * (second - first)
    return found


def seen(width: int, height: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what `pixels` keeps of an image, in its own pixels, rounded to whole ones.

    `width` and `height` are those of the image as the model sees it: after the turn, if there is one.

    Where the crop is larger than the resized image, it reaches beyond the image on all sides.

    >>> both = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    >>> seen(640, 480, Preprocess(size=224, **both)), seen(640, 480, Preprocess(resize="squash", **both))
    ((79, 0, 561, 480), (0, 0, 640, 480))
    >>> seen(640, 480, Preprocess(resize="longest", **both))
    (0, -80, 640, 560)
    """
    short, side = min(width, height), preprocess.side
    match preprocess.resize:
        case "shortest":
            long = int(preprocess.size * max(width, height) / short)
            new = (preprocess.size, long) if width <= height else (long, preprocess.size)
        case "squash-crop":
            new = (preprocess.size, preprocess.size)
        case "longest":
            new = _longest(width, height, side)
        case _:
            return 0, 0, width, height
    edges = []
    for old, resized in zip((width, height), new, strict=True):
        start = -((side - resized) // 2) if preprocess.resize == "longest" else _start(resized, preprocess)
        edges.append((round(start * old / resized), round((start + side) * old / resized)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _channels_first(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    found = np.asarray(image.convert(_MODE[preprocess.channels]), dtype=np.uint8)
    return found[None] if found.ndim == 2 else np.ascontiguousarray(found.transpose(2, 0, 1))


def normalise(images: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """uint8 [B, channels, side, side] to float32: (x / 255 − mean) / std, on the images' own device."""
    import torch

    shape = (1, preprocess.channels, 1, 1)
    mean, std = (
        torch.tensor(values, dtype=torch.float32).view(shape).to(images.device, non_blocking=True)
        for values in (preprocess.mean, preprocess.std)
    )
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def cannot(reason: str) -> str:
    """What to say of an image that `reason` keeps out: one of another size is no broken one."""
    return "cannot be taken" if reason.startswith("it ") else "cannot be decoded"


def problem(data: bytes) -> str | None:
    """Why an encoded image cannot be decoded; None where it can."""
    try:
        standard(open_image(data), "as-stored")[0].load()
    except BAD_IMAGE as error:
        return reason(error, data)
    return None


def reason(error: BaseException, data: bytes) -> str:
    """What to say of an image that `error` keeps from being decoded."""
    if not data:
        return "there are no bytes"
    if isinstance(error, UnidentifiedImageError):  # its own text holds a memory address
        kind = next((name for place, mark, name in _LACKING if data.startswith(mark, place)), None)
        if kind:
            return f"it is damaged {kind}, or this Pillow ({PIL.__version__}) reads no {kind}"
        return f"not an image in any known format ({len(data):,} bytes)"
    return str(error) or type(error).__name__
