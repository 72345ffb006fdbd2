"""Parity with LAION's CLIP_benchmark: the same checkpoint, images and prompts must give the same numbers.

    make parity        (or: PYTHONPATH=tests python -m parity)

gives the peer an environment of its own over this one (same torch and open_clip), writes a WebDataset copy of the
first CIFAR-10 test images, makes random checkpoints, and runs both programs in turns as a user would: a process
each, cold caches, model load and everything else inside the wall time. Medians count; beyond 1,000 images one
turn tells enough.

In fp32 acc1, acc5 and mean per-class recall must agree to 4 decimals. Accuracy alone can be a blunt witness (a
random RN50 calls every image the same class), so the confidence in each image's predicted class must agree too:
it moves with any slip in preprocessing, encoding or prompts. In bf16 the numbers are shown, not judged: the peer
scores in bf16 too, where logits tie, while clipbench always scores in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.errors import ClipbenchError
from clipbench.records import store
from clipbench.utils.cache import cache_root, make_folder, write_atomic
from parity import choices, retrieval_and_map, zero_shot
from parity.peer import DATASET, PEER, Metric, Wall, prepare_peer, random_checkpoint, say
from parity.retrieval_and_map import SetReport
from parity.zero_shot import METRICS, Report, Setting

_TURNS_UP_TO: Final = 1_000  # images; more take minutes, and what is fixed in a run hardly counts
_ROOT: Final = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, write a report for each architecture, print a table. 1 when a metric differs in fp32, else 0.

    Raises:
        ClipbenchError: the peer, the data or a run is not to be had.
    """
    given = _parser().parse_args(arguments)
    load = round(os.getloadavg()[0], 2)
    work = make_folder((given.work or cache_root() / "parity").expanduser().resolve())
    out = make_folder(given.out)
    split = open_split(Catalog().dataset(DATASET), "test", DataPaths.parse([f"{DATASET}={given.data}"]))
    peer = prepare_peer(work / f"peer-{PEER.replace('==', '-')}")
    archs, precisions = given.archs.split(","), given.precision.split(",")
    # several prompt sets for the first architecture and precision, at the largest size that takes turns
    with_sets = max((n for n in given.images if n <= _TURNS_UP_TO), default=given.images[0])
    reports = []
    for count in given.images:
        folder = work / f"{DATASET}-{count}"
        zero_shot.write_webdataset(split, count, peer.templates(), folder)
        data: dict[str, str | int] = {
            "dataset": DATASET, "split": "test", "n": count, "fingerprint": split.fingerprint,
        }  # fmt: skip
        rounds = given.rounds if count <= _TURNS_UP_TO else 1
        for arch, precision in product(archs, precisions):
            checkpoint = random_checkpoint(arch, work / "checkpoints")
            setting = Setting(arch, checkpoint, folder, precision, work)
            first = (count, arch, precision) == (with_sets, archs[0], precisions[0])
            report = zero_shot.measure(peer, setting, data, rounds, given.prompt_sets if first else 0, load)
            text = json.dumps(report.canonical(), indent=2, ensure_ascii=False) + "\n"
            write_atomic(out / f"{store.file_name(arch)}-{precision}-{count}.json", text.encode())
            reports.append(report)
    sets = []
    arch = archs[0]
    checkpoint = random_checkpoint(arch, work / "checkpoints")
    for one in retrieval_and_map.comparisons(given.flickr8k, given.voc, given.captioned):
        sets.append(retrieval_and_map.measure(peer, one, arch, checkpoint, given.rounds, work))
    for pick in choices.comparisons(given.coco):
        sets.append(choices.measure(peer, pick, given.coco, arch, checkpoint, given.rounds, work))
    for found in sets:
        text = json.dumps(found.canonical(), indent=2, ensure_ascii=False) + "\n"
        name = f"{store.file_name(arch)}-fp32-{found.data['dataset']}-{found.data['n']}.json"
        write_atomic(out / name, text.encode())
    ties = choices.tied(peer, given.coco, work) if given.coco.is_dir() else {}
    _print(reports, sets, ties, as_json=given.json)
    differing = [name for report in reports for name in report.differing()]
    differing += [name for one in sets for name in one.differing()]
    differing += [name for name, same in ties.items() if not same.equal]
    return 1 if differing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m parity", description=f"Compare clipbench with {PEER}.")
    parser.add_argument(
        "--images",
        type=_counts,
        default=[100, 1000, 10_000],
        help="first images of the test split, with commas (100,1000,10000)",
    )
    parser.add_argument(
        "--rounds", type=_count, default=5, help=f"turns of both programs up to {_TURNS_UP_TO:,} images (5)"
    )
    parser.add_argument("--archs", default="ViT-B-32,RN50", help="open_clip architectures, with commas")
    parser.add_argument(
        "--data", type=Path, default=_ROOT / "../shared/data/cifar10", help="a copy of CIFAR-10"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp32,bf16"),
        default="fp32,bf16",
        help="bf16 is shown, not judged",
    )
    parser.add_argument(
        "--prompt-sets",
        type=int,
        choices=(0, 2, 3),
        default=3,
        help="also several prompt sets in one call (3)",
    )
    for option, folder, what in (
        ("--flickr8k", "flickr8k-1000", "its images and captions.txt, for retrieval"),
        ("--voc", "voc2012-100", "its images and boxes, for mAP"),
        ("--coco", "coco-363", "its images and captions, for items to choose among"),
    ):
        parser.add_argument(option, type=Path, default=_ROOT / "../shared/data" / folder, help=what)
    parser.add_argument("--captioned", type=_count, help="images for retrieval (all of them)")
    parser.add_argument("--out", type=Path, default=Path("results/parity"), help="folder of the reports")
    parser.add_argument("--work", type=Path, help="folder of the peer's environment, checkpoints and data")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _print(
    reports: Sequence[Report], sets: Sequence[SetReport], ties: Mapping[str, Metric], *, as_json: bool
) -> None:
    if as_json:
        ratios = {name: ratio for report in reports for name, ratio in report.ratios().items()}
        ratios |= {f"{one.arch} {one.task}": one.wall_s.ratio for one in sets}
        every = [report.canonical() for report in (*reports, *sets)]
        found = {"ratios": ratios, "reports": every, "ties": {n: one.canonical() for n, one in ties.items()}}
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(_table(reports), highlight=False)
    console.print(
        f"wall time of whole processes; load average before: {reports[0].load_average}", style="dim"
    )
    for report in reports:
        images = report.images
        console.print(
            f"{report.arch} {report.precision}: same class for {images.same_prediction:,} and same rank for "
            f"{images.same_rank:,} of {images.n:,} images ({images.predicted_classes} classes predicted); "
            f"confidence within {images.confidence_difference:.1e}; nearest tie {images.nearest_tie:.1e}",
            style="dim",
            highlight=False,
        )
        if lost := report.differing():
            console.print(f"[bold red]differs:[/] {report.arch}: {', '.join(lost)}", highlight=False)
    for one in sets:
        console.print(_set_table(one), highlight=False)
    for name, same in ties.items():
        told = f"equal scores, as the peer counts them: {name} {same.ours:.4f} / {same.peer:.4f}"
        console.print(told + ("" if same.equal else " ≠"), style="dim", highlight=False)


def _set_table(one: SetReport) -> Table:
    caption = f"{one.wall_s.ours:.1f} s / {one.wall_s.peer:.1f} s: {one.wall_s}"
    if one.ranking is not None:
        same = one.ranking
        caption += (
            f"; same rank for {same.same_text_rank:,} of {same.images:,} images and {same.same_image_rank:,} of "
            f"{same.captions:,} captions"
        )
    table = Table("metric", "clipbench", "peer", title=f"{one.arch}, {one.task}, fp32", caption=caption)
    for name, found in one.metrics.items():
        table.add_row(name, f"{found.ours:.4f}", f"{found.peer:.4f}" + ("" if found.equal else " ≠"))
    return table


def _table(reports: Sequence[Report]) -> Table:
    first = reports[0]
    table = Table(
        title=f"clipbench {first.ours.version} and {first.peer.name} {first.peer.version}: "
        "CIFAR-10; medians, and the range of the ratios",
    )
    for heading in ("model", "images", "prompts", "", *METRICS, "wall s", "ratio"):
        justify: Literal["left", "right"] = "right" if heading in (*METRICS, "wall s", "ratio") else "left"
        table.add_column(heading.replace("_", " "), justify=justify)
    for report in reports:
        work = f"{report.arch} {report.precision}", f"{report.data['n']:,}"
        _add_pair(table, (*work, "default"), report.metrics, report.wall_s)
        if report.prompt_sets is not None:
            for name, found in report.prompt_sets.metrics.items():
                _add_pair(table, (*work, name), found, None)
            _add_pair(table, (*work, "all in one call"), {}, report.prompt_sets.wall_s)
    return table


def _add_pair(
    table: Table, work: tuple[str, str, str], found: Mapping[str, Metric], wall_s: Wall | None
) -> None:
    ours, theirs = ["clipbench"], ["peer"]
    for name in METRICS:
        metric = found.get(name)
        ours.append("" if metric is None else f"{metric.ours:.4f}")
        theirs.append("" if metric is None else f"{metric.peer:.4f}" + ("" if metric.equal else " ≠"))
    ours += ["", ""] if wall_s is None else [f"{wall_s.ours:.1f}", str(wall_s)]
    theirs += ["", ""] if wall_s is None else [f"{wall_s.peer:.1f}", ""]
    table.add_row(*work, *ours)
    table.add_row("", "", "", *theirs, end_section=True)


if __name__ == "__main__":
    try:
        code = main()
    except ClipbenchError as error:
        say(f"error: {error}")
        code = 2
    raise SystemExit(code)
