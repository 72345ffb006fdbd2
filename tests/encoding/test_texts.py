"""Texts that another set of them has are not encoded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small

from clipbench.catalog import Catalog
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import FOLDER
from clipbench.encoding.runtime import Runtime
from clipbench.models.towers.adapters import DualAdapter

one_thread = small.one_thread
FP32 = Runtime("cpu", "fp32", workers=0)
FIRST = [f"a photo of a {name}" for name in ("cat", "dog", "cow", "hen", "pig")]
SECOND = ["a cow", *FIRST[1:4], "a very long text about a hen"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small.write_run(tmp_path / "run")


def encoder(run: Path, runtime: Runtime = FP32) -> ModelEncoder:
    return ModelEncoder(Catalog().model(str(run)), runtime, progress=False)


def no_tower(adapter: DualAdapter, space: str = "joint") -> None:
    raise AssertionError("no text is missing")


def test_texts_of_an_earlier_set_are_taken_from_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = encoder(run)
    first = np.asarray(one.texts(FIRST))
    assert one.counts.texts_encoded == 5
    other = encoder(run)
    second = np.asarray(other.texts(SECOND))
    assert other.counts.texts_encoded == 2
    np.testing.assert_array_equal(second[1:4], first[1:4])
    monkeypatch.setenv("CLIPBENCH_CACHE", str(run.parent / "alone"))
    alone = encoder(run)
    np.testing.assert_allclose(np.asarray(alone.texts(SECOND)), second, atol=1e-6)
    assert alone.counts.texts_encoded == 5


def test_no_tower_is_loaded_where_every_text_is_known(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.asarray(encoder(run).texts(FIRST))
    encoder(run).texts(SECOND)
    monkeypatch.setattr(DualAdapter, "text_tower", no_tower)
    both = encoder(run)
    texts = [SECOND[4], FIRST[0], SECOND[0], FIRST[4]]
    found = np.asarray(both.texts(texts))
    assert both.counts.texts_encoded == 0
    np.testing.assert_array_equal(found[[1, 3]], first[[0, 4]])
    np.testing.assert_array_equal(np.asarray(encoder(run).texts(texts)), found)


def test_another_model_and_another_precision_have_texts_of_their_own(run: Path) -> None:
    encoder(run).texts(FIRST)
    small.write_run(run, seed=1)
    other = encoder(run)
    other.texts(SECOND)
    assert other.counts.texts_encoded == 5
    lower = encoder(run, Runtime("cpu", "bf16", workers=0))
    lower.texts(FIRST)
    assert lower.counts.texts_encoded == 5


def test_rows_of_a_deterministic_run_hang_on_no_other_set(run: Path) -> None:
    fixed = Runtime("cpu", "fp32", workers=0, deterministic=True)
    encoder(run, fixed).texts(FIRST)
    again = encoder(run, fixed)
    again.texts(SECOND)
    assert again.counts.texts_encoded == 5


def test_a_damaged_list_is_named_and_does_no_harm(
    run: Path, isolated_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder(run).texts(FIRST)
    (path,) = (isolated_cache / FOLDER / "texts-1").rglob("*.json")
    path.write_bytes(path.read_bytes()[:-1])
    other = encoder(run)
    other.texts(SECOND)
    assert other.counts.texts_encoded == 5
    assert str(path) in capsys.readouterr().err
