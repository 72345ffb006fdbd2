"""`clipbench list` and `clipbench show`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from clipbench.cards.model import OWN_FAMILY, ModelCard, Reported
from clipbench.cards.task import TaskCard
from clipbench.catalog import CHECKPOINTS, Catalog, Task
from clipbench.data.at_hand import at_hand
from clipbench.data.paths import DataPaths
from clipbench.errors import CardError, unknown
from clipbench.models.families import family
from clipbench.protocols.registry import protocol_ids
from clipbench.records import store
from clipbench.report.table import as_printed, record_table, stages_table
from clipbench.utils.escape import visible

_LONG_LIST = 8
_MOST_VARIANTS, _SHOWN_VARIANTS = 24, 6
NOWHERE: Final = DataPaths({}, ())


def models(catalog: Catalog) -> list[dict[str, Any]]:
    """One row a model card, and one a model of an installed package."""
    rows = []
    for name in catalog.readable(catalog.model_files, catalog.model):
        card = catalog.model(name).card
        pairs = card.training_pairs_m
        rows.append({"id": name, "family": card.family, "pairs (M)": pairs, "title": card.title})
    for name, one in catalog.own_models.items():
        title = f"{one.value}, of {one.where}"
        rows.append({"id": name, "family": OWN_FAMILY, "pairs (M)": None, "title": title})
    return rows


def tasks(
    catalog: Catalog,
    suite: str | None = None,
    kind: str | None = None,
    protocol: str | None = None,
    here: DataPaths | None = None,
) -> list[dict[str, Any]]:
    """One row a task, variants included.

    Args:
        suite: those in it only.
        kind: those of sets of this kind only.
        protocol: those of this protocol only.
        here: those whose data is on this machine only, given such copies.

    Raises:
        CardError: there is no such suite, kind or protocol.
    """
    if suite is not None and suite not in catalog.suites:
        raise CardError(unknown("suite", suite, catalog.suites, listing="clipbench list suites"))
    if protocol is not None and protocol not in protocol_ids():
        raise CardError(unknown("protocol", protocol, protocol_ids()))
    of = catalog.tasks([suite]) if suite else [catalog.task(name) for name in catalog.task_ids()]
    kinds = sorted({each for task in of for each in (task.dataset.card.kind, *task.dataset.card.also)})
    if kind is not None and kind not in kinds:
        raise CardError(unknown("kind", kind, kinds))
    of = [
        task
        for task in of
        if kind in (None, task.dataset.card.kind, *task.dataset.card.also)
        and protocol in (None, task.protocol.id)
        and (here is None or runnable(task, here))
    ]
    rows = []
    for task in of:
        card = task.dataset.card
        revision = card.source.revision or ("unknown" if card.source.hub else None)
        rows.append(
            {
                "id": task.id,
                "metric": getattr(task.params, "primary", None),
                "classes": len(card.classes) or None,
                "title": card.title,
                "data": data_of(task),
                "revision": revision,
                **card.terms_of_use,
            }
        )
    return rows


def data_of(task: Task) -> str:
    """Where the data of a task comes from: the hub, this package, or the user (`--data`), who unpacks these files."""
    source = task.dataset.card.source
    if source.builtin:
        return "comes with clipbench"
    if source.path:
        return str(source.path)
    if source.torchvision:
        return f"torchvision's {source.torchvision}"
    if source.hub and source.lacks.keys().isdisjoint([*task.roles, *task.marks]):
        return source.hub
    return "--data" + (f": {', '.join(source.archive.files)}" if source.archive else "")


def with_variants(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of tasks, the variants of each in one cell: `<id>@<variant>` is what to type."""
    variants: dict[str, list[str]] = {}
    for row in rows:
        name, _, variant = row["id"].partition("@")
        variants.setdefault(name, []).extend([variant] if variant else [])
    shown = []
    for row in rows:
        if "@" not in row["id"]:
            own = variants[row["id"]]
            shots = [v.removesuffix("-shot") for v in own if v.endswith("-shot")]
            cells = [f"@{v}" for v in own if not v.endswith("-shot")]
            cells += [f"@{{{','.join(shots)}}}-shot"] if shots else []
            if len(cells) > _MOST_VARIANTS:  # languages, of which there may be hundreds
                cells = [*cells[:_SHOWN_VARIANTS], f"… {len(cells)} in all (list tasks --json)"]
            shown.append({"id": row["id"], "metric": row["metric"], "variants": " ".join(cells)})
    return shown


#: images a second that the estimate of time assumes: one GPU, ViT-B/32, images decoded as fast
RATE: Final = 1_000


def suites(catalog: Catalog, paths: DataPaths = NOWHERE) -> list[dict[str, Any]]:
    """One row a suite: what it covers, what it takes, and how many of its tasks have their data here.

    `images` counts each split once, however many tasks read it; None where a card states no number. `gb` is what the
    sources state that say it. `gpu_minutes` is an estimate: all images once, at `RATE`.
    """
    rows = []
    for name, suite in sorted(catalog.suites.items()):
        try:
            of = catalog.tasks([name])
        except CardError as error:
            catalog.problems[Path(f"suite {name}")] = error
            continue
        splits = {(task.opened.id, role): task for task in of for role in task.roles}
        counts = [task.opened.card.splits[role].rows for (_, role), task in splits.items()]
        known = sum(count for count in counts if count)
        sources = {task.opened.id: task.opened.card.source for task in of}
        sizes = [source.gigabytes for source in sources.values() if source.gigabytes]
        rows.append(
            {
                "id": name,
                "tasks": len(of),
                "sets": len(sources),
                "images": known,
                "unknown_splits": sum(count is None for count in counts),
                "gb": sum(sizes) or None,
                "unknown_gb": len(sources) - len(sizes),
                "gpu_minutes": known / RATE / 60,
                "here": sum(runnable(task, paths) for task in of),
                "title": suite.title,
            }
        )
    return rows


def runnable(task: Task, paths: DataPaths = NOWHERE) -> bool:
    """Whether the data of a task is on this machine (see `at_hand`)."""
    return at_hand(task.opened, task.roles, paths)


def suites_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Suites with what they take; `+` where a part of it is not known."""
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    drawn.add_column("suite", ratio=1)
    for name in ("tasks", "images", "GB", "GPU min", "here"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        more = "+" if row["unknown_splits"] else ""
        size = "?" if row["gb"] is None else f"{row['gb']:g}" + ("+" if row["unknown_gb"] else "")
        title = Padding(Text(visible(row["title"]), style="dim"), (0, 0, 0, 2))
        told = Group(Text(row["id"], style="bold"), title)
        minutes = f"{row['gpu_minutes']:,.0f}" if row["gpu_minutes"] >= 1 else "<1"
        drawn.add_row(
            told, str(row["tasks"]), f"{row['images']:,}{more}", size, minutes + more, str(row["here"])
        )
    note = (
        f"images: each split once; for sets of items to choose among, items. GPU min: an estimate, all images once at "
        f"{RATE:,} a second. here: tasks whose data is on this machine. + and ?: the cards do not say all."
    )
    return Group(drawn, Text(), Padding(Text(note, style="dim"), (0, 0, 0, 2)))


def recipes(catalog: Catalog) -> list[dict[str, Any]]:
    """One row a recipe."""
    rows = []
    for name in catalog.readable(catalog.recipe_files, catalog.recipe):
        card = catalog.recipe(name).card
        data = ", ".join(dict.fromkeys(source.name for source in card.data))
        rows.append({"id": name, "data": data, "cost": card.cost, "title": card.title})
    return rows


KINDS: dict[str, Callable[[Catalog], list[dict[str, Any]]]] = {
    "models": models,
    "tasks": tasks,
    "suites": suites,
    "recipes": recipes,
}


def table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Rows of equal keys as a table; ids are never cut."""
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for key in rows[0] if rows else ["id"]:
        numbers = all(isinstance(row[key], int | float | None) for row in rows)
        drawn.add_column(key, justify="right" if numbers else "left", no_wrap=key in ("id", "metric"))
    for row in rows:
        texts = ("–" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in row.values())
        drawn.add_row(*(Text(visible(text)) for text in texts))
    return drawn


def show(name: str, catalog: Catalog) -> tuple[Any, RenderableType]:
    """The JSON value and the terminal view of whatever has this name.

    Raises:
        CardError: nothing has.
    """
    if name.endswith(".json") and Path(name).is_file():
        record = store.read(Path(name)).record
        return record.canonical(), Group(record_table(record), stages_table(record))
    if name in catalog.suites:
        told = {"title": catalog.suites[name].title, "tasks": [t.id for t in catalog.tasks([name])]}
        return {"id": name, **told}, _card(name, told, None)
    if name in catalog.recipe_files:
        entry = catalog.recipe(name)
        value, view = entry.card.canonical(), _card(name, entry.card.canonical(), entry.path)
        if name not in catalog.model_files:
            return value, view
        card = catalog.model(name).card  # what the recipe made is of the same name
        both = Group(_model(name, card, catalog.model_files[name]), Text(), view)
        return {"model": card.canonical(), "recipe": value}, both
    if name in catalog.dataset_files:
        dataset = catalog.dataset(name)
        value = _resolved(dataset.card)
        return value, _card(name, value, dataset.path)
    if name in catalog.task_ids():
        task = catalog.task(name)
        protocol = {"name": task.protocol.id, "version": task.protocol.version}
        value = {
            "task": name,
            "protocol": protocol | {"params": task.params.canonical()},
            "data": data_of(task),
            "dataset": _resolved(task.dataset.card),
        }
        return value, _card(name, value, task.dataset.path)
    if (
        name in catalog.model_files
        or name in catalog.own_models
        or "/" in name
        or ":" in name
        or name.endswith(CHECKPOINTS)
    ):
        model = catalog.model(name)
        return model.card.canonical(), _model(name, model.card, catalog.model_files.get(name))
    known = [*catalog.model_files, *catalog.dataset_files, *catalog.task_ids()]
    known += [*catalog.suites, *catalog.recipe_files, *catalog.own_models]
    raise CardError(unknown("id", name, known, listing="clipbench list models|tasks|suites|recipes"))


def _resolved(card: TaskCard) -> dict[str, Any]:
    """A task card with what is no part of its fingerprint: terms of use, and where data can be had."""
    value = card.canonical()
    title = {key: value.pop(key) for key in ("title", "description", "homepage")}
    if card.class_sets:
        of = {name: len(chosen.members(len(card.classes))) for name, chosen in card.class_sets.items()}
        value["class_sets"] = {name: f"{count:,} classes" for name, count in of.items()}
    archive = card.source.archive
    value["source"] |= {"archive": archive.canonical() if archive else None, "lacks": card.source.lacks}
    return title | card.terms_of_use | value


def _card(name: str, value: dict[str, Any], path: Path | None) -> RenderableType:
    title = Text.assemble((name, "bold"), "  ", (str(path) if path else "", "dim"))
    return Group(title, Syntax(_yaml(_short(value)), "yaml", background_color="default", word_wrap=True))


def _model(name: str, card: ModelCard, path: Path | None) -> RenderableType:
    value = card.canonical()
    texts = family(card.family).texts
    if texts is not None and (rules := texts(card)) is not None:
        value["text"] = rules.canonical()
    value.pop("reported")
    notes = value.pop("notes")
    parts: list[RenderableType] = [_card(name, value, path)]
    if notes:
        parts.append(Text(notes))
    if (told := family(card.family).backbone_is(card)) is not None:
        parts.append(Text(f"backbone features (probes): {told}"))
    by_source: dict[tuple[str, str], list[Reported]] = {}
    for row in card.reported:
        by_source.setdefault((row.source, row.confidence), []).append(row)
    task_width = max((len(row.task) for row in card.reported), default=0)
    metric_width = max((len(row.metric) for row in card.reported), default=0)
    for (source, confidence), rows in by_source.items():
        lines = "\n".join(
            f"{r.task:<{task_width}}  {r.metric:<{metric_width}}  {as_printed(r.percent):>6}" for r in rows
        )
        heading = Text.assemble("\nreported, %: ", (source, "bold"), f" ({confidence})")
        parts += [heading, Padding(Text(lines), (0, 0, 0, 2))]
    return Group(*parts)


def _short(value: Any) -> Any:
    """`value` with unset fields left out and long lists cut; `--json` prints all."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if v not in (None, [], {}, ())}
    if isinstance(value, list | tuple):
        if len(value) > _LONG_LIST:
            return [*(_short(v) for v in value[:_LONG_LIST]), f"… {len(value)} in all"]
        return [_short(v) for v in value]
    return value


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True, width=76)
    return text
