"""What tests of histograms, row sums and threshold pairs hold them to: float64 written apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdsd_kernels import cosine_histogram, cosine_pairs, cosine_row_sums
from tests.helpers import assert_within, cosine_error, summation_error
from tests.kernels.cosines import exact_cosines, exact_rows, flat

NAN, INF = float("nan"), float("inf")

CALLS = {
    "histogram": cosine_histogram,
    "row sums": cosine_row_sums,
    "pairs": lambda x, **options: cosine_pairs(x, above=0.5, **options),
}


def oracle(x: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """NaN where there is no pair i < j."""
    rows = exact_rows(x, neuron_dim, center)
    cosine = exact_cosines(rows, rows)
    cosine[~torch.ones_like(cosine, dtype=torch.bool).triu(1)] = NAN
    return cosine


def without_direction(x: Tensor, neuron_dim: int = -1, center: bool = False) -> tuple[Tensor, Tensor]:
    """Neurons that are zero on every sample, and neurons with a NaN or an infinity."""
    rows = exact_rows(x, neuron_dim)
    bad = ~rows.isfinite().all(1)
    zero = (rows == rows[:, :1]).all(1) if center else (rows == 0).all(1)
    return zero & ~bad, bad


def near(x: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """How far a computed cosine may be from the oracle's, and so from an edge or a threshold on its other side."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return cosine_error(flat(x, neuron_dim), center=center, dtype=dtype)


def check_histogram(got, x: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    """Every inner edge has the right number of pairs below it, but for those within rounding of it."""
    cosine = oracle(x, neuron_dim, center)
    zero, bad = without_direction(x, neuron_dim, center)
    cosine[zero | bad] = NAN
    cosine[:, zero | bad] = NAN
    values, error = cosine[~cosine.isnan()], near(x, neuron_dim, center)[~cosine.isnan()]
    bins = len(got.counts)
    assert got.counts.dtype == torch.int64
    assert got.edges.tolist() == pytest.approx([2 * k / bins - 1 for k in range(bins + 1)], abs=1e-15)
    assert int(got.counts.sum()) == len(values)
    below = got.counts.cpu().cumsum(0)[:-1]
    for edge, count in zip(got.edges.tolist()[1:-1], below.tolist(), strict=True):
        assert int((values + error < edge).sum()) <= count <= int((values - error < edge).sum())
    n, clean, live = len(cosine), int((~bad).sum()), int((~bad & ~zero).sum())
    assert int(got.nan_pairs) == math.comb(n, 2) - math.comb(clean, 2)
    assert int(got.zero_pairs) == math.comb(clean, 2) - math.comb(live, 2)


def check_pairs(got, x: Tensor, threshold: float, above: bool, neuron_dim: int = -1, center: bool = False) -> None:
    """All pairs clearly past the threshold, none clearly short of it, in order, with their cosines."""
    sign = 1 if above else -1
    cosine, error = oracle(x, neuron_dim, center), near(x, neuron_dim, center)
    zero, bad = without_direction(x, neuron_dim, center)
    cosine[zero | bad] = NAN
    cosine[:, zero | bad] = NAN
    first, second = got.first.cpu(), got.second.cpu()
    assert first.dtype == second.dtype == torch.int64
    assert got.cosine.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    places = first * len(cosine) + second
    assert (places.diff() > 0).all()
    wanted = cosine[first, second]
    assert (sign * wanted >= sign * threshold - error[first, second]).all()
    past = torch.zeros_like(cosine, dtype=torch.bool)
    past[first, second] = True
    assert past[sign * cosine >= sign * threshold + error].all()
    assert_within(got.cosine, wanted, error[first, second])
    assert (sign * got.cosine >= sign * torch.tensor(threshold, dtype=got.cosine.dtype)).all()


TERMS = {
    "cosine": lambda cosine: cosine,
    "absolute": lambda cosine: cosine.abs(),
    "distance": lambda cosine: (2 - 2 * cosine).clamp(min=0).sqrt(),
}


def sums_of(cosine: Tensor, kind: str) -> Tensor:
    term = TERMS[kind](cosine).nan_to_num(0)
    return term.sum(1) + term.sum(0)


def check_row_sums(got: Tensor, x: Tensor, kind: str, neuron_dim: int = -1, center: bool = False) -> None:
    cosine = oracle(x, neuron_dim, center)
    zero, bad = without_direction(x, neuron_dim, center)
    cosine[zero | bad] = NAN
    cosine[:, zero | bad] = NAN
    assert got.dtype == torch.float64
    assert got[bad.to(got.device)].isnan().all()
    error, magnitude = near(x, neuron_dim, center), TERMS[kind](cosine).abs().nan_to_num(0)
    if kind == "distance":
        # √ magnifies rounding where c is near 1: |√(d² + 2ε) − d| ≤ min(2ε / d, √(2ε)).
        error = torch.minimum(2 * error / magnitude, (2 * error).sqrt())
    # Every neuron's own errors add up, and then those of a sum of N − 1 numbers.
    error = error.masked_fill(cosine.isnan(), 0.0) + summation_error(len(cosine), torch.float32) * magnitude
    assert_within(got.cpu()[~bad], sums_of(cosine, kind)[~bad], (error.sum(1) + error.sum(0))[~bad])


SHAPES = [
    ((40, 70), -1),  # tiles of two groups, ragged in both dimensions
    ((1, 33), 1),  # one sample: every cosine is ±1
    ((33, 1), 1),  # one neuron, no pair
    ((5, 2), 1),
    ((41, 60), 0),  # samples adjacent
    ((32, 64), 0),  # nothing overruns
    ((3, 7, 35), -1),  # (batch, tokens, neurons)
    ((3, 34, 4, 5), 1),  # Conv2d
]


def check_calls(x: Tensor, neuron_dim: int = -1, center: bool = False, backend: str | None = None) -> None:
    options = {"neuron_dim": neuron_dim, "center": center, "backend": backend}
    check_histogram(cosine_histogram(x, 37, **options), x, neuron_dim, center)
    check_row_sums(cosine_row_sums(x, **options), x, "cosine", neuron_dim, center)
    check_pairs(cosine_pairs(x, above=0.1, **options), x, 0.1, True, neuron_dim, center)


def check_all(x: Tensor, neuron_dim: int = -1, center: bool = False, backend: str | None = None) -> None:
    """What differs from `check_calls` is done to a cosine after it is computed, whatever the shape of activations."""
    check_calls(x, neuron_dim, center, backend)
    options = {"neuron_dim": neuron_dim, "center": center, "backend": backend}
    for kind in ("absolute", "distance"):
        check_row_sums(cosine_row_sums(x, kind, **options), x, kind, neuron_dim, center)
    check_pairs(cosine_pairs(x, below=0.05, **options), x, 0.05, False, neuron_dim, center)


def sign_vectors(neurons: int, seed: int) -> Tensor:
    """Neurons of sixteen ±1: every cosine is a multiple of 1/8 and exact in every order of summation."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (16, neurons), generator=generator).float() * 2 - 1
