"""`--model embeddings:<folder>`: a model's own features, given as arrays, score exactly as the model does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import commandline
import embedded
import numpy as np
import pytest
import small
from commandline import Run, mended
from measuring import measure, record_of

from clipbench import api
from clipbench.catalog import Catalog
from clipbench.data.paths import DataPaths
from clipbench.errors import CardError, WeightsError
from clipbench.models import families
from clipbench.models.adapter import ModelEntry
from clipbench.records.record import Record
from clipbench.report.task_inputs import asked

run, one_thread = commandline.run, small.one_thread
TASKS = ("digits-lp", "digits-zs", "digits-lp@knn", "digits-scenes-ret", "digits-scenes-zs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    embedded.of_model(folder, TASKS)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def kinds(record: Record) -> set[str]:
    return {note.kind for note in record.notes}


def test_given_features_score_as_their_model(tmp_path: Path) -> None:
    """Every score, every class and every sample, to the last bit; also of a sample, under another seed."""
    embedded.of_model(tmp_path, TASKS)  # what is in the cache now: encoded anew, last digits might be others
    for tasks, limit, seed in ((TASKS[1:], None, 0), (TASKS[:3], 200, 3)):
        results = measure([embedded.MODEL, f"embeddings:{tmp_path}"], tasks, limit=limit, seed=seed)
        for own, given in zip(results[::2], results[1::2], strict=True):
            one, other = record_of(own), record_of(given)
            assert (one.task, one.scores, one.per_class) == (other.task, other.scores, other.per_class)
            assert other.evidence == one.evidence
            assert own.samples.keys() == given.samples.keys()
            for column, values in own.samples.items():
                assert all(np.array_equal(a, b) for a, b in zip(values, given.samples[column], strict=True))
            assert kinds(other) - kinds(one) == {"images-not-seen"}
            assert one.timing.images_encoded == one.timing.texts_encoded == 0


def test_a_record_says_where_the_rows_are_from(folder: Path) -> None:
    zs, lp = (record_of(r) for r in measure([f"embeddings:{folder}"], ["digits-zs", "digits-lp@knn"]))
    assert zs.precision == "as given"
    assert zs.encoder["devices"] == ["none"]
    plans = zs.encoder["plans"]
    assert isinstance(plans, dict)
    assert set(plans) == {"test:joint", "text:joint"}
    assert str(plans["test:joint"]).endswith("float32 [360, 128]")
    assert "digits/test.npy (sha256 " in str(plans["test:joint"])
    assert (zs.timing.images_encoded, zs.timing.texts_encoded, zs.timing.images_per_s) == (0, 0, None)
    assert zs.cards.model["family"] == "embeddings"
    assert {"preprocess", "weights"}.isdisjoint(zs.cards.model)  # of which nothing is known
    assert zs.fingerprints["weights"] != lp.fingerprints["weights"]  # of the arrays that were read


def test_the_fingerprint_is_of_the_arrays_that_are_used(copy: Path) -> None:
    def weights() -> str:
        (result,) = measure([f"embeddings:{copy}"], ["digits-zs"])
        return record_of(result).fingerprints["weights"]

    before = weights()
    shutil.rmtree(copy / "digits-scenes")  # which it does not read
    assert weights() == before
    np.save(copy / "digits/test.npy", np.load(copy / "digits/test.npy")[::-1])
    assert weights() != before


def test_without_a_logit_scale_the_record_says_what_was_assumed(folder: Path, copy: Path) -> None:
    (copy / "embeddings.yaml").unlink()
    zs, ret = (record_of(r) for r in measure([f"embeddings:{copy}"], ["digits-zs", "digits-scenes-ret"]))
    assert any("100 was assumed" in str(note) for note in zs.notes)
    assert "logit-scale-assumed" not in kinds(ret)  # nothing there hangs on it
    (given,) = measure([f"embeddings:{folder}"], ["digits-zs"])
    known = record_of(given)
    assert known.scores["acc1"] == zs.scores["acc1"]
    assert known.scores["ece"] != zs.scores["ece"]
    assert zs.cards.model["title"] == "copy"


def test_other_types_and_forms_of_the_same_rows(folder: Path, tmp_path: Path) -> None:
    rows, ids = (
        np.load(folder / "digits/test.npy"),
        (folder / "digits/test.ids.txt").read_text().split("\n")[:-1],
    )
    order = np.random.default_rng(0).permutation(len(rows))
    embedded.parquet(
        tmp_path / "digits/test.parquet", rows[order].astype(np.float16), [ids[i] for i in order]
    )
    texts = json.loads((folder / "texts.json").read_text())
    embedded.parquet(
        tmp_path / "texts.parquet", np.load(folder / "texts.npy").astype(np.float64) * 7, texts, "text"
    )
    one, other = (record_of(r) for r in measure([embedded.MODEL, f"embeddings:{tmp_path}"], ["digits-zs"]))
    assert abs(one.scores["acc1"].value - other.scores["acc1"].value) < 0.005
    assert "float16 [360, 128]" in str(other.encoder)


def test_what_embeddings_cannot_do_is_not_applicable(folder: Path, copy: Path, tmp_path: Path) -> None:
    (ground,) = measure([f"embeddings:{folder}"], ["digits-scenes-ground"])
    assert "heat maps need the model itself" in str(ground.reason)
    for name in ("texts.npy", "texts.json"):
        (copy / name).unlink()
    results = measure([f"embeddings:{copy}"], ["digits-zs", "digits-lp@knn"])
    assert "no embeddings of texts" in str(results[0].reason)
    assert results[1].record is not None
    cards = small.write_task(
        tmp_path / "cards",
        "crops",
        source={"builtin": "digits"},
        splits={"train": {"name": "train"}, "test": {"name": "test"}},
        classes=[str(digit) for digit in range(10)],
        protocols={"lp": {"classifier": {"kind": "sgd-virtex", "crops": True, "epochs": 1}}},
    )
    shutil.copytree(copy / "backbone/digits", copy / "backbone/crops")
    (crops,) = measure([f"embeddings:{copy}"], ["crops-lp"], cards=cards)
    assert "new crops of images need the model itself" in str(crops.reason)


def test_what_is_wrong_is_an_error_of_that_task_and_that_folder_alone(copy: Path) -> None:
    (copy / "digits/test.ids.txt").write_text("\n".join(map(str, range(360))))
    results = measure([f"embeddings:{copy}", embedded.MODEL], ["digits-zs", "digits-scenes-zs"])
    assert [r.error is not None for r in results] == [True, False, False, False]
    assert all(r.record is not None for r in results[1:])
    assert "360 of the 360 images of digits test have no row" in str(results[0].error)


def test_a_folder_is_no_model_for_programs(folder: Path) -> None:
    with pytest.raises(CardError, match="encodes nothing"):
        api.load_model(f"embeddings:{folder}")
    entry = Catalog().model(f"embeddings:{folder}")
    with pytest.raises(WeightsError, match="has no weights"):
        families.fetch(entry)
    digits = Catalog().model(embedded.MODEL)
    card = digits.card.model_copy(update={"family": "embeddings", "config": {"folder": str(folder)}})
    with pytest.raises(CardError, match="has no cards"):
        families.load(ModelEntry("mine", card, folder))


def test_a_part_of_a_split_has_rows_of_its_own(tmp_path: Path) -> None:
    cards = small.write_task(
        tmp_path / "cards",
        splits={"whole": {"name": "test"}, "test": {"name": "test", "part": {"seed": 1, "end": 0.5}}},
    )
    data = small.write_images(tmp_path / "data", 60)
    paths = DataPaths({"animals": data}, ())
    (task,) = Catalog([cards]).tasks(["animals-zs"])
    ids = asked([task], paths).ids["animals/test"]
    assert 0 < len(ids) < 60
    texts = asked([task], paths).texts
    rng = np.random.default_rng(0)
    embedded.npy(tmp_path / "mine/animals/test.npy", rng.normal(size=(len(ids), 4)), ids)
    embedded.parquet(tmp_path / "mine/texts.parquet", rng.normal(size=(len(texts), 4)), texts, "text")
    for limit in (None, 10):
        (result,) = measure(
            [f"embeddings:{tmp_path / 'mine'}"], ["animals-zs"], cards=cards, data=data, limit=limit
        )
        assert record_of(result).scores["acc1"].n == (limit or len(ids))


def test_a_folder_must_be_named() -> None:
    with pytest.raises(CardError, match="embeddings: names no folder"):
        Catalog().model("embeddings:")


def test_what_a_folder_says_of_itself_is_on_its_card(copy: Path) -> None:
    said: dict[str, Any] = {
        "title": "Mine",
        "licence": "MIT",
        "trained_on": [{"dataset": "digits", "split": "test"}],
        "notes": "Of my own.",
    }
    (copy / "embeddings.yaml").write_text(json.dumps(said))
    (result,) = measure([f"embeddings:{copy}"], ["digits-zs"])
    record = record_of(result)
    assert record.cards.model["title"] == "Mine"
    assert str(record.cards.model["notes"]).endswith("nothing is encoded. Of my own.")
    assert [seen.images for seen in record.seen] == [360]


# ------------------------------------------------------------------------ commands


def test_the_commands(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed what is needed, evaluated, shown, checked, compared and gated."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(folder)
    done = run(
        "data", "inputs", "digits-zs", "digits-scenes-ret,digits-scenes-ground", "--out", tmp_path / "d"
    )
    assert done.code == 0, done
    assert "digits-scenes-ground is left out: heat maps need the model itself" in done.err
    assert "texts.json: 510 texts" in done.said
    ids = json.loads((tmp_path / "d/digits/test.ids.json").read_text())
    assert ids == (folder / "digits/test.ids.txt").read_text().splitlines()
    assert set(json.loads((tmp_path / "d/texts.json").read_text())) <= set(
        json.loads((folder / "texts.json").read_text())
    )
    lacking = ("eval", "--model", "embeddings:d", "--task", "digits-zs", "--results", tmp_path / "r")
    done = run(*lacking)
    assert done.code == 2
    assert "d holds no rows of images" in done.err
    assert "clipbench data inputs TASK --out DIR" in done.err

    asked = ("--task", "digits-zs", "--results", tmp_path / "r")
    done = run("eval", "--model", f"embeddings:mine,{embedded.MODEL}", *asked)
    assert done.code == 0, done
    assert "nothing is encoded" in done.err
    assert "nothing encoded, as given)" in done.said
    assert "360 images were not looked at" in done.said
    shown = run("show", "embeddings:mine")
    assert shown.code == 0
    assert "preprocess" not in shown.out
    assert "title: Given" in shown.out
    assert run("check", "--results", tmp_path / "r").code == 0
    compared = run("compare", "embeddings:mine", embedded.MODEL, "--results", tmp_path / "r")
    assert "no difference" in compared.said
    assert run("gate", "--baseline", tmp_path / "r", "--candidate", tmp_path / "r").code in (0, 1)
    mended(run("eval", "--model", "embeddings:nowhere", *asked), "no folder of embeddings nowhere")


def test_no_torch_where_nothing_is_fitted(folder: Path, tmp_path: Path) -> None:
    tasks = "digits-zs,digits-scenes-ret,digits-scenes-zs"
    code = (
        "import sys; from clipbench import cli; import contextlib\n"
        "with contextlib.suppress(SystemExit): cli.main()\n"
        "print([name for name in ('torch', 'open_clip', 'transformers', 'pandas') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "eval", "--model", f"embeddings:{folder}", "--task", tasks]
    done = subprocess.run(
        [*command, "--results", tmp_path, "--quiet"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert len(list(tmp_path.rglob("*.json"))) == 3
