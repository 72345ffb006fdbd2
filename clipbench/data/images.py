"""An opened image before it is resized: 8 bits a channel, turned or not, and what a reader of its numbers must know.

Pillow's own conversion to 8 bits cuts 16-bit values off at 255, and it leaves the turn that a camera wrote into EXIF to
the caller (but for TIFF, which it always turns). open_clip's evaluation does no more than that.
"""

from __future__ import annotations

import struct
from typing import Final, Literal

import numpy as np
from PIL import Image, TiffImagePlugin

#: whether an image is seen as it is stored, or turned as its EXIF tag says
Orientation = Literal["as-stored", "exif"]
#: whether transparent pixels are seen in their stored colours, or on white
Transparency = Literal["dropped", "on-white"]

_ORIENTATION = 0x0112  # the tags' numbers in EXIF and TIFF
_BITS, _PHOTOMETRIC = 258, 262
_NUMBERS = {3: "H", 4: "I"}  # of EXIF's types
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PAGED: Final = frozenset({"GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"})


def standard(
    image: Image.Image, follow: Orientation, transparency: Transparency = "dropped"
) -> tuple[Image.Image, tuple[str, ...]]:
    """`image` with 8 bits a channel, turned if `follow` says so, and the kinds of `decode.REMARKS` that hold for it.

    16-bit grey values x become round(x / 257), whatever range of them the image uses; of a TIFF of 9 to 15 bits a pixel
    its own range is scaled. Colour images of 16 bits Pillow itself brings to 8. Laid on white, an image with
    transparency becomes RGB. An image that needs nothing is returned as it is; `image` is never changed.

    Raises:
        ValueError: 32-bit integers or floats without a defined range, or a palette that is missing.
        OSError, SyntaxError, ValueError, EOFError: the image is not whole.
    """
    kinds = []
    tag, turned = orientation(image), isinstance(image, TiffImagePlugin.TiffImageFile)
    if _several(image):
        kinds.append("first-frame")
    full = _full_range(image)
    if image.mode == "P" and image.palette is None:
        raise ValueError("its colours are numbers of a palette that it lacks")
    if _transparent(image):
        kinds.append("alpha-dropped" if transparency == "dropped" else "alpha-on-white")
    if transparency == "on-white" and image.has_transparency_data and full is None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # which matters to no pixel, and of which Pillow warns in a palette
    if full is not None:
        kinds.append("16-bit-scaled")
        image = _scaled(image, full)
    if tag != 1:
        follows = turned or follow == "exif"
        kinds.append("exif-turned" if follows else "exif-turn-ignored")
        if follows and not turned:
            image = image.transpose(_TURNS[tag])
    return image, tuple(kinds)


def frames(image: Image.Image, follow: Orientation) -> tuple[tuple[int, int], int, int]:
    """Width and height (px) of an image as stored, its orientation tag, and the one by which `standard` turns it.

    The last is 1 where it does not. Raises as `standard` for a PNG, which may have the tag at its end.
    """
    tag = orientation(image)
    width, height = image.size
    turned = isinstance(image, TiffImagePlugin.TiffImageFile)
    if turned and tag >= 5:  # Pillow gives the size after the turn
        width, height = height, width
    return (width, height), tag, tag if turned or follow == "exif" else 1


def orientation(image: Image.Image) -> int:
    """The EXIF (or TIFF) orientation of an image that was opened and not loaded: 1 to 8; 1 where none is to be read.

    Raises as `standard` for a PNG, which may have the tag at its end.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tag = image.tag_v2.get(_ORIENTATION)
    else:
        if image.format == "PNG" and "exif" not in image.info:
            image.load()
        exif = image.info.get("exif")
        tag = _in_exif(exif) if isinstance(exif, bytes) else 1
    return tag if isinstance(tag, int) and tag in _TURNS else 1


def _in_exif(exif: bytes) -> int:
    """The orientation in a block of EXIF; 1 where it has none or is malformed. Reads no more than that."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == _ORIENTATION and kind in _NUMBERS:
                value: int = struct.unpack_from(order + _NUMBERS[kind], tiff, entry + 8)[0]
                return value
    except struct.error:
        pass
    return 1


def _several(image: Image.Image) -> bool:
    """Whether a file holds several frames or pages, of which Pillow opens the first."""
    if image.format not in _PAGED:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error):
        return False  # a broken one, and not wanted


def _transparent(image: Image.Image) -> bool:
    """Whether any pixel is not wholly opaque."""
    if not image.has_transparency_data:
        return False
    alpha = image if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") else image.convert("RGBA")
    return bool(np.asarray(alpha.getchannel(len(alpha.getbands()) - 1)).min() < 255)


def _full_range(image: Image.Image) -> int | None:
    """The largest value of an image with more than 8 bits a channel; None for all others."""
    if image.mode.startswith("I;16"):
        bits = 16
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            bits = image.tag_v2.get(_BITS, (16,))[0]
        return int(2**bits - 1)
    if image.mode == "I" and image.format == "PPM":
        return 65535  # to which Pillow brings the range that the file states
    if image.mode in ("I", "F"):
        what = "32-bit floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(
            f"its pixels are {what}, of which no range is defined; save it with 8 or 16 bits a channel"
        )
    return None


def _scaled(image: Image.Image, full: int) -> Image.Image:
    """Grey values 0 … `full` as 0 … 255, rounded."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + full // 2) // full).astype(np.uint8)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey  # white is 0, which Pillow heeds with 8 bits only
    return Image.fromarray(grey)
