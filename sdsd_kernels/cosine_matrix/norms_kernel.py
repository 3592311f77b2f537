"""Norms of neurons in one pass over the input, or from the diagonal of products that exist already.

    r_i = 1 / ‖a_i‖,    a_i = (x_i − mean_i) · s_i

Both kernels write, for every neuron, a power-of-two scale s_i, the inverse norm r_i (0 or NaN for a neuron without
direction) and a flag: whether ‖x_i‖² leaves the range in which raw float32 products serve, so that tiles with this
neuron have to be computed again, scaled. One program owns BLOCK_NEURONS neurons and walks all their samples.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile_kernel import LARGEST_SQUARE, SMALLEST_SQUARE, _load_tile, _power_of_two_scale, _shift_and_scale


@triton.jit
def _row_norms(
    rows_ptr,
    neuron,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    CENTER: tl.constexpr,
    ZERO_AS_NAN: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    """(mean, scale, inverse norm, finite and not zero, squares out of range) of BLOCK_NEURONS neurons."""
    live = neuron < neurons
    neuron_offset = neuron.to(tl.int64) * stride_neuron
    lanes = tl.arange(0, BLOCK_SAMPLES)
    one = tl.full((BLOCK_NEURONS,), 1.0, tl.float32)

    mean = tl.zeros((BLOCK_NEURONS,), tl.float32)
    if CENTER:
        # Sums of x − x_0 are as small as the spread, so a mean far from zero costs no digits,
        # and a constant neuron has exactly the mean x_0 and becomes exactly zero.
        first = tl.load(rows_ptr + neuron_offset, mask=live, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
        for start in range(0, samples, BLOCK_SAMPLES):
            sample = start + lanes
            tile = _load_tile(rows_ptr, neuron_offset, live, sample, samples, inner, stride_outer, stride_inner, NESTED)
            total += _shift_and_scale(tile, first, one, sample, samples, True)
        mean = first + tl.sum(total, axis=1) / samples

    squares = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
    largest = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
    for start in range(0, samples, BLOCK_SAMPLES):
        sample = start + lanes
        tile = _load_tile(rows_ptr, neuron_offset, live, sample, samples, inner, stride_outer, stride_inner, NESTED)
        tile = _shift_and_scale(tile, mean, one, sample, samples, CENTER)
        squares += tile * tile
        largest = tl.maximum(largest, tl.abs(tile))
    square = tl.sum(squares, axis=1)
    peak = tl.max(largest, axis=1)
    scale = _power_of_two_scale(peak)
    # A NaN shows in the sum of squares (a maximum may drop it), an infinity in the maximum (a sum may overflow to it).
    finite = (square == square) & (peak < float("inf"))
    directed = finite & (peak > 0)
    out_of_range = directed & ((square < SMALLEST_SQUARE) | (square > LARGEST_SQUARE))
    scaled_square = square * scale * scale
    if tl.max(out_of_range.to(tl.int32), axis=0) > 0:
        squares = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
        for start in range(0, samples, BLOCK_SAMPLES):
            sample = start + lanes
            tile = _load_tile(rows_ptr, neuron_offset, live, sample, samples, inner, stride_outer, stride_inner, NESTED)
            tile = _shift_and_scale(tile, mean, scale, sample, samples, CENTER)
            squares += tile * tile
        scaled_square = tl.where(out_of_range, tl.sum(squares, axis=1), scaled_square)

    inverse_norm = 1.0 / tl.sqrt_rn(scaled_square)
    inverse_norm = tl.where(peak > 0, inverse_norm, float("nan") if ZERO_AS_NAN else 0.0)
    inverse_norm = tl.where(finite, inverse_norm, float("nan"))
    return mean, scale, inverse_norm, directed, out_of_range


@triton.jit
def _row_norms_kernel(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    inverse_norm_ptr,
    out_of_range_ptr,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    CENTER: tl.constexpr,
    ZERO_AS_NAN: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    neuron = tl.program_id(0) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    live = neuron < neurons
    mean, scale, inverse_norm, _, out_of_range = _row_norms(
        rows_ptr,
        neuron,
        neurons,
        samples,
        inner,
        stride_neuron,
        stride_outer,
        stride_inner,
        CENTER,
        ZERO_AS_NAN,
        NESTED,
        BLOCK_NEURONS,
        BLOCK_SAMPLES,
    )
    tl.store(mean_ptr + neuron, mean, mask=live)
    tl.store(scale_ptr + neuron, scale, mask=live)
    tl.store(inverse_norm_ptr + neuron, inverse_norm, mask=live)
    tl.store(out_of_range_ptr + neuron, out_of_range.to(tl.int8), mask=live)


@triton.jit
def _diagonal_norms_kernel(
    rows_ptr,
    partial_ptr,
    scale_ptr,
    inverse_norm_ptr,
    out_of_range_ptr,
    splits,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    ZERO_AS_NAN: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    """Norms from the diagonal of the raw products; the input is read only for neurons whose square is suspicious."""
    neuron = tl.program_id(0) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    live = neuron < neurons
    square = tl.zeros((BLOCK_NEURONS,), tl.float32)
    for split in range(0, splits):
        place = (tl.cast(split, tl.int64) * neurons + neuron) * neurons + neuron
        square += tl.load(partial_ptr + place, mask=live, other=1.0)
    # NaN is not trusted either.
    trusted = (square >= SMALLEST_SQUARE) & (square <= LARGEST_SQUARE)
    scale = tl.full((BLOCK_NEURONS,), 1.0, tl.float32)
    inverse_norm = 1.0 / tl.sqrt_rn(square)
    out_of_range = tl.zeros((BLOCK_NEURONS,), tl.int1)
    if tl.min(trusted.to(tl.int32), axis=0) == 0:
        _, read_scale, read_inverse, directed, _ = _row_norms(
            rows_ptr,
            neuron,
            neurons,
            samples,
            inner,
            stride_neuron,
            stride_outer,
            stride_inner,
            False,
            ZERO_AS_NAN,
            NESTED,
            BLOCK_NEURONS,
            BLOCK_SAMPLES,
        )
        scale = tl.where(trusted, scale, read_scale)
        inverse_norm = tl.where(trusted, inverse_norm, read_inverse)
        out_of_range = (trusted == 0) & directed
    tl.store(scale_ptr + neuron, scale, mask=live)
    tl.store(inverse_norm_ptr + neuron, inverse_norm, mask=live)
    tl.store(out_of_range_ptr + neuron, out_of_range.to(tl.int8), mask=live)
