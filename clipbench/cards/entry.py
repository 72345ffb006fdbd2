"""A card with its place: what the rest of the program hands around."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

Card = TypeVar("Card", bound=BaseModel)


@dataclass(frozen=True)
class Entry(Generic[Card]):
    """A card with its id and its file."""

    id: str
    card: Card
    path: Path
