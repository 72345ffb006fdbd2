"""Which data is on this machine: told without the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipbench.catalog import Catalog
from clipbench.data.at_hand import at_hand
from clipbench.data.paths import DataPaths

NOWHERE = DataPaths({}, ())


def test_what_is_shipped_or_given_is_at_hand(tmp_path: Path) -> None:
    catalog = Catalog()
    assert at_hand(catalog.dataset("digits"), ["test"], NOWHERE)
    pets = catalog.dataset("pets")
    assert not at_hand(pets, ["test"], NOWHERE)
    assert at_hand(pets, ["test"], DataPaths({"pets": tmp_path}, ()))
    (tmp_path / "oxford-iiit-pet").mkdir()
    assert at_hand(pets, ["test"], DataPaths({}, (tmp_path,)))
    assert not at_hand(catalog.dataset("sugarcrepe"), ["test"], NOWHERE)


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    catalog = Catalog()
    for name in catalog.dataset_files:
        entry = catalog.dataset(name)
        at_hand(entry, list(entry.card.splits), NOWHERE)
