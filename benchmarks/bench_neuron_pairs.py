"""neuron_pairs and cosine_histogram against matrix products by chunks, and against the dense matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd

from .cases import DENSE_MATRIX, HISTOGRAM, OURS, PRODUCTS_BY_CHUNK, Case, cases_for
from .harness import Comparison, Provider

OP = "neuron_pairs"
CHUNK = 1024
BINS = 100
DEVIATIONS = 4.5
"""The threshold, in standard deviations of the cosine of random neurons: one pair of 300,000 is above it."""
CHECKED = 256
"""Rows whose pairs are compared with float64."""

Pairs = tuple[Tensor, Tensor, Tensor]
Check = Callable[[str, Any], None]


def chunks(rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, cosines of CHUNK rows with all, which of them are pairs i < j)."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    numbers = torch.arange(rows.shape[0], device=rows.device)
    for start in range(0, rows.shape[0], CHUNK):
        yield start, rows[start : start + CHUNK] @ rows.T, numbers > numbers[start : start + CHUNK, None]


def pairs_by_chunk(rows: Tensor, above: float) -> Pairs:
    found = []
    for start, cosine, upper in chunks(rows):
        first, second = ((cosine >= above) & upper).nonzero(as_tuple=True)
        found.append((first + start, second, cosine[first, second]))
    first, second, cosines = (torch.cat(column) for column in zip(*found, strict=True))
    return first, second, cosines


def pairs_of_matrix(rows: Tensor, above: float) -> Pairs:
    cosine = sdsd.neuron_cosine_matrix(rows, neuron_dim=0).triu_(1)
    first, second = (cosine >= above).nonzero(as_tuple=True)
    return first, second, cosine[first, second]


def our_pairs(rows: Tensor, above: float) -> Pairs:
    found = sdsd.neuron_pairs(rows, above=above, neuron_dim=0)
    return found.first, found.second, found.cosine


def histogram_by_chunk(rows: Tensor) -> Tensor:
    counts = torch.zeros(BINS, dtype=torch.int64, device=rows.device)
    for _, cosine, upper in chunks(rows):
        counts += torch.histc(cosine.masked_fill_(~upper, 2), BINS, -1, 1).long()
    return counts


def histogram_of_matrix(rows: Tensor) -> Tensor:
    """Every pair twice and a diagonal of ones; in float32 a bin loses counts beyond 2^24, so row by row of chunks."""
    cosine = sdsd.neuron_cosine_matrix(rows, neuron_dim=0)
    counts = sum(torch.histc(some, BINS, -1, 1).long() for some in cosine.split(CHUNK))
    assert isinstance(counts, Tensor)
    counts[-1] -= rows.shape[0]
    return counts // 2


def our_histogram(rows: Tensor) -> Tensor:
    return sdsd.cosine_histogram(rows, BINS, neuron_dim=0).counts


def pairs_check(rows: Tensor, above: float, generator: torch.Generator) -> Check:
    checked = torch.randperm(rows.shape[0], generator=generator, device=rows.device)[:CHECKED].sort().values
    exact = torch.nn.functional.normalize(rows[checked].double(), dim=1)
    everyone = [torch.nn.functional.normalize(part.double(), dim=1) for part in rows.split(CHUNK)]
    cosine = torch.cat([exact @ part.T for part in everyone], dim=1)
    cosine[torch.arange(rows.shape[0], device=rows.device) <= checked[:, None]] = -torch.inf

    def check(provider: str, result: Any) -> None:
        first, second, values = result
        assert first.numel() > 0, "no pair was found"
        place = torch.searchsorted(checked, first).clamp(max=CHECKED - 1)
        known = checked[place] == first
        found = cosine[place[known], second[known]]
        error = (values[known] - found).abs().max().item()
        assert error <= 1e-5, f"largest error {error:.3g}, expected at most 1e-05"
        assert (found >= above - 1e-5).all(), "pairs below the threshold"
        missed = int((cosine >= above + 1e-5).sum()) - int((found >= above + 1e-5).sum())
        assert missed == 0, f"{missed} pairs missed"

    return check


def histogram_check(rows: Tensor) -> Check:
    """The mean and the mean square of all cosines, which sums of directions and their products give exactly."""
    neurons, samples = rows.shape
    total = torch.zeros(samples, dtype=torch.float64, device=rows.device)
    products = torch.zeros(samples, samples, dtype=torch.float64, device=rows.device)
    for part in rows.split(CHUNK):
        directions = torch.nn.functional.normalize(part.double(), dim=1)
        total += directions.sum(0)
        products.addmm_(directions.T, directions)
    pairs = neurons * (neurons - 1) / 2
    mean = (total.square().sum().item() - neurons) / 2 / pairs
    mean_square = (products.square().sum().item() - neurons) / 2 / pairs
    middles = (torch.arange(BINS, device=rows.device) + 0.5) * 2 / BINS - 1

    def check(provider: str, counts: Any) -> None:
        assert int(counts.sum()) == pairs, f"{int(counts.sum())} pairs, expected {pairs:.0f}"
        share = counts.double() / pairs
        assert abs((share * middles).sum().item() - mean) < 1e-4, "the mean is off"
        # Values spread over a bin of width w add w² / 12 to the square of its middle (Sheppard's correction).
        spread = (share * middles.square()).sum().item() - (2 / BINS) ** 2 / 12
        assert abs(spread / mean_square - 1) < 0.01, "the mean square is off"

    return check


def prepare(case: Case, device: torch.device) -> Comparison:
    """Normal activations, neurons first."""
    generator = torch.Generator(device).manual_seed(0)
    neurons, samples = case.shape
    rows = torch.empty((neurons, samples), dtype=case.torch_dtype, device=device).normal_(generator=generator)
    providers: dict[str, Provider]
    if case.variant == HISTOGRAM:
        check = histogram_check(rows)
        providers = {
            OURS: lambda: our_histogram(rows),
            PRODUCTS_BY_CHUNK: lambda: histogram_by_chunk(rows),
            DENSE_MATRIX: lambda: histogram_of_matrix(rows),
        }
    else:
        above = DEVIATIONS / samples**0.5
        check = pairs_check(rows, above, generator)
        providers = {
            OURS: lambda: our_pairs(rows, above),
            PRODUCTS_BY_CHUNK: lambda: pairs_by_chunk(rows, above),
            DENSE_MATRIX: lambda: pairs_of_matrix(rows, above),
        }
    # Counted as half of a full product: every pair once.
    work = neurons * neurons * samples
    return Comparison(providers, check, PRODUCTS_BY_CHUNK, work=work, work_unit="FLOP", by_process_time=True)


@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_neuron_pairs(case: Case, compare: Callable) -> None:
    compare(prepare, case)
