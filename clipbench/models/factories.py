"""Models that are code of the user's own, by name: `python:<module>:<factory>`, and entry points of packages.

What is named is imported and called, so that a name comes from who types it, or from a package that is installed: never
from a card, a recipe or a record.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from clipbench.errors import ClipbenchError, unknown
from clipbench.models import own
from clipbench.models.adapter import Family, ModelEntry
from clipbench.utils.stages import stage

PREFIX: Final = "python:"


def entry(name: str, value: str, where: str | None = None) -> ModelEntry:
    """The model `name`, which a factory gives.

    Args:
        value: `<module>:<factory>`.
        where: the package that names it; None: the user does, and the current folder is looked into too.

    Raises:
        ClipbenchError: there is no such module or factory, it raises an error, or what it gives is no model.
    """
    with stage("load"):
        found = find(name, value, where)
        try:
            return own.entry(_made(found, value), name, name)
        except ClipbenchError as error:
            raise ClipbenchError(f"{name}: {error.message}", hint=error.hint) from error.__cause__


def find(name: str, value: str, where: str | None = None) -> Any:
    """The factory, or the object, of `<module>:<factory>`: imported, not called. Arguments and errors as `entry`."""
    module_name, _, path = value.partition(":")
    if "/" in module_name or module_name.endswith(".py"):
        raise ClipbenchError(
            f"{name}: {module_name} is a path, where the name of a module is wanted",
            hint=f"{PREFIX}{Path(module_name).stem}:{path}, in the folder that holds it, or with that as PYTHONPATH",
        )
    if not module_name or not path or not all(module_name.split(".")) or ":" in path:
        raise ClipbenchError(
            f"{name}: a module and a factory are wanted, with a colon between",
            hint=f"for example {PREFIX}my_package.models:make",
        )
    here = str(Path.cwd())
    if where is None and not {"", here} & set(sys.path):
        sys.path.append(here)
    found: Any = _imported(name, module_name, f"of {where}" if where else f"on Python's path, or in {here}")
    for part in path.split("."):
        if not hasattr(found, part):
            named = f"the module {module_name}" if found is sys.modules[module_name] else str(found)
            what = unknown(
                f"name in {named}:", part, [each for each in dir(found) if not each.startswith("_")]
            )
            raise ClipbenchError(f"{name}: {what}")
        found = getattr(found, part)
    if isinstance(found, Family):
        raise ClipbenchError(
            f"{name}: {value} is a family of models, not a model",
            hint=f'the entry point of a family names its module alone: "{module_name}"',
        )
    return found


def _imported(name: str, module: str, where: str) -> ModuleType:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no result of ours
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise own.raised(error, f"{name}: importing {module}") from error
        raise ClipbenchError(
            f"{name}: there is no module {error.name} {where}",
            hint="set PYTHONPATH to the folder that holds it, or run the command there",
        ) from None
    except (Exception, SystemExit) as error:
        raise own.raised(error, f"{name}: importing {module}") from error


def _made(found: Any, value: str) -> object:
    """What a factory gives; an object with `encode_images` is there already."""
    if not isinstance(found, type) and hasattr(found, "encode_images"):
        return found
    if not callable(found):
        raise ClipbenchError(
            f"{value} is a {type(found).__name__}, no factory: it cannot be called, and has no encode_images",
            hint="name a function without arguments that gives the model",
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ClipbenchError(
            f"{value} cannot be called without arguments: {error}",
            hint="write a function without any that gives the model, and name that",
        ) from None
    except ValueError:  # it does not say what it takes
        pass
    with contextlib.redirect_stdout(sys.stderr):
        return own.called(found, f"{value}()")
