"""PASCAL VOC folders: labels from class files or boxes, difficult objects marked, and copies that are wrong named.
Then CLIP_benchmark's copy of VOC2007, which marks none."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import DataError

CLASSES = ("bird", "cat", "train")  # the class `train` has files like train_train.txt, train_test.txt
Objects = Sequence[tuple[str, int]]
#: image id → (class, difficult) of its objects; the first three are the trainval split
KIT: dict[str, Objects] = {
    "000001": [("cat", 0), ("cat", 1)],
    "000002": [("bird", 1)],
    "000003": [("train", 0), ("bird", 0)],
    "000004": [("bird", 1), ("cat", 0)],
    "000005": [],
    "000006": [("train", 1), ("train", 1), ("cat", 1)],
    "000007": [("bird", 0), ("train", 1)],
}
SPLITS = {"trainval": list(KIT)[:3], "test": list(KIT)[3:]}
TRAINVAL = [[0, 1, 0], [255, 0, 0], [1, 0, 1]]
TEST = [[255, 1, 0], [0, 0, 0], [0, 255, 255], [1, 0, 255]]


def entry(name: str = "voc07", **changes: Any) -> Entry[TaskCard]:
    fields: dict[str, Any] = {
        "title": "VOC",
        "source": {"local": True},
        "splits": {"train": {"name": "trainval"}, "test": {"name": "test"}},
        "kind": "multi-label",
        "classes": CLASSES,
        "templates": {"default": ["a photo of a {c}."]},
        "prompts_source": "tests",
        "protocols": {"zs": {"primary": "map_area"}},
    }
    return Entry(name, TaskCard.model_validate(fields | changes), Path(f"tasks/{name}.yaml"))


def open_role(root: Path, role: str = "test", **changes: Any) -> Split:
    dataset = entry(**changes)
    return open_split(dataset, role, DataPaths({dataset.id: root}, ()))


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (number * 20, 255 - number * 20, 7)).save(buffer, "JPEG")
    return buffer.getvalue()


def xml(image: str, objects: Objects) -> str:
    """An annotation as in the development kit, with what is not read."""
    found = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
        "<bndbox><xmin>8</xmin><ymin>1</ymin><xmax>9</xmax><ymax>7</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>8</xmin><ymin>1</ymin><xmax>9</xmax><ymax>2</ymax></bndbox></part>"
        "</object>"
        for name, difficult in objects
    )
    return f"<annotation>\n<folder>VOC2007</folder><filename>{image}.jpg</filename>{found}</annotation>\n"


def value(objects: Objects, name: str) -> int:
    """What a class file says of an image."""
    marks = [difficult for kind, difficult in objects if kind == name]
    return -1 if not marks else 0 if all(marks) else 1


def write_kit(folder: Path, splits: Sequence[str] = tuple(SPLITS), *, class_files: bool = True) -> Path:
    """A development kit as the archives unpack it (class files end lines like Windows, as VOC2007's do)."""
    main = folder / "ImageSets" / "Main"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split in splits:
        images = SPLITS[split]
        (main / f"{split}.txt").write_text("".join(f"{i}\n" for i in images))
        for image in images:
            (folder / "JPEGImages" / f"{image}.jpg").write_bytes(jpeg(int(image)))
            (folder / "Annotations" / f"{image}.xml").write_text(xml(image, KIT[image]))
        for name in CLASSES if class_files else ():
            lines = [f"{image} {value(KIT[image], name):2d}\r\n" for image in images]
            (main / f"{name}_{split}.txt").write_bytes("".join(lines).encode())
    return folder


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return write_kit(tmp_path / "VOCdevkit" / "VOC2007")


# --------------------------------------------------------------------- labels


@pytest.mark.parametrize("class_files", [True, False])
def test_class_files_and_boxes_give_the_same_labels(class_files: bool, tmp_path: Path) -> None:
    root = write_kit(tmp_path, class_files=class_files)
    train, test = open_role(root, "train"), open_role(root, "test")
    assert train.labels.tolist() == TRAINVAL
    assert test.labels.tolist() == TEST
    assert test.labels.dtype == np.uint8
    assert (test.ids, test.classes) == (SPLITS["test"], CLASSES)
    rows = np.array([0, 2], dtype=np.int64)
    assert [(s.id, s.image) for s in test.samples(rows)] == [("000004", jpeg(4)), ("000006", jpeg(6))]


def test_class_files_decide_and_no_xml_is_read(kit: Path) -> None:
    for path in (kit / "Annotations").iterdir():
        path.write_text("not XML")
    assert open_role(kit).labels.tolist() == TEST


def test_order_is_that_of_the_lists(kit: Path) -> None:
    main = kit / "ImageSets" / "Main"
    for path in main.glob("*test.txt"):
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    split = open_role(kit)
    assert split.ids == SPLITS["test"][::-1]
    assert split.labels.tolist() == TEST[::-1]
    for path in main.glob("*_test.txt"):
        path.unlink()
    assert open_role(kit).labels.tolist() == TEST[::-1]


@pytest.mark.parametrize("class_files", [True, False])
def test_labels_go_by_name(class_files: bool, tmp_path: Path) -> None:
    write_kit(tmp_path, class_files=class_files)
    turned = open_role(tmp_path, classes=("train", "bird", "cat"))
    assert turned.labels.tolist() == [[row[2], row[0], row[1]] for row in TEST]
    translated = open_role(tmp_path, classes=("fowl", "kitten", "locomotive"), label_names=CLASSES)
    assert translated.labels.tolist() == TEST


@pytest.mark.parametrize("class_files", [True, False])
def test_classes_that_the_card_leaves_out(class_files: bool, tmp_path: Path) -> None:
    write_kit(tmp_path, class_files=class_files)
    with pytest.raises(DataError, match="'cat'"):
        open_role(tmp_path, classes=("bird", "train"))
    split = open_role(tmp_path, classes=("bird", "train"), other_labels="ignore")
    assert split.labels.tolist() == [[row[0], row[2]] for row in TEST]


def test_without_image_sets_the_folder_is_the_one_split_of_the_card(kit: Path) -> None:
    shutil.rmtree(kit / "ImageSets")
    split = open_role(kit, splits={"test": {"name": "test"}})
    assert split.ids == list(KIT)
    assert split.labels.tolist() == TRAINVAL + TEST


def test_an_object_that_does_not_say_is_not_difficult(kit: Path) -> None:
    shutil.rmtree(kit / "ImageSets")
    for path in (kit / "Annotations").iterdir():
        path.write_text(re.sub("<difficult>.</difficult>", "", path.read_text()))
    assert not (open_role(kit, splits={"test": {"name": "test"}}).labels == 255).any()


# -------------------------------------------------------------------- folders


@pytest.mark.parametrize("given", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_any_folder_above_the_kit_may_be_given(given: str, kit: Path, tmp_path: Path) -> None:
    split = open_role(tmp_path / given)
    assert split.labels.tolist() == TEST
    assert split.fingerprint == open_role(kit).fingerprint


def test_of_several_years_the_one_of_the_card_is_read(kit: Path, tmp_path: Path) -> None:
    other = write_kit(tmp_path / "VOCdevkit" / "VOC2012", class_files=False)
    (other / "ImageSets" / "Main" / "test.txt").write_text("000004\n")
    assert len(open_role(tmp_path)) == len(open_role(tmp_path, name="voc2007-mine")) == 4
    assert len(open_role(tmp_path, name="voc2012-mine")) == len(open_role(other)) == 1
    with pytest.raises(
        DataError, match=r"holds VOCdevkit/VOC2007, VOCdevkit/VOC2012\n.*--data pascal=\S+VOC2007"
    ):
        open_role(tmp_path, name="pascal")


def test_fingerprint_follows_images_and_labels(kit: Path, tmp_path: Path) -> None:
    first = open_role(kit).fingerprint
    shutil.copytree(kit, tmp_path / "moved")
    assert open_role(tmp_path / "moved").fingerprint == first
    assert open_role(kit, "train").fingerprint != first
    (tmp_path / "moved/JPEGImages/000004.jpg").write_bytes(jpeg(9))
    path = kit / "ImageSets/Main/cat_test.txt"
    path.write_bytes(path.read_bytes().replace(b"000005 -1", b"000005  1"))
    assert len({first, open_role(tmp_path / "moved").fingerprint, open_role(kit).fingerprint}) == 3


def test_images_are_read_when_asked_for(kit: Path) -> None:
    split = open_role(kit)
    (kit / "JPEGImages/000005.jpg").unlink()
    assert [s.id for s in split.samples(np.array([0]))] == ["000004"]
    with pytest.raises(DataError, match=r"000005\.jpg cannot be read: No such file"):
        list(split.samples(np.array([1])))


# --------------------------------------------------------------------- errors

Break = Callable[[Path], Any]
BOMB = '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'


def _main(name: str, text: str) -> Break:
    """Replaces a list."""
    return lambda kit: (kit / "ImageSets" / "Main" / name).write_text(text)


def _boxes(text: str | bytes) -> Break:
    """Takes away the class files, and replaces one annotation."""

    def breaks(kit: Path) -> None:
        for path in (kit / "ImageSets" / "Main").glob("*_test.txt"):
            path.unlink()
        data = text.encode() if isinstance(text, str) else text
        (kit / "Annotations" / "000005.xml").write_bytes(data)

    return breaks


def _remove(*patterns: str) -> Break:
    def breaks(kit: Path) -> None:
        for path in [path for pattern in patterns for path in kit.glob(pattern)]:
            path.unlink()

    return breaks


WRONG: dict[str, tuple[Break, str]] = {
    "trainval archive only": (
        _remove("ImageSets/Main/*test.txt"),
        r"no test split in \S+Main: neither test\.txt nor <class>_test\.txt \(there is trainval\)\n.*the other one",
    ),
    "no image sets": (
        lambda kit: shutil.rmtree(kit / "ImageSets"),
        r"voc07: no \S+ImageSets/Main, which would say what belongs to test\n.*write the ids",
    ),
    "annotations only": (
        lambda kit: shutil.rmtree(kit / "JPEGImages"),
        r"JPEGImages/000004\.jpg is not there; 4 of the 4 images .* missing\n.*unpack both",
    ),
    "an image missing": (_remove("JPEGImages/000006.jpg"), r"000006\.jpg is not there; 1 of the 4 images"),
    "neither class files nor xml": (
        _remove("ImageSets/Main/*_test.txt", "Annotations/000005.xml"),
        r"neither class files .*Annotations/000005\.xml say .* 1 of 4 annotations are missing\n.*archive",
    ),
    "a class without its file": (
        _remove("ImageSets/Main/cat_test.txt"),
        r"have 2 columns, the card has 3 classes: 1 of its names are missing, first 'cat'",
    ),
    "class unknown": (
        _main("catt_test.txt", "".join(f"{i} 1\n" for i in SPLITS["test"])),
        r"have 4 columns, the card has 3 classes: 1 names are not on it, first 'catt' \(is it \"cat\"\?\)",
    ),
    "shorter list": (
        _main("cat_test.txt", "000004 1\n000005 1\n"),
        r"cat_test\.txt and bird_test\.txt do not list the same images in the same order: 2 and 4 images",
    ),
    "other order": (
        _main("test.txt", "000004\n000006\n000005\n000007\n"),
        r"Main/test\.txt and bird_test\.txt .*: image 2 is 000006 and 000005",
    ),
    "listed twice": (
        _main("bird_test.txt", "000004 1\n\n000004 1\n"),
        r"bird_test\.txt:3: .*000004 is listed twice",
    ),
    "value unknown": (
        _main("bird_test.txt", "000004 1\n000005 2\n"),
        r"bird_test\.txt:2: expected an image id and 1, 0 or -1, found '000005 2'",
    ),
    "value missing": (
        _main("cat_test.txt", "000004\n"),
        r"cat_test\.txt:1: expected an image id and .*'000004'",
    ),
    "path for an id": (
        _main("bird_test.txt", "../000004 1\n"),
        r"bird_test\.txt:1: expected .*'\.\./000004 1'",
    ),
    "list that is no text": (
        lambda kit: (kit / "ImageSets/Main/bird_test.txt").write_bytes(b"\xff\xfe1"),
        r"bird_test\.txt:1: not UTF-16 \(byte 2 is 0x31\)",
    ),
    "empty split": (
        lambda kit: [path.write_text("") for path in (kit / "ImageSets" / "Main").glob("*test.txt")],
        "the test split at .* is empty",
    ),
    "broken xml": (
        _boxes("<annotation><object>"),
        r"000005\.xml cannot be read as a VOC annotation: no element found",
    ),
    "xml that declares entities": (
        _boxes(BOMB),
        r"000005\.xml cannot .* declares a document type \(annotation\)",
    ),
    "the same in UTF-16": (_boxes(BOMB.encode("utf-16")), r"000005\.xml cannot .* declares a document type"),
    "xml in an unknown encoding": (
        _boxes('<?xml version="1.0" encoding="klingon"?><annotation/>'),
        r"000005\.xml cannot be read as a VOC annotation: .*klingon",
    ),
    "other xml": (_boxes("<svg/>"), r"000005\.xml is no VOC annotation: it is <svg>, expected <annotation>"),
    "object without a name": (
        _boxes("<annotation><object><difficult>0</difficult></object></annotation>"),
        r"000005\.xml: object 1: it has no name",
    ),
    "odd difficulty": (
        _boxes("<annotation><object><name>cat</name><difficult>yes</difficult></object></annotation>"),
        r"000005\.xml: object 1: difficult is 'yes', expected 0 or 1",
    ),
    "class unknown in xml": (
        _boxes(xml("000005", [("brid", 0)])),
        r"000005\.xml has an object 'brid', not a class of voc07 \(is it \"bird\"\?\)\n.*other_labels: ignore",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_kits_that_are_wrong(case: str, kit: Path) -> None:
    breaks, message = WRONG[case]
    breaks(kit)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        open_role(kit)
    assert "\n" not in caught.value.message


def test_wrong_number_of_images(kit: Path) -> None:
    with pytest.raises(DataError, match=r"VOC2007 has 4 samples, the card says 5\n.*splits\.test\.rows"):
        open_role(kit, splits={"test": {"name": "test", "rows": 5}})


def test_a_kit_is_no_single_label_set(kit: Path) -> None:
    with pytest.raises(DataError, match=r"\(3,\) labels, the card says one\n.*kind: multi-label"):
        open_role(kit, kind="single-label")


# ------------------------------------------------------------------ real data


@pytest.mark.shared
def test_hundred_photos_of_voc2012(shared_data: Path) -> None:
    root = shared_data / "voc2012-100"
    dataset = Catalog().dataset("voc2012-100")
    split = open_split(dataset, "test", DataPaths({}, (shared_data,)))
    objects, difficult = 0, 0
    for number, image in enumerate(split.ids):
        text = (root / "Annotations" / f"{image}.xml").read_text()
        found = re.findall(r"<name>(\w+)</name>.*?<difficult>(\d)</difficult>", text, re.DOTALL)
        objects += len(found)
        difficult += sum(mark == "1" for _, mark in found)
        easy, hard = ({n for n, mark in found if mark == m} for m in "01")
        expected = [1 if c in easy else 255 if c in hard else 0 for c in dataset.card.classes]
        assert split.labels[number].tolist() == expected, image
    assert (len(split), objects, difficult) == (100, 273, 38)
    assert set(np.unique(split.labels)) == {0, 1, 255}
    (sample,) = split.samples(np.array([99]))
    assert sample.image == (root / "JPEGImages" / f"{split.ids[99]}.jpg").read_bytes()


@pytest.mark.shared
def test_complete_image_sets_of_voc2007(shared_data: Path, tmp_path: Path) -> None:
    main = shared_data / "voc2007-imagesets" / "Main"
    kit = tmp_path / "VOCdevkit" / "VOC2007"
    (kit / "JPEGImages").mkdir(parents=True)
    (kit / "ImageSets").mkdir()
    (kit / "ImageSets" / "Main").symlink_to(main)
    (tmp_path / "tiny.jpg").write_bytes(jpeg(1))
    for number in range(1, 9964):
        (kit / "JPEGImages" / f"{number:06d}.jpg").symlink_to(tmp_path / "tiny.jpg")
    dataset = Catalog().dataset("voc07")
    paths = DataPaths({"voc07": tmp_path / "VOCdevkit"}, ())
    positives = {}
    for role, name, count in (("train", "trainval", 5011), ("test", "test", 4952)):
        split = open_split(dataset, role, paths)
        assert split.labels.shape == (count, 20)
        assert split.ids == (main / f"{name}.txt").read_text().split()
        for column, word in enumerate(dataset.card.classes):
            words = (main / f"{word}_{name}.txt").read_text().split()
            labels = split.labels[:, column]
            assert words[::2] == split.ids
            assert (labels == 1).sum() == words[1::2].count("1")
            assert (labels == 255).sum() == words[1::2].count("0")
            positives[word, role] = int((labels == 1).sum())
    # Counted once, so that a change of both readings shows.
    assert (positives["aeroplane", "train"], positives["aeroplane", "test"]) == (238, 204)
    assert (positives["person", "train"], positives["person", "test"]) == (2008, 2007)


# ------------------------------------------------- CLIP_benchmark's WebDataset


def write_clip_benchmark(root: Path, rows: Sequence[Sequence[float]], shards: int = 2) -> Path:
    """What its 1.6.2 exports for voc2007_multilabel: lossless WebP with a float32 vector beside it."""
    folder = root / "test"
    folder.mkdir(parents=True)
    for shard, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in part:
                picture, label = io.BytesIO(), io.BytesIO()
                Image.new("RGB", (9, 8), (int(i) * 20, 0, 7)).save(picture, "WEBP", lossless=True)
                np.save(label, np.asarray(rows[i], dtype=np.float32))
                for suffix, buffer in (("npy", label), ("webp", picture)):
                    member = tarfile.TarInfo(f"s{i:07d}.{suffix}")
                    member.size = len(buffer.getvalue())
                    tar.addfile(member, io.BytesIO(buffer.getvalue()))
    for name, text in (
        ("test/nshards.txt", str(shards)),
        ("classnames.txt", "\n".join(CLASSES)),
        ("zeroshot_classification_templates.txt", "a photo of a {c}."),
        ("dataset_type.txt", "multilabel"),
    ):
        (root / name).write_text(text + "\n")
    return root


def test_clip_benchmarks_copy_marks_nothing_as_difficult(tmp_path: Path) -> None:
    rows = [[int(mark > 0) for mark in row] for row in TEST]
    split = open_role(write_clip_benchmark(tmp_path / "a", rows))
    assert split.labels.tolist() == rows
    assert split.labels.dtype == np.uint8
    image = next(split.samples(np.array([3]))).image
    assert Image.open(io.BytesIO(image)).format == "WEBP"
    turned = open_role(tmp_path / "a", classes=("train", "bird"), other_labels="ignore")
    assert turned.labels.tolist() == [[row[2], row[0]] for row in rows]
    write_clip_benchmark(tmp_path / "b", [[0, 1, 0], [0, 0.5, 0]], 1)
    with pytest.raises(DataError, match=r"sample 0/s0000001 .* has the label 0\.5 in column 1; allowed: 0"):
        open_role(tmp_path / "b")
