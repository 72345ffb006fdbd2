"""The caption cleaner, against examples worked by hand from its description."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbench.data.caption_cleaning import clean_caption


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A man RIDES a horse.", "a man rides a horse"),
        ("""it's "so" (very) nice; wow! *#:~?""", "its so very nice wow"),
        ("black-and-white and/or colour", "black and white and or colour"),
        ("a  -  b", "a b"),
        ("<person> and a <person>", "person and a person"),
        ("<PERSON>", "person"),
        ("<cat> 100% [x] {y} & _z", "<cat> 100% [x] {y} & _z"),
        ("  two\tlines \n here\n", "two lines here"),
        ("Ünïcödé café, naïve", "unicode cafe naive"),
        ("ﬁne ① a…", "fine 1 a..."),  # taken apart last, as the official code does
        ("Straße", "straße"),
        ("", ""),
        ("...", ""),
    ],
)
def test_what_is_left_of_a_caption(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


def test_only_the_first_words_stay() -> None:
    words = [f"w{n}" for n in range(40)]
    assert clean_caption(" ".join(words)).split() == words[:30]
    assert clean_caption("-".join(words), max_words=3) == "w0 w1 w2"
    assert clean_caption(". . .  one two", max_words=1) == "one"  # marks alone are no words


@given(st.text(st.characters(max_codepoint=127), max_size=300))
def test_plain_text_becomes_lower_case_words(text: str) -> None:
    cleaned = clean_caption(text)
    assert not set(cleaned) & set("\",.'!?()*#:;~-/")
    assert cleaned == " ".join(cleaned.split()) == cleaned.lower() == clean_caption(cleaned)
    assert len(cleaned.split()) <= 30
