"""Names, options and signals: every mistake ends in one clear error and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys

import commandline
import pytest
import small
import torch
from commandline import Place, Run, mended

from clipbench import __version__, cli, models
from clipbench.cli.commands import COMMANDS, Command, made
from clipbench.encoding.runtime import Runtime
from clipbench.records import store
from clipbench.utils import plugins

one_thread = small.one_thread
run, place = commandline.run, commandline.place


def test_version(run: Run) -> None:
    assert run("--version").out == f"{__version__}\n"


def test_an_interrupt_says_what_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    done = run()
    assert done.code == 130
    assert "the same command goes on from there" in done.err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f"'{sys.executable}' -m clipbench list tasks --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1)  # 1: it had more to say
    assert done.stderr == ""


# ------------------------------------------------------------------------ unknown names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "eval --model digits-clip-lit --task digits-zs",
            ['unknown model "digits-clip-lit"', '"digits-clip-lite"'],
        ),
        (
            "eval --model digits-clip-lite --task digit-zs",
            ['unknown task or suite "digit-zs"', '"digits-zs"'],
        ),
        (
            "eval --model digits-clip-lite --task digits-zs@simpl",
            ["digits-zs@simple", "clipbench list tasks"],
        ),
        ("eval --model , --task digits-zs", ["--model names nothing", "clipbench list models"]),
        ("eval --model digits-clip-lite --task ,", ["--task names nothing"]),
        ("show digits-z", ['unknown id "digits-z"', "did you mean"]),
        ("list model", ['unknown kind "model"', '"models"']),
        (
            "pretrain --recipe clip-lite-digit --out x",
            ['unknown recipe "clip-lite-digit"', '"clip-lite-digits"'],
        ),
        ("report --results . --suite quikstart", ['unknown suite "quikstart"', '"quickstart"']),
        (
            "report --results . --format markdwn",
            ['unknown format "markdwn"', '"markdown"', "csv, json, latex"],
        ),
        ("report --results . --suite quickstart --check", ["LEADERBOARD.md has every suite"]),
        ("list tasks --cards nowhere", ["no folder nowhere", "--cards and CLIPBENCH_CARDS"]),
    ],
)
def test_an_unknown_name(run: Run, place: Place, arguments: str, words: list[str]) -> None:
    mended(run(*arguments.split()), *words)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--precision", "fp8", ['unknown precision "fp8"', "auto, fp32, bf16, fp16"]),
        ("--device", "tpu", ['unknown device "tpu"', "auto, cpu, cuda, cuda:N"]),
        ("--batch-size", "0", ["--batch-size must be 1 to 512 (found 0)"]),
        ("--batch-size", "many", ["--batch-size takes auto or a whole number", "'many'"]),
        ("--batch-size", "-4", ["--batch-size takes auto or a whole number"]),
        ("--workers", "two", ["--workers takes auto or a whole number"]),
        ("--on-bad-image", "ignore", ['unknown choice for --on-bad-image "ignore"', "skip, stop"]),
        ("--data", "animls=data", ['unknown data set "animls"; did you mean "animals"?']),
    ],
)
def test_a_bad_option(run: Run, place: Place, option: str, value: str, words: list[str]) -> None:
    mended(run(*place.eval(option, value)), *words)
    assert not place.results.exists() or not store.paths(place.results)


@pytest.mark.parametrize("option", [("--limit", "0"), ("--seed", "-1"), ("--limt", "3")])
def test_options_that_the_parser_refuses(run: Run, place: Place, option: tuple[str, str]) -> None:
    done = run(*place.eval(*option))
    assert done.code == 2
    assert option[0] in done.err


@pytest.mark.parametrize("arguments", ["bench encod", "bench encode --images 3", "evl"])
def test_a_command_that_is_not_there(run: Run, arguments: str) -> None:
    done = run(*arguments.split())
    assert done.code == 2
    assert "Usage" in done.err


def test_bench_refuses_what_eval_refuses(run: Run) -> None:
    mended(run("bench", "encode", "--precision", "fp8"), 'unknown precision "fp8"')
    mended(run("bench", "encode", "--data", "nowhere"), "no data folder nowhere")
    for more in (("--precision", "bf16"), ("--compile",)):
        mended(run("bench", "pretrain", *more), "on a CPU steps are measured in fp32", "add --device cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(run: Run, place: Place) -> None:
    mended(run(*place.eval("--device", "cuda:1")), "this machine has no CUDA device", "use --device cpu")


@pytest.mark.parametrize("device", ["cuda:1", "cuda:x", "cudax", "cuda:", "cuda:00"])
def test_a_device_number_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Exception, match="this machine has 1 CUDA devices"):
        Runtime.choose(device, "fp32")
    assert Runtime.choose("cuda:0", "fp32").device == "cuda:0"


# ------------------------------------------------------------------------------ plugins


@pytest.mark.parametrize("how", ["option", "environment"])
def test_plugins_are_found_when_they_are_named_and_never_otherwise(
    how: str, run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_folders", [])
    monkeypatch.setattr(models, "__path__", list(models.__path__))
    folder = place.root / "mine"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "shiny.py").write_text("from clipbench.models.dual import FAMILY as FAMILY\n")
    card = json.loads((place.root / "run" / "card.yaml").read_text())
    (place.root / "run" / "card.yaml").write_text(json.dumps(card | {"family": "shiny"}))
    mended(run(*place.eval("--cards", folder)), 'unknown model family "shiny"')
    assert "clipbench.models.shiny" not in sys.modules
    if how == "environment":
        monkeypatch.setenv("CLIPBENCH_PLUGINS", str(folder))
    done = run(*place.eval("--quiet", *(("--plugins", folder) if how == "option" else ())))
    assert done.code == 0, done.err
    assert place.record().model == str(place.root / "run")
    assert sys.modules.pop("clipbench.models.shiny").__file__ == str(folder / "models" / "shiny.py")


@pytest.mark.parametrize(
    "command", ["list models", "check", "weights fetch digits-clip-lite", "study data-efficiency"]
)
def test_a_plugin_folder_that_is_not_there(command: str, run: Run, place: Place) -> None:
    mended(run(*command.split(), "--plugins", "nowhere"), "there is no plugin folder", "nowhere", "models/")


def test_plugins_may_be_named_wherever_cards_may() -> None:
    for path, found in commandline.walk(COMMANDS):
        if isinstance(found, Command):
            options = {name for parameter in made(path[-1], found).params for name in parameter.opts}
            assert ("--cards" in options) == ("--plugins" in options), path
