"""Long captions: the copies that authors give, from the command line, and how many of their captions a model cuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
from caption_copies import write
from language_copies import write_dci, write_docci, write_urban
from typer.testing import CliRunner

from clipbench.catalog import Catalog
from clipbench.cli import app
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.encoding.cuts import Cut, added
from clipbench.errors import DataError
from clipbench.records import store
from clipbench.records.record import Record
from clipbench.report.remarks import remarks

one_thread = small.one_thread

TEXTS = [f"a street with {n} cars, " + "and one more " * n + "\u4eba" for n in range(12)]
SHORT = {"ret": {"ks": [1, 5], "primary": "mean_recall@1"}}
CARD: dict[str, Any] = {
    "title": "Long",
    "source": {"local": True},
    "splits": {"test": {"name": "test"}},
    "kind": "captions",
    "protocols": SHORT,
}
DOCCI = {
    "splits": {"train": {"name": "train"}, "val": {"name": "qual_dev"}, "test": {"name": "test"}},
    "columns": {"image": "image_file", "caption": "description"},
}
DCI = {
    "splits": {"test": {"name": "test"}, "all": {"name": "all"}},
    "protocols": {"ret": {**SHORT["ret"], "variants": {"all": {"split": "all"}}}},
}


def halves(text: str) -> tuple[str, str]:
    short, _, extra = text.partition(", ")
    return short, extra


COPIES: dict[str, tuple[Callable[[Path], None], dict[str, Any], list[str]]] = {
    "urban1k": (lambda root: write_urban(root, TEXTS), {}, [str(n + 1) for n in range(12)]),
    "docci": (
        lambda root: write_docci(root, {"train": ["one", "two"], "test": TEXTS, "qual_dev": ["three"]}),
        DOCCI,
        [f"test_{n:05d}.jpg" for n in range(12)],
    ),
    "dci": (
        lambda root: write_dci(root, {"train": [("x", "y")], "test": [halves(text) for text in TEXTS]}),
        DCI,
        [f"sa_{1545001 + n}.jpg" for n in range(12)],
    ),
}


def opened(folder: Path, role: str = "test") -> Split:
    return open_split(Catalog([folder]).dataset("long"), role, DataPaths({"long": folder / "data"}, ()))


def set_up(form: str, folder: Path) -> None:
    make, changes, _ = COPIES[form]
    make(folder / "data")
    write(folder / "long.yaml", json.dumps(CARD | changes))


def evaluated(folder: Path, context: int = 48, task: str = "long-ret") -> tuple[Record, str]:
    name = f"run-{context}"
    if not (folder / name).is_dir():
        small.write_run(folder / name, context=context)
    arguments = ["eval", "--model", str(folder / name), "--task", task, "--data", f"long={folder / 'data'}"]
    arguments += ["--cards", str(folder), "--results", str(folder / "results"), "--device", "cpu"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    path = store.path_of(str(folder / name), task, folder / "results")
    return store.read(path).record, done.stdout


@pytest.mark.parametrize("form", COPIES)
def test_every_copy_is_read_and_measured_from_the_command_line(form: str, tmp_path: Path) -> None:
    set_up(form, tmp_path)
    split = opened(tmp_path)
    assert split.captions is not None
    assert list(split.ids) == COPIES[form][2]
    wanted = [text.replace(", ", " ", 1) for text in TEXTS] if form == "dci" else TEXTS
    assert list(split.captions.texts) == [text.strip() for text in wanted]
    record, printed = evaluated(tmp_path)
    lengths = [len(text.encode()) + 2 for text in split.captions.texts]
    lost = sum(max(0, length - 48) for length in lengths)
    cut = sum(length > 48 for length in lengths)
    assert record.encoder["texts"] == {
        "text:joint": {"texts": 12, "cut": cut, "tokens": sum(lengths), "tokens_lost": lost}
    }
    (note,) = [note for note in record.notes if note.kind == "cut-texts"]
    assert note.count == cut
    said = f"{cut} of 12 texts are longer than what the model reads, and are cut: {100 * lost / sum(lengths):.1f} % of"
    assert said in " ".join(printed.split())


def test_texts_whose_features_are_cached_are_counted_too(tmp_path: Path) -> None:
    set_up("urban1k", tmp_path)
    first, _ = evaluated(tmp_path)
    again, printed = evaluated(tmp_path)
    assert again.timing.texts_encoded == 0
    assert again.encoder["texts"] == first.encoder["texts"]
    assert "are cut" in printed
    longer, printed = evaluated(tmp_path, context=400)
    whole: Any = longer.encoder["texts"]
    assert (whole["text:joint"]["cut"], whole["text:joint"]["tokens_lost"]) == (0, 0)
    assert "are cut" not in printed


def test_all_of_a_set_is_a_variant(tmp_path: Path) -> None:
    set_up("dci", tmp_path)
    record, _ = evaluated(tmp_path, task="long-ret@all")
    assert record.evidence["images"] == 13


def test_counts_of_several_calls_add_up() -> None:
    assert added([Cut(3, 1, 30, 4), Cut(2, 0, 10, 0)]) == Cut(5, 1, 40, 4)
    assert added([Cut(3, 1, 30, 4), Cut(2)]).told == {"texts": 5, "cut": "not stated"}


def test_what_has_no_other_half_is_left_out_and_counted(tmp_path: Path) -> None:
    set_up("urban1k", tmp_path)
    (tmp_path / "data/caption/3.txt").unlink()
    (tmp_path / "data/image/5.jpg").unlink()
    write(tmp_path / "data/caption/7.txt", "a street\nand more of it\n")
    split = opened(tmp_path)
    assert [(note.kind, note.examples) for note in split.notes] == [
        ("images-without-captions", ("3.jpg",)),
        ("captions-without-images", ("5.txt",)),
        ("further-lines", ("7",)),
    ]
    assert split.captions is not None
    assert "a street" in split.captions.texts


def test_lines_of_other_splits_are_counted(tmp_path: Path) -> None:
    set_up("docci", tmp_path)
    (note,) = opened(tmp_path).notes
    assert str(note) == "3 lines of the file belong to other splits (2 to 'train', 1 to 'qual_dev')"
    assert list(opened(tmp_path, "val").ids) == ["qual_dev_00000.jpg"]


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no image": ("docci", lambda data: (data / "images/test_00003.jpg").unlink(), r"1 of the 12 images"),
    "no caption": (
        "docci",
        lambda data: write(
            data / "docci_descriptions.jsonlines",
            '{"image_file": "a.jpg", "description": 3, "split": "test"}',
        ),
        r"jsonlines:1: expected 'image_file' with a file name and 'description'",
    ),
    "other splits alone": (
        "docci",
        lambda data: write(
            data / "docci_descriptions.jsonlines", '{"image_file": "a", "description": "b", "split": "x"}'
        ),
        r"no line of test \(there is 'x'\)",
    ),
    "two files": (
        "docci",
        lambda data: write(data / "more.jsonl", '{"image_file": "a", "description": "b", "split": "test"}'),
        r"docci_descriptions\.jsonlines and more\.jsonl .* have images and captions",
    ),
    "no split": (
        "dci",
        lambda data: write(data / "densely_captioned_images/splits.json", '{"a": []}'),
        r"no test split",
    ),
    "no list": (
        "dci",
        lambda data: write(data / "densely_captioned_images/splits.json", "[]"),
        r"expected lists of",
    ),
    "no annotation": (
        "dci",
        lambda data: write(data / "densely_captioned_images/annotations/sa_1545001.json", "{}"),
        r"sa_1545001\.json: expected texts image, short_caption, extra_caption",
    ),
    "no names alike": (
        "urban1k",
        lambda data: [file.rename(file.with_name(f"x{file.name}")) for file in (data / "caption").iterdir()],
        r"no text in .* has the name of an image",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_copies_that_are_wrong(case: str, tmp_path: Path) -> None:
    form, change, message = WRONG[case]
    set_up(form, tmp_path)
    change(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_a_model_that_states_no_limit_says_that_it_is_not_known(tmp_path: Path) -> None:
    from clipbench import evaluate

    class Own:
        identity = "own 1"

        def encode_images(self, images: list[Any]) -> Any:
            return [[float(image.size[0]), float(n + 1)] for n, image in enumerate(images)]

        def encode_texts(self, texts: list[str]) -> Any:
            return [[float(len(text)), 1.0] for text in texts]

    set_up("urban1k", tmp_path)
    (record,) = evaluate(
        Own(), ["long-ret"], data={"long": tmp_path / "data"}, cards=[tmp_path], progress=False
    )
    assert record.encoder["texts"] == {"text:joint": {"texts": 12, "cut": "not stated"}}
    assert "the model does not say how long a text may be: whether it cuts some is not known" in remarks(
        record
    )
