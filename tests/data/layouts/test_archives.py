"""The data sets' original archives: their own lists of what belongs to a split, labels by name, damage named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import archived
import numpy as np
import pytest
import small
from scipy.io import loadmat, savemat

from clipbench import cli
from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.decode import open_image
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import DataError

one_thread = small.one_thread
BOTH = {"train": {"name": "train"}, "test": {"name": "test"}}
ENDS = ("indoor", "outdoor", "public", "exterior", "interior", "natural", "home", "shop", "football", "seats")


def sun_path(name: str) -> str:
    """The class path of SUN397's archive for a name of OpenAI's: /a/apse/indoor."""
    words = name.split()
    parts = ["_".join(words[:-1]), words[-1]] if words[-1] in ENDS and len(words) > 1 else ["_".join(words)]
    return f"/{name[0]}/{'/'.join(parts)}"


def underscored(name: str) -> str:
    return name.replace(" ", "_")


def of_card(dataset: str, **changes: Any) -> Entry[TaskCard]:
    """The shipped card, without the counts of the whole set."""
    found = Catalog().dataset(dataset)
    source = {"source": found.card.source} if "source" not in changes else {}
    card = TaskCard.model_validate(found.card.model_dump() | {"splits": BOTH} | source | changes)
    return Entry(dataset, card, found.path)


def opened(dataset: Entry[TaskCard], role: str, root: Path) -> Split:
    return open_split(dataset, role, DataPaths({dataset.id: root}, ()))


#: data set → (its archive, the archive's name of a class of the card, its lists for training and for the test)
SETS: dict[str, tuple[Callable[..., archived.Listed], Callable[[str], str], tuple[str, ...], str]] = {
    "food101": (archived.food, underscored, ("train",), "test"),
    "dtd": (archived.dtd, str, ("train", "val"), "test"),
    "pets": (archived.pets, underscored, ("trainval",), "test"),
    "aircraft": (archived.aircraft, str, ("train", "val"), "test"),
    "sun397": (archived.sun, sun_path, ("train",), "test"),
    "flowers102": (archived.flowers, str, ("trnid", "valid"), "tstid"),
    "cars": (archived.cars, str, ("train",), "test"),
    "cifar10": (archived.cifar, str, ("train",), "test"),
    "cifar100": (archived.cifar, underscored, ("train",), "test"),
}


@pytest.mark.parametrize("dataset", SETS)
def test_every_class_of_the_card_is_found_and_lists_give_splits_and_order(
    dataset: str, tmp_path: Path
) -> None:
    write, named, training, testing = SETS[dataset]
    entry = of_card(dataset)
    names = [named(name) for name in entry.card.classes]
    listed = write(tmp_path, names, 1, 1)
    for role, lists in (("train", training), ("test", (testing,))):
        split = opened(entry, role, tmp_path)
        rows = [row for name in lists for row in listed[name]]
        assert list(split.ids) == [path for path, _ in rows]
        assert split.labels.tolist() == [names.index(name) for _, name in rows]
    assert {note.kind for note in split.notes} <= {"folded-names"}


@pytest.mark.parametrize("dataset", ["dtd", "aircraft", "flowers102"])
def test_a_card_with_a_validation_split_keeps_the_authors_lists_apart(dataset: str, tmp_path: Path) -> None:
    write, named, _, _ = SETS[dataset]
    three = BOTH | {"valid": {"name": "valid"}}
    entry, two = of_card(dataset, splits=three), of_card(dataset)
    listed = write(tmp_path, [named(name) for name in entry.card.classes], 2, 1)
    count = len(entry.card.classes)
    assert [len(opened(entry, role, tmp_path)) for role in ("train", "valid", "test")] == [
        2 * count,
        count,
        count,
    ]
    whole = opened(two, "train", tmp_path)
    assert whole.ids == [*opened(entry, "train", tmp_path).ids, *opened(entry, "valid", tmp_path).ids]
    assert len(listed) == 3
    together = next((note for note in whole.notes if note.kind == "lists-together"), None)
    assert (together is None) == (dataset == "aircraft")  # whose archive has the list of both
    named_so = of_card(dataset, splits=BOTH | {"train": {"name": "trainval"}})
    assert opened(named_so, "train", tmp_path).ids == whole.ids


def test_a_split_that_the_authors_do_not_name_is_an_error(tmp_path: Path) -> None:
    entry = of_card("pets", splits=BOTH | {"valid": {"name": "val"}})
    archived.pets(tmp_path, [underscored(name) for name in entry.card.classes], 1, 1)
    for role in ("train", "valid"):
        with pytest.raises(DataError, match=f"no {role} split: its authors name trainval, test"):
            opened(entry, role, tmp_path)


@pytest.mark.parametrize("dataset", SETS)
def test_a_folder_above_and_the_archives_own_folder_are_one_copy(dataset: str, tmp_path: Path) -> None:
    write, named, _, _ = SETS[dataset]
    entry = of_card(dataset)
    write(tmp_path, [named(name) for name in entry.card.classes], 1, 1)
    (inside,) = [path for path in tmp_path.iterdir() if path.name != "Partitions"]
    above, own = opened(entry, "test", tmp_path), None
    if dataset != "sun397":
        own = opened(entry, "test", inside)
    else:
        shutil.copytree(tmp_path / "Partitions", inside / "Partitions")
        own = opened(entry, "test", inside)
    assert above.ids == own.ids
    assert above.labels.tolist() == own.labels.tolist()


# --------------------------------------------------------------------- Caltech-101


def test_caltech_draws_thirty_a_class_and_tests_on_the_rest(tmp_path: Path) -> None:
    entry = of_card("caltech101")
    names = list(entry.card.label_names or ())
    assert (names[0], names[2], names[-1]) == ("BACKGROUND_Google", "Faces_easy", "yin_yang")
    some = [names[i] for i in (0, 1, 2, 20, 101)]
    listed = archived.caltech(tmp_path, some, 33)
    train, test = opened(entry, "train", tmp_path), opened(entry, "test", tmp_path)
    assert (len(train), len(test)) == (5 * 30, 5 * 3)
    assert {*train.ids, *test.ids} == {path for path, _ in listed["all"]}
    assert np.bincount(train.labels)[[0, 1, 2, 20, 101]].tolist() == [30] * 5
    assert sorted(set(test.labels.tolist())) == [0, 1, 2, 20, 101]
    assert entry.card.classes[1] == "off-center face"
    own = {path: names.index(name) for path, name in listed["all"]}
    assert [own[i] for i in test.ids] == test.labels.tolist()
    # The draw goes by names alone: these are left, whatever machine makes it.
    yin_yang = [i.rpartition("_")[2] for i in test.ids if "yin_yang" in i]
    assert yin_yang == ["0021.jpg", "0091.jpg", "0111.jpg"]
    assert {note.kind for note in test.notes} == {"drawn-split", "ignored-files"}


def test_caltech_has_no_list_so_a_copy_with_fewer_images_is_noted(tmp_path: Path) -> None:
    entry = of_card("caltech101", splits=BOTH | {"test": {"name": "test", "rows": 7}})
    archived.caltech(tmp_path, ["ant", "bass"], 33)
    (note,) = [n for n in opened(entry, "test", tmp_path).notes if n.kind == "missing-samples"]
    assert note.count == 1


def test_caltech_with_too_few_images_of_a_class_is_an_error(tmp_path: Path) -> None:
    entry = of_card("caltech101")
    archived.caltech(tmp_path, ["ant", "bass"], 30)
    with pytest.raises(DataError, match=r"ant holds 30 images, and 30 of each class are for training"):
        opened(entry, "test", tmp_path)


def test_caltechs_inner_archive_is_named_where_it_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "caltech-101").mkdir()
    (tmp_path / "caltech-101" / "101_ObjectCategories.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"101_ObjectCategories\.tar\.gz is not unpacked"):
        opened(of_card("caltech101"), "test", tmp_path)


# ------------------------------------------------------------------------ ImageNet

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]


@pytest.mark.parametrize("flat", [True, False])
def test_imagenet_tests_on_val_and_the_devkits_numbers_become_wnids(flat: bool, tmp_path: Path) -> None:
    entry = of_card("imagenet")
    listed = archived.imagenet(tmp_path, WNIDS, flat=flat)
    train, test = opened(entry, "train", tmp_path), opened(entry, "test", tmp_path)
    assert [f"train/{i}" for i in train.ids] == [path for path, _ in listed["train"]]
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    own = {Path(path).name: WNIDS.index(name) for path, name in listed["val"]}
    assert test.labels.tolist() == [own[Path(i).name] for i in test.ids]
    assert len(test) == 8
    if flat:  # in the order of the ground truth
        assert list(test.ids) == [path for path, _ in listed["val"]]


def test_imagenets_unlabelled_test_images_are_not_its_test_split(tmp_path: Path) -> None:
    listed = archived.imagenet(tmp_path, WNIDS)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(small.picture(1))
    assert list(opened(of_card("imagenet"), "test", tmp_path).ids) == [path for path, _ in listed["val"]]


def test_kaggles_copy_of_imagenet_is_read_by_its_solution(tmp_path: Path) -> None:
    kaggle = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    listed = archived.imagenet(kaggle, WNIDS)
    shutil.rmtree(kaggle / "ILSVRC2012_devkit_t12")
    rows = [f"{Path(path).stem},{name} 1 2 3 4" for path, name in listed["val"][::-1]]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    entry = of_card("imagenet")
    test = opened(entry, "test", tmp_path)
    assert test.labels.tolist() == [WNIDS.index(name) for _, name in listed["val"]]
    assert len(opened(entry, "train", tmp_path)) == 12


def test_a_flat_validation_folder_without_its_devkit_says_what_to_unpack(tmp_path: Path) -> None:
    archived.imagenet(tmp_path, WNIDS)
    shutil.rmtree(tmp_path / "ILSVRC2012_devkit_t12")
    with pytest.raises(
        DataError, match="holds 8 images of ILSVRC's validation set, and nothing says"
    ) as error:
        opened(of_card("imagenet"), "test", tmp_path)
    assert error.value.hint == f"unpack ILSVRC2012_devkit_t12.tar.gz into {tmp_path}"


def test_a_number_of_what_is_above_the_classes_is_an_error(tmp_path: Path) -> None:
    archived.imagenet(tmp_path, WNIDS)
    truth = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text(truth.read_text().replace("3\n", "5\n", 1))
    with pytest.raises(DataError, match=r"ground_truth\.txt:\d: '5' is no class of meta\.mat \(1 to 4\)"):
        opened(of_card("imagenet"), "test", tmp_path)


def test_imagenets_training_archives_that_are_not_unpacked_are_no_webdataset(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01440764.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 archives that are not unpacked, first n01440764\.tar"):
        opened(of_card("imagenet"), "train", tmp_path)


# --------------------------------------------------------------------------- CIFAR


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_for_python_and_for_c_give_the_same_pixels(dataset: str, tmp_path: Path) -> None:
    entry = of_card(dataset)
    names = [underscored(name) for name in entry.card.classes]
    splits = []
    for binary in (False, True):
        archived.cifar(tmp_path / str(binary), names, 1, 1, binary=binary)
        splits.append(opened(entry, "train", tmp_path / str(binary)))
    assert splits[0].ids == splits[1].ids
    assert splits[0].labels.tolist() == splits[1].labels.tolist()
    rows = np.array([1, 4, len(names) - 1])
    first, second = ([np.asarray(open_image(s.image)) for s in split.samples(rows)] for split in splits)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    if dataset == "cifar10":  # row 1 is the last of the first batch's two
        data = np.fromfile(tmp_path / "True" / "cifar-10-batches-bin" / "data_batch_1.bin", np.uint8)
        assert (first[0] == data[-3072:].reshape(3, 32, 32).transpose(1, 2, 0)).all()


def test_torchvision_reads_the_same_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    entry = of_card("cifar10")
    archived.cifar(tmp_path, entry.card.classes, 2, 1)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    peer = CIFAR10(tmp_path, train=True)
    split = opened(entry, "train", tmp_path)
    assert split.labels.tolist() == peer.targets
    for row, sample in enumerate(split.samples(np.arange(len(split)))):
        assert (np.asarray(open_image(sample.image)) == peer.data[row]).all()


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("evil",)


def test_a_batch_that_would_run_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = of_card("cifar10")
    archived.cifar(tmp_path, entry.card.classes)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}, 2))
    with pytest.raises(DataError, match=r"test_batch cannot be read.*names posix\.mkdir"):
        opened(entry, "test", tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b"\x80\x02", "cannot be read as a batch"),
        (pickle.dumps([1]), "is no batch"),
        (pickle.dumps({b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)}, 2), "with 2 labels"),
        (
            pickle.dumps({b"labels": [1], b"data": np.zeros((1, 3072), np.float32)}, 2),
            "no array of 3,072 bytes",
        ),
        (pickle.dumps({b"labels": ["1"], b"data": np.zeros((1, 3072), np.uint8)}, 2), "whole numbers"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}, 2), "no list 'labels'"),
        (pickle.dumps({b"labels": [11], b"data": np.zeros((1, 3072), np.uint8)}, 2), "has the label 11"),
    ],
)
def test_a_damaged_batch_is_named(held: bytes, message: str, tmp_path: Path) -> None:
    entry = of_card("cifar10")
    archived.cifar(tmp_path, entry.card.classes)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(held)
    with pytest.raises(DataError, match=message):
        opened(entry, "test", tmp_path)


def test_batches_that_python_3_wrote_are_read(tmp_path: Path) -> None:
    entry = of_card("cifar10")
    pixels = np.arange(3072).astype(np.uint8)[None]
    archived.cifar(tmp_path, entry.card.classes)
    for protocol in range(2, 6):
        held = {"labels": [3], "data": pixels}
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(held, protocol))
        (sample,) = opened(entry, "test", tmp_path).samples(np.array([0]))
        assert (np.asarray(open_image(sample.image)).transpose(2, 0, 1).ravel() == pixels[0]).all()


# ----------------------------------------------------------------------- other forms


def test_cars_in_one_list_are_parted_by_its_marks(tmp_path: Path) -> None:
    entry = of_card("cars")
    names = np.empty((1, 196), object)
    names[0] = list(entry.card.classes)
    (tmp_path / "car_ims").mkdir()
    rows = [(f"car_ims/{n:06d}.jpg", 196 - n, n % 3 == 0) for n in range(6)]
    for number, (path, _, _) in enumerate(rows):
        (tmp_path / path).write_bytes(small.picture(number))
    paths, classes, tests = zip(*rows, strict=True)
    fields = {"relative_im_path": paths, "class": [np.uint8(c) for c in classes], "test": tests}
    savemat(tmp_path / "cars_annos.mat", {"annotations": archived._structs(fields), "class_names": names})
    train, test = opened(entry, "train", tmp_path), opened(entry, "test", tmp_path)
    assert list(test.ids) == [paths[0], paths[3]]
    assert test.labels.tolist() == [195, 192]
    assert list(train.ids) == [paths[i] for i in (1, 2, 4, 5)]
    assert train.labels.tolist() == [194, 193, 191, 190]


@pytest.mark.parametrize(
    ("dataset", "peer", "options"),
    [
        ("dtd", "DTD", {"split": "test"}),
        ("pets", "OxfordIIITPet", {"split": "trainval"}),
        ("aircraft", "FGVCAircraft", {"split": "trainval"}),
        ("cars", "StanfordCars", {"split": "test"}),
    ],
)
def test_torchvision_reads_the_same_images_and_classes_in_the_same_order(
    dataset: str, peer: str, options: dict[str, str], tmp_path: Path
) -> None:
    from torchvision import datasets

    write, named, _, _ = SETS[dataset]
    entry = of_card(dataset)
    write(tmp_path / ("dtd" if dataset == "dtd" else ""), [named(name) for name in entry.card.classes], 1, 1)
    theirs = getattr(datasets, peer)(tmp_path, **options)
    if dataset == "cars":
        files, labels = zip(*theirs._samples, strict=True)
    else:
        files, labels = getattr(theirs, "_image_files", None) or theirs._images, theirs._labels
    split = opened(entry, "test" if options["split"] == "test" else "train", tmp_path)
    assert [Path(i).name for i in split.ids] == [Path(file).name for file in files]
    ours = [entry.card.classes[label] for label in split.labels]
    assert [name.casefold() for name in ours] == [theirs.classes[label].casefold() for label in labels]


# ------------------------------------------------------------ what is missing or damaged

#: data set → a file of its archive, and what the error says, and what to unpack
LOST = {
    "food101": ("food-101/meta/test.txt", "food-101.tar.gz"),
    "dtd": ("dtd/labels/test1.txt", "dtd-r1.0.1.tar.gz"),
    "pets": ("oxford-iiit-pet/annotations/test.txt", "annotations.tar.gz"),
    "aircraft": ("fgvc-aircraft-2013b/data/variants.txt", "fgvc-aircraft-2013b.tar.gz"),
    "sun397": ("Partitions/Testing_01.txt", "Partitions.zip"),
    "flowers102": ("flowers-102/setid.mat", "setid.mat"),
    "cars": ("stanford_cars/cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat"),
    "cifar10": ("cifar-10-batches-py/test_batch", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python/meta", "cifar-100-python.tar.gz"),
}


@pytest.mark.parametrize("dataset", LOST)
def test_a_list_that_is_missing_is_named_with_what_holds_it(dataset: str, tmp_path: Path) -> None:
    write, named, _, _ = SETS[dataset]
    entry = of_card(dataset)
    write(tmp_path, [named(name) for name in entry.card.classes], 1, 1)
    file, unpack = LOST[dataset]
    (tmp_path / file).unlink()
    with pytest.raises(DataError) as error:
        opened(entry, "test", tmp_path)
    assert error.value.message.startswith("there is no ")
    assert Path(file).name in error.value.message
    assert unpack in str(error.value.hint)


@pytest.mark.parametrize("folder", ["", "dtd"])
def test_images_without_lists_and_archives_that_are_packed_are_no_image_folder(
    folder: str, tmp_path: Path
) -> None:
    entry = of_card("dtd")
    archived.dtd(tmp_path, entry.card.classes, 1, 1)
    root = tmp_path / folder
    shutil.rmtree(tmp_path / "dtd" / "labels")
    if folder:
        with pytest.raises(DataError, match="it holds images/, and no list that says what belongs") as error:
            opened(entry, "train", root)
        assert error.value.hint == "unpack all of dtd-r1.0.1.tar.gz into one folder"
    (root / "dtd-r1.0.1.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"no train data in \S+: dtd-r1\.0\.1\.tar\.gz is not unpacked\n"):
        opened(entry, "train", root)


def test_every_part_of_an_archive_that_is_packed_is_named(tmp_path: Path) -> None:
    for name in ("images.tar.gz", "annotations.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"images\.tar\.gz is not unpacked, nor are 1 others") as error:
        opened(of_card("pets"), "test", tmp_path)
    assert error.value.hint == f"unpack images.tar.gz, annotations.tar.gz into {tmp_path}"


@pytest.mark.parametrize("dataset", [name for name in SETS if not name.startswith("cifar")])
def test_images_that_are_missing_are_counted_with_what_to_unpack(dataset: str, tmp_path: Path) -> None:
    write, named, _, testing = SETS[dataset]
    entry = of_card(dataset)
    listed = write(tmp_path, [named(name) for name in entry.card.classes], 1, 1)
    base = next(path for path in tmp_path.rglob(Path(listed[testing][2][0]).name))
    base.unlink()
    total = len(listed[testing])
    with pytest.raises(
        DataError, match=rf"1 of the {total} images that the split lists are missing"
    ) as error:
        opened(entry, "test", tmp_path)
    assert str(error.value.hint).startswith("unpack ")


@pytest.mark.parametrize("dataset", ["flowers102", "cars"])
@pytest.mark.parametrize("kind", ["torn", "other"])
def test_matlab_files_that_are_damaged_or_of_another_form_are_named(
    dataset: str, kind: str, tmp_path: Path
) -> None:
    write, named, _, _ = SETS[dataset]
    entry = of_card(dataset)
    write(tmp_path, [named(name) for name in entry.card.classes], 1, 1)
    file = tmp_path / LOST[dataset][0]
    if kind == "torn":
        file.write_bytes(file.read_bytes()[:300])
    else:
        (key,) = [k for k in loadmat(file) if k in ("annotations", "tstid")]
        savemat(file, {key: np.array([["words"]], object)})
    with pytest.raises(DataError, match=file.name):
        opened(entry, "test", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../secret/1", "no class|leads out|none of"),
        ("no_such_dish/1", "'no_such_dish' is none of the 101 classes"),
        ("apple_pie/../../../x", "leads out of"),
    ],
)
def test_lists_lead_nowhere_else(line: str, message: str, tmp_path: Path) -> None:
    entry = of_card("food101")
    archived.food(tmp_path, [underscored(name) for name in entry.card.classes], 1, 1)
    with (tmp_path / "food-101" / "meta" / "test.txt").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=message):
        opened(entry, "test", tmp_path)


def test_an_image_that_a_list_names_twice_is_an_error(tmp_path: Path) -> None:
    entry = of_card("food101")
    names = [underscored(name) for name in entry.card.classes]
    archived.food(tmp_path, names, 1, 1)
    lists = tmp_path / "food-101" / "meta" / "test.txt"
    first = lists.read_text().split()[0]
    with lists.open("a") as file:
        file.write(f"\n{first}\n")
    twice = tmp_path / "food-101" / "images" / f"{first}.jpg"
    with pytest.raises(DataError) as caught:
        opened(entry, "test", tmp_path)
    assert caught.value.message == f"{twice} is listed 2 times among the split's 102 images"
    assert caught.value.hint == "list every image once"


def test_pets_whose_number_means_two_breeds_are_an_error(tmp_path: Path) -> None:
    entry = of_card("pets")
    archived.pets(tmp_path, [underscored(name) for name in entry.card.classes], 1, 1)
    file = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    file.write_text("Abyssinian_1 1 1 1\nbeagle_2 1 2 1\n")
    with pytest.raises(DataError, match=r"test\.txt:2: expected <breed>_<number>"):
        opened(entry, "test", tmp_path)


# ---------------------------------------------------------------- the command line

#: classes of the small copies: enough for a probe, few enough to be quick
FEW: dict[str, Sequence[int]] = dict.fromkeys([*SETS, "caltech101", "imagenet"], (0, 3, 7))


@pytest.mark.parametrize("dataset", FEW)
def test_zero_shot_and_probe_run_on_the_archive(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Catalog().dataset(dataset).card
    chosen = range(len(shipped.classes)) if dataset.startswith("cifar") else FEW[dataset]
    classes = [shipped.classes[i] for i in chosen]
    own = shipped.label_names if shipped.label_names and dataset != "cifar100" else None
    card: dict[str, Any] = {"base": dataset, "source": {"local": True}, "splits": BOTH, "classes": classes}
    card["templates"] = {"default": ["a {c}."]}
    card["protocols"] = {"zs": {"primary": "acc1"}, "lp": {"primary": "acc1"}}
    card["label_names"] = None if own is None else [own[i] for i in chosen]
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "few.yaml").write_text(json.dumps(card))
    data = tmp_path / "data"
    data.mkdir()
    if dataset == "caltech101":
        archived.caltech(data, card["label_names"], 32)
    elif dataset == "imagenet":
        archived.imagenet(data, card["label_names"])
    else:
        write, named, _, _ = SETS[dataset]
        write(data, [named(name) for name in classes], *((2, 1) if dataset.startswith("cifar") else ()))
    model = small.write_run(tmp_path / "model")
    command = ["eval", "--model", model, "--task", "few-zs,few-lp", "--cards", tmp_path / "cards", "--data"]
    command += [f"few={data}", "--results", tmp_path / "out", "--device", "cpu", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["clipbench", *map(str, command)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    assert len(list((tmp_path / "out").rglob("few-*.json"))) == 2
