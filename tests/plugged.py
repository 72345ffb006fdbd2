"""A module that a plugin brings, in each way that it can come, and the whole way of the records made with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commandline import Run

from clipbench.utils import plugins

WAYS = ("installed", "plugin folder")


def plugin(folder: Path, group: str, text: str, name: str = "toy") -> Path:
    """A module of the plugin folder `folder`; returns its file."""
    path = folder / group / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def installed(folder: Path, group: str, text: str, point: str = "toy = their_parts") -> Path:
    """The distribution `theirs` in `folder`, whose module their_parts an entry point of `group` names."""
    about = folder / "theirs-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[clipbench.{group}]\n{point}\n")
    (folder / "their_parts.py").write_text(text)
    return folder


def bring(
    way: str, folder: Path, group: str, text: str, monkeypatch: pytest.MonkeyPatch, name: str = "toy"
) -> tuple[str | Path, ...]:
    """Bring a module in one of `WAYS`, below `folder`; returns the options that commands need for it."""
    if way == "installed":
        site = installed(folder / "site", group, text, f"{name} = their_parts")
        monkeypatch.syspath_prepend(str(site))
        return ()
    plugin(folder / "plugins", group, text, name)
    return "--plugins", folder / "plugins"


@contextmanager
def forgotten(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What plugins add to the group whose own modules are in `package` is gone afterwards."""
    (own,) = package.__path__
    monkeypatch.setattr(plugins, "_folders", [])
    monkeypatch.setattr(package, "__path__", [own])
    yield
    for name, module in list(sys.modules.items()):
        above, _, last = name.rpartition(".")
        theirs = above == package.__name__ and not Path(str(module.__file__)).is_relative_to(own)
        if theirs or name == "their_parts":
            del sys.modules[name]
            vars(package).pop(last, None)


def whole_way(
    run: Run, root: Path, models: Sequence[Path], task: str, data: str, *options: str | Path
) -> list[dict[str, Any]]:
    """Evaluate two models on `task`, `data` being the value of --data; check, report, draw, compare and gate their
    records in root/results. Returns what `compare` says of each metric.
    """
    results = ("--results", root / "results")
    for model in models:
        what = ("eval", "--model", model, "--task", task, "--precision", "fp32", "--data", data)
        done = run(*what, *results, *options)
        assert done.code == 0, done
    checked = run("check", *results, *options)
    assert (checked.code, checked.out.split()[-2:]) == (0, ["all", "well"]), checked
    rows = run("report", *results, "--format", "csv", *options).out.splitlines()
    for model in models:
        assert [row for row in rows if str(model) in row and task in row], rows
    assert run("site", *results, "--out", root / "site-out", *options).code == 0
    compared = run("compare", *models, *results, "--json", *options)
    gated = run("gate", "--candidate", root / "results", "--baseline", root / "results", *options)
    assert gated.code == 0, gated
    found: list[dict[str, Any]] = json.loads(compared.out)
    return found
