"""`compare` and `gate` as functions, the examples of docs/library.md, and what editors and help() see."""

from __future__ import annotations

import json
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import commandline
import pytest
import small
from commandline import Run
from own_objects import Colours

import clipbench
from clipbench.errors import ClipbenchError, DataError

one_thread, run = small.one_thread, commandline.run
ROOT = Path(__file__).parents[1]
FUNCTIONS = {"load_model", "evaluate", "results", "compare", "gate"}


class Other(Colours):
    """Another one."""

    identity = "other"

    def encode_texts(self, texts: list[str]) -> Any:
        return super().encode_texts(texts)[:, ::-1]


@pytest.fixture
def written(tmp_path: Path) -> list[clipbench.Record]:
    """Records of two objects on two tasks, below results/."""
    return clipbench.evaluate(
        [Colours(), Other()], ["digits-zs", "digits-scenes-zs"], results=tmp_path / "results", limit=80
    )


def test_compare_gives_what_the_command_computes(
    tmp_path: Path, written: list[clipbench.Record], run: Run
) -> None:
    results = tmp_path / "results"
    told = json.loads(run("compare", "Colours", "Other", "--results", results, "--json").out)
    assert [one["task"] for one in told] == ["digits-scenes-zs", "digits-zs", "mean"]
    found = clipbench.compare("Colours", "Other", results=results)
    assert json.loads(json.dumps([one.as_json() for one in found])) == told
    first, second = (record for record in written if record.task == "digits-zs")
    files = [results / record.model / "digits-zs.json" for record in (first, second)]
    by_file, by_record = (clipbench.compare(*pair, results=results) for pair in (files, (first, second)))
    (alone,) = by_file
    assert [one.as_json() for one in by_record] == [one.as_json() for one in by_file]
    wanted = next(one for one in found if one.task == "digits-zs")
    assert (alone.first, alone.second, alone.difference, alone.p) == (
        *(first.scores["acc1"].value, second.scores["acc1"].value),
        *(wanted.difference, wanted.p),
    )
    assert clipbench.compare(str(results), results)[0].difference == 0
    assert run("compare", *files, "--json").code == 0
    with pytest.raises(DataError, match="the record of Colours on digits-zs is not the one at"):
        clipbench.compare(first, second, results=tmp_path / "elsewhere")
    with pytest.raises(ClipbenchError, match="unknown suite"):
        clipbench.compare("Colours", "Other", results=results, suite="gone")


def test_gate_gives_what_the_command_computes(
    tmp_path: Path, written: list[clipbench.Record], run: Run
) -> None:
    results = tmp_path / "results"
    told = run("gate", "--candidate", results, "--baseline", results, "--json")
    found = clipbench.gate(results, results)
    assert [check.as_json() for check in found] == json.loads(told.out)
    assert {check.outcome for check in found} == {"fail"}  # limited
    assert "limited" in found[0].why
    (lacking,) = clipbench.gate(results, results, require="digits-lp", models="Other")
    assert (lacking.model, lacking.task, lacking.outcome) == ("Other", "digits-lp", "fail")
    with pytest.raises(DataError, match="no results folder"):
        clipbench.gate(tmp_path / "gone", results)


def test_records_without_an_identity_are_kept_off_the_leaderboard(
    tmp_path: Path, written: list[clipbench.Record], run: Run
) -> None:
    frame = clipbench.results(tmp_path / "results")
    kept_off = {model: set(rows.kept_off) for model, rows in frame.groupby("model")}
    assert all("unstated" in reason for reason in kept_off["Colours"])
    assert not any("unstated" in reason for reason in kept_off["Other"])
    assert set(frame.family) == {"python"}
    shown = run("report", "--results", tmp_path / "results").out
    assert "weights unstated" in shown
    assert run("show", tmp_path / "results" / "Colours" / "digits-zs.json").code == 0
    assert run("site", "--results", tmp_path / "results", "--out", tmp_path / "site").code == 0


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "library.md").read_text("utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    names: dict[str, Any] = {}
    exec(compile(program, "docs/library.md", "exec"), names)
    assert [record.model for record in names["records"]] == [
        "digits-clip-lite",
        "mean-colours",
        "mean-colours",
    ]
    assert len(names["frame"].model.unique()) == 2


def test_dir_and_help_show_the_functions() -> None:
    program = "import sys, clipbench; print(sorted(dir(clipbench))); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(clipbench.__all__) | {"__doc__", "__path__"} <= set(eval(done.stdout))
    assert {name for name in dir(clipbench) if not name.startswith("__")} == set(clipbench.__all__) - {
        "__version__"
    }
    assert set(clipbench.__all__) >= FUNCTIONS
    text = re.sub(".\x08", "", pydoc.render_doc(clipbench))  # bold is each letter twice
    for name in FUNCTIONS:
        assert re.search(rf"^    {name}\(", text, re.MULTILINE), name


SCRIPT = """
from pathlib import Path

from PIL import Image

import clipbench


class Mine:
    def encode_images(self, images: list[Image.Image]) -> list[list[float]]:
        return [[float(image.width), 1.0] for image in images]

    def encode_texts(self, texts: list[str]) -> list[list[float]]:
        return [[float(len(text)), 1.0] for text in texts]


mine: clipbench.OwnModel = Mine()
records = clipbench.evaluate(Mine(), "digits-zs", data={"a": Path("b")}, results="results", limit=50)
several = clipbench.evaluate([Mine(), "digits-clip-lite", Path("run")], ["digits-zs", "digits-lp"])
reveal_type(records)
reveal_type(records[0].scores["acc1"].value)
reveal_type(clipbench.compare("a", records[0])[0].verdict)
reveal_type(clipbench.gate("new")[0].outcome)
reveal_type(clipbench.load_model("a").encode_texts("b"))
try:
    clipbench.evaluate("a", "b", limit=1)
except clipbench.EvaluationError as error:
    reveal_type(error.records)
clipbench.evaluate(3, "digits-zs")
clipbench.evaluate(Mine(), "digits-zs", on_bad_image="ignore")
"""


def test_mypy_sees_the_types(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(tmp_path / "script.py"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True
    )
    told = re.findall(r"script\.py:\d+: (\w+): (.*?)(?:  \[.*\])?$", done.stdout, re.MULTILINE)
    assert [text for kind, text in told if kind == "note" and text.startswith("Revealed")] == [
        f'Revealed type is "{name}"'
        for name in (
            "list[clipbench.records.record.Record]",
            "float",
            "Literal['better'] | Literal['worse'] | Literal['not distinguishable'] | Literal['not comparable']",
            "Literal['pass'] | Literal['fail'] | Literal['new']",
            "torch._tensor.Tensor",
            "list[clipbench.records.record.Record]",
        )
    ], done.stdout + done.stderr
    errors = [text for kind, text in told if kind == "error"]
    assert len(errors) == 2, done.stdout
    assert 'Argument 1 to "evaluate" has incompatible type "int"' in errors[0]
    assert 'Argument "on_bad_image" to "evaluate" has incompatible type' in errors[1]
