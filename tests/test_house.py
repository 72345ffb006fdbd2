"""The figures of `make house`, counted on a toy package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import house
import pytest


def package(folder: Path, texts: Mapping[str, str]) -> Path:
    root = folder / "toy"
    for name, text in {"__init__.py": "", **texts}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("from toy import a", "top"),
        ("import toy.a", "top"),
        ("from .a import name", "top"),
        ("from . import a", "top"),
        ("if True:\n    from toy.a import name", "top"),
        ("def f():\n    from toy import a", "function"),
        ("class C:\n    def f(self):\n        import toy.a", "function"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.a import name", "types"),
    ],
)
def test_an_import_back_closes_a_cycle_wherever_it_stands(tmp_path: Path, text: str, where: str) -> None:
    root = package(tmp_path, {"a.py": "from toy.b import name\n", "b.py": text})
    found = house.imports(house.modules(root))
    assert [(each.source, each.target, each.where) for each in found] == [
        ("toy.a", "toy.b", "top"),
        ("toy.b", "toy.a", where),
    ]
    assert house.cycles(found) == [["toy.a", "toy.b"]]


def test_cycles_through_others_are_one_group_and_chains_are_none(tmp_path: Path) -> None:
    ring = {
        "a.py": "import toy.b",
        "b.py": "import toy.c.d",
        "c/d.py": "from ..a import x",
        "c/__init__.py": "",
    }
    chain = {"e.py": "import toy.a", "f.py": "import toy.e, numpy, json"}
    found = house.imports(house.modules(package(tmp_path, ring | chain)))
    assert house.cycles(found) == [["toy.a", "toy.b", "toy.c.d"]]


def test_the_figures_and_where_each_is_over_its_bound(tmp_path: Path) -> None:
    long = "def tall():\n" + "    x = 1\n" * 121
    inside = "def f():\n" + "    import toy.a\n" * 41
    root = package(tmp_path, {"a.py": long + "\n" * 400, "b.py": inside, "c/__init__.py": "", "c/d.py": ""})
    found = {row.what: row for row in house.figures(root)}
    assert {name: row.found for name, row in found.items()} == {
        "modules loose at the top of the package": 2,
        "import cycles, all imports counted": 0,
        "longest module": 522,
        "modules over 500 lines": 1,
        "own imports inside functions": 41,
        "functions over 120 lines": 1,
    }
    assert [name for name, row in found.items() if row.over] == ["own imports inside functions"]
    assert found["functions over 120 lines"].which == "toy.a:tall 122"
