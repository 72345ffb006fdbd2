"""YAML files of cards: read with their lines, and parsed into typed objects.

A card that is wrong fails at load, with the file and line, what is allowed, and the nearest name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from clipbench.cards.base import Misplaced, Strict
from clipbench.errors import CardError, did_you_mean
from clipbench.utils.parsing import BOOLEANS, MOST_YAML, Unreadable, file_bytes, yaml_nodes, yaml_value

_SEAL = "# sha256 of the lines above: "


def sealed(text: str) -> str:
    """YAML lines with a comment behind them that holds their checksum; `Document` verifies it."""
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def _refuse_changed(path: Path, text: str) -> None:
    *above, last = text.splitlines(keepends=True) or [""]
    if last.startswith("# sha256") and last.rstrip() != sealed("".join(above)).splitlines()[-1]:
        raise CardError(
            f"{path}:{len(above) + 1}: the lines above are not those that were written: their checksum differs",
            hint="if you changed them, delete this last line; else put back a copy of the file",
        )


class Document:
    """A parsed YAML file that knows the line of every value, for error messages."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        try:
            self.text = file_bytes(path, MOST_YAML).decode("utf-8") if text is None else text
            _refuse_changed(path, self.text)
            self._root = yaml_nodes(self.text)
            self.value: Any = yaml_value(self.text)
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise CardError(f"{path}:{line}: not UTF-8 text ({error.reason})") from None
        except UnicodeEncodeError:  # half a character, which no UTF-8 holds
            raise CardError(f"{path}: not UTF-8 text") from None
        except Unreadable as error:
            raise CardError(f"{path}: cannot be read ({error})") from None
        except yaml.reader.ReaderError as error:  # a control character; its position counts bytes
            line = self.text.encode().count(b"\n", 0, error.position) + 1
            raise CardError(f"{path}:{line}: {str(error).splitlines()[0]}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise CardError(f"{where}: {getattr(error, 'problem', None) or error}") from None

    def line(self, location: tuple[int | str, ...]) -> int:
        """1-based line of the value at `location` (the deepest part of it that exists)."""
        return self.place(location)[0]

    def place(self, location: tuple[int | str, ...]) -> tuple[int, tuple[int | str, ...]]:
        """`line`, and `location` without the steps that are no keys: the tags of unions, which pydantic adds."""
        node, kept = self._root, []
        line = node.start_mark.line + 1 if node else 1
        for i, step in enumerate(location):
            below = None
            if isinstance(node, yaml.MappingNode):
                found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
                if found is not None:
                    line, below = found[0].start_mark.line + 1, found[1]
                elif i < len(location) - 1:
                    continue
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                below = node.value[step]
                line = below.start_mark.line + 1
            kept.append(step)
            node = below
        return line, tuple(kept)


class Problems:
    """Errors of one card that are found one by one, and told together."""

    def __init__(self) -> None:
        self._found: list[CardError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a CardError for later; what comes after it in the block is left out."""
        try:
            yield
        except CardError as error:
            self._found.append(error)

    def tell(self) -> None:
        """Raise one CardError with all of them, in the order of lines, each once; none where there are none."""
        if not self._found:
            return
        lines = dict.fromkeys(line for error in self._found for line in error.message.splitlines())
        hint = next((error.hint for error in self._found if error.hint), None)
        raise CardError("\n".join(sorted(lines, key=_place)), hint=hint)


def _place(line: str) -> int:
    """The line number that a message begins with; those without one come first."""
    found = re.match(r".*?:(\d+): ", line)
    return int(found[1]) if found else 0


Model = TypeVar("Model", bound=BaseModel)


def parse(
    model: type[Model], document: Document, value: Any = None, *, prefix: tuple[int | str, ...] = ()
) -> Model:
    """Validate `value` (default: the whole document) as `model`.

    `prefix` is the place of `value` inside the document.

    Raises:
        CardError: naming file, line, key, what was found and what is allowed; all problems at once.
    """
    value = document.value if value is None else value
    if not isinstance(value, dict):
        found = "an empty file" if value is None else type(value).__name__
        raise CardError(f"{document.path}:1: expected a mapping of keys to values, found {found}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # A list whose items are wrong would also be called too short.
        problems = [
            p
            for p in error.errors()
            if p["type"] != "too_short" or p["ctx"]["actual_length"] == len(p["input"])
        ]
        lines = [_explain(model, document, prefix, problem) for problem in problems]
        raise CardError("\n".join(dict.fromkeys(lines))) from None


def _explain(model: type[BaseModel], document: Document, prefix: tuple[int | str, ...], problem: Any) -> str:
    error = problem.get("ctx", {}).get("error")
    location: tuple[int | str, ...] = problem["loc"]
    if isinstance(error, Misplaced):
        location += error.location
    line, place = document.place((*prefix, *location))
    where, key = f"{document.path}:{line}", _dotted(place)
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            allowed = _fields(model, location[:-1])
            text = f'{where}: unknown key "{key}"{did_you_mean(str(location[-1]), allowed)}'
            return f"{text} (allowed: {', '.join(allowed)})" if allowed else text
        case "missing":
            return f'{where}: missing key "{key}"'
        case "string_type" if isinstance(value, bool):
            return (
                f"{where}: {key}: expected text, found the boolean {str(value).lower()} "
                f'({BOOLEANS}); put it in quotes, like "no"'
            )
        case "string_type" if isinstance(value, int | float):
            return f'{where}: {key}: expected text, found the number {value}; put it in quotes: "{value}"'
        case "value_error":
            # A message that points to a place of its own names that place in words.
            named = f"{key}: " if key and not isinstance(error, Misplaced) else ""
            return f"{where}: {named}{error}"
        case "union_tag_invalid":
            context = problem["ctx"]
            return (
                f'{where}: {key}.{context["discriminator"].strip(chr(39))}: unknown "{context["tag"]}"; '
                f"allowed: {context['expected_tags'].replace(chr(39), '')}"
            )
        case "union_tag_not_found":
            return f'{where}: missing key "{key}.{problem["ctx"]["discriminator"].strip(chr(39))}"'
        case kind:
            shown = json.dumps(value, default=str, ensure_ascii=False)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            wanted = _WANTED.get(kind) or problem["msg"][0].lower() + problem["msg"][1:]
            return f"{where}: {key}: {wanted}, found {shown}"


_WANTED = {
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping of keys to values",
    "model_type": "expected a mapping of keys to values",
}
#: how the steps begin that pydantic adds to a location for the branch of a union
_TAGS = ("tuple[", "dict[", "function-")


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step.startswith(_TAGS):
            text += f".{step}" if text else step
    return text


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed at `location` below `model` (empty where that is free)."""
    current: Any = model
    for step in location:
        if isinstance(step, str) and step.startswith(_TAGS):
            continue
        current = _below(current, step) or _tagged(current, step) or current
    models = [part for part in _parts(current) if isinstance(part, type) and issubclass(part, BaseModel)]
    return list(dict.fromkeys(name for part in models for name in part.model_fields))


def _below(annotation: Any, step: str | int) -> Any:
    """The annotation of what lies at `step` below a value of this annotation, or None where it has none."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel) and step in part.model_fields:
            return part.model_fields[str(step)].annotation
        if get_origin(part) is dict:
            return get_args(part)[1]
        if get_origin(part) is tuple and isinstance(step, int):
            return get_args(part)[0]
    return None


def _tagged(annotation: Any, tag: str | int) -> Any:
    """The alternative of a union that is told by the literal `tag`, or None."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            literals = [get_args(f.annotation) for f in part.model_fields.values()]
            if any(tag in values for values in literals):
                return part
    return None


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without its metadata."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [part for alternative in get_args(annotation) for part in _parts(alternative)]
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return list(annotation.alternatives())
    return [annotation]
