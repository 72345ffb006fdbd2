"""The command line: one file a group of commands, and each command parses, calls and prints.

May import every other folder; nothing imports it. `commands` holds the table: a command's file is imported when that
command is called, so that `--help` is quick. `options` holds the options that commands share, `inputs` makes what
commands work with from them, and `output` prints.
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import sys
from typing import Annotated

import typer

from clipbench.cli.commands import COMMANDS, Group, group
from clipbench.cli.output import catalogs, note, print_error
from clipbench.errors import ClipbenchError, Stopped
from clipbench.utils.version import __version__

_HELP = (
    "Measure a CLIP-like model the way the papers do, and reproduce how the data-efficient ones were trained."
)
app = group(Group(_HELP, COMMANDS))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """What stands before a command."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: errors that the user can mend are printed and exit with 2; bugs keep their traceback."""
    # what imports make is kept: looking for garbage among it, then and at the end, took a quarter of a short run
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):  # names may hold what this terminal, or no UTF-8, can say
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            for problem in (str(p) for catalog in catalogs for p in catalog.problems.values()):
                note(problem, "[yellow]left out:[/]")
            catalogs.clear()
            sys.stdout.flush()  # here, where a reader that is gone can be dealt with
    except Stopped as stop:
        note(str(stop))
        raise SystemExit(stop.exit_code) from None
    except ClipbenchError as error:
        print_error(error)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        note("stopped; what was finished is kept, the same command goes on from there")
        raise SystemExit(130) from None
    except BrokenPipeError:  # `clipbench list tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None  # as click ends when it meets one earlier
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # which any look at a path may meet, of whatever option it is
            raise
        name = str(error.filename)
        shown = name if len(name) <= 80 else f"{name[:40]}…{name[-20:]}"
        hint = "a name has at most 255 bytes on most file systems; give a shorter one"
        print_error(
            ClipbenchError(f"{shown} ({len(os.fsencode(name)):,} bytes): the name is too long", hint=hint)
        )
        raise SystemExit(2) from None
