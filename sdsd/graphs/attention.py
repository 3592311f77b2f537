"""`torch.nn.MultiheadAttention` with heads that keep their size when some are gone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


class FewerHeads(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose number of heads, size of a head and width are independent.

    torch's own takes the size of a head from embed_dim / num_heads, so a module with fewer heads would compute with
    larger ones. This one has parameters of the same names and gives the same, without the fused kernel of eval mode.

    Args:
        embed_dim: the width of queries and of what is given.
        num_heads, head_dim: heads, and numbers in each; any product.
        dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as in
            `torch.nn.MultiheadAttention`.

    Example:
        >>> attention = FewerHeads(64, num_heads=3, head_dim=16, batch_first=True)
        >>> x = torch.rand(2, 5, 64)
        >>> attention(x, x, x)[0].shape
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        heads = num_heads * head_dim
        more = {"add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn, "batch_first": batch_first}
        widths = {"kdim": kdim or embed_dim, "vdim": vdim or embed_dim}
        super().__init__(heads, num_heads, dropout, bias, **more, **widths, **kind)
        packed = kdim in (None, embed_dim) and vdim in (None, embed_dim)
        shapes = {"in_proj_weight": (3 * heads, embed_dim) if packed else None}
        for name, width in (("q", embed_dim), ("k", self.kdim), ("v", self.vdim)):
            shapes[f"{name}_proj_weight"] = None if packed else (heads, width)
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape, **kind)))
        self.out_proj = NonDynamicallyQuantizableLinear(heads, embed_dim, bias=bias, **kind)
        self.embed_dim = embed_dim
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            if name == "in_proj_bias":
                nn.init.zeros_(parameter)
            elif name.startswith("bias"):
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """False, for then layers of torch.nn leave fused kernels alone, which know one size of heads only."""
        return False

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, _value: bool) -> None:
        pass

    def extra_repr(self) -> str:
        """Heads, and how large each is."""
        return f"{self.num_heads} heads of {self.head_dim}"

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        *,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`.

        Args:
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal: as there,
                the last two by name.

        Returns:
            (output, weights of attention or None), as there.

        Raises:
            ValueError: `is_causal` without `attn_mask`.
        """
        if query.is_nested:
            return self._of_nested(query, key, value, need_weights), None
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: is_causal=True only says that attn_mask is causal; pass attn_mask, too.")
        given = [query, key, value]
        if query.dim() == 2:
            given = [each.unsqueeze(0) for each in given]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            given = [each.transpose(0, 1) for each in given]
        causal = is_causal and key_padding_mask is None and not need_weights
        masks = [None if causal else _number(attn_mask, query), _number(key_padding_mask, query)]
        q, k, v, mask = self._heads(*self._projected(*given), *masks)
        if need_weights:
            scores = q * math.sqrt(1.0 / self.head_dim) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, self.dropout, self.training)
            mixed = weights @ v
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        out = functional.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        seen = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if query.dim() == 2:
            return out.squeeze(0), None if seen is None else seen.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), seen

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        packed = self.in_proj_weight
        weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight] if packed is None else packed.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        made = [functional.linear(*each) for each in zip((query, key, value), weights, biases, strict=True)]
        for place, bias in ((1, self.bias_k), (2, self.bias_v)):
            if bias is not None:
                made[place] = torch.cat([made[place], bias.expand(len(key), 1, -1)], 1)
            if self.add_zero_attn:
                made[place] = torch.cat([made[place], torch.zeros_like(made[place][:, :1])], 1)
        return made

    def _heads(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values by head, and both masks in one, for places that were added as well."""
        batch, more = len(q), (self.bias_k is not None) + self.add_zero_attn
        q, k, v = (each.view(batch, each.shape[1], self.num_heads, self.head_dim).transpose(1, 2) for each in (q, k, v))
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(batch, self.num_heads, *attn_mask.shape[1:])
        mask = attn_mask
        if padding is not None:
            mask = padding[:, None, None] if mask is None else mask + padding[:, None, None]
        return q, k, v, mask if mask is None or not more else functional.pad(mask, (0, more))

    def _of_nested(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> Tensor:
        """What `torch.nn.TransformerEncoder` hands over when it has taken padding out."""
        if need_weights or key is not query or value is not query or not self.batch_first:
            raise ValueError(
                "query: nested tensors are taken for self-attention with batch_first=True and need_weights=False."
            )
        lengths = torch.tensor([len(each) for each in query.unbind()], device=query.device)
        padded = query.to_padded_tensor(0.0)
        padding = torch.arange(padded.shape[1], device=query.device) >= lengths[:, None]
        out, _ = self(padded, padded, padded, padding, need_weights=False)
        return torch._nested_tensor_from_mask(out, ~padding)


def _number(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as what is added to scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def can_have_fewer_heads(module: nn.Module) -> bool:
    """Whether `module` computes what `FewerHeads` does, so that it may become one."""
    return type(module) in (nn.MultiheadAttention, FewerHeads)


@contextmanager
def heads_apart(model: nn.Module) -> Iterator[None]:
    """Attention of torch.nn runs inside as `FewerHeads`, which computes the same without the number of its heads."""
    plain = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    try:
        for module in plain:
            module.__class__ = FewerHeads
        yield
    finally:
        for module in plain:
            module.__class__ = nn.MultiheadAttention
