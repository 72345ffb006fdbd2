"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(flags: str, help_: str, metavar: str | None = None, **more: Any) -> Any:
    """An option: its flags with blanks between, its help, and what stands for its value."""
    return typer.Option(*flags.split(), help=help_, metavar=metavar, **more)


def number(flags: str, help_: str, metavar: str = "N", **more: Any) -> Any:
    """An option that takes a number."""
    return option(flags, help_, metavar, **more)


def argument(help_: str, metavar: str) -> Any:
    """A value without a flag."""
    return typer.Argument(help=help_, metavar=metavar)


Cards = Annotated[
    list[Path] | None,
    option(
        "--cards", "Folder of your own cards, which run no code; repeatable (also CLIPBENCH_CARDS).", "DIR"
    ),
]
Plugins = Annotated[
    list[Path] | None,
    option(
        "--plugins",
        "Folder of your own code (models/, protocols/, layouts/ or objectives/). This code is run, so name only "
        "what you trust; repeatable (also CLIPBENCH_PLUGINS).",
        "DIR",
    ),
]
Data = Annotated[
    list[str] | None,
    option(
        "--data",
        "Your copy of the data set ID, or a folder of copies named by their ids; repeatable "
        "(also CLIPBENCH_DATA).",
        "[ID=]DIR",
    ),
]
Results = Annotated[Path, option("--results", "Folder of the records.", "DIR")]
Json = Annotated[bool, option("--json", "Print JSON on stdout.")]
Force = Annotated[bool, option("--force", "Overwrite what clipbench did not write itself.")]
Quiet = Annotated[bool, option("--quiet -q", "Print no progress.")]
VerifyData = Annotated[
    bool, option("--verify-data", "Hash every data file again, even if its hash is remembered.")
]
Device = Annotated[str, option("--device", "Where to compute.", "auto|cpu|cuda|cuda:N")]
Precision = Annotated[
    str,
    option("--precision", "Precision of the encoding; scores are computed in fp32.", "auto|fp32|bf16|fp16"),
]
BatchSize = Annotated[str, option("--batch-size", "Images per batch.", "auto|N")]
Workers = Annotated[str, option("--workers", "Processes that decode images; 0 for none.", "auto|N")]
MaxPixels = Annotated[
    int | None,
    number(
        "--max-pixels",
        "Most pixels that an image may have, as stored or as scaled for the model. [default: 178956970]",
        min=1,
    ),
]
Models = Annotated[
    list[str] | None, option("--model -m", "Only these models; repeatable, or separated by commas.", "MODEL")
]
Engine = Annotated[
    str, option("--engine", "This process, or a Ray cluster (pip install 'clipbench[ray]').", "local|ray")
]
RayAddress = Annotated[
    str | None,
    option(
        "--ray-address",
        "Address of the cluster. [default: RAY_ADDRESS, or this machine alone]",
        "ADDRESS",
    ),
]
