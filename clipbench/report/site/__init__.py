"""`clipbench site`: all records as one HTML page that needs nothing else, neither a server nor a network.

leaderboard.py  the leaderboard, which is there without scripts
content.py      what the scripts read: an index, and a block a model and a task
document.py     template, styles, scripts and data in one file, below a limit
js/             sorting and filtering; Vega-Lite charts; the views of a model and of a task
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.records import store
from clipbench.records.store import Stored
from clipbench.report.site import leaderboard
from clipbench.report.site.content import gather
from clipbench.report.site.document import html
from clipbench.utils.outputs import write_own


def build(results: Path, catalog: Catalog) -> str:
    """The page of all records below `results`.

    Raises:
        DataError: there is no such folder, no record in it, or a file in it is no record.
    """
    return page(list(store.read_all(results)), catalog, results)


def page(stored: Sequence[Stored], catalog: Catalog, results: Path) -> str:
    """The page of the records `found`; `results` is named as their folder.

    Raises:
        DataError: there is no record.
    """
    if not stored:
        raise DataError(
            f"no record in {results}", hint="make one first: clipbench eval --model … --task quickstart"
        )
    records = leaderboard.site_records(stored, catalog)
    standing = [one for one in records if one.stands]
    columns = leaderboard.columns(standing)
    newest = datetime.fromisoformat(max(one.record.created for one in records))
    return html(
        gather(records, catalog),
        columns,
        leaderboard.lines(standing, columns),
        [one for one in records if not one.stands],
        results,
        f"{newest:%-d %B %Y}",
    )


def write(text: str, out: Path, *, force: bool = False) -> Path:
    """Write the page into the folder `out` (made where missing); returns its path.

    Raises:
        StorageError: the folder cannot be written, or holds an index.html of another's (unless `force`).
    """
    path = out / "index.html"
    write_own(path, text.encode(), b'<meta name="generator" content="clipbench">', force=force)
    return path
