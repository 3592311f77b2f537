"""The tangent kernel against the Jacobian, and its change with the width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.theory import kernel_change, tangent_kernel


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def test_it_is_the_jacobian_times_itself(model):
    x = torch.randn(5, 4, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
    rows = torch.cat([part.flatten(2) for part in jacobian.values()], 2)  # shape: (5, 3, parameters)
    assert torch.allclose(tangent_kernel(model, x), torch.einsum("iop,jop->ij", rows, rows))
    assert torch.allclose(tangent_kernel(model, x, output=1), rows[:, 1] @ rows[:, 1].mT)


def test_frozen_parameters_do_not_count(model):
    x = torch.randn(5, 4, dtype=torch.float64)
    whole = tangent_kernel(model, x)
    model[0].requires_grad_(False)
    hidden = model[:2](x)
    assert torch.allclose(tangent_kernel(model, x), 3 * (hidden @ hidden.mT + 1))
    assert not torch.allclose(whole, 3 * (hidden @ hidden.mT + 1))


def test_the_change():
    k = torch.eye(3)
    assert kernel_change(k, 1.5 * k) == pytest.approx(0.5)
    assert kernel_change(k, k) == 0
    with pytest.raises(ValueError, match=r"after: expected shape \(3, 3\), got \(2, 2\)"):
        kernel_change(k, torch.eye(2))
    with pytest.raises(ValueError, match="expected a kernel that is not zero"):
        kernel_change(0 * k, k)


def test_arguments(model):
    x = torch.randn(5, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="output: expected 0 to 2, got 3"):
        tangent_kernel(model, x, output=3)
    with pytest.raises(ValueError, match="their gradients hold NaN"):
        tangent_kernel(model, x * float("nan"))
    with pytest.raises(ValueError, match="BatchNorm in train mode"):
        tangent_kernel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double(), x)
