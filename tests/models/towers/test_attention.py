"""Attention written out: the libraries' own layers give the same outputs, and the same weights where they show them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from open_clip.transformer import AttentionalPooler
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.pos_embed_rel import RelPosMlp
from timm.models.eva import EvaAttention
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn

from clipbench.models.towers.attention import is_known, is_known_pool, written_out

LAYER_NORM: Any = partial(nn.LayerNorm, eps=1e-5)
ROPE: dict[str, Any] = {"num_prefix_tokens": 1, "norm_layer": LAYER_NORM}
BIAS: Any = partial(RelPosMlp, window_size=(3, 3), prefix_tokens=1)

LAYERS: dict[str, Any] = {
    "torch": lambda: nn.MultiheadAttention(32, 4, batch_first=True),
    "torch, no bias": lambda: nn.MultiheadAttention(32, 4, batch_first=True, bias=False),
    "timm": lambda: Attention(32, 4, qkv_bias=True),
    "timm, norms": lambda: Attention(32, 4, qk_norm=True, scale_norm=True, norm_layer=LAYER_NORM),
    "timm, gate, wide heads": lambda: Attention(32, 4, gated=True, attn_head_dim=12),
    "rope": lambda: AttentionRope(32, 4, **ROPE, qk_norm=True, scale_norm=True, gated=True),
    "rope, halves": lambda: AttentionRope(32, 4, **ROPE, rotate_half=True, qkv_fused=False),
    "rope, fewer keys": lambda: AttentionRope(32, 4, **ROPE, qkv_fused=False, num_kv_heads=2),
    "rope, registers": lambda: AttentionRope(32, 4, **ROPE | {"num_prefix_tokens": 4}),
    "eva": lambda: EvaAttention(32, 4, **ROPE),
    "eva, bias apart": lambda: EvaAttention(32, 4, **ROPE, qkv_bias_separate=True, scale_norm=False),
    "eva, no bias": lambda: EvaAttention(32, 4, **ROPE, qkv_bias=False, gated=True),
    "eva02": lambda: EvaAttention(32, 4, **ROPE, qkv_fused=False, qk_norm=True),
    "relpos": lambda: RelPosAttention(32, 4, qkv_bias=True, qk_norm=True),
    "relpos, own": lambda: RelPosAttention(32, 4, rel_pos_cls=BIAS),
}
POOLS: dict[str, Any] = {
    "latent": lambda: AttentionPoolLatent(32, num_heads=4, norm_layer=LAYER_NORM),
    "latent, norms, places": lambda: AttentionPoolLatent(
        32, num_heads=4, qk_norm=True, norm_layer=LAYER_NORM, pos_embed="abs", feat_size=10
    ),
    "latent alone": lambda: AttentionPoolLatent(
        32, out_features=0, num_heads=4, q_proj=False, pool_type="avg"
    ),
    "open_clip": lambda: AttentionalPooler(32, 32, n_head=4, n_queries=1),
    "open_clip, narrow": lambda: AttentionalPooler(16, 32, n_head=4, n_queries=3),
}


def given(name: str, layer: Any) -> dict[str, Any]:
    """What a block gives the layer beside 10 tokens."""
    if name.startswith(("rope", "eva")) and name != "eva, bias apart":
        rotated = 10 - layer.num_prefix_tokens
        return {"rope": torch.randn(rotated, 16)}  # sines and cosines of 8 places of a head
    return {"shared_rel_pos": torch.randn(1, 4, 10, 10)} if name == "relpos" else {}


def made(make: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = make().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer, torch.randn(3, 10, 32)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_of_the_first_token(name: str) -> None:
    layer, tokens = made(LAYERS[name])
    assert is_known(layer)
    more = given(name, layer)
    whole = layer(*[tokens] * 3)[0] if name.startswith("torch") else layer(tokens, **more)
    found = written_out(layer, tokens, more)
    torch.testing.assert_close(found.output(found.weights), whole[:, 0], rtol=1e-4, atol=1e-5)
    assert found.weights.shape == (3, 4, 10)
    assert found.weights.std() > 0.02
    if name.startswith("torch"):
        wanted = layer(*[tokens] * 3, average_attn_weights=False)[1][:, :, 0]
    else:
        shown: list[Tensor] = []
        layer.fused_attn = False
        layer.attn_drop.register_forward_hook(lambda module, inputs, output: shown.append(output))
        layer(tokens, **more)
        wanted = shown[0][:, :, 0]
    torch.testing.assert_close(found.weights, wanted, rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", POOLS)
def test_of_a_pools_query(name: str) -> None:
    layer, tokens = made(POOLS[name])
    assert is_known_pool(layer)
    whole = layer(tokens)
    found = written_out(layer, tokens, {})
    wanted = whole[:, 0] if whole.ndim == 3 else whole
    torch.testing.assert_close(found.output(found.weights), wanted, rtol=1e-4, atol=1e-5)
    assert found.weights.std() > 0.02


def test_what_is_not_known() -> None:
    assert not is_known(nn.MultiheadAttention(32, 4, kdim=16, vdim=16))
    assert not is_known(nn.MultiheadAttention(32, 4, add_bias_kv=True))
    assert not is_known(timm.models.beit.Attention(32, 4))  # of the same name
    assert not is_known_pool(AttentionPoolLatent(32, latent_len=2))
    assert not is_known_pool(nn.Identity())
