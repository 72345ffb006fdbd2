"""Measurements of plans and of fixed costs, from the command line, on a small tower of open_clip."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import open_clip
import pytest
from commandline import Run, run  # noqa: F401 - a fixture
from rich.console import Console
from small import one_thread  # noqa: F401 - a fixture

from clipbench.bench import plans, startup
from clipbench.encoding.plans import processor_kind
from clipbench.encoding.runtime import Runtime

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
_TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "width": 32, "head_width": 16, "patch_size": 8, "layers": 1},
    "text_cfg": _TEXT,
}


def shown(view: Any) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(view)
    return console.export_text()


def test_plans_are_measured_into_a_table_beside_other_processors(
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(_TINY))
    open_clip.add_model_config(tmp_path / "tiny.json")
    out, own = tmp_path / "table.json", processor_kind(Runtime("cpu", "fp32"))
    other, old = {"processor": "another"}, {"processor": own, "arch": "old"}
    out.write_text(json.dumps({"measured": {"another": {}, own: {}}, "rows": [other, old]}))
    done = run("bench", "plans", "--arch", "tiny", "--precision", "fp32", "--rounds", "2", "--out", out)
    assert done.code == 0, done.err
    assert "tiny images, fp32" in done.out
    table = json.loads(out.read_text())
    assert set(table["measured"]) == {"another", own}
    how = table["measured"][own]
    command = "clipbench bench plans --arch tiny --precision fp32 --device auto --rounds 2"
    assert (how["command"], how["rounds"], how["cores"] > 0) == (command, 2, True)
    first, images, texts = table["rows"]
    assert first == other
    assert (images["tower"], images["kind"], texts["tower"], texts["kind"]) == (
        "images", "attention", "texts", "texts",
    )  # fmt: skip
    for row in (images, texts):
        assert (row["arch"], row["precision"], row["processor"]) == ("tiny", "fp32", own)
        assert all(start >= 0 and each > 0 for start, each in row["costs"].values())
    assert {"plain", "channels_last"} <= set(images["costs"])
    assert "channels_last" not in texts["costs"]


def test_unknown_architectures_are_named(run: Run) -> None:  # noqa: F811
    done = run("bench", "plans", "--arch", "ViT-B-23")
    assert done.code == 2
    assert 'unknown open_clip architecture "ViT-B-23"' in done.err


def test_a_row_of_the_view_is_relative_to_plain() -> None:
    row = {
        "arch": "A",
        "tower": "texts",
        "precision": "bf16",
        "costs": {"plain": [0, 0.2], "packed": [1, 0.05]},
    }
    how = {"device": "some", "cores": 2, "rounds": 3, "load_average": 0.5}
    text = shown(plans.view({"measured": {"amx": how}, "rows": [row]}))
    assert "some (amx), 2 cores, medians of 3, load average before: 0.5" in text
    assert [line.split()[-1] for line in text.splitlines() if "pl" in line or "packed" in line][-2:] == [
        "1.00",
        "0.25",
    ]


def test_fixed_costs_cold_warm_and_of_the_peer(run: Run, tmp_path: Path) -> None:  # noqa: F811
    peer = tmp_path / "python"
    peer.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nsleep 0.2\n')
    peer.chmod(0o755)
    command = ("bench", "startup", "--arch", "ViT-S-32-alt", "--images", 1, "--rounds", 1, "--json")
    done = run(*map(str, command), "--precision", "fp32", "--peer", peer)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    [size] = found["sizes"]
    assert size["images"] == 1
    cold, warm = size["cold"], size["warm"]
    for own in (cold, warm):
        stages = {name: value for name, value in own.items() if name != "wall"}
        assert own["wall"] == pytest.approx(sum(stages.values()), abs=0.01)
    assert cold["encode texts"] > 0
    assert warm.get("encode texts", 0) + warm.get("encode images", 0) < cold["encode texts"]
    assert min(cold["start"], cold["import"], cold["load"], warm["start"]) > 0
    assert size["peer"]["wall"] >= 0.2
    assert size["ratio"] == pytest.approx(cold["wall"] / size["peer"]["wall"], rel=0.02)
    asked = (tmp_path / "asked").read_text()
    assert "--dataset wds/cifar10" in asked
    assert "--no_amp" in asked
    text = shown(startup.view(found))
    assert f"1 images: cold {size['ratio']:.2f} of the peer" in text


def test_fixed_costs_of_a_model_by_its_name_stage_by_stage(run: Run) -> None:  # noqa: F811
    command = "bench startup --model digits-clip-lite --images 1 --rounds 1 --precision fp32 --device cpu"
    done = run(*command.split())
    assert done.code == 0, done.err
    assert "digits-clip-lite, fp32" in done.out
    [head] = [line for line in done.out.splitlines() if "cold" in line]
    assert head.split() == ["images", "1", "cold", "1", "warm"]
    times = {line[:14].strip(): line[14:].split() for line in done.out.splitlines()}
    assert len(times["wall"]) == len(times["end"]) == 2
    assert len(times["import"]) == 1  # cold alone
    assert "…" not in done.out


def test_a_peer_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"exit status 1: .*clip_benchmark"):
        startup._run([sys.executable, "-c", "from clip_benchmark_that_is_not_here import main"], {})
    with pytest.raises(Exception, match="nowhere cannot be started"):
        startup._run([str(tmp_path / "nowhere")], {})
