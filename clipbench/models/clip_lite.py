"""Family `clip_lite`: checkpoints of CLIP-Lite, in the layout of its official code and in ours.

The towers and heads are those of the family `dual`; here is what the official code calls them, and what their
keys say about the architecture. The official code keeps the two projection blocks in its loss (`loss.global_d`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pydantic import Field

from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.errors import WeightsError
from clipbench.models.adapter import Adapter, Family, ModelEntry
from clipbench.models.towers.configs import DualConfig, parse_config
from clipbench.models.weights.reading import count_numbered, load_strict, read_state_dict, without_values
from clipbench.models.weights.resolve import resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipbench.models.towers.dual import DualTowers

    State = Mapping[str, torch.Tensor]

#: what the official code evaluates with: OpenCV's bilinear, which does not smooth, and which turns images
PREPROCESS: Final = Preprocess(
    size=224,
    resize="shortest",
    interpolation="bilinear-no-antialias",
    order="convert-first",
    orientation="exif",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
#: training heads of the official code: the drop-list, beside a buffer of old transformers and MPNet's unused pooler
_HEADS: Final = ("loss.prior_d.", "loss.text_prior_d.", "loss.visual_d.", "loss.textual_d.")
#: of the first of two layers that some configs have between the text encoder's pooling and its projection
_TRANSFORM: Final = "text_encoder.fc1.weight"
_TOKENIZERS: Final = {"bert": "bert-base-uncased", "mpnet": "sentence-transformers/paraphrase-mpnet-base-v2"}
#: (blocks of layer1 to layer4, whether they are bottlenecks) → torchvision's name
_RESNETS: Final[dict[tuple[tuple[int, ...], bool], str]] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


class Config(Strict):
    """`image`, `text` and `layers` (of the text tower) follow from the file's keys; what is given must agree.

    `tokenizer` (see `clipbench.models.towers.tokenizer`) is that of the official code where not given. Texts are cut to
    `max_tokens` tokens, special ones included. `clean_captions` passes them through the cleaner of training
    first; the official zero-shot script does not.
    """

    image: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] | None = None
    text: Literal["bert", "mpnet"] | None = None
    layers: int | None = Field(None, gt=0)
    tokenizer: str | None = None
    max_tokens: int = Field(30, gt=2)
    clean_captions: bool = True


class Described(NamedTuple):
    """What a file's keys say it is, and the keys that say so, each about one part of `config`."""

    config: Config
    reasons: dict[str, str]


class _Layout(NamedTuple):
    """What the keys of each part begin with."""

    name: str
    image: str
    text: str
    image_block: str
    text_block: str


_OFFICIAL: Final = _Layout(
    "the official code's",
    "image_encoder.img_encoder.",
    "text_encoder.strans.",
    "loss.global_d.img_block.",
    "loss.global_d.text_block.",
)
_OURS: Final = _Layout("ours", "image.net.", "text.net.", "image_projection.", "text_projection.")


def load(model: ModelEntry) -> Adapter:
    """The adapter of a `family: clip_lite` card; every key of the file is used or on the drop-list.

    Raises:
        CardError: a `max_tokens` or a tokenizer that the text tower cannot have.
        WeightsError: the file is missing, corrupt, of another variant than the card says, or does not fit.
    """
    from clipbench.models.towers.adapters import DualAdapter
    from clipbench.models.towers.dual import DualTowers

    config = Config.model_validate(model.card.config)
    path, sha256 = resolve(model)
    state = read_state_dict(path)
    layout, found = _layout(state), described(state)
    if layout is None or found is None:
        raise WeightsError(
            f"{path} is no CLIP-Lite checkpoint: its keys are neither {_keys_of(_OFFICIAL)} nor "
            f"{_keys_of(_OURS)}, with a ResNet of torchvision and a BERT or MPNet",
            hint="name a checkpoint_<iteration>.pth of the official code, or correct the card's family",
        )
    _agree(path, config, found)
    with without_values():
        towers = DualTowers(
            _dual_config(state, layout, config, found, path), model.card.preprocess, model.folder
        )
    if layout is _OFFICIAL:
        tree = _official_tree(towers, state)
        left_out = load_strict(tree, state, path, dropped=_dropped(layout, found.config))
        towers.log_scale = tree.get_parameter("loss.global_d.temperature")
    else:
        left_out = load_strict(towers, state, path, dropped=_dropped(layout, found.config))
    adapter = DualAdapter(towers.eval(), model.card, sha256, [path])
    adapter.left_out = left_out
    return adapter


def described(state: State) -> Described | None:
    """What a state dict of CLIP-Lite is; None for any other file."""
    layout = _layout(state)
    if layout is None:
        return None
    blocks = tuple(
        count_numbered(state, rf"{re.escape(layout.image)}layer{stage}\.(\d+)\.") for stage in range(1, 5)
    )
    bottleneck = any(key.startswith(layout.image) and ".conv3." in key for key in state)
    image = _RESNETS.get((blocks, bottleneck))
    kinds = {"bert": ".attention.self.", "mpnet": ".attention.attn."}
    texts = [
        kind for kind, mark in kinds.items() if any(k.startswith(layout.text) and mark in k for k in state)
    ]
    if image is None or len(texts) != 1:
        return None
    layers = count_numbered(state, rf"{re.escape(layout.text)}encoder\.layer\.(\d+)\.")
    reasons = {
        "image": f"{layout.image}layer1 to layer4 hold {', '.join(map(str, blocks))} blocks "
        f"{'with' if bottleneck else 'without'} a conv3",
        "text": f"{layout.text}encoder has keys {kinds[texts[0]].strip('.')}",
        "layers": f"{layout.text}encoder.layer goes to {layers - 1}",
    }
    config = {"image": image, "text": texts[0], "layers": layers}
    return Described(Config.model_validate(config), reasons)


def detect(path: Path, state: State) -> ModelCard | None:
    """The card of a checkpoint file of CLIP-Lite; None for other files."""
    found = described(state)
    if found is None:
        return None
    config, why = found.config, "; ".join(found.reasons.values())
    return ModelCard(
        title=f"CLIP-Lite {config.image}, {path.name}",
        family="clip_lite",
        config=config.canonical(),
        preprocess=PREPROCESS,
        weights=Weights(file=str(path)),
        notes=f"detected: CLIP-Lite, {config.image} and {config.layers} layers of {config.text}: {why}",
    )


# ---------------------------------------------------------------------- parts


def _layout(state: State) -> _Layout | None:
    """The layout all of whose parts the keys have."""
    for layout in (_OFFICIAL, _OURS):
        blocks = (f"{layout.image_block}feature_", f"{layout.text_block}feature_")
        if all(any(key.startswith(part) for key in state) for part in (layout.image, layout.text, *blocks)):
            return layout
    return None


def _keys_of(layout: _Layout) -> str:
    return f"{layout.name} ({layout.image}*, {layout.text}*, {layout.image_block}feature_*)"


def _agree(path: Path, config: Config, found: Described) -> None:
    for name, reason in found.reasons.items():
        said, held = getattr(config, name), getattr(found.config, name)
        if said not in (None, held):
            raise WeightsError(
                f"{path} is another variant than the card says: config.{name} is {said}, the file has {held} "
                f"({reason})",
                hint=f"set config.{name}: {held}, leave it out, or name another file",
            )


def _dual_config(state: State, layout: _Layout, config: Config, found: Described, path: Path) -> DualConfig:
    """The towers and heads of the file, their sizes read from its shapes."""
    shortcuts = [f"{block}feature_shortcut.weight" for block in (layout.image_block, layout.text_block)]
    words = f"{layout.text}embeddings.word_embeddings.weight"
    width = _size(state, (_TRANSFORM, 1), (shortcuts[1], 1), (words, 1)) or 768
    if width % 64:
        raise WeightsError(
            f"{path}: the text tower is {width} wide, no multiple of the 64 that each attention head has",
            hint="name a file of CLIP-Lite's text towers (768 wide)",
        )
    towers = {
        "image": {"kind": "torchvision", "arch": found.config.image},
        "text": {
            "kind": "bert",
            "architecture": found.config.text,
            "layers": found.config.layers,
            "width": width,
            "heads": width // 64,
            "feedforward": _size(state, (f"{layout.text}encoder.layer.0.intermediate.dense.weight", 0))
            or 3072,
            "vocabulary": _size(state, (words, 0)) or 30522,
            "positions": _size(state, (f"{layout.text}embeddings.position_embeddings.weight", 0)) or 512,
            "token_types": _size(state, (f"{layout.text}embeddings.token_type_embeddings.weight", 0)) or 2,
            "pool": "mean" if found.config.text == "mpnet" else "pooler",
            "tokenizer": config.tokenizer or _TOKENIZERS[str(found.config.text)],
            "context_length": config.max_tokens,
            "clean": config.clean_captions,
        },
        "embed_dim": _size(state, *((shortcut, 0) for shortcut in shortcuts)) or 2048,
        "projection": "clip-lite",
    }
    return parse_config(towers, str(path))


def _size(state: State, *places: tuple[str, int]) -> int | None:
    """The length of the first of these tensors' axes that is there. Where none is, the strict load says so."""
    for key, axis in places:
        if key in state and state[key].ndim > axis:
            return state[key].shape[axis]
    return None


def _dropped(layout: _Layout, config: Config) -> tuple[str, ...]:
    """The drop-list: what keys begin with that are not loaded."""
    unused = (f"{layout.text}pooler.",) if config.text == "mpnet" else ()
    return (*_HEADS, f"{layout.text}embeddings.position_ids", *unused)


def _official_tree(towers: DualTowers, state: State) -> nn.Module:
    """`towers` under the official code's names: the same modules, so that what is loaded there is loaded here.

    Where the file has the text encoder's two further layers (`MODEL.TEXTUAL.TRANSFORM`), which it reads after pooling,
    `towers` get them too.
    """
    import torch
    from torch import nn

    from clipbench.models.towers.heads import projection

    text = nn.ModuleDict({"strans": towers.text.get_submodule("net")})
    block = towers.text_projection
    if (width := _size(state, (_TRANSFORM, 0))) is not None:
        with torch.device("meta"):
            block = projection("clip-lite", width, towers.embed_dim)
            first, second = nn.Linear(towers.text.features, width), nn.Linear(width, width)
        text.update({"fc1": first, "fc2": second})
        towers.text_projection = nn.Sequential(first, nn.ReLU(), second, block)
    critic = nn.ModuleDict({"img_block": towers.image_projection, "text_block": block})
    critic.temperature = towers.log_scale
    return nn.ModuleDict(
        {
            "image_encoder": nn.ModuleDict({"img_encoder": towers.image.get_submodule("net")}),
            "text_encoder": text,
            "loss": nn.ModuleDict({"global_d": critic}),
        }
    )


FAMILY: Final = Family(
    version=1,
    config=Config,
    load=load,
    detect=detect,
    backbone_is=lambda card: "average-pooled last map of the ResNet, before the projection",
)
