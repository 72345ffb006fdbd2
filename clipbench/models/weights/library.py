"""open_clip, without the libraries that only some of its architectures need: they take most of its import's seconds."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from clipbench.utils.stages import stage

#: module of open_clip → what it does without where it cannot be imported
_OPTIONAL: Final = {"hf_model": "transformers", "timm_model": "timm"}
#: what an architecture's name begins with that a repository of the model hub describes, or a folder
HUB_PREFIX: Final = "hf-hub:"
FOLDER_PREFIX: Final = "local-dir:"
#: the file that describes it
SETTINGS: Final = "open_clip_config.json"
_COMPILER: Final = "torch._dynamo"


def library() -> Any:
    """open_clip; timm, transformers and torch's compiler are not imported with it."""
    if "open_clip" not in sys.modules:
        with stage("import"), _without(_OPTIONAL.values()), _compiler_deferred():
            importlib.import_module("open_clip")
    return sys.modules["open_clip"]


def architecture(arch: str) -> dict[str, Any] | None:
    """The settings of one of open_clip's architectures, for which it is not imported; None: there are none here, or
    they are not in open_clip's form.

    Those of a repository of the model hub (`hf-hub:…`) are asked for there, or in the hub client's cache.
    """
    found: Any = None
    with contextlib.suppress(
        OSError, ValueError, LookupError, TypeError, AttributeError
    ):  # of files, and the hub client's
        if "open_clip" in sys.modules:
            found = library().get_model_config(arch)
        elif (path := settings_here(arch)) is not None:
            found = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        elif ":" in arch:
            found = library().get_model_config(arch)
        else:
            spec = importlib.util.find_spec("open_clip")
            for folder in (spec and spec.submodule_search_locations) or ():
                path = Path(folder) / "model_configs" / f"{arch}.json"
                if path.is_file():
                    found = json.loads(path.read_text(encoding="utf-8"))
    of_towers = isinstance(found, dict) and (found.get("vision_cfg"), found.get("text_cfg"))
    return found if of_towers and all(isinstance(part, dict) for part in of_towers) else None


def settings_here(arch: str) -> Path | None:
    """The file that describes a repository of the hub or a folder, where it is on this machine; else None."""
    if arch.startswith(FOLDER_PREFIX):
        path = Path(arch.removeprefix(FOLDER_PREFIX)) / SETTINGS
        return path if path.is_file() else None
    return hub_cached(arch, SETTINGS)


def hub_cached(arch: str, name: str) -> Path | None:
    """A file of the repository that `arch` names, in the hub client's cache; None where it is not there."""
    repo = arch.removeprefix(HUB_PREFIX)
    if repo == arch or len(repo.split("/")) != 2:
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name)
    return Path(path) if isinstance(path, str) else None


def complete_library() -> Any:
    """open_clip, ready to build towers of timm and transformers."""
    found = library()
    for name, optional in _OPTIONAL.items():
        module = importlib.import_module(f"open_clip.{name}")
        if getattr(module, optional) is None:  # its functions see what it then imports
            importlib.reload(module)
    return found


@contextlib.contextmanager
def _without(names: Any) -> Iterator[None]:
    """As if these were not installed, unless they have been imported."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: there is none
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _compiler_deferred() -> Iterator[None]:
    """The compiler, of which torchvision wants one function that it may never call, is imported when it calls it."""
    if _COMPILER in sys.modules:
        yield
        return
    stands_in = {name: ModuleType(name) for name in (_COMPILER, f"{_COMPILER}.utils")}

    def give_back() -> None:
        for name, module in stands_in.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def asked(where: str, name: str) -> Any:
        if name.startswith("__"):  # of whoever looks through all modules
            raise AttributeError(name)
        give_back()
        return getattr(importlib.import_module(where), name)

    def deferred(device: str) -> Any:
        return asked(f"{_COMPILER}.utils", "is_compile_supported")(device)

    for name, module in stands_in.items():
        module.__path__ = []
        module.__getattr__ = lambda asked_for, name=name: asked(name, asked_for)  # type: ignore[method-assign, misc]
    stands_in[f"{_COMPILER}.utils"].is_compile_supported = deferred  # type: ignore[attr-defined]
    sys.modules.update(stands_in)
    try:
        yield
    finally:
        give_back()
