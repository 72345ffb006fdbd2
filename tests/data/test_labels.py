"""Names and numbers of classes: matched exactly first, never confused, and what was folded is said."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import small
from class_copies import IMAGES, at, entry, open_test, write_folder, write_parquet, write_wds
from rich.console import Console

from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.data.labels import difference, fold, match, without_samples
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Note, Split
from clipbench.encoding.runtime import Runtime
from clipbench.errors import DataError
from clipbench.evaluation import Options, evaluate
from clipbench.protocols.zero_shot import same_prompts
from clipbench.report.table import record_table

#: sets of names that must be told apart
NAMES = {
    "chinese": list("零一二三四五六七八九"),
    "cyrillic": ["ноль", "один", "два"],
    "case": ["a", "A", "b", "B", "é", "É"],
    "signs": ["c", "c++", "c#", "f", "f#", "a-", "a+", "a", "-1", "1", "+1", "1.5", "15", "1/2", "12"],
    "accents": ["cote", "côte", "coté", "côté", "ou", "où", "oú"],
    "marks": ["कि", "की", "क", "ไม", "ไม้", "ไม่"],
    "digits": ["١", "٢", "१", "२", "1", "2"],
    "emoji": ["🐱", "🐶", "👨‍👩‍👧", "👨‍👩‍👦", "👍", "👍🏽", "❤"],
    "turkish": ["sık", "sik", "SIK", "SİK"],
    "german": ["Maße", "Masse", "MASSE"],
    "apostrophes": ["were", "we're", "we’re", "d'or", "dor"],
    "spaces": ["sea lion", "sealion", "sea_lion", "sea-lion"],
}


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_differ_in_anything_are_told_apart(
    key: str, form: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    known = NAMES[key]
    card: dict[str, Any] = {"classes": [f"class {i}" for i in range(len(known))], "label_names": known}
    images = [(i, IMAGES[i % 12][1]) for i in range(len(known))]
    written = [unicodedata.normalize(form, name) for name in known]  # macOS takes folder names apart
    texts = [(written[i], image) for i, image in images]
    split = open_test(write_parquet(tmp_path / "text", texts, None), **card)
    assert (split.labels.tolist(), split.notes) == (list(range(len(known))), ())
    turned = [(len(known) - 1 - i, image) for i, image in images]
    split = open_test(write_parquet(tmp_path / "names", turned, written[::-1]), **card)
    assert (split.labels.tolist(), split.notes) == (list(range(len(known))), ())
    if not any("/" in name for name in known):
        split = open_test(write_folder(tmp_path / "folder", images, written), **card)
        found = {Path(i).parent.name: label for i, label in zip(split.ids, split.labels, strict=True)}
        assert (found, split.notes) == ({name: i for i, name in enumerate(written)}, ())


@pytest.mark.parametrize(
    ("name", "known", "kind"),
    [
        ("Sea_Lion", "sea lion", "folded-names"),
        ("sea-lion", "sea lion", "folded-names"),
        ("ＣＡＴ", "cat", "folded-names"),
        ("STRASSE", "straße", "folded-names"),
        ("colt s foot", "colt's foot", "loosely-folded-names"),
        ("F 16A B", "F-16A/B", "loosely-folded-names"),
        ("snoopy cartoon beagle", "snoopy (cartoon beagle)", "loosely-folded-names"),
        ("❤️", "❤", "loosely-folded-names"),
    ],
)
def test_names_that_are_folded_are_named(name: str, known: str, kind: str) -> None:
    found = match([name, "hen"], ["hen", known])
    assert (found.places, found.problem) == ((1, 0), None)
    assert [(note.kind, note.count, note.examples) for note in found.notes] == [
        (kind, 1, (f"{name} → {known}",))
    ]


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["C#"], ["C"]),
        (["C"], ["C++", "C#"]),
        (["côte"], ["cote"]),
        ([":-)"], [":-("]),
        (["?"], ["!"]),
        (["C."], ["C", "C!"]),  # two of the card without punctuation
        (["D.", "D!"], ["D"]),  # two of the data
        (["sik"], ["sık"]),
        (["👍🏽"], ["👍"]),
        (["1,5"], ["15"]),
    ],
)
def test_names_that_are_not_folded(names: list[str], known: list[str]) -> None:
    assert match(names, known).lost == names


def test_an_exact_name_comes_before_one_that_folds_alike() -> None:
    assert match(["a", "A"], ["A", "a"]).places == (1, 0)
    assert match(["C.", "C"], ["C", "D"]).places == (None, 0)
    assert fold("A-") != fold("A")


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (
            ["Cat", "bat"],
            ["cat", "CAT", "bat"],
            r"'Cat' may mean the classes 'cat' \(number 0\) and 'CAT' \(nu",
        ),
        (["One", "one"], ["one", "two"], r"names repeat: 'One' and 'one' are all the class 'one'"),
        (
            ["crane", "cat"],
            ["crane", "cat", "crane"],
            r"'crane' may mean .*'crane' \(number 0\) and 'crane' \(nu",
        ),
    ],
)
def test_names_in_doubt_are_refused(
    names: list[str], classes: list[str], message: str, tmp_path: Path
) -> None:
    images = [(i % 2, image) for i, (_, image) in enumerate(IMAGES)]
    texts = [(names[i], image) for i, image in images]
    copies = {
        "folder": write_folder(tmp_path / "folder", images, names),
        "names": write_parquet(tmp_path / "names", images, names),
        "texts": write_parquet(tmp_path / "texts", texts, None),
    }
    for root in copies.values():
        with pytest.raises(DataError, match=message + r".*\n.*label_names in tasks/animals\.yaml"):
            open_test(root, classes=classes)


def test_classes_may_repeat_where_names_need_not_tell_them(tmp_path: Path) -> None:
    twice = ["crane", "cat", "crane"]
    names = ["crane_bird", "cat", "crane_machine"]
    images = [(i % 3, image) for i, (_, image) in enumerate(IMAGES)]
    numbers = [i for i, _ in images]
    assert open_test(write_parquet(tmp_path / "a", images, None), classes=twice).labels.tolist() == numbers
    assert open_test(write_wds(tmp_path / "b", images, twice), classes=twice).labels.tolist() == numbers
    card = {"classes": twice, "label_names": names}
    assert open_test(write_parquet(tmp_path / "c", images, names), **card).labels.tolist() == numbers


def test_voc_and_coco_take_names_of_every_script(tmp_path: Path) -> None:
    names = ["猫", "狗"]
    kit = tmp_path / "kit"
    for number, name in enumerate(names):
        for folder, end, data in (
            ("JPEGImages", "jpg", small.picture(number)),
            ("Annotations", "xml", f"<annotation><object><name>{name}</name></object></annotation>".encode()),
        ):
            path = kit / folder / f"{number}.{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    card: dict[str, Any] = {
        "kind": "multi-label", "classes": ["cat", "dog"], "label_names": names, "splits": {"test": {"name": "test"}},
    }  # fmt: skip
    assert open_test(kit, **card).labels.tolist() == [[1, 0], [0, 1]]
    lists = kit / "ImageSets/Main"
    lists.mkdir(parents=True)
    for i, name in enumerate(names):
        name = unicodedata.normalize("NFD", name)
        (lists / f"{name}_test.txt").write_text("".join(f"{n} {1 if n == i else -1}\n" for n in range(2)))
    assert open_test(kit, **card).labels.tolist() == [[1, 0], [0, 1]]
    found = open_test(kit, **(card | {"label_names": names[::-1]}))
    assert found.labels.tolist() == [[0, 1], [1, 0]]


# -------------------------------------------------------------------- numbers


def of_numbers(root: Path, labels: list[Any], width: str | None = None, **changes: Any) -> Split:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    images = [{"bytes": IMAGES[i % 12][1], "path": None} for i in range(len(labels))]
    column = pa.array(labels, type=width and getattr(pa, width)())
    pq.write_table(pa.table({"image": images, "label": column}), root / "test.parquet")
    return open_split(entry(**changes), "test", at(root))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0.0, 1.5],
            r"sample 0000001 in .* has the label 1\.5, expected a class number .*\(a whole number\)",
        ),
        ([0.0, float("nan")], r"sample 0000001 in .* has the label nan, expected a class number"),
        ([0.0, float("inf")], r"has the label inf, expected a class number"),
        ([0, None], r"has the label None, expected a class number or name"),
        (["cat", None], r"sample 0000001 in .* has the label None, expected a class name, as others have"),
        (["0", "1"], r"has the label '0', not a class of the card\n.*must be integers, not texts"),
        (
            [1, 2, 3],
            r"sample 0000002 in .* has the label 3, but .*\(0 to 2\); 1 such samples\n.*counted from 1",
        ),
        ([-1, -1], r"has the label -1, but .*\n.*not published"),
        ([-1, 2], r"has the label -1, but .*; 1 such"),
        ([True, False], r"2 of 2 labels in .* are true or false, the card has 3 classes"),
        ([[0], [1]], r"each sample in .* has \(1,\) labels, the card says one"),
    ],
)
def test_numbers_that_are_no_class(labels: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        of_numbers(tmp_path / "copy", labels)


def test_numbers_beyond_64_bits_are_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the label 18446744073709551615, but there are 3 classes"):
        of_numbers(tmp_path / "copy", [0, 2**64 - 1], "uint64")


def test_numbers_of_other_types(tmp_path: Path) -> None:
    assert of_numbers(tmp_path / "u8", [0, 2], "uint8").labels.tolist() == [0, 2]
    split = of_numbers(tmp_path / "floats", [0.0, 2.0, 2.0])
    assert split.labels.tolist() == [0, 2, 2]
    assert split.labels.dtype == np.int64
    assert [(n.kind, n.count, n.examples) for n in split.notes] == [("whole-floats", 3, ("0.0", "2.0"))]
    split = of_numbers(tmp_path / "truth", [True, False, True], classes=["no", "yes"])
    assert split.labels.tolist() == [1, 0, 1]
    assert [note.text for note in split.notes] == [
        "labels are truth values: false is read as 'no', true as 'yes'"
    ]
    named: dict[str, Any] = {"classes": ["0", "1", "2"], "label_names": ["zero", "one", "two"]}
    split = of_numbers(tmp_path / "texts", ["2", "0"], **named)
    assert split.labels.tolist() == [2, 0]
    assert [(note.kind, note.examples) for note in split.notes] == [("numbers-as-names", ("2", "0"))]


@pytest.mark.parametrize("labels", [[["1", "0", "0"]], [[1, None, 0]], [[1, 0.5, 0]]])
def test_rows_of_several_labels_that_are_no_numbers(labels: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a row of 3 numbers|allowed: 0 \(absent\)"):
        of_numbers(tmp_path / "copy", labels, kind="multi-label")


# -------------------------------------------------- classes without samples


def test_classes_without_samples_are_counted_and_named(tmp_path: Path) -> None:
    images = [(label, image) for label, image in IMAGES if label != 1]
    split = open_test(write_folder(tmp_path / "a", images))
    (tmp_path / "b/test/cat").mkdir(parents=True)
    empty = open_test(write_folder(tmp_path / "b", images))
    wanted = (Note("classes-without-samples", "of the 3 classes without any sample", 1, ("cat",)),)
    assert without_samples(split) == without_samples(empty) == wanted
    assert without_samples(open_test(write_folder(tmp_path / "c"))) == ()
    rows = [([1, 0, 0], IMAGES[0][1]), ([1, 255, 1], IMAGES[1][1])]
    write_wds(tmp_path / "d", rows, label_suffix="npy", shards=1)
    several = open_test(tmp_path / "d", kind="multi-label")
    assert [n.text for n in without_samples(several)] == ["of the 3 classes without any positive sample"]
    assert [n.examples for n in without_samples(several)] == [("cat",)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat", "dog"], "though the names agree"),
        (["dog"], "1 of its names are missing, first 'cat'"),
        (["cat", "dogg"], "1 names are not on it, first 'dogg' (is it \"dog\"?)"),
    ],
)
def test_how_names_differ_is_said(names: list[str], said: str) -> None:
    assert difference(match(names, ["cat", "dog"])) == said


def test_classes_with_the_same_prompts() -> None:
    card = Catalog().dataset("digits").card
    assert same_prompts(card, "default") == []
    twice = card.model_copy(update={"classes": ("x", "y", "x", "z", "y")})
    assert same_prompts(twice, "default") == [[0, 2], [1, 4]]


# ------------------------------------------------------------ all the way


def test_digits_named_in_chinese_score_what_digits_score(tmp_path: Path) -> None:
    """And classes that nothing can be told of are in the record and in what is printed."""
    source = digits("test", [str(i) for i in range(10)])
    pictures = [sample.image for sample in source.samples(np.arange(60))]
    words = dict(enumerate("零一二三四五六七八九"))
    card = {
        "title": "Digits",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "prompts_source": "own",
        "protocols": {"zs": {}},
        "templates": {"default": ['a photo of the number: "{c}".']},
        "classes": [str(i) for i in range(9)] + ["8"],
    }
    kept = [(int(label), image) for label, image in zip(source.labels, pictures, strict=False) if label < 8]
    cards = {"plain": card, "named": card | {"label_names": list(words.values())}}
    (tmp_path / "tasks").mkdir()
    for name, value in cards.items():
        (tmp_path / f"tasks/{name}.yaml").write_text(json.dumps(value))
    write_parquet(tmp_path / "plain", kept, None)
    write_parquet(tmp_path / "named", [(words[label], image) for label, image in kept], None)
    catalog = Catalog([tmp_path])
    options = Options(Runtime("cpu", "fp32", workers=0), DataPaths({}, (tmp_path,)), progress=False)
    tasks = catalog.tasks(["plain-zs", "named-zs"])
    plain, named = (r.record for r in evaluate([catalog.model("digits-clip-lite")], tasks, options))
    assert plain is not None
    assert named is not None
    assert named.scores == plain.scores
    assert named.scores["acc1"].value > 0.9
    assert [(note.kind, note.count, note.examples) for note in named.notes] == [
        ("classes-without-samples", 2, ("8", "8"))
    ]
    assert named.evidence["same_prompts"] == [["8 (8)", "8 (9)"]]
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(record_table(named))
    printed = console.export_text()
    assert "test: 2 of the 10 classes without any sample (8, 8)" in printed
    assert (
        "2 classes have the same prompts as another, so no model tells them apart: 8 (8) = 8 (9)" in printed
    )
