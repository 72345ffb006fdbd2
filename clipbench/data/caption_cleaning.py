"""Captions as CLIP-Lite's text encoder saw them in training."""

from __future__ import annotations

import re
import unicodedata

_DELETED = re.compile(r"""[,.'!?"()*#:;~]""")


def clean_caption(text: str, max_words: int = 30) -> str:
    """`text` in lower case, without punctuation and accents, cut to `max_words` words.

    CLIP-Lite's cleaner: ALBEF's `pre_caption` (hyphens and slashes part words, other marks vanish), then NFKD
    without the combining marks.

    >>> clean_caption("A well-known café:  it's  GREAT!")
    'a well known cafe its great'
    >>> clean_caption("<person> rides a black/white horse.", max_words=3)
    'person rides a'
    """
    text = _DELETED.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    words = " ".join(text.split()[:max_words])
    return "".join(c for c in unicodedata.normalize("NFKD", words) if not unicodedata.combining(c))
