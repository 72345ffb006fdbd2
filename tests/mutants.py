"""`make mutants`: small changes of the code that makes numbers and verdicts, each of which some test must notice.

Cosmic Ray (the extra `mutants`) makes the changes; `TESTS` says which tests look at which module, besides the examples
in its docstrings. A changed module is never written: a process that has pytest and the large libraries loaded
already forks, and the fork alone imports the changed text. Commands that a test starts see the code as it is. What no
test can notice, because the changed code does the same, stands in `tests/mutants_equivalent.toml` with the reason.

    python tests/mutants.py --sample 60 clipbench/gate.py clipbench/stats.py
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import resource
import signal
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from tempfile import TemporaryFile
from types import CodeType, ModuleType
from typing import IO, Any, Final, Literal, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1]
EQUIVALENT: Final = ROOT / "tests" / "mutants_equivalent.toml"
_SOLVERS: Final = ("test_solvers", "test_linear_probe", "test_svm_map")
#: module → the files of tests that look at it, quick ones first
TESTS: Final[dict[str, tuple[str, ...]]] = {
    "metrics": ("test_metrics", "test_stats", "test_ranking"),
    "stats": ("test_stats", "test_paired", "test_coverage", "test_retrieval"),
    "paired": ("test_paired", "test_ranks", "test_gate", "test_compare"),
    "ranks": ("test_ranks",),
    "pairing": ("test_compare", "test_standing", "test_gate"),
    "boxes": ("test_boxes", "test_grounding"),
    "scoring": ("test_ranking", "test_filip", "test_heatmaps", "test_declip"),
    "standing": ("test_standing", "test_exposure", "test_gate"),
    "gate": ("test_gate", "test_escape"),
    "solvers/heads": _SOLVERS,
    "solvers/hinge": _SOLVERS,
    "solvers/logistic": _SOLVERS,
    "solvers/losses": _SOLVERS,
    "solvers/neighbours": _SOLVERS,
    "solvers/newton": _SOLVERS,
    "solvers/ranking": ("test_ranking", "test_retrieval"),
    "solvers/rows": _SOLVERS,
    "solvers/svm": ("test_svm_map", "test_solvers"),
    "protocols/bias": ("test_bias", "test_coco_gender"),
    "protocols/grounding": ("test_grounding", "test_images"),
    "protocols/linear_probe": ("test_linear_probe",),
    "protocols/retrieval": ("test_retrieval",),
    "protocols/svm_map": ("test_svm_map",),
    "protocols/zero_shot": ("test_zero_shot", "test_labels"),
}
#: loaded once, before any fork
_LARGE: Final = ("numpy", "pandas", "PIL.Image", "pyarrow", "pydantic", "scipy.stats", "sklearn", "torch")
#: operator of Cosmic Ray → what it is changed to
_BINARY: Final = {
    "Add": ("Sub", "Mul"), "Sub": ("Add",), "Mul": ("Div", "Add"), "Div": ("Mul", "FloorDiv"),
    "FloorDiv": ("Div", "Mul"), "Mod": ("FloorDiv",), "Pow": ("Mul",), "BitOr": ("BitAnd",), "BitAnd": ("BitOr",),
    "BitXor": ("BitOr",), "LShift": ("RShift",), "RShift": ("LShift",),
}  # fmt: skip
_COMPARISONS: Final = {
    "Lt": ("LtE", "GtE"), "LtE": ("Lt", "Gt"), "Gt": ("GtE", "LtE"), "GtE": ("Gt", "Lt"), "Eq": ("NotEq",),
    "NotEq": ("Eq",), "Is": ("IsNot",), "IsNot": ("Is",),
}  # fmt: skip
_OTHERS: Final = (
    *("AddNot", "NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr"),
    *("ReplaceOrWithAnd", "ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Invert"),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
)
OPERATORS: Final = tuple(
    f"core/{name}"
    for name in (
        *(f"ReplaceBinaryOperator_{a}_{b}" for a, to in _BINARY.items() for b in to),
        *(f"ReplaceComparisonOperator_{a}_{b}" for a, to in _COMPARISONS.items() for b in to),
        *_OTHERS,
    )
)
_MEMORY: Final = 16 << 30  # bytes that a fork may take; a changed size may ask for far more
_FLOOR: Final = 10.0  # seconds that a fork has at least

Outcome = Literal["killed", "survived", "timeout", "equivalent"]


class Mutant(NamedTuple):
    """One change: `text` is the whole file with it; the rest says which it is."""

    file: str
    line: int
    inside: str
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  →  {self.after}"


# ---------------------------------------------------------------------- changes


class Place(NamedTuple):
    """Where one operator of Cosmic Ray can change a file: for the `number`-th time."""

    file: str
    line: int
    column: int
    inside: str
    operator: str
    number: int


def places(file: str, source: str) -> Iterator[Place]:
    """Every place that an operator would change, some of them to no effect (`mutant`)."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.ast.ast_query import ASTQuery
    from cosmic_ray.plugins import get_operator

    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = get_operator(name)()
        found = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for number, (node, (line, column)) in enumerate(found):
            yield Place(file, line, column, ASTQuery(node).get_definition_name() or "", name, number)


def mutant(place: Place, source: str) -> Mutant | None:
    """The change; None where Python runs the same (annotations) or it is no Python."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    text = mutate_code(source, get_operator(place.operator)(), place.number)
    if _what_runs(text) in (None, _what_runs(source)):
        return None
    lines, changed = source.split("\n"), text.split("\n")
    shift = len(changed) - len(lines)  # a number that starts a line moves to the end of the one before
    before, after = lines[place.line - 1].strip(), changed[place.line - 1 + shift].strip()
    return Mutant(place.file, place.line, place.inside, before, after, text)


class _Bare(ast.NodeTransformer):
    """Takes out what is never run: annotations (of modules with `from __future__ import annotations`)."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args, node.posonlyargs, node.kwonlyargs = (
            [*node.posonlyargs, *node.args, *node.kwonlyargs],
            [],
            [],
        )
        return self.generic_visit(node)


def _what_runs(source: str) -> str | None:
    """The code without annotations, in a form that can be compared; None: no Python."""
    try:
        return ast.dump(_Bare().visit(ast.parse(source)))
    except SyntaxError:
        return None


def sample(found: Sequence[Place], sources: Mapping[str, str], count: int, seed: int) -> list[Mutant]:
    """Changes at `count` places of the code at random, one at each; in the order of the code."""
    rng = random.Random(seed)
    taken: dict[tuple[str, int, int], Mutant] = {}
    for place in rng.sample(found, len(found)):
        if len(taken) == count:
            break
        if place[:3] not in taken and (one := mutant(place, sources[place.file])) is not None:
            taken[place[:3]] = one
    return [taken[at] for at in sorted(taken)]


# ------------------------------------------------------------------ equivalents


class Equivalent(NamedTuple):
    """A line of the code, what of it may be changed (None: anything) and why no test can tell."""

    file: str
    inside: str
    before: str
    after: str | None
    why: str

    def holds(self, one: Mutant) -> bool:
        """Whether the change is this one."""
        return self[:3] == (one.file, one.inside, one.before) and self.after in (None, one.after)


def equivalents(path: Path = EQUIVALENT) -> list[Equivalent]:
    """The entries of `path`: file, inside (the function; "" outside of any), before, after, why."""
    entries: list[dict[str, Any]] = tomllib.loads(path.read_text())["equivalent"]
    return [Equivalent(**({"after": None} | entry)) for entry in entries]


# ------------------------------------------------------------------------- runs


class _Changed(SourceFileLoader):
    """Loads a module from other text than its file's."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, file: str, text: str) -> None:
        self.name, self.path, self.text = file[:-3].replace("/", "."), str(ROOT / file), text

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        return spec_from_file_location(name, self.path, loader=_Changed(name, self.path, self.text))


def _run(file: str, text: str, limit: float | None, log: IO[bytes]) -> int | None:
    """What pytest returns for the module's tests where `file` has this text, from a fork; None: out of time."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()  # what the tests start ends with it
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            sys.meta_path.insert(0, _Finder(file, text))
            tests = [f"tests/{name}.py" for name in TESTS[file.removeprefix("clipbench/")[:-3]]]
            # plain: pytest would load files that it is given itself, so as to rewrite their asserts
            plain = ("-x", "--assert=plain", "-p", "no:xdist", "-p", "no:cacheprovider")
            code = pytest.main([*plain, file, *tests])
        except BaseException:  # of a fork, which must not go on as its parent would
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))
    end = None if limit is None else time.monotonic() + limit
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _kill(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _kill(child)
    os.waitpid(child, 0)
    return None


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def outcome(one: Mutant, limit: float, known: Sequence[Equivalent]) -> Outcome:
    """What becomes of one change. A fork that is out of memory or crashes counts as killed."""
    if any(entry.holds(one) for entry in known):
        return "equivalent"
    with TemporaryFile() as log:
        code = _run(one.file, one.text, limit, log)
    return "timeout" if code is None else "survived" if code == 0 else "killed"


def main() -> int:
    """Print the outcome of every change that is tried; 1 where one survives that is not listed as equivalent."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    every = [f"clipbench/{name}.py" for name in TESTS]
    parser.add_argument("files", nargs="*", default=every, help="modules (default: all that TESTS names)")
    parser.add_argument(
        "--sample", type=int, help="so many places at random instead of all (which takes hours)"
    )
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if unknown := set(chosen.files) - set(every):
        parser.error(f"no tests are named in TESTS for {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sources = {file: (ROOT / file).read_text() for file in chosen.files}
    every_place = [place for file, source in sources.items() for place in places(file, source)]
    if chosen.sample is None:
        found = [one for place in every_place if (one := mutant(place, sources[place.file])) is not None]
    else:
        found = sample(every_place, sources, chosen.sample, chosen.seed)
    known = equivalents()
    print(f"{len(found):,} of at most {len(every_place):,} changes of {len(sources)} modules", flush=True)
    for name in _LARGE:
        importlib.import_module(name)
    limits, outcomes = {}, Counter[Outcome]()
    start = time.monotonic()
    for one in found:
        if one.file not in limits:
            limits[one.file] = _limit(one.file, sources[one.file])
        became = outcome(one, limits[one.file], known)
        outcomes[became] += 1
        print(f"{became:10} {one}", flush=True)
    tried = len(found) - outcomes["equivalent"]
    noticed = outcomes["killed"] + outcomes["timeout"]
    told = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
    share = f"{100 * noticed / tried:.1f} % of {tried:,} noticed" if tried else "none tried"
    print(f"{told}; {share}; {time.monotonic() - start:.0f} s")
    return int(outcomes["survived"] > 0)


def _limit(file: str, source: str) -> float:
    """Seconds that a run of a changed module may take; its tests must pass as it is, and import what is changed."""
    start = time.monotonic()
    with TemporaryFile() as log:
        if _run(file, source, None, log) != 0:
            log.seek(0)
            sys.exit(
                f"the tests of {file} fail without any change:\n{log.read().decode(errors='replace')[-3000:]}"
            )
        took = time.monotonic() - start
        if _run(file, "raise ImportError", None, log) == 0:
            sys.exit(f"the tests of {file} do not import it")
    return max(_FLOOR, 4 * took)


if __name__ == "__main__":
    sys.exit(main())
