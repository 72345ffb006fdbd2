"""What `clipbench check` looks at: every card, weights file that ships, and record, and whether that is current."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clipbench.cards.model import Images
from clipbench.cards.pairs import Pairs
from clipbench.catalog import Catalog
from clipbench.errors import CardError, ClipbenchError, DataError, unknown
from clipbench.models import factories
from clipbench.models.weights.resolve import resolve
from clipbench.protocols.registry import protocol_ids
from clipbench.records import store
from clipbench.records.alignment import recomputed
from clipbench.records.eligibility import Eligibility
from clipbench.records.exposure import unknown_images
from clipbench.records.store import Stored
from clipbench.utils.parsing import expanded

#: a score is a mean of many, added up in another order
_ROUNDING: Final = 1e-6


@dataclass
class Found:
    """How many of each kind were looked at, and every problem."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        try:
            action()
        except ClipbenchError as error:
            self.problems.append(str(error))


def check(catalog: Catalog, results: Path) -> Found:
    """Load everything that can be loaded without a network.

    Raises:
        DataError: `results` is a file, or a link that leads nowhere; there need not be such a folder.
    """
    if not results.is_dir() and (results.exists() or results.is_symlink()):
        raise DataError(f"{results} is no folder of records", hint="name one: --results DIR")
    report = Found()
    for dataset in catalog.dataset_files:
        report.attempt("data sets", lambda d=dataset: catalog.dataset(d))  # type: ignore[misc]
    if not report.problems:  # a broken task card would be named again by each of these
        for task in catalog.task_ids():
            report.attempt("tasks", lambda t=task: catalog.task(t))  # type: ignore[misc]
        for dataset in catalog.dataset_files:
            report.problems += _images_of(catalog, dataset)
        for suite in catalog.suites:
            report.attempt("suites", lambda s=suite: catalog.tasks([s]))  # type: ignore[misc]
    for model in catalog.model_files:
        report.attempt("models", lambda m=model: _model(catalog, m))  # type: ignore[misc]
    for name in catalog.own_models:
        report.attempt("models", lambda n=name: _own_model(catalog, n))  # type: ignore[misc]
    for recipe in catalog.recipe_files:
        report.attempt("recipes", lambda r=recipe: _recipe(catalog, r))  # type: ignore[misc]
    if results.is_dir():
        # What a record is held against must be right itself.
        eligibility = None if report.problems or catalog.problems else Eligibility(catalog)
        for path in store.paths(results):
            report.attempt("records", lambda p=path: _record(p, eligibility))  # type: ignore[misc]
    passed_over = map(str, catalog.problems.values())
    report.problems += [problem for problem in passed_over if problem not in report.problems]
    return report


def _record(path: Path, eligibility: Eligibility | None) -> None:
    """Raise DataError unless the record is whole, at its place, as it was measured, and current."""
    stored = store.read(path, path.parent.parent)
    reasons = eligibility.reasons(stored) if eligibility else ()
    faults = [reason.text for reason in reasons if reason.kind in ("edited", "stale")]
    faults += _beside(stored)
    if faults:
        record = stored.record
        raise DataError(
            f"{path}: {'; '.join(faults)}",
            hint=f"measure it again: clipbench eval --model {record.model} --task {record.task} "
            f"--results {path.parent.parent}",
        )


def _beside(stored: Stored) -> list[str]:
    """What is wrong with the per-sample file: it is missing, another, or says another primary score."""
    record = stored.record
    try:
        value = recomputed(stored)
    except DataError as error:
        return [error.message]
    told = record.scores[record.primary].value
    if value is None or abs(value - told) <= _ROUNDING:
        return []
    name = store.samples_path(stored.path).name
    return [f"{record.primary} is {told:.6g}, but {name} gives {value:.6g}"]


def _own_model(catalog: Catalog, name: str) -> None:
    """Find what makes a model of an installed package, without having it make one."""
    one = catalog.own_model(name)
    factories.find(name, one.value, one.where)


def _model(catalog: Catalog, name: str) -> None:
    model = catalog.model(name)
    weights = model.card.weights
    if weights.file is not None and not expanded(weights.file).is_absolute():
        resolve(model)  # ships beside its card
    for reported in model.card.reported:
        dataset, _, protocol = reported.task.partition("@")[0].rpartition("-")
        # A paper may report what no protocol here measures; that is shown, and compared with nothing.
        if protocol in protocol_ids() and dataset not in catalog.dataset_files:
            raise CardError(f"model {name}: reported: {unknown('data set', dataset, catalog.dataset_files)}")

    _known_images(f"model {name}: trained_on", model.card.trained_on, catalog)


def _images_of(catalog: Catalog, dataset: str) -> list[str]:
    """What is wrong with the splits that a task card names as holding its images."""
    try:
        for role, images in catalog.dataset(dataset).card.images_of.items():
            _known_images(f"data set {dataset}: images_of.{role}", images, catalog)
    except CardError as error:
        return [str(error)]
    return []


def _known_images(where: str, images: Sequence[Images], catalog: Catalog) -> None:
    """Raise CardError where a data set that is named as a task card's is none, or has no such split."""
    for one in images:
        if one.dataset is None or not unknown_images([one], catalog):
            continue
        if one.dataset not in catalog.dataset_files:
            raise CardError(
                f"{where}: {unknown('data set', one.dataset, catalog.dataset_files)}",
                hint=f"of a data set without a task card give the name: {{name: {one.dataset}}}",
            )
        splits = catalog.dataset(one.dataset).card.splits
        raise CardError(f"{where}: {one.dataset}: {unknown('split', one.split or '', splits)}")


def _recipe(catalog: Catalog, name: str) -> None:
    recipe = catalog.recipe(name).card
    forms = [recipe, catalog.recipe(name, quick=True).card] if recipe.quick else [recipe]
    for form in forms:
        for source in form.data:
            if isinstance(source, Pairs):
                catalog.dataset(source.dataset)
        _known_images(f"recipe {name}: trained_on", form.trained_on, catalog)
        catalog.tasks(form.evaluate)
