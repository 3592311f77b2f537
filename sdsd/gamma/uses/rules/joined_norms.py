"""Layer and group norm as functions whose backward takes gradients of weight and bias, and squares, from one kernel.

The input's gradient is torch's own. Where a gradient is differentiated again, or only some of them are wanted, the
layer's own backward runs, and the pieces are formed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...following import Track, arrange, track_of
from ..landed import bare_apply, followed, land, places_of, scale_shift_grads
from ..pieces import Dense, wide
from ..plans import Joined, keep
from ..use import Use, operands_of, register

if TYPE_CHECKING:
    from ..measuring import Measuring

_layer_norm_backward: Any = torch.ops.aten.native_layer_norm_backward.default._op
_group_norm_backward: Any = torch.ops.aten.native_group_norm_backward.default._op


class LayerNorm(NamedTuple):
    """Layer norm over `shape`: what torch's operator takes, and how it lies as (N, T, C)."""

    shape: tuple[int, ...]
    eps: float

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, self.shape, weight, bias, self.eps)  # type: ignore[no-any-return]

    def input_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
    ) -> Tensor:
        return _layer_norm_backward(  # type: ignore[no-any-return]
            grad, x, self.shape, mean, rstd, weight, bias, [True, False, False]
        )[0]

    def rows(self, tensors: list[Tensor], track: Track, n: int) -> list[Tensor]:
        """Output gradients, inputs, mean and rstd by sample."""
        dims = len(self.shape)
        if dims == 1 and tensors[0].ndim == 3 and track == _PLAIN:
            return tensors
        return [arrange(t, track, n, dims).flatten(2) if dims > 1 else arrange(t, track, n, 1) for t in tensors]


class GroupNorm(NamedTuple):
    """Group norm with so many groups."""

    groups: int
    eps: float

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        n, c = x.shape[:2]
        return torch.native_group_norm(x, weight, bias, n, c, x.numel() // (n * c), self.groups, self.eps)  # type: ignore[no-any-return]

    def input_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
    ) -> Tensor:
        n, c = x.shape[:2]
        return _group_norm_backward(  # type: ignore[no-any-return]
            grad, x, mean, rstd, weight, n, c, x.numel() // (n * c), self.groups, [True, False, False]
        )[0]

    def rows(self, tensors: list[Tensor], track: Track, n: int) -> list[Tensor]:
        grad, x, mean, rstd = tensors
        if grad.ndim > 2:
            grad, x = grad.flatten(2).mT, x.flatten(2).mT
        else:
            grad, x = grad.unsqueeze(1), x.unsqueeze(1)
        return [grad, x, mean.unsqueeze(1), rstd.unsqueeze(1)]


_PLAIN = Track(0)


def joined_norm(
    mode: Measuring,
    kind: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: LayerNorm | GroupNorm,
    *,
    placed: bool,
) -> Tensor | None:
    """The norm by a function whose backward finds gradients and squares together; None where it does not apply.

    `placed`: x is the first argument of the call, and did not come by its name.
    """
    if (
        weight is None
        or not weight.requires_grad
        or any(t is not None and t.grad_fn is not None for t in (weight, bias))
    ):
        return None
    read = [weight] if bias is None or not bias.requires_grad else [weight, bias]
    operands, hidden = operands_of(mode, read)
    if hidden is not None or any(len(operand.leaves) != 1 for operand in operands):
        return None
    mode.note_checkpoint()
    track = track_of(x)
    assert isinstance(track, Track)

    def call(use: Use, x: Tensor) -> Tensor:
        device = x.device.type
        if device != "cpu" and torch.is_autocast_enabled(device):
            x = x.float()  # as autocast does with these norms, but for those on a CPU
        if isinstance(norm, GroupNorm):
            # What F.group_norm does first.
            last = device == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last) if last else x.contiguous()
        return _apply(x, weight, bias, use, track, norm)  # type: ignore[no-any-return]

    out = call(register(mode, operands, kind), x)
    followed(out, x)
    if placed:
        keep(mode, Joined(kind, operands, track, call))
    return out


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, use: Use, track: Track, norm: LayerNorm | GroupNorm
    ) -> Tensor:
        out, mean, rstd = norm.forward(x, weight, bias)
        ctx.to_save = x, weight, bias, mean, rstd
        ctx.use, ctx.track, ctx.norm = use, track, norm
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        use, norm = ctx.use, ctx.norm
        measured = use.wanted()
        ledger = use.mode.ledger
        places = places_of(use, grad) if measured and not torch.is_grad_enabled() else None
        if places is None:
            by_input = _by_torch(norm, ctx.needs_input_grad[:3], grad, x, weight, bias)
            if measured:
                ledger.begin(use, grad.dtype)
                try:
                    with torch.no_grad():
                        _deliver(use, norm, ctx.track, [t.detach() for t in (grad, x, mean, rstd)])
                except Exception as error:
                    use.failed(error)
            return *by_input, None, None, None
        try:
            rows = norm.rows([grad, x, mean, rstd], ctx.track, ledger.n)
            settings = (use.operands[0].leaves[0].tensor.dtype,)
            of_weight, of_bias = land(use, places, grad.dtype, scale_shift_grads, tuple(rows), settings)
        except Exception as error:
            use.failed(error)
            return *_by_torch(norm, ctx.needs_input_grad[:3], grad, x, weight, bias), None, None, None
        grad_x = norm.input_grad(grad, x, weight, bias, mean, rstd) if ctx.needs_input_grad[0] else None
        if weight.ndim > 1:
            of_weight, of_bias = of_weight.view_as(weight), None if of_bias is None else of_bias.view_as(weight)
        return grad_x, of_weight, of_bias, None, None, None


_apply = bare_apply(_Joined)


def _by_torch(
    norm: LayerNorm | GroupNorm, needed: tuple[bool, ...], grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> list[Tensor | None]:
    """The layer's own gradients, which can be differentiated themselves where autograd is on."""
    given: tuple[Tensor | None, ...] = (x, weight, bias)
    further = torch.is_grad_enabled()
    if not further:
        given = tuple(
            None if t is None else t.detach().requires_grad_(need) for t, need in zip(given, needed, strict=True)
        )
    with torch.enable_grad():
        out = norm.forward(*given)[0]  # type: ignore[arg-type]
        wanted = [t for t, need in zip(given, needed, strict=True) if need and t is not None]
        grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=further))
    return [next(grads) if need else None for need in needed]


def _deliver(use: Use, norm: LayerNorm | GroupNorm, track: Track, tensors: list[Tensor]) -> None:
    """The pieces, formed: (N, C) numbers each."""
    ledger = use.mode.ledger
    b, x, mean, rstd = (wide(t) for t in norm.rows(tensors, track, ledger.n))
    groups = mean.shape[2]
    values = ((x.unflatten(2, (groups, -1)) - mean.unsqueeze(3)) * rstd.unsqueeze(3)).flatten(2)
    for operand, each in zip(use.operands, (b * values, b), strict=False):
        operand.deliver(ledger, Dense(each.sum(1).view(-1, *operand.base.shape)))
