"""GramAccumulator, a batch at a time, against one call on all samples and against summing products by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd

from .bench_cosine_matrix import exact_cosine
from .cases import ALL_AT_ONCE, BATCHES, OURS, SUMS_BY_HAND, Case, cases_for
from .harness import Comparison, Provider

OP = "gram_accumulator"


def accumulated(x: Tensor, batch: int) -> Tensor:
    gram = sdsd.GramAccumulator(x.shape[1], device=x.device)
    for part in x.split(batch):
        gram.update(part)
    return gram.cosine_matrix()


def summed_by_hand(x: Tensor, batch: int) -> Tensor:
    """What one writes without a library: whole products, one float32 sum."""
    gram = torch.zeros((x.shape[1], x.shape[1]), device=x.device)
    for part in x.split(batch):
        part = part.float()
        gram.addmm_(part.T, part)
    norms = gram.diagonal().sqrt()
    return gram / norms / norms[:, None]


def prepare(case: Case, device: torch.device) -> Comparison:
    """Samples of a layer, all of them in memory already, so that all providers read the same."""
    generator = torch.Generator(device).manual_seed(0)
    neurons, samples = case.shape
    x = torch.empty((samples, neurons), dtype=case.torch_dtype, device=device).normal_(generator=generator)
    batch = BATCHES[case.variant]
    wanted = exact_cosine(x.T).float()

    def check(provider: str, result: Any) -> None:
        error = (result - wanted).abs().max().item()
        assert error <= 1e-5, f"largest error {error:.3g}, expected at most 1e-05"

    providers: dict[str, Provider] = {
        OURS: lambda: accumulated(x, batch),
        ALL_AT_ONCE: lambda: sdsd.neuron_cosine_matrix(x),
        SUMS_BY_HAND: lambda: summed_by_hand(x, batch),
    }
    # Counted as half of a full product, which is what the task needs.
    return Comparison(providers, check, baseline=ALL_AT_ONCE, work=neurons * neurons * samples, work_unit="FLOP")


@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_gram_accumulator(case: Case, compare: Callable) -> None:
    compare(prepare, case)
