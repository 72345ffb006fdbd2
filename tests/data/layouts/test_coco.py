"""COCO's instances as a multi-label set: what its JSON lists, and files that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import jpeg

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import DataError

CLASSES = ("airplane", "cat", "dining table")
#: category id (with gaps, as COCO's are) → name
CATEGORIES = {1: "cat", 5: "airplane", 67: "dining table"}
NAMES = [f"{number:012d}.jpg" for number in (139, 285, 632, 724)]
LABELS = [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]]  # the second image has no box


def entry(**changes: Any) -> Entry[TaskCard]:
    fields: dict[str, Any] = {
        "title": "COCO",
        "source": {"local": True},
        "splits": {"train": {"name": "train2017"}, "test": {"name": "val2017"}},
        "kind": "multi-label",
        "classes": CLASSES,
        "templates": {"default": ["a photo of a {c}."]},
        "prompts_source": "tests",
        "protocols": {"zs": {"primary": "map_area"}},
    }
    return Entry("coco", TaskCard.model_validate(fields | changes), Path("tasks/coco.yaml"))


def open_test(root: Path, **changes: Any) -> Split:
    return open_split(entry(**changes), "test", DataPaths({"coco": root}, ()))


def document() -> dict[str, Any]:
    """A file like instances_val2017.json, with keys that are not read."""
    boxes = [(139, 1, 0), (139, 67, 0), (139, 1, 0), (632, 5, 0), (724, 1, 1)]
    return {
        "info": {"year": 2017, "version": "1.0"},
        "licenses": [{"id": 1, "name": "Attribution License", "url": "http://example.org"}],
        "images": [
            {"id": int(name[:-4]), "file_name": name, "height": 8, "width": 9, "license": 1} for name in NAMES
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "iscrowd": crowd,
                "bbox": [1.5, 1.5, 4.0, 3.0],
                "segmentation": {"counts": [1, 2], "size": [8, 9]}
                if crowd
                else [[1.5, 1.5, 4.0, 3.0, 2.0, 5.0]],
            }
            for number, (image, category, crowd) in enumerate(boxes)
        ],
        "categories": [
            {"id": key, "name": name, "supercategory": "thing"} for key, name in CATEGORIES.items()
        ],
    }


def write_copy(
    root: Path, found: Any = None, *, file: str = "instances_val2017.json", folder: str = "val2017"
) -> Path:
    for name in ("annotations", folder):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "annotations" / file).write_text(json.dumps(document() if found is None else found))
    for number, name in enumerate(NAMES):
        (root / folder / name).write_bytes(jpeg(number))
    return root


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "test"])
def test_boxes_of_listed_images(folder: str, tmp_path: Path) -> None:
    split = open_test(write_copy(tmp_path, folder=folder))
    assert split.labels.tolist() == LABELS
    assert split.labels.dtype == np.uint8
    assert split.ids == NAMES
    rows = np.array([1, 3], dtype=np.int64)
    assert [(s.id, s.image) for s in split.samples(rows)] == [(NAMES[1], jpeg(1)), (NAMES[3], jpeg(3))]


def test_each_split_has_its_file(tmp_path: Path) -> None:
    write_copy(tmp_path)
    found = document()
    found["annotations"] = found["annotations"][:1]
    write_copy(tmp_path, found, file="instances_train2017.json", folder="train2017")
    train = open_split(entry(), "train", DataPaths({"coco": tmp_path}, ()))
    assert train.labels.sum() == 1
    assert open_test(tmp_path).labels.tolist() == LABELS


def test_file_without_a_splits_name_is_the_one_split_of_the_card(tmp_path: Path) -> None:
    write_copy(tmp_path, file="instances.json", folder="images")
    one = {"splits": {"test": {"name": "test", "rows": 4}}}
    assert open_test(tmp_path, **one).labels.tolist() == LABELS
    with pytest.raises(DataError, match=r"no test split in \S+annotations: no instances_val2017\.json"):
        open_test(tmp_path)


def test_categories_go_by_name_and_others_only_where_the_card_says_so(tmp_path: Path) -> None:
    write_copy(tmp_path)
    voc = {"classes": ("diningtable", "aeroplane"), "label_names": ("dining table", "airplane")}
    with pytest.raises(
        DataError, match="have 3 columns, the card has 2 classes: 1 names are not on it, first 'cat'"
    ):
        open_test(tmp_path, **voc)
    split = open_test(tmp_path, **voc, other_labels="ignore")
    assert split.labels.tolist() == [[row[2], row[0]] for row in LABELS]
    assert split.fingerprint == open_test(tmp_path).fingerprint  # the same images: features serve both cards
    with pytest.raises(
        DataError, match="have 1 columns, the card has 2 classes: 1 of its names are missing, first 'dog'"
    ):
        open_test(tmp_path, classes=("cat", "dog"), other_labels="ignore")


def test_fingerprint_follows_images_and_annotations(tmp_path: Path) -> None:
    first = open_test(write_copy(tmp_path / "a")).fingerprint
    assert open_test(write_copy(tmp_path / "b")).fingerprint == first
    (tmp_path / "b/val2017" / NAMES[0]).write_bytes(jpeg(9))
    found = document()
    found["annotations"].pop()
    write_copy(tmp_path / "c", found)
    assert len({first, *(open_test(tmp_path / name).fingerprint for name in "bc")}) == 3


# --------------------------------------------------------------------- errors

Change = Callable[[dict[str, Any]], Any]
WRONG: dict[str, tuple[Change, str]] = {
    "no boxes": (
        lambda d: d.pop("annotations"),
        r'instances_val2017\.json has no list "annotations".*\n.*images, cat',
    ),
    "lists of another kind": (lambda d: d.update(images={}), 'has no list "images"'),
    "image without a file": (
        lambda d: d["images"][2].pop("file_name"),
        r"images\[2\] has no file_name \(str\)",
    ),
    "image that is none": (lambda d: d["images"].append(7), r"images\[4\] has no id \(int or str\)"),
    "id of another kind": (
        lambda d: d["annotations"][1].update(image_id=139.5),
        r"annotations\[1\] has no image_id \(int or str\)",
    ),
    "image unknown": (
        lambda d: d["annotations"][3].update(image_id=7),
        r"annotations\[3\] has the image_id 7, which the file does not list",
    ),
    "category unknown": (
        lambda d: d["annotations"][0].update(category_id=2),
        r"\[0\] has the category_id 2, which",
    ),
    "image twice": (lambda d: d["images"][1].update(id=139), "images: 139 is there twice"),
    "file twice": (
        lambda d: d["images"][1].update(file_name=NAMES[0]),
        f"file_name: {NAMES[0]} is there twice",
    ),
    "category twice": (lambda d: d["categories"][1].update(id=1), "categories: 1 is there twice"),
    "category's name twice": (
        lambda d: d["categories"][1].update(name="cat"),
        "do not agree with the card: names repeat",
    ),
    "class unknown": (
        lambda d: d["categories"][1].update(name="aeroplane"),
        r"1 names are not on it, first 'aeroplane' \(is it \"airplane\"\?\)\n.*label_names in tasks/coco\.yaml",
    ),
    "file elsewhere": (lambda d: d["images"][0].update(file_name="../a.jpg"), r"'\.\./a\.jpg' leads out of"),
    "absolute file": (lambda d: d["images"][0].update(file_name="/a.jpg"), r"'/a\.jpg' leads out of"),
    "an image missing": (
        lambda d: d["images"][3].update(file_name="x.jpg"),
        r"x\.jpg is not there; 1 of the 4 images",
    ),
    "all images missing": (
        lambda d: d["images"][0].update(file_name="x.jpg"),
        r"no image x\.jpg, which \S+json lists, in \S+copy/val2017, .*copy/images, \S+copy\n.*unpack",
    ),
    "nothing listed": (lambda d: d.update(images=[], annotations=[]), "the test split at .* is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_are_wrong(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    found = document()
    change(found)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        open_test(write_copy(tmp_path / "copy", found))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("data", [b'{"images": [', b"\xff\xfe{", b"[" * 100_000])
def test_file_that_is_no_json(data: bytes, tmp_path: Path) -> None:
    write_copy(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").write_bytes(data)
    with pytest.raises(DataError, match=r"instances_val2017\.json cannot be read as JSON: \S+"):
        open_test(tmp_path)


def test_split_that_is_not_there(tmp_path: Path) -> None:
    write_copy(tmp_path)
    with pytest.raises(
        DataError, match=r"no instances_train2017\.json .*there is instances_val2017\.json\)\n.*splits\.train"
    ):
        open_split(entry(), "train", DataPaths({"coco": tmp_path}, ()))
    with pytest.raises(DataError, match=r"has 4 samples, the card says 5\n"):
        open_test(tmp_path, splits={"test": {"name": "val2017", "rows": 5}})


def test_other_labels_belong_to_multi_label_sets() -> None:
    with pytest.raises(ValueError, match="other_labels belongs to multi-label sets"):
        entry(kind="single-label", other_labels="ignore")
    assert "other_labels" not in entry().card.canonical()  # records of cards that do not say it stay valid
    assert entry(other_labels="ignore").card.canonical()["other_labels"] == "ignore"


# ------------------------------------------------------------------ real data


@pytest.mark.shared
def test_real_images_with_cocos_classes_and_with_vocs(shared_data: Path) -> None:
    root = shared_data / "coco-363"
    found = json.loads((root / "annotations" / "instances.json").read_text())
    name = {category["id"]: category["name"] for category in found["categories"]}
    shown: dict[int, set[str]] = {image["id"]: set() for image in found["images"]}
    for box in found["annotations"]:
        shown[box["image_id"]].add(name[box["category_id"]])
    catalog = Catalog()
    paths = DataPaths({"coco-363": root, "coco-363-voc": root}, ())
    for dataset in ("coco-363", "coco-363-voc"):
        card = catalog.dataset(dataset).card
        split = open_split(catalog.dataset(dataset), "test", paths)
        names = card.label_names or card.classes
        expected = [[int(n in of_image) for n in names] for of_image in shown.values()]
        assert split.labels.tolist() == expected
        assert len(split) == 159
        (sample,) = split.samples(np.array([158]))
        assert sample.image == (root / "images" / sample.id).read_bytes()
    assert catalog.dataset("coco-363").card.classes == tuple(name.values())
    assert catalog.dataset("coco-363-voc").card.classes == catalog.dataset("voc07").card.classes
