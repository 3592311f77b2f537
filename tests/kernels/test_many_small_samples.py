"""More samples than the second dimension of a GPU's grid may have programs, against float64.

Kernels take part on a GPU alone: interpreted ones would take minutes. What grids they would have is in test_limits.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdsd_kernels import (
    NORMS_WIDTH,
    conv_weight_grad_into,
    gamma_moments,
    lookup_squares_into,
    scale_shift_grads,
    weight_grad_into,
    weight_grad_stats,
)

SAMPLES = 70_000


@pytest.fixture(params=["torch", *["triton"] * torch.cuda.is_available()])
def backend(request) -> str:
    return request.param


def norms(device: torch.device) -> Tensor:
    return torch.zeros(2, NORMS_WIDTH, dtype=torch.float64, device=device)


def assert_squares(written: Tensor, row: int, each: Tensor) -> None:
    """`each`: gradients of the samples, float64, of which float32 has summed a few terms each."""
    torch.testing.assert_close(written[row].sum(), each.square().sum(), rtol=1e-5, atol=0.0)


def test_definition_of_biases_and_norms(backend, device):
    grads, inputs = torch.randn(2, SAMPLES, 2, 5, device=device)
    written = norms(device)
    got = scale_shift_grads(grads, written, inputs=inputs, scale_row=0, shift_row=1, backend=backend)
    scale, shift = (grads.double() * inputs.double()).sum(1), grads.double().sum(1)
    assert_squares(written, 0, scale)
    assert_squares(written, 1, shift)
    torch.testing.assert_close(got.shift_grad.double(), shift.sum(0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("positions", [1, 2])
def test_definition_of_linear_layers(backend, device, positions):
    inputs, grads = torch.randn(2, SAMPLES, positions, 6, device=device)
    each = torch.einsum("ntp,ntd->npd", grads.double(), inputs.double())
    written = norms(device)
    got = weight_grad_into(inputs, grads, written, 0, bias_row=1, backend=backend)
    assert_squares(written, 0, each)
    assert_squares(written, 1, grads.double().sum(1))
    torch.testing.assert_close(got.weight_grad.double(), each.sum(0), rtol=1e-4, atol=1e-1)
    for method in ("fused", "gram"):
        stats = weight_grad_stats(inputs, grads, method=method, weight_grad=False, backend=backend)
        torch.testing.assert_close(stats.square_norm, each.square().sum(), rtol=1e-5, atol=0.0)


def test_definition_of_convolutions(backend, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    inputs, grads = torch.randn(2, SAMPLES, 4, 3, device=device)
    written = norms(device)
    conv_weight_grad_into(inputs, grads, written, 0, 1, bias_row=1, backend=backend)
    assert_squares(written, 0, torch.einsum("npt,ndt->npd", grads.double(), inputs.double()))
    assert_squares(written, 1, grads.double().sum(2))


def test_definition_of_embeddings(backend, device):
    grads = torch.randn(SAMPLES, 3, 4, device=device)
    tokens = torch.tensor([1, 0, 1], device=device).expand(SAMPLES, 3)
    written = lookup_squares_into(grads, tokens, norms(device), 0, backend=backend)
    assert_squares(written, 0, torch.stack([grads[:, 0] + grads[:, 2], grads[:, 1]]).double())


def test_definition_of_moments_of_samples(backend, device):
    """A row of results is longer than the grid of its last launch once could be."""
    grads = torch.randn(950_000, 2, device=device)
    got = gamma_moments([grads, grads * 2], per_sample=True, backend=backend)
    d = grads.double() - grads.double().mean(0)
    assert got.deviations is not None
    torch.testing.assert_close(got.deviations[1] / 4, d.square().sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.squares[0], d.square().sum(), rtol=1e-6, atol=0.0)
