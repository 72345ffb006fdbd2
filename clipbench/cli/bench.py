"""`clipbench bench`: clipbench itself, measured as ratios to a limit or a peer in the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from rich.console import RenderableType

from clipbench.bench import (
    cached,
    embed,
    encode,
    inputs,
    plans,
    pretrain,
    pretrain_gpu,
    probe,
    retrieval,
    startup,
    svm,
)
from clipbench.cli.inputs import choose_runtime, data_paths, names, open_catalog
from clipbench.cli.options import Cards, Data, Device, Json, Plugins, Precision, number, option
from clipbench.cli.output import show
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.plans import table
from clipbench.errors import ClipbenchError
from clipbench.evaluation import Options
from clipbench.utils.escape import json_text


def _print(measured: dict[str, Any], view: Callable[[dict[str, Any]], RenderableType], as_json: bool) -> None:
    """A measurement on stdout: as JSON, or as people read it."""
    if as_json:
        print(json_text(measured))
    else:
        show(view(measured))


def encode_command(
    data: Data = None,
    arch: Annotated[
        str, option("--arch", "Architecture of open_clip, with random weights.", "ARCH")
    ] = "ViT-B-32",
    images: Annotated[int, number("--images", "How many images of CIFAR-10 to encode.", min=128)] = 512,
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


def embed_command(
    model: Annotated[str, option("--model -m", "The model that embeds.", "MODEL")] = "digits-clip-lite",
    images: Annotated[int, number("--images", "How many random images to embed.", min=1)] = 20_000,
    per_part: Annotated[int, number("--per-part", "How many of them stand in one tar file.", min=1)] = 1_000,
    side: Annotated[int, number("--side", "Their size in pixels.", min=1)] = 64,
    memory: Annotated[
        bool, option("--memory", "Also measure memory, with 2,000 and with 200,000 tiny images.")
    ] = False,
    cards: Cards = None,
    plugins: Plugins = None,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Embedding a collection, against encoding its images.

    Also: over Ray on this machine, where it is installed.
    """
    entry = open_catalog(cards, plugins).model(model)
    found = embed.measure(
        entry,
        images,
        choose_runtime(device, precision),
        per_part=per_part,
        side=side,
        sizes=(2_000, 200_000) if memory else (),
        progress=not as_json,
    )
    _print(found, embed.view, as_json)


def plans_command(
    arch: Annotated[
        list[str] | None,
        option(
            "--arch",
            "Architectures of open_clip, with random weights; repeatable, or separated by commas. "
            "[default: those of the shipped table]",
            "ARCH",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        option(
            "--precision",
            "Precisions; repeatable, or separated by commas. [default: fp32, bf16]",
            "fp32|bf16|fp16",
        ),
    ] = None,
    device: Device = "auto",
    compiled: Annotated[bool, option("--compile", "Also compile the image towers, minutes each.")] = False,
    rounds: Annotated[int, number("--rounds", "Rounds, in which all plans take turns.", min=1)] = 5,
    out: Annotated[Path | None, option("--out", "A table to bring up to date, or to begin.", "FILE")] = None,
    as_json: Json = False,
) -> None:
    """What execution plans cost on this machine.

    The table that is shipped is written with --out clipbench/encoding/plans.json.
    """
    archs = names("--arch", arch or list(dict.fromkeys(row["arch"] for row in table()["rows"])))
    precisions = names("--precision", precision or ["fp32", "bf16"])
    runtimes = [choose_runtime(device, each) for each in precisions]
    command = f"clipbench bench plans --arch {','.join(archs)} --precision {','.join(precisions)}"
    command += f" --device {device} --rounds {rounds}" + (" --compile" if compiled else "")
    found = plans.measure(archs, runtimes, rounds, compiled=compiled, command=command)
    if out is not None:
        plans.bring_up_to_date(out, found)
    _print(found, plans.view, as_json)


def startup_command(
    arch: Annotated[
        str, option("--arch", "Architecture of open_clip, with random weights.", "ARCH")
    ] = "ViT-B-32",
    model: Annotated[
        str | None,
        option("--model -m", "A model instead, as clipbench eval takes it; without the peer.", "MODEL"),
    ] = None,
    images: Annotated[
        list[int] | None,
        number("--images", "How many random images; repeatable. [default: 100, 1000]", min=1),
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    rounds: Annotated[int, number("--rounds", "Rounds, in which all take turns.", min=1)] = 5,
    peer: Annotated[
        str | None, option("--peer", "The Python that has CLIP_benchmark. [default: this one]", "PYTHON")
    ] = None,
    as_json: Json = False,
) -> None:
    """The fixed cost of a run by stage, cold and warm.

    Beside CLIP_benchmark, where it is installed.
    """
    runtime = choose_runtime(device, precision)
    _print(startup.measure(arch, images or [100, 1000], runtime, rounds, peer, model), startup.view, as_json)


def cached_command(
    model: Annotated[
        str, option("--model -m", "The model whose features are cached.", "MODEL")
    ] = "digits-clip-lite",
    task: Annotated[
        list[str] | None,
        option(
            "--task -t",
            "Task ids; repeatable, or separated by commas. [default: digits-zs, digits-lp]",
            "TASK",
        ),
    ] = None,
    data: Data = None,
    cards: Cards = None,
    plugins: Plugins = None,
    rows: Annotated[int, number("--rows", "How many random features to read.", min=1)] = 50_000,
    columns: Annotated[int, number("--columns", "Their length.", min=1)] = 512,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Checking cached features, against reading them.

    Also: what checking costs in a run that encodes nothing.
    """
    catalog = open_catalog(cards, plugins)
    options = Options(
        runtime=choose_runtime(device, precision), data=data_paths(data, catalog), progress=False
    )
    tasks = catalog.tasks(names("--task", task or ["digits-zs", "digits-lp"]))
    _print(cached.measure(catalog.model(model), tasks, options, rows, columns), cached.view, as_json)


def probe_command(
    model: Annotated[
        str, option("--model -m", "The model whose backbone features are probed.", "MODEL")
    ] = "efficientnet-lite0",
    dataset: Annotated[
        str, option("--dataset", "A data set with the splits train and test.", "DATASET")
    ] = "cifar10",
    data: Data = None,
    cards: Cards = None,
    plugins: Plugins = None,
    random: Annotated[
        str | None,
        option(
            "--random",
            "Use random features instead of a model's: how many rows, columns and classes.",
            "N,D,K",
        ),
    ] = None,
    every: Annotated[
        int, number("--every", "Let scikit-learn fit only every N-th λ; 0 for none.", min=0)
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
            catalog = open_catalog(cards, plugins)
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
        str, option("--model -m", "The model whose backbone features are classified.", "MODEL")
    ] = "efficientnet-lite0",
    dataset: Annotated[
        list[str] | None,
        option(
            "--dataset",
            "Data set whose first split is added to the rows; repeatable. With one label per image, each class "
            "is told from all the others. [default: coco-363-voc, voc2012-100]",
            "DATASET",
        ),
    ] = None,
    data: Data = None,
    cards: Cards = None,
    plugins: Plugins = None,
    rows: Annotated[
        int | None, number("--rows", "Use only N evenly spaced rows. [default: all]", min=9)
    ] = None,
    every: Annotated[int, number("--every", "Let LinearSVC fit only every N-th class.", min=1)] = 1,
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """One SVM per class, against scikit-learn's LinearSVC.

    Both cross-validate the cost, on the same features in the same run.
    """
    catalog = open_catalog(cards, plugins)
    paths = data_paths(data, catalog)
    entries = [catalog.dataset(name) for name in dataset or ("coco-363-voc", "voc2012-100")]
    encoder = ModelEncoder(catalog.model(model), choose_runtime(device, precision), progress=not as_json)
    found = svm.measure(*inputs.multi_label(encoder, entries, paths, rows), every=every)
    _print(found, svm.view, as_json)


def pretrain_command(
    batch_size: Annotated[
        int | None, number("--batch-size", "Pairs per step. [default: 32; on a GPU 1024]", min=2)
    ] = None,
    steps: Annotated[int, number("--steps", "Steps of each candidate in one round.", min=1)] = 3,
    rounds: Annotated[int, number("--rounds", "Rounds, in which all take turns.", min=1)] = 3,
    device: Device = "cpu",
    precision: Annotated[
        str, option("--precision", "Precision on a GPU; a CPU has fp32.", "auto|fp32|bf16|fp16")
    ] = "auto",
    compiled: Annotated[bool, option("--compile", "Use torch.compile, on a GPU only.")] = False,
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
    images: Annotated[int, number("--images", "How many random images.", min=1)] = 10_000,
    captions: Annotated[int, number("--captions", "Texts per image.", min=1)] = 5,
    width: Annotated[int, number("--width", "Length of a row.", min=1)] = 512,
    top: Annotated[int, number("--top", "How many best keys to find.", min=1)] = 10,
    rounds: Annotated[int, number("--rounds", "Rounds, of which the best counts.", min=1)] = 2,
    as_json: Json = False,
) -> None:
    """Best keys and ranks, against faiss's exact search.

    Both directions, in the same run.
    """
    found = retrieval.measure(images, captions, width, top, rounds=rounds)
    _print(found, retrieval.view, as_json)
