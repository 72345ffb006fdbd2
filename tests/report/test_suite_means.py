"""Means over suites against those that others print of the same numbers, and when there is none."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from clipbench.catalog import Catalog
from clipbench.records import published
from clipbench.report import table
from clipbench.report.dataframe import Row
from clipbench.report.sections import Section, sections

TABLES = Path(__file__).parents[2] / "../shared/reference/reported"


def rows_of(model: str, scores: dict[str, float]) -> list[Row]:
    return [
        Row(model, task, metric="acc1", value=value, low=value, high=value, n=100)
        for task, value in scores.items()
    ]


def datacomp(rows: list[Row]) -> Section:
    listed = Catalog().suites["datacomp-38"]
    return Section("datacomp-38", listed.title, listed.tasks, tuple(rows), means=listed.mean)


def test_datacomps_average_of_every_published_model() -> None:
    if not TABLES.is_dir():
        pytest.skip("needs ../shared/reference")
    with (TABLES / "openclip_results.csv").open(encoding="utf-8") as file:
        printed = {
            (row["name"], row["pretrained"]): float(row["Average perf. on 38 datasets"])
            for row in csv.DictReader(file)
        }
    assert len(printed) == 121
    own: dict[tuple[str, str], dict[str, float]] = {}
    for one in published.every():
        if one.source == "openclip":
            own.setdefault((one.architecture, one.tag), {})[one.task] = one.percent / 100
    tasks = {task for scores in own.values() for task in scores}
    assert len(tasks) == 38
    assert set(Catalog().suites["datacomp-38"].tasks) == tasks
    for key, scores in own.items():
        section = Section("datacomp-38", "", tuple(sorted(tasks)), tuple(rows_of("m", scores)), means="whole")
        mean = section.mean("m")
        assert mean is not None
        assert mean.value == pytest.approx(math.fsum(scores.values()) / 38)
        assert round(mean.value, 4) == pytest.approx(printed[key], abs=1.01e-4)


def test_a_mean_that_is_refused_names_what_is_missing() -> None:
    listed = Catalog().suites["datacomp-38"]
    assert listed.mean == "whole"
    scores = dict.fromkeys(listed.tasks[2:], 0.5)
    section = datacomp(rows_of("m", scores))
    assert section.mean("m") is None
    assert section.lacking("m") == list(listed.tasks[:2])
    text = table.terminal([section])
    assert f"no mean of m: datacomp-38 lacks 2 of {len(listed.tasks)} tasks" in " ".join(text.split())
    whole = datacomp(rows_of("m", dict.fromkeys(listed.tasks, 0.5)))
    mean = whole.mean("m")
    assert mean is not None
    assert mean.whole


def test_numbers_of_different_kinds_have_no_mean() -> None:
    catalog = Catalog()
    listed = catalog.suites["fairness"]
    rows = rows_of("m", dict.fromkeys(listed.tasks, 0.5))
    (section,) = sections(rows, catalog, "fairness")
    assert section.mean("m") is None
    assert section.lacking("m") == []


@pytest.mark.parametrize("name", sorted(Catalog().suites))
def test_every_suite_resolves(name: str) -> None:
    catalog = Catalog()
    tasks = [task.id for task in catalog.tasks([name])]
    assert tasks
    assert len(set(tasks)) == len(tasks)
