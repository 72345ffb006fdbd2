"""mteb's image tasks and clipbench give the same numbers of the same models; runs where mteb is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from clipbench.report import mteb_results
from parity import with_mteb

needs_mteb = pytest.mark.skipif(
    find_spec("mteb") is None,
    reason="mteb is not installed here; make mteb runs this in an environment of its own",
)


@needs_mteb
@pytest.mark.filterwarnings("ignore")
def test_the_shipped_model_has_the_same_numbers_there(tmp_path: Path) -> None:
    found = with_mteb.compare(tmp_path / "none", 60, tmp_path / "results", tmp_path)
    assert {one.task for one in found} == {"digits-zs", "digits-scenes-ret"}
    assert len(found) == 8
    assert [one for one in found if not one.equal] == []
    written = (tmp_path / "results").rglob("ClipbenchDigits*.json")
    assert len(list(written)) == 3


@needs_mteb
@pytest.mark.filterwarnings("ignore")
@pytest.mark.shared
def test_a_declip_has_the_same_numbers_there(shared_data: Path, tmp_path: Path) -> None:
    found = with_mteb.compare(shared_data, 40, tmp_path / "results", tmp_path)
    assert [one for one in found if not one.equal] == []
    assert {one.task for one in found} >= {"cifar10-zs@simple", "flickr8k-1000-ret"}


@needs_mteb
@pytest.mark.filterwarnings("ignore")
def test_rows_are_those_of_its_own_wrapper(tmp_path: Path) -> None:
    assert with_mteb.wrapper_difference(tmp_path) < 1e-6


@needs_mteb
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_its_image_tasks_runs(tmp_path: Path) -> None:
    assert with_mteb.kinds_that_run(tmp_path) >= {
        "Any2AnyRetrieval", "Compositionality", "ImageClassification", "ImageClustering", "MultilabelClassification",
        "VisionCentricQA", "VisualSTS(eng)", "ZeroShotClassification",
    }  # fmt: skip


@needs_mteb
@pytest.mark.filterwarnings("ignore")
def test_every_task_of_the_table_is_one_of_its_own() -> None:
    import mteb

    table = mteb_results.tasks()
    names = {task.metadata.name for task in mteb.get_tasks(tasks=[*table.same, *table.other])}
    assert names == {*table.same, *table.other}


def test_recalls_may_differ_by_rounding_and_accuracies_not_at_all() -> None:
    def equal(metric: str, theirs: float) -> bool:
        return with_mteb.Compared("m", "t", metric, 2 / 3, theirs).equal

    assert equal("image_retrieval_recall@1", 0.66667)
    assert not equal("image_retrieval_recall@1", 0.66668)
    assert not equal("acc1", 0.66667)
    lines = with_mteb.shown([with_mteb.Compared("m", "t", "acc1", 0.5, 0.25)]).splitlines()
    assert lines[-1].split() == ["m", "t", "acc1", "0.50000", "0.25000", "≠"]
