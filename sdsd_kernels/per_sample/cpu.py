"""The three methods in torch, on any device.

On the CPU a sum of squares that float32 may have spoilt (it left the range where single squares neither vanish nor
overflow) is redone in float64. Elsewhere looking at it would wait for the device, so squares are float64 at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SAFE_SQUARES = (1e-20, 1e30)
"""Sums of squares outside this range may have lost terms to float32 underflow or overflow: redone in float64."""
SAFE_NORMS = (1e-10, 1e15)
"""The same for norms of rows. A row of zeros is outside, which costs time and no accuracy."""
GROUP_BYTES = 2**21
"""Small gradients are formed in groups of this many bytes, which stay in the second-level cache."""
ALONE_BYTES = 2**18
"""Gradients from this size on are formed one by one by a single thread: grouping costs more in passes over memory than
calls cost. Fitted like the costs in method.py."""


def weight_grad_stats(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    weight_grad: bool,
    dtype: torch.dtype,
    method: str,
    max_bytes: int,
) -> tuple[Tensor | None, Tensor]:
    """Weight gradient (p, d) or None, and the square norm, of inputs (N, T, d) and output gradients (N, T, p)."""
    if method == "fused":
        return fused(inputs, output_grads, scale, weight_grad, dtype, max_bytes)
    total = plain_weight_grad(inputs, output_grads, inputs.dtype).to(dtype) if weight_grad else None
    if method == "gram":
        return total, gram(inputs, output_grads, max_bytes)
    return total, rank1(inputs[:, 0], output_grads[:, 0], scale, max_bytes)


def plain_weight_grad(inputs: Tensor, output_grads: Tensor, dtype: torch.dtype) -> Tensor:
    """The product autograd takes for torch.nn.functional.linear, and in the dtype of `inputs` its bits; shape: (p, d).

    float32 of halves is written straight from the accumulator where torch can do that.
    """
    left = output_grads.reshape(-1, output_grads.shape[-1]).t()
    right = inputs.reshape(-1, inputs.shape[-1])
    if dtype == torch.float32 and inputs.dtype.itemsize == 2 and inputs.device.type == "cuda":
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def trusted(value: float) -> bool:
    return SAFE_SQUARES[0] < value < SAFE_SQUARES[1]


def sum_of_squares(flat: Tensor) -> float | Tensor:
    """‖flat‖² in float64, for a vector in one piece."""
    if flat.device.type != "cpu":
        return torch.linalg.vector_norm(flat, dtype=torch.float64).square()
    value = torch.dot(flat, flat).item()
    if flat.dtype == torch.float64 or trusted(value):
        return value
    wide = flat.double()
    return torch.dot(wide, wide).item()


def as_result(value: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def fused(
    inputs: Tensor, output_grads: Tensor, scale: Tensor | None, weight_grad: bool, returned: torch.dtype, max_bytes: int
) -> tuple[Tensor | None, Tensor]:
    """A group of g_n at a time (a block of rows of one where it is large): squared, added to the weight gradient."""
    samples, _, d = inputs.shape
    p = output_grads.shape[2]
    dtype = working_dtype(inputs.dtype)
    group, rows = _fused_blocks(inputs, output_grads, scale, max_bytes)
    make = torch.empty if group == 1 and scale is None else torch.zeros
    total = make(p * d, dtype=dtype, device=inputs.device) if weight_grad else None
    scratch = torch.empty(group * rows * d, dtype=dtype, device=inputs.device)
    ones = torch.ones(group, dtype=dtype, device=inputs.device)
    squares: float | Tensor = 0.0
    for start in range(0, p, rows):
        stop = min(p, start + rows)
        size = (stop - start) * d
        part = None if total is None else total[start * d : stop * d]
        factors = None if scale is None else scale[start:stop].to(dtype).reshape(-1)
        if group == 1:
            b = output_grads[:, :, start:stop].mT
            pairs = zip(b, inputs, strict=True) if inputs.dtype == dtype else _widened(b, inputs, dtype)
            squares = squares + one_by_one(pairs, scratch[:size], part, factors)
            continue
        for first in range(0, samples, group):
            a, b = inputs[first : first + group].to(dtype), output_grads[first : first + group].to(dtype)
            count = a.shape[0]
            flat = scratch[: count * size]
            torch.bmm(b.mT, a, out=flat.view(count, -1, d))
            if part is not None:
                part.addmv_(flat.view(count, size).t(), ones[:count])
            if factors is not None:
                flat.view(count, size).mul_(factors)
            squares = squares + sum_of_squares(flat)
            del a, b  # widened copies would live on beside the next ones
    if total is not None:
        total = total.to(returned).view(p, d)
    return total, as_result(squares, inputs)


def _widened(left: Tensor, right: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for b, a in zip(left, right, strict=True):
        yield b.to(dtype), a.to(dtype)


class Unfolding(NamedTuple):
    """Memory in which the patches of one picture after another are laid side by side."""

    inside: Tensor
    """Where a picture goes, (C, *size)."""
    windows: Tensor
    """What each position sees of it and of its padding, (C, *kernel, *positions)."""
    copied: Tensor
    """A copy of that."""
    patches: Tensor
    """The copy, as (T, C · taps)."""


def one_by_one(
    pairs: Iterable[tuple[Tensor, Tensor]],
    scratch: Tensor,
    total: Tensor | None,
    factors: Tensor | None,
    unfolding: Unfolding | None = None,
) -> float | Tensor:
    """Σ‖g_n‖² of g_n the products of pairs (p, T), (T, d), each formed in `scratch` and added into `total`; these two,
    and `factors`, which multiply g_n before it is squared, hold p·d numbers. With `unfolding` the second of a pair is a
    picture, whose patches are multiplied."""
    squares: float | Tensor = 0.0
    # The first gradient is formed in its place: one pass over memory less.
    flat = scratch if total is None or factors is not None else total
    formed: Tensor | None = None
    for left, right in pairs:
        if formed is None:
            formed = flat.view(left.shape[0], -1)
        if unfolding is None:
            torch.mm(left, right, out=formed)
        else:
            unfolding.inside.copy_(right)
            unfolding.copied.copy_(unfolding.windows)
            torch.mm(left, unfolding.patches, out=formed)
        if total is not None and flat is not total:
            total += flat
        if factors is not None:
            flat.mul_(factors)
        if flat.is_cpu:
            # As sum_of_squares, without its price.
            value = torch.dot(flat, flat).item()
            squares += value if SAFE_SQUARES[0] < value < SAFE_SQUARES[1] else sum_of_squares(flat)
        else:
            squares = squares + sum_of_squares(flat)
        if flat is total:
            flat, formed = scratch, None
    return squares


def _fused_blocks(inputs: Tensor, output_grads: Tensor, scale: Tensor | None, max_bytes: int) -> tuple[int, int]:
    """Samples a group, and rows of their gradients at once, for `fused`."""
    samples, positions, d = inputs.shape
    p = output_grads.shape[2]
    dtype = working_dtype(inputs.dtype)
    gradient = p * d * dtype.itemsize
    widened = positions * (d + p) * dtype.itemsize if inputs.dtype != dtype else 0
    factors = 0 if scale is None else gradient
    affordable = (max_bytes - factors) // (gradient + widened)
    if affordable < 1:
        return 1, max(1, min(p, (max_bytes - widened) // (d * dtype.itemsize * (1 if scale is None else 2))))
    threads = torch.get_num_threads() if inputs.device.type == "cpu" else 1
    if threads == 1 and gradient >= ALONE_BYTES:
        return 1, p
    return max(1, min(samples, max(GROUP_BYTES // gradient, threads), affordable)), p


def gram(inputs: Tensor, output_grads: Tensor, max_bytes: int) -> Tensor:
    """Σ⟨a_n a_nᵀ, b_n b_nᵀ⟩, as many samples at once as scratch allows."""
    samples, positions, d = inputs.shape
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    each = 2 * positions * positions * dtype.itemsize
    if inputs.dtype != dtype:
        each += positions * (d + output_grads.shape[2]) * dtype.itemsize
    chunk = max(1, min(samples, max_bytes // each))
    result: float | Tensor = 0.0
    for start in range(0, samples, chunk):
        a, b = inputs[start : start + chunk].to(dtype), output_grads[start : start + chunk].to(dtype)
        left, right = torch.bmm(a, a.mT), torch.bmm(b, b.mT)
        value: float | Tensor = torch.dot(left.view(-1), right.view(-1)).double()
        del left, right
        if a.device.type == "cpu":
            value = float(value)
            if dtype != torch.float64 and not SAFE_SQUARES[0] < value < SAFE_SQUARES[1]:
                value = sum(float(_gram_of_one(one.double(), two.double())) for one, two in zip(a, b, strict=True))
        result = result + value
        del a, b  # widened copies would live on beside the next ones
    return as_result(result, inputs)


def _gram_of_one(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot((a @ a.mT).view(-1), (b @ b.mT).view(-1))


def rank1(a: Tensor, b: Tensor, scale: Tensor | None, max_bytes: int) -> Tensor:
    """Σ‖a_n‖²‖b_n‖², or Σ_n (b_n²)ᵀ D² (a_n²) with a scale; a: (N, d), b: (N, p)."""
    if scale is None:
        return torch.dot(_row_squares(a), _row_squares(b))
    dtype = torch.float64 if a.device.type != "cpu" else working_dtype(a.dtype)
    value = _scaled_rank1(a, b, scale, max_bytes, dtype)
    if dtype == torch.float32 and not trusted(float(value)):
        value = _scaled_rank1(a, b, scale, max_bytes, torch.float64)
    return value


def _row_squares(rows: Tensor) -> Tensor:
    """‖row‖² of every row, float64; shape: (N,)."""
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        norms = torch.linalg.vector_norm(rows, dim=1)
        smallest, largest = torch.aminmax(norms)
        if smallest.item() > SAFE_NORMS[0] and largest.item() < SAFE_NORMS[1]:
            return norms.double().square()
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()


def _scaled_rank1(a: Tensor, b: Tensor, scale: Tensor, max_bytes: int, dtype: torch.dtype) -> Tensor:
    factors = scale.to(dtype).square()
    left = max_bytes - factors.numel() * dtype.itemsize
    chunk = max(1, min(a.shape[0], left // ((2 * a.shape[1] + 3 * b.shape[1]) * dtype.itemsize)))
    result = torch.zeros((), dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[0], chunk):
        weights = torch.mm(a[start : start + chunk].to(dtype).square(), factors.t())
        result += torch.dot(weights.view(-1), b[start : start + chunk].to(dtype).square().reshape(-1))
    return result
