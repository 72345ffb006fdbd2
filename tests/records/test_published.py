"""Published numbers: the file against the tables that it was made of, and what a model's scores are judged by."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from clipbench.catalog import Catalog
from clipbench.records import published

TABLES = Path(__file__).parents[2] / "../shared/reference/reported"


def card(architecture: str, tag: str, quick: bool = False) -> dict[str, Any]:
    return {"config": {"arch": architecture, "quick_gelu": quick}, "weights": {"open_clip": tag}}


def rows_of(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_file_has_every_number_of_the_tables() -> None:
    if not TABLES.is_dir():
        pytest.skip("needs ../shared/reference")
    for source, name, skipped in (
        ("openclip", "openclip_results.csv", ("params (M)", "FLOPs (B)", "Average perf. on 38 datasets")),
        ("openclip-retrieval", "openclip_retrieval_results.csv", ()),
    ):
        kept = [one for one in published.every() if one.source == source]
        for row in rows_of(name):
            own = [r.percent for r in kept if (r.architecture, r.tag) == (row["name"], row["pretrained"])]
            for column, value in row.items():
                wanted = " retr. R@" in column or "avg jaccard" in column if source != "openclip" else True
                if wanted and column not in (*skipped, "name", "pretrained") and value:
                    assert any(abs(percent - 100 * float(value)) < 1e-9 for percent in own), column
    benchmark = [one.percent for one in published.every() if one.source == "clip_benchmark"]
    assert benchmark == pytest.approx([100 * float(row["value"]) for row in rows_of("clip_benchmark.csv")])


def test_every_number_is_of_a_task_and_a_metric_that_exist() -> None:
    catalog = Catalog()
    for task, metric in {(one.task, one.metric) for one in published.every()}:
        names = {spec.name.replace("*", "") for spec in catalog.task(task).protocol.metrics}
        assert any(metric.startswith(name) for name in names), (task, metric)


def test_a_model_is_judged_by_the_numbers_of_its_weights() -> None:
    found = {
        (one.task, one.metric): one.percent
        for one in reversed(published.of(card("ViT-B-32", "laion2b_s34b_b79k")))
    }
    assert found["imagenet-zs", "acc1"] == 66.56
    assert found["pets-zs", "mean_per_class_recall"] == 90.76
    assert ("svhn-zs", "acc1") not in found or found["svhn-zs", "acc1"] != 31.58
    assert published.of(card("ViT-B-32", "nobody")) == ()
    assert published.of({"family": "declip", "config": {}, "weights": {}}) == ()


def test_openais_weights_have_one_name_or_the_other() -> None:
    assert published.named(card("ViT-B-32", "openai", quick=True)) == ("ViT-B-32-quickgelu", "openai")
    assert published.named(card("ViT-B-32-quickgelu", "openai", quick=True)) == (
        "ViT-B-32-quickgelu",
        "openai",
    )
    assert published.named(card("ViT-B-16", "openai", quick=True)) == ("ViT-B-16", "openai")


def test_numbers_made_with_other_prompts_judge_nothing() -> None:
    differing = [one for one in published.every() if one.differs]
    assert {(one.source, one.task) for one in differing} == {
        ("openclip", "svhn-zs"),
        ("openclip", "clevr-distance-zs"),
        ("clip_benchmark", "caltech101-zs"),
    }


def test_openais_weights_are_shown_once_and_as_both_tables_have_them() -> None:
    """open_clip lists them under two names: every number of its table is the same under both."""
    by_name: dict[str, dict[tuple[str, str], float]] = {}
    for one in published.every():
        if one.tag == "openai" and one.source == "openclip":
            by_name.setdefault(one.architecture, {})[one.task, one.metric] = one.percent
    for name in ("RN50", "RN101", "ViT-B-32"):
        for key, percent in by_name[name].items():
            assert by_name[f"{name}-quickgelu"][key] == percent, (name, key)
    found = published.shown({"imagenet-zs": "acc1"})
    assert ("ViT-B-32", "openai") in found
    assert ("ViT-B-32-quickgelu", "openai") not in found
    assert ("ViT-B-32-quickgelu", "laion400m_e32") in found


def test_a_number_that_differs_in_nothing_goes_before_one_that_does() -> None:
    found = published.shown({"svhn-zs": "acc1"})
    openai = found["ViT-B-32", "openai"]["svhn-zs"]
    assert (openai.source, openai.differs) == ("clip_benchmark", "")
    dfn = found["ViT-H-14-378-quickgelu", "dfn5b"]["svhn-zs"]
    assert dfn.differs == "other prompts"
    assert published.shown({"svhn-zs": "acc7"}) == {}


def test_a_mean_is_over_all_of_the_tasks_or_none() -> None:
    numbers = published.shown({"imagenet-zs": "acc1", "mnist-zs": "acc1"})["ViT-H-14-378-quickgelu", "dfn5b"]
    assert published.mean(numbers, ["imagenet-zs", "mnist-zs"]) == pytest.approx((84.37 + 83.64) / 2)
    assert published.mean(numbers, ["imagenet-zs", "digits-zs"]) is None
    assert published.mean(numbers, ["imagenet-zs"]) is None
