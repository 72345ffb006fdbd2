"""The options that commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

#: an option that takes a number
number = partial(typer.Option, metavar="N")

Cards = Annotated[
    list[Path] | None,
    typer.Option(
        "--cards",
        help="Folder of your own cards, which run no code; repeatable (also CLIPBENCH_CARDS).",
        metavar="DIR",
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugins",
        help="Folder of your own code (models/, protocols/, layouts/ or objectives/). This code is run, so name only "
        "what you trust; repeatable (also CLIPBENCH_PLUGINS).",
        metavar="DIR",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Your copy of the data set ID, or a folder of copies named by their ids; repeatable "
        "(also CLIPBENCH_DATA).",
        metavar="[ID=]DIR",
    ),
]
Results = Annotated[Path, typer.Option("--results", help="Folder of the records.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what clipbench did not write itself.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
VerifyData = Annotated[
    bool, typer.Option("--verify-data", help="Hash every data file again, even if its hash is remembered.")
]
Device = Annotated[str, typer.Option("--device", help="Where to compute.", metavar="auto|cpu|cuda|cuda:N")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Precision of the encoding; scores are computed in fp32.",
        metavar="auto|fp32|bf16|fp16",
    ),
]
BatchSize = Annotated[str, typer.Option("--batch-size", help="Images per batch.", metavar="auto|N")]
Workers = Annotated[
    str, typer.Option("--workers", help="Processes that decode images; 0 for none.", metavar="auto|N")
]
MaxPixels = Annotated[
    int | None,
    number(
        "--max-pixels",
        help="Most pixels that an image may have, as stored or as scaled for the model. [default: 178956970]",
        min=1,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", help="Only these models; repeatable, or separated by commas.", metavar="MODEL"
    ),
]
