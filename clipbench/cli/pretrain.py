"""`clipbench pretrain` and `clipbench study`. What loads torch waits until arguments are known to be good."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from clipbench.cli.inputs import auto, choose_runtime, data_paths, open_catalog
from clipbench.cli.options import (
    Cards,
    Data,
    Device,
    Force,
    MaxPixels,
    Plugins,
    Quiet,
    VerifyData,
    Workers,
    argument,
    number,
    option,
)
from clipbench.cli.output import note
from clipbench.data.decode import allow_pixels
from clipbench.data.pairs.sources import open_pairs
from clipbench.errors import ClipbenchError
from clipbench.evaluation import Options, evaluator

if TYPE_CHECKING:
    from clipbench.pretrain.study.plan import Form


def pretrain_command(
    recipe: Annotated[
        str, option("--recipe -r", "Recipe id or YAML file (see clipbench list recipes).", "RECIPE")
    ],
    out: Annotated[Path, option("--out -o", "Folder of the run, which is a model afterwards.", "DIR")],
    data: Data = None,
    assign: Annotated[
        list[str] | None,
        option(
            "--set",
            "Another value for a field of the recipe, such as optim.lr=0.001; repeatable.",
            "FIELD=VALUE",
        ),
    ] = None,
    quick: Annotated[bool, option("--quick", "Train the recipe's quick form: minutes on a CPU.")] = False,
    cards: Cards = None,
    plugins: Plugins = None,
    device: Device = "auto",
    workers: Workers = "auto",
    max_pixels: MaxPixels = None,
    tensorboard: Annotated[bool, option("--tensorboard", "Also write event files for TensorBoard.")] = False,
    verify_data: VerifyData = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe.

    Run the same command again to go on after a stop.

    Several GPUs or machines: torchrun --nproc-per-node N -m clipbench pretrain …
    """
    allow_pixels(max_pixels)
    catalog = open_catalog(cards, plugins)
    entry = catalog.recipe(recipe, quick=quick, assignments=assign or ())
    catalog.tasks(entry.card.evaluate)
    paths = data_paths(data, catalog, [source.name for source in entry.card.data], verify=verify_data)
    splits = [open_pairs(source, catalog.dataset, paths, entry.path) for source in entry.card.data]
    from clipbench.pretrain.loop import pretrain

    options = Options(runtime=choose_runtime(device, "fp32"), data=paths)
    pretrain(
        entry.card,
        entry.id,
        out,
        data=splits,
        evaluator=evaluator(catalog, options),
        device=device,
        progress=not quiet,
        workers=auto("--workers", workers),
        tensorboard=tensorboard,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    tasks = ",".join(entry.card.evaluate) or "…"
    note(f"evaluate it like any other model: clipbench eval --model {out} --task {tasks}")


def study_command(
    name: Annotated[str, argument("The study: data-efficiency.", "STUDY")],
    out: Annotated[Path, option("--out -o", "Folder of the results of studies.", "DIR")] = Path(
        "results/studies"
    ),
    runs: Annotated[
        Path, option("--runs", "Folder of the runs, from which a stopped study goes on.", "DIR")
    ] = Path("runs/studies"),
    data: Data = None,
    cards: Cards = None,
    plugins: Plugins = None,
    device: Device = "auto",
    jobs: Annotated[int, number("--jobs -j", "Runs at a time, each with its share of the cores.", min=1)] = 1,
    so_far: Annotated[
        bool, option("--so-far", "Train nothing; write the page of the runs that are finished.")
    ] = False,
    quick: Annotated[
        bool, option("--quick", "Train a tiny form on digits, which shows only that everything runs.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Test the papers' claims: the same towers, several objectives."""
    from clipbench.pretrain.study.plan import read
    from clipbench.pretrain.study.scores import finished
    from clipbench.pretrain.study.training import run
    from clipbench.report.studies import write

    runtime = None if so_far else choose_runtime(device, "fp32")  # a page needs no device
    on_gpu = device.startswith("cuda") if runtime is None else not runtime.on_cpu
    form: Form = "quick" if quick else "gpu" if on_gpu else "cpu"
    study, catalog = read(name, form), open_catalog(cards, plugins)
    folder = name if form == "cpu" else f"{name}-{form}"
    if runtime is None:
        measured = finished(study, catalog, runs / folder)
        if not measured:
            raise ClipbenchError(
                f"no run of the study is finished in {runs / folder}", hint="leave out --so-far"
            )
    else:
        options = Options(runtime=runtime, data=data_paths(data, catalog), progress=not quiet)
        measured = []
        for one in run(study, catalog, options, runs / folder, device=device, progress=not quiet, jobs=jobs):
            measured.append(one)
            shown = ", ".join(f"{measure} {100 * value:.2f} %" for measure, value in one.scores.items())
            note(f"{len(measured)}/{len(study.cells())} {one.cell.name}: {shown}")
    command = f"clipbench study {name}" + (" --quick" if quick else f" --device {device}" if on_gpu else "")
    page = write(name, study, measured, command, out / folder, force=force)
    note(f"wrote {page}, study.png and study.json")
