"""Cards made from folders: what is found, what is assumed, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import class_copies
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small

from clipbench.cards.entry import Entry
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.data.drafts import Prompts, draft
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.errors import ClipbenchError, DataError

FOLDERS = ("cat", "cow", "dog", "hen", "pig")


NOTHING = Prompts()


def made(root: Path, prompts: Prompts = NOTHING, kind: str | None = None) -> TaskCard:
    return parse(TaskCard, Document(root / "my.yaml", draft("my", root, prompts, kind)))


def photos(root: Path, *splits: str) -> Path:
    """Pictures in folders of classes, which lie in folders of splits where these are named."""
    for split in splits or (".",):
        for number, name in enumerate(FOLDERS):
            path = root / split / name / "one.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(small.picture(number))
    return root


def test_folders_are_classes(tmp_path: Path) -> None:
    card = made(photos(tmp_path))
    assert card.classes == FOLDERS
    assert card.label_names is None
    assert {role: spec.name for role, spec in card.splits.items()} == {"test": "test"}
    assert list(card.protocols) == ["zs"]


def test_folders_of_splits(tmp_path: Path) -> None:
    card = made(photos(tmp_path, "train", "valid", "test"))
    assert {role: spec.name for role, spec in card.splits.items()} == {
        "train": "train",
        "val": "valid",
        "test": "test",
    }
    assert list(card.protocols) == ["zs", "lp"]


def test_a_validation_split_stands_in_for_a_test_split(tmp_path: Path) -> None:
    card = made(photos(tmp_path, "train", "val"))
    assert {role: spec.name for role, spec in card.splits.items()} == {"train": "train", "test": "val"}


@pytest.mark.parametrize("layout", ["parquet", "wds"])
def test_names_of_labels_in_the_data(tmp_path: Path, layout: str) -> None:
    assert made(class_copies.LAYOUTS[layout](tmp_path)).classes == tuple(class_copies.CLASSES)


def test_labels_that_are_numbers_without_names_are_refused(tmp_path: Path) -> None:
    class_copies.write_wds(tmp_path, names=None)
    with pytest.raises(DataError, match="are numbers, and nothing says what they are called"):
        made(tmp_path)


def numbered(root: Path, labels: Sequence[Any]) -> Path:
    """A table of pictures with these labels, which nothing names."""
    images = [small.picture(number) for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": list(labels)}), root / "test.parquet")
    return root


@pytest.mark.parametrize(
    "said", ["none\na cat\na hen\n", "2\ta hen\n0\tnone\n1\ta cat\n"], ids=["in order", "by number"]
)
def test_names_of_labels_that_are_numbers(tmp_path: Path, said: str) -> None:
    (tmp_path / "names.txt").write_text(said)
    root = tmp_path / "data"
    root.mkdir()
    numbered(root, [1, 2, 2])
    card = made(root, Prompts(tmp_path / "names.txt"))
    assert card.classes == ("none", "a cat", "a hen")
    assert card.label_names is None
    entry = Entry("my", card, tmp_path / "my.yaml")
    assert open_split(entry, "test", DataPaths({"my": root}, ())).labels.tolist() == [1, 2, 2]
    (tmp_path / "names.txt").write_text("a cat\na hen\n")
    with pytest.raises(DataError, match=r"has 2 names, .* 3 classes \(0, 1, 2"):
        made(root, Prompts(tmp_path / "names.txt"))


@pytest.mark.parametrize("labels", [[-1, 0], [0.5, 1.0], [None, 1], [[0, 1], [1]]], ids=str)
@pytest.mark.parametrize("named", [True, False])
def test_labels_that_are_neither_texts_nor_numbers_of_classes(
    tmp_path: Path, labels: list[Any], named: bool
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(DataError, match="all are whole numbers from 0 on"):
        made(numbered(root, labels), Prompts(names if named else None, ("{c}",)))


def test_names_in_the_order_of_folders_or_by_folder(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    root = photos(tmp_path / "data")
    names.write_text("a cat\na cow\na dög\na hen\na pig\n\n", encoding="utf-8")
    card = made(root, Prompts(names, ("my {c}", "the {c}")))
    assert card.classes == ("a cat", "a cow", "a dög", "a hen", "a pig")
    assert card.label_names == FOLDERS
    assert card.templates["default"] == ("my {c}", "the {c}")
    names.write_bytes("\ufeffpig\ta pig\r\ncat\ta cat\r\ncow\tox\r\ndog\tdog\r\nhen\then".encode())
    assert made(root, Prompts(names)).classes == ("a cat", "ox", "dog", "hen", "a pig")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "has 2 names"),
        ("cat\ta\ncow\tb\ndogg\tc\nhen\td\npig\te\n", 'names.txt:3: no class "dogg"'),
        ("cat\ta\ncow\tb\n", "no name for 3 of the 5 classes (dog, hen, pig)"),
        ("cat\ta\ncow\n", "names.txt:2: expected folder<TAB>name"),
        ("cat\ta\ncat\tb\n", 'names.txt:2: "cat" is there twice'),
        ("a\n\nb\nc\nd\n", "names.txt:2: a blank line"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    names = tmp_path / "names.txt"
    names.write_text(text)
    with pytest.raises(DataError) as caught:
        made(photos(tmp_path / "data"), Prompts(names))
    assert message in str(caught.value)


def test_templates_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a {c}\nmy {c}\n")
    card = made(photos(tmp_path / "data"), Prompts(None, (str(file), "one {c}")))
    assert card.templates["default"] == ("a {c}", "my {c}", "one {c}")
    file.write_text("a cat\n")
    with pytest.raises(DataError, match=r'the template "a cat" has no \{c\}'):
        made(tmp_path / "data", Prompts(None, (str(file),)))


def test_captions(tmp_path: Path) -> None:
    lines = ["image,caption"]
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / "images" / f"{number}.png").write_bytes(small.picture(number))
        lines += [f"{number}.png,picture {number}", f"{number}.png,again {number}"]
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    text = draft("my", tmp_path, Prompts(), "captions")
    card = parse(TaskCard, Document(tmp_path / "my.yaml", text))
    assert card.kind == "captions"
    assert "6 images with 12 captions" in text
    assert card.protocols == {"ret": {"ks": [1, 5]}}
    assert made(tmp_path).kind == "captions"  # found to be such


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data folder"):
        made(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"it holds a\.txt"):
        made(tmp_path, kind="single-label")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(small.picture(1))
    with pytest.raises(DataError, match=r"holds 1 class \(cat\); classification needs two"):
        made(tmp_path, kind="single-label")
    with pytest.raises(DataError, match="no test data in"):
        made(tmp_path)
    with pytest.raises(ClipbenchError, match="is no name for a data set"):
        draft("My Photos", tmp_path, Prompts())
