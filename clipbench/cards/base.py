"""What every card part is made of: strict, frozen, typed objects, and the fingerprint of what they say."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

T = TypeVar("T")
# A YAML list becomes an immutable tuple; its items stay strictly typed.
Tuple = Annotated[tuple[T, ...], Field(strict=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Misplaced(ValueError):
    """A validator's finding with the place, below the validated part, that the error shall point to."""

    def __init__(self, message: str, *location: str | int) -> None:
        super().__init__(message)
        self.location = location


class Strict(BaseModel):
    """Base of every card part: unknown, missing or mistyped keys are errors; objects are frozen.

    Attributes:
        later: names of fields that the class got after there were cards of it.
    """

    later: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # of most cards' classes a command needs none
    )

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A later field is left out where it says nothing: fingerprints and features of older cards stay."""
        fields: dict[str, Any] = handler(self)
        defaults = {name: type(self).model_fields[name].default for name in self.later}
        return {k: v for k, v in fields.items() if k not in defaults or getattr(self, k) != defaults[k]}

    def canonical(self) -> dict[str, Any]:
        """The part as plain JSON types, defaults included (what fingerprints hash)."""
        return self.model_dump(mode="json")

    @classmethod
    def alternatives(cls) -> list[type[Strict]]:
        """The classes that a value declared as this one may have."""
        return [cls]


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`: key order and spacing cannot change it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def finite(value: float) -> float | None:
    """`value`, or None for NaN and infinities, which JSON cannot hold."""
    return value if math.isfinite(value) else None
