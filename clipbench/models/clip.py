"""CLIP through open_clip: any of its architectures, with a pretrained tag or a local checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field

from clipbench.cards.base import Strict, fingerprint
from clipbench.cards.model import ModelCard, Preprocess, Texts, Weights
from clipbench.data.digests import sha256_file
from clipbench.errors import CardError, ClipbenchError, WeightsError, first_line
from clipbench.models.adapter import Adapter, Family, Lengths, ModelEntry
from clipbench.models.towers.open_clip import backbone, bring, build, described_backbone, text_tower
from clipbench.models.weights.key_maps import clip_text
from clipbench.models.weights.library import FOLDER_PREFIX, HUB_PREFIX, SETTINGS, architecture, library
from clipbench.models.weights.open_clip import (
    check_side,
    joint_sizes,
    known_arch,
    known_files,
    matching_archs,
    preprocess_of,
    published,
    tag_settings,
    texts_of,
    texts_of_settings,
)
from clipbench.models.weights.open_clip_settings import (
    check_settings,
    files_of,
    in_folder,
    on_the_hub,
    pin_settings,
    small_files,
)
from clipbench.models.weights.reading import load_strict, read_state_dict
from clipbench.models.weights.resolve import pin, resolve, verify
from clipbench.utils.cache import say
from clipbench.utils.parsing import exists, expanded

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX = "open_clip:"
#: numbers from 0 upwards, which transformers kept beside the weights before version 4.31
_COUNTED: Final = "text.transformer.embeddings.position_ids"
#: what OpenAI's own archives hold beside the weights
_NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size"})


class Config(Strict):
    """`arch` is open_clip's name, `hf-hub:owner/repo` or `local-dir:folder`; `quick_gelu`: QuickGELU in the towers
    instead of GELU.

    OpenAI's checkpoints, and some of LAION's, were trained with QuickGELU: with GELU they load without a
    complaint and lose points. For a tag and for every file whose hash open_clip knows, a card that says
    otherwise is refused.
    """

    later: ClassVar = ("resize_positions", "settings")

    arch: str
    quick_gelu: bool = Field(description="x·sigmoid(1.702x) as in OpenAI's code, instead of GELU")
    resize_positions: bool = Field(
        False, description="interpolate position embeddings of another size, as open_clip does"
    )
    settings: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="sha256 of a folder's open_clip_config.json"
    )


def load(model: ModelEntry) -> Adapter:
    """The adapter of a `family: clip` card.

    Raises:
        CardError: unknown architecture or tag, or a `quick_gelu` that the checkpoint was not trained with.
        WeightsError: the checkpoint is missing, corrupt, or does not fit.
    """
    config = Config.model_validate(model.card.config)
    known_arch(config.arch)
    if config.arch.startswith(FOLDER_PREFIX):
        check_settings(model.id, config.arch, config.settings)
    if config.arch.startswith(HUB_PREFIX):
        pin_settings(config.arch)
    tag = model.card.weights.open_clip
    if tag is not None:
        _agree(model.id, config, tag_settings(config.arch, tag), f"the tag {tag}")
    path, digest = weights_file(model)
    if tag is None:
        known = known_files().get(digest[:8])
        if known:
            _agree(model.id, config, known[1], f"this file ({known[0]})")
    state = read_state_dict(path)
    if set(state) >= _NOT_WEIGHTS:
        _agree(model.id, config, {"quick_gelu": True}, "this file, an archive of OpenAI's own form,")
    if not config.resize_positions:
        check_side(config.arch, clip_text(state, custom=False), path)
    module = build(config.arch, quick_gelu=config.quick_gelu)
    wanted = module.state_dict()
    state = {key: tensor for key, tensor in state.items() if key not in _NOT_WEIGHTS}
    state = clip_text(state, custom="text.token_embedding.weight" in wanted)
    if config.resize_positions:
        _resize_positions(state, module, path)
    # of training with SigLIP's loss, by which any architecture can be trained
    bias = state["logit_bias"] if "logit_bias" in wanted else state.pop("logit_bias", None)
    left_out = load_strict(module, state, path, dropped=() if _COUNTED in wanted else (_COUNTED,))
    adapter = ClipAdapter(model.card, module, config.arch, digest)
    adapter.logit_bias = None if bias is None else float(bias.reshape(()))
    adapter.files, adapter.left_out = (path, *small_files(config.arch)), left_out
    return adapter


def _resize_positions(state: dict[str, torch.Tensor], module: Any, path: Path) -> None:
    """Bring position embeddings in `state` to `module`'s sizes: images' bicubic with antialiasing, texts' linear.

    Raises:
        WeightsError: images' are of no square grid, or have another width.
    """
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    names = [
        key
        for key in state
        if key.removeprefix("text.") in ("positional_embedding", "visual.positional_embedding")
    ]
    before = {name: state[name].shape for name in names}
    state |= {name: state[name].float() for name in names}
    try:
        resize_pos_embed(state, module)
        resize_text_pos_embed(state, module)
    except (RuntimeError, AssertionError) as error:
        raise WeightsError(f"{path}: its position embeddings cannot be resized: {error}") from None
    for name, shape in before.items():
        if state[name].shape != shape:
            say(
                f"{path}: {name} is resized from {shape[0]} to {len(state[name])} positions, as the card asks"
            )


def weights_file(model: ModelEntry) -> tuple[Path, str]:
    """The file of a card, its pretrained tag's where it names one, downloaded where missing, and its sha256 (hex).

    Raises:
        CardError: unknown tag.
        WeightsError: it cannot be fetched, or is not the card's.
        ClipbenchError: its hash is not the one recorded at first use.
    """
    arch, weights = Config.model_validate(model.card.config).arch, model.card.weights
    if weights.open_clip is None:
        return resolve(model)
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
    described = tag_settings(arch, source)
    return ModelCard(
        title=f"open_clip {arch}, {source}",
        family="clip",
        config={"arch": arch, "quick_gelu": bool(described.get("quick_gelu", False))},
        preprocess=preprocess_of(arch, described),
        text=texts_of(arch),
        weights=Weights(open_clip=source),
    )


def named_files(spec: str) -> Sequence[Path] | None:
    """See `Family`."""
    if not spec.startswith(PREFIX):
        return files_of(spec)
    source = expanded(spec.partition("@")[2])
    return (source,) if exists(source) else ()


def of_file(arch: str, path: Path, described: dict[str, Any] | None = None) -> ModelCard:
    """The card of a checkpoint file of open_clip's `arch`; its notes say what was taken for granted.

    Images are prepared as all published tags of the architecture prepare them, or as `described` says: the settings of
    a tag, where the file is known. QuickGELU cannot be seen in weights: the architecture's name decides, as in
    open_clip.

    Raises:
        CardError: the tags disagree, or there is none: with the choices, and the card to write.
        WeightsError: there is no such file.
    """
    open_clip = library()

    file = path.resolve()
    if not file.is_file():
        raise WeightsError(f"no checkpoint at {file}", hint="put the file there, or correct its path")
    quick_gelu = bool(open_clip.get_model_config(arch).get("quick_gelu", False))
    if described is None:
        preprocess, why = _agreed(arch, file, quick_gelu)
    else:
        preprocess, why = preprocess_of(arch, described), "the file is known"
    return ModelCard(
        title=f"open_clip {arch}, {path.name}",
        family="clip",
        config={"arch": arch, "quick_gelu": quick_gelu},
        preprocess=preprocess,
        text=texts_of(arch),
        weights=Weights(file=str(file)),
        notes=f"images: {_prepared(preprocess)}: {why}{_activation(arch, quick_gelu)}",
    )


def _agreed(arch: str, file: Path, quick_gelu: bool) -> tuple[Preprocess, str]:
    """How images of a checkpoint file are prepared, and why so. Raises as `of_file`."""
    ways = published(arch)
    if len(ways) == 1:
        ((preprocess, tags),) = ways.items()
        return preprocess, f"as of all published tags of {arch} ({_few(tags)})"
    if known := known_files().get(sha256_file(file)[:8]):
        return preprocess_of(arch, known[1]), f"the file's hash is that of {known[0]}"
    if ways:
        choices = "".join(f"\n  {_prepared(way)}: {_few(tags)}" for way, tags in ways.items())
        problem = f"the published tags of {arch} disagree, and its hash is none of theirs:{choices}"
    else:
        problem = f"open_clip has no pretrained tag of {arch}, which would tell"
    likely = max(ways, key=lambda way: len(ways[way]), default=preprocess_of(arch, {}))
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
    names = ("size", "resize", "fill", "interpolation", "mean", "std")
    values = {name: value for name, value in preprocess.canonical().items() if name in names}
    return (
        "{" + ", ".join(f"{name}: {json.dumps(value).strip(chr(34))}" for name, value in values.items()) + "}"
    )


def _activation(arch: str, quick_gelu: bool) -> str:
    """What is to be said of the activation of a file of `arch`; nothing where open_clip knows but one."""
    open_clip = library()

    twin = f"{arch}-quickgelu"
    tags = open_clip.list_pretrained_tags_by_model(arch)
    quick = [tag for tag in tags if tag_settings(arch, tag).get("quick_gelu")]
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
    """An open_clip model. `backbone` is the feature before the joint projection; see `backbone_is`."""

    def __init__(self, card: ModelCard, module: Any, arch: str, weights_sha256: str) -> None:
        self.card = card
        self.module = module
        self._arch = arch
        self.weights_sha256 = weights_sha256
        scale = getattr(module, "logit_scale", None)
        self.logit_scale = 1.0 if scale is None else float(scale.exp().reshape(()))  # an image tower alone
        own, stated = texts_of(arch), card.text or Texts()
        asked = {name: value for name, value in stated if value is not None and value != getattr(own, name)}
        if "strip_sep_token" in asked and own.strip_sep_token is None:
            raise CardError(f"{card.title}: text.strip_sep_token: the tokenizer of {arch} has no such token")
        self.context_length = int(own.context_length or 0)
        if asked.get("context_length", 0) > self.context_length:
            raise CardError(
                f"{card.title}: text.context_length: {asked['context_length']} tokens are more than the "
                f"{self.context_length} of {arch}"
            )
        self._asked = asked
        self._tokenizer = _tokenizer(arch, asked)

    def image_tower(self, space: str) -> nn.Module:
        self.require_space(space)
        visual: nn.Module = self.module.visual
        return visual if space == "joint" else backbone(self.card.title, visual)

    def text_tower(self, space: str = "joint") -> nn.Module:
        self.require_text(space)
        return text_tower(self.module, self.context_length)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        open_clip = library()
        import torch

        ids = self._tokenizer(list(texts))
        if (beyond := self.context_length - ids.shape[1]) > 0:
            padding = getattr(getattr(self._tokenizer, "tokenizer", None), "pad_token_id", 0)
            ids = torch.nn.functional.pad(ids, (0, beyond), value=padding)
        if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            # Padding has the id of "!", so the end token (the highest id) tells where a text ends.
            return ids, ids.argmax(dim=1) + 1
        return ids, torch.full((len(ids),), ids.shape[1])

    def lengths(self, texts: Sequence[str]) -> Lengths | None:
        open_clip, tokenizer = library(), self._tokenizer
        longest = int(getattr(tokenizer, "context_length", None) or self.context_length)
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            return Lengths.within([len(tokenizer.encode(text)) + 2 for text in texts], longest)
        if not isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
            return None
        special = tokenizer.tokenizer_mode != "clips"  # which puts three of its own around a text
        cleaned = [tokenizer.clean_fn(text) for text in texts]
        ids = tokenizer.tokenizer(cleaned, truncation=False, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return Lengths.within([len(own) + (0 if special else 3) for own in ids], longest)

    @property
    def text_fingerprint(self) -> str:
        """Of what the card has done to texts in another way than its architecture, and of a folder's tokenizer."""
        files = {path.name: sha256_file(path) for path in small_files(self._arch)}
        return fingerprint({"text": self._asked, "files": files}) if self._asked or files else ""


def backbone_is(card: ModelCard) -> str | None:
    """See `Family`; of open_clip's architecture that the card names."""
    settings = architecture(Config.model_validate(card.config).arch)
    return None if settings is None else described_backbone(settings["vision_cfg"])


def _tokenizer(arch: str, asked: dict[str, Any]) -> Any:
    """open_clip's tokenizer of `arch`, with what is asked of it otherwise.

    Raises:
        WeightsError: it cannot be had.
    """
    named = (library().get_model_config(arch)["text_cfg"]).get("hf_tokenizer_name")
    try:
        return library().get_tokenizer(arch, **asked)
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        LookupError,
        ImportError,
    ) as error:  # of transformers
        source, hint = named, bring(str(named))
        if arch.startswith(FOLDER_PREFIX):
            source, hint = "the folder", f"put the tokenizer's files beside {SETTINGS}: tokenizer.json, …"
        raise WeightsError(
            f"the tokenizer of {arch}, {source}, cannot be had ({first_line(error)})", hint=hint
        ) from None


def texts(card: ModelCard) -> Texts | None:
    """See `Family`; of open_clip's architecture that the card names, with what the card says otherwise."""
    settings = architecture(Config.model_validate(card.config).arch)
    return None if settings is None else texts_of_settings(settings, card.text)


def _identified(
    path: Path, state: Mapping[str, torch.Tensor]
) -> tuple[Config, str, dict[str, Any] | None] | None:
    """What a state dict of OpenAI's layout is, why, and its tag's settings where known; None for other layouts.

    Raises:
        WeightsError: several architectures fit, or the activation cannot be known: naming the commands to choose from.
    """
    text = {"token_embedding.weight", "text_projection"} <= state.keys()
    if not text or not any(k.startswith("visual.") for k in state):
        return None
    width, vocabulary = state["text_projection"].shape[-1], len(state["token_embedding.weight"])
    archs = [a for a in matching_archs(state) if joint_sizes(a) == (width, vocabulary)]
    if not archs:
        raise WeightsError(
            f"{path} has the layout of CLIP, but no architecture of open_clip has its sizes",
            hint="add a card with family: clip, or convert it to an architecture that open_clip knows",
        )
    known = known_files().get(sha256_file(path)[:8])
    if known:
        arch = known[0].partition("@")[0]
        config = Config(arch=arch, quick_gelu=bool(known[1].get("quick_gelu")))
        return config, f"its hash is that of {known[0]}", known[1]
    if len(archs) == 1 and set(state) >= _NOT_WEIGHTS:
        config = Config(arch=archs[0], quick_gelu=True)
        return config, f"OpenAI's own archive ({', '.join(sorted(_NOT_WEIGHTS))})", {}
    open_clip = library()

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


def detect(path: Path, state: Mapping[str, torch.Tensor]) -> ModelCard | None:
    """The card of a checkpoint file in OpenAI's layout; None for other files. Raises as `_identified` and `of_file`."""
    plain = clip_text(dict(state), custom=False)
    if plain.keys() != state.keys() and not matching_archs(plain):
        return None  # a custom text model of another form
    found = _identified(path, plain)
    if found is None:
        return None
    config, why, described = found
    card = of_file(config.arch, path, described)
    notes = f"detected: CLIP, {config.arch}: {why}" + ("" if described is not None else f"; {card.notes}")
    return card.model_copy(update={"config": config.canonical(), "notes": notes})


def _agree(model_id: str, config: Config, described: dict[str, Any], what: str) -> None:
    trained_with = bool(described.get("quick_gelu", False))
    if config.quick_gelu != trained_with:
        raise CardError(
            f"{model_id}: {what} was trained with quick_gelu {str(trained_with).lower()}, "
            f"the card says {str(config.quick_gelu).lower()}: scores would be silently low",
            hint=f"set config.quick_gelu: {str(trained_with).lower()}"
            + (f", or use the architecture {config.arch}-quickgelu" if trained_with else ""),
        )


def _download(model: ModelEntry, arch: str, tag: str) -> Path:
    open_clip = library()
    from open_clip.pretrained import download_pretrained

    described = tag_settings(arch, tag)
    try:
        return Path(download_pretrained(described))
    except ClipbenchError:
        raise
    except Exception as error:  # the hub client raises many kinds, all meaning: not to be had
        quick = f"{arch}-quickgelu"
        named = quick if described.get("quick_gelu") and quick in open_clip.list_models() else arch
        raise WeightsError(
            f"{model.id}: the weights {arch}@{tag} are not in the local cache and cannot be fetched "
            f"({first_line(error)})",
            hint=f"with network, run this again; without, bring the file and use --model {PREFIX}{named}@PATH",
        ) from None


FAMILY: Final = Family(
    version=1,
    config=Config,
    load=load,
    weights_file=weights_file,
    detect=detect,
    backbone_is=backbone_is,
    texts=texts,
    named={PREFIX: ad_hoc, HUB_PREFIX: on_the_hub, FOLDER_PREFIX: in_folder},
    named_files=named_files,
)
