"""Data sets as their authors' archives unpack, and as torchvision lays them out.

Which images belong to a split, and in which order, is read from the authors' own lists. Ids are paths relative to the
archive's folder. Labels are matched to the card's classes by name, except where the authors give numbers alone.
Sources: the files in the archives themselves, and the readers of torchvision.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.layouts import _cifar as cifar
from clipbench.data.layouts import _matlab as matlab
from clipbench.data.layouts.base import FileLayout, LayoutSpec, first_line
from clipbench.data.layouts.folder import ImageFolder
from clipbench.data.paths import printable, split_names
from clipbench.data.split import Note
from clipbench.data.text import decoded, lines
from clipbench.errors import DataError
from clipbench.utils.parsing import exists

#: images of each class that Caltech-101's training split draws: its authors name none
CALTECH_TRAINING: Final = 30
_CALTECH_SEED: Final = 0
_VALIDATION: Final = frozenset({"val", "valid", "validation"})
_WNID: Final = re.compile(r"n\d{8}")
_FLAT: Final = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

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


class _Archived(FileLayout):
    """Images that a list names: their paths below `root`, and the label of each, a name or a number."""

    name_in_fingerprint = "archive"

    def __init__(
        self,
        root: Path,
        images: Sequence[str],
        labels: Sequence[str] | Sequence[int],
        annotations: Sequence[Path],
        unpack: str,
        names: list[str] | None = None,
    ) -> None:
        self._ids, self._labels, self.names = list(images), labels, names
        for path in self._ids:
            parts = PurePosixPath(path).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in path:
                raise DataError(f"{annotations[0]}: the image {path[:60]!r} leads out of {root}")
        paths = [root / path for path in self._ids]
        super().__init__(root, paths, annotations, hint=f"unpack {unpack} into {root}")
        self.root = Path(os.path.commonpath([root, *(file.parent for file in annotations)]))  # of all files

    def index(self) -> Iterator[tuple[str, Any]]:
        yield from zip(map(printable, self._ids), self._labels, strict=True)


# ---------------------------------------------------------------- lists of text


def _food(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Food-101: meta/{train,test}.txt list <class>/<image>, classes.txt the classes."""
    base = _base(root, ("food-101",), "meta/train.txt", "meta/test.txt", "meta/classes.txt")
    if base is None:
        return None
    asked, notes = _asked(dataset, role, ("train", "test"), base)
    files = [base / "meta" / f"{name}.txt" for name in asked]
    unpack = "food-101.tar.gz"
    named = base / "meta" / "classes.txt"
    classes = _lines(named, unpack)
    listed = [(file, line) for file in files for line in _lines(file, unpack)]
    labels = [_place(classes, line.partition("/")[0], file, named) for file, line in listed]
    images = [f"images/{line}.jpg" for _, line in listed]
    return _noted(_Archived(base, images, labels, [*files, named], unpack, classes), notes)


def _dtd(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """DTD: labels/{train,val,test}1.txt list <class>/<image>; the first of the authors' ten partitions."""
    base = _base(root, ("dtd", "dtd/dtd"), *(f"labels/{n}1.txt" for n in ("train", "val", "test")))
    if base is None:
        return None
    asked, notes = _asked(dataset, role, ("train", "val", "test"), base)
    files = [base / "labels" / f"{name}1.txt" for name in asked]
    unpack = "dtd-r1.0.1.tar.gz"
    listed = [line for file in files for line in _lines(file, unpack)]
    labels = [line.partition("/")[0] for line in listed]
    return _noted(_Archived(base, [f"images/{line}" for line in listed], labels, files, unpack), notes)


def _pets(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Oxford-IIIT Pets: annotations/{trainval,test}.txt list <breed>_<number>, class, species and breed of it."""
    lists = ("annotations/trainval.txt", "annotations/test.txt")
    base = _base(root, ("oxford-iiit-pet", "pets"), *lists)
    if base is None:
        return None
    asked, notes = _asked(dataset, role, ("trainval", "test"), base)
    unpack = "images.tar.gz and annotations.tar.gz"
    images, labels, numbers = [], [], dict[str, str]()
    files = [base / "annotations" / f"{name}.txt" for name in asked]
    for file in files:
        for number, line in enumerate(lines(decoded(_there(file, unpack))), 1):
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
    return _noted(_Archived(base, images, labels, files, unpack), notes)


def _aircraft(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """FGVC-Aircraft: images_variant_<split>.txt list an image and its variant; variants.txt the variants."""
    splits = ("train", "val", "trainval", "test")
    folders = ("data", "fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b")
    base = _base(root, folders, *(f"images_variant_{name}.txt" for name in splits))
    if base is None:
        return None
    asked, notes = _asked(dataset, role, splits, base)
    unpack = "fgvc-aircraft-2013b.tar.gz"
    named = base / "variants.txt"
    classes = _lines(named, unpack)
    files = [base / f"images_variant_{name}.txt" for name in asked]
    listed = [(file, *line.partition(" ")[::2]) for file in files for line in _lines(file, unpack)]
    labels = [_place(classes, variant.strip(), file, named) for file, _, variant in listed]
    images = [f"images/{image}.jpg" for _, image, _ in listed]
    return _noted(_Archived(base, images, labels, [*files, named], unpack, classes), notes)


def _sun(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """SUN397: Training_01.txt and Testing_01.txt, the first of ten partitions, list /<letter>/<class>/<image>."""
    own = root / "SUN397"
    if _base(root, ("SUN397",), "ClassName.txt", "Partitions", "Training_01.txt", "Testing_01.txt") is None:
        return None
    asked, notes = _asked(dataset, role, ("train", "test"), root)
    unpack = "SUN397.tar.gz (images) and Partitions.zip (lists)"
    places = [folder for top in (own, root) for folder in (top, top / "Partitions")]

    def in_one(file: str) -> Path:
        return next((place / file for place in places if exists(place / file)), root / file)

    files = [in_one({"train": "Training_01.txt", "test": "Testing_01.txt"}[name]) for name in asked]
    listed = [(file, line.lstrip("/")) for file in files for line in _lines(file, unpack)]
    base = own if own.is_dir() and not exists(root / listed[0][1]) else root
    named = in_one("ClassName.txt")
    classes = [name.strip("/") for name in _lines(named, unpack)]
    labels = [_place(classes, line.rpartition("/")[0], file, named) for file, line in listed]
    names = [name.partition("/")[2].replace("/", " ") for name in classes]  # /a/apse/indoor is "apse indoor"
    return _noted(
        _Archived(base, [line for _, line in listed], labels, [*files, named], unpack, names), notes
    )


# ------------------------------------------------------------- lists of Matlab's


def _flowers(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Oxford Flowers-102: setid.mat lists images by number, imagelabels.mat the class (1 to 102) of each."""
    base = _base(root, ("flowers-102", "flowers102"), "setid.mat", "imagelabels.mat")
    if base is None:
        return None
    asked, notes = _asked(dataset, role, ("train", "val", "test"), base)
    unpack = "102flowers.tgz (images, to jpg/), setid.mat and imagelabels.mat"
    sets, of = base / "setid.mat", base / "imagelabels.mat"
    keys = [{"train": "trnid", "val": "valid", "test": "tstid"}[name] for name in asked]
    found, labels = _mat(sets, unpack, *keys), _mat(of, unpack, "labels")
    with _form(sets):
        numbers = [_number([n]) for key in keys for n in found[key]]
    with _form(of):
        every = [_number([n]) for n in labels["labels"]]
    outside = [n for n in numbers if not 1 <= n <= len(every)]
    if outside:
        raise DataError(
            f"{sets} lists image {outside[0]}, and {of.name} has {len(every):,} labels",
            hint=f"fetch {sets.name} and {of.name} again",
        )
    images = [f"jpg/image_{n:05d}.jpg" for n in numbers]
    return _noted(_Archived(base, images, [every[n - 1] - 1 for n in numbers], [sets, of], unpack), notes)


def _cars(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """Stanford Cars: devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat, and the names in cars_meta.mat.

    The older form has all in one list, cars_annos.mat, with the images in car_ims/.
    """
    marks = ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_annos.mat", "cars_train")
    base = _base(root, ("stanford_cars", "cars"), *marks)
    if base is None:
        return None
    asked, notes = _asked(dataset, role, ("train", "test"), base)
    older = base / "cars_annos.mat"
    if older.is_file():
        unpack = "car_ims.tgz"
        found = _mat(older, unpack, "annotations", "class_names")
        with _form(older):
            rows = found["annotations"]
            names = [_string(name) for name in found["class_names"]]
            listed = [
                (_string(r["relative_im_path"]), _number(r["class"]) - 1, bool(_number(r["test"])))
                for r in rows
            ]
        chosen = [(image, label) for image, label, test in listed if ("test" if test else "train") in asked]
        annotations = [older]
    else:
        unpack = "cars_train.tgz, cars_test.tgz and car_devkit.tgz"
        meta = base / "devkit" / "cars_meta.mat"
        described = _mat(meta, unpack, "class_names")
        with _form(meta):
            names = [_string(name) for name in described["class_names"]]
        annotations, chosen = [meta], []
        for name in asked:
            file = _cars_annotations(base, name, unpack)
            annotations.append(file)
            found = _mat(file, unpack, "annotations")
            with _form(file):
                for row in found["annotations"]:
                    chosen.append((f"cars_{name}/{_string(row['fname'])}", _number(row["class"]) - 1))
    images, labels = [image for image, _ in chosen], [label for _, label in chosen]
    return _noted(_Archived(base, images, labels, annotations, unpack, names), notes)


def _cars_annotations(base: Path, name: str, unpack: str) -> Path:
    if name == "train":
        return _there(base / "devkit" / "cars_train_annos.mat", unpack)
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
    base = _base(root, ("caltech101", "caltech-101", "caltech101/caltech-101"), "101_ObjectCategories")
    if base is None:
        packed = _base(root, ("caltech101", "caltech-101"), "101_ObjectCategories.tar.gz")
        if packed is not None:
            raise DataError(
                f"{packed / '101_ObjectCategories.tar.gz'} is not unpacked",
                hint=f"cd {packed}; tar xzf 101_ObjectCategories.tar.gz",
            )
        return None
    asked, notes = _asked(dataset, role, ("train", "test"), base)
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
        drawn = set(sorted(images, key=_drawn)[:CALTECH_TRAINING])
        chosen += [(image, label) for image in images if (image in drawn) == (asked == ("train",))]
    text = f"images of a split that is ours: {CALTECH_TRAINING} of each class, drawn with seed 0, are for training"
    notes += (*whole.notes, Note("drawn-split", text, len(chosen)))
    ids, labels = [image for image, _ in chosen], [label for _, label in chosen]
    made = _Archived(base, ids, labels, (), "101_ObjectCategories.tar.gz", whole.names)
    made.in_part = True
    return _noted(made, notes)


def _drawn(image: str) -> bytes:
    return hashlib.sha256(f"{_CALTECH_SEED}/{image}".encode()).digest()


def _imagenet(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """ImageNet (ILSVRC 2012) where the folder alone does not say it: the test split of a card is ILSVRC's `val`.

    `val` holds a folder for each wnid, or, as its archive unpacks, 50,000 images whose classes the development kit
    has: numbers of its own, 1 to 1000, which are not the order of the sorted wnids and become wnids by meta.mat. Of
    Kaggle's copy LOC_val_solution.csv says them.
    """
    names = dataset.card.label_names
    if names is None or not all(_WNID.fullmatch(name) for name in names):
        return None
    places = (root, root / "ILSVRC2012", root / "imagenet", root / "ILSVRC" / "Data" / "CLS-LOC")
    if "train" in (role, dataset.card.splits[role].name):
        train = next((base / "train" for base in places if (base / "train").is_dir()), None)
        if train is None:
            return None
        packed = sorted(p.name for p in train.glob("n*.tar") if _WNID.fullmatch(p.stem))
        if packed:
            raise DataError(
                f"{train} holds {len(packed):,} archives that are not unpacked, first {packed[0]}",
                hint=f"unpack each into a folder of its name, as {train / packed[0].removesuffix('.tar')}",
            )
        return None if train.parent == root else ImageFolder(train)
    own = [root / name for name in split_names(dataset.card.splits[role], role)]
    if any(_wnids(folder) for folder in own):
        return None  # an image folder as all others
    folders = [*own, *(base / name for base in places for name in ("val", "ILSVRC2012_img_val")), root]
    for folder in folders:
        if not folder.is_dir():
            continue
        if folder != root and _wnids(folder):
            return ImageFolder(folder)
        numbers = sorted(int(m[1]) for m in (_FLAT.fullmatch(p.name) for p in folder.iterdir()) if m)
        if numbers:
            return _flat(folder, numbers, (root, *places[1:]))
    return None


def _wnids(folder: Path) -> bool:
    """Whether a folder holds one for each of several wnids."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_WNID.fullmatch(entry.name) and entry.is_dir() for entry in entries)


def _flat(folder: Path, numbers: list[int], places: Sequence[Path]) -> FileLayout:
    """The images of ILSVRC's validation set in one folder, of which `numbers` are there."""
    truth = "ILSVRC2012_validation_ground_truth.txt"
    tops = [*places, folder, folder.parent]
    kits = [top / kit for top in tops for kit in ("ILSVRC2012_devkit_t12/data", "devkit/data", "data", ".")]
    kit = next((k for k in kits if (k / truth).is_file()), None)
    unpack = "ILSVRC2012_img_val.tar"
    if kit is not None:
        annotations = [kit / truth, kit / "meta.mat"]
        wnids = _synsets(annotations[1])
        told = _lines(annotations[0], "ILSVRC2012_devkit_t12.tar.gz")
        strange = next((n for n, line in enumerate(told, 1) if line not in wnids), None)
        if strange is not None:
            raise DataError(
                f"{annotations[0]}:{strange}: {told[strange - 1][:40]!r} is no class of meta.mat "
                f"(1 to {len(wnids):,})",
                hint="unpack ILSVRC2012_devkit_t12.tar.gz again",
            )
        images = {f"ILSVRC2012_val_{n:08d}.JPEG": wnids[line] for n, line in enumerate(told, 1)}
    else:
        solution = next(
            (t / "LOC_val_solution.csv" for t in tops if (t / "LOC_val_solution.csv").is_file()), None
        )
        if solution is None:
            raise DataError(
                f"{folder} holds {len(numbers):,} images of ILSVRC's validation set, and nothing says their classes",
                hint=f"unpack ILSVRC2012_devkit_t12.tar.gz into {places[0]}",
            )
        annotations = [solution]
        rows = [line.partition(",")[::2] for line in _lines(solution, "the copy")[1:]]
        images = {f"{image}.JPEG": (said.split() or [""])[0] for image, said in sorted(rows)}
    if len(numbers) > len(images):
        raise DataError(
            f"{folder} holds {len(numbers):,} images, of which {annotations[0].name} tells {len(images):,}",
            hint="unpack ILSVRC2012_devkit_t12.tar.gz again",
        )
    top = next(
        p for p in (*places, folder.parent) if folder.is_relative_to(p) and annotations[0].is_relative_to(p)
    )
    inside = folder.relative_to(top).as_posix()
    ids = [f"{inside}/{name}" if inside != "." else name for name in images]
    return _Archived(top, ids, list(images.values()), annotations, unpack)


def _synsets(file: Path) -> dict[str, str]:
    """Number (as text) → wnid of the classes: the development kit lists what is above them in WordNet, too."""
    found = _mat(file, "ILSVRC2012_devkit_t12.tar.gz", "synsets")
    with _form(file):
        rows = [
            (_number(r["ILSVRC2012_ID"]), _string(r["WNID"]), _number(r["num_children"]))
            for r in found["synsets"]
        ]
    return {str(number): wnid for number, wnid, children in rows if children == 0}


# ------------------------------------------------------------------------ CIFAR


def _cifar(dataset: Entry[TaskCard], role: str, root: Path) -> FileLayout | None:
    """CIFAR-10 and CIFAR-100, the archives for Python and those for C (see `clipbench.data.layouts._cifar`)."""
    for form in cifar.FORMS:
        base = next((place for place in (root, root / form.folder) if form.lies_at(place)), None)
        if base is not None:
            (asked,), _ = _asked(dataset, role, ("train", "test"), base)
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
    "ImageNet": _imagenet,
}


# ------------------------------------------------------------------------ parts


def _base(root: Path, folders: Sequence[str], *marks: str) -> Path | None:
    """`root`, or the first of the folders in it that holds any of `marks`."""
    places = (root, *(root / folder for folder in folders))
    return next((place for place in places if any((place / mark).exists() for mark in marks)), None)


def _asked(
    dataset: Entry[TaskCard], role: str, there: Sequence[str], base: Path
) -> tuple[tuple[str, ...], tuple[Note, ...]]:
    """Which of the authors' lists make up the split of the card, and what a reader must know of that.

    A card without a validation split trains on the authors' training and validation lists together.
    """
    card = dataset.card
    both = ("trainval",) if "trainval" in there else ("train", "val") if "val" in there else ("train",)
    others = {
        name for r, spec in card.splits.items() if r != role and spec.part is None for name in (r, spec.name)
    }
    for name in split_names(card.splits[role], role):
        word = "val" if name in _VALIDATION else name
        if word == "train" and not others & _VALIDATION:
            text = "of the authors' lists make up the training split"
            return both, (Note.of("lists-together", text, both),) if "val" in both else ()
        if word == "trainval" and both != ("train",):
            return both, ()
        if word in there:
            return (word,), ()
    raise DataError(
        f"{dataset.id}: {base} has no {role} split: its authors name {', '.join(there)}",
        hint=f"correct splits.{role}.name in {dataset.path}, or make it a part of another split",
    )


def _noted(source: FileLayout, notes: tuple[Note, ...]) -> FileLayout:
    source.notes += notes
    return source


def _there(file: Path, unpack: str) -> Path:
    if not file.is_file():
        raise DataError(f"there is no {file}", hint=f"it comes with {unpack}: unpack that again")
    return file


def _lines(file: Path, unpack: str) -> list[str]:
    """The lines of a list that hold anything.

    Raises:
        DataError: it is missing, is no text, or holds nothing.
    """
    found = [line.strip() for line in lines(decoded(_there(file, unpack))) if line.strip()]
    if not found:
        raise DataError(f"{file} is empty", hint=f"it comes with {unpack}: unpack that again")
    return found


def _place(names: list[str], name: str, file: Path, of: Path) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise DataError(f"{file}: {name[:60]!r} is none of the {len(names)} classes of {of.name}") from None


def _mat(file: Path, unpack: str, *names: str) -> dict[str, Any]:
    """Variables of a Matlab file (see `matlab.read`)."""
    return matlab.read(_there(file, unpack), names)


def _number(value: Any) -> int:
    """The one whole number that an array of Matlab's holds."""
    (number,) = value
    if int(number) != number:
        raise ValueError(f"{number} is no whole number")
    return int(number)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is expected, found {type(value).__name__}")
    return value


@contextlib.contextmanager
def _form(file: Path) -> Iterator[None]:
    """Turns what goes wrong in a Matlab file of another form into an error that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file} does not hold what its authors' file holds ({first_line(error)})", hint="fetch it again"
        ) from None
