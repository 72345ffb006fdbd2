"""WebDataset tars as people have them: every sample is read with its own image and label, or an error names it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from class_copies import message, opened
from small import CLASSES, picture

from clipbench.cards.base import fingerprint
from clipbench.data.split import Note, Split

#: the label of each of six pictures
LABELS = [2, 0, 1, 4, 3, 0]
Files = Iterable[tuple[str, bytes]]


def packed(files: Files, **header: Any) -> bytes:
    """A tar file of `files`; `header` are fields of all their headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in header.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return buffer.getvalue()


def write(root: Path, *tars: Files | bytes, suffix: str = ".tar") -> Path:
    (root / "test").mkdir(parents=True, exist_ok=True)
    for number, files in enumerate(tars):
        data = files if isinstance(files, bytes) else packed(files)
        (root / "test" / f"{number}{suffix}").write_bytes(data)
    return root


def stored(split: Split) -> list[tuple[str, bytes]]:
    return [(s.id, s.image) for s in split.samples(np.arange(len(split)))]


def cls(row: int) -> bytes:
    return str(LABELS[row]).encode()


def usual(row: int) -> list[tuple[str, bytes]]:
    return [(f"{row:03d}.png", picture(row)), (f"{row:03d}.cls", cls(row))]


def every(files: Callable[[int], Files]) -> list[tuple[str, bytes]]:
    return [file for row in range(6) for file in files(row)]


def labelled(
    text: Callable[[int], bytes] = cls, key: str = "{:03d}", image: str = "png", label: str = "cls"
) -> list[tuple[str, bytes]]:
    """All pictures and, beside each, its label as `text` says it."""
    return every(
        lambda row: [(f"{key.format(row)}.{image}", picture(row)), (f"{key.format(row)}.{label}", text(row))]
    )


def npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value))
    return buffer.getvalue()


def in_json(row: int) -> bytes:
    """A label in each of the forms that are read."""
    return json.dumps(
        (LABELS[row], {"label": LABELS[row]}, {"cls": LABELS[row], "url": "x"})[row % 3]
    ).encode()


IMAGES_APART = [(f"{row:03d}.png", picture(row)) for row in range(6)]
LABELS_APART = [(f"{row:03d}.cls", cls(row)) for row in (5, 3, 1, 0, 2, 4)]
GOOD: dict[str, tuple[Files, str]] = {
    "usual": (every(usual), "000"),
    "upper case": (labelled(image="PNG", label="CLS"), "000"),
    "suffixes that change": ([*labelled()[:6], *labelled(image="jpg")[6:]], "000"),
    "rare suffixes": (labelled(image="jfif", label="cls.txt"), "000"),
    "dots in keys": (labelled(key="img.{:03d}"), "img.000"),
    "dots in keys and in endings": (labelled(key="v1.2.{:03d}", label="label.txt"), "v1.2.000"),
    "folders in keys": (labelled(key="a.b/c/{:03d}"), "a.b/c/000"),
    "a dot and a slash in front": (labelled(key="./{:03d}"), "./000"),
    "images first, then labels": ([*IMAGES_APART, *LABELS_APART], "000"),
    "labels first, then images": ([*LABELS_APART, *IMAGES_APART], "000"),
    "JSON": (labelled(in_json, label="json"), "000"),
    "names": (labelled(lambda row: f"{CLASSES[LABELS[row]]}\n".encode()), "000"),
    "a byte order mark": (labelled(lambda row: b"\xef\xbb\xbf" + cls(row)), "000"),
    "one number in .npy": (labelled(lambda row: npy(LABELS[row]), label="npy"), "000"),
    "other files beside": (
        every(
            lambda row: [
                *usual(row),
                *((f"{row:03d}{end}", b"{}") for end in (".json", ".txt", ".depth.bin")),
            ]
        ),
        "000",
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_samples_are_read_with_their_own_image_and_label(case: str, tmp_path: Path) -> None:
    files, key = GOOD[case]
    root = write(tmp_path, files)
    for _ in range(2):  # from the tars, then from the index that is kept
        split = opened(root)
        assert stored(split) == [(f"0/{key.replace('000', f'{row:03d}')}", picture(row)) for row in range(6)]
        assert split.labels.tolist() == LABELS
        assert split.notes == ()


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".tar.gz", gzip.compress), (".tgz", gzip.compress), (".tar", gzip.compress)]
)
def test_compressed_tars(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    plain = opened(write(tmp_path / "plain", every(usual)[:6], every(usual)[6:]))
    split = opened(
        write(
            tmp_path / "gz", *(pack(packed(f)) for f in (every(usual)[:6], every(usual)[6:])), suffix=suffix
        )
    )
    assert stored(split) == stored(plain)
    assert split.labels.tolist() == LABELS
    assert [s.id for s in split.samples(np.array([1, 4, 5]))] == ["0/001", "1/004", "1/005"]
    cut = pack(packed(every(usual)))[:-30]
    assert "0.tgz is no whole tar file" in message(write(tmp_path / "cut", cut, suffix=".tgz"))


def test_what_is_ignored_is_counted_and_named(tmp_path: Path) -> None:
    junk = [
        ("./._000.png", b"mac"),
        ("__MACOSX/._000.cls", b"\xff"),
        ("README.md", b"hello"),
        ("stats.json", b"{}"),
    ]
    masks = [(f"{row:03d}.mask.png", picture(9)) for row in range(6)]
    root = write(tmp_path, [*masks, *every(usual), *junk], [])
    for _ in range(2):
        split = opened(root)
        assert [image for _, image in stored(split)] == [picture(row) for row in range(6)]
        assert split.labels.tolist() == LABELS
        assert split.notes == (
            Note("empty-tars", "tar files without a member", 1, ("1.tar",)),
            Note(
                "ignored-images",
                "images ignored: a sample's own lies beside them",
                6,
                ("0/000.mask.png", "0/001.mask.png", "0/002.mask.png"),
            ),
            Note(
                "ignored-files",
                "files in the tars ignored: they belong to no sample",
                4,
                ("0/./._000.png", "0/__MACOSX/._000.cls", "0/README.md"),
            ),
        )


WHOLE = packed(every(usual))
#: the place of the third header
THIRD = 2 * (512 + 512)


def _with(place: int, data: bytes) -> bytes:
    return WHOLE[:place] + data + WHOLE[place + len(data) :]


def _resized(size: bytes) -> bytes:
    """`WHOLE`, with another size in the third header, whose checksum is right."""
    header = bytearray(WHOLE[THIRD : THIRD + 512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return _with(THIRD, bytes(header))


BROKEN: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "it is empty"),
    "a web page": (b"<html>gone</html>" * 100, "invalid header at byte 0"),
    "cut between members": (WHOLE[:THIRD], "it ends without the mark that ends a tar file"),
    "cut in a header": (WHOLE[: THIRD + 100], "it ends within a header"),
    "cut in a file": (WHOLE[: THIRD + 600], "unexpected end of data"),
    "a header that rotted": (_with(THIRD + 5, b"\xff"), f"bad checksum at byte {THIRD:,}"),
    "a size below zero": (_resized(b"\xff" * 11 + b"\xf0"), "a header says -16 bytes"),
    "a huge size": (_resized(b"\x80" + b"\0" * 3 + b"\xff" * 8), "is no whole tar file"),
    "a size beyond the end": (_resized(b"77777777777\0"), "unexpected end of data"),
    "two tars in one": (WHOLE + WHOLE, "several tar files in one?"),
    "something behind the end": (WHOLE + b"tail", "bytes behind the mark that ends it"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tars_that_are_not_whole(case: str, tmp_path: Path) -> None:
    data, wanted = BROKEN[case]
    text = message(write(tmp_path, every(usual)[:2], data))
    assert text.startswith(f"{tmp_path / 'test' / '1.tar'} is no whole tar file: ")
    assert wanted in text


def test_the_same_tars_without_the_fault_are_read(tmp_path: Path) -> None:
    assert opened(write(tmp_path, every(usual)[:2], WHOLE[:-1024])).labels.tolist() == [2, *LABELS]


REFUSED: dict[str, tuple[Files, str]] = {
    "no image": (every(usual)[1:], "sample 000 has no image (there is 000.cls); 1 of 6 samples"),
    "an image of another kind": (
        [("006.heic", b"x"), ("006.cls", b"1"), *every(usual)],
        "sample 006 has no image (there is 006.heic, 006.cls)",
    ),
    "a mask and no image": (
        [("006.mask.png", b"x"), ("006.cls", b"1"), *every(usual)],
        "sample 006 has no image (there is 006.mask.png, 006.cls)",
    ),
    "no label": (every(usual)[:-1], "sample 005 has no label (there is 005.png); 1 of 6 samples"),
    "no label, a dot in the key": (
        [("a.1.png", b"x"), ("a.1.cls", b"1"), ("a.2.png", b"x")],
        "sample a.2 has no label (there is a.2.png)",
    ),
    "an empty label": ([*every(usual)[:-1], ("005.cls", b"\n")], "sample 005 has no label: 005.cls says none"),
    "JSON without a label": (
        [("000.png", b"x"), ("000.json", b'{"a": 1}')],
        "sample 000 has no label: 000.json says none\n  expected \"label\" or \"cls\"",
    ),
    "two images": ([*every(usual), ("005.jpg", b"x")], "005.png and 005.jpg belong to one sample; 1 such files"),
    "a key twice": ([*every(usual), *usual(2)], "002.png is there twice; 2 such files"),
    "labels that differ": (
        [*every(usual), ("005.label", b"1")],
        "sample 005 has several labels: .cls says 0, .label says 1",
    ),
    "no UTF-8": ([*every(usual)[:-1], ("005.cls", b"\xff")], "005.cls cannot be read: 'utf-8' codec"),
    "no array": (
        [("000.png", b"x"), ("000.npy", b"\x93NUMPY")],
        "000.npy cannot be read: ",
    ),
    "a name that is no class": (
        [("000.png", b"x"), ("000.cls", b"cat"), ("001.png", b"x"), ("001.cls", b"cta")],
        "sample 0/001",
    ),
    "nothing but images": ([("a.png", b"x")], "no sample: its files end in png; expected an image with a .cls,"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_sample_is_an_error_that_names_it(case: str, tmp_path: Path) -> None:
    files, wanted = REFUSED[case]
    assert wanted in message(write(tmp_path, files))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_no_files(kind: bytes, tmp_path: Path) -> None:
    odd = packed([("007.png", b"")], type=kind, linkname="000.png")
    text = message(write(tmp_path, packed(every(usual))[: 12 * 1024] + odd))
    what = "a link to 000.png" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "no ordinary file"
    assert f"0.tar: the member 007.png is {what}" in text
    folder = packed([("007", b"")], type=tarfile.DIRTYPE)
    assert len(opened(write(tmp_path, packed(every(usual))[: 12 * 1024] + folder))) == 6


def test_multi_label_rows_in_arrays_and_in_json(tmp_path: Path) -> None:
    rows = np.eye(6, 5, dtype=np.uint8) + np.eye(6, 5, 1, dtype=np.uint8)
    arrays = [(f"{i}.npy", npy(row)) for i, row in enumerate(rows)]
    lists = [(f"{i}.json", json.dumps({"label": row.tolist()}).encode()) for i, row in enumerate(rows)]
    images = [(f"{i}.png", picture(i)) for i in range(6)]
    for name, files in (
        ("a", arrays),
        ("b", lists),
        ("c", [*arrays, *((f"{i}.cls", b"0") for i in range(6))]),
    ):
        split = opened(write(tmp_path / name, [*images, *files]), kind="multi-label")
        assert split.labels.tolist() == rows.tolist()


def test_captions_beside_images(tmp_path: Path) -> None:
    card: dict[str, Any] = {
        "kind": "captions",
        "classes": None,
        "templates": None,
        "prompts_source": None,
        "protocols": {"ret": {}},
    }
    files = [
        ("a.1.jpg", picture(0)),
        ("a.1.txt", "\ufeffone\ntwo\r\n".encode()),
        ("a.2.jpg", picture(1)),
        ("a.2.txt", b"three"),
    ]
    split = opened(write(tmp_path / "a", files), **card)
    assert split.captions is not None
    assert split.captions.texts == ("one", "two", "three")
    assert split.captions.image.tolist() == [0, 0, 1]
    assert "sample a.2 has no label (there is a.2.jpg)" in message(write(tmp_path / "b", files[:3]), **card)
    assert "image 0/a.2 in" in message(write(tmp_path / "c", [*files[:3], ("a.2.txt", b"\n")]), **card)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_class_names_are_lines(end: str, tmp_path: Path) -> None:
    turned = [*CLASSES[1:], CLASSES[0]]
    files = every(
        lambda row: [(f"{row}.png", picture(row)), (f"{row}.cls", str((LABELS[row] - 1) % 5).encode())]
    )
    root = write(tmp_path, files)
    (root / "classnames.txt").write_bytes(("\ufeff" + end.join(turned) + end * 2).encode())
    assert opened(root).labels.tolist() == LABELS
    # beside the tars serves as well, unless it says something else
    (root / "classnames.txt").rename(root / "test" / "classnames.txt")
    assert opened(root).labels.tolist() == LABELS
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    assert "classnames.txt differ" in message(root)
    (root / "test" / "classnames.txt").write_bytes(f"cat{end}{end}dog".encode())
    (root / "classnames.txt").unlink()
    assert "classnames.txt:2: a blank line" in message(root)
    (root / "test" / "classnames.txt").write_bytes(b"\xff")
    assert "classnames.txt:1: not UTF-8" in message(root)
    for nothing in (b"", b" \n\n", b"\xef\xbb\xbf\n"):
        (root / "test" / "classnames.txt").write_bytes(nothing)
        assert "classnames.txt holds no class names" in message(root)
    (root / "test" / "classnames.txt").write_bytes(b"\ncat\ndog")
    assert "classnames.txt:1: a blank line" in message(root)


def test_class_names_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    files = every(lambda row: [(f"{row}.png", picture(row)), (f"{row}.cls", str(LABELS[row]).encode())])
    root = write(tmp_path, files)
    bare = opened(root)
    (hashed,) = [
        (f"test/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest())
        for path in root.glob("test/*.tar")
    ]
    columns = {"layout": "_WebDataset", "files": [hashed], "column": "image"}
    assert bare.fingerprint == fingerprint(columns)  # as before there were names in it
    seen = {bare.fingerprint}
    for names in (CLASSES, [*CLASSES[1:], CLASSES[0]]):
        (root / "classnames.txt").write_text("\n".join(names))
        split = opened(root)
        assert split.labels.tolist() == [CLASSES.index(names[label]) for label in LABELS]
        seen.add(split.fingerprint)
        (root / "classnames.txt").write_text("\r\n".join(names) + "\r\n")
        assert opened(root).fingerprint == split.fingerprint  # their content, and not how it is written
    assert len(seen) == 3


def test_a_character_that_ends_a_line_elsewhere_is_part_of_a_class_name(tmp_path: Path) -> None:
    names = ["cat\u2028a", "cat\u2028b", "dog"]
    root = write(tmp_path, [("0.png", picture(0)), ("0.cls", b"2")])
    (root / "classnames.txt").write_text("\n".join(names))
    assert opened(root, classes=names).labels.tolist() == [2]


def test_files_that_hold_a_split_twice(tmp_path: Path) -> None:
    root = write(tmp_path, WHOLE)
    (root / "test" / "0.tar.gz").write_bytes(gzip.compress(WHOLE))
    assert "have the same name" in message(root)
    (root / "test" / "0.tar.gz").unlink()
    pq.write_table(pa.table({"image": [b""], "label": [0]}), root / "test.parquet")
    assert "the test split in 2 layouts: parquet (test.parquet) and webdataset (0.tar)" in message(root)


def test_counts_that_the_copy_and_the_card_say_are_held(tmp_path: Path) -> None:
    root = write(tmp_path, WHOLE)
    (root / "test" / "nshards.txt").write_text("2\n")
    assert "nshards.txt says '2' tar files, 1 are there" in message(root)
    (root / "test" / "nshards.txt").write_text("1\n")
    assert len(opened(root, splits={"test": {"name": "test", "rows": 6}})) == 6
    text = "samples of the split are not in this copy: it has 6, the card says 7"
    assert opened(root, splits={"test": {"name": "test", "rows": 7}}).notes == (
        Note("missing-samples", text, 1),
    )
    assert "has 6 samples, the card says 5" in message(root, splits={"test": {"name": "test", "rows": 5}})


def test_a_kept_index_that_is_damaged_is_made_anew(
    tmp_path: Path, isolated_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path, every(usual))
    first = stored(opened(root))
    (kept,) = (isolated_cache / "splits").iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-7], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b"PAR1 no more"):
        kept.write_bytes(damaged)
        split = opened(root)
        assert (stored(split), split.labels.tolist()) == (first, LABELS)
        assert kept.read_bytes() == whole
        assert "it is made anew" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_escaped(tmp_path: Path) -> None:
    files = [("caf\udce9.png", picture(0)), ("caf\udce9.cls", b"1")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    split = opened(write(tmp_path, buffer.getvalue()))
    assert stored(split) == [("0/caf\\xe9", picture(0))]


def test_names_that_take_headers_of_their_own(tmp_path: Path) -> None:
    long = "folder/" * 30 + "x"
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
            for end, data in ((".png", picture(0)), (".cls", b"3")):
                member = tarfile.TarInfo(long + end)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        split = opened(write(tmp_path / str(number), buffer.getvalue()))
        assert stored(split) == [(f"0/{long}", picture(0))]
        assert split.labels.tolist() == [3]
