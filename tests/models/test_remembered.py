"""What a model is, remembered: no weights are read for it again, and none that have changed are missed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import open_clip.factory
import pytest
import small
import torch

from clipbench.catalog import Catalog
from clipbench.errors import ClipbenchError, WeightsError
from clipbench.models import clip, families, remembered
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.towers.open_clip import random_model
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
#: modules that such a run imports at most, those of Python itself among them: a tenth more than when it was measured
MOST_MODULES = 700


class Imported(NamedTuple):
    """Of `UNUSED`, what a command imported; how many modules in all; and what it said on stderr."""

    names: list[str]
    modules: int
    said: str


def imported(*arguments: str) -> Imported:
    """`clipbench eval <arguments>` on a CPU, in a process of its own that knows the architecture `tiny`."""
    code = (
        f"{TOLD}\n"
        "import json, sys\n"
        "from clipbench.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print(json.dumps([[name for name in {UNUSED} if name in sys.modules], len(sys.modules)]))\n"
    )
    command = [sys.executable, "-c", code, "eval", *arguments, "--device", "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, modules = json.loads(done.stdout.splitlines()[-1])
    return Imported(names, modules, done.stderr)


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
    arguments = ["--model", "digits-clip-lite", "--task", tasks, "--results", str(tmp_path)]
    began = time.monotonic()
    first = imported(*arguments)
    took = time.monotonic() - began
    assert "torch" in first.names
    totals = [stored.record.timing.total_s for stored in store.read_all(tmp_path)]
    assert (
        took / 2 < sum(totals) < took + 0.05
    )  # all but what is printed at last, and the end of the interpreter
    began = time.monotonic()
    again = imported(*arguments, "--results", str(tmp_path / "again"))
    took = time.monotonic() - began
    assert again.names == []
    assert again.modules < MOST_MODULES
    totals = [stored.record.timing.total_s for stored in store.read_all(tmp_path / "again")]
    assert 0.8 * took < sum(totals) < took + 0.05  # 0.95 of a run of 0.7 s, whose interpreter ends after that


# --------------------------------------------------------------- cards that are made

#: a small architecture of open_clip's form, with a tag that says how images are prepared
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "width": 64, "patch_size": 8, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TOLD = f"""
from clipbench.models.weights import library
plain = library.library
def told():
    found = plain()
    found.factory._MODEL_CONFIGS["tiny"] = {TINY}
    found.pretrained._PRETRAINED["tiny"] = {{"some": found.pretrained._pcfg()}}
    return found
library.library = told
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"some": open_clip.pretrained._pcfg()})


def save(path: Path, more: dict[str, Any] | None = None, arch: str = "tiny") -> Path:
    """A checkpoint that is no one's own, an hour old."""
    torch.manual_seed(0)
    torch.save(random_model(arch).state_dict() | (more or {}), path)
    os.utime(path, (time.time() - 3600,) * 2)
    return path


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", ["open_clip:tiny@", "file", "run", "hub", "folder"])
def test_cached_features_of_a_model_named_by_its_files_need_no_library(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.pt")
    name = {
        "file": str(path),
        "hub": "hf-hub:some/one",
        "folder": f"local-dir:{tmp_path / 'hub/models--some--one/snapshots/0'}",
        "run": str(tmp_path / "run"),
    }.get(kind, f"{kind}{path}")
    if kind == "run":
        small.write_run(tmp_path / "run")
    if kind in ("hub", "folder"):
        monkeypatch.setenv("HF_HUB_CACHE", str(in_hub_cache(tmp_path / "hub", path)))
    tasks = "digits-zs,digits-scenes-zs,digits-scenes-ret"
    arguments = [
        "--model",
        name,
        "--task",
        tasks,
        "--limit",
        "20",
        "--quiet",
        "--results",
        str(tmp_path / "results"),
    ]
    first = imported(*arguments)
    before = [stored.record for stored in store.read_all(tmp_path / "results")]
    again = imported(*arguments)
    after = [stored.record for stored in store.read_all(tmp_path / "results")]
    assert "torch" in first.names
    assert again.names == []
    assert again.modules < MOST_MODULES + (200 if kind == "hub" else 0)  # the hub's client, for its cache
    assert again.said == first.said
    assert ("as of all published tags of tiny (some)" in again.said) == (kind in ("open_clip:tiny@", "file"))
    assert len(after) == 3
    for one, other in zip(before, after, strict=True):
        assert (one.scores, one.fingerprints, one.cards) == (other.scores, other.fingerprints, other.cards)


def in_hub_cache(folder: Path, weights: Path) -> Path:
    """The hub client's cache, with `some/one` in open_clip's own form."""
    repo = folder / "models--some--one"
    files = repo / "snapshots" / "0"
    files.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0")
    told = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (files / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": told}))
    shutil.copy(weights, files / "open_clip_pytorch_model.bin")
    return folder


class Makes:
    """How often a card was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._detected, self._of_file = 0, families.detected, clip.of_file
        monkeypatch.setattr(families, "detected", self.detected)
        monkeypatch.setattr(clip, "of_file", self.of_file)

    def detected(self, name: str) -> ModelEntry:
        self.count += 1
        count = self.count
        found = self._detected(name)
        self.count = count
        return found

    def of_file(self, *given: Any) -> Any:
        self.count += 1
        return self._of_file(*given)


@pytest.fixture
def makes(monkeypatch: pytest.MonkeyPatch) -> Makes:
    return Makes(monkeypatch)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("prefix", ["", "open_clip:tiny@"])
def test_a_card_is_made_once_until_its_file_changes(
    prefix: str, tmp_path: Path, makes: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.pt")
    monkeypatch.chdir(tmp_path)
    first = Catalog().model(f"{prefix}a.pt") if prefix else Catalog().model("./a.pt")
    name = first.id
    assert Catalog().model(name) == first
    assert makes.count == 1
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the same size, and the time of before
    path.write_bytes(data)
    os.utime(path, (time.time() - 3600,) * 2)
    Catalog().model(name)
    assert makes.count == 2
    path.unlink()
    with pytest.raises(WeightsError, match=r"there is no file|no checkpoint"):
        Catalog().model(name)


@pytest.mark.usefixtures("tiny")
def test_a_name_that_leads_to_another_file_is_another_card(tmp_path: Path, makes: Makes) -> None:
    one, other = save(tmp_path / "one.pt"), save(tmp_path / "other.pt")
    link = tmp_path / "link.pt"
    link.symlink_to(one)
    assert Catalog().model(f"open_clip:tiny@{link}").card.weights.file == str(one)
    link.unlink()
    link.symlink_to(other)
    assert Catalog().model(f"open_clip:tiny@{link}").card.weights.file == str(other)
    assert makes.count == 2


@pytest.mark.usefixtures("tiny")
def test_a_card_is_made_again_by_other_code_and_other_versions(
    tmp_path: Path, makes: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(save(tmp_path / "a.pt"))
    Catalog().model(path)
    with monkeypatch.context() as other:
        other.setattr(remembered, "version_of", lambda name: "2")
        Catalog().model(path)
        Catalog().model(path)
    assert makes.count == 2
    (tmp_path / "code.py").write_text("")
    code = remembered._code
    monkeypatch.setattr(remembered, "_code", lambda: [*code(), tmp_path / "code.py"])
    Catalog().model(path)
    assert makes.count == 3


@pytest.mark.usefixtures("tiny")
def test_what_was_said_while_a_card_was_made_is_said_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    torch.manual_seed(0)
    torch.save({"state_dict": random_model("tiny").state_dict(), "model_ema": {"a": torch.zeros(1)}}, path)
    Catalog().model(str(path))
    said = capsys.readouterr().err
    assert "state_dict is used; it holds model_ema too" in said
    Catalog().model(str(path))
    assert capsys.readouterr().err == said


def test_nothing_is_kept_of_a_card_that_cannot_be_made(tmp_path: Path, isolated_cache: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    for _ in range(2):
        with pytest.raises(ClipbenchError):
            Catalog().model(str(tmp_path / "a.pt"))
    assert not (isolated_cache / "models-1").exists()


def test_nothing_is_kept_of_a_name_whose_files_its_family_does_not_know(isolated_cache: Path) -> None:
    made = ModelEntry("x:y", Catalog().model("digits-clip-lite").card, Path.cwd())
    assert remembered._entry("x:y", lambda: None, lambda: made) == made
    assert not (isolated_cache / "models-1").exists()


@pytest.mark.usefixtures("tiny")
def test_a_file_that_changes_while_its_card_is_made_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    cards = []

    def make() -> ModelEntry:
        cards.append(families.detected(str(path)))
        path.write_bytes(path.read_bytes() + bytes([len(cards)]))
        return cards[-1]

    for _ in range(2):
        remembered._entry(str(path), lambda: (path,), make)
    assert len(cards) == 2
