"""Studies: cells that differ in one thing, a rule for claims, and going on where one stopped."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import flip
from small import one_thread  # noqa: F401 - a fixture

from clipbench import cli
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, ClipbenchError, Stopped, StorageError
from clipbench.evaluation import Options
from clipbench.models import families
from clipbench.pretrain.study import plan, training
from clipbench.pretrain.study.plan import RETRIEVAL, Cell, ClassRetrieval, Measured, Study
from clipbench.pretrain.study.scores import class_retrieval, finished
from clipbench.report import studies as report

OPTIONS = Options(Runtime("cpu", "fp32"), DataPaths({}, ()), progress=False)
NAME = "data-efficiency"
MADE_BY: dict[str, str | bool | None] = {"device": "a card", "torch": "2.0", "commit": "abc", "dirty": True}


def small(**changes: Any) -> Study:
    """The quick form with two objectives and few steps."""
    value = plan.read(NAME, "quick").canonical()
    value["objectives"] = {name: value["objectives"][name] for name in ("clip", "clip-lite")}
    return Study.model_validate(value | {"images": 64} | changes)


@pytest.mark.parametrize("form", ["cpu", "gpu", "quick"])
def test_every_form_of_a_shipped_study_is_whole(form: plan.Form) -> None:
    for name in plan.names():
        study = plan.read(name, form)
        for cell in study.cells():
            recipe = study.recipe_of(cell)
            families.config_model("dual").model_validate(recipe.model.config)
            assert recipe.schedule.steps * cell.batch_size <= study.images
        Catalog().tasks([measure.task for measure in study.measures.values()])


def test_cells_differ_in_objective_batch_and_seed_alone() -> None:
    study = plan.read(NAME, "cpu")
    cells = study.cells()
    assert len(cells) == len(set(cells)) == 3 * (len(study.objectives) + 2 * 5)
    assert Cell("clip-lite", 1024, 2) in cells[:30]  # a claim needs it
    assert Cell("clip", 64, 0) in cells[30:]
    usual, other = (study.recipe_of(Cell(name, 256, 1)).canonical() for name in ("clip", "siglip"))
    assert {key for key in usual if usual[key] != other[key]} == {"title", "objective"}
    large = study.recipe_of(Cell("clip", 1024, 1)).canonical()
    assert {key for key in usual if usual[key] != large[key]} == {"title", "optim", "schedule"}
    assert large["optim"]["lr"] == pytest.approx(2 * usual["optim"]["lr"])
    assert large["schedule"]["steps"] == usual["schedule"]["steps"] // 4


def test_a_study_leaves_its_page_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = [claim.canonical() for claim in small().claims[:1]]
    study, catalog = small(swept=[], claims=claims), Catalog()
    rest = training.run(study, catalog, OPTIONS, tmp_path / "runs", device="cpu", progress=False)
    first = [next(rest)]
    before = (tmp_path / "runs" / first[0].cell.name / "model.safetensors").stat().st_mtime_ns
    whole = list(training.run(study, catalog, OPTIONS, tmp_path / "runs", device="cpu", progress=False))
    assert whole[:1] == first
    assert [one.cell for one in whole] == study.cells()
    assert (tmp_path / "runs" / first[0].cell.name / "model.safetensors").stat().st_mtime_ns == before

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was done again")

    monkeypatch.setattr("clipbench.pretrain.study.training.pretrain", fail)
    monkeypatch.setattr("clipbench.pretrain.study.scores._measure", fail)
    again = list(training.run(study, catalog, OPTIONS, tmp_path / "runs", device="cpu", progress=False))
    assert again == whole
    page = report.write(NAME, study, whole, "clipbench study …", tmp_path / "out").read_text()
    assert "| clip-lite | 32 |" in page
    assert f"Made on {OPTIONS.runtime.device_name} with torch {torch.__version__.partition('+')[0]}" in page
    assert (tmp_path / "out" / "study.png").read_bytes().startswith(b"\x89PNG")
    held = json.loads((tmp_path / "out" / "study.json").read_text())
    assert len(held["cells"]) == len(whole)
    monkeypatch.setattr("clipbench.pretrain.study.scores.DEPTHS", (1,))
    with pytest.raises(AssertionError, match="done again"):  # another depth of recall: measured anew
        next(training.run(study, catalog, OPTIONS, tmp_path / "runs", device="cpu", progress=False))


def test_jobs_side_by_side_measure_what_one_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = small(swept=[], claims=[], seeds=[0, 1])
    monkeypatch.setattr("clipbench.pretrain.study.plan.read", lambda *_: study)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("clipbench.pretrain.study.training.cores", lambda: 2)

    def run(name: str, *more: str) -> list[dict[str, Any]]:
        folders = ["--out", str(tmp_path / name), "--runs", str(tmp_path / name / "runs")]
        monkeypatch.setattr("sys.argv", ["clipbench", "study", NAME, "--quick", "--quiet", *folders, *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        done = re.findall(r"^\d+/\d+ (\S+):", capsys.readouterr().err, re.MULTILINE)
        assert sorted(done) == sorted(cell.name for cell in study.cells())
        page = tmp_path / name / f"{NAME}-quick"
        assert (page / "README.md").is_file()
        cells: list[dict[str, Any]] = json.loads((page / "study.json").read_text())["cells"]
        return cells

    torch.set_num_threads(1)
    assert run("together", "--jobs", "2") == run("alone")


def test_the_page_so_far_leaves_claims_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = [claim.canonical() for claim in small().claims[:1]]
    study = small(swept=[], claims=claims)
    monkeypatch.setattr("clipbench.pretrain.study.plan.read", lambda *_: study)
    folders = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    command = ["clipbench", "study", NAME, "--quick", "--so-far", *folders]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no run of the study is finished" in capsys.readouterr().err
    runs = tmp_path / "runs" / f"{NAME}-quick"
    rest = training.run(study, Catalog(), OPTIONS, runs, device="cpu", progress=False)
    first = [next(rest) for _ in range(3)]
    assert finished(study, Catalog(), runs) == first
    kept = runs / first[0].cell.name / "scores.json"
    content = kept.read_bytes()
    flip(kept, 8 * 30)
    capsys.readouterr()
    assert finished(study, Catalog(), runs) == first[1:]
    assert f"{kept} is damaged" in capsys.readouterr().err
    assert (
        next(training.run(study, Catalog(), OPTIONS, runs, device="cpu", progress=False)).scores
        == first[0].scores
    )
    kept.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    page = (tmp_path / "out" / f"{NAME}-quick" / "README.md").read_text()
    assert "**3 of 4 runs are finished.**" in page
    assert "| **open** |" in page
    assert "| clip-lite | 32 (1 of 2 seeds) |" in page
    held = json.loads((tmp_path / "out" / f"{NAME}-quick" / "study.json").read_text())
    assert [len(claim["values"]) for claim in held["claims"]] == [1]
    assert held["claims"][0]["ci95"] is None
    other = study.model_copy(update={"images": 96})
    with pytest.raises(StorageError, match="a run of another recipe"):
        finished(other, Catalog(), runs)
    with pytest.raises(StorageError, match="a run of another recipe"):
        next(training.run(other, Catalog(), OPTIONS, runs, device="cpu", progress=False))


def test_a_job_that_fails_ends_the_study_and_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = small(swept=[], claims=[])
    broken = study.cells()[1]
    (tmp_path / broken.name).mkdir(parents=True)
    (tmp_path / broken.name / "recipe.yaml").write_text("title: another run\n")
    with pytest.raises(ClipbenchError, match="a run failed"):
        list(training.run(study, Catalog(), OPTIONS, tmp_path, device="cpu", progress=False, jobs=2))
    assert f"{broken.name}: {tmp_path / broken.name}" in capfd.readouterr().err


def test_a_signal_stops_all_jobs_which_then_go_on(tmp_path: Path) -> None:
    study = small(swept=[], claims=[], images=20_000)
    rest = training.run(study, Catalog(), OPTIONS, tmp_path, device="cpu", progress=False, jobs=2)

    def stop() -> None:
        while len(list(tmp_path.glob("*/metrics.jsonl"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped):
        list(rest)
    thread.join()
    assert len(list(tmp_path.glob("*/checkpoint-*.pt"))) == 2
    assert not list(tmp_path.glob("*/card.yaml"))


def scored(study: Study, scores: dict[str, list[float]]) -> list[Measured]:
    """Every measure of a cell is the number of its name, of each seed in turn; 0 of the others."""
    found = []
    for cell in study.cells():
        usual = (
            cell.objective if cell.batch_size == study.batch_size else f"{cell.objective}@{cell.batch_size}"
        )
        value = scores.get(usual, [0.0] * len(study.seeds))[study.seeds.index(cell.seed)]
        names = (*study.measures, RETRIEVAL)
        found.append(Measured(cell, dict.fromkeys(names, value), dict.fromkeys(names, 0.1), MADE_BY))
    return found


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.50, 0.51, 0.52], "held"),
        ([0.30, 0.29, 0.28], "reversed"),
        ([0.41, 0.39, 0.45], "not told apart"),
        ([0.4, 0.4, 0.4], "not told apart"),
    ],
)
def test_a_claim_holds_where_the_interval_over_seeds_lies_above_nothing(
    values: list[float], verdict: str
) -> None:
    study = small(seeds=[0, 1, 2])
    judged = report.verdicts_of(study, scored(study, {"clip-lite": values, "clip": [0.40, 0.40, 0.40]}))[0]
    differences = [value - 0.4 for value in values]
    assert judged.values == pytest.approx(differences)
    # Student's t with two degrees of freedom, from a table
    half = 4.3027 * np.std(differences, ddof=1) / math.sqrt(3)
    assert judged.ci95 == pytest.approx((np.mean(differences) - half, np.mean(differences) + half), abs=1e-5)
    assert judged.says == verdict


def test_a_difference_of_differences() -> None:
    study = small()
    scores = {"clip-lite@16": [0.3, 0.4], "clip-lite": [0.5, 0.5], "clip@16": [0.1, 0.1], "clip": [0.6, 0.7]}
    judged = report.verdicts_of(study, scored(study, scores))[1]
    assert judged.values == pytest.approx((0.3 - 0.5 - 0.1 + 0.6, 0.4 - 0.5 - 0.1 + 0.7))


def test_retrieval_by_class_is_what_counting_says(tmp_path: Path) -> None:
    study, catalog = small(), Catalog()
    next(training.run(study, catalog, OPTIONS, tmp_path, device="cpu", progress=False))
    model = catalog.model(str(tmp_path / study.cells()[0].name))
    encoder = ModelEncoder(model, OPTIONS.runtime, progress=False)
    value, chance = class_retrieval(study.retrieval, catalog, OPTIONS, encoder)
    split = digits("test", tuple("0123456789"))
    card = catalog.dataset("digits").card
    template = card.templates["simple"]
    assert isinstance(template, tuple)
    texts = np.asarray(encoder.texts([template[0].replace("{c}", name) for name in card.classes]))
    images = encoder.images(split)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(split.labels == c)) for c in range(10)]
    recalls = []
    for number in range(min(map(len, drawn))):
        scores = np.asarray(images[[rows[number] for rows in drawn]], np.float64) @ texts.T
        for table in (scores, scores.T):
            rank = (table > np.diag(table)[:, None]).sum(axis=1)
            recalls += [float((rank < 1).mean()), float((rank < 5).mean())]
    assert value == pytest.approx(np.mean(recalls), abs=2e-3)  # but for ties
    assert chance == pytest.approx(0.3)
    wanted = ClassRetrieval(dataset="digits-scenes", split="test", templates="default")
    with pytest.raises(
        CardError, match="digits-scenes is a set of kind multi-label; retrieval by class needs"
    ):
        class_retrieval(wanted, catalog, OPTIONS, encoder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swept": ["clip-light"]}, 'unknown objective "clip-light"; did you mean "clip-lite"'),
        ({"seeds": [0]}, "at least 2 items"),
        (
            {
                "claims": [
                    {"says": "a", "source": "b", "measure": "probe", "contrast": {"clip": 1, "clip@8": -1}}
                ]
            },
            'unknown cell "clip@8"; did you mean "clip"',
        ),
        (
            {
                "claims": [
                    {"says": "a", "source": "b", "measure": "prob", "contrast": {"clip": 1, "clip@16": -1}}
                ]
            },
            'unknown measure "prob"; did you mean "probe"',
        ),
    ],
)
def test_studies_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_study_that_is_not_there() -> None:
    with pytest.raises(CardError, match='unknown study "data-efficency"; did you mean "data-efficiency"'):
        plan.read("data-efficency", "cpu")
