"""One HTML file from a page's content: template, styles, scripts and data, and nothing that lies elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from clipbench.report.site.blocks import fitting, in_script, shown_safely
from clipbench.report.site.content import Content
from clipbench.report.site.leaderboard import Column, Line, SiteRecord
from clipbench.utils.cache import cache_root, write_atomic
from clipbench.utils.version import __version__

#: bytes that the page may have at most; extras are left out above it
LIMIT: Final = 4_900_000
_HERE: Final = Path(__file__).parent


def html(
    content: Content,
    columns: Sequence[Column],
    lines: Sequence[Line],
    off: Sequence[SiteRecord],
    results: Path,
    made: str,
) -> str:
    """The page.

    Args:
        found: what its scripts read.
        columns, lines: the leaderboard.
        off: records that are kept off it.
        results: the records' folder, to be named.
        made: when, as people read it.
    """
    shown = {"columns": columns, "lines": lines, "off": off, "results": results.as_posix(), "made": made}
    bare = _page(content, {}, shown)
    # Blocks are ASCII: a character is a byte. Their names and punctuation are counted as 32 bytes each.
    room = LIMIT - len(bare.encode()) - 32 * len(content.extras)
    return _page(content, fitting(content.extras, room), shown)


def _page(content: Content, extras: dict[str, str], shown: dict[str, Any]) -> str:
    """The page with these extras; `shown` are the template's own variables."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    charts, versions = charts_library()
    own = "\n".join(path.read_text("utf-8") for path in sorted((_HERE / "js").glob("*.js")))
    # Each in a scope of its own: the library's short names would otherwise meet ours.
    scripts = [_safe(f'"use strict";(() => {{{code}\n}})();') for code in (charts, own)]
    left_out = sorted(set(content.extras) - set(extras))
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown_safely,
    )
    environment.filters["urlencode"] = lambda text: quote(text, safe="")
    return environment.get_template("page.html.j2").render(
        policy=_policy(scripts),
        style=Markup((_HERE / "site.css").read_text("utf-8")),  # noqa: S704  ours
        scripts=scripts,
        data=in_script({"index": content.index, "blocks": content.required | extras, "left_out": left_out}),
        groups=sorted({line.group for line in shown["lines"]}),
        suites=content.index["suites"],
        published="published" in content.required,
        version=__version__,
        left_out=_left_out(left_out),
        charts=versions,
        **shown,
    )


def _policy(scripts: Sequence[Markup]) -> str:
    """What the browser may do: run these scripts and no other, show what is inside, and ask nobody for anything."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _safe(script: str) -> Markup:
    """`script`, which must not hold what would end its element."""
    lowered = script.lower()
    if "</script" in lowered or "<!--" in lowered:
        raise ValueError("a script of the page holds </script or <!--")
    return Markup(script)  # noqa: S704  ours, or the charts' library


def _left_out(names: Sequence[str]) -> str:
    """One sentence on the extras that did not fit."""
    words = {"classes": "per-class values", "curves": "probe curves", "picture": "pictures"}
    kinds = sorted({words[name.partition("/")[0]] for name in names})
    return f"To stay small it leaves out some {' and '.join(kinds)}, which the records have." if kinds else ""


def charts_library() -> tuple[str, dict[str, str]]:
    """Vega, Vega-Lite and vega-embed as one script that defines `vegaEmbed`, and their versions.

    vl-convert bundles it in some seconds, once: the cache keeps it.
    """
    import vl_convert

    path = cache_root() / f"charts-{metadata.version('vl-convert-python')}.js"
    if not path.is_file():
        write_atomic(path, vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").encode())
    versions = {"vega": vl_convert.get_vega_version(), "vega_lite": vl_convert.get_vegalite_versions()[-1]}
    return path.read_text("utf-8"), versions
