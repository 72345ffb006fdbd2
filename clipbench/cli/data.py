"""`clipbench data`: check, list and convert."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clipbench.cli.inputs import data_paths, names, open_catalog
from clipbench.cli.options import Cards, Data, Force, Json, Plugins, argument, option
from clipbench.cli.output import note
from clipbench.data import babel
from clipbench.data.layouts.coco_gender import convert
from clipbench.errors import ClipbenchError
from clipbench.report.data_check import survey, text
from clipbench.report.task_inputs import asked
from clipbench.utils.escape import json_text, visible
from clipbench.utils.outputs import write_own


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


def inputs_command(
    task: Annotated[list[str], argument("Task or suite ids.", "TASK")],
    out: Annotated[Path, option("--out -o", "Folder to write the lists into.", "DIR")],
    data: Data = None,
    force: Force = False,
    cards: Cards = None,
    plugins: Plugins = None,
) -> None:
    """Write the ids and texts that tasks ask a model for.

    DIR becomes a folder for --model embeddings:DIR that lacks only the rows: <data set>/<split>.ids.json says whose
    rows <split>.npy must hold, and texts.json those of texts.npy. Texts are the finished prompts and captions.
    """
    catalog = open_catalog(cards, plugins)
    found = asked(catalog.tasks(names("TASK", task)), data_paths(data, catalog))
    for name in found.heat:
        note(f"{name} is left out: heat maps need the model itself")
    if not found.ids:
        raise ClipbenchError(
            "none of the tasks can be measured on embeddings", hint="see clipbench list tasks"
        )
    for name, content in found.files().items():
        write_own(out / name, content, None, force=force)
    for name, ids in found.ids.items():
        print(f"{visible(str(out / name))}.ids.json: {len(ids):,} ids")
    if found.texts:
        print(f"{visible(str(out / 'texts.json'))}: {len(found.texts):,} texts")


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


def babel_imagenet_command(
    labels: Annotated[Path, argument("Babel-ImageNet's JSON of labels.", "LABELS")],
    prompts: Annotated[Path, option("--prompts", "Its JSON of prompts.", "FILE")],
    out: Annotated[Path, option("--out -o", "Folder of cards to write the card into.", "DIR")],
    force: Force = False,
) -> None:
    """Make a card of Babel-ImageNet from your copy.

    Its labels are under a non-commercial licence, and do not come with clipbench. LABELS holds, for each language, a
    list of classes of ImageNet and one of their names; the prompts are a list of templates for each. Each language
    is a variant of the card's task, on those of ImageNet's validation images that are of its classes.
    """
    made = babel.card_of(labels, prompts)
    for name, content in made.files.items():
        write_own(out / name, content.encode(), None, force=force)
    for one in made.left_out:
        note(f"left out: {one}")
    counts = made.languages.values()
    print(
        f"{visible(str(out / babel.ID))}.yaml: {len(counts)} languages of {min(counts):,} to {max(counts):,} classes"
    )
    first = next(iter(made.languages))
    print(
        f"clipbench eval --model MODEL --task {babel.ID}-zs@{first} --cards {visible(str(out))} "
        f"--data {babel.ID}=IMAGENET"
    )
