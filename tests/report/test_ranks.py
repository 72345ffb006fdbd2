"""Ranks: worked by hand, held by simulation, and the same wherever they are shown."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded import write_model
from scipy.stats import binom

from clipbench.catalog import Catalog
from clipbench.metrics import paired_tests
from clipbench.metrics.intervals import Score
from clipbench.metrics.joint import Contributions
from clipbench.records import alignment, store
from clipbench.report import dataframe, ranks, site, table
from clipbench.report.dataframe import Row
from clipbench.report.ranks import Measured, Ranks
from clipbench.report.sections import ranks_of, sections
from clipbench.report.site import blocks, document

Z = NormalDist().inv_cdf
SIGNS = np.array([1, 1, 1, -1])
SUITES = "suites: {own: {title: Own, tasks: [cifar10-zs, cifar100-zs]}}"


def _measured(
    *tasks: NDArray[Any], images: Sequence[str] = "ab", draws: Sequence[float] = ()
) -> list[Measured]:
    """A model by what it gets of each sample of each task."""
    return [
        Measured(Contributions(name, range(len(right)), right / len(right), draws=draws), 0)
        for name, right in zip(images, tasks, strict=False)
    ]


def _right(n: int, *wrong: int) -> NDArray[np.float64]:
    found = np.ones(n)
    found[list(wrong)] = 0
    return found


# ------------------------------------------------------------------ by hand


def test_three_models_by_hand() -> None:
    """McNemar's p: a to b 2/2⁶, a to c 2/2¹⁰, b to c 2/2⁴; times 2, 3 and 1 (Holm): 0.0625, 0.0059, 0.125."""
    models = {
        "a": _measured(_right(40)),
        "b": _measured(_right(40, *range(6))),
        "c": _measured(_right(40, *range(10))),
    }
    found = ranks.ranked(models)
    assert found.ranks == {"a": 1, "b": 1, "c": 2}
    assert ranks.ranked(models, alpha=0.07).ranks == {"a": 1, "b": 2, "c": 2}
    assert ranks.ranked(models, alpha=0.005).ranks == {"a": 1, "b": 1, "c": 1}
    assert ranks.ranked(dict(reversed(models.items()))).ranks == found.ranks
    errors = [math.sqrt(k / 40 * (1 - k / 40) / 39) for k in (4, 10)]  # of the differences b to c and a to c
    assert found.detectable == pytest.approx([(Z(1 - 0.05 / 3 / 2) + Z(0.8)) * error for error in errors])


def test_a_rank_counts_those_that_are_better() -> None:
    models = {name: _measured(_right(400, *range(30 * place))) for place, name in enumerate("dbca")}
    assert ranks.ranked(models).ranks == {"d": 1, "b": 2, "c": 3, "a": 4}


def test_models_that_agree_on_every_sample_share_their_rank_and_show_no_difference() -> None:
    same = _measured(_right(40, 1, 2))
    assert ranks.ranked({"a": same, "b": same}) == Ranks({"a": 1, "b": 1}, {}, None)
    assert ranks.ranked({"a": same}) == Ranks({}, {})


def test_the_mean_over_tasks_is_tested_as_compare_does() -> None:
    """Tasks of the same images and of others; the errors are equal, p is somewhat too careful beside 20,000 draws."""
    rng = np.random.default_rng(0)
    for images in ("aab", "abc"):
        sizes = [150, 150, 90] if images == "aab" else [150, 120, 90]
        models = [
            _measured(*((rng.random(n) < share).astype(float) for n in sizes), images=images)
            for share in (0.7, 0.8, 0.75)
        ]
        tests = ranks._tests(models)
        for (i, j), test in zip([(0, 1), (0, 2), (1, 2)], tests, strict=True):
            parts = [
                Contributions(one.parts.images, one.parts.ids, other.parts.values - one.parts.values)
                for one, other in zip(models[i], models[j], strict=True)
            ]
            found = paired_tests.of_contributions(parts, seed=0)
            assert test.value == pytest.approx(found.value)
            assert test.error == pytest.approx((found.ci95[1] - found.value) / Z(0.975))
            assert 0.9 * found.p - 0.001 < test.p < 1.25 * found.p + 0.001


def test_few_shot_probes_are_tested_over_draws_as_compare_does() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        (rng.random((3, 500)) < shares).astype(float) for shares in (0.5, np.array([[0.55], [0.6], [0.7]]))
    ]
    models = []
    for one in drawn:
        means = one.mean(axis=1).tolist()
        more = float(np.var(means, ddof=1)) / 3
        models.append([Measured(Contributions("a", range(500), one.mean(axis=0) / 500, more, means), 0)])
    for same in (True, False):
        if not same:
            models[1] = [models[1][0]._replace(seed=1)]
        (test,) = ranks._tests(models)
        found, _ = paired_tests.of_draws(*drawn, same=same)
        assert (test.value, test.p) == pytest.approx((found.value, found.p))
        assert test.error * test.quantile(0.975) == pytest.approx(found.ci95[1] - found.value)
        assert test.quantile(0.975) > Z(0.975)
    twice = [[*own, Measured(Contributions("b", range(500), own[0].parts.values), 0)] for own in models]
    (test,) = ranks._tests(twice)
    assert test.p == pytest.approx(2 * NormalDist().cdf(-test.value / test.error))
    assert ranks._more(models[0][0], models[1][0]) == pytest.approx(
        models[0][0].parts.more + models[1][0].parts.more
    )


# -------------------------------------------------------------- random signs


def _by_all(d: NDArray[np.float64]) -> float:
    """Two-sided p by every assignment of signs."""
    sums = np.zeros(1)
    for size in np.abs(d):
        sums = np.concatenate([sums + size, sums - size])
    return min(1.0, 2 * float((sums >= abs(d.sum()) - 1e-9).mean()))


def _sizes(kind: str, m: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if kind == "any":
        return np.abs(rng.normal(size=m))
    if kind == "steps":
        return rng.choice([1.0, 2.0, 3.0], m)
    return rng.choice([1 / 360, 1 / 500, 1 / 100, 1 / 472], m)


@pytest.mark.parametrize("kind", ["any", "steps", "tasks"])
def test_the_formula_for_random_signs_is_near_all_of_them(kind: str) -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        d = _sizes(kind, 19, rng) * rng.choice(SIGNS, 19)
        exact = _by_all(d)
        if exact < 0.5:
            ratios.append(paired_tests.all_signs(d) / exact)
    assert len(ratios) > 30
    assert min(ratios) > 0.9  # hardly ever too sure
    assert 0.97 < np.median(ratios) < 1.4
    assert max(ratios) < 2


def test_few_signs_are_all_looked_at_and_equal_ones_are_mcnemars() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        d = rng.normal(0.4, 1, 12)
        assert paired_tests.all_signs(d) == pytest.approx(_by_all(d))
    d = np.array([0.25] * 60 + [-0.25] * 40 + [0.0] * 900)
    assert paired_tests.all_signs(d) == pytest.approx(2 * binom.cdf(40, 100, 0.5), rel=1e-9)
    assert paired_tests.all_signs(-d) == paired_tests.all_signs(d)
    assert paired_tests.all_signs(np.zeros(9)) == 1.0
    assert (
        paired_tests.all_signs(np.concatenate([np.full(30, 0.5), np.full(30, -0.5), np.full(30, 0.01)])) > 0.9
    )


def test_the_formula_is_near_random_signs_of_many() -> None:
    rng = np.random.default_rng(0)
    for lift in (0.02, 0.035, 0.05):
        d = rng.normal(lift, 1, 2_000)
        less, more, method = paired_tests.sign_flip(d, seed=0)
        assert method == "20,000 random signs"
        assert paired_tests.all_signs(d) == pytest.approx(2 * min(less, more), rel=0.15, abs=0.0005)


def test_far_out_the_formula_is_a_bound() -> None:
    """Of equal sizes, but for one that hardly counts, the tail is binomial."""
    for up, share in ((590, 1.02), (640, 10), (690, 20)):
        d = np.array([1.0] * up + [-1.0] * (1000 - up) + [1e-6])
        exact = 2 * float(binom.sf(up - 1, 1000, 0.5))
        found = paired_tests.all_signs(d)
        assert exact / 1.5 <= found < share * exact, up
    published = (
        3.178 * 2 * paired_tests.normal_tail(math.sqrt(800))
    )  # its constant, of Bentkus & Dzindzalieta
    assert 0 < paired_tests.all_signs(np.ones(800)) == pytest.approx(published, rel=1e-3, abs=0)


# ----------------------------------------------------------------- simulated


Draw = Callable[[np.random.Generator], dict[str, list[Measured]]]


def _shares(levels: dict[str, float], n: int = 1_000, tasks: int = 1) -> Draw:
    """Models that are right where a sample's own hardness and some luck allow it."""

    def draw(rng: np.random.Generator) -> dict[str, list[Measured]]:
        hard = rng.random((tasks, n)) * 0.8
        return {
            model: _measured(*(hard + 0.2 * rng.random((tasks, n)) < level).astype(float), images="aab")
            for model, level in levels.items()
        }

    return draw


@pytest.mark.parametrize(("tasks", "names"), [(1, "ab"), (2, "abcd")])
def test_equal_models_share_the_first_rank_at_least_95_times_in_100(tasks: int, names: str) -> None:
    draw, rng = _shares(dict.fromkeys(names, 0.6), n=500, tasks=tasks), np.random.default_rng(0)
    shared = [set(ranks.ranked(draw(rng)).ranks.values()) == {1} for _ in range(1_000)]
    print(f"{len(names)} equal models share rank 1 in {np.mean(shared):.1%}")
    assert np.mean(shared) >= 0.95


def test_models_that_differ_clearly_do_not_share_a_rank() -> None:
    draw, rng = _shares({"a": 0.7, "b": 0.7, "c": 0.6}), np.random.default_rng(0)
    found = [ranks.ranked(draw(rng)).ranks for _ in range(200)]
    assert all(one["c"] == 3 for one in found)
    assert np.mean([one["a"] == one["b"] == 1 for one in found]) >= 0.95


@pytest.mark.parametrize(("tasks", "alpha"), [(1, 0.05), (2, 0.05 / 3)])
def test_the_detectable_difference_is_seen_80_times_in_100(tasks: int, alpha: float) -> None:
    """A gap as large as it is said to be by other samples, simulated."""
    n, rng = 2_000, np.random.default_rng(0)

    def pair(gap: float) -> dict[str, list[Measured]]:
        u = rng.random((tasks, n))
        first = (u < 0.7).astype(float)
        second = np.where(u < 0.05, 0.0, np.where(u > 0.95 - gap, 1.0, first))
        return {"a": _measured(*first, images="aab"), "b": _measured(*second, images="aab")}

    told = np.mean([one[0] for _ in range(40) if (one := ranks.ranked(pair(0.02), alpha).detectable)])
    seen = np.mean([ranks.ranked(pair(float(told)), alpha).ranks["a"] == 2 for _ in range(600)])
    print(f"a difference of {100 * told:.2f} points is seen in {seen:.1%}")
    assert 0.75 < seen < 0.85


# -------------------------------------------------------------- from records


def _rows(root: Path) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in dataframe.rows(store.read_all(root), primary=True):
        found.setdefault(row.model, []).append(row)
    return found


def test_who_cannot_be_compared_has_no_rank_and_it_is_said(tmp_path: Path) -> None:
    right = np.random.default_rng(0).random(60) < 0.7
    for model in ("a", "b"):
        write_model(tmp_path, model, right)
    lacking = write_model(tmp_path, "lacking", right)
    store.samples_path(lacking.path).unlink()
    edited = write_model(tmp_path, "edited", right)
    edited.path.write_text(edited.path.read_text().replace('"seed": 0', '"seed": 1'))
    swapped = write_model(tmp_path, "swapped", right)
    store.samples_path(swapped.path).write_bytes(b"PAR1")
    protocol = {"name": "zs", "version": 2, "params": {"templates": "default"}}
    write_model(tmp_path, "newer", right, protocol=protocol)
    write_model(tmp_path, "elsewhere", right, fingerprints={"split:test": "01"})
    write_model(tmp_path, "skipped", right[:50])
    gap = {"gap_before": Score(0.2, (0.19, 0.21), 60, None)}
    write_model(tmp_path, "bias", right, primary="gap_before", scores=gap)
    found = ranks.of(_rows(tmp_path))
    assert found.ranks == {"a": 1, "b": 1}
    assert found.left_out == {
        "lacking": "no per-sample file",
        "edited": "edited by hand, or without a digest",
        "swapped": "a per-sample file that is not its record's",
        "newer": "animals-zs: protocol zs version 1 and zs version 2",
        "elsewhere": "animals-zs: measured on other data: split:test",
        "skipped": "other samples: images that could not be read",
        "bias": "a metric that is no mean over samples",
    }
    foreign = Row("theirs", "animals-zs", metric="acc1", value=0.5)
    assert ranks.of({"theirs": [foreign], "a": _rows(tmp_path)["a"]}) == Ranks(
        {}, {"theirs": "no per-sample file"}
    )
    two = {model: rows for model, rows in _rows(tmp_path).items() if model in ("a", "newer")}
    alone = ranks.of(two)
    assert (alone.ranks, alone.left_out["a"]) == ({}, "no other was measured as it was")


def test_ranks_of_the_same_records_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, read = np.random.default_rng(0), alignment.contributions
    for model, share in (("a", 0.9), ("b", 0.6)):
        write_model(tmp_path, model, rng.random(300) < share)
    asked: list[str] = []

    def counted(stored: store.Stored) -> Contributions | None:
        asked.append(stored.record.model)
        return read(stored)

    monkeypatch.setattr("clipbench.records.alignment.contributions", counted)
    found = ranks.of(_rows(tmp_path))
    assert (found.ranks, asked) == ({"a": 1, "b": 2}, ["a", "b"])
    assert ranks.of(_rows(tmp_path)) == found
    assert len(asked) == 2
    write_model(tmp_path, "b", rng.random(300) < 0.95)
    assert ranks.of(_rows(tmp_path)).ranks["b"] == 1
    assert len(asked) == 4
    samples = store.samples_path(store.path_of("b", "animals-zs", tmp_path))
    content = samples.read_bytes()
    write_model(tmp_path, "c", rng.random(300) < 0.5)
    samples.write_bytes(b"PAR1")
    assert "b" in ranks.of(_rows(tmp_path)).left_out
    samples.write_bytes(content)  # what was found without it is not kept
    assert ranks.of(_rows(tmp_path)).left_out == {}
    monkeypatch.setenv("CLIPBENCH_CACHE", "/proc/none")
    assert ranks.of(_rows(tmp_path)).ranks["c"] > 1


# --------------------------------------------------------------------- shown


@pytest.fixture
def shown(tmp_path: Path) -> tuple[list[Row], Catalog]:
    """Four models on a suite of two tasks and on one of no suite; one saw images, one lacks samples."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "suites.yaml").write_text(SUITES)
    rng = np.random.default_rng(0)
    hard = rng.random(2_000) * 0.8
    for model, share in (("best", 0.85), ("good", 0.795), ("fair", 0.797), ("poor", 0.5)):
        for task in ("cifar10-zs", "cifar100-zs", "animals-zs"):
            seen = [{"data": "photos", "of": 2_000}] if model == "best" and task == "cifar10-zs" else []
            own: dict[str, Any] = {"task": task, "fingerprints": {"split:test": task}, "seen": seen}
            write_model(tmp_path / "results", model, hard + 0.2 * rng.random(2_000) < share, **own)
    for task in ("cifar10-zs", "animals-zs"):
        store.samples_path(store.path_of("poor", task, tmp_path / "results")).unlink()
    return dataframe.rows(store.read_all(tmp_path / "results"), primary=True), Catalog([tmp_path / "cards"])


def test_every_table_has_the_same_ranks(shown: tuple[list[Row], Catalog]) -> None:
    rows, catalog = shown
    found = [one for one in sections(rows, catalog) if one.suite in ("own", None)]
    suite, others = found
    assert suite.ranks["mean"].ranks == {"best": 1, "fair": 2, "good": 2}
    assert suite.ranks["mean"].left_out == {"poor": "no per-sample file"}
    assert others.ranks["animals-zs"].ranks == {"best": 1, "fair": 2, "good": 2}
    text = table.terminal(found)
    assert max(map(len, text.splitlines())) <= 80
    means = [line.split() for line in text.splitlines() if line.startswith("  mean of 2")]
    assert [line[5:] for line in means] == [["1", "T"], ["2"], ["2"], ["–"]]
    tasks = [line.split()[-1] for line in text.splitlines() if line.startswith("  animals-zs")]
    assert tasks == ["1", "2", "2", "–"]
    low, high = (f"{100 * end:.2f}" for end in suite.ranks["mean"].detectable or ())
    told = " ".join(text.split())
    assert (
        f"seen 80 % of the time, in points: {low} to {high}, by pair no rank for poor: no per-sample file"
        in told
    )
    assert "no rank for poor on animals-zs: no per-sample file" in told
    assert told.count("rank: 1 + how many models are better beyond noise") == 1
    page = table.markdown(found)
    cells = {
        line.split(" | ")[0][2:]: line.rstrip(" |").split(" | ")[-1]
        for line in page.splitlines()
        if "of 2)" in line
    }
    assert cells == {"best": "1 T", "fair": "2", "good": "2", "poor": "–"}
    assert re.findall(r"^\| (\w+) \| [^|]*, rank (\d) \|$", page, re.M) == [
        ("best", "1"),
        ("fair", "2"),
        ("good", "2"),
    ]
    assert f"in points: {low} to {high}, by pair" in page
    tex = table.latex(found)
    assert "& 1 T \\\\" in tex
    assert (
        f"% smallest difference that would have been seen 80 % of the time, in points: {low} to {high}" in tex
    )


def test_csv_and_json_have_the_same_ranks(shown: tuple[list[Row], Catalog]) -> None:
    rows, catalog = shown
    rows = [*rows, rows[0]._replace(metric="acc5", primary=False)]
    found = ranks_of(rows, catalog, "own")
    objects = json.loads(table.json_text(rows, found))
    lines = csv.DictReader(io.StringIO(table.csv_text(rows, found)))
    places = [(o["rank"], o["suite_rank"]) for o in objects]
    assert [(line["rank"], line["suite_rank"]) for line in lines] == [
        ("" if rank is None else str(rank), "" if mean is None else str(mean)) for rank, mean in places
    ]
    by_task = {
        task: {r.model: [r] for r in rows if r.primary and r.task == task} for task in found if task != "mean"
    }
    assert sorted(by_task) == ["animals-zs", "cifar10-zs", "cifar100-zs"]
    own = {task: ranks.of(entries).ranks for task, entries in by_task.items()}
    assert [rank for rank, _ in places] == [*(own[r.task].get(r.model) for r in rows[:-1]), None]
    assert own["animals-zs"] == {"best": 1, "fair": 2, "good": 2}
    means = {"best": 1, "fair": 2, "good": 2, "poor": None}
    assert [mean for _, mean in places] == [*(means[r.model] for r in rows[:-1]), None]
    assert "mean" not in ranks_of(rows, catalog)


def test_without_two_models_nothing_is_said_of_ranks(shown: tuple[list[Row], Catalog]) -> None:
    rows, catalog = shown
    found = sections([row for row in rows if row.model == "best"], catalog)
    assert "rank:" not in table.terminal(found)
    assert "no rank" not in table.terminal(found)
    assert "| rank |" not in table.markdown(found)


def test_many_without_a_rank_are_counted() -> None:
    left_out = {f"model-{i}": "no per-sample file" for i in range(1_234)}
    (note,) = table.rank_notes({"mean": Ranks({}, left_out)})
    assert note == "no rank for model-0, model-1, model-2 and 1,231 more: no per-sample file"


def test_the_page_has_the_same_ranks(
    shown: tuple[list[Row], Catalog], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(document, "charts_library", lambda: ("", {"vega": "6", "vega_lite": "6"}))
    _, catalog = shown
    stored = [
        store.Stored(one.path, one.record, one.seal)
        for one in store.read_all(tmp_path / "results")
        if not one.record.seen and one.record.task == "animals-zs"
    ]
    text = site.page(stored, catalog, tmp_path / "results")
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0])
    names = [model["id"] for model in data["index"]["models"]]
    block = blocks.unpacked(data["blocks"]["task/0"])
    assert {names[int(place)]: rank for place, rank in block["ranks"].items()} == {
        "best": 1,
        "fair": 2,
        "good": 2,
    }
    assert block["rank_notes"][-1] == "no rank for poor: no per-sample file"
    assert "Rank is one more than" in text


def test_the_suites_of_the_page_have_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "charts_library", lambda: ("", {"vega": "6", "vega_lite": "6"}))
    (tmp_path / "suites.yaml").write_text("suites: {own: {title: Own, tasks: [digits-zs, digits-lp@knn]}}")
    catalog = Catalog([tmp_path])
    for model, wrong in (("a", 0), ("b", 40)):
        for task in map(catalog.task, ("digits-zs", "digits-lp@knn")):
            own: dict[str, Any] = {
                "task": task.id,
                "protocol": {
                    "name": task.protocol.id,
                    "version": task.protocol.version,
                    "params": task.params.canonical(),
                },
                "cards": {"model": {"title": model}, "task": task.dataset.card.canonical()},
            }
            write_model(tmp_path / "results", model, np.arange(360) >= wrong, **own)
    text = site.build(tmp_path / "results", catalog)
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0])
    (suite,) = (one for one in data["index"]["suites"] if one["id"] == "own")
    assert suite["ranks"] == {"a": 1, "b": 2}
    assert suite["rank_notes"][0].startswith("smallest difference that would have been seen 80 % of the time")
