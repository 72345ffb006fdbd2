"""Attention layers of open_clip, torchvision and timm with their weights written out, for one query of each image:
the first token's, or that of an attention pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: transformer blocks: class name → name of its attention
BLOCKS: Final = {
    "ResidualAttentionBlock": "attn",
    "EncoderBlock": "self_attention",
    "Block": "attn",
    "EvaBlock": "attn",
    "EvaBlockPostNorm": "attn",
    "RelPosBlock": "attn",
    "ResPostRelPosBlock": "attn",
}
_TIMMS: Final = (
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.eva.EvaAttention",
    "timm.models.vision_transformer_relpos.RelPosAttention",
)


class WrittenOut(NamedTuple):
    """One query's attention in B images.

    Attributes:
        weights: [B, heads, L], over the tokens; each row sums to 1.
        values: [B, heads, L, d].
        after: what the layer makes of the values mixed by the weights, [B, heads × d] to [B, D].
    """

    weights: Tensor
    values: Tensor
    after: Callable[[Tensor], Tensor]

    def output(self, weights: Tensor) -> Tensor:
        """The layer's output of this query, [B, D], had its attention been `weights`."""
        return self.after(torch.einsum("bhl,bhld->bhd", weights, self.values).flatten(1))


def is_known(layer: nn.Module) -> bool:
    """Whether `written_out` computes what a block's attention `layer` does."""
    if isinstance(layer, nn.MultiheadAttention):
        return layer.in_proj_weight is not None and layer.bias_k is None
    return f"{type(layer).__module__}.{type(layer).__name__}" in _TIMMS


def is_known_pool(layer: Any) -> bool:
    """Whether `written_out` computes the first (timm's: the only) query of the attention pool `layer`."""
    if type(layer).__name__ == "AttentionPoolLatent":  # timm's
        return int(layer.latent_len) == 1
    return type(layer).__name__ == "AttentionalPooler"  # open_clip's


def written_out(layer: Any, tokens: Tensor, given: Mapping[str, Any]) -> WrittenOut:
    """The attention of the first query in `layer`, one that `is_known` or `is_known_pool`.

    Args:
        tokens: [B, L, D], the layer's input.
        given: what the layer is called with beside them, by name: rotary embeddings, biases of relative places.
    """
    name = type(layer).__name__
    if isinstance(layer, nn.MultiheadAttention):
        return _of_torch(layer, tokens[:, :1], tokens)
    if name == "AttentionalPooler":
        query = layer.ln_q(layer.query[:1])
        return _of_torch(layer.attn, query.expand(len(tokens), 1, -1), layer.ln_k(tokens))
    if name == "AttentionPoolLatent":
        return _of_latent(layer, tokens)
    return _of_timm(layer, tokens, given)


def _of_torch(layer: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> WrittenOut:
    """Of query [B, 1, D]."""
    if layer.in_proj_weight is not None:
        matrices = layer.in_proj_weight.chunk(3)
    else:
        assert layer.q_proj_weight is not None
        assert layer.k_proj_weight is not None
        assert layer.v_proj_weight is not None
        matrices = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    pairs = zip((query, tokens, tokens), matrices, biases, strict=True)
    queries, keys, values = (_heads(F.linear(x, w, b), layer.num_heads) for x, w, b in pairs)
    return WrittenOut(_weights(queries, keys), values, layer.out_proj)


def _of_latent(layer: Any, tokens: Tensor) -> WrittenOut:
    if layer.pos_embed is not None:
        tokens = tokens + layer.pos_embed
    queries = _heads(layer.q(layer.latent.expand(len(tokens), -1, -1)), layer.num_heads)
    keys, values = (_heads(x, layer.num_heads) for x in layer.kv(tokens).chunk(2, dim=2))

    def after(mixed: Tensor) -> Tensor:
        found: Tensor = layer.proj(mixed)
        return found if layer.mlp is None else found + layer.mlp(layer.norm(found))

    return WrittenOut(_weights(layer.q_norm(queries), layer.k_norm(keys)), values, after)


def _of_timm(layer: Any, tokens: Tensor, given: Mapping[str, Any]) -> WrittenOut:
    if layer.qkv is None:  # three matrices; of keys and values fewer heads, perhaps
        groups = layer.num_heads // getattr(layer, "num_kv_heads", layer.num_heads)
        queries = _heads(layer.q_proj(tokens), layer.num_heads)
        keys = _heads(layer.k_proj(tokens), layer.num_heads // groups)
        values = _heads(layer.v_proj(tokens), layer.num_heads // groups)
    else:
        groups, projected = 1, layer.qkv(tokens)
        if getattr(layer, "q_bias", None) is not None:  # EVA's, which has none of keys
            projected = projected + torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
        queries, keys, values = (_heads(x, layer.num_heads) for x in projected.chunk(3, dim=2))
    queries, keys = layer.q_norm(queries[:, :, :1]), layer.k_norm(keys)
    if (rope := given.get("rope")) is not None:
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        first = layer.num_prefix_tokens  # they are not rotated, and neither is the first token's query
        rotated = apply_rot_embed_cat(keys[:, :, first:], rope, half=layer.rotate_half)
        keys = torch.cat([keys[:, :, :first], rotated], dim=2)
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    bias = given.get("shared_rel_pos")
    if getattr(layer, "rel_pos", None) is not None:
        bias = layer.rel_pos.get_bias()
    gate = getattr(layer, "gate", None)
    norm = getattr(layer, "norm", nn.Identity())

    def after(mixed: Tensor) -> Tensor:
        mixed = norm(mixed)
        found: Tensor = layer.proj(mixed if gate is None else mixed * gate(tokens[:, 0]).sigmoid())
        return found

    return WrittenOut(_weights(queries, keys, bias), values, after)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, heads × d] as [B, heads, L, d]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _weights(queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the first of queries [B, heads, ., d] attends to among keys [B, heads, L, d]: [B, heads, L]."""
    logits = queries[:, :, :1] @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
    if bias is not None:  # [1, heads, L, L]
        logits = logits + bias[:, :, :1]
    return logits.softmax(dim=3)[:, :, 0]
