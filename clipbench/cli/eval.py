"""`clipbench eval`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from clipbench.catalog import Catalog, Task
from clipbench.cli.inputs import auto, choose_runtime, data_paths, names, open_catalog, share
from clipbench.cli.options import (
    BatchSize,
    Cards,
    Data,
    Device,
    Engine,
    Force,
    Json,
    MaxPixels,
    Plugins,
    Precision,
    RayAddress,
    Results,
    VerifyData,
    Workers,
    number,
    option,
)
from clipbench.cli.output import note, print_error, show
from clipbench.cli.own_data import Classes, Templates, with_own_data
from clipbench.data import decode_stream
from clipbench.data.decode import allow_pixels
from clipbench.data.drafts import Prompts
from clipbench.distributed import encode_over
from clipbench.errors import ClipbenchError
from clipbench.evaluation import Options, Result, encode_share, evaluate, keep, refuse
from clipbench.models.adapter import ModelEntry
from clipbench.records import store
from clipbench.records.eligibility import Eligibility
from clipbench.report import dataframe, table
from clipbench.report.sections import Section
from clipbench.utils import cluster
from clipbench.utils.escape import json_text
from clipbench.utils.ranks import Rank, rank, wait_for_all


def eval_command(
    model: Annotated[
        list[str],
        option(
            "--model -m",
            "Model id, run folder, checkpoint file, open_clip:<arch>@<tag or path>, "
            "hf-hub:<owner>/<repo> or local-dir:<folder> (open_clip's form), hf:<owner>/<repo>[@revision] or a folder "
            "(transformers' form), embeddings:<folder> of arrays that you have, or python:<module>:<factory> of your "
            "own code, which is run; repeatable, or separated by commas.",
            "MODEL",
        ),
    ],
    task: Annotated[
        list[str],
        option(
            "--task -t",
            "Task or suite id (see clipbench list tasks); repeatable, or separated by commas.",
            "TASK",
        ),
    ],
    data: Data = None,
    classes: Classes = None,
    templates: Templates = None,
    cards: Cards = None,
    plugins: Plugins = None,
    results: Results = Path("results"),
    limit: Annotated[
        int | None,
        number(
            "--limit",
            "Measure on a seeded, class-balanced sample of N images only; the record says so.",
            min=1,
        ),
    ] = None,
    seed: Annotated[int, number("--seed", "Seed of samples and of bootstrap intervals.", min=0)] = 0,
    precision: Precision = "auto",
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = "auto",
    deterministic: Annotated[
        bool,
        option(
            "--deterministic",
            "Do not time different ways to encode: the same options on the same machine then give the same "
            "record.",
        ),
    ] = False,
    on_bad_image: Annotated[
        str,
        option(
            "--on-bad-image",
            "Stop at an image that cannot be decoded, or skip, count and name it.",
            "stop|skip",
        ),
    ] = "stop",
    max_pixels: MaxPixels = None,
    save_heatmaps: Annotated[
        int,
        number(
            "--save-heatmaps",
            "Save the heat maps of N expressions as PNG (tasks that end in -ground).",
            min=0,
        ),
    ] = 0,
    shard: Annotated[
        str | None,
        option(
            "--shard",
            "Only encode every n-th shard of images, from number k on (from 0), into a cache that n processes share; "
            "the same command without it then encodes no image, and scores.",
            "k/n",
        ),
    ] = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    force: Force = False,
    verify_data: VerifyData = False,
    as_json: Json = False,
    quiet: Annotated[bool, option("--quiet -q", "Print no progress and no tables.")] = False,
) -> None:
    """Measure models on tasks, and write one record for each pair."""
    allow_pixels(max_pixels)
    bad = decode_stream.on_bad_image(on_bad_image)
    wanted = names("--task", task)
    prompts = Prompts(classes, tuple(templates or ()))
    catalog = with_own_data(open_catalog(cards, plugins), cards, data, wanted, prompts)
    tasks = catalog.tasks(wanted)
    paths = data_paths(data, catalog, verify=verify_data)
    models = [catalog.model(name) for name in names("--model", model)]
    ranked = rank()
    _refuse_two_ways(engine, shard, ranked, limit)
    options = Options(
        runtime=choose_runtime(
            device if ranked is None else _own_gpu(device, ranked),
            precision,
            auto("--batch-size", batch_size),
            auto("--workers", workers),
            deterministic=deterministic,
        ),
        data=paths,
        limit=limit,
        seed=seed,
        on_bad_image=bad,
        progress=not quiet,
        pictures=save_heatmaps,
    )
    if shard is not None:
        _encode_share(models, tasks, options, shard, as_json=as_json)
        return
    if ranked is None or ranked.number == 0:
        refuse(models, tasks, options, results, force=force)
    if ranked is not None:
        list(encode_share(models, tasks, options, ranked[:2]))
        wait_for_all()
        if ranked.number > 0:
            return
    with cluster.engine(engine, ray_address) as ray:
        if ray is not None:
            encode_over(ray, models, tasks, options, plugins or ())
    _measure(models, tasks, options, catalog, results, force=force, as_json=as_json, quiet=quiet)


def _measure(
    models: Sequence[ModelEntry],
    tasks: Sequence[Task],
    options: Options,
    catalog: Catalog,
    results: Path,
    *,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure, keep and print.

    Raises:
        typer.Exit: the data of a task is wrong or missing, with code 2.
    """
    for made in models:
        if made.detected:
            note(f"{made.id}: {made.card.notes}")
    done: list[Result] = []
    for result in evaluate(models, tasks, options, catalog):
        done.append(result)
        if result.record is not None:
            _keep(result, results, force=force, scores=not quiet and not as_json, quiet=quiet)
        elif result.error is None:
            note(f"{result.model} × {result.task}: not applicable: {result.reason}", "[yellow]–[/]")
        elif all(r.error is not result.error for r in done[:-1]):  # once a task, not once a model
            print_error(result.error, f"{result.task}: " if len(tasks) > 1 else "")
    if as_json:
        written = [store.read(store.path_of(r.model, r.task, results)).record for r in done if r.record]
        print(json_text([record.canonical() for record in written]))
    elif len(done) > 1 and not quiet:
        _print_table(done, list(tasks), catalog, results)
    if any(r.error for r in done):
        raise typer.Exit(2)


def _refuse_two_ways(engine: str, shard: str | None, ranked: Rank | None, limit: int | None) -> None:
    """Raise ClipbenchError where the work would be shared out in two ways, or a sample of it."""
    if ranked is not None and shard is not None:
        raise ClipbenchError("torchrun's processes take their shares from it", hint="leave --shard out")
    if engine == "ray" and (shard is not None or ranked is not None or limit is not None):
        raise ClipbenchError(
            "--engine ray shares whole splits out by itself", hint="leave --shard, --limit and torchrun out"
        )


def _own_gpu(device: str, ranked: Rank) -> str:
    """The GPU of one of several processes on a machine, where it has some."""
    import torch

    return f"cuda:{ranked.local}" if device in ("auto", "cuda") and torch.cuda.is_available() else device


def _encode_share(
    models: Sequence[ModelEntry], tasks: Sequence[Task], options: Options, shard: str, *, as_json: bool
) -> None:
    """Encode a share and tell what it came to.

    Raises:
        typer.Exit: the data of a task is wrong or missing, with code 2.
    """
    if as_json or options.pictures:
        raise ClipbenchError(
            "--shard encodes and scores nothing: there are no records to print, and no pictures",
            hint="leave --json and --save-heatmaps to the command that scores",
        )
    done = list(encode_share(models, tasks, options, share(shard)))
    for of in done:
        if of.error is None:
            note(f"{of.model} × {of.task}: " + (of.reason or f"{of.images:,} images encoded"))
    errors = {id(of.error): of for of in done if of.error is not None}
    for of in errors.values():
        assert of.error is not None
        print_error(of.error, f"{of.task}: ")
    if errors:
        raise typer.Exit(2)
    note("when all shares are there, the same command without --shard scores them")


def _keep(result: Result, results: Path, *, force: bool, scores: bool, quiet: bool) -> None:
    """Write the record and the pictures of a result, and print what was found and where it is."""
    record = result.record
    assert record is not None
    view = table.record_table(record) if scores else None
    path, folder = keep(result, results, force=force)
    if scores:
        timing = record.timing
        rate = f"{timing.images_per_s:,.0f} images/s" if timing.images_per_s else "nothing encoded"
        show(view)
        show(Text(f"{path}  ({timing.total_s:.1f} s, {rate}, {record.precision})", style="dim"))
    if folder is not None and not quiet:
        note(f"{len(result.pictures)} pictures in {folder}")


def _print_table(done: list[Result], tasks: list[Task], catalog: Catalog, results: Path) -> None:
    """The records that were written as one table, model × task."""
    stored = [store.read(store.path_of(r.model, r.task, results)) for r in done if r.record]
    rows = [row for row in dataframe.rows(stored, Eligibility(catalog).reasons) if row.primary]
    section = Section(None, "", tuple(t.id for t in tasks), tuple(rows))
    sys.stdout.write(table.terminal([section]))
