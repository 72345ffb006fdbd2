"""Commands in this process, and a place with a small model, task and images that they are given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import small

from clipbench import cli
from clipbench.cli.commands import Command, Group
from clipbench.records import store
from clipbench.records.record import Record


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that it printed, on one line."""
        return " ".join((self.out + self.err).split())


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`clipbench <arguments>` in this process."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["clipbench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return run


@dataclass(frozen=True)
class Place:
    """A model, a task card and an image folder of 60 pictures, and the arguments that name them."""

    root: Path

    @property
    def cards(self) -> Path:
        return self.root / "cards"

    @property
    def results(self) -> Path:
        return self.root / "results"

    def eval(self, *more: str | Path, data: str = "data") -> list[str | Path]:
        return [
            *("eval", "--model", self.root / "run", "--task", "animals-zs", "--cards", self.cards),
            *("--data", f"animals={self.root / data}", "--results", self.results, "--precision", "fp32"),
            *more,
        ]

    def record(self) -> Record:
        (stored,) = store.read_all(self.results)
        return stored.record


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    small.write_run(tmp_path / "run")
    small.write_task(tmp_path / "cards")
    small.write_images(tmp_path / "data", 60)
    return Place(tmp_path)


def mended(done: Done, *words: str) -> None:
    """Assert that `done` is an error of the user's, told on stderr with all of `words`."""
    assert done.code == 2, done
    assert done.err.startswith("error: "), done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err
    assert done.out.strip() in ("", "[]")


def walk(
    commands: Mapping[str, Command | Group], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Command | Group]]:
    """Every command and group below `commands`, by its path."""
    for name, found in commands.items():
        yield (*above, name), found
        if isinstance(found, Group):
            yield from walk(found.commands, (*above, name))
