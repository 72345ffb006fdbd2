"""`clipbench bench`: clipbench itself, measured as ratios to a limit or a peer in the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from clipbench.bench import cached, encode, inputs, pretrain, pretrain_gpu, probe, retrieval, svm
from clipbench.cli.inputs import choose_runtime, data_paths, names, open_catalog
from clipbench.cli.options import Cards, Data, Device, Json, Precision
from clipbench.cli.output import show
from clipbench.data.hub import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.errors import ClipbenchError
from clipbench.evaluate import Options
from clipbench.utils.escape import json_text


def _print(found: dict[str, Any], view: Callable[[dict[str, Any]], RenderableType], as_json: bool) -> None:
    """A measurement on stdout: as JSON, or as people read it."""
    if as_json:
        print(json_text(found))
    else:
        show(view(found))


def encode_command(
    data: Data = None,
    arch: Annotated[
        str,
        typer.Option("--arch", help="Architecture of open_clip, with random weights.", metavar="ARCH"),
    ] = "ViT-B-32",
    images: Annotated[
        int, typer.Option("--images", min=128, help="How many images of CIFAR-10 to encode.", metavar="N")
    ] = 512,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Encoding end to end, against the bare forward pass.

    The forward pass is also held against the machine's matmul peak.
    """
    runtime = choose_runtime(device, precision)
    found = encode.measure(arch, images, runtime, DataPaths.parse(data or ()), progress=not as_json)
    _print(found, encode.view, as_json)


def cached_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model whose features are cached.", metavar="MODEL")
    ] = "digits-clip-lite",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            help="Task ids; repeatable, or separated by commas. [default: digits-zs, digits-lp]",
            metavar="TASK",
        ),
    ] = None,
    data: Data = None,
    cards: Cards = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="How many random features to read.", metavar="N")
    ] = 50_000,
    columns: Annotated[int, typer.Option("--columns", min=1, help="Their length.", metavar="N")] = 512,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Checking cached features, against reading them.

    Also: what checking costs in a run that encodes nothing.
    """
    catalog = open_catalog(cards)
    options = Options(
        runtime=choose_runtime(device, precision), data=data_paths(data, catalog), progress=False
    )
    tasks = catalog.tasks(names("--task", task or ["digits-zs", "digits-lp"]))
    _print(cached.measure(catalog.model(model), tasks, options, rows, columns), cached.view, as_json)


def probe_command(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="The model whose backbone features are probed.", metavar="MODEL"),
    ] = "efficientnet-lite0",
    dataset: Annotated[
        str,
        typer.Option("--dataset", help="A data set with the splits train and test.", metavar="DATASET"),
    ] = "cifar10",
    data: Data = None,
    cards: Cards = None,
    random: Annotated[
        str | None,
        typer.Option(
            "--random",
            help="Use random features instead of a model's: how many rows, columns and classes.",
            metavar="N,D,K",
        ),
    ] = None,
    every: Annotated[
        int,
        typer.Option(
            "--every", min=0, help="Let scikit-learn fit only every N-th λ; 0 for none.", metavar="N"
        ),
    ] = 8,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The whole regularisation path, against scikit-learn's fits.

    Both see the same features in the same run.
    """
    runtime = choose_runtime(device, precision)
    with TemporaryDirectory(prefix="clipbench-") as folder:
        if random is not None:
            features = inputs.random_labelled(Path(folder), *_sizes(random))
        else:
            catalog = open_catalog(cards)
            paths = data_paths(data, catalog)
            encoder = ModelEncoder(catalog.model(model), runtime, progress=not as_json)
            features = inputs.labelled(encoder, catalog.dataset(dataset), paths)
        found = probe.measure(features, every=every, device=runtime.device, progress=not as_json)
        _print(found, probe.view, as_json)


def _sizes(given: str) -> list[int]:
    """The three numbers of `--random`."""
    parts = given.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ClipbenchError(f"--random: 3 positive numbers are wanted, like 10000,512,100 (found {given})")
    return [int(part) for part in parts]


def svm_command(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="The model whose backbone features are classified.", metavar="MODEL"
        ),
    ] = "efficientnet-lite0",
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            help="Data set whose first split is added to the rows; repeatable. With one label per image, each class "
            "is told from all the others. [default: coco-363-voc, voc2012-100]",
            metavar="DATASET",
        ),
    ] = None,
    data: Data = None,
    cards: Cards = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=9, help="Use only N evenly spaced rows. [default: all]", metavar="N"),
    ] = None,
    every: Annotated[
        int,
        typer.Option("--every", min=1, help="Let LinearSVC fit only every N-th class.", metavar="N"),
    ] = 1,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """One SVM per class, against scikit-learn's LinearSVC.

    Both cross-validate the cost, on the same features in the same run.
    """
    catalog = open_catalog(cards)
    paths = data_paths(data, catalog)
    entries = [catalog.dataset(name) for name in dataset or ("coco-363-voc", "voc2012-100")]
    encoder = ModelEncoder(catalog.model(model), choose_runtime(device, precision), progress=not as_json)
    found = svm.measure(*inputs.multi_label(encoder, entries, paths, rows), every=every)
    _print(found, svm.view, as_json)


def pretrain_command(
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=2, help="Pairs per step. [default: 32; on a GPU 1024]", metavar="N"),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps of each candidate in one round.", metavar="N")
    ] = 3,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Rounds, in which all take turns.", metavar="N")
    ] = 3,
    device: Device = "cpu",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="Precision on a GPU; a CPU has fp32.", metavar="auto|fp32|bf16|fp16"
        ),
    ] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile, on a GPU only.")] = False,
    as_json: Json = False,
) -> None:
    """Training steps, against a peer or the matmul peak.

    On a CPU: a step of CLIP against open_clip_train's, and of DeCLIP against CLIP's.

    On a GPU: CLIP, CLIP-Lite and DeCLIP on a ResNet-50, against the measured matmul peak.
    """
    runtime = choose_runtime(device, precision)
    if runtime.on_cpu and (runtime.precision != "fp32" or compiled):
        raise ClipbenchError("on a CPU steps are measured in fp32, as they come", hint="add --device cuda")
    if runtime.on_cpu:
        _print(pretrain.measure(batch_size or 32, steps=steps, rounds=rounds), pretrain.view, as_json)
        return
    found = pretrain_gpu.measure(batch_size or 1024, runtime, steps=steps, rounds=rounds, compiled=compiled)
    _print(found, pretrain_gpu.view, as_json)


def retrieval_command(
    images: Annotated[
        int, typer.Option("--images", min=1, help="How many random images.", metavar="N")
    ] = 10_000,
    captions: Annotated[int, typer.Option("--captions", min=1, help="Texts per image.", metavar="N")] = 5,
    width: Annotated[int, typer.Option("--width", min=1, help="Length of a row.", metavar="N")] = 512,
    top: Annotated[int, typer.Option("--top", min=1, help="How many best keys to find.", metavar="N")] = 10,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Rounds, of which the best counts.", metavar="N")
    ] = 2,
    as_json: Json = False,
) -> None:
    """Best keys and ranks, against faiss's exact search.

    Both directions, in the same run.
    """
    found = retrieval.measure(images, captions, width, top, rounds=rounds)
    _print(found, retrieval.view, as_json)
