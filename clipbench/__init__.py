"""clipbench: zero-shot and linear-probe evaluation of CLIP-like models, and their efficient pretraining."""

from clipbench.utils.version import __version__

TYPE_CHECKING = False  # as typing's, which this import shall not cost
if TYPE_CHECKING:
    from clipbench.api import Model, load_model
    from clipbench.metrics.concepts import concept_direction, remove_concept
    from clipbench.mteb import as_mteb
    from clipbench.report.dataframe import results

__all__ = ["Model", "__version__", "as_mteb", "concept_direction", "load_model", "remove_concept", "results"]
_HOMES = {
    "Model": "api",
    "as_mteb": "mteb",
    "concept_direction": "metrics.concepts",
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
