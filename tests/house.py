"""`make house`: the floor plan of the package in figures, each beside what it shall be.

python tests/house.py            # the table; exit 1 where a figure is over its bound
python tests/house.py --imports  # the package's own imports, a line each: from, to, where (top, function, types)
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "clipbench"


class Import(NamedTuple):
    """One import of a module of the package by another: `where` is "top", "function" or "types"."""

    source: str
    target: str
    where: str
    line: int


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """name → file of every module: `clipbench.data` for a folder's `__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: dict[str, Path]) -> list[Import]:
    """Every import of one module of the package by another, also those inside functions and for types alone."""
    return [found for name, path in files.items() for found in _imports_of(name, path, files)]


def _imports_of(name: str, path: Path, files: dict[str, Path]) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def targets(node: ast.Import | ast.ImportFrom) -> set[str]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in files else base for alias in node.names
            ]
        return {each for each in names if each in files and each != name}

    def walk(node: ast.AST, where: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from (Import(name, each, where, child.lineno) for each in sorted(targets(child)))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, "function")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, "types")
            else:
                yield from walk(child, where)

    yield from walk(ast.parse(path.read_bytes()), "top")


def cycles(found: list[Import]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others (Tarjan's strong components)."""
    after: dict[str, set[str]] = {}
    for each in found:
        after.setdefault(each.source, set()).add(each.target)
        after.setdefault(each.target, set())
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(after[name]):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for name in sorted(after):
        if name not in number:
            visit(name)
    return groups


def functions(files: dict[str, Path]) -> list[tuple[int, str]]:
    """(lines, module:function), the longest first."""
    return sorted(
        (
            (node.end_lineno - node.lineno + 1, f"{name}:{node.name}")
            for name, path in files.items()
            for node in ast.walk(ast.parse(path.read_bytes()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
        ),
        reverse=True,
    )


class Figure(NamedTuple):
    """One measure of the package, the most that it may be, and of which modules or functions it is told."""

    what: str
    found: int
    most: int
    which: str

    @property
    def over(self) -> bool:
        return self.found > self.most


def figures(package: Path = PACKAGE) -> list[Figure]:
    """What is measured, each beside its bound."""
    files = modules(package)
    found = imports(files)
    rings = cycles(found)
    longest = sorted(((_lines(path), name) for name, path in files.items()), reverse=True)
    long = [each for each in longest if each[0] > 500]
    loose = sorted(
        name.partition(".")[2]
        for name, path in files.items()
        if path.parent == package and path.name not in ("__init__.py", "__main__.py")
    )
    inside = sum(each.where == "function" for each in found)
    tall = [(count, name) for count, name in functions(files) if count > 120]
    return [
        Figure("modules loose at the top of the package", len(loose), 7, " ".join(loose)),
        Figure("import cycles, all imports counted", len(rings), 0, "; ".join(" ".join(each) for each in rings)),
        Figure("longest module", longest[0][0], 600, longest[0][1]),
        Figure("modules over 500 lines", len(long), 3, ", ".join(f"{name} {count}" for count, name in long)),
        Figure("own imports inside functions", inside, 40, ""),
        Figure("functions over 120 lines", len(tall), 1, ", ".join(f"{name} {count}" for count, name in tall)),
    ]  # fmt: skip


def _lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imports", action="store_true")
    files = modules()
    if parser.parse_args().imports:
        for each in imports(files):
            print(each.source, each.target, each.where, each.line)
        return 0
    rows = figures()
    for row in rows:
        print(f"{row.what:42} {row.found:6,} of at most {row.most:4}{'  OVER' if row.over else ''}")
        if row.which:
            print(f"    {row.which}")
    print(f"{'modules, lines':42} {len(files):6,}  {sum(map(_lines, files.values())):,}")
    return int(any(row.over for row in rows))


if __name__ == "__main__":
    sys.exit(main())
