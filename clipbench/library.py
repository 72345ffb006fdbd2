"""What the commands eval, compare and gate do, as functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from clipbench.api import Model
from clipbench.catalog import Catalog
from clipbench.data import decode_stream
from clipbench.data.decode import pixels_allowed
from clipbench.data.paths import DataPaths
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, ClipbenchError, DataError, NotApplicable, unknown
from clipbench.evaluation import Options, keep, refuse
from clipbench.evaluation import evaluate as measured
from clipbench.models import own
from clipbench.models.adapter import ModelEntry
from clipbench.models.own import OwnModel
from clipbench.records import comparison, store
from clipbench.records import gate as gates
from clipbench.records.comparison import Comparison
from clipbench.records.eligibility import Eligibility
from clipbench.records.gate import Check
from clipbench.records.record import Record
from clipbench.utils.parsing import expanded
from clipbench.utils.plugins import add_all
from clipbench.utils.stages import taken

#: what `evaluate` takes for a model: what `--model` takes, what `load_model` gives, or an object of the caller's own
AnyModel: TypeAlias = "str | Path | Model | OwnModel"


class Failure(NamedTuple):
    """A task that a model has no record of, and why; `model` and `task` are empty where all stopped."""

    model: str
    task: str
    error: ClipbenchError


class EvaluationError(ClipbenchError):
    """Some tasks could not be measured.

    Attributes:
        failures: which, and why.
        records: those of the others, as `evaluate` would have returned them.
    """

    def __init__(self, failures: Sequence[Failure], records: Sequence[Record]) -> None:
        self.failures, self.records = tuple(failures), list(records)
        told: dict[str, str | None] = {}
        for model, task, error in failures:
            data = isinstance(error, DataError)  # which is the task's, whatever the model
            where = " × ".join(part for part in ("" if data else model, task) if part)
            told[f"{where}: {error.message}" if where else error.message] = error.hint
        if len(told) == 1:
            super().__init__(*told, hint=next(iter(told.values())))
            return
        lines = (f"  {what}" + (f"\n    {hint}" if hint else "") for what, hint in told.items())
        super().__init__(
            f"{len(failures)} tasks were not measured, {len(self.records)} were:\n" + "\n".join(lines)
        )


def evaluate(
    model: AnyModel | Sequence[AnyModel],
    tasks: str | Sequence[str],
    *,
    data: str | Path | Sequence[str | Path] | Mapping[str, str | Path] = (),
    results: str | Path | None = None,
    cards: Sequence[str | Path] = (),
    plugins: Sequence[str | Path] = (),
    device: str = "auto",
    precision: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    workers: int | None = None,
    deterministic: bool = False,
    on_bad_image: Literal["stop", "skip"] = "stop",
    not_applicable: Literal["error", "skip"] = "error",
    max_pixels: int | None = None,
    save_heatmaps: int = 0,
    force: bool = False,
    verify_data: bool = False,
    progress: bool = False,
) -> list[Record]:
    """Measure models on tasks, as `clipbench eval` does: the same checks, features, numbers and records.

    Args:
        model: any name that `--model` takes, what `load_model` gives, or an object of your own with the methods of
            `clipbench.OwnModel`; or several. Your own object runs where and in what precision it likes; of a loaded
            model `auto` keeps the device and the precision that it was loaded with.
        tasks: a task or suite id, or several.
        data: your copies of data sets: {dataset: folder}, "<dataset>=<folder>", a folder of folders, or several.
        results: folder to write records and per-sample outcomes into, as the command does; None: nothing is written.
        cards: folders of your own cards.
        plugins: folders of your own code, which is run.
        device: auto, cpu, cuda or cuda:N.
        precision: of encoding: auto, fp32, bf16 or fp16.
        limit: measure on a seeded, class-balanced sample of so many images.
        seed: of samples and of bootstrap intervals.
        batch_size: images a batch; None: as the machine likes it, of your own object 64.
        workers: processes that decode images; None: as many as there are cores.
        deterministic: the same options on the same machine give the same record.
        on_bad_image: stop at an image that cannot be decoded, or skip, count and name it.
        not_applicable: what a model cannot do is an error, or is left out.
        max_pixels: most pixels that an image may have.
        save_heatmaps: of how many expressions heat maps are saved beside the records.
        force: overwrite what clipbench did not write itself.
        verify_data: hash every data file again.
        progress: show progress bars on stderr.

    Returns:
        One record for each task and model, task by task; with `results` as they were written, sealed.

    Raises:
        EvaluationError: once all that could be measured was: names what could not, and has the records of the rest.
        ClipbenchError: what is wrong before anything is measured, such as an unknown name.
    """
    add_all(plugins)
    taken()  # what went before is no part of the first record's time
    catalog = Catalog([Path(folder) for folder in cards])
    wanted = catalog.tasks([tasks] if isinstance(tasks, str) else _names(tasks))
    paths = DataPaths.parse(_data(data), known=catalog.dataset_files, verify=verify_data)
    given: list[AnyModel] = list(model) if isinstance(model, list | tuple) else [model]  # type: ignore[list-item]
    entries = _entries(given, catalog)
    for name, value, least in (("limit", limit, 1), ("seed", seed, 0), ("save_heatmaps", save_heatmaps, 0)):
        if value is not None and (type(value) is not int or value < least):
            raise ClipbenchError(f"{name} must be a whole number from {least} on (found {value!r})")
    if not_applicable not in ("error", "skip"):
        raise ClipbenchError(unknown("choice for not_applicable", str(not_applicable), ("error", "skip")))
    options = Options(
        runtime=_runtime(given, device, precision, batch_size, workers, deterministic),
        data=paths,
        limit=limit,
        seed=seed,
        on_bad_image=decode_stream.on_bad_image(on_bad_image),
        progress=progress,
        pictures=save_heatmaps,
    )
    folder = None if results is None else expanded(str(results))
    refuse(entries, wanted, options, folder, force=force)
    records: list[Record] = []
    failures: list[Failure] = []
    with pixels_allowed(max_pixels):
        try:
            for result in measured(entries, wanted, options, catalog):
                if result.record is not None:
                    records.append(
                        result.record
                        if folder is None
                        else store.read(keep(result, folder, force=force).record).record
                    )
                elif result.error is not None:
                    failures.append(Failure(result.model, result.task, result.error))
                elif not_applicable == "error":
                    lack = NotApplicable(f"not applicable: {result.reason}")
                    failures.append(Failure(result.model, result.task, lack))
        except ClipbenchError as error:
            if not records and not failures:
                raise
            raise EvaluationError([*failures, Failure("", "", error)], records) from error
    if failures:
        raise EvaluationError(failures, records) from failures[0].error
    return records


def _entries(given: Sequence[AnyModel], catalog: Catalog) -> list[ModelEntry]:
    """The models, each name once."""
    found, names = [], set()
    for one in given:
        if isinstance(one, str | Path):
            if str(one) not in names:
                found.append(catalog.model(str(one)))
            names.add(str(one))
        elif isinstance(one, Model):
            found.append(ModelEntry(one.id, one.card, Path.cwd(), adapter=one.adapter))
        else:
            made = own.entry(one)
            if made.id in catalog.model_files or made.id in catalog.own_models:
                raise CardError(
                    f'your own object is called "{made.id}" as a model of clipbench list models is',
                    hint="give it another name: its attribute name",
                )
            found.append(made)
    if not found:
        raise CardError("no model is given", hint="see clipbench list models")
    return found


def _runtime(
    given: Sequence[AnyModel],
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    deterministic: bool,
) -> Runtime:
    """Where and how models run; `auto` is what loaded models were loaded with.

    Raises:
        ClipbenchError: they were loaded otherwise than each other.
    """
    loaded = {(one.runtime.device, one.runtime.precision) for one in given if isinstance(one, Model)}
    if loaded and "auto" in (device, precision):
        if len(loaded) > 1:
            told = " and ".join(" in ".join(each) for each in sorted(loaded))
            raise ClipbenchError(f"models were loaded on {told}", hint="say which: device=…, precision=…")
        [(own_device, own_precision)] = loaded
        device = own_device if device == "auto" else device
        precision = own_precision if precision == "auto" else precision
    return Runtime.choose(device, precision, batch_size, workers, deterministic)


def _names(tasks: Sequence[str]) -> list[str]:
    """Ids of tasks, looked at."""
    found = list(tasks) if isinstance(tasks, Iterable) else [tasks]
    for name in found:
        if not isinstance(name, str):
            raise CardError(f"a {type(name).__name__} is no id of a task", hint="see clipbench list tasks")
    if not found:
        raise CardError("no task is named", hint="see clipbench list tasks")
    return found


def _data(given: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> list[str]:
    """As the values of --data."""
    if isinstance(given, Mapping):
        return [f"{name}={path}" for name, path in given.items()]
    return [str(one) for one in ([given] if isinstance(given, str | Path) else given)]


def compare(
    first: str | Path | Record,
    second: str | Path | Record,
    *,
    results: str | Path = "results",
    suite: str | None = None,
    alpha: float = comparison.ALPHA,
    top: int = 5,
    cards: Sequence[str | Path] = (),
) -> list[Comparison]:
    """Compare two models on the same samples, as `clipbench compare` does: is the second better, task by task?

    Args:
        first, second: models that have records below `results`, folders of records, files of records, or records that
            `evaluate` wrote below `results`.
        results: the folder of the records.
        suite: compare on this suite's tasks only.
        alpha: how often chance may pass for a difference.
        top: how many classes and samples to name for each task.
        cards: folders of your own cards.

    Returns:
        One for each task that both have, and one of the means over tasks where there are several.

    Raises:
        ClipbenchError: there is no such model, folder or record, or they have no task in common.
    """
    folder, catalog = expanded(str(results)), Catalog([Path(card) for card in cards])
    tasks = None
    if suite is not None:
        catalog.suite(suite)
        tasks = [task.id for task in catalog.tasks([suite])]
    sides = [str(_written(one, folder) if isinstance(one, Record) else one) for one in (first, second)]
    return comparison.compare(sides[0], sides[1], folder, tasks, alpha, top, Eligibility(catalog))


def gate(
    candidate: str | Path,
    baseline: str | Path = "results",
    *,
    max_drop: float = gates.MAX_DROP,
    max_mean_drop: float = gates.MAX_MEAN_DROP,
    alpha: float = comparison.ALPHA,
    require: str | Sequence[str] | None = None,
    models: str | Sequence[str] | None = None,
    cards: Sequence[str | Path] = (),
) -> list[Check]:
    """Hold new records against those of a baseline, as `clipbench gate` does; it fails where a check's outcome does.

        assert not any(check.outcome == "fail" for check in clipbench.gate("new", "results"))

    Args:
        candidate, baseline: folders of records.
        max_drop: percentage points that a score may fall.
        max_mean_drop: percentage points that a model's mean over its tasks may fall.
        alpha: how often equal models may fail, over all tasks together.
        require: suites or tasks that must have a record; None: the baseline's tasks.
        models: judge only these; None: the baseline's.
        cards: folders of your own cards.

    Raises:
        ClipbenchError: a folder is missing or the baseline is empty, or a model is in neither.
    """
    catalog = Catalog([Path(card) for card in cards])
    required = None if require is None else [task.id for task in catalog.tasks(_several(require))]
    return gates.gate(
        expanded(str(baseline)),
        expanded(str(candidate)),
        Eligibility(catalog),
        max_drop=max_drop,
        max_mean_drop=max_mean_drop,
        alpha=alpha,
        require=required,
        models=None if models is None else _several(models),
    )


def _written(record: Record, results: Path) -> Path:
    """The file of a record, beside which its samples lie."""
    path = store.path_of(record.model, record.task, results)
    if record.digest is None or not path.is_file() or store.read(path).record.digest != record.digest:
        raise DataError(
            f"the record of {record.model} on {record.task} is not the one at {path}",
            hint="its samples lie beside its file: evaluate with results=…, and give compare the same results",
        )
    return path


def _several(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
