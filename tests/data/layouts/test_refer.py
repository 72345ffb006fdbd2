"""Referring expressions in each layout that people have, and copies that are wrong."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from expression_copies import (
    BOXES,
    FORMS,
    NAMES,
    TEXTS,
    entry,
    image_rows,
    of,
    open_val,
    plain,
    refs,
    write_images,
    write_paths,
    write_plain,
    write_refer,
    write_table,
)
from PIL import Image
from small import jpeg

from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Subset
from clipbench.errors import DataError

hub = servers.data_hub


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_expressions(form: str, tmp_path: Path) -> None:
    split = open_val(FORMS[form](tmp_path / "copy"))
    found = of(split)
    assert split.ids == NAMES[:2]
    assert found.texts == TEXTS
    assert found.image.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(found.boxes, BOXES, atol=1e-6)
    assert found.candidates is None
    assert len(set(found.ids)) == 4
    assert split.labels.tolist() == [0, 0]
    assert split.classes == ()
    both = list(split.samples(np.array([0, 1])))
    assert [(s.id, s.image) for s in both] == [(NAMES[0], jpeg(0)), (NAMES[1], jpeg(1))]
    assert [s.image for s in split.samples(np.array([1]))] == [jpeg(1)]
    assert split.fingerprint == open_val(tmp_path / "copy").fingerprint


def test_ids_are_those_of_the_data(tmp_path: Path) -> None:
    assert of(open_val(write_refer(tmp_path / "a"))).ids == ("11/110", "11/111", "13/130", "12/120")
    assert of(open_val(write_refer(tmp_path / "a"), "testA")).texts == ("x",)
    numbered = [e | {"id": f"e{k}"} for k, e in enumerate(plain())]
    assert of(open_val(write_plain(tmp_path / "b", numbered))).ids == ("e0", "e1", "e3", "e2")
    assert of(open_val(write_plain(tmp_path / "b"))).ids[:2] == (f"{NAMES[0]}/0", f"{NAMES[0]}/1")


def test_a_card_with_one_split_needs_no_name(tmp_path: Path) -> None:
    write_plain(tmp_path, name="referring_expressions.json")
    one: dict[str, Any] = {"splits": {"val": {"name": "anything"}}}
    assert of(open_val(tmp_path, **one)).texts == TEXTS
    with pytest.raises(DataError, match=r"no val data in \S+ \(it holds annotations"):
        open_val(tmp_path)


def test_limit_keeps_what_belongs_to_the_images(tmp_path: Path) -> None:
    root = write_plain(tmp_path)
    (root / "detections.json").write_text(json.dumps({NAMES[1]: [[0, 0, 2, 2]]}))
    part = Subset(open_val(root), np.array([1]))
    assert of(part).texts == ("all of it",)
    assert of(part).image.tolist() == [0]
    candidates = of(part).candidates
    assert candidates is not None
    assert [c.tolist() for c in candidates] == [[[0, 0, 2, 2]]]


# ------------------------------------------------------------------ detections

DETECTIONS: dict[str, tuple[str, Any]] = {
    "ours": ("detections.json", {NAMES[0]: [[1, 1, 3, 4], [0, 0, 2, 2]]}),
    "ALBEF's": ("dets.json", {"139": [[1, 1, 2, 3, 0.9], [0, 0, 2, 2, 0.1]], "7": []}),
    "refer's": (
        "dets.json",
        {"dets": [{"box": [1, 1, 2, 3], "image_id": 139}, {"box": [0, 0, 2, 2], "image_id": 139}]},
    ),
    "refer's list": (
        "dets.json",
        [{"box": [1, 1, 2, 3], "image_id": 139}, {"box": [0, 0, 2, 2], "image_id": 139}],
    ),
}


@pytest.mark.parametrize("form", DETECTIONS)
@pytest.mark.parametrize("table", [False, True])
def test_candidate_boxes(form: str, table: bool, tmp_path: Path) -> None:
    root = write_table(tmp_path, image_rows()) if table else write_refer(tmp_path)
    before = open_val(root)
    name, content = DETECTIONS[form]
    (root / name).write_text(json.dumps(content))
    split = open_val(root)
    candidates = of(split).candidates
    assert candidates is not None
    assert [c.tolist() for c in candidates] == [[[1, 1, 3, 4], [0, 0, 2, 2]], []]
    assert all(c.shape[1:] == (4,) for c in candidates)
    assert split.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("detections.json", [1]),
        ("detections.json", {NAMES[0]: [[1, 1, 1, 4]]}),
        ("detections.json", {NAMES[0]: [[1, 1]]}),
        ("dets.json", {"dets": [{"box": [1, 1, 2, 2]}]}),
        ("dets.json", {"139": [[1, 2]]}),
    ],
)
def test_detections_that_are_none(name: str, content: Any, tmp_path: Path) -> None:
    (write_refer(tmp_path) / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{name} is no file of detections"):
        open_val(tmp_path)


# ---------------------------------------------------------------------- errors


def test_a_pickle_is_not_read_and_the_error_says_how_to_turn_it_into_json(tmp_path: Path) -> None:
    root = write_refer(tmp_path)
    (root / "refs(unc).json").unlink()
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs()))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p is a pickle, which can run any program") as caught:
        open_val(root)
    assert "json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs(unc).json', 'w'))" in str(
        caught.value
    )


def test_googles_partition_is_not_read(tmp_path: Path) -> None:
    root = write_refer(tmp_path)
    (root / "refs(unc).json").rename(root / "refs(google).json")
    with pytest.raises(DataError, match=r"has refs\(google\)\.json; read are the partitions unc and umd"):
        open_val(root)
    (root / "refs(google).json").rename(root / "refs(umd).json")
    assert of(open_val(root)).texts == TEXTS


Entries = list[dict[str, Any]]
WRONG: dict[str, tuple[Callable[[Entries], Any], str]] = {
    "no list": (lambda e: {"a": e}, r"_val\.json is no list of expressions"),
    "no box": (lambda e: e[2].pop("bbox_xyxy"), r"_val\.json: entry 2 has no bbox_xyxy"),
    "empty": (
        lambda e: e[1].update(expression="  "),
        r"expression \S+139\.jpg/1 \(image \S+\) in \S+ is empty",
    ),
    "no text": (lambda e: e[1].update(expression=None), r"139\.jpg/1 \(image \S+\) in \S+ is empty"),
    "three numbers": (
        lambda e: e[0].update(bbox_xyxy=[1, 2, 3]),
        r"has the box \[1, 2, 3\], expected four numbers",
    ),
    "words": (
        lambda e: e[0].update(bbox_xyxy=["1", 2, 3, 4]),
        r"has the box \['1', 2, 3, 4\], expected four",
    ),
    "not finite": (lambda e: e[0].update(bbox_xyxy=[1, 2, 3, float("nan")]), r"nan\], expected four numbers"),
    "no area": (
        lambda e: e[0].update(bbox_xyxy=[3, 2, 3, 4]),
        r"has the box 3, 2, 3, 4 \(x0, y0, x1, y1\), which has no area\n.*two corners, not a corner and a size",
    ),
    "sizes": (lambda e: e[0].update(bbox_xyxy=[5, 2, 3, 4]), "which has no area"),
    "outside": (
        lambda e: e[0].update(bbox_xyxy=[20, 2, 23, 4]),
        r"has the box 20, 2, 23, 4 \(x0, y0, x1, y1\), outside the image of 9 × 8 px",
    ),
    "just outside": (lambda e: e[0].update(bbox_xyxy=[9, 2, 10, 4]), "outside the image of 9 × 8 px"),
    "too large": (lambda e: e[0].update(bbox_xyxy=[1, 2, 12, 4]), "outside the image of 9 × 8 px"),
    "id twice": (lambda e: [x.update(id=7) for x in e[:2]], r"the expression id 7 is there twice"),
    "no image": (lambda e: e[2].update(file_name="no.jpg"), r"no\.jpg is not there; 1 of the 2 images"),
    "outside the folder": (lambda e: e[0].update(file_name="../a.jpg"), "leads out of the folder of images"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_entries_are_named(wrong: str, tmp_path: Path) -> None:
    spoil, message = WRONG[wrong]
    entries = plain()
    changed = spoil(entries)
    with pytest.raises(DataError, match=message):
        open_val(write_plain(tmp_path, changed if wrong == "no list" else entries))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    found = refs()
    found[1]["ann_id"] = 5
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.json: entry 1 does not go with instances\.json \(KeyError: 5\)"
    ):
        open_val(write_refer(tmp_path / "a", found))
    root = write_refer(tmp_path / "b")
    (root / "instances.json").write_text("[]")
    with pytest.raises(DataError, match="has no images and annotations as COCO's instances do"):
        open_val(root)
    (root / "instances.json").write_text("{")
    with pytest.raises(DataError, match=r"instances\.json cannot be read as JSON"):
        open_val(root)


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    val = [ref for ref in refs() if ref["split"] == "val"]
    with pytest.raises(DataError, match=r"no testA split in \S+ \(it has val\)"):
        open_val(write_refer(tmp_path / "a", val), "testA")
    root = write_paths(tmp_path / "b")
    only: dict[str, Any] = {"splits": {"testB": {"name": "testB"}}}
    with pytest.raises(DataError, match=r"no testB split in \S+ \(the column split has testA, val\)"):
        open_val(root, "testB", **only)


def test_tables_of_another_kind(tmp_path: Path) -> None:
    rows = [row | {"photo": row["image"]} for row in image_rows()]
    for row in rows:
        del row["image"]
    with pytest.raises(
        DataError, match=r"are none of the known forms of referring expressions: 'image' with ref_list"
    ):
        open_val(write_table(tmp_path, rows))
    assert of(open_val(tmp_path, columns={"image": "photo"})).texts == TEXTS
    (tmp_path / "data" / "refcoco_unc_val-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_val(tmp_path)


def test_an_image_that_cannot_be_read_waits_for_decoding(tmp_path: Path) -> None:
    root = write_plain(tmp_path)
    (root / "images" / NAMES[1]).write_bytes(b"no image")
    assert of(open_val(root)).boxes[3].tolist() == pytest.approx([0, 0, 9.3, 8])


def test_a_copy_of_another_size_than_the_card_says(tmp_path: Path) -> None:
    sized: dict[str, Any] = {"splits": {"val": {"name": "val", "rows": 3}}}
    with pytest.raises(DataError, match=r"has 2 samples, the card says 3"):
        open_val(write_plain(tmp_path), **sized)


def test_the_hubs_copy_of_the_shipped_cards_form(hub: servers.Hub, tmp_path: Path) -> None:
    write_table(tmp_path / "served", image_rows())
    write_table(tmp_path / "served", image_rows()[:1], "refcoco_unc_testA-00000-of-00001.parquet")
    hub.repos = {"org/refer": {servers.FIRST: tmp_path / "served"}}
    card = {
        "title": "Refer",
        "source": {"hub": "org/refer"},
        "splits": {"val": {"name": "refcoco_unc_val", "rows": 2}, "testA": {"name": "refcoco_unc_testA"}},
        "kind": "expressions",
        "protocols": {"ground": {"split": "val"}},
    }
    wanted = [("val", "val", card), ("testA", "testA", card)]
    found = servers.open_from_hub(hub, tmp_path / "home", wanted)
    assert found["val"]["images"] == [hashlib.sha256(jpeg(n)).hexdigest() for n in (0, 1)]
    assert found["testA"]["images"] == [hashlib.sha256(jpeg(0)).hexdigest()]


# ------------------------------------------- class names of COCO's instances

#: image, class, box (x, y, width, height), crowd; two categories have one name, as sets that were put together have
OBJECTS: list[tuple[int, int, list[float], int]] = [
    (0, 1, [1.0, 2.0, 3.5, 4.0], 0),
    (0, 2, [0, 0, 2, 2], 0),  # two dogs
    (0, 2, [4, 4, 2, 2], 0),
    (0, 3, [5.0, 1.0, 4.2, 2.0], 0),  # an edge that rounding carried beyond the image
    (1, 2, [0, 0, 2, 2], 0),  # a dog, and a crowd of them
    (1, 2, [0, 0, 9, 8], 1),
    (1, 1, [1, 1, 8, 7], 1),  # a crowd alone
    (1, 3, [1, 1, 0, 7], 0),
    (2, 4, [2, 1, 3, 3], 0),
    (2, 1, [4, 1, 3, 3], 0),
    (2, 3, [2, 1, 3, 3], 0),
]


def write_objects(root: Path, file: str = "instances.json", **changes: Any) -> Path:
    names = {1: "cat", 2: "dog", 3: "tv", 4: "cat"}
    listed = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(NAMES)],
        "annotations": [
            {"id": 70 + n, "image_id": image, "category_id": kind, "bbox": box, "iscrowd": crowd}
            for n, (image, kind, box, crowd) in enumerate(OBJECTS)
        ],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
    }
    write_images(root / "images")
    (root / "annotations").mkdir()
    (root / "annotations" / file).write_text(json.dumps(listed | changes))
    human = [{"file_name": NAMES[0], "expression": "left cat", "bbox_xyxy": [1, 2, 3, 4]}]
    (root / "annotations" / "referring_expressions.json").write_text(json.dumps(human))
    return root


ALONE: dict[str, Any] = {"splits": {"val": {"name": "val2017"}}, "expressions": "classes"}


def test_an_object_alone_of_its_class_is_called_by_its_name(tmp_path: Path) -> None:
    split = open_val(write_objects(tmp_path), **ALONE)
    found = of(split)
    assert list(split.ids) == [NAMES[0], NAMES[2]]
    assert found.ids == ("70", "73", "80")
    assert found.texts == ("cat", "tv", "tv")
    assert found.image.tolist() == [0, 0, 1]
    assert found.boxes.tolist() == [[1, 2, 4.5, 6], [5, 1, 9, 3], [2, 1, 5, 4]]
    assert [str(note) for note in split.notes] == [
        f"6 objects left out: their image shows others of their class (71 (dog, {NAMES[0]}), 72 (dog, {NAMES[0]}), "
        f"74 (dog, {NAMES[1]}), …)",
        f"1 objects left out: they are crowds (iscrowd) (76 (cat, {NAMES[1]}))",
        f"1 objects left out: their box has no area (77 (tv, {NAMES[1]}))",
        f"1 images left out: no object in them is the only one of its class ({NAMES[1]})",
    ]
    human = open_val(tmp_path, splits=ALONE["splits"])  # a card that does not say so reads what people wrote
    assert of(human).texts == ("left cat",)
    assert human.fingerprint != split.fingerprint


def test_objects_of_a_split_with_a_name(tmp_path: Path) -> None:
    split = open_val(write_objects(tmp_path, "instances_refcoco_unc_val.json"), expressions="classes")
    assert of(split).texts == ("cat", "tv", "tv")
    with pytest.raises(DataError, match=r"no testA split in .*instances_refcoco_unc_testA\.json"):
        open_val(tmp_path, "testA", expressions="classes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"id": 1, "image_id": 0, "category_id": 1}]}, r"annotations\[0\] has no bbox"),
        (
            {"annotations": [{"id": 1, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            r"annotations\[0\] has the image_id 9, which the file does not list",
        ),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 1]}]},
            r"expression 1 .* has the box \[0, 0, 1\], expected four numbers",
        ),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 90, 80]}]},
            "outside the image of 9 × 8 px",
        ),
        ({"annotations": []}, "val split at .* is empty"),
    ],
)
def test_instances_that_name_no_object(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_val(write_objects(tmp_path, **changes), **ALONE)


def test_a_folder_without_instances_has_no_class_names(tmp_path: Path) -> None:
    (tmp_path / "val2017.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"no annotations/instances\*\.json in .*\n.*instances_val2017\.json"):
        open_val(tmp_path, **ALONE)


def test_class_names_are_of_local_instances() -> None:
    with pytest.raises(ValueError, match="its source is local or a path"):
        entry(source={"hub": "someone/refcoco"}, expressions="classes")
    assert "expressions" not in entry().card.canonical()  # records of cards that do not say it stay valid
    assert entry(expressions="classes").card.canonical()["expressions"] == "classes"


@pytest.mark.shared
def test_class_names_on_real_images(shared_data: Path) -> None:
    dataset = Catalog().dataset("coco-363-objects")
    split = open_split(dataset, "test", DataPaths({dataset.id: shared_data / "coco-363"}, ()))
    found = of(split)
    assert (len(split), len(found.texts)) == (134, 353)
    assert [(note.kind, note.count) for note in split.notes] == [
        ("objects-of-a-kind", 1010),
        ("images-left-out", 25),
    ]
    dog = found.texts.index("dog")
    listed = json.loads((shared_data / "coco-363/annotations/instances.json").read_text())
    (entry_of_dog,) = [a for a in listed["annotations"] if str(a["id"]) == found.ids[dog]]
    x, y, width, height = entry_of_dog["bbox"]
    assert found.boxes[dog].tolist() == pytest.approx([x, y, x + width, y + height])


@pytest.mark.shared
def test_human_expressions_on_real_images(shared_data: Path) -> None:
    dataset = Catalog().dataset("coco-363-expressions")
    split = open_split(dataset, "test", DataPaths({dataset.id: shared_data / "coco-363"}, ()))
    listed = json.loads((shared_data / "coco-363/annotations/referring_expressions.json").read_text())
    found = of(split)
    assert len(found.texts) == len(listed) == 41
    assert sorted(found.texts) == sorted(e["expression"] for e in listed)
    for sample, image in zip(split.samples(np.arange(len(split))), range(len(split)), strict=True):
        with Image.open(io.BytesIO(sample.image)) as opened:
            width, height = opened.size
        boxes = found.boxes[found.image == image]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= [width, height]).all()
