"""Plans: the cheapest is taken by the table or by what was measured here; a trial costs 2 % of the work at most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipbench.encoding import plans
from clipbench.encoding.plans import Cost, fastest, structure_of
from clipbench.encoding.runtime import Plan, Runtime, Tower
from clipbench.models.towers.open_clip import build, text_tower

CPU = Runtime("cpu", "fp32")
MODULE = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(64, 8)).eval()
OTHER = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(64, 9)).eval()
ALL: tuple[Plan, ...] = ("plain", "channels_last", "packed", "compiled")


def example(rows: int) -> torch.Tensor:
    return torch.randn(rows, 3, 32, 32)


class Clock:
    """Time that passes only where a tower is laid out or runs, and what has run.

    Attributes:
        costs: seconds of a plan.
        errors: how far a plan moves features.
        unable: plans that this machine does not have.
        passed: (plan, rows) of every call.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.costs: dict[Plan, Cost] = {plan: Cost(0.0, 1.0) for plan in ALL}
        self.errors: dict[str, float] = {}
        self.unable: set[str] = set()
        self.passed: list[tuple[str, int]] = []

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()

    class Timed(Tower):
        def __init__(self, module: nn.Module, runtime: Runtime, plan: Plan = "plain") -> None:
            if plan in found.unable:
                raise RuntimeError("not on this machine")
            self.runtime, self.plan = runtime, plan
            found.now += found.costs[plan].start_s

        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            found.passed.append((self.plan, len(batch)))
            found.now += found.costs[self.plan].row_s * len(batch)
            return torch.full((len(batch), 1), 1 + found.errors.get(self.plan, 0.0))

    monkeypatch.setattr(plans, "Tower", Timed)
    monkeypatch.setattr(plans, "time", found)
    return found


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows of the shipped table."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(plans, "table", lambda: {"rows": rows})
    monkeypatch.setattr(plans, "processor_kind", lambda _: "avx512")
    return rows


def row(module: nn.Module = MODULE, processor: str = "avx512", **costs: list[float]) -> dict[str, Any]:
    structure = structure_of(module, example(1))
    return {
        "structure": structure.id, "kind": structure.kind, "parameters": structure.parameters,
        "precision": "fp32", "processor": processor, "costs": costs,
    }  # fmt: skip


def remembered(cache: Path) -> Any:
    (kept,) = (cache / "plans-3").glob("*.json")
    return json.loads(kept.read_bytes().partition(b"\n")[0])


def test_the_table_tells_the_cheapest_for_the_rows_and_nothing_is_run(
    clock: Clock, table: list[dict[str, Any]], isolated_cache: Path
) -> None:
    table.append(row(plain=[0.0, 2.0], packed=[50.0, 1.0], compiled=[500.0, 0.1]))
    table.append(row(OTHER, plain=[0.0, 2.0], packed=[0.0, 9.0]))
    for rows, plan in ((49, "plain"), (51, "packed"), (499, "packed"), (501, "compiled")):
        assert fastest(MODULE, CPU, example, rows).plan == plan
    assert clock.passed == []
    assert not (isolated_cache / "plans-3").exists()


def test_without_a_row_and_where_bits_are_fixed_it_is_plain(
    clock: Clock, table: list[dict[str, Any]]
) -> None:
    assert fastest(MODULE, CPU, example, 1_000).plan == "plain"
    table.append(row(plain=[0.0, 2.0], packed=[0.0, 1.0]))
    assert fastest(MODULE, Runtime("cpu", "bf16"), example, 1_000).plan == "plain"
    fixed = Runtime("cpu", "fp32", deterministic=True)
    assert fastest(MODULE, fixed, example, 100_000).plan == "plain"
    assert clock.passed == []


@pytest.mark.parametrize(("error", "plan"), [(1e-7, "packed"), (1e-3, "plain"), (float("nan"), "plain")])
def test_of_another_tower_the_nearest_is_taken_and_compared_once(
    clock: Clock, table: list[dict[str, Any]], isolated_cache: Path, error: float, plan: str
) -> None:
    table.append(row(OTHER, plain=[0.0, 2.0], packed=[0.0, 1.0], compiled=[0.0, 0.1]))
    clock.errors["packed"] = error
    assert fastest(MODULE, CPU, example, 1_000).plan == plan
    assert clock.passed == [("plain", 2), ("packed", 2)]
    assert remembered(isolated_cache) == {"costs": {}, "agreed": {"packed": plan == "packed"}}
    assert fastest(MODULE, CPU, example, 1_000).plan == plan
    assert len(clock.passed) == 2


def test_the_nearest_is_of_the_same_kind_on_the_most_similar_processor_and_of_its_size(
    table: list[dict[str, Any]],
) -> None:
    deep = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 8))
    large = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(64, 40))
    larger = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(64, 800))
    structure = structure_of(MODULE, example(1))
    assert structure.kind == "attention"  # one convolution, as ViTs have
    assert structure_of(deep, example(1)).kind == "convolutions"
    assert structure_of(MODULE, torch.zeros(1, 7, dtype=torch.int64)).kind == "texts"
    table += [row(deep, packed=[0.0, 1.0]), row(larger, packed=[0.0, 1.0])]
    assert plans.shipped(structure, CPU) == ({}, False)
    for number, (module, processor) in enumerate(
        ((MODULE, "amx"), (large, "avx512-bf16"), (OTHER, "avx2"), (large, "avx512"), (OTHER, "avx512"))
    ):
        table.append(row(module, processor, plain=[0.0, float(number)]))
        costs, sure = plans.shipped(structure, CPU)
        assert not sure
        assert costs["plain"].row_s == {0: 0, 1: 1}.get(number, 2 if number == 2 else number)
    table.append(row(plain=[0.0, 9.0]))
    assert plans.shipped(structure, CPU) == ({"plain": Cost(0.0, 9.0)}, True)


def test_a_plan_that_this_machine_lacks_is_passed_over(clock: Clock, table: list[dict[str, Any]]) -> None:
    table.append(row(plain=[0.0, 3.0], packed=[0.0, 1.0], channels_last=[0.0, 2.0]))
    clock.unable.add("packed")
    assert fastest(MODULE, CPU, example, 1_000).plan == "channels_last"


def test_a_trial_is_remembered_and_counts_more_than_the_table(
    clock: Clock, table: list[dict[str, Any]], isolated_cache: Path
) -> None:
    table.append(row(plain=[0.0, 2.0], packed=[0.0, 1.0]))
    clock.costs["channels_last"] = Cost(5.0, 0.5)
    assert fastest(MODULE, CPU, example, 1_000_000).plan == "channels_last"
    assert {plan for plan, _ in clock.passed} == set(ALL)
    costs = remembered(isolated_cache)["costs"]
    assert costs == {plan: [5.0 * (plan == "channels_last"), clock.costs[plan].row_s] for plan in ALL}
    clock.passed.clear()
    assert fastest(MODULE, CPU, example, 1_000_000).plan == "channels_last"
    assert fastest(MODULE, CPU, example, 6).plan != "channels_last", "laying it out would not pay"
    assert clock.passed == []


def test_a_trial_refuses_a_plan_that_moves_features(
    clock: Clock, table: list[dict[str, Any]], isolated_cache: Path
) -> None:
    clock.costs |= {"packed": Cost(0.0, 0.1), "channels_last": Cost(0.0, 0.5)}
    clock.errors["packed"] = 1e-3
    assert fastest(MODULE, CPU, example, 50_000).plan == "channels_last"
    assert "packed" not in remembered(isolated_cache)["costs"]


@pytest.mark.parametrize("rows", [64, 1_000, 1_599])
def test_small_work_has_no_trial(clock: Clock, table: list[dict[str, Any]], rows: int) -> None:
    table.append(row(plain=[0.0, 2.0], packed=[0.0, 1.0]))
    assert fastest(MODULE, CPU, example, rows).plan == "packed"
    assert clock.passed == []


@pytest.mark.parametrize("rows", [1_600, 2_000, 4_000, 10_000, 100_000])
@pytest.mark.parametrize("speed", [1e-3, 0.1, 10.0])
def test_a_trial_takes_no_more_than_two_per_cent_of_the_work(
    clock: Clock, table: list[dict[str, Any]], rows: int, speed: float
) -> None:
    table.append(row(plain=[0.0, speed], compiled=[40.0, speed]))
    for plan in ALL:
        clock.costs[plan] = Cost(40.0 if plan == "compiled" else 0.0, speed)
    chosen = fastest(MODULE, CPU, example, rows)
    assert clock.passed
    assert clock.now <= 0.02 * rows * speed * (1 + 1e-9)
    tried = {plan for plan, _ in clock.passed}
    assert ("compiled" in tried) == (40.0 + (3 * 16 + 2 * 4 + 2 * 64) * speed < 0.02 * rows * speed)
    assert chosen.plan == "plain"


def test_compilation_is_not_tried_on_texts(clock: Clock, table: list[dict[str, Any]]) -> None:
    clock.costs["packed"] = Cost(0.0, 0.5)
    assert fastest(MODULE, CPU, example, 10_000_000, vary=True).plan == "packed"
    assert {plan for plan, _ in clock.passed} == {"plain", "packed"}


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "amx"),
        ("fpu avx2 avx512f avx512_bf16", "avx512-bf16"),
        ("fpu avx2 avx512f", "avx512"),
        ("fpu avx2", "avx2"),
    ],
)
def test_a_processor_is_known_by_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch, flags: str, kind: str
) -> None:
    monkeypatch.setattr(plans, "processor", lambda: ("some processor", flags))
    assert plans.processor_kind(CPU) == kind


def test_the_table_that_is_shipped_is_of_the_towers_as_they_are() -> None:
    table = plans.table()
    assert {row["processor"] for row in table["rows"]} == set(table["measured"])
    for how in table["measured"].values():
        assert how["command"].startswith("clipbench bench plans --arch ")
        assert {"commit", "device", "cores", "torch", "rounds", "load_average"} <= set(how)
    for arch, structures in _structures({row["arch"] for row in table["rows"]}):
        rows = [row for row in table["rows"] if row["arch"] == arch]
        assert {(row["tower"], row["structure"]) for row in rows} == structures
    for row in table["rows"]:
        assert {"plain", "packed"} <= set(row["costs"]) <= set(ALL)
        assert all(start >= 0 and each > 0 for start, each in row["costs"].values())


def _structures(archs: set[str]) -> Iterator[tuple[str, set[tuple[str, str]]]]:
    for arch in sorted(archs):
        module = build(arch, quick_gelu=arch.endswith("quickgelu"))
        ids = torch.zeros(1, 9, dtype=torch.int64)
        yield (
            arch,
            {
                ("images", structure_of(module.visual, torch.zeros(1, 3, 224, 224)).id),
                ("texts", structure_of(text_tower(module, 77), ids).id),
            },
        )
