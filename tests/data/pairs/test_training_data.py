"""Sources of training pairs that are no task card: what is read, in which order, and what is said when it is wrong."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captioned import rows_of, sample_of, server, write_shard, write_shards, write_table
from damage import flip
from pydantic import TypeAdapter
from small import picture, write_parquet, write_task

from clipbench.cards.pairs import AnyPairs
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.pairs.lazy import LazySplit
from clipbench.data.pairs.shards import LocalShards, RemoteShards, expand
from clipbench.data.pairs.sources import Packed, open_pairs
from clipbench.data.pairs.tables import RowSplit
from clipbench.data.paths import DataPaths
from clipbench.errors import Damaged, DataError, StorageError

__all__ = ["server"]
RECIPE = Path("my-recipe.yaml")
#: captions with all that a table and a tar may hold
CAPTIONS = ['a dog, "Rex",\nat home', "un café  noir", "the third one", "A  fourth!", "five 5"]


def opened(folder: Path, **source: Any) -> LazySplit:
    """The split of a source called `mine`, in `folder`."""
    wanted: AnyPairs = TypeAdapter(AnyPairs).validate_python({"name": "mine", **source})
    split, card = open_pairs(wanted, Catalog().dataset, DataPaths({"mine": folder}, ()), RECIPE)
    assert card.kind == "captions"
    return split  # type: ignore[return-value]


def message(folder: Path, **source: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(folder, **source)
    return str(caught.value)


def pairs(split: LazySplit) -> list[tuple[str, bytes, list[str]]]:
    return [(split.name(row), split.image(row), split.texts(row)) for row in range(len(split))]


def plain(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_table_is_read_row_by_row_in_any_order(tmp_path: Path, kind: str) -> None:
    folder = write_table(tmp_path, rows_of(CAPTIONS), f"t.{kind}", {"csv": ",", "tsv": "\t"}[kind])
    split = opened(folder, kind=kind, file=f"t.{kind}", images="images")
    assert pairs(split) == [(f"{i}.png", picture(i), [plain(text)]) for i, text in enumerate(CAPTIONS)]
    assert split.texts(3) == ["A fourth!"]
    assert split.texts(0) == ['a dog, "Rex", at home']
    assert [sample.id for sample in split.samples(np.array([4, 1]))] == ["4.png", "1.png"]
    assert split.ids[1] == "1.png"
    assert split.ids[3:] == ["3.png", "4.png"]
    again = opened(folder, kind=kind, file=f"t.{kind}", images="images")  # by the index that is kept
    assert pairs(again) == pairs(split)
    assert again.fingerprint == split.fingerprint


def test_a_table_with_other_columns_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture(0))
    (tmp_path / "t.csv").write_bytes('﻿title,file\r\n\r\n"a, b",x.png\r\n'.encode())
    split = opened(tmp_path, kind="csv", file="*.csv", image="file", caption="title")
    assert pairs(split) == [("x.png", picture(0), ["a, b"])]


@pytest.mark.parametrize("damaged", ["npy", "json"])
def test_an_index_that_is_damaged_is_made_anew_and_named(
    tmp_path: Path, isolated_cache: Path, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    folder = write_table(tmp_path, rows_of(["one", " ", "two"]))
    whole = pairs(opened(folder, kind="csv", file="pairs.csv", images="images"))
    (kept,) = (isolated_cache / "pairs").glob(f"*.{damaged}")
    content = kept.read_bytes()
    for place in (8 * 128 + 3, 30, -8):  # an index's first place, its heading, the checksum
        kept.write_bytes(content)
        flip(kept, place)
        again = opened(folder, kind="csv", file="pairs.csv", images="images")
        assert pairs(again) == whole
        assert [str(part) for part in again.left_out] == ["1 rows without a caption: 1.png"]
        assert f"{kept} is damaged" in capsys.readouterr().err
        assert kept.read_bytes() == content
    opened(folder, kind="csv", file="pairs.csv", images="images")
    assert not capsys.readouterr().err


def test_rows_without_a_caption_are_counted_and_named(tmp_path: Path) -> None:
    folder = write_table(tmp_path, rows_of(["one", " ", "two", ""]))
    split = opened(folder, kind="csv", file="pairs.csv", images="images")
    assert [text for _, _, text in pairs(split)] == [["one"], ["two"]]
    assert [str(part) for part in split.left_out] == ["2 rows without a caption: 1.png, 3.png"]
    # what cleaning leaves nothing of is no caption either
    folder = write_table(tmp_path / "b", rows_of(["One!", "!?"]))
    split = opened(folder, kind="csv", file="pairs.csv", images="images", clean=True)
    assert [text for _, _, text in pairs(split)] == [["one"]]
    assert split.left_out[0].names == ("1.png",)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", "is empty"),
        ("image,caption\n", "holds no pair of an image and a caption"),
        (
            "image,caption\n0.png,\n",
            "holds no pair of an image and a caption; 1 rows without a caption: 0.png",
        ),
        ("image,captoin\n0.png,x\n", 'unknown column "caption"; did you mean "captoin"?'),
        ("image,caption\n0.png,x,y\n", "t.csv:2: 3 fields, the heading has 2"),
        ('image,caption\n0.png,"x\n', "t.csv:2: cannot be read as a table: unexpected end of data"),
        ("image,caption\n0.png,\udcff\n", "t.csv:2: cannot be read as a table"),
        (
            "image,caption\n../0.png,x\n",
            "t.csv:2: the image '../0.png' is no path below the folder of images",
        ),
        ("image,caption\n7.png,x\n", "no image 7.png, which {file} lists"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, content: str, wanted: str) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    file = tmp_path / "t.csv"
    file.write_bytes(content.encode(errors="surrogateescape"))
    assert wanted.format(file=file) in message(tmp_path, kind="csv", file="t.csv")


def test_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    folder = write_table(tmp_path, rows_of(["one"]))
    assert "no files x.csv in" in message(folder, kind="csv", file="x.csv")
    assert "it holds images, pairs.csv" in message(folder, kind="csv", file="x.csv")
    assert "no folder of images" in message(folder, kind="csv", file="pairs.csv", images="imgs")
    wanted: AnyPairs = TypeAdapter(AnyPairs).validate_python({"name": "mine", "kind": "csv", "file": "x"})
    with pytest.raises(DataError, match=r"no public copy to fetch\n.*--data mine=<folder>"):
        open_pairs(wanted, Catalog().dataset, DataPaths({}, ()), RECIPE)


def test_missing_images_stop_or_are_read_as_broken_ones(tmp_path: Path) -> None:
    folder = write_table(tmp_path, rows_of(["one", "two", "three"]))
    (folder / "images" / "1.png").unlink()
    source = {"kind": "csv", "file": "pairs.csv", "images": "images"}
    text = message(folder, **source)
    assert "no image 1.png" in text
    assert "1 of the 3 looked for are missing" in text
    assert "on_bad_image: skip" in text
    split = opened(folder, **source, on_bad_image="skip")
    assert [image for _, image, _ in pairs(split)] == [picture(0), b"", picture(2)]
    for number in (0, 2):
        (folder / "images" / f"{number}.png").unlink()
    assert "3 of the 3" in message(folder, **source, on_bad_image="skip")


def test_what_is_kept_of_a_table_goes_by_the_bytes_of_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipbench.data.digests.RACY_NS", 0)
    folder = write_table(tmp_path, rows_of(CAPTIONS), "t.csv")

    def keys() -> tuple[str, str]:
        split = opened(folder, kind="csv", file="t.csv", images="images")
        return split.fingerprint, split.hashed().fingerprint

    first = keys()
    assert keys() == first
    image = folder / "images" / "3.png"
    before, data = image.stat(), image.read_bytes()
    image.write_bytes(data[:-1] + b"?")
    os.utime(image, ns=(before.st_mtime_ns, before.st_mtime_ns))
    second = keys()
    assert second[0] == first[0]  # whether a run goes on is told by the images' names and sizes
    assert second[1] != first[1]
    image.write_bytes(data + b"?")
    assert keys()[0] != first[0]
    image.unlink()
    split = opened(folder, kind="csv", file="t.csv", images="images", on_bad_image="skip")
    assert len({split.fingerprint, split.hashed().fingerprint, *first, *second}) == 5


def test_json_lines_of_yfcc(tmp_path: Path) -> None:
    lines = [
        {"caption": 'a "hill"', "filename": "0.png", "url": "http://x"},
        {"caption": "", "filename": "1.png"},
        {"caption": "一只狗", "filename": "2.png"},
        {"caption": "étude", "filename": "a/3.png"},
    ]
    (tmp_path / "y.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "3.png").write_bytes(picture(3))
    split = opened(tmp_path, kind="yfcc-jsonl", file="y.jsonl")
    assert pairs(split) == [("0.png", picture(0), ['a "hill"']), ("a/3.png", picture(3), ["étude"])]
    assert [(part.why, part.count) for part in split.left_out] == [
        ("rows without a caption", 1), ("rows with Chinese characters", 1)
    ]  # fmt: skip
    whole = opened(tmp_path, kind="yfcc-jsonl", file="y.jsonl", without_chinese=False)
    assert whole.texts(1) == ["一只狗"]
    assert whole.fingerprint != split.fingerprint
    (tmp_path / "y.jsonl").write_text('{"caption": "x", "filename": "0.png"}\n{"caption": 3}\n')
    assert 'y.jsonl:2: expected an object with "filename" and "caption"' in message(
        tmp_path, kind="yfcc-jsonl", file="y.jsonl"
    )
    (tmp_path / "y.jsonl").write_text('{"caption": "x"\n')
    assert "y.jsonl:1: cannot be read as JSON" in message(tmp_path, kind="yfcc-jsonl", file="y.jsonl")


# ---------------------------------------------------------------------- shards


def test_ranges_and_globs_name_shards(tmp_path: Path) -> None:
    assert expand("s{1..2}/x-{08..10}.tar") == [
        "s1/x-08.tar", "s1/x-09.tar", "s1/x-10.tar", "s2/x-08.tar", "s2/x-09.tar", "s2/x-10.tar"
    ]  # fmt: skip
    write_shards(tmp_path, 11, 1)
    assert len(opened(tmp_path, kind="webdataset")) == 11
    some = opened(tmp_path, kind="webdataset", shards=["{00002..00003}.tar", "0001*.tar"])
    assert [some.texts(row) for row in range(3)] == [["caption 2"], ["caption 3"], ["caption 10"]]
    text = message(tmp_path, kind="webdataset", shards=["{00009..00011}.tar"])
    assert "no shard 00011.tar" in text


def test_local_shards_are_read_at_scattered_places(tmp_path: Path) -> None:
    split = opened(write_shards(tmp_path, 2, 3), kind="webdataset")
    assert isinstance(split, LocalShards)
    assert pairs(split) == [(f"{i // 3:05d}/{i:09d}", picture(i), [f"caption {i}"]) for i in range(6)]
    assert [split.texts(row) for row in (5, 0)] == [["caption 5"], ["caption 0"]]


def test_a_shard_swapped_under_its_size_and_time_is_read_anew(tmp_path: Path) -> None:
    samples = [sample_of(number) for number in range(3)]
    tar = write_shard(tmp_path / "0.tar", samples)
    os.utime(tar, (1_000_000, 1_000_000))
    before = opened(tmp_path, kind="webdataset")
    assert [text for *_, text in pairs(before)] == [["caption 0"], ["caption 1"], ["caption 2"]]
    size, key = tar.stat().st_size, before.hashed().fingerprint
    tar.unlink()
    write_shard(tar, samples[::-1])
    os.utime(tar, (1_000_000, 1_000_000))
    assert tar.stat().st_size == size
    after = opened(tmp_path, kind="webdataset")
    assert [text for *_, text in pairs(after)] == [["caption 2"], ["caption 1"], ["caption 0"]]
    assert after.hashed().fingerprint != key


def test_samples_without_a_caption_or_an_image_are_counted_and_named(tmp_path: Path) -> None:
    image = picture(0)
    write_shard(
        tmp_path / "a.tar",
        [
            ("d/0", {"png": image, "json": b'{"caption": "by JSON"}'}),
            ("d/1", {"png": image, "txt": b" \n"}),
            ("d/2", {"txt": b"no picture"}),
            ("d/3", {"png": image, "txt": b"first\nsecond\n", "json": b"{}"}),
            ("d/4", {"png": image, "json": b"not JSON"}),
            ("d/5", {"png": image}),
        ],
    )
    split = opened(tmp_path, kind="webdataset")
    assert [(name, texts) for name, _, texts in pairs(split)] == [
        ("a/d/0", ["by JSON"]), ("a/d/3", ["first", "second"])
    ]  # fmt: skip
    assert [str(part) for part in split.left_out] == [
        "1 samples without an image: a/d/2",
        "3 samples without a caption: a/d/1, a/d/4, a/d/5",
    ]


def test_keys_with_dots_second_images_and_files_that_lie_apart(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, _ = server
    image = picture(0)
    write_shard(
        tmp_path / "served" / "a.tar",
        [
            ("img.0", {"png": image, "mask.png": picture(9), "txt": b"dots"}),
            ("1", {"PNG": picture(1)}),
            ("2", {"png": image, "jpg": image, "txt": b"two images"}),
            ("3", {"png": image, "txt": b"a"}),
            ("3", {"txt": b"b"}),
            ("4", {"jfif": picture(4), "txt": b"four"}),
            ("1", {"txt": b"apart"}),
            ("._5", {"png": b"mac"}),
        ],
    )
    wanted = [("a/img.0", image, ["dots"]), ("a/1", picture(1), ["apart"]), ("a/4", picture(4), ["four"])]
    left_out = [
        "2 samples with two images, or with a file twice: a/2, a/3",
        "1 images beside a sample's own: a/img.0.mask.png",
    ]
    split = opened(tmp_path / "served", kind="webdataset")
    assert pairs(split) == wanted
    assert [str(part) for part in split.left_out] == left_out
    stream = opened(tmp_path, kind="webdataset", shards=[f"{address}/a.tar"], rows=3)
    assert isinstance(stream, RemoteShards)
    (window,) = stream.windows([0])
    assert [(sample.id, sample.image, texts) for sample, texts in window] == wanted
    assert [str(part) for part in stream.left_out if part.count] == left_out


def test_shards_that_are_no_whole_tar_files(tmp_path: Path) -> None:
    whole = write_shards(tmp_path / "w", 1, 4) / "00000.tar"
    for name, content in {
        "cut": whole.read_bytes()[:2000],
        "cut between members": whole.read_bytes()[: 2 * 512 + -(-len(picture(0)) // 512) * 512],
        "two": whole.read_bytes() * 2,
        "gz": gzip.compress(whole.read_bytes()),
        "text": b"<html>gone</html>" * 100,
        "zeros": bytes(10240),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "00000.tar").write_bytes(content)
        text = message(folder, kind="webdataset")
        wanted = {"zeros": "holds no pair", "gz": "is compressed"}.get(name, "is no whole tar file")
        assert wanted in text, name
        assert "00000.tar" in text or "*.tar" in text


def test_shards_behind_addresses_come_in_windows(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    write_shards(tmp_path / "served", 5, 2)
    split = opened(tmp_path, kind="webdataset", shards=[f"{address}/{{00000..00004}}.tar"], rows=10)
    assert isinstance(split, RemoteShards)
    assert len(split) == 10
    windows = [[texts[0] for _, texts in window] for window in split.windows([4, 0, 2, 1, 3])]
    assert windows == [
        ["caption 8", "caption 9", "caption 0", "caption 1"],
        ["caption 4", "caption 5", "caption 2", "caption 3"],
        ["caption 6", "caption 7"],
    ]
    asked.clear()
    later = [[sample.id for sample, _ in window] for window in split.windows([4, 0, 2, 1, 3], first=2)]
    assert later == [["00003/000000006", "00003/000000007"]]
    assert asked == ["/00003.tar"]  # what comes before is not fetched again


def test_a_connection_that_breaks_is_tried_again(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server
    monkeypatch.setattr("clipbench.data.pairs.shards.time.sleep", lambda seconds: None)
    write_shard(
        tmp_path / "served" / "flaky.tar", [sample_of(i) for i in range(3)] + [("x", {"txt": b"bare"})]
    )
    split = opened(tmp_path, kind="webdataset", shards=[f"{address}/flaky.tar"], rows=3)
    assert isinstance(split, RemoteShards)
    (window,) = split.windows([0])
    assert [sample.image for sample, _ in window] == [picture(i) for i in range(3)]
    assert asked == ["/flaky.tar", "/flaky.tar"]
    assert [str(part) for part in split.left_out if part.count] == ["1 samples without an image: flaky/x"]
    split = opened(tmp_path, kind="webdataset", shards=[f"{address}/gone.tar"], rows=3)
    assert isinstance(split, RemoteShards)
    with pytest.raises(DataError, match=r"gone\.tar cannot be read: HTTP Error 404"):
        list(split.windows([0]))
    assert asked.count("/gone.tar") == 1


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ({"shards": ["http://x/a.tar"]}, "need rows"),
        ({"shards": ["http://x/a.tar", "b.tar"], "rows": 1}, "either all addresses or all paths"),
        ({"shards": ["http://x/*.tar"], "rows": 1}, "cannot hold"),
    ],
)
def test_shards_that_contradict_themselves(source: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        TypeAdapter(AnyPairs).validate_python({"kind": "webdataset", "name": "x", **source})


# -------------------------------------------------------- folders and the hub


def test_images_of_parquet_files_are_packed_to_be_found_at_once(tmp_path: Path, isolated_cache: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({
        "pic": [{"bytes": picture(i), "path": None} for i in range(7)],
        "said": [[f"a {i}", f"b {i}"] for i in range(7)],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "train-0.parquet")
    split = opened(tmp_path, kind="hub", id="some/thing", image="pic", caption="said")
    assert split.captions is not None
    assert split.captions.texts[:3] == ("a 0", "b 0", "a 1")
    assert not split.scattered
    for _ in range(2):  # written, then taken up
        packed = Packed(split)
        assert [packed.image(row) for row in (6, 0, 3)] == [picture(i) for i in (6, 0, 3)]
    assert len(list((isolated_cache / "pairs").glob("*.images"))) == 1
    with pytest.raises(DataError, match="no column 'image'"):
        opened(tmp_path, kind="hub", id="some/thing", caption="said")


def test_packed_images_that_are_damaged_are_named(
    tmp_path: Path, isolated_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "test.parquet", 5)
    entry = Catalog([write_task(tmp_path / "cards" / "tasks").parent]).dataset("animals")
    split = open_split(entry, "test", DataPaths({"animals": tmp_path}, ()))
    images = [sample.image for sample in split.samples(np.arange(5))]
    Packed(split)
    (places,), (file,) = (list((isolated_cache / "pairs").glob(f"*.{end}")) for end in ("places", "images"))

    flip(places, 8 * 12 + 1)
    assert [Packed(split).image(row) for row in range(5)] == images
    assert f"{places} is damaged" in capsys.readouterr().err
    flip(file, -1)
    packed = Packed(split)
    assert packed.image(0) == images[0]
    with pytest.raises(Damaged, match=rf"{file} is damaged: image 4 .*\n.*delete the file"):
        packed.image(4)
    file.write_bytes(b"".join(images)[:-1])  # cut off
    assert [Packed(split).image(row) for row in range(5)] == images


def test_a_full_disk_leaves_no_half_packed_file(
    tmp_path: Path, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "test.parquet", 5)
    wanted = Catalog().dataset("cifar10")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipbench.utils.cache.os.fsync", full)
    entry = Catalog([write_task(tmp_path / "cards" / "tasks").parent]).dataset("animals")
    split = open_split(entry, "test", DataPaths({"animals": tmp_path}, ()))
    with pytest.raises(StorageError, match="No space left on device"):
        Packed(split)
    assert not [path for path in (isolated_cache / "pairs").iterdir() if path.suffix != ".lock"]
    assert wanted.id == "cifar10"


def test_a_caption_file_that_disagrees_with_the_images(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "1.png").write_bytes(picture(1))
    file = tmp_path / "annotations" / "captions_train2017.json"
    source = {"kind": "coco-captions", "split": "train2017"}

    def written(images: list[int], captions: list[tuple[int, str]]) -> None:
        content = {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in images],
            "annotations": [{"image_id": i, "caption": text} for i, text in captions],
        }
        file.write_text(json.dumps(content))

    written([1], [(1, "one"), (1, "uno")])
    split = opened(tmp_path, **source)
    assert split.captions is not None
    assert split.captions.texts == ("one", "uno")
    written([1, 2], [(1, "one"), (2, "two")])
    assert "1 of the 2 images that the split lists are missing" in message(tmp_path, **source)
    written([1], [(1, "one"), (9, "nine")])
    assert "image_id 9, which the file does not list" in message(tmp_path, **source)
    written([1], [])
    assert "image 1.png" in message(tmp_path, **source)
    written([], [])
    assert "is empty" in message(tmp_path, **source)
    assert "captions_val.json" in message(tmp_path, kind="coco-captions", split="val")
    file.unlink()
    assert "no train data in" in message(tmp_path, **source)


@pytest.mark.shared
def test_real_captioned_images(shared_data: Path) -> None:
    coco = opened(shared_data / "coco-363", kind="coco-captions", split="train2017")
    assert coco.captions is not None
    assert (len(coco), len(coco.captions.texts)) == (363, 1816)
    flickr = opened(shared_data / "flickr8k-1000", kind="coco-captions")
    assert flickr.captions is not None
    assert (len(flickr), len(flickr.captions.texts)) == (1000, 5000)


@pytest.mark.shared
def test_real_images_in_shards_and_tables(shared_data: Path, tmp_path: Path) -> None:
    """Forty photos of Flickr8k as img2dataset and a table would hold them."""
    flickr = opened(shared_data / "flickr8k-1000", kind="coco-captions")
    samples = list(flickr.samples(np.arange(40)))
    assert flickr.captions is not None
    texts = [flickr.captions.texts[flickr.captions.image.tolist().index(i)] for i in range(40)]
    write_shard(
        tmp_path / "0.tar",
        [(s.id[:-4], {"jpg": s.image, "txt": t.encode()}) for s, t in zip(samples, texts, strict=True)],
    )
    shards = opened(tmp_path, kind="webdataset")
    assert [(s.image, [t]) for s, t in zip(samples, texts, strict=True)] == [
        (image, own) for _, image, own in pairs(shards)
    ]
    with (tmp_path / "t.csv").open("w", newline="") as out:
        csv.writer(out).writerows(
            [["image", "caption"], *([s.id, t] for s, t in zip(samples, texts, strict=True))]
        )
    (tmp_path / "images").mkdir()
    for sample in samples:
        (tmp_path / "images" / sample.id).write_bytes(sample.image)
    table = opened(tmp_path, kind="csv", file="t.csv", images="images")
    assert isinstance(table, RowSplit)
    assert [(image, own) for _, image, own in pairs(table)] == [
        (image, own) for _, image, own in pairs(shards)
    ]
    shutil.rmtree(tmp_path / "images")
