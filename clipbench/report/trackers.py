"""Records in Weights & Biases or MLflow, through their own libraries, or in TensorBoard; only when asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from clipbench.errors import ClipbenchError, unknown
from clipbench.pretrain.run.events import Events
from clipbench.records.record import Record
from clipbench.utils.cache import make_folder


def log(records: Sequence[Record], to: str, project: str, folder: Path) -> int:
    """Log the scores of `found`, a run a model; returns how many runs.

    Metrics are named `<task>/<metric>`, with the ends of their intervals as `…/low` and `…/high`; what a run was made
    with (protocols, precision, seed, commit, fingerprints) is its configuration.

    Args:
        to: wandb, mlflow or tensorboard.
        project: of Weights & Biases; MLflow's experiment.
        folder: where TensorBoard's files go, one folder a model.

    Raises:
        ClipbenchError: another name, or its library is not installed.
    """
    if to not in TARGETS:
        raise ClipbenchError(unknown("target", to, TARGETS))
    models: dict[str, list[Record]] = {}
    for record in records:
        models.setdefault(record.model, []).append(record)
    for model, own in models.items():
        TARGETS[to](_Run(model, _metrics(own), _config(own)), project, folder)
    return len(models)


def _metrics(records: Sequence[Record]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for record in records:
        for name, score in record.scores.items():
            key = f"{record.task}/{name}"
            metrics |= {key: score.value, f"{key}/low": score.ci95[0], f"{key}/high": score.ci95[1]}
    return metrics


def _config(records: Sequence[Record]) -> dict[str, Any]:
    config: dict[str, Any] = {"model": records[0].model, "weights": records[0].fingerprints.get("weights")}
    for record in records:
        config |= {
            f"{record.task}/protocol": f"{record.protocol.name} version {record.protocol.version}",
            f"{record.task}/n": record.scores[record.primary].n,
            f"{record.task}/limit": record.limit,
            f"{record.task}/precision": record.precision,
            f"{record.task}/seed": record.seed,
            f"{record.task}/commit": record.env.commit,
            f"{record.task}/dirty": record.env.dirty,
            f"{record.task}/digest": record.digest,
        }
    return config


def _library(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise ClipbenchError(
            f"logging to {package} needs the package {package}, which cannot be imported: {error}",
            hint=f"pip install {package}",
        ) from None


class _Run(NamedTuple):
    """What is logged of a model, by name."""

    model: str
    metrics: dict[str, float]
    config: dict[str, Any]


def _wandb(run: _Run, project: str, folder: Path) -> None:
    wandb = _library("wandb")
    made = wandb.init(project=project, name=run.model, config=run.config, job_type="eval")
    made.log(run.metrics)
    made.finish()


def _mlflow(run: _Run, project: str, folder: Path) -> None:
    mlflow = _library("mlflow")
    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=run.model):
        mlflow.log_params({_mlflow_name(key): value for key, value in run.config.items()})
        mlflow.log_metrics({_mlflow_name(key): value for key, value in run.metrics.items()})


def _mlflow_name(key: str) -> str:
    """MLflow takes letters, digits and _ - . / and spaces in names.

    >>> _mlflow_name("flickr30k-ret/image_retrieval_recall@5")
    'flickr30k-ret/image_retrieval_recall_at_5'
    """
    return re.sub(r"[^\w\-. /]", "_", key.replace("@", "_at_"), flags=re.ASCII)


def _tensorboard(run: _Run, project: str, folder: Path) -> None:
    own = folder / run.model.replace("/", "-")
    make_folder(own)
    events = Events(own)
    events.scalars(0, run.metrics)
    lines = (f"| {key} | {value} |" for key, value in run.config.items())
    events.text("made with", "\n".join(["| key | value |", "| --- | --- |", *lines]))
    events.close()


TARGETS: Final[dict[str, Callable[[_Run, str, Path], None]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
}
