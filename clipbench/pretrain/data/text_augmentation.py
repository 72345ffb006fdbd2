"""Altered captions: a synonym, two words swapped, or words left out ("easy data augmentation", Wei and Zou 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from clipbench.utils.row_rng import Draws

#: probability of each word to be left out, where that is the change (the paper's α)
_DELETION = 0.1
_PUNCTUATION = ".,:;!?\"'()"

#: words that may stand for each other in a caption: a line each of a file
_GROUPS: Final = Path(__file__).with_name("synonyms.txt").read_text(encoding="utf-8").splitlines()
_SYNONYMS: dict[str, list[str]] = {}
for _group in map(str.split, _GROUPS):
    for _word in _group:
        _SYNONYMS.setdefault(_word, []).extend(other for other in _group if other != _word)


def alter(texts: Sequence[str], draws: Draws) -> list[str]:
    """Texts with one change each, all three equally likely; words are what spaces part.

    One word that has a synonym here gives way to it; two words change places; or each word is left out with
    probability 0.1, but never all of them. A text that a change does not fit stays as it is.

    Args:
        texts: of the whole batch, since as many numbers are drawn for each text as for the longest.
        draws: for the rows of the batch that are wanted.

    Returns:
        The altered texts of those rows.

    >>> alter(["two dogs", ""], Draws(torch.Generator().manual_seed(1), 2))
    ['two hounds', '']
    """
    words = [text.split() for text in texts]
    numbers = draws.rand(3 + max(map(len, words), default=0), dtype=torch.float64).tolist()
    return [
        " ".join((_replace, _swap, _delete)[int(3 * kind)](words[row], more)) if words[row] else texts[row]
        for row, (kind, *more) in zip(draws.rows.tolist(), numbers, strict=True)
    ]


def _replace(words: list[str], draws: list[float]) -> list[str]:
    """One word replaced by a synonym; what it begins and ends with, and its capital letter, stay."""
    known = [place for place, word in enumerate(words) if _core(word).lower() in _SYNONYMS]
    if not known:
        return words
    place = known[int(draws[0] * len(known))]
    core = _core(words[place])
    choices = _SYNONYMS[core.lower()]
    synonym = choices[int(draws[1] * len(choices))]
    changed = words[place].replace(core, synonym.capitalize() if core[0].isupper() else synonym, 1)
    return [*words[:place], changed, *words[place + 1 :]]


def _swap(words: list[str], draws: list[float]) -> list[str]:
    """Two words swapped."""
    if len(words) < 2:
        return words
    one = int(draws[0] * len(words))
    other = (one + 1 + int(draws[1] * (len(words) - 1))) % len(words)
    swapped = list(words)
    swapped[one], swapped[other] = words[other], words[one]
    return swapped


def _delete(words: list[str], draws: list[float]) -> list[str]:
    """Words left out; one that is drawn stays where none would."""
    kept = [word for word, draw in zip(words, draws[2:], strict=False) if draw >= _DELETION]
    return kept or [words[int(draws[0] * len(words))]]


def _core(word: str) -> str:
    return word.strip(_PUNCTUATION)
