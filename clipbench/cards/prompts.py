"""Class names and templates: those that several task cards share, and sets of a card's classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from clipbench.cards.base import Strict, Tuple
from clipbench.cards.strict_yaml import Document, Problems, parse
from clipbench.errors import CardError, unknown


def _kind(value: Any) -> str:
    """The branch of a union that a value is of, written like a type: messages leave such steps out."""
    return "tuple[name]" if is_name(value) else "tuple[str]"


def is_name(value: Any) -> bool:
    """Whether what stands in the place of a list is the name of shared prompts, and no template."""
    return isinstance(value, str) and "{c}" not in value


Names = Annotated[Tuple[str], Tag("tuple[str]")]
Templates = Annotated[
    Names | Annotated[dict[str, Tuple[str]], Tag("dict[str]")],
    Discriminator(lambda value: "dict[str]" if isinstance(value, dict) else "tuple[str]"),
]
_Named = Annotated[str, Tag("tuple[name]")]


class Prompts(Strict):
    """`tasks/prompts/<name>.yaml`: class names, templates, or both, and who wrote them."""

    source: str
    classes: Tuple[str] | None = None
    templates: Templates | None = None

    @model_validator(mode="after")
    def _some(self) -> Prompts:
        if not self.classes and not self.templates:
            raise ValueError("shared prompts have classes, templates or both")
        return self


def _alone(value: Any) -> Any:
    """One place as a list of it, for `Members`."""
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


#: the classes of a card that are one class of a set: a place in the card's list, or several that are folded to one
Members = Annotated[tuple[int, ...], Field(strict=False, min_length=1), BeforeValidator(_alone)]


class ClassSet(Strict):
    """A choice of a card's classes, by which its samples may be measured; samples of other classes are left out.

    `indices` are places in the card's `classes`, in the order that the set has; a list among them folds several classes
    to one. Without them it is all classes. `classes` stand in place of the card's names, and folded classes need some;
    `templates` are the set's only ones, called default. Both are lists, or the name of shared prompts. `rows` says how
    many samples of a split are left, where that is known.
    """

    indices: Tuple[Members] | None = None
    classes: Annotated[Names | _Named, Discriminator(_kind)] | None = None
    templates: Annotated[Names | _Named, Discriminator(_kind)] | None = None
    prompts_source: str | None = None
    rows: dict[str, Annotated[int, Field(gt=0)]] = Field({})

    def members(self, classes: int) -> tuple[tuple[int, ...], ...]:
        """For each class of the set, the places of those among `classes` that it is made of."""
        return tuple((place,) for place in range(classes)) if self.indices is None else self.indices

    def problem(self, classes: tuple[str, ...]) -> tuple[str, tuple[str | int, ...]] | None:
        """What is wrong with it as a set of `classes`, and in which of its parts; or None."""
        if not (self.indices or self.classes or self.templates):
            return "says nothing: give indices, classes or templates", ()
        members, seen = self.members(len(classes)), set[int]()
        for row, group in enumerate(members):
            for place in group:
                if not 0 <= place < len(classes):
                    return f"{place} is no class: there are 0 to {len(classes) - 1}", ("indices", row)
                if place in seen:
                    return f"{place} ({classes[place]}) is there twice", ("indices", row)
                seen.add(place)
        if len(members) < 2:
            return f"a set has at least 2 classes (found {len(members)})", ("indices",)
        if isinstance(self.classes, tuple) and len(self.classes) != len(members):
            return f"{len(self.classes)} names for {len(members)} classes", ("classes",)
        folded = next((row for row, group in enumerate(members) if len(group) > 1), None)
        if folded is not None and self.classes is None:
            return "several classes in one need a name: give the set's classes", ("indices", folded)
        return None


#: what stands for a list that could not be had, so that the rest of a card can be judged
_NOTHING: Final = {"classes": ["one class", "another class"], "templates": ["{c}"]}


class SharedPrompts:
    """The files of `prompts/` beside the task cards, read when one is asked for."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        self._read: dict[str, Prompts] = {}

    def resolved(
        self,
        value: Mapping[str, Any],
        document: Document,
        where: tuple[str, ...] = (),
        problems: Problems | None = None,
    ) -> dict[str, Any]:
        """The keys of a task card, or of one of its class sets, with the lists that its names of shared prompts mean.

        Where it does not say whose its prompts are, the sources of what it names become its `prompts_source`.

        Args:
            document: the card's file.
            where: the place of a class set there; nothing for the card itself.
            problems: keeps what is wrong instead of raising it; the key is then left as a list that says nothing.

        Raises:
            CardError: there are no such prompts, or they have not what is asked for.
        """
        found, sources = self._lists(value, document, where, problems)
        if sources and found.get("prompts_source") is None:
            found["prompts_source"] = "; ".join(sources)
        if isinstance(objectives := value.get("objectives"), dict):
            found["objectives"] = {
                name: self._lists(one, document, (*where, "objectives", str(name)), problems)[0]
                if isinstance(one, dict)
                else one
                for name, one in objectives.items()
            }
        return found

    def _lists(
        self, value: Mapping[str, Any], document: Document, where: tuple[str, ...], problems: Problems | None
    ) -> tuple[dict[str, Any], list[str]]:
        """`resolved` but for the `prompts_source`, and the sources of what was named."""
        found, sources = dict(value), dict[str, None]()

        def of(name: str, key: str, *below: str) -> Any:
            if problems is None:
                return asked(name, key, *below)
            with problems.noted():
                return asked(name, key, *below)
            if key == "classes":  # nothing else that hangs on them can be judged
                for other in ("label_names", "class_sets"):
                    found.pop(other, None)
            sources["not known"] = None
            return _NOTHING[key]

        def asked(name: str, key: str, *below: str) -> Any:
            place = (*where, key, *below)
            shared = self._of(name, document, place)
            if getattr(shared, key) is None:
                raise CardError(f"{_at(document, place)}: {self.files[name]} has no {key}")
            sources[shared.source] = None
            return getattr(shared, key)

        if is_name(value.get("classes")):
            found["classes"] = of(value["classes"], "classes")
        templates = value.get("templates")
        if where and is_name(templates):
            found["templates"] = of(str(templates), "templates")
        if isinstance(templates, dict):
            found["templates"] = {
                name: of(one, "templates", str(name)) if is_name(one) else one
                for name, one in templates.items()
            }
        return found, list(sources)

    def _of(self, name: str, document: Document, where: tuple[str, ...]) -> Prompts:
        if name not in self.files:
            raise CardError(
                f"{_at(document, where)}: {unknown('shared prompts', name, self.files)}",
                hint="write a list, or the name of a file of prompts/ beside the task cards",
            )
        if name not in self._read:
            self._read[name] = parse(Prompts, Document(self.files[name]))
        return self._read[name]


def _at(document: Document, where: tuple[str, ...]) -> str:
    line, place = document.place(where)
    return f"{document.path}:{line}: {'.'.join(map(str, place))}"
