"""COCO-gender: files in the documented layout, their conversion from the original pickles, and files that are wrong."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import jpeg

from clipbench import cli
from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.layouts.coco_gender import convert
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import ClipbenchError, DataError
from clipbench.evaluation import limited

OBJECTS = ["teddy bear", "cup", "dog"]
#: name of 2014, gender, objects
IMAGES = [
    ("COCO_val2014_000000532003.jpg", "woman", ["cup", "dog"]),
    ("COCO_val2014_000000440455.jpg", "man", []),
    ("COCO_val2014_000000224366.jpg", "man", ["teddy bear"]),
    ("COCO_val2014_000000094271.jpg", "woman", ["dog"]),
]
PLAIN = [name.removeprefix("COCO_val2014_") for name, _, _ in IMAGES]


def entry(rows: int | None = None) -> Entry[TaskCard]:
    splits: dict[str, Any] = {"test": {"name": "test_ratio_1"}, "all": {"name": "test", "rows": rows}}
    card = Catalog().dataset("coco-gender").card.model_dump(mode="json", exclude_none=True) | {
        "splits": splits
    }
    return Entry("coco-gender", TaskCard.model_validate(card), Path("tasks/coco-gender.yaml"))


def document(**changes: Any) -> dict[str, Any]:
    images = [{"file_name": n, "gender": g, "objects": o} for n, g, o in IMAGES]
    return {"objects": OBJECTS, "images": images} | changes


def write_copy(root: Path, found: Any = None, folder: str = "val2014", name: str = "test") -> Path:
    for part in ("annotations", folder):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"gender_{name}.json").write_text(
        json.dumps(document() if found is None else found)
    )
    for number, (of_2014, _, _) in enumerate(IMAGES):
        own = of_2014 if folder.endswith("2014") else PLAIN[number]
        (root / folder / own).write_bytes(jpeg(number))
    return root


def open_all(root: Path, role: str = "all", rows: int | None = None) -> Split:
    return open_split(entry(rows), role, DataPaths({"coco-gender": root}, ()))


# ------------------------------------------------------------------------ reading


@pytest.mark.parametrize("folder", ["val2014", "images/val2014", "train2017", "images/val2017", "images"])
def test_one_label_an_image_and_its_objects(tmp_path: Path, folder: str) -> None:
    split = open_all(write_copy(tmp_path, folder=folder))
    assert split.ids == PLAIN
    assert split.classes == ("man", "woman")
    assert split.labels.tolist() == [1, 0, 0, 1]
    assert split.objects is not None
    assert split.objects.names == tuple(OBJECTS)
    assert split.objects.present.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert [s.image for s in split.samples(np.arange(4))] == [jpeg(i) for i in range(4)]


def test_images_of_one_split_may_lie_in_both_folders_of_2017(tmp_path: Path) -> None:
    root = write_copy(tmp_path, folder="train2017")
    (root / "val2017").mkdir()
    (root / "train2017" / PLAIN[2]).rename(root / "val2017" / PLAIN[2])
    assert [s.image for s in open_all(root).samples(np.arange(4))] == [jpeg(i) for i in range(4)]


def test_a_limited_sample_takes_its_objects_along(tmp_path: Path) -> None:
    split = open_all(write_copy(tmp_path))
    few = limited(split, 2, seed=0)
    assert sorted(few.labels.tolist()) == [0, 1]
    assert few.objects is not None
    assert split.objects is not None
    for i, name in enumerate(few.ids):
        assert np.array_equal(few.objects.present[i], split.objects.present[PLAIN.index(name)])


def test_annotations_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    before = open_all(write_copy(tmp_path / "a")).fingerprint
    assert open_all(write_copy(tmp_path / "b")).fingerprint == before
    images = document()["images"]
    images[0]["objects"] = []
    assert open_all(write_copy(tmp_path / "c", document(images=images))).fingerprint != before


def test_the_number_of_images_is_the_cards(tmp_path: Path) -> None:
    assert len(open_all(write_copy(tmp_path), rows=4)) == 4
    with pytest.raises(DataError, match="has 4 samples, the card says 5,473"):
        open_all(tmp_path, rows=5473)


# ------------------------------------------------------------------------- errors


def one(**changes: Any) -> dict[str, Any]:
    """A document whose second image is changed; a key set to None is left out."""
    images = document()["images"]
    images[1] = {k: v for k, v in (images[1] | changes).items() if v is not None}
    return document(images=images)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (one(gender="child"), "sample 000000440455.jpg .* has the label 'child', not a class of the card"),
        (one(gender=None), r"gender_test.json: images\[1\] has no gender \(str\)"),
        (one(gender=1), r"images\[1\] has no gender \(str\)"),
        (one(objects="cup"), r"images\[1\] has no objects \(list\)"),
        (one(objects=["cap"]), r"images\[1\]: 'cap' is not among the file's objects"),
        (one(file_name="../x.jpg"), r"images\[1\]: the file_name '../x.jpg' is no name of a file alone"),
        (one(file_name="COCO_val2014_"), r"images\[1\]: the file_name .* is no name"),
        (one(file_name=PLAIN[0]), r"images\[1\]: 000000532003.jpg is there twice"),
        (one(file_name="COCO_val2014_000000000001.jpg"), "000000000001.jpg is not there; 1 of the 4 images"),
        (document(objects=["cup", "cup"]), "objects must be names, each once"),
        (document(objects=None), "has no lists objects and images"),
        (document(images=[]), "has no lists objects and images"),
        ([1], "has no lists objects and images"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, found: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_all(write_copy(tmp_path, found))


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    write_copy(tmp_path)
    (tmp_path / "annotations" / "gender_test.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        open_all(tmp_path)


def test_no_images_at_all_names_the_folders(tmp_path: Path) -> None:
    write_copy(tmp_path)
    for name, _, _ in IMAGES:
        (tmp_path / "val2014" / name).unlink()
    with pytest.raises(
        DataError, match=r"no image 000000532003.jpg, which .* lists, in .*val2014, .*images"
    ) as error:
        open_all(tmp_path)
    assert "train2017, val2017 or images" in str(error.value)


def test_a_copy_that_was_not_converted_says_how(tmp_path: Path) -> None:
    write_copy(tmp_path, name="train")
    with pytest.raises(DataError, match=r"no test split in .*: no gender_test_ratio_1.json") as error:
        open_all(tmp_path, "test")
    assert "gender_train.json" in str(error.value)
    assert f"clipbench data convert-coco-gender <their folder> {tmp_path / 'annotations'}" in str(error.value)


# --------------------------------------------------------------------- converting


def originals(folder: Path, **changes: Any) -> Path:
    """The files of the original repository, in small: pickles of protocol 0, as Python 2 wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "file_name": name,
            "image_id": int(name[-16:-4]),
            "objects": [int(o in shown) for o in OBJECTS],
            "gender": [int(gender == g) for g in ("man", "woman")],
        }
        for name, gender, shown in IMAGES
    ]
    ids = {number: name.replace(" ", "_") for number, name in enumerate(OBJECTS)}
    found = {
        "test.data": rows,
        "test_ratio_1.ids": {3, 0, 2, 1} - {1, 3},
        "object_id.map": {"id2object": ids, "object2id": {name: number for number, name in ids.items()}},
    } | changes
    for name, value in found.items():
        (folder / name).write_bytes(pickle.dumps(value, protocol=0))
    return folder


def test_originals_become_what_is_read(tmp_path: Path) -> None:
    source = originals(tmp_path / "original")
    out = write_copy(tmp_path / "coco") / "annotations"
    (out / "gender_test.json").unlink()
    assert convert(source, out) == [(out / "gender_test.json", 4), (out / "gender_test_ratio_1.json", 2)]
    assert json.loads((out / "gender_test.json").read_text()) == document()
    split = open_all(tmp_path / "coco", "test")
    assert split.ids == [PLAIN[0], PLAIN[2]]
    assert split.labels.tolist() == [1, 0]
    with pytest.raises(ClipbenchError, match=r"gender_test.json exists") as error:
        convert(source, out)
    assert "--force" in str(error.value)
    convert(source, out, force=True)


def test_the_very_form_of_the_published_files(tmp_path: Path) -> None:
    """Python 2's opcodes: byte strings as keys, memo references, a set by its old name."""
    (tmp_path / "test.data").write_bytes(
        b"(lp0\n(dp1\nS'file_name'\np2\nVCOCO_val2014_000000532003.jpg\np3\nsS'image_id'\np4\nI532003\n"
        b"sS'objects'\np5\n(lp6\nI0\naI1\nasS'gender'\np7\n(lp8\nI0\naI1\nasa"
        b"(dp9\ng2\nVCOCO_val2014_000000440455.jpg\np10\nsg4\nI440455\nsg5\n(lp11\nI0\naI0\nasg7\n(lp12\nI1\naI0\nasa."
    )
    (tmp_path / "test_ratio_1.ids").write_bytes(b"c__builtin__\nset\np0\n((lp1\nI1\naI0\natp2\nRp3\n.")
    (tmp_path / "object_id.map").write_bytes(
        b"(dp0\nS'id2object'\np1\n(dp2\nI0\nS'toilet'\np3\nsI1\nS'teddy_bear'\np4\nss."
    )
    written = convert(tmp_path, tmp_path / "out")
    assert [count for _, count in written] == [2, 2]
    assert json.loads(written[0][0].read_text()) == {
        "objects": ["toilet", "teddy bear"],
        "images": [
            {"file_name": IMAGES[0][0], "gender": "woman", "objects": ["teddy bear"]},
            {"file_name": IMAGES[1][0], "gender": "man", "objects": []},
        ],
    }


class Harm:
    """Would make a folder if its pickle were run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["test.data", "test_ratio_1.ids", "object_id.map"])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, name: str) -> None:
    source = originals(tmp_path / "original")
    (source / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm"), protocol=0))
    assert "mkdir" in str([arg for _, arg, _ in pickletools.genops((source / name).read_bytes())])
    with pytest.raises(DataError, match=r"cannot be read as a pickle of plain values .*mkdir"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out").exists()


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [{"file_name": "COCO_val2014_1.jpg", "objects": [0, 0, 1], "gender": [1, 0]} | changes]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test.data": changed(gender=[0, 0])},
            r"COCO_val2014_1.jpg\) has the gender \[0, 0\]; expected \[1, 0\]",
        ),
        ({"test.data": changed(gender=[1, 1])}, r"has the gender \[1, 1\]"),
        ({"test.data": changed(objects=[0, 1])}, "number 0: objects are not 3 zeros and ones"),
        ({"test.data": changed(objects=[0, 1, 2])}, "number 0: objects are not 3 zeros and ones"),
        ({"test.data": [{"file_name": "x"}]}, r"test.data does not hold .*KeyError: 'objects'"),
        ({"test.data": 3}, "test.data does not hold what the original annotations hold"),
        ({"test_ratio_1.ids": {4}}, "test_ratio_1.ids does not hold .*IndexError"),
        ({"test_ratio_1.ids": {-1}}, "-1 is no place in a list"),
        ({"object_id.map": {}}, "object_id.map does not hold .*id2object"),
    ],
)
def test_originals_that_are_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert(originals(tmp_path / "original", **changes), tmp_path / "out")


def test_folders_without_originals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .data file in"):
        convert(tmp_path, tmp_path / "out")
    (originals(tmp_path) / "object_id.map").unlink()
    with pytest.raises(DataError, match=r"there is no .*object_id.map"):
        convert(tmp_path, tmp_path / "out")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = originals(tmp_path / "original"), tmp_path / "out"
    for arguments, code in (((), 0), ((), 2), (("--force",), 0)):
        monkeypatch.setattr(
            sys, "argv", ["clipbench", "data", "convert-coco-gender", str(source), str(out), *arguments]
        )
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == code
    assert capsys.readouterr().out == 2 * (
        f"{out}/gender_test.json: 4 images\n{out}/gender_test_ratio_1.json: 2 images\n"
    )
