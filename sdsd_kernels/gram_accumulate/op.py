"""The Gram matrix of neurons, a batch at a time: checks, choice of backend, torch.library, half of the products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_apart, check_device, check_float_tensor, check_precision, check_shape, check_written
from .._precision import exact_float32
from .._register import register
from .._rows import rows_of
from ..pairwise.products import upper_products
from ..pairwise.reading import summed_in, values_of
from ..pairwise.sums import add_batch


def gram_accumulate(
    gram: Tensor,
    activations: Tensor,
    *,
    neuron_dim: int = -1,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    precision: str = "float32",
    backend: str | None = None,
) -> Tensor:
    """Add the products of every pair of neurons, over all samples, to the upper triangle of `gram`, in place.

        x = activations.movedim(neuron_dim, 0).flatten(1)          # (N, SAMPLES)
        a = (x - shift[:, None]) * scale[:, None]                  # shift 0 and scale 1 where they are left out
        gram += (a @ a.T).triu()                                   # (N, N)

    Half of the products of a full matrix product are computed.

    - **Below the diagonal** nothing is promised: entries there are neither read nor kept. A sum may have written some
      of them and not others, so take `gram.triu()` before you mirror it.
    - **Dtypes.** Activations of float16, bfloat16 or float32 are shifted, scaled, multiplied and, within one call,
      summed in float32; those of float64 in float64. `gram` is float32 or float64, and float64 for float64
      activations. One call's sum is rounded to the dtype of `gram` once for every chunk of samples it takes, so a
      float64 `gram` over many calls errs no more than the float32 sums of one call do.
    - **NaN and infinity** in neuron i reach row i and column i of the triangle and stay: a sum cannot lose them. An
      entry also becomes infinite, or NaN, where its products overflow: keep ‖a_i‖² below 1e38 by `scale`.
      Powers of two round nothing.
    - **Same input, same bits** on one machine with one number of threads.

    Args:
        gram: (N, N), contiguous, float32 or float64: what is added to.
        activations, neuron_dim: as in `cosine_matrix`.
        shift: (N,), subtracted from every sample of a neuron; float32, or float64 for float64 activations, so that
            what is subtracted is what was passed.
        scale: (N,), a factor for every neuron after the shift; dtype as of `shift`.
        precision: what factors may be rounded to on a GPU: "float32" or "fp16", as in `cosine_matrix`. Halves multiply
            exactly at both unless they are shifted. Triton only.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. Triton has no float64 activations.

    Returns:
        `gram` itself. Gradients do not flow: activations, shift and scale are detached.

    Raises:
        TypeError: not a dense tensor of a supported floating-point dtype, or a dtype that does not go with the others.
        ValueError: shapes or devices that do not fit together, a `gram` that is not contiguous, requires a gradient or
            shares memory with another argument, an unknown choice, Triton asked for where it cannot serve. `gram` is
            unharmed then.

    Source:
        README.md in this folder.
    """
    rows = rows_of(activations, neuron_dim)
    precision = check_precision(precision)
    _check_gram(gram, rows)
    for name, vector in (("shift", shift), ("scale", scale)):
        if vector is not None:
            _check_vector(vector, name, rows)
    lacks = "the kernel has no float64 activations" if rows.dtype == torch.float64 else None
    chosen = choose_backend(backend, rows.device, kernel_lacks=lacks)
    shift, scale = (None if each is None else each.detach().contiguous() for each in (shift, scale))
    _operator(gram, rows, shift, scale, precision, chosen)
    return gram


def _check_gram(gram: Any, rows: Tensor) -> None:
    """Raise unless `gram` is an (N, N) sum that activations `rows` can be added to."""
    check_float_tensor(gram, "gram")
    if gram.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"gram: expected float32 or float64, got {gram.dtype}. Sums need more digits than halves have.")
    if rows.dtype == torch.float64 and gram.dtype != torch.float64:
        raise TypeError(f"gram: expected float64 for float64 activations, got {gram.dtype}. Start from a float64 one.")
    what, do = f" for activations of {len(rows)} neurons", "Check that neuron_dim names the dimension of neurons."
    check_shape(gram, "gram", (len(rows), len(rows)), what, do)
    check_written(gram, "gram", "torch.zeros(n, n)")
    check_device(gram, "gram", rows, "activations")


def _check_vector(vector: Any, name: str, rows: Tensor) -> None:
    """Raise unless `vector` is one number a neuron in the dtype products are taken in."""
    check_float_tensor(vector, name)
    wanted = summed_in(rows.dtype)
    if vector.dtype != wanted:
        raise TypeError(f"{name}: expected {wanted} for {rows.dtype} activations, got {vector.dtype}.")
    check_shape(vector, name, (len(rows),), ", one number a neuron", "Reduce or expand it to that.")
    check_device(vector, name, rows, "activations")


def _compute(
    gram: Tensor, rows: Tensor, shift: Tensor | None, scale: Tensor | None, precision: str, backend: str
) -> None:
    check_apart(gram, "gram", activations=rows, shift=shift, scale=scale)
    if backend == "triton":
        add_batch(gram, rows, gram, strips=0, shift=shift, weight=scale, precision=precision)
        return
    values = values_of(rows, center=False)
    with exact_float32():
        for a in values.chunks(copy=values.converts or shift is not None or scale is not None):
            if shift is not None:
                a.sub_(shift[:, None])
            if scale is not None:
                a.mul_(scale[:, None])
            upper_products(a, gram, accumulate=True)


_operator = register(
    "gram_accumulate(Tensor(a!) gram, Tensor rows, Tensor? shift, Tensor? scale, str precision, str backend) -> ()",
    _compute,
    fake=lambda *_: None,
)
