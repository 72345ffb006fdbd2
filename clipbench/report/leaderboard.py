"""LEADERBOARD.md of a folder of records: derived from them, and held against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.report import table
from clipbench.report.dataframe import Row
from clipbench.report.sections import sections

LEADERBOARD: Final = "LEADERBOARD.md"
#: what stands in every one of them
MARK: Final = b"by `clipbench report --write`"


def leaderboard(every: Sequence[Row], catalog: Catalog) -> str:
    """The content of LEADERBOARD.md: what may stand on it by suite, then what is kept off and why."""
    stand = [row for row in every if not row.kept_off]
    off = [row for row in every if row.kept_off and row.primary]
    text = (
        "# Leaderboard\n\n"
        "Derived from the records of this folder by `clipbench report --write`, never edited;\n"
        "`clipbench report --check` says whether it is current.\n"
    )
    text += table.markdown(sections(stand, catalog)) if stand else "\nNo record may stand here yet.\n"
    if off:
        text += "\n## Kept off\n\n"
        cells = ([row.model, row.task, row.why] for row in off)
        text += table.markdown_table(["model", "task", "why"], "lll", cells)
    return text


def check(folder: Path, text: str) -> None:
    """Compare `text` with the leaderboard that lies in `folder`.

    Raises:
        DataError: there is none, or it says something else.
    """
    path = folder / LEADERBOARD
    try:
        written = path.read_text(encoding="utf-8")
    except OSError:
        raise DataError(f"there is no {path}", hint=f"clipbench report --results {folder} --write") from None
    if written == text:
        return
    old, new = written.splitlines(), text.splitlines()
    at = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
    line = min(len(old), len(new)) if at is None else at
    says = old[line] if line < len(old) else "(nothing)"
    raise DataError(
        f"{path}:{line + 1} is not what the records and cards say today: {says}",
        hint=f"derive it anew: clipbench report --results {folder} --write",
    )
