"""A checkpoint given by its path: which family it is of, by its keys, or a refusal to guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clipbench.cards.cards import ModelCard, Preprocess, Strict, Weights
from clipbench.errors import WeightsError
from clipbench.models import clip, clip_lite, declip
from clipbench.models.adapter import LoadedModel
from clipbench.models.weights.reading import read_state_dict
from clipbench.utils.parsing import expanded

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]


def ad_hoc(name: str) -> LoadedModel:
    """The model of `--model <checkpoint file>`: its card says what was found in the file, and why.

    Raises:
        WeightsError: there is no such file, it is no checkpoint, or no family or more than one fits its keys.
    """
    path = expanded(name).resolve()
    if not path.is_file():
        raise WeightsError(f"{name} is no model: there is no file {path}")
    state = read_state_dict(path)
    found = [made for make in _FAMILIES.values() if (made := make(path, state)) is not None]
    if not found:
        raise WeightsError(
            f"{path}: its keys are of no family that is known ({', '.join(_FAMILIES)}); it begins with "
            f"{', '.join(list(state)[:3])}",
            hint=_hint(path, state),
        )
    if len(found) > 1:
        raise WeightsError(
            f"{path} could be of more than one family: {', '.join(card.family for card in found)}",
            hint="write a model card that says which (README, Add a checkpoint)",
        )
    return LoadedModel(name, found[0], path.parent, detected=True)


def _hint(path: Path, state: State) -> str:
    if (path.parent / "card.yaml").is_file():
        return f"it belongs to a run: --model {path.parent}"
    if any(k.startswith(("class_embedding", "attnpool.", "visual.")) for k in state):
        return (
            "an image tower alone looks the same in several families: name a card that has it, with base: "
            "declip-r50-visual or declip-vit-b32-visual and weights: {file: …}"
        )
    return "write a model card (README, Add a checkpoint), or name the architecture: open_clip:<arch>@PATH"


def _clip(path: Path, state: State) -> ModelCard | None:
    found = clip.detect(path, state)
    if found is None:
        return None
    config, why, described = found
    card = clip.of_file(config.arch, path, described)
    notes = f"detected: CLIP, {config.arch}: {why}" + ("" if described is not None else f"; {card.notes}")
    settings = {"config": config.canonical(), "notes": notes}
    return card.model_copy(update=settings)


def _declip(path: Path, state: State) -> ModelCard | None:
    found = declip.detect(path, state)
    if found is None:
        return None
    config = found.config
    notes = f"{config.variant} of DeCLIP's repository, {config.arch}, {config.embed_dim}-d: {found.why}"
    return _card(path, "declip", config, declip.PREPROCESS, f"{config.variant} {config.arch}", notes)


def _clip_lite(path: Path, state: State) -> ModelCard | None:
    found = clip_lite.detect(state)
    if found is None:
        return None
    config = found.config
    notes = f"CLIP-Lite, {config.image} and {config.layers} layers of {config.text}: {found.why}"
    return _card(path, "clip_lite", config, clip_lite.PREPROCESS, f"CLIP-Lite {config.image}", notes)


def _card(
    path: Path, family: str, config: Strict, preprocess: Preprocess, title: str, notes: str
) -> ModelCard:
    return ModelCard(
        title=f"{title}, {path.name}",
        family=family,
        config=config.canonical(),
        preprocess=preprocess,
        weights=Weights(file=str(path)),
        notes=f"detected: {notes}",
    )


_FAMILIES: Final[dict[str, Callable[[Path, State], ModelCard | None]]] = {
    "clip": _clip,
    "declip": _declip,
    "clip_lite": _clip_lite,
}
