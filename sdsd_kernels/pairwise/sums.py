"""Sums of products over batches, in strips of their triangle, where Triton serves: what an accumulator keeps.

A strip of rows [start, start + STRIP) holds columns [start, N), row by row; strips follow each other in flat memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._backend import choose_backend
from .._device import DeviceRecord
from .._launch import Launch, device_of
from .._rows import as_rows
from .config import operand_bytes

STRIP = 256
"""Rows of a strip: a multiple of every tile's, so that a tile lies in one strip."""
MEANS = 256
"""Neurons of a program of `mean_kernel`."""
EXPANDED = 32
"""Side of a tile of `expand_kernel`: in float64, with its mirror image."""


def served(device: torch.device, backend: str | None) -> bool:
    """Whether kernels serve on `device`."""
    return choose_backend(backend, device) == "triton"


def batch_bytes(samples: int, neurons: int, dtype: torch.dtype, *, center: bool) -> int:
    """The most that `add_batch` takes of memory for a batch beside its result."""
    return operand_bytes(neurons, samples, dtype, "float32", center=center)


def add_batch(
    before: Tensor | None,
    activations: Tensor,
    out: Tensor,
    *,
    strips: int = STRIP,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    mean: Tensor | None = None,
    count: int = 0,
    center: bool = False,
    precision: str = "float32",
) -> Tensor | None:
    """out = before + products of a batch of samples: of a = weight (x − shift), less its mean over all samples.

    One launch, after those that find norms and write halves where the batch cannot be multiplied as it lies, and one
    for the means. Nothing waits for the device.

    Args:
        before: sums so far, as `out`; None: none.
        activations: the batch, neurons first: (N, …), float32, float16 or bfloat16; any strides.
        out: memory for the new sums; may be `before`. In strips, float64; or a matrix, float64 or float32.
        strips: rows of a strip; 0 for a matrix, of which only what is on and above the diagonal is promised, of
            neurons whose squares are in the range of float32.
        shift: (N,), float32; None: 0.
        weight: (N,), float32; None: 1.
        mean: of all samples so far, times `weight`, float64; None where there were none.  # shape: (N,)
        count: how many samples there were.
        center: whether sums are about the mean of all samples; without `shift`.
        precision: "float32" or "fp16", as in `cosine_matrix`.

    Returns:
        The mean of all samples, times `weight`, or None without centring.  # shape: (N,)
    """
    from .launch import planned

    rows = as_rows(activations, 0)
    # Kernels are compiled for addresses that are, or are not, multiples of 16 bytes.
    places = [None if each is None else each.data_ptr() % 16 for each in (before, weight, mean, shift, out)]
    choices: dict[str, Any] = {"strips": strips, "center": center, "precision": precision, "shifted": shift is not None}
    triangle, step = planned(_update, rows, None, apart=(*places, out.dtype), **choices)
    with device_of(rows):
        if triangle.prepare.in_place and not triangle.guard:
            triangle(rows, None, None, weight, None, before, out)
            return None
        operands, scale, inverse, rest = triangle.prepare(rows, shift)
        delta = after = None
        if step is not None:
            after = torch.empty(triangle.neurons, dtype=torch.float64, device=rows.device)
            delta = None if mean is None else torch.empty_like(after)
            step(rows, rest, weight, mean, after, delta, count, triangle.prepare.samples)
        triangle(operands, scale, inverse, weight, delta, before, out)
        return after


def _update(
    rows: Tensor, _: None, record: DeviceRecord, strips: int, center: bool, **options: Any
) -> tuple[Any, Launch | None]:
    """Launches of a batch: the triangle's, and the means' where sums are centred."""
    from .launch import Triangle
    from .sums_kernel import mean_kernel

    triangle = Triangle(rows, record, "add", strips=strips, guard=strips > 0, center=center, **options)
    known = {"neurons": rows.shape[0], "stride_neuron": rows.stride(0), "BLOCK": MEANS}
    means = Launch(mean_kernel, (-(-rows.shape[0] // MEANS), 1, 1), known, num_warps=4)
    return triangle, means if center else None


def expand(triangle: Tensor, factor: Tensor, shift: Tensor | None, out: Tensor, *, cosine: bool) -> None:
    """Write (T[i, j] + shift_i shift_j) · (factor_i factor_j) into `out` (N, N), a whole symmetric matrix.

    Args:
        triangle: T, float64, in strips.
        factor: (N,), float64; for cosines inverse norms, 0 or NaN for a neuron without direction.
        shift: (N,), float64, or None.
        out: of any floating-point dtype.
        cosine: within ±1, and exactly 1 on the diagonal of neurons that have a direction.
    """
    from .launch import planned

    launch = planned(expand_launch, out, None, apart=shift is None, cosine=cosine)
    with device_of(out):
        launch(triangle, factor, shift, out)


def expand_launch(out: Tensor, _: None, record: DeviceRecord, cosine: bool) -> Launch:
    """What `expand` launches."""
    from .sums_kernel import expand_kernel

    across = -(-len(out) // EXPANDED)
    known = {"neurons": len(out), "COSINE": cosine, "STRIPS": STRIP, "BLOCK": EXPANDED, "GROUP": 8}
    return Launch(expand_kernel, (across * (across + 1) // 2, 1, 1), known, num_warps=8)
