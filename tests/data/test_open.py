"""Which layout a folder is in: told by the folder, named where it is two, and open to layouts of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plugged
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
from commandline import Run
from commandline import run as run

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data import layouts
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import ClipbenchError, DataError
from clipbench.utils import plugins

#: a layout in one module: images named by lines of JSON
TOY = """
import json
from clipbench.data.layouts.base import FileLayout, LayoutSpec


class Lines(FileLayout):
    name_in_fingerprint = "toy"

    def __init__(self, root, file):
        self._rows = [json.loads(line) for line in file.read_text().splitlines()]
        super().__init__(root, [root / row["image"] for row in self._rows], [file])

    def index(self):
        for row in self._rows:
            yield row["image"], row["label"]


def probe(dataset, role, root):
    file = root / f"{dataset.card.splits[role].name}.jsonl"
    return Lines(root, file) if file.is_file() else None


LAYOUT = LayoutSpec(("single-label",), "{split}.jsonl of image and label", probe)
"""
CLASSES = ("cat", "dog")


def card(**changes: Any) -> dict[str, Any]:
    return {
        "title": "Pets",
        "source": {"local": True},
        "splits": {"test": {"name": "test", "rows": 4}},
        "classes": list(CLASSES),
        "templates": {"default": ["{c}"]},
        "prompts_source": "tests",
        "protocols": {"zs": {}},
    } | changes


def opened(root: Path, **changes: Any) -> Split:
    entry = Entry("mine", TaskCard.model_validate(card(**changes)), Path("mine.yaml"))
    return open_split(entry, "test", DataPaths({"mine": root}, ()))


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def lines(root: Path) -> None:
    for number in range(4):
        write(root / f"{number}.png", small.picture(number))
    rows = [{"image": f"{n}.png", "label": CLASSES[n % 2]} for n in range(4)]
    write(root / "test.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def parquet(root: Path, images: list[bytes] | list[str] | None = None, label: Any = 1) -> None:
    table = {"image": images or [small.picture(n) for n in range(4)], "label": [label] * 4}
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), root / "test.parquet")


def folder(root: Path) -> None:
    for number in range(4):
        write(root / "test" / CLASSES[number % 2] / f"{number}.png", small.picture(number))


def dtd(root: Path) -> None:
    write(root / "labels" / "test1.txt", "".join(f"{CLASSES[n % 2]}/{n}.jpg\n" for n in range(4)))
    for number in range(4):
        write(root / "images" / CLASSES[number % 2] / f"{number}.jpg", small.picture(number))


def food(root: Path) -> None:
    write(root / "meta" / "test.txt", "".join(f"{CLASSES[n % 2]}/{n}\n" for n in range(4)))
    write(root / "meta" / "classes.txt", "cat\ndog\n")
    for number in range(4):
        write(root / "images" / CLASSES[number % 2] / f"{number}.jpg", small.picture(number))


def voc(root: Path) -> None:
    for name in CLASSES:
        write(root / "ImageSets" / "Main" / f"{name}_test.txt", "1 1\n2 1\n3 -1\n4 -1\n")
    for number in range(1, 5):
        write(root / "JPEGImages" / f"{number}.jpg", small.picture(number))


def coco(root: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1, 5)]
    categories = [{"id": n, "name": name} for n, name in enumerate(CLASSES)]
    boxes = [{"id": n, "image_id": n, "category_id": n % 2} for n in range(1, 5)]
    lists = {"images": images, "categories": categories, "annotations": boxes}
    write(root / "annotations" / "instances_test.json", json.dumps(lists))
    for number in range(1, 5):
        write(root / "images" / f"{number}.jpg", small.picture(number))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with plugged.forgotten(layouts, monkeypatch):
        yield


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A plugin folder with the layout TOY, not yet named."""
    return plugged.plugin(tmp_path / "plugins", "layouts", TOY, "lines").parents[1]


@pytest.mark.parametrize("way", plugged.WAYS)
def test_a_plugins_layout_goes_the_whole_way(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Data in it are checked and measured, and the records reported, drawn, compared and gated, from one file."""
    where = (
        "--cards",
        tmp_path / "cards",
        *plugged.bring(way, tmp_path, "layouts", TOY, monkeypatch, "lines"),
    )
    lines(tmp_path / "data")
    write(tmp_path / "cards" / "mine.yaml", json.dumps(card()))
    data = f"mine={tmp_path / 'data'}"
    checked = run("data", "check", "mine", "--data", data, *where)
    assert checked.code == 0, checked
    models = [small.write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    compared = plugged.whole_way(run, tmp_path, models, "mine-zs", data, *where)
    assert [one["n"] for one in compared if one["metric"] == "acc1"] == [4]


def test_a_layout_of_a_plugin_folder_is_read_from_the_command_line(
    plugin: Path, tmp_path: Path, run: Run
) -> None:
    lines(tmp_path / "data")
    write(tmp_path / "cards" / "mine.yaml", json.dumps(card()))
    check = ("data", "check", "mine", "--cards", tmp_path / "cards", "--data", f"mine={tmp_path / 'data'}")
    without = run(*check)
    assert without.code == 2
    assert "no test data in" in without.out
    assert "of image and label" not in without.out
    found = run(*check, "--plugins", plugin)
    assert found.code == 0, found.out + found.err
    assert [line.split() for line in found.out.splitlines() if line.startswith("mine ")] == [
        ["mine", "test", "4", "4", "2", "4", "well"]
    ]
    split = opened(tmp_path / "data")
    assert split.labels.tolist() == [0, 1, 0, 1]
    assert [sample.image for sample in split.samples(np.array([1, 3]))] == [
        small.picture(1),
        small.picture(3),
    ]
    (tmp_path / "data" / "test.jsonl").unlink()
    lost = run(*check, "--plugins", plugin)
    assert "test.jsonl of image and label" in " ".join(lost.out.split())  # said by the plugin


def test_a_plugin_and_a_layout_of_ours_that_both_hold_a_split(plugin: Path, tmp_path: Path) -> None:
    lines(tmp_path / "data")
    parquet(tmp_path / "data")
    assert opened(tmp_path / "data").labels.tolist() == [1] * 4
    plugins.add(plugin)
    with pytest.raises(DataError, match=r"in 2 layouts: lines \(test\.jsonl\) and parquet \(test\.parquet\)"):
        opened(tmp_path / "data")


def test_a_module_that_says_nothing_is_no_layout(plugin: Path, tmp_path: Path) -> None:
    write(plugin / "layouts" / "lines.py", "LAYOUT = None\n")
    plugins.add(plugin)
    folder(tmp_path / "data")
    with pytest.raises(ClipbenchError, match=r"lines\.py is no layout: it has no LAYOUT") as error:
        opened(tmp_path / "data")
    assert "LayoutSpec(" in str(error.value.hint)


#: what lies in one folder → the kind of the card, and what the error names
TWICE: dict[str, tuple[tuple[Callable[[Path], None], ...], str, str]] = {
    "original archive beside converted parquet": (
        (dtd, parquet), "single-label", r"archives \(test1\.txt\) and parquet \(test\.parquet\)",
    ),
    "development kit beside COCO's annotations": (
        (voc, coco), "multi-label", r"coco \(instances_test\.json\) and voc \(cat_test\.txt\)",
    ),
    "two archives": ((dtd, food), "single-label", "the archives of several sets: Food-101 and DTD"),
}  # fmt: skip


@pytest.mark.parametrize("case", TWICE)
def test_a_split_in_two_layouts_is_an_error_that_names_both(case: str, tmp_path: Path) -> None:
    makes, kind, message = TWICE[case]
    for make in makes:
        make(tmp_path / case)
        opened(tmp_path / case, kind=kind) if make is makes[0] else None
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path / case, kind=kind)
    assert error.value.hint


def test_an_image_folder_is_one_where_no_file_says_what_the_images_are(tmp_path: Path) -> None:
    folder(tmp_path)
    assert opened(tmp_path).labels.tolist() == [0, 0, 1, 1]
    parquet(tmp_path, [f"test/{CLASSES[n % 2]}/{n}.png" for n in range(4)])
    assert opened(tmp_path).labels.tolist() == [1] * 4


def test_an_error_says_what_copies_of_such_a_card_look_like(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", "")
    with pytest.raises(DataError, match=r"mine: no test data in .* \(it holds notes\.md\)") as error:
        opened(tmp_path)
    assert error.value.hint == (
        "expected the authors' archive, unpacked, or COCO's annotations/instances_*.json (kind: multi-label), or "
        "<condition>/<class>/<image>, or test/<class>/<image>, or test*.parquet, or a VOCdevkit (kind: multi-label), "
        "or test/*.tar (CLIP_benchmark's WebDataset layout)"
    )
