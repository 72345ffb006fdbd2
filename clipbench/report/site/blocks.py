"""Data inside a page: compact JSON that no text can break out of, in blocks that a browser unpacks when asked.

A block is deflated (zlib's format, which DecompressionStream("deflate") of browsers reads) and base64. Required
blocks are always kept; extras are kept, the smallest first, as long as the page stays below its limit.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from markupsafe import Markup

from clipbench.utils.escape import visible

#: characters of JSON that could end a script element, or that older JavaScript takes for a line's end
_UNSAFE: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def compact(value: Any) -> str:
    """`value` as JSON in the fewest characters.

    >>> compact({"a": [1, None]})
    '{"a":[1,null]}'
    """
    return json.dumps(shown_safely(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def shown_safely(value: Any) -> Any:
    """`value` with its texts, keys too, as a page may show them: line breaks stay, other hidden characters do not.

    Our own markup is none of them.
    """
    if type(value) is str:
        return visible(value, lines=True)
    if isinstance(value, dict):
        return {shown_safely(key): shown_safely(item) for key, item in value.items()}
    return list(map(shown_safely, value)) if isinstance(value, list | tuple) else value


def in_script(value: Any) -> Markup:
    """`value` as JSON that is the same inside a script element, whatever text it holds.

    >>> in_script("</script>")
    Markup('"\\\\u003c/script\\\\u003e"')
    """
    return Markup(compact(value).translate(_UNSAFE))  # noqa: S704  nothing of HTML is left in it


def packed(value: Any) -> str:
    """`value` as a block: JSON, deflated, base64."""
    return base64.b64encode(zlib.compress(compact(value).encode(), 9)).decode()


def unpacked(block: str) -> Any:
    """What `packed` was given."""
    return json.loads(zlib.decompress(base64.b64decode(block)))


def fitting(extras: Mapping[str, str], room: int) -> dict[str, str]:
    """The extras that fit into `room` characters together, the smallest first; in their given order.

    >>> fitting({"large": "12345", "small": "1", "middle": "123"}, 6)
    {'small': '1', 'middle': '123'}
    """
    kept = set()
    for name in sorted(extras, key=lambda name: len(extras[name])):
        room -= len(extras[name])
        if room < 0:
            break
        kept.add(name)
    return {name: block for name, block in extras.items() if name in kept}
