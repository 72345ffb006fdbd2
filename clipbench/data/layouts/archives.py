"""Data sets as their authors' archives unpack, and as torchvision lays them out.

Which images belong to a split, and in which order, is read from the authors' own lists. Ids are paths relative to the
archive's folder. Labels are matched to the card's classes by name, except where the authors give numbers alone.
Sources: the files in the archives themselves, and the readers of torchvision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts import _cifar as cifar
from clipbench.data.layouts._archived import (
    Archived,
    asked_of,
    base_of,
    in_form,
    lines_of,
    matlab_of,
    number_of,
    place_in,
    string_of,
    there,
)
from clipbench.data.layouts._imagenet import imagenet
from clipbench.data.layouts._imagenet_shifts import imagenetv2, objectnet
from clipbench.data.layouts.base import FileLayout, LayoutSpec
from clipbench.data.layouts.folder import ImageFolder
from clipbench.data.split import Note
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

#: images of each class that Caltech-101's training split draws: its authors name none
CALTECH_TRAINING: Final = 30
_CALTECH_SEED: Final = 0

Reader = Callable[[Entry[TaskCard], str, Path], FileLayout | None]


def probe(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """The split of `dataset` that plays `role`, in the archive that was unpacked to `root`; None without one.

    Which archive it is is told by the files that lie there, in `root` or in the folder of it that the archive makes.

    Raises:
        DataError: a list, an annotation file or an image that is missing or cannot be read, or no such split.
    """
    found = {name: one for name, read in _READERS.items() if (one := read(dataset, role, root)) is not None}
    if len(found) > 1:
        raise DataError(
            f"{dataset.id}: {root} holds the archives of several sets: {' and '.join(found)}",
            hint="give the folder of the one that is meant",
        )
    return next(iter(found.values()), None)


LAYOUT: Final = LayoutSpec(("single-label",), "the authors' archive, unpacked", probe)


# ---------------------------------------------------------------- lists of text


def _food(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Food-101: meta/{train,test}.txt list <class>/<image>, classes.txt the classes."""
    base = base_of(root, ("food-101",), "meta/train.txt", "meta/test.txt", "meta/classes.txt")
    if base is None:
        return None
    asked, notes = asked_of(dataset, role, ("train", "test"), base)
    files = [base / "meta" / f"{name}.txt" for name in asked]
    unpack = "food-101.tar.gz"
    named = base / "meta" / "classes.txt"
    classes = lines_of(named, unpack)
    listed = [(file, line) for file in files for line in lines_of(file, unpack)]
    labels = [place_in(classes, line.partition("/")[0], file, named) for file, line in listed]
    images = [f"images/{line}.jpg" for _, line in listed]
    return Archived(base, images, labels, [*files, named], unpack, classes, notes=notes)


def _dtd(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """DTD: labels/{train,val,test}1.txt list <class>/<image>; the first of the authors' ten partitions."""
    base = base_of(root, ("dtd", "dtd/dtd"), *(f"labels/{n}1.txt" for n in ("train", "val", "test")))
    if base is None:
        return None
    asked, notes = asked_of(dataset, role, ("train", "val", "test"), base)
    files = [base / "labels" / f"{name}1.txt" for name in asked]
    unpack = "dtd-r1.0.1.tar.gz"
    listed = [line for file in files for line in lines_of(file, unpack)]
    labels = [line.partition("/")[0] for line in listed]
    return Archived(base, [f"images/{line}" for line in listed], labels, files, unpack, notes=notes)


def _pets(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Oxford-IIIT Pets: annotations/{trainval,test}.txt list <breed>_<number>, class, species and breed of it."""
    lists = ("annotations/trainval.txt", "annotations/test.txt")
    base = base_of(root, ("oxford-iiit-pet", "pets"), *lists)
    if base is None:
        return None
    asked, notes = asked_of(dataset, role, ("trainval", "test"), base)
    unpack = "images.tar.gz and annotations.tar.gz"
    images, labels, numbers = [], [], dict[str, str]()
    files = [base / "annotations" / f"{name}.txt" for name in asked]
    for file in files:
        for number, line in enumerate(lines(decoded(there(file, unpack))), 1):
            if line.startswith("#") or not line.strip():
                continue
            words = line.split()
            breed, separator, _ = words[0].rpartition("_")
            if len(words) != 4 or not separator or numbers.setdefault(words[1], breed) != breed:
                raise DataError(
                    f"{file}:{number}: expected <breed>_<number> and three numbers, of which the first is the breed's "
                    f"own, found {line.strip()[:60]!r}",
                    hint=f"unpack {unpack} again",
                )
            images.append(f"images/{words[0]}.jpg")
            labels.append(breed)
    return Archived(base, images, labels, files, unpack, notes=notes)


def _aircraft(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """FGVC-Aircraft: images_variant_<split>.txt list an image and its variant; variants.txt the variants."""
    splits = ("train", "val", "trainval", "test")
    folders = ("data", "fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b")
    base = base_of(root, folders, *(f"images_variant_{name}.txt" for name in splits))
    if base is None:
        return None
    asked, notes = asked_of(dataset, role, splits, base)
    unpack = "fgvc-aircraft-2013b.tar.gz"
    named = base / "variants.txt"
    classes = lines_of(named, unpack)
    files = [base / f"images_variant_{name}.txt" for name in asked]
    listed = [(file, *line.partition(" ")[::2]) for file in files for line in lines_of(file, unpack)]
    labels = [place_in(classes, variant.strip(), file, named) for file, _, variant in listed]
    images = [f"images/{image}.jpg" for _, image, _ in listed]
    return Archived(base, images, labels, [*files, named], unpack, classes, notes=notes)


def _sun(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """SUN397: Training_01.txt and Testing_01.txt, the first of ten partitions, list /<letter>/<class>/<image>."""
    own = root / "SUN397"
    if base_of(root, ("SUN397",), "ClassName.txt", "Partitions", "Training_01.txt", "Testing_01.txt") is None:
        return None
    asked, notes = asked_of(dataset, role, ("train", "test"), root)
    unpack = "SUN397.tar.gz (images) and Partitions.zip (lists)"
    places = [folder for top in (own, root) for folder in (top, top / "Partitions")]

    def in_one(file: str) -> Path:
        return next((place / file for place in places if exists(place / file)), root / file)

    files = [in_one({"train": "Training_01.txt", "test": "Testing_01.txt"}[name]) for name in asked]
    listed = [(file, line.lstrip("/")) for file in files for line in lines_of(file, unpack)]
    base = own if own.is_dir() and not exists(root / listed[0][1]) else root
    named = in_one("ClassName.txt")
    classes = [name.strip("/") for name in lines_of(named, unpack)]
    labels = [place_in(classes, line.rpartition("/")[0], file, named) for file, line in listed]
    names = [name.partition("/")[2].replace("/", " ") for name in classes]  # /a/apse/indoor is "apse indoor"
    return Archived(base, [line for _, line in listed], labels, [*files, named], unpack, names, notes=notes)


# ------------------------------------------------------------- lists of Matlab's


def _flowers(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Oxford Flowers-102: setid.mat lists images by number, imagelabels.mat the class (1 to 102) of each."""
    base = base_of(root, ("flowers-102", "flowers102"), "setid.mat", "imagelabels.mat")
    if base is None:
        return None
    asked, notes = asked_of(dataset, role, ("train", "val", "test"), base)
    unpack = "102flowers.tgz (images, to jpg/), setid.mat and imagelabels.mat"
    sets, of = base / "setid.mat", base / "imagelabels.mat"
    keys = [{"train": "trnid", "val": "valid", "test": "tstid"}[name] for name in asked]
    found, labels = matlab_of(sets, unpack, *keys), matlab_of(of, unpack, "labels")
    with in_form(sets):
        numbers = [number_of([n]) for key in keys for n in found[key]]
    with in_form(of):
        every = [number_of([n]) for n in labels["labels"]]
    outside = [n for n in numbers if not 1 <= n <= len(every)]
    if outside:
        raise DataError(
            f"{sets} lists image {outside[0]}, and {of.name} has {len(every):,} labels",
            hint=f"fetch {sets.name} and {of.name} again",
        )
    images = [f"jpg/image_{n:05d}.jpg" for n in numbers]
    return Archived(base, images, [every[n - 1] - 1 for n in numbers], [sets, of], unpack, notes=notes)


def _cars(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Stanford Cars: devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat, and the names in cars_meta.mat.

    The older form has all in one list, cars_annos.mat, with the images in car_ims/.
    """
    marks = ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_annos.mat", "cars_train")
    base = base_of(root, ("stanford_cars", "cars"), *marks)
    if base is None:
        return None
    asked, notes = asked_of(dataset, role, ("train", "test"), base)
    older = base / "cars_annos.mat"
    if older.is_file():
        unpack = "car_ims.tgz"
        found = matlab_of(older, unpack, "annotations", "class_names")
        with in_form(older):
            rows = found["annotations"]
            names = [string_of(name) for name in found["class_names"]]
            listed = [
                (string_of(r["relative_im_path"]), number_of(r["class"]) - 1, bool(number_of(r["test"])))
                for r in rows
            ]
        chosen = [(image, label) for image, label, test in listed if ("test" if test else "train") in asked]
        annotations = [older]
    else:
        unpack = "cars_train.tgz, cars_test.tgz and car_devkit.tgz"
        meta = base / "devkit" / "cars_meta.mat"
        described = matlab_of(meta, unpack, "class_names")
        with in_form(meta):
            names = [string_of(name) for name in described["class_names"]]
        annotations, chosen = [meta], []
        for name in asked:
            file = _cars_annotations(base, name, unpack)
            annotations.append(file)
            found = matlab_of(file, unpack, "annotations")
            with in_form(file):
                for row in found["annotations"]:
                    chosen.append((f"cars_{name}/{string_of(row['fname'])}", number_of(row["class"]) - 1))
    images, labels = [image for image, _ in chosen], [label for _, label in chosen]
    return Archived(base, images, labels, annotations, unpack, names, notes=notes)


def _cars_annotations(base: Path, name: str, unpack: str) -> Path:
    if name == "train":
        return there(base / "devkit" / "cars_train_annos.mat", unpack)
    file = "cars_test_annos_withlabels.mat"
    found = next((f for f in (base / file, base / "devkit" / file) if f.is_file()), None)
    if found is None:
        raise DataError(
            f"there is no {base / file}, and the development kit's cars_test_annos.mat has no labels",
            hint=f"fetch {file}, which the authors published apart, into {base}",
        )
    return found


# ---------------------------------------------------------------- folders of images


def _caltech(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Caltech-101: 101_ObjectCategories/<class>/<image>, with BACKGROUND_Google 102 classes.

    The authors name no split. Training has `CALTECH_TRAINING` images of each class, those whose sha256 of
    `<seed>/<id>` is smallest, seed 0; the others are the test.
    """
    base = base_of(root, ("caltech101", "caltech-101", "caltech101/caltech-101"), "101_ObjectCategories")
    if base is None:
        packed = base_of(root, ("caltech101", "caltech-101"), "101_ObjectCategories.tar.gz")
        if packed is not None:
            raise DataError(
                f"{packed / '101_ObjectCategories.tar.gz'} is not unpacked",
                hint=f"cd {packed}; tar xzf 101_ObjectCategories.tar.gz",
            )
        return None
    asked, notes = asked_of(dataset, role, ("train", "test"), base)
    whole = ImageFolder(base / "101_ObjectCategories")
    assert whole.names is not None
    by_class: list[list[str]] = [[] for _ in whole.names]
    for path, label in whole.index():
        by_class[label].append(f"101_ObjectCategories/{path}")
    chosen: list[tuple[str, int]] = []
    for label, images in enumerate(by_class):
        if len(images) <= CALTECH_TRAINING:
            raise DataError(
                f"{base / '101_ObjectCategories' / whole.names[label]} holds {len(images)} images, and "
                f"{CALTECH_TRAINING} of each class are for training",
                hint=f"unpack 101_ObjectCategories.tar.gz again into {base}",
            )
        hashed = {image: hashlib.sha256(f"{_CALTECH_SEED}/{image}".encode()).digest() for image in images}
        drawn = set(sorted(images, key=hashed.__getitem__)[:CALTECH_TRAINING])
        chosen += [(image, label) for image in images if (image in drawn) == (asked == ("train",))]
    text = f"images of a split that is ours: {CALTECH_TRAINING} of each class, drawn with seed 0, are for training"
    notes += (*whole.notes, Note("drawn-split", text, len(chosen)))
    ids, labels = [image for image, _ in chosen], [label for _, label in chosen]
    made = Archived(base, ids, labels, (), "101_ObjectCategories.tar.gz", whole.names, notes=notes)
    made.in_part = True
    return made


# ------------------------------------------------------------------------ CIFAR


def _cifar(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """CIFAR-10 and CIFAR-100, the archives for Python and those for C (see `clipbench.data.layouts._cifar`)."""
    for form in cifar.FORMS:
        base = next((place for place in (root, root / form.folder) if form.lies_at(place)), None)
        if base is not None:
            (asked,), _ = asked_of(dataset, role, ("train", "test"), base)
            return cifar.Batches(base, form, asked)
    return None


_READERS: Final[Mapping[str, Reader]] = {
    "Food-101": _food,
    "DTD": _dtd,
    "Oxford-IIIT Pets": _pets,
    "FGVC-Aircraft": _aircraft,
    "SUN397": _sun,
    "Flowers-102": _flowers,
    "Stanford Cars": _cars,
    "Caltech-101": _caltech,
    "CIFAR": _cifar,
    "ImageNet": imagenet,
    "ImageNet-V2": imagenetv2,
    "ObjectNet": objectnet,
}
