"""Report tables: what they show, what they mark, and that nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from test_records import REPORTED, make_record

from clipbench.records import Record, Stored
from clipbench.report import frame, table
from clipbench.stats import Score


def _printed(what: RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _rows(records: Sequence[Record], tasks: Sequence[str] | None = None) -> list[frame.Row]:
    found = frame.rows([Stored(Path("x.json"), record, "whole") for record in records])
    return found if tasks is None else frame.of_tasks(found, tasks)


def _with_env(**changes: Any) -> dict[str, Any]:
    return make_record().env.model_dump() | changes


def _imagenet(model: str = "clip-vit-b32", **changes: Any) -> Record:
    reported = [
        REPORTED | {"task": "imagenet-zs", "percent": 62.0, "confidence": "from-memory-high"},
        REPORTED | {"task": "imagenet-zs", "percent": 63.25, "confidence": "primary"},
        REPORTED | {"task": "imagenet-zs", "metric": "acc5", "percent": 88.0},
    ]
    fields: dict[str, Any] = {
        "model": model,
        "task": "imagenet-zs",
        "scores": {
            "acc5": Score(0.8872, (0.88, 0.89), 50_000, 0.005),
            "acc1": Score(0.6336, (0.6294, 0.6378), 50_000, 0.001),
            "mean_per_class_recall": Score(0.6335, (0.63, 0.64), 50_000, 0.001),
        },
        "cards": {"model": {"reported": reported}, "task": {}},
    }
    return make_record(**(fields | changes))


# ----------------------------------------------------------------------- rows


def test_every_score_is_a_row_the_primary_first() -> None:
    found = _rows([make_record(), _imagenet()])
    assert [(row.model, row.task, row.metric, row.primary) for row in found] == [
        ("clip-vit-b32", "imagenet-zs", "acc1", True),
        ("clip-vit-b32", "imagenet-zs", "acc5", False),
        ("clip-vit-b32", "imagenet-zs", "mean_per_class_recall", False),
        ("small", "digits-zs", "acc1", True),
        ("small", "digits-zs", "ece", False),
    ]


def test_the_reported_number_fits_task_and_metric_and_the_most_trusted_wins() -> None:
    acc1, acc5, recall = _rows([_imagenet()])
    assert (acc1.reported_percent, acc1.reported_confidence) == (63.25, "primary")
    assert acc1.difference_points == pytest.approx(0.11)
    assert acc5.reported_percent == 88.0
    assert acc5.difference_points == pytest.approx(0.72)
    assert (recall.reported_percent, recall.difference_points) == (None, None)


def test_a_suite_orders_tasks_and_shows_what_is_missing() -> None:
    records = [make_record(), _imagenet("small"), make_record(task="other-zs"), _imagenet("clip-vit-b32")]
    found = [row for row in _rows(records, ["imagenet-zs", "digits-zs"]) if row.primary]
    assert [(row.model, row.task, row.value) for row in found] == [
        ("clip-vit-b32", "imagenet-zs", 0.6336),
        ("clip-vit-b32", "digits-zs", None),
        ("small", "imagenet-zs", 0.6336),
        ("small", "digits-zs", 0.75),
    ]
    assert _rows(records, ["food101-zs"]) == []


# ------------------------------------------------------------------ renderers


def test_markdown_shows_percent_half_interval_reported_and_difference() -> None:
    text = table.markdown(_rows([make_record(), _imagenet()]))
    assert text.splitlines() == [
        "| model | task | metric | value % | reported | Δ | n |",
        "| :-- | :-- | :-- | --: | --: | --: | --: |",
        "| clip-vit-b32 | imagenet-zs | acc1 | 63.36 ±0.42 | 63.25 | +0.11 | 50,000 |",
        "| small | digits-zs | acc1 | 75.00 ±5.00 | 70.5† | +4.50 | 360 |",
        "",
        "- † reported number from a secondary source",
    ]


def test_marks_and_their_legend_appear_only_where_they_hold() -> None:
    marked = make_record(limit=20, env=_with_env(dirty=True), skipped=({"id": "x", "reason": "truncated"},))
    from_memory = REPORTED | {"confidence": "from-memory-low"}
    odd = make_record(model="b", cards={"model": {"reported": [from_memory]}, "task": {}})
    text = table.markdown(_rows([marked, odd]))
    assert "| LDS |" in text
    assert "70.5‡" in text
    for word in ("limited", "dirty", "skipped", "from memory"):
        assert word in text
    plain = table.markdown(_rows([_imagenet()]))
    assert not any(word in plain for word in ("limited", "dirty", "skipped", "memory", "secondary"))
    unknown = table.markdown(_rows([make_record(env=_with_env(commit=None, dirty=None))]))
    assert "dirty" not in unknown


def test_a_missing_result_is_a_dash_never_a_zero() -> None:
    text = table.markdown(_rows([make_record()], ["imagenet-zs", "digits-zs"]))
    assert "| small | imagenet-zs | – | – | – | – | – |" in text


def test_columns_without_content_are_left_out() -> None:
    bare = make_record(cards={"model": {}, "task": {}})
    assert table.markdown(_rows([bare])).startswith("| model | task | metric | value % | n |\n")


def test_the_terminal_table_reads_at_80_columns() -> None:
    long = make_record(
        model="declip-yfcc15m-vit-b32",
        task="flowers102-zs",
        primary="mean_per_class_recall",
        scores={"mean_per_class_recall": Score(0.55, (0.54, 0.56), 6_149, 0.01)},
        limit=10,
        cards={
            "model": {"reported": [REPORTED | {"task": "flowers102-zs", "metric": "mean_per_class_recall"}]},
            "task": {},
        },
    )
    text = _printed(table.terminal(_rows([long, _imagenet()])))
    assert max(len(line) for line in text.splitlines()) <= 80
    for whole in (
        "declip-yfcc15m-vit-b32",
        "flowers102-zs",
        "63.36 ±0.42",
        "70.5†",
        "-15.50",
        "50,000",
        "mean per class",
    ):
        assert whole in text
    assert "† reported number from a secondary source" in text
    assert "L limited" in text


def test_names_are_never_read_as_markup() -> None:
    odd = make_record(model="[red]a|b[/red]")
    assert "[red]a|b[/red]" in _printed(table.terminal(_rows([odd])))
    assert "[red]a|b[/red] on digits-zs" in _printed(table.record_table(odd))
    assert "| [red]a\\|b[/red] |" in table.markdown(_rows([odd]))


def test_json_and_csv_carry_every_score_with_interval_and_chance() -> None:
    found = _rows([make_record(), _imagenet()], ["digits-zs", "imagenet-zs"])
    objects = json.loads(table.json_text(found))
    lines = list(csv.DictReader(io.StringIO(table.csv_text(found))))
    assert len(objects) == len(lines) == len(found) == 7
    by_metric = {(o["model"], o["task"], o["metric"]): o for o in objects}
    ece = by_metric["small", "digits-zs", "ece"]
    assert (ece["value"], ece["low"], ece["high"], ece["n"]) == (0.05, 0.04, 0.07, 360)
    assert ece["chance"] is None
    assert by_metric["small", "digits-zs", "acc1"]["chance"] == 0.1
    assert by_metric["small", "imagenet-zs", None]["value"] is None
    for line, row in zip(lines, found, strict=True):
        assert line["value"] == ("" if row.value is None else repr(row.value))
        assert line["chance"] == ("" if row.chance is None else repr(row.chance))


def test_text_formats_are_the_renderers() -> None:
    found = _rows([make_record()])
    assert sorted(table.TEXT_FORMATS) == ["csv", "json", "markdown"]
    assert table.TEXT_FORMATS["csv"](found) == table.csv_text(found)


def test_a_record_prints_all_its_scores() -> None:
    text = _printed(table.record_table(make_record(limit=5)))
    assert "small on digits-zs" in text
    acc1 = next(line for line in text.splitlines() if line.startswith("acc1"))
    assert acc1.split() == ["acc1", "75.00", "70.00", "…", "80.00", "10.00", "360"]
    ece = next(line for line in text.splitlines() if line.startswith("ece"))
    assert ece.split() == ["ece", "5.00", "4.00", "…", "7.00", "–", "360"]
    assert text.index("acc1") < text.index("ece")
    assert "L limited" in text


def test_light_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, clipbench.report.table, clipbench.records, clipbench.stats, clipbench.metrics\n"
        "heavy = set('torch open_clip datasets pandas matplotlib pyarrow rich sklearn scipy'.split())\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_copy_that_lacks_images_is_marked_partial() -> None:
    splits = {"splits": {"test": {"name": "test", "rows": 400}}}
    params = {"name": "zs", "version": 1, "params": {"split": "test"}}
    cards = {"model": {"title": "Small"}, "task": splits}
    partial = make_record(protocol=params, cards=cards)
    assert [row.partial for row in _rows([partial])] == [True, True]
    whole = make_record(
        protocol=params, cards=cards, skipped=tuple({"id": str(i), "reason": "x"} for i in range(40))
    )
    assert not any(row.partial for row in _rows([whole]))
    limited = make_record(protocol=params, cards=cards, limit=360)
    assert not any(row.partial for row in _rows([limited]))
    assert "P partial" in table.markdown(_rows([partial]))
