"""Write docs/sets.md, the table of all data sets, from the cards: `make sets`."""

from __future__ import annotations

from pathlib import Path

from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog

PAGE = Path(__file__).parents[1] / "docs" / "sets.md"
_HEAD = """# All data sets

Made by `make sets` from the cards; a test keeps it current. *n* is the number of test images (of items, for sets to
choose from), as the card has it; – where no source states one. *pinned*: the card names a revision of the hub's copy;
where it does not, the commit of the first use is recorded and held to. Licence and terms are as far as sources say.
What is measured, and the traps of each set, stand in the card: `clipbench show ID`.

"""


def page() -> str:
    """The whole page."""
    catalog = Catalog()
    kinds: dict[str, list[str]] = {}
    for name in catalog.dataset_files:
        card = catalog.dataset(name).card
        kinds.setdefault(card.kind, []).append(_row(catalog, name, card))
    parts = []
    for kind in sorted(kinds):
        parts.append(f"## {kind[0].upper()}{kind[1:]} ({len(kinds[kind])})\n\n")
        parts.append("| id | n | classes | tasks and main metrics | data | pinned | terms |\n")
        parts.append("| :-- | --: | --: | :-- | :-- | :-- | :-- |\n")
        parts += [*kinds[kind], "\n"]
    return (_HEAD + "".join(parts)).rstrip("\n") + "\n"


def _row(catalog: Catalog, name: str, card: TaskCard) -> str:
    source, test = card.source, card.splits.get("test")
    count = f"{test.rows:,}" if test is not None and test.rows else "–"
    tasks = "; ".join(
        f"{protocol} {catalog.task(f'{name}-{protocol}').params.primary}" for protocol in card.protocols
    )
    data = source.hub or source.builtin or source.torchvision or "yours"
    if source.archive and not source.hub:
        data = ", ".join(source.archive.files)
    pinned = "–" if source.hub is None else "yes" if source.revision else "no"
    terms = "; ".join(said for said in (card.licence, card.terms) if said) or "not stated"
    classes = f"{len(card.classes):,}" if card.classes else "–"
    cells = [f"`{name}`", count, classes, tasks, data, pinned, terms]
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PAGE.parents[1])}")
