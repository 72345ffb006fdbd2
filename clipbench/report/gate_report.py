"""What `clipbench gate` prints and writes: markdown for people, JUnit XML for CI systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from clipbench.records.comparison import p_value
from clipbench.records.gate import Check
from clipbench.report import numbers
from clipbench.report.table import DASH, markdown_table
from clipbench.utils.escape import visible

#: what stands in the JUnit XML of every gate
JUNIT_MARK: Final = b'name="clipbench gate"'


def summary(checks: Sequence[Check], max_drop: float, max_mean_drop: float, alpha: float) -> str:
    """What a person reads beside a merge, as GitHub markdown."""
    failed = [check for check in checks if check.outcome == "fail"]
    of = len(checks)
    verdict = f"{len(failed)} of {of} checks failed" if failed else f"all {of} checks passed"
    marks = {"pass": "✅", "fail": "❌", "new": "🆕"}
    rows = [
        [marks[c.outcome], c.model, c.task, *_numbers(c), c.why]
        for c in sorted(checks, key=lambda c: c.outcome != "fail")
    ]
    headings = ["", "model", "task", "metric", "baseline", "candidate", "change (95 %)", "p of a drop", "why"]
    return (
        f"### clipbench gate: {verdict}\n\n"
        + markdown_table(headings, "llllrrrrl", rows)
        + f"\nA drop of more than {max_drop:g} points, of a mean over tasks {max_mean_drop:g}, fails where its p, "
        f"adjusted for the number of checks, is below {alpha:g}.\n"
    )


def _numbers(check: Check) -> list[str]:
    c = check.comparison
    if c is None or c.first is None or c.second is None or c.ci95 is None or c.difference is None:
        return [DASH] * 5
    return [
        c.metric,
        numbers.number(c.first, c.metric),
        numbers.number(c.second, c.metric),
        f"{numbers.number(c.difference, c.metric, '+')} ({numbers.ends(*c.ci95, c.metric, '+')})",
        DASH if check.p is None else p_value(check.p),
    ]


def junit(checks: Sequence[Check]) -> bytes:
    """The same as JUnit XML, which CI systems show as tests: a suite of one case a task."""
    failed = sum(check.outcome == "fail" for check in checks)
    skipped = sum(check.outcome == "new" for check in checks)
    counts = {"tests": str(len(checks)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}
    top = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(top, "testsuite", {"name": "clipbench gate"} | counts)
    for check in checks:
        names = {"classname": visible(check.model), "name": visible(check.task)}
        case = ElementTree.SubElement(suite, "testcase", names)
        if check.outcome != "pass":
            kind = "failure" if check.outcome == "fail" else "skipped"
            ElementTree.SubElement(case, kind, {"message": visible(check.why)})
    ElementTree.indent(top)
    text: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
