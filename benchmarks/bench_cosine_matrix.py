"""neuron_cosine_matrix against normalise + matmul, torchmetrics, scikit-learn and torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd

from .cases import BARE_MATMUL, NEURONS_FIRST, NORMALISE_MATMUL, OURS, Case, cases_for
from .harness import Comparison, Provider, Unavailable

OP = "cosine_matrix"
SAMPLES_AT_ONCE = 4096


def normalise_matmul(rows: Tensor) -> Tensor:
    rows = torch.nn.functional.normalize(rows, dim=1)
    return rows @ rows.T


def compiled_normalise_matmul(rows: Tensor) -> Provider:
    if rows.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return Unavailable("torch.compile needs a C++ compiler, and this machine has none")
    torch._dynamo.reset()
    compiled = torch.compile(normalise_matmul, dynamic=False)
    return lambda: compiled(rows)


def torchmetrics_cosine(rows: Tensor) -> Provider:
    try:
        from torchmetrics.functional.pairwise import pairwise_cosine_similarity
    except ImportError:
        return Unavailable("torchmetrics is not installed")
    return lambda: pairwise_cosine_similarity(rows, zero_diagonal=False)


def sklearn_cosine(rows: Tensor) -> Provider:
    if rows.device.type != "cpu":
        return Unavailable("scikit-learn computes on the CPU")
    try:
        from sklearn.metrics.pairwise import cosine_similarity
    except ImportError:
        return Unavailable("scikit-learn is not installed")
    array = rows.numpy()
    return lambda: torch.from_numpy(cosine_similarity(array))


def exact_cosine(rows: Tensor) -> Tensor:
    """Cosines in float64, a block of samples at a time."""
    products = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], SAMPLES_AT_ONCE):
        block = rows[:, start : start + SAMPLES_AT_ONCE].double()
        products.addmm_(block, block.T)
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms[None, :])


def prepare(case: Case, device: torch.device) -> Comparison:
    """Normal activations in the layout of the case, and everybody who computes their cosines."""
    generator = torch.Generator(device).manual_seed(0)
    neurons, samples = case.shape
    if case.variant == NEURONS_FIRST:
        rows = torch.empty((neurons, samples), dtype=case.torch_dtype, device=device).normal_(generator=generator)
    else:
        rows = torch.empty((samples, neurons), dtype=case.torch_dtype, device=device).normal_(generator=generator).T
    wanted = exact_cosine(rows).float()
    half = case.torch_dtype in (torch.float16, torch.bfloat16)
    # Rounding errors of a float32 sum add up like a random walk.
    rounding = torch.finfo(torch.float32).eps * max(64.0, samples**0.5)

    def check(provider: str, result: Any) -> None:
        if provider == BARE_MATMUL:
            return
        allowed = rounding if provider == OURS or not half else 2e-2
        error = (result - wanted).abs().max().item()
        assert error <= allowed, f"largest error {error:.3g}, expected at most {allowed:g}"

    providers: dict[str, Provider] = {
        OURS: lambda: sdsd.neuron_cosine_matrix(rows, neuron_dim=0),
        NORMALISE_MATMUL: lambda: normalise_matmul(rows),
        "torch.compile": compiled_normalise_matmul(rows),
        "torchmetrics": torchmetrics_cosine(rows),
        "scikit-learn": sklearn_cosine(rows),
        BARE_MATMUL: lambda: rows @ rows.T,
    }
    # Counted as half of a full product, which is what the task needs.
    return Comparison(providers, check, baseline=NORMALISE_MATMUL, work=neurons * neurons * samples, work_unit="FLOP")


@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_cosine_matrix(case: Case, compare: Callable) -> None:
    compare(prepare, case)
