"""The mutation run names modules, tests and equivalent changes that there are."""

from __future__ import annotations

import ast

import pytest
from mutants import EQUIVALENT, ROOT, TESTS, Equivalent, Mutant, _what_runs, equivalents

NUMBERS = ("metrics", "stats", "paired", "pairing", "boxes", "scoring", "standing", "gate")


def test_every_module_that_makes_a_number_has_tests_that_exist() -> None:
    folders = [
        f"{folder}/{path.stem}"
        for folder in ("solvers", "protocols")
        for path in (ROOT / "clipbench" / folder).glob("[!_]*.py")
    ]
    assert set(TESTS) == {*NUMBERS, *folders}
    for module, names in TESTS.items():
        assert names
        assert all((ROOT / "tests" / f"{name}.py").is_file() for name in names), module


@pytest.mark.parametrize("entry", equivalents(), ids=lambda e: f"{e.file}: {e.before[:40]}")
def test_equivalent_changes_are_of_lines_that_stand_where_they_are_said_to(entry: Equivalent) -> None:
    source = (ROOT / entry.file).read_text()
    bodies = [source] if not entry.inside else [
        ast.get_source_segment(source, node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == entry.inside
    ]  # fmt: skip
    assert any(entry.before in [line.strip() for line in body.split("\n")] for body in bodies), EQUIVALENT
    assert entry.why
    assert entry.after != entry.before


def test_an_equivalent_change_excuses_no_other() -> None:
    one = Mutant("a.py", 3, "f", "x = 1", "x = 2", "")
    for after, same in (("x = 2", True), (None, True), ("x = 0", False)):
        assert Equivalent("a.py", "f", "x = 1", after, "why").holds(one) is same
    assert not Equivalent("a.py", "g", "x = 1", None, "why").holds(one)
    assert not Equivalent("b.py", "f", "x = 1", None, "why").holds(one)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ("def f(a: int & None) -> int & str:\n    b: int & None = a + 1", True),
        ("def f(a: int | None) -> int | str:\n    b: int | None = a - 1", False),
        ("def f(a: int | None, /) -> int | str:\n    b: int | None = a + 1", True),
    ],
)
def test_changed_annotations_are_no_change(changed: str, same: bool) -> None:
    plain = "def f(a: int | None) -> int | str:\n    b: int | None = a + 1"
    assert (_what_runs(changed) == _what_runs(plain)) is same
    assert _what_runs("def f(:") is None
