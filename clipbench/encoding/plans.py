"""Which plan a tower runs under: the one that costs least for the rows at hand.

What plans cost is known from this machine, where it has measured them, or else from a table that is shipped
(`plans.json`, which `clipbench bench plans` writes): seconds at the start, and for each row. So a first run measures
nothing. The table is sure of the towers and kinds of processors that were measured. For other towers it tells what
the nearest one of the same kind costs, and the plan is first compared with `plain` on two rows; where it moves a
feature by more than the precision's own error, `plain` is taken.

Only long work has a trial, which may cost 2 % of it: plans that nobody measured here run a few rows each, and what
they cost is remembered. Compilation is in the same reckoning, with the seconds that it takes. It is not overlapped
with encoding: all rows of a file are made under one plan.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from clipbench.cards.base import fingerprint
from clipbench.encoding.batches import batch_rows
from clipbench.encoding.runtime import UNABLE, Plan, Runtime, Tower, processor
from clipbench.utils.cache import cache_root, read_checked, write_checked

if TYPE_CHECKING:
    import torch
    from torch import nn

    Example = Callable[[int], torch.Tensor]

TABLE: Final = Path(__file__).with_name("plans.json")
#: of the work that is left: what a trial may cost
SHARE: Final = 0.02
#: kinds of processors, the best first → the flag in /proc/cpuinfo that tells them
_KINDS: Final = {"amx": "amx_bf16", "avx512-bf16": "avx512_bf16", "avx512": "avx512f", "avx2": "avx2"}
#: times the parameters, more or fewer, that a tower may have whose costs are taken for another's
_LIKE: Final = 8.0
_TRIAL_ROWS: Final = {True: 8, False: 64}  # on a CPU, or not
_CHECK_ROWS: Final = 2
#: what a comparison costs, as rows of the plan that is checked: its exact rows are slow
_CHECK_COSTS: Final = 8
_COMPILE_S: Final = 60.0  # what compilation takes until it was measured
_FP32_TOLERANCE: Final = 1e-5  # largest relative error of a feature row between fp32 plans
_REMEMBERED: Final = "clipbench costs of plans 1"


class Cost(NamedTuple):
    """Seconds that a plan takes: once, and for each row."""

    start_s: float
    row_s: float

    def of(self, rows: int) -> float:
        return self.start_s + rows * self.row_s


class Structure(NamedTuple):
    """What a tower is: a digest of its modules and shapes; `attention`, `convolutions` or `texts`; its size."""

    id: str
    kind: str
    parameters: int


@dataclass
class _Known:
    """What this machine has seen of a tower: what plans cost, and whether their features are those of `plain`."""

    costs: dict[Plan, Cost] = field(default_factory=dict)
    agreed: dict[Plan, bool] = field(default_factory=dict)


def fastest(module: nn.Module, runtime: Runtime, example: Example, rows: int, *, vary: bool = False) -> Tower:
    """`module` under the plan that costs least for `rows` rows of input.

    `example(n)` makes a batch of n rows on the device. `vary` says that batches differ in shape (text), where
    compilation would start over for each. A deterministic runtime has `plain`.
    """
    if runtime.deterministic:
        return Tower(module, runtime)
    structure = structure_of(module, example(1))
    path = cache_root() / "plans-3" / f"{_place(structure, runtime)}.json"
    known = _remembered(path)
    costs = known.costs
    if not costs:
        costs, sure = shipped(structure, runtime)
        known.agreed |= dict.fromkeys(costs, True) if sure else {}
    before = json.dumps(vars(known))
    tower = Tower(module, runtime)
    for plan in sorted(costs, key=lambda plan: costs[plan].of(rows)):
        if plan == "plain":
            break
        with suppress(*UNABLE):
            if not known.agreed.get(plan, True):
                continue
            other = Tower(module, runtime, plan)
            if plan not in known.agreed:
                known.agreed[plan] = agrees(other, module, example)
            if known.agreed[plan]:
                tower = other
                break
    tower = _tried(tower, module, runtime, example, rows, candidates(runtime, vary), costs, known)
    if json.dumps(vars(known)) != before:
        write_checked(path, json.dumps(vars(known)).encode(), _REMEMBERED)
    return tower


def candidates(runtime: Runtime, vary: bool) -> tuple[Plan, ...]:
    """All plans that may be tried."""
    packs = runtime.on_cpu and runtime.precision != "fp16"
    if vary:
        return ("plain", "packed") if packs else ("plain",)
    return (
        ("plain", "channels_last", "packed", "compiled") if packs else ("plain", "channels_last", "compiled")
    )


def structure_of(module: nn.Module, example: torch.Tensor) -> Structure:
    """What decides, with the precision and the machine, which plan is the fastest; `example` is a batch of one row."""
    shapes = [(name, list(p.shape)) for name, p in module.named_parameters()]
    kinds = [type(m).__name__ for m in module.modules()]
    images = example.ndim == 4
    kind = "texts" if not images else "convolutions" if kinds.count("Conv2d") > 1 else "attention"
    found = fingerprint([shapes, sorted(set(kinds)), list(example.shape[1:]) if images else "ids"])
    return Structure(found[:16], kind, sum(p.numel() for p in module.parameters()))


def processor_kind(runtime: Runtime) -> str:
    """What decides, of a machine, which plan is the fastest."""
    import torch

    if not runtime.on_cpu:
        return "cuda {}.{}".format(*torch.cuda.get_device_capability(runtime.device))
    flags = processor()[1].split()
    return next((kind for kind, flag in _KINDS.items() if flag in flags), platform.machine())


def shipped(structure: Structure, runtime: Runtime) -> tuple[dict[Plan, Cost], bool]:
    """What plans cost by the table, and whether it is sure: this tower was measured on this kind of processor.

    Otherwise the nearest: of the same kind of tower, on the processor most like this one, of about its size;
    nothing where there is none. Compilation is then left out.
    """
    kind = processor_kind(runtime)
    rows = [row for row in table()["rows"] if row["precision"] == runtime.precision]
    for row in rows:
        if (row["structure"], row["processor"]) == (structure.id, kind):
            return {plan: Cost(*cost) for plan, cost in row["costs"].items()}, True
    order = list(_KINDS)
    place = order.index(kind) if kind in order else None
    like = {kind: 0} if place is None else {each: abs(i - place) for i, each in enumerate(order)}
    near = [
        (like[row["processor"]], ratio, row["costs"])
        for row in rows
        if row["processor"] in like
        and row["kind"] == structure.kind
        and (ratio := _ratio(structure.parameters, row["parameters"])) <= _LIKE
    ]
    _, _, costs = min(near, key=lambda each: each[:2], default=(0, 0.0, {}))
    return {plan: Cost(*cost) for plan, cost in costs.items() if plan != "compiled"}, False


def _ratio(a: int, b: int) -> float:
    return max(a, b) / max(min(a, b), 1)


@cache
def table() -> dict[str, Any]:
    """The table that is shipped: `measured`, kind of processor → how; `rows`, a tower and a precision each."""
    found: dict[str, Any] = json.loads(TABLE.read_bytes())
    return found


def measured(make: Callable[[], Tower], batch: torch.Tensor) -> tuple[Tower, Cost]:
    """The tower that `make` lays out, and what it takes: from the beginning to the first rows, and once warm."""
    start = time.perf_counter()
    tower = make()
    tower(batch)
    _wait(tower.runtime)
    first = time.perf_counter() - start
    warm = seconds(tower, batch)
    return tower, Cost(max(first - warm, 0.0), warm / len(batch))


def seconds(tower: Tower, batch: torch.Tensor) -> float:
    """What one call takes."""
    _wait(tower.runtime)
    start = time.perf_counter()
    tower(batch)
    _wait(tower.runtime)
    return time.perf_counter() - start


def agrees(tower: Tower, module: nn.Module, example: Example) -> bool:
    """Whether features under this plan are as near to those in fp32 as `plain` ones are."""
    runtime = tower.runtime
    batch = example(_CHECK_ROWS)
    plain = Tower(module, runtime)(batch)
    exact = plain if runtime.precision == "fp32" else Tower(module, Runtime(runtime.device, "fp32"))(batch)
    if tower.plan == "compiled":  # which is compiled for batches of one size
        batch = batch.repeat(-(-batch_rows(runtime) // _CHECK_ROWS), 1, 1, 1)[: batch_rows(runtime)]
    error = _error(tower(batch)[:_CHECK_ROWS], exact)
    return error <= max(1.5 * _error(plain, exact), _FP32_TOLERANCE)


# ---------------------------------------------------------------------- parts


def _tried(
    tower: Tower,
    module: nn.Module,
    runtime: Runtime,
    example: Example,
    rows: int,
    plans: tuple[Plan, ...],
    costs: dict[Plan, Cost],
    known: _Known,
) -> Tower:
    """`tower`, or a faster one that a trial finds, where that costs no more than its share of the work."""
    size = _TRIAL_ROWS[runtime.on_cpu]
    untried = [p for p in plans if p != tower.plan and p not in known.costs and known.agreed.get(p, True)]
    if not untried or 4 * size > SHARE * rows:  # two plans, two passes each
        return tower
    begun = time.perf_counter()
    found: dict[Plan, Cost] = {}
    batch = example(batch_rows(runtime) if tower.plan == "compiled" else size)
    tower, found[tower.plan] = measured(lambda: tower, batch)
    row_s = found[tower.plan].row_s
    for plan in untried:
        compiled = plan == "compiled"
        passed = 2 * (batch_rows(runtime) if compiled else size)
        passed += 0 if plan == "plain" or plan in known.agreed else _CHECK_COSTS * _CHECK_ROWS
        start_s = costs[plan].start_s if plan in costs else _COMPILE_S if compiled else 0.0
        if time.perf_counter() - begun + start_s + passed * row_s > SHARE * rows * row_s:
            continue
        with suppress(*UNABLE):
            batch = example(batch_rows(runtime) if compiled else size)
            other, cost = measured(lambda plan=plan: Tower(module, runtime, plan), batch)  # type: ignore[misc]
            if plan != "plain" and plan not in known.agreed:
                known.agreed[plan] = agrees(other, module, example)
            if known.agreed.get(plan, True):
                found[plan] = cost
                tower = other if cost.row_s < 0.98 * found[tower.plan].row_s else tower
    if len(found) > 1:
        known.costs |= found
    return tower


def _place(structure: Structure, runtime: Runtime) -> str:
    """Name of what is remembered of a tower: it holds for this machine and version of torch."""
    import torch

    machine = [runtime.device_name, torch.get_num_threads(), torch.__version__]
    return fingerprint([structure.id, runtime.precision, machine])[:32]


def _remembered(path: Path) -> _Known:
    found = read_checked(path, _REMEMBERED)
    if found is None:
        return _Known()
    held = json.loads(found)
    return _Known({plan: Cost(*cost) for plan, cost in held["costs"].items()}, held["agreed"])


def _wait(runtime: Runtime) -> None:
    import torch

    if not runtime.on_cpu:
        torch.cuda.synchronize(runtime.device)


def _error(features: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest relative error of a row; infinite where a feature is not finite."""
    error = (features - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-12)
    worst = float(error.max())
    return worst if worst == worst else float("inf")
