"""The package itself: its version, and the folder that it is imported from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_ROOT: Final = sys.modules[__name__.partition(".")[0]]  # imported before any part of it
__version__: Final[str] = _ROOT.__version__
#: the folder `clipbench`, wherever this file lies in it
PACKAGE: Final = Path(str(_ROOT.__file__)).resolve().parent
