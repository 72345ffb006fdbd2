"""What a model is, remembered: no weights are read for it again, and none that have changed are missed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

from clipbench.catalog import Catalog
from clipbench.errors import ClipbenchError
from clipbench.models import families, remembered
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.records import store
from clipbench.utils.cache import read_checked, write_checked

one_thread = small.one_thread
#: what a run whose features are all cached has no use for
UNUSED = (
    "torch",
    "open_clip",
    "transformers",
    "torchvision",
    "timm",
    "safetensors",
    "sklearn",
    "scipy",
    "pandas",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Whose card does not state what its weights are."""
    folder = small.write_run(tmp_path / "run")
    card = json.loads((folder / "card.yaml").read_text())
    del card["weights"]["sha256"]
    (folder / "card.yaml").write_text(json.dumps(card))
    return folder


def of(run: Path) -> ModelEntry:
    return Catalog().model(str(run))


def weights(run: Path) -> Path:
    (path,) = run.rglob("*.safetensors")
    return path


class Loads:
    """How often a model was loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._load = 0, families.load
        monkeypatch.setattr(families, "load", self)

    def __call__(self, model: ModelEntry) -> Adapter:
        self.count += 1
        return self._load(model)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


def test_a_model_that_was_loaded_says_what_it_is_without_its_weights(run: Path, loads: Loads) -> None:
    first = remembered.load(of(run))
    assert first.text_fingerprint == ""
    again = remembered.load(of(run))
    assert loads.count == 1
    real = families.family("dual").load(of(run))
    for name in ("weights_sha256", "logit_scale", "context_length", "image_spaces", "text_spaces", "compared",
                 "token_width", "left_out", "text_fingerprint", "card"):  # fmt: skip
        assert getattr(first, name) == getattr(again, name) == getattr(real, name), name
    again.require_space("joint")
    assert loads.count == 1
    again.text_tower()
    again.image_tower("backbone")
    assert loads.count == 2


def test_other_weights_are_another_model(run: Path, loads: Loads) -> None:
    first = remembered.load(of(run))
    other = small.write_run(run.parent / "other", seed=1)
    shutil.copyfile(weights(other), weights(run))
    assert remembered.load(of(run)).weights_sha256 != first.weights_sha256
    assert loads.count == 2


def test_another_card_is_another_model(run: Path, loads: Loads) -> None:
    remembered.load(of(run))
    card = run / "card.yaml"
    card.write_text(card.read_text().replace("Small 0", "Another"))
    remembered.load(of(run))
    assert loads.count == 2


def test_weights_that_are_gone_are_missed(run: Path) -> None:
    remembered.load(of(run))
    weights(run).unlink()
    with pytest.raises(ClipbenchError, match="no checkpoint"):
        remembered.load(of(run))


def place(cache: Path) -> Path:
    (path,) = (cache / "models-1").glob("*.json")
    return path


def test_what_is_damaged_is_made_anew(
    run: Path, loads: Loads, isolated_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remembered.load(of(run))
    data = bytearray(place(isolated_cache).read_bytes())
    data[20] ^= 1
    place(isolated_cache).write_bytes(data)
    remembered.load(of(run))
    assert loads.count == 2
    assert "damaged" in capsys.readouterr().err
    remembered.load(of(run))
    assert loads.count == 2


def test_what_was_remembered_wrongly_is_noticed_where_towers_are_loaded(
    run: Path, isolated_cache: Path
) -> None:
    remembered.load(of(run))
    data = read_checked(place(isolated_cache), remembered._KIND)
    assert data is not None
    held = json.loads(data)
    held["facts"]["logit_scale"] += 1
    write_checked(place(isolated_cache), json.dumps(held).encode(), remembered._KIND)
    wrong = remembered.load(of(run))
    with pytest.raises(ClipbenchError, match="not what was remembered"):
        wrong.image_tower("joint")
    remembered.load(of(run)).image_tower("joint")


def test_nothing_is_remembered_of_a_model_whose_files_are_not_known(
    run: Path, loads: Loads, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipbench.models.towers.text import ByteTransformer

    monkeypatch.setattr(ByteTransformer, "files", None)
    remembered.load(of(run))
    remembered.load(of(run))
    assert loads.count == 2
    assert not (isolated_cache / "models-1").exists()


def test_a_folder_is_another_one_once_a_file_of_it_changes_or_comes(tmp_path: Path) -> None:
    """As a tokenizer's folder."""
    (tmp_path / "a").write_text("a")
    files = [tmp_path, tmp_path / "a"]
    before = remembered._hashed(files)
    assert remembered._hashed(files) == before
    (tmp_path / "b").write_text("b")
    assert remembered._hashed(files) != before
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("b")
    assert remembered._hashed(files) != before


@pytest.mark.parametrize("tasks", ["digits-zs", "digits-scenes-zs,digits-scenes-ret"])
def test_a_run_whose_features_are_cached_imports_nothing_that_encodes(tasks: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from clipbench.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print('imported:', *(name for name in {UNUSED} if name in sys.modules))\n"
    )
    command = [sys.executable, "-c", code, "eval", "--model", "digits-clip-lite", "--task", tasks,
               "--results", str(tmp_path), "--device", "cpu"]  # fmt: skip
    began = time.monotonic()
    run = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "check": True}
    first = subprocess.run(command, **run).stdout  # type: ignore[call-overload]
    took = time.monotonic() - began
    assert "torch" in first.splitlines()[-1]
    totals = [stored.record.timing.total_s for stored in store.read_all(tmp_path)]
    assert (
        took / 2 < sum(totals) < took + 0.05
    )  # all but what is printed at last, and the end of the interpreter
    again = subprocess.run(command, **run).stdout  # type: ignore[call-overload]
    assert again.splitlines()[-1].strip() == "imported:"
