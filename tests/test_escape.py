"""Names of others in every output: parsed back by a parser of that format, the cells say what the names say."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from rich.console import Console
from rich.text import Text

from clipbench.records import gate
from clipbench.report import gate_report, listing, table
from clipbench.report.dataframe import Row
from clipbench.report.sections import Section
from clipbench.report.site import blocks
from clipbench.utils import escape

HOSTILE = [
    "plain",
    "a|b",
    "a\nb",
    "a\r\nb",
    "a\tb",
    "| x | y |",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</table></td>",
    "&lt;b&gt; &amp;",
    "[click](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "[a][b] [c]: http://example.org",
    "**bold** __bold__ *it* _it_ ~~gone~~",
    "`code` ``more``",
    "# heading",
    "- item",
    "---",
    "http://example.org/?a=b&c",
    "www.example.org",
    "a\\|b\\",
    "back\\\\slash \\n",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "'quoted",
    '"double", "quoted"',
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "bell\x07 back\x08 nul\x00 del\x7f",
    "c1 \x9b31m \x85",
    "\u202egnp.exe",
    "zero\u200bwidth \u2066iso\u2069",
    "line\u2028sep\u2029par",
    "half \ud800 pair \udcff",
    "\ufffe\uffff \ufeff",
    "50% of $x_1^2$ & #{y} ~ \\input{/etc/passwd}",
    "[1] first -- second --- ,, ?` !` <<x>>",
    "[red]rich[/red] [/] [link=x]",
    "零一 Пять ü é 🇩🇪 👩‍🚀 ९",
    "{{ 7 * 7 }} {% raw %} ${x}",
    "a" * 300,
]


#: symbols of LaTeX that the parser does not know
LATEX = get_default_latex_context_db()
LATEX.add_context_category(
    "symbols",
    macros=[
        MacroTextSpec(name, said)
        for name, said in {
            "textasciicircum": "^",
            "textbar": "|",
            "textless": "<",
            "textgreater": ">",
            "textquotedbl": '"',
        }.items()
    ],
    prepend=True,
)


def _sections(name: str) -> list[Section]:
    row = Row(model=name, task="digits-zs", metric="acc1", value=0.5, low=0.4, high=0.6, n=9)
    return [Section(None, name, ("digits-zs",), (row,), False)]


def test_there_are_names_enough() -> None:
    assert len(set(HOSTILE)) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_visible_text_has_nothing_that_an_output_obeys(name: str) -> None:
    shown = escape.visible(name)
    assert shown.isprintable() or re.search("[\u200c\u200d]", shown)
    shown.encode()
    assert escape.visible(shown) == shown


@pytest.mark.parametrize("name", HOSTILE)
def test_terminal_tables(name: str) -> None:
    text = table.terminal(_sections(name))
    model, cells = text.splitlines()[2:4]
    assert model == escape.visible(name).rstrip()
    assert cells.split() == ["digits-zs", "acc1", "50.00", "±10.00", "9"]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_rich_draws(name: str) -> None:
    console = Console(file=io.StringIO(), width=2_000, force_terminal=True, color_system=None)
    console.print(escape.Shown(listing.table([{"id": "x", "title": name}])), highlight=False)
    console.print(escape.Shown(Text(name)))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", drawn)
    assert drawn.splitlines()[2].split() == ["x", *escape.visible(name).split()]


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown(name: str) -> None:
    text = table.markdown(_sections(name))
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    inline = [token for token in tokens if token.type == "inline"]
    assert all(child.type == "text" for token in inline for child in token.children or ())
    said = ["".join(child.content for child in token.children or ()) for token in inline]
    assert said[0] == escape.visible(name).strip()  # the heading
    assert said[3] == escape.visible(name).strip()  # the model's cell
    assert said[4] == "50.00 ±10.00"
    assert not re.search(r"(?<!\\):(?=//)|www\.", text)  # GitHub makes links of these


@pytest.mark.parametrize("name", HOSTILE)
def test_latex(name: str) -> None:
    text = table.latex(_sections(name))
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].strip().removesuffix("\\\\").strip()
    cells = re.split(r"(?<!\\) & ", body)
    assert len(cells) == 2
    said = LatexNodes2Text(latex_context=LATEX, keep_comments=False).latex_to_text(cells[0])
    assert said.split() == escape.visible(name).split()
    heading = [line for line in text.splitlines() if line.startswith("% ")][1]
    assert heading == f"% {escape.visible(name)}"
    assert text.count("\n") == text.rstrip("\n").count("\n") + 1 == 9


@pytest.mark.parametrize("name", HOSTILE)
def test_csv(name: str) -> None:
    text = table.csv_text([Row(model=name, task="t", value=-0.5)], {})
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 1
    said = rows[0]["model"]
    assert not re.match(r"\s*[=+\-@]", said)
    assert said.removeprefix("'") == escape.visible(name)
    assert rows[0]["value"] == "-0.5"


@pytest.mark.parametrize("name", HOSTILE)
def test_json(name: str) -> None:
    text = table.json_text([Row(model=name, task="t")], {})
    assert json.loads(text)[0]["model"] == name
    text.encode("utf-8")
    assert escape.visible(text, lines=True) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_junit(name: str) -> None:
    root = ElementTree.fromstring(gate_report.junit([gate.Check(name, name, "fail", name)]))
    case = root.find("testsuite/testcase")
    assert case is not None
    failure = case.find("failure")
    assert failure is not None
    shown = escape.visible(name)
    assert (case.get("classname"), case.get("name"), failure.get("message")) == (shown, shown, shown)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_gates_summary(name: str) -> None:
    text = gate_report.summary([gate.Check(name, "t", "fail", name)], 0.5, 0.1, 0.05)
    inline = [t for t in MarkdownIt("commonmark").enable("table").parse(text) if t.type == "inline"]
    cells = ["".join(child.content for child in token.children or ()) for token in inline]
    assert cells.count(escape.visible(name).strip()) == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_data_of_the_page(name: str) -> None:
    script = str(blocks.in_script({name: name}))
    assert not re.search("[<>&]", script)
    shown = escape.visible(name, lines=True)
    assert json.loads(script) == {shown: shown}


class _Words(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_html_of_the_page(name: str) -> None:
    from clipbench.report.site.blocks import shown_safely

    assert "".join(_Words(_rendered(name, shown_safely)).words) == escape.visible(name, lines=True)


def _rendered(name: str, finalize: Any) -> str:
    from jinja2 import Environment

    return Environment(autoescape=True, finalize=finalize).from_string("<p>{{ name }}</p>").render(name=name)


# ---------------------------------------------------------- files of others


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    from clipbench.errors import StorageError
    from clipbench.utils.outputs import write_own

    path = tmp_path / "x.html"
    write_own(path, b"<our mark> 1", b"<our mark>")
    write_own(path, b"<our mark> 2", b"<our mark>")
    assert path.read_bytes() == b"<our mark> 2"
    path.write_text("a thesis")
    with pytest.raises(StorageError, match="was not written by clipbench") as caught:
        write_own(path, b"<our mark> 3", b"<our mark>")
    assert "--force" in str(caught.value.hint)
    assert path.read_text() == "a thesis"
    write_own(path, b"<our mark> 4", b"<our mark>", force=True)
    assert path.read_bytes() == b"<our mark> 4"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(StorageError, match="is a link"):
        write_own(link, b"<our mark> 5", b"<our mark>")
    with pytest.raises(StorageError, match="is no file"):
        write_own(tmp_path, b"", None, force=True)
    plain = tmp_path / "plain.json"
    write_own(plain, b"{}", None)
    write_own(plain, b"{}", None)  # nothing changes
    with pytest.raises(StorageError, match="not written by clipbench"):
        write_own(plain, b"[]", None)
