"""Sets of captions: every layout gives the same split, and data that is wrong says where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from caption_copies import (
    CAPTIONS,
    LAYOUTS,
    OWNERS,
    TEXTS,
    coco,
    entry,
    flat,
    karpathy,
    open_test,
    write,
    write_bars,
    write_coco,
    write_karpathy,
    write_parquet,
    write_table,
    write_webdataset,
)
from pydantic import ValidationError

from clipbench.cards.entry import Entry
from clipbench.cards.task import Columns
from clipbench.catalog import Catalog
from clipbench.data.captions import gather
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Subset
from clipbench.errors import CardError, DataError
from clipbench.evaluation import limited


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_split(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    split = open_test(tmp_path, splits={"test": {"name": "test", "rows": 3}})
    assert split.captions is not None
    assert list(split.captions.texts) == TEXTS
    assert split.captions.image.tolist() == OWNERS
    assert (split.labels.tolist(), split.classes) == ([0, 0, 0], ())
    assert [s.image for s in split.samples(np.arange(3))] == [small.picture(n) for n in range(3)]
    again = open_test(tmp_path)  # WebDataset's captions come from the cache
    assert again.captions is not None
    assert again.captions.texts == split.captions.texts


def test_a_column_of_another_name(tmp_path: Path) -> None:
    write_parquet(tmp_path, "sentences")
    split = open_test(tmp_path, columns={"caption": "sentences"})
    assert split.captions is not None
    assert len(split.captions.texts) == 6
    with pytest.raises(
        DataError, match=r"no column 'caption'; .*'sentences'\n.*set columns\.caption on the task"
    ):
        open_test(tmp_path)
    assert Columns().canonical() == {
        "image": "image",
        "label": "label",
    }  # older cards keep their fingerprints


def test_images_that_karpathy_calls_restval_are_training_images(tmp_path: Path) -> None:
    write_karpathy(tmp_path)
    for name in "xyz":
        write(tmp_path / f"val2014/{name}.png", small.picture(0))
    splits = {role: {"name": role} for role in ("train", "val", "test")}
    found = {role: open_test(tmp_path, role, splits=splits).ids for role in splits}
    assert found["train"] == ["val2014/x.png", "val2014/y.png"]
    assert found["val"] == ["val2014/z.png"]
    assert len(found["test"]) == 3


def test_a_limited_split_keeps_whole_images(tmp_path: Path) -> None:
    write_coco(tmp_path)
    part = limited(open_test(tmp_path), 2, seed=0)
    assert part.captions is not None
    whole = dict(zip(CAPTIONS, ([0, 1], [2], [3, 4, 5]), strict=True))
    assert list(part.captions.texts) == [TEXTS[i] for name in part.ids for i in whole[name]]


def test_parts_of_a_split_are_told_by_ids_alone(tmp_path: Path) -> None:
    def place(name: str) -> float:
        return int(hashlib.sha256(f"7/{name}".encode()).hexdigest()[:16], 16) / 16**16

    middle = sorted(place(name) for name in CAPTIONS)[1]
    splits = {
        "test": {"name": "test", "rows": 3},
        "low": {"name": "test", "rows": 1, "part": {"seed": 7, "end": middle}},
        "high": {"name": "test", "rows": 2, "part": {"seed": 7, "start": middle}},
    }
    write_table(tmp_path)
    whole, low, high = (open_test(tmp_path, role, splits=splits) for role in splits)
    assert [name for name in CAPTIONS if place(name) < middle] == low.ids
    assert sorted([*low.ids, *high.ids]) == sorted(whole.ids)
    assert (low.role, high.role) == ("low", "high")
    assert isinstance(low, Subset)
    assert not low.limited  # a record of a part is no record of a sample
    sample = limited(high, 1, seed=0)
    assert isinstance(sample, Subset)
    assert sample.limited
    assert high.captions is not None
    assert list(high.captions.texts) == [text for name in high.ids for text in map(flat, CAPTIONS[name])]
    assert len({part.fingerprint for part in (whole, low, high)}) == 3
    assert [sample.id for sample in high.samples(np.array([1]))] == high.ids[1:]
    with pytest.raises(DataError, match=r"pets, low has 1 samples, the card says 2"):
        open_test(tmp_path, "low", splits=splits | {"low": splits["low"] | {"rows": 2}})
    with pytest.raises(DataError, match="the low split holds none of the 3 samples"):
        open_test(
            tmp_path, "low", splits=splits | {"low": {"name": "test", "part": {"seed": 7, "end": 1e-9}}}
        )
    with pytest.raises(ValidationError, match="a part needs the split that it is a part of"):
        entry(splits={"low": splits["low"]})
    with pytest.raises(ValidationError, match=r"start \(0\.5\) must be below end \(0\.5\)"):
        entry(splits=splits | {"low": {"name": "test", "part": {"seed": 7, "start": 0.5, "end": 0.5}}})


def test_fingerprint_follows_captions_and_images(tmp_path: Path) -> None:
    for name in "abc":
        write_table(tmp_path / name)
    write(tmp_path / "b/captions.txt", (tmp_path / "b/captions.txt").read_text().replace("Hens", "Cocks"))
    write(tmp_path / "c/images/a.png", small.picture(9))
    write_table(tmp_path / "d")
    found = [open_test(tmp_path / name).fingerprint for name in "abcd"]
    assert found[0] == found[3]
    assert len(set(found)) == 3


# ----------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (["a", ["b", " \t"]], r"caption 2 of image i1 in here is empty\n"),
        (["a", []], r"image i1 in here has no caption; 1 of 2 images have none\n"),
        (["\n \n", None], r"image i1 in here has 'None', expected captions"),
        ([["a"], "\n"], r"image i1 in here has no caption"),
        (
            [["a"], [3]],
            r"caption 1 of image i1 in here is '3', expected a text, or a mapping with a text \"raw\"",
        ),
        ([["a"], [{"text": "b"}]], r"caption 1 of image i1 in here is \"\{'text'"),
    ],
)
def test_captions_that_are_wrong(raw: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        gather("pets", ["i0", "i1"], raw, "here")


def test_a_text_of_several_lines_is_several_captions_and_blank_ones_are_none() -> None:
    assert gather("pets", ["i0"], ["one\n\n two \n"], "here")[0].texts == ("one", "two")


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"][0].update(image_id=3),
            r"annotations\[0\] has the image_id 3, which the file does",
        ),
        (lambda d: d["annotations"].clear(), r"image b\.png in .* has no caption; 3 of 3"),
        (lambda d: d["annotations"][1].update(caption=" "), r"caption 2 of image c\.png in .* is empty"),
        (lambda d: d["annotations"][0].pop("caption"), r"annotations\[0\] has no caption \(str\)"),
        (
            lambda d: d.pop("images"),
            r'has no list "images", so it is no file of COCO captions\n.*images, annotations',
        ),
        (lambda d: d["images"][1].update(file_name="b.png"), r"file_name: b\.png is there twice"),
        (lambda d: d["images"][1].update(file_name="q.png"), r"q\.png is not there; 1 of the 3 images"),
        (lambda d: d["images"][0].update(file_name="../b.png"), r"leads out of the folder"),
    ],
)
def test_coco_files_that_are_wrong(change: Change, message: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    found = coco()
    change(found)
    write(tmp_path / "annotations/captions_test.json", json.dumps(found))
    with pytest.raises(DataError, match=message):
        open_test(tmp_path)


def test_karpathy_files_that_are_wrong(tmp_path: Path) -> None:
    write_karpathy(tmp_path)
    found = karpathy()
    found["images"] = [image for image in found["images"] if image["split"] != "test"]
    write(tmp_path / "dataset_pets.json", json.dumps(found))
    wanted = r"no image of the split mini or test \(there is restval, train, val\)"
    with pytest.raises(DataError, match=wanted) as caught:
        open_test(tmp_path, splits={"test": {"name": "mini"}})
    assert "splits.test.name in tasks/pets.yaml" in str(caught.value)
    write(tmp_path / "dataset_cats.json", "{}")
    with pytest.raises(DataError, match=r"holds dataset_cats\.json, dataset_pets\.json\n"):
        open_test(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.png", r"captions\.txt:8: expected image,caption, found 'b\.png'"),
        (",A dog", r"captions\.txt:8: expected image,caption"),
        ("b.png,", r"caption 3 of image b\.png in .* is empty"),
        ("q.png,A dog", r"q\.png is not there; 1 of the 4"),
    ],
)
def test_tables_that_are_wrong(line: str, message: str, tmp_path: Path) -> None:
    write_table(tmp_path)
    write(tmp_path / "captions.txt", (tmp_path / "captions.txt").read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        open_test(tmp_path)


def test_a_table_with_bars_that_is_wrong(tmp_path: Path) -> None:
    write_bars(tmp_path)
    write(tmp_path / "results.csv", (tmp_path / "results.csv").read_text() + "\nb.png, A dog")
    with pytest.raises(DataError, match=r"results\.csv:8: expected image\| number\| caption"):
        open_test(tmp_path)


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    several = {"train": {"name": "train"}, "test": {"name": "test"}}
    write_table(tmp_path / "a")
    with pytest.raises(
        DataError, match=r"no test split in .*: no captions_test\.txt or .* \(there is captions\.txt\)"
    ):
        open_test(tmp_path / "a", splits=several)  # a table that does not say what belongs to which
    write_coco(tmp_path / "b")
    with pytest.raises(DataError, match=r"no captions_train\.json \(there is captions_test\.json\)\n"):
        open_test(tmp_path / "b", "train", splits=several)
    with pytest.raises(DataError, match=r"has 3 samples, the card says 4"):
        open_test(tmp_path / "b", splits={"test": {"name": "test", "rows": 4}})
    write(tmp_path / "c/notes.md", "nothing")
    with pytest.raises(
        DataError, match=r"no test data in .* \(it holds notes\.md\)\n.*captions_test\.json, .*dataset_"
    ):
        open_test(tmp_path / "c")


def test_tars_without_captions(tmp_path: Path) -> None:
    write_webdataset(tmp_path)
    with pytest.raises(
        DataError, match=r"no sample: its files end in .*; expected an image with a \.cls, \.cls\.txt"
    ):
        open_split(
            Entry("pets", Catalog().dataset("dtd").card, Path("x")), "test", DataPaths({"pets": tmp_path}, ())
        )
    write_webdataset(tmp_path, "tex")
    with pytest.raises(DataError, match=r"expected an image with a \.txt \(captions, one a line\)"):
        open_test(tmp_path)


def test_retrieval_is_for_captions(tmp_path: Path) -> None:
    small.write_task(tmp_path, protocols={"ret": {}})
    with pytest.raises(CardError, match="ret is for sets of kind captions, this one is of kind single-label"):
        Catalog([tmp_path]).task("animals-ret")


# ------------------------------------------------------------------ real data


@pytest.mark.shared
def test_real_captions(shared_data: Path) -> None:
    catalog = Catalog()
    for dataset, folder, images, texts in (
        ("coco-363-captions", "coco-363", 363, 1816),
        ("flickr8k-1000", "flickr8k-1000", 1000, 5000),
    ):
        split = open_split(catalog.dataset(dataset), "test", DataPaths({dataset: shared_data / folder}, ()))
        assert split.captions is not None
        assert (len(split), len(split.captions.texts)) == (images, texts)
        assert np.bincount(split.captions.image).min() >= 5
        assert not any(text.startswith('"') and text.count('"') == 1 for text in split.captions.texts)
