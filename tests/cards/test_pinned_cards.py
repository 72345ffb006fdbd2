"""Fingerprints of the shipped cards as they were: records and features that were made once are found by them for good.

Those of recipes stand beside the tests of recipes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from clipbench.cards.base import fingerprint
from clipbench.catalog import Catalog

#: kind → id → fingerprint; `params` are those of every task of every suite
PINNED: Final = json.loads((Path(__file__).parents[1] / "fixtures" / "pinned_cards.json").read_text())


def fingerprints(kind: str) -> dict[str, str]:
    catalog = Catalog()
    if kind == "models":
        return {name: fingerprint(catalog.model(name).card.canonical()) for name in catalog.model_files}
    if kind == "datasets":
        return {name: fingerprint(catalog.dataset(name).card.canonical()) for name in catalog.dataset_files}
    tasks = catalog.tasks(sorted(catalog.suites))
    return {task.id: fingerprint(task.params.canonical()) for task in tasks}


@pytest.mark.parametrize("kind", ["models", "datasets", "params"])
def test_fingerprints_of_shipped_cards_stay(kind: str) -> None:
    now = fingerprints(kind)  # cards that came later are not pinned
    assert {name: now.get(name) for name in PINNED[kind]} == PINNED[kind]
