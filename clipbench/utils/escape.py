"""Text of others at the border of each output: what a name, title or path may not do there.

Names come from cards, folders, archives and records, and may hold anything: line breaks, terminal escapes, HTML,
formulas of spreadsheets. Each output has one function here, which its writer applies to every text that it is given.
`visible` comes first in all but JSON, which can say every character itself: a control character becomes its escape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

#: controls (C0, C1), line and paragraph separators, what turns the direction of text or does not show, halves of
#: surrogate pairs, and code points that are no characters
_HIDDEN: Final = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufdd0-\ufdef\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f"
    + "".join(chr(plane << 16 | last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ANY: Final = re.compile(f"[{_HIDDEN}]")
#: the same, but for what parts lines and columns
_IN_LINES: Final = re.compile(f"(?![\n\t\u2028\u2029])[{_HIDDEN}]")


def visible(text: str, *, lines: bool = False) -> str:
    r"""`text` with every character that does not show, or that an output may obey, as its escape.

    Args:
        lines: keep line breaks and tabs: for texts of several lines, never for names in tables.

    >>> print(visible("a\x1b[31m\nb\u202e"))
    a\x1b[31m\nb\u202e
    """
    return (_IN_LINES if lines else _ANY).sub(_escaped, text)


def hidden(text: str) -> str | None:
    r"""The first character of `text` that `visible` escapes, as it does; None where there is none: a name is sound.

    >>> hidden("résumé 日本"), hidden("a\nb")
    (None, '\\n')
    """
    found = _ANY.search(text)
    return None if found is None else _escaped(found)


def _escaped(found: re.Match[str]) -> str:
    character, code = found[0], ord(found[0])
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# -------------------------------------------------------------------- terminal


class Shown:
    """A renderable of rich whose text is `visible`, whatever it holds; styles stay."""

    def __init__(self, inside: RenderableType) -> None:
        self._inside = inside

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self._inside, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text, lines=True), segment.style)


# ------------------------------------------------------------------------ text

#: brackets mean something only before a link's target: nothing here can be a definition that others refer to
_MARKDOWN: Final = re.compile(r"[\\`*<>|~$&]|\](?=[(\[])|(?<![^\W_])_|_(?![^\W_])|(?<=\w):(?=//)|(?<=www)\.")


def markdown(text: str) -> str:
    r"""`text` as one cell or clause of GitHub's markdown, shown as it is.

    >>> print(markdown("a|b <img> [x](y) map_area"))
    a\|b \<img\> [x\](y) map_area
    """
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


_TEX: Final = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
    | {"'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}"}
    # two of these would become one other character
    | {"-": "{-}", ",": "{,}", "!": "{!}", "?": "{?}"}
)
_TEX_PLAIN: Final = re.compile(r"(?<![-])-(?!-)|(?<!,),(?!,)|!(?!`)|\?(?!`)")


def latex(text: str) -> str:
    r"""`text` as one cell of a LaTeX table, shown as it is (T1 or Unicode fonts).

    >>> print(latex("50% of a_b [1] -- \\input{x}"))
    50\% of a\_b {[}1{]} {-}{-} \textbackslash{}input\{x\}
    """
    # single hyphens, commas and marks stay as they are: only pairs of them mean something else
    parts, last = [], 0
    shown = visible(text)
    for kept in _TEX_PLAIN.finditer(shown):
        parts += [shown[last : kept.start()].translate(_TEX), kept[0]]
        last = kept.end()
    return "".join([*parts, shown[last:].translate(_TEX)])


# ------------------------------------------------------------------------ data


def csv_cell(value: object) -> object:
    """A cell of CSV: a text that a spreadsheet would take for a formula begins with an apostrophe. Numbers stay.

    A text that begins with an apostrophe gets another, so that taking away the first one gives the text back.

    >>> csv_cell("=1+1"), csv_cell("+name"), csv_cell(-0.5), csv_cell("a-b")
    ("'=1+1", "'+name", -0.5, 'a-b')
    """
    if not isinstance(value, str):
        return value
    shown = visible(value)
    return (
        f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@", "'", "＝", "＋", "－", "＠")) else shown
    )


def csv_row(row: Mapping[str, object]) -> dict[str, object]:
    """A row of CSV, by column, with each cell as `csv_cell`."""
    return {name: csv_cell(value) for name, value in row.items()}


def json_text(value: Any, *, indent: int | None = 2) -> str:
    r"""`value` as JSON that says every character that does not show by its number; it is read back the same.

    >>> print(json_text({"a": "\x1b\u202e"}, indent=None))
    {"a": "\u001b\u202e"}
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return _IN_LINES.sub(lambda found: json.dumps(found[0])[1:-1], text)
