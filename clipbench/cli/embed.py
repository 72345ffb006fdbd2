"""`clipbench embed`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from clipbench.cli.inputs import auto, choose_runtime, open_catalog, share
from clipbench.cli.options import (
    BatchSize,
    Cards,
    Device,
    Engine,
    Json,
    MaxPixels,
    Plugins,
    Precision,
    Quiet,
    RayAddress,
    Workers,
    number,
    option,
)
from clipbench.cli.output import note
from clipbench.data import decode_stream
from clipbench.data.decode import allow_pixels
from clipbench.embed import job
from clipbench.embed.collection import Collection, collection
from clipbench.embed.collection import Wanted as Columns
from clipbench.embed.output import Output, format_of
from clipbench.embed.run import DType, Wanted
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import ClipbenchError, unknown
from clipbench.utils import cluster
from clipbench.utils.escape import json_text
from clipbench.utils.storage import Place


def embed_command(
    model: Annotated[str, option("--model -m", "Model, named as for clipbench eval.", "MODEL")],
    data: Annotated[
        str,
        option(
            "--data",
            "What to embed: a tar file of img2dataset or WebDataset, parquet, a list of files (.txt, .csv, .tsv, "
            ".jsonl), a folder of one of these or of images, or a pattern ({00000..00099}, *); here or behind s3://, "
            "gs://, az://, hf://. In front of it may stand what it is: tars:, parquet:, images:, list:, texts:.",
            "SRC",
        ),
    ],
    out: Annotated[
        str, option("--out", "Folder of the embeddings, here or behind s3:// and the like.", "DST")
    ],
    texts: Annotated[
        bool, option("--texts", "Embed captions too, and write their cosine with the image.")
    ] = False,
    min_score: Annotated[
        float | None,
        number("--min-score", "Write the keys of samples whose cosine is at least X.", "X"),
    ] = None,
    dtype: Annotated[str, option("--dtype", "Numbers in the files.", "float16|float32")] = "float16",
    form: Annotated[
        str,
        option("--format", "Arrays and a table of metadata a part, or all in one table.", "npy|parquet"),
    ] = "npy",
    rows: Annotated[int, number("--rows", "Samples a part; of tar files each is one part.", min=1)] = 10_000,
    image_column: Annotated[str | None, option("--image-column", "Column of images.", "COLUMN")] = None,
    caption_column: Annotated[
        str | None, option("--caption-column", "Column, or field of a tar's JSON, of captions.", "COLUMN")
    ] = None,
    key_column: Annotated[str | None, option("--key-column", "Column of keys.", "COLUMN")] = None,
    shard: Annotated[
        str | None,
        option("--shard", "Only every n-th part, from number k on (from 0): one of n processes.", "k/n"),
    ] = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    cards: Cards = None,
    plugins: Plugins = None,
    precision: Precision = "auto",
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = "auto",
    on_bad_image: Annotated[
        str,
        option(
            "--on-bad-image",
            "Leave out, count and name a sample that cannot be embedded, or stop.",
            "skip|stop",
        ),
    ] = "skip",
    max_pixels: MaxPixels = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Embed a collection of images and captions, of any size."""
    allow_pixels(max_pixels)
    if dtype not in ("float16", "float32"):
        raise ClipbenchError(unknown("choice for --dtype", dtype, ("float16", "float32")))
    kind: DType = "float16" if dtype == "float16" else "float32"
    bad = decode_stream.on_bad_image(on_bad_image)
    wanted = Wanted(texts, min_score, kind, format_of(form), bad)
    found = collection(data, Columns(image_column, caption_column, key_column), rows)
    folder = Place.parse(out)
    entry = open_catalog(cards, plugins).model(model)
    with cluster.engine(engine, ray_address) as ray:
        runtime = _runtime(
            ray, device, precision, auto("--batch-size", batch_size), auto("--workers", workers)
        )
        encoder = ModelEncoder(entry, runtime, progress=not quiet)
        if entry.detected:
            note(f"{entry.id}: {entry.card.notes}")
        output = job.opened(encoder, found, folder, wanted)
        of = share(shard)
        _say(found, quiet)
        told = job.embed(encoder, found, output, wanted, share=of, ray=ray)
    _report(told, output, as_json, quiet)


def _runtime(ray: Any, device: str, precision: str, batch_size: int | None, workers: int | None) -> Runtime:
    """Where workers compute: on a cluster's GPUs, where it has some, whatever this machine has."""
    on_gpus = ray is not None and any(node.get("GPU", 0) >= 1 for node in cluster.alive(ray))
    if not on_gpus or device not in ("auto", "cuda"):
        return choose_runtime(device, precision, batch_size, workers)
    of = Runtime.choose("cpu", "bf16" if precision == "auto" else precision, batch_size, workers)
    return replace(of, device="cuda")


def _say(found: Collection, quiet: bool) -> None:
    """How the source is read."""
    if quiet:
        return
    text = f"{found.source}: {found.kind}, {len(found.parts):,} parts"
    if found.columns is not None:
        named = vars(found.columns)
        text += "; " + ", ".join(
            f"{of} from column {named[of]!r}" for of in ("image", "caption", "key", "url") if named[of]
        )
        if found.columns.left_out:
            text += f"; not kept: {', '.join(found.columns.left_out)}"
    if found.ignored:
        text += "; not read: " + ", ".join(f"{count:,} files {end}" for end, count in found.ignored.items())
    note(text)


def _report(told: job.Embedded, output: Output, as_json: bool, quiet: bool) -> None:
    """What was done, what was left out, and what is missing.

    Raises:
        typer.Exit: parts could not be read, with code 2.
    """
    manifest = told.manifest
    if as_json:
        print(json_text(manifest))
    elif not quiet:
        for line in _lines(told, manifest, output):
            print(line)
    for name, why in told.failed.items():
        note(f"{name} was not embedded: {why}", "[bold red]error:[/]")
    if told.failed:
        note("  mend or fetch them again; the same command then embeds them, and nothing else")
        raise typer.Exit(2)


def _lines(told: job.Embedded, manifest: Any, output: Output) -> list[str]:
    parts, bad = manifest["parts"], manifest["bad"]
    lines = [
        f"{told.rows:,} rows in {told.new:,} parts written now; {output.folder} has {manifest['rows']:,} rows of "
        f"{manifest['samples']:,} samples, {parts['finished']:,} of {parts['all']:,} parts"
    ]
    if manifest["kept"] is not None:
        lines.append(
            f"{manifest['kept']:,} have a cosine of at least {manifest['settings']['min_score']}: kept/"
        )
    if bad["count"]:
        reasons = "; ".join(f"{count:,} {why}" for why, count in list(bad["reasons"].items())[:5])
        first = ", ".join(one["key"] for one in bad["first"][:3])
        lines.append(
            f"{bad['count']:,} samples left out ({reasons}): {first}" + (", …" if bad["count"] > 3 else "")
        )
    for kind, count in manifest["remarks"].items():
        lines.append(f"{count:,} images: {kind}")
    for how, count in manifest["ignored"].items():
        lines.append(f"{count:,} {how} not read")
    for name, other in manifest["renamed"].items():
        lines.append(f"the column {name} is called {other} in the metadata")
    if told.keys_twice:
        lines.append(
            f"{len(told.keys_twice):,} keys stand in more than one part: {', '.join(told.keys_twice[:3])}"
        )
    return lines
