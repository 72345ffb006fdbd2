"""What commands print: results on stdout, all else on stderr, and nothing of others' that a terminal would obey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipbench.errors import ClipbenchError
from clipbench.utils.escape import Shown

if TYPE_CHECKING:
    from clipbench.catalog import Catalog

#: those that this command reads; cards that they pass over are named when it ends
catalogs: Final[list[Catalog]] = []


def show(what: Any) -> None:
    """`what` on stdout as rich shows it."""
    from rich.console import Console

    Console().print(Shown(what), highlight=False)


def note(text: str, label: str = "") -> None:
    """`text` as it is on stderr, behind a `label` in rich's markup."""
    from rich.console import Console
    from rich.text import Text

    parts = [Text.from_markup(label), Text(" ")] if label else []
    Console(stderr=True, soft_wrap=True).print(Shown(Text.assemble(*parts, text)), highlight=False)


def print_error(error: ClipbenchError, where: str = "") -> None:
    """What is wrong, and what to type next."""
    note(where + error.message, "[bold red]error:[/]")
    if error.hint:
        note(f"  {error.hint}")
