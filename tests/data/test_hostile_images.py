"""Images that were made to do harm: no program is started for one, and none takes more memory than a large scan."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caption_copies
import class_copies
import commandline
import expression_copies
import numpy as np
import pytest
import small
from commandline import Run
from PIL import Image

import clipbench
from clipbench.cards.model import Preprocess
from clipbench.cards.task import TaskCard
from clipbench.data import decode as decoding
from clipbench.data.decode import MAX_PIXELS, Oversized, decode, open_image
from clipbench.data.decode_stream import decode_stream
from clipbench.data.split import Sample
from clipbench.encoding.saliency import _measured
from clipbench.errors import DataError
from clipbench.protocols import _overlays
from clipbench.report.site import pictures

run = commandline.run
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
EYES = Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def png(width: int, height: int, mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG whose header says that it has this size; there are no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A sound PNG with one more chunk behind its header."""
    whole = png(8, 8, "RGB")
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return whole[:33] + chunk + whole[33:]


def tiff(strips: int, order: str = "<") -> bytes:
    """One column of pixels, each a strip of its own."""
    tags = [(256, 1), (257, strips), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    lists = 8 + 2 + 12 * 9 + 4
    entries = [(tag, 4, 1, value) for tag, value in tags]
    entries += [(273, 4, strips, lists), (279, 4, strips, lists + 4 * strips)]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, 9)
    head += b"".join(struct.pack(f"{order}HHII", *entry) for entry in sorted(entries)) + bytes(4)
    return (
        head
        + struct.pack(f"{order}{strips}I", *[8] * strips)
        + struct.pack(f"{order}{strips}I", *[1] * strips)
    )


@pytest.mark.parametrize(
    ("tag", "counts"), [(273, True), (279, True), (324, True), (325, True), (274, False)]
)
def test_strips_and_tiles_are_counted_by_each_tag_that_lists_them(tag: int, counts: bool) -> None:
    data = b"II*\0" + struct.pack("<IHHHII", 8, 1, tag, 4, 7, 0)
    assert decoding._tiff_parts(data) == (7 if counts else 0)


# ---------------------------------------------------------------- nothing is run


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a `gs` on the PATH writes when it is started."""
    from PIL import EpsImagePlugin

    witness = tmp_path / "witness"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nopen({str(witness)!r}, 'w')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with (
        pytest.raises(OSError, match=r".+"),
        Image.open(io.BytesIO(POSTSCRIPT)) as image,
    ):
        image.load()  # so that a witness that stays silent says something
    assert witness.exists()
    witness.unlink()
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return witness


def _silent(run: Run, ghostscript: Path, *arguments: object) -> None:
    """Assert that an evaluation with one PostScript image stops, or leaves it out, and starts nothing."""
    done = run(*arguments)
    assert done.code == 2
    assert "cannot be decoded: not an image in any known format" in done.err
    done = run(*arguments, "--on-bad-image", "skip")
    assert done.code == 0, done.err
    (record,) = json.loads(done.out)
    assert [bad["reason"][:31] for bad in record["skipped"]] == ["not an image in any known forma"]
    assert not ghostscript.exists()


def _evaluation(place: Path, data: Path, *more: object, task: str = "animals-zs") -> list[object]:
    """What is typed to measure the model in `place` on `data`, as JSON."""
    what = ("--model", place / "run", "--task", task, "--cards", place / "cards", "--json")
    return ["eval", *what, "--data", f"animals={data}", "--results", place / "results", *more]


@pytest.mark.parametrize("layout", class_copies.LAYOUTS)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_postscript_starts_nothing_in_any_layout(
    tmp_path: Path, run: Run, ghostscript: Path, layout: str, workers: str
) -> None:
    names = small.CLASSES
    images = [(i % len(names), POSTSCRIPT if i == 3 else small.picture(i)) for i in range(10)]
    write: Callable[..., Path] = class_copies.LAYOUTS[layout]
    data = write(tmp_path / "data", images, names)
    small.write_task(tmp_path / "cards")
    small.write_run(tmp_path / "run")
    arguments = _evaluation(tmp_path, data, "--workers", workers, "-q")
    _silent(run, ghostscript, *arguments)


@pytest.mark.parametrize("layout", caption_copies.LAYOUTS)
def test_postscript_starts_nothing_in_retrieval(
    tmp_path: Path, run: Run, ghostscript: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = small.picture
    monkeypatch.setattr(small, "picture", lambda number: POSTSCRIPT if number == 1 else own(number))
    caption_copies.LAYOUTS[layout](tmp_path / "data")
    _card(tmp_path, caption_copies.entry(protocols={"ret": {"ks": [1, 2], "primary": "mean_recall"}}).card)
    small.write_run(tmp_path / "run", context=64)
    _silent(run, ghostscript, *_evaluation(tmp_path, tmp_path / "data", "-q", task="animals-ret"))


@pytest.mark.parametrize("form", expression_copies.FORMS)
def test_postscript_starts_nothing_in_grounding(
    tmp_path: Path, run: Run, ghostscript: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = small.jpeg
    monkeypatch.setattr(small, "jpeg", lambda number: POSTSCRIPT if number == 1 else own(number))
    expression_copies.FORMS[form](tmp_path / "data" / "copy")
    _card(tmp_path, expression_copies.entry().card)
    small.write_run(tmp_path / "run", size=16, context=64)
    arguments = _evaluation(tmp_path, tmp_path / "data" / "copy", "-q", task="animals-ground")
    _silent(run, ghostscript, *arguments, "--save-heatmaps", "4")
    assert len(list((tmp_path / "results").glob("*/animals-ground.heatmaps/*.png"))) == 4


def _card(place: Path, card: TaskCard) -> None:
    """Write a card as that of the set `animals`."""
    (place / "cards").mkdir()
    text = card.model_dump_json(exclude_unset=True)
    (place / "cards" / "animals.yaml").write_text(text)


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.jpg", "a.ps"])
def test_postscript_starts_nothing_elsewhere(tmp_path: Path, ghostscript: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(POSTSCRIPT)
    model = clipbench.load_model(str(small.write_run(tmp_path / "run")), device="cpu")
    with pytest.raises(DataError, match="cannot be decoded"):
        model.encode_images([path])
    with (
        Image.open(path, formats=["EPS"]) as opened,
        pytest.raises(DataError, match="EPS, which is not read"),
    ):
        model.preprocess(opened)
    shapes: Any = []
    list(_measured(iter([Sample(name, POSTSCRIPT)]), shapes, EYES))  # heat maps
    with pytest.raises(OSError, match="cannot identify"):
        _overlays.overlay(
            POSTSCRIPT, np.ones((2, 2), np.float32), np.zeros(4), (0, 0), "", hit=True, energy=1
        )
    assert pictures.inlined(path) is None
    assert not ghostscript.exists()


def test_no_module_opens_images_by_itself() -> None:
    """The one opener knows which formats are safe; `Image.open` anywhere else would take them all."""
    root = Path(clipbench.__file__).parent
    opening = [path.name for path in root.rglob("*.py") if "Image.open(" in path.read_text(encoding="utf-8")]
    assert opening == ["decode.py"]
    assert (root / "data" / "decode.py").read_text(encoding="utf-8").count("    image = Image.open(") == 1


# ------------------------------------------------------------------- nothing grows


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(60_000, 1), "60,000 × 1 and would be scaled to 480,000 × 8 pixels"),
        (png(1, 60_000), "1 × 60,000 and would be scaled to 8 × 480,000 pixels"),
        (claims(14_000, 14_000), "has 14,000 × 14,000 pixels"),
        (claims(2**31 - 1, 2**31 - 1), "pixels"),
        (tiff(1 << 18), "cut into 262,144 strips or tiles"),
        (tiff(1 << 18, ">"), "cut into 262,144 strips or tiles"),
    ],
)
def test_images_that_would_fill_memory(data: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "scaled" in words:
        monkeypatch.setenv("CLIPBENCH_MAX_PIXELS", "1000000")
    with pytest.raises(Oversized, match=words):
        decode(data, EYES)
    batch = next(
        decode_stream(iter([Sample("a", data)]), EYES, sizes=1, workers=0, overlap=False, on_bad_image="skip")
    )
    assert words in batch.bad[0].reason
    stream = decode_stream(iter([Sample("a", data)]), EYES, sizes=1, workers=0, overlap=False)
    with pytest.raises(DataError, match="image a cannot be taken: it "):
        next(stream)


def test_the_limit_is_one_of_pixels_and_holds_in_decoding_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPBENCH_MAX_PIXELS", raising=False)
    assert decoding.max_pixels() == MAX_PIXELS
    samples = [Sample("small", png(8, 8, "L")), Sample("large", png(9, 9, "L"))]
    for most, bad in ((64, ["large"]), (81, [])):
        monkeypatch.setenv("CLIPBENCH_MAX_PIXELS", "1")  # restored at the end
        decoding.allow_pixels(most)
        for workers in (0, 1):
            stream = decode_stream(
                iter(samples), EYES, sizes=2, workers=workers, overlap=False, on_bad_image="skip"
            )
            assert [b.id for batch in stream for b in batch.bad] == bad


def test_large_scans_give_no_warning() -> None:
    own = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_image(claims(12_000, 12_000)) as image:  # more than Pillow warns of
            assert image.size == (12_000, 12_000)
    assert own == Image.MAX_IMAGE_PIXELS


def test_what_a_record_says_of_the_limit(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPBENCH_MAX_PIXELS", "")
    images = [(i % 5, small.picture(i) if i else png(20, 10, "RGB")) for i in range(10)]
    data = class_copies.write_folder(tmp_path / "data", images, small.CLASSES)
    small.write_task(tmp_path / "cards")
    small.write_run(tmp_path / "run")
    arguments = _evaluation(tmp_path, data, "-q", "--on-bad-image", "skip")
    (bounded,) = json.loads(run(*arguments, "--max-pixels", "100").out)
    assert [bad["reason"] for bad in bounded["skipped"]] == [
        "it has 20 × 10 pixels, of which 100 are allowed (--max-pixels)"
    ]
    assert bounded["encoder"]["max_pixels"] == 100
    monkeypatch.setenv("CLIPBENCH_MAX_PIXELS", "")
    (whole,) = json.loads(run(*arguments).out)  # the features of the other limit are not taken
    assert whole["skipped"] == []
    assert "max_pixels" not in whole["encoder"]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_text_that_unfolds(kind: bytes) -> None:
    packed = zlib.compress(bytes(100 << 20))
    data = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind] + packed
    with pytest.raises(ValueError, match="Decompressed data too large"):
        decode(with_chunk(kind, data), EYES)


def test_of_a_moving_picture_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (250, 0, 0)]
    for kind in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:] * 50, **options)
        assert decode(buffer.getvalue(), EYES)[0, 0, 0] == 250


def test_the_picture_of_a_heat_map_is_bounded_too() -> None:
    made = _overlays.overlay(
        png(1, 60_000), np.ones((2, 2), np.float32), np.array([0.0, 0, 1, 9]), (0, 5), "a", hit=True, energy=1
    )
    assert made.width == 480
    assert made.height < 5_000


@pytest.mark.parametrize(
    ("resize", "words"), [("none", "the model takes 8×8"), ("pad", "the model takes up to 8×8")]
)
def test_an_image_of_another_size_is_no_broken_one(resize: str, words: str) -> None:
    how = EYES.model_copy(update={"resize": resize})
    stream = decode_stream(iter([Sample("a", png(9, 7, "RGB"))]), how, sizes=1, workers=0, overlap=False)
    with pytest.raises(DataError, match=f"image a cannot be taken: it is 9×7, {words}"):
        next(stream)
