"""Lists that several task cards share: class names and templates, one file a list in `tasks/prompts/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import model_validator

from clipbench.cards.base import Strict, Tuple


class Prompts(Strict):
    """`tasks/prompts/NAME.yaml`: class names, templates, or both, and where they come from.

    A task card takes them by name: `classes: NAME`, `templates: {default: NAME}`.
    """

    source: str
    classes: Tuple[str] | None = None
    templates: Tuple[str] | None = None

    @model_validator(mode="after")
    def _something(self) -> Prompts:
        if not self.classes and not self.templates:
            raise ValueError("it holds neither classes nor templates")
        return self


#: what a file of prompts may hold
LISTS: Final = ("classes", "templates")
#: the text that names a file of prompts, which of its lists is meant, and its place on the card → that list
Named = Callable[[str, str, tuple[str, ...]], list[str]]


def spelled_out(value: Mapping[str, Any], named: Named) -> dict[str, Any]:
    """A task card's keys and values with each name of a file of prompts replaced by the list that is meant.

    >>> spelled_out({"classes": "x", "templates": {"default": "y", "own": ["{c}"]}}, lambda *what: [what[0]])
    {'classes': ['x'], 'templates': {'default': ['y'], 'own': ['{c}']}}
    """

    def lists(what: str, given: Any, *place: str) -> Any:
        return named(given, what, place) if what in LISTS and isinstance(given, str) else given

    made = dict(value)
    if "classes" in made:
        made["classes"] = lists("classes", made["classes"], "classes")
    if isinstance(sets := made.get("templates"), dict):
        made["templates"] = {k: lists("templates", v, "templates", str(k)) for k, v in sets.items()}
    for key in ("class_sets", "objectives"):
        if isinstance(sets := made.get(key), dict):
            made[key] = {
                k: {what: lists(what, v, key, str(k), what) for what, v in one.items()}
                if isinstance(one, dict)
                else one
                for k, one in sets.items()
            }
    return made
