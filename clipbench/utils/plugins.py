"""What is found by its name, one module each: the package's own, those of installed packages, those of plugin folders.

A model family, protocol, layout or objective is a module whose name is its own. Three places are looked at:

    clipbench/<...>/<group>/NAME.py    the package's own
    [project.entry-points."clipbench.<group>"]
    NAME = "their_package.module"      an installed package
    DIR/<group>/NAME.py                a plugin folder, once `add(DIR)` has named it

An entry point of clipbench.models that names something in a module, `NAME = "their_package.module:make"`, is no family
but a model, which that makes (`factories`). Names that begin with `_`, and folders, are helpers. Nothing is imported
before `Found.load`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Final, NamedTuple

from clipbench.errors import ClipbenchError
from clipbench.utils.parsing import expanded

GROUPS: Final = ("models", "protocols", "layouts", "objectives")

_folders: list[Path] = []


class Found(NamedTuple):
    """A module that has not been imported: `where` says who brings it, `module` is what Python calls it."""

    where: str
    module: str

    def load(self) -> ModuleType:
        """The module, imported."""
        return importlib.import_module(self.module)


def add(folder: Path) -> None:
    """Look into `folder` too: its subfolders `models`, `protocols`, `layouts` and `objectives` hold modules.

    Raises:
        ClipbenchError: there is no such folder, it holds none of these, or modules beside them.
    """
    folder = folder.resolve()
    allowed = f"modules stand in its subfolders {', '.join(f'{group}/' for group in GROUPS)}"
    if not folder.is_dir():
        raise ClipbenchError(f"there is no plugin folder {folder}", hint=allowed)
    if loose := sorted(path.name for path in folder.glob("*.py")):
        raise ClipbenchError(f"the plugin folder {folder} has {loose[0]} beside its subfolders", hint=allowed)
    if not any((folder / group).is_dir() for group in GROUPS):
        raise ClipbenchError(f"the plugin folder {folder} holds no plugins", hint=allowed)
    if folder not in _folders:
        _folders.append(folder)
        importlib.invalidate_caches()


def add_all(folders: Iterable[str | Path]) -> None:
    """Look into these folders too, and into those that CLIPBENCH_PLUGINS names; raises as `add`."""
    for folder in (*folders, *os.environ.get("CLIPBENCH_PLUGINS", "").split(os.pathsep)):
        if folder:
            add(expanded(folder))


def modules(group: str, package: ModuleType, *, besides: Collection[str] = ("base",)) -> Mapping[str, Found]:
    """The modules of `group` by name, in alphabetical order; `package` is the folder of the package's own.

    Args:
        besides: the package's own modules that are none of the group.

    Raises:
        ClipbenchError: two modules claim one name, or an entry point names no module.
    """
    for folder in _folders:
        own = str(folder / group)
        if own not in package.__path__ and Path(own).is_dir():
            package.__path__.append(own)  # so that they import like the package's own, and their helpers too
    return _named(group, package.__name__, tuple(package.__path__), tuple(sys.path), tuple(besides))


@cache
def _named(
    group: str, package: str, folders: tuple[str, ...], path: tuple[str, ...], besides: tuple[str, ...]
) -> Mapping[str, Found]:
    """As `modules`; the folders are looked at once, since whoever writes a table asks for each of its values."""
    found: dict[str, Found] = {}
    for name, one in (*_in_folders(package, folders), *_installed(group, path)):
        if name in found:
            raise ClipbenchError(
                f'two modules are named "{name}" in the group {group}: {found[name].where} and {one.where}',
                hint="rename one of them, or leave its plugin folder or package out",
            )
        found[name] = one
    names = sorted(name for name in found if not name.startswith("_") and name not in besides)
    return MappingProxyType({name: found[name] for name in names})


def _in_folders(package: str, folders: tuple[str, ...]) -> Iterator[tuple[str, Found]]:
    for folder in folders:  # one by one, since together the first hides the others
        for module in pkgutil.iter_modules([folder]):
            if not module.ispkg:
                where = str(Path(folder) / f"{module.name}.py")
                yield module.name, Found(where, f"{package}.{module.name}")


@cache
def _installed(group: str, path: tuple[str, ...]) -> list[tuple[str, Found]]:
    """Entry points of what is installed on `path`, which is Python's own."""
    found = []
    for point in _entry_points(path)(group=f"clipbench.{group}"):
        where = f"the package {point.dist.name}" if point.dist else point.value
        if point.attr and group == "models":
            continue  # a model, not a family: see `factories`
        if point.attr:
            raise ClipbenchError(
                f'{where} has an entry point of clipbench.{group} that is no module: {point.name} = "{point.value}"',
                hint=f'a module is wanted: {point.name} = "{point.module}"',
            )
        found.append((point.name, Found(where, point.module)))
    return found


class Factory(NamedTuple):
    """What makes a model of an installed package, which has not been imported: `value` is `<module>:<name>`."""

    where: str
    value: str


def factories() -> Mapping[str, Factory]:
    """The models that installed packages bring, by name, in alphabetical order.

    Raises:
        ClipbenchError: two packages claim one name.
    """
    return _factories(tuple(sys.path))


@cache
def _factories(path: tuple[str, ...]) -> Mapping[str, Factory]:
    found: dict[str, Factory] = {}
    for point in _entry_points(path)(group="clipbench.models"):
        if not point.attr:
            continue
        value = f"{point.module}:{point.attr}"
        one = Factory(f"the package {point.dist.name} {point.dist.version}" if point.dist else value, value)
        if found.setdefault(point.name, one) != one:
            raise ClipbenchError(
                f'two models are named "{point.name}": {found[point.name].where} and {one.where} bring one',
                hint="leave one of the packages out",
            )
    return MappingProxyType(dict(sorted(found.items())))


@cache
def _entry_points(path: tuple[str, ...]) -> Callable[..., Iterable[EntryPoint]]:
    """What selects among those of all packages on `path`: one look at each package serves all groups."""
    return entry_points().select
