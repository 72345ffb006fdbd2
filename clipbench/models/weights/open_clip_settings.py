"""Models in open_clip's own form, which say themselves what they are: a repository of the model hub, or a folder.

open_clip_config.json   `model_cfg`, the architecture; `preprocess_cfg`, how images are prepared
open_clip_model.safetensors, or another of the names that open_clip looks for
tokenizer.json, …       where the architecture has a tokenizer of transformers, and it is a folder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from clipbench.cards.model import ModelCard, Weights
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, WeightsError
from clipbench.models.weights.library import FOLDER_PREFIX, HUB_PREFIX, SETTINGS, hub_cached
from clipbench.models.weights.open_clip import (
    from_hub,
    preprocess_of,
    settings_file,
    settings_of,
    texts_of,
)
from clipbench.utils.cache import remember
from clipbench.utils.parsing import expanded

#: names of weights files in a folder, the first that is there being taken; else the one that ends so
_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
#: those of a repository, the safe ones first
_HUB_WEIGHTS: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHTS_END: Final = (".safetensors", ".bin", ".pth")
_SMALL_END: Final = (".json", ".jinja", ".model", ".txt")


def on_the_hub(spec: str) -> ModelCard:
    """The card of `hf-hub:<owner>/<repo>`: a model in open_clip's own form on the hub.

    Raises:
        CardError: not such a name, or the repository has no open_clip_config.json, or a wrong one.
        WeightsError: the hub cannot be reached and the cache has nothing.
    """
    repo = spec.removeprefix(HUB_PREFIX)
    if len(repo.split("/")) != 2:
        raise CardError(f'"{spec}" names no repository', hint=f"write {HUB_PREFIX}<owner>/<repo>")
    settings = settings_of(spec)
    weights = _hub_weights(spec, repo)
    pin_settings(spec)
    return _card(spec, repo, settings, {}, Weights(hf=f"{repo}/{weights}"))


def pin_settings(spec: str) -> None:
    """Raise ClipbenchError where a repository's settings are not those of their first use."""
    path = settings_file(spec)
    remember("weights", f"{spec}/{path.name}", sha256_file(path), what="sha256 of the settings")


def files_of(spec: str) -> list[Path] | None:
    """The files that the card of a repository or folder is made from, as far as they are here; None: not all are.

    Of a repository those in the hub client's cache: the hub is not asked whether they are the newest.
    """
    if spec.startswith(FOLDER_PREFIX):
        folder = expanded(spec.removeprefix(FOLDER_PREFIX))
        if not folder.is_dir():
            return None
        ends = (*_WEIGHTS_END, *_SMALL_END)
        return sorted(path for path in folder.iterdir() if path.name.endswith(ends) and path.is_file())
    settings, *weights = (hub_cached(spec, name) for name in (SETTINGS, *_HUB_WEIGHTS))
    return next(([settings, path] for path in weights if settings and path), None)


def in_folder(spec: str) -> ModelCard:
    """The card of `local-dir:<folder>`: a model in open_clip's own form in a folder.

    Raises:
        CardError: not such a name, no such folder, or its open_clip_config.json is missing or wrong.
        WeightsError: it has no weights, or several and none of the names that open_clip looks for first.
    """
    given = spec.removeprefix(FOLDER_PREFIX)
    if not given:
        raise CardError(f'"{spec}" names no folder', hint=f"write {FOLDER_PREFIX}<folder>")
    folder = expanded(given).resolve()
    arch = f"{FOLDER_PREFIX}{folder}"
    settings = settings_of(arch)
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(_WEIGHTS_END))
    chosen = next((name for name in _WEIGHTS if name in names), names[0] if len(names) == 1 else None)
    if chosen is None:
        raise WeightsError(
            f"{folder} has several weights files: {', '.join(names)}"
            if names
            else f"{folder} has no weights",
            hint=f"call the one that is meant {_WEIGHTS[0]}, or as it ends {_WEIGHTS[2]}",
        )
    config = {"settings": sha256_file(folder / SETTINGS)}
    return _card(arch, folder.name, settings, config, Weights(file=str(folder / chosen)))


def check_settings(model_id: str, arch: str, sha256: str | None) -> None:
    """Raise CardError where a folder's settings are not those of the card, whose features are kept under its hash."""
    path = settings_file(arch)
    found = sha256_file(path)
    if sha256 != found:
        raise CardError(
            f"{model_id}: {path} is not the file that the card means: sha256 is {found}, the card says {sha256}",
            hint=f"set config.settings: {found}, if they are meant",
        )


def _card(
    arch: str, title: str, settings: Mapping[str, Any], config: dict[str, Any], weights: Weights
) -> ModelCard:
    """The card of what `settings` describe; its notes say what they leave to open_clip."""
    cfg, described = settings["model_cfg"], settings.get("preprocess_cfg") or {}
    preprocess = preprocess_of(arch, described)
    notes = []
    if unsaid := [
        name for name in ("mean", "std", "interpolation", "resize_mode") if described.get(name) is None
    ]:
        notes.append(f"its settings do not say {', '.join(unsaid)}: open_clip's defaults were taken")
    size = described.get("size", preprocess.size)
    if set(size if isinstance(size, list) else [size]) - {3, preprocess.size}:
        notes.append(
            f"its settings say images of size {size}: as open_clip, its tower's {preprocess.size} was taken"
        )
    return ModelCard(
        title=title,
        family="clip",
        config={"arch": arch, "quick_gelu": bool(cfg.get("quick_gelu", False)), **config},
        preprocess=preprocess,
        text=texts_of(arch),
        weights=weights,
        notes="; ".join(notes) or None,
    )


def _hub_weights(spec: str, repo: str) -> str:
    """Name of the repository's weights file, the safe one first; downloaded, or in the cache already."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    safe, other = _HUB_WEIGHTS
    with from_hub(spec):
        try:
            hf_hub_download(repo, safe)
        except EntryNotFoundError:  # not there, or (offline) not in the cache
            hf_hub_download(repo, other)
            return other
    return safe


def small_files(arch: str) -> list[Path]:
    """The files beside the weights of an architecture that a folder describes: its settings, and its tokenizer's."""
    if not arch.startswith(FOLDER_PREFIX):
        return []
    folder = Path(arch.removeprefix(FOLDER_PREFIX))
    return sorted(path for path in folder.iterdir() if path.name.endswith(_SMALL_END) and path.is_file())
