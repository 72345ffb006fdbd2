"""The table of commands: it says what the commands' files say, and help costs next to nothing."""

from __future__ import annotations

import inspect
import json
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import commandline
import pytest
from commandline import Run

from clipbench import cli
from clipbench.cli.commands import COMMANDS, Command, made

run = commandline.run
NO_COMMANDS = {"__init__", "commands", "inputs", "options", "output"}
HEAVY = {"torch", "torchvision", "open_clip", "datasets", "pandas", "matplotlib", "sklearn", "pyarrow"}


ALL = dict(commandline.walk(COMMANDS))
PATHS = [(), *ALL]
BY_PATH = pytest.mark.parametrize("path", PATHS, ids=lambda path: " ".join(path) or "clipbench")


@pytest.mark.parametrize("path", [p for p, found in ALL.items() if isinstance(found, Command)], ids=" ".join)
def test_the_table_says_what_the_commands_docstring_says(path: tuple[str, ...]) -> None:
    command = ALL[path]
    assert isinstance(command, Command)
    function = getattr(
        import_module(f"clipbench.cli.{command.module}"), f"{path[-1].replace('-', '_')}_command"
    )
    doc = inspect.getdoc(function)
    assert doc
    first, *rest = doc.splitlines()
    assert command.help == first
    assert not rest or rest[0] == ""
    assert len(first) <= 66  # one line beside its name


def test_every_file_of_the_folder_holds_commands_of_the_table() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files - NO_COMMANDS == {found.module for found in ALL.values() if isinstance(found, Command)}
    for name in files - NO_COMMANDS:
        functions = {f for f in vars(import_module(f"clipbench.cli.{name}")) if f.endswith("_command")}
        assert functions == {
            f"{path[-1].replace('-', '_')}_command"
            for path, found in ALL.items()
            if isinstance(found, Command) and found.module == name
        }


@BY_PATH
def test_help_fits_80_columns_and_says_something_of_everything(
    path: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert f" {' '.join((*path, '[OPTIONS]'))}" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    if path and isinstance(ALL[path], Command):
        for parameter in made(path[-1], ALL[path]).params:
            assert parameter.help.split(" [")[0].endswith("."), parameter.name
    else:
        commands = COMMANDS if not path else ALL[path].commands  # type: ignore[union-attr]
        lines = [line.strip() for line in done.out.splitlines()]
        assert lines[lines.index("Commands:") + 1 :] == [
            f"{name:{max(map(len, commands))}}  {found.help}" for name, found in commands.items()
        ]


MODULES = """
import json, sys
from clipbench.cli import main
sys.argv = ["clipbench", *sys.argv[1:]]
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    """The modules that a process has imported when `clipbench <arguments>` ends."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout
    return set(json.loads(done.stderr))


@pytest.mark.parametrize("arguments", ["--help", "bench --help", "--version"])
def test_the_help_of_a_group_imports_no_command_and_nothing_heavy(arguments: str) -> None:
    found = imported(*arguments.split())
    own = {name for name in found if name.partition(".")[0] == "clipbench"}
    assert own == {
        *("clipbench", "clipbench.cli", "clipbench.cli.commands", "clipbench.cli.output", "clipbench.errors"),
        *("clipbench.utils", "clipbench.utils.escape", "clipbench.utils.version"),
    }
    assert not found & (HEAVY | {"numpy", "yaml", "rich.console", "rich.markdown"})


@pytest.mark.parametrize("arguments", ["eval --help", "pretrain --help", "bench svm --help", "list tasks"])
def test_the_help_of_a_command_and_lists_import_nothing_heavy(arguments: str) -> None:
    assert not imported(*arguments.split()) & HEAVY


def test_help_costs_hardly_more_than_the_import_of_what_parses_and_prints() -> None:
    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(seconds("-m", "clipbench", "--help"), seconds("-c", "import typer, rich")) for _ in range(5)]
    helps, imports = zip(*pairs, strict=True)
    assert min(helps) < 1.5 * min(imports)


@pytest.mark.parametrize(("given", "meant"), [("evl", "eval"), ("bench encod", "encode")])
def test_a_misspelt_command_is_told_the_right_one(given: str, meant: str, run: Run) -> None:
    done = run(*given.split())
    assert done.code == 2
    assert f"Did you mean '{meant}'?" in done.err
