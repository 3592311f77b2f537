"""Linear operations: F.linear, and products of samples with a matrix of parameters.

Of several positions a sample the weight gradient and the squares come out of one call of `weight_grad_stats`, in the
place of the layer's own backward pass. Of one position squares need no product at all; there, and for computed
weights, the layer's own backward stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sdsd_kernels import weight_grad_stats

from ...following import Track, arrange, track_of
from ..landed import bare_apply, followed, land, land_apart, places_of, weight_grad_into
from ..pieces import Dense, OnePosition, Piece, Product, square_norm
from ..plans import Joined, Squares, Watched, keep
from ..use import Use, autocast_dtype, joined, watch
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def linear(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.linear(x, weight, bias)."""
    x, weight, bias = args if len(args) == 3 and not kwargs else _bind(("input", "weight", "bias"), args, kwargs)
    track = track_of(x)
    if not isinstance(track, Track) or track.axis == x.ndim - 1 or track_of(weight) is not None or weight.ndim != 2:
        return any_operation(mode, func, args, kwargs, parameters)
    n = mode.ledger.n
    # Of one position a sample a CPU squares faster without the product, and kernels beside it.
    if weight.requires_grad and weight.is_leaf and (mode.ledger.serves(x) or x.shape.numel() // x.shape[-1] != n):
        out = _joined(mode, x, weight, bias, track, place=0 if args else None)
        if out is not None:
            return out
    out = mode.run(func, args, kwargs)
    read = [t for t in (weight, bias) if t is not None and t.requires_grad]
    squares = _squares_of_rows(x, track, len(read))

    def measure(b: Tensor, x: Tensor | None) -> Iterator[tuple[int, Piece]]:
        rows = arrange(b, track, n, 1)
        alone = (x is not None and squares and rows.shape[1] == 1 and squares(b, x)) or [None]
        if x is not None:
            yield 0, Product(arrange(x, track, n, 1).to(rows.dtype), rows, alone=alone[0])
        if bias is not None and bias.requires_grad:
            yield len(read) - 1, Dense(rows.sum(1, dtype=_sum_dtype(rows)), alone=alone[-1])

    operands = watch(mode, "linear", out, read, (x if weight.requires_grad else None,), measure)
    if operands and args:
        keep(mode, Watched("linear", operands, track_of(out), measure, squares=squares))
    return out


def matmul(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """x @ matrix, with samples on the left and a (d, p) matrix of parameters on the right."""
    given = _bind(("input", "other"), args, kwargs)
    if len(args) + len(kwargs) != 2 or None in given:
        return any_operation(mode, func, args, kwargs, parameters)
    x, matrix = given
    track = track_of(x)
    plain = track_of(matrix) is None and matrix.ndim == 2 and x.ndim > 1
    if not isinstance(track, Track) or not plain or track.axis == x.ndim - 1:
        return any_operation(mode, func, args, kwargs, parameters)
    out = mode.run(func, args, kwargs)
    n = mode.ledger.n
    # A transposed parameter is measured as it lies: the tied head that is written h @ embedding.weight.t().
    upright = _transpose_of(matrix)

    def measure(b: Tensor, x: Tensor) -> Iterator[tuple[int, Piece]]:
        rows = arrange(b, track, n, 1)
        yield 0, Product(arrange(x, track, n, 1).to(rows.dtype), rows, transposed=upright is None)

    watch(mode, "linear", out, [matrix if upright is None else upright], (x,), measure)
    return out


def addmm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """torch.addmm(bias, x, matrix): how Hugging Face's Conv1D multiplies."""
    bias, x, matrix = _bind(("input", "mat1", "mat2"), args, kwargs)
    track = track_of(x) if isinstance(x, Tensor) else None
    plain = (
        len(args) + len(kwargs) == 3
        and isinstance(track, Track)
        and track.axis == 0
        and all(t is not None and track_of(t) is None for t in (bias, matrix))
        and bias.ndim == 1
    )
    if not plain:
        return any_operation(mode, func, args, kwargs, parameters)
    assert isinstance(track, Track)
    n = mode.ledger.n
    if matrix.requires_grad and matrix.grad_fn is None and (x.shape[0] != n or mode.ledger.serves(x)):
        out = _joined(mode, x, matrix, bias, track, place=1 if len(args) == 3 else None, transposed=True)
        if out is not None:
            return out
    out = mode.run(func, args, kwargs)
    read = [t for t in (matrix, bias) if t.requires_grad]

    def measure(b: Tensor, x: Tensor | None) -> Iterator[tuple[int, Piece]]:
        rows = arrange(b, track, n, 1)
        if x is not None:
            yield 0, Product(arrange(x, track, n, 1).to(rows.dtype), rows, transposed=True)
        if bias.requires_grad:
            yield len(read) - 1, Dense(rows.sum(1, dtype=_sum_dtype(rows)))

    kind = "linear (weight stored transposed)"
    operands = watch(mode, kind, out, read, (x if matrix.requires_grad else None,), measure)
    if operands and len(args) == 3:
        save = lambda bias, x, matrix: (func(bias, x, matrix), (x,))  # noqa: E731
        squares = _squares_of_rows(x, track, len(operands))
        keep(mode, Watched(kind, operands, track_of(out), measure, save=save, squares=squares))
    return out


def _squares_of_rows(x: Tensor, track: Track, operands: int) -> Squares | None:
    """Squares of a weight, and of a bias where that is the second operand, if a sample is one row."""
    if x.ndim != 2 or track != _PLAIN or type(x) is not Tensor or not x.is_cpu or x.dtype not in _SQUARED:
        return None
    return OnePosition(x.shape[0], x.dtype, bias=operands == 2)


def _bind(names: tuple[str, ...], args: Any, kwargs: Any) -> list[Any]:
    return [args[k] if k < len(args) else kwargs.get(name) for k, name in enumerate(names)]


def _transpose_of(matrix: Tensor) -> Tensor | None:
    """The parameter that `matrix` is the transpose of, or None."""
    node = matrix.grad_fn
    if node is None or node.name() not in ("TBackward0", "TransposeBackward0", "PermuteBackward0"):
        return None
    parent = node.next_functions[0][0]
    variable = getattr(parent, "variable", None)
    if variable is None or variable.ndim != 2 or variable.shape != matrix.shape[::-1]:
        return None
    # A permutation that keeps the order leaves a square matrix as it is.
    return variable if variable.stride() == matrix.stride()[::-1] and variable.stride() != matrix.stride() else None


def _sum_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32


def _joined(
    mode: Measuring,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    track: Track,
    *,
    place: int | None,
    transposed: bool = False,
) -> Tensor | None:
    """x Wᵀ + b by a function whose backward finds gradient and squares together; None where it does not apply.

    `place`: which argument of the call x is; None where it came by its name.
    """
    if bias is not None and (track_of(bias) is not None or (bias.requires_grad and bias.grad_fn is not None)):
        return None
    if x.is_complex() or weight.is_complex() or (type(x) is not Tensor and not isinstance(x, torch.nn.Parameter)):
        return None
    kind = "linear (weight stored transposed)" if transposed else "linear"
    use = joined(mode, weight, bias, kind)
    if use is None:
        return None
    dtype = autocast_dtype(x)
    call = functools.partial(_apply, weight, bias, How(track, mode.ledger.n, transposed), dtype is not None)
    out = call(use, x if dtype is None else x.to(dtype))
    followed(out, x)
    if place is not None:
        keep(mode, Joined(kind, use.operands, track_of(out), call, place, dtype))
    return out  # type: ignore[no-any-return]


_unsafe_view: Any = torch.ops.aten._unsafe_view.default._op


class How(NamedTuple):
    """Where the samples of the input lie, how many they are, and whether the weight is stored transposed."""

    track: Track
    n: int
    transposed: bool


class _Joined(torch.autograd.Function):
    """Under autocast parameters are cast inside: their gradients come in their own dtype, from the accumulator."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        how: How,
        cast: bool,
        use: Use,
        x: Tensor,
    ) -> Tensor:
        ctx.use, ctx.how = use, how
        ctx.weight = None
        if cast and weight.dtype != x.dtype:
            # A cast copy does not lead back to the parameter; a gradient that is to be differentiated needs that.
            ctx.weight, weight = weight, weight.to(x.dtype)
        if cast and bias is not None:
            bias = bias.to(x.dtype)
        ctx.to_save = x, weight  # save_for_backward, without its call
        if how.transposed:
            return torch.addmm(bias, x, weight) if bias is not None else x.mm(weight)
        y = F.linear(x, weight, bias)
        # A linear layer of more than two dimensions returns a view, which later in-place operations may not touch.
        return y if y.ndim == 2 else _unsafe_view(y, y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        need_weight, need_bias, *_, need_x = ctx.needs_input_grad
        use: Use = ctx.use
        measured = use.wanted()
        differentiated = torch.is_grad_enabled()
        if differentiated and ctx.weight is not None:
            weight = ctx.weight.to(x.dtype)
        b2 = grad if grad.ndim == 2 else grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if need_x:
            grad_x = (b2.mm(weight.t()) if ctx.how.transposed else b2.mm(weight)).view(x.shape)
        try:
            if measured and not differentiated:
                grad_weight, grad_bias = _measure(use, ctx.how, x, grad, True)
                return grad_weight, grad_bias, None, None, None, grad_x
            if measured:
                with torch.no_grad():
                    _measure(use, ctx.how, x.detach(), grad.detach(), False)
        except Exception as error:
            use.failed(error)
        # A gradient that is to be differentiated, or of a pass that is nobody's batch: the layer's own.
        x2 = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        if need_weight:
            grad_weight = (x2.t().mm(b2) if ctx.how.transposed else b2.t().mm(x2)).to(_dtype_of(use, 0, x))
        if need_bias:
            grad_bias = b2.sum(0).to(_dtype_of(use, 1, x))
        return grad_weight, grad_bias, None, None, None, grad_x


_apply = bare_apply(_Joined)


def _dtype_of(use: Use, operand: int, x: Tensor) -> torch.dtype:
    """Of a parameter; of a bias that does not train there is no operand, and no gradient."""
    return use.operands[operand].tensor.dtype if operand < len(use.operands) else x.dtype


def _measure(use: Use, how: How, x: Tensor, grad: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
    """Deliver the pieces; the gradients of weight and bias where they are `wanted`."""
    ledger, operands = use.mode.ledger, use.operands
    track, n, transposed = how
    if track == _PLAIN and x.ndim <= 3:
        a, b = (x, grad) if x.ndim == 3 else (x.unsqueeze(1), grad.unsqueeze(1))
    else:
        a, b = arrange(x, track, n, 1), arrange(grad, track, n, 1)
    if not a.shape[1]:  # sequences of length zero: one position of zeros adds as much
        a, b = a.new_zeros(n, 1, a.shape[2]), b.new_zeros(n, 1, b.shape[2])
    if wanted:
        if use.alone and x.is_cpu and ledger.backends.get(x.device) == "torch":
            return _squared(use, a, b, transposed)
        places = places_of(use, b)
        if places is not None:
            settings = operands[0].leaves[0].tensor.dtype, ledger.max_bytes
            if not transposed:
                return land(use, places, b.dtype, weight_grad_into, (a, b), settings)
            places, bias = land_apart(use, places, b)
            return land(use, places, b.dtype, weight_grad_into, (b, a), settings)[0], bias
    ledger.begin(use, grad.dtype)
    weight_leaf = operands[0].leaves[0]
    scale = ledger.scale(weight_leaf.name) if ledger.scaled else None
    shared = ledger.shared(weight_leaf)
    grad_weight = grad_bias = None
    dtype = operands[0].tensor.dtype
    # Squares of a use among others: found with the gradient for a weight tied to a table, useless among linear uses.
    if wanted and not (shared and (scale is not None or transposed)):
        turned = scale.t() if scale is not None and transposed else scale
        backend = "torch" if ledger.backends.get(a.device) == "torch" else None
        stats = weight_grad_stats(a, b, scale=turned, dtype=dtype, backend=backend)
        assert stats.weight_grad is not None
        grad_weight = stats.weight_grad.t() if transposed else stats.weight_grad
        piece = Product(a, b, transposed, alone=stats.square_norm, total=grad_weight)
    else:
        if wanted:
            left, right = (a, b) if transposed else (b, a)
            grad_weight = left.flatten(0, 1).t().mm(right.flatten(0, 1)).to(dtype)
        piece = Product(a, b, transposed, total=grad_weight)
    operands[0].deliver(ledger, piece)
    if len(operands) > 1:
        rows = b.sum(1, dtype=_sum_dtype(b))
        grad_bias = rows.sum(0).to(operands[1].tensor.dtype)
        operands[1].deliver(ledger, Dense(rows))
    if wanted:
        ledger.give(operands, grad_weight, grad_bias)
    return grad_weight, grad_bias


def _squared(use: Use, a: Tensor, b: Tensor, transposed: bool) -> tuple[Tensor | None, Tensor | None]:
    """The same on a CPU, where squares are all that is asked of the use: without pieces."""
    operands, ledger = use.operands, use.mode.ledger
    grad_weight, square = _stats(a, b, None, True, operands[0].dtype, None, ledger.max_bytes, "torch")
    if transposed:
        grad_weight = grad_weight.t()
    ledger.given[operands[0].leaves[0].name] = grad_weight.data_ptr(), grad_weight._version
    if len(operands) == 1:
        ledger.taken.append((use, b.dtype, (square,)))
        return grad_weight, None
    rows = b.sum(1) if b.dtype == torch.float32 else b.sum(1, dtype=_sum_dtype(b))
    grad_bias = rows.sum(0).to(operands[1].dtype)
    ledger.given[operands[1].leaves[0].name] = grad_bias.data_ptr(), grad_bias._version
    ledger.taken.append((use, b.dtype, (square, square_norm(rows))))
    return grad_weight, grad_bias


_stats: Any = torch.ops.sdsd.weight_grad_stats.default._op
_PLAIN = Track(0)
_SQUARED = (torch.float32, torch.float64)
