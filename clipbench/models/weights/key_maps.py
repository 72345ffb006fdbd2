"""Checkpoints of single towers as their publishers name the keys, put into the names of the library that builds them.

A key that is not known keeps its name, so that the strict load that follows names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

# EfficientNet-PyTorch's names → timm's: outside the blocks, in an inverted-residual block, and in a block without
# expansion. Norms are counted from 0 there and from 1 here.
_STEM_AND_HEAD: Final = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED: Final = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE: Final = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def is_efficientnet_pytorch(state: State) -> bool:
    """Whether `state` has the names of lukemelas/EfficientNet-PyTorch and its Lite variant."""
    return "_conv_stem.weight" in state


def efficientnet_pytorch(state: State, stages: Sequence[int]) -> State:
    """`state` in timm's names. Of the Lite variants: no squeeze-and-excitation.

    Args:
        state: with `_blocks.<number>`, counted through all stages.
        stages: how many blocks each stage has.
    """
    places = [(stage, block) for stage, blocks in enumerate(stages) for block in range(blocks)]

    def rename(key: str) -> str:
        part, _, rest = key.partition(".")
        if part != "_blocks":
            return f"{_STEM_AND_HEAD.get(part, part)}.{rest}"
        number, _, inner = rest.partition(".")
        layer, _, tensor = inner.partition(".")
        names = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in state else _SEPARABLE
        if layer not in names or not number.isdecimal() or int(number) >= len(places):
            return key
        stage, block = places[int(number)]
        return f"blocks.{stage}.{block}.{names[layer]}.{tensor}"

    return {rename(key): tensor for key, tensor in state.items()}


#: what the text tower's names begin with in OpenAI's form
_TEXT: Final = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")


def clip_text(state: State, *, custom: bool) -> State:
    """`state` of OpenAI's form, its text tower below `text.` as open_clip's custom text models have it, or not.

    Others, such as those with a text tower of transformers, keep their names.
    """

    def rename(key: str) -> str:
        plain = key.removeprefix("text.")
        return key if not plain.startswith(_TEXT) else f"text.{plain}" if custom else plain

    if not {"token_embedding.weight", "text.token_embedding.weight"} & state.keys():
        return state
    return {rename(key): tensor for key, tensor in state.items()}


def bert(state: State, architecture: str) -> State:
    """`state` of an encoder that was saved with a language-model head, or by old versions, in transformers' names.

    The encoder then stands below its architecture's name, and norms have `gamma` and `beta`.
    """
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

    def rename(key: str) -> str:
        key = key.removeprefix(f"{architecture}.")
        for before, after in old.items():
            key = key.replace(before, after)
        return key

    return {rename(key): tensor for key, tensor in state.items()}
