"""A protocol that a plugin brings, in one module: from a folder, and from an installed package."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import commandline
import pytest
import small
from commandline import Run

from clipbench import protocols
from clipbench.errors import ClipbenchError
from clipbench.protocols import registry
from clipbench.utils import plugins

run = commandline.run
TOY = '''
"""How often an image lies nearer to its own class than to the next one."""

import numpy as np

from clipbench.metrics.intervals import accuracy_score
from clipbench.protocols.base import MetricSpec, Needs, Outcome, Params, Protocol
from clipbench.protocols.zero_shot import classifier


class Settings(Params):
    """What a task card may set under `protocols: {toy: …}`."""

    primary: str = "nearer"
    split: str = "test"


def needs(params, compared):
    return Needs(((params.split, compared),))


def run(card, splits, inputs, params, seed):
    split = splits[params.split]
    scores = np.asarray(inputs.images(split, inputs.compared)) @ classifier(card, "default", inputs).T
    own = scores[np.arange(len(split)), split.labels]
    other = scores[np.arange(len(split)), (split.labels + 1) % len(card.classes)]
    hit = own > other
    samples = {"id": np.array(split.ids, dtype=object), "target": split.labels, "nearer": hit}
    return Outcome({"nearer": accuracy_score(hit, 0.5)}, samples=samples)


PROTOCOL = Protocol(
    id="toy",
    version=1,
    kinds=("single-label",),
    params=Settings,
    metrics=(MetricSpec("nearer", "1 / 2", shares=lambda _, table, __: np.array(table["nearer"], float)),),
    check=lambda card, params: None,
    needs=needs,
    run=run,
    text=True,
)
'''


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a plugin adds is gone afterwards."""
    monkeypatch.setattr(plugins, "_folders", [])
    monkeypatch.setattr(protocols, "__path__", list(protocols.__path__))
    yield
    registry._of.cache_clear()
    for name in ("clipbench.protocols.toy", "toy_protocols"):
        sys.modules.pop(name, None)
    vars(protocols).pop("toy", None)


def plugin(folder: Path, text: str = TOY) -> Path:
    path = folder / "protocols" / "toy.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution toy-protocols, whose module toy_protocols is a protocol."""
    about = folder / "toy_protocols-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-protocols\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[clipbench.protocols]\ntoy = toy_protocols\n")
    (folder / "toy_protocols.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("way", ["installed", "plugin folder"])
def test_a_plugins_protocol_goes_the_whole_way(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Listed, shown, evaluated, checked, reported, drawn, compared and gated, from one file."""
    options: tuple[str | Path, ...] = ()
    if way == "installed":
        installed(tmp_path / "site", monkeypatch)
    else:
        plugin(tmp_path / "plugins")
        options = ("--plugins", tmp_path / "plugins")
    where = ("--cards", tmp_path / "cards", *options)
    small.write_task(tmp_path / "cards", protocols={"toy": {}})
    small.write_images(tmp_path / "data", 60)
    listed = run("list", "tasks", "--json", *where)
    assert "animals-toy" in listed.out
    assert json.loads(run("show", "animals-toy", "--json", *where).out)["protocol"]["name"] == "toy"
    results = tmp_path / "results"
    for seed, name in enumerate(("a", "b")):
        small.write_run(tmp_path / name, seed=seed)
        done = run(
            *("eval", "--model", tmp_path / name, "--task", "animals-toy", "--precision", "fp32"),
            *("--data", f"animals={tmp_path / 'data'}", "--results", results, *where),
        )
        assert done.code == 0, done
    checked = run("check", "--results", results, *where)
    assert (checked.code, checked.out.split()[-2:]) == (0, ["all", "well"]), checked
    assert "nearer" in run("report", "--results", results, "--format", "csv", *where).out
    assert run("site", "--results", results, "--out", tmp_path / "site-out", *where).code == 0
    compared = run("compare", tmp_path / "a", tmp_path / "b", "--results", results, "--json", *where)
    (one,) = [one for one in json.loads(compared.out) if one["metric"] == "nearer"]
    assert "McNemar" in one["method"]  # by what each sample adds, not from intervals
    gated = run("gate", "--candidate", results, "--baseline", results, *where)
    assert gated.code == 0, gated


def test_a_module_that_is_no_protocol_is_named(tmp_path: Path) -> None:
    path = plugin(tmp_path / "plugins", "PROTOCOL = 3\n")
    plugins.add(tmp_path / "plugins")
    with pytest.raises(ClipbenchError, match="is no protocol: it has no PROTOCOL") as error:
        registry.protocol_ids()
    assert str(path) in str(error.value)


def test_a_protocol_that_takes_anothers_id_is_refused(tmp_path: Path) -> None:
    plugin(tmp_path / "plugins", TOY.replace('id="toy"', 'id="zs"'))
    plugins.add(tmp_path / "plugins")
    with pytest.raises(ClipbenchError, match='another protocol has the id "zs"'):
        registry.protocol_ids()


def test_a_metric_that_means_something_else_is_refused(tmp_path: Path) -> None:
    plugin(tmp_path / "plugins", TOY.replace('MetricSpec("nearer"', 'MetricSpec("acc1"'))
    plugins.add(tmp_path / "plugins")
    for _ in range(2):  # it is not taken at the second look either
        with pytest.raises(ClipbenchError, match='the metric "acc1" is another protocol\'s too'):
            registry.protocol_ids()
