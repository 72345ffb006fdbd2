"""Pictures that lie beside records, made small enough to stand inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final

from PIL import Image

from clipbench.data.decode import BAD_IMAGE, open_image
from clipbench.utils.parsing import expanded

_WIDTH: Final = 1100  # px at most
_QUALITY: Final = 80  # of WebP


def inlined(path: Path) -> dict[str, object] | None:
    """The picture at `path` as `{src: data address, width, height}`, or None where there is none to be read."""
    try:
        with open_image(path) as opened:
            picture = opened.convert("RGB")
    except BAD_IMAGE:
        return None
    if picture.width > _WIDTH:
        height = round(picture.height * _WIDTH / picture.width)
        picture = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=_QUALITY)
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"src": source, "width": picture.width, "height": picture.height}


def contact_sheet(record: Path) -> dict[str, object] | None:
    """The heat maps that were saved beside the record's JSON file."""
    return inlined(record.with_name(f"{record.stem}.heatmaps") / "contact-sheet.png")


def training_curves(model: str) -> dict[str, object] | None:
    """The curves of the pretraining run that `model` names, where it is a run's folder."""
    return inlined(expanded(model) / "loss.png")
