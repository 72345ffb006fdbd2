"""Cards as they are read: what one leaves out comes from the card that its `base:` names, prompts from shared files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from clipbench.cards.base import Misplaced, Strict, Tuple
from clipbench.cards.entry import Card, Entry
from clipbench.cards.prompts import ClassSet, Members, SharedPrompts
from clipbench.cards.strict_yaml import Document, Problems, parse
from clipbench.cards.task import TaskCard
from clipbench.errors import CardError, unknown

#: what a task card takes of another whose classes and prompts it has, with data of its own
PROMPTS: Final = ("kind", "classes", "label_names", "templates", "prompts_source", "objectives")


class Classes(Strict):
    """`base: {card: …}` of a task card: another card's classes and prompts, and nothing else of it.

    `classes` names one of that card's class sets; or `indices` are places in its list of classes (see `ClassSet`).
    """

    card: str
    classes: str | None = None
    indices: Annotated[Tuple[Members] | None, Field(min_length=2)] = None

    @model_validator(mode="after")
    def _one(self) -> Classes:
        if self.classes is not None and self.indices is not None:
            raise ValueError("give classes, the name of a class set, or indices, not both")
        return self


def base_of(document: Document) -> str | Classes | None:
    """What a card's `base:` says; None without one.

    Raises:
        CardError: it is a mapping of another form.
    """
    value = document.value
    if not isinstance(value, dict) or "base" not in value:
        return None
    base = value["base"]
    return parse(Classes, document, base, prefix=("base",)) if isinstance(base, dict) else str(base)


def _prompts(card: TaskCard) -> dict[str, Any]:
    """Kind, classes and prompts of a card, as another card would give them."""
    return {key: getattr(card, key) for key in PROMPTS if getattr(card, key)}


def _inherit(own: dict[str, Any], raw: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A card's keys over those of its base; so are those of `config`, unless the card is of another family.

    Args:
        own, raw: the card's, with and without what its names of shared prompts mean.
    """
    own = {key: value for key, value in own.items() if key != "base"}
    base = {key: value for key, value in base.items() if key != "images_of"}  # other data, other images
    if "classes" in own:
        base.pop("class_sets", None)
    sets = base.get("class_sets")
    if "splits" in own and isinstance(sets, dict):  # whose images are others
        base["class_sets"] = {
            name: {k: v for k, v in one.items() if k != "rows"} if isinstance(one, dict) else one
            for name, one in sets.items()
        }
    config, same = own.get("config"), own.get("family") in (None, base.get("family"))
    if isinstance(config, dict) and isinstance(base.get("config"), dict) and same:
        own["config"] = base["config"] | config
    implied = "prompts_source" in own and "prompts_source" not in raw
    if implied and base.get("prompts_source") and not {"classes", "templates"} <= own.keys():
        own["prompts_source"] = f"{base['prompts_source']}; {own['prompts_source']}"
    return base | own


class Reader:
    """Reads cards, each file once.

    Args:
        prompt_files: name → file of all shared prompts; called when one is asked for.
    """

    def __init__(self, prompt_files: Callable[[], Mapping[str, Path]]) -> None:
        self._documents: dict[Path, Document] = {}
        self._prompt_files = prompt_files

    @cached_property
    def _shared(self) -> SharedPrompts:
        return SharedPrompts(self._prompt_files())

    def document(self, path: Path) -> Document:
        """The file of a card."""
        if path not in self._documents:
            self._documents[path] = Document(path)
        return self._documents[path]

    def card(self, model: type[Card], path: Path, known: Mapping[str, Path]) -> Card:
        """The card at `path`.

        Args:
            known: id → file of the cards that may be its base.

        Raises:
            CardError: it is wrong, or what it takes from another card or from shared prompts is not there.
        """
        problems = Problems()
        found: Card | None = None
        with problems.noted():
            value = self._value(model, path, known, (), problems)
            found = parse(model, self.document(path), value)
        problems.tell()
        assert found is not None
        return found

    def class_set(self, entry: Entry[TaskCard], name: str, where: str) -> ClassSet:
        """A class set of a card, with lists in the place of names of shared prompts.

        Args:
            where: the file and line that name it, for messages.
        """
        sets = entry.card.class_sets
        if name not in sets:
            raise CardError(
                f"{where}: {unknown('class set', name, sets)}"
                if sets
                else f'{where}: unknown class set "{name}": {entry.id} has no class_sets'
            )
        document = self.document(entry.path)
        found = self._shared.resolved(vars(sets[name]), document, ("class_sets", name))
        chosen = sets[name].model_copy(update=found)
        try:
            entry.card.check_class_set(name, chosen)
        except Misplaced as error:
            raise CardError(f"{entry.path}:{document.line(error.location)}: {error}") from None
        return chosen

    def _value(
        self,
        model: type[Card],
        path: Path,
        known: Mapping[str, Path],
        below: tuple[Path, ...],
        problems: Problems | None = None,
    ) -> Any:
        """What a card says, with what comes from its base and from shared prompts.

        Args:
            below: the cards of which it is the base, or the base of a base.
            problems: keeps what is wrong with names of shared prompts, instead of raising it.
        """
        document = self.document(path)
        value = document.value
        if not isinstance(value, dict):
            return value
        own = value
        if issubclass(model, TaskCard):
            own = self._shared.resolved(value, document, problems=problems)
        base = base_of(document)
        if base is None:
            return own
        name = base if isinstance(base, str) else base.card
        where = f"{path}:{document.line(('base',))}"
        if name not in known:
            raise CardError(f"{where}: {unknown('base card', name, known)}")
        if known[name] in (*below, path):
            way = " → ".join(one.stem for one in (*below, path, known[name]))
            raise CardError(
                f"{where}: the card is its own base: {way}",
                hint="a card that replaces another of its name cannot have that one as its base: give it its own name",
            )
        inherited = self._value(model, known[name], known, (*below, path))
        if not isinstance(inherited, dict):
            raise CardError(f"{where}: the base card {known[name]} is no mapping of keys to values")
        if isinstance(base, Classes):
            if not issubclass(model, TaskCard):
                raise CardError(f"{where}: base: expected the name of a card; task cards alone take classes")
            inherited = self._classes(base, known[name], inherited, document)
        return _inherit(own, value, inherited)

    def _classes(self, base: Classes, path: Path, value: dict[str, Any], below: Document) -> dict[str, Any]:
        """The classes and prompts of the base card at `path`, or those of one of its class sets."""
        card = parse(TaskCard, self.document(path), value)
        if base.classes is not None:
            where = f"{below.path}:{below.line(('base', 'classes'))}"
            return _prompts(
                card.of_classes(self.class_set(Entry(base.card, card, path), base.classes, where))
            )
        if base.indices is None:
            return _prompts(card)
        chosen = ClassSet(indices=base.indices)
        if problem := chosen.problem(card.classes):
            line = below.line(("base", *problem[1]))
            raise CardError(f"{below.path}:{line}: base.indices: {problem[0]}")
        return _prompts(card.of_classes(chosen))


#: keys that only cards of this kind have
_MARKS: Final = {
    "tasks": {"classes", "protocols", "splits", "source", "templates"},
    "model_cards": {"family", "weights", "preprocess"},
    "recipes": {"objective", "optim", "schedule"},
}
KINDS: Final = tuple(_MARKS)


def kind_by_keys(document: Document) -> str | None:
    """Which kind of card a file is, by its keys alone."""
    value = document.value
    keys = set(value) if isinstance(value, dict) else set()
    return next((kind for kind, marks in _MARKS.items() if keys & marks), None)
