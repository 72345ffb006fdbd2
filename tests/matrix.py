"""`make matrix`: install, demo and smoke test on the lowest and on the newest versions → `docs/matrix.md`.

A row is `lowest-X.Y` (each direct requirement at the lower bound that pyproject.toml states, on Python X.Y) or
`newest-X.Y` (the newest versions that pip finds). Each has a virtual environment of its own, with a wheel of the
package in it, and leaves nothing behind. Its column of the table replaces the one that was there; columns of other
rows stay, with their date and commit. This script needs no other package, so any Python from 3.11 on can run it.

    python tests/matrix.py --row newest-3.14 --python /opt/python3.14/bin/python3
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "matrix.md"
ROWS: Final = ("lowest-3.11", "newest-3.13", "newest-3.14")
STEPS: Final = ("install", "demo", "smoke test")
#: test files that between them use every requirement; some seconds each
SMOKE: Final = (
    "test_public_surface",
    "test_shipped_cards",
    "test_records",
    "test_library",
    "test_clip_towers",
    "test_families",
    "test_plots",
    "test_site",
)
COMMANDS: Final = (
    "--version",
    "eval --help",
    "list tasks",
    "list models --json",
    "show digits-clip-lite",
    "check --help",
)
LIMIT: Final = 3600.0  # seconds that one command may take

HEAD: Final = """# Versions that clipbench was tried with

`make matrix` writes this page. `lowest` has each direct requirement at its lower bound in `pyproject.toml`, `newest`
the newest versions that pip finds together. In an environment of its own, each row installs a wheel of the package with
the extra `dev`; runs what `make demo` runs, and holds its scores against the records in `results/` by `clipbench gate`;
and runs some commands and test files (`SMOKE` in `tests/matrix.py`). Linters are installed, not run. A row that could
not be run here says so; a row of an earlier day keeps its date and commit.

"""

Table = dict[str, dict[str, str]]  # row → line of the table → cell


class Refused(Exception):
    """What is wrong with what was given, and what to type instead."""


class Failed(Exception):
    """A step of a row failed; the text is short enough for a cell."""


# ---------------------------------------------------------------------- requirements


def bounds(project: Mapping[str, Any], *extras: str) -> dict[str, str]:
    """Name → lower bound of each direct requirement, and of those of the extras; `project` is pyproject's table.

    >>> bounds({"dependencies": ["numpy>=1.26", "open_clip_torch>=3.0,<4"]})
    {'numpy': '1.26', 'open_clip_torch': '3.0'}
    """
    optional = project.get("optional-dependencies", {})
    found: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(one for extra in extras for one in optional[extra])]:
        parts = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<[\d.]+)?", requirement.replace(" ", ""))
        if not parts:
            raise Refused(
                f"pyproject.toml: {requirement!r} has no lower bound; write NAME>=VERSION or NAME>=VERSION,<VERSION"
            )
        name, lowest = parts[1], parts[2]
        if found.setdefault(name, lowest) != lowest:
            raise Refused(
                f"pyproject.toml: {name} has two lower bounds, {found[name]} and {lowest}; write one of them"
            )
    return found


def constraints(lowest: Mapping[str, str]) -> str:
    """What pip reads: each requirement at its lower bound.

    >>> constraints({"numpy": "1.26", "timm": "1.0.17"})
    'numpy==1.26\\ntimm==1.0.17\\n'
    """
    return "".join(f"{name}=={version}\n" for name, version in lowest.items())


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


# ---------------------------------------------------------------------- interpreters


def version_of(python: str) -> str | None:
    """`X.Y.Z` of an interpreter, or None where it does not run (a shim of a version that is not installed, say)."""
    code = "import platform; print(platform.python_version())"
    try:
        run = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def interpreter(wanted: str, given: Sequence[str]) -> str | None:
    """The first of the given interpreters, else of those on PATH, that is of version `wanted` (X.Y)."""
    for python in (*given, f"python{wanted}"):
        found = version_of(python)
        if found and found.split(".")[:2] == wanted.split("."):
            return python
    return None


# ---------------------------------------------------------------------- one row


class Row:
    """An environment of one row in an empty folder; each step gives the text of its cell or raises `Failed`."""

    def __init__(self, name: str, python: str, folder: Path) -> None:
        self.name, self.python, self.folder = name, python, folder
        self.bin = folder / "venv" / "bin"
        self.lowest = bounds(project(), "dev")
        limits = folder / "constraints.txt"
        limits.write_text(constraints(self.lowest) if name.startswith("lowest") else "", encoding="utf-8")
        # PIP_CONSTRAINT: in place of limits that the machine's own pip configuration may set
        own = {
            "PIP_CONSTRAINT": limits,
            "CLIPBENCH_CACHE": folder / "cache",
            "OMP_NUM_THREADS": 1,
            "COLUMNS": 120,
        }
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("CLIPBENCH_", "PYTHON", "VIRTUAL_ENV"))
        }
        self.env = kept | {key: str(value) for key, value in own.items()}

    def call(self, *command: str | Path, cwd: Path | None = None) -> str:
        """What a command prints; where it fails, its end is shown and `Failed` says which it was."""
        shown = " ".join(str(part).replace(f"{self.bin}/", "") for part in command)
        print(f"{self.name}: {shown}", flush=True)
        try:
            run = subprocess.run(
                command, cwd=cwd or self.folder, env=self.env, text=True, timeout=LIMIT,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Failed(f"`{shown[:80]}` took over {LIMIT / 60:.0f} minutes") from None
        if run.returncode:
            print(run.stdout[-6000:], flush=True)
            last = next(
                (line.strip() for line in reversed(run.stdout.splitlines()) if line.strip()), "no output"
            )
            raise Failed(f"`{shown[:80]}`: {last[:160]}")
        return run.stdout

    def install(self) -> str:
        """The package as a wheel, with the extra dev, into a new environment; no conflict, no withdrawn release."""
        self.call(self.python, "-m", "venv", self.folder / "venv")
        said = self.call(self.bin / "python", "-m", "pip", "install", "--no-compile", f"{ROOT}[dev]")
        if withdrawn := re.findall(r"yanked version: '([^']+)'", said):
            raise Failed(f"withdrawn by their authors: {', '.join(withdrawn)}")
        self.call(self.bin / "python", "-m", "pip", "check")
        return "passed"

    def versions(self) -> dict[str, str]:
        """Requirement → installed version, without those of the extra dev alone."""
        code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        found: dict[str, str] = json.loads(
            self.call(self.bin / "python", "-c", code, *bounds(project(), "offline"))
        )
        return found

    def demo(self) -> str:
        """What `make demo` runs; then its scores are held against the records in `results/` by paired tests."""
        clipbench, results = self.bin / "clipbench", self.folder / "results"
        evaluated = f"eval --model digits-clip-lite --task quickstart --save-heatmaps 8 --results {results}"
        self.call(clipbench, *evaluated.split())
        self.call(clipbench, "site", "--results", results, "--out", self.folder / "site")
        gate = f"gate --candidate {results} --baseline {ROOT / 'results'} --model digits-clip-lite --require quickstart"
        self.call(clipbench, *gate.split())
        return "passed"

    def smoke(self) -> str:
        """The test files of `SMOKE`, and some commands. Warnings of other packages' versions are no failure here."""
        for command in COMMANDS:
            self.call(self.bin / "clipbench", *command.split())
        files = [path for name in SMOKE for path in (ROOT / "tests").rglob(f"{name}.py")]
        ignoring = ("-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings")
        said = self.call(
            self.bin / "pytest", *ignoring, "--basetemp", self.folder / "tests", *files, cwd=ROOT
        )
        counted = re.search(r"(\d+) passed", said)
        if not counted:
            raise Failed("no test ran")
        return f"passed ({counted[1]} tests)"


def measured(name: str, python: str, commit: str) -> dict[str, str]:
    """The column of one row: versions, what came of each step, and when."""
    column = {"python": version_of(python) or "?"}
    with tempfile.TemporaryDirectory(prefix="clipbench-matrix-") as folder:
        row = Row(name, python, Path(folder))
        for step, act in zip(STEPS, (row.install, row.demo, row.smoke), strict=True):
            started = time.monotonic()
            try:
                column[step] = act()
            except Failed as why:
                column[step] = f"**failed**: {why}".replace("|", "\\|")
                if step == "install":
                    break
            if step == "install":
                column |= row.versions()
            print(f"{name}: {step}: {column[step]} ({time.monotonic() - started:.0f} s)", flush=True)
    return column | {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit}


# ---------------------------------------------------------------------- the page


def page(table: Table) -> str:
    """The page, of the rows measured so far."""
    rows = sorted(table)
    named = dict.fromkeys(
        line for row in rows for line in table[row] if line not in (*STEPS, "date", "commit")
    )
    lines = [line for line in (*named, *STEPS, "date", "commit") if any(line in table[row] for row in rows)]
    cells = [
        ["", *rows],
        [":--"] * (1 + len(rows)),
        *([line, *(table[row].get(line, "") for row in rows)] for line in lines),
    ]
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in cells)


def read(text: str) -> Table:
    """The table of such a page.

    >>> read(page({"newest-3.13": {"python": "3.13.0", "install": "passed"}}))
    {'newest-3.13': {'python': '3.13.0', 'install': 'passed'}}
    """
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    if not cells:
        return {}
    (_, *rows), _, *body = cells
    return {row: {line: held[at] for line, *held in body if held[at]} for at, row in enumerate(rows)}


def commit() -> str:
    """The commit that is checked out; what is changed but not committed is said, but for the page itself."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ".", f":!{PAGE.relative_to(ROOT)}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        raise Refused(f"{ROOT} is no git checkout; the table names the commit, so run this in one") from None
    return head.stdout.strip() + (" and changes" if changed.stdout.strip() else "")


def write(table: Table) -> None:
    """Replace the page at once."""
    PAGE.parent.mkdir(exist_ok=True)
    part = PAGE.with_suffix(".part")
    part.write_text(page(table), encoding="utf-8")
    part.replace(PAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows and write the page; 1 where one failed, 2 where the arguments are wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--row", action="append", help=f"lowest-X.Y or newest-X.Y; repeatable (otherwise {', '.join(ROWS)})"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PATH",
        help="interpreter; repeatable (otherwise pythonX.Y on PATH)",
    )
    given = parser.parse_args(arguments)
    names: list[str] = given.row or list(ROWS)
    if unknown := [name for name in names if not re.fullmatch(r"(lowest|newest)-3\.\d+", name)]:
        parser.error(f"no row {unknown[0]!r}; write lowest-X.Y or newest-X.Y, such as {ROWS[0]}")
    if absent := [python for python in given.python if not version_of(python)]:
        parser.error(f"{absent[0]} is no Python that runs")
    try:
        at, table = commit(), read(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
        for name in names:
            wanted = name.partition("-")[2]
            if python := interpreter(wanted, given.python):
                table[name] = measured(name, python, at)
            else:
                print(f"{name}: not run: no python{wanted} here")
                table.setdefault(name, {"install": f"not run: no python{wanted} here"})
            write(table)
    except Refused as why:
        parser.error(str(why))
    return int(any("failed" in table[name].get(step, "") for name in names for step in STEPS))


if __name__ == "__main__":
    sys.exit(main())
