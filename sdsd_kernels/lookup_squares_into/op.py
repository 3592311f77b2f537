"""Public function → checks → backend → the operator `sdsd::lookup_squares_into`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_device, check_float_tensor, check_integer, check_shape
from .._launch import check_square_norms
from .._register import register
from . import cpu


def lookup_squares_into(
    output_grads: Tensor,
    tokens: Tensor,
    square_norms: Tensor,
    row: int,
    *,
    padding: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """The square norm of the per-sample gradients of an embedding table, into a row of `square_norms`.

    In plain PyTorch, for output gradients b (N, T, d) at tokens (N, T)::

        g = torch.zeros(N, rows, d).scatter_add_(1, tokens[..., None].expand(N, T, d), b)     # never formed
        square_norms[row].sum() == g.double().square().sum()

    Tokens are sorted by sample, once. The memory that is read and written is that of b and tokens, whatever the size
    of the table. Halves are widened to float32; squares are summed in float64. Same input, same bits on a GPU, where
    products are in float32: of output gradients from 1e-19 to 1e19 in size.

    Args:
        output_grads: b, shape (N, T, d); float64, float32, float16 or bfloat16; any strides.
        tokens: shape (N, T), int64 or int32, 0 or more, on the device of b. Values are not looked at.
        square_norms: shape (rows, 64), float64, contiguous, on the device of b.
        row: which row of it is written; zero before.
        padding: a token whose row of the table gets no gradient.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. The kernel has no float64.

    Returns:
        `square_norms`.

    Raises:
        TypeError: an argument that is not a dense tensor of a supported dtype, a row that is no int.
        ValueError: shapes that do not fit, an empty tensor, devices that differ, a row out of range, Triton asked for
            where it cannot serve.

    Source:
        README.md in this folder.
    """
    if not torch.compiler.is_compiling():
        _check(output_grads, tokens, square_norms, row, padding)
    lacks = "the kernel has no float64" if output_grads.dtype == torch.float64 else None
    chosen = choose_backend(backend, output_grads.device, kernel_lacks=lacks)
    _operator(output_grads.detach(), tokens, square_norms, row, -1 if padding is None else padding, chosen)
    return square_norms


def _check(output_grads: Any, tokens: Any, square_norms: Any, row: Any, padding: Any) -> None:
    check_float_tensor(output_grads, "output_grads")
    if output_grads.ndim != 3 or 0 in output_grads.shape:
        raise ValueError(
            f"output_grads: expected shape (N, T, d) with at least one element, got {tuple(output_grads.shape)}."
        )
    dense = isinstance(tokens, Tensor) and tokens.layout == torch.strided and not tokens.is_nested
    if not dense or tokens.dtype not in (torch.int64, torch.int32):
        got = f"{tokens.dtype}, {tokens.layout}" if isinstance(tokens, Tensor) else type(tokens).__name__
        got = f"a nested one of {got}" if isinstance(tokens, Tensor) and tokens.is_nested else got
        raise TypeError(f"tokens: expected a dense tensor of int64 or int32, got {got}.")
    check_shape(tokens, "tokens", tuple(output_grads.shape[:2]), ", that of output_grads", "Both are of one call.")
    check_device(tokens, "tokens", output_grads, "output_grads")
    check_square_norms(square_norms, output_grads, "output_grads")
    check_integer(row, "row", least=0)
    if row >= square_norms.shape[0]:
        raise ValueError(f"row: expected one of square_norms, below {square_norms.shape[0]}, got {row}.")
    if padding is not None:
        check_integer(padding, "padding", least=0, most=2**63 - 1)


@functools.cache
def _kernels() -> Any:
    from .launch import launch

    return launch


def _compute(output_grads: Tensor, tokens: Tensor, square_norms: Tensor, row: int, padding: int, backend: str) -> None:
    if backend == "triton":
        _kernels()(output_grads, tokens, square_norms, row, padding)
    else:
        square_norms[row, 0] = cpu.lookup_squares(output_grads, tokens.long(), padding)


def _fake(output_grads: Tensor, tokens: Tensor, square_norms: Tensor, row: int, padding: int, backend: str) -> None:
    return None


_operator = register(
    "lookup_squares_into(Tensor output_grads, Tensor tokens, Tensor(a!) square_norms, int row, int padding, "
    "str backend) -> ()",
    _compute,
    fake=_fake,
)
