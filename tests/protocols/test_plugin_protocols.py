"""A protocol that a plugin brings, in one module: from a folder, and from an installed package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import commandline
import plugged
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
from clipbench.protocols.zero_shot import classifier, prompts


class Settings(Params):
    """What a task card may set under `protocols: {toy: …}`."""

    primary: str = "nearer"
    split: str = "test"


def needs(params, compared):
    return Needs(((params.split, compared),))


def texts(card, splits, params):
    return [text for group in prompts(card, "default") for text in group]


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
    texts=texts,
)
'''


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with plugged.forgotten(protocols, monkeypatch):
        yield
    registry._of.cache_clear()


@pytest.mark.parametrize("way", plugged.WAYS)
def test_a_plugins_protocol_goes_the_whole_way(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Listed, shown, evaluated, checked, reported, drawn, compared and gated, from one file."""
    where = ("--cards", tmp_path / "cards", *plugged.bring(way, tmp_path, "protocols", TOY, monkeypatch))
    small.write_task(tmp_path / "cards", protocols={"toy": {}})
    small.write_images(tmp_path / "data", 60)
    listed = run("list", "tasks", "--json", *where)
    assert "animals-toy" in listed.out
    assert json.loads(run("show", "animals-toy", "--json", *where).out)["protocol"]["name"] == "toy"
    models = [small.write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    compared = plugged.whole_way(run, tmp_path, models, "animals-toy", f"animals={tmp_path / 'data'}", *where)
    (one,) = [one for one in compared if one["metric"] == "nearer"]
    assert "McNemar" in one["method"]  # by what each sample adds, not from intervals
    assert "nearer" in run("report", "--results", tmp_path / "results", "--format", "csv", *where).out


def test_a_module_that_is_no_protocol_is_named(tmp_path: Path) -> None:
    path = plugged.plugin(tmp_path / "plugins", "protocols", "PROTOCOL = 3\n")
    plugins.add(tmp_path / "plugins")
    with pytest.raises(ClipbenchError, match="is no protocol: it has no PROTOCOL") as error:
        registry.protocol_ids()
    assert str(path) in str(error.value)


def test_a_protocol_that_takes_anothers_id_is_refused(tmp_path: Path) -> None:
    plugged.plugin(tmp_path / "plugins", "protocols", TOY.replace('id="toy"', 'id="zs"'))
    plugins.add(tmp_path / "plugins")
    with pytest.raises(ClipbenchError, match='another protocol has the id "zs"'):
        registry.protocol_ids()


def test_a_metric_that_means_something_else_is_refused(tmp_path: Path) -> None:
    plugged.plugin(tmp_path / "plugins", "protocols", TOY.replace('MetricSpec("nearer"', 'MetricSpec("acc1"'))
    plugins.add(tmp_path / "plugins")
    for _ in range(2):  # it is not taken at the second look either
        with pytest.raises(ClipbenchError, match='the metric "acc1" is another protocol\'s too'):
            registry.protocol_ids()
