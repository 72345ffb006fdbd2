"""The command line: parse, call, print. Imports wait until a command needs them; `--help` loads no torch."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipbench import __version__
from clipbench.errors import ClipbenchError, Stopped, unknown
from clipbench.utils.escape import Shown, json_text, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clipbench.catalog import Catalog
    from clipbench.encoding.runtime import Runtime
    from clipbench.evaluate import Result
    from clipbench.records.record import Record

app = typer.Typer(
    help="Measure a CLIP-like model the way the papers do, and reproduce how the data-efficient ones were trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Cards = Annotated[
    list[Path] | None,
    typer.Option(
        "--cards", help="Folder of your own cards; repeatable (also CLIPBENCH_CARDS).", metavar="DIR"
    ),
]
Results = Annotated[Path, typer.Option("--results", help="Folder of the records.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Local copies: <dataset>=<folder>, or a folder of data sets; repeatable (also CLIPBENCH_DATA).",
        metavar="[ID=]DIR",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace what clipbench did not write at the place that is named.")
]
VerifyData = Annotated[
    bool,
    typer.Option(
        "--verify-data", help="Read and hash every file of the data again, whatever is remembered of it."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str, typer.Option("--precision", help="auto, fp32, bf16 or fp16, for encoding; scores are fp32.")
]
BatchSize = Annotated[str, typer.Option("--batch-size", help="auto, or images a batch.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help="Pixels that an image may have, as stored and as scaled for the model. [default: 178956970]",
    ),
]
Workers = Annotated[str, typer.Option("--workers", help="auto, or decoding processes (0: none).")]

#: those that this command reads
_catalogs: list[Catalog] = []


def main() -> None:
    """Entry point: errors that the user can mend are printed and exit with 2; bugs keep their traceback."""
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # names of others may hold what this terminal, or no UTF-8, can say
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            for problem in (str(p) for catalog in _catalogs for p in catalog.problems.values()):
                _stderr(f"[yellow]left out:[/] {_plain(problem)}")
            _catalogs.clear()
            sys.stdout.flush()  # here, where a reader that is gone can be dealt with
    except Stopped as stop:
        _stderr(_plain(str(stop)))
        raise SystemExit(stop.exit_code) from None
    except ClipbenchError as error:
        _print_error(error)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _stderr("stopped; what was finished is kept, the same command goes on from there")
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
        _print_error(
            ClipbenchError(f"{shown} ({len(os.fsencode(name)):,} bytes): the name is too long", hint=hint)
        )
        raise SystemExit(2) from None


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


# ----------------------------------------------------------------------- eval


@app.command("eval")
def evaluate_command(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="Model ids, run folders, checkpoint files, open_clip:<arch>@<tag or path>, or "
            "hf-hub:<owner>/<repo>; commas or repeated.",
        ),
    ],
    task: Annotated[
        list[str],
        typer.Option("--task", "-t", help="Task or suite ids (clipbench list tasks); commas or repeated."),
    ],
    data: Data = None,
    cards: Cards = None,
    results: Results = Path("results"),
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="A seeded, class-balanced sample of N; the record says so."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of samples and bootstrap intervals.")] = 0,
    precision: Precision = "auto",
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = "auto",
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="No trial of plans: on one machine the same options give the same record."
        ),
    ] = False,
    on_bad_image: Annotated[
        str,
        typer.Option("--on-bad-image", help="stop, or skip: count and name images that cannot be decoded."),
    ] = "stop",
    max_pixels: MaxPixels = None,
    save_heatmaps: Annotated[
        int,
        typer.Option(
            "--save-heatmaps", min=0, help="Draw the maps of N expressions (tasks …-ground) as PNG."
        ),
    ] = 0,
    force: Force = False,
    verify_data: VerifyData = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")] = False,
) -> None:
    """Measure models on tasks; writes one record each to the results folder."""
    from clipbench.data.decode import allow_pixels
    from clipbench.data.hub import DataPaths
    from clipbench.records import record as records
    from clipbench.utils.cache import make_folder

    allow_pixels(max_pixels)
    if on_bad_image not in ("stop", "skip"):
        raise ClipbenchError(unknown("choice for --on-bad-image", on_bad_image, ("stop", "skip")))
    catalog = _catalog(cards)
    tasks = catalog.tasks(_names("--task", task))
    if save_heatmaps and not any(hasattr(t.protocol, "pictures") for t in tasks):
        raise ClipbenchError(
            f"--save-heatmaps: none of the tasks has heat maps ({', '.join(t.id for t in tasks)})",
            hint="tasks that end in -ground have some; leave the option out for others",
        )
    paths = DataPaths.parse(_known_data(data, catalog), verify=verify_data)
    make_folder(results)
    models = [catalog.model(name) for name in _names("--model", model)]
    for made in models:
        for wanted in tasks:
            records.refuse_foreign(made.id, wanted.id, results, force=force)
    for made in models:
        if made.detected:
            _stderr(_plain(f"{made.id}: {made.card.notes}"))
    from clipbench.evaluate import Options, evaluate

    options = Options(
        runtime=_runtime(
            device,
            precision,
            _auto("--batch-size", batch_size),
            _auto("--workers", workers),
            deterministic=deterministic,
        ),
        data=paths,
        limit=limit,
        seed=seed,
        on_bad_image="skip" if on_bad_image == "skip" else "stop",
        progress=not quiet,
        pictures=save_heatmaps,
    )
    done: list[Result] = []
    for result in evaluate(models, tasks, options, catalog):
        done.append(result)
        if result.record is not None:
            path = records.write(result.record, result.samples, results, force=force)
            if not quiet and not as_json:
                _print_record(result.record, path)
            if result.pictures:
                folder = records.write_pictures(result.pictures, path, force=force)
                if not quiet:
                    _stderr(_plain(f"{len(result.pictures)} pictures in {folder}"))
        elif result.error is not None:
            if all(r.error is not result.error for r in done[:-1]):  # once a task, not once a model
                _print_error(result.error, f"{result.task}: " if len(tasks) > 1 else "")
        else:
            why = _plain(f"{result.model} × {result.task}: not applicable: {result.reason}")
            _stderr(f"[yellow]–[/] {why}")
    if as_json:
        written = [records.read(records.path_of(r.model, r.task, results)) for r in done if r.record]
        print(json_text([record.canonical() for record in written]))
    elif len(done) > 1 and not quiet:
        from clipbench.records.eligibility import Judge
        from clipbench.report import dataframe, leaderboard, table

        stored = [records.load(records.path_of(r.model, r.task, results)) for r in done if r.record]
        rows = [row for row in dataframe.rows(stored, Judge(catalog).reasons) if row.primary]
        section = leaderboard.Section(None, "", tuple(t.id for t in tasks), tuple(rows))
        sys.stdout.write(table.terminal([section]))
    if any(r.error for r in done):
        raise typer.Exit(2)


def _print_record(record: Any, path: Path) -> None:
    from rich.text import Text

    from clipbench.report import table

    timing = record.timing
    rate = f", {timing.images_per_s:,.0f} images/s" if timing.images_per_s else ", features from the cache"
    _stdout(table.record_table(record))
    _stdout(Text(f"{path}  ({timing.total_s:.1f} s{rate}, {record.precision})", style="dim"))


# ------------------------------------------------------------------- pretrain


@app.command("pretrain")
def pretrain_command(
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Recipe id or YAML file (clipbench list recipes).")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run; afterwards it is a model.", metavar="DIR")
    ],
    data: Data = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another value for a field of the recipe: optim.lr=0.001; repeatable.",
            metavar="FIELD=VALUE",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The recipe's quick form: minutes on a CPU.")
    ] = False,
    cards: Cards = None,
    device: Device = "auto",
    workers: Workers = "auto",
    max_pixels: MaxPixels = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard too.")
    ] = False,
    verify_data: VerifyData = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines.")] = False,
) -> None:
    """Train a model by a recipe; run the same command again to go on after a stop.

    Several GPUs or machines: torchrun --nproc-per-node N -m clipbench pretrain ….
    """
    from clipbench.data.decode import allow_pixels
    from clipbench.data.hub import DataPaths
    from clipbench.data.pairs.sources import open_pairs

    allow_pixels(max_pixels)
    catalog = _catalog(cards)
    entry = catalog.recipe(recipe, quick=quick, assignments=assign or ())
    catalog.tasks(entry.card.evaluate)
    names = [source.name for source in entry.card.data]
    paths = DataPaths.parse(_known_data(data, catalog, names), verify=verify_data)
    splits = [open_pairs(source, catalog.dataset, paths, entry.path) for source in entry.card.data]
    from clipbench.evaluate import Options, evaluator
    from clipbench.pretrain.loop import pretrain

    options = Options(runtime=_runtime(device, "fp32"), data=paths)
    pretrain(
        entry.card,
        entry.id,
        out,
        data=splits,
        evaluator=evaluator(catalog, options),
        device=device,
        progress=not quiet,
        workers=_auto("--workers", workers),
        tensorboard=tensorboard,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    _stderr(
        f"evaluate it like any other model: clipbench eval --model {out} --task {','.join(entry.card.evaluate) or '…'}"
    )


# ---------------------------------------------------------------------- study


@app.command("study")
def study_command(
    name: Annotated[str, typer.Argument(help="The study: data-efficiency.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the studies' results.", metavar="DIR")
    ] = Path("results/studies"),
    runs: Annotated[
        Path,
        typer.Option("--runs", help="Folder of the runs, which a stopped study goes on from.", metavar="DIR"),
    ] = Path("runs/studies"),
    data: Data = None,
    cards: Cards = None,
    device: Device = "auto",
    jobs: Annotated[
        int,
        typer.Option("--jobs", "-j", min=1, help="Runs at a time, each with its share of the cores."),
    ] = 1,
    so_far: Annotated[
        bool,
        typer.Option("--so-far", help="Train nothing: the page of the runs that are finished."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny form on digits: shows that everything runs, and no more.")
    ] = False,
    force: Force = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines.")] = False,
) -> None:
    """Train the same towers by several objectives, and hold the papers' claims against what is measured."""
    from clipbench.data.hub import DataPaths
    from clipbench.pretrain import study as studies
    from clipbench.report import studies as report

    runtime = None if so_far else _runtime(device, "fp32")  # a page needs no device
    on_gpu = device.startswith("cuda") if runtime is None else not runtime.on_cpu
    form: studies.Form = "quick" if quick else "gpu" if on_gpu else "cpu"
    study, catalog = studies.read(name, form), _catalog(cards)
    folder = name if form == "cpu" else f"{name}-{form}"
    if runtime is None:
        measured = studies.finished(study, catalog, runs / folder)
        if not measured:
            raise ClipbenchError(
                f"no run of the study is finished in {runs / folder}", hint="leave out --so-far"
            )
    else:
        from clipbench.evaluate import Options

        paths = DataPaths.parse(_known_data(data, catalog))
        options = Options(runtime=runtime, data=paths, progress=not quiet)
        measured = []
        for one in studies.run(
            study, catalog, options, runs / folder, device=device, progress=not quiet, jobs=jobs
        ):
            measured.append(one)
            shown = ", ".join(f"{measure} {100 * value:.2f} %" for measure, value in one.scores.items())
            _stderr(_plain(f"{len(measured)}/{len(study.cells())} {one.cell.name}: {shown}"))
    command = f"clipbench study {name}" + (" --quick" if quick else f" --device {device}" if on_gpu else "")
    page = report.write(name, study, measured, command, out / folder, force=force)
    _stderr(_plain(f"wrote {page}, study.png and study.json"))


# ----------------------------------------------------------------- list, show


@app.command("list")
def list_command(
    kind: Annotated[str, typer.Argument(help="models, tasks, suites or recipes.")],
    suite: Annotated[
        str | None, typer.Option("--suite", help="Its tasks alone, and where the data of each comes from.")
    ] = None,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """List what there is."""
    from clipbench.report import listing

    if kind not in listing.KINDS:
        raise ClipbenchError(unknown("kind", kind, listing.KINDS))
    if suite is not None and kind != "tasks":
        raise ClipbenchError("--suite goes with list tasks")
    catalog = _catalog(cards)
    rows = listing.tasks(catalog, suite) if suite is not None else listing.KINDS[kind](catalog)
    if as_json:
        print(json_text(rows))
    elif suite is not None:
        _stdout(listing.table([{key: row[key] for key in ("id", "metric", "data")} for row in rows]))
    else:
        _stdout(listing.table(listing.with_variants(rows) if kind == "tasks" else rows))


@app.command("show")
def show_command(
    name: Annotated[
        str, typer.Argument(help="A model, task, data set, suite or recipe id, or a record file.")
    ],
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw a record's validation curve into this PNG.", metavar="PNG"),
    ] = None,
    force: Force = False,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Show one card with all defaults resolved, or one record."""
    from clipbench.report import listing

    if plot is not None:
        from clipbench.records import record as records
        from clipbench.report.plots import validation_curve
        from clipbench.utils.outputs import PNG_MARK, write_own

        write_own(plot, validation_curve(records.read(Path(name))), PNG_MARK, force=force)
        _stderr(_plain(f"wrote {plot}"))
    value, view = listing.show(name, _catalog(cards))
    if as_json:
        print(json_text(value))
    else:
        _stdout(view)


# -------------------------------------------------------------- report, check


@app.command("report")
def report_command(
    results: Results = Path("results"),
    suite: Annotated[
        str | None, typer.Option("--suite", help="Only this suite's tasks; missing ones show as –.")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", "-f", help="terminal, markdown, latex, csv or json.")
    ] = "terminal",
    write: Annotated[
        bool, typer.Option("--write", help="Write LEADERBOARD.md into the folder of the records.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Fail unless LEADERBOARD.md is current.")] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--beside",
            help="Also show what CLIP_benchmark wrote: its .json or .csv, or a folder of them; repeatable.",
        ),
    ] = None,
    force: Force = False,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Records as model × task tables by suite, beside the numbers that the papers report."""
    from clipbench.report import dataframe, leaderboard, table
    from clipbench.utils.outputs import write_own

    format_ = "json" if as_json else format_
    formats = (*table.SECTION_FORMATS, *table.ROW_FORMATS)
    if format_ not in formats:
        raise ClipbenchError(unknown("format", format_, formats))
    if (write or check) and (suite is not None or beside):
        raise ClipbenchError(
            "LEADERBOARD.md has every suite and our records alone",
            hint="leave --suite and --beside out, or --write and --check",
        )
    catalog = _catalog(cards)
    if suite is not None:
        catalog.suite(suite)
    rows = dataframe.read(results, catalog, primary=format_ in table.SECTION_FORMATS or write or check)
    for path in beside or ():
        from clipbench.report import export

        rows += export.rows(export.read(path), catalog)
    if write:
        text = leaderboard.leaderboard(rows, catalog)
        write_own(results / leaderboard.LEADERBOARD, text.encode(), leaderboard.MARK, force=force)
        _stderr(_plain(f"wrote {results / leaderboard.LEADERBOARD}"))
    elif check:
        leaderboard.check(results, leaderboard.leaderboard(rows, catalog))
        _stderr(_plain(f"{results / leaderboard.LEADERBOARD} is current"))
    elif format_ in table.SECTION_FORMATS:
        sys.stdout.write(table.SECTION_FORMATS[format_](leaderboard.sections(rows, catalog, suite)))
    else:
        if suite is not None:
            rows = dataframe.of_tasks(rows, [task.id for task in catalog.tasks([suite])])
        sys.stdout.write(table.ROW_FORMATS[format_](rows))


@app.command("site")
def site_command(
    results: Results = Path("results"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the page.", metavar="DIR")] = Path(
        "site"
    ),
    force: Force = False,
    cards: Cards = None,
) -> None:
    """All records as one HTML page, which opens from a file: leaderboard, charts, a page a model and a task."""
    from clipbench.report import site

    text = site.build(results, _catalog(cards))
    path = site.write(text, out, force=force)
    print(
        f"{visible(str(path))}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser, no server is needed"
    )


@app.command("export")
def export_command(
    format_: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="model-index (Hugging Face), clip-benchmark-json or clip-benchmark-csv."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="These models only; commas or repeated. model-index needs one."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File to write (…-json: folder); otherwise it is printed.", metavar="PATH"
        ),
    ] = None,
    results: Results = Path("results"),
    force: Force = False,
    cards: Cards = None,
) -> None:
    """Records that may stand on the leaderboard, in another program's format."""
    from clipbench.report import export
    from clipbench.utils.outputs import write_own

    formats = ("model-index", "clip-benchmark-json", "clip-benchmark-csv")
    if format_ not in formats:
        raise ClipbenchError(unknown("format", format_, formats))
    found = _standing(results, cards, model)
    if format_ == "model-index":
        if len({record.model for record in found}) > 1:
            raise ClipbenchError("model-index is of one model", hint="choose it: --model …")
        text = export.model_index(found, found[0].model)
    else:
        theirs = [one for record in found if (one := export.foreign(record)) is not None]
        if format_ == "clip-benchmark-json" and out is not None:
            for name, content in export.write_json(theirs).items():
                write_own(out / name, content.encode(), None, force=force)
            return
        json_lines = "".join(export.write_json(theirs).values())
        text = json_lines if format_ == "clip-benchmark-json" else export.write_csv(theirs)
    if out is None:
        sys.stdout.write(text)
    else:
        write_own(out, text.encode(), None, force=force)


@app.command("log")
def log_command(
    to: Annotated[
        str, typer.Option("--to", help="wandb, mlflow or tensorboard; its package must be installed.")
    ],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="These models only; commas or repeated.")
    ] = None,
    project: Annotated[
        str, typer.Option("--project", help="Project of Weights & Biases, experiment of MLflow.")
    ] = "clipbench",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of TensorBoard's files.", metavar="DIR")
    ] = Path("runs/tensorboard"),
    results: Results = Path("results"),
    cards: Cards = None,
) -> None:
    """Log records that may stand on the leaderboard, a run a model. Nothing is logged unless this is called."""
    from clipbench.report.trackers import log

    runs = log(_standing(results, cards, model), to, project, out)
    _stderr(f"logged {runs} {'run' if runs == 1 else 'runs'} to {to}")


@app.command("compare")
def compare_command(
    first: Annotated[
        str, typer.Argument(help="A model that has records, or a folder of records.", metavar="A")
    ],
    second: Annotated[str, typer.Argument(help="Another, held against it.", metavar="B")],
    results: Results = Path("results"),
    suite: Annotated[str | None, typer.Option("--suite", help="Only this suite's tasks.")] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", min=0, max=1, help="How often chance may pass for a difference.")
    ] = 0.05,
    top: Annotated[int, typer.Option("--top", min=0, help="Classes and samples to name of each task.")] = 5,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Two models on the same samples: is B better, worse, or not distinguishable, and where do they disagree?"""
    from clipbench.records.comparison import compare
    from clipbench.records.eligibility import Judge
    from clipbench.report import comparison_table

    tasks = None
    catalog = _catalog(cards)
    if suite is not None:
        catalog.suite(suite)
        tasks = [task.id for task in catalog.tasks([suite])]
    found = compare(first, second, results, tasks, alpha, top, Judge(catalog))
    if as_json:
        print(json_text([one.as_json() for one in found]))
    else:
        sys.stdout.write(comparison_table.text(found, first, second, alpha))


@app.command("gate")
def gate_command(
    candidate: Annotated[Path, typer.Option("--candidate", help="Folder of the new records.", metavar="DIR")],
    baseline: Annotated[
        Path,
        typer.Option("--baseline", help="Folder of the records that they are held against.", metavar="DIR"),
    ] = Path("results"),
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="Percentage points that a score may fall.")
    ] = 0.5,
    max_mean_drop: Annotated[
        float,
        typer.Option(
            "--max-mean-drop", min=0, help="Percentage points that the mean over a model's tasks may fall."
        ),
    ] = 0.1,
    alpha: Annotated[
        float,
        typer.Option("--alpha", min=0, max=1, help="How often equal models may fail, all tasks together."),
    ] = 0.05,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", help="Suite or tasks that must be there; otherwise those of the baseline."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="These models only; otherwise all of the baseline."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Also write JUnit XML into this file.", metavar="XML")
    ] = None,
    force: Force = False,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """For CI: exit code 1 if a score dropped by more than is allowed and than noise, or a record cannot be judged."""
    from clipbench.records import gate
    from clipbench.records.eligibility import Judge
    from clipbench.utils.outputs import write_own

    catalog = _catalog(cards)
    found = gate.gate(
        baseline,
        candidate,
        Judge(catalog),
        max_drop=max_drop,
        max_mean_drop=max_mean_drop,
        alpha=alpha,
        require=[task.id for task in catalog.tasks(_names("--require", require))] if require else None,
        models=_names("--model", model) if model else None,
    )
    text = gate.summary(found, max_drop, max_mean_drop, alpha)
    if junit is not None:
        write_own(junit, gate.junit(found), gate.JUNIT_MARK, force=force)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:  # the verdict counts, not where else it is told
            _stderr(_plain(f"the summary cannot be written to {summary}: {error.strerror}"))
    if as_json:
        print(json_text([check.as_json() for check in found]))
    else:
        sys.stdout.write(text)
    if any(check.outcome == "fail" for check in found):
        raise typer.Exit(1)


@app.command("check")
def check_command(results: Results = Path("results"), cards: Cards = None, as_json: Json = False) -> None:
    """Check every card, shipped weights file and record; exit code 2 and every problem named if one is wrong."""
    from clipbench.catalog import Catalog
    from clipbench.records.check import check

    found = check(Catalog(cards or ()), results)
    if as_json:
        print(json_text(found.counts | {"problems": found.problems}))
    else:
        for problem in found.problems:
            _stderr(f"[bold red]✗[/] {_plain(problem)}")
        counted = ", ".join(f"{count} {what}" for what, count in found.counts.items())
        verdict = f"{len(found.problems)} problems" if found.problems else "all well"
        _stdout(f"checked {counted}: {verdict}")
    if found.problems:
        raise typer.Exit(2)


# ---------------------------------------------------------------------- bench

bench = typer.Typer(
    help="Measure clipbench itself, as ratios to a limit or a peer in the same run.", no_args_is_help=True
)
app.add_typer(bench, name="bench")


def _print(found: dict[str, Any], view: Callable[[dict[str, Any]], RenderableType], as_json: bool) -> None:
    """A measurement on stdout: as JSON, or as people read it."""
    if as_json:
        print(json_text(found))
    else:
        _stdout(view(found))


@bench.command("encode")
def bench_encode_command(
    data: Data = None,
    arch: Annotated[
        str, typer.Option("--arch", help="open_clip architecture, with random weights.")
    ] = "ViT-B-32",
    images: Annotated[int, typer.Option("--images", min=128, help="Images of CIFAR-10.")] = 512,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Encoding end to end against the bare forward pass and the machine's matmul peak."""
    from clipbench.bench.encode import measure, view
    from clipbench.data.hub import DataPaths

    runtime = _runtime(device, precision)
    measured = measure(arch, images, runtime, DataPaths.parse(data or ()), progress=not as_json)
    _print(measured, view, as_json)


@bench.command("cached")
def bench_cached_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Whose features are cached.")
    ] = "digits-clip-lite",
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Task ids. [default: digits-zs, digits-lp]")
    ] = None,
    data: Data = None,
    cards: Cards = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Random features that are read.")] = 50_000,
    columns: Annotated[int, typer.Option("--columns", min=1, help="Their length.")] = 512,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """What checking cached features costs: against reading them, and of a run in which nothing is encoded."""
    from clipbench.bench.cached import measure, view
    from clipbench.data.hub import DataPaths
    from clipbench.evaluate import Options

    catalog = _catalog(cards)
    options = Options(
        runtime=_runtime(device, precision), data=DataPaths.parse(_known_data(data, catalog)), progress=False
    )
    tasks = catalog.tasks(_names("--task", task or ["digits-zs", "digits-lp"]))
    _print(measure(catalog.model(model), tasks, options, rows, columns), view, as_json)


@bench.command("probe")
def bench_probe_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Whose backbone features are probed.")
    ] = "efficientnet-lite0",
    dataset: Annotated[
        str, typer.Option("--dataset", help="A data set with splits train and test.")
    ] = "cifar10",
    data: Data = None,
    cards: Cards = None,
    random: Annotated[
        str | None,
        typer.Option(
            "--random",
            help="Random features of this many rows, columns and classes instead of a model's.",
            metavar="N,D,K",
        ),
    ] = None,
    every: Annotated[
        int, typer.Option("--every", min=0, help="scikit-learn fits every n-th λ; 0: none.")
    ] = 8,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The whole regularisation path against scikit-learn's fits, on the same features in one run."""
    from tempfile import TemporaryDirectory

    from clipbench.bench import inputs
    from clipbench.bench.probe import measure, view
    from clipbench.data.hub import DataPaths
    from clipbench.encoding.encoder import ModelEncoder

    runtime = _runtime(device, precision)
    with TemporaryDirectory(prefix="clipbench-") as folder:
        if random is not None:
            features = inputs.random_labelled(Path(folder), *_sizes(random))
        else:
            catalog = _catalog(cards)
            paths = DataPaths.parse(_known_data(data, catalog))
            encoder = ModelEncoder(catalog.model(model), runtime, progress=not as_json)
            features = inputs.labelled(encoder, catalog.dataset(dataset), paths)
        found = measure(features, every=every, device=runtime.device, progress=not as_json)
        _print(found, view, as_json)


def _sizes(given: str) -> list[int]:
    """The three numbers of `--random`."""
    parts = given.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ClipbenchError(f"--random: 3 positive numbers are wanted, like 10000,512,100 (found {given})")
    return [int(part) for part in parts]


@bench.command("svm")
def bench_svm_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Whose backbone features are classified.")
    ] = "efficientnet-lite0",
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            help="Data sets whose first splits are taken together; classes of a single-label set are told from "
            "all others. [default: coco-363-voc, voc2012-100]",
        ),
    ] = None,
    data: Data = None,
    cards: Cards = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=9, help="So many rows, evenly spaced; all by default.")
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="LinearSVC fits every n-th class.")] = 1,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """One SVM a class with its cost cross-validated, against scikit-learn's LinearSVC, in one run."""
    from clipbench.bench import inputs
    from clipbench.bench.svm import measure, view
    from clipbench.data.hub import DataPaths
    from clipbench.encoding.encoder import ModelEncoder

    catalog = _catalog(cards)
    paths = DataPaths.parse(_known_data(data, catalog))
    entries = [catalog.dataset(name) for name in dataset or ("coco-363-voc", "voc2012-100")]
    encoder = ModelEncoder(catalog.model(model), _runtime(device, precision), progress=not as_json)
    found = measure(*inputs.multi_label(encoder, entries, paths, rows), every=every)
    _print(found, view, as_json)


@bench.command("pretrain")
def bench_pretrain_command(
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=2, help="Pairs a step. [default: 32; 1024 on a GPU]")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of each, a round.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns that all take.")] = 3,
    device: Device = "cpu",
    precision: Annotated[
        str, typer.Option("--precision", help="On a GPU: auto, fp32, bf16 or fp16. A CPU has fp32.")
    ] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="On a GPU: with torch.compile.")] = False,
    as_json: Json = False,
) -> None:
    """On a CPU a step of CLIP against open_clip_train's, and of DeCLIP against CLIP's; on a GPU the papers' towers.

    There: CLIP, CLIP-Lite and DeCLIP on a ResNet-50, against the measured matmul peak.
    """
    from clipbench.bench import pretrain, pretrain_gpu

    runtime = _runtime(device, precision)
    if runtime.on_cpu and (runtime.precision != "fp32" or compiled):
        raise ClipbenchError("on a CPU steps are measured in fp32, as they come", hint="add --device cuda")
    if runtime.on_cpu:
        _print(pretrain.measure(batch_size or 32, steps=steps, rounds=rounds), pretrain.view, as_json)
        return
    found = pretrain_gpu.measure(batch_size or 1024, runtime, steps=steps, rounds=rounds, compiled=compiled)
    _print(found, pretrain_gpu.view, as_json)


@bench.command("retrieval")
def bench_retrieval_command(
    images: Annotated[int, typer.Option("--images", min=1, help="Random images.")] = 10_000,
    captions: Annotated[int, typer.Option("--captions", min=1, help="Texts of each image.")] = 5,
    width: Annotated[int, typer.Option("--width", min=1, help="Length of a row.")] = 512,
    top: Annotated[int, typer.Option("--top", min=1, help="Best keys that are wanted.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Of which the best counts.")] = 2,
    as_json: Json = False,
) -> None:
    """Best keys and ranks in both directions against faiss's exact search, in one run."""
    from clipbench.bench.retrieval import measure, view

    found = measure(images, captions, width, top, rounds=rounds)
    _print(found, view, as_json)


# -------------------------------------------------------------------- weights

weights = typer.Typer(
    help="Bring weights to this machine, and make files safe to read.", no_args_is_help=True
)
app.add_typer(weights, name="weights")


@weights.command("fetch")
def weights_fetch_command(
    model: Annotated[list[str], typer.Argument(help="Model ids, as for eval.", metavar="MODEL...")],
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Make sure that models' weights are on this machine, for example before work without a network."""
    from clipbench.models.families import fetch

    catalog = _catalog(cards)
    models = [catalog.model(name) for name in _names("MODEL", model)]
    found = [file for entry in models for file in fetch(entry)]
    if as_json:
        rows = [file._asdict() | {"path": str(file.path)} for file in found]
        print(json_text(rows))
        return
    for file in found:
        print(f"{visible(file.model)}: {visible(str(file.path))}")
        print(f"  {file.bytes:,} bytes, sha256 {file.sha256} ({file.checked})")


@weights.command("convert")
def weights_convert_command(
    source: Annotated[Path, typer.Argument(help="A file of torch.save that holds more than tensors.")],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Copy the tensors of a checkpoint to safetensors. Nothing in the file is run."""
    from clipbench.models.weights.convert import convert

    done = convert(source, out, force=force, agree=lambda names: yes or _agreed(source, names))
    if done.left_out:
        more = f" and {len(done.left_out) - 8} more" if len(done.left_out) > 8 else ""
        _stderr(_plain(f"left out, being no tensors: {', '.join(done.left_out[:8])}{more}"))
    print(f"{visible(str(done.path))}: {done.tensors:,} tensors, {done.bytes:,} bytes, sha256 {done.sha256}")


def _agreed(source: Path, names: list[str]) -> bool:
    """Show what a file names beside its tensors, and ask."""
    _stderr(_plain(f"{source} names these classes and functions:"))
    for name in names:
        _stderr(_plain(f"  {name}"))
    _stderr("None of them is run: only the tensors are copied.")
    if not sys.stdin.isatty():
        raise ClipbenchError(
            f"{source} was not converted: there is no terminal to ask on", hint="add --yes to convert it"
        )
    return typer.confirm("Go on?", default=False, err=True)


# ----------------------------------------------------------------------- data

data_app = typer.Typer(
    help="Check copies of data sets, and turn annotations into files that are read.", no_args_is_help=True
)
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check_command(
    name: Annotated[str, typer.Argument(help="A data set, task or suite id.")],
    data: Data = None,
    every: Annotated[
        bool, typer.Option("--all", help="Decode every image, not a sample of each split.")
    ] = False,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Open every split of data sets and hold counts, classes and images against the cards; exit code 2 if one is wrong.

    Nothing is fetched: give your copies with --data.
    """
    from dataclasses import asdict

    from clipbench.data.hub import DataPaths
    from clipbench.report.data_check import survey, text

    catalog = _catalog(cards)
    own = [i for i in catalog.task_ids() if i.partition("@")[0].rpartition("-")[0] == name]
    tasks = catalog.tasks(own or [name])
    found = survey(tasks, DataPaths.parse(_known_data(data, catalog)), every=every)
    if as_json:
        print(json_text(asdict(found)))
    else:
        sys.stdout.write(visible(text(found), lines=True))
    if not found.well:
        raise typer.Exit(2)


@data_app.command("convert-coco-gender")
def convert_coco_gender_command(
    source: Annotated[Path, typer.Argument(help="Folder of the original .data, .ids and object_id.map.")],
    out: Annotated[Path, typer.Argument(help="Folder to write gender_<split>.json to.")],
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Copy COCO-gender's original annotations, which are pickles, to JSON. Nothing in them is run."""
    from clipbench.data.layouts.coco_gender import convert

    for path, images in convert(source, out, force=force):
        print(f"{visible(str(path))}: {images:,} images")


# ---------------------------------------------------------------------- parts


def _catalog(cards: list[Path] | None) -> Catalog:
    """The cards; those that had to be passed over are named when the command ends."""
    from clipbench.catalog import Catalog

    catalog = Catalog(cards or ())
    _catalogs.append(catalog)
    return catalog


def _standing(results: Path, cards: list[Path] | None, models: list[str] | None) -> list[Record]:
    """Records of these models (None: of all) that may stand on the leaderboard; the others are named."""
    from clipbench.records import record as records
    from clipbench.records.eligibility import Judge

    stored = records.load_all(results)
    known = {one.record.model for one in stored}
    chosen = set(_names("--model", models)) if models else known
    for name in sorted(chosen - known):
        raise ClipbenchError(f"{unknown('model', name, known)} (records of {results})")
    judge = Judge(_catalog(cards))
    found = []
    for one in stored:
        if one.record.model in chosen:
            reasons = judge.reasons(one)
            if reasons:
                _stderr(_plain(f"left out: {one.path}: {'; '.join(reason.text for reason in reasons)}"))
            else:
                found.append(one.record)
    if not found:
        raise ClipbenchError(f"no record of {results} may be given on", hint="see clipbench report")
    return found


def _names(option: str, given: list[str]) -> list[str]:
    """Comma-separated and repeated values as one list, each once, in order."""
    names = list(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))
    if not names:
        raise ClipbenchError(f"{option} names nothing", hint="see clipbench list models|tasks|suites")
    return names


def _known_data(given: list[str] | None, catalog: Catalog, more: Sequence[str] = ()) -> list[str]:
    """The values of --data; a misspelt data set would otherwise be fetched instead of read. `more`: other names."""
    known = {*catalog.dataset_files, *more}
    for text in given or ():
        name, separator, _ = text.partition("=")
        if separator and name not in known:
            raise ClipbenchError(f"--data {text}: {unknown('data set', name, known)}")
    return given or []


def _runtime(
    device: str,
    precision: str,
    batch_size: int | None = None,
    workers: int | None = None,
    deterministic: bool = False,
) -> Runtime:
    """The runtime of this process, which on a CPU keeps the memory that it frees."""
    from clipbench.encoding.runtime import Runtime, keep_freed_memory

    runtime = Runtime.choose(device, precision, batch_size, workers, deterministic)
    if runtime.on_cpu:
        keep_freed_memory()
    return runtime


def _auto(option: str, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise ClipbenchError(f"{option} takes auto or a whole number (found {text!r})")
    return int(text)


def _stdout(what: Any) -> None:
    from rich.console import Console

    Console().print(Shown(what), highlight=False)


def _stderr(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(Shown(text), highlight=False)


def _print_error(error: ClipbenchError, where: str = "") -> None:
    _stderr(f"[bold red]error:[/] {_plain(where + error.message)}")
    if error.hint:
        _stderr(f"  {_plain(error.hint)}")


def _plain(text: str) -> str:
    """`text` with rich's markup switched off."""
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
