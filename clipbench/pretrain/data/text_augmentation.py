"""Altered captions: a synonym, two words swapped, or words left out ("easy data augmentation", Wei and Zou 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clipbench.utils.row_rng import Draws

#: probability of each word to be left out, where that is the change (the paper's α)
_DELETION = 0.1
_PUNCTUATION = ".,:;!?\"'()"

#: words that may stand for each other in a caption, a line each
_GROUPS = """
photo picture image photograph
painting artwork
drawing sketch
man guy gentleman
woman lady
child kid
children kids
boy lad
people persons folks
baby infant
crowd group
dog hound
dogs hounds
puppy pup
cat feline
kitten kitty
bird fowl
horse steed
rabbit bunny
bug insect
car automobile
truck lorry
bike bicycle
motorcycle motorbike
airplane plane aircraft
boat vessel
ship vessel
train locomotive
street road
path trail
house home
shop store
building structure
field meadow
forest woods
hill slope
mountain peak
lake pond
sea ocean
beach shore
stone rock
flower blossom
couch sofa
rug carpet
cup mug
bag sack
hat cap
jacket coat
trousers pants
shoe boot
phone telephone
television tv
snack meal
big large huge
small little tiny
tall high
wide broad
narrow slim
old aged
young youthful
new recent
pretty beautiful lovely
happy glad joyful
sad unhappy
quick fast rapid
slow unhurried
bright vivid
dark dim
clean spotless
dirty grubby
wet damp
empty vacant
full filled
several multiple various
many numerous
close near
walking strolling
running racing
jumping leaping
sitting seated
looking gazing
watching viewing
holding gripping
carrying bringing
eating consuming
throwing tossing
talking speaking
smiling grinning
riding driving
playing frolicking
sleeping dozing
shows displays
number digit
middle center
"""
_SYNONYMS: dict[str, list[str]] = {}
for _group in map(str.split, _GROUPS.splitlines()):
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
