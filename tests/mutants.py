"""`make mutants`: small changes of the code that makes numbers and verdicts, each of which some test must notice.

Cosmic Ray (the extra `mutants`) makes the changes; `TESTS` says which tests look at which module, besides the examples
in its docstrings. No file is ever written. One process collects the tests, and every change has a fork of it:

- A first fork runs all tests without a change and says which test runs which line, and how long it takes.
- A change in the body of a function is made in the functions as they were imported. The fork runs the tests that run
  the changed statement, quick ones first; where none does, the change survives.
- A change in what runs at import (constants, defaults) has a fork that imports and collects everything anew.

The examples and the first file of tests go first; what survives them is shown to the other files.

Commands that a test starts see the code as it is. What no test can notice, because the changed code does the same,
stands in `tests/mutants_equivalent.toml` with the reason.

    python tests/mutants.py --sample 8 --seed 1 clipbench/records/gate.py clipbench/metrics/intervals.py

tries 8 places of each of the two modules, the same ones whenever seed and code are the same. The last lines are a
table: of each module how many changes were tried, killed (by a test or the time limit), listed as equivalent, survived.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import inspect
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
import tomllib
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import IO, Any, Final, Literal, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1]
EQUIVALENT: Final = ROOT / "tests" / "mutants_equivalent.toml"
#: module → the files of tests, wherever below tests/, that look at it, the nearest first
TESTS: Final[dict[str, tuple[str, ...]]] = {
    "data/decode": ("test_decode", "test_crops", "test_images", "test_hostile_images"),
    "data/images": ("test_images", "test_decode", "test_hostile_images"),
    "data/labels": ("test_labels", "test_hub"),
    "encoding/saliency": ("test_grounding", "test_saliency"),
    "metrics/arrays": ("test_metrics",),
    "metrics/average_precision": ("test_metrics", "test_intervals"),
    "metrics/average_precision_intervals": ("test_intervals", "test_clustered", "test_coverage"),
    "metrics/boxes": ("test_boxes", "test_grounding"),
    "metrics/classification": ("test_metrics", "test_intervals"),
    "metrics/clustered": ("test_clustered", "test_coverage"),
    "metrics/concepts": ("test_concepts", "test_bias"),
    "metrics/group_ranking": ("test_group_ranking",),
    "metrics/intervals": (
        "test_intervals",
        "test_clustered",
        "test_paired_tests",
        "test_coverage",
        "test_retrieval",
    ),
    "metrics/joint": ("test_joint", "test_ranks", "test_comparison", "test_clustered"),
    "metrics/paired_tests": (
        "test_paired_tests",
        "test_ranks",
        "test_gate",
        "test_comparison",
        "test_clustered",
    ),
    "metrics/choosing": ("test_choosing", "test_pick"),
    "metrics/f1": ("test_f1", "test_group_metrics"),
    "metrics/ranks": ("test_metrics", "test_ranking"),
    "metrics/similarity": ("test_ranking", "test_objective_filip"),
    "metrics/worst_group": ("test_worst_group", "test_groups"),
    "models/saliency": ("test_saliency",),
    "pretrain/data/image_augmentation": ("test_image_augmentation",),
    "pretrain/engine/ema": ("test_engine",),
    "pretrain/engine/gradient_caching": ("test_engine", "test_objectives"),
    "pretrain/engine/optimisers": ("test_engine",),
    "pretrain/objectives/_helpers": ("test_loop", "test_objective_declip", "test_objective_filip"),
    "pretrain/objectives/_tiled": ("test_tiled_losses",),
    "pretrain/objectives/clip": ("test_objectives", "test_loop"),
    "pretrain/objectives/clip_lite": ("test_objective_clip_lite", "test_objectives"),
    "pretrain/objectives/declip": ("test_objective_declip", "test_objectives"),
    "pretrain/objectives/defilip": ("test_objectives", "test_objective_filip", "test_loop"),
    "pretrain/objectives/filip": ("test_objective_filip", "test_objectives"),
    "pretrain/objectives/siglip": ("test_objectives", "test_loop"),
    "pretrain/objectives/slip": ("test_objectives", "test_loop"),
    "pretrain/study/scores": ("test_study",),
    "protocols/_few_shot": ("test_few_shot", "test_groups", "test_linear_probe", "test_clustered"),
    "protocols/_logistic": ("test_few_shot", "test_linear_probe", "test_clustered"),
    "protocols/_outcomes": ("test_outcomes", "test_zero_shot", "test_comparison"),
    "protocols/_samples": ("test_samples", "test_svm_map"),
    "protocols/_grouping": ("test_group_metrics", "test_hosted_groups"),
    "protocols/_languages": ("test_languages",),
    "protocols/_ranked": ("test_retrieval", "test_languages"),
    "protocols/bias": ("test_bias", "test_coco_gender", "test_eligibility"),
    "protocols/conditions": ("test_conditions",),
    "protocols/grounding": ("test_grounding", "test_images", "test_comparison", "test_eligibility"),
    "protocols/groups": ("test_group_metrics", "test_hosted_groups"),
    "protocols/linear_probe": ("test_linear_probe", "test_clustered", "test_eligibility"),
    "protocols/pick": ("test_pick", "test_choosing"),
    "protocols/retrieval": ("test_retrieval", "test_comparison", "test_eligibility"),
    "protocols/svm_map": ("test_svm_map", "test_eligibility"),
    "protocols/zero_shot": ("test_zero_shot", "test_labels", "test_eligibility"),
    "records/alignment": ("test_comparison", "test_clustered", "test_eligibility", "test_gate"),
    "records/check": ("test_eligibility", "test_exposure", "test_overrides", "test_catalog"),
    "records/comparison": ("test_comparison", "test_clustered", "test_gate", "test_ranks"),
    "records/eligibility": ("test_eligibility", "test_exposure", "test_gate"),
    "records/exposure": ("test_exposure", "test_eligibility", "test_recipes"),
    "records/gate": ("test_gate", "test_escape"),
    "records/record": ("test_records", "test_comparison", "test_eligibility"),
    "report/numbers": ("test_report",),
    "report/ranks": ("test_ranks",),
    "solvers/hinge": ("test_hinge", "test_solvers", "test_svm_map"),
    "solvers/logistic": ("test_solvers",),
    "solvers/losses": ("test_solvers",),
    "solvers/minibatch_probe": ("test_linear_probe",),
    "solvers/neighbours": ("test_linear_probe",),
    "solvers/newton": ("test_solvers",),
    "solvers/ranking": ("test_ranking", "test_retrieval"),
    "solvers/rows": ("test_solvers",),
    "solvers/selection": ("test_selection",),
    "solvers/svm": ("test_solvers", "test_svm_map"),
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
_FAULT: Final = 99  # what a fork returns that fails itself
_FLOOR: Final = 30.0  # seconds that a fork has at least
_SLOWER: Final = 4.0  # times that its tests may take longer than without a change

Outcome = Literal["killed", "survived", "timeout", "equivalent"]
#: module's file → files of tests
Tests = Mapping[str, Sequence[str]]


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
    """Takes out what gives no other number: annotations (of modules with `from __future__ import annotations`), how
    arguments may be given, what is imported for types, and `strict` of zip and `frozen` and `repr` of data classes."""

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg in ("strict", "frozen", "repr") else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

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
        node.defaults += [one for one in node.kw_defaults if one]
        node.kw_defaults = []
        return self.generic_visit(node)


def _what_runs(source: str) -> str | None:
    """The code without annotations, in a form that can be compared; None: no Python."""
    try:
        return ast.dump(_Bare().visit(ast.parse(source)))
    except SyntaxError:
        return None


def changes(file: str, source: str, count: int | None, seed: int) -> list[Mutant]:
    """All changes of a module; with `count`, changes at so many places at random, one at each, in the code's order."""
    found = list(places(file, source))
    if count is None:
        return [one for place in found if (one := mutant(place, source)) is not None]
    taken: dict[tuple[int, int], Mutant] = {}
    for place in random.Random(f"{seed} {file}").sample(found, len(found)):
        if len(taken) == count:
            break
        at = place.line, place.column
        if at not in taken and (one := mutant(place, source)) is not None:
            taken[at] = one
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


class Watch:
    """A pytest plugin: which lines of some files each test runs, and how long each takes.

    Attributes:
        lines: id of a test → (path, line); what its set-up runs stands under its file ("" while modules are imported),
            since a fixture of a module is set up by the first test alone.
        seconds: id of a test → how long it takes.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        self.lines: dict[str, set[tuple[str, int]]] = {"": set()}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._seen = self.lines[""]

    def line(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        """A trace function (`sys.settrace`)."""
        path = frame.f_code.co_filename
        if path not in self.paths:
            return None
        self._seen.add((path, frame.f_lineno))
        return self.line

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._seen = self.lines.setdefault(_file_of(item.nodeid), set())

    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self._seen = self.lines.setdefault(item.nodeid, set())

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self.pytest_runtest_setup(item)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def running(self, path: str, lines: range) -> set[str]:
        """Ids of the tests that run one of the lines, and of files whose set-up does; with "" for imports."""
        return {name for name, seen in self.lines.items() if any((path, line) in seen for line in lines)}

    def choice(self, path: str, lines: range, files: Sequence[str]) -> list[str]:
        """Ids of the tests of `files` that run one of the lines (all, if an import does): by file, quick ones first."""
        own = [name for name in self.seconds if _file_of(name) in files]
        own.sort(key=lambda name: (files.index(_file_of(name)), self.seconds[name]))
        ran = self.running(path, lines)
        return own if "" in ran else [name for name in own if ran & {name, _file_of(name)}]


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def statement(source: str, line: int) -> range:
    """The lines of the innermost statement that holds this one; of one with a body, its head."""
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or line):
            inner = [
                child.lineno for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node
            ]
            end = min([at - 1 for at in inner if at > node.lineno], default=node.end_lineno or line)
            if line <= end:
                found = range(node.lineno, end + 1)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _runs(code: CodeType) -> tuple[object, ...]:
    """What of a code is run; of a function with the functions in it, which it makes."""
    inside = [(type(c), c) for c in code.co_consts if not isinstance(c, CodeType)]
    function = code.co_flags & inspect.CO_OPTIMIZED
    return code.co_code, code.co_names, inside, [_runs(c) for c in _codes(code) if function and c is not code]


def bodies(path: str, source: str, changed: str) -> dict[tuple[str, int], CodeType] | None:
    """Name and line of each changed function, and of those around it → its code; None where it runs at import."""
    pairs = list(zip(*(_codes(compile(text, path, "exec")) for text in (source, changed)), strict=True))
    keys = Counter((old.co_qualname, old.co_firstlineno) for old, _ in pairs)
    found = {}
    for old, new in pairs:
        if _runs(old) != _runs(new):
            key = old.co_qualname, old.co_firstlineno
            if not old.co_flags & inspect.CO_OPTIMIZED or keys[key] > 1:
                return None
            found[key] = new
    return found


def swap(path: str, codes: Mapping[tuple[str, int], CodeType]) -> None:
    """Gives the functions that were imported from a file their changed code, wherever they are known by now."""
    for function in [
        one for one in gc.get_objects() if type(one) is FunctionType
    ]:  # isinstance asks the object
        code = function.__code__
        if code.co_filename == path and (new := codes.get((code.co_qualname, code.co_firstlineno))):
            function.__code__ = new


def _forked(run: Callable[[], int], limit: float | None, log: IO[bytes]) -> int | None:
    """What `run` returns, in a fork that prints to `log`; None: out of time. What its tests write is deleted.

    Raises:
        RuntimeError: it fails itself, instead of a test.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        child = os.fork()
        if child == 0:
            code = _FAULT
            try:
                os.setsid()  # what the tests start ends with it
                os.environ["PYTEST_DEBUG_TEMPROOT"] = scratch
                resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
                for descriptor in (1, 2):
                    os.dup2(log.fileno(), descriptor)
                code = run()
            except BaseException:  # of a fork, which must not go on as its parent would
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(int(code))
        end = None if limit is None else time.monotonic() + limit
        try:
            while end is None or time.monotonic() < end:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    code = os.waitstatus_to_exitcode(status)
                    if code == _FAULT:
                        log.seek(0)
                        raise RuntimeError(log.read().decode(errors="replace")[-3000:])
                    return code
                time.sleep(0.02)
        except (KeyboardInterrupt, SystemExit):
            os.kill(child, signal.SIGTERM)
            time.sleep(1)  # so that it ends its own fork
            raise
        finally:
            _kill(child)
        os.waitpid(child, 0)
        return None


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


#: nothing of pytest's that writes; plain: it would load files that it is given itself, so as to rewrite their asserts
_PYTEST: Final = (
    "-s",
    "--hypothesis-profile=ci",
    "--assert=plain",
    "-p",
    "no:xdist",
    "-p",
    "no:cacheprovider",
)


class Session:
    """A pytest plugin: instead of the tests, runs all changes in the bodies of functions.

    Attributes:
        watch: what the tests run without a change.
        outcomes: of these changes.
    """

    def __init__(
        self, sources: Mapping[str, str], found: Sequence[Mutant], tests: Tests, told: IO[str]
    ) -> None:
        self.sources, self.found, self.tests, self.told = sources, found, tests, told
        self.watch = Watch(str(ROOT / file) for file in sources)
        self.outcomes: dict[Mutant, Outcome] = {}

    def run(self) -> int:
        """Collect the tests and run the changes."""
        sys.settrace(self.watch.line)
        tests = dict.fromkeys(test for file in self.sources for test in self.tests[file])
        return pytest.main([*_PYTEST, *tests], [self])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        items = {item.nodeid: item for item in session.items}

        def show(names: Sequence[str]) -> int:
            for name, after in zip_longest(names, names[1:]):
                item = items[name]
                item.ihook.pytest_runtest_protocol(item=item, nextitem=after and items[after])
                if session.testsfailed:
                    return 1
            return 0

        def watch() -> int:
            session.config.pluginmanager.register(self.watch)
            threading.settrace(self.watch.line)
            sys.settrace(self.watch.line)
            code = show(list(items))
            sys.settrace(None)
            if code == 0:
                pickle.dump((self.watch.lines, self.watch.seconds), seen)
                seen.flush()
            return code

        def changed(one: Mutant, codes: Mapping[tuple[str, int], CodeType], names: Sequence[str]) -> int:
            swap(str(ROOT / one.file), codes)
            return show(names)

        with TemporaryFile() as log, TemporaryFile() as seen:
            if _forked(watch, None, log) != 0:
                log.seek(0)
                told = log.read().decode(errors="replace")[-3000:]
                print(f"the tests fail without any change:\n{told}", file=self.told, flush=True)
                session.testsfailed = 1
                return True
            seen.seek(0)
            self.watch.lines, self.watch.seconds = pickle.load(seen)
        for one in self.found:
            path, source = str(ROOT / one.file), self.sources[one.file]
            codes = bodies(path, source, one.text)
            lines = statement(source, one.line)
            if codes is None or "" in self.watch.running(path, lines):
                continue
            names = self.watch.choice(path, lines, self.tests[one.file])
            with TemporaryFile() as log:
                code = _forked(partial(changed, one, codes, names), limit(self.watch, names), log)
            self.outcomes[one] = became(code)
            print(f"{self.outcomes[one]:10} {one}", file=self.told, flush=True)
        return True


class Only:
    """A pytest plugin: runs the tests that are named, in that order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.names), key=lambda item: self.names[item.nodeid]
        )


def tests_of(file: str) -> list[str]:
    """The files of tests of a module, itself first, for its examples."""
    names = TESTS[file.removeprefix("clipbench/")[:-3]]
    places = {path.stem: path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    return [file, *(places[name] for name in names)]


def limit(watch: Watch, names: Sequence[str]) -> float:
    """Seconds that these tests may take where something is changed."""
    return _FLOOR + _SLOWER * sum(watch.seconds[name] for name in names)


def became(code: int | None) -> Outcome:
    """A fork that is out of memory or crashes counts as killed."""
    return "timeout" if code is None else "survived" if code == 0 else "killed"


def outcomes(sources: Mapping[str, str], found: Sequence[Mutant], tests: Tests) -> dict[Mutant, Outcome]:
    """What these tests make of every change; printed as it comes."""

    def collected() -> int:
        session = Session(sources, found, tests, told)
        code = session.run()
        if code == 0:
            pickle.dump((session.watch.lines, session.watch.seconds, session.outcomes), passed)
            passed.flush()
        return code

    def anew(one: Mutant, names: Sequence[str]) -> int:
        sys.meta_path.insert(0, _Finder(one.file, one.text))
        return pytest.main(["-x", *_PYTEST, *dict.fromkeys(map(_file_of, names))], [Only(names)])

    with TemporaryFile() as log, TemporaryFile() as passed, os.fdopen(os.dup(1), "w") as told:
        if _forked(collected, None, log) != 0:
            log.seek(0)
            sys.exit(log.read().decode(errors="replace")[-3000:])
        passed.seek(0)
        watch = Watch(str(ROOT / file) for file in sources)
        ended: dict[Mutant, Outcome]
        watch.lines, watch.seconds, ended = pickle.load(passed)
    for one in found:
        if one not in ended:
            lines = statement(sources[one.file], one.line)
            names = watch.choice(str(ROOT / one.file), lines, tests[one.file])
            with TemporaryFile() as log:
                code = _forked(partial(anew, one, names), _FLOOR + limit(watch, names), log)
            ended[one] = became(code)
            print(f"{ended[one]:10} {one}", flush=True)
    return ended


def main() -> int:
    """Print the outcome of every change that is tried; 1 where one survives that is not listed as equivalent."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    every = [f"clipbench/{name}.py" for name in TESTS]
    parser.add_argument("files", nargs="*", default=every, help="modules (default: all that TESTS names)")
    parser.add_argument(
        "--sample",
        type=int,
        help="so many places of each module at random instead of all (which takes many hours)",
    )
    parser.add_argument("--seed", type=int, default=0, help="which places --sample takes (default: 0)")
    chosen = parser.parse_args()
    if unknown := set(chosen.files) - set(every):
        parser.error(f"no tests are named in TESTS for {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    known = equivalents()
    for name in _LARGE:
        importlib.import_module(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sources = {file: (ROOT / file).read_text() for file in chosen.files}
    found = [
        one for file, source in sources.items() for one in changes(file, source, chosen.sample, chosen.seed)
    ]
    ended: dict[Mutant, Outcome] = {
        one: "equivalent" for one in found if any(entry.holds(one) for entry in known)
    }
    for part in (slice(0, 2), slice(2, None)):
        tests = {file: tests_of(file)[part] for file in sources}
        left = [one for one in found if ended.get(one, "survived") == "survived" and tests[one.file]]
        if left:
            ended |= outcomes({one.file: sources[one.file] for one in left}, left, tests)
    counts = {file: Counter(became for one, became in ended.items() if one.file == file) for file in sources}
    print("\n".join(table(counts)))
    return int("survived" in ended.values())


def table(outcomes: Mapping[str, Counter[Outcome]]) -> Iterator[str]:
    """Counts of each module and of all; a change that runs out of time is killed. The share leaves equivalents out."""
    yield f"{'':36}  tried  killed  equivalent  survivors  killed of those that differ"
    for name, of in {**outcomes, "all": sum(outcomes.values(), Counter[Outcome]())}.items():
        killed = of["killed"] + of["timeout"]
        differ = killed + of["survived"]
        share = f"{killed / differ:.1%}" if differ else "none"
        yield f"{name:36}  {of.total():5}  {killed:6}  {of['equivalent']:10}  {of['survived']:9}  {share:>8}"


if __name__ == "__main__":
    sys.exit(main())
