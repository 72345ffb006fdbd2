"""The families of models: found by their modules' names, asked for a card's adapter, or whose a checkpoint file is.

A family is one module, `clipbench/models/NAME.py` or a plugin's (see `clipbench.utils.plugins`), with a `FAMILY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import BaseModel

from clipbench import models
from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard, Weights
from clipbench.errors import CardError, ClipbenchError, WeightsError, unknown
from clipbench.models.adapter import Adapter, Family, ModelEntry
from clipbench.models.weights.reading import read_state_dict
from clipbench.models.weights.resolve import resolve, resolve_source
from clipbench.utils import plugins
from clipbench.utils.parsing import expanded
from clipbench.utils.stages import stage

if TYPE_CHECKING:
    import torch

_NO_FAMILIES: Final = ("adapter", "factories", "families", "own", "remembered", "saliency")


def families() -> list[str]:
    """Names of the model families; none is imported."""
    return list(plugins.modules("models", models, besides=_NO_FAMILIES))


def family(name: str) -> Family:
    """What the family `name` says of itself.

    Raises:
        CardError: no such family.
        ClipbenchError: its module says nothing.
    """
    found = getattr(module(name), "FAMILY", None)
    if not isinstance(found, Family):
        raise ClipbenchError(
            f"{module(name).__file__} is no model family: it has no FAMILY",
            hint="write FAMILY = Family(version=1, config=Config, load=load), of clipbench.models.adapter",
        )
    return found


def module(name: str) -> ModuleType:
    """The module of the family `name`, imported.

    Raises:
        CardError: no such family.
    """
    known = plugins.modules("models", models, besides=_NO_FAMILIES)
    if name not in known:
        raise CardError(unknown("model family", name, known))
    return known[name].load()


def config_model(name: str) -> type[Strict]:
    """The typed `config:` of family `name`."""
    return family(name).config


def load(model: ModelEntry) -> Adapter:
    """The adapter of `model`, weights loaded strictly, unless it is there already.

    Raises:
        WeightsError: the checkpoint is missing, corrupt, or does not fit.
    """
    if model.adapter is not None:
        return model.adapter
    found = family(model.card.family)
    if not found.given:
        with stage("import"):
            import torch  # noqa: F401 - which every other family needs
    with stage("load"):
        return found.load(model)


def naming(name: str) -> tuple[Family, Callable[[str], ModelCard]] | None:
    """The family whose names begin as `name` does (`open_clip:RN50@openai`), and what makes the card; None: no one."""
    if ":" not in name:
        return None
    for each in map(family, families()):
        for prefix, make in each.named.items():
            if name.startswith(prefix):
                return each, make
    return None


def detected(name: str) -> ModelEntry:
    """The model of `--model <checkpoint file>`: its card says what was found in the file, and why.

    Raises:
        WeightsError: there is no such file, it is no checkpoint, or no family or more than one fits its keys.
    """
    path = expanded(name).resolve()
    if not path.is_file():
        raise WeightsError(f"{name} is no model: there is no file {path}")
    with stage("import"):
        import torch  # noqa: F401 - which every checkpoint needs
    with stage("load"):
        return _detected(name, path)


def _detected(name: str, path: Path) -> ModelEntry:
    state = read_state_dict(path)
    asked = {each: detect for each in families() if (detect := family(each).detect) is not None}
    found = [card for detect in asked.values() if (card := detect(path, state)) is not None]
    if not found:
        raise WeightsError(
            f"{path}: its keys are of no family that is known ({', '.join(asked)}); it begins with "
            f"{', '.join(list(state)[:3])}",
            hint=_hint(path, state),
        )
    if len(found) > 1:
        raise WeightsError(
            f"{path} could be of more than one family: {', '.join(card.family for card in found)}",
            hint="write a model card that says which (README, Add a checkpoint)",
        )
    return ModelEntry(name, found[0], path.parent, detected=True)


def _hint(path: Path, state: Mapping[str, torch.Tensor]) -> str:
    if (path.parent / "card.yaml").is_file():
        return f"it belongs to a run: --model {path.parent}"
    if any(k.startswith(("class_embedding", "attnpool.", "visual.")) for k in state):
        return (
            "an image tower alone looks the same in several families: name a card that has it, with base: "
            "declip-r50-visual or declip-vit-b32-visual and weights: {file: …}"
        )
    return "write a model card (README, Add a checkpoint), or name the architecture: open_clip:<arch>@PATH"


class Fetched(NamedTuple):
    """A weights file that is on this machine; `checked` says what its sha256 was held against."""

    model: str
    source: str
    path: Path
    bytes: int
    sha256: str
    checked: str


def fetch(model: ModelEntry) -> list[Fetched]:
    """Make sure that all weights of `model` are on this machine: the card's own, and those in its `config`.

    Raises:
        WeightsError, StorageError, ClipbenchError: as `resolve_source`.
    """
    from clipbench.models.weights.fetch import source_name

    own = family(model.card.family)
    config = own.config.model_validate(model.card.config)
    files = [(model.card.weights, *(own.weights_file or resolve)(model))]
    for weights in _weights_in(config):
        files.append((weights, *resolve_source(weights, owner=model.id, folder=model.folder)))
    found = []
    for weights, path, digest in files:
        checked = "as on the card" if weights.sha256 else "recorded at first use"
        if weights.file is not None and not weights.sha256:
            checked = "not checked: a local file, and no sha256 on the card"
        found.append(Fetched(model.id, source_name(weights), path, path.stat().st_size, digest, checked))
    return found


def _weights_in(part: BaseModel) -> Iterator[Weights]:
    """The sources that a config names, at any depth."""
    for _, value in part:
        if isinstance(value, Weights):
            yield value
        elif isinstance(value, BaseModel):
            yield from _weights_in(value)
