"""Caption tables as people have them: each gives the captions of the plain one, or an error that says what to write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from caption_copies import coco, karpathy, open_test, write, write_coco, write_pictures

from clipbench.cards.pairs import ShardPairs
from clipbench.cards.task import Columns
from clipbench.data.layouts._caption_tables import HEADINGS, read
from clipbench.data.layouts.parquet import captions_of
from clipbench.data.pairs.shards import captions
from clipbench.data.split import Split
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError

PAIRS = [("b.png", "A dog, a ball"), ("b.png", 'It says "stop"'), ("a.png", "A cat"), ("c.png", "Two hens")]
TEXTS = [text for _, text in PAIRS]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


CSV = [f"{image},{quoted(text)}" for image, text in PAIRS]


def open_table(root: Path, content: str | bytes, name: str = "captions.txt", **card: Any) -> Split:
    write(root / name, content)
    write_pictures(root / "images")
    return open_test(root, **card)


def joined(*rows: str, end: str = "\n") -> str:
    return end.join([*rows, ""])


#: name → content, file, kinds of notes
TABLES: dict[str, tuple[str | bytes, str, list[str]]] = {
    "plain": (joined("image,caption", *CSV), "captions.txt", []),
    "csv": (joined("image,caption", *CSV), "captions_test.csv", []),
    "crlf": (joined("image,caption", *CSV, end="\r\n"), "captions.txt", []),
    "cr": (joined("image,caption", *CSV, end="\r"), "captions.txt", []),
    "bom": (b"\xef\xbb\xbf" + joined("image,caption", *CSV).encode(), "captions.txt", []),
    "utf-16": (joined("image,caption", *CSV).encode("utf-16"), "captions.txt", []),
    "utf-32": (joined("image,caption", *CSV).encode("utf-32"), "captions.txt", []),
    "capitals and spaces": (joined("Image Name, Caption", *CSV), "captions.txt", []),
    "swapped": (joined("caption,image", *(f"{quoted(t)},{i}" for i, t in PAIRS)), "captions.txt", []),
    "no heading": (joined(*CSV), "captions.txt", ["no-heading"]),
    "no heading, tabs": (joined(*(f"{i}\t{quoted(t)}" for i, t in PAIRS)), "captions.tsv", ["no-heading"]),
    "index of pandas": (
        joined(",image,caption", *(f"{n},{r}" for n, r in enumerate(CSV))), "captions.csv", ["unread-columns"]
    ),
    "number": (
        joined("image_name,comment_number,comment", *(f"{i},{n},{quoted(t)}" for n, (i, t) in enumerate(PAIRS))),
        "captions.txt",
        ["unread-columns"],
    ),
    "one more column": (joined("filename,raw,url", *(f"{r},x" for r in CSV)), "captions.txt", ["unread-columns"]),
    "split": (
        joined("image,caption,split", *(f"{r},test" for r in CSV), "z.png,Pigs,train"),
        "captions.txt",
        ["rows-of-other-splits"],
    ),
    "tabs": (joined("image\tcaption", *(f"{i}\t{quoted(t)}" for i, t in PAIRS)), "captions.txt", []),
    "semicolons": (joined("image;caption", *(f"{i};{quoted(t)}" for i, t in PAIRS)), "captions.csv", []),
    "unquoted": (joined("image,caption", *(f"{i},{t}" for i, t in PAIRS)), "captions.txt", ["unquoted-captions"]),
    "line break": (joined("image,caption", *CSV).replace("dog, ", "dog,\n"), "captions.txt", ["white-space"]),
    "flickr8k": (joined(*(f"{i}#{n}\t{t}" for n, (i, t) in enumerate(PAIRS))), "Flickr8k.token.txt", ["no-heading"]),
    "bars": (
        joined("image_name| comment_number| comment", *(f"{i}| {n}| {t}" for n, (i, t) in enumerate(PAIRS)))
        .replace("| 2| ", "| 2 "),
        "results.csv",
        ["unread-columns", "missing-bars"],
    ),
    "form feed": (joined("image,caption", *CSV).replace("A cat", "A\x0ccat \x1c"), "captions.txt", ["white-space"]),
    "blank lines": (joined("", "image,caption", "", *CSV, "", " "), "captions.txt", []),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_every_table_gives_the_captions_of_the_plain_one(case: str, tmp_path: Path) -> None:
    content, name, notes = TABLES[case]
    split = open_table(tmp_path, content, name)
    assert split.captions is not None
    assert list(split.captions.texts) == TEXTS
    assert split.captions.image.tolist() == [0, 0, 1, 2]
    assert split.ids == ["b.png", "a.png", "c.png"]
    assert [note.kind for note in split.notes] == notes
    assert [s.image for s in split.samples(np.arange(3))] == [small.picture(n) for n in range(3)]


def test_quotes_are_text_where_a_form_has_no_quoting(tmp_path: Path) -> None:
    """Flickr8k.token.txt and results.csv hold captions that begin with a quote, which is theirs."""
    split = open_table(tmp_path / "a", 'a.png#0\t" Stop " sign\nb.png#0\t"Go"\n', "Flickr8k.token.txt")
    assert split.captions is not None
    assert split.captions.texts == ('" Stop " sign', '"Go"')
    bars = 'image_name| comment_number| comment\na.png| 0| "Go"\n'
    split = open_table(tmp_path / "b", bars, "results.csv")
    assert split.captions is not None
    assert split.captions.texts == ('"Go"',)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png,A dog, a cat\n", r"captions\.txt:1: 3 fields, and no heading says what they are.*\n.*image,caption"),
        ("a.png,0,A cat\nb.png,1,A\n", r"captions\.txt:1: 3 fields, and no heading"),
        ("picture,words\na.png,A\n", r"its first line is 'picture,words'; expected a heading, .*\n.*columns\.image"),
        ("", r"captions\.txt: its first line is ''"),
        ("image,caption\na.png,\"A\nb.png,B\n", r"captions\.txt:2: a quote opens here .*'a\.png,\"A'"),
        ('image,caption\nb.png,B\na.png,"A" cat\n', r"captions\.txt:3: a quote opens here .*\n.*twice"),
        ('image,caption\na.png,a,"b, c"\n', r"captions\.txt:2: 3 fields, the heading has 2.*\n.*double quotes"),
        ("caption,image\nA, b,a.png\n", r"captions\.txt:2: 3 fields, the heading has 2"),
        ("image,caption,url\na.png,A\n", r"captions\.txt:2: expected image,caption,url, found 'a\.png,A'"),
        ("image,text,title\na.png,A,B\n", r"the columns 'text' and 'title' may all be the caption\n.*columns\.capt"),
        ("image,caption,split\na.png,A,val\n", r"no row of the split test \(its column 'split' holds 'val'\)"),
        ("image,caption\na.png,A\0\n", r"captions\.txt:2: a NUL character"),
        (b"image,caption\nb.png,B\na.png,caf\xe9\n", r"captions\.txt:3: not UTF-8 \(byte 31 is 0xe9\)\n.*-f latin1"),
    ],
)  # fmt: skip
def test_tables_that_are_wrong(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_table(tmp_path, content)


def test_the_card_chooses_among_columns(tmp_path: Path) -> None:
    table = "image,caption,text\na.png,A,B\n"
    split = open_table(tmp_path / "a", table, columns={"caption": "text"})
    assert split.captions is not None
    assert split.captions.texts == ("B",)
    assert open_table(tmp_path / "b", table).captions.texts == ("A",)  # type: ignore[union-attr]
    odd = "bild;beschreibung\na.png;A, B\n"
    split = open_table(tmp_path / "c", odd, columns={"image": "bild", "caption": "beschreibung"})
    assert split.captions is not None
    assert split.captions.texts == ("A, B",)
    with pytest.raises(
        DataError, match=r"first line is 'bild;bes.*expected columns\.caption of the task card"
    ):
        open_table(tmp_path / "d", odd, columns={"caption": "satz"})


def test_a_column_of_splits_serves_every_split(tmp_path: Path) -> None:
    table = "image,caption,split\nb.png,B,train\na.png,A,test\nc.png,C,restval\n"
    splits = {"train": {"name": "train"}, "test": {"name": "test"}}
    write(tmp_path / "captions.csv", table)
    write_pictures(tmp_path / "images")
    train, test = (open_test(tmp_path, role, splits=splits) for role in splits)
    assert (train.ids, test.ids) == (["b.png", "c.png"], ["a.png"])
    assert [(n.count, n.text) for n in test.notes] == [
        (2, "rows of the table belong to other splits (1 to 'train', 1 to 'restval')")
    ]  # its images are not said to lack captions


def test_what_a_table_leaves_out_is_counted(tmp_path: Path) -> None:
    split = open_table(tmp_path, "image,caption\nb.png,B\nb.png, B\nb.png,C\n")
    assert [(note.kind, note.count, note.examples) for note in split.notes] == [
        ("images-without-captions", 2, ("a.png", "c.png")),
        ("repeated-captions", 1, ("b.png",)),
        ("white-space", 1, ("b.png",)),
    ]


# ------------------------------------------------------------------------ JSON

Change = Callable[[dict[str, Any]], Any]


def as_texts(found: dict[str, Any]) -> None:
    for entry in found["images"]:
        entry["id"] = str(entry["id"])


def as_addresses(found: dict[str, Any]) -> None:
    for entry in found["images"]:
        entry["file_name"] = f"http://images.example/val2017/{entry['file_name']}?x=1"


def below_folder(found: dict[str, Any]) -> None:
    for entry in found["images"]:
        entry["file_name"] = f"test/{entry['file_name']}"


@pytest.mark.parametrize(
    ("change", "notes"), [(as_texts, []), (as_addresses, [("file-names-cut", 3)]), (below_folder, [])]
)
def test_coco_files_of_other_forms(change: Change, notes: list[Any], tmp_path: Path) -> None:

    write_coco(tmp_path / "plain")
    write_coco(tmp_path / "other")
    found = coco()
    change(found)
    write(tmp_path / "other/annotations/captions_test.json", json.dumps(found))
    plain, other = open_test(tmp_path / "plain"), open_test(tmp_path / "other")
    assert plain.captions is not None
    assert other.captions is not None
    assert other.captions.texts == plain.captions.texts
    assert [s.image for s in other.samples(np.arange(3))] == [s.image for s in plain.samples(np.arange(3))]
    assert [(note.kind, note.count) for note in other.notes] == [*notes, ("white-space", 2)]


def test_addresses_that_end_alike_are_refused(tmp_path: Path) -> None:

    write_coco(tmp_path)
    found = coco()
    for number, entry in enumerate(found["images"]):
        entry["file_name"] = f"http://images.example/{number}/b.png"
    write(tmp_path / "annotations/captions_test.json", json.dumps(found))
    with pytest.raises(DataError, match=r"last part, which is looked for,: b\.png is there twice"):
        open_test(tmp_path)


def test_images_of_other_splits_are_not_said_to_lack_captions(tmp_path: Path) -> None:

    write(tmp_path / "dataset_pets.json", json.dumps(karpathy()))
    write_pictures(tmp_path / "val2014")
    for name in ("x.png", "new.png", ".hidden.png"):
        write(tmp_path / "val2014" / name, small.picture(0))
    split = open_test(tmp_path)
    assert [(note.kind, note.examples) for note in split.notes] == [
        ("images-without-captions", ("new.png",)),
        ("white-space", ("val2014/a.png", "val2014/c.png")),
    ]


# ------------------------------------------------------------------------ text


def test_lines_end_at_line_ends_alone(tmp_path: Path) -> None:
    assert lines("a\u2028b\nc\x85d\r\ne\x0cf\x1cg\rh\n") == ["a\u2028b", "c\x85d", "e\x0cf\x1cg", "h"]
    assert lines("") == []
    assert lines("a\n\nb\n\n") == ["a", "", "b", ""]
    (tmp_path / "a.txt").write_bytes("a,b\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a\.txt:1: a NUL character, .*\n.*utf-16le"):
        decoded(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"b\.txt cannot be read: No such file"):
        decoded(tmp_path / "b.txt")


def test_captions_in_tars_and_cells_end_at_line_ends_alone() -> None:
    wanted = ShardPairs.model_validate({"kind": "webdataset", "name": "s"})
    text = "A\u2028cat\nB\x85\x0c dog\r\n"
    assert captions(text.encode(), ".txt", wanted) == ["A cat", "B dog"]
    assert captions_of(text) == ["A\u2028cat", "B\x85\x0c dog"]


def test_names_of_columns_are_folded() -> None:
    assert not {name for known in HEADINGS.values() for name in known if name != name.lower() or "_" in name}


def test_a_table_is_read_without_images(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "image,caption\nfolder/a,A\nfolder/b,B\n")
    table = read(tmp_path / "t.csv", Columns(), ["test"])
    assert (table.captions, table.others, table.notes) == (
        {"folder/a": ["A"], "folder/b": ["B"]},
        frozenset(),
        (),
    )
