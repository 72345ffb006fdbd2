"""`clipbench bench plans`: what execution plans cost on this machine, for the table that is shipped."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.inputs import random_clip
from clipbench.encoding.batches import noise
from clipbench.encoding.plans import Cost, agrees, candidates, measured, processor_kind, seconds, structure_of
from clipbench.encoding.runtime import UNABLE, Plan, Runtime, Tower
from clipbench.models.families import load
from clipbench.records.record import environment, utc_now
from clipbench.utils.cache import write_atomic
from clipbench.utils.cpu import cores

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType
    from torch import nn

    from clipbench.models.adapter import Adapter

_PROMPT = "a photo of a big airplane in the blue sky."


def measure(
    archs: Sequence[str], runtimes: Sequence[Runtime], rounds: int, *, compiled: bool, command: str
) -> dict[str, Any]:
    """What each plan takes, once and for each row, for both towers of architectures of open_clip with random weights.

    The plans take turns, `rounds` times; the median of each counts. A plan whose features are not those of `plain` is
    left out; that which compiles is only tried where `compiled` asks for it.

    Returns:
        The table of this machine alone: see `encoding.plans.table`.
    """
    rows = []
    load_average = round(os.getloadavg()[0], 2)
    for arch in archs:
        with tempfile.TemporaryDirectory(prefix="clipbench-bench-") as folder:
            adapter = load(random_clip(arch, Path(folder)))
        rows += [
            _row(arch, tower, adapter, runtime, rounds, compiled=compiled)
            for runtime in runtimes
            for tower in ("images", "texts")
        ]
    env, first = environment(), runtimes[0]
    how = {
        "command": command,
        "commit": env.commit,
        "dirty": env.dirty,
        "device": first.device_name,
        "cores": cores(),
        "torch": env.packages["torch"],
        "rounds": rounds,
        "load_average": load_average,
        "created": utc_now(),
    }
    return {"measured": {processor_kind(first): how}, "rows": rows}


def bring_up_to_date(path: Path, found: dict[str, Any]) -> None:
    """Put `found` into the table at `path`, in the place of what it has of the same processors.

    Raises:
        StorageError: it cannot be written.
    """
    held = json.loads(path.read_bytes()) if path.is_file() else {"measured": {}, "rows": []}
    rows = [row for row in held["rows"] if row["processor"] not in found["measured"]] + found["rows"]
    head = json.dumps(held["measured"] | found["measured"], indent=1)
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomic(path, f'{{\n"measured": {head},\n"rows": [\n{lines}\n]\n}}\n'.encode())


def view(found: dict[str, Any]) -> RenderableType:
    rows = []
    for row in found["rows"]:
        name = f"{row['arch']} {row['tower']}, {row['precision']}"
        plain = row["costs"]["plain"][1]
        for plan, (start_s, row_s) in row["costs"].items():
            rows.append([name, plan, f"{start_s:.2f}", f"{1000 * row_s:.3g}", f"{row_s / plain:.2f}"])
            name = ""
    heads = [
        f"{how['device']} ({kind}), {how['cores']} cores, medians of {how['rounds']}, "
        f"load average before: {how['load_average']}"
        for kind, how in found["measured"].items()
    ]
    return Group(*heads, "", views.table(("tower", "plan", "start s", "ms a row", "of plain"), rows))


def _row(
    arch: str, tower: str, adapter: Adapter, runtime: Runtime, rounds: int, *, compiled: bool
) -> dict[str, Any]:
    """One row of the table."""
    import torch

    torch._dynamo.reset()  # which compiles the same code for no more than a few towers
    if tower == "texts":
        ids, lengths = adapter.tokenize([_PROMPT])
        module, one = adapter.text_tower(), ids[:, : int(lengths[0])].to(runtime.device)
    else:
        preprocess = adapter.preprocess
        module = adapter.image_tower("joint")
        one = noise((1, preprocess.channels, preprocess.side, preprocess.side), runtime)
    module = module.to(runtime.device)
    structure = structure_of(module, one)
    plans = [p for p in candidates(runtime, tower == "texts") if compiled or p != "compiled"]
    batch = one.repeat(64 if tower == "texts" else 16 if runtime.on_cpu else 256, *[1] * (one.ndim - 1))
    costs = _costs(module, runtime, plans, batch, rounds)
    return {
        "arch": arch,
        "tower": tower,
        "structure": structure.id,
        "kind": structure.kind,
        "parameters": structure.parameters,
        "precision": runtime.precision,
        "processor": processor_kind(runtime),
        "costs": {plan: [round(c.start_s, 3), float(f"{c.row_s:.3g}")] for plan, c in costs.items()},
    }


def _costs(
    module: nn.Module, runtime: Runtime, plans: Sequence[Plan], batch: torch.Tensor, rounds: int
) -> dict[Plan, Cost]:
    towers: dict[Plan, Tower] = {}
    starts: dict[Plan, float] = {}
    for plan in plans:
        with suppress(*UNABLE):
            tower, cost = measured(lambda plan=plan: Tower(module, runtime, plan), batch)  # type: ignore[misc]
            if plan == "plain" or agrees(tower, module, lambda n: batch[:n]):
                towers[plan], starts[plan] = tower, cost.start_s
    turns = [{plan: seconds(tower, batch) for plan, tower in towers.items()} for _ in range(rounds)]
    return {plan: Cost(starts[plan], median(turn[plan] for turn in turns) / len(batch)) for plan in towers}
