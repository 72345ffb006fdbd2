"""Decoding: the pixels of open_clip's evaluation transform, and a stream over processes that leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clipbench.cards.model import Preprocess
from clipbench.data.decode import IMAGE_FORMATS, IMAGE_SUFFIXES, Crops, _scaled, decode, normalise, seen
from clipbench.data.decode_stream import Bad, OnBadImage, decode_stream
from clipbench.data.split import Sample
from clipbench.errors import DataError, StorageError
from clipbench.utils.cpu import cores

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
SMALL = Preprocess(size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1")
SHAPES = {
    "landscape": (311, 227),
    "portrait": (225, 401),
    "odd": (257, 333),
    "small": (37, 21),
    "exact": (224, 224),
    "one side exact": (224, 301),
    "narrow": (600, 9),
}


def test_a_format_that_this_pillow_lacks_is_named() -> None:
    samples = [Sample("a", b"\0\0\0\x1cftypheic" + bytes(40)), Sample("b", b"RIFF\0\0\0\0WEBP")]
    (batch,) = decode_stream(iter(samples), SMALL, sizes=2, workers=0, overlap=False, on_bad_image="skip")
    assert [bad.reason.partition(" (")[0] for bad in batch.bad] == [
        "it is damaged HEIC, or this Pillow", "it is damaged WebP, or this Pillow"
    ]  # fmt: skip


def test_formats_and_suffixes_are_pillows_own() -> None:
    known = Image.registered_extensions()  # which loads all formats, too
    assert set(IMAGE_FORMATS) <= set(Image.OPEN)
    of_formats = {suffix for suffix, kind in known.items() if kind in IMAGE_FORMATS}
    assert of_formats | {".mpo"} == IMAGE_SUFFIXES  # MPO is written by that name, and read as a JPEG
    assert not {"EPS", "PDF", "WMF", "MPEG", "HDF5"} & set(IMAGE_FORMATS)


# ------------------------------------------------------- against open_clip


def picture(mode: str, width: int, height: int, seed: int = 0) -> bytes:
    """An encoded image of `mode` with smooth areas and noise, lossless (CMYK: TIFF)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(4)], axis=2) * 90 + 128
    pixels = np.clip(waves + rng.normal(0, 25, waves.shape), 0, 255).astype(np.uint8)
    if mode in ("RGBA", "CMYK"):
        image = Image.frombytes(mode, (width, height), pixels.tobytes())
    elif mode == "P":
        image = Image.fromarray(pixels[..., :3]).quantize(64)
    else:
        image = Image.fromarray(pixels[..., :3]).convert(mode)
    assert image.mode == mode
    return encoded(image, "TIFF" if mode == "CMYK" else "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def ours(data: bytes, preprocess: Preprocess) -> torch.Tensor:
    return normalise(torch.from_numpy(decode(data, preprocess))[None], preprocess)[0]


def theirs(data: bytes, size: int, interpolation: str, resize: str = "shortest") -> torch.Tensor:
    transform = open_clip.image_transform(
        size, is_train=False, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=resize
    )
    tensor: torch.Tensor = transform(Image.open(io.BytesIO(data)))
    return tensor


@pytest.mark.parametrize("fill", [0, 7, 200])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", MODES)
def test_longest_equals_open_clip(mode: str, interpolation: Interpolation, fill: int) -> None:
    size = 65 if fill else 64
    transform = open_clip.image_transform(
        size, False, MEAN, STD, resize_mode="longest", interpolation=interpolation, fill_color=fill
    )
    preprocess = Preprocess(
        size=size, resize="longest", interpolation=interpolation, fill=fill, mean=MEAN, std=STD
    )
    for shape in (*SHAPES.values(), (3, 2), (1, 1), (size, size), (size, 7), (500, 5)):
        data = picture(mode, *shape)
        assert torch.equal(ours(data, preprocess), transform(Image.open(io.BytesIO(data)))), shape


def test_longest_of_an_image_that_vanishes() -> None:
    """Where open_clip ends with `height and width must be > 0`."""
    preprocess = Preprocess(size=16, resize="longest", mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="it is 1×400, of which nothing is left where its long side has 16"):
        decode(picture("RGB", 1, 400), preprocess)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 333), (50, 50)])
def test_longest_sees_the_whole_image_in_the_middle(width: int, height: int) -> None:
    left, top, right, bottom = seen(width, height, Preprocess(size=64, resize="longest", mean=MEAN, std=STD))
    assert right - left == pytest.approx(max(width, height), abs=8)
    assert bottom - top == pytest.approx(max(width, height), abs=8)
    assert (left + right) / 2 == pytest.approx(width / 2, abs=8)
    assert (top + bottom) / 2 == pytest.approx(height / 2, abs=8)


Resize = Literal["shortest", "squash"]
Interpolation = Literal["bilinear", "bicubic"]


def openai(
    size: int = 224, resize: Resize = "shortest", interpolation: Interpolation = "bicubic"
) -> Preprocess:
    return Preprocess(size=size, resize=resize, interpolation=interpolation, mean=MEAN, std=STD)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_bicubic_equals_open_clip(mode: str, shape: str) -> None:
    data = picture(mode, *SHAPES[shape])
    assert torch.equal(ours(data, openai()), theirs(data, 224, "bicubic"))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("mode", MODES)
def test_bilinear_and_squash_equal_open_clip(mode: str, resize: Resize) -> None:
    for shape in ("landscape", "small"):
        data = picture(mode, *SHAPES[shape])
        expected = theirs(data, 96, "bilinear", resize)
        assert torch.equal(ours(data, openai(96, resize, "bilinear")), expected)


def test_every_rounding_of_sizes_and_offsets_equals_open_clip() -> None:
    for width, height in [(w, h) for w in range(29, 40) for h in (31, 45, 46, 47, 58)]:
        data = picture("RGB", width, height)
        for size in (31, 32):
            assert torch.equal(ours(data, openai(size)), theirs(data, size, "bicubic")), (width, height, size)


def test_lossy_formats_and_rotation_tag_equal_open_clip() -> None:
    image = Image.open(io.BytesIO(picture("RGB", 300, 260)))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90°", which neither side follows
    for data in (
        encoded(image, "JPEG", exif=exif),
        encoded(image, "WEBP"),
        encoded(image.convert("CMYK"), "JPEG"),
    ):
        assert torch.equal(ours(data, openai()), theirs(data, 224, "bicubic"))


@pytest.mark.shared
def test_real_photographs_equal_open_clip(shared_data: Path) -> None:
    files = sorted((shared_data / "imagenet-native-96").rglob("*.[jJ][pP]*[gG]"))[::16]
    if not files:
        pytest.skip("no ../shared/data/imagenet-native-96")
    for file in files:
        data = file.read_bytes()
        assert torch.equal(ours(data, openai()), theirs(data, 224, "bicubic")), file.name


def test_interpolations_and_conversion_order_make_a_difference() -> None:
    data = picture("P", 300, 260)
    bicubic, bilinear = decode(data, openai()), decode(data, openai(interpolation="bilinear"))
    assert np.array_equal(bicubic, bilinear)  # Pillow resizes palettes without interpolation
    first = openai().model_copy(update={"order": "convert-first"})
    assert not np.array_equal(decode(data, first), bicubic)
    data = picture("RGB", 300, 260)
    assert not np.array_equal(decode(data, openai()), decode(data, openai(interpolation="bilinear")))


# ---------------------------------------------------------- without antialiasing

SIDES = (1, 2, 7, 8, 31, 57, 96, 333)


def plain(size: int, crop: int, resize: Resize = "shortest", channels: Literal[1, 3] = 3) -> Preprocess:
    return Preprocess(
        size=size, crop=crop, resize=resize, channels=channels, interpolation="bilinear-no-antialias",
        order="convert-first", mean=(0.5,) * channels, std=(1.0,) * channels,
    )  # fmt: skip


def noise(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def squashed(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """[side, side, 3]"""
    return decode(encoded(Image.fromarray(pixels), "PNG"), plain(side, side, "squash")).transpose(1, 2, 0)


def between_four(pixels: NDArray[np.uint8], y: float, x: float) -> list[float]:
    """The colour at a place, pixel i reaching from i to i + 1, from the four pixels around it; the edge goes on."""
    height, width, _ = pixels.shape
    top, left = math.floor(y - 0.5), math.floor(x - 0.5)
    down, right = y - 0.5 - top, x - 0.5 - left
    rows = [min(max(i, 0), height - 1) for i in (top, top + 1)]
    columns = [min(max(i, 0), width - 1) for i in (left, left + 1)]
    return [
        sum(
            share * wide * float(pixels[row, column, colour])
            for row, share in zip(rows, (1 - down, down), strict=True)
            for column, wide in zip(columns, (1 - right, right), strict=True)
        )
        for colour in range(3)
    ]


@pytest.mark.parametrize("side", [1, 8, 13])
@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("width", SIDES)
def test_each_pixel_lies_between_four(width: int, height: int, side: int) -> None:
    pixels = noise(width, height)
    places = [(i + 0.5) / side for i in range(side)]
    expected = [[between_four(pixels, y * height, x * width) for x in places] for y in places]
    # rounded once where both sides shrink; Pillow, which makes sides longer, rounds after each
    atol = 0.501 if min(width, height) >= side else 1.001
    np.testing.assert_allclose(squashed(pixels, side), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("width", SIDES)
@pytest.mark.parametrize("height", SIDES)
def test_opencv_and_torch_differ_by_one_grey_level_at_most(width: int, height: int) -> None:
    pixels = noise(width, height)
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    for side in (1, 5, 8, 64):
        ours = squashed(pixels, side).astype(int)
        resized = torch.nn.functional.interpolate(values, (side, side), mode="bilinear", antialias=False)
        assert np.abs(ours - resized[0].permute(1, 2, 0).round().int().numpy()).max() <= 1
        with contextlib.suppress(ModuleNotFoundError):
            opencv = importlib.import_module("cv2")
            assert np.abs(ours - opencv.resize(pixels, (side, side)).reshape(side, side, 3)).max() <= 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4, 3), [[44, 45, 101, 212], [72, 29, 221, 234], [121, 139, 20, 180]]),
        ((7, 2), [[65, 146, 48, 157, 87, 224, 182], [39, 109, 128, 162, 17, 143, 218]]),
        ((9, 6), [
            [0, 5, 16, 36, 63, 101, 147, 201, 252], [65, 119, 102, 72, 157, 103, 163, 210, 182],
        ]),
    ],
)  # fmt: skip
def test_numbers_of_opencv(size: tuple[int, int], expected: list[list[int]]) -> None:
    """`cv2.resize` with INTER_LINEAR, of opencv-python-headless 4.8.1 and 5.0.0, which agree."""
    pixels = (np.arange(35).reshape(5, 7) ** 2 * 7 % 256).astype(np.uint8)
    found = _scaled(Image.fromarray(pixels), *size, "bilinear-no-antialias")
    assert np.abs(np.asarray(found).astype(int)[: len(expected)] - expected).max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_short_side_without_antialiasing(shape: str) -> None:
    """Against torch on the whole image and its central crop; other modes are converted first."""
    width, height = SHAPES[shape]
    for channels in (1, 3):
        data = picture("P", width, height)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB"))
        values = torch.tensor(pixels.reshape(height, width, channels)).permute(2, 0, 1)[None].float()
        long = int(224 * max(width, height) / min(width, height))
        size = (long, 224) if width <= height else (224, long)
        resized = torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=False)[0]
        top, left = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        expected = resized[:, top : top + 224, left : left + 224].round().int()
        found = decode(data, plain(224, 224, channels=3 if channels == 3 else 1))
        assert np.abs(found.astype(int) - expected.numpy()).max() <= 1


def test_antialiasing_matters_where_images_shrink() -> None:
    small, large = noise(20, 20), noise(200, 200)
    smooth = plain(32, 32).model_copy(update={"interpolation": "bilinear"})
    for pixels, same in ((small, True), (large, False)):
        data = encoded(Image.fromarray(pixels), "PNG")
        assert np.array_equal(decode(data, plain(32, 32)), decode(data, smooth)) == same


def test_random_crops_without_antialiasing() -> None:
    """The same crops: where they hold a plane, smoothing changes nothing but their edges."""
    y, x = np.mgrid[:150, :200]
    plane = encoded(Image.fromarray(np.stack([y, x, (x + y) // 2], 2).astype(np.uint8)), "PNG")
    for epoch in range(8):
        crops = Crops(**plain(16, 16).model_dump(), seed=0, epoch=epoch)
        smooth = crops.model_copy(update={"interpolation": "bilinear"})
        found, expected = (decode(plane, each).astype(int)[:, 2:-2, 2:-2] for each in (crops, smooth))
        assert np.abs(found - expected).max() <= 1
        data = encoded(Image.fromarray(noise(200, 150)), "PNG")
        assert not np.array_equal(decode(data, crops), decode(data, smooth))


def test_crop_smaller_than_size_and_one_channel() -> None:
    data = picture("RGB", 300, 200)
    grey = Preprocess(size=100, crop=80, channels=1, mean=(0.5,), std=(0.5,))
    pixels = decode(data, grey)
    assert pixels.shape == (1, 80, 80)
    assert pixels.dtype == np.uint8
    expected = Image.open(io.BytesIO(data)).resize((150, 100), Image.Resampling.BICUBIC)
    expected = expected.crop((35, 10, 115, 90)).convert("L")
    assert np.array_equal(pixels[0], np.asarray(expected))


def test_without_resizing_another_size_is_refused() -> None:
    exact = Preprocess(size=8, resize="none", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert decode(picture("RGB", 8, 8), exact).shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"9×8.*8×8"):
        decode(picture("RGB", 9, 8), exact)


def test_smaller_images_are_padded_with_black_and_larger_ones_refused() -> None:
    padded = Preprocess(size=8, resize="pad", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    small = decode(picture("RGB", 5, 4), padded)
    whole = np.zeros((3, 8, 8), dtype=np.uint8)
    whole[:, 2:6, 2:7] = np.asarray(Image.open(io.BytesIO(picture("RGB", 5, 4)))).transpose(2, 0, 1)
    assert np.array_equal(small, whole)
    with pytest.raises(ValueError, match=r"9×8.*up to 8×8"):
        decode(picture("RGB", 9, 8), padded)


def test_normalise_is_per_channel() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    preprocess = Preprocess(size=1, mean=(0.0, 0.5, 0.1), std=(1.0, 0.25, 0.1))
    got = normalise(images, preprocess)
    torch.testing.assert_close(got, torch.tensor([0.0, 2.0, 1.0]).view(1, 3, 1, 1))
    assert got.dtype == torch.float32


# ------------------------------------------------------------------- stream


def numbered(count: int) -> list[Sample]:
    """Samples whose pixels all have their number as value."""
    return [
        Sample(f"s{i}", encoded(Image.new("RGB", (20 + i % 3, 18), (i, i, i)), "PNG")) for i in range(count)
    ]


def collect(
    samples: list[Sample], sizes: list[int], workers: int, overlap: bool, on_bad_image: OnBadImage = "stop"
) -> tuple[list[NDArray[np.uint8]], list[bool], list[Bad]]:
    images: list[NDArray[np.uint8]] = []
    good: list[bool] = []
    bad: list[Bad] = []
    for batch in decode_stream(
        iter(samples), SMALL, sizes=sizes, workers=workers, overlap=overlap, on_bad_image=on_bad_image
    ):
        images.append(batch.images.copy())
        good += batch.good.tolist()
        bad += batch.bad
    return images, good, bad


def children() -> set[int]:
    """Process ids of this process's children, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(stat.parent.name))
        except OSError:
            continue
    return found


def leftovers() -> set[Path]:
    """Entries of the folders that decoding buffers may lie in, whoever made them."""
    folders = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    return {path for folder in folders if folder.is_dir() for path in folder.iterdir()}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts processes in /proc")


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No process, open file or buffer may outlive the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()  # what tests before have left
    before = children(), descriptors()
    yield
    gc.collect()  # an error that was raised refers to frames, and these to a mapped buffer
    assert (children(), descriptors()) == before
    assert not [path for path in leftovers() if path.parent == tmp_path or "clipbench" in path.name]


@linux
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_stream_keeps_order_whatever_the_workers(workers: int, overlap: bool) -> None:
    sizes = [7, 1, 40, 13, 5]
    images, good, bad = collect(numbered(66), sizes, workers, overlap)
    assert [len(part) for part in images] == sizes
    assert np.concatenate(images)[:, 0, 0, 0].tolist() == list(range(66))
    assert all(part.shape[1:] == (3, 16, 16) for part in images)
    assert all(good)
    assert not bad


def test_stream_of_nothing() -> None:
    assert collect([], [], 2, True) == ([], [], [])


@linux
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_by_name(workers: int) -> None:
    samples = numbered(40)
    samples[3] = Sample("cut", samples[3].image[:-30])
    samples[30] = Sample("text", b"no image at all")
    samples[31] = Sample("empty", b"")
    images, good, bad = collect(samples, [20, 20], workers, False, "skip")
    assert [i for i, ok in enumerate(good) if not ok] == [3, 30, 31]
    assert [b.id for b in bad] == ["cut", "text", "empty"]
    assert "truncated" in bad[0].reason
    assert bad[1].reason == "not an image in any known format (15 bytes)"
    assert bad[2].reason == "there are no bytes"
    pixels = np.concatenate(images)
    assert not pixels[[3, 30, 31]].any()
    assert pixels[32, 0, 0, 0] == 32


@linux
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_image_stops_with_its_name(workers: int) -> None:
    samples = numbered(10)
    samples[4] = Sample("photos/odd.png", b"no image")
    samples[6] = Sample("photos/cut.png", samples[6].image[:40])
    with pytest.raises(DataError, match=r"photos/odd\.png cannot be decoded: not an image.*1 more") as caught:
        collect(samples, [10], workers, False)
    assert "--on-bad-image skip" in str(caught.value)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_truncated_files_are_bad_images(kind: str, keep: float) -> None:
    data = encoded(Image.open(io.BytesIO(picture("RGB", 60, 50))), kind)
    _, good, bad = collect([Sample("cut", data[: int(keep * len(data))])], [1], 0, False, "skip")
    assert not any(good)
    assert bad[0].reason


def test_image_that_claims_to_be_enormous_is_a_bad_image() -> None:
    header = encoded(Image.new("1", (8, 8)), "BMP")
    header = header[:18] + (60_000).to_bytes(4, "little") * 2 + header[26:]
    _, good, bad = collect([Sample("bomb", header)], [1], 0, False, "skip")
    assert not any(good)
    assert "60,000 × 60,000 pixels, of which" in bad[0].reason


@linux
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("gone", [False, True], ids=["dying", "gone"])
@pytest.mark.parametrize("big", [False, True], ids=["small", "big"])
def test_killed_worker_is_an_error_not_a_hang(big: bool, gone: bool) -> None:
    samples = numbered(60)
    if big:  # more than a pipe holds, so that writing fails, not only reading
        samples = [Sample(s.id, s.image + bytes(300_000)) for s in samples]
    before = children()
    stream = decode_stream(iter(samples), SMALL, sizes=[20, 20, 20], workers=2, overlap=False)
    next(stream)
    for child in children() - before:
        os.kill(child, signal.SIGKILL)
        if gone:
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"decoding process ended unexpectedly.*-9") as caught:
        list(stream)
    assert "--workers" in str(caught.value)
    assert time.monotonic() - start < 20


@linux
@pytest.mark.usefixtures("nothing_left")
def test_stream_closed_early() -> None:
    stream = decode_stream(iter(numbered(60)), SMALL, sizes=[10] * 6, workers=2, overlap=True)
    next(stream)
    stream.close()


@linux
@pytest.mark.usefixtures("nothing_left")
def test_error_of_the_source_comes_through() -> None:
    def source() -> Iterator[Sample]:
        yield from numbered(5)
        raise DataError("a tar file is cut short")

    with pytest.raises(DataError, match="cut short"):
        list(decode_stream(source(), SMALL, sizes=[4, 4], workers=2, overlap=True))


KILLED = """
import io, sys, time
import numpy as np
from PIL import Image
from clipbench.cards.model import Preprocess
from clipbench.data.split import Sample
from clipbench.data.decode_stream import decode_stream
buffer = io.BytesIO()
Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(buffer, "PNG")
samples = (Sample(str(i), buffer.getvalue()) for i in range(64))
preprocess = Preprocess(size=16, mean=(0, 0, 0), std=(1, 1, 1))
for batch in decode_stream(samples, preprocess, sizes=[16] * 4, workers=2, overlap=True):
    print("decoding", flush=True)
    time.sleep(60)
"""


@linux
def test_kill_minus_nine_leaves_no_process_and_no_buffer(tmp_path: Path) -> None:
    before = leftovers()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"decoding\n"
    group = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if _parent(p) == process.pid]
    assert len(group) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in group) and time.monotonic() < deadline:
        time.sleep(0.05)
    # A worker whose parent died belongs to init, which may never reap it here: a zombie holds nothing.
    assert all(_state(pid) in ("gone", "Z") for pid in group)
    assert not [path for path in leftovers() - before if "clipbench" in path.name]
    assert not list(tmp_path.iterdir())


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_no_room_for_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageError, match="No space left on device"):
        collect(numbered(4), [4], 1, False)


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
