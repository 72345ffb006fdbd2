"""Records in other programs' formats, and theirs beside ours: CLIP_benchmark, `model-index`, and to read, mteb.

CLIP_benchmark's files (LAION-AI/CLIP_benchmark 1.6.2) hold values alone: no interval, number of samples or version.
What is read of them stands in tables under a mark, and never on the leaderboard.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.protocols import registry
from clipbench.protocols.base import Elsewhere
from clipbench.records.record import Record
from clipbench.report import mteb_results
from clipbench.report.dataframe import Row, metrics_of
from clipbench.utils.escape import csv_row, json_text
from clipbench.utils.parsing import MOST_JSON, Unreadable, file_bytes, json_value

_PROGRAM: Final = "CLIP_benchmark"
#: their names of data sets that are other than ours → ours
_DATASETS: Final = {
    "imagenet1k": "imagenet",
    "vtab/cifar10": "cifar10",
    "vtab/cifar100": "cifar100",
    "vtab/caltech101": "caltech101",
    "vtab/dtd": "dtd",
    "vtab/flowers": "flowers102",
    "vtab/pets": "pets",
    "fgvc_aircraft": "aircraft",
    "mscoco_captions": "coco-karpathy",
    "voc2007_multilabel": "voc07@difficult-positive",  # they count difficult objects as positive
}
_THEIRS: Final = {ours: theirs for theirs, ours in _DATASETS.items()}
_KEYS: Final = ("dataset", "model", "pretrained", "task", "language")


class Foreign(NamedTuple):
    """One result of CLIP_benchmark: its file's fields. Metrics are fractions of 1."""

    dataset: str
    model: str
    pretrained: str
    task: str
    metrics: dict[str, float]
    language: str = "en"

    @property
    def file_name(self) -> str:
        """What their program calls the file by default."""
        parts = (self.dataset, self.pretrained, self.model, self.language, self.task)
        return "_".join(part.replace("/", "_") for part in parts) + ".json"


# -------------------------------------------------------------- CLIP_benchmark


def foreign(record: Record) -> Foreign | None:
    """A record as CLIP_benchmark would have written it; None for what it does not measure.

    The name of the model is open_clip's architecture and tag or file where the record has them.
    """
    dataset, _, variant = _dataset(record.task)
    task = next((theirs for name, theirs in _tasks().values() if name == record.protocol.name), None)
    if task is None or not (metrics := _theirs(record, task.prefix)):
        return None
    whole = f"{dataset}@{variant}" if variant else dataset
    arch, pretrained = _model(record)
    return Foreign(_THEIRS.get(whole, whole), arch, pretrained, task.task, metrics)


def _dataset(task: str) -> tuple[str, str, str]:
    name, _, variant = task.partition("@")
    dataset, _, protocol = name.rpartition("-")
    return dataset, protocol, variant


def _theirs(record: Record, prefix: str) -> dict[str, float]:
    """The metrics that both know, by their names."""
    metrics = {}
    for metric in metrics_of(record):
        theirs = registry.metric(metric).elsewhere.get(_PROGRAM)
        if theirs is not None:
            number = metric.rpartition("@")[2]
            metrics[prefix + theirs.replace("*", number)] = record.scores[metric].value
    return metrics


def _tasks() -> dict[str, tuple[str, Elsewhere]]:
    """Their names of tasks → our protocol, and what they call it."""
    known = ((name, registry.protocol(name).elsewhere.get(_PROGRAM)) for name in registry.protocol_ids())
    return {theirs.task: (name, theirs) for name, theirs in known if theirs is not None}


def _model(record: Record) -> tuple[str, str]:
    """Architecture, and tag or file."""
    config, weights = record.cards.model.get("config"), record.cards.model.get("weights")
    arch = config.get("arch") if isinstance(config, dict) else None
    sources = [v for k, v in weights.items() if k != "sha256" and v] if isinstance(weights, dict) else []
    return str(arch or record.model), str(sources[0] if sources else record.model)


def write_json(results: Iterable[Foreign]) -> dict[str, str]:
    """File name → content, a file a result as their program writes them."""
    return {one.file_name: json_text(one._asdict(), indent=None) + "\n" for one in results}


def write_csv(results: Sequence[Foreign]) -> str:
    """What `clip_benchmark build` makes of such files, with its columns in one order always."""
    metrics = list(dict.fromkeys(metric for one in results for metric in one.metrics))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*metrics, *_KEYS, "model_fullname"], lineterminator="\n")
    writer.writeheader()
    for one in results:
        fields = {key: getattr(one, key) for key in _KEYS}
        writer.writerow(csv_row(one.metrics | fields | {"model_fullname": f"{one.model} {one.pretrained}"}))
    return buffer.getvalue()


def read(path: Path) -> list[Foreign]:
    """The results in a JSON or CSV file of CLIP_benchmark, or in every one of a folder.

    Raises:
        DataError: there is none, or a file is something else.
    """
    if path.is_dir():
        return [one for file in files(path) for one in read(file)]
    try:
        text = file_bytes(path, MOST_JSON).decode("utf-8")
    except (Unreadable, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if path.suffix == ".csv":
        try:
            lines = enumerate(csv.DictReader(io.StringIO(text)), start=2)
            return [_row(row, path, line) for line, row in lines]
        except csv.Error as error:
            raise DataError(f"{path} cannot be read as CSV: {error}") from None
    try:
        value = json_value(text, nan=True)  # they write it bare
    except ValueError as error:
        problem, _, place = str(error).partition(" at line ")
        raise DataError(f"{path}:{place.partition(' ')[0]}: {problem}") from None
    return [_parsed(value, str(path))]


def files(path: Path) -> list[Path]:
    """Other programs' results at `path`: it itself; or every JSON and CSV in a folder, or JSON below it where none is.

    Raises:
        DataError: a folder has none.
    """
    if not path.is_dir():
        return [path]
    found = sorted([*path.glob("*.json"), *path.glob("*.csv")]) or sorted(path.rglob("*.json"))
    kept = [file for file in found if file.name != mteb_results.META]
    if not kept:
        raise DataError(
            f"{path} has no .json or .csv", hint="name the files that clip_benchmark or mteb wrote"
        )
    return kept


def beside(paths: Iterable[Path], catalog: Catalog) -> tuple[list[Row], list[str]]:
    """Rows of other programs' results in files or folders, for tables beside ours, and what to say of them.

    Raises:
        DataError: a file is neither CLIP_benchmark's nor mteb's, or a folder has none.
    """
    of_mteb, others = [], []
    for file in (file for path in paths for file in files(path)):
        found = mteb_results.read(file) if file.suffix == ".json" else None
        if found is None:
            others += read(file)
        else:
            of_mteb.append(found)
    if not of_mteb:
        return rows(others, catalog), []
    theirs, notes = mteb_results.rows(of_mteb, catalog)
    return rows(others, catalog) + theirs, notes


def _row(row: dict[str, str], path: Path, line: int) -> Foreign:
    aside = {*_KEYS, "model_fullname", ""}
    try:
        metrics = {k: float(v) for k, v in row.items() if k not in aside and v}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}:{line}: {error}") from None
    return _parsed({**{k: row.get(k) for k in _KEYS}, "metrics": metrics}, f"{path}:{line}")


def _parsed(value: Any, where: str) -> Foreign:
    fields = value if isinstance(value, dict) else {}
    missing = [key for key in _KEYS[:4] if not isinstance(fields.get(key), str)]
    missing += [] if isinstance(fields.get("metrics"), dict) else ["metrics"]
    if missing:
        raise DataError(
            f"{where} is no result of CLIP_benchmark: it has no {', '.join(missing)}",
            hint="its files have dataset, model, pretrained, task and metrics; those of mteb task_name and scores",
        )
    given = value["metrics"].items()  # an int may be beyond all floats
    metrics = {k: float(v) for k, v in given if isinstance(v, int | float) and abs(v) <= sys.float_info.max}
    dataset, model, pretrained, task = (value[k] for k in _KEYS[:4])
    return Foreign(dataset, model, pretrained, task, metrics, value.get("language") or "en")


def rows(results: Iterable[Foreign], catalog: Catalog) -> list[Row]:
    """Results as rows, for tables beside ours: under our names of tasks and metrics, kept off the leaderboard.

    A row is primary only where its metric is our task's: a column of a table compares one metric. All others stand in
    CSV and JSON.
    """
    rows = []
    known, tasks = set(catalog.task_ids()), _tasks()
    for one in results:
        protocol, theirs = tasks.get(one.task, (one.task, Elsewhere(one.task)))
        name = one.dataset.removeprefix("wds/")
        dataset, _, variant = _DATASETS.get(name, name.replace("/", "-")).partition("@")
        task = f"{dataset}-{protocol}" + (f"@{variant}" if variant else "")
        names = {m: _ours(m.removeprefix(theirs.prefix)) for m in one.metrics}
        usual = (m for m in ("acc1", "map_area", "image_retrieval_recall@5") if m in names.values())
        ours = catalog.task(task).params.primary if task in known else next(usual, None)
        for metric, value in one.metrics.items():
            rows.append(
                Row(
                    model=f"{one.model} {one.pretrained} (CLIP_benchmark)",
                    task=task,
                    dataset=dataset,
                    protocol=protocol,
                    metric=names[metric],
                    primary=names[metric] == ours,
                    value=value,
                    kept_off="foreign",
                    why="foreign: read from a file of CLIP_benchmark",
                )
            )
    return rows


def _ours(theirs: str) -> str:
    """Our name of their metric: the same, where no metric of ours is called otherwise there."""
    specs = (spec for name in registry.protocol_ids() for spec in registry.protocol(name).metrics)
    return next((spec.name for spec in specs if spec.elsewhere.get(_PROGRAM) == theirs), theirs)


# ----------------------------------------------------------------- model-index


def model_index(records: Sequence[Record], name: str) -> str:
    """Records of one model as the YAML head of its README on the Hugging Face hub: `model-index`.

    Values are fractions of 1; each metric's `args` hold its 95 % interval, n, and the protocol's version.
    """
    import yaml
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = []
    for record in records:
        card: dict[str, Any] = record.cards.task  # of its time: the schema of cards may have moved on
        source, splits = card.get("source") or {}, card.get("splits") or {}
        split = splits.get(record.protocol.split) or {}
        for metric in metrics_of(record):
            score = record.scores[metric]
            results.append(
                EvalResult(
                    task_type=_hub_task(record.protocol.name),
                    dataset_type=source.get("hub") or _dataset(record.task)[0],
                    dataset_name=card.get("title") or _dataset(record.task)[0],
                    dataset_config=source.get("config"),
                    dataset_split=split.get("name"),
                    dataset_revision=source.get("revision"),
                    metric_type=registry.metric(metric).elsewhere.get("huggingface", metric),
                    metric_value=score.value,
                    metric_name=f"{metric} ({record.task})",
                    metric_args={
                        "ci95": list(score.ci95),
                        "n": score.n,
                        "protocol": f"clipbench {record.protocol.name} version {record.protocol.version}",
                    },
                )
            )
    index = {"model-index": eval_results_to_model_index(name, results)}
    text: str = yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def _hub_task(name: str) -> str:
    """What the hub calls a protocol; of one that is not here, its own name."""
    known = registry.protocol(name).elsewhere if name in registry.protocol_ids() else {}
    return known["huggingface"].task if "huggingface" in known else name
