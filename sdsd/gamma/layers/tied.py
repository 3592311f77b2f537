"""An embedding and a head with one weight, in compiled code: the cross term of their gradients.

The gradient of sample n is the sum of both, and ‖g + h‖² = ‖g‖² + ‖h‖² + 2 ⟨g, h⟩. The head's backward runs first; with
inputs a, output gradients b and the ids that were looked up it knows what ⟨g, h⟩ is a product of:

    ⟨g_n, h_n⟩ = Σ_s ⟨G_ns, c_ns⟩      c_ns = Σ_t b_nt[id_ns] a_nt

G_ns the output gradient of the embedding at position s. c comes to the embedding's backward as the gradient of a second
output that it has, which nothing but the head reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import WHAT_TO_DO, Samples, UnsupportedError, Watcher, arrange, report


def lead(watcher: Watcher, y: Tensor, measure: Any, ids: Tensor, scale: Tensor | None, padding: int | None) -> Tensor:
    """`tap` on an embedding's output that the head with the same weight can reach."""
    out, carrier = _Lead.apply(y, watcher.probe, ids, scale, (watcher.local, measure, padding))  # type: ignore[no-untyped-call]
    watcher.carried = carrier, ids
    return out  # type: ignore[no-any-return]


def meet(watcher: Watcher, y: Tensor, x: Tensor, samples: Samples) -> Tensor:
    """Send what the cross term needs from a head, with inputs `x` and output `y`, to the embedding with its weight."""
    embedding = watcher.partner
    if embedding is None or embedding.carried is None:
        raise UnsupportedError(
            f"{watcher.name}: shares its weight with an embedding that did not run before it in the same compiled "
            f"code. {WHAT_TO_DO}"
        )
    carrier, ids = embedding.carried
    out: Tensor = _Meet.apply(y, carrier, x, ids, watcher.scale("weight"), samples)  # type: ignore[no-untyped-call]
    return out


class _Lead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, probe: Tensor, ids: Tensor, scale: Tensor | None, spec: tuple[Any, Any, int | None]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids, scale)
        ctx.local, ctx.measure, ctx.padding = spec
        return y.detach(), torch.zeros_like(y)

    @staticmethod
    def backward(ctx: Any, b: Tensor, c: Tensor) -> tuple[Any, ...]:
        ids, scale = ctx.saved_tensors
        measures = ctx.measure(b, ids, scale)
        wide = torch.float64 if b.dtype == torch.float64 else torch.float32
        products = (b.to(wide) * c.to(wide)).sum(-1)
        if ctx.padding is not None:
            products = products.masked_fill(ids == ctx.padding, 0.0)
        own, sums = measures["weight"]
        measures["weight"] = own + 2 * products.sum(), sums
        return b, report(measures, ctx.local, b), None, None, None


class _Meet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, carrier: Tensor, x: Tensor, ids: Tensor, scale: Tensor | None, samples: Samples
    ) -> Tensor:
        ctx.save_for_backward(x, ids, scale)
        ctx.samples, ctx.like = samples, carrier.dtype
        return y.detach()

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Any, ...]:
        x, ids, scale = ctx.saved_tensors
        tokens, gradients, inputs = arrange(ids, ctx.samples, 0), arrange(b, ctx.samples, 1), arrange(x, ctx.samples, 1)
        chosen = gradients.gather(2, tokens.unsqueeze(1).expand(-1, gradients.shape[1], -1))
        c = torch.bmm(chosen.mT.to(inputs.dtype), inputs)
        if scale is not None:
            c = c * scale[tokens].square()
        return b, c.view(*ids.shape, -1).to(ctx.like), None, None, None, None
