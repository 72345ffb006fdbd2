"""The way from the command to the number, as docs/architecture.md tells it, and the folders that it names."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
HOPS = re.findall(r"^\d\. `(clipbench/\S+\.py)`: `(\w+)`", TEXT, re.MULTILINE)


def calls(file: str, function: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """Names that the function calls, those that it calls in its own file included."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    own = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(own[function])
        if isinstance(node, ast.Attribute | ast.Name)
    }
    for name in (found & own.keys()) - seen - {function}:
        found |= calls(file, name, seen | {function})
    return found


def test_the_way_to_acc1_is_short_and_true() -> None:
    assert 3 <= len(HOPS) <= 6
    for (file, function), (_, following) in itertools.pairwise(HOPS):
        assert following in calls(file, function), f"{file}: {function} does not lead to {following}"
    file, function = HOPS[-1]
    assert {"count_nonzero", "size"} <= calls(file, function)


@pytest.mark.parametrize("name", re.findall(r"^\| `(\w+[/.]\w*)` \|", TEXT, re.MULTILINE))
def test_what_is_named_is_there(name: str) -> None:
    assert (ROOT / "clipbench" / name).exists()


def test_every_folder_is_named() -> None:
    folders = {path.name for path in (ROOT / "clipbench").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(re.findall(r"^\| `(\w+)/` \|", TEXT, re.MULTILINE))


def test_examples_are_there() -> None:
    for path in re.findall(r"`(tests/\S+\.py)`", TEXT):
        assert (ROOT / path).is_file(), path


FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def test_no_test_imports_another() -> None:
    """What several need stands in a module beside conftest.py; programs that tests write down count too."""
    found = [
        path.name
        for path in FILES
        if re.search(r"^\s*(from|import) (\w+\.)*test_", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert found == []


def test_tests_lie_as_the_package_does() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in FILES} - {"parity", "zoo"}
    assert {"data/layouts", "records", "report"} < folders
    assert [name for name in sorted(folders) if not (ROOT / "clipbench" / name).is_dir()] == []
