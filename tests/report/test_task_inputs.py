"""What tasks ask a model for: what their protocols then truly read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small
from measuring import FP32

from clipbench.catalog import Catalog
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import Features
from clipbench.evaluation import Options, evaluate
from clipbench.report.task_inputs import asked

one_thread = small.one_thread
TASKS = ("digits-zs", "digits-lp@knn", "digits-scenes-ret", "digits-scenes-zs")


@pytest.mark.parametrize("task", TASKS)
def test_what_is_listed_is_what_a_protocol_reads(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    texts = ModelEncoder.texts

    def noted(self: ModelEncoder, wanted: list[str], space: str = "joint") -> Features:
        read.update(wanted)
        return texts(self, wanted, space)

    monkeypatch.setattr(ModelEncoder, "texts", noted)
    catalog = Catalog()
    tasks = catalog.tasks([task])
    (result,) = evaluate([catalog.model("digits-clip-lite")], tasks, Options(FP32, progress=False))
    assert result.record is not None
    found = asked(tasks, DataPaths({}, ()))
    assert set(found.texts) == read
    assert len(found.texts) == len(read)
    of = {name.partition("/")[2] for name in found.ids}
    assert of == {name.removeprefix("split:") for name in result.record.fingerprints if "split:" in name}


def test_lists_of_several_tasks_are_one(tmp_path: Path) -> None:
    tasks = Catalog().tasks([*TASKS, "digits-scenes-ground"])
    found = asked(tasks, DataPaths({}, ()))
    assert found.heat == ["digits-scenes-ground"]
    assert {name: len(ids) for name, ids in found.ids.items()} == {
        "digits/test": 360,
        "digits/train": 1437,
        "digits-scenes/test": 500,
    }
    files = found.files()
    assert set(files) == {*(f"{name}.ids.json" for name in found.ids), "texts.json"}
    assert json.loads(files["texts.json"]) == found.texts
    assert len(found.texts) == len(set(found.texts))
