"""CLIP through open_clip: any of its architectures, with a pretrained tag or a local checkpoint."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from clipbench.cache import remember
from clipbench.cards import ModelCard, Preprocess, Strict, Weights
from clipbench.digests import sha256_file
from clipbench.errors import CardError, ClipbenchError, NotApplicable, WeightsError, unknown
from clipbench.models import Adapter, LoadedModel
from clipbench.models.weights import (
    count_numbered,
    load_strict,
    pin,
    read_state_dict,
    resolve,
    verify,
)
from clipbench.parsing import expanded

if TYPE_CHECKING:
    import torch
    from torch import nn

VERSION = 1

PREFIX = "open_clip:"
HUB_PREFIX = "hf-hub:"
#: what OpenAI's own archives hold beside the weights
_NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size"})


class Config(Strict):
    """`arch` is open_clip's name, or `hf-hub:owner/repo`; `quick_gelu`: QuickGELU in the towers instead of GELU.

    OpenAI's checkpoints, and some of LAION's, were trained with QuickGELU: with GELU they load without a
    complaint and lose points. For a tag and for every file whose hash open_clip knows, a card that says
    otherwise is refused.
    """

    arch: str
    quick_gelu: bool = Field(description="x·sigmoid(1.702x) as in OpenAI's code, instead of GELU")


def load(model: LoadedModel) -> Adapter:
    """The adapter of a `family: clip` card.

    Raises:
        CardError: unknown architecture or tag, or a `quick_gelu` that the checkpoint was not trained with.
        WeightsError: the checkpoint is missing, corrupt, or does not fit.
    """
    config = Config.model_validate(model.card.config)
    known_arch(config.arch)
    tag = model.card.weights.open_clip
    if tag is not None:
        _agree(model.id, config, _tag_config(config.arch, tag), f"the tag {tag}")
        path, digest = tag_file(model)
    else:
        path, digest = resolve(model)
        known = _known_files().get(digest[:8])
        if known:
            _agree(model.id, config, known[1], f"this file ({known[0]})")
    state = read_state_dict(path)
    if set(state) >= _NOT_WEIGHTS:
        _agree(model.id, config, {"quick_gelu": True}, "this file, an archive of OpenAI's own form,")
    _check_side(config.arch, state, path)
    module = _build(config)
    # [1] in some training code, [] in others
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(module.logit_scale.shape)
    load_strict(module, state, path, adopt=lambda name: name not in _NOT_WEIGHTS)
    return ClipAdapter(model.card, module, config.arch, digest)


def tag_file(model: LoadedModel) -> tuple[Path, str]:
    """The file of a card's pretrained tag, downloaded where it is missing, and its sha256 (hex).

    Raises:
        CardError: unknown tag.
        WeightsError: it cannot be fetched, or is not the card's.
        ClipbenchError: its hash is not the one recorded at first use.
    """
    arch, weights = Config.model_validate(model.card.config).arch, model.card.weights
    assert weights.open_clip is not None
    path = _download(model, arch, weights.open_clip)
    digest = verify(path, weights.sha256, kept=True)
    if weights.sha256 is None:
        pin(f"{arch}@{weights.open_clip}", path, digest, model.id)
    return path, digest


def ad_hoc(spec: str) -> ModelCard:
    """The card of `open_clip:<arch>@<tag-or-path>`: preprocessing and QuickGELU as open_clip states them.

    Raises:
        CardError: malformed, or an unknown architecture or tag; of a file, see `of_file`.
        WeightsError: there is no such file.
    """
    arch, _, source = spec.removeprefix(PREFIX).partition("@")
    if not arch or not source:
        raise CardError(
            f'"{spec}" names no weights',
            hint=f"write {PREFIX}<arch>@<tag or path>, for example {PREFIX}RN50@openai",
        )
    known_arch(arch)
    path = expanded(source)
    if path.exists() or "/" in source or path.suffix in {".pt", ".pth", ".bin", ".safetensors"}:
        return of_file(arch, path)
    described = _tag_config(arch, source)
    return ModelCard(
        title=f"open_clip {arch}, {source}",
        family="clip",
        config={"arch": arch, "quick_gelu": bool(described.get("quick_gelu", False))},
        preprocess=_preprocess(arch, described),
        weights=Weights(open_clip=source),
    )


def of_file(arch: str, path: Path, described: dict[str, Any] | None = None) -> ModelCard:
    """The card of a checkpoint file of open_clip's `arch`; its notes say what was taken for granted.

    Images are prepared as all published tags of the architecture prepare them, or as `described` says: the settings of
    a tag, where the file is known. QuickGELU cannot be seen in weights: the architecture's name decides, as in
    open_clip.

    Raises:
        CardError: the tags disagree, or there is none: with the choices, and the card to write.
        WeightsError: there is no such file.
    """
    import open_clip

    file = path.resolve()
    if not file.is_file():
        raise WeightsError(f"no checkpoint at {file}", hint="put the file there, or correct its path")
    quick_gelu = bool(open_clip.get_model_config(arch).get("quick_gelu", False))
    if described is None:
        preprocess, why = _agreed(arch, file, quick_gelu)
    else:
        preprocess, why = _preprocess(arch, described), "the file is known"
    return ModelCard(
        title=f"open_clip {arch}, {path.name}",
        family="clip",
        config={"arch": arch, "quick_gelu": quick_gelu},
        preprocess=preprocess,
        weights=Weights(file=str(file)),
        notes=f"images: {_prepared(preprocess)}: {why}{_activation(arch, quick_gelu)}",
    )


def published(arch: str) -> dict[Preprocess, list[str]]:
    """open_clip's pretrained tags of `arch`, by how they prepare images."""
    import open_clip

    ways: dict[Preprocess, list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(arch):
        ways.setdefault(_preprocess(arch, _tag_config(arch, tag)), []).append(tag)
    return ways


def _agreed(arch: str, file: Path, quick_gelu: bool) -> tuple[Preprocess, str]:
    """How images of a checkpoint file are prepared, and why so. Raises as `of_file`."""
    ways = published(arch)
    if len(ways) == 1:
        ((preprocess, tags),) = ways.items()
        return preprocess, f"as of all published tags of {arch} ({_few(tags)})"
    if known := _known_files().get(sha256_file(file)[:8]):
        return _preprocess(arch, known[1]), f"the file's hash is that of {known[0]}"
    if ways:
        choices = "".join(f"\n  {_prepared(way)}: {_few(tags)}" for way, tags in ways.items())
        problem = f"the published tags of {arch} disagree, and its hash is none of theirs:{choices}"
    else:
        problem = f"open_clip has no pretrained tag of {arch}, which would tell"
    likely = max(ways, key=lambda way: len(ways[way]), default=_preprocess(arch, {}))
    whose = f"as of {_few(ways[likely])}" if ways else "open_clip's defaults, in training too"
    text = (
        f"title: {json.dumps(f'{arch}, {file.name}')}\n"
        "family: clip\n"
        f"config: {json.dumps({'arch': arch, 'quick_gelu': quick_gelu})}\n"
        f"preprocess: {_prepared(likely)}  # {whose}\n"
        f"weights: {json.dumps({'file': str(file)}, ensure_ascii=False)}\n"
    )
    raise CardError(
        f"{file} does not say how images are prepared for it: {problem}",
        hint=f"write a card with what it was trained with, and give it with --model mine.yaml:\n{text}",
    )


def _prepared(preprocess: Preprocess) -> str:
    """What tags say about images, as on a card."""
    names = ("size", "resize", "interpolation", "mean", "std")
    values = {name: value for name, value in preprocess.canonical().items() if name in names}
    return (
        "{" + ", ".join(f"{name}: {json.dumps(value).strip(chr(34))}" for name, value in values.items()) + "}"
    )


def _activation(arch: str, quick_gelu: bool) -> str:
    """What is to be said of the activation of a file of `arch`; nothing where open_clip knows but one."""
    import open_clip

    twin = f"{arch}-quickgelu"
    tags = open_clip.list_pretrained_tags_by_model(arch)
    quick = [tag for tag in tags if _tag_config(arch, tag).get("quick_gelu")]
    has_twin = twin in open_clip.list_models()
    if quick_gelu:
        return f"; QuickGELU, as open_clip's {arch} has it"
    if not quick and not has_twin:
        return ""
    trained = f", as its tags {_few(quick)} were," if quick else ""
    other = f"name {twin}" if has_twin else "write a card with quick_gelu: true"
    return (
        f"; GELU, as open_clip's {arch} has it, since a file does not tell: if it was trained with QuickGELU{trained} "
        f"{other}, or it loses points"
    )


def _few(tags: Sequence[str]) -> str:
    return ", ".join(tags[:3]) + (f" and {len(tags) - 3} more" if len(tags) > 3 else "")


class ClipAdapter(Adapter):
    """An open_clip model. `backbone` is the feature before the joint projection (ViT: 768-d for B/32);
    for CLIP's ResNets it is the attention pool's output, which is the joint feature itself."""

    def __init__(self, card: ModelCard, module: Any, arch: str, weights_sha256: str) -> None:
        import open_clip

        self.card = card
        self.module = module
        self.weights_sha256 = weights_sha256
        scale = getattr(module, "logit_scale", None)
        self.logit_scale = 1.0 if scale is None else float(scale.exp().reshape(()))  # an image tower alone
        try:
            self._tokenizer = open_clip.get_tokenizer(arch)
        except (OSError, ValueError, RuntimeError) as error:  # of transformers' own kinds
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise WeightsError(
                f"the tokenizer of {arch} cannot be had ({first[0][:160]})",
                hint="with network, run this again: it is fetched once, and the hub client's cache keeps it",
            ) from None
        self.context_length = int(self._tokenizer.context_length)

    def image_tower(self, space: str) -> nn.Module:
        self.require_space(space)
        visual: nn.Module = self.module.visual
        return visual if space == "joint" else _backbone(self.card, visual)

    def text_tower(self, space: str = "joint") -> nn.Module:
        self.require_text(space)
        return text_tower(self.module, self.context_length)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        import open_clip
        import torch

        ids = self._tokenizer(list(texts))
        if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            # Padding has the id of "!", so the end token (the highest id) tells where a text ends.
            return ids, ids.argmax(dim=1) + 1
        return ids, torch.full((len(ids),), ids.shape[1])


def on_the_hub(spec: str) -> ModelCard:
    """The card of `hf-hub:<owner>/<repo>`: a model in open_clip's own form on the hub.

    Raises:
        CardError: not such a name, or the repository has no open_clip_config.json.
        WeightsError: the hub cannot be reached and the cache has nothing.
    """
    import open_clip
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo = spec.removeprefix(HUB_PREFIX)
    if len(repo.split("/")) != 2:
        raise CardError(f'"{spec}" names no repository', hint=f"write {HUB_PREFIX}<owner>/<repo>")
    try:
        path = Path(hf_hub_download(repo, "open_clip_config.json"))
        weights = _hub_weights(repo)
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{spec} is not in the local cache and cannot be fetched ({str(error).splitlines()[0][:160]})",
            hint=f"with network, run this again; or bring the file and use --model {PREFIX}<arch>@PATH",
        ) from None
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise CardError(
            f"{spec}: {str(error).splitlines()[0]}",
            hint="a repository with open_clip_config.json is needed: open_clip's own form",
        ) from None
    remember("weights", f"{spec}/{path.name}", sha256_file(path), what="sha256 of the settings")
    settings = open_clip.get_model_config(spec)
    described = dict(json.loads(path.read_text(encoding="utf-8")).get("preprocess_cfg", {}))
    unsaid = [name for name in ("mean", "std", "interpolation", "resize_mode") if name not in described]
    return ModelCard(
        title=repo,
        family="clip",
        config={"arch": spec, "quick_gelu": bool(settings.get("quick_gelu", False))},
        preprocess=_preprocess(spec, described),
        weights=Weights(hf=f"{repo}/{weights}"),
        notes=f"its settings do not say {', '.join(unsaid)}: open_clip's defaults were taken"
        if unsaid
        else None,
    )


def _hub_weights(repo: str) -> str:
    """Name of the repository's weights file, the safe one first; downloaded, or in the cache already."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    try:
        hf_hub_download(repo, HF_SAFE_WEIGHTS_NAME)
    except EntryNotFoundError:  # not there, or (offline) not in the cache
        hf_hub_download(repo, HF_WEIGHTS_NAME)
        return str(HF_WEIGHTS_NAME)
    return str(HF_SAFE_WEIGHTS_NAME)


def detect(path: Path, state: Mapping[str, torch.Tensor]) -> tuple[Config, str, dict[str, Any] | None] | None:
    """What a state dict of OpenAI's layout is, why, and its tag's settings where known; None for other layouts.

    Raises:
        WeightsError: several architectures fit, or the activation cannot be known: naming the commands to choose from.
    """
    text = {"token_embedding.weight", "text_projection"} <= state.keys()
    if not text or not any(k.startswith("visual.") for k in state):
        return None
    width, vocabulary = state["text_projection"].shape[-1], len(state["token_embedding.weight"])
    archs = [a for a in matching_archs(state) if _joint(a) == (width, vocabulary)]
    if not archs:
        raise WeightsError(
            f"{path} has the layout of CLIP, but no architecture of open_clip has its sizes",
            hint="add a card with family: clip, or convert it to an architecture that open_clip knows",
        )
    known = _known_files().get(sha256_file(path)[:8])
    if known:
        arch = known[0].partition("@")[0]
        config = Config(arch=arch, quick_gelu=bool(known[1].get("quick_gelu")))
        return config, f"its hash is that of {known[0]}", known[1]
    if len(archs) == 1 and set(state) >= _NOT_WEIGHTS:
        config = Config(arch=archs[0], quick_gelu=True)
        return config, f"OpenAI's own archive ({', '.join(sorted(_NOT_WEIGHTS))})", {}
    import open_clip

    every = set(open_clip.list_models())
    choices = [name for arch in archs for name in (arch, f"{arch}-quickgelu") if name in every]
    if len(choices) == 1:
        settings = open_clip.get_model_config(choices[0])
        config = Config(arch=choices[0], quick_gelu=bool(settings.get("quick_gelu")))
        return config, "its sizes fit no other", None
    raise WeightsError(
        f"{path} is a CLIP checkpoint that fits {', '.join(choices)}: the file does not say which, and the wrong "
        "one loads without a complaint and loses points",
        hint=f"name it: --model {PREFIX}{choices[-1]}@{path} if it was trained with QuickGELU, or "
        f"{PREFIX}{choices[0]}@{path}",
    )


def matching_archs(state: Mapping[str, torch.Tensor]) -> list[str]:
    """open_clip's architectures of OpenAI's form whose towers have the sizes of `state` (`visual.*`, text unprefixed).

    Widths, depths, patches and positions count; the joint width, the vocabulary and the activation do not.
    """
    import open_clip

    sizes = _sizes(state)
    names = [name for name in open_clip.list_models() if not name.endswith("-quickgelu")]
    return [name for name in names if sizes is not None and _config_sizes(name) == sizes]


def _sizes(state: Mapping[str, torch.Tensor]) -> tuple[object, ...] | None:
    """(vision width, layers, patch, image side, text width, layers, context), or None."""
    try:
        text_context, text_width = state["positional_embedding"].shape
        text_layers = count_numbered(state, r"transformer\.resblocks\.(\d+)\.")
        stem = state["visual.conv1.weight"]
        if "visual.class_embedding" in state:
            grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
            patch = stem.shape[2]
            vision: tuple[object, ...] = (
                len(stem),
                count_numbered(state, r"visual\.transformer\.resblocks\.(\d+)\."),
                patch,
            )
            return (*vision, grid * patch, text_width, text_layers, text_context)
        grid = math.isqrt(len(state["visual.attnpool.positional_embedding"]) - 1)
        layers = tuple(count_numbered(state, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
        return (2 * len(stem), layers, None, 32 * grid, text_width, text_layers, text_context)
    except (KeyError, ValueError):
        return None


def _config_sizes(arch: str) -> tuple[object, ...] | None:
    """`_sizes` of one of open_clip's architectures, or None where it is not of OpenAI's form."""
    import open_clip

    settings = open_clip.get_model_config(arch)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    if settings.get("custom_text") or any(k.startswith(("timm_", "hf_")) for k in (*vision, *text)):
        return None
    layers = vision["layers"]
    side = vision.get("image_size", 224)
    return (
        vision["width"],
        tuple(layers) if isinstance(layers, list) else layers,
        None if isinstance(layers, list) else vision["patch_size"],
        side,
        text["width"],
        text["layers"],
        text.get("context_length", 77),
    )


def _check_side(arch: str, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise WeightsError where a file differs from its architecture in the size of images alone."""
    found, wanted = _sizes(state), _config_sizes(arch)
    if found is None or wanted is None or found[3] == wanted[3]:
        return
    if (*found[:3], *found[4:]) == (*wanted[:3], *wanted[4:]):
        others = matching_archs(state)
        raise WeightsError(
            f"{path} was trained on images of {found[3]} px, {arch} takes {wanted[3]} px; position embeddings are not "
            "resized",
            hint=f"name the architecture of that size: {', '.join(others)}"
            if others
            else "open_clip has none; a repository in its form for the hub (hf-hub:<owner>/<repo>) says the size",
        )


def _joint(arch: str) -> tuple[int, int]:
    import open_clip

    settings = open_clip.get_model_config(arch)
    return settings["embed_dim"], settings["text_cfg"].get("vocab_size", 49408)


# ------------------------------------------------------------------- building


def known_arch(arch: str) -> None:
    """Raise CardError unless open_clip has this architecture."""
    import open_clip

    if not arch.startswith(HUB_PREFIX) and arch not in open_clip.list_models():
        raise CardError(
            unknown(
                "open_clip architecture", arch, open_clip.list_models(), listing="open_clip.list_models()"
            )
        )


def _tag_config(arch: str, tag: str) -> dict[str, Any]:
    import open_clip

    described: dict[str, Any] = open_clip.get_pretrained_cfg(arch, tag)
    if not described:
        raise CardError(
            unknown(f"open_clip tag of {arch}", tag, open_clip.list_pretrained_tags_by_model(arch))
        )
    return described


def _agree(model_id: str, config: Config, described: dict[str, Any], what: str) -> None:
    trained_with = bool(described.get("quick_gelu", False))
    if config.quick_gelu != trained_with:
        raise CardError(
            f"{model_id}: {what} was trained with quick_gelu {str(trained_with).lower()}, "
            f"the card says {str(config.quick_gelu).lower()}: scores would be silently low",
            hint=f"set config.quick_gelu: {str(trained_with).lower()}"
            + (f", or use the architecture {config.arch}-quickgelu" if trained_with else ""),
        )


@cache
def _known_files() -> dict[str, tuple[str, dict[str, Any]]]:
    """First 8 hex digits of sha256 → (arch@tag, settings), for every file whose hash open_clip's registry states."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    known = {}
    for arch, tag in list_pretrained():
        described = get_pretrained_cfg(arch, tag)
        url = described.get("url", "")
        if "openaipublic" in url:
            known[url.split("/")[-2][:8]] = (f"{arch}@{tag}", described)
        elif "mlfoundations" in url:
            known[Path(url).stem.split("-")[-1]] = (f"{arch}@{tag}", described)
    return known


def _preprocess(arch: str, described: dict[str, Any]) -> Preprocess:
    """open_clip's evaluation transform of `arch`, with what its pretrained tag says about it."""
    import open_clip

    size = described.get("size") or open_clip.get_model_config(arch)["vision_cfg"].get("image_size", 224)
    sides = list(size)[-2:] if isinstance(size, list | tuple) else [size]
    if len(set(sides)) > 1:
        raise CardError(
            f"{arch} takes images of {' × '.join(map(str, sides))} px; only square images are supported",
            hint="choose a model for square images",
        )
    side = int(sides[-1])
    mode = described.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise CardError(
            f"open_clip's resize mode {mode!r} of {arch} is not supported; allowed: shortest, squash"
        )
    return Preprocess(
        size=side,
        resize=mode,
        interpolation=described.get("interpolation", "bicubic"),
        mean=tuple(described.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(described.get("std", open_clip.OPENAI_DATASET_STD)),
    )


def _build(config: Config) -> Any:
    """The architecture with uninitialised weights where that is possible: they are all about to be loaded."""
    import open_clip
    import torch

    settings = open_clip.get_model_config(config.arch)
    settings.pop("custom_text", None)
    settings["quick_gelu"] = config.quick_gelu
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = not any(
            k.startswith(("hf_", "timm_")) for part in ("vision_cfg", "text_cfg") for k in settings[part]
        )
        if plain and open_clip.get_model_config(config.arch).get("custom_text") is None:
            with torch.device("meta"):
                module = open_clip.CLIP(**settings)
            # The one buffer that no checkpoint holds: the causal mask, built again off the meta device.
            module.attn_mask = torch.full((module.context_length,) * 2, float("-inf")).triu_(1)
            return module
        try:
            return random_model(config.arch, quick_gelu=config.quick_gelu)
        except (OSError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{config.arch} cannot be built: {error}") from error


def random_model(arch: str, *, quick_gelu: bool = False) -> Any:
    """open_clip's model `arch` with random weights from torch's generator, without its warnings about that."""
    import open_clip

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(arch, pretrained=None, load_weights=False, force_quick_gelu=quick_gelu)
    finally:
        logging.disable(level)


def _download(model: LoadedModel, arch: str, tag: str) -> Path:
    import open_clip
    from open_clip.pretrained import download_pretrained

    described = _tag_config(arch, tag)
    try:
        return Path(download_pretrained(described))
    except ClipbenchError:
        raise
    except Exception as error:  # the hub client raises many kinds, all meaning: not to be had
        first = str(error).strip().splitlines()
        quick = f"{arch}-quickgelu"
        named = quick if described.get("quick_gelu") and quick in open_clip.list_models() else arch
        raise WeightsError(
            f"{model.id}: the weights {arch}@{tag} are not in the local cache and cannot be fetched "
            f"({first[0][:160] if first else type(error).__name__})",
            hint=f"with network, run this again; without, bring the file and use --model {PREFIX}{named}@PATH",
        ) from None


# --------------------------------------------------------------------- towers


def _backbone(card: ModelCard, visual: Any) -> nn.Module:
    """The image tower without its joint projection."""
    import open_clip.transformer
    import torch
    from open_clip.modified_resnet import ModifiedResNet

    if isinstance(visual, ModifiedResNet):
        whole: nn.Module = visual
        return whole
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise NotApplicable(
            f"{card.title}: features before the projection are not known for {type(visual).__name__}"
        )

    class Backbone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = visual

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.visual._pool(self.visual.transformer(self.visual._embeds(images)))[0]
            return pooled

    return Backbone()


def text_tower(model: Any, context_length: int, tokens: nn.Module | None = None) -> nn.Module:
    """Token ids → joint features, exact for ids cut at the longest real token where the tower is causal.

    With `tokens`, a projection of single tokens: all `context_length` positions, padding included, flattened.
    """
    import torch
    from open_clip.transformer import TextTransformer, text_global_pool

    tower = getattr(model, "text", model)
    causal = (
        isinstance(tower, TextTransformer | type(model))
        and hasattr(tower, "transformer")
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
    )
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    eos = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))

    class CausalText(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = torch.nn.ModuleDict(
                {name: getattr(tower, name) for name in ("token_embedding", "transformer", "ln_final")}
            )
            self.positions = tower.positional_embedding
            self.projection = tower.text_projection if tokens is None else tokens
            self.mask: torch.Tensor
            self.register_buffer("mask", tower.attn_mask, persistent=False)

        def hidden(self, ids: torch.Tensor) -> torch.Tensor:
            length = ids.shape[1]
            x = self.tower["token_embedding"](ids) + self.positions[:length]
            x = self.tower["transformer"](x, attn_mask=self.mask[:length, :length])
            normed: torch.Tensor = self.tower["ln_final"](x)
            return normed

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = text_global_pool(self.hidden(ids), ids, pool, eos_token_id=eos)
            if self.projection is None:
                return pooled
            if isinstance(self.projection, torch.nn.Parameter):
                product: torch.Tensor = pooled @ self.projection
                return product
            projected: torch.Tensor = self.projection(pooled)
            return projected

    class TextTokens(CausalText):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.hidden(torch.nn.functional.pad(ids, (0, context_length - ids.shape[1])))
            projected: torch.Tensor = self.projection(hidden)
            return projected.flatten(1)

    class FullText(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            padding = context_length - ids.shape[1]
            features: torch.Tensor = self.model.encode_text(torch.nn.functional.pad(ids, (0, padding)))
            return features

    if tokens is not None:
        return TextTokens()
    return CausalText() if causal and pool in ("argmax", "eos") else FullText()
