"""Compare every architecture of open_clip, made small, with open_clip itself, and write `docs/models.md`.

    make zoo        (or: PYTHONPATH=tests python -m zoo [ARCHITECTURE …])

Named ones are compared, and nothing is written. On one core it takes about six minutes.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported

import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from clipbench.errors import first_line
from clipbench.models.weights.library import complete_library
from zoo import table
from zoo.compared import CLOSE, compare


def main(names: Sequence[str]) -> int:
    """Compare `names`, or all; 1 where one does not work."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows, worst = [], 0.0
    for arch in names or complete_library().list_models():
        with tempfile.TemporaryDirectory() as folder:
            row = table.told(arch)
            try:
                found = compare(arch, Path(folder))
            except Exception as error:  # of any library: a row says so, and the others are tried
                row |= {
                    "works": f"no: {type(error).__name__}: {first_line(error)}".replace("|", "/"),
                    "heat maps": "",
                }
            else:
                problem = found.problem()
                worst = max(worst, found.largest)
                row |= {"works": f"no: {problem}" if problem else "yes", "heat maps": table.heat(found.heat)}
        print(f"{arch}: {row['works']}", flush=True)
        rows.append(row)
    works = sum(row["works"] == "yes" for row in rows)
    print(
        f"{works} of {len(rows)} work; the largest difference of those that were compared is {worst:.2g} (< {CLOSE})"
    )
    if not names:
        table.PATH.write_text(table.written(rows), encoding="utf-8")
        print(f"wrote {table.PATH}")
    return 0 if works == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
