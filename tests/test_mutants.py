"""The mutation run names modules, tests and equivalent changes that there are."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from typing import Any

import mutants
import pytest
from mutants import (
    EQUIVALENT,
    ROOT,
    TESTS,
    Equivalent,
    Mutant,
    Outcome,
    Watch,
    _what_runs,
    bodies,
    equivalents,
    statement,
    swap,
    table,
)

#: folders of which every module makes numbers, and what of them makes none
ALL = ("metrics", "pretrain/objectives", "protocols", "solvers")
NO_NUMBERS = ("pretrain/objectives/base", "protocols/_overlays", "protocols/base", "protocols/registry")


def test_every_module_that_makes_a_number_has_tests_that_exist() -> None:
    package = ROOT / "clipbench"
    every = {
        f"{folder}/{path.stem}"
        for folder in ALL
        for path in (package / folder).glob("*.py")
        if path.stem != "__init__"
    }
    assert {name for name in TESTS if name.startswith(ALL)} == every.difference(NO_NUMBERS)
    assert all((package / f"{name}.py").is_file() for name in TESTS)
    for module, names in TESTS.items():
        assert names
        assert len(mutants.tests_of(f"clipbench/{module}.py")) == 1 + len(names)


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
        ("def f(*, a: int | None) -> int | str:\n    b: int | None = a + 1", True),
        ("def f(a: int | None = 0) -> int | str:\n    b: int | None = a + 1", False),
    ],
)
def test_changed_annotations_are_no_change(changed: str, same: bool) -> None:
    plain = "def f(a: int | None) -> int | str:\n    b: int | None = a + 1"
    assert (_what_runs(changed) == _what_runs(plain)) is same
    assert _what_runs("def f(:") is None


PLAIN = """LIMIT = 3

def f(a, b=2):
    def g(c):
        return (c +
                b)
    if a > LIMIT:
        return g(a)
    return 0
"""


@pytest.mark.parametrize(
    ("text", "changed", "after"), [("c +", "c -", (0, 2)), ("a > LIMIT", "a < LIMIT", (0, 0))]
)
def test_the_bodies_of_functions_change_where_they_are_known(
    text: str, changed: str, after: tuple[int, int]
) -> None:
    path, space = f"/nowhere/{changed}", dict[str, Any]()
    exec(compile(PLAIN, path, "exec"), space)
    known: Callable[[int], int] = space["f"]
    codes = bodies(path, PLAIN, PLAIN.replace(text, changed))
    assert codes
    swap(path, codes)
    assert (known(3), known(4)) == after


@pytest.mark.parametrize(("text", "changed"), [("= 3", "= 4"), ("b=2", "b=3")])
def test_what_runs_at_import_is_no_body(text: str, changed: str) -> None:
    assert bodies("f.py", PLAIN, PLAIN.replace(text, changed)) is None


def test_a_statement_is_all_its_lines_and_one_with_a_body_its_head() -> None:
    wanted = {1: (1, 1), 3: (3, 3), 4: (4, 4), 5: (5, 6), 6: (5, 6), 7: (7, 7), 9: (9, 9)}
    for line, (first, last) in wanted.items():
        assert statement(PLAIN, line) == range(first, last + 1)


def test_a_change_is_shown_to_the_tests_that_run_it_quick_ones_first() -> None:
    watch = Watch(["f.py"])
    watch.seconds |= {"a.py::slow": 3.0, "a.py::quick": 1.0, "b.py::one": 0.1, "c.py::other": 0.1}
    watch.lines = {"": {("f.py", 1)}, "a.py::slow": {("f.py", 5)}, "a.py::quick": {("f.py", 5), ("g.py", 7)}}
    watch.lines |= {"b.py": {("f.py", 8)}, "c.py::other": {("f.py", 5)}}
    every = ["a.py::quick", "a.py::slow", "b.py::one"]
    assert watch.choice("f.py", range(4, 6), ["a.py", "b.py"]) == every[:2]
    assert watch.choice("f.py", range(8, 9), ["a.py", "b.py"]) == every[2:]  # a fixture runs it
    assert watch.choice("f.py", range(7, 8), ["a.py", "b.py"]) == []  # none does
    assert watch.choice("f.py", range(1, 6), ["a.py", "b.py"]) == every  # an import does


def test_the_table_counts_each_module_and_leaves_equivalent_changes_out_of_the_share() -> None:
    counts: dict[str, Counter[Outcome]] = {
        "a.py": Counter({"killed": 5, "timeout": 1, "equivalent": 2, "survived": 2}),
        "b.py": Counter({"killed": 2}),
    }
    assert [line.split() for line in list(table(counts))[1:]] == [
        ["a.py", "10", "6", "2", "2", "75.0%"],
        ["b.py", "2", "2", "0", "0", "100.0%"],
        ["all", "12", "8", "2", "2", "80.0%"],
    ]


def test_guards_that_hold_are_no_change() -> None:
    assert _what_runs("zip(a, strict=True)") == _what_runs("zip(a, strict=False)") != _what_runs("zip(b)")
    typed, other = "if TYPE_CHECKING:\n    import a", "if not TYPE_CHECKING:\n    import a"
    assert _what_runs(typed) == _what_runs(other) != _what_runs("if a:\n    import a")
