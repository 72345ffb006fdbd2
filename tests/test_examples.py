"""Examples in docstrings run with the tests, all of them."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "clipbench"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


def test_the_tests_collect_the_examples_of_the_package(pytestconfig: pytest.Config) -> None:
    assert "--doctest-modules" in pytestconfig.getini("addopts")
    assert not pytestconfig.getoption("doctest_ignore_import_errors")
    assert "clipbench" in pytestconfig.getini("testpaths")
    never = {"__main__.py", "setup.py", "conftest.py"}  # pytest takes none of these for a module of examples
    assert not [path for path in MODULES if path.name in never]
    assert len(MODULES) > 30


def _written(path: Path) -> int:
    """How many examples the docstrings of a module have."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    parser = doctest.DocTestParser()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))
    return sum(len(parser.get_examples(text)) for text in texts)


def _found(path: Path) -> int:
    """How many of them a collection of the module finds, which must be importable for that."""
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    return sum(len(test.examples) for test in doctest.DocTestFinder().find(module, name))


def test_every_example_is_found_where_it_stands() -> None:
    missed = [path.name for path in MODULES if _found(path) != _written(path)]
    assert not missed  # such as those of a function inside a function, or behind a decorator
