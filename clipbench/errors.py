"""The two kinds of failure: what a user can mend (`ClipbenchError`), and bugs (everything else, with its traceback)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClipbenchError(Exception):
    """Says what is wrong, where and what is allowed; `hint` is what to type or change next. The exit code is 2."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class CardError(ClipbenchError):
    """A YAML card that does not parse, validate or resolve."""


class DataError(ClipbenchError):
    """Images, labels or folders that are missing or disagree with their card."""


class WeightsError(ClipbenchError):
    """A checkpoint that is missing, corrupt, or does not fit its architecture."""


class StorageError(ClipbenchError):
    """A cache or results folder that cannot be written."""


class Damaged(StorageError):
    """A file of the cache, or of a run, that is not what was written: changed, cut off, without a checksum."""


class Stopped(ClipbenchError):
    """A signal asked a run to end, and it has saved what it needs to go on. The exit code is 128 + the signal."""

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message, hint="the same command goes on from there")
        self.exit_code = 128 + signal


class NotApplicable(ClipbenchError):
    """A capability that this checkpoint lacks: a dash in tables, never a 0."""


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of `known` most like `word`, or None when nothing is close.

    >>> nearest("clip-rn5", ["clip-rn50", "declip-r50"])
    'clip-rn50'
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, where there is any.

    >>> did_you_mean("clip-rn5", ["clip-rn50"]), did_you_mean("clip-rn5", ["vit"])
    ('; did you mean "clip-rn50"?', '')
    """
    near = nearest(word, known)
    return f'; did you mean "{near}"?' if near else ""


def unknown(what: str, word: str, known: Iterable[str], *, listing: str | None = None) -> str:
    """One sentence for an unknown name: the nearest known one and where to see all.

    >>> unknown("model", "clip-rn5", ["clip-rn50"], listing="clipbench list models")
    'unknown model "clip-rn5"; did you mean "clip-rn50"? See: clipbench list models'
    """
    names = sorted(known)
    near = did_you_mean(word, names)
    head, where = ("See", listing) if listing else ("Allowed", ", ".join(names))
    return f'unknown {what} "{word}"' + (f"{near} {head}: {where}" if near else f"; {head.lower()}: {where}")
