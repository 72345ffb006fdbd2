"""open_clip's models: built without weights, and their towers alone, as the encoder calls them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from clipbench.errors import NotApplicable, WeightsError, first_line
from clipbench.models.weights.library import complete_library, library
from clipbench.models.weights.reading import without_values

if TYPE_CHECKING:
    import torch
    from torch import nn

#: what open_clip's `timm_pool` does; of others the trunk has its own way
_POOLS: Final = {
    "avg": " (mean over places)",
    "token": " (class token)",
    "map": " (attention pool)",
    "abs_attn": " (attention pool)",
    "rot_attn": " (attention pool)",
}


def build(arch: str, *, quick_gelu: bool) -> Any:
    """The architecture with uninitialised weights where that is possible: they are all about to be loaded.

    Its towers give joint features alone, also where open_clip's give tokens beside them (CoCa).

    Raises:
        WeightsError: its text tower is one of transformers whose settings cannot be had, or its own settings are wrong.
    """
    open_clip = library()
    import torch

    settings = open_clip.get_model_config(arch)
    custom = settings.pop("custom_text", False)
    settings["quick_gelu"] = quick_gelu
    language = settings["text_cfg"].get("hf_model_name")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not (custom or language or settings["vision_cfg"].get("timm_model_name")):
                with without_values():
                    module = open_clip.CLIP(**settings)
                if module.attn_mask is not None:
                    # The one buffer that no checkpoint holds: the causal mask, built again off the meta device.
                    module.attn_mask = torch.full((module.context_length,) * 2, float("-inf")).triu_(1)
            else:
                module = random_model(arch, quick_gelu=quick_gelu)
        except OSError as error:
            raise WeightsError(
                f"{arch} cannot be built: the settings of its text tower, {language}, cannot be had "
                f"({first_line(error)})",
                hint=bring(str(language)),
            ) from None
        except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, ImportError) as error:
            raise WeightsError(
                f"{arch} cannot be built: {first_line(error)}",
                hint="open_clip refuses its settings, or one of the libraries that it builds towers with",
            ) from error
    for tower in (module.visual, getattr(module, "text", module)):
        if hasattr(tower, "output_tokens"):
            tower.output_tokens = False
    return module


def bring(repository: str) -> str:
    """What to type for the small files of a language model or its tokenizer that are not on this machine."""
    cached = f"models--{repository.replace('/', '--')}"
    return (
        "with network, run this again: it is fetched once, and the hub client's cache keeps it; or fetch it elsewhere, "
        f"hf download {repository} --include '*.json' --include '*.model' --include '*.txt', and bring {cached} of "
        "the cache there"
    )


def random_model(arch: str, *, quick_gelu: bool = False) -> Any:
    """open_clip's model `arch` with random weights from torch's generator, without its warnings about that.

    Nothing is fetched but the settings of a text tower of transformers.
    """
    open_clip = complete_library()

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(
            arch, pretrained=None, load_weights=False, pretrained_text=False, force_quick_gelu=quick_gelu
        )
    finally:
        logging.disable(level)


def backbone(title: str, visual: Any) -> nn.Module:
    """The image tower without its joint projection: images to what `described_backbone` says, [B, D].

    Raises:
        NotApplicable: a tower of another kind.
    """
    import open_clip.model
    import open_clip.transformer
    import torch
    from open_clip.modified_resnet import ModifiedResNet

    if isinstance(visual, ModifiedResNet):
        whole: nn.Module = visual
        return whole

    class OfVit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = visual

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.visual._pool(self.visual.transformer(self.visual._embeds(images)))[0]
            return pooled

    class OfTimm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = visual.trunk
            self.pool = getattr(visual.head, "pool", torch.nn.Identity())
            self.projects = visual.trunk.num_classes > 0  # in the place of its classifier

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.projects:
                states = self.trunk.forward_features(images)
                before: torch.Tensor = self.trunk.forward_head(states, pre_logits=True)
                return before
            pooled: torch.Tensor = self.pool(self.trunk(images))
            return pooled

    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OfVit()
    if isinstance(visual, open_clip.model.TimmModel):
        return OfTimm()
    raise NotApplicable(f"{title}: features before the projection are not known for {type(visual).__name__}")


def described_backbone(vision: Mapping[str, Any]) -> str:
    """What `backbone` gives of an architecture whose `vision_cfg` is this, in a few words."""
    if (arch := vision.get("timm_model_name")) is not None:
        pool, projection = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
        told = f"pooled output of timm's {arch}{_POOLS.get(pool, '')}"
        joint = projection == "none" or (pool in ("abs_attn", "rot_attn") and not projection)
        return f"{told}: the joint feature itself" if joint else told
    if isinstance(vision.get("layers"), list | tuple):
        return "output of the attention pool, which is the joint feature itself"
    if vision.get("attentional_pool"):
        return "first output of the attentional pool, before the projection"
    pooled = "mean of the patch tokens" if vision.get("pool_type") == "avg" else "class token"
    norm = ", then the last LayerNorm" if vision.get("final_ln_after_pool") else " after the last LayerNorm"
    return f"{pooled}{norm}, before the projection"


def text_tower(model: Any, context_length: int, tokens: nn.Module | None = None) -> nn.Module:
    """Token ids → joint features, exact for ids cut at the longest real token.

    A tower that is not causal, or that reads what stands at the end (CoCa), gets them padded with 0 again.

    With `tokens`, a projection of single tokens: all `context_length` positions, padding included, flattened.
    """
    import torch
    from open_clip.transformer import TextTransformer, text_global_pool

    own = hasattr(model, "text")
    tower = model.text if own else model
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
            self.model = tower

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            whole = torch.nn.functional.pad(ids, (0, context_length - ids.shape[1]))
            features: torch.Tensor = self.model(whole) if own else self.model.encode_text(whole)
            return features

    if tokens is not None:
        return TextTokens()
    return CausalText() if causal and pool in ("argmax", "eos") else FullText()
