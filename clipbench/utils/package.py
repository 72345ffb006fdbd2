"""The folder that the package is imported from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

#: the folder `clipbench`, wherever this file lies in it
PACKAGE: Final = Path(str(sys.modules[__name__.partition(".")[0]].__file__)).resolve().parent
