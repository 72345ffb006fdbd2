"""A folder of embeddings: whose rows are which, and what is said where some are missing or wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded import npy
from fakes import FakeSplit, unit

from clipbench.data.embeddings import Embeddings
from clipbench.data.split import Subset
from clipbench.errors import CardError, ClipbenchError, DataError

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
EACH = np.arange(6)
TEXTS = ["a cat", "a dog"]


def split(role: str = "test", dataset: str = "fake", count: int = 6) -> FakeSplit:
    return FakeSplit(np.zeros(count, np.int64), ("a", "b"), dataset=dataset, role=role)


def write(
    folder: Path, rows: Any = ROWS, ids: Sequence[str] | None = None, where: str = "fake/test"
) -> Embeddings:
    """A folder with rows of a split, and texts."""
    npy(folder / f"{where}.npy", rows, split().ids if ids is None else ids)
    np.save(folder / "texts.npy", ROWS[:2])
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    return Embeddings(folder)


def test_rows_are_taken_by_their_ids(tmp_path: Path) -> None:
    order = np.array([3, 1, 5, 0, 4, 2])
    rows = write(tmp_path, ROWS[order], [f"test{i}" for i in order]).images(split(), "joint")
    assert np.array_equal(rows.read(EACH, unit=False), ROWS)
    assert np.allclose(rows.read(np.array([2, 0]), unit=True), unit(ROWS)[[2, 0]], rtol=1e-6)


def test_rows_of_unit_length_stay_to_the_last_bit(tmp_path: Path) -> None:
    given = unit(ROWS)
    assert (np.linalg.norm(given.astype(np.float64), axis=1) != 1).any()
    assert np.array_equal(write(tmp_path, given).images(split(), "joint").read(EACH, unit=True), given)
    half = write(tmp_path / "half", given.astype(np.float16)).images(split(), "joint").read(EACH, unit=True)
    assert np.allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)


def test_others_rows_are_counted_and_named(tmp_path: Path) -> None:
    ids = ["x", *split().ids, "y"]
    rows = write(tmp_path, np.concatenate([ROWS[:1], ROWS, ROWS[:1]]), ids).images(split(), "joint")
    assert np.array_equal(rows.read(EACH, unit=False), ROWS)
    (note,) = (note for note in rows.notes if note.kind == "other-rows")
    assert (note.count, note.examples) == (2, ("x", "y"))


@pytest.mark.parametrize("ids", [split().ids, None])
def test_a_sample_takes_its_rows_from_the_whole_split(tmp_path: Path, ids: Sequence[str] | None) -> None:
    folder = write(tmp_path, ids=ids)
    if ids is None:
        (tmp_path / "fake/test.ids.txt").unlink()
        (tmp_path / "embeddings.yaml").write_text("order: split")
        folder = Embeddings(tmp_path)
    rows = folder.images(Subset(split(), np.array([1, 4])), "joint")
    assert np.array_equal(rows.read(np.arange(2), unit=False), ROWS[[1, 4]])
    assert not any(note.kind == "other-rows" for note in rows.notes)
    assert {note.count for note in rows.notes} == {2, 6} if ids is None else {2}


def test_an_order_is_trusted_only_where_the_folder_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "fake/test.ids.txt").unlink()
    with pytest.raises(DataError, match="has no list of ids beside it") as caught:
        Embeddings(tmp_path).images(split(), "joint")
    assert "order: split" in str(caught.value.hint)
    (tmp_path / "embeddings.yaml").write_text("order: split\n")
    rows = Embeddings(tmp_path).images(split(), "joint")
    assert np.array_equal(rows.read(EACH, unit=False), ROWS)
    assert [note.count for note in rows.notes if note.kind == "order-on-trust"] == [6]
    with pytest.raises(DataError, match="has 6 rows, fake test has 5 images"):
        Embeddings(tmp_path).images(split(count=5), "joint")


def test_probes_read_their_own_rows_or_say_that_there_are_none(tmp_path: Path) -> None:
    rows = write(tmp_path).images(split(), "backbone@256:bilinear-no-antialias")
    assert {note.kind for note in rows.notes} == {"joint-as-backbone", "size-not-known", "images-not-seen"}
    assert any("asks for 256 px" in str(note) for note in rows.notes)
    npy(tmp_path / "backbone/fake/test.npy", ROWS * 2, split().ids)
    folder = Embeddings(tmp_path)
    own = folder.images(split(), "backbone")
    assert {note.kind for note in own.notes} == {"images-not-seen"}
    assert np.array_equal(own.read(EACH, unit=False), ROWS * 2)
    assert np.array_equal(folder.images(split(), "joint").read(EACH, unit=False), ROWS)
    with pytest.raises(DataError, match=r"no \S*backbone/fake/train"):
        folder.images(split("train"), "backbone")


def test_texts_are_found_letter_by_letter(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert np.array_equal(folder.texts(TEXTS[::-1]).read(np.arange(2), unit=False), ROWS[[1, 0]])
    with pytest.raises(
        DataError, match=r'4 of the 5 texts that are asked for are missing \("A cat", "b", "c", …\)'
    ) as caught:
        folder.texts(["a cat", "A cat", "b", "c", "d"])
    assert "clipbench data inputs" in str(caught.value.hint)
    (tmp_path / "texts.json").unlink()
    with pytest.raises(DataError, match=r"there is no texts\.txt or texts\.json"):
        Embeddings(tmp_path).texts(TEXTS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "are NaN"),
        (np.inf, "are infinite in float32"),
        (1e300, "are infinite in float32"),
        (0, "are all 0"),
    ],
)
def test_rows_that_are_no_features(tmp_path: Path, value: float, message: str) -> None:
    rows = ROWS.astype(np.float64)
    rows[[1, 4]] = value
    with pytest.raises(DataError, match=rf'2 of 6 rows {message} \("test1", "test4"\)'):
        write(tmp_path, rows).images(split(), "joint").check()
    rows[4] = ROWS[4]
    rows[2, 0] = np.nan
    with pytest.raises(DataError, match="of 6 rows are NaN"):
        write(tmp_path / "two", rows).images(split(), "joint").check()
    write(tmp_path / "none").images(split(), "joint").check()


def test_widths_must_agree(tmp_path: Path) -> None:
    folder = write(tmp_path, ROWS[:, :3])
    folder.images(split(), "joint")
    with pytest.raises(DataError, match=r"texts\.npy has rows of 4 numbers, .*test\.npy of 3"):
        folder.texts(TEXTS)
    npy(tmp_path / "fake/train.npy", ROWS, split("train").ids)
    with pytest.raises(DataError, match=r"train\.npy has rows of 4 numbers, .*test\.npy of 3"):
        folder.images(split("train"), "joint")
    folder = Embeddings(tmp_path)  # texts are not compared with what is probed
    folder.images(split(), "backbone")
    folder.texts(TEXTS)


@pytest.mark.parametrize(
    ("made", "message", "hint"),
    [
        (
            "fake/tests",
            r"no embeddings of fake test: there is no \S+fake/test\.npy .*did you mean",
            "embed its images",
        ),
        ("fakes/test", "there: fakes/test, other/train; did you mean", "embed its images"),
        ("test", "no embeddings of fake test", "move it and its ids into"),
    ],
)
def test_a_split_without_rows(tmp_path: Path, made: str, message: str, hint: str) -> None:
    npy(tmp_path / "other/train.npy", ROWS)
    folder = write(tmp_path, where=made)
    with pytest.raises(DataError, match=message) as caught:
        folder.images(split(), "joint")
    assert hint in str(caught.value.hint)


def test_files_that_would_be_passed_over_are_named(tmp_path: Path) -> None:
    npy(tmp_path / "mine/fake/train.npy", ROWS)
    (tmp_path / "mine/fake/test.npz").write_bytes(b"PK")
    with pytest.raises(DataError) as caught:
        Embeddings(tmp_path / "mine").images(split(), "joint")
    assert caught.value.hint == "test.npz is not read: write its rows as test.npy or .parquet"
    with pytest.raises(DataError, match="holds no rows of images: there is no <data set>/<split>") as caught:
        Embeddings(tmp_path / "mine/fake")
    assert str(caught.value.hint).endswith(f"name the one above: --model embeddings:{tmp_path / 'mine'}")
    npy(tmp_path / "texts.npy", ROWS)
    with pytest.raises(DataError, match="holds no rows of images") as caught:
        Embeddings(tmp_path)
    assert "embed the images" in str(caught.value.hint)
    write(tmp_path)
    for end in ("yml", "json"):
        (tmp_path / f"embeddings.{end}").write_text("{}")
        with pytest.raises(DataError, match=rf"embeddings\.{end} is not read"):
            Embeddings(tmp_path)
        (tmp_path / f"embeddings.{end}").unlink()


def test_missing_ids_are_counted_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'2 of the 6 images of fake test have no row \("test4", "test5"\)'):
        write(tmp_path, ROWS[:4], [*split().ids[:4]]).images(split(), "joint")
    with pytest.raises(DataError, match='its own ids are like "0", "1", "2", …'):
        write(tmp_path / "b", ids=[*"012345"]).images(split(), "joint")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logit_scale: 0", "logit_scale"),
        ("logit_scale: .nan", "logit_scale"),
        ("logit_scale: 1e400", "logit_scale"),
        ("order: mine", "order"),
        ("titel: x", 'did you mean "title"'),
        ("[1]", "expected a mapping"),
        ("a: &a [*a]", "stands inside of what it names"),
        ("title: !!python/name:os.system x", "embeddings.yaml"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path)
    (tmp_path / "embeddings.yaml").write_text(text)
    with pytest.raises(CardError) as caught:
        Embeddings(tmp_path)
    assert message in str(caught.value)
    assert "embeddings.yaml" in str(caught.value)


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(ClipbenchError, match="no folder of embeddings"):
            Embeddings(tmp_path / name)
