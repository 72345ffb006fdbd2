"""`clipbench data`: check and convert."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clipbench.cli.inputs import data_paths, open_catalog
from clipbench.cli.options import Cards, Data, Json, Plugins, argument, option
from clipbench.data.layouts.coco_gender import convert
from clipbench.report.data_check import survey, text
from clipbench.utils.escape import json_text, visible


def check_command(
    name: Annotated[str, argument("The id of a data set, task or suite.", "NAME")],
    data: Data = None,
    every: Annotated[bool, option("--all", "Decode every image, not only a sample of each split.")] = False,
    cards: Cards = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Check copies of data sets against their cards.

    Every split is opened, and its counts, classes and images are held against the card. The exit code is 2 if one is
    wrong. Nothing is fetched: give your copies with --data.
    """
    catalog = open_catalog(cards, plugins)
    own = [i for i in catalog.task_ids() if i.partition("@")[0].rpartition("-")[0] == name]
    tasks = catalog.tasks(own or [name])
    found = survey(tasks, data_paths(data, catalog), every=every)
    if as_json:
        print(json_text(asdict(found)))
    else:
        sys.stdout.write(visible(text(found), lines=True))
    if not found.well:
        raise typer.Exit(2)


def convert_coco_gender_command(
    source: Annotated[
        Path, argument("Folder of the original .data and .ids files and object_id.map.", "SOURCE")
    ],
    out: Annotated[Path, argument("Folder to write gender_<split>.json into.", "OUT")],
    force: Annotated[bool, option("--force", "Replace files that exist.")] = False,
) -> None:
    """Copy COCO-gender's pickled annotations to JSON.

    Nothing in the pickles is run.
    """
    for path, images in convert(source, out, force=force):
        print(f"{visible(str(path))}: {images:,} images")
