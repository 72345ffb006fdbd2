"""Captions come out of every layout code point for code point as they were written, or a note counts what was made."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import small
from caption_copies import open_test, write

from clipbench.data.captions import keeps_spaces, plain_caption
from clipbench.errors import DataError

#: right-to-left with marks, combining marks in both forms, CJK with its own space, joined emoji, other white space
ODD = {
    "hebrew.png": ["שָׁלוֹם\u200f, עולם!", "\u202bשורה\u202c של \u2067טקסט\u2069"],
    "arabic.png": ["مَرْحَبًا بالعالم، صورة\u061c", "كـــلب في الحديقة"],
    "nfd.png": [
        "un cafe\u0301 a\u0300 Paris",
        "un caf\u00e9 \u00e0 Paris",
        "\u1112\u1161\u11ab\uae00",
        "\ud55c\uae00",
    ],
    "hindi.png": ["क्‍षत्रिय और क्‌ष", "नमस्ते दुनिया"],
    "cjk.png": ["日本　語の「犬」と猫。", "一只狗，在草地上跑。", "𠮷野家 ㍿ ﾊﾝｶｸ"],
    "emoji.png": ["👩‍👩‍👧‍👦 and 🏳️‍🌈", "🇩🇪 flag, ❤️ and ❤"],
    "spaces.png": [
        "one\u2028still one\u2029and on",
        "a\u00a0b\u202fc\u2009d",
        "next\u0085line",
        "no\u200bbreak\ufeffs",
    ],
    "thai.png": ["สุนัขในสวนสาธารณะ", "\u00a0begins and ends\u3000"],
    "quoted.png": ['"said", she', "a, b; c\\n | d", "it''s 100 % <b>&amp;</b>"],
}


def pictures(folder: Path) -> None:
    for number, name in enumerate(ODD):
        write(folder / name, small.picture(number))


def write_coco(root: Path) -> None:
    images = [{"id": n, "file_name": name} for n, name in enumerate(ODD)]
    texts = [{"image_id": n, "caption": text} for n, of in enumerate(ODD.values()) for text in of]
    found = json.dumps({"images": images, "annotations": texts}, ensure_ascii=False)
    write(root / "annotations/captions_test.json", found)
    pictures(root / "test")


def write_karpathy(root: Path) -> None:
    images = [
        {"filename": name, "split": "test", "sentences": [{"raw": text} for text in of]}
        for name, of in ODD.items()
    ]
    write(root / "dataset_odd.json", json.dumps({"images": images}))  # escaped, as Karpathy's are
    pictures(root / "images")


def write_rows(root: Path, name: str, delimiter: str, end: str, encoding: str = "utf-8") -> None:
    text = io.StringIO(newline="")
    rows = [("image", "caption"), *((image, text) for image, of in ODD.items() for text in of)]
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    write(root / name, text.getvalue().encode(encoding))
    pictures(root / "images")


def write_numbered(root: Path) -> None:
    rows = [f"{image}#{n}\t{text}" for image, of in ODD.items() for n, text in enumerate(of)]
    write(root / "Flickr8k.token.txt", "\n".join(rows))
    pictures(root / "images")


def write_bars(root: Path) -> None:
    rows = [f"{image}| {n}| {text}" for image, of in ODD.items() for n, text in enumerate(of)]
    write(root / "results.csv", "\n".join(["image_name| comment_number| comment", *rows]))
    pictures(root / "images")


def write_tar(root: Path, end: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, of in enumerate(ODD.values()):
            for ending, data in {"png": small.picture(number), "txt": end.join(of).encode()}.items():
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write(root / "test/0.tar", buffer.getvalue())


def write_parquet(root: Path, lines: bool = False) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": small.picture(n), "path": None} for n in range(len(ODD))]
    texts = ["\n".join(of) for of in ODD.values()] if lines else list(ODD.values())
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "caption": texts}), root / "test-00000.parquet")


WRITE: dict[str, Callable[[Path], None]] = {
    "coco": write_coco,
    "karpathy": write_karpathy,
    "csv": lambda root: write_rows(root, "captions.csv", ",", "\n"),
    "csv, crlf, bom": lambda root: write_rows(root, "captions.csv", ",", "\r\n", "utf-8-sig"),
    "tsv, utf-16": lambda root: write_rows(root, "captions.tsv", "\t", "\n", "utf-16"),
    "semicolons": lambda root: write_rows(root, "captions.csv", ";", "\r\n"),
    "flickr8k": write_numbered,
    "tar": lambda root: write_tar(root, "\n"),
    "tar, crlf": lambda root: write_tar(root, "\r\n"),
    "parquet": write_parquet,
    "parquet, lines": lambda root: write_parquet(root, lines=True),
}


@pytest.mark.parametrize("form", WRITE)
def test_captions_come_out_as_they_were_written(form: str, tmp_path: Path) -> None:
    WRITE[form](tmp_path)
    split = open_test(tmp_path)
    assert split.captions is not None
    assert list(split.captions.texts) == [text for of in ODD.values() for text in of]
    assert [note.kind for note in split.notes] == ["no-heading"] * (form == "flickr8k")


def test_bars_are_no_part_of_a_caption(tmp_path: Path) -> None:
    """Flickr30k's form has bars between its columns, and as they please in captions."""
    write_bars(tmp_path)
    split = open_test(tmp_path)
    assert split.captions is not None
    assert list(split.captions.texts) == [text for of in ODD.values() for text in of]


def test_white_space_of_ascii_is_made_single_spaces_and_counted(tmp_path: Path) -> None:
    write(
        tmp_path / "captions.csv", 'image,caption\na.png,"two  dogs \r\nrun"\na.png,a dog\nb.png,\tcats\x0c\n'
    )
    for number, name in enumerate(("a.png", "b.png")):
        write(tmp_path / "images" / name, small.picture(number))
    split = open_test(tmp_path)
    assert split.captions is not None
    assert split.captions.texts == ("two dogs run", "a dog", "cats")
    (note,) = split.notes
    assert str(note) == "2 captions had white space that was made single spaces (a.png, b.png)"


def test_a_copy_whose_white_space_is_kept_has_another_fingerprint() -> None:
    """Such white space once was made spaces, so that numbers on such a set are others."""
    assert not keeps_spaces(["a b", "a\tb \x0c", "日本"])
    assert all(keeps_spaces(["plain", f"a{space}b"]) for space in "\u00a0\u3000\u2028\u0085\u2009\u1680")
    assert plain_caption("\u3000 a \u00a0\r\n b \u2028") == "\u3000 a \u00a0 b \u2028"


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    write_karpathy(tmp_path)
    file = tmp_path / "dataset_odd.json"
    file.write_text(file.read_text().replace('"un caf', '"\\ud83d un caf', 1))
    with pytest.raises(DataError, match=r"caption 1 of image nfd\.png .* half of a character"):
        open_test(tmp_path)


def test_other_white_space_alone_is_no_caption(tmp_path: Path) -> None:
    images = [{"filename": "thai.png", "split": "test", "sentences": [{"raw": "\u3000\u00a0"}]}]
    write(tmp_path / "dataset_odd.json", json.dumps({"images": images}))
    pictures(tmp_path / "images")
    with pytest.raises(DataError, match=r"caption 1 of image thai\.png .* is empty"):
        open_test(tmp_path)
