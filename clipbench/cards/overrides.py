"""Changes to a recipe by the names of its fields: `--set optim.lr=1e-3`, and the recipe's own `quick:`."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from clipbench.errors import CardError
from clipbench.utils.parsing import yaml_value

_INDEX = re.compile(r"\[(\d+)\]")
#: numbers that YAML 1.1 takes for text
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def parse_assignments(given: Sequence[str]) -> dict[str, Any]:
    """The values of `--set`, each a field's name and a value in YAML.

    Raises:
        CardError: one that is no assignment.

    >>> parse_assignments(["optim.lr=1e-3", "evaluate=[digits-zs]", "target=null"])
    {'optim.lr': 0.001, 'evaluate': ['digits-zs'], 'target': None}
    """
    changes: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise CardError(
                f"--set {text}: expected a field and its value", hint="for example --set optim.lr=0.001"
            )
        try:
            parsed = yaml_value(value)
        except yaml.YAMLError as error:
            reason = str(getattr(error, "problem", None) or error)
            raise CardError(f"--set {text}: the value cannot be read as YAML ({reason})") from None
        if isinstance(parsed, str) and _EXPONENT.fullmatch(parsed):
            parsed = float(parsed)
        changes[name.strip()] = parsed
    return changes


def changed(value: dict[str, Any], changes: Mapping[str, Any], by: str) -> dict[str, Any]:
    """A copy of `value` with fields replaced; what they may be is not looked at here.

    Entries of lists are named by number: `data.0.augment` or `data[0].augment`.

    Args:
        by: where the changes come from, for messages.

    Raises:
        CardError: a name that leads into a value without parts, or beyond the end of a list.

    >>> changed({"optim": {"lr": 1}, "data": [{"split": "a"}]}, {"optim.lr": 2, "data[0].split": "b"}, "test")
    {'optim': {'lr': 2}, 'data': [{'split': 'b'}]}
    """
    made = copy.deepcopy(value)
    for name, new in changes.items():
        steps = _INDEX.sub(r".\1", name).split(".")
        part: Any = made
        for number, step in enumerate(steps):
            above = ".".join(steps[:number])
            key: str | int = step
            if isinstance(part, list):
                if not step.isdigit() or int(step) >= len(part):
                    raise CardError(f"{by}: {name}: {above} has the entries 0 to {len(part) - 1}, not {step}")
                key = int(step)
            elif not isinstance(part, dict):
                raise CardError(f"{by}: {name}: {above} is {part!r}, which has no parts")
            if number == len(steps) - 1:
                part[key] = copy.deepcopy(new)
            else:
                if isinstance(part, dict) and part.get(step) is None:
                    part[key] = {}
                part = part[key]
    return made
