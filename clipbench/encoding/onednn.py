"""Linear layers in oneDNN's blocked weight layout, for towers on a CPU.

PyTorch's fp32 `linear` on a CPU goes through a general matrix product that lays the weight out anew each time;
torch.compile's frozen graphs avoid this through the same two operators, at the price of a compilation.

The operators are private to PyTorch, so this plan is compared with the plain one before it is taken (`plans`).
ViT-B/32 in fp32, batches of 32, on one core with AVX-512 of a busy machine, torch 2.14: 0.94 × the time as it comes,
89 % of the matmul peak instead of 85 %.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class PackedLinear(nn.Module):
    """`nn.Linear` (with an optional GELU behind it) whose weight is kept in blocked layout.

    `weight` and `bias` stay, for code that asks for a layer's dtype or uses its matrix directly.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, act: str = "none"
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._dtype, self._act = dtype, act
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous())
        self._bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._dtype), self._packed, self._bias, self._act, [], "none" if self._act == "gelu" else ""
        )
        return y


class PackedAttention(nn.Module):
    """Self-attention of an `nn.MultiheadAttention`, with packed projections."""

    def __init__(self, attention: nn.MultiheadAttention, dtype: torch.dtype) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        self._heads = attention.num_heads
        self._in = PackedLinear(attention.in_proj_weight, attention.in_proj_bias, dtype)
        self._out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias, dtype)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """[B, L, D] to ([B, L, D], None); `query`, `key` and `value` are the same tensor, as in CLIP's blocks."""
        if query is not key or query is not value or need_weights:
            raise RuntimeError("packed attention is self-attention without weights")
        batch, length, width = query.shape
        q, k, v = (
            self._in(query).view(batch, length, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
        )
        mask = None if attn_mask is None else attn_mask.to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self._out(x.transpose(1, 2).reshape(batch, length, width)), None


class PackedConv(nn.Module):
    """`nn.Conv2d` on channels-last images, its weight in blocked layout."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        padding, stride, dilation = _pair(conv.padding), _pair(conv.stride), _pair(conv.dilation)
        self._geometry = (padding, stride, dilation, conv.groups)
        self._dtype = dtype
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach().to(dtype), *self._geometry, None
        )
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(self._dtype), self._packed, self._bias, *self._geometry, "none", [], ""
        )
        return y


class InPlaceQuickGELU(nn.Module):
    """x·sigmoid(1.702x) with one temporary instead of three."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 1.702).sigmoid_().mul_(x)


def pack(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`module` (in eval mode), its layers replaced in place by packed ones of `dtype`.

    A batch norm is folded into the convolution before it, found by name (`conv1`, `bn1`) or in a sequence. Where
    such names mean something else the features come out wrong, and the comparison in `plans` says so.
    """
    _fold_norms(module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.MultiheadAttention):
            plain = child.batch_first and child.in_proj_weight is not None and child.bias_k is None
            if plain and not child.add_zero_attn:
                setattr(module, name, PackedAttention(child, dtype))
        elif isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
        elif isinstance(child, nn.Conv2d):
            # Not subclasses: timm's pad by the image's size before they convolve.
            if (
                type(child) is nn.Conv2d
                and child.padding_mode == "zeros"
                and not isinstance(child.padding, str)
            ):
                setattr(module, name, PackedConv(child, dtype))
        elif type(child).__name__ == "QuickGELU":
            setattr(module, name, InPlaceQuickGELU())
        else:
            if isinstance(child, nn.Sequential):
                _fuse_gelu(child, dtype)
            pack(child, dtype)
    return module


def _fold_norms(module: nn.Module) -> None:
    """Fold each evaluated batch norm into its convolution."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        pairs = list(pairwise(children))
    else:
        pairs = [(n, n.replace("conv", "bn")) for n in children if n.startswith("conv")]
    for name, after in pairs:
        conv, norm = children[name], children.get(after)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and not norm.training:
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, after, nn.Identity())


def _pair(size: int | tuple[int, ...] | str) -> list[int]:
    assert not isinstance(size, str)
    return [size, size] if isinstance(size, int) else list(size)


def _fuse_gelu(sequence: nn.Sequential, dtype: torch.dtype) -> None:
    """Put each exact GELU into the linear layer before it."""
    names = list(sequence._modules)
    for name, after in pairwise(names):
        layer, activation = sequence._modules[name], sequence._modules[after]
        if (
            isinstance(layer, nn.Linear)
            and isinstance(activation, nn.GELU)
            and activation.approximate == "none"
        ):
            setattr(sequence, name, PackedLinear(layer.weight, layer.bias, dtype, act="gelu"))
            setattr(sequence, after, nn.Identity())
