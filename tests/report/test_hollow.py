"""Published models below the measured ones: whose means, which marks, and that they take no part in ranks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from recorded import SAMPLES, make_record
from typer.testing import CliRunner

from clipbench.catalog import Catalog
from clipbench.cli import app
from clipbench.metrics.intervals import Score
from clipbench.records import store
from clipbench.records.published import every
from clipbench.report import hollow

TABLES = Path(__file__).parents[2] / "../shared/reference/reported"
CATALOG = Catalog()
LAION = {"config": {"arch": "ViT-B-32"}, "weights": {"open_clip": "laion2b_s34b_b79k"}}
DFN = "ViT-H-14-378-quickgelu@dfn5b"


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["report", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["report", *words])
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    return str(result.output) + str(result.exception)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Records of two models on two tasks of robustness: one of open_clip's, one of nobody's table."""
    for model, value, card in (("mine", 0.6, {}), ("theirs", 0.65, LAION)):
        for task in CATALOG.tasks(["imagenet-zs", "imagenetv2-zs"]):
            save(tmp_path, model, task, value, card)
    return tmp_path


def save(folder: Path, model: str, task: Any, value: float, card: dict[str, Any]) -> None:
    record = make_record(
        model=model,
        task=task.id,
        scores={"acc1": Score(value, (value - 0.01, value + 0.01), 60_000, None)},
        protocol={
            "name": task.protocol.id,
            "version": task.protocol.version,
            "params": task.params.canonical(),
        },
        cards={"model": {"title": model, **card}, "task": task.dataset.card.canonical()},
    )
    store.write(record, SAMPLES, folder)


def test_the_mean_over_datacomps_suite_is_the_one_that_open_clip_prints() -> None:
    if not TABLES.is_dir():
        pytest.skip("needs ../shared/reference")
    with (TABLES / "openclip_results.csv").open(encoding="utf-8") as file:
        printed = {
            f"{row['name']}@{row['pretrained']}": 100 * float(row["Average perf. on 38 datasets"])
            for row in csv.DictReader(file)
        }
    found = hollow.table(CATALOG, "datacomp-38", [])
    # CLIP_benchmark has 13 models with the task's own prompts for SVHN and CLEVR: those are another mean.
    alone = [one for one in found.models if {n.source for n in one.numbers.values()} == {"openclip"}]
    assert len(alone) > 100
    for one in alone:
        assert one.mean == pytest.approx(printed[one.name], abs=0.011), one.name
        assert one.differing == 2
    means = [one.mean for one in found.models if one.mean is not None]
    assert means == sorted(means, reverse=True)


def test_who_was_measured_is_left_out_under_both_names_of_openais_weights() -> None:
    names = {one.name for one in hollow.table(CATALOG, "datacomp-38", []).models}
    assert {"ViT-B-32@openai", DFN} <= names
    assert not any(name.endswith("-quickgelu@openai") for name in names)
    openai = {"config": {"arch": "ViT-B-32-quickgelu"}, "weights": {"open_clip": "openai"}}
    left = {one.name for one in hollow.table(CATALOG, "datacomp-38", [openai, {}]).models}
    assert names - left == {"ViT-B-32@openai"}


def test_suites_without_a_mean_list_by_their_first_task() -> None:
    found = hollow.table(CATALOG, "robustness", [])  # imagenet-zs@a-classes is in no table
    assert {one.mean for one in found.models} == {None}
    first = [one.numbers["imagenet-zs"].percent for one in found.models]
    assert first == sorted(first, reverse=True)
    assert hollow.averaged(CATALOG, "fairness") == {}


def test_the_terminal_lists_them_hollow_below_ours(results: Path) -> None:
    text = run("--results", str(results), "--suite", "robustness", "--published")
    assert text.index("mine") < text.index(f"○ {DFN}")
    assert "○ ViT-B-32@laion2b_s34b_b79k" not in text
    assert "○ published, not measured here" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "○" not in run("--results", str(results), "--suite", "robustness")


@pytest.mark.parametrize("suite", ["datacomp-38", "clip-benchmark-41", "fairness"])
def test_names_fit_a_terminal_and_remarks_are_said(suite: str) -> None:
    text = hollow.terminal(hollow.table(CATALOG, suite, []))
    assert max(map(len, text.splitlines())) <= 80
    if suite == "datacomp-38":
        assert "* other prompts: clevr-distance-zs, svhn-zs" in text
    if suite == "fairness":
        assert "first: dollar-street-groups" in text


def test_markdown_has_every_number_with_its_remark(results: Path) -> None:
    text = run("--results", str(results), "--suite", "datacomp-38", "--published", "-f", "markdown")
    (line,) = [one for one in text.splitlines() if one.startswith(f"| ○ {DFN}")]
    svhn = next(n for n in every() if f"{n.architecture}@{n.tag}" == DFN and n.task == "svhn-zs")
    assert "| 84.37 |" in line
    assert f"| {svhn.percent:.2f}\\* |" in line or f"| {svhn.percent:.2f}* |" in line


@pytest.mark.parametrize("format_", ["json", "csv"])
def test_rows_of_published_numbers_have_no_value_and_no_rank(format_: str, results: Path) -> None:
    text = run("--results", str(results), "--suite", "robustness", "--published", "-f", format_)
    rows = json.loads(text) if format_ == "json" else list(csv.DictReader(text.splitlines()))
    own = [row for row in rows if row["kept_off"] == "published"]
    assert len(own) > 600
    assert all(row["model"].startswith("published:") for row in own)
    for name in ("value", "low", "high", "rank", "suite_rank", "verdict"):
        assert {row[name] for row in own} <= {None, ""}
    (one,) = [r for r in own if r["model"] == f"published:{DFN}" and r["task"] == "imagenet-zs"]
    assert float(one["reported_percent"]) == 84.37
    assert "89fb801" in one["reported_source"]
    without = run("--results", str(results), "--suite", "robustness", "-f", format_)
    kept = json.loads(without) if format_ == "json" else list(csv.DictReader(without.splitlines()))
    assert [row for row in rows if row["kept_off"] != "published"] == kept


def test_it_needs_a_suite_and_a_format_that_has_it(results: Path) -> None:
    assert "--published lists a suite's numbers" in refused("--results", str(results), "--published")
    words = ("--suite", "robustness", "--published", "-f", "latex")
    assert "--published lists a suite's numbers" in refused("--results", str(results), *words)
