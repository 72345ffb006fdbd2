"""Pictures of heat maps: the image, the map over it, the true box, the pixel it points at, the text and the verdict."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from clipbench.data.decode import open_image
from clipbench.data.images import standard
from clipbench.utils.outputs import PNG_SOFTWARE

_WIDTH = 480  # of an overlay, px
_TALLEST = 10 * _WIDTH
_FONT = 15
_LINE = 20
_BOX, _HIT, _MISS, _PAPER, _INK = "#00e676", "#1b7f3b", "#b3261e", "#ffffff", "#202020"
_COLUMNS = 4
_GAP = 12


def overlay(
    data: bytes,
    heat: NDArray[np.float32],
    box: NDArray[np.float64],
    point: tuple[int, int],
    text: str,
    *,
    hit: bool,
    energy: float,
    turned: int = 1,
) -> Image.Image:
    """One map over its image, with a caption below.

    Args:
        data: the encoded image.
        heat: float32 [height, width], at least 0; the more, the hotter and the less transparent.
        box: what is meant (green), x0, y0, x1, y1 in pixels.
        point: the pixel (x, y) that the map points at (a ring, green in the box and red outside).
        text: the expression.
        hit, energy: whether the point is in the box; the share of the heat that is.
        turned: the EXIF orientation by which the image was turned before the model saw it; 1: it was not.
    """
    import matplotlib

    image = standard(open_image(data), "as-stored" if turned == 1 else "exif")[0].convert("RGB")
    scale = min(_WIDTH / image.width, _TALLEST / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    largest = float(heat.max())
    grey = Image.fromarray(heat / largest if largest > 0 else heat).resize(size, Image.Resampling.BILINEAR)
    strength = np.asarray(grey)[..., None]
    colours = matplotlib.colormaps["inferno"](strength[..., 0])[..., :3] * 255
    below = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    opacity = 0.15 + 0.6 * strength
    mixed = Image.fromarray((below * (1 - opacity) + colours * opacity).round().astype(np.uint8))

    draw = ImageDraw.Draw(mixed)
    draw.rectangle([float(edge) * scale for edge in box], outline=_BOX, width=3)
    x, y = ((place + 0.5) * scale for place in point)
    verdict = _HIT if hit else _MISS
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), outline="white", width=5)
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=verdict, width=3)
    said = f"{'hit' if hit else 'miss'}, {energy:.0%} of the heat in the box"
    return _captioned(mixed, text, said, verdict)


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """All pictures on one page, four a row, each at half its size."""
    halves = [p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS) for p in pictures]
    rows = [halves[i : i + _COLUMNS] for i in range(0, len(halves), _COLUMNS)]
    width = max(sum(p.width + _GAP for p in row) for row in rows) + _GAP
    height = sum(max(p.height for p in row) + _GAP for row in rows) + _GAP
    page = Image.new("RGB", (width, height), _PAPER)
    top = _GAP
    for row in rows:
        left = _GAP
        for picture in row:
            page.paste(picture, (left, top))
            left += picture.width + _GAP
        top += max(p.height for p in row) + _GAP
    return page


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file, with the mark of our own."""
    about, buffer = PngInfo(), io.BytesIO()
    for key, value in PNG_SOFTWARE.items():
        about.add_text(key, value)
    picture.save(buffer, format="PNG", pnginfo=about)
    return buffer.getvalue()


def file_name(name: str) -> str:
    """`name` as the name of a PNG file.

    >>> file_name("000-COCO_1.jpg/3")
    '000-COCO_1.jpg-3.png'
    """
    return re.sub(r"[^\w.+-]+", "-", name)[:120] + ".png"


def _captioned(picture: Image.Image, text: str, verdict: str, colour: str) -> Image.Image:
    font = ImageFont.load_default(_FONT)
    lines = textwrap.wrap(text, width=60, max_lines=3, placeholder=" …") or [""]
    height = picture.height + _LINE * (len(lines) + 1) + 8
    page = Image.new("RGB", (max(picture.width, _WIDTH), height), _PAPER)
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((6, picture.height + 4 + number * _LINE), line, fill=_INK, font=font)
    draw.text((6, picture.height + 4 + len(lines) * _LINE), verdict, fill=colour, font=font)
    return page
