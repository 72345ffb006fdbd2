"""Small copies of the data sets' archives, laid out as the authors' unpack, of pictures of 8 × 8 pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import small
from scipy.io import savemat

#: split → (path relative to the archive's folder, class name), in the order of the authors' lists
Listed = dict[str, list[tuple[str, str]]]


def _pictures(root: Path, listed: Listed) -> None:
    for number, path in enumerate(path for rows in listed.values() for path, _ in rows):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(small.picture(number % 100))


def _text(path: Path, rows: Sequence[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{row}{end}" for row in rows).encode())


def _spread(names: Sequence[str], splits: dict[str, int], path: Callable[[str, str, int], str]) -> Listed:
    """So many images of each class for each split, classes in turn; numbers are not in the order of splits."""
    made: Listed = {}
    number = sum(splits.values()) * len(names)
    for split, each in splits.items():
        made[split] = []
        for _ in range(each):
            for name in names:
                made[split].append((path(split, name, number), name))
                number -= 1
    return made


def food(root: Path, names: Sequence[str], train: int = 3, test: int = 2) -> Listed:
    base = root / "food-101"
    listed = _spread(names, {"train": train, "test": test}, lambda _, name, n: f"images/{name}/{n}.jpg")
    _pictures(base, listed)
    for split, rows in listed.items():
        _text(
            base / "meta" / f"{split}.txt", [p.removeprefix("images/").removesuffix(".jpg") for p, _ in rows]
        )
    _text(base / "meta" / "classes.txt", sorted(names))
    return listed


def dtd(root: Path, names: Sequence[str], train: int = 2, test: int = 2) -> Listed:
    base = root / "dtd"
    splits = {"train": train, "val": 1, "test": test}
    listed = _spread(names, splits, lambda _, name, n: f"images/{name}/{name}_{n:04d}.jpg")
    _pictures(base, listed)
    for partition in (1, 2):  # the second is the first in reverse
        for split, rows in listed.items():
            lines = [p.removeprefix("images/") for p, _ in rows][:: 1 if partition == 1 else -1]
            _text(base / "labels" / f"{split}{partition}.txt", lines)
    return listed


def pets(root: Path, names: Sequence[str], train: int = 3, test: int = 2) -> Listed:
    """Breeds are numbered in the order of their names without regard to case."""
    base = root / "oxford-iiit-pet"
    listed = _spread(names, {"trainval": train, "test": test}, lambda _, name, n: f"images/{name}_{n}.jpg")
    _pictures(base, listed)
    number = {name: n for n, name in enumerate(sorted(names, key=str.lower), 1)}
    for split, rows in listed.items():
        stems = [(Path(path).stem, name) for path, name in rows]
        lines = [f"{stem} {number[name]} {1 + name.islower()} 1" for stem, name in stems]
        _text(base / "annotations" / f"{split}.txt", lines)
    _text(base / "annotations" / "list.txt", ["#Image CLASS-ID SPECIES BREED ID"])
    return listed


def aircraft(root: Path, names: Sequence[str], train: int = 2, test: int = 2) -> Listed:
    base = root / "fgvc-aircraft-2013b" / "data"
    listed = _spread(
        names, {"train": train, "val": 1, "test": test}, lambda _, name, n: f"images/{n:07d}.jpg"
    )
    _pictures(base, listed)
    for split, rows in (listed | {"trainval": [*listed["train"], *listed["val"]]}).items():
        _text(base / f"images_variant_{split}.txt", [f"{Path(path).stem} {name}" for path, name in rows])
    _text(base / "variants.txt", names)
    return listed


def sun(root: Path, names: Sequence[str], train: int = 2, test: int = 1) -> Listed:
    """`names` are class paths such as /a/apse/indoor."""
    base = root / "SUN397"
    listed = _spread(names, {"train": train, "test": test}, lambda _, name, n: f"{name[1:]}/sun_{n:08d}.jpg")
    _pictures(base, listed)
    _text(base / "ClassName.txt", names)
    for split, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        _text(root / "Partitions" / file, [f"/{path}" for path, _ in listed[split]], "\r\n")
    return listed


def flowers(root: Path, names: Sequence[str], train: int = 1, test: int = 2) -> Listed:
    """Labels are the places of `names`, from 1; test images have the small numbers."""
    base = root / "flowers-102"
    splits = {"trnid": train, "valid": 1, "tstid": test}
    listed = _spread(names, splits, lambda _, name, n: f"jpg/image_{n:05d}.jpg")
    _pictures(base, listed)
    number = {path: int(Path(path).stem[6:]) for rows in listed.values() for path, _ in rows}
    labels = np.zeros(len(number), np.uint8)
    for rows in listed.values():
        for path, name in rows:
            labels[number[path] - 1] = list(names).index(name) + 1
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    ids = {k: np.array([[number[path] for path, _ in rows]], np.uint16) for k, rows in listed.items()}
    savemat(base / "setid.mat", ids)
    return listed


def _structs(fields: dict[str, Sequence[Any]]) -> Any:
    """A 1 × n struct array as Matlab writes it."""
    count = len(next(iter(fields.values())))
    made = np.empty((1, count), dtype=[(name, object) for name in fields])
    for name, values in fields.items():
        for place, value in enumerate(values):
            made[name][0, place] = value
    return made


def cars(root: Path, names: Sequence[str], train: int = 3, test: int = 2) -> Listed:
    base = root / "stanford_cars"
    listed = _spread(names, {"train": train, "test": test}, lambda split, _, n: f"cars_{split}/{n:05d}.jpg")
    _pictures(base, listed)
    (base / "devkit").mkdir()
    files = {
        "train": base / "devkit" / "cars_train_annos.mat",
        "test": base / "cars_test_annos_withlabels.mat",
    }
    for split, rows in listed.items():
        boxes = {f"bbox_{key}": [1] * len(rows) for key in ("x1", "y1", "x2", "y2")}
        classes = [np.uint8(list(names).index(name) + 1) for _, name in rows]
        found = _structs(boxes | {"class": classes, "fname": [Path(path).name for path, _ in rows]})
        savemat(files[split], {"annotations": found})
    named = np.empty((1, len(names)), object)
    named[0] = list(names)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": named})
    return listed


def caltech(root: Path, names: Sequence[str], each: int = 32) -> Listed:
    base = root / "caltech-101"
    listed = _spread(
        names, {"all": each}, lambda _, name, n: f"101_ObjectCategories/{name}/image_{n:04d}.jpg"
    )
    _pictures(base, listed)
    (base / "101_ObjectCategories" / names[0] / "tmp").write_text("as in BACKGROUND_Google")
    return listed


def python2(value: Any) -> bytes:
    """A pickle as the authors' Python wrote it: texts and bytes are both its `str`, and numpy is an older one."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        made = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
            + _opcodes((0,))
            + _opcodes("b")
            + b"tR"
        )
        kind = b"cnumpy\ndtype\n" + _opcodes((value.dtype.str[1:], 0, 1)) + b"R"
        state = _opcodes(1) + _opcodes(value.shape) + kind + b"\x89" + _opcodes(value.tobytes())
        return made + b"(" + state + b"tb"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(part) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, list | tuple):
        start, end = (b"](", b"e") if isinstance(value, list) else (b"(", b"t")
        return start + b"".join(map(_opcodes, value)) + end
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little")
    data = value.encode() if isinstance(value, str) else value
    return b"T" + len(data).to_bytes(4, "little") + data


def cifar(root: Path, names: Sequence[str], train: int = 5, test: int = 2, *, binary: bool = False) -> Listed:
    """`train` and `test` images of each class, of noise; CIFAR-100 for 100 names."""
    hundred = len(names) == 100
    base = root / (
        ("cifar-100-binary" if binary else "cifar-100-python")
        if hundred
        else ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    )
    base.mkdir(parents=True)
    listed: Listed = {"train": [], "test": []}
    random = np.random.default_rng(3)
    batches = {"train": ["train"], "test": ["test"]} if hundred else {
        "train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"],
    }  # fmt: skip
    for split, each in (("train", train), ("test", test)):
        every = np.array_split(
            random.permutation(np.repeat(np.arange(len(names)), each)), len(batches[split])
        )
        for batch, labels in zip(batches[split], every, strict=True):
            pixels = random.integers(0, 256, (len(labels), 3072)).astype(np.uint8)
            listed[split] += [
                (f"{batch}/{row:05d}", names[label]) for row, label in enumerate(labels.tolist())
            ]
            if binary:
                first = [labels[:, None].astype(np.uint8)]
                first = [np.full_like(first[0], 7), *first] if hundred else first
                (base / f"{batch}.bin").write_bytes(np.concatenate([*first, pixels], 1).tobytes())
            else:
                key = "fine_labels" if hundred else "labels"
                held = {"data": pixels, key: labels.tolist(), "batch_label": "one of five"}
                (base / batch).write_bytes(python2(held))
    if binary:
        _text(base / ("fine_label_names.txt" if hundred else "batches.meta.txt"), [*names, ""])
    else:
        key, file = ("fine_label_names", "meta") if hundred else ("label_names", "batches.meta")
        (base / file).write_bytes(python2({key: list(names)}))
    return listed


def imagenet(root: Path, names: Sequence[str], train: int = 3, val: int = 2, *, flat: bool = True) -> Listed:
    """`names` are wnids. The development kit numbers them backwards, and lists what is above them, too."""
    splits = {"train": train, "val": val}

    def path(split: str, name: str, n: int) -> str:
        file = f"{name}_{n}.JPEG" if split == "train" else f"ILSVRC2012_val_{n:08d}.JPEG"
        return f"{split}/{file}" if split == "val" and flat else f"{split}/{name}/{file}"

    listed = _spread(names, splits, path)
    listed["train"].sort()
    listed["val"].sort(key=lambda row: row[0])
    _pictures(root, listed)
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    number = {name: n for n, name in enumerate(sorted(names, reverse=True), 1)}
    by_image = sorted((Path(image).name, number[name]) for image, name in listed["val"])
    _text(kit / "ILSVRC2012_validation_ground_truth.txt", [str(n) for _, n in by_image])
    wnids = [*sorted(names, reverse=True), "n00001740"]
    fields: dict[str, Sequence[Any]] = {
        "ILSVRC2012_ID": list(range(1, len(wnids) + 1)),
        "WNID": wnids,
        "words": ["a word"] * len(wnids),
        "num_children": [0] * len(names) + [len(names)],
    }
    savemat(kit / "meta.mat", {"synsets": _structs(fields).T})
    return listed
