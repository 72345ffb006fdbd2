"""What an image is before it is resized: 16 bits, EXIF's turn, transparency, several frames; and the boxes in it."""

from __future__ import annotations

import functools
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import small
from numpy.typing import NDArray
from PIL import Image, ImageOps

import clipbench
from clipbench.cards.base import fingerprint
from clipbench.cards.model import Preprocess
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits, digits_scenes
from clipbench.data.decode import REMARKS, Crops, decode
from clipbench.data.decode_stream import decode_stream
from clipbench.data.images import frames, orientation, standard
from clipbench.data.paths import DataPaths
from clipbench.data.split import Sample
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, DataError
from clipbench.evaluation import Options, Result, evaluate
from clipbench.metrics import boxes
from clipbench.protocols import _overlays

one_thread = small.one_thread
COLOUR = Preprocess(size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
GREY = Preprocess(size=16, channels=1, order="convert-first", mean=(0.5,), std=(0.25,))
TURNED = COLOUR.model_copy(update={"orientation": "exif"})
TURNS = range(2, 9)
#: orientation → how an upright image is stored so that the tag turns it upright
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def tagged(image: Image.Image, tag: int, kind: str = "PNG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(image, kind, exif=exif, **options)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def noise(width: int = 23, height: int = 17, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tiff(values: NDArray[Any], bits: int, photometric: int = 1, data: bytes | None = None) -> bytes:
    """A grey TIFF, little-endian, of one strip."""
    height, width = values.shape
    data = values.tobytes() if data is None else data
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 9 * 12 + 4)]
    tags += [(277, 1), (278, height), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def remarks(*images: bytes, preprocess: Preprocess = COLOUR, workers: int = 0) -> list[tuple[str, str]]:
    samples = (Sample(f"s{i}", image) for i, image in enumerate(images))
    stream = decode_stream(
        samples, preprocess, sizes=len(images), workers=workers, overlap=False, on_bad_image="skip"
    )
    (batch,) = stream
    return list(batch.remarks)


# --------------------------------------------------------------------- 16 bits

EIGHT = noise(channels=1)
SIXTEEN = EIGHT.astype(np.uint16) * 257
FORMS = {
    "png": encoded(Image.fromarray(SIXTEEN)),
    "tiff": encoded(Image.fromarray(SIXTEEN), "TIFF"),
    "tiff, big-endian": encoded(Image.fromarray(SIXTEEN.astype(">u2")), "TIFF"),
    "tiff, white is 0": tiff(0xFFFF - SIXTEEN, 16, photometric=0),
    "jpeg 2000": encoded(Image.fromarray(SIXTEEN), "JPEG2000"),
    "pgm": b"P5 23 17 65535\n" + SIXTEEN.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("preprocess", [COLOUR, GREY, Crops(**dict(COLOUR), seed=0, epoch=0)])
@pytest.mark.parametrize("form", FORMS)
def test_16_bits_are_scaled_by_their_whole_range(form: str, preprocess: Preprocess) -> None:
    """An image of 8 bits, stored with 16, gives the same pixels: scaled before it is resized, in either order."""
    crops = isinstance(preprocess, Crops)
    if crops:  # whose draws depend on the file's bytes
        preprocess = preprocess.model_copy(update={"area": (1, 1), "ratio": (23 / 17, 23 / 17)})
    found, expected = (decode(data, preprocess) for data in (FORMS[form], encoded(Image.fromarray(EIGHT))))
    mirrored = crops and np.array_equal(found, expected[:, :, ::-1])
    assert mirrored or np.array_equal(found, expected)
    assert remarks(FORMS[form], preprocess=preprocess) == [("s0", "16-bit-scaled")]


def test_values_of_16_bits_are_rounded() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    made, _ = standard(Image.fromarray(values), "as-stored")
    assert np.array_equal(np.asarray(made).ravel(), np.rint(np.arange(65536) / 257).astype(np.uint8))


def test_12_bits_have_a_range_of_their_own() -> None:
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00])  # 4095, 0, 2048, 0
    made, _ = standard(opened(tiff(np.zeros((1, 4)), 12, data=packed)), "as-stored")
    assert np.asarray(made).tolist() == [[255, 0, 128, 0]]


def test_colours_of_16_bits_are_those_of_8() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    pixels = noise()
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in pixels)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 23, 17, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(decode(data, COLOUR), decode(encoded(Image.fromarray(pixels)), COLOUR))
    assert remarks(data) == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [("integers", EIGHT.astype(np.int32)), ("integers", EIGHT.astype(np.int16)), ("floats", EIGHT / 255)],
)
def test_what_has_no_range_is_refused(kind: str, values: NDArray[Any], tmp_path: Path) -> None:
    image = Image.fromarray(values.astype(np.float32) if kind == "floats" else values)
    expected = rf"cannot be decoded: its pixels are 32-bit {kind}, of which no range is defined; save it with 8 or 16"
    samples = iter([Sample("scan.tif", encoded(image, "TIFF"))])
    with pytest.raises(DataError, match=rf"image scan\.tif {expected}"):
        next(decode_stream(samples, COLOUR, sizes=1, workers=0, overlap=False))
    with pytest.raises(DataError, match=expected):
        clipbench.load_model(str(small.write_run(tmp_path / "run")), device="cpu").encode_images([image])


def digits_as(root: Path, bits: int) -> Path:
    """The test split of the built-in digits as a folder of PNG files."""
    split = digits("test", Catalog().dataset("digits").card.classes)
    for number, (pixels, label) in enumerate(zip(split.pixels, split.labels, strict=True)):
        folder = root / "test" / split.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        values = pixels.astype(np.uint16) * 257 if bits == 16 else pixels
        (folder / f"{number:03d}.png").write_bytes(encoded(Image.fromarray(values)))
    return root


def test_digits_of_16_bits_score_as_those_of_8(tmp_path: Path) -> None:
    catalog = Catalog()
    accuracies = []
    for bits in (8, 16):
        options = Options(
            Runtime("cpu", "fp32"),
            DataPaths({"digits": digits_as(tmp_path / f"{bits}", bits)}, ()),
            progress=False,
            limit=64,
        )
        (result,) = evaluate([catalog.model("digits-clip-lite")], catalog.tasks(["digits-zs"]), options)
        assert result.record is not None, result.error
        accuracies.append(result.record.scores["acc1"].value)
    assert accuracies[0] > 0.9
    assert accuracies[0] == accuracies[1]


def test_programs_may_hand_in_16_bits(tmp_path: Path) -> None:
    model = clipbench.load_model(str(small.write_run(tmp_path / "run")), device="cpu")
    found = model.encode_images([Image.fromarray(SIXTEEN), Image.fromarray(EIGHT)]).numpy()
    assert np.array_equal(found[0], found[1])


# ---------------------------------------------------------- what is dropped


def test_what_is_dropped_is_told() -> None:
    pixels = noise()
    half = Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]))
    opaque = half.copy()
    half.putpixel((0, 0), (9, 9, 9, 254))
    palette = Image.fromarray(pixels).quantize(8)
    frame = Image.fromarray(noise(seed=1))
    several = {"save_all": True, "append_images": [frame]}
    images = [
        encoded(half),
        encoded(opaque),
        encoded(half.convert("LA")),
        encoded(palette, transparency=palette.getpixel((3, 3))),
        encoded(palette, transparency=bytes([255, 255, 100, 255, 255, 255, 255, 255])),
        encoded(palette),
        encoded(Image.fromarray(pixels), transparency=tuple(pixels[4, 4].tolist())),
        encoded(Image.fromarray(EIGHT), transparency=int(EIGHT[4, 4])),
        *(
            encoded(Image.fromarray(pixels), kind, **several)
            for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO")
        ),
        encoded(Image.fromarray(pixels), "GIF"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow has one for palettes
        found = remarks(*images)
    alpha = [(f"s{i}", "alpha-dropped") for i in (0, 2, 3, 4, 6, 7)]
    assert found == [*alpha, *((f"s{i}", "first-frame") for i in range(8, 13))]
    for data in images:  # no pixel is another for it
        expected = opened(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = COLOUR.model_copy(update={"size": 17, "crop": 17})
            assert np.array_equal(
                decode(data, exact),
                np.asarray(expected.crop((3, 0, 20, 17)).convert("RGB")).transpose(2, 0, 1),
            )


def test_a_palette_that_is_not_there_makes_a_bad_image() -> None:
    whole = encoded(Image.fromarray(noise()).quantize(8))
    at = whole.index(b"PLTE") - 4
    bare = whole[:at] + whole[at + 12 + int.from_bytes(whole[at : at + 4], "big") :]
    samples = iter([Sample("whole", whole), Sample("bare", bare)])
    (batch,) = decode_stream(samples, COLOUR, sizes=[2], workers=0, overlap=False, on_bad_image="skip")
    assert batch.good.tolist() == [True, False]
    assert [(bad.id, bad.reason) for bad in batch.bad] == [
        ("bare", "its colours are numbers of a palette that it lacks")
    ]


def test_a_broken_second_frame_is_not_wanted() -> None:
    frame = Image.fromarray(noise())
    data = encoded(frame, "GIF", save_all=True, append_images=[Image.fromarray(noise(seed=1))])
    for end in range(len(data) // 2, len(data)):
        try:
            expected = np.asarray(opened(data[:end]).convert("RGB"))
        except OSError:
            continue
        assert np.array_equal(
            np.asarray(standard(opened(data[:end]), "as-stored")[0].convert("RGB")), expected
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_remarks_come_with_the_batch_in_order(workers: int) -> None:
    plain, deep = encoded(Image.fromarray(noise())), FORMS["png"]
    turned = tagged(Image.fromarray(SIXTEEN), 6)
    found = remarks(plain, deep, b"no image", turned, *[plain] * 30, deep, workers=workers)
    assert found == [
        ("s1", "16-bit-scaled"),
        ("s3", "16-bit-scaled"),
        ("s3", "exif-turn-ignored"),
        ("s34", "16-bit-scaled"),
    ]
    assert {kind for _, kind in found} <= set(REMARKS)


# ------------------------------------------------------------------------ EXIF


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_turns_are_followed_where_the_card_says_so(kind: str) -> None:
    image = Image.fromarray(noise())
    for tag in (0, 1, *TURNS, 9):
        data = tagged(image, tag, kind)
        followed = kind == "TIFF" or tag not in TURNS  # Pillow turns TIFF by itself
        upright = ImageOps.exif_transpose(opened(data))
        assert orientation(opened(data)) == (tag if tag in TURNS else 1)
        made, kinds = standard(opened(data), "exif")
        assert np.array_equal(np.asarray(made), np.asarray(upright))
        assert kinds == (("exif-turned",) if tag in TURNS else ())
        left, kinds = standard(opened(data), "as-stored")
        assert np.array_equal(np.asarray(left), np.asarray(opened(data)))
        assert kinds == (() if tag not in TURNS else ("exif-turned",) if followed else ("exif-turn-ignored",))
        stored = ((23, 17), tag if tag in TURNS else 1)
        assert frames(opened(data), "exif") == (*stored, stored[1])
        assert frames(opened(data), "as-stored") == (*stored, stored[1] if followed else 1)


def test_a_png_may_have_its_tag_at_the_end() -> None:
    data = tagged(Image.fromarray(noise()), 6)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert orientation(opened(late)) == 6
    assert decode(late, TURNED).tolist() == decode(data, TURNED).tolist()


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + b"\x13\x01\x03\0\1\0\0\0\6\0\0\0" * 3,
        b"II*\0\x08\0\0\0\1\0\x12\x01\x03\0\1\0",
        b"II*\0\x08\0\0\0\1\0\x12\x01\x02\0\4\0\0\0six\0",
        b"II*\0\x08\0\0\0\1\0\x12\x01\x03\0\1\0\0\0\x77\0\0\0",
        b"not exif at all",
    ],
)
def test_malformed_exif_turns_nothing_and_raises_nothing(exif: bytes) -> None:
    image = Image.fromarray(noise())
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(image, kind, exif=exif)
        assert np.array_equal(decode(data, TURNED), decode(encoded(image, kind), TURNED))
        assert remarks(data, preprocess=TURNED) == []


def test_either_byte_order_and_any_width_of_the_number() -> None:
    for exif in (
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\x01\x03\0\1\0\0\0\6\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\x03\0\0\0\1\0\6\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\x04\0\0\0\1\0\0\0\6",
    ):
        image = opened(encoded(Image.fromarray(noise()), "JPEG", exif=exif + bytes(8)))
        assert image.getexif()[0x0112] == 6
        assert orientation(image) == 6


def test_programs_images_are_turned_like_files(tmp_path: Path) -> None:
    run = small.write_run(tmp_path / "run")
    card = json.loads((run / "card.yaml").read_text())
    card["preprocess"]["orientation"] = "exif"
    (run / "card.yaml").write_text(json.dumps(card))
    model = clipbench.load_model(str(run), device="cpu")
    upright = Image.fromarray(noise())
    data = tagged(upright.transpose(STORED[6]), 6)
    (tmp_path / "photo.png").write_bytes(data)
    found = model.encode_images(
        [upright, opened(data), tmp_path / "photo.png", ImageOps.exif_transpose(opened(data))]
    )
    assert all(np.array_equal(row, found[0]) for row in found)


def test_cards_that_do_not_name_it_stay_what_they_were() -> None:
    assert "orientation" not in COLOUR.canonical()
    assert TURNED.canonical()["orientation"] == "exif"
    assert fingerprint(COLOUR.canonical()) != fingerprint(TURNED.canonical())
    assert Catalog().model("clip-lite-r50").card.preprocess.orientation == "exif"
    assert "boxes" not in Catalog().dataset("refcoco").card.canonical()


# ----------------------------------------------------------------------- boxes


@pytest.mark.parametrize("tag", range(1, 9))
def test_boxes_turn_with_the_image(tag: int) -> None:
    size, box = (23, 17), np.array([[2.0, 3, 9, 5], [0, 0, 23, 17], [1, 1, 2, 16]])
    turned = boxes.turn(box, size, tag)
    for before, after in zip(box, turned, strict=True):
        mask = Image.new("L", size)
        x0, y0, x1, y1 = before.astype(int).tolist()
        mask.paste(255, (x0, y0, x1, y1))
        made = opened(tagged(mask, tag))
        assert ImageOps.exif_transpose(made).getbbox() == tuple(after.astype(int).tolist())
    np.testing.assert_array_equal(boxes.turn_back(turned, size, tag), box)


CARD: dict[str, Any] = {
    "title": "Halves of scenes",
    "source": {"local": True},
    "splits": {"test": {"name": "test"}},
    "kind": "expressions",
    "protocols": {"ground": {}},
}
Frame = Literal["as-stored", "exif"]
FRAMES: tuple[Frame, ...] = ("as-stored", "exif")


@functools.cache
def halves(count: int = 16) -> tuple[list[Image.Image], list[tuple[int, str, list[float]]]]:
    """Upper halves of scenes of digits, 32 × 16 px, and (image, text, box) of what they show."""
    split = digits_scenes("test", Catalog().dataset("digits-scenes").card.classes)
    assert split.expressions is not None
    found = []
    for text, image, box in zip(
        split.expressions.texts,
        split.expressions.image.tolist(),
        split.expressions.boxes.tolist(),
        strict=True,
    ):
        if image < count and box[3] <= 16:
            found.append((image, text, box))
    return [Image.fromarray(split.pixels[i, :16]) for i in range(count)], found


def write_halves(root: Path, tag: int, given: Frame, *, with_tag: bool = True, kind: str = "PNG") -> None:
    """The halves stored as `tag` turns them upright, their boxes in the frame `given`."""
    images, found = halves()
    (root / "images").mkdir(parents=True)
    listed = []
    detected: dict[str, list[list[float]]] = {}
    for number, upright in enumerate(images):
        image = upright.transpose(STORED[tag]) if tag in STORED else upright
        data = tagged(image, tag, kind) if with_tag else encoded(image, kind)
        (root / "images" / f"{number}.{kind.lower()}").write_bytes(data)
    for number, text, box in found:
        stored = (16, 32) if tag >= 5 else (32, 16)
        own = boxes.turn_back(np.array([box]), stored, tag)[0].tolist() if given == "as-stored" else box
        listed.append({"file_name": f"{number}.{kind.lower()}", "expression": text, "bbox_xyxy": own})
        detected.setdefault(f"{number}.{kind.lower()}", []).append(own)
    (root / "referring_expressions.json").write_text(json.dumps(listed))
    (root / "detections.json").write_text(json.dumps(detected))


Measure = Callable[..., Result]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def run_it(name: str, follow: Frame, declared: Frame | None, pictures: int = 0) -> Result:
        cards = tmp_path / name / "cards"
        cards.mkdir()
        (cards / "halves.yaml").write_text(json.dumps(CARD | ({"boxes": declared} if declared else {})))
        preprocess = Catalog().model("digits-clip-lite").card.preprocess.canonical() | {"orientation": follow}
        weights = (
            Path(Catalog().model("digits-clip-lite").folder) / "weights" / "digits-clip-lite.safetensors"
        )
        model = {"base": "digits-clip-lite", "preprocess": preprocess, "weights": {"file": str(weights)}}
        (cards / "digits.yaml").write_text(json.dumps(model))
        catalog = Catalog([cards])
        options = Options(
            Runtime("cpu", "fp32"), DataPaths({"halves": tmp_path / name / "data"}, ()), progress=False,
            pictures=pictures,
        )  # fmt: skip
        (result,) = evaluate([catalog.model("digits")], catalog.tasks(["halves-ground"]), options)
        return result

    return run_it


def values(result: Result) -> list[float]:
    """Pointing game, heat in the box, IoU with the detector's boxes, and their chances."""
    assert result.record is not None, result.error
    scores = result.record.scores
    names = ("pointing_game", "heat_energy_in_box", "acc@iou0.5")
    return [scores[n].value for n in names] + [scores[n].chance or 0.0 for n in names]


@pytest.mark.parametrize("tag", [3, 6, 7])
def test_pointing_game_in_either_frame_is_that_of_the_upright_image(
    tag: int, measure: Measure, tmp_path: Path
) -> None:
    write_halves(tmp_path / "upright" / "data", 1, "as-stored")
    expected = values(measure("upright", "as-stored", None))
    assert expected[0] > 0.8
    for frame in FRAMES:
        write_halves(tmp_path / frame / "data", tag, frame)
        assert values(measure(frame, "exif", frame)) == pytest.approx(expected)


@pytest.mark.parametrize("tag", [2, 6, 8])
def test_a_model_that_does_not_turn_has_the_boxes_of_the_stored_image(
    tag: int, measure: Measure, tmp_path: Path
) -> None:
    write_halves(tmp_path / "untagged" / "data", tag, "as-stored", with_tag=False)
    expected = values(measure("untagged", "as-stored", None))
    for frame in FRAMES:
        write_halves(tmp_path / frame / "data", tag, frame)
        assert values(measure(frame, "as-stored", frame)) == pytest.approx(expected)


def test_tiff_is_turned_whatever_the_card_says(measure: Measure, tmp_path: Path) -> None:
    write_halves(tmp_path / "upright" / "data", 1, "as-stored")
    expected = values(measure("upright", "as-stored", None))
    ways: list[tuple[Frame, Frame]] = [
        ("as-stored", "as-stored"),
        ("exif", "as-stored"),
        ("as-stored", "exif"),
    ]
    for frame, follow in ways:
        name = f"{frame} {follow}"
        write_halves(tmp_path / name / "data", 6, frame, kind="TIFF")
        assert values(measure(name, follow, frame)) == pytest.approx(expected)


def test_boxes_without_a_frame_are_refused(measure: Measure, tmp_path: Path) -> None:
    write_halves(tmp_path / "some" / "data", 6, "exif")
    result = measure("some", "exif", None)
    assert result.error is not None
    assert "halves: 13 of 13 images" in str(result.error)
    assert "the first is 0.png" in str(result.error)
    assert "halves.yaml: boxes: as-stored (" in str(result.error)
    with pytest.raises(ValueError, match="boxes belongs to sets of expressions"):
        TaskCard.model_validate(Catalog().dataset("digits").card.canonical() | {"boxes": "exif"})


def test_a_box_is_checked_in_its_own_frame(measure: Measure, tmp_path: Path) -> None:
    write_halves(tmp_path / "wrong" / "data", 6, "exif")
    result = measure("wrong", "exif", "as-stored")  # a box at 30 px, where the stored image has 16
    assert result.error is not None
    assert "outside the image of 16 × 32 px" in str(result.error)


def test_overlays_show_what_the_model_saw(measure: Measure, tmp_path: Path) -> None:
    write_halves(tmp_path / "upright" / "data", 1, "as-stored")
    write_halves(tmp_path / "turned" / "data", 6, "as-stored")
    expected, found = (
        measure(name, follow, frame, pictures=3).pictures
        for name, follow, frame in (("upright", "as-stored", None), ("turned", "exif", "as-stored"))
    )
    assert len(found) == 4
    assert found == expected


def test_overlay_of_16_bits_is_not_white() -> None:
    heat = np.zeros((17, 23), dtype=np.float32)
    box = np.array([1.0, 1, 4, 4])
    grey, deep = (
        _overlays.overlay(data, heat, box, (0, 0), "a", hit=True, energy=0.0)
        for data in (encoded(Image.fromarray(EIGHT)), FORMS["png"])
    )
    assert np.array_equal(np.asarray(grey), np.asarray(deep))


def test_card_names_what_is_allowed(tmp_path: Path) -> None:
    small.write_run(tmp_path / "run")
    card = json.loads((tmp_path / "run" / "card.yaml").read_text())
    card["preprocess"]["orientation"] = "upright"
    (tmp_path / "run" / "card.yaml").write_text(json.dumps(card))
    with pytest.raises(
        CardError, match=r"preprocess\.orientation: .*'as-stored' or 'exif', found \"upright\""
    ):
        Catalog().model(str(tmp_path / "run"))
