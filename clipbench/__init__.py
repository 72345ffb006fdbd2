"""clipbench: zero-shot and linear-probe evaluation of CLIP-like models, and their efficient pretraining."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which this import shall not cost
if TYPE_CHECKING:
    from clipbench.library import Model, load_model

__all__ = ["Model", "__version__", "load_model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load_model` and `Model`, imported when they are first asked for."""
    if name in ("Model", "load_model"):
        from clipbench import library

        found: object = getattr(library, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
