"""How far a result may be from its float64 oracle: bounds that follow from rounding, never from a measurement.

Let u be the unit roundoff of the dtype a sum is promised in (2⁻²⁴ for float32). A sum of n products, in any order, with
or without fused multiply-adds, errs at most by n·u·Σ|a_k b_k| (Higham, Accuracy and Stability of Numerical Algorithms,
2nd edition, §3.1). Rounding errors that do not conspire err as √n: each partial sum S_k is rounded by at most u·|S_k|,
with a standard deviation of u·|S_k|/√3, and |S_k| grows no faster than (k/n)·Σ|a_k b_k| where the order owes nothing to
the values, so that the standard deviation of all is at most √n·u·Σ|a_k b_k|/3 (Higham and Mary, A new approach to
probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019). Bounds here take the smaller of n and 2√n, the
latter six of these standard deviations. So they hold for every blocking, vector width and number of threads, on a CPU
and on a GPU.

Nothing here imports a reference.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def summation_error(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Bound on the error of a sum of `terms` products, as a share of the sum of their magnitudes."""
    return min(terms, 2 * math.sqrt(terms)) * unit_roundoff(dtype)


def cosine_error(
    rows: Tensor,
    others: Tensor | None = None,
    *,
    center: bool = False,
    dtype: torch.dtype = torch.float32,
    terms: int | None = None,
) -> Tensor:
    """Bound on the error of the cosines of `rows` (N, samples) with `others` (M, samples) or themselves.

    With unit vectors a and b: their product and the squares of both norms are sums in `dtype`, and eight roundings are
    left for square roots, scaling, centring and the result, all relative to Σ|a_k b_k|. A mean that is rounded to
    `dtype` (twice that is allowed) moves a neuron by δ = 2u·|mean|·√samples / ‖x − mean‖ along the vector of ones,
    which is orthogonal to all centred neurons: that changes cosines by δ_i δ_j, and norms by δ²/2. The float64 oracle
    rounds as well, and has the same bound once more with its own u.

    Args:
        terms: how many products are summed in `dtype` before float64 takes over; None is all samples.

    Returns:
        float64.  # shape: (N, M)
    """
    unit = unit_roundoff(dtype)

    def parts(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.detach().double().cpu()
        rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
        mean = rows.mean(1, keepdim=True) * center
        norm = (rows - mean).norm(dim=1, keepdim=True).clamp(min=1e-300)
        return (rows - mean).abs() / norm, 2 * unit * mean.abs() * math.sqrt(rows.shape[1]) / norm

    left, left_moved = parts(rows)
    right, right_moved = (left, left_moved) if others is None else parts(others)
    samples = rows.shape[1]
    relative = sum(
        2 * summation_error(count, each) + 8 * unit_roundoff(each)
        for each, count in ((dtype, terms or samples), (torch.float64, samples))
    )
    return relative * (left @ right.T) + (left_moved + right_moved.T).square() / 2


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖ in float64; NaN anywhere gives NaN, which no bound passes."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    scale = wanted.norm().item()
    return (got - wanted).norm().item() / (scale if scale > 0 else 1.0)


def assert_within(got: Tensor, wanted: Tensor, allowed: Tensor | float) -> None:
    """|got − wanted| ≤ allowed in every element, in float64; where `wanted` is NaN `got` has to be."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    allowed = torch.as_tensor(allowed, dtype=torch.float64)
    assert got.shape == wanted.shape, f"shape {tuple(got.shape)}, expected {tuple(wanted.shape)}"
    wrong = ~((got - wanted).abs() <= allowed) & ~(got.isnan() & wanted.isnan())
    if wrong.any():
        over = ((got - wanted).abs() / allowed).where(wrong, -1.0)
        place = tuple(int(index) for index in torch.unravel_index(over.argmax(), over.shape))
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements are out of bounds; "
            f"at {place} got {got[place]:.9g}, expected {wanted[place]:.9g} ± {allowed.expand(got.shape)[place]:.3e}"
        )
