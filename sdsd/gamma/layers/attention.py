"""nn.MultiheadAttention: it computes its projections itself, without calling a linear layer.

So its forward pass is done here: the projections as measured linear layers, the rest as torch's
F.multi_head_attention_forward does it. Outputs and gradients agree with the plain module to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .base import WHAT_TO_DO, Rule, Samples, UnsupportedError, Watcher
from .linear import linear


class AttentionRule(Rule):
    name = "multi-head attention"

    def children(self, module: Any) -> tuple[str, ...]:
        return ("out_proj",)

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        if module.bias_k is not None or module.add_zero_attn:
            raise UnsupportedError(
                f"{watcher.name}: add_bias_kv and add_zero_attn have no exact rule. Use mode='micro'."
            )
        return self._attend(watcher, module, *args, **kwargs)

    def _attend(
        self,
        watcher: Watcher,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        axis = 0 if module.batch_first else 1
        # Every one of them, for a table of keys has no samples to measure; the query's is the last, and the output's.
        placed = [watcher.samples_of(x, 1) for x in (value, key, query)]
        n, heads = placed[-1][0], module.num_heads
        if query.ndim != 3 or any(samples[1:] != (axis, 1, 1) for samples in placed):
            raise UnsupportedError(
                f"{watcher.name}: expected {n} samples along dimension {axis} (batch_first={module.batch_first}) of "
                f"three, got input of shape {tuple(query.shape)} with samples elsewhere. {WHAT_TO_DO}"
            )
        samples = placed[-1]
        q, k, v = (
            self._heads(projected, axis, heads)
            for projected in self._project(watcher, module, query, key, value, samples)
        )  # shape of each: (N, heads, positions, head size)
        mask = _joint_mask(attn_mask, key_padding_mask, n, heads, q.dtype)
        dropout = module.dropout if module.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout)
            out = weights @ v
            if average_attn_weights:
                weights = weights.mean(1)
        else:
            causal = is_causal and key_padding_mask is None
            out = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
        joined = out.transpose(1, 2).flatten(2)  # shape: (N, positions, embed_dim)
        if axis == 1:
            joined = joined.transpose(0, 1)
        names = ("out_proj.weight", "out_proj.bias")
        weight, bias = module.out_proj.weight, module.out_proj.bias
        y = self._linear(watcher, joined, weight, bias, names, rows=slice(None), samples=samples, count=False)
        return y, weights

    def _project(
        self, watcher: Watcher, module: Any, query: Tensor, key: Tensor, value: Tensor, samples: Samples
    ) -> tuple[Tensor, ...]:
        size, bias = module.embed_dim, module.in_proj_bias
        same = module._qkv_same_embed_dim
        if same and query is key and key is value:
            names = ("in_proj_weight", "in_proj_bias")
            weight, whole = module.in_proj_weight, slice(None)
            packed = self._linear(watcher, query, weight, bias, names, rows=whole, samples=samples, count=True)
            return packed.chunk(3, dim=-1)
        projected = []
        for place, (letter, x) in enumerate(zip("qkv", (query, key, value), strict=True)):
            rows = slice(place * size, (place + 1) * size)
            weight = module.in_proj_weight[rows] if same else getattr(module, f"{letter}_proj_weight")
            names = ("in_proj_weight" if same else f"{letter}_proj_weight", "in_proj_bias")
            part = None if bias is None else bias[rows]
            first = place == 0
            projected.append(self._linear(watcher, x, weight, part, names, rows=rows, samples=samples, count=first))
        return tuple(projected)

    @staticmethod
    def _heads(x: Tensor, axis: int, heads: int) -> Tensor:
        samples_first = x if axis == 0 else x.transpose(0, 1)
        return samples_first.unflatten(-1, (heads, -1)).transpose(1, 2)

    @staticmethod
    def _linear(
        watcher: Watcher,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        names: tuple[str, str],
        *,
        rows: slice,
        samples: Samples,
        count: bool,
    ) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # as torch does
            half = torch.get_autocast_dtype(kind)
            x, weight, bias = x.to(half), weight.to(half), bias if bias is None else bias.to(half)
        return linear(watcher, x, weight, bias, samples, names, probe=_part_of_probe(watcher, names, count), rows=rows)


def _part_of_probe(watcher: Watcher, names: tuple[str, str], count: bool) -> Tensor:
    """The projections share one probe: each gets the entries of its own parameters, and one of them the count."""
    nothing, most = watcher.probe.new_zeros(1), len(watcher.local)
    places = [watcher.local.index(name) if name in watcher.local else None for name in names]
    entries = [
        nothing if place is None else watcher.probe[place + shift : place + shift + 1]
        for shift in (0, most)
        for place in places
    ]
    return torch.cat([*entries, watcher.probe[-1:] if count else nothing])


def _joint_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, n: int, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Measures masks as one that is added to the scores; shape broadcasts to (N, heads, queries, keys)."""

    def additive(mask: Tensor) -> Tensor:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask

    joint = None
    if attn_mask is not None:
        joint = additive(attn_mask)
        joint = joint.view(n, heads, *joint.shape[1:]) if joint.ndim == 3 else joint
    if key_padding_mask is not None:
        padding = additive(key_padding_mask).view(n, 1, 1, -1)
        joint = padding if joint is None else joint + padding
    return joint
