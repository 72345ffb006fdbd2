"""Other programs' formats: what is written reads back, what is read is marked, loggers get what they take."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from event_files import events
from huggingface_hub import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from recorded import SAMPLES, make_record

from clipbench.catalog import Catalog
from clipbench.errors import ClipbenchError, DataError
from clipbench.metrics.intervals import Score
from clipbench.records import store
from clipbench.records.record import Record
from clipbench.report import export, table, trackers
from clipbench.report.export import Foreign
from clipbench.report.sections import sections

FIXTURE = Path(__file__).parents[1] / "fixtures" / "records" / "v2.json"


def _record(task: str, protocol: str, scores: dict[str, float], **changes: Any) -> Record:
    made = {name: Score(value, (value / 2, value), 100, None) for name, value in scores.items()}
    used = {"name": protocol, "version": 1, "params": {}}
    return make_record(task=task, protocol=used, scores=made, primary=next(iter(scores)), **changes)


CLIP = {
    "model": {"family": "clip", "config": {"arch": "ViT-B-32"}, "weights": {"open_clip": "openai"}},
    "task": {},
}


# -------------------------------------------------------------- CLIP_benchmark


@pytest.mark.parametrize(
    ("task", "protocol", "scores", "theirs"),
    [
        (
            "imagenet-zs",
            "zs",
            {"acc1": 0.6, "acc5": 0.9, "mean_per_class_recall": 0.5, "ece": 0.1},
            (
                "imagenet1k",
                "zeroshot_classification",
                {"acc1": 0.6, "acc5": 0.9, "mean_per_class_recall": 0.5},
            ),
        ),
        (
            "voc07-zs@difficult-positive",
            "zs",
            {"map_area": 0.7, "map_11pt": 0.6},
            ("voc2007_multilabel", "zeroshot_classification", {"mean_average_precision": 0.7}),
        ),
        (
            "flickr30k-ret",
            "ret",
            {"mean_recall": 0.8, "image_retrieval_recall@5": 0.7, "text_retrieval_recall@5": 0.9},
            (
                "flickr30k",
                "zeroshot_retrieval",
                {"image_retrieval_recall@5": 0.7, "text_retrieval_recall@5": 0.9},
            ),
        ),
        ("food101-lp@knn", "lp", {"acc1": 0.8}, ("food101@knn", "linear_probe", {"lp_acc1": 0.8})),
    ],
)
def test_a_record_as_clip_benchmark_writes_it(
    task: str, protocol: str, scores: dict[str, float], theirs: tuple[str, str, dict[str, float]]
) -> None:
    found = export.foreign(_record(task, protocol, scores, cards=CLIP))
    assert found == Foreign(theirs[0], "ViT-B-32", "openai", theirs[1], theirs[2])
    ((name, content),) = export.write_json([found]).items()
    assert name == f"{theirs[0]}_openai_ViT-B-32_en_{theirs[1]}.json"
    assert set(json.loads(content)) == {"dataset", "model", "pretrained", "task", "metrics", "language"}


def test_what_clip_benchmark_does_not_measure_is_left_out() -> None:
    assert export.foreign(_record("refcoco-ground", "ground", {"pointing_game": 0.5})) is None
    assert export.foreign(_record("voc07-svm", "svm", {"map_area": 0.5})) is None


def test_json_and_csv_read_back(tmp_path: Path) -> None:
    results = [
        Foreign("wds/cifar10", "ViT-B-32", "openai", "zeroshot_classification", {"acc1": 0.89, "acc5": 0.99}),
        Foreign(
            "flickr30k", "RN50", "/x/a.pt", "zeroshot_retrieval", {"image_retrieval_recall@5": 0.8}, "de"
        ),
    ]
    for name, content in export.write_json(results).items():
        (tmp_path / name).write_text(content)
    assert export.read(tmp_path) == results[::-1]  # by file name
    text = export.write_csv(results)
    (tmp_path / "all.csv").write_text(text)
    assert export.read(tmp_path / "all.csv") == results
    row = next(csv.DictReader(io.StringIO(text)))
    assert (row["model_fullname"], row["image_retrieval_recall@5"]) == ("ViT-B-32 openai", "")


def test_the_bare_nan_of_their_files_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"  # as their program writes a set of two classes
    path.write_text(
        '{"dataset": "wds/pcam", "model": "RN50", "pretrained": "openai", "task": "zeroshot_classification", '
        '"metrics": {"acc1": 0.61, "acc5": NaN, "mean_per_class_recall": 0.6}, "language": "en"}'
    )
    (found,) = export.read(path)
    assert found.metrics == {"acc1": 0.61, "mean_per_class_recall": 0.6}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "a.json:1: "),
        ("a.json", '{"dataset": "x"}', "has no model, pretrained, task, metrics"),
        ("a.json", "[1]", "is no result of CLIP_benchmark"),
        ("a.csv", "dataset,acc1\nx,many\n", "a.csv:2: could not convert"),
        ("a.csv", "dataset,acc1\nx,0.5\n", "a.csv:2 is no result of CLIP_benchmark"),
    ],
)
def test_another_file_is_refused_with_its_place(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        export.read(tmp_path / name)
    assert words in caught.value.message


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        export.read(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"no \.json or \.csv"):
        export.read(tmp_path)


def test_foreign_results_stand_beside_ours_marked_and_without_an_interval() -> None:
    task = "zeroshot_classification"
    results = [
        Foreign("vtab/cifar10", "RN50", "openai", task, {"acc1": 0.7157, "acc5": 0.9}),
        Foreign("vtab/pets", "RN50", "openai", task, {"acc1": 0.9, "mean_per_class_recall": 0.85}),
        Foreign("wds/own", "RN50", "openai", "linear_probe", {"lp_acc1": 0.5}),
    ]
    catalog = Catalog()
    rows = export.rows(results, catalog)
    primary = {row.task: (row.metric, row.value) for row in rows if row.primary}
    assert primary["cifar10-zs"] == ("acc1", 0.7157)
    assert primary["pets-zs"] == ("mean_per_class_recall", 0.85)  # our task's metric
    assert primary["own-lp"] == ("acc1", 0.5)
    text = table.markdown(sections(rows, catalog, "declip-11-zs"))
    assert "| RN50 openai (CLIP_benchmark) | 85.00 F | 71.57 F |" in text
    assert "F foreign" in text
    assert {row.kept_off for row in rows} == {"foreign"}


# ----------------------------------------------------------------- model-index


def _readme(head: str, folder: Path) -> Path:
    path = folder / "README.md"
    path.write_text(head + "# A model\n")
    return path


def test_model_index_is_what_the_hub_reads(tmp_path: Path) -> None:
    record = store.read(FIXTURE).record
    text = export.model_index([record], "digits-clip-lite")
    (index,) = yaml.safe_load(text.split("---")[1])["model-index"]
    assert index["name"] == "digits-clip-lite"
    metadata = metadata_load(_readme(text, tmp_path))
    assert metadata is not None
    _, results = model_index_to_eval_results(metadata["model-index"])
    assert len(results) == len(record.scores)
    acc1 = results[0]
    assert (acc1.task_type, acc1.dataset_type) == ("zero-shot-image-classification", "digits")
    assert (acc1.metric_type, acc1.metric_name) == ("accuracy", "acc1 (digits-zs)")
    assert (acc1.dataset_split, acc1.metric_value) == ("test", record.scores["acc1"].value)
    assert acc1.metric_args is not None
    assert acc1.metric_args["ci95"] == list(record.scores["acc1"].ci95)


# --------------------------------------------------------------------- loggers


class Fake(ModuleType):
    """A library that notes every call, with its arguments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return self

        return called

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *error: object) -> None:
        pass


FOUND = [
    make_record(task="flickr30k-ret", primary="r@5", scores={"r@5": Score(0.5, (0.4, 0.6), 9, None)}),
    make_record(),
    make_record(model="other"),
]


def _logged(target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(target)
    monkeypatch.setitem(sys.modules, target, fake)
    assert trackers.log(FOUND, target, "own", folder) == 2
    return fake


def test_weights_and_biases_gets_a_run_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _logged("wandb", tmp_path, monkeypatch)
    assert [name for name, _, _ in fake.calls] == ["init", "log", "finish"] * 2
    init = fake.calls[0][2]
    assert (init["project"], init["name"]) == ("own", "small")
    assert init["config"]["digits-zs/protocol"] == "zs version 1"
    logged = fake.calls[1][1][0]
    assert logged["flickr30k-ret/r@5"] == 0.5
    assert (logged["digits-zs/acc1/low"], logged["digits-zs/acc1/high"]) == (0.7, 0.8)


def test_mlflow_gets_names_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _logged("mlflow", tmp_path, monkeypatch)
    names = [name for name, _, _ in fake.calls]
    assert names == ["set_experiment", "start_run", "log_params", "log_metrics"] * 2
    assert fake.calls[0][1] == ("own",)
    assert fake.calls[3][1][0]["flickr30k-ret/r_at_5"] == 0.5


def test_tensorboard_gets_a_folder_a_model(tmp_path: Path) -> None:
    assert trackers.log(FOUND, "tensorboard", "own", tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "small"]
    (path,) = (tmp_path / "small").iterdir()
    (zero, numbers), (_, text) = events(path)
    assert (zero, numbers["flickr30k-ret/r@5"], numbers["digits-zs/acc1"]) == (0, 0.5, 0.75)
    assert "| digits-zs/protocol | zs version 1 |" in text["made with"].splitlines()


@pytest.mark.parametrize("target", ["wandb", "mlflow"])
def test_a_library_that_is_not_installed_is_named(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, target, None)
    with pytest.raises(ClipbenchError, match=f"needs the package {target}") as caught:
        trackers.log(FOUND, target, "own", tmp_path)
    assert caught.value.hint == f"pip install {target}"
    with pytest.raises(ClipbenchError, match='unknown target "wandbb"; did you mean "wandb"'):
        trackers.log(FOUND, "wandbb", "own", tmp_path)


# -------------------------------------------------------------------- commands


def _run(*arguments: object) -> SimpleNamespace:
    command = [sys.executable, "-m", "clipbench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def test_export_gives_on_what_stands_and_names_what_does_not(tmp_path: Path) -> None:
    root = tmp_path / "results"
    for record in (make_record(task="a-zs"), make_record(task="b-zs", limit=9)):
        store.write(record, SAMPLES, root)
    at = ("export", "--results", root, "-f")
    done = _run(*at, "clip-benchmark-csv")
    assert (done.code, done.out.count("\n")) == (0, 2)
    assert "b-zs.json: limited" in done.err
    assert _run(*at, "clip-benchmark-json", "--out", tmp_path / "o").code == 0
    assert [path.name for path in (tmp_path / "o").iterdir()] == [
        "a_small_small_en_zeroshot_classification.json"
    ]
    shown = _run("report", "--results", root, "--beside", tmp_path / "o", "-f", "markdown")
    assert "| small small (CLIP_benchmark) | 75.00 F |" in shown.out
    unknown = _run(*at, "clip-benchmark-csv", "-m", "smal")
    assert unknown.code == 2
    assert 'did you mean "small"' in unknown.err
