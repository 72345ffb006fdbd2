"""YAML and JSON from files that anyone may have written: read in bounded time and memory, nothing run.

Only ordinary files are read, up to a size. Nesting is bounded, because the parsers below call themselves for every
level and end the process when the stack is full; so is what aliases in YAML unfold to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic_core import from_json

from clipbench.errors import ClipbenchError

#: bytes of a YAML file, and characters of what its aliases unfold to
MOST_YAML: Final = 8 << 20
#: values and keys in it, those that aliases repeat counted again
MOST_NODES: Final = 500_000
#: bytes of a record, or of another program's result
MOST_JSON: Final = 256 << 20
#: levels of nesting in YAML
DEEPEST: Final = 64
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_Safe: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is there: ten times faster
BOOLEANS: Final = "YAML reads a bare yes, no, on, off, true, false as a boolean"


class Unreadable(Exception):
    """Why a file cannot be read: a clause for the message of an error that names the file."""


def expanded(path: str | Path) -> Path:
    """`path` with a leading `~` or `~user` replaced by that home folder.

    Raises:
        ClipbenchError: nobody knows where that is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ClipbenchError(
            f"{path}: where the home folder is, is not known", hint="write the path in full, or set HOME"
        ) from None


def exists(path: Path, *, folder: bool = False) -> bool:
    """Whether there is a file, or a folder, at `path`; False for what can be no path, which `Path` raises for."""
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:  # a name that is too long
        return False


def file_bytes(path: Path, most: int) -> bytes:
    """What an ordinary file of at most `most` bytes holds. No pipe or device is ever waited for.

    Raises:
        Unreadable: there is none, it is something else, or it is larger.
    """
    try:
        # Opening a pipe would wait for somebody to write into it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                raise Unreadable(f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}")
            with os.fdopen(handle, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(handle)
    except OSError as error:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(path.stat().st_mode):
                raise Unreadable("it is a socket") from None
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the name
        raise Unreadable(str(error)) from None
    if len(data) > most:
        raise Unreadable(f"it is larger than {most >> 20} MiB")
    return data


def yaml_nodes(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, which know their lines.

    Raises:
        yaml.YAMLError: it cannot be parsed, or is more than anything that a person writes.
    """
    _bound(text)
    root: yaml.Node | None = yaml.compose(text, Loader=_Safe)
    return root


def yaml_value(text: str) -> Any:
    """The value of a YAML text: text, numbers, booleans, dates, null, lists, and mappings with keys of text.

    Raises:
        yaml.YAMLError: as `yaml_nodes`; a key that stands twice or is no text, another kind of value.
    """
    _bound(text)
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass


def _bound(text: str) -> None:
    """Look at YAML without building anything: how deep it is, and how much its aliases unfold to."""
    sizes: dict[str, tuple[int, int] | None] = {}  # anchor → nodes and characters; None while it is open
    open_: list[tuple[str | None, int, int]] = []  # anchor, and nodes and characters before
    nodes = characters = 0
    for event in yaml.parse(text, Loader=_Safe):
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), (0, 0))  # an unknown one is named when it is composed
            if size is None:
                raise _refused(f"the alias *{event.anchor} stands inside of what it names", event)
            nodes, characters = nodes + size[0], characters + size[1]
        elif isinstance(event, yaml.ScalarEvent):
            nodes, characters = nodes + 1, characters + len(event.value)
            if event.anchor is not None:
                sizes[event.anchor] = (1, len(event.value))
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(open_) == DEEPEST:
                raise _refused(f"nested deeper than {DEEPEST} levels", event)
            open_.append((event.anchor, nodes, characters))
            if event.anchor is not None:
                sizes[event.anchor] = None
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes_before, characters_before = open_.pop()
            if anchor is not None:
                sizes[anchor] = (nodes - nodes_before, characters - characters_before)
        if nodes > MOST_NODES or characters > MOST_YAML:
            raise _refused(
                f"it unfolds to more than {MOST_NODES:,} values or {MOST_YAML >> 20} MiB of text", event
            )


def _refused(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark  # libyaml has a class of its own for it
    return yaml.MarkedYAMLError(None, None, problem, mark)


_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_LONGEST_NUMBER = 100  # characters: a thousand digits take long to read, and nothing is counted so


class _Loader(_Safe):  # type: ignore[misc, valid-type]
    """SafeLoader that refuses duplicate keys instead of keeping the last one, and keys that are not text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        number = node.tag in _NUMBERS and isinstance(node, yaml.ScalarNode)
        try:
            if number and len(node.value) > _LONGEST_NUMBER:
                raise ValueError(f"a number has at most {_LONGEST_NUMBER} characters")
            return super().construct_object(node, deep)
        except ValueError as error:  # what looks like a date or a number, and is none
            value = node.value if len(node.value) <= 40 else f"{node.value[:37]}..."
            problem = f"{value} cannot be read ({error}); put it in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, _not_text(key_node, key), key_node.start_mark)
        line = key_node.start_mark.line + 1
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f'duplicate key "{key}" (first at line {seen[key]})', key_node.start_mark
            )
        seen[key] = line
    made: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return made


def _not_text(node: yaml.Node, key: Any) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a key must be text; put it in quotes if it starts with { or ["
    boolean = f"; {BOOLEANS}" if isinstance(key, bool) else ""
    return f'the key {node.value or "null"} is not text{boolean}; put it in quotes: "{node.value}"'


def _no_such_value(_: _Loader, node: yaml.Node) -> Any:
    problem = f"the tag {node.tag.removeprefix(_TAG)} is not for cards, which hold text, numbers, lists and mappings"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _name in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(_TAG + _name, _no_such_value)


def json_value(text: str | bytes, *, nan: bool = False) -> Any:
    """The value of a JSON text. `nan` takes the bare NaN and Infinity that some programs write.

    Raises:
        ValueError: it is no JSON, nested deeper than 200 levels, or holds a number of thousands of digits.
    """
    return from_json(text, allow_inf_nan=nan)
