"""Towers that transformers builds from a model's own settings, with its weights loaded strictly."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from clipbench.errors import WeightsError, first_line
from clipbench.models.weights.architectures import Architecture, Images, Side, Taken
from clipbench.models.weights.reading import some
from clipbench.utils.cache import say

if TYPE_CHECKING:
    from clipbench.models.weights.reading import State

#: in settings: how a model is to be run, which is chosen here (a name of a kernel would be fetched, and run)
_HOW: Final = frozenset(
    {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"}
)
#: in settings: what changes the weights or the modules when a model is built
_CHANGES: Final = ("quantization_config", "fusion_config", "kernel_config", "transformers_weights")
#: buffers that files of old versions hold and that are worked out now
_BUFFERS: Final = re.compile(
    r"(?:^|\.)(position_ids|relative_position_index|relative_coords_table|attn_mask)$"
)


class ImageSide(nn.Module):
    """Images (float [B, channels, side, side], normalised) to features [B, D]."""

    def __init__(self, tower: nn.Module, taken: Taken, head: nn.Module | None = None) -> None:
        super().__init__()
        self.tower, self.head = tower, head
        self._taken: Taken = taken

    def forward(self, images: Tensor) -> Tensor:
        found = _taken(self.tower(pixel_values=images), self._taken).flatten(1)
        return found if self.head is None else self.head(found)


class TextSide(nn.Module):
    """Token ids (int64 [B, L]; -1: padding that is not seen) to features [B, D]."""

    def __init__(self, tower: nn.Module, taken: Taken, head: nn.Module | None, padding: int) -> None:
        super().__init__()
        self.tower, self.head = tower, head
        self._taken: Taken = taken
        self._padding = padding

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens >= 0
        ids = tokens.where(real, self._padding)
        found = _taken(self.tower(input_ids=ids, attention_mask=real.long()), self._taken)
        return found if self.head is None else self.head(found)


def _taken(output: Any, taken: Taken) -> Tensor:
    found: Tensor = output.last_hidden_state[:, 0] if taken == "first" else output.pooler_output
    return found


def part(model: Any, side: Side) -> tuple[nn.Module, nn.Module | None]:
    """The tower and the head of one side of `model`."""
    return getattr(model, side.tower), None if side.head is None else getattr(model, side.head)


def build(
    architecture: Architecture, settings: Mapping[str, Any], state: State, path: Path
) -> tuple[Any, tuple[str, ...], bool]:
    """The model of `settings`, in float32 and for evaluation, with the weights of `state`: all used, none missing.

    transformers' own loader gives them their names of today.

    Returns:
        The model; what of `state` it does not use, as `load_strict` says it; whether its pooler has weights.

    Raises:
        WeightsError: the settings describe no such model, or the weights do not fit.
    """
    import transformers

    refuse_changes(settings, path)
    kind: Any = getattr(transformers, architecture.name)
    with _quiet():
        try:
            config = kind.config_class.from_dict(_plain(settings))
            model, told = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(state),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which are told, and refused below
            )
        except Exception as error:  # of many kinds, all meaning: settings that describe no model
            raise WeightsError(
                f"{path}: {architecture.name} cannot be built of its config.json: {first_line(error)}",
                hint="config.json and the weights must be those that save_pretrained wrote together",
            ) from None
    missing, extra = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    pooler = architecture.pooler if isinstance(architecture, Images) else None
    of_pooler = [key for key in model.state_dict() if pooler and key.startswith(pooler)]
    pooled = not of_pooler or not missing or not set(of_pooler) <= set(missing)
    if not pooled:
        say(f"{path}: it has no weights of a pooler; the class token's last state is taken")
        missing = [key for key in missing if key not in of_pooler]
    heads = architecture.heads if isinstance(architecture, Images) else ()
    if heads:
        own = f"{kind.base_model_prefix}."
        extra = [key for key in extra if not key.removeprefix(own).startswith(heads)]
    _refuse_misfit(architecture.name, missing, extra, sorted(told["mismatched_keys"]), path)
    model.requires_grad_(False)
    left = _left_out(sorted(told["unexpected_keys"]), heads, f"{kind.base_model_prefix}.")
    left += _old_buffers(state, model)
    if left:
        say(f"{path}: tensors that the model does not use are left out: {', '.join(left)}")
    return model.eval(), left, pooled


def refuse_changes(settings: Mapping[str, Any], path: Path) -> None:
    """Raise WeightsError where settings ask for weights or modules to be changed when a model is built."""
    for name in _CHANGES:
        if settings.get(name):
            raise WeightsError(
                f"{path.parent}: its config.json has {name}, which changes the model when it is built",
                hint="choose the model's plain form, in float32, float16 or bfloat16",
            )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what says how the model shall be run, at any depth."""
    return {
        key: _plain(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _HOW
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own reports of loading, which are told as errors here."""
    from transformers.utils import logging as said

    logging: Any = said
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _refuse_misfit(
    name: str, missing: list[str], extra: list[str], shapes: Sequence[tuple[str, Any, Any]], path: Path
) -> None:
    problems = []
    if missing:
        problems.append(f"missing {len(missing)}: {some(missing)}")
    if extra:
        problems.append(f"unexpected {len(extra)}: {some(extra)}")
    if shapes:
        key, found, wanted = shapes[0]
        problems.append(
            f"wrong shape {len(shapes)}: {key} is {tuple(found)}, the architecture has {tuple(wanted)}"
        )
    if problems:
        raise WeightsError(
            f"{path} does not fit {name}, of which its config.json is: {'; '.join(problems)}",
            hint="config.json and the weights must be those that save_pretrained wrote together",
        )


def _left_out(extra: list[str], heads: tuple[str, ...], own: str) -> tuple[str, ...]:
    found = Counter(next(h for h in heads if key.removeprefix(own).startswith(h)) for key in extra)
    return tuple(f"{head} ({count})" for head, count in found.items())


def _old_buffers(state: State, model: nn.Module) -> tuple[str, ...]:
    """Buffers in a file that the model works out itself."""
    kept = {m[1] for key in model.state_dict() if (m := _BUFFERS.search(key))}
    found = Counter(m[1] for key in state if (m := _BUFFERS.search(key)) and m[1] not in kept)
    return tuple(f"{name} ({count})" for name, count in found.items())
