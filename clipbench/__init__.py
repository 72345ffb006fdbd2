"""clipbench: zero-shot and linear-probe evaluation of CLIP-like models, and their efficient pretraining."""

from clipbench.utils.version import __version__

TYPE_CHECKING = False  # as typing's, which this import shall not cost
if TYPE_CHECKING:
    from clipbench.api import Model, load_model
    from clipbench.errors import ClipbenchError
    from clipbench.library import EvaluationError, compare, evaluate, gate
    from clipbench.metrics.concepts import concept_direction, remove_concept
    from clipbench.models.own import OwnModel
    from clipbench.mteb import as_mteb
    from clipbench.records.record import Record
    from clipbench.report.dataframe import results

__all__ = [
    "ClipbenchError",
    "EvaluationError",
    "Model",
    "OwnModel",
    "Record",
    "__version__",
    "as_mteb",
    "compare",
    "concept_direction",
    "evaluate",
    "gate",
    "load_model",
    "remove_concept",
    "results",
]
_HOMES = {
    "ClipbenchError": "errors",
    "EvaluationError": "library",
    "Model": "api",
    "OwnModel": "models.own",
    "Record": "records.record",
    "as_mteb": "mteb",
    "concept_direction": "metrics.concepts",
    "compare": "library",
    "evaluate": "library",
    "gate": "library",
    "load_model": "api",
    "remove_concept": "metrics.concepts",
    "results": "report.dataframe",
}


def __getattr__(name: str) -> object:
    """What `__all__` names, imported when it is first asked for."""
    if name in _HOMES:
        from importlib import import_module

        found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What `__all__` names, imported or not, and what Python adds."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
