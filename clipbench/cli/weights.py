"""`clipbench weights`: fetch and convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from clipbench.cli.inputs import names, open_catalog
from clipbench.cli.options import Cards, Json, Plugins, argument, option
from clipbench.cli.output import note
from clipbench.errors import ClipbenchError
from clipbench.models.families import fetch
from clipbench.models.weights.convert import convert
from clipbench.utils.escape import json_text, visible


def fetch_command(
    model: Annotated[list[str], argument("Model ids, as for clipbench eval.", "MODEL")],
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Fetch the weights of models to this machine.

    Nothing is fetched twice. Afterwards the models can be measured without a network.
    """
    catalog = open_catalog(cards, plugins)
    models = [catalog.model(name) for name in names("MODEL", model)]
    found = [file for entry in models for file in fetch(entry)]
    if as_json:
        rows = [file._asdict() | {"path": str(file.path)} for file in found]
        print(json_text(rows))
        return
    for file in found:
        print(f"{visible(file.model)}: {visible(str(file.path))}")
        print(f"  {file.bytes:,} bytes, sha256 {file.sha256} ({file.checked})")


def convert_command(
    source: Annotated[Path, argument("A file of torch.save that holds more than tensors.", "SOURCE")],
    out: Annotated[Path, argument("The safetensors file to write.", "OUT")],
    yes: Annotated[
        bool, option("--yes -y", "Do not ask before a file that names classes is converted.")
    ] = False,
    force: Annotated[bool, option("--force", "Replace OUT if it exists.")] = False,
) -> None:
    """Copy the tensors of a checkpoint to safetensors.

    Nothing in the checkpoint is run.
    """
    done = convert(source, out, force=force, agree=lambda names: yes or _agreed(source, names))
    if done.left_out:
        more = f" and {len(done.left_out) - 8} more" if len(done.left_out) > 8 else ""
        note(f"left out, being no tensors: {', '.join(done.left_out[:8])}{more}")
    print(f"{visible(str(done.path))}: {done.tensors:,} tensors, {done.bytes:,} bytes, sha256 {done.sha256}")


def _agreed(source: Path, named: list[str]) -> bool:
    """Show what a file names beside its tensors, and ask."""
    note(f"{source} names these classes and functions:")
    for name in named:
        note(f"  {name}")
    note("None of them is run: only the tensors are copied.")
    if not sys.stdin.isatty():
        raise ClipbenchError(
            f"{source} was not converted: there is no terminal to ask on", hint="add --yes to convert it"
        )
    return typer.confirm("Go on?", default=False, err=True)
