"""clipbench: zero-shot and linear-probe evaluation of CLIP-like models, and their efficient pretraining."""

from __future__ import annotations

__version__ = "0.1.0"
